/**
 * The VFIO core of one machine: which devices are handed out, in which groups, under which numbers, and the opening of its nodes.
 *
 * A device driver registers what it bound; the host makes nodes of `groups()` and `devices()`. A device that is unregistered while
 * programs hold it is asked for every ten seconds and goes when the last file of it is closed; what waits for that is told by a
 * callback, never by waiting.
 */
import type { Clock } from '../../hw/pci/clock.ts';
import { Errno } from '../../lib/errno.ts';
import { IdTable } from '../../lib/id-table.ts';
import type { Task } from '../core/task.ts';
import { Domain } from '../iommu/domain.ts';
import { openCdev } from './cdev.ts';
import { Container, type ContainerOptions, type GroupKind } from './container.ts';
import { type GroupFile, type GroupHost, VfioGroup } from './group.ts';
import { Type1 } from './type1.ts';
import { dmaRw, pinPages, unpinPages } from './type1-mediated.ts';
import type { DeviceFile, VfioDevice } from './vfio-device.ts';

/** The machine's options. They may be changed while it runs, as module parameters may. */
export interface VfioOptions extends ContainerOptions {
  noiommu: boolean;
  dmaEntryLimit: number;
  allowUnsafeInterrupts: boolean;
  disableHugePages: boolean;
  dirtyBitmapLimit: number;
  /** For asking again for a device that is to go. Without one it is asked for once. */
  clock: Clock | undefined;
}

const REQUEST_INTERVAL = 10e9;

interface Registration {
  readonly group: VfioGroup;
  /** Files that hold the device. */
  holds: number;
  leaving: { done: () => void; asked: number; stopAsking: () => void } | undefined;
}

export class VfioCore implements GroupHost {
  readonly options: VfioOptions;
  readonly #groups = new Map<number, VfioGroup>();
  readonly #registrations = new Map<VfioDevice, Registration>();
  readonly #indexes = new IdTable<VfioDevice>(0);
  readonly #minors = new IdTable<VfioGroup>(0);

  constructor(options: Partial<VfioOptions> = {}) {
    this.options = {
      noiommu: false,
      dmaEntryLimit: 65535,
      allowUnsafeInterrupts: false,
      disableHugePages: false,
      dirtyBitmapLimit: 2 ** 28,
      physicalOfDevice: () => -1,
      allocateDomain: (unit) => new Domain(unit, 'unmanaged'),
      clock: undefined,
      ...options,
    };
  }

  /** In the order of their ids. */
  groups(): VfioGroup[] {
    return [...this.#groups.values()].sort((a, b) => a.id - b.id);
  }

  /** Devices that can be opened, in the order of their numbers. */
  devices(): VfioDevice[] {
    return [...this.#indexes.entries()]
      .map(([, device]) => device)
      .filter((device) => this.#registrations.get(device)?.leaving === undefined);
  }

  /** The group of a registered device. */
  groupOf(device: VfioDevice): VfioGroup | undefined {
    return this.#registrations.get(device)?.group;
  }

  /**
   * A driver has bound the device: makes its group when it is the first one, and gives `device.index`. EINVAL: no IOMMU translates
   * it, and devices without one are not handed out.
   */
  register(device: VfioDevice, kind: GroupKind = 'iommu'): void {
    if (this.#registrations.has(device)) throw new Error(`Device ${device.name} is registered twice`);
    let groupKind = kind;
    if (kind === 'iommu' && device.iommuGroup.unit === undefined) {
      if (!this.options.noiommu) {
        throw new Errno('EINVAL', `no IOMMU translates ${device.name}, and enable_unsafe_noiommu_mode is off`);
      }
      groupKind = 'noiommu';
    }
    let group = this.#groups.get(device.iommuGroup.id);
    if (group === undefined) {
      const minor = this.#minors.reserve();
      group = new VfioGroup(device.iommuGroup, groupKind, minor, this);
      this.#minors.publish(minor, group);
      this.#groups.set(group.id, group);
    }
    device.index = this.#indexes.add(device);
    group.add(device);
    this.#registrations.set(device, { group, holds: 0, leaving: undefined });
  }

  /**
   * The driver lets go of the device. `done`: nobody held it, it is gone. `busy`: it cannot be opened any more, its holders are
   * asked to close it, and `done` is called when the last one has.
   */
  unregister(device: VfioDevice, done: () => void): 'done' | 'busy' {
    const registration = this.#registrations.get(device);
    if (registration === undefined) throw new Error(`Device ${device.name} is not registered`);
    if (registration.leaving !== undefined) throw new Error(`Device ${device.name} is unregistered twice`);
    registration.group.hide(device);
    if (registration.holds === 0) {
      this.#remove(device, registration);
      return 'done';
    }
    registration.leaving = { done, asked: 0, stopAsking: () => {} };
    this.#ask(device, registration);
    return 'busy';
  }

  openContainer(_task: Task): Container {
    return new Container(this.options);
  }

  /** ENODEV, EPERM, EBUSY: see `VfioGroup.open`. */
  openGroup(id: number, task: Task): GroupFile {
    const group = this.#groups.get(id);
    if (group === undefined) throw new Errno('ENODEV', `there is no VFIO group ${id}`);
    return group.open(task);
  }

  /** Opens /dev/vfio/devices/vfio<index>. ENODEV: there is no such device, or it is being removed. */
  openCdev(index: number, _task: Task): DeviceFile {
    const device = this.#indexes.get(index);
    if (device === undefined) throw new Errno('ENODEV', `there is no VFIO device ${index}`);
    return openCdev(this, device, `/dev/vfio/devices/vfio${index}`);
  }

  /** Counts a file of the device; false: it is being removed and cannot be opened. */
  hold(device: VfioDevice): boolean {
    const registration = this.#registrations.get(device);
    if (registration === undefined || registration.leaving !== undefined) return false;
    registration.holds++;
    return true;
  }

  release(device: VfioDevice): void {
    const registration = this.#registrations.get(device);
    if (registration === undefined) throw new Error(`Device ${device.name} is released after its end`);
    registration.holds--;
    const { leaving } = registration;
    if (registration.holds > 0 || leaving === undefined) return;
    leaving.stopAsking();
    this.#remove(device, registration);
    leaving.done();
  }

  /** `pinPages` for the driver of an open device; IOVA pages. ENOTTY: its container cannot. On an iommufd as its access does it. */
  pinPages(device: VfioDevice, iovas: readonly number[], prot: number): number[] {
    if (device.emulated !== undefined) return device.emulated.pinPages(iovas, prot);
    return pinPages(this.#type1Of(device), device.iommuGroup, iovas, prot);
  }

  unpinPages(device: VfioDevice, iovas: readonly number[]): number {
    if (device.emulated !== undefined) {
      device.emulated.unpinPages(iovas);
      return 0;
    }
    return unpinPages(this.#type1Of(device), iovas);
  }

  /** Copies between `buffer` and the memory of the program that uses the device. */
  dmaRw(device: VfioDevice, iova: bigint, buffer: Uint8Array, isWrite: boolean): void {
    if (device.emulated !== undefined) {
      device.emulated.access.transfer(iova, buffer, isWrite);
      return;
    }
    dmaRw(this.#type1Of(device), iova, buffer, isWrite);
  }

  #type1Of(device: VfioDevice): Type1 {
    if (device.openCount === 0) throw new Errno('EINVAL', `${device.name} is not open`);
    const driver = this.groupOf(device)?.container?.driver;
    if (driver instanceof Type1) return driver;
    throw new Errno('ENOTTY', `${device.name} is in no container whose driver holds pages`);
  }

  #ask(device: VfioDevice, registration: Registration): void {
    const leaving = registration.leaving!;
    const { clock } = this.options;
    // Scheduled first: the request may make the last holder close, which ends the asking.
    if (clock !== undefined) leaving.stopAsking = clock.after(REQUEST_INTERVAL, () => this.#ask(device, registration));
    device.request(leaving.asked++);
  }

  #remove(device: VfioDevice, { group }: Registration): void {
    this.#registrations.delete(device);
    this.#indexes.remove(device.index);
    if (!group.remove(device)) return;
    this.#groups.delete(group.id);
    this.#minors.remove(group.minor);
  }
}
