/**
 * What a bus driver of 2011 is to VFIO: eight operations, and four calls by which it tells the core of its devices.
 *
 * Its three duties: it registers every device of its bus that exists or appears (`groupAddDevice`, `groupRemoveDevice`); it answers the
 * operations; and it says which devices it holds (`bindDevice` in its probe, `unbindDevice` in its remove). Nothing here knows PCI.
 */
import type { FileMapping, IoctlResult } from '../core/file.ts';
import type { Task } from '../core/task.ts';
import type { IommuGroup } from '../iommu/group.ts';

/** A kind of bus. Its name is the first half of a group's node, `pci:240`. */
export interface DeviceBus {
  readonly name: string;
  /** Devices may appear while programs run: then a bus driver must be able to claim them. */
  readonly isHotplug: boolean;
}

/** A device, as far as the core needs to know it. The object is its identity. */
export interface BusDevice {
  readonly name: string;
  readonly bus: DeviceBus;
  /** Undefined: no IOMMU translates it, and it cannot be registered. */
  readonly iommuGroup: IommuGroup | undefined;
}

/**
 * The operations. `D` is the bus's device, `T` what the driver gave with `bindDevice`. A refusal is a thrown Errno, which the program
 * gets as it is. None is called with anything of the core half done: they may call it back.
 */
export interface VfioDeviceOps<D extends BusDevice = BusDevice, T = unknown> {
  /** Whether `text` of GET_DEVICE_FD means this device. */
  match(device: D, text: string): boolean;
  /**
   * A device has appeared in a group that a program uses: binds it to this driver, whatever else would take it. When it refuses, the group
   * cannot be used any more once the program has let go. Only buses without hotplug may do without it.
   */
  claim?(device: D): void;
  /** A descriptor is to be given out; called for each one. */
  open(data: T): void;
  /** The last copy of a descriptor is gone; called for each `open` that was not refused. */
  release(data: T): void;
  /** Reads at `position` of the device's file as much as `into` has room for. Returns the bytes read. */
  read(data: T, task: Task, into: Uint8Array, position: number): number;
  write(data: T, task: Task, from: Uint8Array, position: number): number;
  ioctl(data: T, task: Task, request: number, argument: bigint): IoctlResult;
  mmap(data: T, task: Task, length: number, prot: number, flags: number, offset: number): FileMapping;
  /** One access of the processor to a mapping that `mmap` made trapped. Absent: as `read` and `write`. */
  access?(data: T, task: Task, buffer: Uint8Array, position: number, isWrite: boolean): number;
}

/** What the core is to a bus driver. */
export interface BusDriverCore {
  /**
   * A device exists. ENODEV: it is in no IOMMU group. EINVAL: an operation is missing. EEXIST: it is registered already. When its group
   * is in use the core calls `claim` before it returns.
   */
  groupAddDevice<D extends BusDevice, T>(device: D, ops: VfioDeviceOps<D, T>): void;
  /** A device is going away. While it is bound it stays until it is unbound. */
  groupRemoveDevice(device: BusDevice): void;
  /** The driver holds the device; `data` comes back with each operation. EINVAL: it is not registered. EBUSY: bound already. */
  bindDevice(device: BusDevice, data: NonNullable<unknown>): void;
  /**
   * The driver is to let go. `waiting`: programs use the device's group or one that is merged with it; `done` is called once, in the same
   * turn as the last close. EINVAL: it is not bound.
   */
  unbindDevice(device: BusDevice, done: () => void): 'done' | 'waiting';
  /** Ends a wait of `unbindDevice`: the device stays bound, `done` is not called. False: nobody waits. */
  cancelUnbind(device: BusDevice): boolean;
}
