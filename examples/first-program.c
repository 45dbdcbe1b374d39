/*
 * A first VFIO program: finds QEMU's edu device, gives it a piece of memory, and talks to it.
 *
 *     cc -o first-program first-program.c && ./first-program [0000:00:04.0]
 *
 * Plain VFIO as in the kernel's Documentation/driver-api/vfio.rst; runs on any Linux machine that has such a device bound to vfio-pci.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/vfio.h>

/* Registers of edu, in BAR 0 */
#define EDU_ID 0x00
#define EDU_LIVENESS 0x04
#define EDU_FACTORIAL 0x08
#define EDU_STATUS 0x20
#define EDU_IRQ_STATUS 0x24
#define EDU_IRQ_ACK 0x64
#define EDU_DMA_SOURCE 0x80
#define EDU_DMA_DESTINATION 0x88
#define EDU_DMA_COUNT 0x90
#define EDU_DMA_COMMAND 0x98
#define DMA_RUN 1
#define DMA_FROM_DEVICE 2
#define DMA_INTERRUPT 4
#define EDU_BUFFER 0x40000 /* the device's own 4 KiB, as DMA sees it */

#define IOVA 0x100000ull /* where the device shall see our memory; edu has 28 address bits */

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned read_hex(const char *device, const char *attribute)
{
	char path[PATH_MAX];
	unsigned value = 0;
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", device, attribute);
	FILE *f = fopen(path, "r");
	if (!f) return 0;
	if (fscanf(f, "%x", &value) != 1) value = 0;
	fclose(f);
	return value;
}

/* The name of the first edu device that has an IOMMU group. */
static int find_device(char *name, size_t room)
{
	DIR *d = opendir("/sys/bus/pci/devices");
	if (!d) die("/sys/bus/pci/devices");
	char best[64] = "";
	for (struct dirent *e; (e = readdir(d));) {
		if (e->d_name[0] == '.' || strlen(e->d_name) >= sizeof best) continue;
		if (read_hex(e->d_name, "vendor") != 0x1234 || read_hex(e->d_name, "device") != 0x11e8) continue;
		if (!*best || strcmp(e->d_name, best) < 0) strcpy(best, e->d_name);
	}
	closedir(d);
	snprintf(name, room, "%s", best);
	return *best != 0;
}

static int device;
static uint64_t region_offset;

static uint32_t get(unsigned reg)
{
	uint32_t v;
	if (pread(device, &v, 4, (off_t)(region_offset + reg)) != 4) die("reading a register");
	return v;
}

static void put(unsigned reg, uint32_t v)
{
	if (pwrite(device, &v, 4, (off_t)(region_offset + reg)) != 4) die("writing a register");
}

static void put64(unsigned reg, uint64_t v)
{
	if (pwrite(device, &v, 8, (off_t)(region_offset + reg)) != 8) die("writing a register");
}

/* Waits for an interrupt of the device, at most two seconds. */
static int wait_for_interrupt(int event)
{
	struct pollfd p = {.fd = event, .events = POLLIN};
	uint64_t count = 0;
	if (poll(&p, 1, 2000) != 1 || read(event, &count, sizeof count) != sizeof count) return 0;
	return (int)count;
}

static void dma(uint64_t from, uint64_t to, uint64_t count, int event, unsigned command)
{
	put64(EDU_DMA_SOURCE, from);
	put64(EDU_DMA_DESTINATION, to);
	put64(EDU_DMA_COUNT, count);
	put64(EDU_DMA_COMMAND, DMA_RUN | DMA_INTERRUPT | command);
	if (!wait_for_interrupt(event)) {
		fprintf(stderr, "no interrupt came after the DMA\n");
		exit(1);
	}
	put(EDU_IRQ_ACK, get(EDU_IRQ_STATUS));
}

int main(int argc, char **argv)
{
	char name[64], path[PATH_MAX], link[PATH_MAX];
	if (argc > 1) snprintf(name, sizeof name, "%s", argv[1]);
	else if (!find_device(name, sizeof name)) {
		fprintf(stderr, "there is no edu device (1234:11e8) in /sys/bus/pci/devices\n");
		return 1;
	}

	/* 1. Which group? */
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", name);
	ssize_t n = readlink(path, link, sizeof link - 1);
	if (n < 0) die(path);
	link[n] = 0;
	const char *group_name = strrchr(link, '/') ? strrchr(link, '/') + 1 : link;
	printf("device     %s is in IOMMU group %s\n", name, group_name);

	/* 2. A container, the group in it, an IOMMU for it */
	int container = open("/dev/vfio/vfio", O_RDWR);
	if (container < 0) die("/dev/vfio/vfio");
	if (ioctl(container, VFIO_GET_API_VERSION) != VFIO_API_VERSION) die("VFIO_GET_API_VERSION");
	snprintf(path, sizeof path, "/dev/vfio/%.32s", group_name);
	int group = open(path, O_RDWR);
	if (group < 0) die(path);
	struct vfio_group_status status = {.argsz = sizeof status};
	if (ioctl(group, VFIO_GROUP_GET_STATUS, &status)) die("VFIO_GROUP_GET_STATUS");
	if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
		fprintf(stderr, "group %s is not viable: not all of its devices are bound to vfio-pci\n", group_name);
		return 1;
	}
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container)) die("VFIO_GROUP_SET_CONTAINER");
	if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)) die("VFIO_SET_IOMMU");
	printf("group      %s is viable, and in a container with a type 1 IOMMU\n", path);

	/* 3. Memory that the device may reach */
	size_t size = 2 * 4096;
	unsigned char *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) die("mmap");
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof map,
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory,
		.iova = IOVA,
		.size = size,
	};
	if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map)) die("VFIO_IOMMU_MAP_DMA");
	printf("memory     %zu bytes of this program are at 0x%llx for the device\n", size, (unsigned long long)IOVA);

	/* 4. The device: its registers and its interrupt */
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
	if (device < 0) die("VFIO_GROUP_GET_DEVICE_FD");
	struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar)) die("VFIO_DEVICE_GET_REGION_INFO");
	region_offset = bar.offset;
	struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config)) die("VFIO_DEVICE_GET_REGION_INFO");
	uint16_t command;
	if (pread(device, &command, 2, (off_t)config.offset + 4) != 2) die("reading the command register");
	command |= 2 | 4; /* memory space, bus master */
	if (pwrite(device, &command, 2, (off_t)config.offset + 4) != 2) die("writing the command register");

	int event = eventfd(0, EFD_CLOEXEC);
	char irq_room[sizeof(struct vfio_irq_set) + sizeof(int32_t)];
	struct vfio_irq_set *irq = (struct vfio_irq_set *)irq_room;
	*irq = (struct vfio_irq_set){
		.argsz = sizeof irq_room,
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		.index = VFIO_PCI_MSI_IRQ_INDEX,
		.start = 0,
		.count = 1,
	};
	memcpy(irq->data, &event, sizeof event);
	if (ioctl(device, VFIO_DEVICE_SET_IRQS, irq)) die("VFIO_DEVICE_SET_IRQS");

	uint32_t id = get(EDU_ID);
	printf("registers  the device says it is 0x%08x: edu, version %u.%u\n", id, id >> 24, id >> 16 & 0xff);
	put(EDU_LIVENESS, 0x12345678);
	if (get(EDU_LIVENESS) != ~0x12345678u) {
		fprintf(stderr, "the device does not live\n");
		return 1;
	}
	put(EDU_STATUS, 0x80); /* an interrupt when the factorial is done */
	put(EDU_FACTORIAL, 10);
	int interrupts = wait_for_interrupt(event);
	put(EDU_IRQ_ACK, get(EDU_IRQ_STATUS));
	printf("interrupt  %s; the device computed 10! = %u\n", interrupts ? "came by MSI" : "did not come", get(EDU_FACTORIAL));
	if (!interrupts || get(EDU_FACTORIAL) != 3628800) return 1;

	/* 5. DMA: from our first page into the device, from the device into our second page */
	strcpy((char *)memory, "carried by a device, through an IOMMU");
	dma(IOVA, EDU_BUFFER, 64, event, 0);
	dma(EDU_BUFFER, IOVA + 4096, 64, event, DMA_FROM_DEVICE);
	printf("dma        into the device and back: \"%s\"\n", (char *)memory + 4096);
	if (strcmp((char *)memory, (char *)memory + 4096)) return 1;

	/* 6. A mistake: the same addresses a second time */
	int r = ioctl(container, VFIO_IOMMU_MAP_DMA, &map);
	printf("mistake    mapping the same addresses again: %s\n", r ? strerror(errno) : "was allowed?!");
	if (!r || errno != EEXIST) return 1;

	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = IOVA, .size = size};
	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap)) die("VFIO_IOMMU_UNMAP_DMA");
	printf("done       %llu bytes unmapped\n", (unsigned long long)unmap.size);
	return 0;
}
