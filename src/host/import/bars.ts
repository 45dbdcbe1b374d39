/** BARs of a dumped function: kinds and addresses from its registers, sizes from the kernel's resources or from lspci -v. */
import type { ConfigImage } from '../../hw/devices/stub/config-image.ts';
import * as reg from '../../uapi/pci-regs.ts';
import type { DumpedFunction } from './dump.ts';

export interface BarOption {
  index: number;
  kind: 'memory' | 'io';
  size: number;
  is64?: boolean;
  prefetchable?: boolean;
}

export interface Bars {
  readonly bars: readonly BarOption[];
  /** Bus addresses by index, where the dump has them. */
  readonly addresses: Record<string, string>;
  readonly romSize: number;
}

/** The kernel numbers the ROM 6, and the BARs of virtual functions from 7. */
const ROM = 6;
const FIRST_VIRTUAL = 7;

export function barsOf(fn: DumpedFunction, image: ConfigImage): Bars {
  const count =
    (image.get(reg.PCI_HEADER_TYPE, 1) & 0x7f) === 0 ? 6 : (image.get(reg.PCI_HEADER_TYPE, 1) & 0x7f) === 1 ? 2 : 1;
  const bars: BarOption[] = [];
  const addresses: Record<string, string> = {};
  for (const { bar, address } of readBars(image, reg.PCI_BASE_ADDRESS_0, count)) {
    const size = sizeOf(fn, bar.index) ?? guess(image, bar, address);
    const isPossible =
      bar.kind === 'io' ? size >= 4 && size <= 65536 : size >= 16 && (bar.is64 === true || size <= 2 ** 31);
    if (!isPossible || !Number.isInteger(Math.log2(size))) continue;
    bars.push({ ...bar, size });
    if (address !== 0 && address % size === 0) addresses[bar.index] = `0x${address.toString(16)}`;
  }
  const rom = sizeOf(fn, ROM) ?? 0;
  return { bars, addresses, romSize: rom >= 2048 && rom <= 2 ** 24 ? rom : 0 };
}

/** BARs of each virtual function. */
export function virtualBarsOf(fn: DumpedFunction, image: ConfigImage): BarOption[] {
  const at = image.findExtended(reg.PCI_EXT_CAP_ID_SRIOV);
  if (at === 0) return [];
  const total = image.get(at + reg.PCI_SRIOV_TOTAL_VF, 2);
  const bars: BarOption[] = [];
  for (const { bar } of readBars(image, at + reg.PCI_SRIOV_BAR, 6)) {
    if (bar.kind === 'io') continue;
    const all = sizeOf(fn, FIRST_VIRTUAL + bar.index);
    // Whether they are known or not: a page each is the least that the specification allows.
    const size = all === undefined || total === 0 ? 4096 : all / total;
    bars.push({ ...bar, size: Number.isInteger(Math.log2(size)) && size >= 4096 ? size : 4096 });
  }
  return bars;
}

function* readBars(image: ConfigImage, at: number, count: number): Generator<{ bar: BarOption; address: number }> {
  for (let index = 0; index < count; index++) {
    const value = image.get(at + 4 * index, 4);
    if (value === 0 || value === 0xffffffff) continue;
    if ((value & reg.PCI_BASE_ADDRESS_SPACE_IO) !== 0) {
      yield { bar: { index, kind: 'io', size: 0 }, address: (value & ~3) >>> 0 };
      continue;
    }
    const is64 = (value & 6) === reg.PCI_BASE_ADDRESS_MEM_TYPE_64 && index + 1 < count;
    const isPrefetchable = (value & reg.PCI_BASE_ADDRESS_MEM_PREFETCH) !== 0;
    const low = (value & ~0xf) >>> 0;
    const address = is64 ? low + image.get(at + 4 * index + 4, 4) * 2 ** 32 : low;
    const bar: BarOption = { index, kind: 'memory', size: 0 };
    if (is64) bar.is64 = true;
    if (isPrefetchable) bar.prefetchable = true;
    yield { bar, address };
    if (is64) index++;
  }
}

/** Undefined: the dump does not tell. */
function sizeOf(fn: DumpedFunction, index: number): number | undefined {
  const resource = fn.resources?.[index];
  if (resource !== undefined) return resource.last > resource.first ? resource.last - resource.first + 1 : undefined;
  return fn.sizes?.get(index);
}

/** The least that can be: enough for the MSI-X table if it is in there, a page or 32 ports otherwise, no more than the address allows. */
function guess(image: ConfigImage, bar: BarOption, address: number): number {
  let least = bar.kind === 'io' ? 32 : 4096;
  const at = image.find(reg.PCI_CAP_ID_MSIX);
  if (at !== 0 && bar.kind === 'memory') {
    const vectors = (image.get(at + reg.PCI_MSIX_FLAGS, 2) & reg.PCI_MSIX_FLAGS_QSIZE) + 1;
    const table = image.get(at + reg.PCI_MSIX_TABLE, 4);
    const pba = image.get(at + reg.PCI_MSIX_PBA, 4);
    if ((table & 7) === bar.index) least = Math.max(least, table - (table & 7) + vectors * reg.PCI_MSIX_ENTRY_SIZE);
    if ((pba & 7) === bar.index) least = Math.max(least, pba - (pba & 7) + Math.ceil(vectors / 64) * 8);
  }
  const size = 2 ** Math.ceil(Math.log2(least));
  let natural = address === 0 ? size : 1;
  while (natural < size && address % (natural * 2) === 0) natural *= 2;
  return natural;
}
