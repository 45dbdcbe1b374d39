/** Virtual IOMMUs of the mock driver: two pages that a program may map, caches of its devices, and two queues. */
import type { SharedMemory } from '../../../hw/memory/backing.ts';
import { Errno } from '../../../lib/errno.ts';
import { hex } from '../../../lib/pages.ts';
import {
  IOMMU_HW_QUEUE_TYPE_SELFTEST,
  IOMMU_TEST_HW_QUEUE_MAX,
  IOMMU_TEST_INVALIDATE_FLAG_ALL,
  IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
  IOMMU_VIOMMU_TYPE_SELFTEST,
  iommu_viommu_invalidate_selftest,
  iommu_viommu_selftest,
  MOCK_DEV_CACHE_ID_MAX,
} from '../../../uapi/iommufd-test.ts';
import { copyFromUser, type Task } from '../../core/task.ts';
import type {
  HwQueueOps,
  HwQueueRequest,
  InvalidateRequest,
  NestedDomain,
  UserData,
  ViommuCore,
  ViommuOps,
} from '../device-iommu.ts';
import type { IommufdShared } from '../shared.ts';
import { cachesOf } from './mock-caches.ts';
import { allocateMockNested, type MockDomain } from './mock-domain.ts';

const MMAP_LENGTH = 2 * 4096;

interface MockQueue extends HwQueueOps {
  readonly index: number;
}

export class MockViommu implements ViommuOps {
  readonly core: ViommuCore;
  readonly #parent: MockDomain;
  readonly #queues: (MockQueue | undefined)[] = [];
  #memory: SharedMemory | undefined;
  #offset = 0;

  /** EINVAL, EFAULT. */
  constructor(core: ViommuCore, shared: IommufdShared, parent: MockDomain, data: UserData | undefined) {
    this.core = core;
    this.#parent = parent;
    if (data !== undefined) this.#makePages(shared, data);
  }

  allocateNested(flags: number, data: UserData): NestedDomain {
    return allocateMockNested(flags, data, this);
  }

  /** All entries are read before the first one is carried out. */
  invalidate(task: Task, request: InvalidateRequest): { done: number; refusal?: Errno } {
    let done = 0;
    try {
      if (request.type !== IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST) {
        throw new Errno('EINVAL', `entries of type ${hex(request.type)}`);
      }
      const entries = readEntries(task, request);
      for (; done < entries.length; done++) this.#forget(entries[done]!);
      return { done };
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      return { done, refusal: error };
    }
  }

  hasHwQueueType(type: number): boolean {
    return type === IOMMU_HW_QUEUE_TYPE_SELFTEST;
  }

  initHwQueue({ index, iova, physical }: HwQueueRequest): HwQueueOps {
    if (index >= IOMMU_TEST_HW_QUEUE_MAX) throw new Errno('EINVAL', `there is no queue ${index}`);
    if (this.#queues[index] !== undefined) throw new Errno('EEXIST', `queue ${index} is there already`);
    const previous = index === 0 ? undefined : this.#queues[index - 1];
    if (index > 0 && previous === undefined) throw new Errno('EIO', `queue ${index} needs queue ${index - 1}`);
    const granule = this.#parent.table.physicalOf(Math.floor(Number(iova) / 2048));
    if (granule * 2048 + Number(iova % 2048n) !== physical.page * 4096 + physical.offset) {
      throw new Errno('EFAULT', `${hex(iova)} is somewhere else in the parent page table`);
    }
    const queue: MockQueue = {
      index,
      dependsOn: previous,
      destroy: () => {
        this.#queues[index] = undefined;
      },
    };
    this.#queues[index] = queue;
    return queue;
  }

  destroy(): void {
    if (this.#memory === undefined) return;
    this.core.removeMmap(this.#offset);
    this.#memory.close();
  }

  #makePages(shared: IommufdShared, data: UserData): void {
    const given = data.readStruct(IOMMU_VIOMMU_TYPE_SELFTEST, iommu_viommu_selftest, 'out_data');
    const memory = shared.allocateShared('mock-viommu', MMAP_LENGTH);
    this.#memory = memory;
    this.#offset = this.core.addMmap(memory, MMAP_LENGTH);
    const first = Uint32Array.of(given.in_data);
    memory.bytes().set(new Uint8Array(first.buffer));
    try {
      data.writeStruct(iommu_viommu_selftest, {
        in_data: given.in_data,
        out_data: given.in_data,
        out_mmap_offset: BigInt(this.#offset),
        out_mmap_length: BigInt(MMAP_LENGTH),
      });
    } catch (error) {
      this.destroy();
      throw error;
    }
  }

  #forget({ flags, vdev_id, cache_id }: Entry): void {
    if ((flags & ~IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(flags)}`);
    if (cache_id > MOCK_DEV_CACHE_ID_MAX) throw new Errno('EINVAL', `there is no cache ${cache_id}`);
    const device = this.core.deviceOf(BigInt(vdev_id));
    const caches = device === undefined ? undefined : cachesOf.get(device);
    if (caches === undefined) throw new Errno('EINVAL', `the guest has no device ${hex(vdev_id)}`);
    if (flags !== 0) caches.fill(0);
    else caches[cache_id] = 0;
  }
}

interface Entry {
  readonly flags: number;
  readonly vdev_id: number;
  readonly cache_id: number;
}

/** EFAULT. E2BIG: what an entry has beyond the structure is not zero. */
function readEntries(task: Task, request: InvalidateRequest): Entry[] {
  const table = iommu_viommu_invalidate_selftest;
  const entries: Entry[] = [];
  for (let i = 0; i < request.entryCount; i++) {
    const address = request.address + BigInt(i) * BigInt(request.entryLength);
    const bytes = copyFromUser(task, address, request.entryLength);
    if (bytes.subarray(table.size).some((byte) => byte !== 0)) {
      throw new Errno('E2BIG', `entry ${i} has more than ${table.size} bytes`);
    }
    entries.push(table.read(bytes.subarray(0, table.size)));
  }
  return entries;
}
