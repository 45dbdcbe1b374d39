/**
 * Objects under small numbers, lowest free first (the kernel's xarray with allocation).
 *
 * Two phases, so that nobody sees a half-made object: `reserve` takes the number, `publish` makes the object visible,
 * `abandon` gives the number back.
 */
import { IdSpace } from './id-space.ts';

const RESERVED = Symbol('reserved');

export class IdTable<T> {
  readonly #slots: (T | typeof RESERVED | undefined)[] = [];
  readonly #first: number;
  readonly #ids = new IdSpace();
  #count = 0;

  /** Numbers start at `first`. */
  constructor(first = 1) {
    this.#first = first;
  }

  reserve(): number {
    const at = this.#ids.allocate(0, 0xffff_ffff);
    this.#slots[at] = RESERVED;
    return at + this.#first;
  }

  publish(id: number, object: T): void {
    if (this.#slots[id - this.#first] !== RESERVED) throw new Error(`Id ${id} was not reserved`);
    this.#slots[id - this.#first] = object;
    this.#count++;
  }

  abandon(id: number): void {
    if (this.#slots[id - this.#first] !== RESERVED) throw new Error(`Id ${id} was not reserved`);
    this.#free(id);
  }

  add(object: T): number {
    const id = this.reserve();
    this.publish(id, object);
    return id;
  }

  get(id: number): T | undefined {
    const slot = this.#slots[id - this.#first];
    return slot === RESERVED ? undefined : slot;
  }

  remove(id: number): void {
    const slot = this.#slots[id - this.#first];
    if (slot === undefined || slot === RESERVED) throw new Error(`Id ${id} is not in use`);
    this.#count--;
    this.#free(id);
  }

  /** Takes a published object out, but keeps its number from being used again. */
  retire(id: number): void {
    const slot = this.#slots[id - this.#first];
    if (slot === undefined || slot === RESERVED) throw new Error(`Id ${id} is not in use`);
    this.#slots[id - this.#first] = RESERVED;
    this.#count--;
  }

  /** Published objects. */
  get size(): number {
    return this.#count;
  }

  *entries(): IterableIterator<[number, T]> {
    for (let i = 0; i < this.#slots.length; i++) {
      const slot = this.#slots[i];
      if (slot !== undefined && slot !== RESERVED) yield [i + this.#first, slot];
    }
  }

  #free(id: number): void {
    this.#slots[id - this.#first] = undefined;
    this.#ids.release(id - this.#first);
    while (this.#slots.length > 0 && this.#slots[this.#slots.length - 1] === undefined) this.#slots.pop();
  }
}
