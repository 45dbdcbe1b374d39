/**
 * One IOMMU unit: what stands between the functions of its segment and physical memory. First version of the surface; the
 * translation follows.
 */
import type { Access, Upstream } from '../pci/dma.ts';

export type UnitPreset = 'vtdss-legacy-sc' | 'legacy-nosc';

export class IommuUnit implements Upstream {
  /** `dmar0`, `dmar1`, … as in /sys/class/iommu. */
  readonly name: string;
  /** CAP and ECAP registers. */
  readonly cap: bigint;
  readonly ecap: bigint;
  /** Bits of an IOVA that the unit takes. */
  readonly mgaw: number = 48;
  /** ECAP.SC: the unit can make no-snoop requests coherent. */
  readonly canEnforceCoherency: boolean = true;
  /** Page sizes of its tables, one bit each, in bytes. */
  readonly pgsizeBitmap: bigint = 0x4020_1000n;
  why = '';

  constructor(name: string, cap = 0x80d2_008c_222f_0606n, ecap = 0xf0_0fcen) {
    this.name = name;
    this.cap = cap;
    this.ecap = ecap;
  }

  translate(_rid: number, _pasid: number, _page: number, _access: Access): number {
    this.why = 'context not present';
    return -1;
  }
}
