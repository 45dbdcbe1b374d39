/**
 * What iommufd needs of a hardware page table that translates IOVAs to physical pages. The IOMMU's `Domain` is one.
 */
import { Errno } from '../../lib/errno.ts';
import type { Area } from './area.ts';
import { DmabufPages } from './dmabuf-pages.ts';

/** Dirty bits in hardware. */
export interface DirtyTracking {
  /** EOPNOTSUPP and what else the hardware answers. */
  setTracking(isOn: boolean): void;
  /** Reports bytes `[first, last]` that were written to since they were last cleared. EINVAL: tracking is off and bits are wanted. */
  readAndClear(first: bigint, last: bigint, isCleared: boolean, report?: (first: bigint, last: bigint) => void): void;
}

export interface PagingDomain {
  /** Page sizes in bytes, one bit each. */
  readonly pgsizeBitmap: bigint;
  /** The aperture in pages, both ends included. */
  readonly firstPage: number;
  readonly lastPage: number;
  map(page: number, physicalPage: number, count: number, prot: number): void;
  unmap(page: number, count: number): number;
  /** -1: not mapped. */
  physicalOf(page: number): number;
  enforceCacheCoherency(): boolean;
  free(): void;
  readonly dirty?: DirtyTracking;
  /** Tables with pages smaller than 4096 bytes: maps and unmaps bytes that are aligned to their smallest page. */
  mapBytes?(iova: bigint, physicalPage: number, offset: number, length: bigint, prot: number): void;
  unmapBytes?(iova: bigint, length: bigint): void;
}

function isWholePages(area: Area): boolean {
  return area.pageOffset === 0 && area.firstOffset === 0 && area.lastOffset === 0xfff;
}

/**
 * Enters an area, whose pages are held, into a domain. With `isSmall` each page by itself, so that parts can be removed later. On
 * failure nothing of it stays.
 */
export function fillDomain(domain: PagingDomain, area: Area, isSmall: boolean): void {
  const { pages } = area;
  if (!(pages instanceof DmabufPages)) {
    enter(domain, area, isSmall);
    return;
  }
  if (!pages.isRevoked) enter(domain, area, isSmall);
  pages.entered(area, domain);
}

function enter(domain: PagingDomain, area: Area, isSmall: boolean): void {
  if (!isWholePages(area)) {
    fillBytes(domain, area);
    return;
  }
  let page = area.firstPage;
  try {
    for (const run of area.pages.runs(area.firstIndex, area.indexCount)) {
      if (isSmall) {
        for (let i = 0; i < run.count; i++, page++) domain.map(page, run.firstPage + i, 1, area.prot);
      } else {
        domain.map(page, run.firstPage, run.count, area.prot);
        page += run.count;
      }
    }
  } catch (error) {
    removePages(domain, area.firstPage, page - area.firstPage);
    throw error;
  }
}

export function unfillDomain(domain: PagingDomain, area: Area): void {
  const { pages } = area;
  if (pages instanceof DmabufPages) {
    pages.removed(area, domain);
    if (pages.isRevoked) return;
  }
  takeOut(domain, area);
}

/** Removes what is entered of an area. */
export function takeOut(domain: PagingDomain, area: Area): void {
  if (isWholePages(area)) removePages(domain, area.firstPage, area.indexCount);
  else domain.unmapBytes!(area.first, area.last - area.first + 1n);
}

function removePages(domain: PagingDomain, firstPage: number, count: number): void {
  let done = 0;
  while (done < count) {
    const removed = domain.unmap(firstPage + done, count - done);
    if (removed === 0) throw new Error(`Page 0x${(firstPage + done).toString(16)} is not mapped`);
    done += removed;
  }
}

function fillBytes(domain: PagingDomain, area: Area): void {
  if (domain.mapBytes === undefined) throw new Errno('EINVAL', 'the page table has no pages as small as the area');
  let iova = area.first;
  let offset = area.pageOffset;
  try {
    for (const run of area.pages.runs(area.firstIndex, area.indexCount)) {
      const room = BigInt(run.count * 4096 - offset);
      const left = area.last - iova + 1n;
      const length = left < room ? left : room;
      domain.mapBytes(iova, run.firstPage, offset, length, area.prot);
      iova += length;
      offset = 0;
    }
  } catch (error) {
    if (iova > area.first) domain.unmapBytes!(area.first, iova - area.first);
    throw error;
  }
}
