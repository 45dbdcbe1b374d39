/**
 * Where ids come from: the default allocator, or a custom one (a guest asks its host), and the rules for changing between them.
 *
 * Exactly one backend is active. Each has its own table, because the ids of one mean nothing to another; so the default can only be
 * left while it has given out nothing. Custom backends queue in the order of their registration. Allocators with the same functions
 * are *sharers* of one backend: one of them may go without disturbing any id.
 */

import { Errno } from '../../lib/errno.ts';
import { IdSpace } from '../../lib/id-space.ts';

/** No id: what `alloc` gives when there is none. */
export const INVALID_IOASID = 0xffff_ffff;

/**
 * A custom allocator. `alloc` and `free` run inside of an operation of the registry and must not wait; an allocator that has to
 * implements `allocLater` too.
 */
export interface IoasidAllocatorOps {
  /** An id of [min, max], or INVALID_IOASID. */
  readonly alloc: (min: number, max: number, pdata: unknown) => number;
  readonly free: (id: number, pdata: unknown) => void;
  /** As `alloc`, answered by `done` now or later. */
  readonly allocLater?: (min: number, max: number, pdata: unknown, done: (id: number) => void) => void;
  readonly pdata?: unknown;
}

/** Ids of one table page. */
const PAGE = 1024;

/** What the ids of one page of a table stand for. An id that is not out has neither set nor data. */
export class EntryPage {
  readonly refs = new Int32Array(PAGE);
  /** Set and data of each id, side by side: with a million ids each look into memory counts. */
  readonly objects: (object | null)[] = new Array<object | null>(PAGE * 2).fill(null);

  setOf(slot: number): object | null {
    return this.objects[slot * 2]!;
  }

  dataOf(slot: number): object | null {
    return this.objects[slot * 2 + 1]!;
  }
}

/** One table of ids. An entry is a page and a slot in it, for there may be a million. */
export class Backend {
  /** Those who registered it; empty for the default one. The first one serves. */
  readonly sharers: IoasidAllocatorOps[] = [];
  readonly ids = new IdSpace();
  readonly #pages: (EntryPage | undefined)[] = [];

  get isCustom(): boolean {
    return this.sharers.length > 0;
  }

  /** Allocators that share this table. */
  matches(ops: IoasidAllocatorOps): boolean {
    const first = this.sharers[0];
    return first !== undefined && first.alloc === ops.alloc && first.free === ops.free;
  }

  /** The page of an id that is out, at slot `slotOf(id)`. Undefined: it is not out. */
  page(id: number): EntryPage | undefined {
    if (!this.ids.has(id)) return undefined;
    return this.#pages[pageOf(id)];
  }

  /** Makes the entry of an id that was taken in `ids`, with one reference. */
  store(id: number, set: object | null, data: object | null): void {
    const index = pageOf(id);
    let page = this.#pages[index];
    if (page === undefined) {
      page = new EntryPage();
      this.#pages[index] = page;
    }
    const slot = slotOf(id);
    page.refs[slot] = 1;
    page.objects[slot * 2] = set;
    page.objects[slot * 2 + 1] = data;
  }

  /** The id is free again. Gives the set that it was of. */
  erase(id: number): object | null {
    const page = this.#pages[pageOf(id)]!;
    const slot = slotOf(id);
    const set = page.setOf(slot);
    page.refs[slot] = 0;
    page.objects[slot * 2] = null;
    page.objects[slot * 2 + 1] = null;
    this.ids.release(id);
    return set;
  }
}

function pageOf(id: number): number {
  return Math.floor(id / PAGE);
}

export function slotOf(id: number): number {
  return id % PAGE;
}

export class Backends {
  readonly #default = new Backend();
  readonly #custom: Backend[] = [];
  readonly #warn: (text: string) => void;
  active = this.#default;

  constructor(warn: (text: string) => void) {
    this.#warn = warn;
  }

  /** Custom backends, in the order in which they are or will be active. */
  get customCount(): number {
    return this.#custom.length;
  }

  /**
   * Registers a custom allocator: it becomes active when the default one is, else it joins its sharers or waits. EINVAL: a function
   * is missing. EEXIST: this very object is registered. EAGAIN: the default allocator has ids out.
   */
  register(ops: IoasidAllocatorOps): void {
    if (typeof ops?.alloc !== 'function' || typeof ops.free !== 'function') {
      throw new Errno('EINVAL', 'a custom allocator has the functions alloc and free');
    }
    if (this.#custom.some(({ sharers }) => sharers.includes(ops))) {
      throw new Errno('EEXIST', 'this allocator is registered already');
    }
    const shared = this.#custom.find((backend) => backend.matches(ops));
    if (shared !== undefined) {
      shared.sharers.push(ops);
      return;
    }
    const out = this.#default.ids.used;
    if (this.active === this.#default && out > 0) {
      throw new Errno('EAGAIN', `the default allocator has ${out} ids out, which another allocator would not know`);
    }
    const backend = new Backend();
    backend.sharers.push(ops);
    this.#custom.push(backend);
    if (this.active === this.#default) this.active = backend;
  }

  /** The ids of an allocator that nobody shares are lost with it. An unknown one is only warned of. */
  unregister(ops: IoasidAllocatorOps): void {
    const at = this.#custom.findIndex(({ sharers }) => sharers.includes(ops));
    const backend = this.#custom[at];
    if (backend === undefined) {
      this.#warn('an allocator that is not registered was unregistered');
      return;
    }
    if (backend.sharers.length > 1) {
      backend.sharers.splice(backend.sharers.indexOf(ops), 1);
      return;
    }
    this.#custom.splice(at, 1);
    if (backend.ids.used > 0) {
      this.#warn(`an allocator was unregistered with ${backend.ids.used} ids out; they are lost`);
    }
    if (this.active === backend) this.active = this.#custom[0] ?? this.#default;
  }
}
