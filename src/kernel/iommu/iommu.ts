/**
 * The IOMMU core: which functions form a group, by which unit they are translated. First version of the surface.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import { Domain, type DomainKind } from './domain.ts';
import type { IommuGroup } from './group.ts';

export class IommuCore {
  readonly units: IommuUnit[] = [];

  /** Finds or makes the group of a function that was just added; bridges come before what is behind them. Undefined: no unit translates it. */
  probe(_f: PciFunction): IommuGroup | undefined {
    throw new Errno('EOPNOTSUPP', 'not built yet');
  }

  /** The function goes away; the last member's group goes with it. */
  remove(_f: PciFunction): void {}

  groupOf(_f: PciFunction): IommuGroup | undefined {
    return undefined;
  }

  /** In the order of their ids. */
  groups(): IommuGroup[] {
    return [];
  }

  allocateDomain(unit: IommuUnit, kind: DomainKind): Domain {
    return new Domain(unit, kind);
  }

  /** Why `f` is in its group: `own`, `alias 00:1e.0`, `no ACS on 00:01.0`, `multifunction without ACS`, `quirk`. */
  reason(_f: PciFunction): string {
    return '';
  }
}
