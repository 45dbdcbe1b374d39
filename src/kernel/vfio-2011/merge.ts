/**
 * Merging: a group joins the address space of another one, and leaves it. When it may, and when not.
 *
 * The merger may be in use, the mergee may not: what it would have open means another address space. Nothing promises that two groups can be
 * merged; a program that is refused goes on with two address spaces.
 */
import { Errno } from '../../lib/errno.ts';
import type { Group2011 } from './group.ts';
import { IommuObject } from './iommu-object.ts';

/**
 * Puts `mergee` into the set of `merger`. EINVAL: the same group or set, another bus, merged with others or in use already, units that differ
 * in coherency, or the policy. EBUSY: one of the two is not viable. What attaching gives. On failure nothing is changed.
 */
export function mergeGroups(merger: Group2011, mergee: Group2011): void {
  const set = merger.iommu;
  const old = mergee.iommu;
  const both = `${mergee.name} into ${merger.name}`;
  if (mergee === merger || old === set) throw new Errno('EINVAL', `${both}: they share an address space already`);
  if (mergee.bus !== merger.bus) throw new Errno('EINVAL', `${both}: they are on different buses`);
  if (old.groups.length > 1) throw new Errno('EINVAL', `${both}: it is merged with others (${old.text}) already`);
  if (old.domain !== undefined) throw new Errno('EINVAL', `${both}: it is in use, its IOMMU or devices are open`);
  const { mergePolicy } = set.options;
  if (mergePolicy === 'never') throw new Errno('EINVAL', `${both}: this machine merges no groups (mergePolicy never)`);
  for (const { isViable, text } of [set, old]) if (!isViable) throw new Errno('EBUSY', `${text} is not viable`);
  if (mergePolicy === 'sameCoherency' && set.isCoherent !== old.isCoherent) {
    const [yes, no] = set.isCoherent ? [set, old] : [old, set];
    throw new Errno('EINVAL', `${both}: no-snoop DMA of ${yes.text} can be made coherent, that of ${no.text} cannot`);
  }
  if (set.domain === undefined) tryTogether(merger, mergee);
  set.add(mergee);
  old.groups.length = 0;
}

/**
 * Gives `group` an address space of its own again; that of the others stays. EINVAL: it is not merged. EBUSY: a device of it is open.
 */
export function unmergeGroup(group: Group2011): void {
  const set = group.iommu;
  if (set.groups.length === 1) throw new Errno('EINVAL', `group ${group.name} is not merged`);
  if (group.openDevices > 0) {
    const open = group.devices.filter((device) => device.files > 0).map((device) => device.name);
    throw new Errno('EBUSY', `devices of group ${group.name} are open: ${open.join(', ')}`);
  }
  set.remove(group);
  new IommuObject(set.options).add(group);
}

/** EINVAL: one domain could not serve both, once it is made. */
function tryTogether(merger: Group2011, mergee: Group2011): void {
  const units = [...merger.iommu.groups, mergee].flatMap(({ iommuGroup }) => iommuGroup?.unit ?? []);
  const first = units[0];
  if (first === undefined || units.every((unit) => unit === first)) return;
  const domain = merger.iommu.options.allocateDomain(first);
  try {
    if (units.every((unit) => domain.isCompatible(unit))) return;
  } finally {
    domain.free();
  }
  throw new Errno('EINVAL', `the IOMMUs of ${merger.iommu.text} and ${mergee.name} cannot share page tables`);
}
