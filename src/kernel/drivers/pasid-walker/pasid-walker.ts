/**
 * The driver `pasid-walker`: gives each of its devices a node through which programs let the device use their addresses.
 *
 * A program binds its address space once for each descriptor; the device works for one descriptor at a time. Closing the descriptor
 * stops the device and undoes the bond; that the program ends does the rest (kernel/iommu/sva.ts).
 */
import * as device from '../../../hw/devices/pasid-walker/registers.ts';
import type { PciFunction } from '../../../hw/pci/function.ts';
import { get32, put32 } from '../../../hw/pci/registers.ts';
import { Errno } from '../../../lib/errno.ts';
import { IdTable } from '../../../lib/id-table.ts';
import * as uapi from '../../../uapi/pasid-walker.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import { File } from '../../core/file.ts';
import type { Mm } from '../../core/mm.ts';
import { copyFromUser, copyToUser, readU32, type Task } from '../../core/task.ts';
import type { IommuGroup } from '../../iommu/group.ts';
import type { Sva, SvaBond } from '../../iommu/sva.ts';
import type { PciDriver } from '../pci-bus.ts';
import { deviceId } from '../pci-ids.ts';

export interface WalkerEnvironment {
  readonly sva: Sva;
  groupOf(fn: PciFunction): IommuGroup | undefined;
  /** A device has its node from now on; the result takes it away. */
  publish(path: string, open: () => File): () => void;
}

/** One device with its driver. */
class WalkerDevice {
  readonly fn: PciFunction;
  readonly path: string;
  readonly group: IommuGroup | undefined;
  readonly files = new Set<WalkerFile>();
  /** Whose the walk is that the device does, or did last. */
  user: WalkerFile | undefined;
  isGone = false;

  constructor(fn: PciFunction, path: string, group: IommuGroup | undefined) {
    this.fn = fn;
    this.path = path;
    this.group = group;
  }

  register(offset: number): number {
    const bytes = new Uint8Array(4);
    this.fn.bars[0]!.read(offset, bytes);
    return get32(bytes, 0);
  }

  register64(offset: number): bigint {
    return (BigInt(this.register(offset + 4)) << 32n) | BigInt(this.register(offset));
  }

  set(offset: number, value: number): void {
    const bytes = new Uint8Array(4);
    put32(bytes, 0, value);
    this.fn.bars[0]!.write(offset, bytes);
  }

  get isBusy(): boolean {
    return (this.register(device.STATUS) & device.STATUS_BUSY) !== 0;
  }

  /** The device is done with a descriptor's address space. */
  stop(file: WalkerFile): void {
    if (this.user !== file || this.isGone) return;
    this.set(device.COMMAND, device.COMMAND_STOP);
    this.set(device.PASID, 0);
    this.user = undefined;
  }
}

class WalkerFile extends File {
  readonly kind = 'pasid-walker';
  readonly path: string;
  readonly #device: WalkerDevice;
  readonly #sva: Sva;
  #bond: SvaBond | undefined;
  #mm: Mm | undefined;

  constructor(walker: WalkerDevice, sva: Sva) {
    super();
    this.path = walker.path;
    this.#device = walker;
    this.#sva = sva;
    walker.files.add(this);
  }

  override ioctl(task: Task, request: number, argument: bigint): number {
    if (this.#device.isGone) throw new Errno('ENODEV', `the driver has let go of ${this.#device.fn.name}`);
    switch (request) {
      case uapi.PASID_WALKER_BIND:
        return this.#bind(task, argument);
      case uapi.PASID_WALKER_UNBIND:
        this.#require();
        this.#unbind();
        return 0;
      case uapi.PASID_WALKER_WALK:
        return this.#walk(task, argument);
      case uapi.PASID_WALKER_STATUS:
        return this.#status(task, argument);
      default:
        throw new Errno('ENOTTY', `${this.path} knows no request 0x${request.toString(16)}`);
    }
  }

  override release(): void {
    this.#unbind();
    this.#device.files.delete(this);
  }

  /** The driver lets go of the device. */
  detach(): void {
    this.#unbind();
  }

  #bind(task: Task, argument: bigint): number {
    checkSize(task, argument, uapi.pasid_walker_bind.size);
    if (this.#bond !== undefined && this.#mm !== task.mm) {
      throw new Errno('EBUSY', 'another process bound its addresses by this descriptor');
    }
    const { fn, group } = this.#device;
    this.#bond ??= this.#sva.bind(fn, group, task.mm);
    this.#mm = task.mm;
    const { pasid } = this.#bond;
    const argsz = uapi.pasid_walker_bind.size;
    copyToUser(task, argument, uapi.pasid_walker_bind.write({ argsz, pasid }));
    return 0;
  }

  #unbind(): void {
    this.#device.stop(this);
    this.#bond?.unbind();
    this.#bond = undefined;
    this.#mm = undefined;
  }

  #walk(task: Task, argument: bigint): number {
    checkSize(task, argument, uapi.pasid_walker_walk.size);
    const wanted = uapi.pasid_walker_walk.read(copyFromUser(task, argument, uapi.pasid_walker_walk.size));
    if ((wanted.flags & ~uapi.PASID_WALKER_ADD) !== 0 || wanted.reserved !== 0) {
      throw new Errno('EINVAL', `flags 0x${wanted.flags.toString(16)} are not known`);
    }
    const bond = this.#require();
    const walker = this.#device;
    if (walker.isBusy) throw new Errno('EBUSY', `${walker.fn.name} follows another list`);
    walker.user = this;
    walker.set(device.PASID, device.PASID_VALID | bond.pasid);
    walker.set(device.HEAD, Number(wanted.head & 0xffff_ffffn));
    walker.set(device.HEAD + 4, Number(wanted.head >> 32n));
    walker.set(device.LIMIT, wanted.limit);
    const adds = (wanted.flags & uapi.PASID_WALKER_ADD) !== 0;
    walker.set(device.COMMAND, device.COMMAND_WALK | (adds ? device.COMMAND_ADD : 0));
    return 0;
  }

  #status(task: Task, argument: bigint): number {
    const argsz = uapi.pasid_walker_status.size;
    checkSize(task, argument, argsz);
    const walker = this.#device;
    const isMine = walker.user === this;
    const status = isMine ? walker.register(device.STATUS) : 0;
    const state =
      (status & device.STATUS_BUSY) !== 0
        ? uapi.PASID_WALKER_BUSY
        : (status & device.STATUS_ERROR) !== 0
          ? uapi.PASID_WALKER_ERROR
          : (status & device.STATUS_DONE) !== 0
            ? uapi.PASID_WALKER_DONE
            : uapi.PASID_WALKER_IDLE;
    const answer = {
      argsz,
      state,
      visited: isMine ? walker.register(device.VISITED) : 0,
      code: status >>> device.STATUS_CODE_SHIFT,
      sum: isMine ? walker.register64(device.SUM) : 0n,
      fault_address: isMine ? walker.register64(device.FAULT_ADDRESS) : 0n,
      page_requests: isMine ? walker.register(device.PAGE_REQUESTS) : 0,
      reserved: 0,
    };
    copyToUser(task, argument, uapi.pasid_walker_status.write(answer));
    return 0;
  }

  #require(): SvaBond {
    if (this.#bond === undefined) throw new Errno('EINVAL', 'no address space is bound by this descriptor');
    return this.#bond;
  }
}

/** EINVAL: the caller's structure is too short. EFAULT. */
function checkSize(task: Task, argument: bigint, size: number): void {
  const argsz = readU32(task, argument);
  if (argsz < size) throw new Errno('EINVAL', `argsz is ${argsz}, the structure has ${size} bytes`);
}

export class PasidWalkerDriver implements PciDriver {
  readonly name = 'pasid-walker';
  readonly ids = [deviceId(0x1234, 0x11ec)];
  readonly #environment: WalkerEnvironment;
  readonly #numbers = new IdTable<WalkerDevice>(0);
  readonly #devices = new Map<PciFunction, { number: number; walker: WalkerDevice; withdraw: () => void }>();

  constructor(environment: WalkerEnvironment) {
    this.#environment = environment;
  }

  probe(fn: PciFunction): void {
    const number = this.#numbers.reserve();
    const path = `/dev/pasid-walker${number}`;
    const walker = new WalkerDevice(fn, path, this.#environment.groupOf(fn));
    this.#numbers.publish(number, walker);
    const command = fn.config.read(reg.PCI_COMMAND, 2);
    fn.config.write(reg.PCI_COMMAND, 2, command | reg.PCI_COMMAND_MEMORY | reg.PCI_COMMAND_MASTER);
    const withdraw = this.#environment.publish(path, () => new WalkerFile(walker, this.#environment.sva));
    this.#devices.set(fn, { number, walker, withdraw });
  }

  /** Descriptors that are open stay so and answer ENODEV. */
  remove(fn: PciFunction, done: () => void): void {
    const { number, walker, withdraw } = this.#devices.get(fn)!;
    this.#devices.delete(fn);
    withdraw();
    for (const file of walker.files) file.detach();
    walker.isGone = true;
    fn.config.write(reg.PCI_COMMAND, 2, fn.config.read(reg.PCI_COMMAND, 2) & ~reg.PCI_COMMAND_MASTER);
    this.#numbers.remove(number);
    done();
  }
}
