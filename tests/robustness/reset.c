/* Threads read a register while another resets the function. usage: reset BDF NODE (a device that can be reset) */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int device;
static atomic_int stop;
static atomic_long good, refused, wrong;

static void *reader(void *unused)
{
	(void)unused;
	while (!stop) {
		uint32_t id = 0;
		ssize_t n = pread(device, &id, 4, 7ll << 40);
		if (n == 4 && id == 0x11e91234) good++;
		else if (n < 0 && errno == EIO) refused++;
		else wrong++;
		n = pread(device, &id, 4, 4ll << 40);
		if (n == 4) good++;
		else if (n < 0 && errno == EIO) refused++;
		else wrong++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 3) return 2;
	int group = open(argv[2], O_RDWR), container = open("/dev/vfio/vfio", O_RDWR);
	if (ioctl(group, 0x3b68, &container) || ioctl(container, 0x3b66, 3)) return 1;
	device = ioctl(group, 0x3b6a, argv[1]);
	if (device < 0) return 1;
	pthread_t threads[3];
	for (int i = 0; i < 3; i++) pthread_create(threads + i, NULL, reader, NULL);
	for (int i = 0; i < 500; i++) {
		uint16_t command = i & 1 ? 2 : 0;
		if (ioctl(device, 0x3b6f, 0)) return 3;
		pwrite(device, &command, 2, (7ll << 40) + 4);
	}
	stop = 1;
	for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
	printf("good %ld refused %ld wrong %ld\n", (long)good, (long)refused, (long)wrong);
	return wrong ? 1 : 0;
}
