/* Opens a device by its group and holds it: hold BDF SECONDS. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define VFIO_SET_IOMMU 0x3b66
#define VFIO_GROUP_SET_CONTAINER 0x3b68
#define VFIO_GROUP_GET_DEVICE_FD 0x3b6a

static int must(int r, const char *what)
{
	if (r < 0) {
		perror(what);
		exit(1);
	}
	return r;
}

int main(int argc, char **argv)
{
	char path[256], link[256] = "";
	if (argc != 3) return 2;
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%.64s/iommu_group", argv[1]);
	must((int)readlink(path, link, sizeof link - 1), path);
	snprintf(path, sizeof path, "/dev/vfio/%.64s", strrchr(link, '/') + 1);
	int container = must(open("/dev/vfio/vfio", O_RDWR), "container"), group = must(open(path, O_RDWR), path);
	must(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "SET_CONTAINER");
	must(ioctl(container, VFIO_SET_IOMMU, 1), "SET_IOMMU");
	must(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[1]), "GET_DEVICE_FD");
	sleep((unsigned)atoi(argv[2]));
	return 0;
}
