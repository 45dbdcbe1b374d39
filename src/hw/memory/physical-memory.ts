/**
 * The physical address space of one machine: which backing answers at which host physical page (HPA).
 *
 * The space is cut into blocks of 1 GiB (2^18 pages). User memory that a program has pinned gets whole blocks, one for each
 * gigabyte of its address space, so that pages that are neighbours in the program are neighbours here and can be mapped by large
 * leaves. Device memory (MMIO) lives in blocks below 4 GiB and is looked up by range.
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

  /** Puts `backing` at a fixed range, as a BAR or a firmware window. The range may not cross a gigabyte. */
  addWindow(firstPage: number, pages: number, backing: Backing): void {
    const block = Math.floor(firstPage / BLOCK_PAGES);
    const list = this.#windows.get(block) ?? [];
    for (const other of list) {
      if (firstPage < other.firstPage + other.pages && other.firstPage < firstPage + pages) {
        throw new Error(`Window at page 0x${firstPage.toString(16)} overlaps another one`);
      }
    }
    list.push({ firstPage, pages, backing });
    this.#windows.set(block, list);
  }

  removeWindow(firstPage: number): void {
    const block = Math.floor(firstPage / BLOCK_PAGES);
    const list = this.#windows.get(block) ?? [];
    const at = list.findIndex((window) => window.firstPage === firstPage);
    if (at < 0) throw new Error(`No window at page 0x${firstPage.toString(16)}`);
    list.splice(at, 1);
  }

  /** Reads physically contiguous bytes. False: nothing answers there, or its memory has gone. */
  read(page: number, offset: number, into: Uint8Array): boolean {
    const block = Math.floor(page / BLOCK_PAGES);
    const backing = this.#blocks.get(block);
    if (backing !== undefined) {
      const at = (page - block * BLOCK_PAGES) * 4096 + offset;
      const room = BLOCK_PAGES * 4096 - at;
      if (into.length <= room) return backing.read(at, into);
      return (
        backing.read(at, into.subarray(0, room)) && this.read((block + 1) * BLOCK_PAGES, 0, into.subarray(room))
      );
    }
    const window = this.#window(block, page);
    return window?.backing.read((page - window.firstPage) * 4096 + offset, into) ?? false;
  }

  /** Writes physically contiguous bytes. False: nothing answers there, or its memory has gone. */
  write(page: number, offset: number, from: Uint8Array): boolean {
    const block = Math.floor(page / BLOCK_PAGES);
    const backing = this.#blocks.get(block);
    if (backing !== undefined) {
      const at = (page - block * BLOCK_PAGES) * 4096 + offset;
      const room = BLOCK_PAGES * 4096 - at;
      if (from.length <= room) return backing.write(at, from);
      return (
        backing.write(at, from.subarray(0, room)) && this.write((block + 1) * BLOCK_PAGES, 0, from.subarray(room))
      );
    }
    const window = this.#window(block, page);
    return window?.backing.write((page - window.firstPage) * 4096 + offset, from) ?? false;
  }

  /** Blocks in use: 0 when every program has gone and everything was unpinned. */
  get blocks(): number {
    return this.#blocks.size;
  }

  #window(block: number, page: number): Window | undefined {
    return this.#windows.get(block)?.find((w) => page >= w.firstPage && page < w.firstPage + w.pages);
  }
}
