/**
 * The address space of a DMA domain: which IOVAs its devices' buffers have. All devices of the domain share it; so do all virtual
 * machines that a mediated device serves.
 */
import type { Clock } from '../../hw/pci/clock.ts';
import { Errno } from '../../lib/errno.ts';
import { FlushQueue, type FlushQueueKind } from './dma-api-flush-queue.ts';
import type { Domain } from './domain.ts';
import { IovaAllocator } from './iova.ts';
import type { ReservedRegion } from './reserved-regions.ts';

/** The last page that 32 bits reach. */
export const LAST_PAGE_32 = 0xf_ffff;

export interface DmaSpaceOptions {
  readonly clock?: Clock;
  readonly cpus?: number;
  /** Invalidation is deferred; needs a clock. */
  readonly flushQueue?: FlushQueueKind;
  /** For tests: `mapRaw` is allowed, and says so when it would collide. */
  readonly identityShortcut?: boolean;
}

export class DmaSpace {
  readonly domain: Domain;
  readonly iova: IovaAllocator;
  readonly flushQueue: FlushQueue | undefined;
  /** Buffers that were unmapped though they were not mapped: mistakes of drivers. */
  warnings = 0;
  readonly #isShortcutAllowed: boolean;

  constructor(domain: Domain, options: DmaSpaceOptions = {}) {
    const { clock, cpus = 1, flushQueue } = options;
    this.domain = domain;
    this.iova = new IovaAllocator({ cpus, ...(clock !== undefined && { clock }) });
    this.#isShortcutAllowed = options.identityShortcut ?? false;
    if (flushQueue === undefined) return;
    if (clock === undefined) throw new Errno('EINVAL', 'a flush queue needs a clock');
    this.flushQueue = new FlushQueue(
      flushQueue,
      cpus,
      clock,
      () => this.domain.synchronise(),
      (page, count, cpu) => this.iova.free(page, count, cpu),
    );
  }

  /** IOVAs that are never given: reserved regions of the devices, windows of the host bridge. */
  reserve(regions: readonly Pick<ReservedRegion, 'firstPage' | 'lastPage'>[]): void {
    for (const { firstPage, lastPage } of regions) this.iova.reserve(firstPage, lastPage);
  }

  /**
   * IOVAs for `count` pages, none above `limitPage`: below 4 GiB first while `prefers32`. 0: none is free. `has32Failed` is called
   * when there was nothing below 4 GiB.
   */
  allocate(count: number, limitPage: number, cpu: number, prefers32: boolean, has32Failed: () => void): number {
    const limit = Math.min(limitPage, this.domain.lastPage);
    if (limit > LAST_PAGE_32 && prefers32) {
      const page = this.iova.allocate(count, LAST_PAGE_32, cpu, true);
      if (page !== 0) return page;
      has32Failed();
    }
    return this.iova.allocate(count, limit, cpu);
  }

  /** Unmaps what was mapped at IOVAs of `allocate` and gives them back, with a flush queue later. */
  release(page: number, count: number, cpu: number): void {
    const { flushQueue } = this;
    const removed = flushQueue === undefined ? this.domain.unmap(page, count) : this.domain.unmapLater(page, count);
    if (removed !== count) {
      this.warnings++;
      return;
    }
    if (flushQueue === undefined) this.iova.free(page, count, cpu);
    else flushQueue.add(page, count, cpu);
  }

  /**
   * Maps at an IOVA of the caller's choice, beside the allocator. That cannot work here: the allocator may have given the IOVA to
   * somebody, or may give it later. EINVAL; where the shortcut is allowed, EADDRINUSE when it has been given.
   */
  mapRaw(page: number, physicalPage: number, count: number, prot: number): void {
    if (!this.#isShortcutAllowed) {
      throw new Errno('EINVAL', 'the IOVAs of a DMA domain are given by its allocator only');
    }
    for (let at = page; at < page + count; at++) {
      if (this.iova.find(at) !== undefined) {
        throw new Errno('EADDRINUSE', `IOVA page 0x${at.toString(16)} was given to somebody by the allocator`);
      }
    }
    this.domain.map(page, physicalPage, count, prot);
    this.iova.reserve(page, page + count - 1);
  }
}
