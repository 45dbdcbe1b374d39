/**
 * The machine's PCI drivers: who holds which function at the start, and the files below /sys/bus/pci by which that changes.
 */

import type { SharedMemory } from '../hw/memory/backing.ts';
import type { PciFunction } from '../hw/pci/function.ts';
import { allHostDrivers } from '../kernel/drivers/host-drivers.ts';
import { PciBus } from '../kernel/drivers/pci-bus.ts';
import { VfioPciDriver } from '../kernel/drivers/vfio-pci/vfio-pci.ts';
import type { IommuCore } from '../kernel/iommu/iommu.ts';
import { DeviceSets } from '../kernel/vfio/pci/device-set.ts';
import type { VfioCore } from '../kernel/vfio/vfio.ts';
import { Errno } from '../lib/errno.ts';
import { type FunctionConfig, fullAddress, HostFileError } from './host-file.ts';
import type { Platform } from './platform.ts';
import { seededBytes } from './random.ts';
import type { DriverControl } from './sysfs/pci.ts';
import { type SysfsTree, text } from './sysfs/tree.ts';

const decoder = new TextDecoder();

export class Drivers implements DriverControl {
  readonly bus: PciBus;
  readonly #sets = new DeviceSets();

  constructor(parts: { iommu: IommuCore; vfio: VfioCore; platform: Platform }) {
    const groupOf = (fn: PciFunction) => parts.iommu.groupOf(fn);
    this.bus = new PciBus(groupOf);
    this.bus.autoprobe = false;
    const { clock, allocateShared, seed } = parts.platform;
    const random = seed === undefined ? undefined : seededBytes(seed);
    const vfioPci = new VfioPciDriver(parts.vfio, {
      clock,
      allocateShared,
      groupOf,
      sets: this.#sets,
      ...(random !== undefined && { makeToken: () => random(16) }),
    });
    for (const driver of [...allHostDrivers(), vfioPci]) this.bus.register(driver);
    vfioPci.captureVirtualFunctions(this.bus);
  }

  driverOf(fn: PciFunction): string | undefined {
    return this.bus.driverOf(fn);
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

  /** Calls `listener` when a function got or lost a driver. */
  onChange(listener: (fn: PciFunction) => void): void {
    this.bus.watch((event, fn) => {
      if (event === 'bound' || event === 'unbound') listener(fn);
    });
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
        this.bus.bind(driver, fn.name);
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
    const command = (path: string, act: (argument: string) => void): void =>
      tree.attribute(path, {
        mode: 0o200,
        store: (bytes) => {
          act(decoder.decode(bytes).replace(/\n$/, ''));
          return bytes.length;
        },
      });
    for (const name of this.bus.drivers()) {
      const folder = `${bus}/drivers/${name}`;
      command(`${folder}/bind`, (fn) => this.bus.bind(name, fn));
      command(`${folder}/unbind`, (fn) => {
        this.bus.unbind(name, fn);
      });
      command(`${folder}/new_id`, (ids) => this.bus.newId(name, ids));
      command(`${folder}/remove_id`, (ids) => this.bus.removeId(name, ids));
    }
    command(`${bus}/drivers_probe`, (fn) => this.bus.probe(fn));
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
