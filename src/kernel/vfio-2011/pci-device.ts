/**
 * What the bus driver for PCI answers: the ioctls of 2011 on a device of today, whose registers, interrupts and virtual configuration
 * space are those of kernel/vfio/pci.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import * as uapi from '../../uapi/vfio-2011.ts';
import * as late from '../../uapi/vfio-2011-late.ts';
import { copyFromUser, copyToUser, readU32, type Task } from '../core/task.ts';
import type { VfioPciDevice } from '../vfio/pci/vfio-pci-core.ts';
import { needArgsz } from './iommu-object.ts';
import { setIrqEventfds, setUnmaskIrqEventfds, unmaskIrq } from './pci-irqs.ts';

type Revision = 'seed' | 'late';

/** VFIO_DEVICE_*. ENOTTY: not one of this revision's. */
export function pciIoctl2011(
  device: VfioPciDevice,
  revision: Revision,
  task: Task,
  request: number,
  argument: bigint,
): number {
  switch (request) {
    case uapi.VFIO_DEVICE_GET_INFO:
      return getInfo(device, task, argument);
    case uapi.VFIO_DEVICE_GET_REGION_INFO:
      return getRegionInfo(device, task, argument);
    case uapi.VFIO_DEVICE_GET_IRQ_INFO:
      return getIrqInfo(device, revision, task, argument);
  }
  if (revision === 'seed') {
    switch (request) {
      case uapi.VFIO_DEVICE_SET_IRQ_EVENTFDS:
        return setIrqEventfds(device.irqs, task, argument);
      case uapi.VFIO_DEVICE_UNMASK_IRQ:
        return unmaskIrq(device.irqs, task, argument);
      case uapi.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFDS:
        return setUnmaskIrqEventfds(device.irqs, task, argument);
      case uapi.VFIO_DEVICE_RESET:
        return reset(device);
    }
  } else {
    switch (request) {
      case late.VFIO_DEVICE_SET_IRQS:
        if (readU32(task, argument + BigInt(late.vfio_irq_set.offsets.index)) >= uapi.VFIO_PCI_NUM_IRQS) {
          throw new Errno('EINVAL', 'this revision has INTx, MSI and MSI-X only');
        }
        return device.irqs.setIrqs(task, argument);
      case late.VFIO_DEVICE_RESET:
        return reset(device);
    }
  }
  throw new Errno('ENOTTY', `request ${hex(request)} is not one of a PCI device's in revision ${revision}`);
}

function getInfo(device: VfioPciDevice, task: Task, argument: bigint): number {
  const table = uapi.vfio_device_info;
  const info = table.read(copyFromUser(task, argument, table.size));
  needArgsz(info.argsz, table.size);
  info.flags = uapi.VFIO_DEVICE_FLAGS_PCI | (device.resetWorks ? uapi.VFIO_DEVICE_FLAGS_RESET : 0);
  info.num_regions = uapi.VFIO_PCI_NUM_REGIONS;
  info.num_irqs = uapi.VFIO_PCI_NUM_IRQS;
  copyToUser(task, argument, table.write(info));
  return 0;
}

function getRegionInfo(device: VfioPciDevice, task: Task, argument: bigint): number {
  const table = uapi.vfio_region_info;
  const info = table.read(copyFromUser(task, argument, table.size));
  needArgsz(info.argsz, table.size);
  const { index } = info;
  if (index >= uapi.VFIO_PCI_NUM_REGIONS) throw new Errno('EINVAL', `there is no region ${index}`);
  const { fn } = device;
  info.flags = 0;
  info.size = 0n;
  info.offset = BigInt(index) << 40n;
  if (index === uapi.VFIO_PCI_CONFIG_REGION_INDEX) info.size = BigInt(fn.config.length);
  else if (index === uapi.VFIO_PCI_ROM_REGION_INDEX) {
    if (fn.rom !== undefined && fn.rom.address !== 0) {
      info.size = BigInt(fn.rom.size);
      info.flags = uapi.VFIO_REGION_INFO_FLAG_RO;
    }
  } else {
    const bar = fn.bars[index];
    if (bar !== undefined && bar.address !== 0) {
      info.size = BigInt(bar.size);
      if (device.regions.canMap(index)) info.flags = uapi.VFIO_REGION_INFO_FLAG_MMAP;
    }
  }
  copyToUser(task, argument, table.write(info));
  return 0;
}

function getIrqInfo(device: VfioPciDevice, revision: Revision, task: Task, argument: bigint): number {
  const table = uapi.vfio_irq_info;
  const info = table.read(copyFromUser(task, argument, table.size));
  needArgsz(info.argsz, table.size);
  const { index } = info;
  if (index >= uapi.VFIO_PCI_NUM_IRQS) throw new Errno('EINVAL', `there is no interrupt index ${index}`);
  info.count = device.irqs.count(index);
  const isPin = index === uapi.VFIO_PCI_INTX_IRQ_INDEX;
  if (revision === 'seed') info.flags = isPin && info.count > 0 ? uapi.VFIO_IRQ_INFO_FLAG_LEVEL : 0;
  else {
    info.flags = late.VFIO_IRQ_INFO_EVENTFD;
    info.flags |= isPin ? late.VFIO_IRQ_INFO_MASKABLE | late.VFIO_IRQ_INFO_AUTOMASKED : late.VFIO_IRQ_INFO_NORESIZE;
  }
  copyToUser(task, argument, table.write(info));
  return 0;
}

function reset(device: VfioPciDevice): number {
  if (!device.resetWorks) throw new Errno('EINVAL', `${device.name} has no reset of its own`);
  device.resetFunction();
  return 0;
}
