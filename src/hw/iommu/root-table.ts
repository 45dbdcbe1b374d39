/**
 * The driver's hand on a unit's structures: writes root, context and PASID entries into memory, where the unit reads them. Nothing
 * here invalidates a cache; who writes an entry that was present has to.
 */
import { Errno } from '../../lib/errno.ts';
import {
  pageOf,
  pasidDirectoryEntry,
  pasidIndexes,
  pasidsOf,
  readLegacyContext,
  rootHalf,
  type ScalableContext,
  scalableContext,
} from './entries.ts';
import type { TableMemory } from './table-memory.ts';

/** What a scalable context allows its requester. */
export type RequesterRights = Pick<ScalableContext, 'hasDeviceTlb' | 'hasPasids' | 'hasPageRequests'>;

const NO_RIGHTS: RequesterRights = { hasDeviceTlb: false, hasPasids: false, hasPageRequests: false };
/** A directory of one page: 512 entries, 2^15 PASIDs. */
const SMALLEST_PDTS = 2;

export class RootTable {
  /** The page of the root table: what RTADDR holds. */
  readonly page: number;
  readonly isScalable: boolean;
  readonly #memory: TableMemory;
  /** Scalable: the directory of each requester, and its size. */
  readonly #directories = new Map<number, { readonly page: number; readonly pdts: number; rights: RequesterRights }>();

  constructor(memory: TableMemory, isScalable: boolean) {
    this.#memory = memory;
    this.isScalable = isScalable;
    this.page = memory.pool.structures.allocate();
  }

  hasBus(bus: number): boolean {
    return this.#memory.load(this.page, bus * 2) && (this.#memory.low & 1) !== 0;
  }

  /** Legacy: the four words of a context entry. */
  setLegacy(rid: number, words: Uint32Array): void {
    this.#write(this.#contextPage(rid, true), (rid & 255) * 2, words);
  }

  /** Writes the entry of a PASID; 0 is where requests without PASID are looked up. Makes context, directory and table as needed. */
  setPasid(rid: number, pasid: number, words: Uint32Array): void {
    const place = this.#pasidPlace(rid, pasid, true)!;
    // P last, as software does: the entry is never half valid.
    this.#write(place.page, place.index + 1, words.subarray(2));
    this.#write(place.page, place.index, words.subarray(0, 2));
  }

  /** Not present; `isFaultRecordingOff` leaves FPD set. */
  clearPasid(rid: number, pasid: number, isFaultRecordingOff = false): void {
    const place = this.#pasidPlace(rid, pasid, false);
    if (place === undefined) return;
    const words = new Uint32Array(16);
    if (isFaultRecordingOff) words[0] = 2;
    this.#write(place.page, place.index, words);
  }

  /** What the context of a requester allows, and how many PASIDs its directory has room for. */
  setRights(rid: number, rights: RequesterRights, pasids = 0): void {
    this.#directory(rid, rights, pasids);
  }

  /** No request of this requester is translated any more. Scalable: its PASIDs are gone too. */
  clear(rid: number): void {
    const page = this.#contextPage(rid, false);
    if (page === 0) return;
    if (!this.isScalable) {
      this.#write(page, (rid & 255) * 2, new Uint32Array(4));
      return;
    }
    this.#write(page, (rid & 127) * 4, new Uint32Array(8));
    const directory = this.#directories.get(rid);
    if (directory === undefined) return;
    this.#directories.delete(rid);
    const { structures } = this.#memory.pool;
    for (let i = 0; i < pasidsOf(directory.pdts) / 64; i++) {
      if (this.#memory.load(directory.page, i) && (this.#memory.low & 1) !== 0) {
        structures.free(pageOf(this.#memory.low, this.#memory.high));
      }
    }
    structures.free(directory.page, directoryPages(directory.pdts));
  }

  /** Where the entry of a PASID lies: page and index of 8 bytes; undefined: there is no table. For tests and the inspector. */
  pasidPlace(rid: number, pasid: number): { page: number; index: number } | undefined {
    return this.#pasidPlace(rid, pasid, false);
  }

  /** Where the context entry of a requester lies; undefined: its bus has no table. */
  contextPlace(rid: number): { page: number; index: number } | undefined {
    const page = this.#contextPage(rid, false);
    if (page === 0) return undefined;
    return { page, index: this.isScalable ? (rid & 127) * 4 : (rid & 255) * 2 };
  }

  /** The requesters with a legacy context, in order, with domain id and top page (undefined: pass-through). */
  *entries(): IterableIterator<[rid: number, context: { did: number; page: number | undefined }]> {
    for (let bus = 0; bus < 256; bus++) {
      if (this.isScalable || !this.hasBus(bus)) continue;
      for (let devfn = 0; devfn < 256; devfn++) {
        const rid = (bus << 8) | devfn;
        const words = this.#read(this.#contextPage(rid, false), devfn * 2, 4);
        const context = readLegacyContext(words);
        if (typeof context !== 'string') yield [rid, { did: context.did, page: context.secondStage?.page }];
      }
    }
  }

  #pasidPlace(rid: number, pasid: number, isMade: boolean): { page: number; index: number } | undefined {
    let directory = this.#directories.get(rid);
    if (directory === undefined || pasid >= pasidsOf(directory.pdts)) {
      if (!isMade) return undefined;
      directory = this.#directory(rid, directory?.rights ?? NO_RIGHTS, pasid + 1);
    }
    const memory = this.#memory;
    const at = pasidIndexes(pasid);
    memory.load(directory.page, at.directory);
    let page = pageOf(memory.low, memory.high);
    if ((memory.low & 1) === 0) {
      if (!isMade) return undefined;
      page = memory.pool.structures.allocate();
      memory.store(directory.page, at.directory, ...pasidDirectoryEntry(page));
    }
    return { page, index: at.table * 8 };
  }

  /** The directory of a requester, with room for `pasids`; a larger one takes over the tables of a smaller one. */
  #directory(rid: number, rights: RequesterRights, pasids: number) {
    const memory = this.#memory;
    const { structures } = memory.pool;
    const old = this.#directories.get(rid);
    let pdts = Math.max(SMALLEST_PDTS, old?.pdts ?? 0);
    while (pasidsOf(pdts) < pasids) pdts++;
    if (pdts > 7) throw new Errno('EINVAL', `PASID ${pasids - 1} has more than 20 bits`);
    const page = old?.pdts === pdts ? old.page : structures.allocate(directoryPages(pdts));
    if (old !== undefined && old.page !== page) {
      for (let i = 0; i < pasidsOf(old.pdts) / 64; i++) {
        memory.load(old.page, i);
        memory.store(page, i, memory.low, memory.high);
      }
      structures.free(old.page, directoryPages(old.pdts));
    }
    const directory = { page, pdts, rights };
    this.#directories.set(rid, directory);
    const words = scalableContext({ ...rights, pdts, directoryPage: page });
    this.#write(this.#contextPage(rid, true), (rid & 127) * 4, words);
    return directory;
  }

  /** The context table in which a requester is; 0: there is none. */
  #contextPage(rid: number, isMade: boolean): number {
    const memory = this.#memory;
    const index = (rid >>> 8) * 2 + (this.isScalable && (rid & 128) !== 0 ? 1 : 0);
    memory.load(this.page, index);
    if ((memory.low & 1) !== 0) return pageOf(memory.low, memory.high);
    if (!isMade) return 0;
    const page = memory.pool.structures.allocate();
    memory.store(this.page, index, ...rootHalf(page));
    return page;
  }

  #write(page: number, index: number, words: Uint32Array): void {
    for (let i = 0; i < words.length; i += 2) this.#memory.store(page, index + i / 2, words[i]!, words[i + 1]!);
  }

  #read(page: number, index: number, count: number): Uint32Array {
    const words = new Uint32Array(count);
    for (let i = 0; i < count; i += 2) {
      this.#memory.load(page, index + i / 2);
      words[i] = this.#memory.low;
      words[i + 1] = this.#memory.high;
    }
    return words;
  }
}

function directoryPages(pdts: number): number {
  return 2 ** Math.max(0, pdts - 2);
}
