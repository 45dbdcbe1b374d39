/**
 * PASIDs of a guest and what they are in the host: the table that a processor consults when a guest submits work with ENQCMD
 * (VT-x "PASID translation"). A PASID that is not in it leaves the guest.
 */
import { Errno } from '../../lib/errno.ts';

const MOST = 2 ** 20;

export class PasidTranslation {
  readonly #host = new Map<number, number>();

  get size(): number {
    return this.#host.size;
  }

  /** EINVAL: no PASID. EEXIST: the guest's has a translation. */
  map(guest: number, host: number): void {
    for (const pasid of [guest, host]) {
      if (!(Number.isInteger(pasid) && pasid >= 0 && pasid < MOST)) {
        throw new Errno('EINVAL', `${pasid} is no PASID of 20 bits`);
      }
    }
    if (this.#host.has(guest)) throw new Errno('EEXIST', `guest PASID ${guest} is translated already`);
    this.#host.set(guest, host);
  }

  /** ENOENT. */
  unmap(guest: number): void {
    if (!this.#host.delete(guest)) throw new Errno('ENOENT', `guest PASID ${guest} has no translation`);
  }

  /** Undefined: the processor leaves the guest. */
  translate(guest: number): number | undefined {
    return this.#host.get(guest);
  }

  clear(): void {
    this.#host.clear();
  }
}
