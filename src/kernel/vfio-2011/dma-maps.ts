/**
 * The mappings of one address space of 2011: kept as few entries as possible, changed page by page.
 *
 * Mappings that continue each other (IOVAs, memory, permission) are one entry; any range of pages may be unmapped, which trims entries or
 * splits them. Pages are mapped one by one, never by large leaves, so that every cut is possible. What is in an entry is pinned, and its
 * pages count against the limit of the process that has the address space.
 */
import type { SharedMemory } from '../../hw/memory/backing.ts';
import { Errno } from '../../lib/errno.ts';
import { IntervalMap } from '../../lib/interval-map.ts';
import { hex, pageOf, U64_MAX } from '../../lib/pages.ts';
import { Unwind } from '../../lib/unwind.ts';
import {
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_WRITE,
  type vfio_dma_map,
  type vfio_dma_unmap,
} from '../../uapi/vfio-2011.ts';
import type { Mm, Run } from '../core/mm.ts';
import type { Task } from '../core/task.ts';
import type { Vma } from '../core/user-memory.ts';
import { type Domain, IOMMU_CACHE } from '../iommu/domain.ts';

/** Pages `[area.first, area.last]` of the device are the program's from `page` on. */
interface Entry {
  readonly page: number;
  /** IOMMU_READ | IOMMU_WRITE */
  readonly prot: number;
  /** First physical page of a BAR that the program has mapped; -1: its own memory, which is pinned. */
  readonly physicalPage: number;
}

export interface DmaMapsOptions {
  /** Entries that one address space may have. */
  readonly entryLimit: number;
  /** The physical page at which byte `offset` of a BAR's memory answers, -1 while it does not. */
  physicalOfDevice(memory: SharedMemory, offset: number): number;
}

export class DmaMaps {
  readonly entries = new IntervalMap<Entry>();
  readonly #options: DmaMapsOptions;

  constructor(options: DmaMapsOptions) {
    this.#options = options;
  }

  /**
   * MAP_DMA. EINVAL: flags, alignment, no size, it wraps, or the IOMMU has not as many address bits. EBUSY: it overlaps what is mapped.
   * ENOSPC: no entry left. ENOMEM: beyond RLIMIT_MEMLOCK. EFAULT: the memory is not there, or not writable. On failure nothing stays.
   */
  map(domain: Domain, task: Task, { flags, vaddr, iova, size }: vfio_dma_map): void {
    const known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    if ((flags & ~known) !== 0) throw new Errno('EINVAL', `flags ${hex(flags)} has bits that are not known`);
    if ((flags & known) === 0) throw new Errno('EINVAL', 'neither READ nor WRITE is set');
    if (((vaddr | iova | size) & 0xfffn) !== 0n) {
      throw new Errno(
        'EINVAL',
        `IOVA ${hex(iova)}, address ${hex(vaddr)} and size ${hex(size)} have to be whole pages`,
      );
    }
    if (size === 0n) throw new Errno('EINVAL', `the size of a mapping at IOVA ${hex(iova)} cannot be 0`);
    if (iova + size - 1n > U64_MAX || vaddr + size - 1n > U64_MAX) {
      throw new Errno('EINVAL', `IOVA ${hex(iova)} or address ${hex(vaddr)} and size ${hex(size)} go beyond 2^64`);
    }
    const first = pageOf(iova);
    const count = pageOf(size);
    const last = first + count - 1;
    if (last > domain.lastPage) {
      throw new Errno(
        'EINVAL',
        `${span(first, last)} is beyond the last IOVA, ${hex(BigInt(domain.lastPage) * 4096n)}`,
      );
    }
    const taken = this.entries.firstIn(first, last);
    if (taken !== undefined) throw new Errno('EBUSY', `${span(first, last)} overlaps ${span(taken.first, taken.last)}`);

    const { mm } = task;
    const page = pageOf(vaddr);
    const { vmas, why } = mm.survey(page * 4096, count * 4096, (flags & VFIO_DMA_MAP_FLAG_WRITE) !== 0);
    const parts = why === undefined ? this.#partsOf(vmas, page, count) : [];
    const own = why === undefined ? sum(parts.filter((part) => part.physicalPage < 0)) : count;
    if (this.entries.size + parts.length > this.#options.entryLimit) {
      throw new Errno('ENOSPC', `the address space has ${this.entries.size} of ${this.#options.entryLimit} entries`);
    }
    const limit = Math.floor(task.memlockLimit() / 4096);
    if (mm.lockedPages + own > limit && !task.capable('CAP_IPC_LOCK')) {
      throw new Errno(
        'ENOMEM',
        `process ${task.pid} may lock ${limit} pages (RLIMIT_MEMLOCK, without CAP_IPC_LOCK), has locked ${mm.lockedPages}, ${own} more are wanted`,
      );
    }
    if (why !== undefined) throw new Errno('EFAULT', `${why} (mapping it at ${span(first, last)})`);

    using undo = new Unwind();
    let at = first;
    for (const part of parts) {
      const runs = part.physicalPage < 0 ? pin(mm, part, undo) : [{ firstPage: part.physicalPage, count: part.count }];
      mapRuns(domain, at, runs, flags | IOMMU_CACHE, undo);
      at += part.count;
    }
    undo.keep();
    mm.lockedPages += own;
    at = first;
    for (const { page: from, physicalPage, count: pages } of parts) {
      this.#add(at, at + pages - 1, { page: from, physicalPage, prot: flags });
      at += pages;
    }
  }

  /** UNMAP_DMA: whatever is mapped there goes, and nothing else. EINVAL: flags, alignment, or it wraps. ENOSPC: no entry left to split one. */
  unmap(domain: Domain, mm: Mm, { flags, iova, size }: vfio_dma_unmap): void {
    if (flags !== 0) throw new Errno('EINVAL', `flags ${hex(flags)} has bits that are not known`);
    if (((iova | size) & 0xfffn) !== 0n) {
      throw new Errno('EINVAL', `IOVA ${hex(iova)} and size ${hex(size)} have to be whole pages`);
    }
    if (size === 0n) return;
    if (iova + size - 1n > U64_MAX) throw new Errno('EINVAL', `IOVA ${hex(iova)} and size ${hex(size)} go beyond 2^64`);
    const first = pageOf(iova);
    const last = first + pageOf(size) - 1;
    const within = this.entries.firstIn(first, last);
    const isSplit = within !== undefined && within.first < first && within.last > last;
    if (isSplit && this.entries.size >= this.#options.entryLimit) {
      throw new Errno('ENOSPC', `${span(first, last)} splits an entry, and the address space has all that it may have`);
    }
    this.#cut(domain, mm, first, last);
  }

  /** Everything goes. */
  clear(domain: Domain, mm: Mm): void {
    this.#cut(domain, mm, 0, Number.MAX_SAFE_INTEGER);
  }

  #cut(domain: Domain, mm: Mm, first: number, last: number): void {
    for (const { first: start, last: end, value } of this.entries.areas(first, last)) {
      const from = Math.max(start, first);
      const to = Math.min(end, last);
      const count = to - from + 1;
      domain.unmap(from, count);
      if (value.physicalPage < 0) {
        mm.unpin(value.page + (from - start), count);
        mm.lockedPages -= count;
      }
      this.entries.remove(start);
      if (start < from) this.entries.insert(start, from - 1, value);
      if (to < end) this.entries.insert(to + 1, end, moved(value, to + 1 - start));
    }
  }

  /** Adds an entry, joined with the neighbours that it continues. */
  #add(first: number, last: number, entry: Entry): void {
    let [from, to, joined] = [first, last, entry];
    const before = this.entries.at(first - 1);
    if (before !== undefined && continues(before.value, first - before.first, entry)) {
      this.entries.remove(before.first);
      [from, joined] = [before.first, before.value];
    }
    const after = this.entries.at(last + 1);
    if (after !== undefined && continues(joined, after.first - from, after.value)) {
      this.entries.remove(after.first);
      to = after.last;
    }
    this.entries.insert(from, to, joined);
  }

  /** The range by kinds of memory. EFAULT: a BAR that does not answer. */
  #partsOf(vmas: readonly Vma[], page: number, count: number): Part[] {
    const parts: Part[] = [];
    for (const vma of vmas) {
      const from = Math.max(vma.start / 4096, page);
      const to = Math.min(vma.end / 4096, page + count);
      let physicalPage = -1;
      if (vma.device !== undefined) {
        const { memory, offset } = vma.device;
        physicalPage = this.#options.physicalOfDevice(memory, offset + (from * 4096 - vma.start));
        if (physicalPage < 0) throw new Errno('EFAULT', `the registers mapped at ${hex(vma.start)} do not answer now`);
      }
      const before = parts.at(-1);
      if (before !== undefined && before.physicalPage < 0 && physicalPage < 0) before.count += to - from;
      else parts.push({ page: from, count: to - from, physicalPage });
    }
    return parts;
  }
}

interface Part {
  readonly page: number;
  count: number;
  readonly physicalPage: number;
}

function sum(parts: readonly Part[]): number {
  return parts.reduce((pages, { count }) => pages + count, 0);
}

function pin(mm: Mm, { page, count }: Part, undo: Unwind): Run[] {
  const runs = mm.pin(page, count);
  undo.add(() => mm.unpin(page, count));
  return runs;
}

function mapRuns(domain: Domain, first: number, runs: readonly Run[], prot: number, undo: Unwind): void {
  let done = 0;
  undo.add(() => {
    if (done > 0) domain.unmap(first, done);
  });
  for (const { firstPage, count } of runs) {
    for (let i = 0; i < count; i++) {
      domain.map(first + done, firstPage + i, 1, prot);
      done++;
    }
  }
}

/** Whether `b`, `distance` pages behind the start of `a`, goes on where `a` would. */
function continues(a: Entry, distance: number, b: Entry): boolean {
  if (a.prot !== b.prot || a.page + distance !== b.page) return false;
  return a.physicalPage < 0 ? b.physicalPage < 0 : a.physicalPage + distance === b.physicalPage;
}

function moved({ page, prot, physicalPage }: Entry, by: number): Entry {
  return { page: page + by, prot, physicalPage: physicalPage < 0 ? -1 : physicalPage + by };
}

function span(first: number, last: number): string {
  return `${hex(BigInt(first) * 4096n)}-${hex(BigInt(last) * 4096n + 0xfffn)}`;
}
