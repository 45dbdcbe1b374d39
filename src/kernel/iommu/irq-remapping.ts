/**
 * Interrupt remapping as the kernel uses it: a table for each unit that can, entries for the interrupts of its devices, and entries
 * that are handed to virtual processors and taken back. Everything in the table is written here, and each change of an entry in use
 * is followed by its invalidation.
 */
import {
  type EntryWords,
  encodeMessage,
  type InterruptSource,
  IRTE_COUNT,
  IRTE_SIZE,
  postedEntry,
  remappedEntry,
} from '../../hw/iommu/interrupt-entry.ts';
import { InterruptRemapping } from '../../hw/iommu/interrupt-remapping.ts';
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { BufferBacking } from '../../hw/memory/backing.ts';
import type { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { forEachDmaAlias } from '../../hw/pci/aliases.ts';
import type { TopologyFunction } from '../../hw/pci/topology.ts';
import { Errno } from '../../lib/errno.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import type { HostInterrupts, HostVector } from '../core/host-interrupts.ts';
import type { HostIrq } from '../core/irq-bypass.ts';

const TABLE_PAGES = (IRTE_COUNT * IRTE_SIZE) / 4096;
/** Where the search for a place of the table begins: low memory, below all windows of devices. */
const FIRST_PLACE = 0x1000;
/** CAP.PI: the unit can post. */
const CAP_PI = 1n << 59n;
/** ECAP.EIM: 32-bit destinations. */
const ECAP_EIM = 1n << 4n;
/** ECAP.MHMV: the largest mask of an invalidation. */
const MHMV_SHIFT = 20n;

const traceEntry = new Tracepoint<{ unit: string; index: number; low: bigint; high: bigint }>('iommu:irte_update');

/** An interrupt of a device, with its entry of the table. */
export class RemappedIrq implements HostIrq {
  readonly number: number;
  /** The entry. */
  readonly index: number;
  /** What the device is to send. */
  readonly message: { readonly address: number; readonly data: number };
  /** The entry as the host uses it, kept while it is handed away. */
  readonly entry: EntryWords;
  readonly #owner: IrqRemapping;
  readonly #hostVector: HostVector;
  /** Whether the interrupt goes to a virtual processor. */
  isPosted = false;

  constructor(
    owner: IrqRemapping,
    place: { base: number; subhandle: number; source: InterruptSource },
    hostVector: HostVector,
  ) {
    this.#owner = owner;
    this.#hostVector = hostVector;
    this.index = place.base + place.subhandle;
    this.number = this.index;
    this.message = encodeMessage(place.base, place.subhandle);
    const { destination, vector } = hostVector;
    const shifted = owner.hardware.isX2apic ? destination : (destination << 8) & 0xff00;
    this.entry = remappedEntry({ ...place.source, vector, destination: shifted, redirectionHint: true });
    owner.write(this.index, this.entry);
  }

  setVcpuAffinity(target: { readonly descriptor: bigint; readonly vector: number } | undefined): void {
    if (target === undefined) {
      this.isPosted = false;
      this.#owner.write(this.index, this.entry);
      return;
    }
    if (!this.#owner.hardware.canPost) {
      throw new Errno('ENODEV', `unit ${this.#owner.unit.name} cannot post interrupts`);
    }
    const word = this.entry[2]!;
    const source = { sid: word & 0xffff, sq: (word >>> 16) & 3, svt: (word >>> 18) & 3 };
    this.isPosted = true;
    this.#owner.write(this.index, postedEntry({ ...source, ...target }));
  }

  /** The entry is cleared and may be given to another interrupt, together with the others of its block. */
  free(): void {
    this.isPosted = false;
    this.#owner.release(this, this.#hostVector);
  }
}

/** The table of one unit. */
export class IrqRemapping {
  readonly unit: IommuUnit;
  readonly hardware: InterruptRemapping;
  readonly #memory: PhysicalMemory;
  readonly #interrupts: HostInterrupts;
  readonly #used = new Uint8Array(IRTE_COUNT);
  readonly #mostMask: number;
  #count = 0;
  /** By the logarithm of a block's size: below, no such block is free. */
  readonly #firstFree = new Uint32Array(17);

  /** Puts the table into memory and switches remapping on. `interrupts`: the processors behind the unit. */
  constructor(unit: IommuUnit, memory: PhysicalMemory, interrupts: HostInterrupts) {
    this.unit = unit;
    this.#memory = memory;
    this.#interrupts = interrupts;
    this.#mostMask = Number((unit.ecap >> MHMV_SHIFT) & 0xfn);
    let tablePage = FIRST_PLACE;
    while (!memory.isFree(tablePage, TABLE_PAGES)) tablePage += TABLE_PAGES;
    memory.addWindow(tablePage, TABLE_PAGES, new BufferBacking(TABLE_PAGES * 4096));
    this.hardware = new InterruptRemapping({
      memory,
      tablePage,
      entries: IRTE_COUNT,
      isX2apic: (unit.ecap & ECAP_EIM) !== 0n,
      canPost: (unit.cap & CAP_PI) !== 0n,
      send: ({ destination, vector }) => interrupts.deliver(destination, vector),
      // The record's address field holds the index in bits 48 to 63.
      record: (rid, index, reason) => {
        unit.faults.record(rid, -1, Math.max(index, 0) * 2 ** 36, false, reason);
        unit.faultEvent?.();
      },
    });
    unit.interruptEntryEvent = (index, count) => {
      if (index === undefined) this.hardware.invalidateAll();
      else this.hardware.invalidate(index, Math.log2(count));
    };
  }

  /** Entries in use, those that only fill up a block included. */
  get used(): number {
    return this.#count;
  }

  /**
   * Entries for `handlers.length` interrupts of `fn`, neighbours in a block of a power of two: what a function with several MSI
   * vectors needs. ENOSPC: no such block, or one larger than the unit can invalidate.
   */
  allocate(fn: TopologyFunction, handlers: readonly (() => void)[]): RemappedIrq[] {
    const mask = Math.ceil(Math.log2(Math.max(1, handlers.length)));
    if (mask > this.#mostMask) throw new Errno('ENOSPC', `unit ${this.unit.name} has no blocks of 2^${mask} entries`);
    const base = this.#findBlock(mask);
    const source = sourceOf(fn);
    const vectors: HostVector[] = [];
    try {
      for (const handler of handlers) vectors.push(this.#interrupts.allocate(handler));
    } catch (error) {
      for (const vector of vectors) this.#interrupts.free(vector);
      throw error;
    }
    // A block that is larger than the interrupts keeps its rest empty; each entry is freed by itself.
    for (let i = 0; i < handlers.length; i++) this.#used[base + i] = 1;
    this.#count += handlers.length;
    return vectors.map((vector, subhandle) => new RemappedIrq(this, { base, subhandle, source }, vector));
  }

  /** All 128 bits in one step, then the invalidation. */
  write(index: number, words: EntryWords): void {
    const at = index * IRTE_SIZE;
    this.#memory.write(
      this.hardware.tablePage + (at >>> 12),
      at & 0xfff,
      new Uint8Array(words.buffer, words.byteOffset, IRTE_SIZE),
    );
    this.unit.invalidate({ kind: 'interrupt-entry', index });
    traceEntry.fire(() => ({
      unit: this.unit.name,
      index,
      low: (BigInt(words[1]!) << 32n) | BigInt(words[0]!),
      high: (BigInt(words[3]!) << 32n) | BigInt(words[2]!),
    }));
  }

  /** An entry as it stands in memory. */
  read(index: number): EntryWords {
    const bytes = new Uint8Array(IRTE_SIZE);
    const at = index * IRTE_SIZE;
    this.#memory.read(this.hardware.tablePage + (at >>> 12), at & 0xfff, bytes);
    return new Uint32Array(bytes.buffer);
  }

  /** Ends `RemappedIrq`. */
  release({ index }: RemappedIrq, vector: HostVector): void {
    if (this.#used[index] === 0) throw new Error(`Entry ${index} of unit ${this.unit.name} is not in use`);
    this.write(index, new Uint32Array(4));
    this.#used[index] = 0;
    this.#count--;
    this.#firstFree.forEach((first, mask) => {
      const base = index - (index % 2 ** mask);
      if (base < first) this.#firstFree[mask] = base;
    });
    this.#interrupts.free(vector);
  }

  #findBlock(mask: number): number {
    const count = 2 ** mask;
    for (let base = this.#firstFree[mask]!; base + count <= IRTE_COUNT; base += count) {
      const used = this.#used.subarray(base, base + count).indexOf(1);
      if (used >= 0) continue;
      this.#firstFree[mask] = base;
      return base;
    }
    throw new Errno('ENOSPC', `unit ${this.unit.name} has no block of ${count} entries left`);
  }
}

/**
 * Who may use an entry of `fn`: its requester ID; behind a bridge that puts its own in place of it, that one, or the buses between when
 * even the bus changes; all devices of the bus when all aliases share it.
 */
export function sourceOf(fn: TopologyFunction): InterruptSource {
  let count = 0;
  let onOneBus = 0;
  let last: { fn: TopologyFunction; rid: number } = { fn, rid: fn.rid };
  forEachDmaAlias(fn, (other, rid) => {
    if (count === 0 || rid >>> 8 === last.rid >>> 8) onOneBus++;
    last = { fn: other, rid };
    count++;
    return 0;
  });
  const ownBus = fn.bus.number;
  if (last.rid >>> 8 !== last.fn.bus.number) return { svt: 2, sq: 0, sid: (last.rid & 0xff00) | ownBus };
  if (count >= 2 && onOneBus === count) return { svt: 2, sq: 0, sid: (ownBus << 8) | ownBus };
  return { svt: 1, sq: 0, sid: last.fn.bus.number !== ownBus ? last.rid : fn.rid };
}
