/**
 * Which of the numbers 0 to 2^32 - 1 are in use, and the lowest that is not: a bitmap under bitmaps.
 *
 * A bit of the lowest level is one number; a bit of the next level says that a whole word below is full. The lowest free number is
 * found in one step per level, however many are in use. The space is made of parts of 2^20 numbers, and a part grows by 32 times
 * when it must, so that a table with ten numbers takes a few hundred bytes.
 */

const PART_BITS = 20;
const PART_SIZE = 2 ** PART_BITS;
const PART_MASK = PART_SIZE - 1;

/** The lowest set bit's place; `word` is not 0. */
function lowestBit(word: number): number {
  return 31 - Math.clz32(word & -word);
}

class Part {
  /** Numbers that the bitmaps have room for: 2^10, 2^15 or 2^20. */
  capacity = 1024;
  used = 0;
  /** A bit for each number. */
  bits: Int32Array = new Int32Array(32);
  /** `summaries[0]` has a bit for each word of `bits` that is full, `summaries[n + 1]` one for each full word of the one before. */
  summaries: Int32Array[] = [new Int32Array(1)];
  /** No number below is free. */
  #floor = 0;

  has(at: number): boolean {
    return at < this.capacity && (this.bits[at >>> 5]! & (1 << (at & 31))) !== 0;
  }

  /** The lowest free number from `from` on, -1 when there is none. */
  nextFree(from: number): number {
    const at = from < this.#floor ? this.#floor : from;
    if (at >= this.capacity) return at < PART_SIZE ? at : -1;
    const word = at >>> 5;
    const free = ~this.bits[word]! & (-1 << (at & 31));
    return free !== 0 ? word * 32 + lowestBit(free) : this.#climb(word + 1);
  }

  set(at: number): void {
    while (at >= this.capacity) this.#grow();
    this.used++;
    if (at === this.#floor) this.#floor = at + 1;
    const word = at >>> 5;
    const value = this.bits[word]! | (1 << (at & 31));
    this.bits[word] = value;
    if (value === -1) this.#filled(word);
  }

  clear(at: number): void {
    this.used--;
    if (at < this.#floor) this.#floor = at;
    const word = at >>> 5;
    const value = this.bits[word]!;
    this.bits[word] = value & ~(1 << (at & 31));
    if (value === -1) this.#opened(word);
  }

  /** The lowest free number in word `from` of `bits` or above. */
  #climb(from: number): number {
    const { summaries } = this;
    let index = from;
    for (let n = 0; n < summaries.length; n++) {
      const word = index >>> 5;
      if (word >= summaries[n]!.length) break;
      const open = ~summaries[n]![word]! & (-1 << (index & 31));
      if (open === 0) {
        index = word + 1;
        continue;
      }
      index = word * 32 + lowestBit(open);
      while (n > 0) index = index * 32 + lowestBit(~summaries[--n]![index]!);
      return index * 32 + lowestBit(~this.bits[index]!);
    }
    return this.capacity < PART_SIZE ? this.capacity : -1;
  }

  #filled(full: number): void {
    let index = full;
    for (let n = 0; n < this.summaries.length; n++) {
      const summary = this.summaries[n]!;
      const word = index >>> 5;
      summary[word] = summary[word]! | (1 << (index & 31));
      if (summary[word] !== -1) return;
      index = word;
    }
  }

  #opened(open: number): void {
    let index = open;
    for (let n = 0; n < this.summaries.length; n++) {
      const summary = this.summaries[n]!;
      const word = index >>> 5;
      const wasFull = summary[word] === -1;
      summary[word] = summary[word]! & ~(1 << (index & 31));
      if (!wasFull) return;
      index = word;
    }
  }

  /** The lowest used number from `from` on, -1 when there is none. */
  nextUsed(from: number): number {
    const { bits } = this;
    let word = from >>> 5;
    if (word >= bits.length) return -1;
    let rest = bits[word]! & (-1 << (from & 31));
    while (rest === 0) {
      if (++word >= bits.length) return -1;
      rest = bits[word]!;
    }
    return word * 32 + lowestBit(rest);
  }

  #grow(): void {
    const wasFull = this.summaries.at(-1)![0] === -1;
    this.capacity *= 32;
    this.bits = widened(this.bits);
    this.summaries = [...this.summaries.map(widened), Int32Array.of(wasFull ? 1 : 0)];
  }
}

function widened(level: Int32Array): Int32Array {
  const wider = new Int32Array(level.length * 32);
  wider.set(level);
  return wider;
}

export class IdSpace {
  /** The part of the numbers below 2^20, which is nearly always the only one. */
  readonly #first = new Part();
  readonly #others = new Map<number, Part>();
  #used = 0;

  /** Numbers in use. */
  get used(): number {
    return this.#used;
  }

  has(id: number): boolean {
    if (id < PART_SIZE) return this.#first.has(id);
    return this.#others.get(Math.floor(id / PART_SIZE))?.has(id & PART_MASK) ?? false;
  }

  /** Takes the lowest free number of `first` to `last` (both included, below 2^32). -1: none is free. */
  allocate(first: number, last: number): number {
    if (first < PART_SIZE) {
      const at = this.#first.nextFree(first);
      if (at >= 0) {
        if (at > last) return -1;
        this.#first.set(at);
        this.#used++;
        return at;
      }
    }
    for (let index = Math.max(1, Math.floor(first / PART_SIZE)); index * PART_SIZE <= last; index++) {
      const base = index * PART_SIZE;
      let part = this.#others.get(index);
      if (part === undefined) {
        part = new Part();
        this.#others.set(index, part);
      }
      const at = part.nextFree(Math.max(first, base) - base);
      if (at < 0) continue;
      if (base + at > last) {
        this.#drop(index, part);
        return -1;
      }
      part.set(at);
      this.#used++;
      return base + at;
    }
    return -1;
  }

  /** Takes this number. False: it is in use. */
  take(id: number): boolean {
    return !this.has(id) && this.allocate(id, id) === id;
  }

  /** Gives a number back. False: it was not in use. */
  release(id: number): boolean {
    if (!this.has(id)) return false;
    if (id < PART_SIZE) {
      this.#first.clear(id);
      this.#used--;
      return true;
    }
    const index = Math.floor(id / PART_SIZE);
    const part = this.#others.get(index)!;
    part.clear(id & PART_MASK);
    this.#used--;
    this.#drop(index, part);
    return true;
  }

  /** The lowest number in use from `from` on, -1 when there is none. */
  next(from: number): number {
    if (from < PART_SIZE) {
      const at = this.#first.nextUsed(from);
      if (at >= 0) return at;
    }
    let best = -1;
    for (const [index, part] of this.#others) {
      const base = index * PART_SIZE;
      if (base + PART_SIZE <= from || (best >= 0 && base > best)) continue;
      const at = part.nextUsed(Math.max(from, base) - base);
      if (at >= 0 && (best < 0 || base + at < best)) best = base + at;
    }
    return best;
  }

  #drop(index: number, part: Part): void {
    if (part.used === 0) this.#others.delete(index);
  }
}
