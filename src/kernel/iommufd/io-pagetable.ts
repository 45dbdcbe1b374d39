/**
 * An address space: which IOVA leads to which pages, in as many hardware page tables (domains) as devices need, or in none.
 *
 * Areas are entered into every domain, by MAP for the domains there are and at attach for the areas there are; both fill the same
 * way and leave nothing behind when they fail. While there is a domain, the pages of all areas are held (pinned). An area is
 * removed whole; only the container's oldest flavour may cut one, and then no large leaves are used.
 */
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { hex, largest, smallest, U64_MAX } from '../../lib/pages.ts';
import { IOMMU_WRITE } from '../iommu/domain.ts';
import { type Access, Area, lastOf, type Slice } from './area.ts';
import { AreaMap } from './area-map.ts';
import { fillDomain, type PagingDomain, unfillDomain } from './paging-domain.ts';
import { type IovaRange, ReservedIovas, show } from './reserved-iovas.ts';

/** The most that automatic placement aligns to: a leaf of 2 MiB. */
const LARGEST_ALIGNMENT = 0x20_0000n;
/** How often accesses are asked to let go of an area before UNMAP gives up. */
const UNMAP_TRIES = 100;

const fillFails = new Failpoint('iommufd:fill', 'ENOMEM');
const areaFails = new Failpoint('iommufd:area', 'ENOMEM');
const listFails = new Failpoint('iommufd:pages_list', 'ENOMEM');
const domainFails = new Failpoint('iommufd:add_domain', 'ENOMEM');
const accessFails = new Failpoint('iommufd:add_access', 'ENOMEM');

export class IoPagetable {
  readonly areas = new AreaMap<Area>();
  readonly reserved = new ReservedIovas();
  readonly domains: PagingDomain[] = [];
  readonly accesses = new Set<Access>();
  /** What IOVAs and lengths are multiples of. */
  alignment = 1n;
  isSmallPagesOnly = false;

  /**
   * Maps the slices one after another at `iova`, or where there is room when it is undefined, and returns where. Takes over their
   * references when it succeeds. EINVAL, EOVERFLOW, EEXIST, ENOSPC, EPERM, EFAULT, ENOMEM.
   */
  map(slices: readonly Slice[], length: bigint, iova: bigint | undefined, prot: number): bigint {
    if (length === 0n || (length & (this.alignment - 1n)) !== 0n) {
      throw new Errno('EINVAL', `length ${hex(length)} is not a multiple of ${this.alignment} bytes above 0`);
    }
    const at = iova ?? this.#place(slices[0]!, length);
    if (iova !== undefined) this.#checkPlace(iova, length);
    const areas: Area[] = [];
    let next = at;
    for (const slice of slices) {
      areas.push(this.#newArea(slice, next, prot));
      next += slice.length;
    }
    let filled = 0;
    try {
      for (; filled < areas.length; filled++) this.#fill(areas[filled]!);
    } catch (error) {
      while (filled > 0) this.#unfill(areas[--filled]!);
      throw error;
    }
    for (const area of areas) this.areas.insert(area);
    return at;
  }

  /** The slices behind a range that areas cover without a hole, with a reference of their pages each. ENOENT, EINVAL, EOVERFLOW. */
  slices(iova: bigint, length: bigint): Slice[] {
    const last = lastOf(iova, length);
    listFails.hit();
    const slices: Slice[] = [];
    this.forEachContiguous(iova, last, (area, first, end) => {
      const { index, offset } = area.placeOf(first);
      slices.push({ pages: area.pages, firstIndex: index, pageOffset: offset, length: end - first + 1n });
    });
    for (const slice of slices) slice.pages.share();
    return slices;
  }

  /** Visits the areas of a range with the part of it that is in each. ENOENT at the first byte that is in none. */
  forEachContiguous(iova: bigint, last: bigint, visit: (area: Area, first: bigint, last: bigint) => void): void {
    let at = iova;
    while (at <= last) {
      const area = this.areas.firstIn(at, at);
      if (area === undefined) throw new Errno('ENOENT', `nothing is mapped at ${hex(at)}`);
      const end = smallest(area.last, last);
      visit(area, at, end);
      at = end + 1n;
    }
  }

  /** Removes what is mapped in a range and returns how many bytes. EINVAL, EOVERFLOW; else as `unmapRange`. */
  unmap(iova: bigint, length: bigint): { bytes: bigint; refusal: Errno | undefined } {
    return this.unmapRange(iova, lastOf(iova, length));
  }

  /**
   * Removes the areas in `[first, last]`. The refusal, when it meets one that cannot go: ENOENT, it reaches beyond the range; EBUSY,
   * it is locked; EDEADLOCK, an access does not let go. What was removed before stays removed.
   */
  unmapRange(first: bigint, last: bigint): { bytes: bigint; refusal: Errno | undefined } {
    let bytes = 0n;
    let start = first;
    let tries = 0;
    for (;;) {
      const area = this.areas.firstIn(start, last);
      if (area === undefined) return { bytes, refusal: undefined };
      if (area.locks > 0) return { bytes, refusal: new Errno('EBUSY', `${show(area)} is locked by a hardware queue`) };
      if (area.first < start || area.last > last) {
        const why = `the map ${show(area)} is only partly in ${show({ first: start, last })}`;
        return { bytes, refusal: new Errno('ENOENT', why) };
      }
      if (area.first !== start) tries = 0;
      if (area.accesses > 0) {
        start = area.first;
        area.preventAccess = true;
        for (const access of [...this.accesses]) access.notifyUnmap?.(area.first, area.last - area.first + 1n);
        if (++tries > UNMAP_TRIES) {
          return { bytes, refusal: new Errno('EDEADLOCK', `an access does not let go of ${show(area)}`) };
        }
        continue;
      }
      this.#unfill(area);
      this.areas.remove(area);
      area.pages.put();
      bytes += area.last - area.first + 1n;
      if (area.last >= last) return { bytes, refusal: undefined };
      start = area.last + 1n;
    }
  }

  /** Makes areas end at each of `lasts`. Only without large leaves. EINVAL, EBUSY. */
  cut(lasts: readonly bigint[]): void {
    for (const last of lasts) {
      const area = this.areas.firstIn(last, last);
      // The comparison with the first byte is the kernel's: an area is not cut right behind its first byte.
      if (area !== undefined && last !== area.first && last !== area.last) this.#split(area, last + 1n);
    }
  }

  /** Enters all areas into a new domain. EINVAL, EADDRINUSE: areas do not fit it. EFAULT, ENOMEM. On failure nothing is changed. */
  addDomain(domain: PagingDomain): void {
    domainFails.hit();
    const alignment = largest(domain.pgsizeBitmap & -domain.pgsizeBitmap, this.alignment);
    if (alignment > 4096n) throw new Errno('EINVAL', `the smallest page of the table has ${alignment} bytes`);
    if (alignment !== this.alignment) this.#checkAlignment(alignment);
    try {
      if (domain.firstPage > 0) this.reserve({ first: 0n, last: BigInt(domain.firstPage) * 4096n - 1n }, domain);
      const end = (BigInt(domain.lastPage) + 1n) << 12n;
      if (end <= U64_MAX) this.reserve({ first: end, last: U64_MAX }, domain);
      this.#fillWithAreas(domain);
    } catch (error) {
      this.reserved.release(domain);
      throw error;
    }
    this.alignment = alignment;
    this.domains.push(domain);
  }

  removeDomain(domain: PagingDomain): void {
    const at = this.domains.indexOf(domain);
    if (at < 0) throw new Error('The domain is not one of the address space');
    this.domains.splice(at, 1);
    for (const area of this.areas) {
      unfillDomain(domain, area);
      if (this.domains.length === 0) area.pages.letGo(area.firstIndex, area.indexCount);
    }
    this.reserved.release(domain);
    this.alignment = this.#neededAlignment();
  }

  addAccess(access: Access): void {
    accessFails.hit();
    this.accesses.add(access);
    try {
      this.#recalculateAlignment();
    } catch (error) {
      this.accesses.delete(access);
      throw error;
    }
  }

  removeAccess(access: Access): void {
    this.accesses.delete(access);
    this.alignment = this.#neededAlignment();
  }

  /** No more large leaves, so that areas may be cut. EINVAL: there may be some. EADDRINUSE: an area is not of whole pages. */
  disableLargePages(): void {
    if (this.isSmallPagesOnly) return;
    if (this.domains.length > 0 && this.areas.size > 0) {
      throw new Errno('EINVAL', 'maps with large leaves exist already');
    }
    this.isSmallPagesOnly = true;
    try {
      this.#recalculateAlignment();
    } catch (error) {
      this.isSmallPagesOnly = false;
      throw error;
    }
  }

  enableLargePages(): void {
    this.isSmallPagesOnly = false;
    this.alignment = this.#neededAlignment();
  }

  /** Keeps a range free of maps. EADDRINUSE: there is one, or the program allows the range. */
  reserve(range: IovaRange, owner: object): void {
    const area = this.areas.firstIn(range.first, range.last);
    if (area !== undefined) {
      throw new Errno('EADDRINUSE', `${show(range)} has to be reserved, but ${show(area)} is mapped`);
    }
    this.reserved.reserve(range, owner);
  }

  #checkPlace(iova: bigint, length: bigint): void {
    if ((iova & (this.alignment - 1n)) !== 0n) {
      throw new Errno('EINVAL', `IOVA ${hex(iova)} is not a multiple of ${this.alignment} bytes`);
    }
    const range = { first: iova, last: lastOf(iova, length) };
    const reserved = this.reserved.isEmpty ? undefined : this.reserved.find(range);
    if (reserved !== undefined) throw new Errno('EINVAL', `${show(range)} meets the reserved range ${show(reserved)}`);
    const area = this.areas.firstIn(range.first, range.last);
    if (area !== undefined) throw new Errno('EEXIST', `${show(range)} overlaps the map ${show(area)}`);
  }

  /** A free IOVA for a map: the first that fits from page 1 on, aligned as its memory is, so that large leaves can be used. */
  #place(slice: Slice, length: bigint): bigint {
    if (length >= U64_MAX / 2n) throw new Errno('EOVERFLOW', `no range of ${hex(length)} bytes can be found`);
    const offset = BigInt(slice.pageOffset);
    const address = (BigInt(slice.pages.firstPage + slice.firstIndex) << 12n) + offset;
    let alignment = 1n << BigInt((length - 1n).toString(2).length);
    if (length === 1n) alignment = 1n;
    const natural = address & -address;
    if (address !== 0n && natural < alignment) alignment = natural;
    if (alignment > LARGEST_ALIGNMENT) alignment = LARGEST_ALIGNMENT;
    if (alignment < this.alignment) {
      throw new Errno('EINVAL', `memory at ${hex(address)} cannot be mapped at multiples of ${this.alignment} bytes`);
    }
    const align = (first: bigint, last: bigint): bigint | undefined => {
      const start = ((first + alignment - 1n) & -alignment) | offset;
      return start < last && last - start >= length - 1n ? start : undefined;
    };
    const limits = { first: 4096n, last: U64_MAX - 4096n };
    const allowed = this.reserved.allowed.length > 0 ? this.reserved.allowed : [limits];
    for (const range of allowed) {
      for (const usable of this.reserved.usable) {
        const first = largest(range.first, usable.first, limits.first);
        const last = smallest(range.last, usable.last, limits.last);
        if (first > last) continue;
        let found: bigint | undefined;
        this.areas.someHole(first, last, length, (from, to) => {
          found = align(from, to);
          return found !== undefined;
        });
        if (found !== undefined) return found;
      }
    }
    throw new Errno('ENOSPC', `no free range of ${hex(length)} bytes, aligned to ${alignment}, is left`);
  }

  #newArea(slice: Slice, iova: bigint, prot: number): Area {
    if ((prot & IOMMU_WRITE) !== 0 && !slice.pages.isWritable) {
      throw new Errno('EPERM', 'the pages were mapped for reading only');
    }
    if ((BigInt(slice.pageOffset) & (this.alignment - 1n)) !== 0n) {
      throw new Errno('EINVAL', `the memory begins ${slice.pageOffset} bytes behind a page, not at ${this.alignment}`);
    }
    lastOf(iova, slice.length);
    areaFails.hit();
    return new Area(iova, slice.length, slice.pages, slice.firstIndex, slice.pageOffset, prot);
  }

  /** Pins an area's pages and enters them into all domains; nothing happens while there is none. */
  #fill(area: Area): void {
    if (this.domains.length === 0) return;
    fillFails.hit();
    area.pages.hold(area.firstIndex, area.indexCount);
    let filled = 0;
    try {
      for (; filled < this.domains.length; filled++) fillDomain(this.domains[filled]!, area, this.isSmallPagesOnly);
    } catch (error) {
      while (filled > 0) unfillDomain(this.domains[--filled]!, area);
      area.pages.letGo(area.firstIndex, area.indexCount);
      throw error;
    }
  }

  #unfill(area: Area): void {
    if (this.domains.length === 0) return;
    for (const domain of this.domains) unfillDomain(domain, area);
    area.pages.letGo(area.firstIndex, area.indexCount);
  }

  #fillWithAreas(domain: PagingDomain): void {
    const isFirst = this.domains.length === 0;
    const done: Area[] = [];
    try {
      for (const area of this.areas) {
        if (isFirst) area.pages.hold(area.firstIndex, area.indexCount);
        try {
          fillDomain(domain, area, this.isSmallPagesOnly);
        } catch (error) {
          if (isFirst) area.pages.letGo(area.firstIndex, area.indexCount);
          throw error;
        }
        done.push(area);
      }
    } catch (error) {
      for (const area of done) {
        unfillDomain(domain, area);
        if (isFirst) area.pages.letGo(area.firstIndex, area.indexCount);
      }
      throw error;
    }
  }

  #split(area: Area, second: bigint): void {
    const { index, offset } = area.placeOf(second);
    if (area.preventAccess) throw new Errno('EBUSY', `${show(area)} is being unmapped`);
    if (area.pages.kind === 'dmabuf')
      throw new Errno('EOPNOTSUPP', `${show(area)} is a device's memory and cannot be cut`);
    if ((second & (this.alignment - 1n)) !== 0n || (BigInt(offset) & (this.alignment - 1n)) !== 0n) {
      throw new Errno('EINVAL', `${show(area)} cannot be cut at ${hex(second)}`);
    }
    if (area.accesses > 0) throw new Errno('EINVAL', `${show(area)} is pinned by an access and cannot be cut`);
    if (this.domains.length > 0 && !this.isSmallPagesOnly) {
      throw new Errno('EINVAL', `${show(area)} may have large leaves and cannot be cut`);
    }
    const { pages, prot } = area;
    const lower = new Area(area.first, second - area.first, pages, area.firstIndex, area.pageOffset, prot);
    const upper = new Area(second, area.last - second + 1n, pages.share(), index, offset, prot);
    this.areas.remove(area);
    this.areas.insert(lower);
    this.areas.insert(upper);
    if (this.domains.length === 0) return;
    // Held as two parts from now on. The new holds come first, so that nothing is unpinned in between.
    pages.hold(lower.firstIndex, lower.indexCount);
    pages.hold(upper.firstIndex, upper.indexCount);
    pages.letGo(area.firstIndex, area.indexCount);
  }

  #neededAlignment(): bigint {
    let alignment = this.isSmallPagesOnly ? 4096n : 1n;
    for (const { pgsizeBitmap } of this.domains) alignment = largest(alignment, pgsizeBitmap & -pgsizeBitmap);
    for (const access of this.accesses) alignment = largest(alignment, access.alignment);
    return alignment;
  }

  #recalculateAlignment(): void {
    const alignment = this.#neededAlignment();
    if (alignment > this.alignment) this.#checkAlignment(alignment);
    this.alignment = alignment;
  }

  /** EADDRINUSE: an area does not begin and end at multiples of `alignment`, or its memory does not. */
  #checkAlignment(alignment: bigint): void {
    const mask = alignment - 1n;
    for (const area of this.areas) {
      if ((area.first & mask) !== 0n || ((area.last + 1n) & mask) !== 0n || (BigInt(area.pageOffset) & mask) !== 0n) {
        throw new Errno('EADDRINUSE', `the map ${show(area)} is not aligned to ${alignment} bytes`);
      }
    }
  }
}
