/**
 * A PCI function as the driver of its VT-d unit sees it. In legacy mode there is the second stage only; a scalable unit gives a first
 * stage to who asks for nothing special, and has PASIDs, nested tables, dirty bits and page requests as far as its registers say.
 */
import type { QueuedPageRequest } from '../../hw/iommu/page-request-queue.ts';
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import {
  IOMMU_HW_CAP_PCI_PASID_EXEC,
  IOMMU_HW_CAP_PCI_PASID_PRIV,
  IOMMU_HW_INFO_TYPE_DEFAULT,
  IOMMU_HW_INFO_TYPE_INTEL_VTD,
  IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17,
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HWPT_ALLOC_PASID,
  IOMMU_PGFAULT_PERM_EXEC,
  IOMMU_PGFAULT_PERM_PRIV,
  IOMMU_PGFAULT_PERM_READ,
  IOMMU_PGFAULT_PERM_WRITE,
  iommu_hw_info_vtd,
} from '../../uapi/iommufd.ts';
import * as reg from '../../uapi/pci-regs.ts';
import { Domain } from '../iommu/domain.ts';
import { type IommuGroup, maxPasids } from '../iommu/group.ts';
import { drainPageRequests, takePageRequests } from '../iommu/page-requests.ts';
import type { DeviceIommu, InitViommu, NestedDomain, UserData } from './device-iommu.ts';
import type { PageAnswer, PageRequest } from './page-requests.ts';
import type { DirtyTracking, PagingDomain } from './paging-domain.ts';
import type { IovaRange } from './reserved-iovas.ts';
import { allocateVtdNested, VtdNested } from './vtd-nested.ts';
import { VTD_VIOMMU_TYPE, VtdViommu } from './vtd-viommu.ts';

/** ECAP: device IOTLBs. */
const ECAP_DT = 1n << 2n;
const SECOND_STAGE_FLAGS = IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_ALLOC_PASID;

/** A second stage with dirty bits. */
class TrackedDomain extends Domain {
  readonly dirty: DirtyTracking = {
    setTracking: (isOn) => this.setDirtyTracking(isOn),
    readAndClear: (first, last, isCleared, report) => {
      const firstPage = Number(first >> 12n);
      const count = Number(last >> 12n) - firstPage + 1;
      const visit =
        report === undefined
          ? undefined
          : (page: number, pages: number): void => {
              // A large leaf may reach beyond what was asked.
              const from = Math.max(page, firstPage);
              const to = Math.min(page + pages, firstPage + count);
              report(BigInt(from) << 12n, (BigInt(to) << 12n) - 1n);
            };
      this.readAndClearDirty(firstPage, count, { isCleared }, visit);
    },
  };
}

export class VtdDeviceIommu implements DeviceIommu {
  readonly name: string;
  readonly group: IommuGroup;
  readonly isCoherent = true;
  readonly #function: PciFunction;
  readonly #hasViommus: boolean;

  constructor(group: IommuGroup, f: PciFunction, hasViommus = false) {
    this.name = f.name;
    this.group = group;
    this.#function = f;
    this.#hasViommus = hasViommus;
  }

  get driver(): object {
    return Domain;
  }

  get instance(): object {
    return this.#unit;
  }

  get canEnforceCoherency(): boolean {
    return this.#unit.canEnforceCoherency;
  }

  get hasIsolatedMsi(): boolean {
    return this.group.isolatedMsi;
  }

  get hasAts(): boolean {
    return (this.#unit.ecap & ECAP_DT) !== 0n && this.#has(reg.PCI_EXT_CAP_ID_ATS);
  }

  get hasDirtyTracking(): boolean {
    return this.#isScalable && this.#unit.capabilities.canTrackDirty;
  }

  get maxPasids(): number {
    return maxPasids(this.#function, this.#unit);
  }

  /** A virtual function asks through its physical function, whose answers are not its own. */
  get hasSharedPageRequests(): boolean {
    const { physfn } = this.#function;
    return physfn !== undefined && physfn.config.findExtended(reg.PCI_EXT_CAP_ID_PRI) !== 0;
  }

  get pasidCapabilities(): number {
    if (this.maxPasids === 0) return 0;
    const { config } = this.#function.physfn ?? this.#function;
    const at = config.findExtended(reg.PCI_EXT_CAP_ID_PASID);
    const capability = config.get(at + reg.PCI_PASID_CAP, 2);
    return (
      ((capability & 2) === 0 ? 0 : IOMMU_HW_CAP_PCI_PASID_EXEC) |
      ((capability & 4) === 0 ? 0 : IOMMU_HW_CAP_PCI_PASID_PRIV)
    );
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
    const unit = this.#unit;
    const { capabilities } = unit;
    // A first stage is preferred where nothing asks for the second one.
    if ((flags & ~IOMMU_HWPT_ALLOC_PASID) === 0 && this.#isScalable && capabilities.hasFirstStage) {
      return new Domain(unit, 'unmanaged', { stage: 'first' });
    }
    const isNestParent = (flags & IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0;
    const hasDirtyTracking = (flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0;
    if (
      (flags & ~SECOND_STAGE_FLAGS) !== 0 ||
      (isNestParent && !this.#canNest) ||
      (hasDirtyTracking && !this.hasDirtyTracking) ||
      (this.#isScalable && !capabilities.hasSecondStage)
    ) {
      throw new Errno('EOPNOTSUPP', `unit ${unit.name} has no page tables with flags ${hex(flags)}`);
    }
    // Parents of nested tables may have no read-only leaves (erratum 772415 of SPR17).
    const options = { isNestParent, isForceWriteable: isNestParent, hasDirtyTracking };
    return hasDirtyTracking ? new TrackedDomain(unit, 'unmanaged', options) : new Domain(unit, 'unmanaged', options);
  }

  allocateNested(parent: PagingDomain, flags: number, data: UserData): NestedDomain {
    if (!this.#canNest || (flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0) {
      throw new Errno('EOPNOTSUPP', `unit ${this.#unit.name} does not nest, or flags ${hex(flags)} are unknown`);
    }
    return allocateVtdNested(parent, data);
  }

  viommuOfType(type: number): InitViommu | undefined {
    if (type !== VTD_VIOMMU_TYPE || !this.#hasViommus || !this.#canNest) return undefined;
    const unit = this.#unit;
    return (_core, parent, data) => new VtdViommu(unit, parent, data);
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

  // A device without PASIDs sends none: what is attached to one is only remembered.

  attachPasid(domain: PagingDomain | NestedDomain, pasid: number): void {
    if (this.maxPasids > 0) this.group.attachPasid(ofHardware(domain), pasid);
  }

  detachPasid(pasid: number): void {
    this.group.detachPasid(pasid);
  }

  replacePasid(domain: PagingDomain | NestedDomain, pasid: number): void {
    if (this.maxPasids > 0) this.group.replacePasid(ofHardware(domain), pasid);
  }

  checkPageRequests(): void {
    const canAsk = this.#isScalable && this.#unit.capabilities.hasPageRequests && this.#has(reg.PCI_EXT_CAP_ID_PRI);
    if (!canAsk) throw new Errno('ENODEV', `${this.name} cannot ask for pages, or its unit ${this.#unit.name} cannot`);
  }

  onPageRequest(take: (request: PageRequest, respond: (answer: PageAnswer) => void) => void): () => void {
    const unit = this.#unit;
    const { rid } = this.#function;
    return takePageRequests(unit, (queued) => {
      if (queued.rid !== rid) return false;
      take(asked(queued), (answer) => unit.respondPageRequest(queued, answer));
      return true;
    });
  }

  drainPageRequests(): void {
    drainPageRequests(this.#unit);
  }

  get #unit(): IommuUnit {
    return this.group.unit!;
  }

  get #isScalable(): boolean {
    return this.#unit.mode === 'scalable';
  }

  get #canNest(): boolean {
    return this.#isScalable && this.#unit.capabilities.hasNesting;
  }

  #has(capability: number): boolean {
    return this.#function.config.findExtended(capability) !== 0;
  }
}

function asked(queued: QueuedPageRequest): PageRequest {
  return {
    pasid: queued.pasid < 0 ? undefined : queued.pasid,
    group: queued.group,
    perm:
      (queued.read ? IOMMU_PGFAULT_PERM_READ : 0) |
      (queued.write ? IOMMU_PGFAULT_PERM_WRITE : 0) |
      (queued.exec ? IOMMU_PGFAULT_PERM_EXEC : 0) |
      (queued.privileged ? IOMMU_PGFAULT_PERM_PRIV : 0),
    address: BigInt(queued.page) << 12n,
    isLast: queued.last,
  };
}

/** EINVAL: it is of another driver. */
function ofHardware(domain: PagingDomain | NestedDomain): Domain {
  if (domain instanceof Domain) return domain;
  if (domain instanceof VtdNested) return domain.hardware();
  throw new Errno('EINVAL', 'the page table belongs to another IOMMU');
}
