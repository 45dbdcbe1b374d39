/**
 * Root, context and PASID entries, bit by bit (VT-d specification, chapter 9; scalable mode too). An entry is an array of 32-bit
 * words, low half first; pointers are page numbers. The writers make entries as software does, the readers look at them as hardware
 * does, reserved bits included.
 */

/** What a PASID entry (or a legacy context entry) translates by. */
export type TranslationType = 'first' | 'second' | 'nested' | 'pass-through';

/** Address widths of second stages by levels: 39, 48, 57 bits. */
const AW_OF_LEVELS: Readonly<Record<number, number>> = { 3: 1, 4: 2, 5: 3 };
const LEVELS_OF_AW: readonly number[] = [0, 3, 4, 5, 0, 0, 0, 0];
const PGTT: readonly TranslationType[] = ['first', 'second', 'nested', 'pass-through'];
/** Bits above the 52 of a physical address, in a high half. */
const BEYOND_ADDRESS = 0xfff0_0000;

const P = 1;
const FPD = 2;
const BIT_PWSNP = 1 << 23;
const BIT_PGSNP = 1 << 24;

/** A pointer and the bits below it. */
function pointer(page: number, bits: number): [low: number, high: number] {
  return [(((page & 0xfffff) << 12) | bits) >>> 0, Math.floor(page / 0x10_0000)];
}

export function pageOf(low: number, high: number): number {
  return (high & 0xf_ffff) * 0x10_0000 + (low >>> 12);
}

/** A root entry's half: the context table of a bus (legacy), of devfn 0 to 127 or 128 to 255 (scalable). */
export function rootHalf(tablePage: number): [low: number, high: number] {
  return pointer(tablePage, P);
}

export interface LegacyContext {
  readonly isFaultRecordingOff?: boolean;
  /** Device TLBs allowed: translation and translated requests (TT = 1). */
  readonly hasDeviceTlb?: boolean;
  /** Undefined: pass-through (TT = 2). */
  readonly secondStage: { readonly page: number; readonly levels: number } | undefined;
  readonly did: number;
}

export function legacyContext(context: LegacyContext): Uint32Array {
  const stage = context.secondStage;
  const type = stage === undefined ? 2 : context.hasDeviceTlb === true ? 1 : 0;
  const bits = P | (context.isFaultRecordingOff === true ? FPD : 0) | (type << 2);
  const width = AW_OF_LEVELS[stage?.levels ?? 4]!;
  return Uint32Array.of(...pointer(stage?.page ?? 0, bits), width | (context.did << 8), 0);
}

export interface ScalableContext {
  readonly isFaultRecordingOff?: boolean;
  /** DTE: translation and translated requests. */
  readonly hasDeviceTlb: boolean;
  /** PASIDE. */
  readonly hasPasids: boolean;
  /** PRE. */
  readonly hasPageRequests: boolean;
  /** The directory has 2^(pdts + 7) entries. */
  readonly pdts: number;
  readonly directoryPage: number;
  /** The PASID that stands for requests without one. */
  readonly ridPasid?: number;
}

export function scalableContext(context: ScalableContext): Uint32Array {
  const bits =
    P |
    (context.isFaultRecordingOff === true ? FPD : 0) |
    (context.hasDeviceTlb ? 4 : 0) |
    (context.hasPasids ? 8 : 0) |
    (context.hasPageRequests ? 16 : 0) |
    (context.pdts << 9);
  return Uint32Array.of(...pointer(context.directoryPage, bits), context.ridPasid ?? 0, 0, 0, 0, 0, 0);
}

/** PASIDs that a directory of this size reaches. */
export function pasidsOf(pdts: number): number {
  return 2 ** (pdts + 7 + 6);
}

export function pasidDirectoryEntry(tablePage: number): [low: number, high: number] {
  return pointer(tablePage, P);
}

/** Where a PASID is found: entry of the directory, and entry of 64 bytes in the table. */
export function pasidIndexes(pasid: number): { directory: number; table: number } {
  return { directory: pasid >>> 6, table: pasid & 63 };
}

export interface PasidEntry {
  readonly type: TranslationType;
  readonly did: number;
  readonly isFaultRecordingOff?: boolean;
  /** Of second and nested. */
  readonly secondStage?: { readonly page: number; readonly levels: number };
  /** Of first and nested; of nested a guest-physical page. */
  readonly firstStage?: { readonly page: number; readonly levels: number };
  /** Hardware sets accessed and dirty bits in second-stage leaves (SLADE). */
  readonly hasSecondStageDirty?: boolean;
  /** Page walks snoop the caches (PWSNP). */
  readonly isWalkSnooped?: boolean;
  /** All requests snoop, also those marked no-snoop (PGSNP; first stage and nested). */
  readonly isPageSnooped?: boolean;
  /** Supervisor requests (SRE), execute requests (ERE). */
  readonly allowsSupervisor?: boolean;
  readonly allowsExec?: boolean;
  /** WPE, NXE, SMEP, EAFE. */
  readonly isWriteProtected?: boolean;
  readonly hasNoExecute?: boolean;
  readonly hasSmep?: boolean;
  readonly hasExtendedAccessed?: boolean;
}

/** A PASID entry as 16 words. */
export function pasidEntry(entry: PasidEntry): Uint32Array {
  const words = new Uint32Array(16);
  const { secondStage: second, firstStage: first } = entry;
  const width = AW_OF_LEVELS[second?.levels ?? 4]!;
  const flag = (on: boolean | undefined, bit: number): number => (on === true ? bit : 0);
  const bits =
    P |
    flag(entry.isFaultRecordingOff, FPD) |
    (width << 2) |
    ((PGTT.indexOf(entry.type) + 1) << 6) |
    flag(entry.hasSecondStageDirty, 1 << 9);
  words.set(pointer(second?.page ?? 0, bits));
  words[2] = entry.did | flag(entry.isWalkSnooped, BIT_PWSNP) | flag(entry.isPageSnooped, BIT_PGSNP);
  const firstBits =
    flag(entry.allowsSupervisor, 1) |
    flag(entry.allowsExec, 2) |
    (first?.levels === 5 ? 1 << 2 : 0) |
    flag(entry.isWriteProtected, 16) |
    flag(entry.hasNoExecute, 32) |
    flag(entry.hasSmep, 64) |
    flag(entry.hasExtendedAccessed, 128);
  words.set(pointer(first?.page ?? 0, firstBits), 4);
  return words;
}

/** An entry as hardware reads it: not there, malformed, or what it says. */
export type Decoded<T> = 'not present' | 'reserved' | 'invalid' | T;

export function readLegacyContext(words: Uint32Array): Decoded<Required<LegacyContext>> {
  const [low = 0, high = 0, low2 = 0, high2 = 0] = words;
  if ((low & P) === 0) return 'not present';
  const type = (low >>> 2) & 3;
  const levels = LEVELS_OF_AW[low2 & 7]!;
  if ((low & 0xff0) !== 0 || (high & BEYOND_ADDRESS) !== 0 || (low2 & 0xff00_0080) !== 0 || high2 !== 0) {
    return 'reserved';
  }
  if (type === 3 || (levels === 0 && type !== 2)) return 'invalid';
  return {
    isFaultRecordingOff: (low & FPD) !== 0,
    hasDeviceTlb: type === 1,
    secondStage: type === 2 ? undefined : { page: pageOf(low, high), levels },
    did: (low2 >>> 8) & 0xffff,
  };
}

export function readScalableContext(words: Uint32Array): Decoded<Required<ScalableContext>> {
  const [low = 0, high = 0, low2 = 0] = words;
  if ((low & P) === 0) return 'not present';
  const rest = words.subarray(3).some((word) => word !== 0);
  if ((low & 0x1e0) !== 0 || (high & BEYOND_ADDRESS) !== 0 || low2 >>> 21 !== 0 || rest) return 'reserved';
  return {
    isFaultRecordingOff: (low & FPD) !== 0,
    hasDeviceTlb: (low & 4) !== 0,
    hasPasids: (low & 8) !== 0,
    hasPageRequests: (low & 16) !== 0,
    pdts: (low >>> 9) & 7,
    directoryPage: pageOf(low, high),
    ridPasid: low2 & 0xf_ffff,
  };
}

export function readPasidEntry(words: Uint32Array): Decoded<Required<PasidEntry>> {
  const [low = 0, high = 0, low2 = 0, high2 = 0, low3 = 0, high3 = 0] = words;
  if ((low & P) === 0) return 'not present';
  const rest = words.subarray(6).some((word) => word !== 0);
  const isReserved =
    (low & 0xc20) !== 0 ||
    ((high | high3) & BEYOND_ADDRESS) !== 0 ||
    (low2 & 0xfe7f_0000) !== 0 ||
    high2 !== 0 ||
    (low3 & 0xf00) !== 0 ||
    rest;
  if (isReserved) return 'reserved';
  const type = PGTT[((low >>> 6) & 7) - 1];
  const levels = LEVELS_OF_AW[(low >>> 2) & 7]!;
  const mode = (low3 >>> 2) & 3;
  if (type === undefined) return 'invalid';
  if ((type === 'second' || type === 'nested') && levels === 0) return 'invalid';
  if ((type === 'first' || type === 'nested') && mode > 1) return 'invalid';
  return {
    type,
    did: low2 & 0xffff,
    isFaultRecordingOff: (low & FPD) !== 0,
    secondStage: { page: pageOf(low, high), levels },
    firstStage: { page: pageOf(low3, high3), levels: mode === 1 ? 5 : 4 },
    hasSecondStageDirty: (low & (1 << 9)) !== 0,
    isWalkSnooped: (low2 & BIT_PWSNP) !== 0,
    isPageSnooped: (low2 & BIT_PGSNP) !== 0,
    allowsSupervisor: (low3 & 1) !== 0,
    allowsExec: (low3 & 2) !== 0,
    isWriteProtected: (low3 & 16) !== 0,
    hasNoExecute: (low3 & 32) !== 0,
    hasSmep: (low3 & 64) !== 0,
    hasExtendedAccessed: (low3 & 128) !== 0,
  };
}
