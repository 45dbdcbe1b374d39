/**
 * Translation with a second try: a page that is not mapped is offered to somebody who may map it while the transfer waits, as a user
 * program with page requests would. Used by doors whose peer answers for addresses that it never mapped.
 */
import { type Access, type Upstream, WRITE } from '../hw/pci/dma.ts';

/** Told of a page without translation; true: it is mapped now. */
export type DmaMiss = (functionName: string, page: number, isWrite: boolean) => boolean;

export class DemandUpstream implements Upstream {
  readonly #unit: Upstream;
  readonly #name: () => string;
  readonly #miss: DmaMiss;

  constructor(unit: Upstream, name: () => string, miss: DmaMiss) {
    this.#unit = unit;
    this.#name = name;
    this.#miss = miss;
  }

  get why(): string {
    return this.#unit.why;
  }

  get remapsInterrupts(): boolean {
    return this.#unit.remapsInterrupts === true;
  }

  interrupt(rid: number, address: number, data: number): boolean {
    return this.#unit.interrupt?.(rid, address, data) ?? false;
  }

  reach(rid: number, pasid: number, page: number, access: Access): number {
    return this.#unit.reach?.(rid, pasid, page, access) ?? 1;
  }

  translate(rid: number, pasid: number, page: number, access: Access): number {
    const found = this.#unit.translate(rid, pasid, page, access);
    if (found >= 0 || pasid >= 0 || !this.#miss(this.#name(), page, access === WRITE)) return found;
    return this.#unit.translate(rid, pasid, page, access);
  }
}
