/**
 * A device as its IOMMU's driver sees it: what it can do, the page tables it can be given, and the way to give them. For devices
 * of PCI functions that is `VtdDeviceIommu`; a software device brings its own.
 */
import type { SharedMemory } from '../../hw/memory/backing.ts';
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import type { Members, Struct, TypeOf } from '../../lib/struct.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import type { PageAnswer, PageRequest } from './page-requests.ts';
import type { PagingDomain } from './paging-domain.ts';
import type { IovaRange } from './reserved-iovas.ts';

/** What a program says about a page table or a virtual IOMMU in the words of one kind of hardware. */
export class UserData {
  readonly type: number;
  readonly length: number;
  readonly #task: Task;
  readonly #address: bigint;

  constructor(task: Task, type: number, address: bigint, length: number) {
    this.#task = task;
    this.type = type;
    this.#address = address;
    this.length = length;
  }

  /** EFAULT. */
  read(): Uint8Array {
    return copyFromUser(this.#task, this.#address, this.length);
  }

  /**
   * The structure, as much of it as the program knows; the rest reads as zero. EINVAL: it is of another type, ends before `last`, or is
   * longer than the structure. EFAULT.
   */
  readStruct<M extends Members>(type: number, table: Struct<M>, last: keyof M & string): TypeOf<Struct<M>> {
    if (this.type !== type) throw new Errno('EINVAL', `data of type ${hex(this.type)}, not ${hex(type)}`);
    if (this.length < table.endOf(last) || this.length > table.size) {
      throw new Errno(
        'EINVAL',
        `${table.name} with ${this.length} bytes; it has ${table.endOf(last)} to ${table.size} of them`,
      );
    }
    return table.read(this.read()) as TypeOf<Struct<M>>;
  }

  /** Copies the structure back, as much of it as the program knows. EFAULT. */
  writeStruct<M extends Members>(table: Struct<M>, value: TypeOf<Struct<M>>): void {
    copyToUser(this.#task, this.#address, table.write(value as never, Math.min(this.length, table.size)));
  }
}

/** A table of the guest's that is walked on top of a paging domain. */
export interface NestedDomain {
  /** Invalidates what `data` says, entry by entry, and returns how many entries were done; with the refusal of the next one. */
  invalidate?(task: Task, request: InvalidateRequest): { done: number; refusal?: Errno };
  free(): void;
}

/** What the hardware's part of a virtual IOMMU may ask of the one that programs see. */
export interface ViommuCore {
  /** The number under which the guest knows the device. Undefined: it has none. */
  virtIdOf(iommu: DeviceIommu): bigint | undefined;
  /** The device that the guest knows under a number. */
  deviceOf(virtId: bigint): DeviceIommu | undefined;
  /** Puts an event into the queue of its type. EOPNOTSUPP: there is none. */
  reportEvent(type: number, data: Uint8Array): void;
  /** Lets the program map memory, and tells at which offset of the iommufd. */
  addMmap(memory: SharedMemory, length: number): number;
  removeMmap(offset: number): void;
}

/** A queue in guest memory that the hardware reads by itself. */
export interface HwQueueRequest {
  readonly type: number;
  readonly index: number;
  /** Where the queue is for the guest, and physically. */
  readonly iova: bigint;
  readonly physical: { readonly page: number; readonly offset: number };
  readonly length: bigint;
}

export interface HwQueueOps {
  /** The queue that must be destroyed after this one, as the hardware returned it from `initHwQueue`. */
  readonly dependsOn?: HwQueueOps | undefined;
  destroy(): void;
}

/** What the driver of the physical IOMMU does for a virtual one. */
export interface ViommuOps {
  allocateNested?(flags: number, data: UserData): NestedDomain;
  invalidate?(task: Task, request: InvalidateRequest): { done: number; refusal?: Errno };
  hasHwQueueType?(type: number): boolean;
  initHwQueue?(request: HwQueueRequest): HwQueueOps;
  destroy?(): void;
}

export type InitViommu = (viommu: ViommuCore, parent: PagingDomain, data: UserData | undefined) => ViommuOps;

export interface InvalidateRequest {
  readonly type: number;
  readonly address: bigint;
  readonly entryLength: number;
  readonly entryCount: number;
}

export interface DeviceIommu {
  readonly name: string;
  /** The device belongs to the context that it is bound to and does not keep it alive (the mock driver's). */
  readonly isOwnedByContext?: boolean;
  /** The IOMMU group: devices with the same one share their attachment. */
  readonly group: object;
  /** The driver of the IOMMU: page tables of another one do not fit. */
  readonly driver: object;
  /** The one of the driver's IOMMUs that the device is behind. Undefined: the driver has one. */
  readonly instance?: object;
  /** DMA is coherent with the processors' caches. */
  readonly isCoherent: boolean;
  /** No-snoop requests can be made coherent (ENFORCE_CACHE_COHERENCY). */
  readonly canEnforceCoherency: boolean;
  readonly hasIsolatedMsi: boolean;
  readonly hasDirtyTracking: boolean;
  readonly hasAts: boolean;
  /** 0: the device has no PASIDs. */
  readonly maxPasids: number;
  /** Bits of `out_capabilities` of GET_HW_INFO beside those that follow from the rest. */
  readonly pasidCapabilities?: number;
  /** Page requests of the device go through a resource of several functions (PRI of a VF). */
  readonly hasSharedPageRequests: boolean;
  /** A nested table of the requester ID is the guest's PASID table: page requests of all PASIDs are its. */
  readonly hasUserPasidTable?: boolean;
  /** Data of GET_HW_INFO. EOPNOTSUPP: not this type. */
  hwInfo(type: number): { type: number; data: Uint8Array };
  /** A new page table. EOPNOTSUPP: flags or data that the hardware does not know. */
  allocatePaging(flags: number, data: UserData | undefined): PagingDomain;
  /** Undefined: no nested translation. */
  allocateNested?(parent: PagingDomain, flags: number, data: UserData): NestedDomain;
  /** ENODEV: the device cannot ask for pages. Asked before it gets a page table with a fault queue. */
  checkPageRequests?(): void;
  /** Shows the page requests of the device, with the way to answer a group; the result ends that. */
  onPageRequest?(take: (request: PageRequest, respond: (answer: PageAnswer) => void) => void): () => void;
  /** Before the device loses a table: what it has asked for through it is delivered when this returns. */
  drainPageRequests?(): void;
  /** Makes the hardware's part of a virtual IOMMU of this type. Undefined: it has none of that type. */
  viommuOfType?(type: number): InitViommu | undefined;
  /** Takes the group from the host's drivers. EPERM, EBUSY, EINVAL. */
  claim(owner: object): void;
  release(): void;
  /** What the device's IOVAs may not be, without what is only preferred. */
  reservedRanges(): IovaRange[];
  /** Attaches the whole group's requester IDs. EINVAL: the table does not fit. EBUSY. */
  attach(domain: PagingDomain | NestedDomain): void;
  detach(): void;
  replace(domain: PagingDomain | NestedDomain): void;
  /** As above for one PASID. Undefined: the hardware has none; there is nothing to do. */
  attachPasid?(domain: PagingDomain | NestedDomain, pasid: number): void;
  detachPasid?(pasid: number): void;
  replacePasid?(domain: PagingDomain | NestedDomain, pasid: number): void;
}
