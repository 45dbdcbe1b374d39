/**
 * Accesses: a software device reads and writes an address space itself, without an IOMMU. Mediated devices are bound this way.
 *
 * It may pin pages, and must let go of them when it is told that they will be unmapped; UNMAP waits for that. Reading and writing
 * needs no pins.
 */
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { hex, U64_MAX } from '../../lib/pages.ts';
import { IOMMU_READ, IOMMU_WRITE } from '../iommu/domain.ts';
import { type Access, type Area, lastOf } from './area.ts';
import { type IommufdContext, IommufdObject } from './context.ts';
import { getIoas, type Ioas } from './ioas.ts';
import { show } from './reserved-iovas.ts';

const pinFails = new Failpoint('iommufd:access_pin', 'ENOMEM');
const copyFails = new Failpoint('iommufd:access_rw', 'EINVAL');

/** The most pages that are pinned by one call. */
const MOST_PAGES = 2 ** 20;

export interface AccessOptions {
  /** It pins whole pages; without, it only reads and writes. */
  readonly needsPinPages: boolean;
  /** IOVAs that vanish when this returns: pins of them are to be taken back. */
  unmap(iova: bigint, length: bigint): void;
}

/** An access of the kernel itself: what it pins cannot be unmapped at all, and it does not keep the context alive. */
export interface InternalAccess {
  readonly isInternal: true;
}

export class IommufdAccess extends IommufdObject implements Access {
  readonly kind = 'access';
  readonly alignment: bigint;
  /** Undefined: the kernel's own. */
  readonly #options: AccessOptions | undefined;
  #ioas: Ioas | undefined;

  constructor(context: IommufdContext, options: AccessOptions | InternalAccess) {
    super(context);
    this.#options = 'isInternal' in options ? undefined : options;
    this.alignment = this.#options?.needsPinPages === false ? 1n : 4096n;
    // Whoever made it is a user until `unbind`.
    this.users = 1;
    if (this.#options !== undefined) context.hold();
  }

  /** Whether `pin` may be called. */
  get canPin(): boolean {
    return this.alignment === 4096n;
  }

  isAttached(): boolean {
    return this.#ioas !== undefined;
  }

  /** Uses an address space, and returns its number. ENOENT. EADDRINUSE: it has areas that are not of whole pages. EINVAL: attached. */
  attach(ioasId: number): number {
    if (this.#ioas !== undefined) throw new Errno('EINVAL', `access ${this.id} uses address space ${this.#ioas.id}`);
    this.#change(getIoas(this.context, ioasId));
    return ioasId;
  }

  /** As `attach`, of the address space itself. */
  attachTo(ioas: Ioas): void {
    if (this.#ioas !== undefined) throw new Errno('EINVAL', `access ${this.id} uses address space ${this.#ioas.id}`);
    this.#change(ioas);
  }

  /** Uses another address space; what is pinned in the old one is let go. ENOENT: none is used, or there is no such number. */
  replace(ioasId: number): number {
    if (this.#ioas === undefined) throw new Errno('ENOENT', `access ${this.id} uses no address space`);
    this.#change(getIoas(this.context, ioasId));
    return ioasId;
  }

  detach(): void {
    this.#change(undefined);
  }

  unbind(): void {
    const { context } = this;
    context.destroyUser(this);
    if (this.#options !== undefined) context.drop();
  }

  override destroy(): void {
    this.#change(undefined);
  }

  notifyUnmap(iova: bigint, length: bigint): void {
    this.#options?.unmap(iova, length);
  }

  /**
   * Pins the pages of a range and returns them as physical pages. EINVAL: not whole pages, or being unmapped. ENOENT: not mapped, or
   * no address space. EPERM: the map does not allow it. EFAULT, ENOMEM of pinning.
   */
  pin(iova: bigint, length: bigint, isWrite: boolean): number[] {
    const last = lastOf(iova, length);
    const { iopt } = this.#attached();
    if (length >> 12n > BigInt(MOST_PAGES))
      throw new Errno('ENOMEM', `${hex(length)} bytes are too many to pin at once`);
    const physical: number[] = [];
    const done: { area: Area; first: bigint; last: bigint }[] = [];
    try {
      iopt.forEachContiguous(iova, last, (area, first, end) => {
        checkAccess(area, isWrite);
        const from = area.placeOf(first);
        if (from.offset !== 0 || (end !== last && area.placeOf(end).offset !== 4095)) {
          throw new Errno('EINVAL', `${show(area)} is not of whole pages`);
        }
        if (isWrite && !area.pages.isWritable) throw new Errno('EPERM', `${show(area)} was mapped for reading only`);
        if (area.pages.kind === 'dmabuf') throw new Errno('EINVAL', `${show(area)} is a device's memory, not pages`);
        pinFails.hit();
        const count = area.placeOf(end).index - from.index + 1;
        area.pages.hold(from.index, count);
        area.accesses++;
        if (this.#options === undefined) area.locks++;
        done.push({ area, first, last: end });
        for (const run of area.pages.runs(from.index, count)) {
          for (let i = 0; i < run.count; i++) physical.push(run.firstPage + i);
        }
      });
    } catch (error) {
      for (const part of done) this.#letGo(part.area, part.first, part.last);
      throw error;
    }
    return physical;
  }

  /** Takes back one `pin` of exactly this range. */
  unpin(iova: bigint, length: bigint): void {
    const { iopt } = this.#attached();
    iopt.forEachContiguous(iova, lastOf(iova, length), (area, first, last) => this.#letGo(area, first, last));
  }

  /**
   * Copies between a buffer and the memory at `iova`. EINVAL: no length, or being unmapped. ENOENT: not mapped, what is before the
   * hole is copied. EPERM: the map does not allow it. EFAULT: the memory has gone.
   */
  transfer(iova: bigint, buffer: Uint8Array, isWrite: boolean): void {
    const last = lastOf(iova, BigInt(buffer.length));
    const { iopt } = this.#attached();
    iopt.forEachContiguous(iova, last, (area, first, end) => {
      checkAccess(area, isWrite);
      copyFails.hit();
      const { index, offset } = area.placeOf(first);
      const part = buffer.subarray(Number(first - iova), Number(end - iova) + 1);
      if (isWrite && !area.pages.isWritable) throw new Errno('EPERM', `${show(area)} was mapped for reading only`);
      if (isWrite) area.pages.write(index * 4096 + offset, part);
      else area.pages.read(index * 4096 + offset, part);
    });
  }

  /** An IOVA as a fuzzer says it: the number of an area (low half) and a byte in it. 0: there is no such area. */
  iovaOfArea(packed: bigint): bigint {
    let left = Number(packed & 0xffff_ffffn);
    for (const area of this.#ioas?.iopt.areas ?? []) if (left-- === 0) return area.first + (packed >> 32n);
    return 0n;
  }

  #letGo(area: Area, first: bigint, last: bigint): void {
    const { index } = area.placeOf(first);
    area.accesses--;
    if (this.#options === undefined) area.locks--;
    area.pages.letGo(index, area.placeOf(last).index - index + 1);
  }

  #attached(): Ioas {
    if (this.#ioas === undefined) throw new Errno('ENOENT', `access ${this.id} uses no address space`);
    return this.#ioas;
  }

  #change(next: Ioas | undefined): void {
    const current = this.#ioas;
    if (current === next) return;
    if (next !== undefined) {
      next.iopt.addAccess(this);
      next.users++;
    }
    if (current !== undefined) {
      this.#options?.unmap(0n, U64_MAX);
      current.iopt.removeAccess(this);
      current.users--;
    }
    this.#ioas = next;
  }
}

/** Makes an access and gives it a number. */
export function createAccess(context: IommufdContext, options: AccessOptions): IommufdAccess {
  const access = new IommufdAccess(context, options);
  context.publish(access);
  return access;
}

function checkAccess(area: Area, isWrite: boolean): void {
  if (area.preventAccess) throw new Errno('EINVAL', `${show(area)} is being unmapped`);
  if ((area.prot & (isWrite ? IOMMU_WRITE : IOMMU_READ)) === 0) {
    throw new Errno('EPERM', `${show(area)} was not mapped for ${isWrite ? 'writing' : 'reading'}`);
  }
}
