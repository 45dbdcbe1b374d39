/**
 * Finds IOMMU faults and table dumps in the text of a kernel log: Intel's DMAR lines as Linux has printed them since 2.6.24 (three forms) with
 * the dump that newer kernels add, and AMD-Vi's IO_PAGE_FAULT. Everything else in the text is passed over, so a whole `dmesg` may be given.
 */

/** A dump of the entries on the way to an address, as far as the kernel printed them. */
export interface TableDump {
  readonly unit: string;
  readonly iova: bigint;
  rootEntry?: { readonly low: bigint; readonly high?: bigint };
  contextEntry?: { readonly low: bigint; readonly high: bigint };
  pasidDirectoryEntry?: bigint;
  readonly pasidEntry: bigint[];
  readonly pageEntries: { readonly level: number; readonly value: bigint }[];
  /** What the kernel said was missing, in its words. */
  missing?: string;
}

/** One fault. Absent fields were not printed. */
export interface ReportedFault {
  readonly line: number;
  readonly vendor: 'intel' | 'amd';
  readonly kind: 'dma' | 'interrupt';
  readonly access?: 'read' | 'write';
  readonly device: string;
  readonly pasid?: number;
  readonly address?: bigint;
  /** Index into the interrupt remapping table. */
  readonly index?: number;
  reason?: number;
  readonly domain?: number;
  readonly flags?: number;
  dump?: TableDump;
}

export interface ParsedLog {
  readonly faults: ReportedFault[];
  /** Dumps with no fault before them. */
  readonly dumps: TableDump[];
  /** Lines that look like a fault but cannot be understood. */
  readonly problems: { readonly line: number; readonly text: string }[];
}

/** The text is a person's paste; these bounds keep a wrong file (a core dump, a disk) from being worked through. */
const MAX_LINE = 4096;
export const MAX_FAULTS = 10_000;

const INTEL =
  /\[(DMA Read|DMA Write|INTR-REMAP)(?: (NO_PASID)| PASID (?:0x)?([0-9a-f]+))?\] Request device \[((?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])\](?: PASID ([0-9a-f]+))? fault (addr|index) (?:0x)?([0-9a-f]+)/i;
const REASON = /\[?fault reason (0x[0-9a-f]+|\d+)\]?/i;
const AMD =
  /(?:([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): )?(?:AMD-Vi: )?Event logged \[(IO_PAGE_FAULT)(?: device=((?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]))? (?:domain=0x([0-9a-f]+)|pasid=0x([0-9a-f]+)) address=0x([0-9a-f]+) flags=0x([0-9a-f]+)/i;

const full = (device: string): string => (device.length === 7 ? `0000:${device}` : device).toLowerCase();
const number = (text: string): bigint => BigInt(`0x${text}`);

/** Reads a log. Never throws. */
export function parseFaultLog(text: string): ParsedLog {
  const log: ParsedLog = { faults: [], dumps: [], problems: [] };
  let fault: ReportedFault | undefined;
  let dump: TableDump | undefined;
  const lines = text.split(/\r?\n/);
  for (let at = 0; at < lines.length && log.faults.length < MAX_FAULTS; at++) {
    const line = lines[at]!.slice(0, MAX_LINE);
    const intel = INTEL.exec(line);
    const amd = intel === null ? AMD.exec(line) : null;
    if (intel !== null) {
      fault = intelFault(intel, line, at + 1);
      dump = undefined;
      log.faults.push(fault);
      continue;
    }
    if (amd !== null) {
      fault = amdFault(amd, at + 1);
      dump = undefined;
      log.faults.push(fault);
      continue;
    }
    if (/Request device \[|Event logged \[IO_PAGE_FAULT/.test(line)) {
      log.problems.push({ line: at + 1, text: line.trim() });
      continue;
    }
    const reason = REASON.exec(line);
    if (reason !== null && fault !== undefined && fault.reason === undefined) {
      fault.reason = reasonCode(reason[1]!);
      continue;
    }
    const start = /Dump (\S+) table entries for IOVA 0x([0-9a-f]+)/i.exec(line);
    if (start !== null) {
      dump = { unit: start[1]!, iova: number(start[2]!), pasidEntry: [], pageEntries: [] };
      if (fault !== undefined && fault.dump === undefined && fault.address === dump.iova) fault.dump = dump;
      else log.dumps.push(dump);
      continue;
    }
    if (dump !== undefined) dumpLine(dump, line);
  }
  return log;
}

/** Older kernels print the reason in decimal, without 0x. */
function reasonCode(text: string): number {
  return text.toLowerCase().startsWith('0x') ? Number.parseInt(text, 16) : Number.parseInt(text, 10);
}

function intelFault(match: RegExpExecArray, line: string, at: number): ReportedFault {
  const [, what = '', , pasidBefore, device = '', pasidAfter, kind, value = ''] = match;
  const pasidText = pasidBefore ?? pasidAfter;
  // All ones: the older form of "no PASID".
  const pasid = pasidText === undefined || /^f{8}$/i.test(pasidText) ? undefined : Number.parseInt(pasidText, 16);
  const reason = REASON.exec(line);
  const isInterrupt = /INTR/i.test(what);
  return {
    line: at,
    vendor: 'intel',
    kind: isInterrupt ? 'interrupt' : 'dma',
    ...(isInterrupt ? {} : { access: /read/i.test(what) ? ('read' as const) : ('write' as const) }),
    device: full(device),
    ...(pasid === undefined ? {} : { pasid }),
    ...(kind?.toLowerCase() === 'index' ? { index: Number(number(value)) } : { address: number(value) }),
    ...(reason === null ? {} : { reason: reasonCode(reason[1]!) }),
  };
}

function amdFault(match: RegExpExecArray, at: number): ReportedFault {
  const [, before, , inside, domain, pasid, address = '0', flagsText = '0'] = match;
  const flags = Number.parseInt(flagsText, 16);
  const isInterrupt = (flags & 0x008) !== 0;
  return {
    line: at,
    vendor: 'amd',
    kind: isInterrupt ? 'interrupt' : 'dma',
    ...(isInterrupt ? {} : { access: (flags & 0x020) !== 0 ? ('write' as const) : ('read' as const) }),
    device: full(inside ?? before ?? '????:??:??.?'),
    ...(domain === undefined ? {} : { domain: Number.parseInt(domain, 16) }),
    ...(pasid === undefined ? {} : { pasid: Number.parseInt(pasid, 16) }),
    address: number(address),
    flags,
  };
}

function dumpLine(dump: TableDump, line: string): void {
  let match = /root entry: hi 0x([0-9a-f]+), low 0x([0-9a-f]+)/i.exec(line);
  if (match !== null) {
    dump.rootEntry = { high: number(match[1]!), low: number(match[2]!) };
    return;
  }
  match = /root entry: 0x([0-9a-f]+)/i.exec(line);
  if (match !== null) {
    dump.rootEntry = { low: number(match[1]!) };
    return;
  }
  match = /context entry: hi 0x([0-9a-f]+), low 0x([0-9a-f]+)/i.exec(line);
  if (match !== null) {
    dump.contextEntry = { high: number(match[1]!), low: number(match[2]!) };
    return;
  }
  match = /pasid dir entry: 0x([0-9a-f]+)/i.exec(line);
  if (match !== null) {
    dump.pasidDirectoryEntry = number(match[1]!);
    return;
  }
  match = /pasid table entry\[([0-7])\]: 0x([0-9a-f]+)/i.exec(line);
  if (match !== null) {
    dump.pasidEntry[Number(match[1])] = number(match[2]!);
    return;
  }
  match = /pte level: ([1-5]), pte value: 0x([0-9a-f]+)/i.exec(line);
  if (match !== null) {
    dump.pageEntries.push({ level: Number(match[1]), value: number(match[2]!) });
    return;
  }
  match =
    /((?:root|context|pasid|pasid directory|page|legacy mode page|scalable mode page) table is not present|page table not present at level \d)/i.exec(
      line,
    );
  if (match !== null) dump.missing = match[1]!;
}
