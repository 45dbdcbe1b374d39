/**
 * Domain ids (DIDs): the numbers by which a unit's IOTLB tells address spaces apart. A domain has one in each unit to which it is
 * attached. 0 is kept free (caching mode uses it), 1 is shared by all pass-through contexts.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { Errno } from '../../lib/errno.ts';
import { IdTable } from '../../lib/id-table.ts';

export const PASS_THROUGH_DID = 1;
const FIRST_DID = 2;

const idsOf = new WeakMap<IommuUnit, IdTable<object>>();

/** ENOSPC: the unit has no more ids. */
export function allocateDid(unit: IommuUnit, domain: object): number {
  let ids = idsOf.get(unit);
  if (ids === undefined) {
    ids = new IdTable<object>(FIRST_DID);
    idsOf.set(unit, ids);
  }
  const did = ids.add(domain);
  if (did >= unit.capabilities.domains) {
    ids.remove(did);
    throw new Errno('ENOSPC', `unit ${unit.name} has no more than ${unit.capabilities.domains} domain ids`);
  }
  return did;
}

/** The id is free again; nothing of it is left in the IOTLB. */
export function freeDid(unit: IommuUnit, did: number): void {
  unit.invalidateDomain(did);
  unit.iotlb.forget(did);
  idsOf.get(unit)!.remove(did);
}
