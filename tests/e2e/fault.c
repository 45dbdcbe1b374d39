/* Three DMAs that are refused: nothing mapped, only writable, Bus Master off. usage: fault BDF NODE */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static int device;

static void dma(uint64_t source)
{
	uint64_t inside = 0x40000, length = 64, start = 1;
	pwrite(device, &source, 8, 0x80);
	pwrite(device, &inside, 8, 0x88);
	pwrite(device, &length, 8, 0x90);
	pwrite(device, &start, 8, 0x98);
	for (int i = 0; i < 1000 && (start & 1); i++) {
		usleep(1000);
		pread(device, &start, 8, 0x98);
	}
}

int main(int argc, char **argv)
{
	if (argc != 3) return 2;
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct { uint32_t argsz, flags; uint64_t vaddr, iova, size; } map = { 32, 2, (uint64_t)page, 0x200000, 4096 };
	uint16_t command = 6;
	int group = open(argv[2], O_RDWR), container = open("/dev/vfio/vfio", O_RDWR);
	if (ioctl(group, 0x3b68, &container) || ioctl(container, 0x3b66, 3)) return 1;
	device = ioctl(group, 0x3b6a, argv[1]);
	if (device < 0 || ioctl(container, 0x3b71, &map)) return 1;
	pwrite(device, &command, 2, (7ull << 40) + 4);
	dma(0x123000);
	dma(0x200010);
	command = 2;
	pwrite(device, &command, 2, (7ull << 40) + 4);
	dma(0x200010);
	if (ioctl(container, 0x3b71, &map) == 0) return 1;
	return 0;
}
