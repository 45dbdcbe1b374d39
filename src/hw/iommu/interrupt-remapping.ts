/**
 * Interrupt remapping of one unit: what becomes of a device's 4-byte write into 0xfee00000-0xfeefffff.
 *
 * The message names an entry of a table in memory. The entry says who may use it, and either what is sent to which processor, or in
 * which descriptor the interrupt is noted. Entries that were used are cached (the interrupt entry cache): software that changes one
 * has to invalidate it, else the old one stays in use. Refusals are recorded like those of DMA; a device hears nothing of them.
 */
import { Tracepoint } from '../../lib/tracepoint.ts';
import {
  areFaultsOff,
  decodeMessage,
  decodePosted,
  decodeRemapped,
  decodeSource,
  type EntryWords,
  FORMAT,
  type InterruptSource,
  IRTE_SIZE,
  isPosted,
  isPresent,
  isSourceValid,
  messageIndex,
  reservedBits,
  SUBHANDLE_VALID,
} from './interrupt-entry.ts';
import { type DescriptorMemory, PostedDescriptor } from './posted-interrupt.ts';

/** Fault reasons of interrupt requests, by their codes. */
export const InterruptFault = {
  REQUEST_RESERVED: 0x20,
  INDEX_BEYOND_TABLE: 0x21,
  ENTRY_NOT_PRESENT: 0x22,
  TABLE_ACCESS: 0x23,
  ENTRY_RESERVED: 0x24,
  COMPATIBILITY_BLOCKED: 0x25,
  SOURCE_INVALID: 0x26,
} as const;
export type InterruptFault = (typeof InterruptFault)[keyof typeof InterruptFault];

const names: Readonly<Record<number, string>> = {
  32: 'reserved bits in the request',
  33: 'index beyond the table',
  34: 'entry not present',
  35: 'the table cannot be read',
  36: 'reserved bits in the entry',
  37: 'compatibility format blocked',
  38: 'source check failed',
};

/** What is sent to a processor's interrupt controller. */
export interface InterruptMessage {
  readonly vector: number;
  /** APIC ID. */
  readonly destination: number;
  readonly isLogical: boolean;
  readonly isLevel: boolean;
  /** 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT. */
  readonly deliveryMode: number;
}

export type InterruptOutcome =
  | { readonly kind: 'delivered'; readonly message: InterruptMessage }
  | { readonly kind: 'posted'; readonly vector: number; readonly isNotified: boolean }
  | { readonly kind: 'blocked'; readonly reason: InterruptFault; readonly index: number; readonly detail: string };

export interface RemappingOptions {
  /** Where the table and the descriptors lie. */
  readonly memory: DescriptorMemory;
  /** First page of the table (IRTA bits 12-63). */
  readonly tablePage: number;
  /** Entries: a power of two from 2 to 65536. */
  readonly entries: number;
  /** IRTA.EIME: destinations are 32-bit x2APIC IDs; else they stand in bits 8 to 15. */
  readonly isX2apic: boolean;
  /** CAP.PI. */
  readonly canPost: boolean;
  /** Messages in compatibility format pass (GSTS.CFIS). Never in x2APIC mode. */
  readonly allowsCompatibility?: boolean;
  /** The way to the processors. */
  readonly send: (message: InterruptMessage) => void;
  /** Where refusals are recorded. `index` is -1 when the request names none. */
  readonly record: (rid: number, index: number, reason: InterruptFault) => void;
}

const traceFault = new Tracepoint<{ rid: number; index: number; reason: number; name: string; why: string }>(
  'iommu:irq_remap_fault',
);

/** An entry that was read, with all that follows from its words alone: an interrupt looks at nothing else. */
interface Cached {
  readonly words: EntryWords;
  readonly source: InterruptSource;
  readonly delivered: { readonly kind: 'delivered'; readonly message: InterruptMessage } | undefined;
  readonly posted:
    | { readonly vector: number; readonly isUrgent: boolean; readonly descriptor: PostedDescriptor }
    | undefined;
}

export class InterruptRemapping {
  readonly tablePage: number;
  readonly entries: number;
  readonly isX2apic: boolean;
  readonly canPost: boolean;
  allowsCompatibility: boolean;
  readonly #options: RemappingOptions;
  /** The interrupt entry cache. */
  readonly #cache = new Map<number, Cached>();

  constructor(options: RemappingOptions) {
    this.#options = options;
    this.tablePage = options.tablePage;
    this.entries = options.entries;
    this.isX2apic = options.isX2apic;
    this.canPost = options.canPost;
    this.allowsCompatibility = options.allowsCompatibility ?? false;
  }

  /** Whether a device can only cause the interrupts that software gave to it: what VFIO calls isolated MSI. */
  get isIsolating(): boolean {
    return !this.allowsCompatibility || this.isX2apic;
  }

  /** Entries that are cached. */
  get cached(): number {
    return this.#cache.size;
  }

  /** Takes a message of requester `rid`: low half of its address, and its data. */
  request(rid: number, address: number, data: number): InterruptOutcome {
    const outcome = this.#route(rid, address, data);
    if (outcome.kind === 'delivered') this.#options.send(outcome.message);
    return outcome;
  }

  /** What became of a message, without its consequences for processors and descriptors: for the inspector. */
  explain(rid: number, address: number, data: number): { index: number; words: EntryWords | undefined; why: string } {
    const { isRemappable, index } = decodeMessage(address, data);
    if (!isRemappable) return { index: -1, words: undefined, why: 'compatibility format' };
    const words = index < this.entries ? (this.#cache.get(index)?.words ?? this.#read(index)) : undefined;
    const refused = this.#refusal(rid, index, words);
    return { index, words, why: refused === undefined ? '' : `${names[refused.reason]}: ${refused.detail}` };
  }

  /** Invalidates one entry, or `2^mask` entries around it (descriptor type 4, selective). */
  invalidate(index: number, mask = 0): void {
    if (mask === 0) {
      this.#cache.delete(index);
      return;
    }
    const block = Math.floor(index / 2 ** mask);
    for (const cached of this.#cache.keys()) if (Math.floor(cached / 2 ** mask) === block) this.#cache.delete(cached);
  }

  /** Descriptor type 4, global. */
  invalidateAll(): void {
    this.#cache.clear();
  }

  #route(rid: number, address: number, data: number): InterruptOutcome {
    if ((address & FORMAT) === 0) return this.#compatibility(rid, address, data);
    if ((address & SUBHANDLE_VALID) !== 0 && data > 0xffff) {
      return this.#blocked(rid, -1, InterruptFault.REQUEST_RESERVED, `data 0x${data.toString(16)} is no subhandle`);
    }
    const index = messageIndex(address, data);
    const cached = this.#cache.get(index);
    if (cached !== undefined && isSourceValid(cached.source, rid)) return this.#use(rid, index, cached);
    const words = cached?.words ?? (index < this.entries ? this.#read(index) : undefined);
    const refused = this.#refusal(rid, index, words);
    if (words === undefined || refused?.reason === InterruptFault.ENTRY_NOT_PRESENT) {
      return this.#blocked(rid, index, refused!.reason, refused!.detail, words !== undefined && areFaultsOff(words));
    }
    if (refused?.reason === InterruptFault.ENTRY_RESERVED) {
      return this.#blocked(rid, index, refused.reason, refused.detail, areFaultsOff(words));
    }
    const known = cached ?? this.#decode(words);
    if (cached === undefined) this.#cache.set(index, known);
    if (refused !== undefined) return this.#blocked(rid, index, refused.reason, refused.detail, areFaultsOff(words));
    return this.#use(rid, index, known);
  }

  #decode(words: EntryWords): Cached {
    const source = decodeSource(words);
    if (!isPosted(words)) return { words, source, delivered: this.#delivery(words), posted: undefined };
    const { vector, descriptor, isUrgent } = decodePosted(words);
    const target = new PostedDescriptor(this.#options.memory, descriptor);
    return { words, source, delivered: undefined, posted: { vector, isUrgent: isUrgent === true, descriptor: target } };
  }

  #use(rid: number, index: number, cached: Cached): InterruptOutcome {
    return cached.delivered ?? this.#post(rid, index, cached);
  }

  /** The checks, in the order of the specification. */
  #refusal(
    rid: number,
    index: number,
    words: EntryWords | undefined,
  ): { reason: InterruptFault; detail: string } | undefined {
    if (index >= this.entries) {
      return { reason: InterruptFault.INDEX_BEYOND_TABLE, detail: `the table has ${this.entries} entries` };
    }
    if (words === undefined) {
      return { reason: InterruptFault.TABLE_ACCESS, detail: `no memory at entry 0x${index.toString(16)}` };
    }
    if (!isPresent(words)) {
      return { reason: InterruptFault.ENTRY_NOT_PRESENT, detail: `entry 0x${index.toString(16)} has P=0` };
    }
    const reserved = reservedBits(words, this.canPost);
    if (reserved !== undefined) return { reason: InterruptFault.ENTRY_RESERVED, detail: reserved };
    const source = decodeSource(words);
    if (!isSourceValid(source, rid)) {
      const of = source.svt === 2 ? 'buses' : 'requester';
      const detail = `entry 0x${index.toString(16)} belongs to ${of} 0x${source.sid.toString(16)}, not 0x${rid.toString(16)}`;
      return { reason: InterruptFault.SOURCE_INVALID, detail };
    }
    return undefined;
  }

  #delivery(words: EntryWords): { readonly kind: 'delivered'; readonly message: InterruptMessage } {
    const { vector, destination, isLogical, isLevel, deliveryMode } = decodeRemapped(words);
    return {
      kind: 'delivered',
      message: {
        vector,
        destination: this.isX2apic ? destination : (destination >>> 8) & 0xff,
        isLogical: isLogical === true,
        isLevel: isLevel === true,
        deliveryMode: deliveryMode ?? 0,
      },
    };
  }

  #post(rid: number, index: number, { words, posted }: Cached): InterruptOutcome {
    const { vector, descriptor, isUrgent } = posted!;
    const notification = descriptor.post(vector, isUrgent);
    if (notification === 'no memory') {
      const detail = `no memory at the descriptor 0x${descriptor.address.toString(16)}`;
      return this.#blocked(rid, index, InterruptFault.TABLE_ACCESS, detail, areFaultsOff(words));
    }
    if (notification !== undefined) {
      this.#options.send({
        vector: notification.vector,
        destination: this.isX2apic ? notification.destination : (notification.destination >>> 8) & 0xff,
        isLogical: false,
        isLevel: false,
        deliveryMode: 0,
      });
    }
    return { kind: 'posted', vector, isNotified: notification !== undefined };
  }

  #compatibility(rid: number, address: number, data: number): InterruptOutcome {
    if (this.isIsolating) {
      const why = this.isX2apic ? 'in x2APIC mode no message in compatibility format passes' : 'they are blocked';
      return this.#blocked(rid, -1, InterruptFault.COMPATIBILITY_BLOCKED, why);
    }
    return {
      kind: 'delivered',
      message: {
        vector: data & 0xff,
        destination: (address >>> 12) & 0xff,
        isLogical: (address & (1 << 2)) !== 0,
        isLevel: (data & (1 << 15)) !== 0,
        deliveryMode: (data >>> 8) & 7,
      },
    };
  }

  #blocked(rid: number, index: number, reason: InterruptFault, detail: string, isSilent = false): InterruptOutcome {
    if (!isSilent) {
      this.#options.record(rid, index, reason);
      traceFault.fire(() => ({ rid, index, reason, name: names[reason]!, why: detail }));
    }
    return { kind: 'blocked', reason, index, detail };
  }

  #read(index: number): EntryWords | undefined {
    const bytes = new Uint8Array(IRTE_SIZE);
    const at = index * IRTE_SIZE;
    if (!this.#options.memory.read(this.tablePage + (at >>> 12), at & 0xfff, bytes)) return undefined;
    return new Uint32Array(bytes.buffer);
  }
}

/** The name of an interrupt fault's code. */
export function interruptFaultName(reason: number): string {
  return names[reason] ?? `reason ${reason}`;
}
