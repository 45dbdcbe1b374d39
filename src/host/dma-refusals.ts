/**
 * Why a DMA did not happen, in words for a person: who asked, what the IOMMU found, and which mapping lies nearest.
 */
import type { PciFunction } from '../hw/pci/function.ts';
import type { PciTree } from '../hw/pci/tree.ts';
import type { IommuCore } from '../kernel/iommu/iommu.ts';
import { Type1 } from '../kernel/vfio/type1.ts';
import type { VfioCore } from '../kernel/vfio/vfio.ts';
import type { Vfio2011 } from '../kernel/vfio-2011/vfio-2011.ts';
import type { IntervalMap } from '../lib/interval-map.ts';
import { addressOf, hex, pageOf } from '../lib/pages.ts';
import { subscribe } from '../lib/tracepoint.ts';

interface Parts {
  readonly pci: PciTree;
  readonly iommu: IommuCore;
  readonly vfio: VfioCore;
  readonly api2011?: { readonly core: Vfio2011 } | undefined;
}

/** Calls `tell` with one line for each refused DMA of the machine; the result stops that. */
export function explainDma(parts: Parts, tell: (line: string) => void): () => void {
  let detail = '';
  const stops = [
    subscribe('iommu:io_page_fault', ({ why }) => {
      detail = String(why);
    }),
    subscribe('pci:dma_refused', ({ rid, address, access, reason }) => {
      const fn = parts.pci.functions().find((other) => other.requesterId === rid || other.rid === rid);
      const found = detail === '' ? '' : `: ${detail}`;
      detail = '';
      const name = fn?.name ?? `requester ${hex(Number(rid))}`;
      const near = fn === undefined ? '' : nearest(parts, fn, pageOf(address as bigint));
      tell(`DMA ${access} of ${name} at ${hex(address as bigint)} refused: ${reason}${found}${near}`);
    }),
  ];
  return () => {
    for (const stop of stops) stop();
  };
}

/** The mapping that contains the page or lies nearest to it, for functions in a container. */
function nearest({ iommu, vfio, api2011 }: Parts, fn: PciFunction, page: number): string {
  const group = iommu.groupOf(fn);
  if (group === undefined) return '';
  if (group.domain.kind === 'blocked') return `; no address space is attached to group ${group.id}`;
  const old = api2011?.core.groups().find((other) => other.id === group.id && other.isAttached);
  if (old !== undefined) return nearestIn(old.iommu.maps.entries, page, 'the address space of its group');
  const driver = vfio.groups().find((other) => other.id === group.id)?.container?.driver;
  if (!(driver instanceof Type1)) return '';
  return nearestIn(driver.dmas, page, 'its container');
}

/** Of areas with permissions. */
function nearestIn(areas: IntervalMap<{ readonly prot: number }>, page: number, where: string): string {
  if (areas.size === 0) return `; nothing is mapped in ${where}`;
  const below = areas.floor(page);
  const above = areas.ceiling(page);
  const area = below === undefined || (above !== undefined && above.first - page < page - below.last) ? above! : below;
  const range = `${hex(addressOf(area.first))}-${hex(addressOf(area.last) + 0xfffn)}`;
  const rights =
    (area.value.prot & 3) === 3 ? 'read and write' : (area.value.prot & 1) === 1 ? 'read only' : 'write only';
  return page >= area.first && page <= area.last
    ? `; it lies in the mapping ${range} (${rights})`
    : `; the nearest mapping is ${range}`;
}
