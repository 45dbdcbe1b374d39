/**
 * The VFIO core of 2011: which groups there are, their devices, and what happens to them when devices and programs come and go.
 *
 * Bus drivers tell it of devices (see `bus-driver.ts`); the host makes nodes and links of `groups()`. Nothing waits: a driver that is
 * to let go of a device in use gets a callback, in the turn in which the last descriptor is closed.
 */
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { Unwind } from '../../lib/unwind.ts';
import type { NewDescriptor } from '../core/file.ts';
import type { Task } from '../core/task.ts';
import { Domain } from '../iommu/domain.ts';
import type { IommuGroup } from '../iommu/group.ts';
import type { BusDevice, BusDriverCore, DeviceBus, VfioDeviceOps } from './bus-driver.ts';
import { Device2011, DeviceFile2011 } from './device.ts';
import { Group2011, type GroupCalls, GroupFile2011 } from './group.ts';
import { IommuFile, IommuObject, type IommuObjectOptions } from './iommu-object.ts';
import { mergeGroups, unmergeGroup } from './merge.ts';

export interface Vfio2011Options extends IommuObjectOptions {
  /**
   * At the first GET_DEVICE_FD of a group that is not in use, try to merge it into each address space that the process has, in the order in
   * which they were opened.
   */
  readonly automaticMerge: boolean;
  /** Minor numbers that groups are to have, by id; others get the lowest that is free and not among them. */
  readonly minors: ReadonlyMap<number, number>;
  /** The group, or a device of it, has come or gone. */
  changed(group: Group2011): void;
  /** Text for people. */
  log(text: string): void;
}

/** The device's link in the group's folder cannot be made. */
const linkPoint = new Failpoint('vfio2011:link', 'ENOMEM');

const MANDATORY = ['match', 'open', 'release', 'read', 'write', 'ioctl', 'mmap'] as const;

export class Vfio2011 implements BusDriverCore, GroupCalls {
  readonly options: Vfio2011Options;
  readonly #groups = new Map<string, Group2011>();
  readonly #devices = new Map<BusDevice, Device2011>();
  readonly #minors = new Set<number>();
  /** No minor below it is free. */
  #lowestMinor = 0;
  #opened = 0;

  constructor(options: Partial<Vfio2011Options> = {}) {
    this.options = {
      revision: 'seed',
      mergePolicy: 'sameCoherency',
      automaticMerge: false,
      revokeOnNonViable: false,
      entryLimit: 65535,
      minors: new Map(),
      physicalOfDevice: () => -1,
      allocateDomain: (unit) => new Domain(unit, 'unmanaged'),
      changed: () => {},
      log: () => {},
      ...options,
    };
  }

  /** In the order of their ids. */
  groups(): Group2011[] {
    return [...this.#groups.values()].sort((a, b) => a.id - b.id);
  }

  /** Whether it is one of the groups now. */
  has(group: Group2011): boolean {
    return this.#groups.get(group.name) === group;
  }

  /** The address spaces, each once. */
  objects(): Set<IommuObject> {
    return new Set([...this.#groups.values()].map((group) => group.iommu));
  }

  /** Descriptors of all kinds that are open. */
  get openFiles(): number {
    let open = 0;
    for (const object of this.objects()) open += object.files;
    for (const group of this.#groups.values()) open += group.files + group.openDevices;
    return open;
  }

  deviceOf(device: BusDevice): Device2011 | undefined {
    return this.#devices.get(device);
  }

  /** Opens /dev/vfio/<name>. ENODEV: there is no such group. */
  openGroup(name: string): GroupFile2011 {
    const group = this.#groups.get(name);
    if (group === undefined) throw new Errno('ENODEV', `there is no VFIO group ${name}`);
    return new GroupFile2011(group, this);
  }

  // ---- for bus drivers ----

  groupAddDevice<D extends BusDevice, T>(device: D, ops: VfioDeviceOps<D, T>): void {
    const { iommuGroup } = device;
    if (iommuGroup?.unit === undefined) throw new Errno('ENODEV', `${device.name} is in no IOMMU group`);
    checkOps(device.bus, ops);
    if (this.#devices.has(device)) throw new Errno('EEXIST', `${device.name} is registered already`);
    const group = this.#groupFor(device.bus, iommuGroup);
    const member = new Device2011(device, ops as VfioDeviceOps, group);
    const isInUse = group.iommu.isInUse;
    group.devices.push(member);
    this.#devices.set(device, member);
    this.#orTainted(member, () => linkPoint.hit());
    this.options.changed(group);
    group.iommu.reviewRevocation();
    if (isInUse) this.#claim(member);
  }

  groupRemoveDevice(device: BusDevice): void {
    const member = this.#devices.get(device);
    if (member === undefined) return;
    if (member.isBound) {
      member.isDeletedLater = true;
      return;
    }
    this.#remove(member);
  }

  bindDevice(device: BusDevice, data: NonNullable<unknown>): void {
    const member = this.#devices.get(device);
    if (member === undefined) throw new Errno('EINVAL', `${device.name} is not registered`);
    if (member.isBound) throw new Errno('EBUSY', `${device.name} is bound already`);
    member.data = data;
    member.isBound = true;
    member.group.iommu.reviewRevocation();
  }

  unbindDevice(device: BusDevice, done: () => void): 'done' | 'waiting' {
    const member = this.#devices.get(device);
    if (member?.isBound !== true) throw new Errno('EINVAL', `${device.name} is not bound`);
    if (member.unbound !== undefined) throw new Error(`Device ${device.name} is unbound twice`);
    if (member.group.iommu.isInUse) {
      member.unbound = done;
      return 'waiting';
    }
    this.#unbind(member);
    return 'done';
  }

  cancelUnbind(device: BusDevice): boolean {
    const member = this.#devices.get(device);
    if (member?.unbound === undefined) return false;
    member.unbound = undefined;
    return true;
  }

  // ---- for the files of groups ----

  getIommuFd(group: Group2011, task: Task): NewDescriptor {
    this.#open(group, task);
    const { iommu } = group;
    return { file: new IommuFile(iommu, () => this.#settle(iommu)), closeOnExec: false };
  }

  /** EBUSY: not viable. ENODEV: no device of the set is called that. */
  getDeviceFd(group: Group2011, task: Task, text: string): NewDescriptor {
    using undo = new Unwind();
    if (this.options.automaticMerge) this.#mergeByItself(group, task, undo);
    const { iommu } = group;
    undo.add(() => this.#settle(iommu));
    this.#open(group, task);
    const found = iommu.groups
      .flatMap(({ devices }) => devices)
      .find(({ ops, device, isBound }) => isBound && ops.match(device, text));
    if (found === undefined) {
      const names = iommu.groups.flatMap(({ devices }) => devices.map(({ name }) => name));
      throw new Errno('ENODEV', `${iommu.text} has no device "${text}" (it has: ${names.join(', ')})`);
    }
    found.ops.open(found.data);
    undo.keep();
    return { file: new DeviceFile2011(found, () => this.#settle(found.group.iommu)), closeOnExec: false };
  }

  merge(merger: Group2011, mergee: Group2011): void {
    mergeGroups(merger, mergee);
  }

  unmerge(group: Group2011): void {
    const { iommu } = group;
    unmergeGroup(group);
    this.#settle(iommu);
    this.#settle(group.iommu);
  }

  closed(group: Group2011): void {
    this.#settle(group.iommu);
  }

  // ---- within ----

  #open(group: Group2011, task: Task): void {
    const isFirst = group.iommu.domain === undefined;
    group.iommu.open(task);
    if (isFirst) group.iommu.openedAt = ++this.#opened;
  }

  /** After something was closed: what nobody uses any more goes, and who waits for that goes on. */
  #settle(iommu: IommuObject): void {
    if (iommu.isInUse) return;
    iommu.close();
    const groups = [...iommu.groups];
    const members = groups.flatMap(({ devices }) => devices);
    if (groups.every(({ files }) => files === 0)) {
      for (const group of groups.slice(1)) {
        iommu.remove(group);
        new IommuObject(this.options).add(group);
      }
    }
    for (const group of groups) this.#dropIfOver(group);
    for (const member of members) {
      const done = member.unbound;
      if (done === undefined) continue;
      this.#unbind(member);
      done();
    }
  }

  #unbind(member: Device2011): void {
    member.unbound = undefined;
    member.isBound = false;
    member.data = undefined;
    if (member.isDeletedLater) this.#remove(member);
  }

  #remove(member: Device2011): void {
    const { group } = member;
    this.#devices.delete(member.device);
    group.devices.splice(group.devices.indexOf(member), 1);
    this.options.changed(group);
    if (group.devices.length > 0) {
      group.iommu.reviewRevocation();
      return;
    }
    group.iommu.disown(group);
    group.iommuGroup = undefined;
    this.#dropIfOver(group);
  }

  /** A group without devices and without descriptors is no more. */
  #dropIfOver(group: Group2011): void {
    if (group.devices.length > 0 || group.files > 0 || this.#groups.get(group.name) !== group) return;
    group.iommu.remove(group);
    this.#groups.delete(group.name);
    this.#minors.delete(group.minor);
    this.#lowestMinor = Math.min(this.#lowestMinor, group.minor);
    this.options.changed(group);
  }

  #groupFor(bus: DeviceBus, iommuGroup: IommuGroup): Group2011 {
    const known = this.#groups.get(`${bus.name}:${iommuGroup.id}`);
    if (known !== undefined) {
      if (known.iommuGroup === undefined) {
        // Its last device had gone while a program kept the node open.
        known.iommuGroup = iommuGroup;
        known.iommu.adopt(known);
      }
      return known;
    }
    const group = new Group2011(bus, iommuGroup, this.#takeMinor(iommuGroup.id), new IommuObject(this.options));
    this.#groups.set(group.name, group);
    return group;
  }

  #takeMinor(id: number): number {
    const { minors } = this.options;
    let minor = minors.get(id);
    if (minor === undefined || this.#minors.has(minor)) {
      const pinned = new Set(minors.values());
      minor = this.#lowestMinor;
      while (this.#minors.has(minor) || pinned.has(minor)) minor++;
      this.#lowestMinor = minor + 1;
    }
    this.#minors.add(minor);
    return minor;
  }

  #claim(member: Device2011): void {
    this.options.log(
      `${member.name} has appeared in group ${member.group.name}, which is in use: its driver has to claim it`,
    );
    this.#orTainted(member, () => {
      if (member.ops.claim === undefined) throw new Errno('ENODEV', 'its bus driver cannot claim devices');
      member.ops.claim(member.device);
    });
  }

  #orTainted(member: Device2011, act: () => void): void {
    try {
      act();
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      member.group.isTainted = true;
      this.options.log(`group ${member.group.name} is tainted by ${member.name}: ${error.why}`);
    }
  }

  #mergeByItself(group: Group2011, task: Task, undo: Unwind): void {
    if (group.iommu.domain !== undefined || group.iommu.groups.length > 1) return;
    const mine = [...this.objects()].filter(({ mm }) => mm === task.mm).sort((a, b) => a.openedAt - b.openedAt);
    for (const { groups } of mine) {
      try {
        mergeGroups(groups[0]!, group);
      } catch (error) {
        if (!(error instanceof Errno)) throw error;
        continue;
      }
      undo.add(() => unmergeGroup(group));
      return;
    }
  }
}

/** EINVAL: an operation is missing; on a bus with hotplug also claim. */
function checkOps(bus: DeviceBus, ops: object): void {
  const has = ops as Record<string, unknown>;
  const missing = [...MANDATORY, ...(bus.isHotplug ? ['claim'] : [])].filter((name) => typeof has[name] !== 'function');
  if (missing.length > 0) {
    throw new Errno('EINVAL', `the driver for bus ${bus.name} lacks ${missing.join(', ')}`);
  }
}
