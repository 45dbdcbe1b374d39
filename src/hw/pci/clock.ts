/**
 * Time as a device sees it. A box gives its own loop's clock, a test a clock that it advances by hand, so that the same
 * inputs give the same run.
 */
export interface Clock {
  /** Nanoseconds since the machine was switched on. */
  now(): number;
  /** Calls `action` once, `nanoseconds` from now at the earliest, never within this call. The result cancels it. */
  after(nanoseconds: number, action: () => void): () => void;
}

/** A clock that stands still until `advance`. */
export class ManualClock implements Clock {
  #now = 0;
  #sequence = 0;
  #pending: { at: number; sequence: number; action: () => void }[] = [];

  now(): number {
    return this.#now;
  }

  after(nanoseconds: number, action: () => void): () => void {
    const entry = { at: this.#now + nanoseconds, sequence: this.#sequence++, action };
    this.#pending.push(entry);
    return () => {
      this.#pending = this.#pending.filter((other) => other !== entry);
    };
  }

  /** When the next action is due, undefined when there is none. */
  get next(): number | undefined {
    return this.#pending.length === 0 ? undefined : Math.min(...this.#pending.map((entry) => entry.at));
  }

  /** Lets time pass; actions run in the order of their times. */
  advance(nanoseconds: number): void {
    const end = this.#now + nanoseconds;
    for (;;) {
      const due = this.#pending.filter((entry) => entry.at <= end);
      if (due.length === 0) break;
      due.sort((a, b) => a.at - b.at || a.sequence - b.sequence);
      const first = due[0]!;
      this.#pending = this.#pending.filter((entry) => entry !== first);
      this.#now = Math.max(this.#now, first.at);
      first.action();
    }
    this.#now = end;
  }
}
