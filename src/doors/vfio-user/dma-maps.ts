/**
 * The client's DMA map as the server holds it: which IOVAs are there and what lies behind each.
 *
 * Sorted by address in one array with binary search; the last hit is tried first. Addresses are page numbers.
 */

/** What lies behind a map. False: it cannot be reached any more. Offsets count from the start of the map. */
export interface MapBacking {
  read(offset: number, into: Uint8Array): boolean;
  write(offset: number, from: Uint8Array): boolean;
  /** The bytes themselves, to be read at once; undefined or absent: they can only be copied. */
  direct?(offset: number, length: number): Uint8Array | undefined;
  close(): void;
}

export interface DmaMap {
  readonly firstPage: number;
  readonly count: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Page of the server's own address space at which it is mapped. */
  readonly vaPage: number;
  readonly backing: MapBacking;
  /** Whether the IOMMU has it: not before the device first reaches for it. */
  isMapped: boolean;
}

/** What a range of DMA_UNMAP meets. */
export type RangeMeets = { readonly kind: 'nothing' | 'cut' } | { readonly kind: 'whole'; readonly maps: DmaMap[] };

export class DmaMaps {
  #maps: DmaMap[] = [];

  get count(): number {
    return this.#maps.length;
  }

  all(): readonly DmaMap[] {
    return this.#maps;
  }

  /** Index of the first map that ends behind `page`. */
  #indexOf(page: number): number {
    let low = 0;
    let high = this.#maps.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const map = this.#maps[middle]!;
      if (map.firstPage + map.count <= page) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  find(page: number): DmaMap | undefined {
    const map = this.#maps[this.#indexOf(page)];
    return map !== undefined && map.firstPage <= page ? map : undefined;
  }

  /** Whether any map has a page of the range. */
  overlaps(firstPage: number, count: number): boolean {
    const map = this.#maps[this.#indexOf(firstPage)];
    return map !== undefined && map.firstPage < firstPage + count;
  }

  /** The caller has made sure that it overlaps none. */
  insert(map: DmaMap): void {
    this.#maps.splice(this.#indexOf(map.firstPage), 0, map);
  }

  remove(map: DmaMap): void {
    const index = this.#indexOf(map.firstPage);
    if (this.#maps[index] === map) this.#maps.splice(index, 1);
  }

  clear(): void {
    this.#maps = [];
  }

  /** The maps within `count` pages from `firstPage`; `cut`: one of them is only partly within. */
  meets(firstPage: number, count: number): RangeMeets {
    const maps: DmaMap[] = [];
    const end = firstPage + count;
    for (let i = this.#indexOf(firstPage); i < this.#maps.length; i++) {
      const map = this.#maps[i]!;
      if (map.firstPage >= end) break;
      if (map.firstPage < firstPage || map.firstPage + map.count > end) return { kind: 'cut' };
      maps.push(map);
    }
    return maps.length === 0 ? { kind: 'nothing' } : { kind: 'whole', maps };
  }
}
