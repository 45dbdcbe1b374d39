/**
 * One IOMMU unit: what stands between functions and physical memory. Translation is in translator.ts; here is what software does to a
 * unit: contexts, PASID entries, invalidations. docs/iommu.md tells how it all hangs together.
 */
import type { PhysicalMemory } from '../memory/physical-memory.ts';
import type { AtsEndpoint, PageRequest, PageResponseCode, Translation, TranslationRequest } from '../pci/ats.ts';
import type { Invalidation } from './descriptors.ts';
import { DeviceServices } from './device-services.ts';
import { legacyContext, type PasidEntry, pasidEntry } from './entries.ts';
import { InvalidationQueue } from './invalidation-queue.ts';
import type { QueuedPageRequest } from './page-request-queue.ts';
import type { PageTable } from './page-table.ts';
import { Register, RegisterFile } from './register-file.ts';
import { decodeCapabilities, type UnitPresetName, unitPresets } from './registers.ts';
import { type RequesterRights, RootTable } from './root-table.ts';
import { TableMemory } from './table-memory.ts';
import { TablePool } from './table-pool.ts';
import { type Staleness, Translator } from './translator.ts';

export { ridText } from './requester-tables.ts';
export { MSI_FIRST_PAGE, MSI_LAST_PAGE, type Staleness } from './translator.ts';

/** The page request queue has 2^4 pages: 2048 entries. */
const PRQ_ORDER = 4;

export interface IommuUnitOptions {
  readonly preset?: UnitPresetName;
  /** Registers that differ from the preset's. */
  readonly cap?: bigint;
  readonly ecap?: bigint;
  /** Legacy units mark leaves accessed and dirty too. Scalable ones do what the PASID entry says. */
  readonly hasAccessedDirty?: boolean;
  /** Where tables of its domains lie. Units of one machine may share it. */
  readonly tables?: TablePool;
  /** The machine's memory: guests' tables lie in it. Without it nested walks find no memory. */
  readonly memory?: PhysicalMemory;
  /** What software chose (RTADDR.TTM); by default scalable when the unit can. */
  readonly mode?: 'legacy' | 'scalable';
  readonly staleness?: Staleness;
  /** As after power-on: nothing is translated until software has set the registers. */
  readonly isOff?: boolean;
}

export class IommuUnit extends Translator {
  /** CAP and ECAP registers. */
  readonly cap: bigint;
  readonly ecap: bigint;
  /** ECAP.SC: the unit can make no-snoop requests coherent. */
  readonly canEnforceCoherency: boolean;
  /** Page sizes of its second-stage tables, one bit each, in bytes. */
  readonly pgsizeBitmap: bigint;
  readonly hasAccessedDirty: boolean;
  readonly mode: 'legacy' | 'scalable';
  readonly root: RootTable;
  /** Translation and page requests of devices. */
  readonly devices: DeviceServices;
  /** The invalidation queue; off until software switches it on. */
  readonly queue: InvalidationQueue;
  readonly tables: TablePool;

  constructor(name: string, options: IommuUnitOptions = {}) {
    const preset = unitPresets[options.preset ?? 'vtd-legacy-sc'];
    const cap = options.cap ?? preset.cap;
    const ecap = options.ecap ?? preset.ecap;
    const tables = options.tables ?? new TablePool();
    super(name, new TableMemory(tables, options.memory), decodeCapabilities(cap, ecap), {
      marksLegacy: options.hasAccessedDirty ?? false,
      staleness: options.staleness ?? 'always',
    });
    this.cap = cap;
    this.ecap = ecap;
    this.canEnforceCoherency = this.capabilities.canEnforceCoherency;
    this.pgsizeBitmap = [0x1000n, 0x20_1000n, 0x4020_1000n][this.capabilities.largestLeaf]!;
    this.hasAccessedDirty = options.hasAccessedDirty ?? false;
    this.tables = tables;
    this.mode = options.mode ?? (this.capabilities.isScalable ? 'scalable' : 'legacy');
    if (this.mode === 'scalable' && !this.capabilities.isScalable) throw new Error(`Unit ${name} has no scalable mode`);
    this.root = new RootTable(this.memory, this.mode === 'scalable');
    this.devices = new DeviceServices(this);
    this.queue = new InvalidationQueue(this.memory, (what) => this.invalidate(what));
    if (this.mode === 'scalable' && this.capabilities.hasPageRequests) {
      this.devices.queue.setBase(tables.structures.allocate(2 ** PRQ_ORDER), PRQ_ORDER);
    }
    this.isTranslating = options.isOff !== true;
    const page = this.isTranslating ? this.root.page : 0;
    this.requesters.root = { page, isScalable: this.mode === 'scalable', isInvalid: false };
  }

  /** The unit's registers, for software that drives it by them. */
  get registers(): RegisterFile {
    if (this.#registers === undefined) {
      const registers = new RegisterFile(this);
      this.#registers = registers;
      this.queue.errorEvent = () => registers.raise(Register.FECTL);
      this.queue.waitEvent = () => registers.raise(Register.IECTL);
      this.devices.signal = () => registers.raise(Register.PECTL);
    }
    return this.#registers;
  }

  /** GCMD.TE. Nothing cached before is used after. */
  setTranslating(on: boolean): void {
    this.isTranslating = on;
    this.requesters.invalidateContexts();
    this.iotlb.invalidateAll();
  }

  /**
   * Does what a descriptor asks for. False: a device did not answer. Undefined: the unit has no such thing, or the range is larger than
   * CAP.MAMV.
   */
  invalidate(what: Invalidation): boolean | undefined {
    const { iotlb, requesters, devices, capabilities } = this;
    const isScalable = requesters.root.isScalable;
    switch (what.kind) {
      case 'context':
        requesters.invalidateContexts(what);
        return true;
      case 'iotlb':
      case 'pasid-iotlb':
        if (what.kind === 'pasid-iotlb' && !isScalable) return undefined;
        if (what.pages === undefined) {
          if (what.did === undefined) iotlb.invalidateAll();
          else iotlb.invalidateDomain(what.did, what.kind === 'iotlb' ? undefined : what.pasid);
          return true;
        }
        if (what.pages.order > capabilities.mamv || !capabilities.hasPageInvalidation) return undefined;
        iotlb.invalidatePages(
          what.did ?? 0,
          what.kind === 'iotlb' ? undefined : what.pasid,
          ...blockEnds(what.pages.firstPage, what.pages.order),
        );
        return true;
      case 'device-tlb':
        if (!capabilities.hasDeviceTlb) return undefined;
        return devices.invalidate(what.rid, { ...what.pages, pasid: -1, isAllPasids: false });
      case 'pasid-device-tlb': {
        if (!isScalable) return undefined;
        const { pasid, isAllPasids = false } = what;
        return devices.invalidate(what.rid, { ...what.pages, pasid, isAllPasids });
      }
      case 'pasid-cache':
        if (!isScalable) return undefined;
        if (what.did === undefined) requesters.invalidatePasids();
        else requesters.invalidatePasids({ did: what.did, ...(what.pasid === undefined ? {} : { pasid: what.pasid }) });
        return true;
      case 'interrupt-entry':
        this.interruptEntryEvent?.(what.index, 2 ** (what.order ?? 0));
        return true;
      case 'response':
        if (!isScalable || !capabilities.hasPageRequests) return undefined;
        devices.respond(what.rid, what.pasid, what.group, what.code);
        return true;
      case 'wait':
        return true;
    }
  }

  /** Interrupt remapping entries are to be forgotten: all, or `count` from `index`. */
  interruptEntryEvent: ((index: number | undefined, count: number) => void) | undefined;

  protected override signalFault(): void {
    this.#registers?.raise(Register.FECTL);
    super.signalFault();
  }

  #registers: RegisterFile | undefined;

  /**
   * Programs what requests of a requester without PASID go through: a second-stage table, or (undefined) pass-through. The change is
   * seen at once; translations that were cached under a former domain id stay until invalidated.
   */
  setContext(rid: number, did: number, table: PageTable | undefined, isFaultRecordingOff = false): void {
    const secondStage = table === undefined ? undefined : { page: table.top, levels: table.levels };
    if (this.mode === 'scalable') {
      const type = secondStage === undefined ? 'pass-through' : 'second';
      const stage = secondStage === undefined ? {} : { secondStage };
      this.setPasidEntry(rid, 0, { type, did, isFaultRecordingOff, ...stage, isWalkSnooped: this.isWalkSnooped });
      return;
    }
    this.root.setLegacy(rid, legacyContext({ did, secondStage, isFaultRecordingOff }));
    this.requesters.invalidateContexts({ rid });
  }

  /** Blocks a requester, with all its PASIDs. */
  clearContext(rid: number): void {
    this.root.clear(rid);
    this.requesters.invalidateContexts({ rid });
  }

  /**
   * Scalable mode: programs the entry of a PASID; 0 is for requests without one. The PASID cache is told; the IOTLB is not.
   */
  setPasidEntry(rid: number, pasid: number, entry: PasidEntry): void {
    this.root.setPasid(rid, pasid, pasidEntry(entry));
    this.requesters.invalidateContexts({ rid });
  }

  /** Scalable mode: the PASID is not present any more. */
  clearPasidEntry(rid: number, pasid: number, isFaultRecordingOff = false): void {
    this.root.clearPasid(rid, pasid, isFaultRecordingOff);
    this.requesters.invalidateContexts({ rid });
  }

  /** Scalable mode: what a requester may do beside plain requests, and how many PASIDs its directory has room for. */
  setRights(rid: number, rights: RequesterRights, pasids = 0): void {
    this.root.setRights(rid, rights, pasids);
    this.requesters.invalidateContexts({ rid });
  }

  /** Page walks snoop the caches; software asks for it where the unit is coherent. */
  get isWalkSnooped(): boolean {
    return this.capabilities.isCoherent;
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

  translationRequest(
    endpoint: AtsEndpoint,
    rid: number,
    page: number,
    request: TranslationRequest,
  ): Translation | undefined {
    return this.devices.translationRequest(endpoint, rid, page, request);
  }

  pageRequest(endpoint: AtsEndpoint, rid: number, request: PageRequest): boolean {
    return this.devices.pageRequest(endpoint, rid, request);
  }

  /** The page request event: something is in the queue, or a request found no room (`hasPageRequestOverflow`). */
  get pageRequestEvent(): (() => void) | undefined {
    return this.devices.pageRequestEvent;
  }

  set pageRequestEvent(event: (() => void) | undefined) {
    this.devices.pageRequestEvent = event;
  }

  /** Takes all page requests out of the queue. */
  takePageRequests(): QueuedPageRequest[] {
    return this.devices.queue.take();
  }

  /** Requests were lost; until `clearPageRequestOverflow` all are. Software throws incomplete groups away first. */
  get hasPageRequestOverflow(): boolean {
    return this.devices.queue.hasOverflow;
  }

  clearPageRequestOverflow(): void {
    this.devices.queue.clearOverflow();
  }

  /** Answers a group of page requests. False: that requester has never asked. */
  respondPageRequest(
    to: { readonly rid: number; readonly pasid: number; readonly group: number },
    code: PageResponseCode,
  ): boolean {
    return this.devices.respond(to.rid, to.pasid, to.group, code);
  }

  /** After it everything that devices have sent is in the queue. Devices here send at once, so nothing has to be waited for. */
  drainPageRequests(): void {}
}

/** First and last page of a block; `order` pages are aligned to themselves, whatever the low bits of the address say. */
function blockEnds(page: number, order: number): [first: number, last: number] {
  const pages = 2 ** order;
  const first = page - (page % pages);
  return [first, first + pages - 1];
}
