/**
 * Faults of a real kernel's log, decoded: who asked for what, what the reason means, each entry of the dump in words, and a verdict that
 * names the entry which said no.
 */
import {
  type Described,
  describeContextEntry,
  describePageEntry,
  describePasidDirectoryEntry,
  describePasidEntry,
  describeRootEntry,
  describeScalableContextEntry,
  fieldsText,
  indexAt,
  LEVEL_NAMES,
  pageSizeText,
  type Stage,
} from '../../hw/iommu/describe.ts';
import { type ParsedLog, parseFaultLog, type ReportedFault, type TableDump } from './parse.ts';
import { amdFlags, reasonMeaning } from './reasons.ts';

/** One entry of a dump. */
export interface DecodedEntry {
  readonly what: string;
  readonly value: string;
  readonly isPresent: boolean;
  readonly fields: string;
  readonly problems: readonly string[];
}

/** One fault with everything that can be said about it. Addresses are hexadecimal text. */
export interface DecodedFault {
  readonly line: number | undefined;
  readonly headline: string;
  readonly reason: { readonly code: number; readonly name: string; readonly look: string } | undefined;
  readonly flags: readonly string[];
  readonly unit: string | undefined;
  readonly entries: readonly DecodedEntry[];
  readonly verdict: string;
}

export interface FaultReport {
  readonly faults: readonly DecodedFault[];
  readonly problems: ParsedLog['problems'];
}

const hex = (value: bigint | number): string => `0x${value.toString(16)}`;

/** Decodes what a text contains. An empty `faults` means that there was no fault and no dump in it. */
export function decodeFaultLog(text: string): FaultReport {
  const log = parseFaultLog(text);
  return {
    faults: [...log.faults.map(decodeFault), ...log.dumps.map((dump) => decodeDump(dump, undefined))],
    problems: log.problems,
  };
}

function decodeFault(fault: ReportedFault): DecodedFault {
  const meaning = fault.reason === undefined ? undefined : reasonMeaning(fault.reason);
  const reason =
    fault.reason === undefined
      ? undefined
      : {
          code: fault.reason,
          name: meaning?.name ?? 'a code that the VT-d specification does not have',
          look: meaning?.look ?? '',
        };
  const flags = fault.flags === undefined ? [] : amdFlags(fault.flags);
  const base = { line: fault.line, headline: headline(fault), reason, flags };
  if (fault.dump !== undefined) return { ...decodeDump(fault.dump, fault), ...base };
  const verdict = reason?.look ? `Look for the cause here: ${reason.look}.` : amdVerdict(fault);
  return { ...base, unit: undefined, entries: [], verdict };
}

function headline(fault: ReportedFault): string {
  const tag = fault.pasid === undefined ? '' : ` with PASID ${hex(fault.pasid)}`;
  if (fault.kind === 'interrupt') {
    const which = fault.index === undefined ? '' : `, entry ${fault.index} of the remapping table`;
    return `interrupt of ${fault.device}${which}`;
  }
  const domain = fault.domain === undefined ? '' : ` (domain ${fault.domain})`;
  return `DMA ${fault.access} by ${fault.device}${tag} at ${hex(fault.address ?? 0n)}${domain}`;
}

function amdVerdict(fault: ReportedFault): string {
  if (fault.vendor !== 'amd' || fault.flags === undefined)
    return 'The line has no reason, so nothing more can be said.';
  if ((fault.flags & 0x008) !== 0) return 'The interrupt remapping table refused an interrupt message of the device.';
  if ((fault.flags & 0x080) !== 0) return 'An entry on the way has reserved bits set.';
  if ((fault.flags & 0x010) !== 0) return `The page is mapped, but not for a ${fault.access}.`;
  return 'Nothing is mapped at this address for the device.';
}

function decodeDump(dump: TableDump, fault: ReportedFault | undefined): DecodedFault {
  const entries: DecodedEntry[] = [];
  const add = (what: string, value: bigint | string, described: Described): Described => {
    const text = typeof value === 'string' ? value : hex(value);
    const { isPresent, problems } = described;
    entries.push({ what, value: text, isPresent, fields: isPresent ? fieldsText(described) : 'not present', problems });
    return described;
  };
  const verdict = walkVerdict(dump, fault, add);
  return {
    line: fault?.line,
    headline: fault === undefined ? `dump of ${dump.unit} for ${hex(dump.iova)}` : headline(fault),
    reason: undefined,
    flags: [],
    unit: dump.unit,
    entries,
    verdict,
  };
}

type Add = (what: string, value: bigint | string, described: Described) => Described;

/** Goes through the dump as the hardware goes through the tables, and stops where it would. */
function walkVerdict(dump: TableDump, fault: ReportedFault | undefined, add: Add): string {
  const { rootEntry, contextEntry, pasidDirectoryEntry, pasidEntry, pageEntries } = dump;
  const isScalable = rootEntry?.high !== undefined;
  const broken = (what: string, { problems }: Described): string | undefined =>
    problems.length === 0 ? undefined : `The ${what} is wrong: ${problems.join('; ')}.`;
  if (rootEntry !== undefined) {
    const devfn = fault === undefined ? 0 : devfnOf(fault.device);
    const half = rootEntry.high !== undefined && devfn >= 128 ? rootEntry.high : rootEntry.low;
    const name = isScalable ? `root entry (${devfn >= 128 ? 'upper' : 'lower'} half)` : 'root entry';
    const root = add(name, half, describeRootEntry(half));
    if (!root.isPresent) return 'The bus of the device has no context table: nothing on this bus was ever attached.';
    const wrong = broken(name, root);
    if (wrong !== undefined) return wrong;
  }
  let stage: Stage = 'second';
  if (contextEntry !== undefined) {
    const { low, high } = contextEntry;
    const value = `${hex(high)} : ${hex(low)}`;
    const context = isScalable ? describeScalableContextEntry(low, high) : describeContextEntry(low, high);
    add('context entry', value, context);
    if (!context.isPresent) return 'The device is attached to nothing: its context entry is not present.';
    const wrong = broken('context entry', context);
    if (wrong !== undefined) return wrong;
    if (!isScalable && ((low >> 2n) & 3n) === 2n)
      return 'The device passes through (TT 2): its DMA is not translated, only the address width is checked.';
  }
  if (pasidDirectoryEntry !== undefined) {
    const directory = add(
      'PASID directory entry',
      pasidDirectoryEntry,
      describePasidDirectoryEntry(pasidDirectoryEntry),
    );
    if (!directory.isPresent) return 'The PASID was never attached: its directory entry is not present.';
  }
  if (pasidEntry.length > 0) {
    const words = Array.from({ length: 8 }, (_, i) => pasidEntry[i] ?? 0n);
    const described = describePasidEntry(words);
    add('PASID entry', words.slice(0, 3).map(hex).join(' '), described);
    if (!described.isPresent)
      return 'The PASID (0: requests without one) is attached to nothing: its entry is not present.';
    const wrong = broken('PASID entry', described);
    if (wrong !== undefined) return wrong;
    if (described.walk.stage === 'pass-through') return 'The PASID passes through: its DMA is not translated.';
    // The kernel dumps the second stage of a nested entry.
    stage = described.walk.stage === 'first' ? 'first' : 'second';
  }
  return pageVerdict(dump, fault, stage, add) ?? missingVerdict(dump, pageEntries.length);
}

function missingVerdict({ missing }: TableDump, entries: number): string {
  if (missing !== undefined) return `The kernel found that the ${missing}.`;
  return entries === 0
    ? 'The dump is cut off before the page table, so the entry that said no is not in it.'
    : 'The dump is cut off inside the page table, so the entry that said no is not in it.';
}

function pageVerdict(dump: TableDump, fault: ReportedFault | undefined, stage: Stage, add: Add): string | undefined {
  let rights = { read: true, write: true };
  for (const { level, value } of dump.pageEntries) {
    const described = describePageEntry(stage, value, level);
    const name = `level ${level} (${LEVEL_NAMES[level]})`;
    add(`${name} [${indexAt(dump.iova, level)}]`, value, described);
    if (!described.isPresent) {
      return `Nothing is mapped at ${hex(dump.iova)}: the entry at ${name} is not present.`;
    }
    if (described.problems.length > 0) return `The entry at ${name} is wrong: ${described.problems.join('; ')}.`;
    const allows = described.allows!;
    const { access } = fault ?? {};
    if (access !== undefined && !allows[access]) {
      const has = allows.read ? 'reads only' : 'writes only';
      return `${hex(dump.iova)} is mapped for ${has}: the entry at ${name} does not allow a ${access}.`;
    }
    rights = { read: rights.read && allows.read, write: rights.write && allows.write };
    if (described.isLeaf === true) {
      const offset = dump.iova & ((1n << BigInt(12 + 9 * (level - 1))) - 1n);
      const page = `a ${pageSizeText(level)} page, physical address ${hex((described.next ?? 0n) + offset)}`;
      if (access === undefined) return `${hex(dump.iova)} is mapped (${page}).`;
      return `The tables in the dump allow this ${access} (${page}): they were changed after the fault, or the unit used an older translation that was not invalidated.`;
    }
  }
  return undefined;
}

function devfnOf(device: string): number {
  const match = /([0-9a-f]{2})\.([0-7])$/.exec(device);
  return match === null ? 0 : (Number.parseInt(match[1]!, 16) << 3) | Number(match[2]);
}

/** The report as lines for a terminal. */
export function faultReportLines(report: FaultReport): string[] {
  const lines: string[] = [];
  for (const fault of report.faults) {
    if (lines.length > 0) lines.push('');
    lines.push(fault.line === undefined ? fault.headline : `${fault.headline} (line ${fault.line})`);
    if (fault.reason !== undefined) {
      lines.push(`  reason   0x${fault.reason.code.toString(16).padStart(2, '0')}: ${fault.reason.name}`);
    }
    for (const flag of fault.flags) lines.push(`  flag     ${flag}`);
    if (fault.unit !== undefined) lines.push(`  tables   of ${fault.unit}`);
    const width = Math.max(0, ...fault.entries.map(({ what }) => what.length));
    for (const { what, value, fields, problems } of fault.entries) {
      lines.push(`    ${what.padEnd(width)}  ${value}  ${fields}`);
      for (const problem of problems) lines.push(`    ${''.padEnd(width)}  ! ${problem}`);
    }
    lines.push(`  verdict  ${fault.verdict}`);
    if (fault.entries.length > 0 && fault.reason !== undefined && fault.reason.look !== '') {
      lines.push(`  look at  ${fault.reason.look}`);
    }
  }
  for (const { line, text } of report.problems)
    lines.push(`line ${line} looks like a fault but cannot be read: ${text}`);
  return lines;
}
