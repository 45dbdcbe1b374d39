/*
 * A virtual machine monitor without a virtual machine: what QEMU does for a guest with an emulated VT-d, by the public interface alone
 * (<linux/iommufd.h>, <linux/vfio.h>). The guest is a piece of this program too: it writes page tables into its memory, and answers page
 * requests. Two devices: a testdev, which moves bytes by requester ID or PASID, and a pasid-walker, which has a device TLB and asks for pages.
 *
 *   vmm TESTDEV WALKER OTHER with|without [STEP]
 *
 * runs each step in a process of its own, and looks whether anything is left of it. OTHER is a device behind another IOMMU. With virtual
 * IOMMUs (of a type of the box's own) guests' tables are nested on these, without on the page table itself, as with Linux.
 *
 * Prints "STEP: ok", or what was wrong.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#define PAGE 4096ull
/* The guest's memory, below and above the hole where its devices and interrupts are. */
#define LOW_PAGES 1024
#define HIGH_PAGES 1024
#define HIGH (1ull << 32)
#define VIOMMU_TYPE_PRIVATE 0x56544401u

#define NEED(what) do { if (!(what)) { \
	printf("WRONG line %d: %s (%s)\n", __LINE__, #what, strerror(errno)); fflush(stdout); _exit(1); } } while (0)
#define REFUSED(call, code) NEED((call) == -1 && errno == (code))

static const char *testdev_name, *walker_name, *other_name;
static int has_viommus;

/* ---- the monitor ---- */

struct device {
	int fd;
	uint32_t id;
	uint64_t config, bar;
};

static int iommu;
/* `base` is what guests' tables are nested on: the virtual IOMMU where there is one. */
static uint32_t ioas, parent, base;
static char *low, *high;
static int high_file;
static struct device testdev, walker;

static int alloc_hwpt(struct iommu_hwpt_alloc *cmd)
{
	cmd->size = sizeof(*cmd);
	return ioctl(iommu, IOMMU_HWPT_ALLOC, cmd);
}

static int destroy(uint32_t id)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd), .id = id };
	return ioctl(iommu, IOMMU_DESTROY, &cmd);
}

static int attach(struct device *device, uint32_t hwpt, int pasid)
{
	struct vfio_device_attach_iommufd_pt cmd = { .argsz = sizeof(cmd), .pt_id = hwpt };
	if (pasid >= 0) {
		cmd.flags = VFIO_DEVICE_ATTACH_PASID;
		cmd.pasid = pasid;
	}
	return ioctl(device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd);
}

static int detach(struct device *device, int pasid)
{
	struct vfio_device_detach_iommufd_pt cmd = { .argsz = sizeof(cmd) };
	if (pasid >= 0) {
		cmd.flags = VFIO_DEVICE_DETACH_PASID;
		cmd.pasid = pasid;
	}
	return ioctl(device->fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &cmd);
}

static uint64_t region(int fd, uint32_t index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };
	NEED(ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
	return info.offset;
}

/* The device's node is named after what sysfs has below it. */
static void open_device(struct device *device, const char *name, uint32_t bar)
{
	char path[512];
	struct dirent *entry;
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommu };
	uint16_t command = 6;
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", name);
	DIR *folder = opendir(path);
	NEED(folder);
	do
		entry = readdir(folder);
	while (entry && strncmp(entry->d_name, "vfio", 4));
	NEED(entry);
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", entry->d_name);
	closedir(folder);
	device->fd = open(path, O_RDWR | O_CLOEXEC);
	NEED(device->fd >= 0);
	NEED(ioctl(device->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0);
	device->id = bind.out_devid;
	device->config = region(device->fd, VFIO_PCI_CONFIG_REGION_INDEX);
	device->bar = region(device->fd, bar);
	NEED(pwrite(device->fd, &command, 2, device->config + 4) == 2);
}

static int map_high(void)
{
	struct iommu_ioas_map_file map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE,
		.ioas_id = ioas, .fd = high_file, .length = HIGH_PAGES * PAGE, .iova = HIGH,
	};
	return ioctl(iommu, IOMMU_IOAS_MAP_FILE, &map);
}

static int alloc_viommu(struct device *device, uint32_t hwpt, uint32_t *id)
{
	struct iommu_viommu_alloc cmd = {
		.size = sizeof(cmd), .type = VIOMMU_TYPE_PRIVATE, .dev_id = device->id, .hwpt_id = hwpt,
	};
	int result = ioctl(iommu, IOMMU_VIOMMU_ALLOC, &cmd);
	*id = cmd.out_viommu_id;
	return result;
}

static void start_machine(uint32_t parent_flags)
{
	struct iommu_ioas_alloc as = { .size = sizeof(as) };
	iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	NEED(iommu >= 0);
	open_device(&testdev, testdev_name, VFIO_PCI_BAR4_REGION_INDEX);
	open_device(&walker, walker_name, VFIO_PCI_BAR0_REGION_INDEX);
	NEED(ioctl(iommu, IOMMU_IOAS_ALLOC, &as) == 0);
	ioas = as.out_ioas_id;
	/* Pages of 4 KiB, so that each has a dirty bit of its own. */
	struct iommu_option small = {
		.size = sizeof(small), .option_id = IOMMU_OPTION_HUGE_PAGES, .op = IOMMU_OPTION_OP_SET, .object_id = ioas,
	};
	NEED(ioctl(iommu, IOMMU_OPTION, &small) == 0);
	/* Private memory below, a file above. */
	low = mmap(NULL, LOW_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	high_file = memfd_create("guest", MFD_CLOEXEC);
	NEED(ftruncate(high_file, HIGH_PAGES * PAGE) == 0);
	high = mmap(NULL, HIGH_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, high_file, 0);
	NEED(low != MAP_FAILED && high != MAP_FAILED);
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE,
		.ioas_id = ioas, .user_va = (uintptr_t)low, .length = LOW_PAGES * PAGE, .iova = 0,
	};
	NEED(ioctl(iommu, IOMMU_IOAS_MAP, &map) == 0);
	NEED(map_high() == 0);
	struct iommu_hwpt_alloc stage2 = {
		.flags = IOMMU_HWPT_ALLOC_NEST_PARENT | parent_flags, .dev_id = testdev.id, .pt_id = ioas,
	};
	NEED(alloc_hwpt(&stage2) == 0);
	parent = base = stage2.out_hwpt_id;
	if (has_viommus)
		NEED(alloc_viommu(&testdev, parent, &base) == 0);
	else
		REFUSED(alloc_viommu(&testdev, parent, &stage2.out_hwpt_id), EOPNOTSUPP);
}

/* Devices first, as a monitor that ends; nothing that the monitor made is destroyed one by one. */
static void end_machine(void)
{
	close(testdev.fd);
	close(walker.fd);
	close(iommu);
	munmap(low, LOW_PAGES * PAGE);
	munmap(high, HIGH_PAGES * PAGE);
	close(high_file);
}

/* 0: no queue. */
static int try_nest(struct device *device, uint64_t top, uint32_t width, uint32_t queue, uint32_t *out)
{
	struct iommu_hwpt_vtd_s1 data = { .pgtbl_addr = top, .addr_width = width };
	struct iommu_hwpt_alloc cmd = {
		.flags = IOMMU_HWPT_ALLOC_PASID | (queue ? IOMMU_HWPT_FAULT_ID_VALID : 0), .dev_id = device->id,
		.pt_id = base, .data_type = IOMMU_HWPT_DATA_VTD_S1, .data_len = sizeof(data),
		.data_uptr = (uintptr_t)&data, .fault_id = queue,
	};
	int result = alloc_hwpt(&cmd);
	*out = cmd.out_hwpt_id;
	return result;
}

static uint32_t nest(struct device *device, uint64_t top, uint32_t queue)
{
	uint32_t id;
	NEED(try_nest(device, top, 48, queue, &id) == 0);
	return id;
}

static int fault_queue(uint32_t *id)
{
	struct iommu_fault_alloc cmd = { .size = sizeof(cmd) };
	NEED(ioctl(iommu, IOMMU_FAULT_QUEUE_ALLOC, &cmd) == 0);
	*id = cmd.out_fault_id;
	return cmd.out_fault_fd;
}

static int invalidate(uint32_t hwpt, struct iommu_hwpt_vtd_s1_invalidate *entries, uint32_t *count)
{
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd), .hwpt_id = hwpt, .data_uptr = (uintptr_t)entries,
		.data_type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1, .entry_len = sizeof(*entries), .entry_num = *count,
	};
	int result = ioctl(iommu, IOMMU_HWPT_INVALIDATE, &cmd);
	*count = cmd.entry_num;
	return result;
}

static void invalidate_page(uint32_t hwpt, uint64_t iova)
{
	struct iommu_hwpt_vtd_s1_invalidate entry = { .addr = iova, .npages = 1, .flags = IOMMU_VTD_INV_FLAGS_LEAF };
	uint32_t count = 1;
	NEED(invalidate(hwpt, &entry, &count) == 0 && count == 1);
}

static void invalidate_all(uint32_t hwpt)
{
	struct iommu_hwpt_vtd_s1_invalidate entry = { .npages = UINT64_MAX };
	uint32_t count = 1;
	NEED(invalidate(hwpt, &entry, &count) == 0 && count == 1);
}

/* ---- the guest ---- */

static void *guest(uint64_t gpa)
{
	if (gpa < LOW_PAGES * PAGE)
		return low + gpa;
	NEED(gpa >= HIGH && gpa < HIGH + HIGH_PAGES * PAGE);
	return high + (gpa - HIGH);
}

#define ENTRY_PRESENT 1ull
#define ENTRY_WRITE 2ull
#define ENTRY_USER 4ull
#define ENTRY_ACCESSED 0x20ull
#define ENTRY_DIRTY 0x40ull
#define ENTRY_ALL (ENTRY_PRESENT | ENTRY_WRITE | ENTRY_USER)

/* Pages of the guest's tables: in both parts of its memory by turns. */
static int tables;

static uint64_t new_table(void)
{
	uint64_t gpa = (tables & 1 ? HIGH : 0) + (512 + tables) * PAGE;
	tables++;
	memset(guest(gpa), 0, PAGE);
	return gpa;
}

static uint64_t *entry_of(uint64_t top, int levels, uint64_t iova)
{
	uint64_t table = top;
	for (int level = levels; level > 1; level--) {
		uint64_t *entry = (uint64_t *)guest(table) + (iova >> (12 + 9 * (level - 1)) & 511);
		if (!*entry)
			*entry = new_table() | ENTRY_ALL;
		table = *entry & ~0xfffull;
	}
	return (uint64_t *)guest(table) + (iova >> 12 & 511);
}

static void guest_map(uint64_t top, uint64_t iova, uint64_t gpa, uint64_t flags)
{
	*entry_of(top, 4, iova) = gpa | flags;
}

static uint32_t word(uint64_t gpa)
{
	return *(volatile uint32_t *)guest(gpa);
}

/* ---- what the guest's drivers do with the devices ---- */

static void put32(struct device *device, uint32_t offset, uint32_t value)
{
	NEED(pwrite(device->fd, &value, 4, device->bar + offset) == 4);
}

static void put64(struct device *device, uint32_t offset, uint64_t value)
{
	put32(device, offset, (uint32_t)value);
	put32(device, offset + 4, value >> 32);
}

static uint32_t get32(struct device *device, uint32_t offset)
{
	uint32_t value = 0;
	NEED(pread(device->fd, &value, 4, device->bar + offset) == 4);
	return value;
}

static uint64_t get64(struct device *device, uint32_t offset)
{
	return get32(device, offset) | (uint64_t)get32(device, offset + 4) << 32;
}

/* testdev: 0, or the error code: 4 a read faulted, 5 a write. */
static int run(int pasid, uint32_t command)
{
	put32(&testdev, 0x78, pasid < 0 ? 0 : 0x80000000u | pasid);
	put32(&testdev, 0x58, command);
	for (int i = 0; i < 20000; i++) {
		uint32_t status = get32(&testdev, 0x5c);
		if (status & 4)
			return status >> 8 & 0xff;
		if (status & 2)
			return 0;
		usleep(100);
	}
	return -1;
}

static int fill(int pasid, uint64_t iova, uint32_t pattern, uint32_t length)
{
	put64(&testdev, 0x48, iova);
	put32(&testdev, 0x50, length);
	put32(&testdev, 0x54, pattern);
	return run(pasid, 2);
}

static int copy(int pasid, uint64_t to, uint64_t from, uint32_t length)
{
	put64(&testdev, 0x40, from);
	put64(&testdev, 0x48, to);
	put32(&testdev, 0x50, length);
	return run(pasid, 1);
}

struct node { uint64_t next, value; };

enum { BUSY = 1, DONE = 2, ERROR = 4, WAITING = 8 };

static void walk(int pasid, uint64_t head, uint32_t limit, int adds)
{
	put32(&walker, 0x04, 0x80000000u | pasid);
	put64(&walker, 0x08, head);
	put32(&walker, 0x10, limit);
	put32(&walker, 0x14, adds ? 3 : 1);
}

/* The status once it is not busy, or waits for a page. Error codes: 1 translation, 2 the answer is INVALID. */
static uint32_t settled(void)
{
	for (int i = 0; i < 20000; i++) {
		uint32_t status = get32(&walker, 0x18);
		if (!(status & BUSY) || status & WAITING)
			return status;
		usleep(100);
	}
	return ~0u;
}

/* The status once it is not busy: also when the host answers for want of anybody else, which is not at once. */
static uint32_t finished(void)
{
	uint32_t status = settled();
	for (int i = 0; status & BUSY && i < 20000; i++) {
		usleep(100);
		status = get32(&walker, 0x18);
	}
	return status;
}

static void put_node(uint64_t gpa, uint64_t next, uint64_t value)
{
	struct node *node = guest(gpa);
	node->next = next;
	node->value = value;
}

/* ---- steps ---- */

static void hardware(void)
{
	struct iommu_hw_info_vtd vtd;
	char padded[sizeof(vtd) + 16];
	start_machine(0);
	struct iommu_hw_info info = {
		.size = sizeof(info), .dev_id = testdev.id, .data_len = sizeof(padded), .data_uptr = (uintptr_t)padded,
	};
	memset(padded, 0xee, sizeof(padded));
	NEED(ioctl(iommu, IOMMU_GET_HW_INFO, &info) == 0);
	NEED(info.out_data_type == IOMMU_HW_INFO_TYPE_INTEL_VTD && info.data_len == sizeof(vtd));
	NEED(padded[sizeof(vtd)] == 0 && padded[sizeof(padded) - 1] == 0);
	memcpy(&vtd, padded, sizeof(vtd));
	/* NEST, PRS, PASID, SMTS, SLADS, FLTS: what a monitor needs before it offers a guest a first stage. */
	NEED(vtd.ecap_reg >> 26 & vtd.ecap_reg >> 29 & vtd.ecap_reg >> 40 & vtd.ecap_reg >> 43 & vtd.ecap_reg >> 45 & vtd.ecap_reg >> 47 & 1);
	NEED(vtd.cap_reg && vtd.cap_reg != UINT64_MAX);
	NEED(info.out_capabilities & IOMMU_HW_CAP_DIRTY_TRACKING);
	NEED(info.out_capabilities & IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED);
	NEED(info.out_max_pasid_log2 == 20);
	info.dev_id = walker.id;
	info.data_len = sizeof(vtd);
	NEED(ioctl(iommu, IOMMU_GET_HW_INFO, &info) == 0);
	NEED(!(info.out_capabilities & IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED));

	/* No virtual IOMMU of another vendor's. */
	struct iommu_viommu_alloc viommu = {
		.size = sizeof(viommu), .type = IOMMU_VIOMMU_TYPE_ARM_SMMUV3, .dev_id = testdev.id, .hwpt_id = parent,
	};
	REFUSED(ioctl(iommu, IOMMU_VIOMMU_ALLOC, &viommu), EOPNOTSUPP);
	viommu.dev_id = 12345;
	REFUSED(ioctl(iommu, IOMMU_VIOMMU_ALLOC, &viommu), ENOENT);

	/* The interrupt window is no memory of a guest's once a device is there. */
	NEED(attach(&testdev, parent, -1) == 0);
	struct iommu_iova_range ranges[4];
	struct iommu_ioas_iova_ranges holes = {
		.size = sizeof(holes), .ioas_id = ioas, .num_iovas = 4, .allowed_iovas = (uintptr_t)ranges,
	};
	NEED(ioctl(iommu, IOMMU_IOAS_IOVA_RANGES, &holes) == 0 && holes.num_iovas == 2);
	NEED(ranges[0].last == 0xfedfffff && ranges[1].start == 0xfef00000);
	end_machine();
}

static void both_stages(void)
{
	start_machine(0);
	/* Before the guest switches its IOMMU on, addresses are guest-physical. */
	NEED(attach(&testdev, parent, -1) == 0);
	NEED(fill(-1, HIGH + 7 * PAGE, 0x11111111, 4096) == 0 && word(HIGH + 7 * PAGE) == 0x11111111);
	uint64_t top = new_table();
	uint32_t nested = nest(&testdev, top, 0);
	guest_map(top, 0x7fff12345000, 5 * PAGE, ENTRY_ALL);
	guest_map(top, 0x7fff12346000, HIGH + 9 * PAGE, ENTRY_ALL);
	guest_map(top, 0x1000, 6 * PAGE, ENTRY_PRESENT | ENTRY_USER);
	NEED(attach(&testdev, nested, -1) == 0);
	NEED(fill(-1, 0x7fff12345ff0, 0xabcd1234, 0x20) == 0);
	NEED(word(5 * PAGE + 0xff0) == 0xabcd1234 && word(5 * PAGE + 0xffc) == 0xabcd1234 && word(5 * PAGE + 0xfec) == 0);
	NEED(word(HIGH + 9 * PAGE) == 0xabcd1234 && word(HIGH + 9 * PAGE + 0xc) == 0xabcd1234 && word(HIGH + 9 * PAGE + 0x10) == 0);
	/* The unit says in the guest's own entries what was done. */
	NEED((*entry_of(top, 4, 0x7fff12345000) & (ENTRY_ACCESSED | ENTRY_DIRTY)) == (ENTRY_ACCESSED | ENTRY_DIRTY));
	/* Read-only for the guest's device. */
	*(uint32_t *)guest(6 * PAGE) = 0x66666666;
	NEED(copy(-1, 0x7fff12346000, 0x1000, 64) == 0 && word(HIGH + 9 * PAGE) == 0x66666666);
	NEED(!(*entry_of(top, 4, 0x1000) & ENTRY_DIRTY));
	NEED(fill(-1, 0x1000, 1, 4) == 5 && get64(&testdev, 0x60) == 0x1000 && word(6 * PAGE) == 0x66666666);
	/* Guest-physical addresses mean nothing any more. */
	NEED(fill(-1, HIGH + 7 * PAGE, 1, 4) == 5 && word(HIGH + 7 * PAGE) == 0x11111111);
	/* Half of a transfer arrives: up to the first page that is not there. */
	NEED(fill(-1, 0x7fff12346000, 0x77, 2 * 4096) == 5 && get32(&testdev, 0x6c) == 4096);

	/* PASIDs: tables of their own next to that of the requester ID, on the same parent. */
	uint64_t other_top = new_table();
	uint32_t other = nest(&testdev, other_top, 0);
	guest_map(other_top, 0x7fff12345000, 20 * PAGE, ENTRY_ALL);
	NEED(fill(33, 0x7fff12345000, 1, 4) == 5);
	NEED(attach(&testdev, other, 33) == 0);
	NEED(fill(33, 0x7fff12345000, 0x33, 4) == 0 && word(20 * PAGE) == 0x33 && word(5 * PAGE) == 0);
	NEED(fill(-1, 0x7fff12345000, 0x44, 4) == 0 && word(20 * PAGE) == 0x33 && word(5 * PAGE) == 0x44);
	NEED(fill(34, 0x7fff12345000, 1, 4) == 5);
	NEED(attach(&testdev, parent, 34) == -1 && errno == EINVAL); /* the parent was not made for PASIDs */
	NEED(attach(&testdev, nested, 33) == 0); /* replaces */
	NEED(fill(33, 0x7fff12345000, 0x55, 4) == 0 && word(5 * PAGE) == 0x55 && word(20 * PAGE) == 0x33);
	NEED(detach(&testdev, 33) == 0);
	NEED(fill(33, 0x7fff12345000, 1, 4) == 5);

	/* In use: */
	REFUSED(destroy(parent), EBUSY);
	REFUSED(destroy(nested), EBUSY);
	NEED(destroy(other) == 0);
	NEED(detach(&testdev, -1) == 0);
	NEED(fill(-1, 0x7fff12345000, 1, 4) == 5);
	NEED(destroy(nested) == 0);
	if (has_viommus) {
		REFUSED(destroy(parent), EBUSY);
		NEED(destroy(base) == 0);
	}
	NEED(destroy(parent) == 0);
	end_machine();
}

/* A list of one node in a page that the guest moves: what a device TLB remembers is visible as the sum. */
static uint64_t sum_of(int pasid, uint64_t head)
{
	walk(pasid, head, 10, 0);
	NEED((settled() & (BUSY | ERROR)) == 0);
	return get64(&walker, 0x20);
}

static void stale(void)
{
	start_machine(0);
	uint64_t top = new_table();
	uint32_t nested = nest(&testdev, top, 0);
	NEED(attach(&testdev, nested, -1) == 0);
	NEED(attach(&walker, nested, 8) == 0);
	guest_map(top, 0x5000, 1 * PAGE, ENTRY_ALL);
	guest_map(top, 0x6000, 2 * PAGE, ENTRY_ALL);
	put_node(1 * PAGE, 0, 100);
	put_node(2 * PAGE, 0, 200);
	NEED(fill(-1, 0x5010, 1, 4) == 0 && word(1 * PAGE + 0x10) == 1);
	NEED(sum_of(8, 0x5000) == 100);
	guest_map(top, 0x5000, 2 * PAGE, ENTRY_ALL);
	/* What the guest stored is not what its devices use, until it says so. */
	NEED(fill(-1, 0x5010, 2, 4) == 0 && word(1 * PAGE + 0x10) == 2 && word(2 * PAGE + 0x10) == 0);
	NEED(fill(-1, 0x6000 + 0x20, 3, 4) == 0);
	invalidate_page(nested, 0x6000);
	NEED(fill(-1, 0x5010, 4, 4) == 0 && word(1 * PAGE + 0x10) == 4 && word(2 * PAGE + 0x10) == 0);
	invalidate_page(nested, 0x5000);
	NEED(fill(-1, 0x5010, 5, 4) == 0 && word(1 * PAGE + 0x10) == 4 && word(2 * PAGE + 0x10) == 5);
	/* The device's own TLB has been told with it. */
	NEED(sum_of(8, 0x5000) == 200);
	*entry_of(top, 4, 0x5000) = 0;
	invalidate_all(nested);
	NEED(fill(-1, 0x5010, 6, 4) == 5);
	walk(8, 0x5000, 1, 0);
	NEED(finished() == (DONE | ERROR | 2 << 8)); /* it asks for the page, and nobody takes requests */
	end_machine();
}

static void bad_entries(void)
{
	struct iommu_hwpt_vtd_s1_invalidate entries[5];
	uint32_t count;
	start_machine(0);
	uint64_t top = new_table();
	uint32_t nested = nest(&testdev, top, 0);
	NEED(attach(&testdev, nested, -1) == 0);
	for (int i = 0; i < 5; i++) {
		entries[i] = (struct iommu_hwpt_vtd_s1_invalidate){ .addr = i * PAGE, .npages = 1 };
		guest_map(top, i * PAGE, (10 + i) * PAGE, ENTRY_ALL);
		NEED(fill(-1, i * PAGE, 0xa0 + i, 4) == 0);
		guest_map(top, i * PAGE, (20 + i) * PAGE, ENTRY_ALL);
	}
	entries[2].addr = 0x2800;
	count = 5;
	REFUSED(invalidate(nested, entries, &count), EINVAL);
	NEED(count == 2);
	/* The two before it are done, the others not. */
	for (int i = 0; i < 5; i++) {
		NEED(fill(-1, i * PAGE, 0xb0 + i, 4) == 0);
		NEED(word((10 + i) * PAGE) == (i < 2 ? 0xa0u : 0xb0u) + i);
		NEED(word((20 + i) * PAGE) == (i < 2 ? 0xb0u + i : 0));
	}
	entries[2].addr = 0x2000;
	entries[4].flags = 0x80;
	count = 5;
	REFUSED(invalidate(nested, entries, &count), EOPNOTSUPP);
	NEED(count == 4);
	entries[4].flags = 0;
	entries[0].__reserved = 1;
	count = 5;
	REFUSED(invalidate(nested, entries, &count), EOPNOTSUPP);
	NEED(count == 0);
	count = 1;
	REFUSED(invalidate(parent, entries + 1, &count), EINVAL);
	count = 1;
	REFUSED(invalidate(nested, NULL, &count), EINVAL);
	count = 1;
	REFUSED(invalidate(nested, (void *)16, &count), EFAULT);
	NEED(count == 0);
	count = 0;
	NEED(invalidate(nested, NULL, &count) == 0);
	end_machine();
}

static void astray(void)
{
	start_machine(0);
	uint64_t top = new_table();
	uint32_t nested = nest(&testdev, top, 0), lost, wide, id;
	NEED(attach(&testdev, nested, -1) == 0);
	/* A leaf, a table, and a whole table that are not in the guest's memory. */
	guest_map(top, 0x5000, LOW_PAGES * PAGE, ENTRY_ALL);
	NEED(fill(-1, 0x5000, 1, 4) == 5 && get64(&testdev, 0x60) == 0x5000);
	guest_map(top, 0x6000, HIGH + HIGH_PAGES * PAGE, ENTRY_ALL);
	NEED(fill(-1, 0x6000, 1, 4) == 5);
	((uint64_t *)guest(top))[3] = 0x7ffff000ull | ENTRY_ALL;
	NEED(fill(-1, 3ull << 39, 1, 4) == 5);
	/* A table that leads to itself ends as a leaf that is a table. */
	((uint64_t *)guest(top))[4] = top | ENTRY_ALL;
	NEED(fill(-1, 4ull << 39 | 4ull << 30 | 4ull << 21 | 4ull << 12, 0, 8) == 0);
	NEED(((uint64_t *)guest(top))[0] == 0);
	lost = nest(&testdev, 0xfffffffff000, 0);
	if (attach(&testdev, lost, -1) == 0)
		NEED(fill(-1, 0x5000, 1, 4) == 5);
	else
		NEED(errno == EINVAL);
	/* Reserved bits, a width that is none, unknown flags. */
	NEED(try_nest(&testdev, top, 48, 0, &id) == 0 && destroy(id) == 0);
	NEED(try_nest(&testdev, top, 39, 0, &wide) == -1 || (attach(&testdev, wide, -1) == -1 && errno == EINVAL));
	/* Five levels. */
	uint64_t top5 = new_table();
	NEED(try_nest(&testdev, top5, 57, 0, &wide) == 0);
	*entry_of(top5, 5, 0xaa00000005000) = 30 * PAGE | ENTRY_ALL;
	NEED(attach(&testdev, wide, -1) == 0);
	NEED(fill(-1, 0xaa00000005000, 0x57, 4) == 0 && word(30 * PAGE) == 0x57);
	/* Memory that is pulled out of the guest is gone from both stages at once, and from a device's TLB. */
	NEED(attach(&testdev, nested, -1) == 0 && attach(&walker, nested, 8) == 0);
	guest_map(top, 0x9000, HIGH + 3 * PAGE, ENTRY_ALL);
	invalidate_all(nested);
	put_node(HIGH + 3 * PAGE, 0, 900);
	NEED(fill(-1, 0x9010, 9, 4) == 0 && sum_of(8, 0x9000) == 900);
	struct iommu_ioas_unmap unmap = { .size = sizeof(unmap), .ioas_id = ioas, .iova = HIGH, .length = HIGH_PAGES * PAGE };
	NEED(ioctl(iommu, IOMMU_IOAS_UNMAP, &unmap) == 0 && unmap.length == HIGH_PAGES * PAGE);
	NEED(fill(-1, 0x9010, 10, 4) == 5 && word(HIGH + 3 * PAGE + 0x10) == 9);
	walk(8, 0x9000, 1, 0);
	NEED(finished() == (DONE | ERROR | 2 << 8));
	NEED(map_high() == 0);
	NEED(fill(-1, 0x9010, 11, 4) == 0 && word(HIGH + 3 * PAGE + 0x10) == 11);
	NEED(sum_of(8, 0x9000) == 900);
	end_machine();
}

/* Waits for the fault, and reads one. */
static struct iommu_hwpt_pgfault next_fault(int fd)
{
	struct iommu_hwpt_pgfault faults[8];
	struct pollfd p = { .fd = fd, .events = POLLIN };
	NEED(poll(&p, 1, 20000) == 1 && p.revents & POLLIN);
	NEED(read(fd, faults, sizeof(faults)) == sizeof(faults[0]));
	return faults[0];
}

static ssize_t answer(int fd, uint32_t cookie, uint32_t code)
{
	struct iommu_hwpt_page_response response = { .cookie = cookie, .code = code };
	return write(fd, &response, sizeof(response));
}

static void requests(void)
{
	struct iommu_hwpt_pgfault fault, rest[8];
	uint32_t queue, id;
	start_machine(0);
	int fd = fault_queue(&queue);
	uint64_t top = new_table();
	uint32_t nested = nest(&walker, top, queue);
	NEED(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	/* A device that cannot ask has no use for a queue. */
	NEED(attach(&testdev, nested, -1) == -1 && errno == ENODEV);
	REFUSED(destroy(queue), EBUSY);
	NEED(attach(&walker, nested, 8) == 0);
	NEED(read(fd, rest, sizeof(rest)) == 0);
	REFUSED(read(fd, rest, 41), ESPIPE);
	/* A list over three pages, none of which the device can see: the guest brings them one by one, the last to be written. */
	put_node(1 * PAGE + 16, 0x20000, 1);
	put_node(2 * PAGE, 0x30ff0, 2);
	put_node(3 * PAGE + 0xff0, 0, 4);
	uint64_t iovas[] = { 0x10000, 0x20000, 0x30000 };
	walk(8, 0x10010, 10, 1);
	for (int i = 0; i < 3; i++) {
		fault = next_fault(fd);
		NEED(fault.flags == (IOMMU_PGFAULT_FLAGS_PASID_VALID | IOMMU_PGFAULT_FLAGS_LAST_PAGE));
		NEED(fault.pasid == 8 && fault.dev_id == walker.id && fault.addr == iovas[i] && fault.length == 0);
		NEED(fault.perm & IOMMU_PGFAULT_PERM_READ);
		NEED(settled() == (BUSY | WAITING));
		NEED(get64(&walker, 0x28) == iovas[i]);
		/* A guest whose page is read-only, so that the device comes again when it wants to write. */
		guest_map(top, iovas[i], (1 + i) * PAGE, i == 2 ? ENTRY_PRESENT | ENTRY_USER : ENTRY_ALL);
		NEED(answer(fd, fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS) == 8);
		REFUSED(answer(fd, fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS), EINVAL);
	}
	fault = next_fault(fd);
	NEED(fault.addr == 0x30000 && fault.perm & IOMMU_PGFAULT_PERM_WRITE);
	REFUSED(answer(fd, fault.cookie, 7), EINVAL);
	guest_map(top, 0x30000, 3 * PAGE, ENTRY_ALL);
	invalidate_page(nested, 0x30000);
	NEED(answer(fd, fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS) == 8);
	NEED(settled() == DONE && get64(&walker, 0x20) == 7 && get32(&walker, 0x1c) == 3);
	NEED(((struct node *)guest(1 * PAGE + 16))->value == 2 && ((struct node *)guest(3 * PAGE + 0xff0))->value == 5);
	NEED(get32(&walker, 0x30) == 4);
	/* The second time nobody is asked. */
	walk(8, 0x10010, 10, 1);
	NEED(settled() == DONE && get32(&walker, 0x30) == 0 && read(fd, rest, sizeof(rest)) == 0);

	/* The guest has no such page. */
	walk(8, 0x50000, 10, 0);
	fault = next_fault(fd);
	NEED(answer(fd, fault.cookie, IOMMUFD_PAGE_RESP_INVALID) == 8);
	NEED(settled() == (DONE | ERROR | 2 << 8) && get64(&walker, 0x28) == 0x50000);
	/* A guest that promises and does not keep: the device gives up, the monitor is not held. */
	walk(8, 0x50000, 10, 0);
	for (int i = 0; settled() & WAITING; i++) {
		NEED(i < 20);
		fault = next_fault(fd);
		NEED(answer(fd, fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS) == 8);
	}
	NEED(settled() == (DONE | ERROR | 6 << 8));
	/* Answers in one write: what comes before the bad one counts. */
	walk(8, 0x50000, 10, 0);
	fault = next_fault(fd);
	struct iommu_hwpt_page_response both[2] = { { fault.cookie, IOMMUFD_PAGE_RESP_INVALID }, { 999, 0 } };
	NEED(write(fd, both, sizeof(both)) == 8);
	NEED(settled() == (DONE | ERROR | 2 << 8));
	/* A parent takes no faults. */
	struct iommu_hwpt_alloc bad = {
		.flags = IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_FAULT_ID_VALID, .dev_id = walker.id, .pt_id = ioas, .fault_id = queue,
	};
	REFUSED(alloc_hwpt(&bad), EOPNOTSUPP);
	NEED(try_nest(&walker, top, 48, 4711, &id) == -1 && errno == ENOENT);
	NEED(detach(&walker, 8) == 0);
	NEED(destroy(nested) == 0);
	REFUSED(destroy(queue), EBUSY); /* its file */
	close(fd);
	NEED(destroy(queue) == 0);
	end_machine();
}

static void unanswered(void)
{
	struct iommu_hwpt_pgfault fault, rest[8];
	uint32_t queue;
	start_machine(0);
	int fd = fault_queue(&queue);
	uint64_t top = new_table(), other_top = new_table();
	uint32_t nested = nest(&walker, top, queue), other = nest(&walker, other_top, queue), plain = nest(&walker, other_top, 0);
	/* Detached: what was read, and what was not. */
	for (int reads = 0; reads < 2; reads++) {
		NEED(attach(&walker, nested, 8) == 0);
		walk(8, 0x10000, 10, 0);
		NEED(settled() == (BUSY | WAITING));
		if (reads)
			fault = next_fault(fd);
		NEED(detach(&walker, 8) == 0);
		NEED(settled() == (DONE | ERROR | 2 << 8));
		if (reads)
			REFUSED(answer(fd, fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS), EINVAL);
		NEED(read(fd, rest, sizeof(rest)) == 0);
	}
	/* Replaced: by one with the same queue, then by one without. */
	NEED(attach(&walker, nested, 8) == 0);
	walk(8, 0x10000, 10, 0);
	fault = next_fault(fd);
	NEED(attach(&walker, other, 8) == 0);
	NEED(settled() == (DONE | ERROR | 2 << 8));
	REFUSED(answer(fd, fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS), EINVAL);
	walk(8, 0x10000, 10, 0);
	fault = next_fault(fd);
	NEED(attach(&walker, plain, 8) == 0);
	NEED(settled() == (DONE | ERROR | 2 << 8));
	walk(8, 0x10000, 10, 0);
	NEED(finished() == (DONE | ERROR | 2 << 8));
	/* The device is closed while it waits. */
	NEED(attach(&walker, nested, 8) == 0);
	walk(8, 0x10000, 10, 0);
	fault = next_fault(fd);
	close(walker.fd);
	REFUSED(answer(fd, fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS), EINVAL);
	NEED(read(fd, rest, sizeof(rest)) == 0);
	NEED(destroy(nested) == 0 && destroy(other) == 0 && destroy(plain) == 0);
	walker.fd = -1;
	close(fd);
	end_machine();
}

static int dirty(uint64_t iova, uint64_t pages, uint64_t *bits, uint64_t flags)
{
	struct iommu_hwpt_get_dirty_bitmap cmd = {
		.size = sizeof(cmd), .hwpt_id = parent, .flags = flags, .iova = iova, .length = pages * PAGE, .page_size = PAGE,
		.data = (uintptr_t)bits,
	};
	return ioctl(iommu, IOMMU_HWPT_GET_DIRTY_BITMAP, &cmd);
}

static int set_dirty(uint32_t flags)
{
	struct iommu_hwpt_set_dirty_tracking cmd = { .size = sizeof(cmd), .hwpt_id = parent, .flags = flags };
	return ioctl(iommu, IOMMU_HWPT_SET_DIRTY_TRACKING, &cmd);
}

#define IS_SET(bits, n) ((bits)[(n) / 64] >> ((n) % 64) & 1)

/* Bits of pages below the guest's tables. */
static int count_data(const uint64_t *bits)
{
	int count = 0;
	for (int i = 0; i < 512; i++)
		count += IS_SET(bits, i);
	return count;
}

static void migration(void)
{
	uint64_t lows[LOW_PAGES / 64], again[LOW_PAGES / 64], highs[HIGH_PAGES / 64];
	start_machine(IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
	uint64_t top = new_table();
	uint32_t nested = nest(&testdev, top, 0);
	NEED(attach(&testdev, nested, -1) == 0 && attach(&walker, nested, 8) == 0);
	for (int i = 0; i < 64; i++)
		guest_map(top, i * PAGE, i * PAGE, ENTRY_ALL);
	guest_map(top, 0x100000, HIGH + 100 * PAGE, ENTRY_ALL);
	NEED(fill(-1, 3 * PAGE, 1, 4096) == 0);
	memset(lows, 0, sizeof(lows));
	NEED(set_dirty(IOMMU_HWPT_DIRTY_TRACKING_ENABLE) == 0);
	NEED(dirty(0, LOW_PAGES, lows, 0) == 0 && count_data(lows) == 0); /* what was written before does not count */
	/* Through both stages, also where the unit remembers the translation. */
	NEED(fill(-1, 3 * PAGE + 8, 2, 4) == 0);
	NEED(fill(-1, 10 * PAGE + 0xffc, 2, 8) == 0);
	NEED(fill(-1, 0x100000, 2, 4) == 0);
	NEED(copy(-1, 20 * PAGE, 30 * PAGE, 256) == 0);
	put_node(40 * PAGE, 41 * PAGE, 1);
	put_node(41 * PAGE, 0, 1);
	walk(8, 40 * PAGE, 1, 1); /* adds to the first, with a translated request */
	NEED(settled() == DONE);
	memset(lows, 0, sizeof(lows));
	memset(highs, 0, sizeof(highs));
	lows[7] = 1ull << 63; /* bits of the program's own stay */
	NEED(dirty(0, LOW_PAGES, lows, IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) == 0);
	NEED(IS_SET(lows, 3) && IS_SET(lows, 10) && IS_SET(lows, 11) && IS_SET(lows, 20) && IS_SET(lows, 40) && IS_SET(lows, 511));
	NEED(count_data(lows) == 6);
	memset(again, 0, sizeof(again));
	again[7] = 1ull << 63;
	NEED(dirty(0, LOW_PAGES, again, IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) == 0 && !memcmp(lows, again, sizeof(lows)));
	NEED(dirty(HIGH, HIGH_PAGES, highs, 0) == 0 && IS_SET(highs, 100) && count_data(highs) == 1);
	memset(again, 0, sizeof(again));
	NEED(dirty(0, LOW_PAGES, again, 0) == 0 && count_data(again) == 5);
	memset(again, 0, sizeof(again));
	NEED(dirty(0, LOW_PAGES, again, 0) == 0 && count_data(again) == 0);
	NEED(fill(-1, 10 * PAGE, 3, 4) == 0); /* again, although the entry was cached */
	walk(8, 40 * PAGE, 1, 1);
	NEED(settled() == DONE);
	NEED(dirty(0, LOW_PAGES, again, 0) == 0 && IS_SET(again, 10) && IS_SET(again, 40) && count_data(again) == 2);
	REFUSED(dirty(0, LOW_PAGES, again, 2), EOPNOTSUPP);
	REFUSED(dirty(1, 1, again, 0), EINVAL);
	NEED(set_dirty(0) == 0);
	REFUSED(dirty(0, LOW_PAGES, again, 0), EINVAL);
	/* A nested table has no bits of its own. */
	uint32_t kept = parent;
	parent = nested;
	NEED(set_dirty(IOMMU_HWPT_DIRTY_TRACKING_ENABLE) == -1 && (errno == EINVAL || errno == ENOENT));
	parent = kept;
	end_machine();
}

static volatile int stops;
static int transfers, failures;

/* The guest's driver, at work while the monitor changes tables. */
static void *drive(void *unused)
{
	while (!stops) {
		uint32_t pattern = 0x1000000 + transfers;
		if (fill(-1, 0x20000, pattern, 3 * 4096) || word(HIGH + 50 * PAGE) != pattern || word(52 * PAGE + 0xffc) != pattern)
			failures++;
		transfers++;
	}
	return unused;
}

static void replaced(void)
{
	pthread_t driver;
	start_machine(IOMMU_HWPT_ALLOC_PASID);
	uint64_t tops[2] = { new_table(), new_table() };
	uint32_t hwpts[3] = { 0, 0, parent };
	for (int i = 0; i < 2; i++) {
		guest_map(tops[i], 0x20000, HIGH + 50 * PAGE, ENTRY_ALL);
		guest_map(tops[i], 0x21000, 51 * PAGE, ENTRY_ALL);
		guest_map(tops[i], 0x22000, 52 * PAGE, ENTRY_ALL);
		guest_map(tops[i], 60 * PAGE, 60 * PAGE, ENTRY_ALL);
		guest_map(tops[i], 61 * PAGE, 61 * PAGE, ENTRY_ALL);
		hwpts[i] = nest(&testdev, tops[i], 0);
	}
	/* A list without an end, at the same addresses in all three tables. */
	put_node(60 * PAGE, 61 * PAGE, 0);
	put_node(61 * PAGE, 60 * PAGE, 0);
	NEED(attach(&testdev, hwpts[0], -1) == 0 && attach(&walker, hwpts[0], 8) == 0);
	walk(8, 60 * PAGE, ~0u, 1);
	NEED(pthread_create(&driver, NULL, drive, NULL) == 0);
	uint32_t visited = get32(&walker, 0x1c);
	int moved = 0;
	for (int i = 1; i <= 300; i++) {
		NEED(attach(&testdev, hwpts[i % 2], -1) == 0);
		NEED(attach(&walker, hwpts[i % 3], 8) == 0);
		if (i % 7 == 0)
			invalidate_all(hwpts[i % 2]);
		uint32_t now = get32(&walker, 0x1c);
		moved += now != visited;
		visited = now;
	}
	/* A replacement that is refused leaves what was. */
	NEED(attach(&testdev, 4711, -1) == -1 && errno == ENOENT);
	usleep(20000);
	stops = 1;
	pthread_join(driver, NULL);
	uint32_t status = get32(&walker, 0x18);
	NEED(failures == 0 && transfers > 10);
	NEED((status & (BUSY | ERROR)) == BUSY && moved > 10);
	put32(&walker, 0x14, 4);
	printf("%d transfers and %u nodes during 600 replacements\n", transfers, visited);
	/* Every node was counted once for each visit: nothing was lost on the way. */
	uint64_t sum = ((struct node *)guest(60 * PAGE))->value + ((struct node *)guest(61 * PAGE))->value;
	NEED(sum == get32(&walker, 0x1c));
	end_machine();
}

static int alloc_vdevice(uint32_t viommu, struct device *device, uint64_t virt_id, uint32_t *id)
{
	struct iommu_vdevice_alloc cmd = { .size = sizeof(cmd), .viommu_id = viommu, .dev_id = device->id, .virt_id = virt_id };
	int result = ioctl(iommu, IOMMU_VDEVICE_ALLOC, &cmd);
	*id = cmd.out_vdevice_id;
	return result;
}

/* What a virtual IOMMU is beside a base for tables. Without one there is nothing to see. */
static void virtual_iommu(void)
{
	uint32_t first, second, id;
	struct device other;
	struct iommu_hwpt_vtd_s1_invalidate all = { .npages = UINT64_MAX };
	uint32_t count = 1;
	start_machine(0);
	open_device(&other, other_name, VFIO_PCI_BAR4_REGION_INDEX);
	if (!has_viommus) {
		REFUSED(alloc_vdevice(parent, &testdev, 0x10, &id), ENOENT);
		close(other.fd);
		end_machine();
		return;
	}
	/* The guest's numbers for its devices. */
	NEED(alloc_vdevice(base, &testdev, 0x10, &first) == 0);
	REFUSED(alloc_vdevice(base, &testdev, 0x11, &id), EEXIST);
	REFUSED(alloc_vdevice(base, &walker, 0x10, &id), EEXIST);
	NEED(alloc_vdevice(base, &walker, 0x18, &second) == 0);
	NEED(destroy(second) == 0 && alloc_vdevice(base, &walker, 0x10000, &second) == 0);
	/* What is behind another IOMMU is not of this one. */
	REFUSED(alloc_vdevice(base, &other, 0x20, &id), EINVAL);
	REFUSED(try_nest(&other, new_table(), 48, 0, &id), EINVAL);
	REFUSED(alloc_viommu(&other, parent, &id), EINVAL);
	/* Only on a parent of nested tables, and not as a table. */
	struct iommu_hwpt_alloc plain = { .dev_id = testdev.id, .pt_id = ioas };
	NEED(alloc_hwpt(&plain) == 0);
	REFUSED(alloc_viommu(&testdev, plain.out_hwpt_id, &id), EINVAL);
	REFUSED(alloc_viommu(&testdev, ioas, &id), ENOENT);
	NEED(attach(&testdev, base, -1) == -1 && errno == EINVAL);
	/* A guest's invalidations are of one table. */
	REFUSED(invalidate(base, &all, &count), EOPNOTSUPP);
	NEED(count == 0);
	uint64_t top = new_table();
	uint32_t nested = nest(&testdev, top, 0);
	guest_map(top, 0x5000, HIGH + 4 * PAGE, ENTRY_ALL);
	NEED(attach(&testdev, nested, -1) == 0 && fill(-1, 0x5000, 0x99, 4) == 0 && word(HIGH + 4 * PAGE) == 0x99);
	REFUSED(destroy(base), EBUSY);
	/* A device that is closed takes its number along. */
	close(testdev.fd);
	testdev.fd = -1;
	REFUSED(destroy(first), ENOENT);
	NEED(destroy(nested) == 0);
	REFUSED(destroy(base), EBUSY);
	NEED(destroy(second) == 0 && destroy(base) == 0);
	close(other.fd);
	end_machine();
}

/* A guest that resets its device, and nonsense of any kind. */
static void resets(void)
{
	struct iommu_hwpt_pgfault fault, rest[8];
	uint32_t queue, count;
	start_machine(0);
	int fd = fault_queue(&queue);
	uint64_t top = new_table();
	uint32_t nested = nest(&walker, top, queue);
	/* By requester ID a table with a queue serves no PASID: VT-d has the PASID table for itself. */
	NEED(attach(&walker, nested, -1) == 0);
	walk(9, 0x10000, 10, 0);
	NEED(finished() == (DONE | ERROR | 1 << 8));
	NEED(attach(&walker, nested, 8) == 0 && attach(&testdev, parent, -1) == 0);
	put_node(1 * PAGE, 0, 5);
	for (int i = 0; i < 3; i++) {
		*entry_of(top, 4, 0x10000) = 0;
		invalidate_all(nested);
		walk(8, 0x10000, 10, 0);
		fault = next_fault(fd);
		NEED(fault.addr == 0x10000 && fault.pasid == 8);
		/* The answer of a request that the device has forgotten. */
		NEED(ioctl(walker.fd, VFIO_DEVICE_RESET) == 0);
		NEED(!(get32(&walker, 0x18) & BUSY));
		guest_map(top, 0x10000, 1 * PAGE, ENTRY_ALL);
		NEED(answer(fd, fault.cookie, IOMMUFD_PAGE_RESP_SUCCESS) == 8);
		/* What was attached is attached, and the device can ask and translate. */
		uint16_t command = 6;
		NEED(pwrite(walker.fd, &command, 2, walker.config + 4) == 2);
		NEED(sum_of(8, 0x10000) == 5);
	}
	NEED(read(fd, rest, sizeof(rest)) == 0);
	/* Invalidations of any size end soon. */
	uint64_t sizes[] = { 0, 1ull << 20, 1ull << 36, 1ull << 40, 1ull << 52, 1ull << 63, UINT64_MAX - 1 };
	uint64_t starts[] = { 0, 0x10000, 1ull << 47, 0xfffffffffffff000 };
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		for (unsigned k = 0; k < sizeof(starts) / sizeof(starts[0]); k++) {
			struct iommu_hwpt_vtd_s1_invalidate entry = { .addr = starts[k], .npages = sizes[i] };
			count = 1;
			NEED(invalidate(nested, &entry, &count) == 0 && count == 1);
		}
	guest_map(top, 0x10000, 2 * PAGE, ENTRY_ALL);
	put_node(2 * PAGE, 0, 6);
	struct iommu_hwpt_vtd_s1_invalidate most = { .addr = 0, .npages = 1ull << 36 };
	count = 1;
	NEED(invalidate(nested, &most, &count) == 0 && sum_of(8, 0x10000) == 6);
	close(fd);
	end_machine();
}

/* Killed in the middle: a fault that waits, another that nobody has read, DMA that goes on. */
static void killed(void)
{
	uint32_t queue;
	start_machine(IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_ALLOC_PASID);
	int fd = fault_queue(&queue);
	uint64_t top = new_table();
	uint32_t nested = nest(&walker, top, queue);
	NEED(attach(&walker, parent, -1) == 0 && attach(&walker, nested, 8) == 0 && attach(&testdev, parent, -1) == 0);
	NEED(set_dirty(IOMMU_HWPT_DIRTY_TRACKING_ENABLE) == 0);
	walk(8, 0x10000, 10, 0);
	next_fault(fd);
	put64(&testdev, 0x48, 0);
	put32(&testdev, 0x50, 1 << 20);
	put32(&testdev, 0x58, 2);
	printf("killed: ok\n");
	fflush(stdout);
	kill(getpid(), SIGKILL);
}

/* ---- all of it ---- */

static const struct { const char *name; void (*run)(void); } steps[] = {
	{ "hardware", hardware }, { "both-stages", both_stages }, { "stale", stale }, { "bad-entries", bad_entries },
	{ "astray", astray }, { "requests", requests }, { "unanswered", unanswered }, { "migration", migration },
	{ "replaced", replaced }, { "virtual-iommu", virtual_iommu }, { "resets", resets }, { "killed", killed },
};

static const char *const counters[] = { "pins", "objects", "files", "blocks", "faults", "bonds", "maps", "irqs" };

/* Whether all counters come to zero; what is left is printed. */
static int is_clean(const char *step)
{
	char path[96], text[32];
	for (int round = 0; ; round++) {
		int left = 0;
		for (unsigned i = 0; i < sizeof(counters) / sizeof(counters[0]); i++) {
			snprintf(path, sizeof(path), "/sys/module/vfiobox/counters/%s", counters[i]);
			int fd = open(path, O_RDONLY);
			ssize_t n = read(fd, text, sizeof(text) - 1);
			close(fd);
			text[n < 0 ? 0 : n] = 0;
			if (n < 1 || strcmp(text, "0\n")) {
				left++;
				if (round == 1000)
					printf("%s: left: %s %s", step, counters[i], text);
			}
		}
		if (!left)
			return 1;
		if (round == 1000)
			return 0;
		usleep(1000);
	}
}

int main(int argc, char **argv)
{
	int wrong = 0;
	if (argc < 5)
		return 2;
	testdev_name = argv[1];
	walker_name = argv[2];
	other_name = argv[3];
	has_viommus = !strcmp(argv[4], "with");
	for (unsigned i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		int status;
		if (argc > 5 && strcmp(argv[5], steps[i].name))
			continue;
		fflush(stdout);
		pid_t child = fork();
		if (!child) {
			alarm(40);
			steps[i].run();
			printf("%s: ok\n", steps[i].name);
			fflush(stdout);
			_exit(0);
		}
		waitpid(child, &status, 0);
		if (steps[i].run == killed ? !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL : status != 0) {
			printf("%s: ended with %#x\n", steps[i].name, status);
			wrong++;
		}
		if (!is_clean(steps[i].name))
			wrong++;
	}
	printf("%d wrong\n", wrong);
	return wrong != 0;
}
