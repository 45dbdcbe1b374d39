/**
 * The IOTLB: translations that an IOMMU unit has already walked.
 *
 * An entry may outlive the page-table entry it came from; that is the hardware's behaviour and the reason why unmap is not finished
 * before invalidation. Nothing here looks at a page table.
 *
 * Three direct-mapped arrays, one for each leaf size. What an entry belongs to is its *space*: one address space as hardware tells
 * them apart, by domain id (DID) and PASID. A space carries a tag; to forget a whole space is to give it another tag, so that
 * domain-selective and global invalidation cost nothing. Tags are never used twice.
 */

/** An address space: whoever translates asks with its current `tag`. */
export interface IotlbSpace {
  readonly did: number;
  /** -1: requests without PASID. */
  readonly pasid: number;
  tag: number;
}

/** A live entry, for the inspector. */
export interface IotlbEntry {
  readonly did: number;
  readonly pasid: number;
  readonly firstPage: number;
  readonly pages: number;
  readonly physicalPage: number;
  readonly attributes: number;
}

/** What an entry allows: READ 1, WRITE 2, and whether no-snoop requests are made coherent. */
export const SNOOPED = 4;

/** Entries of each level's array; powers of two. */
const SIZES = [4096, 1024, 256] as const;
const PAGES = [1, 512, 262144] as const;
/** Numbers of an entry: first page, space tag, physical page of the first page, (unused). */
const WIDTH = 4;

class Level {
  readonly pages: number;
  readonly size: number;
  readonly entries: Float64Array;
  readonly attributes: Uint8Array;
  filled = false;

  constructor(pages: number, size: number) {
    this.pages = pages;
    this.size = size;
    this.entries = new Float64Array(size * WIDTH).fill(-1);
    this.attributes = new Uint8Array(size);
  }

  /** The slot of the leaf that contains `page`. */
  slot(tag: number, page: number): number {
    const lower = page & 0x3ffff;
    const upper = (page / 0x40000) | 0;
    const leaf = this.pages === 1 ? lower : this.pages === 512 ? (upper << 9) | (lower >>> 9) : upper;
    return (leaf ^ Math.imul(tag, 0x9e5)) & (this.size - 1);
  }

  drop(tag: number, leafFirst: number): void {
    const at = this.slot(tag, leafFirst) * WIDTH;
    if (this.entries[at] === leafFirst && this.entries[at + 1] === tag) this.entries[at] = -1;
  }

  dropRange(tag: number, first: number, last: number): void {
    if (!this.filled) return;
    const start = first - (first % this.pages);
    if ((last - start) / this.pages < this.size) {
      for (let page = start; page <= last; page += this.pages) this.drop(tag, page);
      return;
    }
    for (let at = 0; at < this.entries.length; at += WIDTH) {
      const page = this.entries[at]!;
      if (this.entries[at + 1] === tag && page >= start && page <= last) this.entries[at] = -1;
    }
  }
}

export class Iotlb {
  readonly #levels = PAGES.map((pages, level) => new Level(pages, SIZES[level]!));
  readonly #small = this.#levels[0]!.entries;
  readonly #smallAttributes = this.#levels[0]!.attributes;
  readonly #spaces = new Map<number, IotlbSpace[]>();
  readonly #byTag = new Map<number, IotlbSpace>();
  #nextTag = 1;
  /** Of the last hit: READ, WRITE, SNOOPED. */
  attributes = 0;

  /** The space of a domain id and PASID (-1: none). */
  space(did: number, pasid: number): IotlbSpace {
    const list = this.#spaces.get(did) ?? [];
    const known = list.find((space) => space.pasid === pasid);
    if (known !== undefined) return known;
    const space = { did, pasid, tag: this.#nextTag++ };
    list.push(space);
    this.#spaces.set(did, list);
    this.#byTag.set(space.tag, space);
    return space;
  }

  /** The physical page, or -1 when no entry that allows `access` is there. */
  lookup(tag: number, page: number, access: number): number {
    const entries = this.#small;
    const slot = (page ^ Math.imul(tag, 0x9e5)) & (4096 - 1);
    const at = slot * WIDTH;
    if (entries[at] === page && entries[at + 1] === tag) {
      const attributes = this.#smallAttributes[slot]!;
      if ((attributes & access) === access) {
        this.attributes = attributes;
        return entries[at + 2]!;
      }
      return -1;
    }
    const middle = this.#levels[1]!;
    if (middle.filled) {
      const found = this.#large(middle, tag, page, page - (page & 511), access);
      if (found >= 0) return found;
    }
    const largest = this.#levels[2]!;
    return largest.filled ? this.#large(largest, tag, page, page - (page & 0x3ffff), access) : -1;
  }

  #large(level: Level, tag: number, page: number, firstPage: number, access: number): number {
    const slot = level.slot(tag, firstPage);
    const at = slot * WIDTH;
    if (level.entries[at] !== firstPage || level.entries[at + 1] !== tag) return -1;
    const attributes = level.attributes[slot]!;
    if ((attributes & access) !== access) return -1;
    this.attributes = attributes;
    return level.entries[at + 2]! + (page - firstPage);
  }

  /** Remembers that `page` is at `physicalPage` by a leaf of `level`. */
  fill(tag: number, page: number, physicalPage: number, level: number, attributes: number): void {
    const target = this.#levels[level]!;
    const within = level === 0 ? 0 : level === 1 ? page & 511 : page & 0x3ffff;
    const slot = target.slot(tag, page);
    const at = slot * WIDTH;
    target.entries[at] = page - within;
    target.entries[at + 1] = tag;
    target.entries[at + 2] = physicalPage - within;
    target.attributes[slot] = attributes;
    target.filled = true;
  }

  /** Forgets what is cached for the pages `[first, last]` of a domain; with `pasid` undefined, of all its spaces. */
  invalidatePages(did: number, pasid: number | undefined, first: number, last: number): void {
    for (const space of this.#spaces.get(did) ?? []) {
      if (pasid !== undefined && space.pasid !== pasid) continue;
      for (const level of this.#levels) level.dropRange(space.tag, first, last);
    }
  }

  /** Forgets everything of a domain; with `pasid`, of that space only. */
  invalidateDomain(did: number, pasid?: number): void {
    for (const space of this.#spaces.get(did) ?? []) {
      if (pasid === undefined || space.pasid === pasid) this.#retag(space);
    }
  }

  invalidateAll(): void {
    for (const level of this.#levels) {
      level.entries.fill(-1);
      level.filled = false;
    }
  }

  /** The domain id is not used any more; its spaces are gone. */
  forget(did: number): void {
    for (const space of this.#spaces.get(did) ?? []) this.#byTag.delete(space.tag);
    this.#spaces.delete(did);
  }

  /** Entries that can still be hit. */
  *entries(): IterableIterator<IotlbEntry> {
    for (const level of this.#levels) {
      for (let slot = 0; slot < level.size; slot++) {
        const at = slot * WIDTH;
        const space = this.#byTag.get(level.entries[at + 1]!);
        if (level.entries[at] === -1 || space === undefined) continue;
        yield {
          did: space.did,
          pasid: space.pasid,
          firstPage: level.entries[at]!,
          pages: level.pages,
          physicalPage: level.entries[at + 2]!,
          attributes: level.attributes[slot]!,
        };
      }
    }
  }

  #retag(space: IotlbSpace): void {
    this.#byTag.delete(space.tag);
    space.tag = this.#nextTag++;
    this.#byTag.set(space.tag, space);
  }
}
