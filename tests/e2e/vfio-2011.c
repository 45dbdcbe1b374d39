// A user-space driver as the first documentation of VFIO (December 2011) sketches one: the group, its IOMMU, a mapping of 1 MiB at 0, a
// device, its regions and interrupts, a reset. The documentation's slip of the pen is kept: interrupts are asked for with the structure
// of a region. Then what the sketch leaves out: an interrupt by eventfd, and DMA through the mapping.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "vfio-2011.h"

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t registers; // offset of BAR 0 in the device's file

static uint32_t read32(int device, uint64_t at)
{
	uint32_t value = ~0u;
	if (pread(device, &value, 4, registers + at) != 4) fail("read of a register");
	return value;
}

static void write32(int device, uint64_t at, uint32_t value)
{
	if (pwrite(device, &value, 4, registers + at) != 4) fail("write of a register");
}

static void transfer(int device, uint64_t from, uint64_t to, uint64_t count, uint64_t command)
{
	const uint64_t values[] = {from, to, count, command};
	for (int i = 0; i < 4; i++)
		if (pwrite(device, &values[i], 8, registers + 0x80 + 8 * i) != 8) fail("start of a transfer");
	for (int i = 0; i < 1000; i++) {
		if (!(read32(device, 0x98) & 1)) return;
		usleep(1000);
	}
	printf("the transfer does not end\n");
	exit(1);
}

int main(int argc, char **argv)
{
	int group, iommu, device, i;
	const char *name = argc > 1 ? argv[1] : "0000:06:0d.0";
	struct vfio_group_info group_info = {.argsz = sizeof(group_info)};
	struct vfio_iommu_info iommu_info = {.argsz = sizeof(iommu_info)};
	struct vfio_dma_map dma_map = {.argsz = sizeof(dma_map)};
	struct vfio_device_info device_info = {.argsz = sizeof(device_info)};
	struct vfio_region_info reg = {.argsz = sizeof(reg)};

	group = open("/dev/vfio/pci:240", O_RDWR);
	if (group < 0) fail("open of the group");
	if (ioctl(group, VFIO_GROUP_GET_INFO, &group_info)) fail("GROUP_GET_INFO");
	printf("group %s%s\n", group_info.flags & VFIO_GROUP_FLAGS_VIABLE ? "viable" : "not viable",
	       group_info.flags & VFIO_GROUP_FLAGS_MM_LOCKED ? ", locked" : "");
	if (!(group_info.flags & VFIO_GROUP_FLAGS_VIABLE)) {
		errno = 0;
		iommu = ioctl(group, VFIO_GROUP_GET_IOMMU_FD);
		printf("iommu %s\n", strerror(errno));
		return 2;
	}

	iommu = ioctl(group, VFIO_GROUP_GET_IOMMU_FD);
	if (iommu < 0) fail("GROUP_GET_IOMMU_FD");
	if (ioctl(iommu, VFIO_IOMMU_GET_INFO, &iommu_info)) fail("IOMMU_GET_INFO");
#ifndef VFIO_2011_LATE
	printf("iommu 0x%llx-0x%llx, page sizes 0x%llx\n", iommu_info.iova_min, iommu_info.iova_max, iommu_info.pgsize_bitmap);
#else
	printf("iommu 0x%llx-0x%llx, page sizes 0x%llx\n", iommu_info.iova_start, iommu_info.iova_start + iommu_info.iova_size - 1,
	       iommu_info.iova_pgsizes);
#endif

	char *memory = mmap(0, 1024 * 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0);
	dma_map.vaddr = (uintptr_t)memory;
	dma_map.size = 1024 * 1024;
	dma_map.iova = 0;
	dma_map.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
	if (ioctl(iommu, VFIO_IOMMU_MAP_DMA, &dma_map)) fail("IOMMU_MAP_DMA");

	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
	if (device < 0) fail("GROUP_GET_DEVICE_FD");
	if (ioctl(device, VFIO_DEVICE_GET_INFO, &device_info)) fail("DEVICE_GET_INFO");
	printf("device flags %u, %u regions, %u interrupts\n", device_info.flags, device_info.num_regions, device_info.num_irqs);

	for (i = 0; i < (int)device_info.num_regions; i++) {
		reg = (struct vfio_region_info){.argsz = sizeof(reg), .index = i};
		if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &reg)) fail("DEVICE_GET_REGION_INFO");
		if (i == VFIO_PCI_BAR0_REGION_INDEX) registers = reg.offset;
		if (reg.size) printf("region %d: 0x%llx bytes, flags %u\n", i, reg.size, reg.flags);
	}
	for (i = 0; i < (int)device_info.num_irqs; i++) {
		struct vfio_irq_info irq = {.argsz = sizeof(irq), .index = i};
		reg = (struct vfio_region_info){.argsz = sizeof(reg), .index = i, .size = 0x5a5a, .offset = 0xa5a5};
		if (ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &reg)) fail("DEVICE_GET_IRQ_INFO of a region");
		if (ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &irq)) fail("DEVICE_GET_IRQ_INFO");
		if (memcmp(&reg.flags, &irq.flags, 12) || reg.size != 0x5a5a || reg.offset != 0xa5a5) fail("the slip of the pen");
		printf("interrupts %d: %d, flags %u\n", i, (int)irq.count, irq.flags);
	}
	reg.index = VFIO_PCI_NUM_REGIONS - 1;
	if (ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &reg) != -1 || errno != EINVAL) fail("an interrupt index that is a region's");

	if (ioctl(device, VFIO_DEVICE_RESET)) fail("DEVICE_RESET");
	printf("reset\n");

	uint16_t command = 6;
	if (pwrite(device, &command, 2, ((uint64_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4) != 2) fail("COMMAND");
	printf("registers 0x%08x\n", read32(device, 0));

	int event = eventfd(0, 0);
#ifndef VFIO_2011_LATE
	struct {
		struct vfio_irq_eventfds set;
		int32_t fd;
	} irqs = {{.argsz = sizeof(irqs), .index = VFIO_PCI_INTX_IRQ_INDEX, .count = 1}, event};
	struct vfio_unmask_irq unmask = {.argsz = sizeof(unmask), .index = VFIO_PCI_INTX_IRQ_INDEX};
	if (ioctl(device, VFIO_DEVICE_SET_IRQ_EVENTFDS, &irqs)) fail("DEVICE_SET_IRQ_EVENTFDS");
#else
	struct {
		struct vfio_irq_set set;
		int32_t fd;
	} irqs = {{.argsz = 24, .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, .count = 1}, event};
	struct vfio_irq_set unmask = {.argsz = 20, .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, .count = 1};
	if (ioctl(device, VFIO_DEVICE_SET_IRQS, &irqs)) fail("DEVICE_SET_IRQS");
#endif
	for (i = 0; i < 2; i++) {
		struct pollfd wait = {.fd = event, .events = POLLIN};
		uint64_t signals = 0;
		write32(device, 0x60, 1);
		if (poll(&wait, 1, 1000) != 1 || read(event, &signals, 8) != 8) fail("the interrupt");
		write32(device, 0x64, 1);
#ifndef VFIO_2011_LATE
		if (ioctl(device, VFIO_DEVICE_UNMASK_IRQ, &unmask)) fail("DEVICE_UNMASK_IRQ");
#else
		if (ioctl(device, VFIO_DEVICE_SET_IRQS, &unmask)) fail("DEVICE_SET_IRQS");
#endif
	}
	printf("interrupts came\n");

	strcpy(memory + 0x1000, "by DMA, in 2011");
	transfer(device, 0x1000, 0x40000, 64, 1);
	transfer(device, 0x40000, 0xff000, 64, 3);
	printf("memory \"%s\"\n", memory + 0xff000);

	struct vfio_dma_unmap unmap = {.argsz = sizeof(unmap), .iova = 0x80000, .size = 0x1000};
	if (ioctl(iommu, VFIO_IOMMU_UNMAP_DMA, &unmap)) fail("IOMMU_UNMAP_DMA of a page in the middle");
	transfer(device, 0x40000, 0x80000, 64, 3);
	printf("unmapped page \"%s\"\n", memory + 0x80000);
	return 0;
}
