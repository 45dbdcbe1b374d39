/**
 * The IOTLB: translations that an IOMMU unit has already walked.
 *
 * An entry may outlive the page-table entry it came from; that is the hardware's behaviour and the reason why unmap is not finished
 * before invalidation. Nothing here looks at a page table.
 *
 * Three direct-mapped arrays, one for each leaf size. What an entry belongs to is its *space*: one address space as hardware tells
 * them apart, by domain id (DID) and PASID. A space carries a tag; to forget a whole space is to give it another tag, so that
 * domain-selective invalidation costs nothing. A tag is not used twice before everything was forgotten.
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
const SMALL_SIZE = 4096;
const SIZES = [SMALL_SIZE, 1024, 256] as const;
const PAGES = [1, 512, 262144] as const;
/** Entries are counted by blocks of so many leaves, in so many buckets: what has none needs no search. */
const BLOCK = 512;
const BUCKETS = 1024;
/** Spreads spaces over the slots: the same page of two domains shall not fight for one. */
const SPREAD = 0x9e5;
/** The last tag that fits beside the attributes. */
const LAST_TAG = 2 ** 28 - 1;

class Level {
  readonly pages: number;
  readonly size: number;
  /** Of each entry the first page (-1: empty), and where that is physically. */
  readonly entries: Float64Array;
  /** Of each entry `tag * 8 + attributes`; 0: empty. */
  readonly owners: Int32Array;
  filled = false;
  /** How many entries lie in the blocks of each bucket. */
  readonly counts = new Uint16Array(BUCKETS);
  readonly blocksOfPage: number;
  /** All entries lie within, whoever's they are. */
  low = Infinity;
  high = -1;

  constructor(pages: number, size: number) {
    this.pages = pages;
    this.size = size;
    this.entries = new Float64Array(size * 2).fill(-1);
    this.owners = new Int32Array(size);
    this.blocksOfPage = 1 / (pages * BLOCK);
  }

  /** The slot of the leaf that contains `page`. */
  slot(tag: number, page: number): number {
    const lower = page & 0x3ffff;
    const upper = (page / 0x40000) | 0;
    const leaf = this.pages === 1 ? lower : this.pages === 512 ? (upper << 9) | (lower >>> 9) : upper;
    return (leaf ^ Math.imul(tag, SPREAD)) & (this.size - 1);
  }

  put(tag: number, leafFirst: number, physicalPage: number, attributes: number): void {
    const slot = this.slot(tag, leafFirst);
    const owner = this.owners[slot]!;
    if (owner !== 0) this.counts[this.bucket(owner >> 3, this.entries[slot * 2]!)]! -= 1;
    this.entries[slot * 2] = leafFirst;
    this.entries[slot * 2 + 1] = physicalPage;
    this.owners[slot] = (tag << 3) | attributes;
    this.counts[this.bucket(tag, leafFirst)]! += 1;
    this.filled = true;
    if (leafFirst < this.low) this.low = leafFirst;
    if (leafFirst > this.high) this.high = leafFirst;
  }

  clear(): void {
    this.entries.fill(-1);
    this.owners.fill(0);
    this.counts.fill(0);
    this.filled = false;
    this.low = Infinity;
    this.high = -1;
  }

  dropRange(tag: number, firstPage: number, lastPage: number): void {
    const { pages, counts } = this;
    const start = Math.max(firstPage - (firstPage % pages), this.low);
    const last = Math.min(lastPage, this.high);
    if (start > last) return;
    if (last - start < pages) {
      this.dropLeaves(tag, start, start, this.bucket(tag, start));
      return;
    }
    const blockPages = pages * BLOCK;
    const isSmall = (last - start) / pages < this.size;
    if (!isSmall && (last - start) / blockPages > BUCKETS) {
      this.dropAmong(tag, start, last);
      return;
    }
    for (let block = start - (start % blockPages); block <= last; block += blockPages) {
      const bucket = this.bucket(tag, block);
      if (counts[bucket] === 0) continue;
      if (!isSmall) {
        this.dropAmong(tag, start, last);
        return;
      }
      this.dropLeaves(tag, Math.max(start, block), Math.min(last, block + blockPages - 1), bucket);
    }
  }

  /** Leaf by leaf within one block. */
  dropLeaves(tag: number, start: number, last: number, bucket: number): void {
    const { owners, entries, counts, pages } = this;
    let left = counts[bucket]!;
    for (let page = start; page <= last && left > 0; page += pages) {
      const slot = this.slot(tag, page);
      if (entries[slot * 2] !== page || owners[slot]! >> 3 !== tag) continue;
      entries[slot * 2] = -1;
      owners[slot] = 0;
      left--;
    }
    counts[bucket] = left;
  }

  /** By a look at every slot. */
  dropAmong(tag: number, start: number, last: number): void {
    const { owners, entries, counts } = this;
    for (let slot = 0; slot < owners.length; slot++) {
      if (owners[slot]! >> 3 !== tag) continue;
      const page = entries[slot * 2]!;
      if (page < start || page > last) continue;
      counts[this.bucket(tag, page)]! -= 1;
      entries[slot * 2] = -1;
      owners[slot] = 0;
    }
  }

  /** Of the block of a leaf. Multiplied, or blocks at round addresses would all share a few. */
  bucket(tag: number, leafFirst: number): number {
    return Math.imul((leafFirst * this.blocksOfPage) ^ Math.imul(tag, SPREAD), 0x9e3779b1) >>> 22;
  }
}

export class Iotlb {
  readonly #levels = PAGES.map((pages, level) => new Level(pages, SIZES[level]!));
  /** Of the 4 KiB level, at hand; no private names, which cost a hit a third of its time. */
  readonly small = this.#levels[0]!.entries;
  readonly smallOwners = this.#levels[0]!.owners;
  readonly #spaces = new Map<number, IotlbSpace[]>();
  readonly #byTag = new Map<number, IotlbSpace>();
  readonly #lastTag: number;
  #nextTag = 1;
  /** Of the last hit: READ, WRITE, SNOOPED. */
  attributes = 0;

  constructor(lastTag = LAST_TAG) {
    this.#lastTag = lastTag;
  }

  /** The space of a domain id and PASID (-1: none). */
  space(did: number, pasid: number): IotlbSpace {
    const list = this.#spaces.get(did) ?? [];
    const known = list.find((space) => space.pasid === pasid);
    if (known !== undefined) return known;
    const space = { did, pasid, tag: this.#newTag() };
    list.push(space);
    this.#spaces.set(did, list);
    this.#byTag.set(space.tag, space);
    return space;
  }

  /** The physical page, or -1 when no entry that allows `access` is there. */
  lookup(tag: number, page: number, access: number): number {
    const entries = this.small;
    const slot = (page ^ Math.imul(tag, SPREAD)) & (SMALL_SIZE - 1);
    if (entries[slot * 2] === page) {
      const owner = this.smallOwners[slot]!;
      // Tag and access in one comparison: the tag's bits are equal, and those of the access are there.
      if (((owner ^ (tag << 3)) & (access | -8)) === access) {
        this.attributes = owner & 7;
        return entries[slot * 2 + 1]!;
      }
    }
    return this.lookupLarge(tag, page, access);
  }

  /** `lookup` among the large leaves. */
  lookupLarge(tag: number, page: number, access: number): number {
    const middle = this.#levels[1]!;
    if (middle.filled) {
      const found = this.#large(middle, tag, page, page - (page & 511), access);
      if (found >= 0) return found;
    }
    const largest = this.#levels[2]!;
    return largest.filled ? this.#large(largest, tag, page, page - (page & 0x3ffff), access) : -1;
  }

  /** Pages from `page` on that the entry for it covers, 1 when there is none: physical neighbours, with the same access. */
  reach(tag: number, page: number, access: number): number {
    const slot = (page ^ Math.imul(tag, SPREAD)) & (SMALL_SIZE - 1);
    if (this.small[slot * 2] === page && this.smallOwners[slot]! >> 3 === tag) return 1;
    for (const level of this.#levels) {
      if (level.pages === 1 || !level.filled) continue;
      const within = level.pages === 512 ? page & 511 : page & 0x3ffff;
      if (this.#large(level, tag, page, page - within, access) >= 0) return level.pages - within;
    }
    return 1;
  }

  #large(level: Level, tag: number, page: number, firstPage: number, access: number): number {
    const slot = level.slot(tag, firstPage);
    if (level.entries[slot * 2] !== firstPage) return -1;
    const owner = level.owners[slot]!;
    if (owner >> 3 !== tag || (owner & access) !== access) return -1;
    this.attributes = owner & 7;
    return level.entries[slot * 2 + 1]! + (page - firstPage);
  }

  /** Remembers that `page` is at `physicalPage` by a leaf of `level`. */
  fill(tag: number, page: number, physicalPage: number, level: number, attributes: number): void {
    const within = level === 0 ? 0 : level === 1 ? page & 511 : page & 0x3ffff;
    this.#levels[level]!.put(tag, page - within, physicalPage - within, attributes);
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
    for (const level of this.#levels) level.clear();
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
        const owner = level.owners[slot]!;
        const firstPage = level.entries[slot * 2]!;
        const space = this.#byTag.get(owner >> 3);
        if (firstPage === -1 || space === undefined) continue;
        const physicalPage = level.entries[slot * 2 + 1]!;
        const { did, pasid } = space;
        yield { did, pasid, firstPage, pages: level.pages, physicalPage, attributes: owner & 7 };
      }
    }
  }

  #retag(space: IotlbSpace): void {
    const tag = this.#newTag();
    this.#byTag.delete(space.tag);
    space.tag = tag;
    this.#byTag.set(tag, space);
  }

  /** A tag that no entry has. When there is none left, everything is forgotten and counting starts again. */
  #newTag(): number {
    if (this.#nextTag > this.#lastTag) {
      this.invalidateAll();
      this.#nextTag = 1;
      this.#byTag.clear();
      for (const space of [...this.#spaces.values()].flat()) {
        space.tag = this.#nextTag++;
        this.#byTag.set(space.tag, space);
      }
    }
    return this.#nextTag++;
  }
}
