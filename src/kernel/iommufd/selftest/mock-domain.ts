/** Domains of the mock driver: page tables with pages of 2 KiB or of 1 MiB, and guests' tables that only remember four words. */
import { Errno } from '../../../lib/errno.ts';
import { Failpoint } from '../../../lib/failpoint.ts';
import { hex } from '../../../lib/pages.ts';
import { IOMMU_HWPT_ALLOC_DIRTY_TRACKING, IOMMU_HWPT_ALLOC_PASID } from '../../../uapi/iommufd.ts';
import {
  IOMMU_HWPT_DATA_SELFTEST,
  IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
  IOMMU_TEST_INVALIDATE_FLAG_ALL,
  iommu_hwpt_invalidate_selftest,
  iommu_hwpt_selftest,
  MOCK_APERTURE_LAST,
  MOCK_APERTURE_START,
  MOCK_IOMMUPT_DEFAULT,
  MOCK_IOMMUPT_HUGE,
  MOCK_NESTED_DOMAIN_IOTLB_ID_MAX,
  MOCK_NESTED_DOMAIN_IOTLB_NUM,
} from '../../../uapi/iommufd-test.ts';
import type { Task } from '../../core/task.ts';
import { type InvalidateRequest, type NestedDomain, UserData } from '../device-iommu.ts';
import type { DirtyTracking, PagingDomain } from '../paging-domain.ts';
import { GRANULE, MockTable } from './mock-table.ts';
import type { MockViommu } from './mock-viommu.ts';

const domainFails = new Failpoint('iommufd_mock:domain', 'ENOMEM');
const nestedFails = new Failpoint('iommufd_mock:nested', 'ENOMEM');
const mapFails = new Failpoint('iommufd_mock:map', 'ENOMEM');

/** Three levels of 512 entries of 2 KiB: addresses of 38 bits, entries up to a quarter of that. */
const ADDRESS_BITS = 38;
const LARGEST_ORDER = ADDRESS_BITS - 2 - 11;
const bitsOf = (bitmap: bigint): number[] => {
  const bits: number[] = [];
  for (let bit = 0; bit <= LARGEST_ORDER; bit++) if ((bitmap >> BigInt(bit + 11)) & 1n) bits.push(bit);
  return bits;
};
const DEFAULT_SIZES = (1n << BigInt(ADDRESS_BITS - 1)) - BigInt(GRANULE);
const HUGE_SIZES = 0x10_0000n | 0x1000n;

export class MockDomain implements PagingDomain {
  readonly pgsizeBitmap: bigint;
  readonly firstPage: number;
  readonly lastPage: number;
  readonly table: MockTable;
  readonly dirty?: DirtyTracking;
  isTracking = false;

  /** EOPNOTSUPP: no such kind of table. */
  constructor(kind: number, hasDirtyTracking: boolean) {
    if (kind !== MOCK_IOMMUPT_DEFAULT && kind !== MOCK_IOMMUPT_HUGE) {
      throw new Errno('EOPNOTSUPP', `the mock driver has no page tables of kind ${kind}`);
    }
    domainFails.hit();
    this.pgsizeBitmap = kind === MOCK_IOMMUPT_HUGE ? HUGE_SIZES : DEFAULT_SIZES;
    this.firstPage = kind === MOCK_IOMMUPT_HUGE ? 0 : MOCK_APERTURE_START / 4096;
    this.lastPage = kind === MOCK_IOMMUPT_HUGE ? 2 ** (ADDRESS_BITS - 12) - 1 : Math.floor(MOCK_APERTURE_LAST / 4096);
    // Programs' memory lies scattered in a real machine, and entries of one page are what its tables get. That neighbours are neighbours
    // here, too, is the model's doing: it shall not show in dirty bits, which are one for each entry.
    this.table = new MockTable(kind === MOCK_IOMMUPT_HUGE ? bitsOf(HUGE_SIZES) : [0, 1]);
    if (hasDirtyTracking) this.dirty = this.#tracking();
  }

  get hasDirtyTracking(): boolean {
    return this.dirty !== undefined;
  }

  map(page: number, physicalPage: number, count: number, _prot: number): void {
    this.#enter(page * 2, physicalPage * 2, count * 2);
  }

  unmap(page: number, count: number): number {
    return this.table.unmap(page * 2, count * 2) / 2;
  }

  mapBytes(iova: bigint, physicalPage: number, offset: number, length: bigint, _prot: number): void {
    this.#enter(Number(iova) / GRANULE, physicalPage * 2 + offset / GRANULE, Number(length) / GRANULE);
  }

  unmapBytes(iova: bigint, length: bigint): void {
    const count = Number(length) / GRANULE;
    if (this.table.unmap(Number(iova) / GRANULE, count) !== count) throw new Error(`${hex(iova)} is not mapped`);
  }

  physicalOf(page: number): number {
    const granule = this.table.physicalOf(page * 2);
    return granule < 0 ? -1 : Math.floor(granule / 2);
  }

  /** There is no such operation: the mock driver does not claim it. */
  enforceCacheCoherency(): boolean {
    return false;
  }

  free(): void {
    if (!this.table.isEmpty) throw new Error('A mock page table is freed while it is filled');
  }

  #enter(granule: number, physical: number, count: number): void {
    mapFails.hit();
    if (!this.table.map(granule, physical, count)) {
      throw new Errno('ENXIO', `the page table has no pages as small as ${count * GRANULE} bytes`);
    }
  }

  #tracking(): DirtyTracking {
    return {
      setTracking: (isOn) => {
        this.isTracking = isOn;
      },
      readAndClear: (first, last, isCleared, report) => {
        this.table.readDirty(
          Number(first / BigInt(GRANULE)),
          Number(last / BigInt(GRANULE)),
          isCleared,
          report === undefined
            ? undefined
            : (granule, count) => {
                const start = BigInt(granule) * BigInt(GRANULE);
                report(start, start + BigInt(count) * BigInt(GRANULE) - 1n);
              },
        );
      },
    };
  }
}

/** A page table for an address space. EOPNOTSUPP, EINVAL, EFAULT. */
export function allocateMockDomain(flags: number, data: UserData | undefined): MockDomain {
  if (data !== undefined && data.type !== IOMMU_HWPT_DATA_SELFTEST) {
    throw new Errno(
      'EOPNOTSUPP',
      `data of type ${hex(data.type)}; the mock driver's are ${hex(IOMMU_HWPT_DATA_SELFTEST)}`,
    );
  }
  const config = data?.readStruct(IOMMU_HWPT_DATA_SELFTEST, iommu_hwpt_selftest, 'iotlb');
  return new MockDomain(config?.pagetable_type ?? 0, (flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0);
}

export class MockNested implements NestedDomain {
  readonly iotlb: Uint32Array;
  /** The virtual IOMMU that it was made for: devices need a virtual device of it. */
  readonly viommu: MockViommu | undefined;

  constructor(iotlb: number, viommu: MockViommu | undefined) {
    nestedFails.hit();
    this.iotlb = new Uint32Array(MOCK_NESTED_DOMAIN_IOTLB_NUM).fill(iotlb);
    this.viommu = viommu;
  }

  invalidate(task: Task, request: InvalidateRequest): { done: number; refusal?: Errno } {
    let done = 0;
    try {
      if (request.type !== IOMMU_HWPT_INVALIDATE_DATA_SELFTEST) {
        throw new Errno('EINVAL', `entries of type ${hex(request.type)}`);
      }
      for (; done < request.entryCount; done++) {
        const address = request.address + BigInt(done) * BigInt(request.entryLength);
        const entry = new UserData(task, request.type, address, request.entryLength);
        this.#forget(entry);
      }
      return { done };
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      return { done, refusal: error };
    }
  }

  free(): void {}

  #forget(entry: UserData): void {
    const { flags, iotlb_id } = entry.readStruct(entry.type, iommu_hwpt_invalidate_selftest, 'iotlb_id');
    if ((flags & ~IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(flags)}`);
    if (iotlb_id > MOCK_NESTED_DOMAIN_IOTLB_ID_MAX) throw new Errno('EINVAL', `there is no word ${iotlb_id}`);
    if (flags !== 0) this.iotlb.fill(0);
    else this.iotlb[iotlb_id] = 0;
  }
}

/** A guest's table. EOPNOTSUPP, EINVAL, EFAULT. */
export function allocateMockNested(flags: number, data: UserData, viommu: MockViommu | undefined): MockNested {
  if ((flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(flags)} of a nested table`);
  if (data.type !== IOMMU_HWPT_DATA_SELFTEST) throw new Errno('EOPNOTSUPP', `data of type ${hex(data.type)}`);
  return new MockNested(data.readStruct(data.type, iommu_hwpt_selftest, 'iotlb').iotlb, viommu);
}
