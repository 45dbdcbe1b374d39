/**
 * A function's way to memory: splits a transfer at page borders, asks upstream (the IOMMU) for each page, joins neighbours into
 * runs and copies them. A fault comes back as a value, because devices act on it.
 */
import { Tracepoint } from '../../lib/tracepoint.ts';
import type { PhysicalMemory } from '../memory/physical-memory.ts';

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
}

/** A machine without an IOMMU: bus addresses are physical addresses. */
export const noUpstream: Upstream = { translate: (_rid, _pasid, page) => page, why: '' };

/** A DMA that did not happen, whoever refused it; what the IOMMU has to say comes before as `iommu:io_page_fault`. */
const dmaRefused = new Tracepoint<{ rid: number; pasid: number; address: bigint; access: string; reason: string }>(
  'pci:dma_refused',
);

/** The DMA port of one function. `rid` may change when bus numbers are assigned, so it is asked for at each transfer. */
export class DmaPort {
  /** What translates. The host joins each function with the unit that serves it. */
  upstream: Upstream;
  readonly #memory: PhysicalMemory;
  readonly #rid: () => number;
  readonly #enabled: () => boolean;

  constructor(memory: PhysicalMemory, upstream: Upstream, rid: () => number, enabled: () => boolean) {
    this.#memory = memory;
    this.upstream = upstream;
    this.#rid = rid;
    this.#enabled = enabled;
  }

  /** Reads `into.length` bytes of memory at `address` (64 bits). Undefined: done. */
  read(address: bigint | number, into: Uint8Array, pasid = -1): DmaFault | undefined {
    return this.#transfer(address, into, READ, pasid);
  }

  /** Writes `from` to memory at `address` (64 bits). Undefined: done; after a fault the bytes before it are written. */
  write(address: bigint | number, from: Uint8Array, pasid = -1): DmaFault | undefined {
    return this.#transfer(address, from, WRITE, pasid);
  }

  #transfer(address: bigint | number, buffer: Uint8Array, access: Access, pasid: number): DmaFault | undefined {
    if (buffer.length === 0) return undefined;
    let page: number;
    let offset: number;
    if (typeof address === 'number' && address <= Number.MAX_SAFE_INTEGER) {
      page = Math.floor(address / 4096);
      offset = address - page * 4096;
    } else {
      const wide = BigInt.asUintN(64, BigInt(address));
      page = Number(wide >> 12n);
      offset = Number(wide & 0xfffn);
    }
    const fault = (at: number, within: number, reason: string): DmaFault => {
      const refused: DmaFault = {
        address: (BigInt(at) << 12n) + BigInt(within),
        access: access === READ ? 'read' : 'write',
        reason,
      };
      dmaRefused.fire(() => ({ rid: this.#rid(), pasid, ...refused }));
      return refused;
    };
    if (!this.#enabled()) return fault(page, offset, 'bus master is off');
    const rid = this.#rid();
    const upstream = this.upstream;
    let done = 0;
    while (done < buffer.length) {
      const first = upstream.translate(rid, pasid, page, access);
      if (first < 0) return fault(page, offset, upstream.why);
      let length = Math.min(4096 - offset, buffer.length - done);
      let count = 1;
      let reason = '';
      while (done + length < buffer.length) {
        const next = upstream.translate(rid, pasid, page + count, access);
        if (next !== first + count) {
          if (next < 0) reason = upstream.why;
          break;
        }
        length += Math.min(4096, buffer.length - done - length);
        count++;
      }
      const part = length === buffer.length ? buffer : buffer.subarray(done, done + length);
      const ok = access === READ ? this.#memory.read(first, offset, part) : this.#memory.write(first, offset, part);
      if (!ok) return fault(page, offset, 'memory has gone');
      if (reason !== '') return fault(page + count, 0, reason);
      done += length;
      page += count;
      offset = 0;
    }
    return undefined;
  }
}
