/**
 * A VFIO group: an IOMMU group of which at least one device is bound to a VFIO driver, open as /dev/vfio/<id>.
 *
 * One file at a time. It is the program's proof that it may use all devices of the group; a container or an iommufd gives them an
 * address space, then each device can be opened. Devices that were opened with a container keep the group's file: what the program
 * closed stays in use until the last of them goes.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import { Unwind } from '../../lib/unwind.ts';
import {
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_GROUP_FLAGS_CONTAINER_SET,
  VFIO_GROUP_FLAGS_VIABLE,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_GET_STATUS,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_GROUP_UNSET_CONTAINER,
  vfio_group_status,
} from '../../uapi/vfio.ts';
import { File, type IoctlResult, type NewDescriptor } from '../core/file.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import type { AssignableFile, DmaCoherence, VirtualMachine } from '../core/virtual-machine.ts';
import type { IommuGroup } from '../iommu/group.ts';
import type { IommufdContext } from '../iommufd/context.ts';
import { bindDevice } from '../iommufd/device.ts';
import { IommufdFile } from '../iommufd/main.ts';
import { compatIoasId, createCompatIoas, setNoIommu } from '../iommufd/vfio-compat.ts';
import { Container, type GroupKind } from './container.ts';
import { type CdevBinding, type DeviceAccess, DeviceFile, type VfioDevice } from './vfio-device.ts';

/** The longest text that GET_DEVICE_FD takes, with its NUL. */
const NAME_MAX = 4096;

/** What a group needs of the core that made it. */
export interface GroupHost {
  /** Counts a file of the device; false: it is being removed. */
  hold(device: VfioDevice): boolean;
  release(device: VfioDevice): void;
}

export class GroupFile extends File implements AssignableFile {
  readonly kind = 'group';
  readonly path: string;
  readonly group: VfioGroup;

  constructor(group: VfioGroup) {
    super();
    this.group = group;
    this.path = `/dev/vfio/${group.name}`;
  }

  override ioctl(task: Task, request: number, argument: bigint): IoctlResult {
    switch (request) {
      case VFIO_GROUP_GET_STATUS:
        return this.group.getStatus(task, argument);
      case VFIO_GROUP_SET_CONTAINER:
        return this.group.setContainer(task, argument);
      case VFIO_GROUP_UNSET_CONTAINER:
        return this.group.unsetContainer();
      case VFIO_GROUP_GET_DEVICE_FD:
        return this.group.getDeviceFd(task, argument);
      default:
        throw new Errno('ENOTTY', `request ${hex(request)} is not one of a group's`);
    }
  }

  setVirtualMachine(vm: VirtualMachine | undefined): void {
    this.group.vm = vm;
  }

  dmaCoherence(): DmaCoherence[] {
    return this.group.devices.map((device) => device.dmaCoherence());
  }

  override release(): void {
    this.group.fileClosed();
  }
}

export class VfioGroup {
  readonly id: number;
  /** The node below /dev/vfio: the id, or `noiommu-<id>`. */
  readonly name: string;
  /** Of the character device; lowest free one. */
  readonly minor: number;
  readonly groupKind: GroupKind;
  /** Undefined once the last device has gone. */
  iommuGroup: IommuGroup | undefined;
  /** Devices that can be opened, newest first. */
  readonly devices: VfioDevice[] = [];
  /** Devices of a VFIO driver, with those that are on their way out. */
  readonly members = new Set<VfioDevice>();
  container: Container | undefined;
  /** Used in place of a container. Devices keep the one they were opened with. */
  iommufd: IommufdContext | undefined;
  openedBy: GroupFile | undefined;
  /** The virtual machine that the group's file was given to. */
  vm: VirtualMachine | undefined;
  /** Devices that are open with the container. */
  #containerUsers = 0;
  #fileClosed = false;
  /** What ends the use of the address space, for each open device. */
  readonly #uses = new Map<VfioDevice, () => void>();
  readonly #host: GroupHost;

  constructor(iommuGroup: IommuGroup, groupKind: GroupKind, minor: number, host: GroupHost) {
    this.id = iommuGroup.id;
    this.name = groupKind === 'noiommu' ? `noiommu-${iommuGroup.id}` : `${iommuGroup.id}`;
    this.iommuGroup = iommuGroup;
    this.groupKind = groupKind;
    this.minor = minor;
    this.#host = host;
  }

  /** A cdev of the group cannot be bound while its file is open. */
  get hasGroupOpen(): boolean {
    return this.openedBy !== undefined;
  }

  /** The IOMMU group while it exists. ENODEV. */
  get present(): IommuGroup {
    if (this.iommuGroup === undefined) throw new Errno('ENODEV', `the last device of group ${this.name} was removed`);
    return this.iommuGroup;
  }

  /** A container or an iommufd is set: then the group stays viable. Else nobody may hold its DMA. */
  get isViable(): boolean {
    return this.#hasIommu || this.iommuGroup?.ownerCount === 0;
  }

  /** ENODEV: no device left. EPERM: no IOMMU and no CAP_SYS_RAWIO. EBUSY: open already, or a device is held by its own node. */
  open(task: Task): GroupFile {
    if (this.members.size === 0) throw new Errno('ENODEV', `group ${this.name} has no device any more`);
    if (this.groupKind === 'noiommu' && !task.capable('CAP_SYS_RAWIO')) {
      throw new Errno('EPERM', `group ${this.name} has no IOMMU and needs CAP_SYS_RAWIO`);
    }
    for (const device of this.members) {
      if (device.cdevOpened) {
        throw new Errno(
          'EBUSY',
          `device ${device.name} of group ${this.name} is in use through /dev/vfio/devices/vfio${device.index}`,
        );
      }
    }
    if (this.openedBy !== undefined) {
      const users = this.#containerUsers;
      const how = this.#fileClosed
        ? `kept by ${users} open device${users === 1 ? '' : 's'} of it`
        : 'open already, and opens only once';
      throw new Errno('EBUSY', `group ${this.name} is ${how}`);
    }
    this.openedBy = new GroupFile(this);
    this.#fileClosed = false;
    return this.openedBy;
  }

  getStatus(task: Task, argument: bigint): number {
    const status = vfio_group_status.read(copyFromUser(task, argument, vfio_group_status.size));
    if (status.argsz < vfio_group_status.size) {
      throw new Errno(
        'EINVAL',
        `argsz ${status.argsz} is less than the ${vfio_group_status.size} bytes of vfio_group_status`,
      );
    }
    void this.present;
    status.flags = 0;
    if (this.#hasIommu) status.flags |= VFIO_GROUP_FLAGS_CONTAINER_SET;
    if (this.isViable) status.flags |= VFIO_GROUP_FLAGS_VIABLE;
    copyToUser(task, argument, vfio_group_status.write(status));
    return 0;
  }

  setContainer(task: Task, argument: bigint): number {
    const descriptor = new DataView(copyFromUser(task, argument, 4).buffer).getInt32(0, true);
    const file = task.file(descriptor);
    if (this.#hasIommu)
      throw new Errno('EINVAL', `group ${this.name} has its ${this.container ? 'container' : 'iommufd'} already`);
    const iommuGroup = this.present;
    if (file instanceof Container) {
      file.attach(task, this, iommuGroup);
      this.container = file;
      return 0;
    }
    if (!(file instanceof IommufdFile)) {
      throw new Errno('EBADFD', `descriptor ${descriptor} (${file.path}) is neither a container nor an iommufd`);
    }
    if (this.groupKind === 'noiommu') setNoIommu(file);
    else createCompatIoas(file);
    file.context.hold();
    this.iommufd = file.context;
    return 0;
  }

  unsetContainer(): number {
    if (!this.#hasIommu) throw new Errno('EINVAL', `group ${this.name} has no container`);
    if (this.container !== undefined && this.#containerUsers > 0) {
      throw new Errno('EBUSY', `${this.#containerUsers} devices of group ${this.name} are open: ${this.#openNames()}`);
    }
    this.#detach();
    return 0;
  }

  getDeviceFd(task: Task, argument: bigint): NewDescriptor {
    const text = readName(task, argument);
    const device = this.devices.find((candidate) => candidate.match(text) && this.#host.hold(candidate));
    if (device === undefined) {
      const names = this.devices.map((candidate) => candidate.name).join(', ');
      throw new Errno('ENODEV', `group ${this.name} has no device "${text}" (it has: ${names})`);
    }
    using undo = new Unwind();
    undo.add(() => this.#host.release(device));
    this.#openDevice(task, device);
    undo.keep();
    const file = new DeviceFile(device, 'anon_inode:[vfio-device]');
    file.way = this.#wayOf(device);
    return { file, closeOnExec: true };
  }

  /** The last descriptor of the group's file is gone. */
  fileClosed(): void {
    this.#fileClosed = true;
    if (this.#containerUsers === 0) this.#end();
  }

  /** A device came to a VFIO driver. */
  add(device: VfioDevice): void {
    this.members.add(device);
    this.devices.unshift(device);
  }

  /** The device cannot be opened any more. */
  hide(device: VfioDevice): void {
    const at = this.devices.indexOf(device);
    if (at >= 0) this.devices.splice(at, 1);
  }

  /** Nobody uses the device any more. True: it was the last one, and the group is over. */
  remove(device: VfioDevice): boolean {
    this.hide(device);
    this.members.delete(device);
    if (this.members.size > 0) return false;
    if (this.container !== undefined) this.#detach();
    this.iommuGroup = undefined;
    return true;
  }

  get #hasIommu(): boolean {
    return this.container !== undefined || this.iommufd !== undefined;
  }

  #openNames(): string {
    return [...this.members]
      .filter((device) => device.openCount > 0)
      .map((device) => device.name)
      .join(', ');
  }

  #openDevice(task: Task, device: VfioDevice): void {
    if (!this.#hasIommu) throw new Errno('EINVAL', `group ${this.name} has no container: SET_CONTAINER comes first`);
    if (device.openCount > 0) {
      device.openCount++;
      return;
    }
    using undo = new Unwind();
    device.takeVm(this.vm);
    undo.add(() => device.dropVm());
    const context = this.iommufd;
    const binding = context === undefined ? undefined : this.#bind(task, device, context);
    const end = context === undefined ? this.#useContainer(task, device) : () => binding?.unbind();
    undo.add(end);
    device.openCount++;
    undo.add(() => {
      device.openCount--;
    });
    device.openDevice();
    undo.add(() => device.closeDevice());
    if (context !== undefined) binding?.attach(compatIoasId({ context }));
    undo.keep();
    this.#uses.set(device, end);
  }

  /** Counts the device as a user of the container. The result ends that. */
  #useContainer(task: Task, device: VfioDevice): () => void {
    const driver = this.container!.driver;
    if (driver === undefined) {
      throw new Errno('EINVAL', `the container of group ${this.name} has no IOMMU driver: SET_IOMMU comes first`);
    }
    this.#needRawIo(task);
    this.#containerUsers++;
    driver.registerDevice(device);
    return () => {
      driver.unregisterDevice(device);
      this.#containerUsers--;
      if (this.#containerUsers === 0 && this.#fileClosed) this.#end();
    };
  }

  /** Undefined: a device without an IOMMU, which the iommufd only lets pass. */
  #bind(task: Task, device: VfioDevice, context: IommufdContext): CdevBinding | undefined {
    if (this.groupKind !== 'noiommu') return device.bindIommufd?.(context) ?? bindDevice({ context }, device);
    this.#needRawIo(task);
    if (context.vfioIoas !== undefined) {
      throw new Errno('EPERM', `${device.name} has no IOMMU, and the iommufd has an address space that expects one`);
    }
    return undefined;
  }

  #needRawIo(task: Task): void {
    if (this.groupKind === 'noiommu' && !task.capable('CAP_SYS_RAWIO')) {
      throw new Errno('EPERM', `group ${this.name} has no IOMMU and needs CAP_SYS_RAWIO`);
    }
  }

  #wayOf(device: VfioDevice): DeviceAccess {
    return {
      through: 'group',
      ready: true,
      ioctl: (_task, request) => {
        if (request !== VFIO_DEVICE_BIND_IOMMUFD) return undefined;
        throw new Errno('EINVAL', `${device.name} was opened through group ${this.name} and cannot be bound`);
      },
      released: () => {
        if (--device.openCount === 0) this.#closeDevice(device);
        this.#host.release(device);
      },
    };
  }

  #closeDevice(device: VfioDevice): void {
    device.closeDevice();
    const end = this.#uses.get(device);
    this.#uses.delete(device);
    end?.();
    device.dropVm();
  }

  #detach(): void {
    const { container, iommufd } = this;
    this.container = undefined;
    this.iommufd = undefined;
    container?.detach(this, this.present);
    iommufd?.drop();
  }

  #end(): void {
    if (this.#hasIommu) this.#detach();
    this.openedBy = undefined;
  }
}

/** The text of GET_DEVICE_FD. EFAULT: it cannot be read. EINVAL: no NUL in the first 4096 bytes. */
export function readName(task: Task, argument: bigint): string {
  let text = '';
  while (text.length < NAME_MAX) {
    const at = argument + BigInt(text.length);
    // Up to the next page only: what follows the text need not be mapped.
    const length = Math.min(4096 - Number(at & 0xfffn), NAME_MAX - text.length);
    const part = copyFromUser(task, at, length);
    const end = part.indexOf(0);
    text += Buffer.from(end < 0 ? part : part.subarray(0, end)).toString('latin1');
    if (end >= 0) return text;
  }
  throw new Errno('EINVAL', `the device's name does not end within ${NAME_MAX} bytes`);
}
