/**
 * What a guest's PASID means on the host: which numbers a VM may use on a device.
 *
 * `identical`: the guest's number is the host's; devices tell VMs apart by requester ID. `translated`: one queue serves many VMs, so
 * each VM has a table of its own from its numbers to the host's, which the processor consults (ENQCMD). `none`: no PASIDs.
 */
import { Errno } from '../../lib/errno.ts';
import { LAST_PASID } from './ioasid.ts';

export type PasidPolicy = 'identical' | 'translated' | 'none';

/** One VM's numbers. */
export class VirtualPasids {
  readonly policy: PasidPolicy;
  readonly #hostOf = new Map<number, number>();

  constructor(policy: PasidPolicy = 'identical') {
    this.policy = policy;
  }

  get count(): number {
    return this.#hostOf.size;
  }

  /**
   * A guest's PASID is attached to what `hostPasid` is on the host. Once more with the same number changes nothing. EOPNOTSUPP: no
   * PASIDs. EINVAL: a number beyond 20 bits, or another one than the guest's where they are identical. EBUSY: it means another one
   * while it is in use.
   */
  map(guestPasid: number, hostPasid: number): void {
    if (this.policy === 'none') throw new Errno('EOPNOTSUPP', 'the device has no PASIDs for guests');
    for (const pasid of [guestPasid, hostPasid]) {
      if (!(pasid >= 0 && pasid <= LAST_PASID)) throw new Errno('EINVAL', `PASID ${pasid} has more than 20 bits`);
    }
    if (this.policy === 'identical' && guestPasid !== hostPasid) {
      throw new Errno('EINVAL', `a guest's PASID ${guestPasid} is the host's, not ${hostPasid}`);
    }
    const known = this.#hostOf.get(guestPasid);
    if (known !== undefined && known !== hostPasid) {
      throw new Errno('EBUSY', `PASID ${guestPasid} of the guest is in use for ${known}`);
    }
    this.#hostOf.set(guestPasid, hostPasid);
  }

  /** The host's PASID, -1 when the guest has none by that number: the command is refused then. */
  hostOf(guestPasid: number): number {
    return this.#hostOf.get(guestPasid) ?? -1;
  }

  unmap(guestPasid: number): void {
    this.#hostOf.delete(guestPasid);
  }
}
