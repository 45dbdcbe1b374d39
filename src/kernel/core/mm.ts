/**
 * A program's address space and the pages of it that are pinned.
 *
 * Every gigabyte of the address space that has a pinned page owns a block of physical memory (hw/memory), so the physical page of
 * a virtual page is fixed while anything of its gigabyte is pinned, neighbours stay neighbours, and 2 MiB and 1 GiB leaves can be
 * used. Pins are counted for each page, as the kernel counts them: a page pinned by four maps has four pins.
 *
 * Nothing is pinned in reality: memory that the program unmaps below a mapping is gone, and DMA to it faults.
 */

import type { Backing } from '../../hw/memory/backing.ts';
import { BLOCK_PAGES, type PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { Errno } from '../../lib/errno.ts';
import type { UserMemory, Vma } from './user-memory.ts';

const LEAF_PAGES = 512;
/** Pin counts for 256 GiB, which take 256 MiB: a program that may lock without limit shall not use up the box's own memory. */
const MOST_PIN_LEAVES = 131_072;
/** Leaves of chunks that went, which are all zero then: programs that map and unmap one buffer over and over need no new ones. */
const spareLeaves: Uint32Array[] = [];
const SPARE_LEAVES = 64;

/** A gigabyte of one address space: its physical block and how often each page is pinned. */
class Chunk {
  readonly firstPage: number;
  readonly leaves = new Map<number, Uint32Array>();
  pins = 0;

  constructor(firstPage: number) {
    this.firstPage = firstPage;
  }
}

/** Physically contiguous pages: `count` from `firstPage`. */
export interface Run {
  readonly firstPage: number;
  readonly count: number;
}

/** Adds pages to a list of runs, joined with the last one where they continue it. */
function append(runs: Run[], firstPage: number, count: number): void {
  const last = runs[runs.length - 1];
  if (last !== undefined && last.firstPage + last.count === firstPage) {
    runs[runs.length - 1] = { firstPage: last.firstPage, count: last.count + count };
  } else runs.push({ firstPage, count });
}

export class Mm {
  readonly memory: UserMemory;
  readonly #physical: PhysicalMemory;
  readonly #chunks = new Map<number, Chunk>();
  /** Pages that count against RLIMIT_MEMLOCK (VmLck/VmPin of the kernel). */
  lockedPages = 0;
  /** Pages that iommufd has pinned for programs of this address space (VmPin), counted against nothing. */
  pinnedPages = 0;

  constructor(memory: UserMemory, physical: PhysicalMemory) {
    this.memory = memory;
    this.#physical = physical;
  }

  /**
   * How far `[address, address + length)` is mapped and readable (and writable): its mappings in order, the byte at which that ends,
   * and why it ends before the range does.
   */
  survey(address: number, length: number, isWrite: boolean): { vmas: Vma[]; end: number; why: string | undefined } {
    const vmas: Vma[] = [];
    let at = address;
    const end = address + length;
    let why: string | undefined;
    while (at < end) {
      const vma = at < 2 ** 47 ? this.memory.vma(at) : undefined;
      if (vma === undefined) why = `nothing is mapped at 0x${at.toString(16)}`;
      else if (vma.device === undefined && (isWrite ? !vma.writable : !vma.readable)) {
        why = `the memory at 0x${at.toString(16)} is not ${isWrite ? 'writable' : 'readable'}`;
      }
      if (vma === undefined || why !== undefined) break;
      vmas.push(vma);
      at = vma.end;
    }
    return { vmas, end: Math.min(at, end), why };
  }

  /**
   * Checks that `[address, address + length)` is mapped and readable (and writable), as get_user_pages does. Returns its mappings
   * in order. EFAULT.
   */
  check(address: number, length: number, isWrite: boolean): Vma[] {
    const { vmas, why } = this.survey(address, length, isWrite);
    if (why !== undefined) throw new Errno('EFAULT', why);
    return vmas;
  }

  /**
   * Pins `count` pages from virtual page `page` and returns where they are physically. The caller has checked them. ENOMEM: more than
   * the machine has; nothing is pinned then.
   */
  pin(page: number, count: number): Run[] {
    const leaves = Math.ceil(count / LEAF_PAGES) + 1;
    if (this.#physical.pinLeaves + leaves > MOST_PIN_LEAVES) {
      throw new Errno(
        'ENOMEM',
        `${count} pages more cannot be pinned: the machine takes ${MOST_PIN_LEAVES / 512} GiB in all`,
      );
    }
    const runs: Run[] = [];
    let left = count;
    let at = page;
    while (left > 0) {
      const index = Math.floor(at / BLOCK_PAGES);
      const chunk = this.#chunks.get(index) ?? this.#newChunk(index);
      const within = at - index * BLOCK_PAGES;
      const part = Math.min(left, BLOCK_PAGES - within);
      this.#count(chunk, within, part, 1);
      append(runs, chunk.firstPage + within, part);
      at += part;
      left -= part;
    }
    return runs;
  }

  /** Takes back one pin of each page. */
  unpin(page: number, count: number): void {
    let left = count;
    let at = page;
    while (left > 0) {
      const index = Math.floor(at / BLOCK_PAGES);
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) throw new Error(`Page 0x${at.toString(16)} is not pinned`);
      const within = at - index * BLOCK_PAGES;
      const part = Math.min(left, BLOCK_PAGES - within);
      this.#count(chunk, within, part, -1);
      if (chunk.pins === 0) {
        this.#chunks.delete(index);
        this.#physical.pinLeaves -= chunk.leaves.size;
        for (const leaf of chunk.leaves.values()) if (spareLeaves.length < SPARE_LEAVES) spareLeaves.push(leaf);
        this.#physical.removeBlock(chunk.firstPage);
      }
      at += part;
      left -= part;
    }
  }

  /** Where pinned pages are physically. */
  runs(page: number, count: number): Run[] {
    const runs: Run[] = [];
    let left = count;
    let at = page;
    while (left > 0) {
      const index = Math.floor(at / BLOCK_PAGES);
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) throw new Error(`Page 0x${at.toString(16)} is not pinned`);
      const within = at - index * BLOCK_PAGES;
      const part = Math.min(left, BLOCK_PAGES - within);
      append(runs, chunk.firstPage + within, part);
      at += part;
      left -= part;
    }
    return runs;
  }

  /** How often one page is pinned. */
  pinsOf(page: number): number {
    const index = Math.floor(page / BLOCK_PAGES);
    const within = page - index * BLOCK_PAGES;
    return this.#chunks.get(index)?.leaves.get(within >>> 9)?.[within & (LEAF_PAGES - 1)] ?? 0;
  }

  /** The physical page of a virtual page that is pinned, -1 otherwise. */
  physicalOf(page: number): number {
    const index = Math.floor(page / BLOCK_PAGES);
    const chunk = this.#chunks.get(index);
    return chunk === undefined ? -1 : chunk.firstPage + (page - index * BLOCK_PAGES);
  }

  /** Pins of all pages together: 0 when nothing is left behind. */
  get pins(): number {
    let sum = 0;
    for (const chunk of this.#chunks.values()) sum += chunk.pins;
    return sum;
  }

  #newChunk(index: number): Chunk {
    const base = index * BLOCK_PAGES * 4096;
    const memory = this.memory;
    const backing: Backing = {
      read: (offset, into) => memory.read(base + offset, into),
      write: (offset, from) => memory.write(base + offset, from),
      direct: (offset, length) => memory.direct?.(base + offset, length),
    };
    const chunk = new Chunk(this.#physical.addBlock(backing));
    this.#chunks.set(index, chunk);
    return chunk;
  }

  #count(chunk: Chunk, first: number, count: number, delta: 1 | -1): void {
    let at = first;
    const end = first + count;
    while (at < end) {
      const index = at >>> 9;
      const stop = Math.min(end, (index + 1) * LEAF_PAGES);
      let leaf = chunk.leaves.get(index);
      if (leaf === undefined) {
        leaf = spareLeaves.pop() ?? new Uint32Array(LEAF_PAGES);
        chunk.leaves.set(index, leaf);
        this.#physical.pinLeaves++;
      }
      for (; at < stop; at++) {
        const slot = at & (LEAF_PAGES - 1);
        if (delta < 0 && leaf[slot] === 0) throw new Error(`Page ${slot} of leaf ${index} is unpinned too often`);
        leaf[slot] = leaf[slot]! + delta;
      }
    }
    chunk.pins += delta * count;
  }
}
