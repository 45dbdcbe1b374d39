/**
 * A small machine with real functions for the tests of this folder: the recorded machine's edu devices, one testdev, bridges; groups
 * that only keep books, one per slot or per conventional bus; the drivers; a program.
 */

import { pciePciBridge, rootPort } from '../../../hw/devices/bridge/model.ts';
import { edu } from '../../../hw/devices/edu/model.ts';
import { testdev } from '../../../hw/devices/testdev/model.ts';
import { privateShared, type SharedMemory } from '../../../hw/memory/backing.ts';
import { ManualClock } from '../../../hw/pci/clock.ts';
import type { DeviceModel } from '../../../hw/pci/device-model.ts';
import type { PciFunction, Place } from '../../../hw/pci/function.ts';
import type { FunctionSpec } from '../../../hw/pci/function-spec.ts';
import { PciTree } from '../../../hw/pci/tree.ts';
import { Errno } from '../../../lib/errno.ts';
import { refusal, type TestTask } from '../../core/test-task.ts';
import type { IommuGroup } from '../../iommu/group.ts';
import { DeviceSets } from '../../vfio/pci/device-set.ts';
import type { VfioPciEnvironment } from '../../vfio/pci/environment.ts';
import type { VfioPciDevice } from '../../vfio/pci/vfio-pci-core.ts';
import {
  deviceFile,
  type TestContainer,
  type TestDomain,
  TestGroup,
  type TestUnit,
  TestWorld,
} from '../../vfio/test-world.ts';
import type { DeviceFile } from '../../vfio/vfio-device.ts';
import { allHostDrivers } from '../host-drivers.ts';
import { PciBus } from '../pci-bus.ts';
import { VfioPciDriver } from './vfio-pci.ts';

/** A group of functions: as `TestGroup`, claimed by device as well. */
export class FunctionGroup extends TestGroup {
  readonly members = new Set<PciFunction>();
  constructor(id: number, unit: TestUnit | undefined) {
    super(id, unit);
  }
  unuseDefaultDomain(): void {
    this.ownerCount--;
  }
  claimDevice(_f: PciFunction, owner: object): void {
    if (this.ownerCount > 0 && this.owner !== owner) throw new Errno('EPERM', 'another owner holds the group');
    this.owner = owner;
    this.ownerCount++;
  }
  releaseDevice(): void {
    if (--this.ownerCount === 0) this.owner = undefined;
  }
  replace(domain: unknown): void {
    this.detach();
    this.domain = domain as TestDomain;
    this.domain.attachments++;
  }
}

/** Shared memory that says whether it is revoked. */
export class TestShared implements SharedMemory {
  readonly length: number;
  revoked = false;
  readonly #memory: SharedMemory;
  constructor(name: string, length: number) {
    this.length = length;
    this.#memory = privateShared(name, length);
  }
  bytes(): Uint8Array {
    return this.#memory.bytes();
  }
  revoke(): void {
    this.revoked = true;
  }
  restore(): void {
    this.revoked = false;
  }
  close(): void {}
}

export class TestMachine {
  readonly clock = new ManualClock();
  readonly world: TestWorld;
  readonly tree: PciTree;
  readonly bus: PciBus;
  readonly vfioPci: VfioPciDriver;
  readonly sets = new DeviceSets();
  readonly shared: TestShared[] = [];
  readonly task: TestTask;
  readonly models = { edu, testdev, rootPort, pciePciBridge };
  readonly #containers: TestContainer[] = [];
  readonly #groups = new Map<string, FunctionGroup>();
  #nextGroup = 3;

  constructor(environment: Partial<VfioPciEnvironment> = {}) {
    this.world = new TestWorld({ clock: this.clock });
    this.tree = new PciTree({ memory: this.world.physical });
    this.tree.addRoot(0, 0);
    this.bus = new PciBus((fn) => this.iommuGroupOf(fn));
    this.vfioPci = new VfioPciDriver(this.world.core, {
      clock: this.clock,
      allocateShared: (name, length) => this.allocate(name, length),
      groupOf: (fn) => this.iommuGroupOf(fn),
      sets: this.sets,
      ...environment,
    });
    for (const driver of [...allHostDrivers(), this.vfioPci]) this.bus.register(driver);
    this.vfioPci.captureVirtualFunctions(this.bus);
    this.tree.watch({ added: (fn) => this.#appeared(fn), removed: (fn) => this.bus.remove(fn) });
    this.task = this.world.task({ capabilities: ['CAP_IPC_LOCK'] });
  }

  allocate(name: string, length: number): TestShared {
    const memory = new TestShared(name, length);
    this.shared.push(memory);
    return memory;
  }

  /** Puts a model into slot `slot` (function `fn`) of a bus. */
  add(
    model: DeviceModel,
    slot: number,
    place: Partial<Place> = {},
    options: Record<string, unknown> = {},
  ): PciFunction {
    const env = { clock: this.clock, allocateShared: (name: string, length: number) => this.allocate(name, length) };
    return this.addSpec(model.create(env, options), slot, place);
  }

  addSpec(spec: FunctionSpec, slot: number, place: Partial<Place> = {}): PciFunction {
    return this.tree.add(spec, { bus: this.tree.roots[0]!, devfn: slot << 3, ...place });
  }

  group(fn: PciFunction): FunctionGroup {
    const bus = fn.bus;
    const key = bus.self !== undefined && bus.self.portType !== 4 && !fn.isVirtfn ? `bus ${bus.name}` : fn.name;
    let group = this.#groups.get(key);
    if (group === undefined) {
      group = new FunctionGroup(this.#nextGroup++, this.world.unit);
      this.#groups.set(key, group);
    }
    group.members.add(fn);
    return group;
  }

  iommuGroupOf(fn: PciFunction): IommuGroup {
    return this.group(fn) as unknown as IommuGroup;
  }

  /** Gives a function to vfio-pci. */
  bind(fn: PciFunction): VfioPciDevice {
    const held = this.bus.driverOf(fn);
    if (held !== undefined) this.bus.unbind(held, fn.name);
    this.bus.setOverride(fn, 'vfio-pci');
    this.bus.bind('vfio-pci', fn.name);
    return this.vfioPci.deviceOf(fn)!;
  }

  /** Opens a device through its group and a container. */
  open(
    fn: PciFunction,
    container = this.container(fn),
  ): { file: DeviceFile; descriptor: number; container: TestContainer } {
    const descriptor = container.open(this.group(fn), fn.name);
    return { file: deviceFile(this.task, descriptor), descriptor, container };
  }

  container(fn: PciFunction): TestContainer {
    const container = this.world.container(this.task, [this.group(fn)]);
    this.#containers.push(container);
    return container;
  }

  /** The container through which a device was opened. */
  containerOf(file: DeviceFile): TestContainer {
    const { iommuGroup } = file.device;
    return this.#containers.find((container) =>
      [...container.groups.keys()].some((g) => (g as unknown) === iommuGroup),
    )!;
  }

  #appeared(fn: PciFunction): void {
    if (fn.isBridge) return;
    this.group(fn);
    this.bus.add(fn);
  }
}

/** The recorded machine: edu alone (00:04.0), a testdev behind a root port (05:00.0), two edu behind one bridge (04:01.0, 04:02.0). */
export function recordedMachine(environment: Partial<VfioPciEnvironment> = {}): TestMachine & {
  edu: PciFunction;
  first: PciFunction;
  second: PciFunction;
  express: PciFunction;
} {
  const machine = new TestMachine(environment);
  const trapped = { bars: 'trapped' };
  const alone = machine.add(edu, 4, { barAddresses: { 0: 0xfea0_0000 }, interruptLine: 10 }, trapped);
  const port = machine.add(rootPort, 9, { secondary: 3 });
  const bridge = machine.add(pciePciBridge, 0, { bus: port.secondary!, secondary: 4 });
  const first = machine.add(
    edu,
    1,
    { bus: bridge.secondary!, barAddresses: { 0: 0xfe00_0000 }, interruptLine: 11 },
    trapped,
  );
  const second = machine.add(edu, 2, { bus: bridge.secondary! }, trapped);
  const expressPort = machine.add(rootPort, 10, { secondary: 5 });
  const express = machine.add(testdev, 0, { bus: expressPort.secondary! }, { totalVfs: 2 });
  machine.tree.enumerate();
  return Object.assign(machine, { edu: alone, first, second, express });
}

export { refusal };
