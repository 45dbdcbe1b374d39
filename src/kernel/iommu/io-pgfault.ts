/**
 * Page requests of devices: taken out of the units' queues, gathered into groups, given to whoever serves the address space, and
 * answered once.
 *
 * A group is complete with the request that says `last`; until then its requests wait. What cannot be served is answered here:
 * INVALID when nobody serves that address space or the request makes no sense, FAILURE when its handler fails. A group that is
 * answered, or whose address space went away, is closed: later answers are dropped and counted.
 */
import type { QueuedPageRequest } from '../../hw/iommu/page-request-queue.ts';
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PageResponseCode } from '../../hw/pci/ats.ts';
import type { Clock } from '../../hw/pci/clock.ts';
import { Errno } from '../../lib/errno.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import type { Domain } from './domain.ts';
import type { IommuGroup } from './group.ts';
import type { IommuCore } from './iommu.ts';
import { offerPageRequest, servePageRequests } from './page-requests.ts';

/** Requests that one device may have waiting for the ends of their groups. */
const MOST_PARTIAL = 4096;

const traceRequest = new Tracepoint<{
  unit: string;
  rid: number;
  pasid: number;
  addr: bigint;
  group: number;
  last: boolean;
}>('intel_iommu:prq_report');

/** Requests that are to be answered together. */
export interface PageFaultGroup {
  readonly rid: number;
  /** -1: none. */
  readonly pasid: number;
  /** The device's number for it. */
  readonly group: number;
  /** In the order in which they came; the last one ended the group. */
  readonly requests: readonly QueuedPageRequest[];
  /** What the device asked about. */
  readonly domain: Domain;
  /** Answers it, now or later. False: it was closed before, and nothing is sent. */
  respond(code: PageResponseCode): boolean;
}

/** Takes a group and answers it at some time. An `Errno` that it throws is answered FAILURE. */
export type PageFaultHandler = (group: PageFaultGroup) => void;

interface Partial {
  readonly requests: QueuedPageRequest[];
  /** There was no room for all. */
  isSpoiled: boolean;
}

interface Pending {
  readonly unit: IommuUnit;
  readonly group: PageFaultGroup;
}

export interface PageFaultsOptions {
  /** Queues are looked at this many nanoseconds after their event, as by an interrupt's thread; without it, at once. */
  readonly delay?: { readonly clock: Clock; readonly nanoseconds: number };
}

export class PageFaults {
  readonly counters = { requests: 0, groups: 0, invalid: 0, failures: 0, late: 0, overflows: 0, stopMarkers: 0 };
  readonly #core: IommuCore;
  readonly #options: PageFaultsOptions;
  readonly #handlers = new WeakMap<Domain, PageFaultHandler>();
  /** Incomplete groups by unit and `rid * 512 + group`. */
  readonly #partial = new Map<IommuUnit, Map<number, Partial>>();
  readonly #partialCounts = new Map<IommuUnit, Map<number, number>>();
  readonly #pending = new Set<Pending>();

  constructor(core: IommuCore, options: PageFaultsOptions = {}) {
    this.#core = core;
    this.#options = options;
  }

  /** Groups that wait for an answer. */
  get pending(): number {
    return this.#pending.size;
  }

  /** Requests that wait for the ends of their groups. */
  get partial(): number {
    let sum = 0;
    for (const groups of this.#partial.values()) for (const { requests } of groups.values()) sum += requests.length;
    return sum;
  }

  /** Answers the page request event of a unit from now on. */
  serve(unit: IommuUnit): void {
    const { delay } = this.#options;
    let isDue = false;
    servePageRequests(unit, () => this.handle(unit));
    unit.pageRequestEvent = () => {
      if (delay === undefined) this.handle(unit);
      else if (!isDue) {
        isDue = true;
        delay.clock.after(delay.nanoseconds, () => {
          isDue = false;
          this.handle(unit);
        });
      }
    };
  }

  /** Who serves the page requests of an address space; undefined: nobody. */
  setHandler(domain: Domain, handler: PageFaultHandler | undefined): void {
    if (handler === undefined) this.#handlers.delete(domain);
    else this.#handlers.set(domain, handler);
  }

  /** Takes what is in a unit's queue. */
  handle(unit: IommuUnit): void {
    for (const request of unit.takePageRequests()) this.#take(unit, request);
    if (!unit.hasPageRequestOverflow) return;
    // The ends of some groups may have been lost, and the devices were told so.
    this.counters.overflows++;
    this.#partial.delete(unit);
    this.#partialCounts.delete(unit);
    unit.clearPageRequestOverflow();
  }

  /**
   * The address space of a PASID (-1: of requests without one) was taken from a group's devices, or the device goes away (`pasid`
   * undefined: all of it): when this returns no request of it is in a queue, none waits, and every group is answered.
   */
  drain(group: IommuGroup, pasid: number | undefined): void {
    const { unit } = group;
    if (unit === undefined) return;
    const concerns = (request: { readonly rid: number; readonly pasid: number }): boolean =>
      group.hasRid(request.rid) && (pasid === undefined || request.pasid === pasid);
    for (const pending of [...this.#pending]) {
      if (pending.unit === unit && concerns(pending.group)) pending.group.respond('invalid');
    }
    unit.drainPageRequests();
    this.handle(unit);
    for (const [key, { requests }] of this.#partial.get(unit) ?? []) {
      if (concerns(requests[0]!)) this.#forget(unit, key);
    }
    for (const pending of [...this.#pending]) {
      if (pending.unit === unit && concerns(pending.group)) pending.group.respond('invalid');
    }
  }

  #take(unit: IommuUnit, request: QueuedPageRequest): void {
    const { rid, pasid, last, read, write } = request;
    this.counters.requests++;
    traceRequest.fire(() => ({
      unit: unit.name,
      rid,
      pasid,
      addr: BigInt(request.page) << 12n,
      group: request.group,
      last,
    }));
    if (isNonsense(unit, request)) {
      this.#refuse(unit, request);
      return;
    }
    if (last && !read && !write) {
      this.counters.stopMarkers++;
      return;
    }
    if (offerPageRequest(unit, request)) return;
    const domain = this.#domainOf(unit, rid, pasid);
    const handler = domain === undefined ? undefined : this.#handlers.get(domain);
    if (domain === undefined || handler === undefined) {
      this.#refuse(unit, request);
      return;
    }
    const partial = this.#gather(unit, request);
    if (last) this.#complete(unit, domain, handler, request, partial);
  }

  #complete(
    unit: IommuUnit,
    domain: Domain,
    handler: PageFaultHandler,
    { rid, pasid, group: number }: QueuedPageRequest,
    { requests, isSpoiled }: Partial,
  ): void {
    this.counters.groups++;
    const group: PageFaultGroup = {
      rid,
      pasid,
      group: number,
      requests,
      domain,
      respond: (code) => {
        if (!this.#pending.delete(pending)) {
          this.counters.late++;
          return false;
        }
        if (code === 'failure') this.counters.failures++;
        if (code === 'invalid') this.counters.invalid++;
        unit.respondPageRequest({ rid, pasid, group: number }, code);
        return true;
      },
    };
    const pending: Pending = { unit, group };
    this.#pending.add(pending);
    if (isSpoiled) {
      group.respond('failure');
      return;
    }
    try {
      handler(group);
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      if (this.#pending.has(pending)) group.respond('failure');
    }
  }

  /** The request with those of its group that came before; they leave the list with the last one. */
  #gather(unit: IommuUnit, request: QueuedPageRequest): Partial {
    const key = request.rid * 512 + request.group;
    let groups = this.#partial.get(unit);
    if (groups === undefined) {
      groups = new Map();
      this.#partial.set(unit, groups);
    }
    let partial = groups.get(key);
    if (partial === undefined) {
      partial = { requests: [], isSpoiled: false };
      groups.set(key, partial);
    }
    if (request.last) {
      this.#forget(unit, key);
      partial.requests.push(request);
      return partial;
    }
    let counts = this.#partialCounts.get(unit);
    if (counts === undefined) {
      counts = new Map();
      this.#partialCounts.set(unit, counts);
    }
    const count = counts.get(request.rid) ?? 0;
    if (count >= MOST_PARTIAL) {
      partial.isSpoiled = true;
    } else {
      counts.set(request.rid, count + 1);
      partial.requests.push(request);
    }
    return partial;
  }

  #forget(unit: IommuUnit, key: number): void {
    const groups = this.#partial.get(unit);
    const partial = groups?.get(key);
    if (groups === undefined || partial === undefined) return;
    groups.delete(key);
    const counts = this.#partialCounts.get(unit);
    const rid = Math.floor(key / 512);
    const left = (counts?.get(rid) ?? 0) - partial.requests.length;
    if (left > 0) counts!.set(rid, left);
    else counts?.delete(rid);
  }

  /** Only the last request of a group has an answer. */
  #refuse(unit: IommuUnit, { rid, pasid, group, last }: QueuedPageRequest): void {
    if (!last) return;
    this.#forget(unit, rid * 512 + group);
    this.counters.invalid++;
    unit.respondPageRequest({ rid, pasid, group }, 'invalid');
  }

  /** The address space of the PASID; a guest's whole PASID table hangs on its nested domain, so requests with PASIDs that the host does not know go there. */
  #domainOf(unit: IommuUnit, rid: number, pasid: number): Domain | undefined {
    const group = this.#core.groupOfRid(unit, rid);
    if (group === undefined || pasid < 0) return group?.domain;
    const own = group.domainOfPasid(pasid);
    if (own !== undefined) return own;
    return group.domain.kind === 'nested' ? group.domain : undefined;
  }
}

/** Requests that no handler is asked about. */
function isNonsense(unit: IommuUnit, { page, read, write, exec, privileged }: QueuedPageRequest): boolean {
  const half = unit.capabilities.hasFirstStage5Level ? 2 ** 44 : 2 ** 35;
  const isCanonical = page < half || page >= 2 ** 52 - half;
  return !isCanonical || (privileged && (read || write)) || (exec && read);
}
