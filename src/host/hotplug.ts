/**
 * Changes of a running machine: functions that come, go, and get another driver.
 */
import type { PciFunction } from '../hw/pci/function.ts';
import type { PciTree } from '../hw/pci/tree.ts';
import { Errno } from '../lib/errno.ts';
import { type Drivers, waitFor } from './drivers.ts';
import { type FunctionConfig, fullAddress, HostFileError, parseFunction } from './host-file.ts';
import { parseAddress, placeFunction } from './place-functions.ts';
import type { Platform } from './platform.ts';

export class Hotplug {
  /** Functions that somebody described, at the start or later: without those that others made. */
  readonly described: Map<PciFunction, FunctionConfig>;
  readonly #pci: PciTree;
  readonly #drivers: Drivers;
  readonly #platform: Platform;

  /** `placed`: the functions of the start. */
  constructor(pci: PciTree, drivers: Drivers, platform: Platform, placed: ReadonlyMap<PciFunction, FunctionConfig>) {
    this.#pci = pci;
    this.#drivers = drivers;
    this.#platform = platform;
    this.described = new Map([...placed].filter(([fn]) => !fn.isVirtfn));
    pci.watch({ removed: (fn) => this.described.delete(fn) });
  }

  /**
   * Puts a function into a slot of the running machine, as an entry of a host file describes it. HostFileError: it cannot be made, its
   * bus does not exist, the slot is taken, or a program still holds what was there before.
   */
  plug(config: FunctionConfig): PciFunction {
    const { segment, bus: number } = parseAddress(config.at);
    const bus = this.#pci.findBus(segment, number);
    if (bus === undefined) throw new HostFileError(`the machine has no bus ${fullAddress(config.at).slice(0, 7)}`);
    const { core, bus: drivers } = this.#drivers;
    const { driver, group } = config;
    if (driver !== undefined && driver !== null && !drivers.drivers().includes(driver)) {
      throw new HostFileError(`there is no driver '${driver}'; there are ${drivers.drivers().join(', ')}`);
    }
    try {
      core.checkFree(fullAddress(config.at));
      const fn = core.expect({ group, override: driver ?? undefined }, () =>
        placeFunction(config, 'the new function', bus, this.#platform),
      );
      this.described.set(fn, config);
      return fn;
    } catch (error) {
      if (error instanceof Errno) throw new HostFileError(error.why);
      throw error;
    }
  }

  /** An entry as `plug` takes it, from data. HostFileError: where it is wrong. */
  functionEntry(data: unknown): FunctionConfig {
    return parseFunction(data, 'the new function');
  }

  /** `unplug` that its caller has to wait for: Blocked, while programs hold the function. */
  takeOut(fn: PciFunction, how: 'ask' | 'pull'): void {
    waitFor(0, `a program holds ${fn.name}, or something behind it`, (done) => this.unplug(fn, how, done));
  }

  /**
   * Gives a function to a driver, also one that has no id for it; whatever driver has it lets go first. ENODEV: there is no such
   * driver, or it does not take the function. Blocked: a program holds the function.
   */
  giveTo(fn: PciFunction, driver: string): void {
    const { bus } = this.#drivers;
    if (!bus.drivers().includes(driver)) {
      throw new Errno('ENODEV', `there is no driver '${driver}'; there are ${bus.drivers().join(', ')}`);
    }
    if (bus.driverOf(fn) === driver && !bus.isLeaving(fn)) return;
    bus.setOverride(fn, driver);
    waitFor(
      0,
      `a program holds ${fn.name}`,
      (done) => bus.release(fn, done),
      () => bus.bind(driver, fn.name),
    );
  }

  /**
   * Takes a function and what is behind it out of the running machine. `ask`: the kernel lets go first, which may have to wait for
   * programs; `done` is then called later. `pull`: the card is gone at once, and programs that hold it find that out.
   */
  unplug(fn: PciFunction, how: 'ask' | 'pull', done: () => void = () => {}): void {
    if (how === 'ask') this.#drivers.core.unplug(fn, done);
    else {
      this.#pci.remove(fn);
      done();
    }
  }
}
