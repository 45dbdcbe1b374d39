/**
 * One IOMMU unit: what stands between functions and physical memory.
 *
 * A request comes with its requester ID. The context of the requester says what to do: nothing there blocks it, pass-through takes
 * the address as physical, else the IOTLB is asked and, on a miss, the page table is walked and the IOTLB filled. Refusals leave a
 * reason (`why`, `lastFault`), a record in the fault registers and the tracepoint `iommu:io_page_fault`. The unit never looks behind
 * the IOTLB's back: a translation stays in use until software invalidates it, whatever became of the table.
 */
import { Tracepoint } from '../../lib/tracepoint.ts';
import type { Access, Upstream } from '../pci/dma.ts';
import { type Context, RootTable } from './context.ts';
import { type Fault, FaultLog, FaultReason, faultReasonName } from './faults.ts';
import { Iotlb, SNOOPED } from './iotlb.ts';
import type { PageTable } from './page-table.ts';
import { decodeCapabilities, type UnitCapabilities, type UnitPresetName, unitPresets } from './registers.ts';
import { TablePool } from './table-pool.ts';

const ioPageFault = new Tracepoint<{
  unit: string;
  rid: number;
  pasid: number;
  iova: bigint;
  access: string;
  reason: number;
  name: string;
  why: string;
}>('iommu:io_page_fault');

/** The window of interrupt messages: never DMA, neither translated nor mapped. */
export const MSI_FIRST_PAGE = 0xfee00;
export const MSI_LAST_PAGE = 0xfeeff;

export interface IommuUnitOptions {
  readonly preset?: UnitPresetName;
  /** Registers that differ from the preset's. */
  readonly cap?: bigint;
  readonly ecap?: bigint;
  /** Hardware marks leaves accessed and dirty. */
  readonly hasAccessedDirty?: boolean;
  /** Where tables of its domains lie. Units of one machine may share it. */
  readonly tables?: TablePool;
}

export class IommuUnit implements Upstream {
  /** `dmar0`, `dmar1`, … as in /sys/class/iommu. */
  readonly name: string;
  /** CAP and ECAP registers. */
  readonly cap: bigint;
  readonly ecap: bigint;
  readonly capabilities: UnitCapabilities;
  /** Bits of an IOVA that the unit takes. */
  readonly mgaw: number;
  /** ECAP.SC: the unit can make no-snoop requests coherent. */
  readonly canEnforceCoherency: boolean;
  /** Page sizes of its tables, one bit each, in bytes. */
  readonly pgsizeBitmap: bigint;
  readonly hasAccessedDirty: boolean;
  readonly root = new RootTable();
  readonly iotlb = new Iotlb();
  readonly tables: TablePool;
  readonly faults: FaultLog;
  /** The fault event: something was recorded, or dropped for want of a free record. Software reads and clears `faults`. */
  faultEvent: (() => void) | undefined;
  /** The last refused request. */
  lastFault: Fault | undefined;
  #short = '';

  constructor(name: string, options: IommuUnitOptions = {}) {
    const preset = unitPresets[options.preset ?? 'vtd-legacy-sc'];
    this.name = name;
    this.cap = options.cap ?? preset.cap;
    this.ecap = options.ecap ?? preset.ecap;
    this.capabilities = decodeCapabilities(this.cap, this.ecap);
    this.mgaw = this.capabilities.mgaw;
    this.canEnforceCoherency = this.capabilities.canEnforceCoherency;
    this.pgsizeBitmap = [0x1000n, 0x20_1000n, 0x4020_1000n][this.capabilities.largestLeaf]!;
    this.hasAccessedDirty = options.hasAccessedDirty ?? false;
    this.tables = options.tables ?? new TablePool();
    this.faults = new FaultLog(this.capabilities.faultRecords);
  }

  /** Why the last request was refused, in few and stable words: `not present`, `no write permission`, `blocked`, … */
  get why(): string {
    return this.#short;
  }

  /**
   * Programs the context of a requester. `table` undefined is pass-through. The change is seen at once; translations that were
   * cached under a former domain id stay until invalidated.
   */
  setContext(rid: number, did: number, table: PageTable | undefined, isFaultRecordingOff = false): void {
    this.root.set(rid, { did, table, space: this.iotlb.space(did, -1), isFaultRecordingOff });
  }

  /** Blocks a requester. */
  clearContext(rid: number): void {
    this.root.clear(rid);
  }

  /** Forgets what the IOTLB holds of a domain in `2^order` pages from `firstPage`; the whole domain when that is beyond CAP.MAMV. */
  invalidatePages(did: number, firstPage: number, order: number): void {
    if (order > this.capabilities.mamv) this.iotlb.invalidateDomain(did);
    else this.iotlb.invalidatePages(did, undefined, firstPage, firstPage + 2 ** order - 1);
  }

  /** Forgets all that the IOTLB holds of a domain. */
  invalidateDomain(did: number): void {
    this.iotlb.invalidateDomain(did);
  }

  translate(rid: number, pasid: number, page: number, access: Access): number {
    const context = this.root.lookup(rid);
    if (context !== undefined && pasid < 0 && context.table !== undefined) {
      const physicalPage = this.iotlb.lookup(context.space.tag, page, access);
      return physicalPage >= 0 ? physicalPage : this.#miss(rid, context, context.table, page, access);
    }
    return this.#otherwise(rid, pasid, context, page, access);
  }

  /**
   * As `translate`, for a request that carries the no-snoop attribute. Undefined: refused. `isCoherent`: the leaf made the request
   * a snooped one, or the context is a pass-through one and the request goes as it is (not coherent).
   */
  translateNoSnoop(
    rid: number,
    pasid: number,
    page: number,
    access: Access,
  ): { physicalPage: number; isCoherent: boolean } | undefined {
    this.iotlb.attributes = 0;
    const physicalPage = this.translate(rid, pasid, page, access);
    if (physicalPage < 0) return undefined;
    return { physicalPage, isCoherent: (this.iotlb.attributes & SNOOPED) !== 0 };
  }

  #miss(rid: number, context: Context, table: PageTable, page: number, access: Access): number {
    if (page >= MSI_FIRST_PAGE && page <= MSI_LAST_PAGE) return this.#interruptWindow(rid, page, access);
    if (page >= 2 ** (this.mgaw - 12)) return this.#beyond(rid, page, access, context);
    const physicalPage = table.walk(page);
    if (physicalPage < 0 || (table.permission & access) !== access) {
      return this.#refuse(rid, context, table, page, access, physicalPage >= 0);
    }
    const { format } = table;
    if (table.level > 0 && ((table.low >>> 12) & ((1 << (9 * table.level)) - 1)) !== 0) {
      return this.#fault(rid, page, access, FaultReason.ENTRY_RESERVED, 'reserved bits', entryText(table), context);
    }
    const isSnooped = format.snoop !== 0 && (table.low & format.snoop) !== 0;
    if (isSnooped && !this.canEnforceCoherency) {
      const detail = `${entryText(table)} has SNP, which this unit lacks`;
      return this.#fault(rid, page, access, FaultReason.ENTRY_RESERVED, 'reserved bits', detail, context);
    }
    let attributes = table.permission | (isSnooped ? SNOOPED : 0);
    if (this.hasAccessedDirty) {
      table.markLeaf(access === 2);
      // A write through a clean leaf has to come back here to set the dirty bit, so only what is dirty is cached writable.
      if (access !== 2 && (table.low & format.dirty) === 0) attributes &= ~2;
    }
    // A leaf around the interrupt window is cached page by page, so that a hit cannot reach into the window.
    const level =
      Math.floor(page / 512 ** table.level) === Math.floor(MSI_FIRST_PAGE / 512 ** table.level) ? 0 : table.level;
    this.iotlb.fill(context.space.tag, page, physicalPage, level, attributes);
    this.iotlb.attributes = attributes;
    return physicalPage;
  }

  /** Pass-through, and all that is refused before any table is looked at. */
  #otherwise(rid: number, pasid: number, context: Context | undefined, page: number, access: Access): number {
    if (page >= MSI_FIRST_PAGE && page <= MSI_LAST_PAGE) return this.#interruptWindow(rid, page, access);
    if (context === undefined) {
      const isBusPresent = this.root.hasBus(rid >>> 8);
      const reason = isBusPresent ? FaultReason.CONTEXT_NOT_PRESENT : FaultReason.ROOT_NOT_PRESENT;
      const entry = isBusPresent ? 'context entry' : 'root entry';
      return this.#fault(
        rid,
        page,
        access,
        reason,
        'blocked',
        `the ${entry} of ${ridText(rid)} is not present`,
        undefined,
      );
    }
    if (pasid >= 0) {
      const detail = `a request with PASID ${pasid} while the unit is in legacy mode`;
      return this.#fault(rid, page, access, FaultReason.PASID_IN_LEGACY_MODE, 'no PASIDs', detail, context, pasid);
    }
    return page < 2 ** (this.mgaw - 12) ? page : this.#beyond(rid, page, access, context);
  }

  #interruptWindow(rid: number, page: number, access: Access): number {
    const detail = 'addresses 0xfee00000 to 0xfeefffff are interrupt messages';
    this.#short = 'interrupt address range';
    this.lastFault = describe(rid, -1, page, access, FaultReason.NOT_A_DMA_REQUEST, detail);
    this.#trace(this.lastFault);
    return -1;
  }

  #beyond(rid: number, page: number, access: Access, context: Context): number {
    const detail = `the address has more than the ${this.mgaw} bits of this unit`;
    return this.#fault(rid, page, access, FaultReason.BEYOND_MGAW, 'beyond address width', detail, context);
  }

  #refuse(rid: number, context: Context, table: PageTable, page: number, access: Access, isMapped: boolean): number {
    const reason = access === 2 ? FaultReason.NO_WRITE_PERMISSION : FaultReason.NO_READ_PERMISSION;
    if (isMapped) {
      const kind = access === 2 ? 'write' : 'read';
      const detail = `no ${kind} permission in the leaf at level ${table.level} (${entryText(table)})`;
      return this.#fault(rid, page, access, reason, `no ${kind} permission`, detail, context);
    }
    if (table.level >= table.levels) return this.#beyond(rid, page, access, context);
    if ((table.low & table.format.present) !== 0) {
      const detail = `a leaf at level ${table.level} (${entryText(table)})`;
      return this.#fault(rid, page, access, FaultReason.ENTRY_RESERVED, 'reserved bits', detail, context);
    }
    const detail = `not present at level ${table.level} (${entryText(table)})`;
    return this.#fault(rid, page, access, reason, 'not present', detail, context);
  }

  #fault(
    rid: number,
    page: number,
    access: Access,
    reason: FaultReason,
    short: string,
    detail: string,
    context: Context | undefined,
    pasid = -1,
  ): number {
    this.#short = short;
    const fault = describe(rid, pasid, page, access, reason, detail);
    this.lastFault = fault;
    if (context?.isFaultRecordingOff !== true) {
      this.faults.record(rid, pasid, page, access === 1, reason);
      this.faultEvent?.();
      this.#trace(fault);
    }
    return -1;
  }

  #trace(fault: Fault): void {
    ioPageFault.fire(() => ({
      unit: this.name,
      rid: fault.rid,
      pasid: fault.pasid,
      iova: BigInt(fault.page) << 12n,
      access: fault.access,
      reason: fault.reason,
      name: faultReasonName(fault.reason),
      why: fault.detail,
    }));
  }
}

function describe(
  rid: number,
  pasid: number,
  page: number,
  access: Access,
  reason: FaultReason,
  detail: string,
): Fault {
  return { rid, pasid, page, access: access === 1 ? 'read' : 'write', reason, detail };
}

function entryText(table: PageTable): string {
  const value = (BigInt(table.high) << 32n) | BigInt(table.low);
  return `entry 0x${value.toString(16)}`;
}

/** `06:0d.1` */
export function ridText(rid: number): string {
  const devfn = rid & 255;
  const bus = (rid >>> 8).toString(16).padStart(2, '0');
  return `${bus}:${(devfn >>> 3).toString(16).padStart(2, '0')}.${devfn & 7}`;
}
