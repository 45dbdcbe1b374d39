/**
 * What firmware does at power-on: numbers buses, gives addresses to BARs and windows to bridges, interrupt lines to pins, and
 * switches decoding on. What the description pins is kept; what has an address already keeps it, so that a later run only serves
 * what is new.
 *
 * Interrupt lines follow SeaBIOS on QEMU's q35 machine: slot and pin rotate over lines 10, 10, 11, 11.
 */

import { Errno } from '../../lib/errno.ts';
import * as reg from '../../uapi/pci-regs.ts';
import { acsControlOffset } from './acs-quirks.ts';
import type { Bus } from './bus.ts';
import type { PciFunction } from './function.ts';
import { assignResources } from './resources.ts';
import type { PciTree } from './tree.ts';

export function enumerate(tree: PciTree): void {
  for (const segment of new Set(tree.roots.map((root) => root.segment))) numberBuses(tree, segment);
  assignResources(tree);
  for (const fn of tree.functions()) {
    if (fn.isVirtfn || fn.isConfigured) continue;
    fn.isConfigured = true;
    if (fn.interruptPin !== 0) fn.config.write(reg.PCI_INTERRUPT_LINE, 1, fn.place.interruptLine ?? interruptLine(fn));
    else if (fn.place.interruptLine !== undefined) fn.config.write(reg.PCI_INTERRUPT_LINE, 1, fn.place.interruptLine);
    let command = reg.PCI_COMMAND_IO | reg.PCI_COMMAND_MEMORY | reg.PCI_COMMAND_SERR;
    if (fn.isBridge) command |= reg.PCI_COMMAND_MASTER;
    fn.config.write(reg.PCI_COMMAND, 2, fn.config.read(reg.PCI_COMMAND, 2) | command);
    enableAcs(fn);
  }
}

/** As the kernel does at boot with an IOMMU: everything that isolates and can be switched on. Description may say otherwise. */
function enableAcs(fn: PciFunction): void {
  const acs = fn.config.findExtended(reg.PCI_EXT_CAP_ID_ACS);
  if (acs === 0) return;
  const isolating = reg.PCI_ACS_SV | reg.PCI_ACS_RR | reg.PCI_ACS_CR | reg.PCI_ACS_UF;
  const control = fn.acsControl ?? fn.config.get(acs + reg.PCI_ACS_CAP, 2) & isolating;
  fn.config.write(acs + acsControlOffset(fn), 2, control);
}

function interruptLine(fn: PciFunction): number {
  let pin = fn.interruptPin - 1;
  let at = fn;
  for (let bridge = at.bus.self; bridge !== undefined; bridge = at.bus.self) {
    pin += at.devfn >> 3;
    at = bridge;
  }
  const slot = at.devfn >> 3;
  if (slot <= 24) pin += slot;
  return [10, 10, 11, 11][pin & 3]!;
}

/** Depth first; a bus that the description numbers keeps its number. */
function numberBuses(tree: PciTree, segment: number): void {
  const taken = new Map<number, Bus>();
  for (const bus of tree.busses()) {
    if (bus.segment !== segment || bus.number < 0) continue;
    if (bus.number > 255) throw new Errno('EINVAL', `there is no bus 0x${bus.number.toString(16)}`);
    taken.set(bus.number, bus);
  }
  const visit = (bus: Bus, from: number): number => {
    let last = Math.max(from, lastVirtual(bus));
    for (let number = bus.number + 1; number <= last; number++) {
      if (number > 255 || taken.get(number)?.self !== undefined) {
        throw new Errno('EINVAL', `virtual functions on bus ${bus.name} need bus 0x${number.toString(16)} as well`);
      }
    }
    for (const fn of bus.functions) {
      const below = fn.secondary;
      if (below === undefined) continue;
      if (below.number < 0) {
        let next = last + 1;
        while (taken.has(next)) next++;
        if (next > 255) throw new Errno('ENOSPC', `no bus number is left for what is behind ${fn.name}`);
        below.number = next;
        taken.set(next, below);
      }
      if (below.number <= bus.number) {
        throw new Errno('EINVAL', `bus ${below.name} behind ${fn.name} must have a higher number than bus ${bus.name}`);
      }
      below.subordinate = Math.max(visit(below, below.number), fn.place.subordinate ?? 0);
      last = Math.max(last, below.subordinate);
      const config = fn.config;
      config.write(reg.PCI_PRIMARY_BUS, 1, bus.number);
      config.write(reg.PCI_SECONDARY_BUS, 1, below.number);
      config.write(reg.PCI_SUBORDINATE_BUS, 1, below.subordinate);
    }
    bus.subordinate = last;
    return last;
  };
  for (const root of tree.roots) if (root.segment === segment) visit(root, root.number);
}

/** The highest bus number that virtual functions of this bus will use. */
function lastVirtual(bus: Bus): number {
  let last = bus.number;
  for (const fn of bus.functions) {
    if (fn.sriov !== undefined) last = Math.max(last, fn.sriov.ridOf(fn.sriov.totalVfs - 1) >> 8);
  }
  return last;
}
