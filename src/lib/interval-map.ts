/**
 * Areas `[first, last]` of whole numbers (page numbers) that do not overlap, each with a value: the role of the kernel's interval
 * tree and of type1's rbtree.
 *
 * A sorted directory points to sorted leaves of at most 256 areas; bounds lie in typed arrays. Leaves are split when full and merged
 * with a neighbour when both are small. A leaf that is full at the end where areas keep arriving (rising or falling addresses) is
 * left full, so that ordered programs pay no half-empty leaves.
 *
 * Cost for each area: 25 bytes when filled in order, about 36 on average in random order, and what the value costs: nothing more for a
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

/**
 * Areas in order. Only `firsts` and `slots` are moved when one comes or goes: `slots` says where in `lasts` and `values` the area of a
 * rank lies, and behind the areas in use it lists the free places.
 */
class Leaf<V> {
  capacity: number;
  firsts: Float64Array;
  slots: Uint8Array;
  lasts: Float64Array;
  values: (V | undefined)[] = [];
  count = 0;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.firsts = new Float64Array(capacity);
    this.lasts = new Float64Array(capacity);
    this.slots = Uint8Array.from({ length: capacity }, (_, slot) => slot);
  }

  lastAt(rank: number): number {
    return this.lasts[this.slots[rank]!]!;
  }

  valueAt(rank: number): V {
    return this.values[this.slots[rank]!]!;
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

  insertAt(rank: number, first: number, last: number, value: V): void {
    if (this.count === this.capacity) this.#grow(this.capacity * 2);
    const count = this.count++;
    const { firsts, slots } = this;
    const slot = slots[count]!;
    if (rank < count) {
      firsts.copyWithin(rank + 1, rank, count);
      slots.copyWithin(rank + 1, rank, count);
    }
    firsts[rank] = first;
    slots[rank] = slot;
    this.lasts[slot] = last;
    this.values[slot] = value;
  }

  removeAt(rank: number): void {
    const count = --this.count;
    const { firsts, slots } = this;
    const slot = slots[rank]!;
    if (rank < count) {
      firsts.copyWithin(rank, rank + 1, count + 1);
      slots.copyWithin(rank, rank + 1, count + 1);
    }
    slots[count] = slot;
    this.values[slot] = undefined;
  }

  /** Takes the upper half of a full leaf away into a new one. */
  split(): Leaf<V> {
    const upper = new Leaf<V>(FULL);
    const half = this.count >>> 1;
    upper.#take(this, half);
    for (let rank = half; rank < this.count; rank++) this.values[this.slots[rank]!] = undefined;
    this.count = half;
    return upper;
  }

  /** Appends all areas of the next leaf. */
  append(next: Leaf<V>): void {
    if (this.count + next.count > this.capacity) this.#grow(FULL);
    this.#take(next, 0);
  }

  #take(from: Leaf<V>, rank: number): void {
    for (let i = rank; i < from.count; i++) {
      this.insertAt(this.count, from.firsts[i]!, from.lastAt(i), from.valueAt(i));
    }
  }

  #grow(wanted: number): void {
    const { firsts, lasts, slots } = this;
    const capacity = Math.min(wanted, FULL);
    this.capacity = capacity;
    this.firsts = new Float64Array(capacity);
    this.lasts = new Float64Array(capacity);
    this.slots = Uint8Array.from({ length: capacity }, (_, slot) => slot);
    this.firsts.set(firsts);
    this.lasts.set(lasts);
    this.slots.set(slots);
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
    if (at >= 0 ? leaf.lastAt(at) >= first : index > 0 && this.#lastOf(index - 1) >= first) return false;
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
    if (at >= 0) return leaf.lastAt(at) >= point ? leaf.valueAt(at) : undefined;
    if (index === 0) return undefined;
    const before = this.#leaves[index - 1]!;
    return before.lastAt(before.count - 1) >= point ? before.valueAt(before.count - 1) : undefined;
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
    if (at < 0 || leaf.lastAt(at) < first) at++;
    for (; leaf !== undefined; leaf = this.#leaves[++index], at = 0) {
      for (; at < leaf.count; at++) {
        if (leaf.firsts[at]! > last) return;
        visit(leaf.firsts[at]!, leaf.lastAt(at), leaf.valueAt(at));
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
    leaf.values[leaf.slots[at]!] = value;
  }

  clear(): void {
    this.#keys = new Float64Array(8);
    this.#leaves = [];
    this.#size = 0;
  }

  #area(leaf: Leaf<V>, at: number): Area<V> {
    return { first: leaf.firsts[at]!, last: leaf.lastAt(at), value: leaf.valueAt(at) };
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
    return leaf.lastAt(leaf.count - 1);
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
