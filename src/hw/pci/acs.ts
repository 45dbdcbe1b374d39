/**
 * Access Control Services: whether a function, and the way from it to the root, keeps requests from going to a neighbour instead
 * of the IOMMU (specification 01, section 4).
 */
import * as reg from '../../uapi/pci-regs.ts';
import type { PciFunction } from './function.ts';

/** What isolation takes: source validation, request and completion redirect, upstream forwarding. */
export const ACS_ISOLATION = reg.PCI_ACS_SV | reg.PCI_ACS_RR | reg.PCI_ACS_CR | reg.PCI_ACS_UF;

/** Devices whose maker has documented that their functions do not talk to each other although they have no ACS capability. */
const isolatedWithoutAcs: readonly { vendor: number; device: number }[] = [
  { vendor: 0x8086, device: 0x10c9 }, // 82576
  { vendor: 0x8086, device: 0x10fb }, // 82599
  { vendor: 0x8086, device: 0x1521 }, // I350
  { vendor: 0x8086, device: 0x1533 }, // I210
];

export function acsEnabled(fn: PciFunction, flags: number = ACS_ISOLATION): boolean {
  const verdict = fn.quirks.acsOverride;
  if (verdict !== undefined) return verdict;
  if (isolatedWithoutAcs.some((known) => known.vendor === fn.vendor && known.device === fn.device)) return true;
  switch (fn.portType) {
    case undefined:
    case reg.PCI_EXP_TYPE_PCIE_BRIDGE:
    case reg.PCI_EXP_TYPE_PCI_BRIDGE:
    case reg.PCI_EXP_TYPE_RC_EC:
      return false;
    case reg.PCI_EXP_TYPE_ROOT_PORT:
    case reg.PCI_EXP_TYPE_DOWNSTREAM:
      return flagsEnabled(fn, flags);
    case reg.PCI_EXP_TYPE_ENDPOINT:
    case reg.PCI_EXP_TYPE_LEG_END:
    case reg.PCI_EXP_TYPE_UPSTREAM:
    case reg.PCI_EXP_TYPE_RC_END:
      return !fn.multifunction || flagsEnabled(fn, flags);
    default:
      return true;
  }
}

/** Whether every function from `start` up to `end` passes; without `end`, up to the root. */
export function acsPathEnabled(
  start: PciFunction,
  end: PciFunction | null | undefined,
  flags: number = ACS_ISOLATION,
): boolean {
  for (let fn: PciFunction | undefined = start; ; ) {
    if (!acsEnabled(fn, flags)) return false;
    if (fn.bus.isRoot) return end == null;
    if (fn === end) return true;
    fn = bridgeAbove(fn);
    if (fn === undefined) return end == null;
  }
}

function bridgeAbove(fn: PciFunction): PciFunction | undefined {
  let bus = fn.bus;
  while (bus.self === undefined && bus.parent !== undefined) bus = bus.parent;
  return bus.self;
}

function flagsEnabled(fn: PciFunction, flags: number): boolean {
  const acs = fn.config.findExtended(reg.PCI_EXT_CAP_ID_ACS);
  if (acs === 0) return false;
  // What the capability lacks cannot be switched and counts as always on, except egress control.
  const known = fn.config.get(acs + reg.PCI_ACS_CAP, 2) | reg.PCI_ACS_EC;
  const required = flags & known;
  return (fn.config.get(acs + reg.PCI_ACS_CTRL, 2) & required) === required;
}
