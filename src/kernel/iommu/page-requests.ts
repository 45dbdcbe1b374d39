/**
 * Page requests of a unit on their way to who answers them: iommufd's fault queues, a process's shared address space. The unit's queue is
 * emptied as soon as something is in it; a group that nobody takes is answered with a failure, so that the device stops asking.
 */
import type { QueuedPageRequest } from '../../hw/iommu/page-request-queue.ts';
import type { IommuUnit } from '../../hw/iommu/unit.ts';

/** Returns whether it takes the request; it then answers the group, once, after the last one of it. */
export type PageRequestTaker = (request: QueuedPageRequest) => boolean;

const takers = new WeakMap<IommuUnit, Set<PageRequestTaker>>();

/** Shows all page requests of a unit to `taker` from now on; the result ends that. */
export function takePageRequests(unit: IommuUnit, taker: PageRequestTaker): () => void {
  let set = takers.get(unit);
  if (set === undefined) {
    set = new Set();
    takers.set(unit, set);
    unit.pageRequestEvent = () => empty(unit);
  }
  const known = set;
  known.add(taker);
  return () => {
    known.delete(taker);
  };
}

function empty(unit: IommuUnit): void {
  for (const request of unit.takePageRequests()) {
    let isTaken = false;
    for (const taker of takers.get(unit)!) {
      isTaken = taker(request);
      if (isTaken) break;
    }
    if (!isTaken && request.last) unit.respondPageRequest(request, 'failure');
  }
  // What was lost was answered by the unit itself; the groups that miss a request are never complete.
  if (unit.hasPageRequestOverflow) unit.clearPageRequestOverflow();
}
