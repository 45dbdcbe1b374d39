/**
 * The box's own loop, in place of Node's: descriptors by polling, timers, and a moment when nothing happens.
 *
 * It never returns to Node while the box runs, so nothing here may wait for a promise.
 */
import type { Clock } from '../../host/index.ts';
import { Poller, type PollSource } from '../../sys/index.ts';

interface Timer {
  readonly at: number;
  readonly sequence: number;
  action: (() => void) | undefined;
}

const IDLE_AFTER_MS = 10;
/** Nanoseconds that are rather looked at than slept. */
const SOON = 20_000;

export class EventLoop implements Clock {
  /** Called once after each burst of events, when nothing has happened for some milliseconds. */
  onIdle: () => void = () => {};
  readonly #poller = new Poller();
  readonly #start = performance.now();
  /** A binary heap, the earliest first. */
  readonly #timers: Timer[] = [];
  #onError: (error: unknown) => void = (error) => {
    throw error;
  };
  #sequence = 0;
  #stopped = false;
  #isIdle = false;
  #sources = 0;

  /** Hears of what sources and timers throw: bugs, which the rest of the box shall not notice. */
  set onError(listener: (error: unknown) => void) {
    this.#onError = listener;
    this.#poller.onError = listener;
  }

  now(): number {
    return Math.round((performance.now() - this.#start) * 1e6);
  }

  after(nanoseconds: number, action: () => void): () => void {
    const timer: Timer = { at: this.now() + Math.max(nanoseconds, 0), sequence: this.#sequence++, action };
    this.#push(timer);
    return () => {
      timer.action = undefined;
    };
  }

  /** Hears of `fd` from now on; the result is needed to stop. Minus the errno on failure. */
  add(fd: number, source: PollSource): number {
    const slot = this.#poller.add(fd, source);
    if (slot >= 0) this.#sources++;
    return slot;
  }

  remove(fd: number, slot: number): void {
    this.#poller.remove(fd, slot);
    this.#sources--;
  }

  /** Whether somebody may wait elsewhere for so long: there are no sources but `known` ones, and no timer comes in that time. */
  mayWait(milliseconds: number, known: number): boolean {
    if (this.#sources > known) return false;
    if (this.#timers.length === 0) return true;
    const wait = this.#untilTimer();
    return wait < 0 || wait > milliseconds;
  }

  stop(): void {
    this.#stopped = true;
  }

  /** Runs until `stop`. */
  run(): void {
    while (!this.#stopped) this.turn();
  }

  /** Waits for something to happen and lets it; `milliseconds`: at most so long, -1: until the next timer. */
  turn(milliseconds = -1): void {
    let wait = this.#timers.length === 0 ? -1 : this.#untilTimer();
    if (!this.#isIdle && (wait < 0 || wait > IDLE_AFTER_MS)) wait = IDLE_AFTER_MS;
    if (milliseconds >= 0 && (wait < 0 || wait > milliseconds)) wait = milliseconds;
    const count = this.#poller.run(wait);
    if (this.#timers.length > 0) this.#expire();
    if (count > 0) this.#isIdle = false;
    else if (!this.#isIdle) {
      this.#isIdle = true;
      this.onIdle();
    }
  }

  close(): void {
    this.#poller.close();
  }

  /** Milliseconds until the next timer, rounded up: never early, and at most a millisecond late; 0 when it comes at once. -1: there is none. */
  #untilTimer(): number {
    while (this.#timers.length > 0 && this.#timers[0]!.action === undefined) this.#pop();
    if (this.#timers.length === 0) return -1;
    const nanoseconds = this.#timers[0]!.at - this.now();
    // A millisecond of sleep would be far too long.
    if (nanoseconds < SOON) return 0;
    const left = Math.ceil(nanoseconds / 1e6);
    return Math.min(Math.max(left, 0), 60_000);
  }

  #expire(): void {
    const now = this.now();
    // Timers set by these actions wait for the next round: a device cannot keep the loop for itself.
    const end = this.#sequence;
    const later: Timer[] = [];
    while (this.#timers.length > 0 && this.#timers[0]!.at <= now) {
      const timer = this.#pop();
      if (timer.sequence >= end) later.push(timer);
      else {
        const action = timer.action;
        timer.action = undefined;
        try {
          action?.();
        } catch (error) {
          this.#onError(error);
        }
      }
    }
    for (const timer of later) this.#push(timer);
  }

  #push(timer: Timer): void {
    const heap = this.#timers;
    let i = heap.push(timer) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!isEarlier(timer, heap[parent]!)) break;
      heap[i] = heap[parent]!;
      i = parent;
    }
    heap[i] = timer;
  }

  #pop(): Timer {
    const heap = this.#timers;
    const first = heap[0]!;
    const last = heap.pop()!;
    const length = heap.length;
    if (length === 0) return first;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= length) break;
      if (child + 1 < length && isEarlier(heap[child + 1]!, heap[child]!)) child++;
      if (!isEarlier(heap[child]!, last)) break;
      heap[i] = heap[child]!;
      i = child;
    }
    heap[i] = last;
    return first;
  }
}

function isEarlier(a: Timer, b: Timer): boolean {
  return a.at < b.at || (a.at === b.at && a.sequence < b.sequence);
}
