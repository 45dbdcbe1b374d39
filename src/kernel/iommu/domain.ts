/**
 * A domain: one address space of the IOMMU, with the page table that holds it.
 *
 * `map` and `unmap` write the table; `unmap` returns only when no unit to which the domain is attached can still use the old
 * translations. Groups attach devices (`attachDevice`, `program`, `detachDevice`); nobody else calls these three. Where it is attached
 * is in attachments.ts.
 */
import { vtdss } from '../../hw/iommu/fmt/vtdss.ts';
import { x86_64 } from '../../hw/iommu/fmt/x86-64.ts';
import { LEAF_PAGES, PageTable } from '../../hw/iommu/page-table.ts';
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { hex } from '../../lib/pages.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import { Attachments } from './attachments.ts';
import { firstStageFor, guestObstacle, levelsFor, obstacle, requireAbilities } from './compatibility.ts';

/** Permissions of a mapping; the values are those of include/linux/iommu.h. */
export const IOMMU_READ = 1;
export const IOMMU_WRITE = 2;
/** Ordinary DMA snoops the caches; always so here. It does not concern no-snoop requests (see `enforceCacheCoherency`). */
export const IOMMU_CACHE = 4;

/**
 * Not of Linux: a guest that has an IOMMU of its own chose no-snoop for these pages, and it is heard: their leaves do not enforce. Only
 * in a domain with the option `guestSnoopRelay`; its users may then have to flush caches.
 */
export const IOMMU_GUEST_NO_SNOOP = 0x100;

/** Physical pages that an entry can hold: 52 address bits. */
const PHYSICAL_LIMIT = 2 ** 40;

const traceMap = new Tracepoint<{ iova: bigint; paddr: bigint; size: bigint }>('iommu:map');
const traceUnmap = new Tracepoint<{ iova: bigint; size: bigint; unmapped_size: bigint }>('iommu:unmap');
const attachPoint = new Failpoint('iommu:attach_device', 'ENOMEM');
const mapPoint = new Failpoint('iommu:map', 'ENOMEM');

/**
 * `blocked`: every access faults. `identity`: the IOVA is the physical address. `dma`: the host's drivers. `unmanaged`: VFIO, iommufd.
 * `nested`: a guest's first stage above an unmanaged parent. `sva`: a first stage into which a process's pages come as they are used.
 */
export type DomainKind = 'blocked' | 'identity' | 'dma' | 'unmanaged' | 'nested' | 'sva';

export interface DomainOptions {
  /** Of paging kinds; `sva` is always first stage. */
  readonly stage?: 'first' | 'second';
  /** Units must be able to set dirty bits in second-stage leaves. */
  readonly hasDirtyTracking?: boolean;
  /** First stages may be nested on it. */
  readonly isNestParent?: boolean;
  /** A mapping has to be writable (second stages that guests' tables nest on, on units that need it so). */
  readonly isForceWriteable?: boolean;
  /** Mappings may carry IOMMU_GUEST_NO_SNOOP. */
  readonly guestSnoopRelay?: boolean;
}

/** A guest's first stage, as `iommu_hwpt_vtd_s1` describes it. */
export interface GuestStage {
  /** Guest-physical address of the top table. */
  readonly pageTable: bigint;
  /** 48 or 57. */
  readonly addressWidth: number;
  readonly flags?: { readonly sre?: boolean; readonly eafe?: boolean; readonly wpe?: boolean };
}

/** The leaf that translates a page. `level` 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB. */
export interface Leaf {
  readonly level: number;
  /** First page that it translates, and how many. */
  readonly firstPage: number;
  readonly count: number;
  readonly physicalPage: number;
  readonly entry: bigint;
}

interface Nesting {
  readonly parent: Domain;
  readonly guest: GuestStage;
}

export class Domain {
  readonly kind: DomainKind;
  /** Undefined: no tables of its own. */
  readonly stage: 'first' | 'second' | undefined;
  /** The hardware it was made for. */
  readonly unit: IommuUnit;
  readonly pgsizeBitmap: bigint;
  /** The aperture, in pages, both ends included. */
  readonly firstPage: number = 0;
  readonly lastPage: number;
  /** Groups attached to it. */
  attachments = 0;
  /** The tables; undefined for blocked, identity and nested, which need none of the host's. */
  readonly table: PageTable | undefined;
  readonly options: DomainOptions;
  /** Of `nested`: the domain that translates the guest's physical addresses. */
  readonly parent: Domain | undefined;
  readonly #guest: GuestStage | undefined;
  readonly #attached: Attachments;
  #enforcesCoherency = false;
  #relaysNoSnoop = false;
  #isDirtyTracking = false;
  #hasHadMappings = false;
  /** Something was unmapped that a unit may still have cached. */
  #isStale = false;
  #isFree = false;

  /** ENOMEM: no memory for the top table. EOPNOTSUPP: the unit cannot do what the options ask. `nesting`: see `nestedDomain`. */
  constructor(unit: IommuUnit, kind: DomainKind, options: DomainOptions = {}, nesting?: Nesting) {
    this.unit = unit;
    this.kind = kind;
    this.options = options;
    this.parent = nesting?.parent;
    this.#guest = nesting?.guest;
    const isPaging = kind === 'dma' || kind === 'unmanaged' || kind === 'sva';
    this.stage = isPaging ? (kind === 'sva' ? 'first' : (options.stage ?? 'second')) : undefined;
    requireAbilities(unit, kind, this.stage, options);
    const { levels, width } = this.stage === 'first' ? firstStageFor(unit) : levelsFor(unit);
    this.lastPage = 2 ** (width - 12) - 1;
    const largestLeaf =
      this.stage === 'first' ? (unit.capabilities.hasFirstStage1G ? 2 : 1) : unit.capabilities.largestLeaf;
    this.pgsizeBitmap = isPaging ? [0x1000n, 0x20_1000n, 0x4020_1000n][largestLeaf]! : 0n;
    const format = this.stage === 'first' ? x86_64 : vtdss;
    this.table = isPaging ? new PageTable(format, unit.tables, { levels, largestLeaf }) : undefined;
    this.#attached = new Attachments(this, nesting?.guest);
    if (nesting !== undefined) nesting.parent.#attached.nested.add(this.#attached);
  }

  /** Every leaf made from now on overrides no-snoop. */
  get enforcesCoherency(): boolean {
    return this.#enforcesCoherency;
  }

  /** Something was mapped with IOMMU_GUEST_NO_SNOOP. */
  get relaysNoSnoop(): boolean {
    return this.#relaysNoSnoop;
  }

  /**
   * Maps `count` pages from `page` to the physical pages from `physicalPage`, by the largest leaves that fit. EINVAL: no paging
   * domain, no permission, nothing to map. ERANGE: outside the aperture. EADDRINUSE: something is mapped there. ENOMEM. On failure
   * nothing stays.
   */
  map(page: number, physicalPage: number, count: number, prot: number): void {
    const table = this.#paging();
    if ((prot & (IOMMU_READ | IOMMU_WRITE)) === 0) throw new Errno('EINVAL', 'a mapping is readable or writable');
    if (!(count >= 1)) throw new Errno('EINVAL', 'no pages to map');
    if (this.options.isForceWriteable === true && (prot & IOMMU_WRITE) === 0) {
      throw new Errno('EINVAL', 'mappings of this domain have to be writable');
    }
    if (!(page >= this.firstPage && page + count - 1 <= this.lastPage)) {
      throw new Errno('ERANGE', `${pagesText(page, count)} is outside of the aperture ${this.#aperture()}`);
    }
    if (!(physicalPage >= 0 && physicalPage + count <= PHYSICAL_LIMIT)) {
      throw new Errno('ERANGE', `physical ${pagesText(physicalPage, count)} has more than 52 bits`);
    }
    const isRelayed = (prot & IOMMU_GUEST_NO_SNOOP) !== 0;
    if (isRelayed && this.options.guestSnoopRelay !== true) {
      throw new Errno('EINVAL', 'a guest cannot choose which pages are snooped in this domain');
    }
    mapPoint.hit();
    const conflict = table.map(page, physicalPage, count, prot & 3, this.#enforcesCoherency && !isRelayed);
    if (conflict >= 0) throw this.#taken(table, conflict, page + count - 1);
    this.#hasHadMappings = true;
    if (isRelayed) this.#relaysNoSnoop = true;
    if (traceMap.heard) {
      traceMap.fire(() => ({ iova: bytesOf(page), paddr: bytesOf(physicalPage), size: bytesOf(count) }));
    }
  }

  /**
   * Removes what is mapped from `page` on, up to `count` pages or the first hole, and returns the pages removed; a large leaf goes
   * whole, so that they may be more than asked, and 0 when `page` lies within one. The IOTLB is synchronised when it returns.
   * EINVAL: no paging domain.
   */
  unmap(page: number, count: number): number {
    const table = this.#paging();
    const removed = table.unmap(page, count);
    if (removed > 0 && this.#isStale) {
      this.synchronise();
    } else if (removed > 0) {
      this.#attached.flush(page, page + removed - 1);
      table.releaseTables();
    }
    if (traceUnmap.heard) {
      traceUnmap.fire(() => ({ iova: bytesOf(page), size: bytesOf(count), unmapped_size: bytesOf(removed) }));
    }
    return removed;
  }

  /** As `unmap`, but devices may go on using what their unit has cached until `synchronise`. */
  unmapLater(page: number, count: number): number {
    const removed = this.#paging().unmap(page, count);
    if (removed > 0) this.#isStale = true;
    traceUnmap.fire(() => ({ iova: bytesOf(page), size: bytesOf(count), unmapped_size: bytesOf(removed) }));
    return removed;
  }

  /** No unit uses anything any more that was unmapped before. */
  synchronise(): void {
    if (!this.#isStale) return;
    this.#isStale = false;
    this.#attached.flushAll();
    this.table?.releaseTables();
  }

  /** The physical page behind `page`, -1 when it is not mapped. */
  physicalOf(page: number): number {
    if (this.table !== undefined) return this.table.walk(page);
    return this.kind === 'identity' ? page : -1;
  }

  /** The leaf behind `page`, for tests and the inspector. */
  leafAt(page: number): Leaf | undefined {
    const table = this.table;
    const physicalPage = table?.walk(page) ?? -1;
    if (table === undefined || physicalPage < 0) return undefined;
    const count = LEAF_PAGES[table.level]!;
    const within = page % count;
    const entry = (BigInt(table.high) << 32n) | BigInt(table.low);
    return { level: table.level, firstPage: page - within, count, physicalPage: physicalPage - within, entry };
  }

  /**
   * Makes all DMA through this domain coherent, also what devices mark no-snoop. False: a unit cannot, or something was mapped
   * before (those leaves would not do it). Once true it stays so.
   */
  enforceCacheCoherency(): boolean {
    if (this.#enforcesCoherency) return true;
    if (this.table === undefined || !this.unit.canEnforceCoherency) return false;
    for (const unit of this.#attached.units()) if (!unit.canEnforceCoherency) return false;
    if (this.stage === 'second' && this.#hasHadMappings) return false;
    this.#enforcesCoherency = true;
    // Leaves of a first stage have no such bit: the PASID entries have it, those that exist too.
    if (this.stage === 'first') this.#attached.reprogram();
    return true;
  }

  get isDirtyTracking(): boolean {
    return this.#isDirtyTracking;
  }

  /** Starts or stops dirty bits in the leaves. EOPNOTSUPP: the domain was not made for it. EINVAL: an attached unit cannot. */
  setDirtyTracking(on: boolean): void {
    if (this.options.hasDirtyTracking !== true) {
      throw new Errno('EOPNOTSUPP', 'the domain was made without dirty tracking');
    }
    if (on === this.#isDirtyTracking) return;
    for (const unit of this.#attached.units()) {
      if (!unit.capabilities.canTrackDirty) throw new Errno('EINVAL', `unit ${unit.name} sets no dirty bits`);
    }
    this.#isDirtyTracking = on;
    this.#attached.reprogram();
    for (const nested of this.#attached.nested) nested.reprogram();
  }

  /**
   * Visits the leaves of a range that were written through since it was cleared last; `isCleared` forgets it. Without `visit` bits
   * are only cleared. EINVAL: tracking is off and somebody wants to know.
   */
  readAndClearDirty(
    firstPage: number,
    count: number,
    { isCleared }: { readonly isCleared: boolean },
    visit?: (firstPage: number, pages: number) => void,
  ): void {
    if (this.options.hasDirtyTracking !== true) {
      throw new Errno('EOPNOTSUPP', 'the domain was made without dirty tracking');
    }
    if (!this.#isDirtyTracking && visit !== undefined) throw new Errno('EINVAL', 'dirty tracking is off');
    let found = 0;
    this.#paging().readDirty(firstPage, firstPage + count - 1, isCleared, (first, pages) => {
      found++;
      visit?.(first, pages);
    });
    // A write through a translation that was cached as dirty would not set the bit again.
    if (isCleared && found > 0) this.#attached.flush(firstPage, firstPage + count - 1);
  }

  /**
   * Of `nested`: the guest has changed its tables for `count` pages from `firstPage` (of a 64-bit address); Infinity: all. The IOTLB
   * and device TLBs forget what they hold of them.
   */
  invalidateFirstStage(firstPage: number, count: number): void {
    if (this.kind !== 'nested') throw new Errno('EINVAL', `a domain of kind ${this.kind} has no guest's tables`);
    if (count === Infinity) this.#attached.flushAll();
    else this.#attached.flush(firstPage, firstPage + count - 1);
  }

  /** Whether devices behind `unit` can be attached. */
  isCompatible(unit: IommuUnit): boolean {
    return this.#obstacle(unit) === undefined;
  }

  /** Gives the tables back. EBUSY while attached. */
  free(): void {
    if (this.attachments > 0) throw new Errno('EBUSY', `the domain is still attached to ${this.attachments} groups`);
    if (this.#isFree) return;
    const { nested } = this.#attached;
    if (nested.size > 0) throw new Errno('EBUSY', `${nested.size} domains are nested on this one`);
    this.#isFree = true;
    if (this.parent !== undefined) this.parent.#attached.nested.delete(this.#attached);
    this.table?.destroy();
  }

  // ---- for groups ----

  /** A device behind `unit` is to be attached: the domain has a domain id there from now on. EINVAL, ENOSPC. */
  attachDevice(unit: IommuUnit): void {
    attachPoint.hit();
    const obstacle = this.#obstacle(unit);
    if (obstacle !== undefined) throw new Errno('EINVAL', obstacle);
    this.#attached.hold(unit);
  }

  /** Ends `attachDevice`. No context may point here any more when the last device of a unit goes. */
  detachDevice(unit: IommuUnit): void {
    this.#attached.letGo(unit);
  }

  /** Points the contexts of these requesters here; they leave the domain where they were, if any. */
  program(unit: IommuUnit, rids: readonly number[], from?: Domain): void {
    this.#attached.program(unit, rids, from === undefined ? undefined : from.#attached);
  }

  /** Points a PASID of these requesters here; it leaves the domain where it was, if any. */
  programPasid(unit: IommuUnit, rids: readonly number[], pasid: number, from?: Domain): void {
    this.#attached.programPasid(unit, rids, pasid, from === undefined ? undefined : from.#attached);
  }

  /** Takes a PASID of these requesters away. */
  unprogramPasid(unit: IommuUnit, rids: readonly number[], pasid: number): void {
    this.#attached.unprogramPasid(unit, rids, pasid);
  }

  #paging(): PageTable {
    if (this.table === undefined || this.#isFree) {
      throw new Errno(
        'EINVAL',
        `a domain of kind ${this.kind} cannot be mapped${this.#isFree ? ' once it is freed' : ''}`,
      );
    }
    return this.table;
  }

  #obstacle(unit: IommuUnit): string | undefined {
    if (this.kind === 'blocked') return undefined;
    if (this.#isFree) return 'the domain was freed';
    if (this.parent !== undefined) return this.parent.#obstacle(unit) ?? guestObstacle(this.#guest!, unit);
    return obstacle(this, unit, this.#enforcesCoherency);
  }

  #taken(table: PageTable, first: number, last: number): Errno {
    const page = table.firstMapped(first, last);
    return new Errno('EADDRINUSE', `${pagesText(page, LEAF_PAGES[table.level]!)} is mapped already`);
  }

  #aperture(): string {
    return pagesText(this.firstPage, this.lastPage - this.firstPage + 1);
  }
}

function bytesOf(pages: number): bigint {
  return BigInt(pages) << 12n;
}

function pagesText(page: number, count: number): string {
  return `${hex(bytesOf(page))}..${hex(bytesOf(page + count) - 1n)}`;
}
