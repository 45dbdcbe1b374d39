/**
 * The mock driver's page table: AMD's version 1 format with pages of 2 KiB, as a data structure instead of bits.
 *
 * Entries are of any power of two from 2 KiB on; a level has 512 of them, so that 1 MiB is one entry of the level above. An entry that
 * is larger than its level's step is several equal ones, each with a dirty bit of its own.
 */
export const GRANULE = 2048;
const ITEMS = 512;
/** Bytes of one table of the lowest level, and of one entry of the level above. */
export const TABLE_BYTES = ITEMS * GRANULE;

/** The lowest level: 512 granules. */
class Table {
  /** Physical address in granules, plus 1; 0: empty. */
  readonly physical = new Float64Array(ITEMS);
  /** How many granules the entry has, as a power of two. */
  readonly order = new Uint8Array(ITEMS);
  readonly dirty = new Uint8Array(ITEMS);
  used = 0;
}

/** An entry of the level above. */
interface Large {
  /** In granules. */
  readonly physical: number;
  /** How many steps of 1 MiB the entry has, as a power of two. */
  readonly order: number;
  isDirty: boolean;
}

export class MockTable {
  readonly #slots = new Map<number, Table | Large>();
  /** Sizes of entries, one bit each, as a number of granules (bit 0: 2 KiB). */
  readonly #sizes: ReadonlySet<number>;

  /** `sizes`: powers of two of 2048 bytes that entries may have. */
  constructor(sizes: Iterable<number>) {
    this.#sizes = new Set(sizes);
  }

  get isEmpty(): boolean {
    return this.#slots.size === 0;
  }

  /** Maps granules, with the largest entries that fit. False: no entry is as small as what is left; nothing is mapped then. */
  map(granule: number, physical: number, count: number): boolean {
    let done = 0;
    while (done < count) {
      const order = this.#bestOrder(granule + done, physical + done, count - done);
      if (order < 0) {
        this.unmap(granule, done);
        return false;
      }
      this.#enter(granule + done, physical + done, order);
      done += 2 ** order;
    }
    return true;
  }

  /** Removes what is mapped, up to the first hole; returns how many granules. */
  unmap(granule: number, count: number): number {
    let done = 0;
    while (done < count) {
      const at = granule + done;
      const slot = this.#slots.get(Math.floor(at / ITEMS));
      if (slot === undefined) break;
      if (slot instanceof Table) {
        const first = at % ITEMS;
        const end = Math.min(ITEMS, first + count - done);
        let i = first;
        for (; i < end && slot.physical[i] !== 0; i++) {
          slot.physical[i] = 0;
          slot.dirty[i] = 0;
          slot.used--;
        }
        done += i - first;
        if (slot.used === 0) this.#slots.delete(Math.floor(at / ITEMS));
        if (i < end) break;
      } else {
        this.#slots.delete(Math.floor(at / ITEMS));
        done += ITEMS;
      }
    }
    return Math.min(done, count);
  }

  /** In granules; -1: not mapped. */
  physicalOf(granule: number): number {
    const slot = this.#slots.get(Math.floor(granule / ITEMS));
    if (slot === undefined) return -1;
    return slot instanceof Table ? slot.physical[granule % ITEMS]! - 1 : slot.physical + (granule % ITEMS);
  }

  /** The device writes: sets the dirty bit of the entry. Nothing happens where nothing is mapped. */
  setDirty(granule: number): void {
    const slot = this.#slots.get(Math.floor(granule / ITEMS));
    if (slot === undefined) return;
    if (!(slot instanceof Table)) slot.isDirty = true;
    else if (slot.physical[granule % ITEMS] !== 0) slot.dirty[granule % ITEMS] = 1;
  }

  /**
   * Reports granules `[first, last]` that are dirty. The kernel's format reports an entry of several equal ones but for its last
   * granule, which is kept: the figures of its tests are those.
   */
  readDirty(
    first: number,
    last: number,
    isCleared: boolean,
    report: ((first: number, count: number) => void) | undefined,
  ): void {
    for (let at = first; at <= last; ) {
      const index = Math.floor(at / ITEMS);
      const slot = this.#slots.get(index);
      if (slot instanceof Table) at = this.#readTable(slot, index * ITEMS, at, last, isCleared, report);
      else if (slot === undefined) at = (index + 1) * ITEMS;
      else at = this.#readLarge(slot, index, at, last, isCleared, report);
    }
  }

  #readTable(
    table: Table,
    base: number,
    from: number,
    last: number,
    isCleared: boolean,
    report: ((first: number, count: number) => void) | undefined,
  ): number {
    const end = Math.min(ITEMS, last - base + 1);
    const { physical, order, dirty } = table;
    for (let i = from - base; i < end; ) {
      const size = 1 << order[i]!;
      if (physical[i] === 0 || size === 1) {
        if (dirty[i] === 1) {
          report?.(base + i, 1);
          if (isCleared) dirty[i] = 0;
        }
        i++;
        continue;
      }
      const start = i & -size;
      if (dirty.subarray(start, start + size).includes(1)) {
        const length = Math.min(start + size - 1, end) - i;
        if (length > 0) report?.(base + i, length);
        if (isCleared) dirty.fill(0, start, start + size);
      }
      i = start + size;
    }
    return base + ITEMS;
  }

  #readLarge(
    entry: Large,
    index: number,
    from: number,
    last: number,
    isCleared: boolean,
    report: ((first: number, count: number) => void) | undefined,
  ): number {
    const size = 2 ** entry.order;
    const start = index - (index % size);
    let isDirty = entry.isDirty;
    for (let i = start; !isDirty && i < start + size; i++) isDirty = (this.#slots.get(i) as Large).isDirty;
    const next = (start + size) * ITEMS;
    if (!isDirty) return next;
    const stop = size === 1 ? start + 1 : Math.min(start + size - 1, Math.floor(last / ITEMS) + 1);
    const length = stop * ITEMS - from;
    if (length > 0) report?.(from, length);
    if (isCleared) for (let i = start; i < start + size; i++) (this.#slots.get(i) as Large).isDirty = false;
    return next;
  }

  #bestOrder(granule: number, physical: number, count: number): number {
    for (let order = 36; order >= 0; order--) {
      const size = 2 ** order;
      if (size <= count && this.#sizes.has(order) && granule % size === 0 && physical % size === 0) return order;
    }
    return -1;
  }

  #enter(granule: number, physical: number, order: number): void {
    const size = 2 ** order;
    const index = Math.floor(granule / ITEMS);
    if (size >= ITEMS) {
      for (let i = 0; i < size / ITEMS; i++) {
        this.#slots.set(index + i, { physical: physical + i * ITEMS, order: order - 9, isDirty: false });
      }
      return;
    }
    let table = this.#slots.get(index);
    if (table === undefined) {
      table = new Table();
      this.#slots.set(index, table);
    }
    if (!(table instanceof Table)) throw new Error('A large entry is in the way');
    const first = granule % ITEMS;
    for (let i = 0; i < size; i++) {
      table.physical[first + i] = physical + i + 1;
      table.order[first + i] = order;
    }
    table.used += size;
  }
}
