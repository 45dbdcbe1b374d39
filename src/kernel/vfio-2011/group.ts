/**
 * A VFIO group of 2011: the devices of one bus in one IOMMU group, open as /dev/vfio/<bus>:<id>, any number of times.
 *
 * It is there from the moment its first device exists, bound or not. It is viable when all of its devices are bound to VFIO drivers; only
 * then its IOMMU and its devices can be had.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import {
  VFIO_GROUP_FLAGS_MM_LOCKED,
  VFIO_GROUP_FLAGS_VIABLE,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_GET_INFO,
  VFIO_GROUP_GET_IOMMU_FD,
  VFIO_GROUP_MERGE,
  VFIO_GROUP_UNMERGE,
  VFIO_GROUP_UNMERGE_FD,
  vfio_group_info,
} from '../../uapi/vfio-2011.ts';
import { File, type IoctlResult } from '../core/file.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import type { IommuGroup } from '../iommu/group.ts';
import { readName } from '../vfio/group.ts';
import type { DeviceBus } from './bus-driver.ts';
import type { Device2011 } from './device.ts';
import { type IommuObject, needArgsz } from './iommu-object.ts';

/** The calls that concern more than one group; the core's. */
export interface GroupCalls {
  getIommuFd(group: Group2011, task: Task): IoctlResult;
  getDeviceFd(group: Group2011, task: Task, text: string): IoctlResult;
  merge(merger: Group2011, mergee: Group2011): void;
  unmerge(group: Group2011): void;
  /** A descriptor of the group has gone. */
  closed(group: Group2011): void;
}

export class Group2011 {
  readonly bus: DeviceBus;
  readonly id: number;
  readonly minor: number;
  readonly devices: Device2011[] = [];
  /** Undefined while the group has no device. */
  iommuGroup: IommuGroup | undefined;
  /** The address space, which merged groups share. */
  iommu: IommuObject;
  /** Claimed by `iommu` and attached to its domain. */
  isAttached = false;
  /** A device of the group is out of VFIO's control: it will never be viable. */
  isTainted = false;
  /** Open descriptors of the group. */
  files = 0;

  constructor(bus: DeviceBus, iommuGroup: IommuGroup, minor: number, iommu: IommuObject) {
    this.bus = bus;
    this.id = iommuGroup.id;
    this.iommuGroup = iommuGroup;
    this.minor = minor;
    this.iommu = iommu;
    iommu.groups.push(this);
  }

  /** The node below /dev/vfio. */
  get name(): string {
    return `${this.bus.name}:${this.id}`;
  }

  get isViable(): boolean {
    return !this.isTainted && this.devices.every((device) => device.isBound);
  }

  get openDevices(): number {
    let open = 0;
    for (const device of this.devices) open += device.files;
    return open;
  }
}

export class GroupFile2011 extends File {
  readonly kind = 'vfiogroup';
  readonly path: string;
  readonly group: Group2011;
  readonly #calls: GroupCalls;

  constructor(group: Group2011, calls: GroupCalls) {
    super();
    this.group = group;
    this.path = `/dev/vfio/${group.name}`;
    this.#calls = calls;
    group.files++;
  }

  /** EPERM: another process has the address space; it may only ask GET_INFO. ENOTTY: none of a group's requests. */
  override ioctl(task: Task, request: number, argument: bigint): IoctlResult {
    const { group } = this;
    if (request === VFIO_GROUP_GET_INFO) return getInfo(group, task, argument);
    group.iommu.checkOwner(task);
    switch (request) {
      case VFIO_GROUP_MERGE:
        this.#calls.merge(group, groupAt(task, argument, 'merged'));
        return 0;
      case VFIO_GROUP_UNMERGE:
        this.#calls.unmerge(group);
        return 0;
      case VFIO_GROUP_UNMERGE_FD: {
        const other = groupAt(task, argument, 'removed');
        if (other.iommu !== group.iommu) {
          throw new Errno('EINVAL', `group ${other.name} is not merged with ${group.name}`);
        }
        this.#calls.unmerge(other);
        return 0;
      }
      case VFIO_GROUP_GET_IOMMU_FD:
        return this.#calls.getIommuFd(group, task);
      case VFIO_GROUP_GET_DEVICE_FD:
        return this.#calls.getDeviceFd(group, task, readName(task, argument));
      default:
        throw new Errno('ENOTTY', `request ${hex(request)} is not one of a group's`);
    }
  }

  override release(): void {
    this.group.files--;
    this.#calls.closed(this.group);
  }
}

function getInfo(group: Group2011, task: Task, argument: bigint): number {
  const { size } = vfio_group_info;
  const { argsz } = vfio_group_info.read(copyFromUser(task, argument, size));
  needArgsz(argsz, size);
  let flags = 0;
  if (group.iommu.isViable) flags |= VFIO_GROUP_FLAGS_VIABLE;
  if (group.iommu.mm !== undefined) flags |= VFIO_GROUP_FLAGS_MM_LOCKED;
  copyToUser(task, argument, vfio_group_info.write({ argsz, flags }));
  return 0;
}

/** The group whose descriptor lies at `argument`. EFAULT. EINVAL: negative, or not a group of this API. EBADF. */
function groupAt(task: Task, argument: bigint, what: string): Group2011 {
  const descriptor = new DataView(copyFromUser(task, argument, 4).buffer).getInt32(0, true);
  if (descriptor < 0) throw new Errno('EINVAL', `the group to be ${what} has descriptor ${descriptor}`);
  const file = task.file(descriptor);
  if (file instanceof GroupFile2011) return file.group;
  throw new Errno('EINVAL', `descriptor ${descriptor} (${file.path}) is not a group`);
}
