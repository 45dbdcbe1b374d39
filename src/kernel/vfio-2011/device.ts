/** A member of a VFIO group of 2011, and the descriptors by which programs hold it. */
import { File, type FileMapping, type IoctlResult } from '../core/file.ts';
import type { Task } from '../core/task.ts';
import type { BusDevice, VfioDeviceOps } from './bus-driver.ts';
import type { Group2011 } from './group.ts';

export class Device2011 {
  readonly device: BusDevice;
  readonly ops: VfioDeviceOps;
  readonly group: Group2011;
  /** What the driver gave when it bound the device. */
  data: unknown;
  isBound = false;
  /** Open descriptors. */
  files = 0;
  /** It has left its bus while it was bound: it goes when it is unbound. */
  isDeletedLater = false;
  /** The driver waits for programs to let go; what ends that. */
  unbound: (() => void) | undefined;

  constructor(device: BusDevice, ops: VfioDeviceOps, group: Group2011) {
    this.device = device;
    this.ops = ops;
    this.group = group;
  }

  get name(): string {
    return this.device.name;
  }
}

/** The descriptor of GET_DEVICE_FD: everything goes to the bus driver. */
export class DeviceFile2011 extends File {
  readonly kind = 'vfiodevice';
  readonly path = 'anon_inode:[vfio-device]';
  readonly device: Device2011;
  readonly #released: () => void;

  /** The driver has opened the device. */
  constructor(device: Device2011, released: () => void) {
    super();
    this.device = device;
    this.#released = released;
    device.files++;
  }

  override ioctl(task: Task, request: number, argument: bigint): IoctlResult {
    return this.device.ops.ioctl(this.device.data, task, request, argument);
  }

  override read(task: Task, into: Uint8Array, position: number): number {
    return this.device.ops.read(this.device.data, task, into, position);
  }

  override write(task: Task, from: Uint8Array, position: number): number {
    return this.device.ops.write(this.device.data, task, from, position);
  }

  override access(task: Task, buffer: Uint8Array, position: number, isWrite: boolean): number {
    const { ops, data } = this.device;
    if (ops.access !== undefined) return ops.access(data, task, buffer, position, isWrite);
    return isWrite ? ops.write(data, task, buffer, position) : ops.read(data, task, buffer, position);
  }

  override mmap(task: Task, length: number, prot: number, flags: number, offset: number): FileMapping {
    return this.device.ops.mmap(this.device.data, task, length, prot, flags, offset);
  }

  override release(): void {
    // Quiet first, then out of the address space.
    this.device.ops.release(this.device.data);
    this.device.files--;
    this.#released();
  }
}
