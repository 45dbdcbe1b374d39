/**
 * The IOVA allocator of a DMA domain: which pages of its address space the host's DMA API hands out.
 *
 * From the top down, below the range that was allocated last (one such place for all addresses and one for those of 32 bits), and once
 * more from the top when that fails. Sizes of up to 32 pages are rounded up to a power of two and, once freed, kept in magazines, so
 * that most allocations never look at the space. The rules are those of the kernel's iova.c, so that the same calls give the same
 * addresses; the structure below is another (iova-ranges.ts).
 */
import type { Clock } from '../../hw/pci/clock.ts';
import { Errno } from '../../lib/errno.ts';
import { IovaCaches, LARGEST_CACHED } from './iova-caches.ts';
import { ANCHOR, IovaRanges, NONE } from './iova-ranges.ts';

/** The first page that 32 bits do not reach. */
const PAGE_4G = 2 ** 20;
const LAST_PAGE = 2 ** 52 - 1;

export interface IovaOptions {
  /** No page below is given; at least 1, because 0 means none. */
  readonly startPage?: number;
  /** CPUs with magazines of their own. */
  readonly cpus?: number;
  /** Trims what is cached for longer. */
  readonly clock?: Clock;
}

export class IovaAllocator {
  readonly startPage: number;
  readonly #ranges = new IovaRanges();
  readonly #caches: IovaCaches;
  /** Where the next search begins: the range that was put in last. */
  #cached = ANCHOR;
  #cached32 = ANCHOR;
  /** Requests below 4 GiB of this many pages or more have failed and would fail again. */
  #max32 = PAGE_4G;

  constructor(options: IovaOptions = {}) {
    this.startPage = options.startPage ?? 1;
    if (!(this.startPage >= 1)) throw new Errno('EINVAL', 'an IOVA space starts at page 1 or above, for 0 means none');
    this.#caches = new IovaCaches(options.cpus ?? 1, options.clock, (page) => this.freeRange(page));
  }

  /** Ranges that are taken, cached ones included. */
  get taken(): number {
    return this.#ranges.count;
  }

  /** Ranges that are free and kept for the next request. */
  get cached(): number {
    return this.#caches.count;
  }

  /**
   * The first page of `count` free ones, none above `limitPage`, aligned to their number rounded up to a power of two; 0 when there
   * are none. A last attempt gives up what is cached, unless `keepsCaches`.
   */
  allocate(count: number, limitPage: number, cpu = 0, keepsCaches = false): number {
    let rounded = count;
    if (count <= LARGEST_CACHED) {
      const order = 32 - Math.clz32(count - 1);
      rounded = 1 << order;
      const page = this.#caches.get(order, limitPage, cpu);
      if (page !== 0) return page;
    }
    const page = this.allocateRange(rounded, limitPage, true);
    if (page !== 0 || keepsCaches) return page;
    this.#caches.flush();
    return this.allocateRange(rounded, limitPage, true);
  }

  /** Gives back what `allocate` gave, by the same count. */
  free(page: number, count: number, cpu = 0): void {
    if (count <= LARGEST_CACHED) this.#caches.put(32 - Math.clz32(count - 1), page, cpu);
    else this.freeRange(page);
  }

  /** As `allocate`, by the space alone: exactly `count` pages. */
  allocateRange(count: number, limitPage: number, isAligned: boolean): number {
    const limit = limitPage + 1;
    if (limit <= PAGE_4G && count >= this.#max32) return 0;
    const size = isAligned && count > 1 ? 2 ** (32 - Math.clz32(count - 1)) : 1;
    const cached = limit <= PAGE_4G ? this.#cached32 : this.#cached;
    const retry = this.#ranges.bounds[2 * cached + 1]!;
    const page = this.#search(cached, limit, this.startPage, count, size);
    if (page !== 0) return page;
    if (retry < limit) {
      const from = limit > PAGE_4G ? ANCHOR : this.#ranges.above(limit);
      const second = this.#search(from, limit, retry + 1, count, size);
      if (second !== 0) return second;
    }
    this.#max32 = count;
    return 0;
  }

  /** Gives back the range that begins at `page`, whoever got it; nothing when there is none. */
  freeRange(page: number): void {
    const ranges = this.#ranges;
    let range = ranges.at(page);
    if (range === NONE) range = ranges.containing(page);
    if (range === NONE) return;
    const { bounds, links } = ranges;
    const first = bounds[2 * range]!;
    const above = links[2 * range + 1]!;
    const isLow = bounds[2 * range + 1]! < PAGE_4G;
    if (range === this.#cached32 || (isLow && first >= bounds[2 * this.#cached32]!)) this.#cached32 = above;
    if (first < PAGE_4G) this.#max32 = PAGE_4G;
    if (first >= bounds[2 * this.#cached]!) this.#cached = above;
    ranges.remove(range);
  }

  /** Keeps [firstPage, lastPage] from being given. What is taken of it already stays taken. EINVAL: no pages, or beyond 64 bits. */
  reserve(firstPage: number, lastPage: number): void {
    if (!(firstPage >= 0 && firstPage <= lastPage && lastPage <= LAST_PAGE)) {
      throw new Errno('EINVAL', `pages ${firstPage} to ${lastPage} cannot be reserved`);
    }
    const ranges = this.#ranges;
    let first = firstPage;
    // Only the gaps between ranges that are there become ranges; a range that begins within grows down to its gap.
    let range = ranges.containing(first);
    if (range === NONE) range = ranges.above(first);
    while (first <= lastPage) {
      const low = ranges.bounds[2 * range]!;
      const high = ranges.bounds[2 * range + 1]!;
      if (low > lastPage) {
        ranges.insertBelow(range, first, lastPage);
        return;
      }
      if (first < low) ranges.widen(range, first);
      first = high + 1;
      range = ranges.links[2 * range + 1]!;
    }
  }

  /** The range that contains `page`; undefined when it is free. */
  find(page: number): { firstPage: number; lastPage: number } | undefined {
    const range = this.#ranges.containing(page);
    if (range === NONE) return undefined;
    const { bounds } = this.#ranges;
    return { firstPage: bounds[2 * range]!, lastPage: bounds[2 * range + 1]! };
  }

  /** Gives back all that is cached. */
  flushCaches(): void {
    this.#caches.flush();
  }

  /** Looks below the range `from` and below `limit` for the highest place for `count` pages that is not below `low`. */
  #search(from: number, limit: number, low: number, count: number, alignment: number): number {
    const ranges = this.#ranges;
    const { bounds, links } = ranges;
    let high = limit;
    let above = from;
    let below = from;
    let first: number;
    do {
      const taken = bounds[2 * below]!;
      if (taken < high) high = taken;
      first = high - count;
      if (alignment > 1) first = Math.floor(first / alignment) * alignment;
      above = below;
      below = links[2 * below]!;
    } while (below !== NONE && first >= low && first <= bounds[2 * below + 1]!);
    if (first < low) return 0;
    const range = ranges.insertBelow(above, first, first + count - 1);
    if (first + count - 1 < PAGE_4G) this.#cached32 = range;
    else this.#cached = range;
    return first;
  }
}
