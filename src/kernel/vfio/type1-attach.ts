/**
 * Groups come into a container and leave it: their domains, the usable IOVAs, and what is mapped already.
 *
 * A new group shares the page tables of a domain that is like its own. Otherwise it gets its own, into which all mappings are
 * replayed. Nothing is changed when a step is refused.
 */
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { LAST_PAGE } from '../../lib/pages.ts';
import { Unwind } from '../../lib/unwind.ts';
import type { Domain } from '../iommu/domain.ts';
import type { IommuGroup } from '../iommu/group.ts';
import { clip, exclude, type IovaRange, isTaken, rangesText, span } from './iova-list.ts';
import type { Type1, Type1Group } from './type1.ts';
import { markAllDirty } from './type1-dirty.ts';
import { mapInto, pin, unmapAndUnpin, unpin } from './type1-pin.ts';
import { removeDma } from './type1-unmap.ts';

/** Every page size that a 64-bit address can have: what a container without domains reports. */
export const ANY_PAGE_SIZE = 0xffff_ffff_ffff_f000n;

const allocatePoint = new Failpoint('vfio:domain_alloc', 'ENOMEM');

/** Takes a group with hardware translation in. EBUSY, EINVAL, ENOMEM, EPERM, and what attaching and replaying gives. */
export function attachGroup(type1: Type1, iommuGroup: IommuGroup): void {
  refuseAttach(type1, iommuGroup);
  const unit = iommuGroup.unit;
  if (unit === undefined) throw new Errno('ENODEV', `group ${iommuGroup.id} has no IOMMU`);
  using undo = new Unwind();
  allocatePoint.hit();
  const domain = type1.options.allocateDomain(unit);
  undo.add(() => domain.free());
  iommuGroup.attach(domain);
  undo.add(() => iommuGroup.detach());

  const ranges = rangesWith(type1, iommuGroup, domain);
  if (!type1.options.allowUnsafeInterrupts && !iommuGroup.isolatedMsi) {
    throw new Errno(
      'EPERM',
      `interrupts of group ${iommuGroup.id} are not isolated (no interrupt remapping), and allow_unsafe_interrupts is off`,
    );
  }
  const enforcesCoherency = domain.enforceCacheCoherency();
  const group: Type1Group = { iommuGroup, isPinnedScope: false };

  const shared = type1.domains.find(
    (entry) => entry.enforcesCoherency === enforcesCoherency && moveTo(iommuGroup, entry.domain, domain),
  );
  if (shared !== undefined) {
    undo.keep();
    domain.free();
    shared.groups.push(group);
  } else {
    replay(type1, domain);
    undo.keep();
    type1.domains.push({ domain, enforcesCoherency, groups: [group] });
    updatePageSizes(type1);
  }
  type1.ranges = ranges;
  type1.unscopedGroups++;
}

/** Takes a group in whose devices do no DMA of their own. */
export function attachEmulated(type1: Type1, iommuGroup: IommuGroup): void {
  refuseAttach(type1, iommuGroup);
  type1.emulatedGroups.push({ iommuGroup, isPinnedScope: true });
}

/** A group leaves. With the last one all mappings go; while only emulated ones are left, only what they pinned stays pinned. */
export function detachGroup(type1: Type1, iommuGroup: IommuGroup): void {
  const emulated = type1.emulatedGroups.findIndex((group) => group.iommuGroup === iommuGroup);
  if (emulated >= 0) {
    const [group] = type1.emulatedGroups.splice(emulated, 1);
    if (type1.emulatedGroups.length === 0 && type1.domains.length === 0) removeAll(type1);
    leaveScope(type1, group!);
    return;
  }
  for (const [index, entry] of type1.domains.entries()) {
    const at = entry.groups.findIndex((group) => group.iommuGroup === iommuGroup);
    if (at < 0) continue;
    iommuGroup.detach();
    const [group] = entry.groups.splice(at, 1);
    if (entry.groups.length === 0) {
      if (type1.domains.length === 1) {
        if (type1.emulatedGroups.length === 0) removeAll(type1);
        else for (const { value: dma } of type1.dmas.areas()) unmapAndUnpin(type1.hardwareDomains, dma);
      }
      entry.domain.free();
      type1.domains.splice(index, 1);
      updatePageSizes(type1);
    }
    const ranges = usableRanges(type1);
    if (ranges.length > 0) type1.ranges = ranges;
    leaveScope(type1, group!);
    return;
  }
}

function refuseAttach(type1: Type1, iommuGroup: IommuGroup): void {
  if (type1.vaddrInvalidCount > 0) {
    throw new Errno(
      'EBUSY',
      `${type1.vaddrInvalidCount} mappings wait for a new address, so nothing can be pinned for group ${iommuGroup.id}`,
    );
  }
  if (type1.findGroup(iommuGroup) !== undefined) {
    throw new Errno('EINVAL', `group ${iommuGroup.id} is in the container already`);
  }
}

/** The usable IOVAs once the group is in. EINVAL: a mapping lies where the group cannot translate, or nothing would be left. */
function rangesWith(type1: Type1, iommuGroup: IommuGroup, domain: Domain): IovaRange[] {
  const whole = { first: domain.firstPage, last: domain.lastPage };
  const before = type1.ranges.length > 0 ? type1.ranges : [whole];
  const aperture = clip(before, domain.firstPage, domain.lastPage);
  if (aperture.length === 0) {
    throw new Errno(
      'EINVAL',
      `group ${iommuGroup.id} translates ${rangesText([whole])}, the container uses ${rangesText(before)}`,
    );
  }
  if (type1.ranges.length > 0) {
    const below = type1.dmas.firstIn(0, domain.firstPage - 1);
    const outside = below ?? type1.dmas.firstIn(domain.lastPage + 1, LAST_PAGE);
    if (outside !== undefined) {
      throw new Errno(
        'EINVAL',
        `group ${iommuGroup.id} translates ${rangesText([whole])}, without the mapping ${outside.value.text}`,
      );
    }
  }
  const reserved = iommuGroup.reservedRegions();
  for (const region of reserved) {
    const taken = isTaken(region) ? type1.dmas.firstIn(region.firstPage, region.lastPage) : undefined;
    if (taken === undefined) continue;
    const where = span(region.firstPage, region.lastPage - region.firstPage + 1);
    throw new Errno(
      'EINVAL',
      `group ${iommuGroup.id} reserves ${where} (${region.type}), where ${taken.value.text} lies`,
    );
  }
  const ranges = exclude(aperture, reserved);
  if (ranges.length === 0) {
    throw new Errno(
      'EINVAL',
      `the reserved regions of group ${iommuGroup.id} leave no usable IOVA in ${rangesText(aperture)}`,
    );
  }
  return ranges;
}

/** Puts the group from its own new domain to another one. False: that one does not take it, and it is where it was. */
function moveTo(iommuGroup: IommuGroup, target: Domain, own: Domain): boolean {
  if (!target.isCompatible(own.unit)) return false;
  iommuGroup.detach();
  try {
    iommuGroup.attach(target);
    return true;
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    iommuGroup.attach(own);
    return false;
  }
}

/** Brings all mappings into a new domain; what was not pinned, because there was no domain yet, is pinned now. */
function replay(type1: Type1, domain: Domain): void {
  using undo = new Unwind();
  for (const { value: dma } of type1.dmas.areas()) {
    if (!dma.isMapped) {
      pin(dma, type1.options);
      undo.add(() => unpin(dma));
    }
    mapInto(domain, dma, type1.options);
    undo.add(() => domain.unmap(dma.first, dma.count));
  }
  undo.keep();
  for (const { value: dma } of type1.dmas.areas()) dma.isMapped = true;
}

function removeAll(type1: Type1): void {
  for (const { value: dma } of type1.dmas.areas()) removeDma(type1, dma);
}

function updatePageSizes(type1: Type1): void {
  let sizes = (1n << 64n) - 1n;
  for (const { domain } of type1.domains) sizes &= domain.pgsizeBitmap;
  // A program works in pages of 4 KiB also where the hardware has smaller ones.
  type1.pgsizeBitmap = (sizes & 0xfffn) !== 0n ? (sizes & ANY_PAGE_SIZE) | 0x1000n : sizes;
}

/** Computed anew from all domains and groups: what a group that left had reserved may be reserved by another one too. */
function usableRanges(type1: Type1): IovaRange[] {
  let ranges: IovaRange[] = [{ first: 0, last: LAST_PAGE }];
  for (const { domain } of type1.domains) ranges = clip(ranges, domain.firstPage, domain.lastPage);
  for (const { groups } of type1.domains) {
    for (const { iommuGroup } of groups) ranges = exclude(ranges, iommuGroup.reservedRegions());
  }
  return ranges;
}

/** With the last group whose writes nobody sees, everything it might have written becomes dirty, once. */
function leaveScope(type1: Type1, group: Type1Group): void {
  if (group.isPinnedScope) return;
  type1.unscopedGroups--;
  if (type1.isTrackingDirty) markAllDirty(type1);
}
