/**
 * The page request queue (PRQ) of a unit: a ring in memory into which page requests of devices are written, 32 bytes each, until
 * software takes them (VT-d specification, 7.4). One entry stays empty, so that full and empty differ.
 */
import type { PageRequest } from '../pci/ats.ts';
import type { TableMemory } from './table-memory.ts';

const ENTRY_BYTES = 32;
const TYPE_PAGE_REQUEST = 1;

/** A page request, with who sent it. */
export interface QueuedPageRequest extends PageRequest {
  readonly rid: number;
}

export class PageRequestQueue {
  readonly #memory: TableMemory;
  #page = 0;
  #bytes = 0;
  /** PQH and PQT: byte offsets of the next entry to be taken and of the next to be written. */
  head = 0;
  tail = 0;
  /** PRS.PRO: a request found no room; nothing is queued until software clears it. */
  hasOverflow = false;
  /** PRS.PPR: something came since software cleared it. */
  isPending = false;
  /** Requests that were dropped. */
  dropped = 0;

  constructor(memory: TableMemory) {
    this.#memory = memory;
  }

  /** PQA: the ring has 2^order pages from `page` on. */
  setBase(page: number, order: number): void {
    this.#page = page;
    this.#bytes = 4096 * 2 ** order;
    this.head = 0;
    this.tail = 0;
  }

  get isEnabled(): boolean {
    return this.#bytes > 0;
  }

  /** False: there is no room, the request is lost. */
  push(rid: number, request: PageRequest): boolean {
    const next = (this.tail + ENTRY_BYTES) % this.#bytes;
    if (!this.isEnabled || this.hasOverflow || next === this.head) {
      this.hasOverflow = this.isEnabled;
      this.dropped++;
      return false;
    }
    const words = encodePageRequest(rid, request);
    for (let i = 0; i < 4; i++) {
      if (this.#memory.store(this.#page, this.tail / 8 + i, words[i * 2]!, words[i * 2 + 1]!)) continue;
      this.dropped++;
      return false;
    }
    this.tail = next;
    this.isPending = true;
    return true;
  }

  /** Software takes all entries: the head moves to the tail. */
  take(): QueuedPageRequest[] {
    const taken: QueuedPageRequest[] = [];
    const words = new Uint32Array(4);
    while (this.head !== this.tail) {
      for (let i = 0; i < 2; i++) {
        this.#memory.load(this.#page, this.head / 8 + i);
        words[i * 2] = this.#memory.low;
        words[i * 2 + 1] = this.#memory.high;
      }
      taken.push(decodePageRequest(words));
      this.head = (this.head + ENTRY_BYTES) % this.#bytes;
    }
    this.isPending = false;
    return taken;
  }

  /** Software has seen the overflow and thrown incomplete groups away. */
  clearOverflow(): void {
    this.hasOverflow = false;
  }
}

/** The eight words of an entry. */
export function encodePageRequest(rid: number, request: PageRequest): Uint32Array {
  const { pasid, page, read, write, exec, privileged, last, group } = request;
  const bit = (on: boolean, at: number): number => (on ? 1 << at : 0);
  return Uint32Array.of(
    TYPE_PAGE_REQUEST | bit(pasid >= 0, 8) | (rid << 16),
    Math.max(pasid, 0) | bit(exec, 20) | bit(privileged, 21),
    bit(read, 0) | bit(write, 1) | bit(last, 2) | (group << 3) | ((page & 0xfffff) << 12),
    Math.floor(page / 0x10_0000),
    0,
    0,
    0,
    0,
  );
}

export function decodePageRequest(words: Uint32Array): QueuedPageRequest {
  const [first = 0, second = 0, third = 0, fourth = 0] = words;
  return {
    rid: first >>> 16,
    pasid: (first & 0x100) !== 0 ? second & 0xf_ffff : -1,
    exec: (second & (1 << 20)) !== 0,
    privileged: (second & (1 << 21)) !== 0,
    read: (third & 1) !== 0,
    write: (third & 2) !== 0,
    last: (third & 4) !== 0,
    group: (third >>> 3) & 0x1ff,
    page: fourth * 0x10_0000 + (third >>> 12),
  };
}
