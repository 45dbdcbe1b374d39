/**
 * /sys/kernel/iommu_groups, /sys/class/iommu: which functions form a group and which unit translates them.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import type { IommuGroup } from '../../kernel/iommu/group.ts';
import type { IommuCore } from '../../kernel/iommu/iommu.ts';
import { reservedRegionsText } from '../../kernel/iommu/reserved-regions.ts';
import { Errno } from '../../lib/errno.ts';
import { functionPath } from './function-path.ts';
import { type SysfsTree, text } from './tree.ts';

export function groupPath(group: IommuGroup): string {
  return `/sys/kernel/iommu_groups/${group.id}`;
}

export class IommuSysfs {
  readonly #tree: SysfsTree;
  readonly #iommu: Pick<IommuCore, 'typeText' | 'setType'>;
  readonly #isOf2011: (group: IommuGroup) => boolean;

  /** `isOf2011`: members of the group show its number in a file, as kernels of 2011 did, instead of a link. */
  constructor(
    tree: SysfsTree,
    iommu: Pick<IommuCore, 'typeText' | 'setType'>,
    isOf2011: (group: IommuGroup) => boolean = () => false,
  ) {
    this.#isOf2011 = isOf2011;
    this.#tree = tree;
    this.#iommu = iommu;
    tree.directory('/sys/kernel/iommu_groups');
    tree.directory('/sys/class/iommu');
  }

  addUnit(unit: IommuUnit, index: number): void {
    const tree = this.#tree;
    const folder = `/sys/devices/virtual/iommu/${unit.name}`;
    tree.file(`${folder}/intel-iommu/cap`, `${unit.cap.toString(16)}\n`);
    tree.file(`${folder}/intel-iommu/ecap`, `${unit.ecap.toString(16)}\n`);
    tree.file(`${folder}/intel-iommu/version`, '1:0\n');
    tree.file(`${folder}/intel-iommu/address`, `${(0xfed90000 + index * 0x1000).toString(16)}\n`);
    tree.file(`${folder}/intel-iommu/domains_supported`, '65536\n');
    tree.directory(`${folder}/devices`);
    tree.link(`${folder}/subsystem`, '/sys/class/iommu');
    tree.link(`/sys/class/iommu/${unit.name}`, folder);
  }

  addMember(group: IommuGroup, fn: PciFunction): void {
    const tree = this.#tree;
    const folder = groupPath(group);
    if (!tree.has(folder)) {
      tree.attribute(`${folder}/reserved_regions`, {
        mode: 0o444,
        show: () => text(reservedRegionsText(group.reservedRegions())),
      });
      tree.attribute(`${folder}/type`, {
        mode: 0o644,
        show: () => text(this.#iommu.typeText(group)),
        store: (bytes, _position, writer) => {
          if (!writer.capable('CAP_SYS_ADMIN') || !writer.capable('CAP_SYS_RAWIO')) {
            throw new Errno('EACCES', 'the type of a group needs CAP_SYS_ADMIN and CAP_SYS_RAWIO');
          }
          this.#iommu.setType(group, new TextDecoder().decode(bytes).replace(/\n$/, ''));
          return bytes.length;
        },
      });
    }
    tree.link(`${folder}/devices/${fn.name}`, functionPath(fn));
    if (this.#isOf2011(group)) {
      tree.file(`${functionPath(fn)}/iommu_group`, `${group.id}\n`);
      return;
    }
    tree.link(`${functionPath(fn)}/iommu_group`, folder);
    if (group.unit !== undefined) {
      tree.link(`${functionPath(fn)}/iommu`, `/sys/devices/virtual/iommu/${group.unit.name}`);
      tree.link(`/sys/devices/virtual/iommu/${group.unit.name}/devices/${fn.name}`, functionPath(fn));
    }
  }

  removeMember(group: IommuGroup, fn: PciFunction): void {
    const tree = this.#tree;
    tree.remove(`${groupPath(group)}/devices/${fn.name}`);
    tree.remove(`${functionPath(fn)}/iommu_group`);
    if (group.unit !== undefined) {
      tree.remove(`${functionPath(fn)}/iommu`);
      tree.remove(`/sys/devices/virtual/iommu/${group.unit.name}/devices/${fn.name}`);
    }
    if (tree.list(`${groupPath(group)}/devices`).length === 0) tree.remove(groupPath(group));
  }

  /** The group's domain has changed. */
  refresh(group: IommuGroup): void {
    this.#tree.refresh(`${groupPath(group)}/type`);
  }
}
