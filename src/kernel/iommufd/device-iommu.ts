/**
 * A device as its IOMMU's driver sees it: what it can do, the page tables it can be given, and the way to give them. For devices
 * of PCI functions that is `PciDeviceIommu`, VT-d in its legacy mode; a software device brings its own.
 */
import type { SharedMemory } from '../../hw/memory/backing.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import type { Members, Struct, TypeOf } from '../../lib/struct.ts';
import {
  IOMMU_HW_INFO_TYPE_DEFAULT,
  IOMMU_HW_INFO_TYPE_INTEL_VTD,
  IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17,
  IOMMU_HWPT_ALLOC_PASID,
  iommu_hw_info_vtd,
} from '../../uapi/iommufd.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import { Domain } from '../iommu/domain.ts';
import type { IommuGroup } from '../iommu/group.ts';
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
  /** DMA is coherent with the processors' caches. */
  readonly isCoherent: boolean;
  /** No-snoop requests can be made coherent (ENFORCE_CACHE_COHERENCY). */
  readonly canEnforceCoherency: boolean;
  readonly hasIsolatedMsi: boolean;
  readonly hasDirtyTracking: boolean;
  readonly hasAts: boolean;
  /** 0: the device has no PASIDs. */
  readonly maxPasids: number;
  /** Page requests of the device go through a resource of several functions (PRI of a VF). */
  readonly hasSharedPageRequests: boolean;
  /** Data of GET_HW_INFO. EOPNOTSUPP: not this type. */
  hwInfo(type: number): { type: number; data: Uint8Array };
  /** A new page table. EOPNOTSUPP: flags or data that the hardware does not know. */
  allocatePaging(flags: number, data: UserData | undefined): PagingDomain;
  /** Undefined: no nested translation. */
  allocateNested?(parent: PagingDomain, flags: number, data: UserData): NestedDomain;
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

/** Extended capability: Address Translation Services. */
const PCI_EXT_CAP_ID_ATS = 0x0f;
/** ECAP: device IOTLBs. */
const ECAP_DT = 1n << 2n;

export class PciDeviceIommu implements DeviceIommu {
  readonly name: string;
  readonly group: IommuGroup;
  readonly isCoherent = true;
  readonly hasDirtyTracking = false;
  readonly maxPasids = 0;
  readonly hasSharedPageRequests = false;
  readonly #function: PciFunction;

  /** ENODEV: no IOMMU translates the device. */
  constructor(group: IommuGroup, f: PciFunction) {
    this.name = f.name;
    this.group = group;
    this.#function = f;
  }

  get driver(): object {
    return Domain;
  }

  get canEnforceCoherency(): boolean {
    return this.#unit.canEnforceCoherency;
  }

  get hasIsolatedMsi(): boolean {
    return this.group.isolatedMsi;
  }

  get hasAts(): boolean {
    return (this.#unit.ecap & ECAP_DT) !== 0n && this.#function.config.findExtended(PCI_EXT_CAP_ID_ATS) !== 0;
  }

  hwInfo(type: number): { type: number; data: Uint8Array } {
    if (type !== IOMMU_HW_INFO_TYPE_DEFAULT && type !== IOMMU_HW_INFO_TYPE_INTEL_VTD) {
      throw new Errno('EOPNOTSUPP', `the IOMMU is a VT-d unit; it has no information of type ${type}`);
    }
    const data = iommu_hw_info_vtd.write({
      flags: IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17,
      __reserved: 0,
      cap_reg: this.#unit.cap,
      ecap_reg: this.#unit.ecap,
    });
    return { type: IOMMU_HW_INFO_TYPE_INTEL_VTD, data };
  }

  allocatePaging(flags: number, data: UserData | undefined): PagingDomain {
    if (data !== undefined) throw new Errno('EOPNOTSUPP', 'a VT-d page table on an address space takes no data');
    // A flag for PASIDs is taken although the unit has none: it then has no effect.
    if ((flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0) {
      throw new Errno(
        'EOPNOTSUPP',
        `unit ${this.#unit.name} has neither nested translation nor dirty bits (flags ${flags})`,
      );
    }
    return new Domain(this.#unit, 'unmanaged');
  }

  claim(owner: object): void {
    this.group.claimDevice(this.#function, owner);
  }

  release(): void {
    this.group.releaseDevice(this.#function);
  }

  reservedRanges(): IovaRange[] {
    return this.group
      .reservedRegions()
      .filter(({ type }) => type !== 'direct-relaxable')
      .map(({ firstPage, lastPage }) => ({
        first: BigInt(firstPage) << 12n,
        last: (BigInt(lastPage) << 12n) | 0xfffn,
      }));
  }

  attach(domain: PagingDomain | NestedDomain): void {
    this.group.attach(ofHardware(domain));
  }

  detach(): void {
    this.group.detach();
  }

  replace(domain: PagingDomain | NestedDomain): void {
    this.group.replace(ofHardware(domain));
  }

  get #unit(): NonNullable<IommuGroup['unit']> {
    return this.group.unit!;
  }
}

function ofHardware(domain: PagingDomain | NestedDomain): Domain {
  if (!(domain instanceof Domain)) throw new Errno('EINVAL', 'the page table belongs to another IOMMU');
  return domain;
}
