/**
 * The parts of an address space: one map, a piece of what is to be mapped, and what reads it without a domain.
 */
import { Errno } from '../../lib/errno.ts';
import { hex, pageOf, U64_MAX } from '../../lib/pages.ts';
import type { Placed } from './area-map.ts';
import type { Pages } from './pages.ts';

/** One map: a range of IOVAs and the slice of pages behind it. */
export class Area implements Placed {
  readonly first: bigint;
  readonly last: bigint;
  readonly firstPage: number;
  readonly firstOffset: number;
  readonly lastPage: number;
  readonly lastOffset: number;
  readonly pages: Pages;
  /** Where it starts in `pages`: index and byte within that page. */
  readonly firstIndex: number;
  readonly pageOffset: number;
  /** Indexes of `pages` that it touches. */
  readonly indexCount: number;
  /** IOMMU_READ, IOMMU_WRITE, IOMMU_CACHE. */
  readonly prot: number;
  /** Accesses that hold pages of it. */
  accesses = 0;
  /** Objects that forbid its removal until they are gone. */
  locks = 0;
  /** It is being removed: accesses may not pin it again. */
  preventAccess = false;

  constructor(iova: bigint, length: bigint, pages: Pages, firstIndex: number, pageOffset: number, prot: number) {
    this.first = iova;
    this.last = iova + length - 1n;
    this.firstPage = pageOf(this.first);
    this.firstOffset = Number(this.first & 0xfffn);
    this.lastPage = pageOf(this.last);
    this.lastOffset = Number(this.last & 0xfffn);
    this.pages = pages;
    this.firstIndex = firstIndex;
    this.pageOffset = pageOffset;
    this.indexCount = Number((BigInt(pageOffset) + length + 4095n) >> 12n);
    this.prot = prot;
  }

  /** Where the byte at `iova` lies in the pages. */
  placeOf(iova: bigint): { index: number; offset: number } {
    const at = BigInt(this.pageOffset) + (iova - this.first);
    return { index: this.firstIndex + Number(at >> 12n), offset: Number(at & 0xfffn) };
  }
}

/** A piece of what is to be mapped. The list of them owns a reference of `pages` each until it is mapped or dropped. */
export interface Slice {
  readonly pages: Pages;
  readonly firstIndex: number;
  readonly pageOffset: number;
  readonly length: bigint;
}

/** What reads and writes an address space without a domain, and lets go of pages that are unmapped. */
export interface Access {
  readonly alignment: bigint;
  /** Undefined: kernel-internal, it is never asked to let go. */
  notifyUnmap?(iova: bigint, length: bigint): void;
}

/** The last byte of a range. EINVAL: it is empty. EOVERFLOW: it reaches beyond 64 bits. */
export function lastOf(iova: bigint, length: bigint): bigint {
  if (length === 0n) throw new Errno('EINVAL', 'the length is 0');
  const last = iova + length - 1n;
  if (last > U64_MAX) throw new Errno('EOVERFLOW', `${hex(length)} bytes at ${hex(iova)} reach beyond 64 bits`);
  return last;
}
