/*
 * A guest's own VFIO program on an edu device (1234:11e8) behind the guest's IOMMU: group and container, maps, DMA by IOVA, MSI by
 * eventfd, and the refusals of DMA outside the maps. One line per check. Exit status 0 when all hold.
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

enum { ID = 0x00, FACTORIAL = 0x08, STATUS = 0x20, IRQ_STATUS = 0x24, IRQ_RAISE = 0x60, IRQ_ACK = 0x64 };
enum { DMA_SRC = 0x80, DMA_DST = 0x88, DMA_COUNT = 0x90, DMA_COMMAND = 0x98, BUFFER = 0x40000, TO_RAM = 2, DMA_IRQ = 4 };
enum { PAGES = 64, LOW = 0x100000 };

static int device, container, checks, failures;
static volatile uint32_t *bar;
static uint64_t config_offset;

static void check(const char *what, uint64_t got, uint64_t wanted)
{
	checks++;
	failures += got != wanted;
	printf("edu: %s %s: %#llx", got == wanted ? "ok" : "WRONG", what, (unsigned long long)got);
	if (got != wanted)
		printf(", not %#llx", (unsigned long long)wanted);
	printf("\n");
}

static int must(int result, const char *what)
{
	if (result >= 0)
		return result;
	printf("edu: WRONG %s: %s\n", what, strerror(errno));
	exit(1);
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
		if (ids[0] == 0x1234 && ids[1] == 0x11e8) {
			snprintf(name, size, "%s", entry->d_name);
			closedir(devices);
			return 1;
		}
	}
	return 0;
}

static uint32_t get(int offset) { return bar[offset / 4]; }
static void set(int offset, uint32_t value) { bar[offset / 4] = value; }

static void dma(uint32_t from, uint32_t to, uint32_t length, uint32_t flags)
{
	set(DMA_SRC, from);
	set(DMA_DST, to);
	set(DMA_COUNT, length);
	set(DMA_COMMAND, flags | 1);
	for (int turn = 0; get(DMA_COMMAND) & 1; turn++) {
		if (turn == 5000) {
			printf("edu: WRONG DMA does not end\n");
			exit(1);
		}
		usleep(1000);
	}
}

static void open_device(const char *name)
{
	char path[512], link[256], node[64];
	int fd = must(open(PCI "/drivers/vfio-pci/new_id", O_WRONLY), "new_id");
	must(write(fd, "1234 11e8", 9), "binding to vfio-pci");
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
	struct vfio_region_info region = { .argsz = sizeof region, .index = VFIO_PCI_CONFIG_REGION_INDEX };
	must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region), "REGION_INFO");
	config_offset = region.offset;
	uint16_t command = 6; /* memory, bus master */
	must(pwrite(device, &command, 2, config_offset + 4), "COMMAND");
	region.index = 0;
	must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region), "REGION_INFO");
	check("length of BAR 0", region.size, 0x100000);
	bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, region.offset);
	must(bar == MAP_FAILED ? -1 : 0, "mapping of BAR 0");
	check("identification", get(ID), 0x010000ed);
}

static void map(uint8_t *memory, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof map, .flags = 3, .vaddr = (uintptr_t)memory, .iova = iova, .size = size,
	};
	must(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), "MAP_DMA");
}

static uint64_t unmap(uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = { .argsz = sizeof unmap, .iova = iova, .size = size };
	must(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap), "UNMAP_DMA");
	return unmap.size;
}

static void transfers(void)
{
	uint8_t *memory = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 4096; i++)
		memory[i] = i * 11 + (i >> 8);
	map(memory, LOW, PAGES * 4096);
	dma(LOW, BUFFER, 4096, 0);
	for (int page = 1; page < PAGES; page += 9)
		dma(BUFFER, LOW + page * 4096, 4096, TO_RAM);
	int same = 0, touched = 0;
	for (int page = 1; page < PAGES; page++) {
		if (page % 9 == 1)
			same += !memcmp(memory, memory + page * 4096, 4096);
		else
			touched += memory[page * 4096 + 1] != 0;
	}
	check("pages that came back by DMA", same, (PAGES - 2) / 9 + 1);
	check("other pages touched", touched, 0);
	check("unmapped bytes", unmap(LOW, PAGES * 4096), PAGES * 4096);
	memset(memory, 0x5a, 4096);
	dma(BUFFER, LOW, 4096, TO_RAM);
	check("a byte after the unmap", memory[100], 0x5a);
	for (int turn = 0; turn < 20; turn++) {
		map(memory + turn * 4096, LOW, 4096);
		dma(BUFFER, LOW, 64, TO_RAM);
		unmap(LOW, 4096);
	}
	same = 0;
	for (int turn = 0; turn < 20; turn++)
		same += memory[turn * 4096 + 1] == 11;
	check("pages reached through one IOVA", same, 20);
}

static uint64_t signals(int event, int milliseconds)
{
	struct pollfd poller = { .fd = event, .events = POLLIN };
	uint64_t count = 0;
	if (poll(&poller, 1, milliseconds) == 1)
		must(read(event, &count, 8), "eventfd");
	return count;
}

static void interrupts(void)
{
	struct { struct vfio_irq_set set; int fd; } on = {
		.set = { .argsz = sizeof on, .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
			 .index = VFIO_PCI_MSI_IRQ_INDEX, .count = 1 },
		.fd = must(eventfd(0, EFD_NONBLOCK), "eventfd"),
	};
	must(ioctl(device, VFIO_DEVICE_SET_IRQS, &on), "SET_IRQS");
	for (int turn = 1; turn <= 5; turn++) {
		set(IRQ_RAISE, turn);
		check("MSI", signals(on.fd, 3000), 1);
		check("interrupt status", get(IRQ_STATUS), turn);
		set(IRQ_ACK, turn);
	}
	check("MSI left over", signals(on.fd, 100), 0);
	struct vfio_irq_set off = { .argsz = sizeof off, .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
				    .index = VFIO_PCI_MSI_IRQ_INDEX };
	must(ioctl(device, VFIO_DEVICE_SET_IRQS, &off), "SET_IRQS off");
	set(IRQ_RAISE, 1);
	check("MSI after the disable", signals(on.fd, 100), 0);
	set(IRQ_ACK, 1);
}

int main(void)
{
	char name[256];
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!find_device(name, sizeof name)) {
		printf("edu: WRONG no device 1234:11e8\n");
		return 1;
	}
	open_device(name);
	transfers();
	interrupts();
	printf("edu: %d checks, %d wrong\n", checks, failures);
	return failures != 0;
}
