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
import type { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { hex } from '../../lib/pages.ts';
import { Mm, type Run } from '../core/mm.ts';
import type { MemoryFile, Task } from '../core/task.ts';
import { CoverCount } from './cover-count.ts';

const pinFails = new Failpoint('iommufd:pin', 'EFAULT');
const chargeFails = new Failpoint('iommufd:account', 'ENOMEM');

/** Pages locked by one user, in all processes. */
export class LockedMemory {
  pages = 0;
}

/** A file that is mapped somewhere: its pages are pinned like those of an address space that begins at byte 0 of the file. */
class MappedFile {
  readonly mm: Mm;
  references = 1;
  #file: MemoryFile;

  constructor(file: MemoryFile, physical: PhysicalMemory) {
    this.#file = file;
    this.mm = new Mm(
      {
        read: (offset, into) => this.#file.backing.read(offset, into),
        write: (offset, from) => this.#file.backing.write(offset, from),
        vma: (offset) => {
          const end = Math.ceil(this.#file.length / 4096) * 4096;
          return offset < end ? { start: 0, end, readable: true, writable: true, shared: true } : undefined;
        },
      },
      physical,
    );
  }

  /** The same file, resolved again: the better one stays open. */
  renew(file: MemoryFile): void {
    const isBetter = file.length > this.#file.length || (file.writable && !this.#file.writable);
    const worse = isBetter ? this.#file : file;
    if (isBetter) this.#file = file;
    worse.close();
  }

  close(): void {
    this.#file.close();
  }
}

/** The files of a machine that are mapped. A page of a file has one physical page, whoever maps it. */
export class MappedFiles {
  readonly #files = new Map<string, MappedFile>();
  readonly #physical: PhysicalMemory;

  constructor(physical: PhysicalMemory) {
    this.#physical = physical;
  }

  get size(): number {
    return this.#files.size;
  }

  /** Takes over `file`. The result's `mm` has the file's pages; `release` when nothing of it is pinned any more. */
  open(file: MemoryFile): { mm: Mm; release(): void } {
    const { identity } = file;
    let mapped = this.#files.get(identity);
    if (mapped === undefined) {
      mapped = new MappedFile(file, this.#physical);
      this.#files.set(identity, mapped);
    } else {
      mapped.references++;
      mapped.renew(file);
    }
    const found = mapped;
    return {
      mm: found.mm,
      release: () => {
        found.references--;
        if (found.references > 0) return;
        this.#files.delete(identity);
        found.close();
      },
    };
  }
}

/** Whom the pages are charged to: nobody (a program with CAP_IPC_LOCK), the user, or the address space. */
export type PagesAccount = 'none' | 'user' | 'mm';

export interface PagesOrigin {
  readonly kind: 'user' | 'file';
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
  readonly release?: () => void;
}

export class Pages {
  readonly kind: 'user' | 'file';
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
      this.#mm!.unpin(this.firstPage + first, count);
      this.uncharge(count);
      return;
    }
    const cover = this.#covered();
    cover.remove(first, count);
    let gone = 0;
    cover.forEachRun(first, count, 0, (at, length) => {
      this.#mm!.unpin(this.firstPage + at, length);
      gone += length;
    });
    if (gone > 0) this.uncharge(gone);
    if (this.pinned === 0) this.#cover = undefined;
  }

  /** Where held pages are physically. */
  runs(first: number, count: number): Run[] {
    return this.#mm!.runs(this.firstPage + first, count);
  }

  /** Copies from byte `offset` of the pages, held or not. EFAULT. */
  read(offset: number, into: Uint8Array): void {
    const address = this.firstPage * 4096 + offset;
    if (this.#mm?.memory.read(address, into) !== true) {
      throw new Errno('EFAULT', `${into.length} bytes at ${hex(address)} cannot be read`);
    }
  }

  /** Copies to byte `offset` of the pages, held or not. EFAULT. */
  write(offset: number, from: Uint8Array): void {
    const address = this.firstPage * 4096 + offset;
    if (this.#mm?.memory.write(address, from) !== true) {
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
    for (const { first, count } of ranges) this.#check(first, count);
    pinFails.hit();
    this.charge(sum);
    for (const { first, count } of ranges) this.#mm!.pin(this.firstPage + first, count);
  }

  #covered(): CoverCount {
    if (this.#cover === undefined) {
      this.#cover = new CoverCount();
      this.#cover.add(this.#heldFirst, this.#heldCount);
      this.#heldCount = 0;
    }
    return this.#cover;
  }

  #check(first: number, count: number): void {
    if (this.kind === 'file') {
      const last = this.firstPage + first + count - 1;
      if (this.#mm?.memory.vma(last * 4096) === undefined) {
        throw new Errno(
          'EINVAL',
          this.#mm === undefined ? 'the file has no pages' : `the file ends before page ${last}`,
        );
      }
      return;
    }
    const address = (this.firstPage + first) * 4096;
    for (const vma of this.#mm!.check(address, count * 4096, this.isWritable)) {
      if (vma.device !== undefined) throw new Errno('EFAULT', `${hex(vma.start)} is a device's memory, not pages`);
    }
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
