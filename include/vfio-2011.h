/* SPDX-License-Identifier: MIT */
/*
 * The VFIO API of December 2011, for programs that follow the first documentation of VFIO. In the box: a host file with "api": 2011, or the
 * preset seed-2011.
 *
 * The names are those of that time, and several of them are today's names for other things: do not include <linux/vfio.h> beside it.
 * With VFIO_2011_LATE defined before the inclusion, the later revision: the IOMMU describes a window, interrupts are set by one call.
 */
#ifndef VFIO_2011_H
#define VFIO_2011_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * Every structure begins with its size as the caller knows it (argsz, to be set) and flags; what is added later comes at the end, so the
 * numbers of the requests do not contain a size.
 */
#define VFIO_TYPE ';'
#define VFIO_BASE 100

/* ---- group: open("/dev/vfio/<bus>:<group>") ---- */

#define VFIO_GROUP_GET_INFO _IO(VFIO_TYPE, VFIO_BASE + 0)
/* Pointer to the descriptor of the group that is to join this one: it may not be in use, this one may. */
#define VFIO_GROUP_MERGE _IOW(VFIO_TYPE, VFIO_BASE + 1, __s32)
/* No argument: this group leaves its set. None of its devices may be open. */
#define VFIO_GROUP_UNMERGE _IO(VFIO_TYPE, VFIO_BASE + 2)
/* The earlier form: pointer to the descriptor of the group that is to leave this one's set. */
#define VFIO_GROUP_UNMERGE_FD _IOW(VFIO_TYPE, VFIO_BASE + 2, __s32)
/* Returns the descriptor of the IOMMU, which merged groups share. */
#define VFIO_GROUP_GET_IOMMU_FD _IO(VFIO_TYPE, VFIO_BASE + 3)
/* Name of the device; returns its descriptor. */
#define VFIO_GROUP_GET_DEVICE_FD _IOW(VFIO_TYPE, VFIO_BASE + 4, char)

struct vfio_group_info {
	__u32 argsz;
	__u32 flags;
#define VFIO_GROUP_FLAGS_VIABLE (1 << 0)    /* all members are bound to VFIO drivers */
#define VFIO_GROUP_FLAGS_MM_LOCKED (1 << 1) /* a process has its address space in use */
};

/* ---- IOMMU ---- */

#define VFIO_IOMMU_GET_INFO _IO(VFIO_TYPE, VFIO_BASE + 5)
#define VFIO_IOMMU_MAP_DMA _IO(VFIO_TYPE, VFIO_BASE + 6)
#define VFIO_IOMMU_UNMAP_DMA _IO(VFIO_TYPE, VFIO_BASE + 7)

struct vfio_iommu_info {
	__u32 argsz;
	__u32 flags;
#ifndef VFIO_2011_LATE
	__u64 iova_max; /* the last address */
	__u64 iova_min; /* the first address */
	__u64 pgsize_bitmap;
#else
	__u64 iova_start;
	__u64 iova_size;    /* bytes */
	__u64 iova_entries; /* mappings that one may have, 0 for no limit */
	__u64 iova_pgsizes;
#endif
};

struct vfio_dma_map {
	__u32 argsz;
	__u32 flags;
#define VFIO_DMA_MAP_FLAG_READ (1 << 0)  /* by the device */
#define VFIO_DMA_MAP_FLAG_WRITE (1 << 1) /* by the device */
	__u64 vaddr; /* of this process */
	__u64 iova;  /* of the device */
	__u64 size;  /* bytes */
};

struct vfio_dma_unmap {
	__u32 argsz;
	__u32 flags;
	__u64 iova;
	__u64 size;
};

/* ---- device ---- */

#define VFIO_DEVICE_GET_INFO _IO(VFIO_TYPE, VFIO_BASE + 8)
#define VFIO_DEVICE_GET_REGION_INFO _IO(VFIO_TYPE, VFIO_BASE + 9)
#define VFIO_DEVICE_GET_IRQ_INFO _IO(VFIO_TYPE, VFIO_BASE + 10)
#ifndef VFIO_2011_LATE
#define VFIO_DEVICE_SET_IRQ_EVENTFDS _IO(VFIO_TYPE, VFIO_BASE + 11)
#define VFIO_DEVICE_UNMASK_IRQ _IO(VFIO_TYPE, VFIO_BASE + 12)
#define VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFDS _IO(VFIO_TYPE, VFIO_BASE + 13)
#define VFIO_DEVICE_RESET _IO(VFIO_TYPE, VFIO_BASE + 14)
#else
#define VFIO_DEVICE_SET_IRQS _IO(VFIO_TYPE, VFIO_BASE + 11)
#define VFIO_DEVICE_RESET _IO(VFIO_TYPE, VFIO_BASE + 12)
#endif

struct vfio_device_info {
	__u32 argsz;
	__u32 flags;
#define VFIO_DEVICE_FLAGS_RESET (1 << 0) /* VFIO_DEVICE_RESET works */
#define VFIO_DEVICE_FLAGS_PCI (1 << 1)   /* the indexes below */
	__u32 num_regions;
	__u32 num_irqs;
};

/* Of the region `index`; one of size 0 is not there. Read, write and mmap the device's descriptor at `offset`. */
struct vfio_region_info {
	__u32 argsz;
	__u32 flags;
#define VFIO_REGION_INFO_FLAG_MMAP (1 << 0)
#define VFIO_REGION_INFO_FLAG_RO (1 << 1)
	__u32 index;
	__u32 resv;
	__u64 size;
	__u64 offset;
};

#ifndef VFIO_2011_LATE
/* Of the interrupts `index`; a count of 0: they are not there. */
struct vfio_irq_info {
	__u32 argsz;
	__u32 flags;
#define VFIO_IRQ_INFO_FLAG_LEVEL (1 << 0) /* masked when signalled, until VFIO_DEVICE_UNMASK_IRQ */
	__u32 index;
	__u32 count;
};

/* Enables the interrupts `index` with these eventfds, or disables them when count is 0. */
struct vfio_irq_eventfds {
	__u32 argsz;
	__u32 flags;
	__u32 index;
	__u32 count;
	__s32 eventfds[]; /* -1: no signal */
};

struct vfio_unmask_irq {
	__u32 argsz;
	__u32 flags;
	__u32 index;
	__u32 subindex;
};
#else
struct vfio_irq_info {
	__u32 argsz;
	__u32 flags;
#define VFIO_IRQ_INFO_EVENTFD (1 << 0)
#define VFIO_IRQ_INFO_MASKABLE (1 << 1)
#define VFIO_IRQ_INFO_AUTOMASKED (1 << 2)
#define VFIO_IRQ_INFO_NORESIZE (1 << 3)
	__u32 index;
	__s32 count;
};

struct vfio_irq_set {
	__u32 argsz;
	__u32 flags;
#define VFIO_IRQ_SET_DATA_NONE (1 << 0)
#define VFIO_IRQ_SET_DATA_BOOL (1 << 1)
#define VFIO_IRQ_SET_DATA_EVENTFD (1 << 2)
#define VFIO_IRQ_SET_ACTION_MASK (1 << 3)
#define VFIO_IRQ_SET_ACTION_UNMASK (1 << 4)
#define VFIO_IRQ_SET_ACTION_TRIGGER (1 << 5)
	__u32 index;
	__s32 start;
	__s32 count;
	__u8 data[];
};
#define VFIO_IRQ_SET_DATA_TYPE_MASK (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_DATA_EVENTFD)
#define VFIO_IRQ_SET_ACTION_TYPE_MASK (VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_ACTION_TRIGGER)
#endif

/* ---- what a PCI device has ---- */

enum {
	VFIO_PCI_BAR0_REGION_INDEX,
	VFIO_PCI_BAR1_REGION_INDEX,
	VFIO_PCI_BAR2_REGION_INDEX,
	VFIO_PCI_BAR3_REGION_INDEX,
	VFIO_PCI_BAR4_REGION_INDEX,
	VFIO_PCI_BAR5_REGION_INDEX,
	VFIO_PCI_ROM_REGION_INDEX,
	VFIO_PCI_CONFIG_REGION_INDEX,
	VFIO_PCI_NUM_REGIONS
};

enum {
	VFIO_PCI_INTX_IRQ_INDEX,
	VFIO_PCI_MSI_IRQ_INDEX,
	VFIO_PCI_MSIX_IRQ_INDEX,
	VFIO_PCI_NUM_IRQS
};

#endif
