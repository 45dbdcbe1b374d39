/**
 * Page requests of devices on their way to the program that answers them: they are gathered into groups and put into the fault queue
 * of the page table through which they came.
 */
import {
  IOMMU_PGFAULT_FLAGS_LAST_PAGE,
  IOMMU_PGFAULT_FLAGS_PASID_VALID,
  type iommu_hwpt_pgfault,
} from '../../uapi/iommufd.ts';
import type { IommufdGroup } from './attach.ts';

/** One page that a device asks for. */
export interface PageRequest {
  /** Undefined: the request has none. */
  readonly pasid: number | undefined;
  readonly group: number;
  /** IOMMU_PGFAULT_PERM_*. */
  readonly perm: number;
  readonly address: bigint;
  /** No request of its group follows. */
  readonly isLast: boolean;
}

/** What the device is told. Requests that nobody takes are answered `invalid` as well, as the kernel does. */
export type PageAnswer = 'success' | 'invalid';

/** The most requests of a device that wait for the rest of their groups; more are lost, as in a kernel without memory. */
const MOST_PARTIAL = 4096;

/** A device's requests of groups that are not complete. */
export class PageRequestGroups {
  #partial: PageRequest[] = [];

  /** Takes a request. When its group is complete, `respond` is called once: at once when nobody takes it, else with the answer. */
  report(igroup: IommufdGroup, request: PageRequest, respond: (answer: PageAnswer) => void): void {
    const attachment = igroup.attachmentOfRequest(request.pasid);
    const fault = attachment?.hwpt.fault;
    if (attachment === undefined || fault === undefined) {
      this.#take(request.group);
      respond('invalid');
      return;
    }
    if (!request.isLast) {
      if (this.#partial.length < MOST_PARTIAL) this.#partial.push(request);
      return;
    }
    const faults = [...this.#take(request.group), request].map((one) => wire(one, attachment.device.id));
    fault.deliver({ attachment, faults, respond: (code) => respond(code === 0 ? 'success' : 'invalid') });
  }

  /** Forgets what waits for the rest of its group. */
  clear(): void {
    this.#partial = [];
  }

  #take(group: number): PageRequest[] {
    const taken = this.#partial.filter((one) => one.group === group);
    this.#partial = this.#partial.filter((one) => one.group !== group);
    return taken;
  }
}

function wire(request: PageRequest, device: number): Omit<iommu_hwpt_pgfault, 'cookie'> {
  return {
    flags:
      (request.pasid === undefined ? 0 : IOMMU_PGFAULT_FLAGS_PASID_VALID) |
      (request.isLast ? IOMMU_PGFAULT_FLAGS_LAST_PAGE : 0),
    dev_id: device,
    pasid: request.pasid ?? 0,
    grpid: request.group & 0xffff_ffff,
    perm: request.perm,
    __reserved: 0,
    addr: request.address,
    length: 0,
  };
}
