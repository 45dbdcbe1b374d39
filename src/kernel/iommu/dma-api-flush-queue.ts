/**
 * Deferred invalidation: IOVAs that were unmapped but may still be used by a device, until the IOTLB is flushed for many at once.
 *
 * `perCpu` has a ring of 256 for each CPU and flushes within 10 ms, `single` one ring of 32,768 and flushes within a second; both when
 * a ring is full. An IOVA is free for others only after the flush.
 */
import type { Clock } from '../../hw/pci/clock.ts';

export type FlushQueueKind = 'perCpu' | 'single';

interface Entry {
  readonly page: number;
  readonly count: number;
}

const MILLISECOND = 1_000_000;
const kinds = {
  perCpu: { size: 256, timeout: 10 * MILLISECOND },
  single: { size: 32768, timeout: 1000 * MILLISECOND },
} as const;

export class FlushQueue {
  readonly size: number;
  readonly timeout: number;
  readonly #clock: Clock;
  readonly #rings: Entry[][];
  /** Makes every unit forget what was unmapped. */
  readonly #flush: () => void;
  /** Gives IOVAs back. */
  readonly #free: (page: number, count: number, cpu: number) => void;
  #cancel: (() => void) | undefined;

  constructor(
    kind: FlushQueueKind,
    cpus: number,
    clock: Clock,
    flush: () => void,
    free: (page: number, count: number, cpu: number) => void,
  ) {
    this.size = kinds[kind].size;
    this.timeout = kinds[kind].timeout;
    this.#clock = clock;
    this.#rings = Array.from({ length: kind === 'single' ? 1 : cpus }, () => []);
    this.#flush = flush;
    this.#free = free;
  }

  /** IOVA ranges that wait. */
  get waiting(): number {
    return this.#rings.reduce((sum, ring) => sum + ring.length, 0);
  }

  add(page: number, count: number, cpu: number): void {
    const ring = this.#rings[cpu % this.#rings.length]!;
    // One slot of a ring stays empty, as in the kernel's.
    if (ring.length === this.size - 1) this.drain();
    ring.push({ page, count });
    this.#cancel ??= this.#clock.after(this.timeout, () => {
      this.#cancel = undefined;
      this.drain();
    });
  }

  /** Flushes now, and gives back all that waits. */
  drain(): void {
    if (this.waiting === 0) return;
    this.#flush();
    this.#rings.forEach((ring, cpu) => {
      for (const { page, count } of ring.splice(0)) this.#free(page, count, cpu);
    });
  }

  /** As `drain`, and no timer is left. */
  stop(): void {
    this.drain();
    this.#cancel?.();
    this.#cancel = undefined;
  }
}
