/**
 * One mapping of a container: IOVAs, the program's memory behind them, and what is pinned of it.
 *
 * A container may have 65,535 of these, so the object holds only what every mapping needs; what few need (pages pinned by mediated
 * drivers, dirty bits, device memory) is in `extra`. Page numbers throughout.
 */
import { Errno } from '../../lib/errno.ts';
import type { IntervalMap } from '../../lib/interval-map.ts';
import type { Mm, Run } from '../core/mm.ts';
import type { Task } from '../core/task.ts';
import { IOMMU_READ, IOMMU_WRITE } from '../iommu/domain.ts';
import { span } from './iova-list.ts';

const MAPPED = 4;
const INVALID = 8;
const LOCK_CAP = 16;

/** A part of a mapping that is one kind of memory: `physicalPage` is where a BAR is, -1 for the program's own memory. */
export interface Segment {
  readonly offset: number;
  readonly count: number;
  readonly physicalPage: number;
}

/** A page that mediated drivers hold. */
export interface PinnedPage {
  readonly physicalPage: number;
  references: number;
}

interface Extra {
  /** By IOVA page. */
  pinned?: Map<number, PinnedPage>;
  /** One bit a page of the smallest size, while dirty pages are tracked. */
  dirty?: Uint8Array;
  /** Set when the memory is not all the program's own. */
  segments?: readonly Segment[];
  /** Where the pins are, when the mapping was given another address that could not be pinned. */
  pinnedAt?: { readonly mm: Mm; readonly page: number };
}

export class Dma {
  readonly first: number;
  readonly count: number;
  /** First page of the program's memory. */
  page: number;
  task: Task;
  mm: Mm;
  /** Pages of it that count against the owner's limit. */
  lockedPages = 0;
  extra: Extra | undefined = undefined;
  #state: number;

  constructor(first: number, count: number, page: number, prot: number, task: Task, hasLockCap: boolean) {
    this.first = first;
    this.count = count;
    this.page = page;
    this.task = task;
    this.mm = task.mm;
    this.#state = prot | (hasLockCap ? LOCK_CAP : 0);
  }

  get last(): number {
    return this.first + this.count - 1;
  }

  /** IOMMU_READ | IOMMU_WRITE */
  get prot(): number {
    return this.#state & (IOMMU_READ | IOMMU_WRITE);
  }

  /** Pinned as a whole and mapped in every domain of the container. */
  get isMapped(): boolean {
    return (this.#state & MAPPED) !== 0;
  }

  set isMapped(value: boolean) {
    this.#state = value ? this.#state | MAPPED : this.#state & ~MAPPED;
  }

  /** UNMAP with VADDR took the address away; MAP with VADDR gives a new one. */
  get isVaddrInvalid(): boolean {
    return (this.#state & INVALID) !== 0;
  }

  set isVaddrInvalid(value: boolean) {
    this.#state = value ? this.#state | INVALID : this.#state & ~INVALID;
  }

  /** The owner had CAP_IPC_LOCK at the time of the map. */
  get hasLockCap(): boolean {
    return (this.#state & LOCK_CAP) !== 0;
  }

  /** Gives the mapping to another program's memory. */
  setOwner(task: Task, hasLockCap: boolean): void {
    this.task = task;
    this.mm = task.mm;
    this.#state = hasLockCap ? this.#state | LOCK_CAP : this.#state & ~LOCK_CAP;
  }

  /** Counts pages for or against the owner. */
  account(pages: number): void {
    this.mm.lockedPages += pages;
    this.lockedPages += pages;
  }

  /** Pages held by mediated drivers. */
  get pinned(): Map<number, PinnedPage> | undefined {
    return this.extra?.pinned;
  }

  get dirty(): Uint8Array | undefined {
    return this.extra?.dirty;
  }

  /** The kinds of memory, in order, covering the whole mapping. */
  get segments(): readonly Segment[] {
    return this.extra?.segments ?? [{ offset: 0, count: this.count, physicalPage: -1 }];
  }

  get pinMm(): Mm {
    return this.extra?.pinnedAt?.mm ?? this.mm;
  }

  get pinPage(): number {
    return this.extra?.pinnedAt?.page ?? this.page;
  }

  /** Where the pinned mapping is physically, in order. */
  runs(): Run[] {
    if (this.extra?.segments === undefined) return this.pinMm.runs(this.pinPage, this.count);
    return this.segments.flatMap((segment) =>
      segment.physicalPage < 0
        ? this.pinMm.runs(this.pinPage + segment.offset, segment.count)
        : [{ firstPage: segment.physicalPage, count: segment.count }],
    );
  }

  /** For people: `0x0-0xfffff (process 12, "qemu")`. */
  get text(): string {
    return `${span(this.first, this.count)} (mapped by process ${this.task.pid}, "${this.task.name}")`;
  }
}

/** Adds to what few mappings have. */
export function extraOf(dma: Dma): Extra {
  dma.extra ??= {};
  return dma.extra;
}

/** EINVAL when `[first, last]` would cut a mapping at either end. */
export function refuseCut(dmas: IntervalMap<Dma>, first: number, last: number): void {
  const head = dmas.get(first);
  const tail = dmas.get(last);
  const cut =
    head !== undefined && head.first !== first ? head : tail !== undefined && tail.last !== last ? tail : undefined;
  if (cut !== undefined)
    throw new Errno('EINVAL', `${span(first, last - first + 1)} would cut the mapping ${cut.text}`);
}
