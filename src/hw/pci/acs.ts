/**
 * Access Control Services: whether a function, and the way from it to the root, keeps requests from going to a neighbour instead
 * of the IOMMU (specification 01, section 4).
 */
import * as reg from '../../uapi/pci-regs.ts';
import { isolationQuirk } from './acs-quirks.ts';
import { bridgeAbove, type TopologyFunction } from './topology.ts';

/** What isolation takes: source validation, request and completion redirect, upstream forwarding. */
export const ACS_ISOLATION = reg.PCI_ACS_SV | reg.PCI_ACS_RR | reg.PCI_ACS_CR | reg.PCI_ACS_UF;

export function acsEnabled(fn: TopologyFunction, flags: number = ACS_ISOLATION): boolean {
  const verdict = fn.quirks.acsOverride;
  if (verdict !== undefined) return verdict;
  const quirk = isolationQuirk(fn);
  if (quirk !== undefined) return quirk.isIsolated;
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
  start: TopologyFunction,
  end: TopologyFunction | null | undefined,
  flags: number = ACS_ISOLATION,
): boolean {
  for (let fn: TopologyFunction | undefined = start; ; ) {
    if (!acsEnabled(fn, flags)) return false;
    if (fn.bus.isRoot) return end == null;
    if (fn === end) return true;
    fn = bridgeAbove(fn);
    if (fn === undefined) return end == null;
  }
}

/** Flags that the function has to have switched on and has not; without the capability, all of `flags`. */
export function missingFlags(fn: TopologyFunction, flags: number = ACS_ISOLATION): number {
  const { acs } = fn;
  if (acs === undefined) return flags;
  // What the capability lacks cannot be switched and counts as always on, except egress control.
  return flags & (acs.capability | reg.PCI_ACS_EC) & ~acs.control;
}

function flagsEnabled(fn: TopologyFunction, flags: number): boolean {
  return fn.acs !== undefined && missingFlags(fn, flags) === 0;
}
