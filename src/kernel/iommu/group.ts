/**
 * An IOMMU group: functions that cannot be told apart, or not kept apart, and who holds them. First version of the surface.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import type { Domain } from './domain.ts';

export type ReservedType = 'direct' | 'direct-relaxable' | 'reserved' | 'msi';

/** Pages that a user may not map, both ends included. */
export interface ReservedRegion {
  readonly firstPage: number;
  readonly lastPage: number;
  readonly type: ReservedType;
}

export class IommuGroup {
  readonly id: number;
  name: string | undefined;
  /** Undefined: devices without an IOMMU (noiommu). */
  readonly unit: IommuUnit | undefined;
  readonly members: ReadonlySet<PciFunction> = new Set();
  readonly defaultDomain: Domain;
  /** Whether interrupts of other devices cannot be forged (interrupt remapping). */
  isolatedMsi = true;
  #domain: Domain;
  #owner: object | undefined;
  #ownerCount = 0;

  constructor(id: number, unit: IommuUnit | undefined, defaultDomain: Domain) {
    this.id = id;
    this.unit = unit;
    this.defaultDomain = defaultDomain;
    this.#domain = defaultDomain;
  }

  /** The domain through which the members' DMA goes now. */
  get domain(): Domain {
    return this.#domain;
  }

  /** Claims by users, or uses of the default domain by host drivers. */
  get ownerCount(): number {
    return this.#ownerCount;
  }

  get owner(): object | undefined {
    return this.#owner;
  }

  /** Takes the group for a user (GROUP_SET_CONTAINER): the blocking domain is attached. EPERM: held. EBUSY: other domain. EINVAL: firmware needs it. */
  claim(_owner: object): void {
    throw new Errno('EOPNOTSUPP', 'not built yet');
  }

  /** Takes the group for a user through one device, counted for the same owner (BIND_IOMMUFD). EPERM, EBUSY, EINVAL. */
  claimDevice(_f: PciFunction, _owner: object): void {
    throw new Errno('EOPNOTSUPP', 'not built yet');
  }

  /** Ends `claim`: back to the default domain. */
  release(): void {}

  /** Ends one `claimDevice`. */
  releaseDevice(_f: PciFunction): void {}

  /** A host driver that does its own DMA is to be bound to `f`. EBUSY: a user holds the group. */
  useDefaultDomain(_f: PciFunction): void {}

  unuseDefaultDomain(_f: PciFunction): void {}

  /** Attaches all members to `domain`. EBUSY: another domain is attached. EINVAL: incompatible. On failure nothing is changed. */
  attach(_domain: Domain): void {
    throw new Errno('EOPNOTSUPP', 'not built yet');
  }

  /** Back to the blocking domain when a user holds the group, else to the default domain. */
  detach(): void {}

  /** Changes the attached domain for another one in one step. */
  replace(_domain: Domain): void {
    throw new Errno('EOPNOTSUPP', 'not built yet');
  }

  /** Sorted by start and type, merged. */
  reservedRegions(): ReservedRegion[] {
    return [];
  }
}
