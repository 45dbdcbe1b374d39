/**
 * IOVAs that a group's user may not map: the interrupt window, and what firmware wants mapped one to one (RMRR).
 */
import { MSI_FIRST_PAGE, MSI_LAST_PAGE } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { addressOf } from '../../lib/pages.ts';

/**
 * `direct`: firmware needs it mapped one to one, always. `direct-relaxable`: only until a user takes over. `reserved`: never to be
 * mapped. `msi`: interrupt messages.
 */
export type ReservedType = 'direct' | 'direct-relaxable' | 'reserved' | 'msi';

/** Pages that a user may not map, both ends included. */
export interface ReservedRegion {
  readonly firstPage: number;
  readonly lastPage: number;
  readonly type: ReservedType;
}

/** The kernel's order of types. */
const order: readonly ReservedType[] = ['direct', 'direct-relaxable', 'reserved', 'msi'];

const MSI: ReservedRegion = { firstPage: MSI_FIRST_PAGE, lastPage: MSI_LAST_PAGE, type: 'msi' };
/** An ISA bridge's old devices do DMA to the lowest 16 MiB. */
const ISA: ReservedRegion = { firstPage: 0, lastPage: 0xfff, type: 'direct-relaxable' };
const CLASS_BRIDGE_ISA = 0x0601;
const CLASS_DISPLAY = 0x03;
const CLASS_SERIAL_USB = 0x0c03;

/** What one function's platform reserves. `firmware`: the ranges that firmware wants for it (RMRR). */
export function reservedOf(f: PciFunction, firmware: readonly ReservedRegion[]): ReservedRegion[] {
  const isRelaxable = f.class24 >>> 16 === CLASS_DISPLAY || f.class24 >>> 8 === CLASS_SERIAL_USB;
  const regions = firmware.map((region) =>
    region.type === 'direct' && isRelaxable ? { ...region, type: 'direct-relaxable' as const } : region,
  );
  if (f.class24 >>> 8 === CLASS_BRIDGE_ISA) regions.push(ISA);
  regions.push(MSI);
  return regions;
}

/** Sorted by start and type; regions of one type that touch or overlap are one. */
export function mergeReserved(regions: readonly ReservedRegion[]): ReservedRegion[] {
  const sorted = [...regions].sort(
    (a, b) => a.firstPage - b.firstPage || order.indexOf(a.type) - order.indexOf(b.type),
  );
  const merged: ReservedRegion[] = [];
  for (const region of sorted) {
    const at = merged.findLastIndex((other) => other.type === region.type);
    const before = merged[at];
    if (before !== undefined && region.firstPage <= before.lastPage + 1) {
      merged[at] = { ...before, lastPage: Math.max(before.lastPage, region.lastPage) };
    } else merged.push(region);
  }
  return merged;
}

/** The text of `reserved_regions` in sysfs: a line `0x… 0x… type` each, both ends included. */
export function reservedRegionsText(regions: readonly ReservedRegion[]): string {
  const address = (value: bigint): string => `0x${value.toString(16).padStart(16, '0')}`;
  return regions
    .map(
      ({ firstPage, lastPage, type }) =>
        `${address(addressOf(firstPage))} ${address(addressOf(lastPage) + 0xfffn)} ${type}\n`,
    )
    .join('');
}
