/**
 * Pages of a dma-buf: a device's memory, handed out by another descriptor. They are charged to nobody and need no pinning, but the
 * device may take them back at any time. Then they vanish from every page table, for good: the areas stay and lead nowhere.
 */
import { Errno } from '../../lib/errno.ts';
import type { DmaBuf } from '../core/dma-buf.ts';
import type { Run } from '../core/mm.ts';
import type { Task } from '../core/task.ts';
import type { Area } from './area.ts';
import { type LockedMemory, Pages } from './pages.ts';
import type { PagingDomain } from './paging-domain.ts';

export class DmabufPages extends Pages {
  readonly #physicalPage: number;
  readonly #detach: () => void;
  /** Where the pages are entered. */
  readonly #entered = new Map<Area, Set<PagingDomain>>();
  readonly #remove: (area: Area, domain: PagingDomain) => void;
  #isRevoked = false;

  /**
   * `remove` takes an area out of a page table. EINVAL: the dma-buf ends before. ENODEV: its pages are taken back. EOPNOTSUPP: they are
   * not neighbours.
   */
  constructor(
    task: Task,
    buffer: DmaBuf,
    start: bigint,
    length: bigint,
    options: { isWritable: boolean; userLocked: LockedMemory; remove(area: Area, domain: PagingDomain): void },
  ) {
    if (BigInt(buffer.length) <= start + length - 1n) {
      throw new Errno('EINVAL', `the dma-buf has ${buffer.length} bytes; it ends before byte ${start + length - 1n}`);
    }
    super({
      kind: 'dmabuf',
      task,
      mm: undefined,
      firstPage: Number(start >> 12n),
      count: Number(((start & 0xfffn) + length + 4095n) >> 12n),
      isWritable: options.isWritable,
      account: 'none',
      userLocked: options.userLocked,
    });
    this.#remove = options.remove;
    this.#detach = buffer.attach(() => this.#revoke());
    if (buffer.ranges.length !== 1) {
      this.#detach();
      throw new Errno('EOPNOTSUPP', `the pages of the dma-buf lie in ${buffer.ranges.length} pieces`);
    }
    this.#physicalPage = buffer.ranges[0]!.firstPage;
  }

  /** The pages are gone: nothing is entered anywhere. */
  get isRevoked(): boolean {
    return this.#isRevoked;
  }

  /** An area of these pages is in the page table from now on, or will be when it is filled. */
  entered(area: Area, domain: PagingDomain): void {
    const domains = this.#entered.get(area);
    if (domains === undefined) this.#entered.set(area, new Set([domain]));
    else domains.add(domain);
  }

  removed(area: Area, domain: PagingDomain): void {
    const domains = this.#entered.get(area);
    domains?.delete(domain);
    if (domains?.size === 0) this.#entered.delete(area);
  }

  override hold(): void {}

  override letGo(): void {}

  override runs(first: number, count: number): Run[] {
    return [{ firstPage: this.#physicalPage + this.firstPage + first, count }];
  }

  override read(): void {
    throw new Errno('EINVAL', 'memory of a device cannot be copied by an access');
  }

  override write(): void {
    throw new Errno('EINVAL', 'memory of a device cannot be copied by an access');
  }

  protected override released(): void {
    this.#detach();
  }

  #revoke(): void {
    if (this.#isRevoked) return;
    for (const [area, domains] of this.#entered) for (const domain of domains) this.#remove(area, domain);
    this.#isRevoked = true;
  }
}
