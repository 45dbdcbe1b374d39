/**
 * Why a unit refused a request: the codes of the VT-d specification ("Fault Reason Encodings") and the fault recording registers.
 *
 * Two texts go with a fault. The short one is stable and goes back to the device (`DmaFault.reason`); programs compare it. The long
 * one says which table entry at which level said no, for people.
 */

/** Fault reasons of legacy mode, by their codes. 0 is none: the request never reached translation. */
export const FaultReason = {
  NOT_A_DMA_REQUEST: 0x00,
  ROOT_NOT_PRESENT: 0x01,
  CONTEXT_NOT_PRESENT: 0x02,
  CONTEXT_INVALID: 0x03,
  BEYOND_MGAW: 0x04,
  NO_WRITE_PERMISSION: 0x05,
  NO_READ_PERMISSION: 0x06,
  NEXT_TABLE_INVALID: 0x07,
  ROOT_POINTER_INVALID: 0x08,
  CONTEXT_POINTER_INVALID: 0x09,
  ROOT_RESERVED: 0x0a,
  CONTEXT_RESERVED: 0x0b,
  ENTRY_RESERVED: 0x0c,
  TRANSLATION_REQUEST_BLOCKED: 0x0d,
  PASID_IN_LEGACY_MODE: 0x31,
} as const;

export type FaultReason = (typeof FaultReason)[keyof typeof FaultReason];

/** The name of a reason's code, lower case with spaces: `no write permission`. */
export function faultReasonName(reason: number): string {
  const name = Object.entries(FaultReason).find(([, code]) => code === reason)?.[0] ?? `reason ${reason}`;
  return name.toLowerCase().replaceAll('_', ' ');
}

/** One fault, decoded. */
export interface Fault {
  readonly rid: number;
  /** -1: none. */
  readonly pasid: number;
  readonly page: number;
  readonly access: 'read' | 'write';
  readonly reason: FaultReason;
  /** Which entry said no. */
  readonly detail: string;
}

const F = 0x8000_0000;
const TYPE_READ = 0x4000_0000;

/**
 * The fault recording registers: 16 bytes each. A fault that finds none free is dropped and sets the overflow flag (FSTS.PFO) until
 * software clears it.
 */
export class FaultLog {
  readonly #words: Uint32Array;
  readonly #records: number;
  #next = 0;
  /** FSTS.PFO. */
  overflow = false;

  constructor(records: number) {
    this.#records = records;
    this.#words = new Uint32Array(records * 4);
  }

  /** Something is recorded (FSTS.PPF). */
  get isPending(): boolean {
    for (let i = 0; i < this.#records; i++) if ((this.#words[i * 4 + 3]! & F) !== 0) return true;
    return false;
  }

  record(rid: number, pasid: number, page: number, isRead: boolean, reason: number): void {
    if (this.overflow) return;
    const at = this.#next * 4;
    if ((this.#words[at + 3]! & F) !== 0) {
      this.overflow = true;
      return;
    }
    this.#words[at] = (page % 0x100000) * 4096;
    this.#words[at + 1] = Math.floor(page / 0x100000);
    this.#words[at + 2] = rid | (pasid >= 0 ? 0x8000_0000 : 0);
    this.#words[at + 3] = F | (isRead ? TYPE_READ : 0) | (Math.max(pasid, 0) << 8) | reason;
    this.#next = (this.#next + 1) % this.#records;
  }

  /** Register `index` as four 32-bit words. */
  read(index: number): Uint32Array {
    return this.#words.slice(index * 4, index * 4 + 4);
  }

  /** Software has read all records: clears them and the overflow flag. */
  clear(): void {
    for (let i = 0; i < this.#records; i++) this.#words[i * 4 + 3]! &= ~F;
    this.overflow = false;
  }
}
