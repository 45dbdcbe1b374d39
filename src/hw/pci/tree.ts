/**
 * All PCI functions of one machine. Functions are placed one by one, bridges before what is behind them; `enumerate` is what
 * firmware does at power-on (bus numbers, addresses, interrupt lines), and does the same for functions added later.
 */
import { Errno } from '../../lib/errno.ts';
import * as reg from '../../uapi/pci-regs.ts';
import type { SharedMemory } from '../memory/backing.ts';
import type { PhysicalMemory } from '../memory/physical-memory.ts';
import { Bus } from './bus.ts';
import { noUpstream, type Upstream } from './dma.ts';
import { enumerate } from './firmware.ts';
import { PciFunction, type Place } from './function.ts';
import type { FunctionSpec } from './function-spec.ts';
import { firstFrom } from './topology.ts';

export { Bus } from './bus.ts';

export interface TreeOptions {
  readonly memory: PhysicalMemory;
  /** The unit that translates a function's DMA. Without it addresses are physical. May be changed later: `fn.dma.upstream`. */
  readonly upstreamOf?: (fn: PciFunction) => Upstream;
  /** Text for people: what firmware could not place. */
  readonly log?: (text: string) => void;
}

/** Told of functions that come and go after `watch`: hot-plug and SR-IOV. */
export interface TreeWatcher {
  added?(fn: PciFunction): void;
  /** The function is gone from its bus; it still knows its name. */
  removed?(fn: PciFunction): void;
}

export class PciTree {
  readonly roots: Bus[] = [];
  readonly memory: PhysicalMemory;
  readonly log: (text: string) => void;
  readonly #upstreamOf: ((fn: PciFunction) => Upstream) | undefined;
  readonly #watchers = new Set<TreeWatcher>();
  #enumerated = false;

  constructor(options: TreeOptions) {
    this.memory = options.memory;
    this.#upstreamOf = options.upstreamOf;
    this.log = options.log ?? (() => {});
  }

  /** A root bus (host bridge). EEXIST: the number is taken. */
  addRoot(segment = 0, number = 0): Bus {
    if (this.findBus(segment, number) !== undefined) {
      throw new Errno('EEXIST', `bus ${segment.toString(16)}:${number.toString(16)} exists already`);
    }
    const bus = new Bus(this, segment, number);
    this.roots.push(bus);
    return bus;
  }

  /**
   * Puts a function into its slot; after `enumerate` it also gets its addresses at once. EEXIST: the slot is taken. EINVAL: no
   * such slot. ENOSPC: no address space is left for it.
   */
  add(spec: FunctionSpec, place: Place): PciFunction {
    const { bus, devfn } = place;
    if (bus.tree !== this) throw new Error('The bus belongs to another machine');
    if (!Number.isInteger(devfn) || devfn < 0 || devfn > 255) throw new Errno('EINVAL', `there is no devfn ${devfn}`);
    const taken = bus.at(devfn);
    if (taken !== undefined) throw new Errno('EEXIST', `${taken.name} is already there`);
    const fn = new PciFunction(spec, place, this.memory, noUpstream);
    const after = bus.functions.findIndex((other) => other.devfn > devfn);
    bus.functions.splice(after < 0 ? bus.functions.length : after, 0, fn);
    if (fn.isBridge) this.#addSecondary(fn, place);
    fn.dma.upstream = this.#upstreamOf?.(fn) ?? noUpstream;
    this.#markMultifunction(bus, devfn);
    spec.attach?.(fn);
    if (this.#enumerated && !fn.isVirtfn) {
      try {
        enumerate(this);
      } catch (error) {
        this.#take(fn);
        throw error;
      }
    }
    for (const watcher of this.#watchers) watcher.added?.(fn);
    return fn;
  }

  /** Takes a function, and first what is behind it or made by it, out of the machine. */
  remove(fn: PciFunction): void {
    if (fn.bus.at(fn.devfn) !== fn) return;
    for (const below of fn.secondary?.functions.slice() ?? []) this.remove(below);
    fn.sriov?.disable();
    this.#take(fn);
    for (const watcher of this.#watchers) watcher.removed?.(fn);
  }

  /** What firmware does at power-on. EINVAL: what the description pins contradicts itself. ENOSPC: no room. */
  enumerate(): void {
    this.#enumerated = true;
    enumerate(this);
  }

  /** Every function, in the order of segment, bus and devfn. */
  functions(): PciFunction[] {
    return this.busses().flatMap((bus) => bus.functions);
  }

  /** In the order of segment and number. */
  busses(): Bus[] {
    const all: Bus[] = [];
    const visit = (bus: Bus): void => {
      all.push(bus);
      for (const child of bus.children()) visit(child);
    };
    for (const root of this.roots) visit(root);
    // Buses without a number stay where their bridge puts them.
    return all.every((bus) => bus.number >= 0) ? all.sort((a, b) => a.segment - b.segment || a.number - b.number) : all;
  }

  /** By name, `0000:00:04.0`. */
  find(name: string): PciFunction | undefined {
    return this.functions().find((fn) => fn.name === name);
  }

  findBus(segment: number, number: number): Bus | undefined {
    const find = (buses: readonly Bus[]): Bus | undefined => {
      for (const bus of buses) {
        const found = bus.segment === segment && bus.number === number ? bus : find(bus.children());
        if (found !== undefined) return found;
      }
      return undefined;
    };
    return find(this.roots);
  }

  /** The physical page of a byte of a BAR's shared memory, -1 when no BAR that decodes now has it. */
  physicalOf(memory: SharedMemory, offset: number): number {
    for (const fn of this.functions()) {
      for (const bar of fn.bars) {
        if (bar?.shared !== memory) continue;
        const address = fn.decodedAddress(bar);
        return address < 0 || offset >= bar.size ? -1 : Math.floor((address + offset) / 4096);
      }
    }
    return -1;
  }

  /** Tells `watcher` of functions that come and go from now on; the result stops that. */
  watch(watcher: TreeWatcher): () => void {
    this.#watchers.add(watcher);
    return () => {
      this.#watchers.delete(watcher);
    };
  }

  #addSecondary(fn: PciFunction, place: Place): void {
    const number = place.secondary ?? -1;
    const other = number < 0 ? undefined : this.findBus(fn.segment, number);
    if (other !== undefined) {
      fn.bus.functions.splice(fn.bus.functions.indexOf(fn), 1);
      throw new Errno('EEXIST', `bus ${other.name} exists already`);
    }
    const bus = new Bus(this, fn.segment, number, fn.bus, fn);
    bus.subordinate = Math.max(number, place.subordinate ?? number);
    fn.secondary = bus;
    const { below } = fn.bus;
    const after = below.findIndex((one) => one.self!.devfn > fn.devfn);
    below.splice(after < 0 ? below.length : after, 0, bus);
  }

  #take(fn: PciFunction): void {
    fn.detach();
    fn.bus.functions.splice(fn.bus.functions.indexOf(fn), 1);
    if (fn.secondary !== undefined) fn.bus.below.splice(fn.bus.below.indexOf(fn.secondary), 1);
    this.#markMultifunction(fn.bus, fn.devfn);
  }

  /** The multifunction bit of every function of a slot follows from who stands there. */
  #markMultifunction(bus: Bus, devfn: number): void {
    for (let at = firstFrom(bus.functions, devfn & ~7); at < bus.functions.length; at++) {
      const fn = bus.functions[at]!;
      if (fn.devfn >> 3 !== devfn >> 3) break;
      const type = fn.config.get(reg.PCI_HEADER_TYPE, 1) & reg.PCI_HEADER_TYPE_MASK;
      fn.config.set(reg.PCI_HEADER_TYPE, 1, fn.multifunction ? type | reg.PCI_HEADER_TYPE_MFD : type);
    }
  }
}
