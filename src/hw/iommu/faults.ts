/**
 * Why a unit refused a request: the codes of the VT-d specification ("Fault Reason Encodings") and the fault recording registers.
 *
 * Two texts go with a fault. The short one is stable and goes back to the device (`DmaFault.reason`); programs compare it. The long
 * one says which table entry at which level said no, for people.
 */

/**
 * Fault reasons by their codes: below 0x20 those of legacy mode, 0x30 and above those of scalable mode (FS and SS: first and second
 * stage). 0 is none: the request never reached translation. 0x20 to 0x26 are of interrupt remapping (interrupt-remapping.ts).
 */
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
  ROOT_TABLE_ADDRESS_INVALID: 0x30,
  PASID_IN_LEGACY_MODE: 0x31,
  PAGE_REQUEST_IN_LEGACY_MODE: 0x32,
  SM_ROOT_UNREADABLE: 0x38,
  SM_ROOT_NOT_PRESENT: 0x39,
  SM_ROOT_RESERVED: 0x3a,
  SM_CONTEXT_UNREADABLE: 0x40,
  SM_CONTEXT_NOT_PRESENT: 0x41,
  SM_CONTEXT_RESERVED: 0x42,
  SM_CONTEXT_INVALID: 0x43,
  DTE_CLEAR: 0x44,
  PASIDE_CLEAR: 0x45,
  PASID_TOO_LARGE: 0x46,
  PRE_CLEAR: 0x47,
  RID_PASID_TOO_LARGE: 0x48,
  PASID_DIRECTORY_UNREADABLE: 0x50,
  PASID_DIRECTORY_NOT_PRESENT: 0x51,
  PASID_DIRECTORY_RESERVED: 0x52,
  PASID_ENTRY_UNREADABLE: 0x58,
  PASID_ENTRY_NOT_PRESENT: 0x59,
  PASID_ENTRY_RESERVED: 0x5a,
  PASID_ENTRY_INVALID: 0x5b,
  ERE_CLEAR: 0x5c,
  SRE_CLEAR: 0x5d,
  FS_UNREADABLE: 0x70,
  FS_NOT_PRESENT: 0x71,
  FS_RESERVED: 0x72,
  FS_TOP_UNREADABLE: 0x73,
  FS_BEYOND_MGAW: 0x74,
  FS_TOP_NO_READ_PERMISSION: 0x75,
  FS_NO_READ_PERMISSION: 0x76,
  FS_NO_WRITE_PERMISSION: 0x77,
  SS_UNREADABLE: 0x78,
  SS_NO_PERMISSION: 0x79,
  SS_RESERVED: 0x7a,
  SS_POINTER_INVALID: 0x7b,
  SS_NOT_MARKABLE: 0x7c,
  NOT_CANONICAL: 0x80,
  SUPERVISOR_ONLY: 0x81,
  NO_EXECUTE_PERMISSION: 0x82,
  SM_BEYOND_WIDTH: 0x83,
  SS_BEYOND_WIDTH: 0x84,
  SM_NO_WRITE_PERMISSION: 0x85,
  SM_NO_READ_PERMISSION: 0x86,
  INTERRUPT_RANGE: 0x87,
  FS_NOT_MARKABLE: 0x90,
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

  /** The oldest record (FSTS.FRI). */
  get first(): number {
    for (let i = 0; i < this.#records; i++) {
      const at = (this.#next + i) % this.#records;
      if ((this.#words[at * 4 + 3]! & F) !== 0) return at;
    }
    return 0;
  }

  /** Software has read one record. */
  clearRecord(index: number): void {
    this.#words[index * 4 + 3]! &= ~F;
  }

  /** Software has read all records: clears them and the overflow flag. */
  clear(): void {
    for (let i = 0; i < this.#records; i++) this.#words[i * 4 + 3]! &= ~F;
    this.overflow = false;
  }
}
