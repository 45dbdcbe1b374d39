/**
 * The way of one request through a unit: its binding (requesters.ts), the IOTLB, on a miss the walk of the stages, and what is said
 * when the answer is no. Refusals leave a reason (`why`, `lastFault`), a record in the fault registers and the tracepoint
 * `iommu:io_page_fault`.
 *
 * A translation stays in use until software invalidates it, whatever became of the table. Tables that only the machine's own mapper
 * has written are walked fast (page-table.ts); what that walk does not translate, and every other table, is walked with an eye on
 * every bit.
 */
import { Tracepoint } from '../../lib/tracepoint.ts';
import type { DmaAttributes } from '../pci/ats.ts';
import type { Access, Upstream } from '../pci/dma.ts';
import { type Fault, FaultLog, FaultReason, faultReasonName } from './faults.ts';
import { FirstStageWalk } from './first-stage.ts';
import type { InterruptRemapping } from './interrupt-remapping.ts';
import { Iotlb, SNOOPED } from './iotlb.ts';
import { isFirstStageRecoverable, isSecondStageRecoverable, type Refusal } from './reasons.ts';
import { describeFirst, describeSecond } from './refusal-details.ts';
import type { UnitCapabilities } from './registers.ts';
import { type Binding, type EntryFault, isEntryFault } from './requester-tables.ts';
import { Requesters } from './requesters.ts';
import { SecondStageWalk } from './second-stage.ts';
import type { TableMemory } from './table-memory.ts';

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

/** Physical pages that an address can have: 52 bits. */
const PHYSICAL_PAGES = 2 ** 40;

/**
 * Whether what is cached is used: always until invalidated (hardware at its worst), never (hardware at its best), or now and then by
 * this seed: a driver that forgets a flush fails in one of the three.
 */
export type Staleness = 'always' | 'never' | { readonly seed: number };

export class Translator implements Upstream {
  /** `dmar0`, `dmar1`, … as in /sys/class/iommu. */
  readonly name: string;
  readonly capabilities: UnitCapabilities;
  /** Bits of an IOVA that the unit takes. */
  readonly mgaw: number;
  readonly iotlb = new Iotlb();
  readonly memory: TableMemory;
  readonly requesters: Requesters;
  /** Of `requesters`, at hand. */
  readonly own: readonly (Binding | undefined)[][];
  readonly faults: FaultLog;
  /** The fault event: something was recorded, or dropped for want of a free record. Software reads and clears `faults`. */
  faultEvent: (() => void) | undefined;
  /** The last refused request. */
  lastFault: Fault | undefined;
  /** Interrupt remapping, once software has switched it on. */
  interrupts: InterruptRemapping | undefined;
  /** GCMD.TE: without it addresses are physical. */
  isTranslating = true;
  /** Of the last request. */
  isCoherent = true;
  /** Of the last successful walk: the leaf's level, and what it allows a user's ordinary request. */
  leafLevel = 0;
  attributes = 0;
  readonly second: SecondStageWalk;
  readonly first: FirstStageWalk;
  readonly #staleness: Staleness;
  #random: number;
  #short = '';
  /** Of the last `stages`: a first stage gave an address of interrupt messages; a first stage was walked. */
  #hasHitWindow = false;
  #isFirst = false;

  constructor(
    name: string,
    memory: TableMemory,
    capabilities: UnitCapabilities,
    options: { readonly marksLegacy: boolean; readonly staleness: Staleness },
  ) {
    this.name = name;
    this.memory = memory;
    this.capabilities = capabilities;
    this.mgaw = capabilities.mgaw;
    this.#staleness = options.staleness;
    this.#random = typeof options.staleness === 'object' ? options.staleness.seed | 1 : 1;
    const isBelieved = options.staleness === 'always';
    this.requesters = new Requesters(memory, this.iotlb, capabilities, {
      marksLegacy: options.marksLegacy,
      isBelieved,
    });
    this.own = this.requesters.own;
    const { largestLeaf, canEnforceCoherency, hasFirstStage1G, faultRecords } = capabilities;
    this.second = new SecondStageWalk(memory, { largestLeaf, canSnoop: canEnforceCoherency });
    this.first = new FirstStageWalk(memory, this.second, hasFirstStage1G ? 2 : 1);
    this.faults = new FaultLog(faultRecords);
  }

  /** Why the last request was refused, in few and stable words: `not present`, `no write permission`, `blocked`, … */
  get why(): string {
    return this.#short;
  }

  /** Whether a device can only cause the interrupts that software gave to it. */
  get hasIsolatedMsi(): boolean {
    return this.interrupts?.isIsolating ?? this.capabilities.hasInterruptRemapping;
  }

  get remapsInterrupts(): boolean {
    return this.interrupts !== undefined;
  }

  /** A message of an interrupt. False: it was blocked. */
  interrupt(rid: number, address: number, data: number): boolean {
    const outcome = this.interrupts?.request(rid, address, data);
    if (outcome !== undefined && outcome.kind !== 'blocked') return true;
    this.#short = 'interrupt blocked';
    return false;
  }

  translate(rid: number, pasid: number, page: number, access: Access): number {
    const binding = this.own[rid >>> 8]![rid & 255];
    if (binding !== undefined && pasid < 0) {
      const physicalPage = this.iotlb.lookup(binding.space.tag, page, access);
      return physicalPage >= 0 ? physicalPage : this.#miss(binding, page, access);
    }
    return this.#otherwise(rid, pasid, page, access);
  }

  reach(rid: number, pasid: number, page: number, access: Access): number {
    const binding = this.own[rid >>> 8]![rid & 255];
    return binding === undefined || pasid >= 0 ? 1 : this.iotlb.reach(binding.space.tag, page, access);
  }

  request(rid: number, page: number, access: Access, attributes: DmaAttributes): number {
    const { pasid = -1, noSnoop = false, translated = false, exec = false, privileged = false } = attributes;
    this.iotlb.attributes = 0;
    const hasPasid = pasid >= 0;
    const physicalPage = translated
      ? this.#alreadyTranslated(rid, pasid, page, access)
      : hasPasid && (exec || privileged)
        ? this.#special(rid, pasid, page, access, privileged, exec)
        : this.translate(rid, pasid, page, access);
    this.isCoherent = !noSnoop || (this.iotlb.attributes & SNOOPED) !== 0;
    return physicalPage;
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
    const physicalPage = this.request(rid, page, access, { pasid, noSnoop: true });
    return physicalPage < 0 ? undefined : { physicalPage, isCoherent: this.isCoherent };
  }

  /** The binding of a request, -1 after a refusal. */
  bind(rid: number, pasid: number, page: number, access: Access): Binding | -1 {
    if (this.#staleness !== 'always') this.#forget(() => this.requesters.invalidateContexts({ rid }));
    const found = this.requesters.resolve(rid, pasid);
    if (!isEntryFault(found)) return found;
    this.refuseEntry(rid, pasid, page, access, found);
    return -1;
  }

  /** Walks for a request and fills the IOTLB. -1: refused. */
  walk(binding: Binding, page: number, access: Access, isSupervisor = false, isExec = false): number {
    const physicalPage = this.stages(binding, page, access, isSupervisor, isExec);
    if (physicalPage < 0) return this.report(binding, page, access);
    const isCached = binding.second !== undefined || binding.first !== undefined;
    if (isCached && !isSupervisor && !isExec) this.#fill(binding, page, physicalPage, this.attributes);
    this.iotlb.attributes = this.attributes;
    return physicalPage;
  }

  /** The walk itself: leaves `leafLevel` and `attributes`, or (-1) the failure in `first` or `second`, for `report`. */
  stages(binding: Binding, page: number, access: Access, isSupervisor: boolean, isExec: boolean): number {
    const { first, second } = binding;
    this.#hasHitWindow = false;
    this.#isFirst = first !== undefined;
    let physicalPage: number;
    if (first !== undefined) {
      physicalPage = this.first.walk(first, page, access, isSupervisor, isExec);
      if (physicalPage < 0) return -1;
      if (isInterruptPage(this.first.output)) {
        this.#hasHitWindow = true;
        return -1;
      }
      this.leafLevel = this.first.leafLevel;
      this.attributes = this.first.permission | (this.first.isSnooped || binding.isPageSnooped ? SNOOPED : 0);
      return physicalPage;
    }
    if (page >= 2 ** (this.mgaw - 12)) {
      this.second.failure = 'beyond';
      return -1;
    }
    if (second === undefined) {
      this.leafLevel = 0;
      this.attributes = 3;
      return page;
    }
    const { page: top, levels, marking } = second;
    physicalPage = this.second.walk(top, levels, page, access, marking);
    if (physicalPage < 0) return -1;
    this.leafLevel = this.second.level;
    // A write through a clean leaf has to come back here to set the dirty bit, so only what is dirty is cached writable.
    const isClean = marking !== 'off' && !this.second.isDirty;
    const permission = isClean ? this.second.permission & ~2 : this.second.permission;
    this.attributes = permission | (this.second.isSnooped ? SNOOPED : 0);
    return physicalPage;
  }

  /** Records why `stages` came to nothing. */
  report(binding: Binding, page: number, access: Access): -1 {
    if (this.#hasHitWindow) return this.#interruptRange(binding, page, access);
    if (binding.first !== undefined) return this.#refuseFirst(binding, page, access);
    return this.#refuseSecond(binding, page, access);
  }

  /** Whether what `stages` met is what a page request can mend. */
  get isRecoverable(): boolean {
    if (this.#hasHitWindow) return false;
    return this.#isFirst ? isFirstStageRecoverable(this.first.failure) : isSecondStageRecoverable(this.second.failure);
  }

  /** Whether a PASID entry allows requests for execution, or in privileged mode. Else it is recorded. */
  allows(binding: Binding, page: number, access: Access, isSupervisor: boolean, isExec: boolean): boolean {
    if (binding.first === undefined) return true;
    if (isExec && !binding.allowsExec) {
      const refusal = { reason: FaultReason.ERE_CLEAR, short: 'no execute requests' };
      this.#refuse(binding, page, access, refusal, 'the PASID entry has ERE clear');
      return false;
    }
    if (isSupervisor && !binding.allowsSupervisor) {
      const refusal = { reason: FaultReason.SRE_CLEAR, short: 'no supervisor requests' };
      this.#refuse(binding, page, access, refusal, 'the PASID entry has SRE clear');
      return false;
    }
    return true;
  }

  /** A refusal that an entry of root, context or PASID tables gives. */
  refuseEntry(rid: number, pasid: number, page: number, access: Access, fault: EntryFault): -1 {
    return this.fault(rid, pasid, page, access, fault, fault.detail, fault.isFaultRecordingOff);
  }

  /** Something was recorded, or lost. */
  protected signalFault(): void {
    this.faultEvent?.();
  }

  /** Records a refusal. */
  fault(
    rid: number,
    pasid: number,
    page: number,
    access: Access,
    refusal: Refusal,
    detail: string,
    isQuiet: boolean,
  ): -1 {
    this.#short = refusal.short;
    const fault = describe(rid, pasid, page, access, refusal.reason, detail);
    this.lastFault = fault;
    if (!isQuiet) {
      this.faults.record(rid, pasid, page, access === 1, refusal.reason);
      this.signalFault();
      this.#trace(fault);
    }
    return -1;
  }

  #miss(binding: Binding, page: number, access: Access): number {
    if (isInterruptPage(page)) return this.#window(binding, page, access);
    const { table } = binding;
    if (table !== undefined && this.memory.pool.isTrusted && page < binding.fastLimit) {
      const physicalPage = table.walk(page);
      if (physicalPage >= 0 && table.level === 0 && (table.permission & access) === access) {
        const { low } = table;
        const isSnooped = binding.isPageSnooped || (low & table.format.snoop) !== 0;
        if (!isSnooped || this.capabilities.canEnforceCoherency) {
          const attributes = table.permission | (isSnooped ? SNOOPED : 0);
          this.iotlb.fill(binding.space.tag, page, physicalPage, 0, attributes);
          this.iotlb.attributes = attributes;
          return physicalPage;
        }
      }
    }
    return this.walk(binding, page, access);
  }

  #otherwise(rid: number, pasid: number, page: number, access: Access): number {
    const { last } = this.requesters;
    if (last !== undefined && last.rid === rid && last.pasid === pasid && pasid >= 0) {
      const physicalPage = this.iotlb.lookup(last.space.tag, page, access);
      return physicalPage >= 0 ? physicalPage : this.#miss(last, page, access);
    }
    if (isInterruptPage(page) && pasid < 0) return this.#interruptMessage(rid, page, access);
    if (!this.isTranslating) return page < PHYSICAL_PAGES ? page : -1;
    const binding = this.bind(rid, pasid, page, access);
    if (binding === -1) return -1;
    if (this.#staleness !== 'always')
      this.#forget(() => this.iotlb.invalidatePages(binding.did, undefined, page, page));
    const physicalPage = this.iotlb.lookup(binding.space.tag, page, access);
    return physicalPage >= 0 ? physicalPage : this.#miss(binding, page, access);
  }

  /** A request in privileged mode or for execution: it does not use the IOTLB, whose entries are for neither. */
  #special(rid: number, pasid: number, page: number, access: Access, isSupervisor: boolean, isExec: boolean): number {
    const binding = this.bind(rid, pasid, page, access);
    if (binding === -1) return -1;
    if (isInterruptPage(page)) return this.#interruptRange(binding, page, access);
    if (!this.allows(binding, page, access, isSupervisor, isExec)) return -1;
    return this.walk(binding, page, access, isSupervisor, isExec);
  }

  /** A request with an address that a translation request gave: its requester is trusted, or not. */
  #alreadyTranslated(rid: number, pasid: number, page: number, access: Access): number {
    if (isInterruptPage(page)) return this.#interruptMessage(rid, page, access);
    if (!this.isTranslating) return page;
    const context = this.requesters.context(rid);
    if (isEntryFault(context)) return this.refuseEntry(rid, pasid, page, access, context);
    if (context.hasDeviceTlb) return page < PHYSICAL_PAGES ? page : -1;
    const reason = context.did < 0 ? FaultReason.DTE_CLEAR : FaultReason.TRANSLATION_REQUEST_BLOCKED;
    const refusal = { reason, short: 'no translated requests' };
    const detail = 'the context entry allows no translated requests';
    return this.fault(rid, pasid, page, access, refusal, detail, context.isFaultRecordingOff);
  }

  #fill(binding: Binding, page: number, physicalPage: number, attributes: number): void {
    // A leaf around the interrupt window is cached page by page, so that a hit cannot reach into the window.
    const size = 512 ** this.leafLevel;
    const level = Math.floor(page / size) === Math.floor(MSI_FIRST_PAGE / size) ? 0 : this.leafLevel;
    this.iotlb.fill(binding.space.tag, page, physicalPage, level, attributes);
  }

  /** With random staleness: now and then; with none: always. */
  #forget(what: () => void): void {
    this.#random = (Math.imul(this.#random, 1103515245) + 12345) >>> 0;
    if (this.#staleness === 'never' || (this.#random & 0x10000) !== 0) what();
  }

  #window(binding: Binding, page: number, access: Access): -1 {
    if (binding.pasid < 0) return this.#interruptMessage(binding.rid, page, access);
    return this.#interruptRange(binding, page, access);
  }

  /** A message, not DMA: nothing to record. */
  #interruptMessage(rid: number, page: number, access: Access): -1 {
    const detail = 'addresses 0xfee00000 to 0xfeefffff are interrupt messages';
    this.#short = 'interrupt address range';
    this.lastFault = describe(rid, -1, page, access, FaultReason.NOT_A_DMA_REQUEST, detail);
    this.#trace(this.lastFault);
    return -1;
  }

  #interruptRange(binding: Binding, page: number, access: Access): -1 {
    const refusal = { reason: FaultReason.INTERRUPT_RANGE, short: 'interrupt address range' };
    return this.#refuse(binding, page, access, refusal, 'addresses 0xfee00000 to 0xfeefffff are interrupt messages');
  }

  #refuseSecond(binding: Binding, page: number, access: Access): -1 {
    const { refusal, detail } = describeSecond(this.second, access, binding.context.did < 0, this.capabilities);
    return this.#refuse(binding, page, access, refusal, detail);
  }

  #refuseFirst(binding: Binding, page: number, access: Access): -1 {
    const { refusal, detail } = describeFirst(this.first, this.second, access);
    return this.#refuse(binding, page, access, refusal, detail);
  }

  #refuse(binding: Binding, page: number, access: Access, refusal: Refusal, detail: string): -1 {
    return this.fault(binding.rid, binding.pasid, page, access, refusal, detail, binding.isFaultRecordingOff);
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

export function isInterruptPage(page: number): boolean {
  return page >= MSI_FIRST_PAGE && page <= MSI_LAST_PAGE;
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
