/**
 * The physical address space of one machine: which backing answers at which host physical page (HPA).
 *
 * The space is cut into blocks of 1 GiB (2^18 pages). User memory that a program has pinned gets whole blocks, one for each
 * gigabyte of its address space, so that pages that are neighbours in the program are neighbours here and can be mapped by large
 * leaves. Device memory (MMIO) lives below the first of these blocks and is looked up by range; a window may span gigabytes.
 */
import type { Backing } from './backing.ts';

export const BLOCK_PAGES = 2 ** 18;
const FIRST_RAM_BLOCK = 64; // 64 GiB: everything below is left to firmware-like windows and MMIO

interface Window {
  firstPage: number;
  pages: number;
  backing: Backing;
}

export class PhysicalMemory {
  /** Pieces of 2 MiB with pinned pages, of all programs: kept by whoever pins, for a bound over all of them. */
  pinLeaves = 0;
  /** Whoever keeps copies of memory, as caches of processors do: told of a device's access before it happens, unless it goes past the caches. */
  snoop: ((page: number, offset: number, length: number) => void) | undefined;
  readonly #blocks = new Map<number, Backing>();
  readonly #windows = new Map<number, Window[]>();
  readonly #freeBlocks: number[] = [];
  #nextBlock = FIRST_RAM_BLOCK;

  /** Takes a free block of 1 GiB for `backing` and returns its first page. Byte 0 of the backing is byte 0 of the block. */
  addBlock(backing: Backing): number {
    const block = this.#freeBlocks.pop() ?? this.#nextBlock++;
    this.#blocks.set(block, backing);
    return block * BLOCK_PAGES;
  }

  /** Gives back the block that starts at `firstPage`. Nobody may hold a translation to it any more. */
  removeBlock(firstPage: number): void {
    const block = Math.floor(firstPage / BLOCK_PAGES);
    if (!this.#blocks.delete(block)) throw new Error(`Block at page ${firstPage} is not in use`);
    this.#freeBlocks.push(block);
  }

  /** Puts `backing` at a fixed range, as a BAR or a firmware window. */
  addWindow(firstPage: number, pages: number, backing: Backing): void {
    if (!this.isFree(firstPage, pages))
      throw new Error(`Window at page 0x${firstPage.toString(16)} overlaps another one`);
    const window = { firstPage, pages, backing };
    for (let block = Math.floor(firstPage / BLOCK_PAGES); block * BLOCK_PAGES < firstPage + pages; block++) {
      const list = this.#windows.get(block);
      if (list === undefined) this.#windows.set(block, [window]);
      else list.push(window);
    }
  }

  /** Whether no window answers anywhere in the range. */
  isFree(firstPage: number, pages: number): boolean {
    for (let block = Math.floor(firstPage / BLOCK_PAGES); block * BLOCK_PAGES < firstPage + pages; block++) {
      for (const other of this.#windows.get(block) ?? []) {
        if (firstPage < other.firstPage + other.pages && other.firstPage < firstPage + pages) return false;
      }
    }
    return true;
  }

  removeWindow(firstPage: number): void {
    const window = this.#window(Math.floor(firstPage / BLOCK_PAGES), firstPage);
    if (window?.firstPage !== firstPage) throw new Error(`No window at page 0x${firstPage.toString(16)}`);
    for (let block = Math.floor(firstPage / BLOCK_PAGES); block * BLOCK_PAGES < firstPage + window.pages; block++) {
      const list = this.#windows.get(block)!;
      list.splice(list.indexOf(window), 1);
      if (list.length === 0) this.#windows.delete(block);
    }
  }

  /** Reads physically contiguous bytes. False: nothing answers there, or its memory has gone. */
  read(page: number, offset: number, into: Uint8Array): boolean {
    const block = Math.floor(page / BLOCK_PAGES);
    const backing = this.#blocks.get(block);
    if (backing !== undefined) {
      const at = (page - block * BLOCK_PAGES) * 4096 + offset;
      const room = BLOCK_PAGES * 4096 - at;
      if (into.length <= room) return backing.read(at, into);
      return backing.read(at, into.subarray(0, room)) && this.read((block + 1) * BLOCK_PAGES, 0, into.subarray(room));
    }
    const window = this.#window(block, page);
    if (window === undefined) return false;
    const at = (page - window.firstPage) * 4096 + offset;
    const room = window.pages * 4096 - at;
    if (into.length <= room) return window.backing.read(at, into);
    return (
      window.backing.read(at, into.subarray(0, room)) &&
      this.read(window.firstPage + window.pages, 0, into.subarray(room))
    );
  }

  /** Physically contiguous bytes themselves, to be read at once; undefined: they can only be copied. */
  direct(page: number, offset: number, length: number): Uint8Array | undefined {
    const block = Math.floor(page / BLOCK_PAGES);
    const at = (page - block * BLOCK_PAGES) * 4096 + offset;
    if (at + length > BLOCK_PAGES * 4096) return undefined;
    return this.#blocks.get(block)?.direct?.(at, length);
  }

  /** Writes physically contiguous bytes. False: nothing answers there, or its memory has gone. */
  write(page: number, offset: number, from: Uint8Array): boolean {
    const block = Math.floor(page / BLOCK_PAGES);
    const backing = this.#blocks.get(block);
    if (backing !== undefined) {
      const at = (page - block * BLOCK_PAGES) * 4096 + offset;
      const room = BLOCK_PAGES * 4096 - at;
      if (from.length <= room) return backing.write(at, from);
      return backing.write(at, from.subarray(0, room)) && this.write((block + 1) * BLOCK_PAGES, 0, from.subarray(room));
    }
    const window = this.#window(block, page);
    if (window === undefined) return false;
    const at = (page - window.firstPage) * 4096 + offset;
    const room = window.pages * 4096 - at;
    if (from.length <= room) return window.backing.write(at, from);
    return (
      window.backing.write(at, from.subarray(0, room)) &&
      this.write(window.firstPage + window.pages, 0, from.subarray(room))
    );
  }

  /** Blocks in use: 0 when every program has gone and everything was unpinned. */
  get blocks(): number {
    return this.#blocks.size;
  }

  #window(block: number, page: number): Window | undefined {
    const list = this.#windows.get(block);
    if (list === undefined) return undefined;
    for (const window of list) {
      if (page >= window.firstPage && page < window.firstPage + window.pages) return window;
    }
    return undefined;
  }
}
