/*
 * A guest's own VFIO program on a testdev (1234:11e9) behind the guest's IOMMU: maps, DMA both ways at high addresses, MSI-X, memory
 * of the card mapped, reset, and a DMA outside of the maps, which has to be an error at the device.
 * One line per check. Exit status 0 when all hold.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PCI "/sys/bus/pci"
#define HIGH 0x7612345000ull /* within the 39 bits of QEMU's IOMMU */
#define NOWHERE 0xdead000ull

enum { ID = 0x00, SCRATCH = 0x08, SOURCE = 0x40, DESTINATION = 0x48, LENGTH = 0x50, PATTERN = 0x54, COMMAND = 0x58, STATUS = 0x5c };
enum { FAULT_ADDRESS = 0x60, RESULT = 0x68, TRANSFERRED = 0x6c };
enum { COPY = 1, FILL = 2, CHECKSUM = 3, INTERRUPT = 0x100, DONE = 2, FAILED = 6, SIZE = 1 << 20, VECTORS = 8 };

static int device, container, checks, failures;
static uint64_t registers;

static void check(const char *what, uint64_t got, uint64_t wanted)
{
	checks++;
	failures += got != wanted;
	printf("testdev: %s %s: %#llx", got == wanted ? "ok" : "WRONG", what, (unsigned long long)got);
	if (got != wanted)
		printf(", not %#llx", (unsigned long long)wanted);
	printf("\n");
}

static int must(int result, const char *what)
{
	if (result >= 0)
		return result;
	printf("testdev: WRONG %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t get(int offset, int size)
{
	uint64_t value = 0;
	must(pread(device, &value, size, registers + offset), "register read");
	return value;
}

static void set(int offset, uint64_t value, int size)
{
	must(pwrite(device, &value, size, registers + offset), "register write");
}

static uint32_t command(uint64_t from, uint64_t to, uint32_t length, uint32_t what)
{
	set(SOURCE, from, 8);
	set(DESTINATION, to, 8);
	set(LENGTH, length, 4);
	set(COMMAND, what, 4);
	for (int turn = 0; turn < 2000; turn++) {
		uint32_t status = get(STATUS, 4);
		if (!(status & 1))
			return status;
		usleep(500);
	}
	printf("testdev: WRONG a command does not end\n");
	exit(1);
}

static struct vfio_region_info region(int index)
{
	struct vfio_region_info info = { .argsz = sizeof info, .index = index };
	must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info), "REGION_INFO");
	return info;
}

static int find_device(char *name, size_t size)
{
	DIR *devices = opendir(PCI "/devices");
	struct dirent *entry;
	while (devices && (entry = readdir(devices))) {
		uint16_t ids[2] = { 0, 0 };
		char path[512];
		snprintf(path, sizeof path, PCI "/devices/%s/config", entry->d_name);
		int fd = open(path, O_RDONLY);
		if (fd >= 0 && pread(fd, ids, 4, 0) == 4)
			close(fd);
		if (ids[0] == 0x1234 && ids[1] == 0x11e9) {
			snprintf(name, size, "%s", entry->d_name);
			return 1;
		}
	}
	return 0;
}

static void open_device(const char *name)
{
	char path[512], link[256], node[64];
	int fd = must(open(PCI "/drivers/vfio-pci/new_id", O_WRONLY), "new_id");
	must(write(fd, "1234 11e9", 9), "binding to vfio-pci");
	close(fd);
	snprintf(path, sizeof path, PCI "/devices/%s/iommu_group", name);
	ssize_t length = must(readlink(path, link, sizeof link - 1), "iommu_group");
	link[length] = 0;
	snprintf(node, sizeof node, "/dev/vfio/%s", strrchr(link, '/') + 1);
	container = must(open("/dev/vfio/vfio", O_RDWR), "container");
	int group = must(open(node, O_RDWR), node);
	must(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "SET_CONTAINER");
	must(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "SET_IOMMU");
	device = must(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name), "GET_DEVICE_FD");
	uint16_t bits = 6; /* memory, bus master */
	must(pwrite(device, &bits, 2, region(VFIO_PCI_CONFIG_REGION_INDEX).offset + 4), "COMMAND");
	registers = region(4).offset;
	check("identification", get(ID, 4), 0x76656474);
}

static void map(uint8_t *memory, uint64_t iova, uint64_t size, uint32_t flags)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof map, .flags = flags, .vaddr = (uintptr_t)memory, .iova = iova, .size = size,
	};
	must(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), "MAP_DMA");
}

static void unmap(uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = { .argsz = sizeof unmap, .iova = iova, .size = size };
	must(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap), "UNMAP_DMA");
	check("unmapped bytes", unmap.size, size);
}

static void transfers(uint8_t *memory)
{
	uint32_t sum = 0;
	for (int i = 0; i < SIZE / 2; i++)
		sum += memory[i] = i * 13 + (i >> 9);
	map(memory, HIGH, SIZE, 3);
	check("status of a checksum", command(HIGH, 0, SIZE / 2, CHECKSUM), DONE);
	check("sum of the program's memory", get(RESULT, 4), sum);
	check("status of a copy", command(HIGH, HIGH + SIZE / 2, SIZE / 2, COPY), DONE);
	check("copy differs", memcmp(memory, memory + SIZE / 2, SIZE / 2), 0);
	set(PATTERN, 0x04030201, 4);
	check("status of a fill", command(0, HIGH + 0x1001, 6, FILL), DONE);
	check("filled bytes", !memcmp(memory + 0x1001, "\1\2\3\4\1\2", 6), 1);
}

static void faults(uint8_t *memory)
{
	check("status of a read from nowhere", command(NOWHERE, HIGH, 4096, COPY), FAILED | 4 << 8);
	check("fault address", get(FAULT_ADDRESS, 8), NOWHERE);
	check("status of a write to nowhere", command(HIGH, NOWHERE, 4096, COPY), FAILED | 5 << 8);
	check("status of a read that leaves the map", command(HIGH + SIZE - 4096, HIGH, 8192, COPY), FAILED | 4 << 8);
	check("fault address", get(FAULT_ADDRESS, 8), HIGH + SIZE);
	check("transferred before", get(TRANSFERRED, 4), 4096);
	unmap(HIGH, SIZE);
	map(memory, HIGH, 4096, VFIO_DMA_MAP_FLAG_READ);
	memset(memory, 0x5a, 64);
	check("status of a write to read-only memory", command(0, HIGH, 64, FILL), FAILED | 5 << 8);
	check("a byte of it", memory[10], 0x5a);
	unmap(HIGH, 4096);
	check("status after the unmap", command(HIGH, 0, 64, CHECKSUM), FAILED | 4 << 8);
}

static void interrupts(uint8_t *memory)
{
	struct { struct vfio_irq_set set; int fds[VECTORS]; } on = {
		.set = { .argsz = sizeof on, .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
			 .index = VFIO_PCI_MSIX_IRQ_INDEX, .count = VECTORS },
	};
	for (int i = 0; i < VECTORS; i++)
		on.fds[i] = must(eventfd(0, EFD_NONBLOCK), "eventfd");
	must(ioctl(device, VFIO_DEVICE_SET_IRQS, &on), "SET_IRQS");
	map(memory, HIGH, 4096, 3);
	for (int vector = VECTORS - 1; vector >= 0; vector--) {
		command(0, HIGH, 16, FILL | INTERRUPT | vector << 16);
		uint64_t count = 0, others = 0, one;
		struct pollfd poller = { .fd = on.fds[vector], .events = POLLIN };
		if (poll(&poller, 1, 3000) == 1)
			must(read(on.fds[vector], &count, 8), "eventfd");
		for (int i = 0; i < VECTORS; i++)
			others += read(on.fds[i], &one, 8) == 8;
		check("MSI-X signals of the vector", count, 1);
		check("and of others", others, 0);
	}
	unmap(HIGH, 4096);
}

int main(void)
{
	char name[256];
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!find_device(name, sizeof name)) {
		printf("testdev: WRONG no device 1234:11e9\n");
		return 1;
	}
	open_device(name);
	uint8_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	transfers(memory);
	faults(memory);
	interrupts(memory);
	struct vfio_region_info ram = region(0);
	volatile uint32_t *card = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, ram.offset);
	must(card == MAP_FAILED ? -1 : 0, "mapping of BAR 0");
	card[3] = 0xfeedf00d;
	uint32_t seen = 0;
	must(pread(device, &seen, 4, ram.offset + 12), "BAR 0");
	check("a store through the mapped BAR", seen, 0xfeedf00d);
	set(SCRATCH, 5, 8);
	must(ioctl(device, VFIO_DEVICE_RESET), "DEVICE_RESET");
	uint16_t bits = 6;
	must(pwrite(device, &bits, 2, region(VFIO_PCI_CONFIG_REGION_INDEX).offset + 4), "COMMAND");
	check("scratch after a reset", get(SCRATCH, 8), 0);
	check("the card's memory after a reset", card[3], 0);
	printf("testdev: %d checks, %d wrong\n", checks, failures);
	return failures != 0;
}
