/**
 * PASIDs of the host as Linux gives them today: one pool for all devices, from 1, because a PASID must mean one process for every
 * device of it; 0 is for requests without PASID.
 */
import { IdSpace } from '../../lib/id-space.ts';
import { INVALID_IOASID } from './ioasid.ts';

export const FIRST_GLOBAL_PASID = 1;

export class GlobalPasids {
  readonly #ids = new IdSpace();

  /** PASIDs that are out. */
  get used(): number {
    return this.#ids.used;
  }

  /** The lowest free PASID of a device that has `maxPasids` of them; INVALID_IOASID: none is free, or it has none. */
  alloc(maxPasids: number): number {
    if (maxPasids <= FIRST_GLOBAL_PASID) return INVALID_IOASID;
    const pasid = this.#ids.allocate(FIRST_GLOBAL_PASID, maxPasids - 1);
    return pasid < 0 ? INVALID_IOASID : pasid;
  }

  /** PASID 0 is nobody's, so freeing it does nothing. */
  free(pasid: number): void {
    if (pasid !== 0) this.#ids.release(pasid);
  }
}
