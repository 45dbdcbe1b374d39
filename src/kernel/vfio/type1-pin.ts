/**
 * Pinning a mapping's memory and putting it into domains, and the way back.
 *
 * Memory is pinned in physically contiguous runs and mapped run by run, so that the page tables get large leaves. Memory of the
 * program counts against the owner's limit; a BAR's does not, it is mapped at the BAR's physical address. A page that a mediated
 * driver holds already is not counted a second time.
 */
import type { SharedMemory } from '../../hw/memory/backing.ts';
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import type { Vma } from '../core/user-memory.ts';
import { type Domain, IOMMU_CACHE, IOMMU_WRITE } from '../iommu/domain.ts';
import { span } from './iova-list.ts';
import { type Dma, extraOf, type Segment } from './type1-dma.ts';

/** What of the machine pinning depends on. */
export interface PinOptions {
  /** Map page by page, never by large leaves. */
  readonly disableHugePages: boolean;
  /** The physical page at which byte `offset` of a BAR's memory answers, -1 while it does not. */
  physicalOfDevice(memory: SharedMemory, offset: number): number;
}

const pinPoint = new Failpoint('vfio:pin', 'ENOMEM');
const mapPoint = new Failpoint('vfio:iommu_map', 'ENOMEM');

/** The owner's limit in pages. */
function limitOf(dma: Dma): number {
  return Math.floor(dma.task.memlockLimit() / 4096);
}

/** ENOMEM when `pages` more would go beyond the owner's limit. */
export function checkLimit(dma: Dma, pages: number): void {
  const limit = limitOf(dma);
  if (pages <= 0 || dma.hasLockCap || dma.mm.lockedPages + pages <= limit) return;
  throw new Errno(
    'ENOMEM',
    `process ${dma.task.pid} ("${dma.task.name}") may lock ${limit} pages (RLIMIT_MEMLOCK ${limit * 4096}, without CAP_IPC_LOCK), ` +
      `has locked ${dma.mm.lockedPages}, and ${span(dma.first, dma.count)} needs ${pages} more`,
  );
}

/** Cuts what the program has at a mapping's address into parts of one kind of memory. */
function segmentsOf(vmas: readonly Vma[], page: number, count: number, options: PinOptions): Segment[] {
  const segments: Segment[] = [];
  for (const vma of vmas) {
    const from = Math.max(vma.start / 4096, page);
    const to = Math.min(vma.end / 4096, page + count);
    let physicalPage = -1;
    if (vma.device !== undefined) {
      physicalPage = options.physicalOfDevice(vma.device.memory, vma.device.offset + (from * 4096 - vma.start));
      if (physicalPage < 0) {
        throw new Errno(
          'EFAULT',
          `the device memory mapped at 0x${vma.start.toString(16)} is disabled or has no address`,
        );
      }
    }
    const last = segments[segments.length - 1];
    if (last !== undefined && last.physicalPage < 0 && physicalPage < 0) {
      segments[segments.length - 1] = { ...last, count: last.count + (to - from) };
    } else segments.push({ offset: from - page, count: to - from, physicalPage });
  }
  return segments;
}

/** Pages of the program's own memory in the first `count` pages. */
function ownPages(segments: readonly Segment[], count: number): number {
  let pages = 0;
  for (const segment of segments) {
    if (segment.physicalPage < 0) pages += Math.max(0, Math.min(segment.count, count - segment.offset));
  }
  return pages;
}

/** Pages held by mediated drivers that count against the owner. */
export function pinnedByDrivers(dma: Dma): number {
  return dma.pinned?.size ?? 0;
}

/**
 * Pins all of a mapping's memory and counts it. EFAULT: a part is not mapped or not writable. ENOMEM: beyond the owner's limit. On
 * failure nothing stays.
 */
export function pin(dma: Dma, options: PinOptions): void {
  pinPoint.hit();
  const { vmas, end, why } = dma.mm.survey(dma.page * 4096, dma.count * 4096, (dma.prot & IOMMU_WRITE) !== 0);
  // The pages before the fault are pinned and counted first, so the limit may speak before the fault does.
  const valid = why === undefined ? dma.count : Math.max(0, Math.floor(end / 4096) - dma.page);
  const segments = segmentsOf(vmas, dma.page, valid, options);
  let held = pinnedByDrivers(dma);
  if (held > 0 && why !== undefined) {
    held = 0;
    for (const page of dma.pinned!.keys()) if (page - dma.first < valid) held++;
  }
  const pages = ownPages(segments, valid) - held;
  checkLimit(dma, pages);
  if (why !== undefined) throw new Errno('EFAULT', `${why} (mapping it at ${span(dma.first, dma.count)})`);
  setSegments(dma, segments);
  for (const segment of segments) {
    if (segment.physicalPage < 0) dma.mm.pin(dma.page + segment.offset, segment.count);
  }
  dma.account(pages);
}

/** Takes the mapping's pins back and stops counting what no mediated driver holds. */
export function unpin(dma: Dma): void {
  for (const segment of dma.segments) {
    if (segment.physicalPage < 0) dma.pinMm.unpin(dma.pinPage + segment.offset, segment.count);
  }
  dma.account(pinnedByDrivers(dma) - dma.lockedPages);
  if (dma.extra !== undefined) {
    delete dma.extra.segments;
    delete dma.extra.pinnedAt;
  }
}

/** Maps a pinned mapping into one domain. On failure nothing of it stays there. */
export function mapInto(domain: Domain, dma: Dma, options: PinOptions): void {
  const prot = dma.prot | IOMMU_CACHE;
  let done = 0;
  try {
    for (const run of dma.runs()) {
      const step = options.disableHugePages ? 1 : run.count;
      for (let at = 0; at < run.count; at += step) {
        mapPoint.hit();
        domain.map(dma.first + done, run.firstPage + at, step, prot);
        done += step;
      }
    }
  } catch (error) {
    if (done > 0) domain.unmap(dma.first, done);
    throw error;
  }
}

/** Maps a pinned mapping into every domain. On failure it is in none. */
export function mapIntoAll(domains: readonly Domain[], dma: Dma, options: PinOptions): void {
  let done = 0;
  try {
    for (; done < domains.length; done++) mapInto(domains[done]!, dma, options);
  } catch (error) {
    while (--done >= 0) domains[done]!.unmap(dma.first, dma.count);
    throw error;
  }
}

/** Removes a mapping from every domain, then its pins: no translation is left when memory is given back. */
export function unmapAndUnpin(domains: readonly Domain[], dma: Dma): void {
  if (!dma.isMapped) return;
  for (const domain of domains) domain.unmap(dma.first, dma.count);
  dma.isMapped = false;
  unpin(dma);
}

/** The parts of a range that could be pinned whole; undefined when it could not. */
function pinnable(dma: Dma, task: Dma['task'], page: number, options: PinOptions): Segment[] | undefined {
  const { vmas, why } = task.mm.survey(page * 4096, dma.count * 4096, (dma.prot & IOMMU_WRITE) !== 0);
  if (why !== undefined) return undefined;
  for (const { device, start } of vmas) {
    if (device !== undefined && options.physicalOfDevice(device.memory, device.offset) < 0) return undefined;
    if (device !== undefined && start < page * 4096) return undefined;
  }
  const segments = segmentsOf(vmas, page, dma.count, options);
  return ownPages(segments, dma.count) === ownPages(dma.segments, dma.count) ? segments : undefined;
}

function setSegments(dma: Dma, segments: readonly Segment[]): void {
  if (segments.some((segment) => segment.physicalPage >= 0)) extraOf(dma).segments = segments;
  else if (dma.extra !== undefined) delete dma.extra.segments;
}

/**
 * Gives a mapping the address `page` of `task`, its owner from now on, and moves its pins there in all domains. When that memory
 * cannot be pinned, DMA goes on into the old memory, as it does in a kernel, whose pinned pages stay the same.
 */
export function movePins(
  domains: readonly Domain[],
  dma: Dma,
  options: PinOptions,
  task: Dma['task'],
  page: number,
): void {
  const old = { mm: dma.pinMm, page: dma.pinPage, segments: dma.segments };
  const segments = dma.isMapped ? pinnable(dma, task, page, options) : undefined;
  dma.task = task;
  dma.mm = task.mm;
  dma.page = page;
  if (!dma.isMapped) return;
  extraOf(dma).pinnedAt = { mm: old.mm, page: old.page };
  if (segments === undefined) return;
  for (const domain of domains) domain.unmap(dma.first, dma.count);
  const own = (parts: readonly Segment[]) => parts.filter((segment) => segment.physicalPage < 0);
  for (const segment of own(segments)) task.mm.pin(page + segment.offset, segment.count);
  delete dma.extra!.pinnedAt;
  setSegments(dma, segments);
  try {
    mapIntoAll(domains, dma, options);
  } catch {
    for (const segment of own(segments)) task.mm.unpin(page + segment.offset, segment.count);
    dma.extra!.pinnedAt = { mm: old.mm, page: old.page };
    setSegments(dma, old.segments);
    mapIntoAll(domains, dma, options);
    return;
  }
  for (const segment of own(old.segments)) old.mm.unpin(old.page + segment.offset, segment.count);
}
