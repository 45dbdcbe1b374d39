/**
 * The VFIO API of December 2011, as the first documentation of VFIO uses it: groups, an IOMMU descriptor for each group (shared by merged
 * groups), device descriptors. Names are those of the header of that time; `vfio-2011-late.ts` has what a later revision changed.
 *
 * The same facts for C are in include/vfio-2011.h; a test compares the two.
 */
import { struct, type TypeOf, u32, u64 } from '../lib/struct.ts';

const TYPE = 0x3b00;
const BASE = 100;
/** `_IO(';', 100 + n)`: the number says nothing of the argument's size. */
const io = (n: number): number => TYPE + BASE + n;
/** `_IOW(';', 100 + n, type of this size)` */
const iow = (n: number, size: number): number => 0x4000_0000 + size * 0x1_0000 + io(n);

// ---- a group's descriptor ----

export const VFIO_GROUP_GET_INFO = io(0);
/** Argument: pointer to the s32 descriptor of the group to be merged in. */
export const VFIO_GROUP_MERGE = iow(1, 4);
/** No argument: removes this group from its merged set. */
export const VFIO_GROUP_UNMERGE = io(2);
/** The form before it: pointer to the s32 descriptor of the group to be removed from this one's set. */
export const VFIO_GROUP_UNMERGE_FD = iow(2, 4);
/** Returns a descriptor. */
export const VFIO_GROUP_GET_IOMMU_FD = io(3);
/** Argument: the device's name, NUL-terminated. Returns a descriptor. */
export const VFIO_GROUP_GET_DEVICE_FD = iow(4, 1);

export const VFIO_GROUP_FLAGS_VIABLE = 1;
export const VFIO_GROUP_FLAGS_MM_LOCKED = 2;

export const vfio_group_info = struct('vfio_group_info', { argsz: u32, flags: u32 });
export type vfio_group_info = TypeOf<typeof vfio_group_info>;

// ---- the IOMMU's descriptor ----

export const VFIO_IOMMU_GET_INFO = io(5);
export const VFIO_IOMMU_MAP_DMA = io(6);
export const VFIO_IOMMU_UNMAP_DMA = io(7);

export const vfio_iommu_info = struct('vfio_iommu_info', {
  argsz: u32,
  flags: u32,
  iova_max: u64,
  iova_min: u64,
  pgsize_bitmap: u64,
});
export type vfio_iommu_info = TypeOf<typeof vfio_iommu_info>;

export const VFIO_DMA_MAP_FLAG_READ = 1;
export const VFIO_DMA_MAP_FLAG_WRITE = 2;

export const vfio_dma_map = struct('vfio_dma_map', { argsz: u32, flags: u32, vaddr: u64, iova: u64, size: u64 });
export type vfio_dma_map = TypeOf<typeof vfio_dma_map>;

export const vfio_dma_unmap = struct('vfio_dma_unmap', { argsz: u32, flags: u32, iova: u64, size: u64 });
export type vfio_dma_unmap = TypeOf<typeof vfio_dma_unmap>;

// ---- a device's descriptor ----

export const VFIO_DEVICE_GET_INFO = io(8);
export const VFIO_DEVICE_GET_REGION_INFO = io(9);
export const VFIO_DEVICE_GET_IRQ_INFO = io(10);
export const VFIO_DEVICE_SET_IRQ_EVENTFDS = io(11);
export const VFIO_DEVICE_UNMASK_IRQ = io(12);
export const VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFDS = io(13);
export const VFIO_DEVICE_RESET = io(14);

export const VFIO_DEVICE_FLAGS_RESET = 1;
export const VFIO_DEVICE_FLAGS_PCI = 2;

export const vfio_device_info = struct('vfio_device_info', { argsz: u32, flags: u32, num_regions: u32, num_irqs: u32 });
export type vfio_device_info = TypeOf<typeof vfio_device_info>;

export const VFIO_REGION_INFO_FLAG_MMAP = 1;
export const VFIO_REGION_INFO_FLAG_RO = 2;

export const vfio_region_info = struct('vfio_region_info', {
  argsz: u32,
  flags: u32,
  index: u32,
  resv: u32,
  size: u64,
  offset: u64,
});
export type vfio_region_info = TypeOf<typeof vfio_region_info>;

/** Level (1) or edge (0). */
export const VFIO_IRQ_INFO_FLAG_LEVEL = 1;

export const vfio_irq_info = struct('vfio_irq_info', { argsz: u32, flags: u32, index: u32, count: u32 });
export type vfio_irq_info = TypeOf<typeof vfio_irq_info>;

/** Followed by `count` descriptors of eventfds (s32); -1: no signal. */
export const vfio_irq_eventfds = struct('vfio_irq_eventfds', { argsz: u32, flags: u32, index: u32, count: u32 });
export type vfio_irq_eventfds = TypeOf<typeof vfio_irq_eventfds>;

export const vfio_unmask_irq = struct('vfio_unmask_irq', { argsz: u32, flags: u32, index: u32, subindex: u32 });
export type vfio_unmask_irq = TypeOf<typeof vfio_unmask_irq>;

// ---- indexes of a PCI device ----

export const VFIO_PCI_BAR0_REGION_INDEX = 0;
export const VFIO_PCI_BAR1_REGION_INDEX = 1;
export const VFIO_PCI_BAR2_REGION_INDEX = 2;
export const VFIO_PCI_BAR3_REGION_INDEX = 3;
export const VFIO_PCI_BAR4_REGION_INDEX = 4;
export const VFIO_PCI_BAR5_REGION_INDEX = 5;
export const VFIO_PCI_ROM_REGION_INDEX = 6;
export const VFIO_PCI_CONFIG_REGION_INDEX = 7;
export const VFIO_PCI_NUM_REGIONS = 8;

export const VFIO_PCI_INTX_IRQ_INDEX = 0;
export const VFIO_PCI_MSI_IRQ_INDEX = 1;
export const VFIO_PCI_MSIX_IRQ_INDEX = 2;
export const VFIO_PCI_NUM_IRQS = 3;
