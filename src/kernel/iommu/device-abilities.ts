/**
 * What a device can do behind a scalable unit beside plain requests: PASIDs, translation requests, page requests. Virtual functions
 * share PASIDs and page requests of their parent.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import * as reg from '../../uapi/pci-regs.ts';

/** PASIDs that `fn` can use behind `unit`: 0 when either has none, else a power of two. */
export function maxPasids(fn: PciFunction, unit: IommuUnit | undefined): number {
  if (unit === undefined || unit.mode !== 'scalable' || unit.capabilities.pasidBits === 0) return 0;
  const { config } = fn.physfn ?? fn;
  const at = config.findExtended(reg.PCI_EXT_CAP_ID_PASID);
  if (at === 0) return 0;
  return 2 ** Math.min((config.get(at + reg.PCI_PASID_CAP, 2) >> 8) & 0x1f, unit.capabilities.pasidBits);
}

export function hasAts(fn: PciFunction): boolean {
  return fn.config.findExtended(reg.PCI_EXT_CAP_ID_ATS) !== 0;
}

/** Switches on what both can, in the contexts of the requester ids and in the device. A device that is not trusted translates nothing. */
export function enableAbilities(fn: PciFunction, rids: readonly number[], unit: IommuUnit): void {
  if (unit.mode !== 'scalable') return;
  const pasids = maxPasids(fn, unit);
  const { hasDeviceTlb, hasPageRequests } = unit.capabilities;
  const parent = fn.physfn ?? fn;
  const rights = {
    hasDeviceTlb: hasDeviceTlb && hasAts(fn) && !fn.untrusted,
    hasPasids: pasids > 0,
    hasPageRequests: hasPageRequests && parent.config.findExtended(reg.PCI_EXT_CAP_ID_PRI) !== 0,
  };
  for (const rid of rids) unit.setRights(rid, rights, pasids);
  if (rights.hasPasids) switchOn(parent, reg.PCI_EXT_CAP_ID_PASID, reg.PCI_PASID_CTRL, reg.PCI_PASID_CTRL_ENABLE);
  if (rights.hasPageRequests) switchOn(parent, reg.PCI_EXT_CAP_ID_PRI, reg.PCI_PRI_CTRL, reg.PCI_PRI_CTRL_ENABLE);
  if (rights.hasDeviceTlb) switchOn(fn, reg.PCI_EXT_CAP_ID_ATS, reg.PCI_ATS_CTRL, reg.PCI_ATS_CTRL_ENABLE);
}

function switchOn(fn: PciFunction, capability: number, control: number, enable: number): void {
  const at = fn.config.findExtended(capability);
  if (at !== 0) fn.config.write(at + control, 2, fn.config.read(at + control, 2) | enable);
}
