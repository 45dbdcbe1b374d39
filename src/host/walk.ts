/**
 * What the IOMMU does with an address of a function, entry by entry, beside what its IOTLB would answer. Reading only: a walk for people
 * leaves no accessed bit, no fault and no cached translation behind.
 */
import { explainWalk, type WalkResult, type WalkStep } from '../hw/iommu/explain-walk.ts';
import { SNOOPED } from '../hw/iommu/iotlb.ts';
import type { IommuUnit } from '../hw/iommu/unit.ts';
import { Errno } from '../lib/errno.ts';
import type { Machine } from './machine.ts';

/** Addresses and values are hexadecimal text, so that the report can travel as JSON. */
export interface WalkReport {
  readonly device: string;
  /** Requester ID that the unit sees; behind a conventional bridge it is the bridge's. */
  readonly requester: string;
  readonly unit: string;
  readonly mode: 'legacy' | 'scalable';
  readonly pasid: number | null;
  readonly iova: string;
  readonly steps: readonly {
    readonly what: string;
    readonly index: number | null;
    readonly address: string;
    readonly value: string | null;
    readonly isPresent: boolean;
    readonly text: string;
    readonly allows: string | null;
    readonly problems: readonly string[];
    readonly depth: number;
  }[];
  readonly outcome: WalkResult['outcome'];
  readonly physical: string | null;
  readonly pageSize: number | null;
  readonly read: boolean;
  readonly write: boolean;
  /** No-snoop requests are made coherent. */
  readonly isSnooped: boolean;
  readonly iotlb: { readonly opinion: 'hit' | 'stale' | 'miss'; readonly text: string };
  readonly verdict: string;
}

const hex = (value: bigint | number): string => `0x${value.toString(16)}`;
const rights = (read: boolean, write: boolean): string =>
  read && write ? 'read and write' : read ? 'read only' : write ? 'write only' : 'nothing';

/** `pasid` -1: none. ENODEV: there is no such function, or no IOMMU before it. EINVAL: address or PASID out of range. */
export function walkOf(machine: Machine, device: string, pasid: number, iova: bigint): WalkReport {
  const name = device.length === 7 ? `0000:${device}` : device;
  const fn = machine.pci.find(name);
  if (fn === undefined) throw new Errno('ENODEV', `the machine has no function ${name}`);
  const unit = machine.iommu.groupOf(fn)?.unit;
  if (unit === undefined) throw new Errno('ENODEV', `no IOMMU translates for ${name}: its addresses are physical ones`);
  if (iova < 0n || iova >= 1n << 64n) throw new Errno('EINVAL', `${hex(iova)} is no 64-bit address`);
  if (pasid >= 2 ** 20) throw new Errno('EINVAL', `PASID ${pasid} has more than 20 bits`);
  const rid = fn.requesterId;
  const isScalable = unit.mode === 'scalable';
  const root = { address: BigInt(unit.root.page) << 12n, isScalable };
  const walk = explainWalk(unit.memory, root, { rid, pasid, iova });
  return {
    device: name,
    requester: `${hex(rid >>> 8)
      .slice(2)
      .padStart(2, '0')}:${hex((rid & 255) >>> 3)
      .slice(2)
      .padStart(2, '0')}.${rid & 7}`,
    unit: unit.name,
    mode: unit.mode,
    pasid: pasid < 0 ? null : pasid,
    iova: hex(iova),
    steps: walk.steps.map(stepOf),
    outcome: walk.outcome,
    physical: walk.physical === undefined ? null : hex(walk.physical),
    pageSize: walk.pageSize === undefined ? null : Number(walk.pageSize),
    read: walk.allows.read,
    write: walk.allows.write,
    isSnooped: walk.isSnooped,
    iotlb: iotlbOpinion(unit, pasid, iova, walk),
    verdict: walk.verdict,
  };
}

function stepOf(step: WalkStep): WalkReport['steps'][number] {
  const { what, index, address, value, isPresent, text, problems, depth, allows } = step;
  return {
    what,
    index: index ?? null,
    address: hex(address),
    value: value === undefined ? null : hex(value),
    isPresent,
    text,
    allows: allows === undefined ? null : rights(allows.read, allows.write),
    problems,
    depth,
  };
}

/** What a request would meet in the IOTLB, compared with what the tables say. */
function iotlbOpinion(unit: IommuUnit, pasid: number, iova: bigint, walk: WalkResult): WalkReport['iotlb'] {
  const { did, isTaggedByPasid } = walk;
  if (walk.outcome === 'pass-through') return { opinion: 'miss', text: 'not asked: the requester passes through' };
  if (did === undefined) return { opinion: 'miss', text: 'not asked: no domain' };
  const page = Number(BigInt.asUintN(52, iova >> 12n));
  const tag = isTaggedByPasid ? Math.max(pasid, 0) : -1;
  for (const entry of unit.iotlb.entries()) {
    if (entry.did !== did || entry.pasid !== tag) continue;
    if (page < entry.firstPage || page >= entry.firstPage + entry.pages) continue;
    const physical = (BigInt(entry.physicalPage + page - entry.firstPage) << 12n) + (iova & 0xfffn);
    const [read, write] = [(entry.attributes & 1) !== 0, (entry.attributes & 2) !== 0];
    const found = `${hex(physical)}, ${rights(read, write)}${(entry.attributes & SNOOPED) !== 0 ? ', snooped' : ''}`;
    // A cached entry may allow less than the tables (a clean leaf is cached read-only); more, or elsewhere, is stale.
    const isStale = walk.physical !== physical || (read && !walk.allows.read) || (write && !walk.allows.write);
    return isStale
      ? { opinion: 'stale', text: `stale: still says ${found} (DID ${did}); nobody has invalidated it` }
      : { opinion: 'hit', text: `hit: ${found} (DID ${did})` };
  }
  return { opinion: 'miss', text: `miss (DID ${did}): the next request walks` };
}

/** The report as lines for a terminal. */
export function walkLines(report: WalkReport): string[] {
  const { device, requester, unit, mode, pasid, iova, steps } = report;
  const tag = pasid === null ? '' : ` with PASID ${pasid}`;
  const lines = [`${iova} of ${device}${tag}: requester ${requester}, ${unit} in ${mode} mode`];
  const titles = steps.map(
    ({ what, index, depth }) => `${'  '.repeat(depth)}${what}${index === null ? '' : ` [${index}]`}`,
  );
  const width = Math.max(0, ...titles.map(({ length }) => length));
  steps.forEach((step, i) => {
    const { address, value, text, problems, allows } = step;
    lines.push(
      `  ${titles[i]!.padEnd(width)}  ${address}: ${value ?? 'no memory'}  ${value === null ? '' : text}`.trimEnd(),
    );
    if (step.isPresent && allows !== null && allows !== 'read and write')
      lines.push(`  ${''.padEnd(width)}  up to here: ${allows}`);
    for (const problem of problems) lines.push(`  ${''.padEnd(width)}  ! ${problem}`);
  });
  lines.push(
    `  snoop    ${report.outcome === 'translated' ? (report.isSnooped ? 'no-snoop requests are made coherent' : 'no-snoop requests pass as they are') : '-'}`,
  );
  lines.push(`  IOTLB    ${report.iotlb.text}`);
  lines.push(`  verdict  ${report.verdict}`);
  return lines;
}
