/**
 * The memory in which page tables lie: tables of 512 entries, each entry two 32-bit halves, low half first.
 *
 * A table's number is its page number in this memory, so that an entry which points to a table holds what it would hold in silicon:
 * the table's address. The pool ends at 4 GiB (2^20 tables); the high half of an entry that points to a table is therefore 0.
 * Table 0 does not exist.
 */
import { Errno } from '../../lib/errno.ts';
import type { PageTable } from './page-table.ts';
import { StructurePages } from './structure-pages.ts';

/** 32-bit words of a table. */
export const TABLE_WORDS = 1024;
const FIRST_CAPACITY = 16;
const LARGEST = 2 ** 20;

export class TablePool {
  /** All tables (signed because that is the faster view); replaced when the pool grows, so never kept across an allocation. */
  words: Int32Array;
  /** Present entries of each table. */
  live: Uint16Array;
  /** Nobody but the mapper has written to these pages, so a walk need not look at bits that the mapper never sets. */
  isTrusted = true;
  /** The memory beside, in which root, context and PASID tables and queues lie. */
  readonly structures = new StructurePages();
  /** The page tables by their top page. */
  readonly tops = new Map<number, PageTable>();
  readonly #limit: number;
  #capacity = FIRST_CAPACITY;
  #next = 1;
  #free: number[] = [];

  /** At most `limit` tables can be in use: what a machine short of memory would do. */
  constructor(limit = LARGEST - 1) {
    this.#limit = Math.min(limit, LARGEST - 1);
    this.words = new Int32Array(FIRST_CAPACITY * TABLE_WORDS);
    this.live = new Uint16Array(FIRST_CAPACITY);
  }

  /** Tables in use. */
  get used(): number {
    return this.#next - 1 - this.#free.length;
  }

  /** First page number that was never a table. */
  get end(): number {
    return this.#next;
  }

  /** An empty table. ENOMEM. */
  allocate(): number {
    const freed = this.#free.pop();
    if (freed !== undefined) return freed;
    if (this.#next > this.#limit)
      throw new Errno('ENOMEM', `all ${this.#limit} page tables of this machine are in use`);
    if (this.#next === this.#capacity) this.#grow();
    return this.#next++;
  }

  /** Takes a table back whose entries are all zero. */
  free(table: number): void {
    this.live[table] = 0;
    this.#free.push(table);
    if (this.used === 0 && this.#capacity > FIRST_CAPACITY) this.#reset();
  }

  #grow(): void {
    this.#capacity = Math.min(this.#capacity * 2, LARGEST);
    const words = new Int32Array(this.#capacity * TABLE_WORDS);
    words.set(this.words);
    this.words = words;
    const live = new Uint16Array(this.#capacity);
    live.set(this.live);
    this.live = live;
  }

  /** Nothing is in use: the memory of the busiest moment goes back. */
  #reset(): void {
    this.#capacity = FIRST_CAPACITY;
    this.#next = 1;
    this.#free = [];
    this.words = new Int32Array(FIRST_CAPACITY * TABLE_WORDS);
    this.live = new Uint16Array(FIRST_CAPACITY);
  }
}
