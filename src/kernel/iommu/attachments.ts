/**
 * Where a domain is programmed: requesters and their PASIDs, for what has to be written again or forgotten by devices.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';

export interface Attachment {
  readonly unit: IommuUnit;
  readonly rid: number;
  /** -1: requests without PASID. */
  readonly pasid: number;
}

export class Attachments {
  readonly #all = new Map<string, Attachment>();
  #deviceTlbs = 0;

  add(unit: IommuUnit, rid: number, pasid: number): void {
    const key = `${unit.name} ${rid} ${pasid}`;
    if (this.#all.has(key)) return;
    this.#all.set(key, { unit, rid, pasid });
    if (unit.mode === 'scalable') this.#deviceTlbs++;
  }

  remove(unit: IommuUnit, rid: number, pasid: number): void {
    if (this.#all.delete(`${unit.name} ${rid} ${pasid}`) && unit.mode === 'scalable') this.#deviceTlbs--;
  }

  /** Someone here may have a device TLB. */
  get hasDeviceTlbs(): boolean {
    return this.#deviceTlbs > 0;
  }

  list(): Attachment[] {
    return [...this.#all.values()];
  }

  /** All device TLBs forget `2^order` pages. */
  invalidate(firstPage: number, order: number): void {
    for (const { unit, rid, pasid } of this.#all.values()) {
      unit.devices.invalidate(rid, { pasid, isAllPasids: false, firstPage, order });
    }
  }
}
