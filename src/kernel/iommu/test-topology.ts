/**
 * Random topologies, and the rules of specification 01 said a second time, as plainly as they stand there: every step looks at all
 * functions. For tests that compare the two.
 */
import assert from 'node:assert/strict';
import type { TopologyFunction } from '../../hw/pci/topology.ts';
import { CopiedBus, type CopiedFunction, insert } from '../../hw/pci/topology-copy.ts';
import { groupsOf } from './group-of.ts';
import { joinsOf } from './joins.ts';

/** A whole number from 0 to `limit` - 1. */
export type Random = (limit: number) => number;

/** xorshift32 of a seed. */
export function randomOf(seed: number): Random {
  let state = (seed * 2654435761 + 1) >>> 0 || 1;
  return (limit) => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % limit;
  };
}

const [ENDPOINT, LEGACY, ROOT, UP, DOWN, TO_PCI, TO_PCIE, INTEGRATED, COLLECTOR] = [0, 1, 4, 5, 6, 7, 8, 9, 10];

class Builder {
  readonly functions: CopiedFunction[] = [];
  readonly #random: Random;
  #nextBus = 1;

  constructor(random: Random) {
    this.#random = random;
  }

  /** A root bus with what is behind it, four levels at most. */
  segment(number: number): void {
    this.#fill(new CopiedBus(number, 0), 0);
    this.#nextBus = 1;
  }

  #chance(percent: number): boolean {
    return this.#random(100) < percent;
  }

  #fill(bus: CopiedBus, depth: number): void {
    const isLink = bus.self?.portType === ROOT || bus.self?.portType === DOWN;
    const slots = isLink ? 1 : 1 + this.#random(depth === 0 ? 5 : 3);
    const bridges: CopiedFunction[] = [];
    const start = this.functions.length;
    for (let slot = 0; slot < slots; slot++) {
      const count = this.#chance(60) ? 1 : 2 + this.#random(3);
      for (let i = 0; i < count; i++) {
        const fn = this.#function(bus, (slot << 3) | i, count > 1, depth);
        if (fn.isBridge) bridges.push(fn.copy);
      }
    }
    this.#virtual(bus);
    this.#marks(this.functions.slice(start), bus);
    for (const bridge of bridges) {
      if (this.#nextBus < 250) this.#fill(new CopiedBus(bus.segment, this.#nextBus++, bus, bridge), depth + 1);
    }
  }

  #function(
    bus: CopiedBus,
    devfn: number,
    multifunction: boolean,
    depth: number,
  ): { copy: CopiedFunction; isBridge: boolean } {
    const isBridge = depth < 4 && this.#chance(depth === 0 ? 45 : 30);
    const portType = this.#typeOf(bus, isBridge);
    const copy = this.#add(bus, devfn, portType, multifunction, false);
    if (portType !== undefined && this.#chance(60)) {
      const capability = this.#random(128);
      copy.acs = { capability, control: this.#chance(60) ? capability | 0x1d : this.#random(128) };
    }
    if (this.#chance(5)) copy.quirks.acsOverride = this.#chance(50);
    if (isBridge && this.#chance(5)) copy.quirks.bridgeTranslationRoot = true;
    if (isBridge && this.#chance(10)) copy.quirks.bridgeNoAlias = true;
    if (isBridge && this.#chance(10)) copy.quirks.pcieBridgeAlias = true;
    return { copy, isBridge };
  }

  #typeOf(bus: CopiedBus, isBridge: boolean): number | undefined {
    const above = bus.self?.portType;
    const pick = <T>(...values: T[]): T => values[this.#random(values.length)]!;
    if (!isBridge) {
      if (bus.isRoot) return pick(INTEGRATED, INTEGRATED, undefined, COLLECTOR);
      return above === undefined || above === TO_PCI ? undefined : pick(ENDPOINT, ENDPOINT, LEGACY);
    }
    if (bus.isRoot) return pick(ROOT, ROOT, ROOT, undefined);
    if (above === undefined || above === TO_PCI) return pick(undefined, undefined, TO_PCIE);
    return above === UP ? DOWN : pick(UP, UP, TO_PCI, undefined);
  }

  #add(
    bus: CopiedBus,
    devfn: number,
    portType: number | undefined,
    multifunction: boolean,
    isVirtfn: boolean,
  ): CopiedFunction {
    const rid = (bus.number << 8) | devfn;
    const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
    const copy: CopiedFunction = {
      name: `${hex(bus.segment, 4)}:${hex(bus.number, 2)}:${hex(devfn >> 3, 2)}.${devfn & 7}`,
      ...{ bus, devfn, rid, portType, multifunction, isVirtfn },
      vendor: this.#chance(15) ? 0x8086 : 0x1234,
      device: 0x0fff,
      dmaAliases: new Set(),
      quirks: {},
      acs: undefined,
    };
    insert(copy);
    this.functions.push(copy);
    return copy;
  }

  /** Virtual functions, on the bus or on a virtual one beside it. */
  #virtual(bus: CopiedBus): void {
    if (bus.self === undefined || !this.#chance(15)) return;
    const at = this.#chance(50) ? bus : new CopiedBus(bus.segment, this.#nextBus++, bus);
    for (let i = 0; i < 1 + this.#random(3); i++) this.#add(at, 0x80 + i, ENDPOINT, false, true);
  }

  /** DMA in the name of neighbours, and of an earlier function of a root bus; not both on one bus, as nobody has seen that. */
  #marks(functions: readonly CopiedFunction[], bus: CopiedBus): void {
    if (!bus.isRoot && this.#chance(10)) {
      const real = this.functions.filter((fn) => fn.bus.isRoot && fn.quirks.realDmaDevice === undefined);
      const one = real[this.#random(real.length)];
      for (const fn of functions) if (one !== undefined) fn.quirks.realDmaDevice = one;
      return;
    }
    for (const fn of functions)
      if (this.#chance(8) && !fn.isVirtfn) fn.dmaAliases.add(this.#random(4) * 8 + this.#random(2));
  }
}

/** Functions of one or two segments, bridges before what is behind them. */
export function randomTopology(random: Random): CopiedFunction[] {
  const builder = new Builder(random);
  builder.segment(0);
  if (random(4) === 0) builder.segment(1);
  return builder.functions;
}

/** Another order in which every bridge, and every function in whose name others do DMA, still comes first. */
export function shuffled(functions: readonly CopiedFunction[], random: Random): CopiedFunction[] {
  const waiting = [...functions];
  const done = new Set<TopologyFunction>();
  const order: CopiedFunction[] = [];
  const isReady = (fn: CopiedFunction): boolean => {
    let bus = fn.bus;
    while (bus.self === undefined && bus.parent !== undefined) bus = bus.parent;
    const real = fn.quirks.realDmaDevice;
    return (bus.self === undefined || done.has(bus.self)) && (real === undefined || done.has(real));
  };
  while (waiting.length > 0) {
    const ready = waiting.filter(isReady);
    const fn = ready[random(ready.length)]!;
    waiting.splice(waiting.indexOf(fn), 1);
    done.add(fn);
    order.push(fn);
  }
  return order;
}

/** Groups as text without regard to their numbers. */
export function partitionText(groups: ReadonlyMap<TopologyFunction, number>): string {
  const members = new Map<number, string[]>();
  for (const [fn, group] of groups) members.set(group, [...(members.get(group) ?? []), fn.name]);
  return [...members.values()]
    .map((names) => names.sort().join('+'))
    .sort()
    .join(' | ');
}

/** What the relations connect. */
function connected(functions: readonly TopologyFunction[], mergesSlots: boolean): Map<TopologyFunction, number> {
  const groups = new Map(functions.map((fn, i) => [fn, i]));
  for (const fn of functions) {
    for (const { a, b } of joinsOf(fn, mergesSlots)) {
      const [from, to] = [groups.get(a)!, groups.get(b)!];
      if (from !== to) for (const [one, group] of groups) if (group === from) groups.set(one, to);
    }
  }
  return groups;
}

/** That the machine of `seed` has the groups of the plain rules, whatever the order of siblings, and that joins explain them. */
export function checkGroups(seed: number): void {
  const random = randomOf(seed);
  const functions = randomTopology(random);
  const mergesSlots = seed % 3 === 0;
  const groups = partitionText(groupsOf(functions, mergesSlots));
  assert.equal(groups, partitionText(plainGroups(functions, mergesSlots)), `seed ${seed}: plain rules`);
  const other = partitionText(groupsOf(shuffled(functions, random), mergesSlots));
  assert.equal(groups, other, `seed ${seed}: another order`);
  assert.equal(groups, partitionText(connected(functions, mergesSlots)), `seed ${seed}: relations`);
}

// ---- the rules once more ----

function passes(fn: TopologyFunction): boolean {
  if (fn.quirks.acsOverride !== undefined) return fn.quirks.acsOverride;
  if (fn.vendor === 0x8086 && fn.portType === INTEGRATED) return true;
  const flags = (): boolean => {
    if (fn.acs === undefined) return false;
    for (const bit of [0, 2, 3, 4]) {
      const exists = ((fn.acs.capability >> bit) & 1) === 1;
      const isOn = ((fn.acs.control >> bit) & 1) === 1;
      if (exists && !isOn) return false;
    }
    return true;
  };
  if (fn.portType === ROOT || fn.portType === DOWN) return flags();
  if (fn.portType === undefined || fn.portType === TO_PCI || fn.portType === TO_PCIE || fn.portType === COLLECTOR)
    return false;
  return !fn.multifunction || flags();
}

function pathPasses(fn: TopologyFunction): boolean {
  if (!passes(fn)) return false;
  for (let bus = fn.bus; bus.parent !== undefined; bus = bus.parent) {
    if (bus.self !== undefined) return pathPasses(bus.self);
  }
  return true;
}

/** Functions whose requester ID `fn` may carry, itself or its stand-in first. */
function visits(fn: TopologyFunction): TopologyFunction[] {
  const real = fn.quirks.realDmaDevice ?? fn;
  const list = [real];
  for (let bus = real.bus; bus.parent !== undefined; bus = bus.parent) {
    const bridge = bus.self;
    if (bridge === undefined) continue;
    if (bridge.quirks.bridgeTranslationRoot) break;
    const changesIds =
      bridge.portType === undefined ||
      bridge.portType === TO_PCIE ||
      (bridge.portType === TO_PCI && !bridge.quirks.bridgeNoAlias);
    if (changesIds) list.push(bridge);
  }
  return list;
}

/** The groups of `order` by the steps of the specification. */
export function plainGroups(order: readonly TopologyFunction[], mergesSlots: boolean): Map<TopologyFunction, number> {
  const groups = new Map<TopologyFunction, number>();
  let next = 0;

  const onBus = (fn: TopologyFunction): TopologyFunction[] =>
    order.filter((other) => other !== fn && other.bus === fn.bus);
  const isAlias = (a: TopologyFunction, b: TopologyFunction): boolean =>
    a.dmaAliases.has(b.devfn) ||
    b.dmaAliases.has(a.devfn) ||
    a.quirks.realDmaDevice === b ||
    b.quirks.realDmaDevice === a;
  const isMate = (a: TopologyFunction, b: TopologyFunction): boolean => {
    if (a.devfn >> 3 !== b.devfn >> 3) return false;
    if (mergesSlots && !a.isVirtfn && !b.isVirtfn) return true;
    return a.multifunction && !passes(a) && !passes(b);
  };

  const groupFor = (fn: TopologyFunction): number => {
    if (mergesSlots && !fn.isVirtfn) {
      for (const mate of onBus(fn))
        if (!mate.isVirtfn && isMate(fn, mate) && groups.has(mate)) return groups.get(mate)!;
    }
    let last = fn;
    for (const visited of visits(fn)) {
      last = visited;
      if (groups.has(visited)) return groups.get(visited)!;
    }
    for (let bus = last.bus; bus.parent !== undefined; bus = bus.parent) {
      if (bus.self === undefined) continue;
      if (pathPasses(bus.self)) break;
      last = bus.self;
      if (groups.has(last)) return groups.get(last)!;
    }
    // All that is tied to `last` on its bus, by any chain of aliases and functions of a slot.
    const seen = new Set([last]);
    for (const one of seen) {
      for (const other of onBus(one)) if (isAlias(one, other) || isMate(one, other)) seen.add(other);
    }
    for (const one of seen) if (groups.has(one)) return groups.get(one)!;
    return next++;
  };
  for (const fn of order) groups.set(fn, groupFor(fn));
  return groups;
}
