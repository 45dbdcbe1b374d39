/**
 * Places at which a test can order a failure, as the kernel's fault injection does. Unordered, a place costs one comparison.
 *
 * `failNth(n)` makes the n-th place that is reached fail, whichever it is: with n = 1, 2, … until nothing failed any more, every
 * failing way out of a call is walked once. `failAt(name)` orders one place by its name.
 */
import { Errno, type ErrnoName } from './errno.ts';

/** An order for failures; ends with `stop` (or `using`). */
export interface FailOrder {
  /** Names of the places at which this order made something fail. */
  readonly failed: readonly string[];
  /** Places that were reached while it stood. */
  readonly reached: number;
  stop(): void;
  [Symbol.dispose](): void;
}

class Order implements FailOrder {
  readonly failed: string[] = [];
  reached = 0;
  readonly #name: string | undefined;
  readonly #from: number;
  readonly #until: number;

  constructor(name: string | undefined, from: number, until: number) {
    this.#name = name;
    this.#from = from;
    this.#until = until;
    orders = [...orders, this];
  }

  /** Whether this place fails now. */
  reach(name: string): boolean {
    if (this.#name !== undefined && this.#name !== name) return false;
    this.reached++;
    if (this.reached < this.#from || this.reached >= this.#until) return false;
    this.failed.push(name);
    return true;
  }

  stop(): void {
    orders = orders.filter((order) => order !== this);
  }

  [Symbol.dispose](): void {
    this.stop();
  }
}

let orders: readonly Order[] = [];

/** One place that can be made to fail, with the errno that it then gives. */
export class Failpoint {
  readonly name: string;
  readonly code: ErrnoName;

  constructor(name: string, code: ErrnoName) {
    this.name = name;
    this.code = code;
    failpoints.push(this);
  }

  hit(): void {
    if (orders.length === 0) return;
    for (const order of orders) {
      if (order.reach(this.name)) throw new Errno(this.code, `failure ordered at ${this.name}`);
    }
  }
}

/** All places that exist in this process, in the order of their modules. */
export const failpoints: Failpoint[] = [];

/** The `n`-th place reached from now on fails, counted from 1. */
export function failNth(n: number): FailOrder {
  return new Order(undefined, n, n + 1);
}

/** The place `name` fails, after `skip` times that it is passed, `times` times. */
export function failAt(name: string, skip = 0, times = 1): FailOrder {
  return new Order(name, skip + 1, skip + 1 + times);
}
