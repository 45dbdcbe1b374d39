/**
 * A function's way to memory: splits a transfer at page borders, asks upstream (the IOMMU) for each page, joins neighbours into
 * runs and copies them. A fault comes back as a value, because devices act on it.
 */
import { Tracepoint } from '../../lib/tracepoint.ts';
import type { PhysicalMemory } from '../memory/physical-memory.ts';
import type {
  AtcInvalidation,
  AtsEndpoint,
  DmaAttributes,
  PageRequest,
  PageResponse,
  Translation,
  TranslationRequest,
} from './ats.ts';

/** The window of interrupt messages: a write of 4 bytes there is an interrupt, never DMA. */
const MSI_FIRST_PAGE = 0xfee00;
const MSI_LAST_PAGE = 0xfeeff;

export const READ = 1;
export const WRITE = 2;
export type Access = typeof READ | typeof WRITE;

/** Why a DMA did not happen. `address` is the first byte that could not be reached. */
export interface DmaFault {
  readonly address: bigint;
  readonly access: 'read' | 'write';
  /** Short and stable, e.g. `not present`, `no write permission`, `bus master is off`, `memory has gone`. */
  readonly reason: string;
}

/** What stands between a function and memory. Implemented by the IOMMU unit; joined by the host. */
export interface Upstream {
  /**
   * The physical page behind `page` of the address space of requester `rid` (and `pasid`, -1 for none), or -1. After -1, `why`
   * tells the reason. Called for each page of each transfer: no allocation on the way to a hit.
   */
  translate(rid: number, pasid: number, page: number, access: Access): number;
  readonly why: string;
  /** After `translate`: how many pages from `page` on lie behind each other physically and allow the same, as far as that is known. Absent: 1. */
  reach?(rid: number, pasid: number, page: number, access: Access): number;
  /** As `translate`, for a request with more attributes than a PASID. Absent: they make no difference. */
  request?(rid: number, page: number, access: Access, attributes: DmaAttributes): number;
  /** Whether the last request of `request` went snooped. */
  readonly isCoherent?: boolean;
  /** A translation request (ATS). Undefined: refused, `why` tells. Absent: there is nobody to ask. */
  translationRequest?(
    endpoint: AtsEndpoint,
    rid: number,
    page: number,
    request: TranslationRequest,
  ): Translation | undefined;
  /** A message of an interrupt: low half of its address, and its data. False: refused, `why` tells. Absent: there is nobody to take it. */
  interrupt?(rid: number, address: number, data: number): boolean;
  /** Whether interrupts of devices go through `interrupt`; else they reach the processors as they are. */
  readonly remapsInterrupts?: boolean;
  /** A page request (PRI); the answer comes through `endpoint`. False: refused, `why` tells. */
  pageRequest?(endpoint: AtsEndpoint, rid: number, request: PageRequest): boolean;
}

/** A machine without an IOMMU: bus addresses are physical addresses. */
export const noUpstream: Upstream = { translate: (_rid, _pasid, page) => page, why: '' };

/** A DMA that did not happen, whoever refused it; what the IOMMU has to say comes before as `iommu:io_page_fault`. */
const dmaRefused = new Tracepoint<{ rid: number; pasid: number; address: bigint; access: string; reason: string }>(
  'pci:dma_refused',
);

/** The same for all functions that only read and write. */
const NO_ATTRIBUTES: DmaAttributes = {};

/** The DMA port of one function. `rid` may change when bus numbers are assigned, so it is asked for at each transfer. */
export class DmaPort {
  /** What translates. The host joins each function with the unit that serves it. */
  upstream: Upstream;
  /** The device is stopped: nothing leaves the function. */
  isStopped = false;
  /** Transfers that were tried while it was stopped: mistakes of the device. */
  triedWhileStopped = 0;
  /** Hears of pages of the function's addresses that were written. */
  onWrite: ((page: number, count: number) => void) | undefined;
  /** Whether no page of the last transfer went past the caches (see `DmaAttributes.noSnoop`). */
  isCoherent = true;
  /** The answer to a page request. */
  onPageResponse: ((response: PageResponse) => void) | undefined;
  /** The function has to forget translations that it got by `translate`; false: it does not answer. */
  onAtcInvalidate: ((invalidation: AtcInvalidation) => boolean) | undefined;
  readonly #endpoint: AtsEndpoint = {
    invalidate: (invalidation) => this.onAtcInvalidate?.(invalidation) ?? true,
    respond: (response) => this.onPageResponse?.(response),
  };
  readonly #memory: PhysicalMemory;
  readonly #rid: () => number;
  readonly #enabled: () => boolean;
  readonly #hasService: (service: 'ats' | 'pri') => boolean;

  /** `hasService`: whether software has switched translation or page requests on in the function; absent: it has. */
  constructor(
    memory: PhysicalMemory,
    upstream: Upstream,
    rid: () => number,
    enabled: () => boolean,
    hasService: (service: 'ats' | 'pri') => boolean = () => true,
  ) {
    this.#hasService = hasService;
    this.#memory = memory;
    this.upstream = upstream;
    this.#rid = rid;
    this.#enabled = enabled;
  }

  /** Reads `into.length` bytes of memory at `address` (64 bits). Undefined: done. */
  read(address: bigint | number, into: Uint8Array, how: number | DmaAttributes = -1): DmaFault | undefined {
    return typeof how === 'number'
      ? this.#transfer(address, into, READ, how, NO_ATTRIBUTES)
      : this.#transfer(address, into, READ, how.pasid ?? -1, how);
  }

  /**
   * The bytes at `address` themselves, for a copy from memory to memory: to be used at once. Undefined: they lie apart, or can only be copied
   * (`read` tells why).
   */
  direct(address: bigint | number, length: number, pasid = -1): Uint8Array | undefined {
    if (this.isStopped || !this.#enabled()) return undefined;
    const { page, offset } = split(address);
    const rid = this.#rid();
    const { upstream } = this;
    const first = upstream.translate(rid, pasid, page, READ);
    const count = Math.ceil((offset + length) / 4096);
    if (first < 0) return undefined;
    for (let i = this.#reach(rid, pasid, page, READ); i < count; i += this.#reach(rid, pasid, page + i, READ)) {
      if (upstream.translate(rid, pasid, page + i, READ) !== first + i) return undefined;
    }
    this.isCoherent = true;
    return this.#memory.direct(first, offset, length);
  }

  /** Writes `from` to memory at `address` (64 bits). Undefined: done; after a fault the bytes before it are written. */
  write(address: bigint | number, from: Uint8Array, how: number | DmaAttributes = -1): DmaFault | undefined {
    return typeof how === 'number'
      ? this.#transfer(address, from, WRITE, how, NO_ATTRIBUTES)
      : this.#transfer(address, from, WRITE, how.pasid ?? -1, how);
  }

  /** Asks where the page of `address` is (ATS). A translation that allows nothing says that the page is not there. */
  translate(address: bigint | number, request: TranslationRequest = {}): Translation | DmaFault {
    const { page, offset } = split(address);
    const { upstream } = this;
    const access = request.write === true ? WRITE : READ;
    const pasid = request.pasid ?? -1;
    if (!this.#enabled()) return this.#fault(page, offset, access, pasid, 'bus master is off');
    if (!this.#hasService('ats')) return this.#fault(page, offset, access, pasid, 'ATS is off');
    if (upstream.translationRequest === undefined) {
      return this.#fault(page, offset, access, pasid, 'no translation requests');
    }
    const answer = upstream.translationRequest(this.#endpoint, this.#rid(), page, request);
    return answer ?? this.#fault(page, offset, access, pasid, upstream.why);
  }

  /** Asks software for a page (PRI). Undefined: sent; the answer to its group comes by `onPageResponse`, possibly before this returns. */
  requestPage(
    request: Omit<PageRequest, 'page' | 'pasid' | 'exec' | 'privileged'> & {
      readonly address: bigint | number;
      readonly pasid?: number;
      readonly exec?: boolean;
      readonly privileged?: boolean;
    },
  ): DmaFault | undefined {
    const { address, ...rest } = request;
    const { page, offset } = split(address);
    const { upstream } = this;
    const whole: PageRequest = { pasid: -1, exec: false, privileged: false, ...rest, page };
    const access = request.write ? WRITE : READ;
    if (!this.#enabled()) return this.#fault(page, offset, access, whole.pasid, 'bus master is off');
    if (!this.#hasService('pri')) return this.#fault(page, offset, access, whole.pasid, 'PRI is off');
    if (upstream.pageRequest === undefined) {
      return this.#fault(page, offset, access, whole.pasid, 'no page requests');
    }
    return upstream.pageRequest(this.#endpoint, this.#rid(), whole)
      ? undefined
      : this.#fault(page, offset, access, whole.pasid, upstream.why);
  }

  /**
   * Sends the message of an interrupt: a write of 4 bytes, which is plain DMA when software has put an address there that is none of
   * interrupts. False: there is no remapping, the interrupt is to go its plain way.
   */
  message(low: number, high: number, data: number): boolean {
    if (this.upstream.remapsInterrupts !== true) return false;
    const page = high * 0x10_0000 + (low >>> 12);
    if (page >= MSI_FIRST_PAGE && page <= MSI_LAST_PAGE) this.upstream.interrupt?.(this.#rid(), low, data);
    else this.write((BigInt(high) << 32n) | BigInt(low), new Uint8Array(Uint32Array.of(data).buffer));
    return true;
  }

  #reach(rid: number, pasid: number, page: number, access: Access): number {
    return this.upstream.reach?.(rid, pasid, page, access) ?? 1;
  }

  #fault(page: number, within: number, access: Access, pasid: number, reason: string): DmaFault {
    const refused: DmaFault = {
      address: (BigInt(page) << 12n) + BigInt(within),
      access: access === READ ? 'read' : 'write',
      reason,
    };
    dmaRefused.fire(() => ({ rid: this.#rid(), pasid, ...refused }));
    return refused;
  }

  #transfer(
    address: bigint | number,
    buffer: Uint8Array,
    access: Access,
    pasid: number,
    attributes: DmaAttributes,
  ): DmaFault | undefined {
    if (buffer.length === 0) return undefined;
    const start = split(address);
    let { page, offset } = start;
    if (this.isStopped) {
      this.triedWhileStopped++;
      return this.#fault(page, offset, access, pasid, 'the device is stopped');
    }
    if (!this.#enabled()) return this.#fault(page, offset, access, pasid, 'bus master is off');
    const rid = this.#rid();
    const upstream = this.upstream;
    if (access === WRITE && page >= MSI_FIRST_PAGE && page <= MSI_LAST_PAGE && upstream.remapsInterrupts === true) {
      if (buffer.length === 4 && pasid < 0 && offset % 4 === 0) {
        const data = new DataView(buffer.buffer, buffer.byteOffset, 4).getUint32(0, true);
        if (upstream.interrupt?.(rid, (page * 4096 + offset) >>> 0, data) === true) return undefined;
        return this.#fault(page, offset, access, pasid, upstream.why);
      }
    }
    const isPlain = attributes === NO_ATTRIBUTES || upstream.request === undefined;
    const ask = (at: number): number => {
      if (isPlain) return upstream.translate(rid, pasid, at, access);
      const physicalPage = upstream.request!(rid, at, access, attributes);
      if (physicalPage >= 0 && upstream.isCoherent === false) this.isCoherent = false;
      return physicalPage;
    };
    this.isCoherent = isPlain ? attributes.noSnoop !== true : true;
    let done = 0;
    while (done < buffer.length) {
      const first = ask(page);
      if (first < 0) return this.#fault(page, offset, access, pasid, upstream.why);
      let length = Math.min(4096 - offset, buffer.length - done);
      let count = 1;
      let reason = '';
      let known = isPlain && done + length < buffer.length ? this.#reach(rid, pasid, page, access) : 1;
      while (done + length < buffer.length) {
        if (count < known) {
          const left = buffer.length - done - length;
          const more = Math.min(known - count, Math.ceil(left / 4096));
          length += Math.min(more * 4096, left);
          count += more;
          continue;
        }
        const next = ask(page + count);
        if (next !== first + count) {
          if (next < 0) reason = upstream.why;
          break;
        }
        if (isPlain) known = count + this.#reach(rid, pasid, page + count, access);
        length += Math.min(4096, buffer.length - done - length);
        count++;
      }
      const part = length === buffer.length ? buffer : buffer.subarray(done, done + length);
      if (this.isCoherent) this.#memory.snoop?.(first, offset, part.length);
      const ok = access === READ ? this.#memory.read(first, offset, part) : this.#memory.write(first, offset, part);
      if (access === WRITE) this.onWrite?.(page, count);
      if (!ok) return this.#fault(page, offset, access, pasid, 'memory has gone');
      if (reason !== '') return this.#fault(page + count, 0, access, pasid, reason);
      done += length;
      page += count;
      offset = 0;
    }
    return undefined;
  }
}

/** The page (of a 64-bit address) and the byte within. */
function split(address: bigint | number): { page: number; offset: number } {
  if (typeof address === 'number' && address <= Number.MAX_SAFE_INTEGER) {
    const page = Math.floor(address / 4096);
    return { page, offset: address - page * 4096 };
  }
  const wide = BigInt.asUintN(64, BigInt(address));
  return { page: Number(wide >> 12n), offset: Number(wide & 0xfffn) };
}

/** Bytes before the start of a page of a large buffer: such buffers lie 16 bytes into one. */
const TO_PAGE = 4096 - 16;

/**
 * A buffer for transfers, which are copied fastest when it and the memory lie alike in their pages: memory for DMA mostly begins at a page,
 * a plain `Uint8Array` does not.
 */
export function transferBuffer(length: number): Uint8Array {
  return new Uint8Array(length + 4096).subarray(TO_PAGE, TO_PAGE + length);
}
