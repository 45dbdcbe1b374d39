/**
 * The later revision of the 2011 API: the IOMMU describes a window, and one call sets interrupts, as today's does. What is not here is
 * as in `vfio-2011.ts`.
 */
import { s32, struct, type TypeOf, u32, u64 } from '../lib/struct.ts';

export const VFIO_DEVICE_SET_IRQS = 0x3b6f;
export const VFIO_DEVICE_RESET = 0x3b70;

export const vfio_iommu_info = struct('vfio_iommu_info', {
  argsz: u32,
  flags: u32,
  iova_start: u64,
  iova_size: u64,
  iova_entries: u64,
  iova_pgsizes: u64,
});
export type vfio_iommu_info = TypeOf<typeof vfio_iommu_info>;

export const VFIO_IRQ_INFO_EVENTFD = 1;
export const VFIO_IRQ_INFO_MASKABLE = 2;
export const VFIO_IRQ_INFO_AUTOMASKED = 4;
export const VFIO_IRQ_INFO_NORESIZE = 8;

export const vfio_irq_info = struct('vfio_irq_info', { argsz: u32, flags: u32, index: u32, count: s32 });
export type vfio_irq_info = TypeOf<typeof vfio_irq_info>;

export const VFIO_IRQ_SET_DATA_NONE = 1;
export const VFIO_IRQ_SET_DATA_BOOL = 2;
export const VFIO_IRQ_SET_DATA_EVENTFD = 4;
export const VFIO_IRQ_SET_ACTION_MASK = 8;
export const VFIO_IRQ_SET_ACTION_UNMASK = 16;
export const VFIO_IRQ_SET_ACTION_TRIGGER = 32;
export const VFIO_IRQ_SET_DATA_TYPE_MASK = 7;
export const VFIO_IRQ_SET_ACTION_TYPE_MASK = 56;

/** Followed by its data. */
export const vfio_irq_set = struct('vfio_irq_set', { argsz: u32, flags: u32, index: u32, start: s32, count: s32 });
export type vfio_irq_set = TypeOf<typeof vfio_irq_set>;
