/**
 * A second bus for VFIO of 2011, as unlike PCI as can be: devices that firmware describes by name, with registers and nothing else. No
 * configuration space, no hotplug, no reset; their DMA carries a requester ID that firmware gave them. It exists to keep the core honest, and
 * as an example of a bus driver.
 */
import type { SharedMemory } from '../../../hw/memory/backing.ts';
import { Errno } from '../../../lib/errno.ts';
import { hex } from '../../../lib/pages.ts';
import {
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_GET_IRQ_INFO,
  VFIO_DEVICE_GET_REGION_INFO,
  VFIO_DEVICE_RESET,
  VFIO_REGION_INFO_FLAG_MMAP,
  vfio_device_info,
  vfio_region_info,
} from '../../../uapi/vfio-2011.ts';
import type { FileMapping } from '../../core/file.ts';
import { copyFromUser, copyToUser, type Task } from '../../core/task.ts';
import type { IommuGroup } from '../../iommu/group.ts';
import type { BusDevice, BusDriverCore, DeviceBus, VfioDeviceOps } from '../../vfio-2011/bus-driver.ts';

/** Firmware says at start what there is, so nothing has to be claimed. */
const platformBus: DeviceBus = { name: 'platform', isHotplug: false };

/** Region `index` begins at byte `index << 32` of a device's file. */
const REGION_SIZE = 2 ** 32;
const MAP_SHARED = 1;

export interface PlatformDevice extends BusDevice {
  /** Memory of its registers, one for each region. */
  readonly regions: readonly SharedMemory[];
}

export function platformDevice(
  name: string,
  iommuGroup: IommuGroup | undefined,
  regions: readonly SharedMemory[],
): PlatformDevice {
  return { name, bus: platformBus, iommuGroup, regions };
}

/** The bus driver: all three duties. */
export class VfioPlatform2011 {
  readonly #core: BusDriverCore;

  constructor(core: BusDriverCore) {
    this.#core = core;
  }

  /** Firmware has described a device. */
  add(device: PlatformDevice): void {
    this.#core.groupAddDevice(device, operations);
  }

  bind(device: PlatformDevice): void {
    this.#core.bindDevice(device, device);
  }

  unbind(device: PlatformDevice, done: () => void): 'done' | 'waiting' {
    return this.#core.unbindDevice(device, done);
  }
}

const operations: VfioDeviceOps<PlatformDevice, PlatformDevice> = {
  match: (device, text) => device.name === text,
  open: () => {},
  release: () => {},
  read: (device, _task, into, position) => {
    const bytes = bytesAt(device, position, into.length);
    into.set(bytes);
    return bytes.length;
  },
  write: (device, _task, from, position) => {
    const bytes = bytesAt(device, position, from.length);
    bytes.set(from.subarray(0, bytes.length));
    return bytes.length;
  },
  ioctl: (device, task, request, argument) => {
    switch (request) {
      case VFIO_DEVICE_GET_INFO:
        return getInfo(device, task, argument);
      case VFIO_DEVICE_GET_REGION_INFO:
        return getRegionInfo(device, task, argument);
      case VFIO_DEVICE_GET_IRQ_INFO:
        throw new Errno('EINVAL', `${device.name} has no interrupt`);
      case VFIO_DEVICE_RESET:
        throw new Errno('EINVAL', `${device.name} cannot be reset`);
      default:
        throw new Errno('ENOTTY', `request ${hex(request)} is not one of a platform device's`);
    }
  },
  mmap: (device, _task, length, _prot, flags, offset): FileMapping => {
    const memory = device.regions[Math.floor(offset / REGION_SIZE)];
    const within = offset % REGION_SIZE;
    if ((flags & MAP_SHARED) === 0) throw new Errno('EINVAL', 'registers can be mapped shared only');
    if (memory === undefined || within + length > memory.length) {
      throw new Errno('EINVAL', `${device.name} has no ${length} bytes at ${hex(offset)}`);
    }
    return { memory, offset: within, trapped: false };
  },
};

function bytesAt({ name, regions }: PlatformDevice, position: number, length: number): Uint8Array {
  const memory = regions[Math.floor(position / REGION_SIZE)];
  const at = position % REGION_SIZE;
  if (memory === undefined || at >= memory.length) throw new Errno('EINVAL', `${name} has nothing at ${hex(position)}`);
  return memory.bytes().subarray(at, at + length);
}

function getInfo(device: PlatformDevice, task: Task, argument: bigint): number {
  const info = vfio_device_info.read(copyFromUser(task, argument, vfio_device_info.size));
  if (info.argsz < vfio_device_info.size) throw new Errno('EINVAL', `argsz ${info.argsz} is too small`);
  const { argsz } = info;
  copyToUser(
    task,
    argument,
    vfio_device_info.write({ argsz, flags: 0, num_regions: device.regions.length, num_irqs: 0 }),
  );
  return 0;
}

function getRegionInfo(device: PlatformDevice, task: Task, argument: bigint): number {
  const info = vfio_region_info.read(copyFromUser(task, argument, vfio_region_info.size));
  const memory = device.regions[info.index];
  if (info.argsz < vfio_region_info.size || memory === undefined) {
    throw new Errno('EINVAL', `argsz ${info.argsz} is too small, or there is no region ${info.index}`);
  }
  const answer = { flags: VFIO_REGION_INFO_FLAG_MMAP, size: BigInt(memory.length), offset: BigInt(info.index) << 32n };
  copyToUser(task, argument, vfio_region_info.write({ ...info, ...answer }));
  return 0;
}
