/**
 * The time of one device: it can be stopped and goes on where it stood, and what it has started ends with a reset.
 *
 * A timer with a name is part of the device's state: it can be saved, and goes on in another machine. `after` is for actions that nobody
 * has to carry over.
 */
import { Errno } from '../../lib/errno.ts';
import type { Clock } from './clock.ts';

interface Pending {
  /** In the device's time. */
  readonly at: number;
  readonly action: () => void;
  cancel: () => void;
}

/** A timer of a device. It runs or it does not: starting it again moves its end. */
export class DeviceTimer {
  readonly name: string;
  readonly #clock: DeviceClock;
  readonly #action: () => void;
  #at = 0;
  #cancel: (() => void) | undefined;

  constructor(clock: DeviceClock, name: string, action: () => void) {
    this.#clock = clock;
    this.name = name;
    this.#action = action;
  }

  get isRunning(): boolean {
    return this.#cancel !== undefined;
  }

  /** Nanoseconds until its action; undefined: it does not run. */
  get left(): number | undefined {
    return this.isRunning ? Math.max(this.#at - this.#clock.now(), 0) : undefined;
  }

  start(nanoseconds: number): void {
    this.stop();
    this.#at = this.#clock.now() + nanoseconds;
    this.#cancel = this.#clock.arm(nanoseconds, () => {
      this.#cancel = undefined;
      this.#action();
    });
  }

  stop(): void {
    this.#cancel?.();
    this.#cancel = undefined;
  }
}

export class DeviceClock implements Clock {
  readonly #clock: Clock;
  readonly #timers = new Map<string, DeviceTimer>();
  readonly #pending = new Set<Pending>();
  /** Actions without a name that are pending. */
  #nameless = 0;
  /** The machine's time minus the device's. */
  #behind = 0;
  #stoppedAt: number | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Nanoseconds of the device's time. */
  now(): number {
    return this.#stoppedAt ?? this.#clock.now() - this.#behind;
  }

  /** Calls `action` once, never within this call. The result cancels it. */
  after(nanoseconds: number, action: () => void): () => void {
    let isOver = false;
    const over = (): void => {
      if (isOver) return;
      isOver = true;
      this.#nameless--;
    };
    this.#nameless++;
    const cancel = this.arm(nanoseconds, () => {
      over();
      action();
    });
    return () => {
      over();
      cancel();
    };
  }

  /** Makes a timer that is part of the device's state. Its name is used once. */
  timer(name: string, action: () => void): DeviceTimer {
    if (this.#timers.has(name)) throw new Errno('EINVAL', `the device has a timer '${name}' already`);
    const timer = new DeviceTimer(this, name, action);
    this.#timers.set(name, timer);
    return timer;
  }

  /** For timers: as `after`, and not counted among what cannot be saved. */
  arm(nanoseconds: number, action: () => void): () => void {
    const pending: Pending = { at: this.now() + nanoseconds, action, cancel: () => {} };
    this.#pending.add(pending);
    if (this.#stoppedAt === undefined) this.#start(pending);
    return () => {
      this.#pending.delete(pending);
      pending.cancel();
    };
  }

  get isStopped(): boolean {
    return this.#stoppedAt !== undefined;
  }

  /** The device's time stands still. */
  stop(): void {
    if (this.#stoppedAt !== undefined) return;
    this.#stoppedAt = this.now();
    for (const pending of this.#pending) pending.cancel();
  }

  /** And goes on. */
  run(): void {
    const stoppedAt = this.#stoppedAt;
    if (stoppedAt === undefined) return;
    this.#stoppedAt = undefined;
    this.#behind = this.#clock.now() - stoppedAt;
    for (const pending of this.#pending) this.#start(pending);
  }

  /** All that is pending is forgotten. */
  cancelAll(): void {
    for (const timer of this.#timers.values()) timer.stop();
    for (const pending of this.#pending) pending.cancel();
    this.#pending.clear();
    this.#nameless = 0;
  }

  /** Actions of `after` that are pending: they cannot be carried over. */
  get nameless(): number {
    return this.#nameless;
  }

  /** Nanoseconds that are left to each timer that runs. */
  save(): Record<string, number> {
    return Object.fromEntries(
      [...this.#timers.values()].flatMap((timer) => (timer.left === undefined ? [] : [[timer.name, timer.left]])),
    );
  }

  /** EINVAL: a timer that the device has not. */
  restore(state: unknown): void {
    if (typeof state !== 'object' || state === null) throw new Errno('EINVAL', 'the saved state has no timers');
    this.cancelAll();
    for (const [name, left] of Object.entries(state)) {
      const timer = this.#timers.get(name);
      if (timer === undefined || typeof left !== 'number' || !(left >= 0)) {
        throw new Errno('EINVAL', `the saved state has a timer '${name}' that the device has not`);
      }
      timer.start(left);
    }
  }

  #start(pending: Pending): void {
    pending.cancel = this.#clock.after(Math.max(pending.at - this.now(), 0), () => {
      this.#pending.delete(pending);
      pending.action();
    });
  }
}
