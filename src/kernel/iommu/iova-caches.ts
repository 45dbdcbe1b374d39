/**
 * Magazines of freed IOVA ranges ("Magazines and Vmem", Bonwick and Adams, USENIX 2001), as the kernel has them before its tree.
 *
 * For each size of 1, 2, 4 … 32 pages every CPU has two magazines of 127 ranges; full ones go to the depot of that size, from which
 * empty-handed CPUs take. The depot is trimmed by one magazine every 100 ms while it has more than there are CPUs.
 */
import type { Clock } from '../../hw/pci/clock.ts';

/** Ranges of more pages are not cached. */
export const LARGEST_CACHED = 32;
const SIZES = 6;
const CAPACITY = 127;
const TRIM_NANOSECONDS = 100_000_000;

class Magazine {
  readonly pages = new Float64Array(CAPACITY);
  size = 0;

  /** The newest page that is not above `highest`, 0 when there is none. */
  pop(highest: number): number {
    const { pages } = this;
    for (let i = this.size - 1; i >= 0; i--) {
      const page = pages[i]!;
      if (page > highest) continue;
      pages[i] = pages[--this.size]!;
      return page;
    }
    return 0;
  }
}

interface CpuCache {
  loaded: Magazine;
  prev: Magazine;
}

interface Depot {
  readonly magazines: Magazine[];
  isTrimming: boolean;
}

export class IovaCaches {
  readonly #cpus: number;
  readonly #clock: Clock | undefined;
  /** Gives a range back for good. */
  readonly #drop: (page: number) => void;
  /** By order and CPU: `order * cpus + cpu`. */
  readonly #caches: CpuCache[];
  /** By order. */
  readonly #depots: Depot[];

  /** Without a clock the depots are not trimmed. */
  constructor(cpus: number, clock: Clock | undefined, drop: (page: number) => void) {
    this.#cpus = cpus;
    this.#clock = clock;
    this.#drop = drop;
    this.#caches = Array.from({ length: SIZES * cpus }, () => ({ loaded: new Magazine(), prev: new Magazine() }));
    this.#depots = Array.from({ length: SIZES }, () => ({ magazines: [], isTrimming: false }));
  }

  /** A freed range of 2^order pages that ends at or below `limitPage`, 0 when this CPU has none at hand. */
  get(order: number, limitPage: number, cpu: number): number {
    const cache = this.#caches[order * this.#cpus + cpu]!;
    if (cache.loaded.size === 0 && !this.#reload(cache, order)) return 0;
    const { loaded } = cache;
    const page = loaded.pages[loaded.size - 1]!;
    if (page <= limitPage + 1 - (1 << order)) {
      loaded.size--;
      return page;
    }
    return loaded.pop(limitPage + 1 - (1 << order));
  }

  put(order: number, page: number, cpu: number): void {
    const cache = this.#caches[order * this.#cpus + cpu]!;
    if (cache.loaded.size === CAPACITY) this.#unload(cache, order);
    const { loaded } = cache;
    loaded.pages[loaded.size++] = page;
  }

  /** Another magazine that is not empty. False: there is none. */
  #reload(cache: CpuCache, order: number): boolean {
    const { loaded, prev } = cache;
    if (prev.size > 0) {
      cache.loaded = prev;
      cache.prev = loaded;
      return true;
    }
    const full = this.#depots[order]!.magazines.pop();
    if (full === undefined) return false;
    cache.loaded = full;
    return true;
  }

  /** Another magazine that is not full. */
  #unload(cache: CpuCache, order: number): void {
    const { loaded, prev } = cache;
    if (prev.size < CAPACITY) {
      cache.loaded = prev;
      cache.prev = loaded;
      return;
    }
    const depot = this.#depots[order]!;
    depot.magazines.push(loaded);
    cache.loaded = new Magazine();
    this.#trimLater(depot);
  }

  /** Gives back all that is cached. */
  flush(): void {
    for (const { loaded, prev } of this.#caches) {
      this.#empty(loaded);
      this.#empty(prev);
    }
    for (const { magazines } of this.#depots) {
      for (const magazine of magazines.splice(0)) this.#empty(magazine);
    }
  }

  /** Ranges that are cached. */
  get count(): number {
    let sum = 0;
    for (const { loaded, prev } of this.#caches) sum += loaded.size + prev.size;
    for (const { magazines } of this.#depots) for (const { size } of magazines) sum += size;
    return sum;
  }

  #empty(magazine: Magazine): void {
    for (let i = 0; i < magazine.size; i++) this.#drop(magazine.pages[i]!);
    magazine.size = 0;
  }

  #trimLater(depot: Depot): void {
    if (depot.isTrimming || this.#clock === undefined) return;
    depot.isTrimming = true;
    this.#clock.after(TRIM_NANOSECONDS, () => {
      depot.isTrimming = false;
      if (depot.magazines.length <= this.#cpus) return;
      this.#empty(depot.magazines.pop()!);
      this.#trimLater(depot);
    });
  }
}
