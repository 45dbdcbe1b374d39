/**
 * A device TLB (address translation cache): what a device does that translates by itself (PCI Express Base 5.0, 10.1). It asks where a
 * page is, keeps the answer until told to forget it, and then sends requests with physical addresses. A page that is not there it can
 * ask software for (PRI); the transfer is then to be tried again when the answer is in.
 */
import {
  ALL_PAGES_ORDER,
  type AtcInvalidation,
  type PageResponse,
  type PageResponseCode,
  type Translation,
} from './ats.ts';
import { type Access, type DmaFault, type DmaPort, READ, WRITE } from './dma.ts';

export interface AtcOptions {
  /** Translations that it can keep; 64 unless given. */
  readonly entries?: number;
  /** Pages that are not there are asked for. */
  readonly asksForPages?: boolean;
}

/** A page was asked for: try again after `onAnswer`. */
export const PENDING = 'pending';

interface Wanted {
  readonly pasid: number;
  readonly page: number;
  readonly access: Access;
}

const GROUPS = 512;
/** Times that one page is asked for in one transfer: software may answer at once, and may be wrong. */
const TRIES = 3;

export class Atc {
  /** A page request was answered. After `success` the transfer can be tried again; else it cannot succeed. */
  onAnswer: ((page: number, pasid: number, code: PageResponseCode) => void) | undefined;
  readonly counters = { hits: 0, misses: 0, pageRequests: 0, invalidations: 0 };
  readonly #dma: DmaPort;
  readonly #options: Required<AtcOptions>;
  /** By PASID and first page, oldest first. */
  readonly #kept = new Map<string, Translation>();
  readonly #waiting = new Map<number, Wanted>();
  #nextGroup = 0;
  #lastCode: PageResponseCode | undefined;

  /** Takes the port's answers and invalidations for itself. */
  constructor(dma: DmaPort, options: AtcOptions = {}) {
    this.#dma = dma;
    this.#options = { entries: options.entries ?? 64, asksForPages: options.asksForPages ?? false };
    dma.onPageResponse = (response) => this.#answered(response);
    dma.onAtcInvalidate = (invalidation) => this.#invalidate(invalidation);
  }

  /** Reads memory. Undefined: done. */
  read(address: bigint | number, into: Uint8Array, pasid = -1): DmaFault | typeof PENDING | undefined {
    return this.#transfer(BigInt(address), into, READ, pasid);
  }

  /** Writes memory. Undefined: done; else what comes before the page that was not reached is written. */
  write(address: bigint | number, from: Uint8Array, pasid = -1): DmaFault | typeof PENDING | undefined {
    return this.#transfer(BigInt(address), from, WRITE, pasid);
  }

  /** Translations that are kept. */
  get size(): number {
    return this.#kept.size;
  }

  /** Page requests that wait for their answer. */
  get waiting(): number {
    return this.#waiting.size;
  }

  /** The device is reset: nothing is kept, nothing is waited for. */
  clear(): void {
    this.#kept.clear();
    this.#waiting.clear();
  }

  #transfer(address: bigint, buffer: Uint8Array, access: Access, pasid: number): DmaFault | typeof PENDING | undefined {
    for (let done = 0; done < buffer.length; ) {
      const at = BigInt.asUintN(64, address + BigInt(done));
      const within = Number(at & 0xfffn);
      const length = Math.min(4096 - within, buffer.length - done);
      const part = buffer.subarray(done, done + length);
      const outcome = this.#page(at, within, part, access, pasid);
      if (outcome !== undefined) return outcome;
      done += length;
    }
    return undefined;
  }

  #page(
    at: bigint,
    within: number,
    part: Uint8Array,
    access: Access,
    pasid: number,
  ): DmaFault | typeof PENDING | undefined {
    const page = Number(at >> 12n);
    for (let round = 0; ; round++) {
      const translation = this.#find(at, page, access, pasid);
      if (!('firstPage' in translation)) return translation;
      if (translation.isUntranslatedOnly) return this.#send(at, part, access, { pasid });
      if (access === WRITE ? translation.write : translation.read) {
        const physical = (BigInt(translation.physicalPage + page - translation.firstPage) << 12n) + BigInt(within);
        return this.#send(physical, part, access, { translated: true });
      }
      if (!this.#options.asksForPages || round === TRIES) return refusal(at, access, 'not present');
      const outcome = this.#ask(at, page, access, pasid);
      if (outcome !== undefined) return outcome;
    }
  }

  #send(
    address: bigint,
    part: Uint8Array,
    access: Access,
    how: { pasid: number } | { translated: true },
  ): DmaFault | undefined {
    return access === READ ? this.#dma.read(address, part, how) : this.#dma.write(address, part, how);
  }

  #find(at: bigint, page: number, access: Access, pasid: number): Translation | DmaFault {
    for (const pages of [1, 512, 262144]) {
      const kept = this.#kept.get(`${pasid} ${page - (page % pages)}`);
      if (kept !== undefined && page < kept.firstPage + kept.pages && (access === WRITE ? kept.write : kept.read)) {
        this.counters.hits++;
        return kept;
      }
    }
    this.counters.misses++;
    const answer = this.#dma.translate(at, { pasid, write: access === WRITE });
    if (!('firstPage' in answer)) return answer;
    if (answer.read || answer.write) this.#keep(pasid, answer);
    return answer;
  }

  #keep(pasid: number, translation: Translation): void {
    const key = `${pasid} ${translation.firstPage}`;
    this.#kept.delete(key);
    this.#kept.set(key, translation);
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > this.#options.entries && oldest !== undefined) this.#kept.delete(oldest);
  }

  /** Undefined: software has answered already, and well. */
  #ask(at: bigint, page: number, access: Access, pasid: number): DmaFault | typeof PENDING | undefined {
    for (const wanted of this.#waiting.values()) {
      if (wanted.page === page && wanted.pasid === pasid && wanted.access >= access) return PENDING;
    }
    if (this.#waiting.size === GROUPS) return refusal(at, access, 'too many page requests');
    while (this.#waiting.has(this.#nextGroup)) this.#nextGroup = (this.#nextGroup + 1) % GROUPS;
    const group = this.#nextGroup;
    this.#nextGroup = (this.#nextGroup + 1) % GROUPS;
    this.#waiting.set(group, { pasid, page, access });
    this.counters.pageRequests++;
    this.#lastCode = undefined;
    const fault = this.#dma.requestPage({ address: at, pasid, read: true, write: access === WRITE, last: true, group });
    if (fault !== undefined) {
      this.#waiting.delete(group);
      return fault;
    }
    if (this.#waiting.has(group)) return PENDING;
    return this.#lastCode === 'success' ? undefined : refusal(at, access, `page request: ${this.#lastCode ?? 'lost'}`);
  }

  #answered({ group, pasid, code }: PageResponse): void {
    const wanted = this.#waiting.get(group);
    // An answer to what was never asked, or to a request of before a reset.
    if (wanted === undefined || wanted.pasid !== pasid) return;
    this.#waiting.delete(group);
    this.#lastCode = code;
    this.onAnswer?.(wanted.page, pasid, code);
  }

  #invalidate({ pasid, isAllPasids, firstPage, order }: AtcInvalidation): boolean {
    this.counters.invalidations++;
    const end = order >= ALL_PAGES_ORDER ? Infinity : firstPage + 2 ** order;
    for (const [key, kept] of [...this.#kept]) {
      if (!isAllPasids && Number(key.slice(0, key.indexOf(' '))) !== pasid) continue;
      if (order >= ALL_PAGES_ORDER || (kept.firstPage < end && firstPage < kept.firstPage + kept.pages)) {
        this.#kept.delete(key);
      }
    }
    return true;
  }
}

function refusal(address: bigint, access: Access, reason: string): DmaFault {
  return { address, access: access === READ ? 'read' : 'write', reason };
}
