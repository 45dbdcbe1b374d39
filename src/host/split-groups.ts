/**
 * What would put two members of a group into different groups. Each answer was tried: the groups were computed once more on a copy of
 * the machine with the change made, by the same rules.
 */
import { ACS_ISOLATION } from '../hw/pci/acs.ts';
import type { PciFunction } from '../hw/pci/function.ts';
import { bridgeAbove, type TopologyFunction } from '../hw/pci/topology.ts';
import { type CopiedFunction, TopologyCopy } from '../hw/pci/topology-copy.ts';
import { groupsOf } from '../kernel/iommu/group-of.ts';
import type { Join, Leak } from '../kernel/iommu/joins.ts';
import * as reg from '../uapi/pci-regs.ts';

export type Change =
  /** Services switched on in the ACS control register of `at`. */
  | { readonly kind: 'acs'; readonly at: string; readonly bits: readonly string[] }
  /** `at` is declared isolated (`quirks.acsOverride` of a host file; a kernel with pcie_acs_override). */
  | { readonly kind: 'override'; readonly at: string }
  /** The card behind the port `at` goes into the slot behind the port `to`; what is there comes here. */
  | { readonly kind: 'slot'; readonly at: string; readonly to: string; readonly isFree: boolean }
  /** A device at `at` that uses no requester ID but its own. */
  | { readonly kind: 'alias'; readonly at: string }
  /** A device at `at` that does DMA in its own name. */
  | { readonly kind: 'real-device'; readonly at: string }
  | { readonly kind: 'option'; readonly option: 'groupMultifunction'; readonly value: false };

export interface Split {
  /** All of them together are needed. */
  readonly changes: readonly Change[];
  readonly text: string;
}

const NAMES: Readonly<Record<string, number>> = {
  SV: reg.PCI_ACS_SV,
  RR: reg.PCI_ACS_RR,
  CR: reg.PCI_ACS_CR,
  UF: reg.PCI_ACS_UF,
};

/** Slots that are named for one pair. */
const SLOTS_NAMED = 2;

const shortName = (name: string): string => name.replace(/^0000:/, '');

export class SplitSearch {
  readonly #functions: readonly PciFunction[];
  readonly #mergesSlots: boolean;
  readonly #unitOf: (fn: TopologyFunction) => unknown;
  readonly #byName: ReadonlyMap<string, PciFunction>;
  /** Groups by name of the function, for each set of changes that was tried. */
  readonly #tried = new Map<string, ReadonlyMap<string, number>>();
  #ports: readonly PciFunction[] | undefined;

  constructor(functions: readonly PciFunction[], mergesSlots: boolean, unitOf: (fn: TopologyFunction) => unknown) {
    this.#functions = functions;
    this.#mergesSlots = mergesSlots;
    this.#unitOf = unitOf;
    this.#byName = new Map(functions.map((fn) => [fn.name, fn]));
  }

  /** Changes that could matter to a group that these relations hold together; what they do is yet to be seen. */
  candidates(joins: readonly Join[]): Change[] {
    const changes = new Map<string, Change>();
    const add = (change: Change): void => {
      changes.set(JSON.stringify(change), change);
    };
    for (const join of joins) {
      if (join.kind === 'dma-alias') add({ kind: 'alias', at: join.a.name });
      else if (join.kind === 'real-device') add({ kind: 'real-device', at: join.a.name });
      else if (join.kind === 'group_mf') add({ kind: 'option', option: 'groupMultifunction', value: false });
      for (const leak of 'leaks' in join ? join.leaks : []) add(changeFor(leak));
    }
    if (this.#mergesSlots) add({ kind: 'option', option: 'groupMultifunction', value: false });
    return [...changes.values()];
  }

  /** Changes that part `a` and `b`: those that do it alone, else the smallest set that was found. Empty: nothing here does. */
  splits(a: string, b: string, candidates: readonly Change[]): Split[] {
    const alone = candidates.filter((change) => this.#parts(a, b, [change])).map((change) => this.#split([change]));
    const slots = this.#slotsFor(a, b).map((change) => this.#split([change]));
    if (alone.length > 0) return [...alone, ...slots];
    const onHardware = candidates.filter(({ kind }) => kind === 'acs' || kind === 'option');
    const together = this.#smallest(a, b, onHardware) ?? this.#smallest(a, b, candidates);
    return together === undefined ? slots : [...slots, this.#split(together)];
  }

  /** A set from which nothing can be left out; undefined when not even all of them do it. */
  #smallest(a: string, b: string, candidates: readonly Change[]): readonly Change[] | undefined {
    if (candidates.length === 0 || !this.#parts(a, b, candidates)) return undefined;
    let set = candidates;
    for (const change of candidates) {
      const rest = set.filter((one) => one !== change);
      if (rest.length > 0 && this.#parts(a, b, rest)) set = rest;
    }
    return set;
  }

  /** Moves of a card that part the two, free slots first. */
  #slotsFor(a: string, b: string): Change[] {
    const found: Change[] = [];
    for (const [one, other] of [
      [a, b],
      [b, a],
    ] as const) {
      const from = this.#slotOf(one);
      // A card that carries both stays together wherever it is.
      if (from === undefined || from.name === other || this.#isBehind(other, from)) continue;
      for (const to of this.#slotPorts()) {
        if (found.length >= SLOTS_NAMED) return found;
        if (to === from || this.#isBehind(to.name, from) || this.#isBehind(from.name, to)) continue;
        const change: Change = {
          kind: 'slot',
          at: from.name,
          to: to.name,
          isFree: to.secondary!.functions.length === 0,
        };
        if (this.#parts(a, b, [change])) found.push(change);
      }
    }
    return found;
  }

  /** Ports with a slot behind them, free ones first. */
  #slotPorts(): readonly PciFunction[] {
    this.#ports ??= this.#functions
      .filter((fn) => hasSlot(fn))
      .sort((x, y) => Math.sign(x.secondary!.functions.length) - Math.sign(y.secondary!.functions.length));
    return this.#ports;
  }

  /** The topmost port with a slot above a function: what is behind it is one card. */
  #slotOf(name: string): PciFunction | undefined {
    let found: PciFunction | undefined;
    for (let fn = bridgeAbove(this.#byName.get(name)!); fn !== undefined; fn = bridgeAbove(fn)) {
      if (hasSlot(fn as PciFunction)) found = fn as PciFunction;
    }
    return found;
  }

  #isBehind(name: string, bridge: TopologyFunction): boolean {
    for (let fn = bridgeAbove(this.#byName.get(name)!); fn !== undefined; fn = bridgeAbove(fn))
      if (fn === bridge) return true;
    return false;
  }

  #parts(a: string, b: string, changes: readonly Change[]): boolean {
    const key = JSON.stringify(changes);
    let groups = this.#tried.get(key);
    if (groups === undefined) {
      groups = this.#compute(changes);
      this.#tried.set(key, groups);
    }
    return groups.get(a) !== groups.get(b);
  }

  /** The groups with the changes made. */
  #compute(changes: readonly Change[]): ReadonlyMap<string, number> {
    const copy = new TopologyCopy(this.#functions);
    let mergesSlots = this.#mergesSlots;
    for (const change of changes) {
      if (change.kind === 'option') mergesSlots = change.value;
      else if (change.kind === 'slot') copy.exchange(change.at, change.to);
      else apply(change, copy.find(change.at));
    }
    const units = new Map(copy.functions.map((fn, i) => [fn as TopologyFunction, this.#unitOf(this.#functions[i]!)]));
    const order = copy.functions.slice().sort((x, y) => depthOf(x) - depthOf(y));
    const groups = groupsOf(order, mergesSlots, (x, y) => units.get(x) === units.get(y));
    return new Map([...groups].map(([fn, group]) => [fn.name, group]));
  }

  #split(changes: readonly Change[]): Split {
    return { changes, text: changes.map(changeText).join(', and ') };
  }
}

function changeFor({ fn, cause, missing }: Leak): Change {
  if (cause !== 'bits') return { kind: 'override', at: fn.name };
  return { kind: 'acs', at: fn.name, bits: Object.keys(NAMES).filter((name) => (missing & NAMES[name]!) !== 0) };
}

function apply(change: Exclude<Change, { kind: 'option' | 'slot' }>, fn: CopiedFunction): void {
  switch (change.kind) {
    case 'acs':
      fn.acs!.control |= change.bits.reduce((bits, name) => bits | NAMES[name]!, 0) & ACS_ISOLATION;
      break;
    case 'override':
      fn.quirks.acsOverride = true;
      break;
    case 'alias':
      fn.dmaAliases.clear();
      break;
    case 'real-device':
      delete fn.quirks.realDmaDevice;
  }
}

function depthOf(fn: TopologyFunction): number {
  let depth = 0;
  for (let bus = fn.bus.parent; bus !== undefined; bus = bus.parent) depth++;
  return depth;
}

function hasSlot(fn: PciFunction): boolean {
  const isPort = fn.portType === reg.PCI_EXP_TYPE_ROOT_PORT || fn.portType === reg.PCI_EXP_TYPE_DOWNSTREAM;
  if (!isPort || fn.secondary === undefined) return false;
  return (
    (fn.config.get(fn.config.findCapability(reg.PCI_CAP_ID_EXP) + reg.PCI_EXP_FLAGS, 2) & reg.PCI_EXP_FLAGS_SLOT) !== 0
  );
}

function changeText(change: Change): string {
  switch (change.kind) {
    case 'acs':
      return `ACS control of ${shortName(change.at)}: switch on ${change.bits.join(' ')}`;
    case 'override':
      return `acsOverride on ${shortName(change.at)}`;
    case 'slot':
      return `another slot: the card behind ${shortName(change.at)} into ${change.isFree ? 'the free slot' : 'the slot'} behind ${shortName(change.to)}`;
    case 'alias':
      return `a device at ${shortName(change.at)} that uses no requester ID but its own (no dmaAliases)`;
    case 'real-device':
      return `a device at ${shortName(change.at)} that does DMA in its own name`;
    case 'option':
      return 'option groupMultifunction (group_mf) off';
  }
}
