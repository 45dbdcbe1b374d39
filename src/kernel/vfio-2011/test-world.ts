/**
 * A machine for tests of the core of 2011: functions behind real units, on a bus of its own with the simplest of bus drivers, and programs that
 * call by name.
 */

import type { IommuUnitOptions } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import * as reg from '../../uapi/pci-regs.ts';
import * as uapi from '../../uapi/vfio-2011.ts';
import type { File } from '../core/file.ts';
import { refusal, TestTask, type TestTaskOptions } from '../core/test-task.ts';
import type { IommuGroup } from '../iommu/group.ts';
import { endpoint, IommuMachine } from '../iommu/test-machine.ts';
import type { BusDevice, DeviceBus, VfioDeviceOps } from './bus-driver.ts';
import { Vfio2011, type Vfio2011Options } from './vfio-2011.ts';

export { refusal };

export const toyBus: DeviceBus = { name: 'toy', isHotplug: true };

/** A device of the toy bus: its DMA is that of a function. */
export interface ToyDevice extends BusDevice {
  readonly fn: PciFunction;
  readonly group: string;
}

export interface WorldOptions {
  readonly units?: readonly IommuUnitOptions[];
  readonly unitOf?: (fn: PciFunction) => number;
  readonly core?: Partial<Vfio2011Options>;
}

export class World {
  readonly machine: IommuMachine;
  readonly core: Vfio2011;
  /** Calls of the bus driver, oldest first: `open 00:01.0`. */
  readonly calls: string[] = [];
  /** What claim does; binds the device unless a test changes it. */
  onClaim: (device: ToyDevice) => void = (device) => this.bind(device);
  readonly ops: VfioDeviceOps<ToyDevice, ToyDevice>;
  readonly users: User[] = [];
  #pid = 100;

  constructor(options: WorldOptions = {}) {
    const { unitOf } = options;
    this.machine = new IommuMachine({
      ...(options.units !== undefined && { units: options.units }),
      ...(unitOf !== undefined && { unitOf: (fn) => this.machine.units[unitOf(fn)] }),
    });
    this.core = new Vfio2011(options.core);
    const note = (what: string, device: ToyDevice): void => void this.calls.push(`${what} ${device.name}`);
    this.ops = {
      match: (device, text) => device.name === text,
      claim: (device) => {
        note('claim', device);
        this.onClaim(device);
      },
      open: (device) => note('open', device),
      release: (device) => note('release', device),
      read: () => 0,
      write: () => 0,
      ioctl: () => 0,
      mmap: () => {
        throw new Error('Nothing to map');
      },
    };
  }

  /** Places a function, `slot.function`; those of one slot are one group, others are alone. It is not on the bus yet. */
  place(at: string, bus: DeviceBus = toyBus): ToyDevice {
    const fn = this.machine.add(endpoint(false), at);
    const iommuGroup = this.machine.core.probe(fn) as IommuGroup;
    fn.config.write(reg.PCI_COMMAND, 2, reg.PCI_COMMAND_MASTER);
    return { name: fn.name.slice(5), bus, iommuGroup, fn, group: `${bus.name}:${iommuGroup.id}` };
  }

  /** A device appears; with `isBound`, the administrator binds it. */
  add(at: string, isBound = true, bus: DeviceBus = toyBus): ToyDevice {
    const device = this.place(at, bus);
    this.core.groupAddDevice(device, this.ops);
    if (isBound && this.core.deviceOf(device)?.isBound === false) this.bind(device);
    return device;
  }

  /** A device disappears: the bus tells the core, the driver lets go, then it is gone. `done`, or `waiting` for users. */
  unplug(device: ToyDevice, done: () => void = () => {}): 'done' | 'waiting' {
    const gone = (): void => {
      this.machine.core.remove(device.fn);
      this.machine.tree.remove(device.fn);
    };
    this.core.groupRemoveDevice(device);
    const member = this.core.deviceOf(device);
    if (member?.isBound !== true) {
      gone();
      return 'done';
    }
    const outcome = this.core.unbindDevice(device, () => {
      gone();
      done();
    });
    if (outcome === 'done') gone();
    return outcome;
  }

  bind(device: ToyDevice): void {
    this.core.bindDevice(device, device);
  }

  user(options: TestTaskOptions = {}): User {
    const user = new User(this, { pid: this.#pid++, physical: this.machine.memory, ...options });
    this.users.push(user);
    return user;
  }

  /** DMA of one byte by a device to the page of an IOVA: `ok`, or why not. */
  dma(device: ToyDevice, page: number, value = 0x5a): string {
    return this.machine.dma(device.fn, page, value);
  }

  /** Everything that programs hold: all 0 when they are gone. */
  held(): { pins: number; locked: number; entries: number; files: number; owners: number } {
    let entries = 0;
    for (const object of this.core.objects()) entries += object.maps.entries.size;
    return {
      pins: this.users.reduce((sum, user) => sum + user.mm.pins, 0),
      locked: this.users.reduce((sum, user) => sum + user.mm.lockedPages, 0),
      entries,
      files: this.core.openFiles,
      owners: this.machine.core.groups().reduce((sum, group) => sum + group.ownerCount, 0),
    };
  }
}

export class User extends TestTask {
  readonly #world: World;

  constructor(world: World, options: TestTaskOptions) {
    super(options);
    this.#world = world;
  }

  /** Opens a group's node; the descriptor. */
  group(name: string): number {
    return this.open(this.#world.core.openGroup(name)).descriptor;
  }

  call(descriptor: number, request: number, argument?: Uint8Array | bigint | number): number {
    return this.ioctl(this.file(descriptor) as File, request, argument);
  }

  /** GET_INFO's flags. */
  info(group: number): number {
    const bytes = uapi.vfio_group_info.write({ argsz: 8, flags: 0 });
    this.call(group, uapi.VFIO_GROUP_GET_INFO, bytes);
    return uapi.vfio_group_info.read(bytes).flags;
  }

  iommu(group: number): number {
    return this.call(group, uapi.VFIO_GROUP_GET_IOMMU_FD);
  }

  device(group: number, name: string): number {
    return this.call(group, uapi.VFIO_GROUP_GET_DEVICE_FD, Buffer.from(`${name}\0`));
  }

  merge(merger: number, mergee: number): number {
    return this.call(merger, uapi.VFIO_GROUP_MERGE, new Uint8Array(Int32Array.of(mergee).buffer));
  }

  unmerge(group: number): number {
    return this.call(group, uapi.VFIO_GROUP_UNMERGE);
  }

  /** Maps pages; `address` of new memory unless given. Returns the address. */
  map(iommu: number, page: number, count = 1, options: { address?: number; flags?: number } = {}): number {
    const address = options.address ?? this.memory.map(count * 4096);
    this.call(
      iommu,
      uapi.VFIO_IOMMU_MAP_DMA,
      uapi.vfio_dma_map.write({
        argsz: 32,
        flags: options.flags ?? 3,
        vaddr: BigInt(address),
        iova: BigInt(page) * 4096n,
        size: BigInt(count) * 4096n,
      }),
    );
    return address;
  }

  unmap(iommu: number, page: number, count = 1): number {
    return this.call(
      iommu,
      uapi.VFIO_IOMMU_UNMAP_DMA,
      uapi.vfio_dma_unmap.write({ argsz: 24, flags: 0, iova: BigInt(page) * 4096n, size: BigInt(count) * 4096n }),
    );
  }

  /** The byte at an address. */
  byte(address: number): number {
    const bytes = new Uint8Array(1);
    this.memory.read(address, bytes);
    return bytes[0]!;
  }
}
