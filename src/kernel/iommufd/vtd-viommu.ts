/**
 * Virtual IOMMUs on VT-d, behind the host option `iommufd.vtdViommu`: Linux 7.2 has none there, so that the type's number is our own.
 *
 * A VT-d guest's tables are nested on the parent whether there is a virtual IOMMU or not. With one, the monitor names it in place of the
 * parent, and tells under which requester IDs the guest knows its devices. A guest's invalidations are said of each nested table, as without.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import { IOMMU_HWPT_ALLOC_PASID } from '../../uapi/iommufd.ts';
import { Domain } from '../iommu/domain.ts';
import type { NestedDomain, UserData, ViommuOps } from './device-iommu.ts';
import type { PagingDomain } from './paging-domain.ts';
import { allocateVtdNested } from './vtd-nested.ts';

/** `type` of IOMMU_VIOMMU_ALLOC. */
export const VTD_VIOMMU_TYPE = 0x5654_4401;

export class VtdViommu implements ViommuOps {
  readonly #parent: PagingDomain;

  /** EOPNOTSUPP: there is no data for it. EINVAL: the parent is not a table of this unit. */
  constructor(unit: IommuUnit, parent: PagingDomain, data: UserData | undefined) {
    if (data !== undefined) throw new Errno('EOPNOTSUPP', `${data.length} bytes of data: a virtual VT-d takes none`);
    if (!(parent instanceof Domain) || parent.unit !== unit) {
      throw new Errno('EINVAL', `the parent is not a page table of unit ${unit.name}`);
    }
    this.#parent = parent;
  }

  /** EOPNOTSUPP, EINVAL, EFAULT. */
  allocateNested(flags: number, data: UserData): NestedDomain {
    if ((flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(flags)}`);
    return allocateVtdNested(this.#parent, data);
  }
}
