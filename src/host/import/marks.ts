/**
 * Devices whose DMA carries other requester IDs than their own, and bridges that do not alias as their registers say: what Linux 7.2
 * knows of them (drivers/pci/quirks.c), as data, for machines of which only the registers were written down.
 */
import type { QuirksConfig } from '../host-file.ts';

/** What an import has to know of a function to mark it. */
export interface Marked {
  readonly vendor: number;
  readonly device: number;
  readonly subsystemVendor: number;
  readonly subsystemDevice: number;
  readonly devfn: number;
  readonly isBridge: boolean;
  /** `PCI_EXP_TYPE_…`, undefined for conventional PCI. */
  readonly portType: number | undefined;
  /** Of the bridge above; `root` on a root bus. */
  readonly above: number | undefined | 'root';
}

const TO_PCI = 7;

const key = (vendor: number, device: number): number => vendor * 65536 + device;
const setOf = (vendor: number, ...devices: number[]): number[] => devices.map((device) => key(vendor, device));

/** DMA carries the ID of function 0 (function 1) of the slot. */
const function0 = new Set([...setOf(0x1180, 0xe832, 0xe476), ...setOf(0x6766, 0x3d40, 0x3d41)]);
const function1 = new Set([
  ...setOf(0x1b4b, 0x9120, 0x9123, 0x9125, 0x9128, 0x9130, 0x9170, 0x9172, 0x917a, 0x9182, 0x9183, 0x91a0),
  ...setOf(0x1b4b, 0x9215, 0x9220, 0x9230, 0x9235),
  ...setOf(0x1103, 0x0642, 0x0645),
  ...setOf(0x197b, 0x2392),
  ...setOf(0x1c28, 0x0122),
]);
/** Every ID of the bus. */
const everything = new Set(setOf(0x10b5, 0x87b0, 0x87b1));
const fixed = new Map<number, readonly number[]>([
  ...setOf(0x8086, 0x2260, 0x2264).map((one) => [one, [0x80, 0x88, 0x93]] as const),
  ...setOf(0x8086, 0x2954, 0x2955, 0x2956, 0x2958, 0x2959, 0x295a).map(
    (one) => [one, Array.from({ length: 32 * 5 }, (_, i) => (Math.floor(i / 5) << 3) | (i % 5))] as const,
  ),
]);
/** PCIe-to-PCI bridges without a PCI Express capability. */
const hiddenExpress = new Set([
  ...setOf(0x1b21, 0x1080),
  ...setOf(0x10e3, 0x8113),
  ...setOf(0x1283, 0x8892, 0x8893),
  ...setOf(0x8086, 0x244e),
]);
const translationRoots = new Set(setOf(0x14e4, 0x9000, 0x9084));
const noAlias = new Set(setOf(0x1a03, 0x1150));

/** devfns that the DMA of `fn` may carry beside its own. */
export function aliasesOf(fn: Marked): readonly number[] {
  const id = key(fn.vendor, fn.device);
  const slot = fn.devfn & ~7;
  if (function0.has(id)) return [slot].filter((devfn) => devfn !== fn.devfn);
  if (function1.has(id)) return [slot | 1].filter((devfn) => devfn !== fn.devfn);
  if (everything.has(id)) return Array.from({ length: 256 }, (_, devfn) => devfn).filter((one) => one !== fn.devfn);
  // Adaptec 3405 and 3805.
  if (id === key(0x9005, 0x0285) && fn.subsystemVendor === 0x9005 && [0x02bb, 0x02bc].includes(fn.subsystemDevice)) {
    return [0x08];
  }
  return fixed.get(id) ?? [];
}

/** Marks of a bridge, undefined for none. */
export function quirksOf(fn: Marked): QuirksConfig | undefined {
  const id = key(fn.vendor, fn.device);
  if (!fn.isBridge) return undefined;
  if (translationRoots.has(id)) return { bridgeTranslationRoot: true };
  if (noAlias.has(id)) return { bridgeNoAlias: true };
  const isBelowExpress = fn.above !== 'root' && fn.above !== undefined && fn.above !== TO_PCI;
  if (hiddenExpress.has(id) && fn.portType === undefined && isBelowExpress) return { pcieBridgeAlias: true };
  return undefined;
}
