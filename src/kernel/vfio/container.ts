/**
 * A container: the address space that groups share, open as /dev/vfio/vfio.
 *
 * Its states follow from what is in it: empty, with groups, with groups and a driver. The groups give the right to choose a driver;
 * when the last one leaves, the driver goes with all its mappings and the container may be used anew. The file may be closed at any
 * time: the groups keep what they are attached to.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import {
  VFIO_API_VERSION,
  VFIO_CHECK_EXTENSION,
  VFIO_GET_API_VERSION,
  VFIO_NOIOMMU_IOMMU,
  VFIO_SET_IOMMU,
  VFIO_TYPE1_IOMMU,
  VFIO_TYPE1v2_IOMMU,
} from '../../uapi/vfio.ts';
import { File } from '../core/file.ts';
import type { Task } from '../core/task.ts';
import type { IommuGroup } from '../iommu/group.ts';
import type { VfioGroup } from './group.ts';
import { checkType1Extension, Type1, type Type1Options } from './type1.ts';
import type { VfioDevice } from './vfio-device.ts';

/** `iommu`: translated by hardware. `emulated`: its driver stands between device and memory. `noiommu`: nobody does. */
export type GroupKind = 'iommu' | 'emulated' | 'noiommu';

/** What SET_IOMMU puts into a container. */
export interface ContainerDriver {
  readonly name: string;
  ioctl(task: Task, request: number, argument: bigint): number;
  attachGroup(iommuGroup: IommuGroup, kind: GroupKind): void;
  detachGroup(iommuGroup: IommuGroup): void;
  registerDevice(device: VfioDevice): void;
  unregisterDevice(device: VfioDevice): void;
  release(): void;
}

export interface ContainerOptions extends Type1Options {
  /** Devices without an IOMMU are handed out: enable_unsafe_noiommu_mode. */
  readonly noiommu: boolean;
}

/** The driver of containers whose groups have no IOMMU: it does nothing. */
class NoIommu implements ContainerDriver {
  readonly name = 'vfio-noiommu';
  readonly #options: ContainerOptions;

  constructor(options: ContainerOptions) {
    this.#options = options;
  }

  ioctl(_task: Task, request: number, argument: bigint): number {
    if (request === VFIO_CHECK_EXTENSION) return checkNoIommuExtension(argument, this.#options);
    throw new Errno('ENOTTY', `a container without IOMMU maps nothing: request ${hex(request)} is not known to it`);
  }

  attachGroup(): void {}
  detachGroup(): void {}
  registerDevice(): void {}
  unregisterDevice(): void {}
  release(): void {}
}

function checkNoIommuExtension(extension: bigint, options: ContainerOptions): number {
  return options.noiommu && extension === BigInt(VFIO_NOIOMMU_IOMMU) ? 1 : 0;
}

/** One row for each driver that SET_IOMMU may choose, in the order in which they are asked. */
interface DriverKind {
  readonly isNoIommu: boolean;
  check(extension: bigint, options: ContainerOptions): number;
  open(task: Task, version: bigint, options: ContainerOptions): ContainerDriver;
}

const driverKinds: readonly DriverKind[] = [
  {
    isNoIommu: false,
    check: (extension) => checkType1Extension(extension, undefined),
    open(_task, version, options) {
      if (version === BigInt(VFIO_TYPE1_IOMMU)) return new Type1(1, options);
      if (version === BigInt(VFIO_TYPE1v2_IOMMU)) return new Type1(2, options);
      throw new Errno('EINVAL', `${version} is an extension of type1, not a version that can be chosen`);
    },
  },
  {
    isNoIommu: true,
    check: checkNoIommuExtension,
    open(task, _version, options) {
      if (!task.capable('CAP_SYS_RAWIO')) throw new Errno('EPERM', 'the noiommu driver needs CAP_SYS_RAWIO');
      return new NoIommu(options);
    },
  },
];

export class Container extends File {
  readonly kind = 'container';
  readonly path = '/dev/vfio/vfio';
  /** Newest first, as they are attached when a driver is chosen. */
  readonly groups: VfioGroup[] = [];
  driver: ContainerDriver | undefined;
  readonly #options: ContainerOptions;

  constructor(options: ContainerOptions) {
    super();
    this.#options = options;
  }

  override ioctl(task: Task, request: number, argument: bigint): number {
    switch (request) {
      case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
      case VFIO_CHECK_EXTENSION:
        return this.#checkExtension(task, argument);
      case VFIO_SET_IOMMU:
        this.#setIommu(task, argument);
        return 0;
      default:
        if (this.driver === undefined) {
          throw new Errno(
            'EINVAL',
            `request ${hex(request)} needs an IOMMU driver: SET_CONTAINER of a group, then SET_IOMMU`,
          );
        }
        return this.driver.ioctl(task, request, argument);
    }
  }

  /** GROUP_SET_CONTAINER. EPERM: kinds that cannot mix, or the group is in other hands; what claiming and attaching give. */
  attach(task: Task, group: VfioGroup, iommuGroup: IommuGroup): void {
    const isNoIommu = group.groupKind === 'noiommu';
    if (isNoIommu && !task.capable('CAP_SYS_RAWIO')) {
      throw new Errno('EPERM', `group ${group.name} has no IOMMU and needs CAP_SYS_RAWIO`);
    }
    if (this.groups.length > 0 && this.#isNoIommu !== isNoIommu) {
      throw new Errno('EPERM', `group ${group.name} and group ${this.groups[0]!.name} are not both with an IOMMU`);
    }
    if (group.groupKind === 'iommu') iommuGroup.claim(group);
    try {
      this.driver?.attachGroup(iommuGroup, group.groupKind);
    } catch (error) {
      if (group.groupKind === 'iommu') iommuGroup.release();
      throw error;
    }
    this.groups.unshift(group);
  }

  /** GROUP_UNSET_CONTAINER, or the group's end. */
  detach(group: VfioGroup, iommuGroup: IommuGroup): void {
    this.driver?.detachGroup(iommuGroup);
    if (group.groupKind === 'iommu') iommuGroup.release();
    this.groups.splice(this.groups.indexOf(group), 1);
    if (this.groups.length > 0) return;
    this.driver?.release();
    this.driver = undefined;
  }

  get #isNoIommu(): boolean {
    return this.groups[0]?.groupKind === 'noiommu';
  }

  #checkExtension(task: Task, extension: bigint): number {
    if (this.driver !== undefined) return this.driver.ioctl(task, VFIO_CHECK_EXTENSION, extension);
    for (const kind of driverKinds) {
      if (this.groups.length > 0 && kind.isNoIommu !== this.#isNoIommu) continue;
      const answer = kind.check(extension, this.#options);
      if (answer > 0) return answer;
    }
    return 0;
  }

  #setIommu(task: Task, version: bigint): void {
    if (this.groups.length === 0) {
      throw new Errno('EINVAL', 'the container has no group, and only a group gives the right to choose a driver');
    }
    if (this.driver !== undefined)
      throw new Errno('EINVAL', `the container has its driver already, ${this.driver.name}`);
    for (const kind of driverKinds) {
      if (kind.isNoIommu !== this.#isNoIommu || kind.check(version, this.#options) <= 0) continue;
      const driver = kind.open(task, version, this.#options);
      const attached: VfioGroup[] = [];
      try {
        for (const group of this.groups) {
          driver.attachGroup(group.present, group.groupKind);
          attached.unshift(group);
        }
      } catch (error) {
        for (const group of attached) driver.detachGroup(group.present);
        driver.release();
        throw error;
      }
      this.driver = driver;
      return;
    }
    throw new Errno(
      'ENODEV',
      `no IOMMU driver is called ${version} (type1 is ${VFIO_TYPE1_IOMMU}, its version 2 is ${VFIO_TYPE1v2_IOMMU})`,
    );
  }
}
