// Holds a device of group 240 until standard input ends.
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "vfio-2011.h"

int main(int argc, char **argv)
{
	char byte;
	int group = open("/dev/vfio/pci:240", O_RDWR);
	int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argc > 1 ? argv[1] : "0000:06:0d.0");
	if (device < 0) return 1;
	printf("held\n");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
