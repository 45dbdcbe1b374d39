/**
 * Where the pages of a map come from, and when they are pinned.
 *
 * A `Pages` object is a run of pages of a program's memory or of a file. Areas take slices of it; a copied area shares the object
 * of its source, so that a page is pinned and charged once however often it was copied. Pages are pinned while anyone holds them:
 * an area of an address space that has a page table, or an access that pinned them. As long as nobody holds them the memory is
 * not even looked at.
 *
 * Pinning may fail, letting go cannot.
 */
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { hex } from '../../lib/pages.ts';
import type { Mm, Run } from '../core/mm.ts';
import type { Task } from '../core/task.ts';
import type { Vma } from '../core/user-memory.ts';
import { CoverCount } from './cover-count.ts';
import type { MappedFiles } from './mapped-files.ts';

const pinFails = new Failpoint('iommufd:pin', 'EFAULT');
const chargeFails = new Failpoint('iommufd:account', 'ENOMEM');

/** Pages locked by one user, in all processes. */
export class LockedMemory {
  pages = 0;
}

/** Whom the pages are charged to: nobody (a program with CAP_IPC_LOCK), the user, or the address space. */
export type PagesAccount = 'none' | 'user' | 'mm';

export type PagesKind = 'user' | 'file' | 'dmabuf';

export interface PagesOrigin {
  readonly kind: PagesKind;
  /** Who mapped them: charged, and asked for the limit. */
  readonly task: Task;
  /** The address space they belong to. Undefined: a file without pages of its own, which is found out when they are needed. */
  readonly mm: Mm | undefined;
  /** Page of `mm` that is index 0. */
  readonly firstPage: number;
  readonly count: number;
  readonly isWritable: boolean;
  readonly account: PagesAccount;
  /** Locked memory of the user. */
  readonly userLocked: LockedMemory;
  /** Files behind shared mappings of the program: their pages are the file's. */
  readonly files?: MappedFiles;
  readonly release?: () => void;
}

/** Pinned pages of a program that are a file's: they stay when the program is gone. */
interface FilePart {
  readonly first: number;
  readonly count: number;
  readonly mm: Mm;
  /** Page of `mm` at `first`. */
  readonly page: number;
  /** Shared by the parts that one pin was cut into. */
  readonly file: { parts: number; release(): void };
}

export class Pages {
  readonly kind: PagesKind;
  readonly firstPage: number;
  readonly count: number;
  readonly isWritable: boolean;
  readonly account: PagesAccount;
  /** Pages pinned and charged now. */
  pinned = 0;
  readonly #userLocked: LockedMemory;
  /** The one range that is held, as long as there is only one; then `#cover` counts. */
  #heldFirst = 0;
  #heldCount = 0;
  #cover: CoverCount | undefined;
  readonly #mm: Mm | undefined;
  readonly #release: (() => void) | undefined;
  readonly #files: MappedFiles | undefined;
  /** In order; what is held and in none of them is the program's own memory. */
  #fileParts: FilePart[] = [];
  #task: Task;
  #references = 1;

  constructor(origin: PagesOrigin) {
    this.kind = origin.kind;
    this.firstPage = origin.firstPage;
    this.count = origin.count;
    this.isWritable = origin.isWritable;
    this.account = origin.account;
    this.#mm = origin.mm;
    this.#task = origin.task;
    this.#userLocked = origin.userLocked;
    this.#release = origin.release;
    this.#files = origin.files;
  }

  /** The program the pages are charged to. */
  get task(): Task {
    return this.#task;
  }

  /** One more area, or map in the making, uses the object. */
  share(): this {
    this.#references++;
    return this;
  }

  put(): void {
    this.#references--;
    if (this.#references > 0) return;
    if (this.pinned > 0) throw new Error(`${this.pinned} pages are still pinned`);
    this.released();
  }

  /** Nobody uses the object any more. */
  protected released(): void {
    this.#release?.();
  }

  /**
   * Pins `count` pages from index `first`, those that are not held already. EFAULT: the memory is not there, not writable or a
   * device's. EINVAL: no such pages in the file. ENOMEM: beyond RLIMIT_MEMLOCK. On failure nothing is held.
   */
  hold(first: number, count: number): void {
    if (this.#cover === undefined && this.#heldCount === 0) {
      this.#pin([{ first, count }], count);
      this.#heldFirst = first;
      this.#heldCount = count;
      return;
    }
    const cover = this.#covered();
    const fresh: { first: number; count: number }[] = [];
    let sum = 0;
    cover.forEachRun(first, count, 0, (at, length) => {
      fresh.push({ first: at, count: length });
      sum += length;
    });
    if (sum > 0) this.#pin(fresh, sum);
    cover.add(first, count);
  }

  /** Ends one `hold`. */
  letGo(first: number, count: number): void {
    if (this.#cover === undefined && this.#heldFirst === first && this.#heldCount === count) {
      this.#heldCount = 0;
      this.#unpin(first, count);
      this.uncharge(count);
      return;
    }
    const cover = this.#covered();
    cover.remove(first, count);
    let gone = 0;
    cover.forEachRun(first, count, 0, (at, length) => {
      this.#unpin(at, length);
      gone += length;
    });
    if (gone > 0) this.uncharge(gone);
    if (this.pinned === 0) this.#cover = undefined;
  }

  /** Where held pages are physically. */
  runs(first: number, count: number): Run[] {
    if (this.#fileParts.length === 0) return this.#mm!.runs(this.firstPage + first, count);
    const runs: Run[] = [];
    this.#forEachPart(first, count, (at, length, part) => {
      const found =
        part === undefined
          ? this.#mm!.runs(this.firstPage + at, length)
          : part.mm.runs(part.page + (at - part.first), length);
      runs.push(...found);
    });
    return runs;
  }

  /** Copies from byte `offset` of the pages, held or not. EFAULT. */
  read(offset: number, into: Uint8Array): void {
    const address = this.firstPage * 4096 + offset;
    if (this.#mm?.memory.read(address, into) !== true && !this.#copyHeld(offset, into, false)) {
      throw new Errno('EFAULT', `${into.length} bytes at ${hex(address)} cannot be read`);
    }
  }

  /** Copies to byte `offset` of the pages, held or not. EFAULT. */
  write(offset: number, from: Uint8Array): void {
    const address = this.firstPage * 4096 + offset;
    if (this.#mm?.memory.write(address, from) !== true && !this.#copyHeld(offset, from, true)) {
      throw new Errno('EFAULT', `${from.length} bytes at ${hex(address)} cannot be written`);
    }
  }

  /** Charges pages to the program that mapped them. ENOMEM. */
  charge(count: number): void {
    chargePages(this.#task, this.account, this.#userLocked, count);
    this.pinned += count;
  }

  uncharge(count: number): void {
    unchargePages(this.#task, this.account, this.#userLocked, count);
    this.pinned -= count;
  }

  /** What is pinned is charged to `task` from now on, which has been charged already. */
  moveTo(task: Task): void {
    unchargePages(this.#task, this.account, this.#userLocked, this.pinned);
    this.#task = task;
  }

  /** `task` is asked for limits from now on; what is pinned stays charged as it is. */
  retask(task: Task): void {
    this.#task = task;
  }

  /** Checks, charges and pins ranges of `sum` pages together. */
  #pin(ranges: readonly { first: number; count: number }[], sum: number): void {
    const vmas = ranges.map(({ first, count }) => this.#check(first, count));
    pinFails.hit();
    this.charge(sum);
    let done = 0;
    try {
      for (; done < ranges.length; done++) this.#pinRange(ranges[done]!.first, ranges[done]!.count, vmas[done]!);
    } catch (error) {
      while (done > 0) this.#unpin(ranges[--done]!.first, ranges[done]!.count);
      this.uncharge(sum);
      throw error;
    }
  }

  /** Pins one range, mapping by mapping. ENOMEM; nothing is pinned then. */
  #pinRange(first: number, count: number, vmas: readonly Vma[]): void {
    if (!vmas.some((vma) => vma.file !== undefined)) {
      this.#mm!.pin(this.firstPage + first, count);
      return;
    }
    let at = first;
    const end = first + count;
    try {
      for (const vma of vmas) {
        const stop = Math.min(end, vma.end / 4096 - this.firstPage);
        const opened = vma.file === undefined ? undefined : this.#files?.openMapping(vma.file);
        if (opened === undefined) this.#mm!.pin(this.firstPage + at, stop - at);
        else this.#pinFile(at, stop - at, vma, opened);
        at = stop;
      }
    } catch (error) {
      if (at > first) this.#unpin(first, at - first);
      throw error;
    }
  }

  #pinFile(first: number, count: number, vma: Vma, opened: { mm: Mm; release(): void }): void {
    const page = (vma.file!.offset - vma.start) / 4096 + this.firstPage + first;
    try {
      opened.mm.pin(page, count);
    } catch (error) {
      opened.release();
      throw error;
    }
    const part = { first, count, mm: opened.mm, page, file: { parts: 1, release: () => opened.release() } };
    this.#fileParts.push(part);
    this.#fileParts.sort((a, b) => a.first - b.first);
  }

  /** Unpins a range, wherever its pages are. */
  #unpin(first: number, count: number): void {
    if (this.#fileParts.length === 0) {
      this.#mm!.unpin(this.firstPage + first, count);
      return;
    }
    const cuts: [FilePart, number, number][] = [];
    this.#forEachPart(first, count, (at, length, part) => {
      if (part === undefined) this.#mm!.unpin(this.firstPage + at, length);
      else {
        part.mm.unpin(part.page + (at - part.first), length);
        cuts.push([part, at, length]);
      }
    });
    for (const [part, at, length] of cuts) this.#cutPart(part, at, length);
  }

  #cutPart(part: FilePart, first: number, count: number): void {
    const rest: FilePart[] = [];
    const end = part.first + part.count;
    if (first > part.first) rest.push({ ...part, count: first - part.first });
    if (first + count < end) {
      const skipped = first + count - part.first;
      rest.push({ ...part, first: first + count, count: part.count - skipped, page: part.page + skipped });
    }
    this.#fileParts.splice(this.#fileParts.indexOf(part), 1, ...rest);
    part.file.parts += rest.length - 1;
    if (part.file.parts === 0) part.file.release();
  }

  /** Visits a range in pieces that are in one part of a file, or in none. */
  #forEachPart(
    first: number,
    count: number,
    visit: (first: number, count: number, part: FilePart | undefined) => void,
  ): void {
    const end = first + count;
    let at = first;
    for (const part of this.#fileParts) {
      const stop = part.first + part.count;
      if (stop <= at || part.first >= end) continue;
      if (part.first > at) visit(at, part.first - at, undefined);
      const from = Math.max(at, part.first);
      visit(from, Math.min(end, stop) - from, part);
      at = Math.min(end, stop);
    }
    if (at < end) visit(at, end - at, undefined);
  }

  /** Copies from or to pages that are a file's. False: not all of them are. */
  #copyHeld(offset: number, buffer: Uint8Array, isWrite: boolean): boolean {
    if (this.#fileParts.length === 0) return false;
    const first = Math.floor(offset / 4096);
    const count = Math.floor((offset + buffer.length - 1) / 4096) - first + 1;
    let ok = true;
    this.#forEachPart(first, count, (at, length, part) => {
      const from = Math.max(at * 4096, offset);
      const to = Math.min((at + length) * 4096, offset + buffer.length);
      const bytes = buffer.subarray(from - offset, to - offset);
      const place = part === undefined ? 0 : (part.page - part.first) * 4096 + from;
      if (part === undefined) ok = false;
      else if (ok) ok = isWrite ? part.mm.memory.write(place, bytes) : part.mm.memory.read(place, bytes);
    });
    return ok;
  }

  #covered(): CoverCount {
    if (this.#cover === undefined) {
      this.#cover = new CoverCount();
      this.#cover.add(this.#heldFirst, this.#heldCount);
      this.#heldCount = 0;
    }
    return this.#cover;
  }

  #check(first: number, count: number): readonly Vma[] {
    if (this.kind === 'file') {
      const last = this.firstPage + first + count - 1;
      if (this.#mm?.memory.vma(last * 4096) === undefined) {
        throw new Errno(
          'EINVAL',
          this.#mm === undefined ? 'the file has no pages' : `the file ends before page ${last}`,
        );
      }
      return [];
    }
    const address = (this.firstPage + first) * 4096;
    const vmas = this.#mm!.check(address, count * 4096, this.isWritable);
    for (const vma of vmas) {
      if (vma.device !== undefined) throw new Errno('EFAULT', `${hex(vma.start)} is a device's memory, not pages`);
    }
    return vmas;
  }
}

/** Charges `count` pages to a program. ENOMEM: beyond RLIMIT_MEMLOCK. */
export function chargePages(task: Task, account: PagesAccount, userLocked: LockedMemory, count: number): void {
  chargeFails.hit();
  const locked = account === 'user' ? userLocked.pages : task.mm.lockedPages;
  const limit = Math.floor(task.memlockLimit() / 4096);
  if (account !== 'none' && locked + count > limit) {
    const whose = account === 'user' ? 'the user has' : 'the program has';
    throw new Errno('ENOMEM', `${count} pages are wanted and ${whose} ${locked} of ${limit} (RLIMIT_MEMLOCK) locked`);
  }
  if (account === 'user') userLocked.pages += count;
  if (account === 'mm') task.mm.lockedPages += count;
  task.mm.pinnedPages += count;
}

export function unchargePages(task: Task, account: PagesAccount, userLocked: LockedMemory, count: number): void {
  if (account === 'user') userLocked.pages -= count;
  if (account === 'mm') task.mm.lockedPages -= count;
  task.mm.pinnedPages -= count;
}
