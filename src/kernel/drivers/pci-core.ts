/**
 * Which of the functions in the machine's slots the kernel knows: those found at the start, those that appear (a card is plugged in, a
 * physical function makes virtual ones, `rescan`), without those that it was told to forget (`remove`) and those that are pulled out.
 *
 * A function comes in the order of the kernel: its IOMMU group, then the bus, then a driver. It goes the other way round, and each step
 * may have to wait for programs that hold it; then its slot stays occupied until the last of them lets go.
 */
import type { PciFunction } from '../../hw/pci/function.ts';
import type { Bus, PciTree } from '../../hw/pci/tree.ts';
import { Errno } from '../../lib/errno.ts';
import { Blocked } from '../core/blocked.ts';
import type { IommuCore } from '../iommu/iommu.ts';
import type { PciBus } from './pci-bus.ts';

/** What somebody wants for a function that is about to appear. */
export interface Expectation {
  /** Id of the IOMMU group if the function founds one. */
  readonly group?: number | undefined;
  /** driver_override that it has from the beginning. */
  readonly override?: string | undefined;
}

type Done = () => void;

export class PciCore {
  readonly #tree: PciTree;
  readonly #bus: PciBus;
  readonly #iommu: IommuCore;
  readonly #log: (text: string) => void;
  readonly #known = new Set<PciFunction>();
  /** By name, for the functions that appear during one `plug`. */
  #expected: Expectation = {};
  /** Ids of groups that the description gave to functions: they get them again when they come back. */
  readonly #groupIds = new WeakMap<PciFunction, number>();
  /** Functions on their way out, with those who wait for that. */
  readonly #leaving = new Map<PciFunction, Done[]>();
  /** How often `remove` is under way, and who waits for the end of all of them. */
  #removals = 0;
  readonly #afterRemovals: Done[] = [];
  /** Functions that a `remove` will reach. */
  readonly #going = new Set<PciFunction>();
  /** Physical functions whose virtual functions are being taken away. */
  readonly #disabling = new Map<PciFunction, Done[]>();

  constructor(tree: PciTree, bus: PciBus, iommu: IommuCore, log: (text: string) => void = () => {}) {
    this.#tree = tree;
    this.#bus = bus;
    this.#iommu = iommu;
    this.#log = log;
    bus.watch((event, fn) => {
      if (event === 'added' && this.#expected.override !== undefined) bus.setOverride(fn, this.#expected.override);
    });
  }

  /** From now on functions that appear in the machine are noticed, and those that are pulled out are missed. */
  watch(): void {
    this.#tree.watch({ added: (fn) => this.#appeared(fn), removed: (fn) => this.#forget(fn, () => {}) });
  }

  knows(fn: PciFunction): boolean {
    return this.#known.has(fn);
  }

  /** The function is found: it gets its group and comes on the bus. Errors as of `IommuCore.probe`. */
  add(fn: PciFunction, expectation: Expectation = {}): void {
    if (this.#known.has(fn)) return;
    if (expectation.group !== undefined) this.#groupIds.set(fn, expectation.group);
    const id = this.#groupIds.get(fn);
    const isTaken = id !== expectation.group && this.#iommu.groups().some((group) => group.id === id);
    this.#iommu.probe(fn, isTaken ? undefined : id);
    this.#known.add(fn);
    const outer = this.#expected;
    this.#expected = expectation;
    try {
      this.#bus.add(fn);
    } finally {
      this.#expected = outer;
    }
  }

  /** Calls `insert`, which puts a function into a slot; it is then found as `expectation` says. */
  expect(expectation: Expectation, insert: () => PciFunction): PciFunction {
    const outer = this.#expected;
    this.#expected = expectation;
    try {
      return insert();
    } finally {
      this.#expected = outer;
    }
  }

  /** EBUSY: a program still holds the function that was at this address. */
  checkFree(name: string): void {
    for (const fn of this.#known) {
      if (fn.name === name && !fn.present) throw new Errno('EBUSY', `a program still holds what was at ${name}`);
    }
  }

  /**
   * `remove`: the kernel lets go of the function and all behind it and forgets them; they stay in their slots, where `rescan` finds
   * them. `done` is called at the end, now or later. ENODEV: it is not known.
   */
  remove(fn: PciFunction, done: Done = () => {}): void {
    if (!this.#known.has(fn)) throw new Errno('ENODEV', `${fn.name} is not on the bus`);
    const all = (fn.secondary === undefined ? [fn] : [fn, ...fn.secondary.subtree()])
      .filter((other) => this.#known.has(other))
      .reverse();
    for (const other of all) this.#going.add(other);
    const ended = (): void => {
      for (const other of all) this.#going.delete(other);
      this.#removals--;
      if (this.#removals === 0) for (const waiter of this.#afterRemovals.splice(0)) waiter();
    };
    this.#removals++;
    inSequence(
      all,
      // While one is waited for, somebody else may have removed another.
      (other, next) => (this.#known.has(other) ? this.#bus.release(other, next) : next()),
      () =>
        inSequence(
          all.filter((other) => this.#known.has(other)),
          (other, next) => this.#forget(other, next),
          () => {
            done();
            ended();
          },
        ),
    );
  }

  /** Calls `then` when no `remove` is under way. False: that is now, and it was called. */
  afterRemovals(then: Done): boolean {
    if (this.#removals === 0) {
      then();
      return false;
    }
    this.#afterRemovals.push(then);
    return true;
  }

  /** `remove`, then the function is taken out of its slot. */
  unplug(fn: PciFunction, done: Done = () => {}): void {
    const pull = (): void => {
      this.#tree.remove(fn);
      done();
    };
    if (this.#known.has(fn)) this.remove(fn, pull);
    else pull();
  }

  /** `rescan`: finds what stands in slots and is not known; on one bus and below, or everywhere. */
  rescan(bus?: Bus): void {
    const from = bus === undefined ? this.#tree.roots : [bus];
    for (const fn of from.flatMap((root) => root.subtree())) if (!fn.isVirtfn) this.#appeared(fn);
  }

  // ---- virtual functions ----

  /**
   * `sriov_numvfs`. ERANGE: more than the function has. ENOENT: it has no driver, or one that cannot. EBUSY: there are some already.
   * What the driver says. Blocked: virtual functions that are to go are in use.
   */
  setNumVfs(fn: PciFunction, count: number, result: number): void {
    const sriov = fn.sriov;
    if (sriov === undefined || count > sriov.totalVfs) {
      throw new Errno('ERANGE', `${fn.name} has ${sriov?.totalVfs ?? 0} virtual functions, not ${count}`);
    }
    const before = this.#disabling.get(fn);
    if (before !== undefined) {
      const blocked = new Blocked(result, `virtual functions of ${fn.name} are being taken away and in use`);
      before.push(() => again(blocked, () => this.setNumVfs(fn, count, result)));
      throw blocked;
    }
    if (this.#bus.isLeaving(fn)) {
      const blocked = new Blocked(result, `${this.#bus.driverOf(fn)} is letting go of ${fn.name}`);
      this.#bus.release(fn, () => again(blocked, () => this.setNumVfs(fn, count, result)));
      throw blocked;
    }
    const present = sriov.functions.length;
    if (count === present) return;
    const name = this.#bus.driverOf(fn);
    const driver = name === undefined ? undefined : this.#bus.driver(name);
    if (driver?.sriovConfigure === undefined) {
      const who = name === undefined ? `${fn.name} has no driver` : `${name}, the driver of ${fn.name},`;
      throw new Errno('ENOENT', `${who} ${name === undefined ? 'that could make' : 'cannot make'} virtual functions`);
    }
    if (count > 0 && present > 0) {
      throw new Errno('EBUSY', `${fn.name} has ${present} virtual functions already; sriov_numvfs must be 0 first`);
    }
    let isDone = false;
    const blocked = new Blocked(result, `virtual functions of ${fn.name} are in use`);
    let isLate = false;
    driver.sriovConfigure(fn, count, () => {
      isDone = true;
      if (isLate) blocked.end();
    });
    isLate = true;
    if (!isDone) throw blocked;
  }

  /** Takes all virtual functions away, one after the other, each as soon as nobody holds it. `done`: now or later. */
  removeVirtualFunctions(fn: PciFunction, done: Done): void {
    const waiting = this.#disabling.get(fn);
    if (waiting !== undefined) {
      // Who waited before may have made new ones.
      waiting.push(() => this.removeVirtualFunctions(fn, done));
      return;
    }
    const { sriov } = fn;
    if (sriov === undefined || sriov.functions.length === 0) {
      done();
      return;
    }
    const waiters: Done[] = [done];
    this.#disabling.set(fn, waiters);
    inSequence(
      sriov.functions.filter((virtual) => this.#known.has(virtual)),
      (virtual, next) => this.#forget(virtual, next),
      () => {
        if (fn.present) sriov.disable();
        this.#disabling.delete(fn);
        for (const waiter of waiters) waiter();
      },
    );
  }

  // ---- within ----

  #appeared(fn: PciFunction): void {
    // Behind a bridge that is not known, or will not be for long, nothing is seen.
    for (let bus: Bus | undefined = fn.bus; bus !== undefined; bus = bus.parent) {
      if (bus.self !== undefined && (!this.#known.has(bus.self) || this.#going.has(bus.self))) return;
    }
    try {
      this.add(fn, this.#expected);
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      this.#log(`${fn.name} cannot be used: ${error.why}`);
    }
  }

  #forget(fn: PciFunction, done: Done): void {
    if (!this.#known.has(fn)) {
      done();
      return;
    }
    const waiting = this.#leaving.get(fn);
    if (waiting !== undefined) {
      waiting.push(done);
      return;
    }
    const waiters = [done];
    this.#leaving.set(fn, waiters);
    this.removeVirtualFunctions(fn, () =>
      this.#bus.remove(fn, () => {
        this.#known.delete(fn);
        this.#leaving.delete(fn);
        this.#iommu.remove(fn);
        for (const waiter of waiters) waiter();
      }),
    );
  }
}

/** Runs a call again that waited for another one, and ends `blocked` as it ends. */
export function again(blocked: Blocked, call: () => void): void {
  try {
    call();
    blocked.end();
  } catch (error) {
    if (error instanceof Blocked) error.onEnd((end) => blocked.end(end));
    else if (error instanceof Errno) blocked.end(error);
    else throw error;
  }
}

/** Calls `step` for each item when the step before has called `next`; then `done`. Steps that end at once do not pile up. */
function inSequence<T>(items: readonly T[], step: (item: T, next: Done) => void, done: Done): void {
  let at = 0;
  let isRunning = false;
  let isReady = true;
  const run = (): void => {
    if (isRunning) return;
    isRunning = true;
    while (isReady && at < items.length) {
      isReady = false;
      step(items[at++]!, () => {
        isReady = true;
        run();
      });
    }
    isRunning = false;
    if (isReady && at === items.length) {
      isReady = false;
      done();
    }
  };
  run();
}
