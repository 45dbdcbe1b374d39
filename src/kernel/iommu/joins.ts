/**
 * Why two functions belong to one group, as relations between them that know no order: the rules of group-of.ts, each of which
 * finds "somebody who has a group already", said of pairs. A group is what these relations connect, as long as bridges, and
 * functions in whose name others do DMA, were added before those that depend on them.
 */
import { ACS_ISOLATION, acsEnabled, missingFlags } from '../../hw/pci/acs.ts';
import { isolationQuirk } from '../../hw/pci/acs-quirks.ts';
import { forEachDmaAlias, realDmaDevice } from '../../hw/pci/aliases.ts';
import { bridgeAbove, slotOf, type TopologyBus, type TopologyFunction } from '../../hw/pci/topology.ts';

/** Why a function does not isolate. */
export interface Leak {
  readonly fn: TopologyFunction;
  /**
   * `bits`: the capability is there and `missing` is switched off. `capability`: it has none, and needs one. `never`: its kind cannot
   * have one (conventional PCI, bridges to it, event collectors). `quirk`: the host file or a table says so.
   */
  readonly cause: 'bits' | 'capability' | 'never' | 'quirk';
  /** `PCI_ACS_…` that are off; 0 unless `bits`. */
  readonly missing: number;
}

export type Join =
  /** `b`, a bridge above `a`, puts `rid` in place of the requester ID of `a`. */
  | { readonly kind: 'bridge'; readonly a: TopologyFunction; readonly b: TopologyFunction; readonly rid: number }
  /** `a` does DMA in the name of `b`. */
  | { readonly kind: 'real-device'; readonly a: TopologyFunction; readonly b: TopologyFunction }
  /** DMA of `a` may carry the requester ID of `b`, its neighbour on the bus. */
  | { readonly kind: 'dma-alias'; readonly a: TopologyFunction; readonly b: TopologyFunction; readonly rid: number }
  /** Requests of `a` can turn round at or above `b`, the bridge above it, without reaching the root. From below. */
  | {
      readonly kind: 'path';
      readonly a: TopologyFunction;
      readonly b: TopologyFunction;
      readonly leaks: readonly Leak[];
    }
  /** Functions of one slot, neither of which isolates. */
  | {
      readonly kind: 'slot';
      readonly a: TopologyFunction;
      readonly b: TopologyFunction;
      readonly leaks: readonly Leak[];
    }
  /** Functions of one slot, and the option that puts these together. */
  | { readonly kind: 'group_mf'; readonly a: TopologyFunction; readonly b: TopologyFunction };

/** Why `fn` fails the ACS test; undefined when it passes. */
export function leakOf(fn: TopologyFunction): Leak | undefined {
  if (acsEnabled(fn)) return undefined;
  if (fn.quirks.acsOverride === false || isolationQuirk(fn) !== undefined) return { fn, cause: 'quirk', missing: 0 };
  if (fn.acs !== undefined) {
    const missing = missingFlags(fn, ACS_ISOLATION);
    if (missing !== 0) return { fn, cause: 'bits', missing };
  }
  return { fn, cause: canHaveAcs(fn) ? 'capability' : 'never', missing: 0 };
}

/** PCI Express 5.0, 6.12.1: bridges to conventional PCI and event collectors must not have ACS, conventional functions cannot. */
function canHaveAcs(fn: TopologyFunction): boolean {
  return fn.portType !== undefined && ![7, 8, 10].includes(fn.portType);
}

/** All that does not isolate from `start` up to the root. */
export function leaksAbove(start: TopologyFunction): Leak[] {
  const leaks: Leak[] = [];
  for (let fn: TopologyFunction | undefined = start; fn !== undefined; fn = bridgeAbove(fn)) {
    const leak = leakOf(fn);
    if (leak !== undefined) leaks.push(leak);
  }
  return leaks;
}

/**
 * What joins `fn` with functions above it, and with those of its bus that come after it or that it names. Over all functions of a
 * machine this gives every relation once. `isGrouped`: whether a function can be in a group with `fn` at all (the same unit).
 */
export function joinsOf(
  fn: TopologyFunction,
  mergesSlots: boolean,
  isGrouped: (other: TopologyFunction) => boolean = () => true,
): Join[] {
  const joins: Join[] = [];
  const real = realDmaDevice(fn);
  // The nearest one that has a group decides; what is further up is a matter between that one and those above it.
  const stopped = forEachDmaAlias(fn, (visited, rid) => {
    if (visited === fn || !isGrouped(visited)) return 0;
    joins.push(visited === real ? { kind: 'real-device', a: fn, b: real } : { kind: 'bridge', a: fn, b: visited, rid });
    return 1;
  });
  if (stopped === 0) {
    const above = pathJoin(fn, isGrouped);
    if (above !== undefined) joins.push(above);
  }
  for (const devfn of [...fn.dmaAliases].sort((a, b) => a - b)) {
    const b = fn.bus.functions.find((other) => other.devfn === devfn);
    if (b !== undefined && b !== fn && isGrouped(b)) joins.push({ kind: 'dma-alias', a: fn, b, rid: b.rid });
  }
  joins.push(...slotJoins(fn, mergesSlots, isGrouped));
  return joins;
}

function pathJoin(fn: TopologyFunction, isGrouped: (other: TopologyFunction) => boolean): Join | undefined {
  for (let bus: TopologyBus | undefined = fn.bus; bus !== undefined && !bus.isRoot; bus = bus.parent) {
    if (bus.self === undefined) continue;
    const leaks = leaksAbove(bus.self);
    if (leaks.length === 0) return undefined;
    if (isGrouped(bus.self)) return { kind: 'path', a: fn, b: bus.self, leaks };
  }
  return undefined;
}

function slotJoins(
  fn: TopologyFunction,
  mergesSlots: boolean,
  isGrouped: (other: TopologyFunction) => boolean,
): Join[] {
  const joins: Join[] = [];
  const own = leakOf(fn);
  for (const b of slotOf(fn)) {
    if (b.devfn <= fn.devfn || !isGrouped(b)) continue;
    const other = leakOf(b);
    const isMultifunction = fn.multifunction || b.multifunction;
    if (own !== undefined && other !== undefined && isMultifunction) {
      joins.push({ kind: 'slot', a: fn, b, leaks: [own, other] });
    } else if (mergesSlots && !fn.isVirtfn && !b.isVirtfn) joins.push({ kind: 'group_mf', a: fn, b });
  }
  return joins;
}
