/**
 * A dma-buf: physical pages of a device under a descriptor, so that another device may be given them.
 *
 * The exporter may take the pages back at any time (`revoke`), as VFIO does while the device's memory is disabled; who holds a
 * mapping is told before that returns and must have dropped it by then.
 */
import { Errno } from '../../lib/errno.ts';
import { File } from './file.ts';

/** Physically contiguous pages. */
export interface PhysicalRange {
  readonly firstPage: number;
  readonly count: number;
}

export class DmaBuf extends File {
  readonly kind = 'dmabuf';
  readonly path = '/dmabuf:';
  readonly ranges: readonly PhysicalRange[];
  #revoked = false;
  readonly #users = new Set<() => void>();
  #onRelease: (() => void) | undefined;
  #isOpen = true;
  /** Uses that have not ended, also those whose pages were taken back: they hold the dma-buf. */
  #uses = 0;

  constructor(ranges: readonly PhysicalRange[], onRelease: () => void) {
    super();
    this.ranges = ranges;
    this.#onRelease = onRelease;
  }

  /** Bytes of all ranges together. */
  get length(): number {
    let pages = 0;
    for (const range of this.ranges) pages += range.count;
    return pages * 4096;
  }

  get revoked(): boolean {
    return this.#revoked;
  }

  /**
   * Begins a use of the pages; `onRevoke` is called when they are taken back and must end every mapping of them. The result ends
   * the use. ENODEV: they are taken back now.
   */
  attach(onRevoke: () => void): () => void {
    if (this.#revoked) throw new Errno('ENODEV', 'the device has taken the pages of the dma-buf back');
    this.#users.add(onRevoke);
    this.#uses++;
    let isOver = false;
    return () => {
      if (isOver) return;
      isOver = true;
      this.#users.delete(onRevoke);
      this.#uses--;
      this.#end();
    };
  }

  /** The exporter takes the pages back (they may come again with `restore`). */
  revoke(): void {
    if (this.#revoked) return;
    this.#revoked = true;
    const users = [...this.#users];
    this.#users.clear();
    for (const user of users) user();
  }

  restore(): void {
    this.#revoked = false;
  }

  override release(): void {
    this.#isOpen = false;
    this.#end();
  }

  /** With the last descriptor and the last use gone, the pages go back to the exporter. */
  #end(): void {
    if (this.#isOpen || this.#uses > 0) return;
    const onRelease = this.#onRelease;
    this.#onRelease = undefined;
    onRelease?.();
  }
}
