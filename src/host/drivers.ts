/**
 * The machine's PCI drivers: who holds which function at the start, and the files below /sys/bus/pci by which that changes.
 */

import type { SharedMemory } from '../hw/memory/backing.ts';
import type { PciFunction } from '../hw/pci/function.ts';
import type { Bus, PciTree } from '../hw/pci/tree.ts';
import { Blocked } from '../kernel/core/blocked.ts';
import { allHostDrivers } from '../kernel/drivers/host-drivers.ts';
import { PasidWalkerDriver, type WalkerEnvironment } from '../kernel/drivers/pasid-walker/pasid-walker.ts';
import { PciBus } from '../kernel/drivers/pci-bus.ts';
import { again, PciCore } from '../kernel/drivers/pci-core.ts';
import { VfioPci2011Driver } from '../kernel/drivers/vfio-2011/vfio-pci-2011.ts';
import { VfioPciDriver } from '../kernel/drivers/vfio-pci/vfio-pci.ts';
import type { IommuGroup } from '../kernel/iommu/group.ts';
import type { IommuCore } from '../kernel/iommu/iommu.ts';
import { DeviceSets } from '../kernel/vfio/pci/device-set.ts';
import type { VfioPciEnvironment } from '../kernel/vfio/pci/environment.ts';
import type { VfioCore } from '../kernel/vfio/vfio.ts';
import { Errno } from '../lib/errno.ts';
import type { Api2011 } from './api-2011.ts';
import { type FunctionConfig, fullAddress, HostFileError } from './host-file.ts';
import type { Interrupts } from './interrupts.ts';
import type { Platform } from './platform.ts';
import { seededBytes } from './random.ts';
import { unsigned } from './sysfs/numbers.ts';
import type { DriverControl } from './sysfs/pci.ts';
import { type SysfsTree, text } from './sysfs/tree.ts';

const decoder = new TextDecoder();

export class Drivers implements DriverControl {
  readonly bus: PciBus;
  readonly core: PciCore;
  /** vfio-pci's parameter: whether it makes virtual functions. */
  enableSriov: boolean;
  readonly #listeners: ((fn: PciFunction) => void)[] = [];
  readonly #sets = new DeviceSets();
  readonly #vfio2011: VfioPci2011Driver | undefined;

  constructor(parts: {
    tree: PciTree;
    iommu: IommuCore;
    vfio: VfioCore;
    platform: Platform;
    interrupts: Interrupts;
    enableSriov: boolean;
    api2011: Api2011 | undefined;
    walkers: Pick<WalkerEnvironment, 'sva' | 'publish'>;
  }) {
    const groupOf = (fn: PciFunction) => parts.iommu.groupOf(fn);
    this.bus = new PciBus(groupOf);
    this.bus.autoprobe = false;
    this.core = new PciCore(parts.tree, this.bus, parts.iommu, (text) => parts.platform.log(text));
    this.enableSriov = parts.enableSriov;
    const { clock, allocateShared, seed } = parts.platform;
    const random = seed === undefined ? undefined : seededBytes(seed);
    const removeVirtualFunctions = (fn: PciFunction, done: () => void) => this.core.removeVirtualFunctions(fn, done);
    const environment: VfioPciEnvironment = {
      clock,
      allocateShared,
      groupOf,
      sets: this.#sets,
      allocateIrqs: (fn, handlers) => parts.interrupts.allocate(fn, handlers),
      ...(parts.interrupts.bypass !== undefined && { bypass: parts.interrupts.bypass }),
      ...(random !== undefined && { makeToken: () => random(16) }),
    };
    for (const driver of allHostDrivers(removeVirtualFunctions)) this.bus.register(driver);
    this.bus.register(new PasidWalkerDriver({ ...parts.walkers, groupOf }));
    const { api2011 } = parts;
    if (api2011?.isAlone !== true) {
      const enableSriov = (): boolean => this.enableSriov;
      const hidden = (fn: PciFunction): void => {
        for (const listener of this.#listeners) listener(fn);
      };
      const options = { enableSriov, removeVirtualFunctions, hidden };
      const vfioPci = new VfioPciDriver(parts.vfio, environment, options);
      this.bus.register(vfioPci);
      vfioPci.captureVirtualFunctions(this.bus);
    }
    if (api2011 !== undefined) {
      const servedBy = (group: IommuGroup) => api2011.servedBy(group.id);
      const options = { servedBy, today: parts.vfio };
      this.#vfio2011 = new VfioPci2011Driver(api2011.core, this.bus, environment, options);
      this.bus.register(this.#vfio2011);
    }
  }

  driverOf(fn: PciFunction): string | undefined {
    return this.bus.isLeaving(fn) ? undefined : this.bus.driverOf(fn);
  }

  holderOf(fn: PciFunction): string | undefined {
    return this.bus.driverOf(fn);
  }

  get withoutAutoprobe(): WeakSet<PciFunction> {
    return this.bus.withoutAutoprobe;
  }

  setNumVfs(fn: PciFunction, count: number, result: number): void {
    this.core.setNumVfs(fn, count, result);
  }

  remove(fn: PciFunction, result: number): void {
    waitFor(result, `a program holds ${fn.name}, or something behind it`, (done) => this.core.remove(fn, done));
  }

  rescan(bus: Bus | undefined, result: number): void {
    waitFor(
      result,
      'a function is being removed that a program holds',
      (done) => this.core.afterRemovals(done),
      () => this.core.rescan(bus),
    );
  }

  /** `new_id`. Errors as of `PciBus.newId`. Blocked, with `result`: a function that the driver now matches is still held through another. */
  newId(driver: string, ids: string, result: number): void {
    this.bus.newId(driver, ids);
    const leaving = this.bus.leavingFor(driver);
    if (leaving.length === 0) return;
    let left = leaving.length;
    waitFor(
      result,
      `${leaving[0]!.name}, which ${driver} now matches, is still held`,
      (done) => {
        for (const fn of leaving) this.bus.release(fn, () => --left === 0 && done());
      },
      () => this.bus.offer(driver),
    );
  }

  /** `unbind`. ENODEV. Blocked, with `result`: a program holds the function. */
  unbind(driver: string, functionName: string, result: number): void {
    waitFor(result, `a program holds ${functionName.trim()}`, (done) => {
      if (this.bus.unbind(driver, functionName, done) === 'done') done();
    });
  }

  /** `bind`. Errors as of `PciBus.bind`. Blocked, with `result`: the function's driver is still letting go of it. */
  bind(driver: string, functionName: string, result: number): void {
    const fn = this.bus.find(functionName);
    if (fn !== undefined && this.bus.isLeaving(fn)) {
      const blocked = new Blocked(result, `${fn.name} is still held through ${this.bus.driverOf(fn)}`);
      this.bus.release(fn, () => again(blocked, () => this.bus.bind(driver, functionName)));
      throw blocked;
    }
    this.bus.bind(driver, functionName);
  }

  overrideOf(fn: PciFunction): string | undefined {
    return this.bus.overrideOf(fn);
  }

  setOverride(fn: PciFunction, name: string | undefined): void {
    this.bus.setOverride(fn, name);
  }

  /** The physical page of byte `offset` of a BAR that a program has mapped, -1 when nobody knows the memory. */
  physicalOf(memory: SharedMemory, offset: number): number {
    for (const device of this.#sets.devices()) {
      const page = device.physicalPage(memory, offset);
      if (page >= 0) return page;
    }
    return -1;
  }

  /** Calls `listener` when a function got or lost a driver, or cannot be opened any more. */
  onChange(listener: (fn: PciFunction) => void): void {
    this.#listeners.push(listener);
    this.bus.watch((event, fn) => {
      if (event === 'bound' || event === 'leaving' || event === 'unbound') listener(fn);
    });
  }

  /** The API of 2011 sees functions from now on; whoever shows them has to be watching already. */
  watchFor2011(): void {
    this.#vfio2011?.watch();
  }

  /** Binds what the host file says, in its order; from then on new functions are offered to drivers. HostFileError. */
  bindAtStart(placed: ReadonlyMap<PciFunction, FunctionConfig>, order: readonly string[]): void {
    const rank = new Map(order.map((at, i) => [fullAddress(at), i]));
    for (const at of rank.keys()) {
      if (![...placed.keys()].some((fn) => fn.name === at)) {
        throw new HostFileError(`at bindOrder: the machine has no function ${at}`);
      }
    }
    const last = rank.size;
    const functions = [...placed].sort(
      ([a], [b]) => (rank.get(a.name) ?? last) - (rank.get(b.name) ?? last) || (a.name < b.name ? -1 : 1),
    );
    for (const [fn, { driver }] of functions) {
      if (driver === undefined || driver === null) continue;
      if (!this.bus.drivers().includes(driver)) {
        throw new HostFileError(
          `at ${fn.name}: there is no driver '${driver}'; there are ${this.bus.drivers().join(', ')}`,
        );
      }
      try {
        if (driver === 'vfio-pci' || driver === 'pci-stub') this.bus.setOverride(fn, driver);
        // These know no ids of their own; an administrator would have given them some.
        if (driver === 'vfio' || driver === 'uio_pci_generic') this.bus.claim(driver, fn);
        else this.bus.bind(driver, fn.name);
      } catch (error) {
        if (!(error instanceof Errno)) throw error;
        throw new HostFileError(`at ${fn.name}: the driver ${driver} cannot be bound: ${error.why}`);
      }
    }
    this.bus.autoprobe = true;
  }

  /** The files of the bus and of each driver. */
  publish(tree: SysfsTree): void {
    const bus = '/sys/bus/pci';
    const command = (path: string, act: (argument: string, result: number) => void): void =>
      tree.attribute(path, {
        mode: 0o200,
        store: (bytes) => {
          act(decoder.decode(bytes).replace(/\n$/, ''), bytes.length);
          return bytes.length;
        },
      });
    for (const name of this.bus.drivers()) {
      const folder = `${bus}/drivers/${name}`;
      command(`${folder}/bind`, (fn, result) => this.bind(name, fn, result));
      command(`${folder}/unbind`, (fn, result) => this.unbind(name, fn, result));
      command(`${folder}/new_id`, (ids, result) => this.newId(name, ids, result));
      command(`${folder}/remove_id`, (ids) => this.bus.removeId(name, ids));
    }
    command(`${bus}/drivers_probe`, (fn) => this.bus.probe(fn));
    tree.attribute(`${bus}/rescan`, {
      mode: 0o200,
      store: (bytes) => {
        if (unsigned(bytes, 'rescan', 2 ** 32) !== 0) this.rescan(undefined, bytes.length);
        return bytes.length;
      },
    });
    tree.attribute(`${bus}/drivers_autoprobe`, {
      mode: 0o644,
      show: () => text(this.bus.autoprobe ? '1\n' : '0\n'),
      store: (bytes) => {
        this.bus.autoprobe = bytes[0] !== 0x30;
        return bytes.length;
      },
    });
    tree.directory(`${bus}/slots`);
  }
}

/**
 * Starts something that may end later; then the caller has to wait: Blocked, with `result`. `then` is what remains to be done at the
 * end; its refusal is the caller's.
 */
export function waitFor(
  result: number,
  why: string,
  start: (done: () => void) => void,
  then: () => void = () => {},
): void {
  const blocked = new Blocked(result, why);
  let isDone = false;
  let isLate = false;
  start(() => {
    isDone = true;
    if (isLate) again(blocked, then);
  });
  isLate = true;
  if (!isDone) throw blocked;
  then();
}
