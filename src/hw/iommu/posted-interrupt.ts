/**
 * Posted-interrupt descriptors: 64 bytes in memory that the IOMMU unit, a processor and its software share (VT-d specification,
 * "Posted-Interrupt Descriptor").
 *
 * A vector that is posted is set in the bitmap PIR. ON says that a notification is under way, SN that none is wanted; NV and NDST are
 * the vector and the processor of the notification. Everything is read from and written to memory each time: nobody keeps a copy.
 */

export const DESCRIPTOR_SIZE = 64;
/** Byte of the control word. */
const CONTROL = 32;
const ON = 1;
const SN = 2;

/** Memory by page and byte. False: nothing answers there. */
export interface DescriptorMemory {
  read(page: number, offset: number, into: Uint8Array): boolean;
  write(page: number, offset: number, from: Uint8Array): boolean;
}

/** A notification that is to be sent: vector and destination as they stand in the descriptor. */
export interface Notification {
  readonly vector: number;
  readonly destination: number;
}

export class PostedDescriptor {
  /** Byte address; a multiple of 64. */
  readonly address: bigint;
  readonly #memory: DescriptorMemory;
  readonly #page: number;
  readonly #offset: number;
  readonly #byte = new Uint8Array(1);
  readonly #word = new Uint8Array(4);
  /** For `post`, which is called for each interrupt. */
  readonly #all = new Uint8Array(DESCRIPTOR_SIZE);

  constructor(memory: DescriptorMemory, address: bigint) {
    if (address % BigInt(DESCRIPTOR_SIZE) !== 0n) {
      throw new Error(`A posted-interrupt descriptor at 0x${address.toString(16)} is not aligned to 64 bytes`);
    }
    this.address = address;
    this.#memory = memory;
    this.#page = Number(address >> 12n);
    this.#offset = Number(address & 0xfffn);
  }

  /** Outstanding notification. */
  get on(): boolean {
    return (this.#get(CONTROL) & ON) !== 0;
  }

  set on(value: boolean) {
    this.#set(CONTROL, value ? this.#get(CONTROL) | ON : this.#get(CONTROL) & ~ON);
  }

  /** Suppress notification. */
  get sn(): boolean {
    return (this.#get(CONTROL) & SN) !== 0;
  }

  set sn(value: boolean) {
    this.#set(CONTROL, value ? this.#get(CONTROL) | SN : this.#get(CONTROL) & ~SN);
  }

  /** Notification vector. */
  get nv(): number {
    return this.#get(CONTROL + 2);
  }

  set nv(vector: number) {
    this.#set(CONTROL + 2, vector);
  }

  /** Notification destination: an x2APIC ID, or an xAPIC ID shifted left by 8. */
  get ndst(): number {
    this.#memory.read(this.#page, this.#offset + CONTROL + 4, this.#word);
    return new DataView(this.#word.buffer).getUint32(0, true);
  }

  set ndst(destination: number) {
    new DataView(this.#word.buffer).setUint32(0, destination, true);
    this.#memory.write(this.#page, this.#offset + CONTROL + 4, this.#word);
  }

  /** Whether a vector is posted and not yet taken. */
  isRequested(vector: number): boolean {
    return (this.#get(vector >> 3) & (1 << (vector & 7))) !== 0;
  }

  get isEmpty(): boolean {
    const pir = new Uint8Array(CONTROL);
    this.#memory.read(this.#page, this.#offset, pir);
    return pir.every((byte) => byte === 0);
  }

  /** What a processor does at a notification: ON off, all posted vectors out of PIR, lowest first. */
  take(): number[] {
    const all = this.#all;
    const vectors: number[] = [];
    if (!this.#memory.read(this.#page, this.#offset, all)) return vectors;
    for (let i = 0; i < CONTROL; i++) {
      const byte = all[i]!;
      if (byte === 0) continue;
      for (let bit = 0; bit < 8; bit++) if ((byte & (1 << bit)) !== 0) vectors.push(8 * i + bit);
      all[i] = 0;
    }
    all[CONTROL] = all[CONTROL]! & ~ON;
    this.#memory.write(this.#page, this.#offset, all);
    return vectors;
  }

  /**
   * What the unit does with a posted interrupt, in one step: sets the vector in PIR, and gives the notification to send, if any.
   * `no memory`: nothing answers at the descriptor's address.
   */
  post(vector: number, isUrgent = false): Notification | 'no memory' | undefined {
    const all = this.#all;
    if (!this.#memory.read(this.#page, this.#offset, all)) return 'no memory';
    all[vector >> 3]! |= 1 << (vector & 7);
    const control = all[CONTROL]!;
    const isNotified = (control & ON) === 0 && ((control & SN) === 0 || isUrgent);
    if (isNotified) all[CONTROL] = control | ON;
    if (!this.#memory.write(this.#page, this.#offset, all)) return 'no memory';
    if (!isNotified) return undefined;
    return {
      vector: all[CONTROL + 2]!,
      destination: new DataView(all.buffer).getUint32(CONTROL + 4, true),
    };
  }

  /** All 64 bytes, for tests and the inspector. */
  bytes(): Uint8Array {
    const all = new Uint8Array(DESCRIPTOR_SIZE);
    this.#memory.read(this.#page, this.#offset, all);
    return all;
  }

  #get(at: number): number {
    this.#memory.read(this.#page, this.#offset + at, this.#byte);
    return this.#byte[0]!;
  }

  #set(at: number, value: number): void {
    this.#byte[0] = value;
    this.#memory.write(this.#page, this.#offset + at, this.#byte);
  }
}
