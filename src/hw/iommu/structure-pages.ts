/**
 * The memory in which a unit's own structures lie: root and context tables, PASID directories and tables, queues. Real pages of the
 * machine, from 4 GiB on; what an entry says of them is their true address.
 */
import { Errno } from '../../lib/errno.ts';

/** Page number of the first of them. */
export const FIRST_STRUCTURE_PAGE = 0x10_0000;
const PAGE_WORDS = 1024;
const LARGEST = 2 ** 16;

export class StructurePages {
  /** 32-bit words; replaced when it grows. */
  words = new Int32Array(4 * PAGE_WORDS);
  #next = 0;
  readonly #free = new Map<number, number[]>();

  /** Pages ever used. */
  get count(): number {
    return this.#next;
  }

  /** `count` neighbouring pages of zeros; returns the page number of the first. ENOMEM. */
  allocate(count = 1): number {
    const freed = this.#free.get(count)?.pop();
    if (freed !== undefined) return freed;
    const start = this.#next;
    if (start + count > LARGEST) throw new Errno('ENOMEM', `all ${LARGEST} pages for IOMMU structures are in use`);
    this.#next += count;
    if (this.#next * PAGE_WORDS > this.words.length) {
      const words = new Int32Array(Math.max(this.words.length * 2, this.#next * PAGE_WORDS));
      words.set(this.words);
      this.words = words;
    }
    return FIRST_STRUCTURE_PAGE + start;
  }

  free(page: number, count = 1): void {
    const first = (page - FIRST_STRUCTURE_PAGE) * PAGE_WORDS;
    this.words.fill(0, first, first + count * PAGE_WORDS);
    const list = this.#free.get(count);
    if (list === undefined) this.#free.set(count, [page]);
    else list.push(page);
  }
}
