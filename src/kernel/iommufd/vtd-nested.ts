/** Guests' page tables on VT-d: a first stage above a second one, and what a guest says that it has changed in it. */
import { Errno } from '../../lib/errno.ts';
import { hex, U64_MAX } from '../../lib/pages.ts';
import {
  IOMMU_HWPT_DATA_VTD_S1,
  IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
  IOMMU_VTD_INV_FLAGS_LEAF,
  IOMMU_VTD_S1_EAFE,
  IOMMU_VTD_S1_SRE,
  IOMMU_VTD_S1_WPE,
  iommu_hwpt_vtd_s1,
  iommu_hwpt_vtd_s1_invalidate,
} from '../../uapi/iommufd.ts';
import type { Task } from '../core/task.ts';
import { Domain } from '../iommu/domain.ts';
import { nestedDomain } from '../iommu/special-domains.ts';
import { type InvalidateRequest, type NestedDomain, UserData } from './device-iommu.ts';
import type { PagingDomain } from './paging-domain.ts';

export class VtdNested implements NestedDomain {
  readonly #parent: Domain;
  readonly #config: iommu_hwpt_vtd_s1;
  #domain: Domain | undefined;

  constructor(parent: Domain, config: iommu_hwpt_vtd_s1) {
    this.#parent = parent;
    this.#config = config;
  }

  /** The domain, made when it is attached for the first time. EINVAL: nothing that the unit could walk. */
  hardware(): Domain {
    const { pgtbl_addr, addr_width, flags } = this.#config;
    const isSet = (flag: number): boolean => (flags & BigInt(flag)) !== 0n;
    this.#domain ??= nestedDomain(this.#parent, {
      pageTable: pgtbl_addr,
      addressWidth: addr_width,
      flags: { sre: isSet(IOMMU_VTD_S1_SRE), eafe: isSet(IOMMU_VTD_S1_EAFE), wpe: isSet(IOMMU_VTD_S1_WPE) },
    });
    return this.#domain;
  }

  invalidate(task: Task, request: InvalidateRequest): { done: number; refusal?: Errno } {
    let done = 0;
    try {
      if (request.type !== IOMMU_HWPT_INVALIDATE_DATA_VTD_S1) {
        throw new Errno('EINVAL', `entries of type ${hex(request.type)}`);
      }
      for (; done < request.entryCount; done++) {
        const address = request.address + BigInt(done) * BigInt(request.entryLength);
        this.#forget(new UserData(task, request.type, address, request.entryLength));
      }
      return { done };
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      return { done, refusal: error };
    }
  }

  free(): void {
    this.#domain?.free();
  }

  #forget(data: UserData): void {
    const entry = data.readStruct(data.type, iommu_hwpt_vtd_s1_invalidate, '__reserved');
    const { addr, npages, flags } = entry;
    if ((flags & ~IOMMU_VTD_INV_FLAGS_LEAF) !== 0 || entry.__reserved !== 0) {
      throw new Errno('EOPNOTSUPP', `flags ${hex(flags)}, reserved member ${hex(entry.__reserved)}`);
    }
    if ((addr & 0xfffn) !== 0n || (npages === U64_MAX && addr !== 0n)) {
      throw new Errno('EINVAL', `${npages} pages from ${hex(addr)}`);
    }
    const count = npages === U64_MAX ? Number.POSITIVE_INFINITY : Math.max(1, Number(npages));
    this.#domain?.invalidateFirstStage(Number(addr >> 12n), count);
  }
}

/** EOPNOTSUPP, EINVAL, EFAULT. What the unit makes of it is found out at attach. */
export function allocateVtdNested(parent: PagingDomain, data: UserData): VtdNested {
  if (data.type !== IOMMU_HWPT_DATA_VTD_S1) throw new Errno('EOPNOTSUPP', `data of type ${hex(data.type)}`);
  if (!(parent instanceof Domain) || parent.stage !== 'second' || parent.options.isNestParent !== true) {
    throw new Errno('EINVAL', 'the page table was not made as a parent of nested ones');
  }
  return new VtdNested(parent, data.readStruct(data.type, iommu_hwpt_vtd_s1, '__reserved'));
}
