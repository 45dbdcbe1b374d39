/** The PCI Express capability of a dumped function: its bytes, and of what they promise the parts that software uses. */
import * as reg from '../../../uapi/pci-regs.ts';
import type { CapabilitySpec } from '../../pci/function-spec.ts';
import type { ConfigImage } from './config-image.ts';

/** Lengths of the structure, version 1 for endpoints, version 2 for all. */
const SHORT = 0x14;
const LONG = 0x3c;

/**
 * At `at`, no longer than `room`. Without `image` the capability is made up: version 2, no slot, function level reset of endpoints.
 */
export function imageExpress(image: ConfigImage | undefined, type: number, at: number, room: number): CapabilitySpec {
  const length = Math.min(room, room >= LONG ? LONG : Math.max(SHORT, room));
  const get = (offset: number, size: 2 | 4): number =>
    offset + size <= length ? (image?.get(at + offset, size) ?? 0) : 0;
  const isEndpoint = [reg.PCI_EXP_TYPE_ENDPOINT, reg.PCI_EXP_TYPE_LEG_END, reg.PCI_EXP_TYPE_RC_END].includes(type);
  const isDownstream = type === reg.PCI_EXP_TYPE_ROOT_PORT || type === reg.PCI_EXP_TYPE_DOWNSTREAM;
  return {
    id: reg.PCI_CAP_ID_EXP,
    extended: false,
    length,
    at,
    install: (fn, config, offset) => {
      fn.portType = type;
      // A made-up port has a slot: nobody has seen that it has none.
      const flags = image === undefined ? 2 | (type << 4) | (isDownstream ? reg.PCI_EXP_FLAGS_SLOT : 0) : get(2, 2);
      const devcap = image === undefined && isEndpoint ? reg.PCI_EXP_DEVCAP_FLR : get(reg.PCI_EXP_DEVCAP, 4);
      const define = (register: number, size: 2 | 4, value: number, writable: number, clearable = 0): void => {
        if (register + size <= length) config.define(offset + register, size, value, writable, clearable);
      };
      define(reg.PCI_EXP_FLAGS, 2, flags, 0);
      define(reg.PCI_EXP_DEVCAP, 4, devcap, 0);
      const hasFlr = isEndpoint && (devcap & reg.PCI_EXP_DEVCAP_FLR) !== 0;
      define(reg.PCI_EXP_DEVCTL, 2, get(reg.PCI_EXP_DEVCTL, 2) & 0x7fff, fn.isVirtfn ? 0 : 0x7fff);
      define(reg.PCI_EXP_DEVSTA, 2, 0, 0, 0x000f);
      define(reg.PCI_EXP_LNKCTL, 2, get(reg.PCI_EXP_LNKCTL, 2) & 0x00c3, 0x00c3);
      if (isDownstream) {
        define(reg.PCI_EXP_SLTCTL, 2, get(reg.PCI_EXP_SLTCTL, 2), 0x1fff);
        define(reg.PCI_EXP_SLTSTA, 2, get(reg.PCI_EXP_SLTSTA, 2) & ~0x011f, 0, 0x011f);
      }
      if (type === reg.PCI_EXP_TYPE_ROOT_PORT) define(reg.PCI_EXP_RTCTL, 2, get(reg.PCI_EXP_RTCTL, 2), 0x001f);
      define(reg.PCI_EXP_DEVCTL2, 2, get(reg.PCI_EXP_DEVCTL2, 2), 0xffff);
      if (!hasFlr) return;
      config.watch(offset + reg.PCI_EXP_DEVCTL, 2, (written, _size, value) => {
        // The bit is never stored; a byte write to the register's upper half carries it too.
        const shift = 8 * (offset + reg.PCI_EXP_DEVCTL + 1 - written);
        const upper = shift >= 0 ? value >>> shift : 0;
        if ((upper & (reg.PCI_EXP_DEVCTL_BCR_FLR >> 8)) !== 0) fn.resetHardware('flr');
      });
    },
  };
}
