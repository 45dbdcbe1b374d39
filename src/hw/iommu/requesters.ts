/**
 * What a unit remembers of requesters: contexts and bindings, read from the tables in memory (requester-tables.ts) when they are needed
 * first. An entry that was read once is believed until the context cache or the PASID cache is invalidated; what is not present is not
 * remembered.
 */
import type { Iotlb } from './iotlb.ts';
import type { UnitCapabilities } from './registers.ts';
import {
  type Binding,
  type CachedContext,
  type EntryFault,
  isEntryFault,
  RequesterTables,
  type RootPointer,
} from './requester-tables.ts';
import type { TableMemory } from './table-memory.ts';

export class Requesters {
  root: RootPointer = { page: 0, isScalable: false, isInvalid: false };
  readonly #tables: RequesterTables;
  readonly #isBelieved: boolean;
  readonly #contexts = new Map<number, CachedContext>();
  /** By bus and devfn what is remembered of the requests without PASID: the first thing that each of them meets. */
  readonly own: (Binding | undefined)[][] = [];
  /** The last binding that was asked for; undefined when it may not be believed. */
  last: Binding | undefined;

  /** `marksLegacy`: accessed and dirty bits are set in legacy mode too. `isBelieved`: bindings of requests without PASID are kept at hand. */
  constructor(
    memory: TableMemory,
    iotlb: Iotlb,
    capabilities: UnitCapabilities,
    options: { readonly marksLegacy: boolean; readonly isBelieved: boolean },
  ) {
    this.#tables = new RequesterTables(memory, iotlb, capabilities, options.marksLegacy);
    this.#isBelieved = options.isBelieved;
    for (let bus = 0; bus < 256; bus++) this.own.push([]);
  }

  /** The binding, from the caches or from memory. */
  resolve(rid: number, pasid: number): Binding | EntryFault {
    const context = this.context(rid);
    if (isEntryFault(context)) return context;
    const known = context.pasids.get(pasid);
    if (known !== undefined) {
      this.#remember(known);
      return known;
    }
    const found = this.#tables.readBinding(context, pasid);
    if (isEntryFault(found)) return found;
    context.pasids.set(pasid, found);
    this.#remember(found);
    return found;
  }

  #remember(binding: Binding): void {
    if (!this.#isBelieved) return;
    this.last = binding;
    if (binding.pasid < 0) this.own[binding.rid >>> 8]![binding.rid & 255] = binding;
  }

  /** The context entry, from the cache or from memory. */
  context(rid: number): CachedContext | EntryFault {
    const known = this.#contexts.get(rid);
    if (known !== undefined) return known;
    const found = this.#tables.readContext(this.root, rid);
    if (!isEntryFault(found)) this.#contexts.set(rid, found);
    return found;
  }

  /** Context-cache invalidation of all, of a legacy domain, or of a requester id. PASID entries read by them go too. */
  invalidateContexts(which?: { readonly did?: number; readonly rid?: number }): void {
    this.last = undefined;
    for (const context of [...this.#contexts.values()]) {
      if (which?.rid !== undefined) {
        if (which.rid !== context.rid) continue;
      } else if (which?.did !== undefined && context.did >= 0 && which.did !== context.did) continue;
      this.#contexts.delete(context.rid);
      this.own[context.rid >>> 8]![context.rid & 255] = undefined;
    }
  }

  /** PASID-cache invalidation: all, those of a domain id, or one PASID of it (the number in the entry's place; 0 is RID_PASID). */
  invalidatePasids(which?: { readonly did: number; readonly pasid?: number }): void {
    this.last = undefined;
    for (const context of this.#contexts.values()) {
      if (context.did >= 0) continue;
      for (const [pasid, binding] of [...context.pasids]) {
        const place = pasid < 0 ? context.ridPasid : pasid;
        if (which !== undefined && which.did !== binding.did) continue;
        if (which?.pasid !== undefined && which.pasid !== place) continue;
        context.pasids.delete(pasid);
        if (pasid < 0) this.own[context.rid >>> 8]![context.rid & 255] = undefined;
      }
    }
  }

  /** What is remembered, for the inspector. */
  *bindings(): IterableIterator<Binding> {
    for (const context of this.#contexts.values()) yield* context.pasids.values();
  }
}
