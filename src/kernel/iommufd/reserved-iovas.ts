/**
 * Which IOVAs of an address space may be used at all: ranges that devices and page tables reserve, each by its owner, and ranges
 * that the program allows for automatic placement. Both lists are short.
 */
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { hex, U64_MAX } from '../../lib/pages.ts';

/** Both ends included. */
export interface IovaRange {
  readonly first: bigint;
  readonly last: bigint;
}

interface Reserved extends IovaRange {
  /** The device or page table because of which. */
  readonly owner: object;
}

const reserveFails = new Failpoint('iommufd:reserve', 'ENOMEM');
const allowFails = new Failpoint('iommufd:allow', 'ENOMEM');

const overlaps = (a: IovaRange, b: IovaRange): boolean => a.first <= b.last && b.first <= a.last;

export class ReservedIovas {
  #reserved: Reserved[] = [];
  #allowed: readonly IovaRange[] = [];
  /** The holes between reserved ranges; undefined: not known at the moment. */
  #usable: readonly IovaRange[] | undefined;

  /** Reserves a range for `owner`. EADDRINUSE: the program allows a part of it. Whoever calls has looked at the areas. */
  reserve(range: IovaRange, owner: object): void {
    const allowed = this.#allowed.find((other) => overlaps(range, other));
    if (allowed !== undefined) {
      throw new Errno('EADDRINUSE', `${show(range)} has to be reserved, but ${show(allowed)} is allowed`);
    }
    reserveFails.hit();
    this.#reserved.push({ first: range.first, last: range.last, owner });
    this.#usable = undefined;
  }

  /** Ends all reservations of `owner`. */
  release(owner: object): void {
    this.#reserved = this.#reserved.filter((range) => range.owner !== owner);
    this.#usable = undefined;
  }

  /** The reserved range that `range` meets. */
  find(range: IovaRange): IovaRange | undefined {
    return this.#reserved.find((other) => overlaps(range, other));
  }

  get isEmpty(): boolean {
    return this.#reserved.length === 0;
  }

  /** Replaces what is allowed; nothing: everything is. EADDRINUSE: a part of it is reserved. */
  allow(ranges: readonly IovaRange[]): void {
    if (ranges.length > 0) allowFails.hit();
    for (const range of ranges) {
      const reserved = this.find(range);
      if (reserved !== undefined) {
        throw new Errno('EADDRINUSE', `${show(range)} cannot be allowed: ${show(reserved)} is reserved`);
      }
    }
    this.#allowed = [...ranges].sort((a, b) => (a.first < b.first ? -1 : 1));
  }

  get allowed(): readonly IovaRange[] {
    return this.#allowed;
  }

  /** What is not reserved, in order. */
  get usable(): readonly IovaRange[] {
    if (this.#usable !== undefined) return this.#usable;
    const usable: IovaRange[] = [];
    let from = 0n;
    for (const { first, last } of [...this.#reserved].sort((a, b) => (a.first < b.first ? -1 : 1))) {
      if (first > from) usable.push({ first: from, last: first - 1n });
      if (last + 1n > from) from = last + 1n;
    }
    if (from <= U64_MAX) usable.push({ first: from, last: U64_MAX });
    this.#usable = usable;
    return usable;
  }
}

export function show(range: IovaRange): string {
  return `${hex(range.first)}-${hex(range.last)}`;
}
