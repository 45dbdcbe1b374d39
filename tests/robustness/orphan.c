/* A program whose box is killed: prints what each kind of call then says. usage: orphan BDF */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int group_of(const char *bdf)
{
	char path[256], link[256];
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", bdf);
	ssize_t n = readlink(path, link, sizeof link - 1);
	if (n < 0) return -1;
	link[n] = 0;
	return atoi(strrchr(link, '/') + 1);
}

int main(int argc, char **argv)
{
	char path[64];
	uint32_t info[4] = { 16 }, id;
	if (argc != 2) return 2;
	snprintf(path, sizeof path, "/dev/vfio/%d", group_of(argv[1]));
	int g = open(path, O_RDWR), c = open("/dev/vfio/vfio", O_RDWR);
	if (ioctl(g, 0x3b68, &c) || ioctl(c, 0x3b66, 3)) return 1;
	int d = ioctl(g, 0x3b6a, argv[1]);
	if (d < 0) return 1;
	puts("ready");
	fflush(stdout);
	for (int i = 0; i < 4000 && ioctl(d, 0x3b6b, info) == 0; i++) usleep(5000);
	printf("ioctl %s\n", strerrorname_np(ioctl(d, 0x3b6b, info) < 0 ? errno : 0));
	printf("pread %s\n", strerrorname_np(pread(d, &id, 4, 7ll << 40) < 0 ? errno : 0));
	printf("open %s\n", strerrorname_np(open("/dev/vfio/vfio", O_RDWR) < 0 ? errno : 0));
	close(d);
	close(g);
	puts("done");
	return 0;
}
