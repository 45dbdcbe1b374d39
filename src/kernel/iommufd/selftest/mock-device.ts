/**
 * Devices of the mock driver. Each has an IOMMU group of its own and does no DMA: what it remembers is which domains it was given.
 */
import { Errno } from '../../../lib/errno.ts';
import { Failpoint } from '../../../lib/failpoint.ts';
import { hex } from '../../../lib/pages.ts';
import {
  IOMMU_HW_INFO_TYPE_DEFAULT,
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HWPT_ALLOC_PASID,
} from '../../../uapi/iommufd.ts';
import {
  IOMMU_HW_INFO_SELFTEST_REGVAL,
  IOMMU_HW_INFO_TYPE_SELFTEST,
  IOMMU_TEST_DEV_CACHE_DEFAULT,
  IOMMU_TEST_PASID_RESERVED,
  IOMMU_VIOMMU_TYPE_SELFTEST,
  iommu_test_hw_info,
  MOCK_DEV_CACHE_NUM,
  MOCK_FLAGS_DEVICE_NO_DIRTY,
  MOCK_FLAGS_DEVICE_PASID,
  MOCK_PASID_WIDTH,
} from '../../../uapi/iommufd-test.ts';
import type { DeviceIommu, InitViommu, NestedDomain, UserData } from '../device-iommu.ts';
import { PageRequestGroups } from '../page-requests.ts';
import type { PagingDomain } from '../paging-domain.ts';
import type { IovaRange } from '../reserved-iovas.ts';
import type { IommufdShared } from '../shared.ts';
import { cachesOf } from './mock-caches.ts';
import { allocateMockDomain, allocateMockNested, MockDomain, MockNested } from './mock-domain.ts';
import { MockViommu } from './mock-viommu.ts';

const deviceFails = new Failpoint('iommufd_mock:device', 'ENOMEM');
const viommuFails = new Failpoint('iommufd_mock:viommu', 'ENOMEM');
const attachFails = new Failpoint('iommufd_mock:attach', 'ENOMEM');

type MockTarget = MockDomain | MockNested;

const PAGING_FLAGS = IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_PASID;
/** Numbers of the mock devices of each machine, lowest free first. */
const usedIds = new WeakMap<IommufdShared, Set<number>>();

export class MockDevice implements DeviceIommu {
  readonly name: string;
  readonly id: number;
  readonly group: object = {};
  readonly isOwnedByContext = true;
  readonly isCoherent = true;
  readonly canEnforceCoherency = false;
  readonly hasIsolatedMsi = false;
  readonly hasDirtyTracking: boolean;
  readonly hasAts = false;
  readonly maxPasids: number;
  readonly hasUserPasidTable = true;
  readonly hasSharedPageRequests = false;
  /** Words that a virtual IOMMU invalidates. */
  readonly cache = new Uint32Array(MOCK_DEV_CACHE_NUM).fill(IOMMU_TEST_DEV_CACHE_DEFAULT);
  readonly pageRequests = new PageRequestGroups();
  /** The virtual IOMMU of the domain that the requester ID uses, and the device's number there. */
  viommu: { readonly viommu: MockViommu; readonly virtId: bigint } | undefined;
  readonly #shared: IommufdShared;
  #failsNext = false;

  /** EINVAL: unknown flags. */
  constructor(shared: IommufdShared, flags: number) {
    if ((flags & ~(MOCK_FLAGS_DEVICE_NO_DIRTY | MOCK_FLAGS_DEVICE_PASID)) !== 0) {
      throw new Errno('EINVAL', `flags ${hex(flags)} of a mock device`);
    }
    deviceFails.hit();
    this.#shared = shared;
    this.hasDirtyTracking = (flags & MOCK_FLAGS_DEVICE_NO_DIRTY) === 0;
    this.maxPasids = (flags & MOCK_FLAGS_DEVICE_PASID) === 0 ? 0 : 2 ** MOCK_PASID_WIDTH;
    cachesOf.set(this, this.cache);
    const used = usedIds.get(shared) ?? new Set();
    usedIds.set(shared, used);
    let id = 0;
    while (used.has(id)) id++;
    used.add(id);
    this.id = id;
    this.name = `iommufd_mock${id}`;
  }

  get driver(): object {
    return MockDevice;
  }

  hwInfo(type: number): { type: number; data: Uint8Array } {
    if (type !== IOMMU_HW_INFO_TYPE_DEFAULT && type !== IOMMU_HW_INFO_TYPE_SELFTEST) {
      throw new Errno('EOPNOTSUPP', `the mock driver has no information of type ${hex(type)}`);
    }
    const data = iommu_test_hw_info.write({ flags: 0, test_reg: IOMMU_HW_INFO_SELFTEST_REGVAL });
    return { type: IOMMU_HW_INFO_TYPE_SELFTEST, data };
  }

  allocatePaging(flags: number, data: UserData | undefined): PagingDomain {
    if ((flags & ~PAGING_FLAGS) !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(flags)}`);
    return allocateMockDomain(flags, data);
  }

  allocateNested(_parent: PagingDomain, flags: number, data: UserData): NestedDomain {
    return allocateMockNested(flags, data, undefined);
  }

  viommuOfType(type: number): InitViommu | undefined {
    if (type !== IOMMU_VIOMMU_TYPE_SELFTEST) return undefined;
    return (core, parent, data) => {
      viommuFails.hit();
      return new MockViommu(core, this.#shared, parent as MockDomain, data);
    };
  }

  claim(_owner: object): void {}

  release(): void {}

  reservedRanges(): IovaRange[] {
    return [];
  }

  attach(domain: PagingDomain | NestedDomain): void {
    attachFails.hit();
    const target = ofMock(domain);
    if (target instanceof MockDomain && target.hasDirtyTracking && !this.hasDirtyTracking) {
      throw new Errno('EINVAL', `${this.name} has no dirty bits, and the page table has`);
    }
    if (target instanceof MockNested && target.viommu !== undefined) {
      const virtId = target.viommu.core.virtIdOf(this);
      if (virtId === undefined) throw new Errno('ENOENT', `${this.name} is no virtual device of the virtual IOMMU`);
      this.viommu = { viommu: target.viommu, virtId };
    } else this.viommu = undefined;
  }

  detach(): void {
    this.viommu = undefined;
    this.pageRequests.clear();
  }

  replace(domain: PagingDomain | NestedDomain): void {
    this.attach(domain);
  }

  attachPasid(domain: PagingDomain | NestedDomain, pasid: number): void {
    // Devices without PASIDs are passed over.
    if (this.maxPasids === 0) return;
    ofMock(domain);
    this.#trick(pasid);
  }

  detachPasid(pasid: number): void {
    if (pasid === IOMMU_TEST_PASID_RESERVED) this.#failsNext = false;
  }

  replacePasid(domain: PagingDomain | NestedDomain, pasid: number): void {
    this.attachPasid(domain, pasid);
  }

  destroy(): void {
    usedIds.get(this.#shared)!.delete(this.id);
  }

  /** One PASID fails at every second domain that it is given, so that the way back can be tested. */
  #trick(pasid: number): void {
    if (pasid !== IOMMU_TEST_PASID_RESERVED) return;
    const fails = this.#failsNext;
    this.#failsNext = !fails;
    if (fails) throw new Errno('ENOMEM', `PASID ${pasid} of the mock driver fails at every second domain`);
  }
}

/** EINVAL: it is of another driver. */
function ofMock(domain: PagingDomain | NestedDomain): MockTarget {
  if (domain instanceof MockDomain || domain instanceof MockNested) return domain;
  throw new Errno('EINVAL', 'the page table belongs to another IOMMU');
}
