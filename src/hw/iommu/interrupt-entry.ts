/**
 * Interrupt remapping entries (IRTE) and the messages that name them, bit by bit (VT-d specification, "Interrupt Remapping Table
 * Entry", "Interrupt Requests in Remappable Format").
 *
 * An entry is four 32-bit words, lowest first. In remapped format it holds what the processor's interrupt controller is sent; in
 * posted format the address of a descriptor in which the interrupt is noted for a virtual processor (posted-interrupt.ts).
 */

/** Bytes of an entry. */
export const IRTE_SIZE = 16;
/** Entries of the largest table. */
export const IRTE_COUNT = 65536;

/** Four 32-bit words. */
export type EntryWords = Uint32Array;

/** What both formats have: who may use the entry. */
export interface InterruptSource {
  /** FPD: refusals by this entry are not recorded. */
  readonly faultsOff?: boolean;
  /** Requester ID, or with `svt` 2 the first and the last bus. */
  readonly sid: number;
  /** Bits of the requester ID that are not compared: 0 none, 1 bit 2, 2 bits 1-2, 3 bits 0-2. */
  readonly sq: number;
  /** 0: nobody is checked. 1: `sid` with `sq`. 2: the bus lies in a range. */
  readonly svt: number;
}

export interface RemappedEntry extends InterruptSource {
  readonly vector: number;
  /** APIC ID; as it stands in the entry: shifted left by 8 when the unit is not in x2APIC mode. */
  readonly destination: number;
  /** DM. */
  readonly isLogical?: boolean;
  /** RH: one of several destinations. */
  readonly redirectionHint?: boolean;
  /** TM. */
  readonly isLevel?: boolean;
  /** DLM: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT. */
  readonly deliveryMode?: number;
}

export interface PostedEntry extends InterruptSource {
  readonly vector: number;
  /** Where the descriptor lies; a multiple of 64. */
  readonly descriptor: bigint;
  readonly isUrgent?: boolean;
}

const PRESENT = 1;
const FPD = 1 << 1;
const POSTED = 1 << 15;
const URGENT = 1 << 14;
const REMAPPED_RESERVED = 0xff00_7000;
const POSTED_RESERVED = 0xff00_30fc;
/** Of the second word: bits 32 to 37. */
const POSTED_RESERVED_HIGH = 0x3f;

export function remappedEntry(entry: RemappedEntry): EntryWords {
  const flags =
    (entry.isLogical ? 1 << 2 : 0) |
    (entry.redirectionHint ? 1 << 3 : 0) |
    (entry.isLevel ? 1 << 4 : 0) |
    ((entry.deliveryMode ?? 0) << 5);
  return Uint32Array.of(
    PRESENT | (entry.faultsOff ? FPD : 0) | flags | (entry.vector << 16),
    entry.destination,
    sourceWord(entry),
    0,
  );
}

/** Software's bits (avail) are empty. */
export function postedEntry(entry: PostedEntry): EntryWords {
  const low = Number(entry.descriptor & 0xffff_ffffn);
  return Uint32Array.of(
    PRESENT | (entry.faultsOff ? FPD : 0) | (entry.isUrgent ? URGENT : 0) | POSTED | (entry.vector << 16),
    (low & 0xffff_ffc0) >>> 0,
    sourceWord(entry),
    Number(entry.descriptor >> 32n),
  );
}

function sourceWord({ sid, sq, svt }: InterruptSource): number {
  return (sid | (sq << 16) | (svt << 18)) >>> 0;
}

export function isPresent(words: EntryWords): boolean {
  return (words[0]! & PRESENT) !== 0;
}

export function isPosted(words: EntryWords): boolean {
  return (words[0]! & POSTED) !== 0;
}

export function areFaultsOff(words: EntryWords): boolean {
  return (words[0]! & FPD) !== 0;
}

export function decodeSource(words: EntryWords): InterruptSource {
  const word = words[2]!;
  return { faultsOff: areFaultsOff(words), sid: word & 0xffff, sq: (word >>> 16) & 3, svt: (word >>> 18) & 3 };
}

export function decodeRemapped(words: EntryWords): RemappedEntry {
  const low = words[0]!;
  return {
    ...decodeSource(words),
    vector: (low >>> 16) & 0xff,
    destination: words[1]!,
    isLogical: (low & (1 << 2)) !== 0,
    redirectionHint: (low & (1 << 3)) !== 0,
    isLevel: (low & (1 << 4)) !== 0,
    deliveryMode: (low >>> 5) & 7,
  };
}

export function decodePosted(words: EntryWords): PostedEntry {
  const low = words[0]!;
  return {
    ...decodeSource(words),
    vector: (low >>> 16) & 0xff,
    descriptor: (BigInt(words[3]!) << 32n) | BigInt((words[1]! & 0xffff_ffc0) >>> 0),
    isUrgent: (low & URGENT) !== 0,
  };
}

/** Why a present entry is no legal one, undefined when it is. */
export function reservedBits(words: EntryWords, canPost: boolean): string | undefined {
  if (((words[2]! >>> 18) & 3) === 3) return 'source validation type 3 does not exist';
  if (words[2]! >>> 20 !== 0) return `reserved bits 84 to 95 are 0x${(words[2]! >>> 20).toString(16)}`;
  if (isPosted(words)) {
    if (!canPost) return 'posted format, which this unit does not know';
    const low = (words[0]! & POSTED_RESERVED) >>> 0;
    if (low !== 0 || (words[1]! & POSTED_RESERVED_HIGH) !== 0) return `reserved bits of the posted format are set`;
    return undefined;
  }
  if ((words[0]! & REMAPPED_RESERVED) !== 0) return 'reserved bits of the remapped format are set';
  return words[3]! !== 0 ? `reserved bits 96 to 127 are 0x${words[3]!.toString(16)}` : undefined;
}

const IGNORED_BITS = [0, 4, 6, 7];

/** Whether a request of `rid` may use the entry. */
export function isSourceValid({ sid, sq, svt }: InterruptSource, rid: number): boolean {
  if (svt === 0) return true;
  if (svt === 2) return rid >>> 8 >= sid >>> 8 && rid >>> 8 <= (sid & 0xff);
  const ignored = IGNORED_BITS[sq]!;
  return (sid & ~ignored) === (rid & ~ignored);
}

// ---- messages ----

/** Of a message's address: remappable format; SHV, the data is a subhandle. */
export const FORMAT = 1 << 4;
export const SUBHANDLE_VALID = 1 << 3;

/** The entry that a message in remappable format names: its handle, plus its subhandle where there is one. */
export function messageIndex(address: number, data: number): number {
  const handle = ((address >>> 5) & 0x7fff) | ((address & (1 << 2)) !== 0 ? 0x8000 : 0);
  return (address & SUBHANDLE_VALID) !== 0 ? handle + (data & 0xffff) : handle;
}

/** A message's address and data, decoded. */
export interface MessageFields {
  /** False: compatibility format, which names a processor and a vector itself. */
  readonly isRemappable: boolean;
  readonly handle: number;
  /** SHV: the data is a subhandle, added to the handle. */
  readonly hasSubhandle: boolean;
  /** The entry: handle, plus subhandle where there is one. Beyond the table when they add up so. */
  readonly index: number;
}

/** Low half of the message's address, and its data. */
export function decodeMessage(address: number, data: number): MessageFields {
  return {
    isRemappable: (address & FORMAT) !== 0,
    handle: messageIndex(address & ~SUBHANDLE_VALID, 0),
    hasSubhandle: (address & SUBHANDLE_VALID) !== 0,
    index: messageIndex(address, data),
  };
}

/** The message that names entry `handle` + `subhandle`; always with a subhandle, as Linux writes it. */
export function encodeMessage(handle: number, subhandle = 0): { address: number; data: number } {
  const address = 0xfee0_0000 | ((handle & 0x7fff) << 5) | (1 << 4) | (1 << 3) | ((handle & 0x8000) !== 0 ? 1 << 2 : 0);
  return { address: address >>> 0, data: subhandle };
}
