/**
 * To which group a new function belongs (specification 01, section 5): the functions that the IOMMU cannot tell apart, or that can
 * reach each other without passing it. The first rule that finds a group wins; the answer carries its reason.
 */

import { ridText } from '../../hw/iommu/unit.ts';
import { acsEnabled } from '../../hw/pci/acs.ts';
import { areDmaAliases, forEachDmaAlias } from '../../hw/pci/aliases.ts';
import type { Bus } from '../../hw/pci/bus.ts';
import type { PciFunction } from '../../hw/pci/function.ts';

/** A group, found through a function that is in it already; `reason` says why the two belong together. */
export interface Found<G> {
  readonly group: G;
  readonly reason: string;
}

/**
 * The group that `f` has to join, undefined when it founds one. `known` gives the group of a function that was added before;
 * `mergesSlots` puts all functions of a slot together, whatever they say about themselves.
 */
export function groupOf<G>(
  f: PciFunction,
  known: (f: PciFunction) => G | undefined,
  mergesSlots: boolean,
): Found<G> | undefined {
  return (mergesSlots ? sameSlot(f, known) : undefined) ?? upwards(f, known);
}

function sameSlot<G>(f: PciFunction, known: (f: PciFunction) => G | undefined): Found<G> | undefined {
  if (f.isVirtfn) return undefined;
  for (const other of f.bus.functions) {
    const group = other === f || other.isVirtfn || other.devfn >> 3 !== f.devfn >> 3 ? undefined : known(other);
    if (group !== undefined) return { group, reason: `multifunction slot of ${ridText(other.rid)} (group_mf)` };
  }
  return undefined;
}

function upwards<G>(f: PciFunction, known: (f: PciFunction) => G | undefined): Found<G> | undefined {
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

  for (let bus: Bus | undefined = last.bus; bus !== undefined && !bus.isRoot; bus = bus.parent) {
    if (bus.self === undefined) continue;
    const leak = leakAbove(bus.self);
    if (leak === undefined) break;
    last = bus.self;
    const group = known(last);
    if (group !== undefined) return { group, reason: leakText(leak) };
  }
  const visited = new Set<number>();
  return aliasGroup(last, known, visited) ?? functionGroup(last, known, visited);
}

/** The first function from `start` up that lets requests turn round below it; undefined when all of them reach the root. */
function leakAbove(start: PciFunction): PciFunction | undefined {
  for (let f: PciFunction | undefined = start; f !== undefined; ) {
    if (!acsEnabled(f)) return f;
    let bus: Bus | undefined = f.bus;
    while (bus !== undefined && bus.self === undefined) bus = bus.parent;
    f = bus?.self;
  }
  return undefined;
}

function leakText(f: PciFunction): string {
  return f.quirks.acsOverride === false ? `quirk of ${ridText(f.rid)}` : `no ACS on ${ridText(f.rid)}`;
}

/** The group of `f`, or of any function of its bus that cannot be told from it. */
function aliasGroup<G>(
  f: PciFunction,
  known: (f: PciFunction) => G | undefined,
  visited: Set<number>,
): Found<G> | undefined {
  if (visited.has(f.devfn)) return undefined;
  visited.add(f.devfn);
  const group = known(f);
  if (group !== undefined) return { group, reason: `alias ${ridText(f.rid)}` };
  for (const other of f.bus.functions) {
    if (other === f || !areDmaAliases(f, other)) continue;
    const found = aliasGroup(other, known, visited) ?? functionGroup(other, known, visited);
    if (found !== undefined) return { group: found.group, reason: `alias ${ridText(other.rid)}` };
  }
  return undefined;
}

/** The group of another function of the slot, when both can reach each other within it. */
function functionGroup<G>(
  f: PciFunction,
  known: (f: PciFunction) => G | undefined,
  visited: Set<number>,
): Found<G> | undefined {
  if (!f.multifunction || acsEnabled(f)) return undefined;
  for (const other of f.bus.functions) {
    if (other === f || other.devfn >> 3 !== f.devfn >> 3 || acsEnabled(other)) continue;
    const found = aliasGroup(other, known, visited);
    if (found === undefined) continue;
    const isQuirk = f.quirks.acsOverride === false || other.quirks.acsOverride === false;
    return { group: found.group, reason: isQuirk ? 'quirk' : 'multifunction without ACS' };
  }
  return undefined;
}
