/**
 * What a unit does for devices that translate by themselves: answers translation requests (ATS), takes page requests (PRI), and
 * carries invalidations and responses back to them.
 */
import {
  ALL_PAGES_ORDER,
  type AtcInvalidation,
  type AtsEndpoint,
  type PageRequest,
  type PageResponseCode,
  type Translation,
  type TranslationRequest,
} from '../pci/ats.ts';
import { type Access, READ, WRITE } from '../pci/dma.ts';
import { FaultReason } from './faults.ts';
import { SNOOPED } from './iotlb.ts';
import { PageRequestQueue } from './page-request-queue.ts';
import { type Binding, isEntryFault } from './requester-tables.ts';
import { isInterruptPage, MSI_FIRST_PAGE, type Translator } from './translator.ts';

export class DeviceServices {
  readonly queue: PageRequestQueue;
  /** Something is in the queue, or was lost. */
  pageRequestEvent: (() => void) | undefined;
  /** The same for the registers. */
  signal: (() => void) | undefined;
  /** Translations that were given to devices, and invalidations sent to them. */
  readonly counters = { translations: 0, invalidations: 0, timeouts: 0, responses: 0, strayResponses: 0 };
  readonly #unit: Translator;
  readonly #endpoints = new Map<number, AtsEndpoint>();

  constructor(unit: Translator) {
    this.#unit = unit;
    this.queue = new PageRequestQueue(unit.memory);
  }

  translationRequest(
    endpoint: AtsEndpoint,
    rid: number,
    page: number,
    request: TranslationRequest,
  ): Translation | undefined {
    const unit = this.#unit;
    const { pasid = -1, write = false, exec = false, privileged = false } = request;
    const access: Access = write ? WRITE : READ;
    const context = unit.requesters.context(rid);
    if (isEntryFault(context)) {
      unit.refuseEntry(rid, pasid, page, access, context);
      return undefined;
    }
    if (!context.hasDeviceTlb) {
      const reason = context.did < 0 ? FaultReason.DTE_CLEAR : FaultReason.TRANSLATION_REQUEST_BLOCKED;
      const refusal = { reason, short: 'no translation requests' };
      const detail = 'the context entry allows no translation requests';
      unit.fault(rid, pasid, page, access, refusal, detail, context.isFaultRecordingOff);
      return undefined;
    }
    const binding = unit.bind(rid, pasid, page, access);
    if (binding === -1) return undefined;
    this.#endpoints.set(rid, endpoint);
    if (isInterruptPage(page)) {
      return { ...nothing(page), physicalPage: page, write: true, isUntranslatedOnly: true };
    }
    if (!unit.allows(binding, page, access, privileged, exec)) return undefined;
    this.counters.translations++;
    return this.#look(binding, page, access, privileged, exec);
  }

  #look(binding: Binding, page: number, access: Access, privileged: boolean, exec: boolean): Translation | undefined {
    const unit = this.#unit;
    let physicalPage = unit.stages(binding, page, access, privileged, exec);
    if (physicalPage < 0 && access === WRITE && unit.isRecoverable) {
      physicalPage = unit.stages(binding, page, READ, privileged, exec);
    }
    if (physicalPage < 0) {
      if (unit.isRecoverable) return nothing(page);
      unit.report(binding, page, access);
      return undefined;
    }
    const size = 512 ** unit.leafLevel;
    const isAround = Math.floor(page / size) === Math.floor(MSI_FIRST_PAGE / size);
    const pages = isAround ? 1 : size;
    const { attributes } = unit;
    return {
      firstPage: page - (page % pages),
      pages,
      physicalPage: physicalPage - (page % pages),
      read: privileged || (attributes & READ) !== 0,
      write: (attributes & WRITE) !== 0 || (privileged && access === WRITE),
      exec,
      privileged,
      mustSnoop: (attributes & SNOOPED) !== 0,
      isUntranslatedOnly: false,
    };
  }

  /** False: refused. True: queued, or lost for want of room and then answered. */
  pageRequest(endpoint: AtsEndpoint, rid: number, request: PageRequest): boolean {
    const unit = this.#unit;
    const { pasid, page } = request;
    const access: Access = request.write ? WRITE : READ;
    const refuse = (reason: FaultReason, short: string, detail: string, isQuiet: boolean): boolean => {
      unit.fault(rid, pasid, page, access, { reason, short }, detail, isQuiet);
      return false;
    };
    if (!unit.requesters.root.isScalable) {
      const detail = 'a page request while the unit is in legacy mode';
      return refuse(FaultReason.PAGE_REQUEST_IN_LEGACY_MODE, 'no page requests', detail, false);
    }
    const context = unit.requesters.context(rid);
    if (isEntryFault(context)) {
      unit.refuseEntry(rid, pasid, page, access, context);
      return false;
    }
    const isQuiet = context.isFaultRecordingOff;
    if (!context.hasPageRequests) {
      return refuse(FaultReason.PRE_CLEAR, 'no page requests', 'the context entry allows no page requests', isQuiet);
    }
    if (pasid >= 0 && !context.hasPasids) {
      return refuse(FaultReason.PASIDE_CLEAR, 'no PASIDs', 'the context entry allows no PASIDs', isQuiet);
    }
    this.#endpoints.set(rid, endpoint);
    const isQueued = this.queue.push(rid, request);
    if (!isQueued && request.last) endpoint.respond({ pasid, group: request.group, code: 'failure' });
    this.signal?.();
    this.pageRequestEvent?.();
    return true;
  }

  /** Carries software's answer to the device. False: nobody there has asked for anything. */
  respond(rid: number, pasid: number, group: number, code: PageResponseCode): boolean {
    const endpoint = this.#endpoints.get(rid);
    if (endpoint === undefined) {
      this.counters.strayResponses++;
      return false;
    }
    this.counters.responses++;
    endpoint.respond({ pasid, group, code });
    return true;
  }

  /** A device forgets translations. False: it does not answer. A device that never asked for one has none. */
  invalidate(rid: number, invalidation: AtcInvalidation): boolean {
    const endpoint = this.#endpoints.get(rid);
    if (endpoint === undefined) return true;
    this.counters.invalidations++;
    const isDone = endpoint.invalidate(invalidation);
    if (!isDone) this.counters.timeouts++;
    return isDone;
  }

  /** A device forgets all translations. */
  invalidateAll(rid: number): boolean {
    return this.invalidate(rid, { pasid: -1, isAllPasids: true, firstPage: 0, order: ALL_PAGES_ORDER });
  }

  /** The device is gone, or was reset: it has no translations and waits for no answer. */
  forget(rid: number): void {
    this.#endpoints.delete(rid);
  }
}

function nothing(page: number): Translation {
  return {
    firstPage: page,
    pages: 1,
    physicalPage: 0,
    read: false,
    write: false,
    exec: false,
    privileged: false,
    mustSnoop: false,
    isUntranslatedOnly: false,
  };
}
