/**
 * A domain: one address space of the IOMMU, with the tables that hold it. First version of the surface; the tables follow.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { Errno } from '../../lib/errno.ts';

/** Permissions of a mapping; the values are those of include/linux/iommu.h. */
export const IOMMU_READ = 1;
export const IOMMU_WRITE = 2;
export const IOMMU_CACHE = 4;

/** `blocked`: every access faults. `identity`: the IOVA is the physical address. `dma`: the host's drivers. `unmanaged`: VFIO, iommufd. */
export type DomainKind = 'blocked' | 'identity' | 'dma' | 'unmanaged';

/** The leaf that translates a page. `level` 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB. */
export interface Leaf {
  readonly level: number;
  /** First page that it translates, and how many. */
  readonly firstPage: number;
  readonly count: number;
  readonly physicalPage: number;
  readonly entry: bigint;
}

export class Domain {
  readonly kind: DomainKind;
  /** The hardware it was made for. */
  readonly unit: IommuUnit;
  readonly pgsizeBitmap: bigint;
  /** The aperture, in pages, both ends included. */
  readonly firstPage: number = 0;
  readonly lastPage: number;
  /** Attached groups. */
  attachments = 0;
  #enforcesCoherency = false;

  constructor(unit: IommuUnit, kind: DomainKind) {
    this.unit = unit;
    this.kind = kind;
    this.pgsizeBitmap = unit.pgsizeBitmap;
    this.lastPage = 2 ** (unit.mgaw - 12) - 1;
  }

  /** Every leaf made from now on overrides no-snoop. */
  get enforcesCoherency(): boolean {
    return this.#enforcesCoherency;
  }

  /**
   * Maps `count` pages from `page` to the physical pages from `physicalPage`, by the largest leaves that fit. EINVAL: no paging
   * domain. ERANGE: outside the aperture. EADDRINUSE: something is mapped there. On failure nothing stays.
   */
  map(_page: number, _physicalPage: number, _count: number, _prot: number): void {
    throw new Errno('EOPNOTSUPP', 'not built yet');
  }

  /**
   * Removes what is mapped from `page` on, up to `count` pages or the first hole, and returns the pages removed; a large leaf goes
   * whole, so that they may be more than asked. The IOTLB is synchronised when it returns.
   */
  unmap(_page: number, _count: number): number {
    throw new Errno('EOPNOTSUPP', 'not built yet');
  }

  /** The physical page behind `page`, -1 when it is not mapped. */
  physicalOf(_page: number): number {
    return -1;
  }

  leafAt(_page: number): Leaf | undefined {
    return undefined;
  }

  /** Makes all DMA through this domain coherent, also what devices mark no-snoop. False: not possible (any more). */
  enforceCacheCoherency(): boolean {
    return this.#enforcesCoherency;
  }

  /** Whether devices behind `unit` can be attached. */
  isCompatible(unit: IommuUnit): boolean {
    return unit === this.unit;
  }

  /** EBUSY while attached. */
  free(): void {
    if (this.attachments > 0) throw new Errno('EBUSY', `the domain is still attached to ${this.attachments} groups`);
  }
}
