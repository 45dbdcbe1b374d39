/**
 * A domain: one address space of the IOMMU, with the page table that holds it.
 *
 * `map` and `unmap` write the table; `unmap` returns only when no unit to which the domain is attached can still use the old
 * translations. Groups attach devices (`attachDevice`, `program`, `detachDevice`); nobody else calls these three.
 */
import { vtdss } from '../../hw/iommu/fmt/vtdss.ts';
import { coveringBlock } from '../../hw/iommu/invalidation.ts';
import { LEAF_PAGES, PageTable } from '../../hw/iommu/page-table.ts';
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { hex } from '../../lib/pages.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import { allocateDid, freeDid, PASS_THROUGH_DID } from './domain-ids.ts';

/** Permissions of a mapping; the values are those of include/linux/iommu.h. */
export const IOMMU_READ = 1;
export const IOMMU_WRITE = 2;
/** Ordinary DMA snoops the caches; always so here. It does not concern no-snoop requests (see `enforceCacheCoherency`). */
export const IOMMU_CACHE = 4;

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

interface Hold {
  readonly did: number;
  devices: number;
}

export class Domain {
  readonly kind: DomainKind;
  /** The hardware it was made for. */
  readonly unit: IommuUnit;
  readonly pgsizeBitmap: bigint;
  /** The aperture, in pages, both ends included. */
  readonly firstPage: number = 0;
  readonly lastPage: number;
  /** Groups attached to it. */
  attachments = 0;
  /** The tables; undefined for blocked and identity, which need none. */
  readonly table: PageTable | undefined;
  readonly #holds = new Map<IommuUnit, Hold>();
  #enforcesCoherency = false;
  #hasHadMappings = false;
  /** Something was unmapped that a unit may still have cached. */
  #isStale = false;
  #isFree = false;

  /** ENOMEM: no memory for the top table. */
  constructor(unit: IommuUnit, kind: DomainKind, options: DomainOptions = {}) {
    if (options.stage === 'first' || kind === 'sva' || kind === 'nested' || options.hasDirtyTracking === true) {
      throw new Errno('EOPNOTSUPP', `unit ${unit.name} is in legacy mode`);
    }
    this.unit = unit;
    this.kind = kind;
    const { levels, width } = levelsFor(unit);
    this.lastPage = 2 ** (width - 12) - 1;
    const isPaging = kind === 'dma' || kind === 'unmanaged';
    this.pgsizeBitmap = isPaging ? unit.pgsizeBitmap : 0n;
    const { largestLeaf } = unit.capabilities;
    this.table = isPaging ? new PageTable(vtdss, unit.tables, { levels, largestLeaf }) : undefined;
  }

  /** Every leaf made from now on overrides no-snoop. */
  get enforcesCoherency(): boolean {
    return this.#enforcesCoherency;
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
    if (!(page >= this.firstPage && page + count - 1 <= this.lastPage)) {
      throw new Errno('ERANGE', `${pagesText(page, count)} is outside of the aperture ${this.#aperture()}`);
    }
    if (!(physicalPage >= 0 && physicalPage + count <= PHYSICAL_LIMIT)) {
      throw new Errno('ERANGE', `physical ${pagesText(physicalPage, count)} has more than 52 bits`);
    }
    mapPoint.hit();
    const conflict = table.map(page, physicalPage, count, prot & 3, this.#enforcesCoherency);
    if (conflict >= 0) throw this.#taken(table, conflict, page + count - 1);
    this.#hasHadMappings = true;
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
      const { firstPage, order } = coveringBlock(page, page + removed - 1);
      for (const [unit, { did }] of this.#holds) unit.invalidatePages(did, firstPage, order);
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
    for (const [unit, { did }] of this.#holds) unit.invalidateDomain(did);
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
    if (this.table === undefined || this.#hasHadMappings) return false;
    if (!this.unit.canEnforceCoherency) return false;
    for (const unit of this.#holds.keys()) if (!unit.canEnforceCoherency) return false;
    this.#enforcesCoherency = true;
    return true;
  }

  get isDirtyTracking(): boolean {
    return false;
  }

  /** Starts or stops dirty bits in the leaves. EOPNOTSUPP: the domain was not made for it. EINVAL: an attached unit cannot. */
  setDirtyTracking(_on: boolean): void {
    throw new Errno('EOPNOTSUPP', 'the domain was made without dirty tracking');
  }

  /** Visits the leaves of a range that were written through since it was cleared last. */
  readAndClearDirty(
    _firstPage: number,
    _count: number,
    _options: { readonly isCleared: boolean },
    _visit: (firstPage: number, pages: number) => void,
  ): void {
    throw new Errno('EOPNOTSUPP', 'the domain was made without dirty tracking');
  }

  /** Whether devices behind `unit` can be attached. */
  isCompatible(unit: IommuUnit): boolean {
    return this.#obstacle(unit) === undefined;
  }

  /** Gives the tables back. EBUSY while attached. */
  free(): void {
    if (this.attachments > 0) throw new Errno('EBUSY', `the domain is still attached to ${this.attachments} groups`);
    if (this.#isFree) return;
    this.#isFree = true;
    this.table?.destroy();
  }

  // ---- for groups ----

  /** A device behind `unit` is to be attached: the domain has a domain id there from now on. EINVAL, ENOSPC. */
  attachDevice(unit: IommuUnit): void {
    attachPoint.hit();
    const obstacle = this.#obstacle(unit);
    if (obstacle !== undefined) throw new Errno('EINVAL', obstacle);
    if (this.table === undefined) return;
    const hold = this.#holds.get(unit);
    if (hold === undefined) this.#holds.set(unit, { did: allocateDid(unit, this), devices: 1 });
    else hold.devices++;
  }

  /** Ends `attachDevice`. No context may point here any more when the last device of a unit goes. */
  detachDevice(unit: IommuUnit): void {
    if (this.table === undefined) return;
    const hold = this.#holds.get(unit)!;
    if (--hold.devices > 0) return;
    this.#holds.delete(unit);
    freeDid(unit, hold.did);
  }

  /** Points the contexts of these requesters here. */
  program(unit: IommuUnit, rids: readonly number[]): void {
    for (const rid of rids) {
      if (this.kind === 'blocked') unit.clearContext(rid);
      else if (this.table === undefined) unit.setContext(rid, PASS_THROUGH_DID, undefined);
      else unit.setContext(rid, this.#holds.get(unit)!.did, this.table);
    }
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
    const { capabilities } = unit;
    if (this.kind === 'identity') {
      return capabilities.hasPassThrough ? undefined : `unit ${unit.name} has no pass-through`;
    }
    const table = this.table!;
    if (table.pool !== unit.tables) return `unit ${unit.name} cannot reach the memory of the domain's tables`;
    if (capabilities.mgaw < Math.log2(this.lastPage + 1) + 12) {
      return `the domain has more address bits than the ${capabilities.mgaw} of unit ${unit.name}`;
    }
    if (!capabilities.levels.includes(table.levels)) {
      return `unit ${unit.name} does not walk ${table.levels} levels`;
    }
    if (capabilities.largestLeaf < table.largestLeaf) return `unit ${unit.name} lacks the leaf sizes of the domain`;
    if (this.#enforcesCoherency && !unit.canEnforceCoherency) {
      return `the domain makes no-snoop DMA coherent, which unit ${unit.name} cannot`;
    }
    return undefined;
  }

  #taken(table: PageTable, first: number, last: number): Errno {
    const page = table.firstMapped(first, last);
    return new Errno('EADDRINUSE', `${pagesText(page, LEAF_PAGES[table.level]!)} is mapped already`);
  }

  #aperture(): string {
    return pagesText(this.firstPage, this.lastPage - this.firstPage + 1);
  }
}

/** The table depth that a unit's domains get: as many bits as both MGAW and SAGAW allow, by as few levels as the unit walks. */
function levelsFor(unit: IommuUnit): { levels: number; width: number } {
  const { mgaw, levels } = unit.capabilities;
  for (const wanted of [5, 4, 3]) {
    const narrower = 12 + 9 * (wanted - 1);
    const walked = levels.find((known) => known >= wanted);
    if (mgaw > narrower && walked !== undefined) return { levels: walked, width: Math.min(12 + 9 * wanted, mgaw) };
  }
  throw new Errno('ENODEV', `unit ${unit.name} walks no second-stage tables`);
}

function bytesOf(pages: number): bigint {
  return BigInt(pages) << 12n;
}

function pagesText(page: number, count: number): string {
  return `${hex(bytesOf(page))}..${hex(bytesOf(page + count) - 1n)}`;
}

const blocked = new WeakMap<IommuUnit, Domain>();
const identity = new WeakMap<IommuUnit, Domain>();

/** The one domain of a unit in which nothing is reachable. */
export function blockedDomain(unit: IommuUnit): Domain {
  return staticDomain(blocked, unit, 'blocked');
}

/** The one domain of a unit in which IOVAs are physical addresses. */
export function identityDomain(unit: IommuUnit): Domain {
  return staticDomain(identity, unit, 'identity');
}

function staticDomain(known: WeakMap<IommuUnit, Domain>, unit: IommuUnit, kind: DomainKind): Domain {
  let domain = known.get(unit);
  if (domain === undefined) {
    domain = new Domain(unit, kind);
    known.set(unit, domain);
  }
  return domain;
}
