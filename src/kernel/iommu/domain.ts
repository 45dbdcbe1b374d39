/**
 * A domain: one address space of the IOMMU, with the page table that holds it.
 *
 * `map` and `unmap` write the table; `unmap` returns only when no unit to which the domain is attached can still use the old
 * translations. Groups attach devices (`attachDevice`, `program`, `detachDevice`); nobody else calls these three.
 */
import type { PasidEntry } from '../../hw/iommu/entries.ts';
import { vtdss } from '../../hw/iommu/fmt/vtdss.ts';
import { x86_64 } from '../../hw/iommu/fmt/x86-64.ts';
import { coveringBlock } from '../../hw/iommu/invalidation.ts';
import { LEAF_PAGES, PageTable } from '../../hw/iommu/page-table.ts';
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { ALL_PAGES_ORDER } from '../../hw/pci/ats.ts';
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { hex } from '../../lib/pages.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import { Attachments } from './attachments.ts';
import { firstStageFor, guestObstacle, levelsFor, obstacle, requireAbilities } from './compatibility.ts';
import { entryOf } from './domain-entry.ts';
import { allocateDid, freeDid, PASS_THROUGH_DID } from './domain-ids.ts';

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

interface Hold {
  readonly did: number;
  devices: number;
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
  readonly #children = new Set<Domain>();
  readonly #holds = new Map<IommuUnit, Hold>();
  readonly #attached = new Attachments();
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
    if (nesting !== undefined) nesting.parent.#children.add(this);
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
      this.#flush(page, page + removed - 1);
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
    this.#flushAll();
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
    for (const unit of this.#holds.keys()) if (!unit.canEnforceCoherency) return false;
    if (this.stage === 'second' && this.#hasHadMappings) return false;
    this.#enforcesCoherency = true;
    // Leaves of a first stage have no such bit: the PASID entries have it, those that exist too.
    if (this.stage === 'first') this.#reprogram();
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
    for (const unit of this.#holds.keys()) {
      if (!unit.capabilities.canTrackDirty) throw new Errno('EINVAL', `unit ${unit.name} sets no dirty bits`);
    }
    this.#isDirtyTracking = on;
    this.#reprogram();
    for (const child of this.#children) child.#reprogram();
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
    if (isCleared && found > 0) this.#flush(firstPage, firstPage + count - 1);
  }

  /**
   * Of `nested`: the guest has changed its tables for `count` pages from `firstPage` (of a 64-bit address); Infinity: all. The IOTLB
   * and device TLBs forget what they hold of them.
   */
  invalidateFirstStage(firstPage: number, count: number): void {
    if (this.kind !== 'nested') throw new Errno('EINVAL', `a domain of kind ${this.kind} has no guest's tables`);
    if (count === Infinity) this.#flushAll();
    else this.#flush(firstPage, firstPage + count - 1);
  }

  /** Whether devices behind `unit` can be attached. */
  isCompatible(unit: IommuUnit): boolean {
    return this.#obstacle(unit) === undefined;
  }

  /** Gives the tables back. EBUSY while attached. */
  free(): void {
    if (this.attachments > 0) throw new Errno('EBUSY', `the domain is still attached to ${this.attachments} groups`);
    if (this.#isFree) return;
    if (this.#children.size > 0) throw new Errno('EBUSY', `${this.#children.size} domains are nested on this one`);
    this.#isFree = true;
    if (this.parent !== undefined) this.parent.#children.delete(this);
    this.table?.destroy();
  }

  // ---- for groups ----

  /** A device behind `unit` is to be attached: the domain has a domain id there from now on. EINVAL, ENOSPC. */
  attachDevice(unit: IommuUnit): void {
    attachPoint.hit();
    const obstacle = this.#obstacle(unit);
    if (obstacle !== undefined) throw new Errno('EINVAL', obstacle);
    if (!this.#hasDid) return;
    const hold = this.#holds.get(unit);
    if (hold !== undefined) hold.devices++;
    else {
      const did = this.kind === 'sva' ? PASS_THROUGH_DID : allocateDid(unit, this);
      this.#holds.set(unit, { did, devices: 1 });
    }
  }

  /** Ends `attachDevice`. No context may point here any more when the last device of a unit goes. */
  detachDevice(unit: IommuUnit): void {
    if (!this.#hasDid) return;
    const hold = this.#holds.get(unit)!;
    if (--hold.devices > 0) return;
    this.#holds.delete(unit);
    if (hold.did !== PASS_THROUGH_DID) freeDid(unit, hold.did);
  }

  /** Points the contexts of these requesters here; they leave the domain where they were, if any. */
  program(unit: IommuUnit, rids: readonly number[], from?: Domain): void {
    for (const rid of rids) {
      if (from !== undefined) from.#attached.remove(unit, rid, -1);
      if (this.kind === 'blocked') {
        if (unit.mode === 'scalable') unit.clearPasidEntry(rid, 0);
        else unit.clearContext(rid);
      } else if (unit.mode === 'scalable') {
        unit.setPasidEntry(rid, 0, this.#entry(unit));
        if (this.#hasDid) this.#attached.add(unit, rid, -1);
      } else if (this.table === undefined) unit.setContext(rid, PASS_THROUGH_DID, undefined);
      else {
        unit.setContext(rid, this.#holds.get(unit)!.did, this.table);
        this.#attached.add(unit, rid, -1);
      }
      // What the device had asked for in the domain before.
      if (from !== undefined && from !== this) {
        unit.devices.invalidate(rid, { pasid: -1, isAllPasids: false, firstPage: 0, order: ALL_PAGES_ORDER });
      }
    }
  }

  /** Points a PASID of these requesters here; it leaves the domain where it was, if any. */
  programPasid(unit: IommuUnit, rids: readonly number[], pasid: number, from?: Domain): void {
    for (const rid of rids) {
      if (from !== undefined) from.#leavePasid(unit, rid, pasid);
      if (this.kind === 'blocked') continue;
      unit.setPasidEntry(rid, pasid, this.#entry(unit));
      if (this.#hasDid) this.#attached.add(unit, rid, pasid);
    }
  }

  /** Takes a PASID of these requesters away. */
  unprogramPasid(unit: IommuUnit, rids: readonly number[], pasid: number): void {
    for (const rid of rids) this.#leavePasid(unit, rid, pasid);
  }

  /** The order of VT-d 6.5.3.4: entry away, PASID cache, IOTLB, device TLB. */
  #leavePasid(unit: IommuUnit, rid: number, pasid: number): void {
    this.#attached.remove(unit, rid, pasid);
    unit.clearPasidEntry(rid, pasid);
    unit.iotlb.invalidateDomain(this.#didAt(unit), this.stage === 'second' ? -1 : pasid);
    unit.devices.invalidate(rid, { pasid, isAllPasids: false, firstPage: 0, order: ALL_PAGES_ORDER });
  }

  get #hasDid(): boolean {
    return this.kind !== 'blocked' && this.kind !== 'identity';
  }

  #didAt(unit: IommuUnit): number {
    return this.#holds.get(unit)?.did ?? PASS_THROUGH_DID;
  }

  #entry(unit: IommuUnit): PasidEntry {
    return entryOf(this, this.#guest, this.#didAt(unit), unit.isWalkSnooped);
  }

  /** Writes all PASID entries of the domain again: something in them has changed. */
  #reprogram(): void {
    for (const { unit, rid, pasid } of this.#attached.list()) {
      if (unit.mode !== 'scalable') continue;
      unit.setPasidEntry(rid, Math.max(pasid, 0), this.#entry(unit));
    }
    this.#flushAll();
  }

  /** IOTLBs and device TLBs forget the pages `[first, last]`; what is nested on this domain is forgotten whole. */
  #flush(first: number, last: number): void {
    const { firstPage, order } = coveringBlock(first, last);
    for (const [unit, { did }] of this.#holds) unit.invalidatePages(did, firstPage, order);
    if (this.#attached.hasDeviceTlbs) this.#attached.invalidate(firstPage, order);
    for (const child of this.#children) child.#flushAll();
  }

  #flushAll(): void {
    for (const [unit, { did }] of this.#holds) unit.invalidateDomain(did);
    this.#attached.invalidate(0, ALL_PAGES_ORDER);
    for (const child of this.#children) child.#flushAll();
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

/**
 * A guest's first stage above `parent`, which translates the guest's physical addresses. EOPNOTSUPP: the unit does not nest. EINVAL:
 * the parent was not made for it, or the address width is neither 48 nor 57.
 */
export function nestedDomain(parent: Domain, guest: GuestStage): Domain {
  if (!parent.unit.capabilities.hasNesting || parent.unit.mode !== 'scalable') {
    throw new Errno('EOPNOTSUPP', `unit ${parent.unit.name} does not nest`);
  }
  if (parent.stage !== 'second' || parent.options.isNestParent !== true) {
    throw new Errno('EINVAL', 'nothing can be nested on this domain');
  }
  if (guest.addressWidth !== 48 && guest.addressWidth !== 57) {
    throw new Errno('EINVAL', `a first stage has 48 or 57 address bits, not ${guest.addressWidth}`);
  }
  return new Domain(parent.unit, 'nested', {}, { parent, guest });
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
