/**
 * Devices without an IOMMU of their own on an iommufd: a mediated device is bound as an access, so that its driver pins and copies the
 * program's memory through the address space, and is told before areas vanish.
 */
import { Errno } from '../../lib/errno.ts';
import { IOMMU_WRITE } from '../iommu/domain.ts';
import { createAccess, type IommufdAccess } from '../iommufd/access.ts';
import type { IommufdContext } from '../iommufd/context.ts';
import type { CdevBinding, VfioDevice } from './vfio-device.ts';

const PAGE = 4096n;

/** A mediated device's place in an iommufd. PASIDs are EOPNOTSUPP: there is no hardware to have them. */
export class EmulatedBinding implements CdevBinding {
  readonly access: IommufdAccess;
  readonly #device: VfioDevice;

  constructor(device: VfioDevice, access: IommufdAccess) {
    this.#device = device;
    this.access = access;
  }

  get id(): number {
    return this.access.id;
  }

  isAttached(): boolean {
    return this.access.isAttached();
  }

  /** Address spaces only: page tables are ENOENT. */
  attach(ptId: number): number {
    return this.access.attach(ptId);
  }

  replace(ptId: number): number {
    return this.access.replace(ptId);
  }

  detach(): void {
    if (this.access.isAttached()) this.access.detach();
  }

  unbind(): void {
    // The driver lets go of its pages meanwhile.
    this.access.unbind();
    this.#device.emulated = undefined;
  }

  /**
   * Pins single pages at IOVA pages `iovas` and returns where they are physically. EINVAL: none, or being unmapped. ENOENT: not mapped,
   * or not attached. EPERM: not mapped for `prot`. EFAULT, ENOMEM. On failure nothing is pinned.
   */
  pinPages(iovas: readonly number[], prot: number): number[] {
    if (iovas.length === 0) throw new Errno('EINVAL', 'no page is asked for');
    const pages: number[] = [];
    try {
      for (const iova of iovas) {
        pages.push(...this.access.pin(BigInt(iova) * PAGE, PAGE, (prot & IOMMU_WRITE) !== 0));
      }
    } catch (error) {
      this.unpinPages(iovas.slice(0, pages.length));
      throw error;
    }
    return pages;
  }

  unpinPages(iovas: readonly number[]): void {
    for (const iova of iovas) this.access.unpin(BigInt(iova) * PAGE, PAGE);
  }
}

/** Binds a mediated device: for `VfioDevice.bindIommufd` of its driver. */
export function bindEmulated(context: IommufdContext, device: VfioDevice): EmulatedBinding {
  const unmap = (iova: bigint, length: bigint): void => device.dmaUnmap?.(iova, length);
  const binding = new EmulatedBinding(device, createAccess(context, { needsPinPages: true, unmap }));
  device.emulated = binding;
  return binding;
}
