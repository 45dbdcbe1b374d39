/**
 * Areas `[first, last]` of whole numbers (page numbers) that do not overlap, each with a value: the role of the kernel's interval
 * tree and of type1's rbtree.
 *
 * A sorted directory points to sorted leaves of at most 256 areas; bounds lie in typed arrays. Leaves are split when full and merged
 * with a neighbour when both are small. A leaf that is full at the end where areas keep arriving (rising or falling addresses) is
 * left full, so that ordered programs pay no half-empty leaves.
 *
 * Cost for each area: 24 bytes when filled in order, about 35 on average in random order, and what the value costs: nothing more for a
 * number (an index into typed arrays of the owner's), the size of the object otherwise (a plain object with six fields is about 72,
 * and 16 more for every field that holds a number beyond 2^31).
 */
const FULL = 256;
const SMALL = 64;

export interface Area<V> {
  readonly first: number;
  readonly last: number;
  readonly value: V;
}

class Leaf<V> {
  capacity: number;
  firsts: Float64Array;
  lasts: Float64Array;
  values: V[] = [];
  count = 0;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.firsts = new Float64Array(capacity);
    this.lasts = new Float64Array(capacity);
  }

  /** The last area that starts at or before `point`, -1 when there is none. */
  floor(point: number): number {
    const firsts = this.firsts;
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (firsts[middle]! <= point) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  insertAt(at: number, first: number, last: number, value: V): void {
    if (this.count === this.capacity) this.#grow(this.capacity * 2);
    const count = this.count++;
    if (at < count) {
      this.firsts.copyWithin(at + 1, at, count);
      this.lasts.copyWithin(at + 1, at, count);
    }
    const values = this.values;
    values.push(value);
    for (let i = count; i > at; i--) values[i] = values[i - 1]!;
    values[at] = value;
    this.firsts[at] = first;
    this.lasts[at] = last;
  }

  removeAt(at: number): void {
    const count = --this.count;
    if (at < count) {
      this.firsts.copyWithin(at, at + 1, count + 1);
      this.lasts.copyWithin(at, at + 1, count + 1);
    }
    const values = this.values;
    for (let i = at; i < count; i++) values[i] = values[i + 1]!;
    values.pop();
  }

  /** Takes the upper half of a full leaf away into a new one. */
  split(): Leaf<V> {
    const half = this.count >>> 1;
    const upper = new Leaf<V>(FULL);
    upper.count = this.count - half;
    upper.firsts.set(this.firsts.subarray(half, this.count));
    upper.lasts.set(this.lasts.subarray(half, this.count));
    upper.values = this.values.slice(half);
    this.values.length = half;
    this.count = half;
    return upper;
  }

  /** Appends all areas of the next leaf. */
  append(next: Leaf<V>): void {
    const count = this.count + next.count;
    if (count > this.capacity) this.#grow(FULL);
    this.firsts.set(next.firsts.subarray(0, next.count), this.count);
    this.lasts.set(next.lasts.subarray(0, next.count), this.count);
    for (let i = 0; i < next.count; i++) this.values.push(next.values[i]!);
    this.count = count;
  }

  #grow(capacity: number): void {
    const { firsts, lasts } = this;
    this.capacity = Math.min(capacity, FULL);
    this.firsts = new Float64Array(this.capacity);
    this.lasts = new Float64Array(this.capacity);
    this.firsts.set(firsts.subarray(0, this.count));
    this.lasts.set(lasts.subarray(0, this.count));
  }
}

export class IntervalMap<V> {
  /** A lower bound of each leaf's areas; the first leaf's is not looked at. */
  #keys = new Float64Array(8);
  #leaves: Leaf<V>[] = [];
  #size = 0;

  /** Areas in the map. */
  get size(): number {
    return this.#size;
  }

  /** Adds `[first, last]`. False, and nothing is changed: it overlaps an area. */
  insert(first: number, last: number, value: V): boolean {
    if (!(first <= last)) throw new Error(`Area ${first}..${last} is empty`);
    if (this.#leaves.length === 0) {
      const leaf = new Leaf<V>(8);
      leaf.insertAt(0, first, last, value);
      this.#addLeaf(0, leaf, first);
      this.#size = 1;
      return true;
    }
    let index = this.#leafOf(first);
    let leaf = this.#leaves[index]!;
    let at = leaf.floor(first);
    if (at >= 0 ? leaf.lasts[at]! >= first : index > 0 && this.#lastOf(index - 1) >= first) return false;
    const next = at + 1 < leaf.count ? leaf.firsts[at + 1]! : this.#firstOf(index + 1);
    if (next <= last) return false;
    at++;
    if (leaf.count === FULL) {
      if (at === FULL && index === this.#leaves.length - 1) {
        leaf = new Leaf<V>(8);
        this.#addLeaf(++index, leaf, first);
        at = 0;
      } else if (at === 0 && index === 0) {
        this.#keys[0] = leaf.firsts[0]!;
        leaf = new Leaf<V>(8);
        this.#addLeaf(0, leaf, first);
      } else {
        const upper = leaf.split();
        this.#addLeaf(index + 1, upper, upper.firsts[0]!);
        if (at > leaf.count) {
          at -= leaf.count;
          leaf = upper;
        }
      }
    }
    leaf.insertAt(at, first, last, value);
    this.#size++;
    return true;
  }

  /** Removes the area that starts at `first` exactly. False: there is none. */
  remove(first: number): boolean {
    if (this.#leaves.length === 0) return false;
    const index = this.#leafOf(first);
    const leaf = this.#leaves[index]!;
    const at = leaf.floor(first);
    if (at < 0 || leaf.firsts[at] !== first) return false;
    leaf.removeAt(at);
    this.#size--;
    if (leaf.count < SMALL) this.#shrink(index, leaf);
    return true;
  }

  /** The value of the area that contains `point`. */
  get(point: number): V | undefined {
    if (this.#leaves.length === 0) return undefined;
    const index = this.#leafOf(point);
    const leaf = this.#leaves[index]!;
    const at = leaf.floor(point);
    if (at >= 0) return leaf.lasts[at]! >= point ? leaf.values[at] : undefined;
    if (index === 0) return undefined;
    const before = this.#leaves[index - 1]!;
    return before.lasts[before.count - 1]! >= point ? before.values[before.count - 1] : undefined;
  }

  /** The area that contains `point`. */
  at(point: number): Area<V> | undefined {
    const area = this.floor(point);
    return area !== undefined && area.last >= point ? area : undefined;
  }

  /** The last area that starts at or before `point`. */
  floor(point: number): Area<V> | undefined {
    if (this.#leaves.length === 0) return undefined;
    const index = this.#leafOf(point);
    const leaf = this.#leaves[index]!;
    const at = leaf.floor(point);
    if (at >= 0) return this.#area(leaf, at);
    if (index === 0) return undefined;
    const before = this.#leaves[index - 1]!;
    return this.#area(before, before.count - 1);
  }

  /** The first area that starts at or after `point`. */
  ceiling(point: number): Area<V> | undefined {
    if (this.#leaves.length === 0) return undefined;
    const index = this.#leafOf(point);
    const leaf = this.#leaves[index]!;
    let at = leaf.floor(point);
    if (at < 0 || leaf.firsts[at] !== point) at++;
    if (at < leaf.count) return this.#area(leaf, at);
    const after = this.#leaves[index + 1];
    return after === undefined ? undefined : this.#area(after, 0);
  }

  /**
   * The first area that has a page in `[first, last]`. Repeated with `area.last + 1` it visits a range whose areas may be removed on
   * the way.
   */
  firstIn(first: number, last: number): Area<V> | undefined {
    const area = this.at(first) ?? this.ceiling(first);
    return area !== undefined && area.first <= last ? area : undefined;
  }

  overlaps(first: number, last: number): boolean {
    return this.firstIn(first, last) !== undefined;
  }

  /** Calls `visit` for each area with a page in `[first, last]`, in order. The map may not be changed meanwhile. */
  forEach(first: number, last: number, visit: (first: number, last: number, value: V) => void): void {
    if (this.#leaves.length === 0) return;
    let index = this.#leafOf(first);
    let leaf: Leaf<V> | undefined = this.#leaves[index]!;
    let at = leaf.floor(first);
    if (at < 0 && index > 0) {
      leaf = this.#leaves[--index]!;
      at = leaf.count - 1;
    }
    if (at < 0 || leaf.lasts[at]! < first) at++;
    for (; leaf !== undefined; leaf = this.#leaves[++index], at = 0) {
      for (; at < leaf.count; at++) {
        if (leaf.firsts[at]! > last) return;
        visit(leaf.firsts[at]!, leaf.lasts[at]!, leaf.values[at]!);
      }
    }
  }

  /** The areas with a page in `[first, last]`, in order. Areas may be changed while it runs. */
  *areas(first = Number.NEGATIVE_INFINITY, last = Number.POSITIVE_INFINITY): IterableIterator<Area<V>> {
    for (let area = this.firstIn(first, last); area !== undefined; area = this.firstIn(area.last + 1, last)) yield area;
  }

  /** The ranges within `[first, last]` that no area covers, in order. */
  *holes(first: number, last: number): IterableIterator<{ first: number; last: number }> {
    let from = first;
    for (const area of this.areas(first, last)) {
      if (area.first > from) yield { first: from, last: area.first - 1 };
      from = area.last + 1;
    }
    if (from <= last) yield { first: from, last };
  }

  /** Gives the area that starts at `first` other bounds. It has to stay between its neighbours. */
  resize(first: number, newFirst: number, newLast: number): void {
    const area = this.at(first);
    if (area === undefined || area.first !== first) throw new Error(`No area starts at ${first}`);
    this.remove(first);
    if (!this.insert(newFirst, newLast, area.value)) {
      this.insert(area.first, area.last, area.value);
      throw new Error(`Area ${first} cannot become ${newFirst}..${newLast}: it would overlap another one`);
    }
  }

  /** Gives the area that starts at `first` another value. */
  setValue(first: number, value: V): void {
    const leaf = this.#leaves[this.#leafOf(first)];
    const at = leaf?.floor(first) ?? -1;
    if (leaf === undefined || at < 0 || leaf.firsts[at] !== first) throw new Error(`No area starts at ${first}`);
    leaf.values[at] = value;
  }

  clear(): void {
    this.#keys = new Float64Array(8);
    this.#leaves = [];
    this.#size = 0;
  }

  #area(leaf: Leaf<V>, at: number): Area<V> {
    return { first: leaf.firsts[at]!, last: leaf.lasts[at]!, value: leaf.values[at]! };
  }

  /** The leaf in which an area that starts at `point` is, or belongs. */
  #leafOf(point: number): number {
    const keys = this.#keys;
    let low = 1;
    let high = this.#leaves.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (keys[middle]! <= point) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  #firstOf(index: number): number {
    return this.#leaves[index]?.firsts[0] ?? Number.POSITIVE_INFINITY;
  }

  #lastOf(index: number): number {
    const leaf = this.#leaves[index]!;
    return leaf.lasts[leaf.count - 1]!;
  }

  #addLeaf(index: number, leaf: Leaf<V>, key: number): void {
    const count = this.#leaves.length;
    if (count === this.#keys.length) {
      const keys = new Float64Array(count * 2);
      keys.set(this.#keys);
      this.#keys = keys;
    }
    this.#keys.copyWithin(index + 1, index, count);
    this.#keys[index] = key;
    this.#leaves.splice(index, 0, leaf);
  }

  #dropLeaf(index: number): void {
    this.#keys.copyWithin(index, index + 1, this.#leaves.length);
    this.#leaves.splice(index, 1);
  }

  #shrink(index: number, leaf: Leaf<V>): void {
    if (leaf.count === 0) {
      this.#dropLeaf(index);
      return;
    }
    const after = this.#leaves[index + 1];
    if (after !== undefined && after.count + leaf.count <= FULL - SMALL) {
      leaf.append(after);
      this.#dropLeaf(index + 1);
      return;
    }
    const before = this.#leaves[index - 1];
    if (before !== undefined && before.count + leaf.count <= FULL - SMALL) {
      before.append(leaf);
      this.#dropLeaf(index);
    }
  }
}
