/**
 * A call whose answer comes later. The core never waits: such a call has acted already, what it waits for is a state, and whoever
 * ends that state calls `end`. It is thrown through the call, so that only the doors know of it: they keep the caller waiting.
 */
import type { Errno } from '../../lib/errno.ts';

export class Blocked extends Error {
  /** What the call returns when it ends well. */
  readonly result: number;
  /** For a person: what it waits for. */
  readonly why: string;
  #listeners: ((error: Errno | undefined) => void)[] | undefined = [];
  #error: Errno | undefined;

  constructor(result: number, why: string) {
    super(why);
    this.result = result;
    this.why = why;
  }

  /** What was waited for has happened; `error`: the call fails in the end. Once. */
  end(error?: Errno): void {
    const listeners = this.#listeners;
    if (listeners === undefined) throw new Error('a call ends once');
    this.#listeners = undefined;
    this.#error = error;
    for (const listener of listeners) listener(error);
  }

  /** Calls `listener` at the end; at once when it has come already. */
  onEnd(listener: (error: Errno | undefined) => void): void {
    if (this.#listeners === undefined) listener(this.#error);
    else this.#listeners.push(listener);
  }
}
