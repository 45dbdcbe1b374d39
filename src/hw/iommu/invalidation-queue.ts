/**
 * The invalidation queue of a unit: a ring of descriptors in memory that software fills and the unit works off (VT-d specification,
 * 6.5.2). Work is done when the tail moves; a descriptor is finished before the next one is looked at, so a wait has nothing to wait
 * for.
 *
 * What is wrong stops the queue until software has cleared the flag: a malformed descriptor or a bad tail (IQE: the head stays at it),
 * a device that does not answer (ITE: waits that follow are aborted, they write no status, and software submits them again).
 */

import { decodeDescriptor, type Invalidation } from './descriptors.ts';
import type { TableMemory } from './table-memory.ts';

/** What the queue tells the unit to do. False: a device did not answer. Undefined: the unit has no such thing, or not this range. */
export type Invalidate = (what: Invalidation) => boolean | undefined;

/** IQERCD.IQEI: why the queue stopped. */
export const QueueError = { NONE: 0, BAD_TAIL: 2, UNREADABLE: 1, UNKNOWN_TYPE: 3, RESERVED_BITS: 4 } as const;

export class InvalidationQueue {
  readonly #memory: TableMemory;
  readonly #invalidate: Invalidate;
  #page = 0;
  #bytes = 0;
  #step = 16;
  /** Byte offsets of the next descriptor to be worked off, and of the first that software has not written. */
  head = 0;
  tail = 0;
  isEnabled = false;
  /** FSTS.IQE, ITE, ICE. */
  hasQueueError = false;
  hasTimeout = false;
  hasCompletionError = false;
  /** Of the errors: why, and the requester that did not answer. */
  errorInfo = 0;
  timeoutSource = 0;
  /** ICS.IWC: a wait asked for an interrupt. */
  hasWaitCompleted = false;
  /** The completion event. */
  waitEvent: (() => void) | undefined;
  /** An error stopped the queue. */
  errorEvent: (() => void) | undefined;
  readonly counters = { descriptors: 0, waits: 0, aborted: 0 };

  constructor(memory: TableMemory, invalidate: Invalidate) {
    this.#memory = memory;
    this.#invalidate = invalidate;
  }

  /** IQA: the ring has 2^order pages from `page` on, of descriptors of 16 or 32 bytes. */
  setBase(page: number, order: number, isWide: boolean): void {
    this.#page = page;
    this.#bytes = 4096 * 2 ** order;
    this.#step = isWide ? 32 : 16;
    this.head = 0;
    this.tail = 0;
  }

  /** Bytes of a descriptor. */
  get step(): number {
    return this.#step;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get page(): number {
    return this.#page;
  }

  /** Software has written descriptors up to `tail`. */
  moveTail(tail: number): void {
    this.tail = tail;
    this.run();
  }

  /** Works until the queue is empty or stopped: at most one round. */
  run(): void {
    if (!this.isEnabled || this.#bytes === 0) return;
    const error = this.#work();
    if (error === QueueError.NONE) return;
    this.hasQueueError = true;
    this.errorInfo = error;
    this.errorEvent?.();
  }

  #work(): number {
    if (this.tail >= this.#bytes || this.tail % this.#step !== 0) return QueueError.BAD_TAIL;
    while (this.head !== this.tail && !this.hasQueueError && !this.hasTimeout) {
      const descriptor = this.#read();
      if (descriptor === undefined) return QueueError.UNREADABLE;
      const what = decodeDescriptor(descriptor);
      if (what === undefined) return QueueError.UNKNOWN_TYPE;
      if (descriptor.subarray(4).some((word) => word !== 0)) return QueueError.RESERVED_BITS;
      const outcome = what.kind === 'wait' ? this.#wait(what) : this.#invalidate(what);
      if (outcome === undefined) return QueueError.RESERVED_BITS;
      this.#advance();
      this.counters.descriptors++;
      if (!outcome) this.#timeOut('rid' in what ? (what.rid ?? 0) : 0);
    }
    return QueueError.NONE;
  }

  /** Software has cleared an error flag. */
  resume(): void {
    this.run();
  }

  #wait(what: Invalidation & { kind: 'wait' }): boolean | undefined {
    const { status } = what;
    if (status !== undefined) {
      const page = Number(status.address >> 12n);
      const index = Number((status.address & 0xfffn) >> 3n);
      if (!this.#memory.load(page, index)) return undefined;
      const { low, high } = this.#memory;
      const isUpper = (status.address & 4n) !== 0n;
      this.#memory.store(page, index, isUpper ? low : status.data, isUpper ? status.data : high);
    }
    this.counters.waits++;
    if (what.interrupts === true && !this.hasWaitCompleted) {
      this.hasWaitCompleted = true;
      this.waitEvent?.();
    }
    return true;
  }

  /** The waits that come next were fetched already: they are thrown away. */
  #timeOut(rid: number): void {
    this.hasTimeout = true;
    this.timeoutSource = rid;
    while (this.head !== this.tail) {
      const descriptor = this.#read();
      if (descriptor === undefined || decodeDescriptor(descriptor)?.kind !== 'wait') break;
      this.#advance();
      this.counters.aborted++;
    }
    this.errorEvent?.();
  }

  #advance(): void {
    this.head = (this.head + this.#step) % this.#bytes;
  }

  #read(): Uint32Array | undefined {
    const words = new Uint32Array(this.#step / 4);
    for (let i = 0; i < words.length; i += 2) {
      if (!this.#memory.load(this.#page, this.head / 8 + i / 2)) return undefined;
      words[i] = this.#memory.low;
      words[i + 1] = this.#memory.high;
    }
    return words;
  }
}
