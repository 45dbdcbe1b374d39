/**
 * Page requests of a unit on their way to users who answer for their own devices: iommufd's fault queues. What they do not take is the
 * host's (io-pgfault.ts). On a unit that the host does not serve, a group that nobody takes is answered with a failure, so that the
 * device stops asking.
 */
import type { QueuedPageRequest } from '../../hw/iommu/page-request-queue.ts';
import type { IommuUnit } from '../../hw/iommu/unit.ts';

/** Returns whether it takes the request; it then answers the group, once, after the last one of it. */
export type PageRequestTaker = (request: QueuedPageRequest) => boolean;

const takers = new WeakMap<IommuUnit, Set<PageRequestTaker>>();
/** How the host takes what is in a unit's queue, where it serves the unit. */
const hosts = new WeakMap<IommuUnit, () => void>();

/** Shows all page requests of a unit to `taker` from now on; the result ends that. */
export function takePageRequests(unit: IommuUnit, taker: PageRequestTaker): () => void {
  let set = takers.get(unit);
  if (set === undefined) {
    set = new Set();
    takers.set(unit, set);
    // Where the host serves the unit, it asks the takers first.
    unit.pageRequestEvent ??= () => empty(unit);
  }
  const known = set;
  known.add(taker);
  return () => {
    known.delete(taker);
  };
}

/** The host serves the unit: `handle` takes all that is in its queue. */
export function servePageRequests(unit: IommuUnit, handle: () => void): void {
  hosts.set(unit, handle);
}

/** What devices have asked for up to now is with who answers it when this returns. Done before a table is taken from a device. */
export function drainPageRequests(unit: IommuUnit): void {
  unit.drainPageRequests();
  const handle = hosts.get(unit);
  if (handle !== undefined) handle();
  else if (takers.has(unit)) empty(unit);
}

/** Whether somebody took the request. */
export function offerPageRequest(unit: IommuUnit, request: QueuedPageRequest): boolean {
  for (const taker of takers.get(unit) ?? []) if (taker(request)) return true;
  return false;
}

function empty(unit: IommuUnit): void {
  for (const request of unit.takePageRequests()) {
    if (!offerPageRequest(unit, request) && request.last) unit.respondPageRequest(request, 'failure');
  }
  // What was lost was answered by the unit itself; the groups that miss a request are never complete.
  if (unit.hasPageRequestOverflow) unit.clearPageRequestOverflow();
}
