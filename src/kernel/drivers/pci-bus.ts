/**
 * The PCI driver core: which driver holds which function, and everything by which that changes: functions that come and go,
 * drivers that register, and the files of /sys/bus/pci (`new_id`, `remove_id`, `bind`, `unbind`, `drivers_probe`,
 * `driver_override`).
 *
 * A driver that does DMA for the host takes the default domain of the function's IOMMU group at each bind; while a user holds the
 * group that is refused, so the function stays without a driver. Unbinding may have to wait for a user; then the function is on its
 * way out until a callback says that it is done.
 */
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import type { IommuGroup } from '../iommu/group.ts';
import { identityOf, idOf, matches, type PciDeviceId, parseIds } from './pci-ids.ts';

export interface PciDriver {
  readonly name: string;
  readonly ids: readonly PciDeviceId[];
  /** The driver does no DMA of its own, or sees to it itself: the group may be handed to users all the same. */
  readonly managesOwnDma?: boolean;
  /** Takes a function. An Errno says why not, and nothing is left of the attempt. */
  probe(fn: PciFunction): void;
  /** Lets go of a function; `done` is called when that is complete, now or later. */
  remove(fn: PciFunction, done: () => void): void;
  /**
   * Sets the number of virtual functions (`sriov_numvfs`): 0 takes all away, more are made while there are none. `done` is called
   * when that is complete, now or later. Absent: the driver cannot.
   */
  sriovConfigure?(fn: PciFunction, count: number, done: () => void): void;
  /** Ends a wait of `remove`: the driver keeps the function, `done` is not called. False: it does not wait, or cannot stop. */
  cancelRemove?(fn: PciFunction): boolean;
}

/**
 * `removing`: the function goes, its driver has still to let go of it; `removed`: it is off the bus. `leaving`: the driver lets go of the
 * function but has to wait for somebody; `unbound` follows.
 */
export type BusEvent = 'added' | 'bound' | 'leaving' | 'unbound' | 'removing' | 'removed';
export type BusListener = (event: BusEvent, fn: PciFunction) => void;

interface Slot {
  readonly fn: PciFunction;
  driver: PciDriver | undefined;
  override: string | undefined;
  /** Set while the driver lets go: who waits for it. */
  leaving: (() => void)[] | undefined;
}

interface DriverEntry {
  readonly driver: PciDriver;
  readonly dynamic: PciDeviceId[];
}

export class PciBus {
  /** Whether functions that appear are offered to drivers (`drivers_autoprobe`). */
  autoprobe = true;
  /** Physical functions whose virtual functions are offered to no driver (`sriov_drivers_autoprobe` is 0). */
  readonly withoutAutoprobe = new WeakSet<PciFunction>();
  readonly #drivers = new Map<string, DriverEntry>();
  readonly #slots = new Map<PciFunction, Slot>();
  readonly #listeners = new Set<BusListener>();
  readonly #groupOf: (fn: PciFunction) => IommuGroup | undefined;

  constructor(groupOf: (fn: PciFunction) => IommuGroup | undefined) {
    this.#groupOf = groupOf;
  }

  /** Names of drivers in the order of their registration. */
  drivers(): string[] {
    return [...this.#drivers.keys()];
  }

  /** Calls `listener` at each change from now on; the result stops it. */
  watch(listener: BusListener): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }

  // ---- functions and drivers ----

  /** A driver is loaded: it is offered all functions without one. EBUSY: there is one of this name. */
  register(driver: PciDriver): void {
    if (this.#drivers.has(driver.name)) throw new Errno('EBUSY', `there is a driver ${driver.name} already`);
    this.#drivers.set(driver.name, { driver, dynamic: [] });
    if (this.autoprobe) this.#attach(driver.name);
  }

  /** A function has appeared; its IOMMU group is known. It is offered to the drivers, unless `autoprobe` is off. */
  add(fn: PciFunction): void {
    if (this.#slots.has(fn)) throw new Error(`${fn.name} is on the bus already`);
    const slot: Slot = { fn, driver: undefined, override: undefined, leaving: undefined };
    this.#slots.set(fn, slot);
    this.#notify('added', fn);
    // Who watches may have claimed it.
    if (this.autoprobe && slot.driver === undefined) this.#probeAny(slot);
  }

  /** A function goes: its driver lets go of it first. `done` is called when it is off the bus, now or later. */
  remove(fn: PciFunction, done: () => void = () => {}): void {
    const slot = this.#slot(fn);
    this.#notify('removing', fn);
    const finish = (): void => {
      // Who waited before us may have given it to a driver again.
      if (slot.driver !== undefined) {
        this.#release(slot, finish);
        return;
      }
      this.#slots.delete(fn);
      this.#notify('removed', fn);
      done();
    };
    finish();
  }

  /** Binds a function to a driver whatever its ids say. EBUSY: it has one. What probing says otherwise. */
  claim(driverName: string, fn: PciFunction): void {
    const { driver } = this.#entry(driverName);
    const slot = this.#slot(fn);
    if (slot.driver !== undefined) throw new Errno('EBUSY', `${fn.name} is held by ${slot.driver.name}`);
    this.#probe(slot, driver);
  }

  driverOf(fn: PciFunction): string | undefined {
    return this.#slots.get(fn)?.driver?.name;
  }

  driver(name: string): PciDriver | undefined {
    return this.#drivers.get(name)?.driver;
  }

  /** The driver lets go of a function that stays on the bus. `done` is called when it has, now or later. */
  release(fn: PciFunction, done: () => void = () => {}): void {
    const slot = this.#slot(fn);
    if (slot.driver === undefined) done();
    else this.#release(slot, done);
  }

  /** A function by its name in sysfs. */
  find(functionName: string): PciFunction | undefined {
    return this.#find(functionName)?.fn;
  }

  /** Whether the function's driver is on its way out and waits for a user. */
  isLeaving(fn: PciFunction): boolean {
    return this.#slots.get(fn)?.leaving !== undefined;
  }

  /** Functions that a driver holds, in the order of the bus. */
  functionsOf(driverName: string): PciFunction[] {
    return [...this.#slots.values()].filter((slot) => slot.driver?.name === driverName).map((slot) => slot.fn);
  }

  overrideOf(fn: PciFunction): string | undefined {
    return this.#slots.get(fn)?.override;
  }

  /** Functions that match a driver and are on their way out of another's hands, or its own. */
  leavingFor(driverName: string): PciFunction[] {
    return [...this.#slots.values()]
      .filter((slot) => slot.leaving !== undefined && this.#matches(driverName, slot))
      .map(({ fn }) => fn);
  }

  /** Offers a driver everything that it matches and that has none. */
  offer(driverName: string): void {
    this.#attach(driverName);
  }

  // ---- the files of sysfs ----

  /** `driver_override`: only this driver may take the function from now on; undefined ends that. Nothing is bound or unbound. */
  setOverride(fn: PciFunction, name: string | undefined): void {
    if (name !== undefined && name.length >= 4095)
      throw new Errno('EINVAL', 'the name of a driver is shorter than a page');
    this.#slot(fn).override = name;
  }

  /** `bind`. ENODEV: no such function, or it does not match. EBUSY: it has a driver. What probing says otherwise. */
  bind(driverName: string, functionName: string): void {
    const { driver } = this.#entry(driverName);
    const slot = this.#find(functionName);
    if (slot === undefined) throw new Errno('ENODEV', `there is no function ${functionName}`);
    if (!this.#matches(driverName, slot)) {
      throw new Errno(
        'ENODEV',
        `${driverName} has no id for ${functionName} (${describe(slot.fn)}); see new_id and driver_override`,
      );
    }
    if (slot.driver !== undefined) throw new Errno('EBUSY', `${functionName} is held by ${slot.driver.name}`);
    this.#probe(slot, driver);
  }

  /**
   * `unbind`. `busy`: a user holds the function; `done` is called when he has let go. ENODEV: no such function, or this driver does
   * not hold it.
   */
  unbind(driverName: string, functionName: string, done: () => void = () => {}): 'done' | 'busy' {
    this.#entry(driverName);
    const slot = this.#find(functionName);
    if (slot?.driver?.name !== driverName) throw new Errno('ENODEV', `${functionName} is not held by ${driverName}`);
    let isDone = false;
    let isLate = false;
    this.#release(slot, () => {
      isDone = true;
      if (isLate) done();
    });
    isLate = true;
    return isDone ? 'done' : 'busy';
  }

  /** `drivers_probe`: offers a function to all drivers. ENODEV: no such function. EINVAL: a driver refused it. */
  probe(functionName: string): void {
    const slot = this.#find(functionName);
    if (slot === undefined) throw new Errno('ENODEV', `there is no function ${functionName}`);
    if (slot.driver === undefined) this.#probeAny(slot);
  }

  /**
   * `new_id`: from now on the driver also takes functions with these ids, and those without a driver at once. EINVAL: malformed.
   * EEXIST: it has the ids already.
   */
  newId(driverName: string, text: string): void {
    const entry = this.#entry(driverName);
    const numbers = parseIds(text, 7);
    const id = idOf(numbers);
    if (numbers.length !== 7) {
      const is = {
        vendor: id.vendor,
        device: id.device,
        subvendor: id.subvendor,
        subdevice: id.subdevice,
        class24: id.class,
      };
      const rows = [...entry.driver.ids.filter((row) => row.override_only !== true), ...entry.dynamic];
      if (rows.some((row) => matches(row, is)))
        throw new Errno('EEXIST', `${driverName} has the ids '${text.trim()}' already`);
    }
    if ((numbers[6] ?? 0) !== 0)
      throw new Errno('EINVAL', `${driverName} has no row with driver data 0x${numbers[6]!.toString(16)}`);
    entry.dynamic.push(id);
    this.#attach(driverName);
  }

  /** `remove_id`. EINVAL: malformed. ENODEV: the driver was not given these ids. What it holds it keeps. */
  removeId(driverName: string, text: string): void {
    const { dynamic } = this.#entry(driverName);
    const { vendor, device, subvendor, subdevice, class: wanted, class_mask } = idOf(parseIds(text, 6));
    const any = idOf([0, 0]).subvendor;
    const at = dynamic.findIndex(
      (id) =>
        id.vendor === vendor &&
        id.device === device &&
        (subvendor === any || id.subvendor === subvendor) &&
        (subdevice === any || id.subdevice === subdevice) &&
        ((id.class ^ wanted) & class_mask) === 0,
    );
    if (at < 0) throw new Errno('ENODEV', `${driverName} was not given the ids '${text.trim()}'`);
    dynamic.splice(at, 1);
  }

  // ---- within ----

  #slot(fn: PciFunction): Slot {
    const slot = this.#slots.get(fn);
    if (slot === undefined) throw new Errno('ENODEV', `${fn.name} is not on the bus`);
    return slot;
  }

  #find(functionName: string): Slot | undefined {
    const wanted = functionName.trim();
    for (const slot of this.#slots.values()) if (slot.fn.name === wanted) return slot;
    return undefined;
  }

  #entry(driverName: string): DriverEntry {
    const entry = this.#drivers.get(driverName);
    if (entry === undefined) throw new Errno('ENOENT', `there is no driver ${driverName}`);
    return entry;
  }

  #matches(driverName: string, { fn, override }: Slot): boolean {
    if (override !== undefined) return override === driverName;
    const { driver, dynamic } = this.#drivers.get(driverName)!;
    const is = identityOf(fn);
    return (
      dynamic.some((id) => matches(id, is)) || driver.ids.some((id) => id.override_only !== true && matches(id, is))
    );
  }

  /** Offers a driver everything that has none; refusals are for the log. */
  #attach(driverName: string): void {
    const { driver } = this.#drivers.get(driverName)!;
    for (const slot of [...this.#slots.values()]) {
      if (slot.driver !== undefined || !this.#matches(driverName, slot)) continue;
      tryProbe(() => this.#probe(slot, driver));
    }
  }

  /** Offers a function to every driver that matches, until one takes it. */
  #probeAny(slot: Slot): void {
    for (const [name, { driver }] of this.#drivers) {
      if (!this.#matches(name, slot)) continue;
      tryProbe(() => this.#probe(slot, driver));
      if (slot.driver !== undefined) return;
    }
  }

  #probe(slot: Slot, driver: PciDriver): void {
    const { fn, override } = slot;
    if (fn.physfn !== undefined && this.withoutAutoprobe.has(fn.physfn) && override === undefined) {
      throw new Errno(
        'ENODEV',
        `sriov_drivers_autoprobe of ${fn.physfn.name} is 0 and ${fn.name} has no driver_override`,
      );
    }
    const group = driver.managesOwnDma ? undefined : this.#groupOf(fn);
    group?.useDefaultDomain(fn);
    try {
      driver.probe(fn);
    } catch (error) {
      group?.unuseDefaultDomain(fn);
      throw error;
    }
    slot.driver = driver;
    this.#notify('bound', fn);
  }

  #release(slot: Slot, done: () => void): void {
    if (slot.leaving !== undefined) {
      slot.leaving.push(done);
      return;
    }
    const { fn } = slot;
    const driver = slot.driver!;
    const waiting = [done];
    slot.leaving = waiting;
    driver.remove(fn, () => {
      slot.driver = undefined;
      slot.leaving = undefined;
      if (!driver.managesOwnDma) this.#groupOf(fn)?.unuseDefaultDomain(fn);
      this.#notify('unbound', fn);
      for (const waiter of waiting) waiter();
    });
    if (slot.leaving === waiting) this.#notify('leaving', fn);
  }

  #notify(event: BusEvent, fn: PciFunction): void {
    for (const listener of [...this.#listeners]) listener(event, fn);
  }
}

/** A refusal leaves the function without a driver; anything else is a bug. */
function tryProbe(probe: () => void): void {
  try {
    probe();
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
  }
}

function describe(fn: PciFunction): string {
  const hex4 = (value: number): string => value.toString(16).padStart(4, '0');
  return `${hex4(fn.vendor)}:${hex4(fn.device)}`;
}
