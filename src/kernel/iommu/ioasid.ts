/**
 * The registry of IOASIDs: one space of numbers (PASIDs, 20 bits on the bus) from which consumers that know nothing of each other
 * draw, and one value for each number.
 *
 * Each consumer has its `IoasidSet`, and finds through it only what was allocated for it: a page fault that carries the number of a
 * driver's own context is not mistaken for a process. An id may be allocated before anybody knows its value, so every lookup may
 * give null. An id can be given anew as soon as its last reference is put; who uses what he found beyond his read section lets a
 * getter take a reference.
 */
import { Errno } from '../../lib/errno.ts';
import { type Backend, Backends, INVALID_IOASID, type IoasidAllocatorOps, slotOf } from './ioasid-allocators.ts';
import { ReadSections } from './ioasid-readers.ts';

export { INVALID_IOASID, type IoasidAllocatorOps } from './ioasid-allocators.ts';
export type { ReadSection } from './ioasid-readers.ts';

/** The largest number that a PASID prefix on the bus can carry. */
export const LAST_PASID = 0xf_ffff;

/** Whose an id is. Sets are told apart by identity. `T` is what their ids stand for. */
export class IoasidSet<T extends object = object> {
  readonly label: string;
  /** Ids that may be out at a time. */
  readonly quota: number;
  /** Only for the type: a set of processes is no set of domains. */
  declare readonly _valueType: T;

  constructor(label = '', options: { readonly quota?: number } = {}) {
    this.label = label;
    this.quota = options.quota ?? Number.POSITIVE_INFINITY;
  }
}

/** Why a lookup found nothing. A value and not thrown: the lookup of a page fault is no refusal of a call. */
export class IoasidError {
  readonly code: 'ENOENT' | 'EACCES';

  constructor(code: 'ENOENT' | 'EACCES') {
    this.code = code;
  }
}
const ENOENT = new IoasidError('ENOENT');
const EACCES = new IoasidError('EACCES');

export interface IoasidOptions {
  /** An id that a custom allocator gives outside of the range asked for is given back; the kernel keeps it. */
  readonly strictRange?: boolean;
}

export class Ioasids {
  readonly readers = new ReadSections();
  /** What went wrong without anybody being told, in sentences; the count is `warnings`. The last 16. */
  readonly log: string[] = [];
  warnings = 0;
  /** Entries without references that wait for their readers to end. */
  reclaiming = 0;
  readonly #isStrict: boolean;
  readonly #backends: Backends;
  /** How many ids are out of each set with a quota. */
  readonly #counts = new Map<object, number>();
  /** A custom allocator is at work: what may not come between waits here. */
  #isBusy = false;
  readonly #later: (() => void)[] = [];
  /** `forEach` is at work: these go afterwards. */
  #visitors = 0;
  readonly #doomed: { readonly backend: Backend; readonly id: number }[] = [];

  constructor(options: IoasidOptions = {}) {
    this.#isStrict = options.strictRange ?? false;
    this.#backends = new Backends((text) => this.#warn(text));
  }

  /** Ids that are out. */
  get used(): number {
    return this.#backends.active.ids.used;
  }

  get hasCustomAllocator(): boolean {
    return this.#backends.active.isCustom;
  }

  // ---- allocators ----

  /**
   * A custom allocator goes before the default one. Several may register: one serves, the others wait in order; those with the same
   * functions share their ids. EINVAL, EEXIST. EAGAIN: the default allocator has ids out. EBUSY: an allocation is under way.
   */
  registerAllocator(ops: IoasidAllocatorOps): void {
    if (this.#isBusy) throw new Errno('EBUSY', 'a custom allocator is at work; allocators cannot change under it');
    this.#backends.register(ops);
  }

  /** When the last of its sharers goes, its ids are lost. While an allocation is under way this comes after it. */
  unregisterAllocator(ops: IoasidAllocatorOps): void {
    this.whenIdle(() => {
      const { active } = this.#backends;
      this.#backends.unregister(ops);
      // Ids live in the active backend only, so all that was charged is lost with it.
      if (this.#backends.active !== active) this.#counts.clear();
    });
  }

  /** Calls `action` when no custom allocator is at work: now, or after it. */
  whenIdle(action: () => void): void {
    if (this.#isBusy) this.#later.push(action);
    else action();
  }

  // ---- ids ----

  /**
   * The lowest free id of [min, max], or what the custom allocator gives; INVALID_IOASID when there is none or the set's quota is used
   * up. `data` may come later (`setData`). EBUSY: a custom allocator that answers later is at work (`allocLater` waits for it).
   */
  alloc<T extends object>(set: IoasidSet<T> | null, min: number, max: number, data: T | null): number {
    if (this.#isBusy) throw new Errno('EBUSY', 'a custom allocator is at work');
    if (!(min <= max) || this.#isQuotaUsed(set)) return INVALID_IOASID;
    const backend = this.#backends.active;
    const ops = backend.sharers[0];
    if (ops === undefined) {
      const id = backend.ids.allocate(min, max);
      if (id < 0) return INVALID_IOASID;
      backend.store(id, set, data);
      this.#charge(set, 1);
      return id;
    }
    this.#isBusy = true;
    try {
      return this.#keep(set, min, max, data, ops, ops.alloc(min, max, ops.pdata));
    } finally {
      this.#idle();
    }
  }

  /** As `alloc`, with an allocator that may take its time; operations that come meanwhile wait their turn. */
  allocLater<T extends object>(
    set: IoasidSet<T> | null,
    min: number,
    max: number,
    data: T | null,
    done: (id: number) => void,
  ): void {
    this.whenIdle(() => {
      const ops = this.#backends.active.sharers[0];
      if (ops?.allocLater === undefined || !(min <= max) || this.#isQuotaUsed(set)) {
        done(this.alloc(set, min, max, data));
        return;
      }
      this.#isBusy = true;
      ops.allocLater(min, max, ops.pdata, (given) => {
        const id = this.#keep(set, min, max, data, ops, given);
        this.#idle();
        done(id);
      });
    });
  }

  /**
   * Publishes another value. `disposable` is called once nobody can still use the old one: all who began to read before have ended.
   * ENOENT.
   */
  setData(id: number, data: object | null, disposable: () => void = () => {}): void {
    const page = this.#backends.active.page(id);
    if (page === undefined) throw new Errno('ENOENT', `there is no id ${id}`);
    page.objects[slotOf(id) * 2 + 1] = data;
    this.readers.afterGrace(disposable);
  }

  /**
   * The value of an id, null when it has none yet or the getter, which is to take a reference, refuses it. Without a set any id is
   * found. ENOENT: no such id. EACCES: another set's.
   */
  find<T extends object>(set: IoasidSet<T>, id: number, getter?: (value: T) => boolean): T | null | IoasidError;
  find(set: null, id: number, getter?: (value: object) => boolean): object | null | IoasidError;
  find<T extends object>(set: IoasidSet<T> | null, id: number, getter?: (value: T) => boolean): unknown {
    const page = this.#backends.active.page(id);
    if (page === undefined) return ENOENT;
    if (set !== null && page.setOf(slotOf(id)) !== set) return EACCES;
    const data = page.dataOf(slotOf(id));
    if (data !== null && getter !== undefined && !getter(data as T)) return null;
    return data;
  }

  /** One more reference. */
  get(id: number): void {
    if (this.refsOf(id) === 0) {
      this.#warn(`a reference to id ${id}, which is not out`);
      return;
    }
    const { refs } = this.#backends.active.page(id)!;
    refs[slotOf(id)] = refs[slotOf(id)]! + 1;
  }

  /** One reference less. True: it was the last one, and the id is free. False also when the id is not out. */
  put(id: number): boolean {
    const backend = this.#backends.active;
    const page = backend.page(id);
    const slot = slotOf(id);
    if (page === undefined || page.refs[slot] === 0) {
      this.#warn(`id ${id} was put, which is not out`);
      return false;
    }
    const left = page.refs[slot]! - 1;
    page.refs[slot] = left;
    if (left > 0) return false;
    if (this.#visitors > 0) this.#doomed.push({ backend, id });
    else if (this.#isBusy || backend.isCustom) this.whenIdle(() => this.#erase(backend, id));
    else this.#forget(backend, id);
    return true;
  }

  /** Puts the reference of the allocation: with others, the id lives on. */
  free(id: number): void {
    this.put(id);
  }

  /** References of an id, 0 when it is not out. */
  refsOf(id: number): number {
    return this.#backends.active.page(id)?.refs[slotOf(id)] ?? 0;
  }

  /**
   * Visits the ids of a set in ascending order until `visit` gives a non-zero number, and returns that. Ids that are freed meanwhile
   * are still visited and go afterwards; new ones are not.
   */
  forEach<T extends object>(set: IoasidSet<T>, visit: (id: number, data: T | null) => number): number {
    const { active } = this.#backends;
    const found: number[] = [];
    for (let id = active.ids.next(0); id >= 0; id = active.ids.next(id + 1)) {
      if (active.page(id)!.setOf(slotOf(id)) === set) found.push(id);
    }
    this.#visitors++;
    try {
      for (const id of found) {
        const result = visit(id, (active.page(id)?.dataOf(slotOf(id)) ?? null) as T | null);
        if (result !== 0) return result;
      }
      return 0;
    } finally {
      if (--this.#visitors === 0) {
        for (const { backend, id } of this.#doomed.splice(0)) this.whenIdle(() => this.#erase(backend, id));
      }
    }
  }

  /** Stores what a custom allocator gave, at exactly that id. */
  #keep(
    set: object | null,
    min: number,
    max: number,
    data: object | null,
    ops: IoasidAllocatorOps,
    id: number,
  ): number {
    if (id === INVALID_IOASID) return INVALID_IOASID;
    const backend = this.#backends.active;
    if (id < min || id > max) {
      this.#warn(`the custom allocator gave ${id}, which is not in [${min}, ${max}]`);
      if (this.#isStrict) {
        ops.free(id, ops.pdata);
        return INVALID_IOASID;
      }
    }
    if (!backend.ids.take(id)) {
      this.#warn(`the custom allocator gave ${id}, which is out already`);
      ops.free(id, ops.pdata);
      return INVALID_IOASID;
    }
    backend.store(id, set, data);
    this.#charge(set, 1);
    return id;
  }

  /** The last reference is gone and nobody is at work: the allocator gets the id back, if it is still there. */
  #erase(backend: Backend, id: number): void {
    if (this.#backends.active !== backend) return;
    const ops = backend.sharers[0];
    if (ops === undefined) {
      this.#forget(backend, id);
      return;
    }
    this.#isBusy = true;
    ops.free(id, ops.pdata);
    this.#forget(backend, id);
    this.#idle();
  }

  #forget(backend: Backend, id: number): void {
    this.#charge(backend.erase(id), -1);
    if (this.readers.live === 0) return;
    this.reclaiming++;
    this.readers.afterGrace(() => {
      this.reclaiming--;
    });
  }

  #idle(): void {
    this.#isBusy = false;
    while (this.#later.length > 0 && !this.#isBusy) this.#later.shift()!();
  }

  #isQuotaUsed(set: IoasidSet | null): boolean {
    return set !== null && set.quota < Number.POSITIVE_INFINITY && (this.#counts.get(set) ?? 0) >= set.quota;
  }

  /** `set`: an IoasidSet. */
  #charge(set: object | null, delta: 1 | -1): void {
    if (set === null || (set as IoasidSet).quota === Number.POSITIVE_INFINITY) return;
    const count = (this.#counts.get(set) ?? 0) + delta;
    if (count === 0) this.#counts.delete(set);
    else this.#counts.set(set, count);
  }

  #warn(text: string): void {
    this.warnings++;
    this.log.push(text);
    if (this.log.length > 16) this.log.shift();
  }
}
