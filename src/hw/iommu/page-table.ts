/**
 * A page table: the tree that turns an I/O page into a physical page. Hardware walks it (unit.ts), the kernel's domain writes it.
 *
 * Levels count from 0 (leaves of 4 KiB); a leaf at level 1 is 2 MiB, at level 2 1 GiB. Pages are numbers up to 2^45; they are split
 * once into two small integers, so that no level costs floating point. Invariants: a table below the top has at least one present
 * entry; a leaf is never split; tables that became empty are kept in `#pending` until `releaseTables`, because hardware may hold
 * translations until they are invalidated.
 */
import { entryValue, type PageTableFormat, SAME_KIND } from './fmt/format.ts';
import { TABLE_WORDS, type TablePool } from './table-pool.ts';

/** Pages of a leaf, by level. */
export const LEAF_PAGES: readonly number[] = [1, 512, 262144];

/** First page beyond 48 bits. */
const SHORT_LIMIT = 2 ** 36;

export interface PageTableOptions {
  /** 3, 4 or 5. */
  readonly levels?: number;
  /** Highest level at which leaves may be: 0, 1 or 2 (CAP.SLLPS). */
  readonly largestLeaf?: number;
}

export class PageTable {
  readonly format: PageTableFormat;
  readonly levels: number;
  /** Address bits. */
  readonly width: number;
  /** First page number that is too large. */
  readonly pageLimit: number;
  readonly largestLeaf: number;
  readonly pool: TablePool;
  /** Page number, in the memory of tables, of the top table: what SLPTPTR holds. */
  readonly top: number;
  /** Of the last `walk`: the level at which it ended, and the AND of READ|WRITE along the way. */
  level = 0;
  permission = 0;
  /** Word of the pool at which the entry lies that ended the last walk, its low half. */
  word = 0;
  /** An entry that points to a table with all permissions has these bits after `tableMask`. */
  readonly tableBits: number;
  readonly tableMask: number;
  readonly presentBits: number;
  /** First word of the top table, of table 0 when the short way is not for this table: nothing is present there. */
  readonly shortTop: number;
  #tables = 1;
  #pending: number[] = [];

  constructor(format: PageTableFormat, pool: TablePool, options: PageTableOptions = {}) {
    const levels = options.levels ?? 4;
    const width = format.widths[levels];
    if (width === undefined) throw new Error(`Format ${format.name} has no tables of ${levels} levels`);
    this.format = format;
    this.tableBits = format.table;
    this.tableMask = format.table | format.kindMask;
    this.presentBits = format.present;
    this.levels = levels;
    this.width = width;
    this.pageLimit = 2 ** (width - 12);
    this.largestLeaf = options.largestLeaf ?? 2;
    this.pool = pool;
    this.top = pool.allocate();
    pool.tops.set(this.top, this);
    const isShort = levels === 4 && format.tableKind === SAME_KIND && format.permissionsInHigh === undefined;
    this.shortTop = isShort ? this.top << 10 : 0;
  }

  /** Tables in use, the top one and those that wait for `releaseTables` included. */
  get tables(): number {
    return this.#tables;
  }

  /**
   * The physical page behind `page`, or -1. After it, `level`, `low`, `high` tell the entry that decided; after a hit, `permission`
   * is what the whole path allows. A page beyond the width is refused (-1 with `level` = `levels`), it never wraps.
   */
  walk(page: number): number {
    // Short way: four levels, tables that allow everything, a leaf of 4 KiB. Short also in bytecode, or it is not inlined and takes
    // twice the time; no private names for the same reason.
    if (!(page < SHORT_LIMIT)) return this.walkAll(page);
    const words = this.pool.words;
    const { tableBits, tableMask } = this;
    const lower = page & 0x3ffff;
    const upper = (page * (1 / 0x40000)) | 0;
    let low = words[this.shortTop | ((upper >>> 8) & 0x3fe)]!;
    if ((low & tableMask) !== tableBits) return this.walkAll(page);
    low = words[((low >>> 12) << 10) | ((upper << 1) & 0x3fe)]!;
    if ((low & tableMask) !== tableBits) return this.walkAll(page);
    low = words[((low >>> 12) << 10) | ((lower >>> 8) & 0x3fe)]!;
    if ((low & tableMask) !== tableBits) return this.walkAll(page);
    const at = ((low >>> 12) << 10) | ((lower << 1) & 0x3fe);
    low = words[at]!;
    if ((low & this.presentBits) === 0) return this.walkAll(page);
    this.level = 0;
    this.word = at;
    this.permission = low & 3;
    return (words[at + 1]! & 0xfffff) * 0x100000 + (low >>> 12);
  }

  /** `walk` for any number of levels, leaves at any level, and to find the entry that says no. */
  walkAll(page: number): number {
    if (!(page >= 0 && page < this.pageLimit)) {
      this.level = this.levels;
      return -1;
    }
    const { present, kindMask, tableKind, permissionsInHigh } = this.format;
    const words = this.pool.words;
    const lower = page & 0x3ffff;
    const upper = (page / 0x40000) | 0;
    let table = this.top;
    let permission = 3;
    for (let level = this.levels - 1; ; level--) {
      const word = (table << 10) | (indexAt(level, lower, upper) << 1);
      const low = words[word]!;
      this.level = level;
      this.word = word;
      if ((low & present) === 0) return -1;
      permission &= permissionsInHigh === undefined ? low : words[word + 1]! >>> permissionsInHigh;
      if (level === 0 || (low & kindMask) !== tableKind[level]) {
        if (level > 2) return -1;
        this.permission = permission;
        const within = level === 0 ? 0 : level === 1 ? lower & 511 : lower;
        return (words[word + 1]! & 0xfffff) * 0x100000 + (low >>> 12) + within;
      }
      table = low >>> 12;
    }
  }

  /** The halves of the entry that ended the last walk; 0 when the page was beyond the width. */
  get low(): number {
    return this.level < this.levels ? this.pool.words[this.word]! >>> 0 : 0;
  }

  get high(): number {
    return this.level < this.levels ? this.pool.words[this.word + 1]! >>> 0 : 0;
  }

  /** Hardware's mark on the leaf of the last successful `walk`: accessed, and dirty when `isWrite`. */
  markLeaf(isWrite: boolean): void {
    const { accessed, dirty } = this.format;
    this.pool.words[this.word]! |= accessed | (isWrite ? dirty : 0);
  }

  /**
   * Maps `count` pages from `page` to those from `physicalPage`, each step by the largest leaf that both alignments and the rest
   * allow. Returns -1, or the first page of the leaf that found its place taken; then nothing has changed. ENOMEM: no table, nothing
   * has changed.
   * The caller has checked both ranges.
   */
  map(page: number, physicalPage: number, count: number, prot: number, isSnooped: boolean): number {
    let at = page;
    let target = physicalPage;
    let left = count;
    while (left > 0) {
      const level = this.#leafLevel(at, target, left);
      const pages = LEAF_PAGES[level]!;
      let done: number;
      try {
        const { format } = this;
        const low = format.leaf(level, prot, isSnooped);
        done = this.#fill(at, target, Math.floor(left / pages), level, low, format.leafHigh(prot));
      } catch (error) {
        this.#undo(page, at);
        throw error;
      }
      if (done < 0) {
        const conflict = at + (-1 - done) * pages;
        this.#undo(page, conflict);
        return conflict;
      }
      at += done * pages;
      target += done * pages;
      left -= done * pages;
    }
    return -1;
  }

  /**
   * Removes leaves from `page` on until `count` pages are gone, a hole comes, or a leaf that starts before the page. Returns the
   * pages removed: more than `count` when the last leaf was larger than what was left to remove.
   */
  unmap(page: number, count: number): number {
    const end = page + count;
    let at = page;
    const { present, kindMask, tableKind } = this.format;
    while (at < end && at < this.pageLimit) {
      const { words, live } = this.pool;
      const lower = at & 0x3ffff;
      const upper = (at / 0x40000) | 0;
      const path = this.#path;
      let table = this.top;
      let level = this.levels - 1;
      let index = 0;
      let low = 0;
      for (; ; level--) {
        path[level] = table;
        index = indexAt(level, lower, upper);
        low = words[(table << 10) | (index << 1)]!;
        if ((low & present) === 0) return at - page;
        if (level === 0 || (low & kindMask) !== tableKind[level]) break;
        table = low >>> 12;
      }
      const pages = LEAF_PAGES[level]!;
      if (level > 0 && at % pages !== 0) return at - page;
      let word = (table << 10) | (index << 1);
      let removed = 0;
      do {
        words[word] = 0;
        words[word + 1] = 0;
        removed++;
        at += pages;
        index++;
        word += 2;
        if (index === 512 || at >= end) break;
        low = words[word]!;
      } while ((low & present) !== 0 && (level === 0 || (low & kindMask) !== tableKind[level]));
      live[table]! -= removed;
      if (live[table] === 0) this.#prune(level, lower, upper);
      if (index < 512 && at < end && (low & present) === 0) break;
    }
    return at - page;
  }

  /** The tables that became empty may be used again: the caller has invalidated the IOTLB. */
  releaseTables(): void {
    for (const table of this.#pending) this.pool.free(table);
    this.#tables -= this.#pending.length;
    this.#pending.length = 0;
  }

  /** The first page of `[first, last]` that is mapped, -1 when none is. After it `level` and the entry are those of its leaf. */
  firstMapped(first: number, last: number): number {
    let at = first;
    while (at <= last && at < this.pageLimit) {
      if (this.walk(at) >= 0) return at;
      const pages = 512 ** this.level;
      at += pages - (at % pages);
    }
    return -1;
  }

  /** Visits the leaves that translate a page of `[first, last]`, in order. */
  forEachLeaf(
    first: number,
    last: number,
    visit: (firstPage: number, pages: number, low: number, high: number) => void,
  ): void {
    for (let at = this.firstMapped(first, last); at >= 0; ) {
      const pages = LEAF_PAGES[this.level]!;
      const start = at - (at % pages);
      visit(start, pages, this.low, this.high);
      at = this.firstMapped(start + pages, last);
    }
  }

  /** Visits the leaves of `[first, last]` through which something was written, and forgets it when `isCleared`. */
  readDirty(first: number, last: number, isCleared: boolean, visit: (firstPage: number, pages: number) => void): void {
    const dirty = this.format.dirty;
    this.forEachLeaf(first, last, (firstPage, pages, low) => {
      if ((low & dirty) === 0) return;
      if (isCleared) this.pool.words[this.word]! &= ~dirty;
      visit(firstPage, pages);
    });
  }

  /** The entry that decides about `page`, as software wrote it. */
  entryAt(page: number): { level: number; entry: bigint } {
    this.walk(page);
    return { level: this.level, entry: this.level < this.levels ? entryValue(this.low, this.high) : 0n };
  }

  /** Gives all tables back. Nothing may walk it any more. */
  destroy(): void {
    this.releaseTables();
    this.pool.tops.delete(this.top);
    this.#destroyTable(this.top, this.levels - 1);
    this.#tables = 0;
  }

  readonly #path = new Int32Array(5);

  #leafLevel(page: number, physicalPage: number, left: number): number {
    const both = (page & 0x3ffff) | (physicalPage & 0x3ffff);
    if (both === 0 && left >= 262144 && this.largestLeaf >= 2) return 2;
    return (both & 511) === 0 && left >= 512 && this.largestLeaf >= 1 ? 1 : 0;
  }

  /** Writes up to `count` leaves into one table. Returns how many, or -1 - n when the one after n was taken. */
  #fill(page: number, physicalPage: number, count: number, level: number, bits: number, bitsHigh: number): number {
    const { present, kindMask, tableKind, table: tableBits, tableHigh } = this.format;
    const lower = page & 0x3ffff;
    const upper = (page / 0x40000) | 0;
    const path = this.#path;
    let table = this.top;
    for (let at = this.levels - 1; at > level; at--) {
      path[at] = table;
      const word = (table << 10) | (indexAt(at, lower, upper) << 1);
      const low = this.pool.words[word]!;
      if ((low & present) === 0) {
        const child = this.#allocate(at, lower, upper);
        this.pool.words[word] = (child << 12) | tableBits | tableKind[at]!;
        this.pool.words[word + 1] = tableHigh;
        this.pool.live[table]! += 1;
        table = child;
      } else {
        if ((low & kindMask) !== tableKind[at]) return -1;
        table = low >>> 12;
      }
    }
    const words = this.pool.words;
    const index = indexAt(level, lower, upper);
    const wanted = Math.min(count, 512 - index);
    const step = 1 << (9 * level);
    let word = (table << 10) | (index << 1);
    let frame = physicalPage & 0xfffff;
    let high = Math.floor(physicalPage / 0x100000);
    let done = 0;
    for (; done < wanted; done++) {
      if ((words[word]! & present) !== 0) break;
      words[word] = (frame << 12) | bits;
      words[word + 1] = high | bitsHigh;
      word += 2;
      frame += step;
      if (frame === 0x100000) {
        frame = 0;
        high++;
      }
    }
    this.pool.live[table]! += done;
    return done === wanted ? done : -1 - done;
  }

  /** A new table below `level`; when there is none, the empty ones just made above it go back. */
  #allocate(level: number, lower: number, upper: number): number {
    try {
      const table = this.pool.allocate();
      this.#tables++;
      return table;
    } catch (error) {
      if (this.pool.live[this.#path[level]!] === 0) {
        this.#prune(level, lower, upper);
        this.releaseTables();
      }
      throw error;
    }
  }

  /** Removes what `map` has written of `[page, end)`. */
  #undo(page: number, end: number): void {
    if (end > page) this.unmap(page, end - page);
    this.releaseTables();
  }

  /** The table of `level` on the path is empty: it and every table that becomes empty by its going are taken out. */
  #prune(level: number, lower: number, upper: number): void {
    const { words, live } = this.pool;
    for (let at = level; at < this.levels - 1 && live[this.#path[at]!] === 0; at++) {
      const parent = this.#path[at + 1]!;
      const word = (parent << 10) | (indexAt(at + 1, lower, upper) << 1);
      words[word] = 0;
      words[word + 1] = 0;
      live[parent]! -= 1;
      this.#pending.push(this.#path[at]!);
    }
  }

  #destroyTable(table: number, level: number): void {
    const { present, kindMask, tableKind } = this.format;
    const words = this.pool.words;
    const first = table * TABLE_WORDS;
    if (level > 0) {
      for (let i = 0; i < TABLE_WORDS; i += 2) {
        const low = words[first + i]!;
        if ((low & present) !== 0 && (low & kindMask) === tableKind[level]) this.#destroyTable(low >>> 12, level - 1);
      }
    }
    words.fill(0, first, first + TABLE_WORDS);
    this.pool.free(table);
  }
}

/** The index into a table of `level`, of a page split into its lower 18 bits and the bits above. */
export function indexAt(level: number, lower: number, upper: number): number {
  return ((level < 2 ? lower >>> (9 * level) : upper >>> (9 * (level - 2))) & 511) >>> 0;
}
