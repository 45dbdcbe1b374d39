/**
 * The ranges of an IOVA space that are taken: disjoint, in order, each under its first page.
 *
 * The kernel keeps them in a red-black tree. What the allocator does all the time is to step from a range to the one below, to put
 * one beside a range that it holds, and to take one out by its first page: so here they are a doubly linked list in order, with a
 * hash by first page. For the rare question by any page, about every 64th range is also in a sorted array. All of it lies in typed
 * arrays; a range is an index. Range 0 is the *anchor*, above all pages.
 */

/** The range above all others. */
export const ANCHOR = 0;
/** No range: what comes before the lowest. */
export const NONE = -1;

export class IovaRanges {
  /** `bounds[2 * range]` is the first, `bounds[2 * range + 1]` the last page. */
  bounds = new Float64Array(2 * 64);
  /** `links[2 * range]` is the range below, `links[2 * range + 1]` the one above. */
  links = new Int32Array(2 * 64);
  /** Ranges besides the anchor. */
  count = 0;
  #end = 1;
  #spare = NONE;
  #lowest = ANCHOR;
  /** Range by first page; 0 is an empty slot. Twice as many slots as ranges at least. */
  #slots = new Int32Array(256);
  #shift = 24;
  /** First pages of the marked ranges in order, and the ranges. */
  #markPages = new Float64Array(16);
  #marks = new Int32Array(16);
  #markCount = 0;

  constructor() {
    this.bounds[0] = Number.POSITIVE_INFINITY;
    this.bounds[1] = Number.POSITIVE_INFINITY;
    this.links[0] = NONE;
    this.links[1] = NONE;
  }

  /** The lowest range; the anchor when there is none. */
  get lowest(): number {
    return this.#lowest;
  }

  /** Puts [first, last] below the range `above` and over the one that was there. The caller knows that it fits. */
  insertBelow(above: number, first: number, last: number): number {
    const range = this.#take();
    const { bounds, links } = this;
    const below = links[2 * above]!;
    bounds[2 * range] = first;
    bounds[2 * range + 1] = last;
    links[2 * range] = below;
    links[2 * range + 1] = above;
    links[2 * above] = range;
    if (below === NONE) this.#lowest = range;
    else links[2 * below + 1] = range;
    this.count++;
    if (this.count * 2 > this.#slots.length) this.#rehash();
    else this.#enter(range, first);
    if (isMarked(first)) this.#mark(range, first);
    return range;
  }

  /** The range that begins at `first`, NONE if there is none. */
  at(first: number): number {
    const slots = this.#slots;
    const mask = slots.length - 1;
    for (let slot = hash(first) >>> this.#shift; ; slot = (slot + 1) & mask) {
      const range = slots[slot]!;
      if (range === 0) return NONE;
      if (this.bounds[2 * range] === first) return range;
    }
  }

  remove(range: number): void {
    const { bounds, links } = this;
    const first = bounds[2 * range]!;
    const below = links[2 * range]!;
    const above = links[2 * range + 1]!;
    links[2 * above] = below;
    if (below === NONE) this.#lowest = above;
    else links[2 * below + 1] = above;
    this.#leave(range, first);
    if (isMarked(first)) this.#unmark(first);
    links[2 * range] = this.#spare;
    this.#spare = range;
    this.count--;
  }

  /** Moves the first page of a range down, where nothing is. */
  widen(range: number, first: number): void {
    const old = this.bounds[2 * range]!;
    this.#leave(range, old);
    if (isMarked(old)) this.#unmark(old);
    this.bounds[2 * range] = first;
    this.#enter(range, first);
    if (isMarked(first)) this.#mark(range, first);
  }

  /** The lowest range that begins at or above `page`: the anchor at least. */
  above(page: number): number {
    const at = this.#marksBelow(page);
    let range = at === 0 ? this.#lowest : this.#marks[at - 1]!;
    while (this.bounds[2 * range]! < page) range = this.links[2 * range + 1]!;
    return range;
  }

  /** The range that contains `page`, NONE if there is none. */
  containing(page: number): number {
    const below = this.links[2 * this.above(page + 1)]!;
    return below !== NONE && this.bounds[2 * below + 1]! >= page ? below : NONE;
  }

  #take(): number {
    const spare = this.#spare;
    if (spare !== NONE) {
      this.#spare = this.links[2 * spare]!;
      return spare;
    }
    if (this.#end * 2 === this.links.length) {
      this.bounds = widened(this.bounds);
      this.links = widened(this.links);
    }
    return this.#end++;
  }

  #enter(range: number, first: number): void {
    const slots = this.#slots;
    const mask = slots.length - 1;
    let slot = hash(first) >>> this.#shift;
    while (slots[slot] !== 0) slot = (slot + 1) & mask;
    slots[slot] = range;
  }

  #leave(range: number, first: number): void {
    const slots = this.#slots;
    const mask = slots.length - 1;
    let hole = hash(first) >>> this.#shift;
    while (slots[hole] !== range) hole = (hole + 1) & mask;
    // What was put off its place by the slot that becomes empty moves up, so that searches never end too early.
    for (let next = (hole + 1) & mask; slots[next] !== 0; next = (next + 1) & mask) {
      const wanted = hash(this.bounds[2 * slots[next]!]!) >>> this.#shift;
      if (((next - wanted) & mask) < ((next - hole) & mask)) continue;
      slots[hole] = slots[next]!;
      hole = next;
    }
    slots[hole] = 0;
  }

  #rehash(): void {
    this.#slots = new Int32Array(this.#slots.length * 2);
    this.#shift--;
    const { bounds, links } = this;
    for (let range = this.#lowest; range !== ANCHOR; range = links[2 * range + 1]!) {
      this.#enter(range, bounds[2 * range]!);
    }
  }

  /** How many marked ranges begin below `page`. */
  #marksBelow(page: number): number {
    const pages = this.#markPages;
    let low = 0;
    let high = this.#markCount;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (pages[middle]! < page) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #mark(range: number, first: number): void {
    if (this.#markCount === this.#marks.length) {
      this.#markPages = widened(this.#markPages);
      this.#marks = widened(this.#marks);
    }
    const at = this.#marksBelow(first);
    this.#markPages.copyWithin(at + 1, at, this.#markCount);
    this.#marks.copyWithin(at + 1, at, this.#markCount);
    this.#markPages[at] = first;
    this.#marks[at] = range;
    this.#markCount++;
  }

  #unmark(first: number): void {
    const at = this.#marksBelow(first);
    this.#markPages.copyWithin(at, at + 1, this.#markCount);
    this.#marks.copyWithin(at, at + 1, this.#markCount);
    this.#markCount--;
  }
}

function hash(page: number): number {
  return Math.imul((page | 0) ^ Math.imul((page / 0x1_0000_0000) | 0, 0x85eb_ca6b), 0x9e37_79b1);
}

function isMarked(first: number): boolean {
  return (Math.imul(hash(first) >>> 7, 0x27d4_eb2f) & 0xfc00_0000) === 0;
}

function widened<T extends Float64Array | Int32Array>(array: T): T {
  const wider = (
    array instanceof Float64Array ? new Float64Array(array.length * 2) : new Int32Array(array.length * 2)
  ) as T;
  wider.set(array);
  return wider;
}
