/**
 * A device that VFIO hands out, and the files through which programs hold it.
 *
 * The same device is reached by two ways: GET_DEVICE_FD of its group (any number of files, one open device), or its own node
 * /dev/vfio/devices/vfioN (bound to an iommufd before anything else works). `VfioDevice` is the bus-independent half: open count,
 * and what the ways need of it. What the registers do is in the subclass (pci/).
 */
import { Errno } from '../../lib/errno.ts';
import { File, type FileMapping, type IoctlResult } from '../core/file.ts';
import type { Task } from '../core/task.ts';
import type { AssignableFile, DmaCoherence, VirtualMachine } from '../core/virtual-machine.ts';
import type { Domain } from '../iommu/domain.ts';
import type { IommuGroup } from '../iommu/group.ts';
import type { IommufdContext } from '../iommufd/context.ts';
import type { EmulatedBinding } from './emulated.ts';

/** A device's place in an iommufd: what BIND, ATTACH and DETACH of its own node work on. */
export interface CdevBinding {
  readonly id: number;
  isAttached(): boolean;
  /** Returns the number of the page table, or of the address space for devices that have no table. */
  attach(ptId: number): number;
  replace(ptId: number): number;
  detach(): void;
  /** Absent: PASIDs are EOPNOTSUPP. */
  attachPasid?(pasid: number, ptId: number): number;
  detachPasid?(pasid: number): void;
  /** Detaches all and gives the device back. */
  unbind(): void;
}

export abstract class VfioDevice {
  /** The name that GET_DEVICE_FD takes, e.g. `0000:00:04.0`. */
  abstract readonly name: string;
  readonly iommuGroup: IommuGroup;
  /** N of /dev/vfio/devices/vfioN. Given at registration. */
  index = -1;
  /** Open files, by either way. */
  openCount = 0;
  /** Set while the device is held through its own node: the group's node is then busy. */
  cdevOpened = false;
  /** The iommufd that the device is bound to through its own node: its context, and the device's number there. */
  iommufd: { readonly context: object; readonly id: number } | undefined;
  /** Set while a mediated device is bound to an iommufd, where it is an access. */
  emulated: EmulatedBinding | undefined;
  /** The virtual machine that the device was opened for; a driver may need it. Held from the first open to the last close. */
  vm: VirtualMachine | undefined;

  constructor(iommuGroup: IommuGroup) {
    this.iommuGroup = iommuGroup;
  }

  /**
   * Whether `text` of GET_DEVICE_FD names this device. Throws EINVAL when it does but carries options that are malformed or not
   * wanted (a token for a device that needs none), EACCES for a wrong token.
   */
  abstract match(text: string): boolean;

  /**
   * Devices that may need a token (16 bytes of a UUID). EACCES: it is needed and not this one. EINVAL: it is not needed. Absent:
   * no device of this kind needs one.
   */
  matchToken?(token: Uint8Array | undefined): void;

  /** Devices without an IOMMU of their own (mediated ones) bind as an access: `bindEmulated`. */
  bindIommufd?(context: IommufdContext): CdevBinding;

  /** The 0→1 step of opening: enables the device. On failure nothing is changed. */
  abstract openDevice(): void;
  /** The 1→0 step: interrupts off, mappings of other processes gone, Bus Master off, the function reset where it can be. */
  abstract closeDevice(): void;

  abstract ioctl(task: Task, file: DeviceFile, request: number, argument: bigint): IoctlResult;
  abstract read(task: Task, into: Uint8Array, position: number): number;
  abstract write(task: Task, from: Uint8Array, position: number): number;
  abstract access(task: Task, buffer: Uint8Array, position: number, isWrite: boolean): number;
  abstract mmap(task: Task, length: number, prot: number, flags: number, offset: number): FileMapping;

  /** Mediated devices only: IOVAs that are about to vanish; the driver drops its pins before it returns. */
  dmaUnmap?(iova: bigint, length: bigint): void;

  /** Before the first open: takes the machine that the file was given to, if there is one and it lives. */
  takeVm(vm: VirtualMachine | undefined): void {
    if (vm?.hold()) this.vm = vm;
  }

  /** After the last close. */
  dropVm(): void {
    const { vm } = this;
    this.vm = undefined;
    vm?.drop();
  }

  /** Whether the device may send no-snoop requests now. Drivers that know better say so. */
  get mayIssueNoSnoop(): boolean {
    return true;
  }

  /** How its DMA stands to the processors' caches. Mediated devices, which have no IOMMU of their own, answer for their back end. */
  dmaCoherence(): DmaCoherence {
    const { iommuGroup } = this;
    const { unit } = iommuGroup;
    const domains = unit === undefined ? [] : domainsOf(iommuGroup);
    // Where a guest may choose pages that are not snooped, what the unit could do does not count.
    const isRelayed = domains.some(({ relaysNoSnoop }) => relaysNoSnoop);
    return {
      device: this.name,
      canEnforce: unit?.canEnforceCoherency === true && !isRelayed,
      mayIssueNoSnoop: this.mayIssueNoSnoop,
      pathEnforces: unit !== undefined && !isRelayed && domains.every(enforces),
    };
  }

  /** The device is to go away: asks its user to let go (REQ interrupt). `count`: how often it was asked before. */
  request(_count: number): void {}
}

/** The domains through which a group's DMA goes: of its requester IDs, and of each PASID; of nested ones the host's part. */
function domainsOf(group: IommuGroup): Domain[] {
  if (group.members.size === 0) return [];
  return [group.domain, ...group.pasids().map(([, domain]) => domain)].map((domain) => domain.parent ?? domain);
}

/** Whether all that can be reached is reached coherently. Blocked, nothing is. */
function enforces(domain: Domain): boolean {
  return domain.kind === 'blocked' || domain.enforcesCoherency;
}

/** How a file came by its device; supplied by the group or by the cdev, called once at the file's end. */
export interface DeviceAccess {
  readonly through: 'group' | 'cdev';
  /** False while a cdev file is not bound: everything but BIND is then EINVAL. */
  readonly ready: boolean;
  /** The cdev's own ioctls (bind, attach, detach). Undefined: not one of them. */
  ioctl(task: Task, request: number, argument: bigint): IoctlResult | undefined;
  /** After the file's end and, when it was the last one, after closeDevice. */
  released(): void;
}

/** An open file on a device: `anon_inode:[vfio-device]` through a group, the node's path through a cdev. */
export class DeviceFile extends File implements AssignableFile {
  readonly kind = 'device';
  readonly path: string;
  readonly device: VfioDevice;
  way: DeviceAccess | undefined;
  /** The virtual machine that the file was given to; a cdev hands it to the device when it is bound. */
  vm: VirtualMachine | undefined;

  constructor(device: VfioDevice, path: string) {
    super();
    this.device = device;
    this.path = path;
  }

  get through(): 'group' | 'cdev' {
    return this.way?.through ?? 'cdev';
  }

  override ioctl(task: Task, request: number, argument: bigint): IoctlResult {
    const own = this.way?.ioctl(task, request, argument);
    if (own !== undefined) return own;
    this.#ready();
    return this.device.ioctl(task, this, request, argument);
  }

  override read(task: Task, into: Uint8Array, position: number): number {
    this.#ready();
    return this.device.read(task, into, position);
  }

  override write(task: Task, from: Uint8Array, position: number): number {
    this.#ready();
    return this.device.write(task, from, position);
  }

  override access(task: Task, buffer: Uint8Array, position: number, isWrite: boolean): number {
    this.#ready();
    return this.device.access(task, buffer, position, isWrite);
  }

  override mmap(task: Task, length: number, prot: number, flags: number, offset: number): FileMapping {
    this.#ready();
    return this.device.mmap(task, length, prot, flags, offset);
  }

  setVirtualMachine(vm: VirtualMachine | undefined): void {
    this.vm = vm;
  }

  dmaCoherence(): DmaCoherence[] {
    return [this.device.dmaCoherence()];
  }

  override release(): void {
    const way = this.way;
    this.way = undefined;
    way?.released();
  }

  #ready(): void {
    if (this.way === undefined || !this.way.ready) {
      throw new Errno('EINVAL', `${this.path} is not bound to an iommufd yet (VFIO_DEVICE_BIND_IOMMUFD comes first)`);
    }
  }
}
