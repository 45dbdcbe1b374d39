/**
 * The ioctls of a PCI device: what it has, what it can, and the dispatch to the parts.
 */
import type { PciFunction } from '../../../hw/pci/function.ts';
import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import * as uapi from '../../../uapi/vfio.ts';
import type { IoctlResult } from '../../core/file.ts';
import { copyFromUser, copyToUser, type Task } from '../../core/task.ts';
import { checkFeature, type FeatureRequest, featureRequest } from '../device-feature.ts';
import { hotReset, hotResetInfo } from './hot-reset.ts';
import type { VfioPciDevice } from './vfio-pci-core.ts';
import { featureDmaBuf } from './vfio-pci-dmabuf.ts';

const ATOMIC_COMPLETION: readonly (readonly [devcap2: number, flag: number])[] = [
  [0x80, uapi.VFIO_PCI_ATOMIC_COMP32],
  [0x100, uapi.VFIO_PCI_ATOMIC_COMP64],
  [0x200, uapi.VFIO_PCI_ATOMIC_COMP128],
];
const DEVCAP2_ATOMIC_ROUTE = 0x40;
const DEVCTL2_ATOMIC_EGRESS_BLOCK = 0x80;

/** VFIO_DEVICE_*, ENOTTY for what a PCI device has not. */
export function vfioPciIoctl(device: VfioPciDevice, task: Task, request: number, argument: bigint): IoctlResult {
  switch (request) {
    case uapi.VFIO_DEVICE_GET_INFO:
      return getInfo(device, task, argument);
    case uapi.VFIO_DEVICE_GET_REGION_INFO:
      return getRegionInfo(device, task, argument);
    case uapi.VFIO_DEVICE_GET_IRQ_INFO:
      return getIrqInfo(device, task, argument);
    case uapi.VFIO_DEVICE_SET_IRQS:
      return device.irqs.setIrqs(task, argument);
    case uapi.VFIO_DEVICE_RESET:
      if (!device.resetWorks) throw new Errno('EINVAL', `${device.name} has no reset of its own`);
      device.resetFunction();
      return 0;
    case uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO:
      return hotResetInfo(device, task, argument);
    case uapi.VFIO_DEVICE_PCI_HOT_RESET:
      return hotReset(device, task, argument);
    case uapi.VFIO_DEVICE_IOEVENTFD:
      return device.ioeventfds.set(task, argument);
    case uapi.VFIO_DEVICE_FEATURE:
      return feature(device, task, featureRequest(task, argument));
    default:
      throw new Errno('ENOTTY', `a PCI device has no ioctl 0x${request.toString(16)}`);
  }
}

function getInfo(device: VfioPciDevice, task: Task, argument: bigint): number {
  const table = uapi.vfio_device_info;
  const least = table.endOf('num_irqs');
  const info = table.read(copyFromUser(task, argument, least));
  if (info.argsz < least) throw new Errno('EINVAL', `argsz ${info.argsz} is below ${least}`);
  const length = Math.min(info.argsz, table.size);
  info.flags = uapi.VFIO_DEVICE_FLAGS_PCI | (device.resetWorks ? uapi.VFIO_DEVICE_FLAGS_RESET : 0);
  info.num_regions = uapi.VFIO_PCI_NUM_REGIONS;
  info.num_irqs = uapi.VFIO_PCI_NUM_IRQS;
  const atomic = atomicCompletion(device.fn);
  if (atomic !== 0) {
    const capability = uapi.vfio_device_info_cap_pci_atomic_comp;
    info.flags |= uapi.VFIO_DEVICE_FLAGS_CAPS;
    if (info.argsz < table.size + capability.size) info.argsz = table.size + capability.size;
    else {
      const header = { id: uapi.VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP, version: 1, next: 0 };
      copyToUser(task, argument + BigInt(table.size), capability.write({ header, flags: atomic, reserved: 0 }));
      info.cap_offset = table.size;
    }
  }
  copyToUser(task, argument, table.write(info, length));
  return 0;
}

/** Widths of atomic operations that the function completes and that its way to the root carries. */
function atomicCompletion(fn: PciFunction): number {
  const own = devcap2(fn.physfn ?? fn);
  let flags = 0;
  for (const [bit, flag] of ATOMIC_COMPLETION) {
    if ((own & bit) !== 0 && reachesRoot(fn.physfn ?? fn, bit)) flags |= flag;
  }
  return flags;
}

function expressRegister(fn: PciFunction, offset: number): number {
  const at = fn.config.findCapability(reg.PCI_CAP_ID_EXP);
  return at === 0 ? 0 : fn.config.read(at + offset, 4);
}

function devcap2(fn: PciFunction): number {
  return expressRegister(fn, reg.PCI_EXP_DEVCAP2);
}

function reachesRoot(fn: PciFunction, bit: number): boolean {
  const type = fn.portType;
  if (type !== reg.PCI_EXP_TYPE_ENDPOINT && type !== reg.PCI_EXP_TYPE_LEG_END && type !== reg.PCI_EXP_TYPE_RC_END) {
    return false;
  }
  for (let bus = fn.bus; bus.parent !== undefined; bus = bus.parent) {
    const bridge = bus.self;
    if (bridge === undefined) continue;
    switch (bridge.portType) {
      case reg.PCI_EXP_TYPE_UPSTREAM:
        if (expressRegister(bridge, reg.PCI_EXP_DEVCTL2) & DEVCTL2_ATOMIC_EGRESS_BLOCK) return false;
        if (!(devcap2(bridge) & DEVCAP2_ATOMIC_ROUTE)) return false;
        break;
      case reg.PCI_EXP_TYPE_DOWNSTREAM:
        if (!(devcap2(bridge) & DEVCAP2_ATOMIC_ROUTE)) return false;
        break;
      case reg.PCI_EXP_TYPE_ROOT_PORT:
        if (!(devcap2(bridge) & bit)) return false;
        break;
    }
  }
  return true;
}

function getRegionInfo(device: VfioPciDevice, task: Task, argument: bigint): number {
  const table = uapi.vfio_region_info;
  const info = table.read(copyFromUser(task, argument, table.size));
  if (info.argsz < table.size) throw new Errno('EINVAL', `argsz ${info.argsz} is below ${table.size}`);
  const { index } = info;
  const isVga = index === uapi.VFIO_PCI_VGA_REGION_INDEX;
  if (index >= uapi.VFIO_PCI_NUM_REGIONS || isVga) {
    throw new Errno('EINVAL', isVga ? 'the VGA region is not offered' : `there is no region ${index}`);
  }
  const { fn } = device;
  info.offset = BigInt(index) << 40n;
  info.flags = 0;
  info.size = 0n;
  let capability: Uint8Array | undefined;
  if (index === uapi.VFIO_PCI_CONFIG_REGION_INDEX) {
    info.size = BigInt(fn.config.length);
    info.flags = uapi.VFIO_REGION_INFO_FLAG_READ | uapi.VFIO_REGION_INFO_FLAG_WRITE;
  } else if (index === uapi.VFIO_PCI_ROM_REGION_INDEX) {
    if (fn.rom !== undefined && fn.rom.address !== 0) {
      info.size = BigInt(fn.rom.size);
      info.flags = uapi.VFIO_REGION_INFO_FLAG_READ;
    }
  } else {
    const bar = fn.bars[index];
    if (bar !== undefined) {
      info.size = BigInt(bar.size);
      info.flags = uapi.VFIO_REGION_INFO_FLAG_READ | uapi.VFIO_REGION_INFO_FLAG_WRITE;
    }
    if (device.regions.canMap(index)) {
      info.flags |= uapi.VFIO_REGION_INFO_FLAG_MMAP;
      if (fn.msix?.tableBar === index) {
        capability = uapi.vfio_info_cap_header.write({
          id: uapi.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
          version: 1,
          next: 0,
        });
      }
    }
  }
  if (capability !== undefined) {
    info.flags |= uapi.VFIO_REGION_INFO_FLAG_CAPS;
    if (info.argsz < table.size + capability.length) {
      info.argsz = table.size + capability.length;
      info.cap_offset = 0;
    } else {
      copyToUser(task, argument + BigInt(table.size), capability);
      info.cap_offset = table.size;
    }
  }
  copyToUser(task, argument, table.write(info));
  return 0;
}

function getIrqInfo(device: VfioPciDevice, task: Task, argument: bigint): number {
  const table = uapi.vfio_irq_info;
  const info = table.read(copyFromUser(task, argument, table.size));
  const { argsz, index } = info;
  if (argsz < table.size) throw new Errno('EINVAL', `argsz ${argsz} is below ${table.size}`);
  if (index >= uapi.VFIO_PCI_NUM_IRQS) throw new Errno('EINVAL', `there is no interrupt index ${index}`);
  if (index === uapi.VFIO_PCI_ERR_IRQ_INDEX && device.fn.portType === undefined) {
    throw new Errno('EINVAL', 'a conventional PCI function has no error interrupt');
  }
  info.count = device.irqs.count(index);
  info.flags = uapi.VFIO_IRQ_INFO_EVENTFD;
  if (index === uapi.VFIO_PCI_INTX_IRQ_INDEX) {
    info.flags |= uapi.VFIO_IRQ_INFO_MASKABLE | uapi.VFIO_IRQ_INFO_AUTOMASKED;
  } else if (index !== uapi.VFIO_PCI_MSIX_IRQ_INDEX || info.count === 0) info.flags |= uapi.VFIO_IRQ_INFO_NORESIZE;
  copyToUser(task, argument, table.write(info));
  return 0;
}

function feature(device: VfioPciDevice, task: Task, request: FeatureRequest): IoctlResult {
  const set = uapi.VFIO_DEVICE_FEATURE_SET;
  switch (request.index) {
    case uapi.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: {
      if (device.token === undefined)
        throw new Errno('ENOTTY', `${device.name} is not a physical function with SR-IOV`);
      const { size } = uapi.vfio_device_feature_vf_token;
      if (checkFeature(request, set, size)) device.token.set(copyFromUser(task, request.data, size));
      return 0;
    }
    case uapi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY:
      if (checkFeature(request, set, 0)) device.power.beginLow(undefined);
      return 0;
    case uapi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP:
      return lowPowerWithWakeup(device, task, request);
    case uapi.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT:
      if (checkFeature(request, set, 0)) device.power.endLow();
      return 0;
    case uapi.VFIO_DEVICE_FEATURE_DMA_BUF:
      return featureDmaBuf(device, task, request);
    case uapi.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2:
      if (device.migration !== undefined) return device.migration.precopyInfoV2(request);
      throw new Errno('EINVAL', `${device.name} cannot be migrated, so it has no pre-copy`);
    default:
      return migrationFeature(device, task, request);
  }
}

/** What only devices have that can be migrated. */
function migrationFeature(device: VfioPciDevice, task: Task, request: FeatureRequest): IoctlResult {
  const { migration, logging } = device;
  if (migration !== undefined && logging !== undefined) {
    switch (request.index) {
      case uapi.VFIO_DEVICE_FEATURE_MIGRATION:
        return migration.getFlags(task, request);
      case uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
        return migration.deviceState(task, request);
      case uapi.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE:
        return migration.dataSize(task, request);
      case uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
        return logging.startFeature(task, request);
      case uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP:
        return logging.stopFeature(request);
      case uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
        return logging.reportFeature(task, request);
    }
  }
  throw new Errno('ENOTTY', `${device.name} has no feature ${request.index}`);
}

function lowPowerWithWakeup(device: VfioPciDevice, task: Task, request: FeatureRequest): number {
  const table = uapi.vfio_device_low_power_entry_with_wakeup;
  if (!checkFeature(request, uapi.VFIO_DEVICE_FEATURE_SET, table.size)) return 0;
  const entry = table.read(copyFromUser(task, request.data, table.size));
  if (entry.wakeup_eventfd < 0) throw new Errno('EINVAL', `${entry.wakeup_eventfd} is not a descriptor`);
  const wake = task.eventfd(entry.wakeup_eventfd);
  try {
    device.power.beginLow(wake);
  } catch (error) {
    wake.close();
    throw error;
  }
  return 0;
}
