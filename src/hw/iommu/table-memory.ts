/**
 * Memory as a unit reads it: the pages of its page tables, the pages of its structures, and all other memory of the machine, in which
 * the tables of guests lie. One 64-bit entry at a time, as two halves.
 */
import type { PhysicalMemory } from '../memory/physical-memory.ts';
import { FIRST_STRUCTURE_PAGE } from './structure-pages.ts';
import { TABLE_WORDS, type TablePool } from './table-pool.ts';

export class TableMemory {
  readonly pool: TablePool;
  readonly #physical: PhysicalMemory | undefined;
  /** The halves of the last entry read, unsigned. */
  low = 0;
  high = 0;
  readonly #bytes = new Uint8Array(8);
  readonly #view = new DataView(this.#bytes.buffer);

  constructor(pool: TablePool, physical: PhysicalMemory | undefined) {
    this.pool = pool;
    this.#physical = physical;
  }

  /** Reads entry `index` (8 bytes each; may lie beyond the page) from `page` on. False: no memory answers there. */
  load(page: number, index: number): boolean {
    const at = this.#wordOf(page, index);
    if (at >= 0) {
      const words = this.#words;
      this.low = words[at]! >>> 0;
      this.high = words[at + 1]! >>> 0;
      return true;
    }
    const physical = this.#physical;
    if (physical === undefined || !physical.read(page + Math.floor(index / 512), (index % 512) * 8, this.#bytes)) {
      return false;
    }
    this.low = this.#view.getUint32(0, true);
    this.high = this.#view.getUint32(4, true);
    return true;
  }

  /** Writes an entry as the hardware does (accessed, dirty, status). False: no memory answers there. */
  store(page: number, index: number, low: number, high: number): boolean {
    const at = this.#wordOf(page, index);
    if (at >= 0) {
      this.#words[at] = low;
      this.#words[at + 1] = high;
      return true;
    }
    if (this.#physical === undefined) return false;
    this.#view.setUint32(0, low, true);
    this.#view.setUint32(4, high, true);
    return this.#physical.write(page + Math.floor(index / 512), (index % 512) * 8, this.#bytes);
  }

  /** Reads 64 bits at a byte address that is a multiple of 8; undefined: no memory. */
  peek(address: bigint): bigint | undefined {
    if (!this.load(Number(address >> 12n), Number((address & 0xfffn) >> 3n))) return undefined;
    return (BigInt(this.high) << 32n) | BigInt(this.low);
  }

  /**
   * Writes 64 bits at a byte address, as a program does that knows where the tables lie. From then on nothing is taken for granted
   * about page tables: each walk looks at every bit.
   */
  poke(address: bigint, value: bigint): boolean {
    this.pool.isTrusted = false;
    const low = Number(value & 0xffff_ffffn);
    return this.store(Number(address >> 12n), Number((address & 0xfffn) >> 3n), low, Number(value >> 32n));
  }

  #words: Int32Array = new Int32Array(0);

  /** Where the entry lies in our own pages (`#words`), -1: elsewhere. */
  #wordOf(page: number, index: number): number {
    const { pool } = this;
    if (page < FIRST_STRUCTURE_PAGE) {
      if (page < 1 || page >= pool.end) return -1;
      this.#words = pool.words;
      return page * TABLE_WORDS + index * 2;
    }
    const within = page - FIRST_STRUCTURE_PAGE;
    const { structures } = pool;
    if (within >= structures.count) return -1;
    this.#words = structures.words;
    return within * TABLE_WORDS + index * 2;
  }
}
