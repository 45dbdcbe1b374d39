/**
 * Drivers of the host that only have to be there: they hold a function, and with it (unless they do no DMA) the DMA of its group.
 */
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import * as reg from '../../uapi/pci-regs.ts';
import type { PciDriver } from './pci-bus.ts';
import { classId, deviceId, type PciDeviceId } from './pci-ids.ts';

interface HostDriver {
  readonly name: string;
  readonly ids: readonly PciDeviceId[];
  /** Does no DMA of its own: its function does not keep a group from users. */
  readonly managesOwnDma?: boolean;
  /** Which of the functions that match it really takes; all when absent. */
  readonly takes?: (fn: PciFunction) => boolean;
  /** Makes virtual functions when told to (`sriov_numvfs`). */
  readonly hasSriov?: boolean;
}

const PORT_TYPES: readonly (number | undefined)[] = [
  reg.PCI_EXP_TYPE_ROOT_PORT,
  reg.PCI_EXP_TYPE_UPSTREAM,
  reg.PCI_EXP_TYPE_DOWNSTREAM,
  reg.PCI_EXP_TYPE_RC_EC,
];

const INTEL = 0x8086;
const e1000e = [0x10d3, 0x10ea, 0x150c, 0x153a, 0x15b7, 0x15bb];
const igb = [0x10a7, 0x10c9, 0x1521, 0x1526, 0x1533, 0x157b];
const ixgbe = [0x10b6, 0x10fb, 0x1528, 0x1560, 0x1563];

/** In the order in which they are offered functions. */
const hostDrivers: readonly HostDriver[] = [
  {
    name: 'pcieport',
    ids: [classId(0x06_0400, 0xff_ffff), classId(0x06_0401, 0xff_ffff), classId(0x08_0700, 0xff_ffff)],
    managesOwnDma: true,
    takes: (fn) => PORT_TYPES.includes(fn.portType),
  },
  { name: 'pci-stub', ids: [], managesOwnDma: true },
  { name: 'pci-pf-stub', ids: [deviceId(0x1d0f, 0x0053)], hasSriov: true },
  { name: 'uio_pci_generic', ids: [] },
  { name: 'virtio-pci', ids: [deviceId(0x1af4)], takes: (fn) => fn.device >= 0x1000 && fn.device <= 0x107f },
  { name: 'serial', ids: [classId(0x07_0000, 0xff_ff00)] },
  { name: 'e1000e', ids: e1000e.map((device) => deviceId(INTEL, device)) },
  { name: 'igb', ids: igb.map((device) => deviceId(INTEL, device)), hasSriov: true },
  { name: 'ixgbe', ids: ixgbe.map((device) => deviceId(INTEL, device)), hasSriov: true },
  { name: 'nvme', ids: [classId(0x01_0802, 0xff_ffff)], hasSriov: true },
  { name: 'snd_hda_intel', ids: [classId(0x04_0300, 0xff_ff00)] },
  { name: 'xhci_hcd', ids: [classId(0x0c_0330, 0xff_ffff)] },
  { name: 'ehci-pci', ids: [classId(0x0c_0320, 0xff_ffff)] },
];

/** A driver that holds what it is given and does nothing with it. */
export function hostDriver(description: HostDriver, removeVirtualFunctions: RemoveVirtualFunctions): PciDriver {
  return {
    name: description.name,
    ids: description.ids,
    managesOwnDma: description.managesOwnDma ?? false,
    probe: (fn) => {
      if (description.takes?.(fn) === false) throw new Errno('ENODEV', `${description.name} does not take ${fn.name}`);
    },
    // Who made virtual functions takes them away; the others leave them.
    remove: (fn, done) => {
      if (description.hasSriov === true) removeVirtualFunctions(fn, done);
      else done();
    },
    ...(description.hasSriov === true && {
      sriovConfigure: (fn: PciFunction, count: number, done: () => void) => {
        if (count === 0) removeVirtualFunctions(fn, done);
        else {
          fn.sriov!.enable(count);
          done();
        }
      },
    }),
  };
}

/** Takes all virtual functions of a function out of the machine, each as soon as its driver lets go; then calls `done`. */
export type RemoveVirtualFunctions = (fn: PciFunction, done: () => void) => void;

/** Without asking anybody: for machines without a core. */
export const removeAtOnce: RemoveVirtualFunctions = (fn, done) => {
  if ((fn.sriov?.functions.length ?? 0) > 0) fn.sriov!.disable();
  done();
};

/** All drivers of the table. */
export function allHostDrivers(removeVirtualFunctions: RemoveVirtualFunctions = removeAtOnce): PciDriver[] {
  return hostDrivers.map((description) => hostDriver(description, removeVirtualFunctions));
}
