/**
 * A topology that is nobody's machine: plain functions on plain buses, to try a change on and see what the rules make of it. Names
 * and requester IDs stay those of the original, wherever a function is moved to.
 */
import { firstFrom, type IsolationMarks, type TopologyBus, type TopologyFunction } from './topology.ts';

export class CopiedBus implements TopologyBus {
  segment: number;
  number: number;
  self: CopiedFunction | undefined;
  parent: CopiedBus | undefined;
  readonly functions: CopiedFunction[] = [];

  constructor(segment: number, number: number, parent?: CopiedBus, self?: CopiedFunction) {
    this.segment = segment;
    this.number = number;
    this.parent = parent;
    this.self = self;
  }

  get isRoot(): boolean {
    return this.parent === undefined;
  }
}

/** Everything of a function that matters, free to be changed. */
export interface CopiedFunction extends TopologyFunction {
  bus: CopiedBus;
  portType: number | undefined;
  multifunction: boolean;
  dmaAliases: Set<number>;
  quirks: IsolationMarks;
  acs: { capability: number; control: number } | undefined;
}

export class TopologyCopy {
  /** In the order in which they were given: bridges before what is behind them. */
  readonly functions: readonly CopiedFunction[];
  readonly #byName = new Map<string, CopiedFunction>();

  constructor(functions: readonly TopologyFunction[]) {
    const copies = new Map<TopologyFunction, CopiedFunction>();
    const buses = new Map<TopologyBus, CopiedBus>();
    const busOf = (bus: TopologyBus): CopiedBus => {
      const present = buses.get(bus);
      if (present !== undefined) return present;
      const parent = bus.parent === undefined ? undefined : busOf(bus.parent);
      const self = bus.self === undefined ? undefined : copies.get(bus.self);
      const copy = new CopiedBus(bus.segment, bus.number, parent, self);
      buses.set(bus, copy);
      return copy;
    };
    for (const fn of functions) {
      const { name, devfn, rid, vendor, device, portType, multifunction, isVirtfn, acs } = fn;
      const copy: CopiedFunction = {
        ...{ name, devfn, rid, vendor, device, portType, multifunction, isVirtfn },
        bus: busOf(fn.bus),
        dmaAliases: new Set(fn.dmaAliases),
        quirks: { ...fn.quirks },
        acs: acs === undefined ? undefined : { ...acs },
      };
      copies.set(fn, copy);
      this.#byName.set(name, copy);
      insert(copy);
    }
    for (const copy of copies.values()) {
      const real = copy.quirks.realDmaDevice;
      if (real !== undefined) copy.quirks.realDmaDevice = copies.get(real) ?? real;
    }
    this.functions = [...copies.values()];
  }

  find(name: string): CopiedFunction {
    const fn = this.#byName.get(name);
    if (fn === undefined) throw new Error(`${name} is not in this topology`);
    return fn;
  }

  /** The bus behind a bridge; undefined when nothing stands there. */
  behind(name: string): CopiedBus | undefined {
    const self = this.find(name);
    return this.functions.find((fn) => fn.bus.self === self)?.bus;
  }

  /** What is behind one bridge goes behind the other, and the other way round. */
  exchange(one: string, other: string): void {
    const buses = [this.behind(one), this.behind(other)];
    const [first, second] = [this.find(one), this.find(other)];
    if (buses[0] !== undefined) place(buses[0], second);
    if (buses[1] !== undefined) place(buses[1], first);
  }
}

function place(bus: CopiedBus, bridge: CopiedFunction): void {
  bus.self = bridge;
  bus.parent = bridge.bus;
}

/** Puts a function where its devfn belongs. */
export function insert(fn: CopiedFunction): void {
  fn.bus.functions.splice(firstFrom(fn.bus.functions, fn.devfn), 0, fn);
}
