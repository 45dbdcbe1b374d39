/**
 * Bounce buffers: low memory through which DMA goes that must not, or cannot, reach the caller's pages. A device that is not trusted
 * would see what else is in a page that the buffer does not fill; a device without an IOMMU may not reach the page at all.
 */
import { BufferBacking } from '../../hw/memory/backing.ts';
import type { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { IovaAllocator } from './iova.ts';

export interface Slot {
  readonly firstPage: number;
  readonly count: number;
  /** Where the caller's bytes are, and how many. */
  readonly page: number;
  readonly offset: number;
  readonly length: number;
}

export class BouncePool {
  readonly #memory: PhysicalMemory;
  readonly #pages: IovaAllocator;
  readonly #lastPage: number;
  #used = 0;

  /** A pool of `count` pages of machine memory from `firstPage`; nothing else may be there. */
  constructor(memory: PhysicalMemory, firstPage: number, count: number) {
    this.#memory = memory;
    this.#lastPage = firstPage + count - 1;
    this.#pages = new IovaAllocator({ startPage: firstPage });
    memory.addWindow(firstPage, count, new BufferBacking(count * 4096));
  }

  /** Pages in use. */
  get used(): number {
    return this.#used;
  }

  /** Pages of the pool itself, none above `limitPage`; 0 when there are none. Their bytes are zero. */
  takePages(count: number, limitPage: number): number {
    const page = this.#pages.allocateRange(count, Math.min(limitPage, this.#lastPage), false);
    if (page === 0) return 0;
    this.#used += count;
    this.#memory.write(page, 0, new Uint8Array(count * 4096));
    return page;
  }

  givePages(firstPage: number, count: number): void {
    this.#pages.freeRange(firstPage);
    this.#used -= count;
  }

  /** Pages for a buffer, at the same offset within a page, with its bytes in them. Undefined: the pool is full. */
  take(page: number, offset: number, length: number, limitPage: number): Slot | undefined {
    const count = Math.ceil((offset + length) / 4096);
    const firstPage = this.takePages(count, limitPage);
    if (firstPage === 0) return undefined;
    const slot = { firstPage, count, page, offset, length };
    // Also what a device only writes: should it write less, the caller finds his own bytes and nobody else's.
    this.toDevice(slot);
    return slot;
  }

  give(slot: Slot): void {
    this.givePages(slot.firstPage, slot.count);
  }

  toDevice({ firstPage, page, offset, length }: Slot): void {
    const bytes = new Uint8Array(length);
    if (this.#memory.read(page, offset, bytes)) this.#memory.write(firstPage, offset, bytes);
  }

  toCaller({ firstPage, page, offset, length }: Slot): void {
    const bytes = new Uint8Array(length);
    if (this.#memory.read(firstPage, offset, bytes)) this.#memory.write(page, offset, bytes);
  }
}
