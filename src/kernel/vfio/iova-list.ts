/**
 * The IOVAs that a container may map: what every domain's aperture covers, less what any group reserves.
 *
 * Ranges in pages, both ends included, sorted, apart. An empty list in a container without hardware domains means that everything
 * goes.
 */
import { hex } from '../../lib/pages.ts';
import type { ReservedRegion } from '../iommu/group.ts';

export interface IovaRange {
  readonly first: number;
  readonly last: number;
}

/** `0x1000-0x1fff` for `count` pages from `first`. */
export function span(first: number, count: number): string {
  return `${hex(BigInt(first) << 12n)}-${hex((BigInt(first + count) << 12n) - 1n)}`;
}

/** What of `ranges` lies in `[first, last]`. */
export function clip(ranges: readonly IovaRange[], first: number, last: number): IovaRange[] {
  const clipped: IovaRange[] = [];
  for (const range of ranges) {
    const from = Math.max(range.first, first);
    const to = Math.min(range.last, last);
    if (from <= to) clipped.push({ first: from, last: to });
  }
  return clipped;
}

/** Whether a reserved region takes IOVAs away. Firmware's relaxable ones were only for the boot. */
export function isTaken(region: ReservedRegion): boolean {
  return region.type !== 'direct-relaxable';
}

/** `ranges` less the reserved regions. */
export function exclude(ranges: readonly IovaRange[], reserved: readonly ReservedRegion[]): IovaRange[] {
  let left = [...ranges];
  for (const region of reserved) {
    if (!isTaken(region)) continue;
    left = left.flatMap((range) => {
      if (region.firstPage > range.last || region.lastPage < range.first) return [range];
      return [
        ...clip([range], 0, region.firstPage - 1),
        ...clip([range], region.lastPage + 1, Number.POSITIVE_INFINITY),
      ];
    });
  }
  return left;
}

/** Whether `[first, last]` lies in one of the ranges. */
export function contains(ranges: readonly IovaRange[], first: number, last: number): boolean {
  return ranges.some((range) => first >= range.first && last <= range.last);
}

/** For people: `0x0-0xfedfffff, 0xfef00000-0xffffffffffff`. */
export function rangesText(ranges: readonly IovaRange[]): string {
  return ranges.map((range) => span(range.first, range.last - range.first + 1)).join(', ');
}
