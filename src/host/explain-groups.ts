/**
 * Why devices belong together, and what would part them: the relations of kernel/iommu/joins.ts in words, and for each pair of a group
 * the changes that were found, by computing the groups again with the change made, to put the two into different groups.
 */
import { acsEnabled } from '../hw/pci/acs.ts';
import { isolationQuirk } from '../hw/pci/acs-quirks.ts';
import type { PciFunction } from '../hw/pci/function.ts';
import { bridgeAbove, slotOf, type TopologyFunction } from '../hw/pci/topology.ts';
import { type Join, joinsOf, type Leak, leakOf } from '../kernel/iommu/joins.ts';
import * as reg from '../uapi/pci-regs.ts';
import type { Machine } from './machine.ts';
import { type Split, SplitSearch } from './split-groups.ts';

export interface ExplainedMember {
  /** `0000:01:00.0` */
  readonly at: string;
  readonly vendor: number;
  readonly device: number;
  readonly class24: number;
  /** `root port`, `endpoint`, `conventional PCI`, … */
  readonly kind: string;
  readonly driver: string | undefined;
  /** Why it joined when it was found: `own`, `alias 00:1e.0`, `no ACS on 00:01.0`, … */
  readonly reason: string;
  readonly passesAcs: boolean;
  /** Why it passes the ACS test or not, in words. */
  readonly acs: string;
  readonly wellBehaved: string;
}

/** One function on the way that does not isolate. */
export interface ExplainedLeak {
  readonly at: string;
  readonly cause: Leak['cause'];
  /** Names of the services that are off: `SV`, `RR`, `CR`, `UF`. */
  readonly missing: readonly string[];
}

export interface ExplainedJoin {
  readonly a: string;
  readonly b: string;
  readonly kind: Join['kind'];
  /** In the short words of the kernel's groups: `alias 00:1e.0`, `no ACS on 00:01.0`, `multifunction without ACS`, `quirk`. */
  readonly reason: string;
  readonly text: string;
  readonly leaks: readonly ExplainedLeak[];
}

export interface ExplainedPair {
  readonly a: string;
  readonly b: string;
  /** Members between the two when nothing joins them directly. */
  readonly through: readonly string[];
  /** What joins them, link by link. */
  readonly joins: readonly ExplainedJoin[];
  /** Changes of which each alone puts the two into different groups. */
  readonly splits: readonly Split[];
}

export interface ExplainedGroup {
  readonly id: number;
  readonly members: readonly ExplainedMember[];
  readonly joins: readonly ExplainedJoin[];
  /** All pairs; of a group with more than `PAIRS_UP_TO` members only those that something joins directly. */
  readonly pairs: readonly ExplainedPair[];
  /** Of a group with one member: what keeps it apart from the others. */
  readonly alone: string | undefined;
}

/** Members up to which every pair is explained. */
export const PAIRS_UP_TO = 40;

/** Names of ACS services, by bit. */
const ACS_NAMES = ['SV', 'TB', 'RR', 'CR', 'UF', 'EC', 'DT'];

export function acsNames(bits: number): string[] {
  return ACS_NAMES.filter((_, bit) => ((bits >> bit) & 1) === 1);
}

const KINDS: Readonly<Record<number, string>> = {
  [reg.PCI_EXP_TYPE_ENDPOINT]: 'endpoint',
  [reg.PCI_EXP_TYPE_LEG_END]: 'legacy endpoint',
  [reg.PCI_EXP_TYPE_ROOT_PORT]: 'root port',
  [reg.PCI_EXP_TYPE_UPSTREAM]: 'switch upstream port',
  [reg.PCI_EXP_TYPE_DOWNSTREAM]: 'switch downstream port',
  [reg.PCI_EXP_TYPE_PCI_BRIDGE]: 'PCIe-to-PCI bridge',
  [reg.PCI_EXP_TYPE_PCIE_BRIDGE]: 'PCI-to-PCIe bridge',
  [reg.PCI_EXP_TYPE_RC_END]: 'integrated endpoint',
  [reg.PCI_EXP_TYPE_RC_EC]: 'event collector',
};

/** What kind of function it is, in words. */
export function kindText(fn: PciFunction): string {
  if (fn.portType !== undefined) {
    return fn.isVirtfn ? 'virtual function' : (KINDS[fn.portType] ?? `PCIe type ${fn.portType}`);
  }
  return fn.isBridge ? 'conventional PCI bridge' : 'conventional PCI';
}

/** `01:00.0`; with the segment where it is not 0. */
export function shortAddress(name: string): string {
  return name.replace(/^0000:/, '');
}

const short = (fn: { readonly name: string }): string => shortAddress(fn.name);

/** Explains the groups of `machine`, or the one in which `only` (a full address) is. */
export function explainGroups(machine: Machine, only?: string): ExplainedGroup[] {
  const functions = machine.functions();
  const idOf = new Map<TopologyFunction, number>();
  const members = new Map<number, PciFunction[]>();
  for (const fn of functions) {
    const id = machine.iommu.groupOf(fn)?.id;
    if (id === undefined) continue;
    idOf.set(fn, id);
    const list = members.get(id);
    if (list === undefined) members.set(id, [fn]);
    else list.push(fn);
  }
  const mergesSlots = machine.config.options?.groupMultifunction ?? false;
  const unitOf = (fn: TopologyFunction): unknown => machine.iommu.groupOf(fn as PciFunction)?.unit;
  const search = new SplitSearch(
    functions.filter((fn) => idOf.has(fn)),
    mergesSlots,
    unitOf,
  );
  const wanted = [...members]
    .sort(([a], [b]) => a - b)
    .filter(([, list]) => only === undefined || list.some((fn) => fn.name === only));
  return wanted.map(([id, list]) => {
    const joins = list.flatMap((fn) => joinsOf(fn, mergesSlots, (other) => unitOf(other) === unitOf(fn)));
    return {
      id,
      members: list.map((fn) => explainMember(machine, fn)),
      joins: joins.map(explainJoin),
      pairs: pairsOf(list, joins, search),
      alone: list.length > 1 ? undefined : aloneText(list[0]!),
    };
  });
}

function explainMember(machine: Machine, fn: PciFunction): ExplainedMember {
  return {
    at: fn.name,
    vendor: fn.vendor,
    device: fn.device,
    class24: fn.class24,
    kind: kindText(fn),
    driver: machine.drivers.driverOf(fn) ?? undefined,
    reason: machine.iommu.reason(fn),
    passesAcs: acsEnabled(fn),
    acs: acsText(fn),
    wellBehaved: fn.wellBehaved,
  };
}

/** Why `fn` passes the ACS test, or why not. */
function acsText(fn: TopologyFunction): string {
  const leak = leakOf(fn);
  if (leak !== undefined) return leakText(leak);
  if (fn.quirks.acsOverride === true) return `${short(fn)} isolates: the host file says so (acsOverride)`;
  const quirk = isolationQuirk(fn);
  if (quirk !== undefined) return `${short(fn)} isolates without ACS: ${quirk.why}`;
  if (fn.acs !== undefined && fn.acs.control !== 0)
    return `${short(fn)} isolates: ACS ${acsNames(fn.acs.control).join(' ')} on`;
  if (fn.acs !== undefined && fn.acs.capability === 0)
    return `${short(fn)} isolates: its ACS has nothing to switch, all is hard-wired`;
  return `${short(fn)} isolates: it has a single function, which needs no ACS`;
}

export function leakText({ fn, cause, missing }: Leak): string {
  switch (cause) {
    case 'bits':
      return `ACS of ${short(fn)} has ${acsNames(missing).join(' ')} off`;
    case 'capability':
      return `${short(fn)} has no ACS capability`;
    case 'never':
      return fn.portType === undefined
        ? `${short(fn)} is conventional PCI, which has no ACS`
        : `${short(fn)} is a ${KINDS[fn.portType] ?? 'function'}, which cannot have ACS`;
    case 'quirk':
      return fn.quirks.acsOverride === false
        ? `${short(fn)} does not isolate, says the host file (acsOverride)`
        : `${short(fn)} does not isolate: ${isolationQuirk(fn)?.why ?? 'quirk'}`;
  }
}

function explainJoin(join: Join): ExplainedJoin {
  const leaks = 'leaks' in join ? join.leaks : [];
  return {
    a: join.a.name,
    b: join.b.name,
    kind: join.kind,
    reason: reasonText(join),
    text: joinText(join),
    leaks: leaks.map(({ fn, cause, missing }) => ({ at: fn.name, cause, missing: acsNames(missing) })),
  };
}

function reasonText(join: Join): string {
  switch (join.kind) {
    case 'bridge':
    case 'dma-alias':
      return `alias ${ridText(join.rid)}`;
    case 'real-device':
      return `alias ${short(join.b)}`;
    case 'path': {
      const { fn } = join.leaks[0]!;
      return fn.quirks.acsOverride === false ? `quirk of ${short(fn)}` : `no ACS on ${short(fn)}`;
    }
    case 'slot':
      return join.leaks.some(({ fn }) => fn.quirks.acsOverride === false) ? 'quirk' : 'multifunction without ACS';
    case 'group_mf':
      return `multifunction slot of ${short(join.b)} (group_mf)`;
  }
}

function joinText(join: Join): string {
  const a = short(join.a);
  const b = short(join.b);
  switch (join.kind) {
    case 'bridge':
      return `the bridge ${b} puts the requester ID ${ridText(join.rid)} on DMA of ${a}, so the IOMMU cannot tell them apart`;
    case 'real-device':
      return `${a} does DMA in the name of ${b}`;
    case 'dma-alias':
      return `DMA of ${a} may carry the requester ID ${ridText(join.rid)}, which is that of ${b}`;
    case 'path':
      return `requests of ${a} may turn round at or above ${b} and never reach the IOMMU: ${join.leaks.map(leakText).join('; ')}`;
    case 'slot':
      return `functions of one slot that may reach each other: ${join.leaks.map(leakText).join('; ')}`;
    case 'group_mf':
      return `functions of one slot, and the option groupMultifunction (group_mf) joins those`;
  }
}

/** `01:00.0` */
function ridText(rid: number): string {
  const h = (value: number): string => value.toString(16).padStart(2, '0');
  return `${h(rid >> 8)}:${h((rid & 0xff) >> 3)}.${rid & 7}`;
}

function aloneText(fn: PciFunction): string {
  const reasons: string[] = [];
  const mates = slotOf(fn).filter((other) => other !== fn && !other.isVirtfn);
  if (mates.length > 0) reasons.push(...(acsEnabled(fn) ? [acsText(fn)] : mates.map(acsText)));
  for (let above = bridgeAbove(fn); above !== undefined; above = bridgeAbove(above)) reasons.push(acsText(above));
  if (reasons.length > 0) return reasons.join('; ');
  return 'nothing shares its slot, its requester ID or a bridge that does not isolate';
}

function pairsOf(list: readonly PciFunction[], joins: readonly Join[], search: SplitSearch): ExplainedPair[] {
  const links = new Map<TopologyFunction, Join[]>();
  for (const join of joins) {
    for (const end of [join.a, join.b]) links.set(end, [...(links.get(end) ?? []), join]);
  }
  const candidates = search.candidates(joins);
  const pairs: ExplainedPair[] = [];
  const isLarge = list.length > PAIRS_UP_TO;
  list.forEach((a, i) => {
    const ways = waysFrom(a, links);
    for (const b of list.slice(i + 1)) {
      const way = ways.get(b) ?? [];
      if (isLarge && way.length !== 1) continue;
      // Of a direct pair every relation counts, not only the first that was found.
      const between =
        way.length === 1
          ? joins.filter((join) => (join.a === a && join.b === b) || (join.a === b && join.b === a))
          : way;
      pairs.push({
        a: a.name,
        b: b.name,
        through: throughOf(a, way),
        joins: [...between, ...(way.length === 1 ? sharedBridge(a, b, joins) : [])].map(explainJoin),
        splits: search.splits(a.name, b.name, candidates),
      });
    }
  });
  return pairs;
}

/** What else holds two functions together that are joined directly: one bridge that makes the same requester ID of both. */
function sharedBridge(a: TopologyFunction, b: TopologyFunction, joins: readonly Join[]): Join[] {
  const of = (fn: TopologyFunction): Join | undefined => joins.find((join) => join.kind === 'bridge' && join.a === fn);
  const [one, other] = [of(a), of(b)];
  return one !== undefined && other !== undefined && one.b === other.b ? [one, other] : [];
}

/** The shortest chain of relations from `start` to every other member. */
function waysFrom(
  start: TopologyFunction,
  links: ReadonlyMap<TopologyFunction, Join[]>,
): Map<TopologyFunction, Join[]> {
  const ways = new Map<TopologyFunction, Join[]>([[start, []]]);
  for (const [at, way] of ways) {
    for (const join of links.get(at) ?? []) {
      const next = join.a === at ? join.b : join.a;
      if (!ways.has(next)) ways.set(next, [...way, join]);
    }
  }
  return ways;
}

function throughOf(start: TopologyFunction, way: readonly Join[]): string[] {
  const names: string[] = [];
  let at = start;
  for (const join of way.slice(0, -1)) {
    at = join.a === at ? join.b : join.a;
    names.push(at.name);
  }
  return names;
}
