/**
 * VFIO_DEVICE_IOEVENTFD: a write to a BAR that the kernel makes whenever a program's eventfd is signalled.
 */
import type { PciFunction } from '../../../hw/pci/function.ts';
import { Errno } from '../../../lib/errno.ts';
import {
  VFIO_DEVICE_IOEVENTFD_SIZE_MASK,
  VFIO_PCI_ROM_REGION_INDEX,
  vfio_device_ioeventfd,
} from '../../../uapi/vfio.ts';
import { copyFromUser, type Task } from '../../core/task.ts';
import { Virqfd } from '../virqfd.ts';
import { msixTable } from './msi-hardware.ts';

/** How many one device may have. */
const MOST = 1000;

interface IoEventfd {
  readonly bar: number;
  readonly offset: number;
  readonly data: bigint;
  readonly size: number;
  readonly virqfd: Virqfd;
}

export class IoEventfds {
  readonly #device: { readonly fn: PciFunction; readonly memoryEnabled: boolean };
  readonly #list: IoEventfd[] = [];

  constructor(device: { readonly fn: PciFunction; readonly memoryEnabled: boolean }) {
    this.#device = device;
  }

  get count(): number {
    return this.#list.length;
  }

  /** The ioctl. EINVAL, EEXIST (the same one is there), ENODEV (none to remove), ENOSPC. */
  set(task: Task, argument: bigint): number {
    const least = vfio_device_ioeventfd.endOf('fd');
    const request = vfio_device_ioeventfd.read(copyFromUser(task, argument, least));
    const { flags: size, data, fd } = request;
    if (request.argsz < least) throw new Errno('EINVAL', `argsz ${request.argsz} is below ${least}`);
    const isOneSize = size !== 0 && (size & (size - 1)) === 0 && (size & ~VFIO_DEVICE_IOEVENTFD_SIZE_MASK) === 0;
    if (!isOneSize) throw new Errno('EINVAL', `flags 0x${size.toString(16)} must be one size of 1, 2, 4 or 8 bytes`);
    if (fd < -1) throw new Errno('EINVAL', `descriptor ${fd} is neither open nor -1`);
    const index = Number(request.offset >> 40n);
    const offset = Number(request.offset & 0xff_ffff_ffffn);
    this.#check(index, offset, size);
    const at = this.#list.findIndex(
      (other) => other.bar === index && other.offset === offset && other.data === data && other.size === size,
    );
    if (fd === -1) {
      if (at < 0) throw new Errno('ENODEV', 'there is no such ioeventfd to remove');
      this.#list.splice(at, 1)[0]!.virqfd.close();
      return 0;
    }
    if (at >= 0) throw new Errno('EEXIST', 'this ioeventfd is there already');
    if (this.#list.length >= MOST) throw new Errno('ENOSPC', `the device has ${MOST} ioeventfds already`);
    const context = task.eventfd(fd);
    const bytes = new Uint8Array(size);
    for (let i = 0; i < size; i++) bytes[i] = Number((data >> BigInt(8 * i)) & 0xffn);
    const virqfd = new Virqfd(context, () => {
      const bar = this.#device.fn.bars[index];
      if (bar === undefined || (bar.kind === 'memory' && !this.#device.memoryEnabled)) return;
      bar.write(offset, bytes.slice());
    });
    this.#list.push({ bar: index, offset, data, size, virqfd });
    return 0;
  }

  #check(index: number, offset: number, size: number): void {
    const bar = index < VFIO_PCI_ROM_REGION_INDEX ? this.#device.fn.bars[index] : undefined;
    if (bar === undefined || bar.address === 0) throw new Errno('EINVAL', `region ${index} is not a BAR of the device`);
    if (offset + size > bar.size)
      throw new Errno('EINVAL', `offset ${offset} is beyond the ${bar.size} bytes of BAR ${index}`);
    const table = msixTable(this.#device.fn);
    if (table?.bar === index && offset + size > table.offset && offset < table.offset + table.length) {
      throw new Errno('EINVAL', 'an ioeventfd may not write the MSI-X table');
    }
    if (size === 8) throw new Errno('EINVAL', 'PCI devices take ioeventfds of at most 4 bytes');
  }

  close(): void {
    for (const { virqfd } of this.#list) virqfd.close();
    this.#list.length = 0;
  }
}
