/**
 * For authors of bus drivers of the 2011 API: the operations that a bus driver answers and the core that it tells of its devices. The one for
 * PCI is `src/kernel/drivers/vfio-2011/vfio-pci-2011.ts`, a small one for another bus `platform-bus.ts` beside it; docs/vfio-2011.md.
 */
export type { FileMapping, IoctlResult } from './kernel/core/file.ts';
export type { Task } from './kernel/core/task.ts';
export type { BusDevice, BusDriverCore, DeviceBus, VfioDeviceOps } from './kernel/vfio-2011/bus-driver.ts';
export { Vfio2011, type Vfio2011Options } from './kernel/vfio-2011/vfio-2011.ts';
export { Errno } from './lib/errno.ts';
