/**
 * To which group a new function belongs (specification 01, section 5): the functions that the IOMMU cannot tell apart, or that can
 * reach each other without passing it. The first rule that finds a group wins; the answer carries its reason.
 *
 * The same rules as relations between two functions, without order, are in joins.ts.
 */

import { ridText } from '../../hw/iommu/unit.ts';
import { acsEnabled } from '../../hw/pci/acs.ts';
import { areDmaAliases, forEachDmaAlias } from '../../hw/pci/aliases.ts';
import { bridgeAbove, slotOf, type TopologyBus, type TopologyFunction } from '../../hw/pci/topology.ts';

/** A group, found through a function that is in it already; `reason` says why the two belong together. */
export interface Found<G> {
  readonly group: G;
  readonly reason: string;
}

/** What is known when a function is added. */
interface Search<G> {
  /** The group of a function that was added before. */
  readonly known: (f: TopologyFunction) => G | undefined;
  /** All functions of a slot belong together, whatever they say about themselves (2011: `iommu=group_mf`). */
  readonly mergesSlots: boolean;
  /** devfns that were looked at, of the bus on which aliases are sought. */
  readonly visited: Set<number>;
}

/**
 * The group that `f` has to join, undefined when it founds one. `known` gives the group of a function that was added before;
 * `mergesSlots` puts all functions of a slot together, whatever they say about themselves.
 */
export function groupOf<G>(
  f: TopologyFunction,
  known: (f: TopologyFunction) => G | undefined,
  mergesSlots: boolean,
): Found<G> | undefined {
  return (mergesSlots ? sameSlot(f, known) : undefined) ?? upwards(f, { known, mergesSlots, visited: new Set() });
}

function sameSlot<G>(f: TopologyFunction, known: (f: TopologyFunction) => G | undefined): Found<G> | undefined {
  if (f.isVirtfn) return undefined;
  for (const other of slotOf(f)) {
    const group = other === f || other.isVirtfn ? undefined : known(other);
    if (group !== undefined) return { group, reason: `multifunction slot of ${ridText(other.rid)} (group_mf)` };
  }
  return undefined;
}

function upwards<G>(f: TopologyFunction, search: Search<G>): Found<G> | undefined {
  const { known } = search;
  let last = f;
  let found: Found<G> | undefined;
  forEachDmaAlias(f, (visited, rid) => {
    last = visited;
    const group = visited === f ? undefined : known(visited);
    if (group === undefined) return 0;
    found = { group, reason: `alias ${ridText(rid)}` };
    return 1;
  });
  if (found !== undefined) return found;

  for (let bus: TopologyBus | undefined = last.bus; bus !== undefined && !bus.isRoot; bus = bus.parent) {
    if (bus.self === undefined) continue;
    const leak = leakAbove(bus.self);
    if (leak === undefined) break;
    last = bus.self;
    const group = known(last);
    if (group !== undefined) return { group, reason: leakText(leak) };
  }
  return aliasGroup(last, search) ?? functionGroup(last, search);
}

/** The first function from `start` up that lets requests turn round below it; undefined when all of them reach the root. */
function leakAbove(start: TopologyFunction): TopologyFunction | undefined {
  for (let f: TopologyFunction | undefined = start; f !== undefined; f = bridgeAbove(f)) if (!acsEnabled(f)) return f;
  return undefined;
}

function leakText(f: TopologyFunction): string {
  return f.quirks.acsOverride === false ? `quirk of ${ridText(f.rid)}` : `no ACS on ${ridText(f.rid)}`;
}

/** The group of `f`, or of any function of its bus that cannot be told from it. */
function aliasGroup<G>(f: TopologyFunction, search: Search<G>): Found<G> | undefined {
  const { known, visited } = search;
  if (visited.has(f.devfn)) return undefined;
  visited.add(f.devfn);
  const group = known(f);
  if (group !== undefined) return { group, reason: `alias ${ridText(f.rid)}` };
  for (const other of f.bus.functions) {
    if (other === f || !areDmaAliases(f, other)) continue;
    const found = aliasGroup(other, search) ?? functionGroup(other, search);
    if (found !== undefined) return { group: found.group, reason: `alias ${ridText(other.rid)}` };
  }
  return undefined;
}

/** The group of another function of the slot, when both can reach each other within it. */
function functionGroup<G>(f: TopologyFunction, search: Search<G>): Found<G> | undefined {
  const isForced = search.mergesSlots && !f.isVirtfn;
  if (!isForced && (!f.multifunction || acsEnabled(f))) return undefined;
  for (const other of slotOf(f)) {
    if (other === f || (isForced ? other.isVirtfn : acsEnabled(other))) continue;
    const found = aliasGroup(other, search);
    if (found === undefined) continue;
    const isQuirk = f.quirks.acsOverride === false || other.quirks.acsOverride === false;
    return { group: found.group, reason: isQuirk ? 'quirk' : 'multifunction without ACS' };
  }
  return undefined;
}

/**
 * The groups of functions that are added in this order, as numbers from 0; nothing is made of them. `isSameUnit`: whether two functions
 * can share a group at all.
 */
export function groupsOf<F extends TopologyFunction>(
  order: Iterable<F>,
  mergesSlots: boolean,
  isSameUnit: (a: TopologyFunction, b: TopologyFunction) => boolean = () => true,
): Map<F, number> {
  const groups = new Map<TopologyFunction, number>();
  let next = 0;
  for (const fn of order) {
    const known = (other: TopologyFunction): number | undefined =>
      isSameUnit(fn, other) ? groups.get(other) : undefined;
    const found = groupOf(fn, known, mergesSlots);
    groups.set(fn, found === undefined ? next++ : found.group);
  }
  return groups as Map<F, number>;
}
