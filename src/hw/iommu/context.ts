/**
 * Root and context tables of legacy mode: what a unit does with the requests of a requester ID. Bus 0 to 255, devfn 0 to 255.
 *
 * An entry that is not there blocks the function. The tables are objects here; whoever wants them in their true format finds all
 * the fields.
 */
import type { IotlbSpace } from './iotlb.ts';
import type { PageTable } from './page-table.ts';

/** A context entry. `table` undefined: pass-through, the address is the physical one. */
export interface Context {
  /** The domain id under which the IOTLB keeps its translations. */
  readonly did: number;
  readonly table: PageTable | undefined;
  readonly space: IotlbSpace;
  /** FPD: its faults are not recorded. */
  readonly isFaultRecordingOff: boolean;
}

export class RootTable {
  readonly #buses: ((Context | undefined)[] | undefined)[] = new Array(256).fill(undefined);

  /** The context of a requester, undefined when its root or context entry is not present. */
  lookup(rid: number): Context | undefined {
    return this.#buses[rid >>> 8]?.[rid & 255];
  }

  hasBus(bus: number): boolean {
    return this.#buses[bus] !== undefined;
  }

  set(rid: number, context: Context): void {
    const bus = rid >>> 8;
    let contexts = this.#buses[bus];
    if (contexts === undefined) {
      contexts = new Array<Context | undefined>(256).fill(undefined);
      this.#buses[bus] = contexts;
    }
    contexts[rid & 255] = context;
  }

  clear(rid: number): void {
    const contexts = this.#buses[rid >>> 8];
    if (contexts !== undefined) contexts[rid & 255] = undefined;
  }

  /** The requesters with a context, in order. */
  *entries(): IterableIterator<[number, Context]> {
    for (const [bus, contexts] of this.#buses.entries()) {
      for (const [devfn, context] of (contexts ?? []).entries()) {
        if (context !== undefined) yield [(bus << 8) | devfn, context];
      }
    }
  }
}
