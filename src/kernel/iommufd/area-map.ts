/**
 * The areas of an address space in order of their IOVA, which do not overlap.
 *
 * Areas begin and end at any byte of 64 bits as long as no page table asks for more, which is more than a `number` holds exactly:
 * that is why this is not lib/interval-map. Order is by page number, and by the exact address only within one page. Leaves of at
 * most 128 areas; each remembers how wide its widest hole can be, so that the search for a free range skips full leaves.
 */
const FULL = 128;

/** Both ends included, as addresses and as page and byte in the page. */
export interface Placed {
  readonly first: bigint;
  readonly last: bigint;
  readonly firstPage: number;
  readonly firstOffset: number;
  readonly lastPage: number;
  readonly lastOffset: number;
}

interface Leaf<A extends Placed> {
  areas: A[];
  /** No hole between two areas of the leaf is wider than this, in bytes. */
  widestHole: number;
}

/** The hole between neighbours in bytes; beyond 2^53 not to the byte. */
function width(before: Placed, after: Placed): number {
  return (after.firstPage - before.lastPage) * 4096 + after.firstOffset - before.lastOffset - 1;
}

export class AreaMap<A extends Placed> {
  #leaves: Leaf<A>[] = [];
  #size = 0;

  get size(): number {
    return this.#size;
  }

  /** Adds an area. It may not overlap another one: the caller has looked. */
  insert(area: A): void {
    this.#size++;
    if (this.#leaves.length === 0) {
      this.#leaves.push({ areas: [area], widestHole: 0 });
      return;
    }
    const index = Math.max(0, this.#leafOf(area.firstPage, area.first));
    const leaf = this.#leaves[index]!;
    const at = floor(leaf.areas, area.firstPage, area.first) + 1;
    const { areas } = leaf;
    // A new first or last area opens a hole towards its neighbour; one in between only makes a hole smaller.
    if (at === 0) leaf.widestHole = Math.max(leaf.widestHole, width(area, areas[0]!));
    if (at === areas.length) leaf.widestHole = Math.max(leaf.widestHole, width(areas[at - 1]!, area));
    areas.splice(at, 0, area);
    if (areas.length <= FULL) return;
    // Programs mostly map upwards: then the full leaf stays full and a new one begins.
    const keep = at === FULL && index === this.#leaves.length - 1 ? FULL : FULL / 2;
    this.#leaves.splice(index + 1, 0, { areas: areas.splice(keep), widestHole: leaf.widestHole });
  }

  remove(area: A): void {
    const index = this.#leafOf(area.firstPage, area.first);
    const leaf = this.#leaves[index];
    const at = leaf === undefined ? -1 : floor(leaf.areas, area.firstPage, area.first);
    if (leaf === undefined || leaf.areas[at] !== area) throw new Error(`No such area at 0x${area.first.toString(16)}`);
    const { areas } = leaf;
    areas.splice(at, 1);
    this.#size--;
    if (areas.length === 0) this.#leaves.splice(index, 1);
    else if (at > 0 && at < areas.length)
      leaf.widestHole = Math.max(leaf.widestHole, width(areas[at - 1]!, areas[at]!));
  }

  /** The first area with a byte in `[first, last]`. */
  firstIn(first: bigint, last: bigint): A | undefined {
    let index = this.#leafOf(Number(first >> 12n), first);
    let at = -1;
    if (index >= 0) {
      const { areas } = this.#leaves[index]!;
      at = floor(areas, Number(first >> 12n), first);
      if (areas[at]!.last < first) at++;
      if (at === areas.length) {
        index++;
        at = 0;
      }
    } else {
      index = 0;
      at = 0;
    }
    const area = this.#leaves[index]?.areas[at];
    return area !== undefined && area.first <= last ? area : undefined;
  }

  /** All areas in order. None may be added or removed meanwhile. */
  *[Symbol.iterator](): IterableIterator<A> {
    for (const leaf of this.#leaves) yield* leaf.areas;
  }

  /**
   * Calls back, in order, for the holes of `[first, last]` of at least `length` bytes until the callback returns true. Returns
   * whether it did.
   */
  someHole(first: bigint, last: bigint, length: bigint, callback: (first: bigint, last: bigint) => boolean): boolean {
    // Only holes that may be wide enough are looked at exactly; the factor makes up for what a number rounds.
    const enough = Number(length) * 0.999_999;
    const offer = (from: bigint, to: bigint): boolean => {
      const start = from < first ? first : from;
      const end = to > last ? last : to;
      return end - start + 1n >= length && callback(start, end);
    };
    const firstPage = Number(first >> 12n);
    const lastPage = Number(last >> 12n);
    let before: A | undefined;
    for (const leaf of this.#leaves) {
      const { areas } = leaf;
      const tail = areas[areas.length - 1]!;
      if (tail.lastPage >= firstPage) {
        if (before !== undefined && before.lastPage > lastPage) return false;
        const head = areas[0]!;
        if (before === undefined ? head.first > 0n : width(before, head) >= enough) {
          if (offer(before === undefined ? 0n : before.last + 1n, head.first - 1n)) return true;
        }
        if (leaf.widestHole >= enough) {
          let widest = 0;
          for (let i = 1; i < areas.length; i++) {
            const hole = width(areas[i - 1]!, areas[i]!);
            if (hole > widest) widest = hole;
            if (hole >= enough && offer(areas[i - 1]!.last + 1n, areas[i]!.first - 1n)) return true;
          }
          leaf.widestHole = widest;
        }
      }
      before = tail;
    }
    const from = before === undefined ? 0n : before.last + 1n;
    return from <= last && offer(from, last);
  }

  /** The last leaf that begins at or before the address, -1 when all begin after it. */
  #leafOf(page: number, address: bigint): number {
    let low = 0;
    let high = this.#leaves.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (isAtOrBefore(this.#leaves[middle]!.areas[0]!, page, address)) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }
}

function isAtOrBefore(area: Placed, page: number, address: bigint): boolean {
  return area.firstPage < page || (area.firstPage === page && area.first <= address);
}

/** The last area that begins at or before the address, -1 when all begin after it. */
function floor(areas: readonly Placed[], page: number, address: bigint): number {
  let low = 0;
  let high = areas.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (isAtOrBefore(areas[middle]!, page, address)) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
