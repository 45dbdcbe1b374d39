/**
 * Capabilities of the first 256 bytes beside MSI and MSI-X: power management, PCI Express, advanced features, vendor-specific,
 * and any other as plain bytes.
 */
import * as reg from '../../uapi/pci-regs.ts';
import type { CapabilitySpec } from './function-spec.ts';

interface At {
  /** A fixed offset instead of the first free place. */
  readonly at?: number;
}

export interface PowerOptions extends At {
  /** True: going from D3hot to D0 does not reset the function. */
  readonly noSoftReset?: boolean;
}

/** Power management (PCI Power Management 1.2): D0 and D3hot. In D3hot only configuration space answers. */
export function powerManagement(options: PowerOptions = {}): CapabilitySpec {
  return {
    id: reg.PCI_CAP_ID_PM,
    extended: false,
    length: reg.PCI_PM_SIZEOF,
    ...place(options),
    install: (fn, config, offset) => {
      config.define(offset + reg.PCI_PM_PMC, 2, 3);
      const at = offset + reg.PCI_PM_CTRL;
      config.define(at, 2, options.noSoftReset ? reg.PCI_PM_CTRL_NO_SOFT_RESET : 0, reg.PCI_PM_CTRL_STATE_MASK);
      let state = 0;
      config.watch(at, 1, () => {
        const before = state;
        const wanted = config.get(at, 2) & reg.PCI_PM_CTRL_STATE_MASK;
        // D1 and D2 do not exist here: such a write keeps the state (PCI PM 1.2, 3.2.4).
        state = wanted === 0 || wanted === 3 ? wanted : before;
        config.set(at, 1, (config.get(at, 1) & ~reg.PCI_PM_CTRL_STATE_MASK) | state);
        if (before === 3 && state === 0 && !options.noSoftReset) fn.resetHardware('pm');
        else if (before !== state) fn.updateDecoding();
      });
      fn.onReset(() => {
        state = 0;
      });
    },
  };
}

export interface ExpressOptions extends At {
  /** `PCI_EXP_TYPE_…` */
  readonly type: number;
  /** Function level reset through Device Control; endpoints only. */
  readonly flr?: boolean;
  /** Log2 of the largest payload / 128; 0 is 128 bytes. */
  readonly payload?: number;
  /** Link speed (1 is 2.5 GT/s) and width. */
  readonly speed?: number;
  readonly width?: number;
  /** Of ports: the number of the slot behind it, undefined for none. */
  readonly slot?: number;
  readonly portNumber?: number;
  /** Further bits of Device Capabilities 2, such as atomic completions. */
  readonly devcap2?: number;
}

const EXPRESS_LENGTH = 0x3c;
const ENDPOINTS: readonly number[] = [reg.PCI_EXP_TYPE_ENDPOINT, reg.PCI_EXP_TYPE_LEG_END, reg.PCI_EXP_TYPE_RC_END];

/**
 * PCI Express (Base 5.0, 7.5.3), version 2 of the structure. An endpoint on a root bus becomes a root complex integrated endpoint:
 * it has no link.
 */
export function pciExpress(options: ExpressOptions): CapabilitySpec {
  const isDownstream = options.type === reg.PCI_EXP_TYPE_ROOT_PORT || options.type === reg.PCI_EXP_TYPE_DOWNSTREAM;
  if (options.flr && !ENDPOINTS.includes(options.type)) throw new Error('Only endpoints have a function level reset');
  return {
    id: reg.PCI_CAP_ID_EXP,
    extended: false,
    length: EXPRESS_LENGTH,
    ...place(options),
    install: (fn, config, offset) => {
      const isIntegrated = options.type === reg.PCI_EXP_TYPE_ENDPOINT && fn.bus.isRoot;
      const type = isIntegrated ? reg.PCI_EXP_TYPE_RC_END : options.type;
      const hasLink = type !== reg.PCI_EXP_TYPE_RC_END && type !== reg.PCI_EXP_TYPE_RC_EC;
      fn.portType = type;
      const hasSlot = options.slot !== undefined && isDownstream;
      config.define(offset + reg.PCI_EXP_FLAGS, 2, 2 | (type << 4) | (hasSlot ? reg.PCI_EXP_FLAGS_SLOT : 0));
      const devcap = reg.PCI_EXP_DEVCAP_RBER | (options.payload ?? 0) | (options.flr ? reg.PCI_EXP_DEVCAP_FLR : 0);
      config.define(offset + reg.PCI_EXP_DEVCAP, 4, devcap);
      const devctl =
        reg.PCI_EXP_DEVCTL_CERE |
        reg.PCI_EXP_DEVCTL_NFERE |
        reg.PCI_EXP_DEVCTL_FERE |
        reg.PCI_EXP_DEVCTL_URRE |
        reg.PCI_EXP_DEVCTL_RELAX_EN |
        reg.PCI_EXP_DEVCTL_PAYLOAD |
        reg.PCI_EXP_DEVCTL_NOSNOOP_EN |
        reg.PCI_EXP_DEVCTL_READRQ;
      const initial = reg.PCI_EXP_DEVCTL_RELAX_EN | reg.PCI_EXP_DEVCTL_NOSNOOP_EN | reg.PCI_EXP_DEVCTL_READRQ_512B;
      config.define(offset + reg.PCI_EXP_DEVCTL, 2, fn.isVirtfn ? 0 : initial, fn.isVirtfn ? 0 : devctl);
      const errors = reg.PCI_EXP_DEVSTA_CED | reg.PCI_EXP_DEVSTA_NFED | reg.PCI_EXP_DEVSTA_FED | reg.PCI_EXP_DEVSTA_URD;
      config.define(offset + reg.PCI_EXP_DEVSTA, 2, 0, 0, errors);
      if (options.flr) {
        config.watch(offset + reg.PCI_EXP_DEVCTL, 2, (at, _size, value) => {
          // The bit is never stored, so it reads as 0; a byte write to the register's upper half carries it too.
          const shift = 8 * (offset + reg.PCI_EXP_DEVCTL + 1 - at);
          const upper = shift >= 0 ? value >>> shift : 0;
          if ((upper & (reg.PCI_EXP_DEVCTL_BCR_FLR >> 8)) !== 0) fn.resetHardware('flr');
        });
      }
      if (hasLink) {
        const speed = options.speed ?? 1;
        const link = speed | ((options.width ?? 1) << 4);
        const reports = isDownstream ? reg.PCI_EXP_LNKCAP_DLLLARC : 0;
        config.define(offset + reg.PCI_EXP_LNKCAP, 4, (link | reports | ((options.portNumber ?? 0) << 24)) >>> 0);
        config.define(offset + reg.PCI_EXP_LNKCTL, 2, 0, 0x00c3);
        config.define(offset + reg.PCI_EXP_LNKSTA, 2, link | (isDownstream ? reg.PCI_EXP_LNKSTA_DLLLA : 0));
        config.define(offset + reg.PCI_EXP_LNKCAP2, 4, 2 ** (speed + 1) - 2);
        config.define(offset + reg.PCI_EXP_LNKCTL2, 2, speed, 0x000f);
      }
      if (hasSlot) {
        config.define(offset + reg.PCI_EXP_SLTCAP, 4, ((options.slot ?? 0) << 19) >>> 0);
        config.define(offset + reg.PCI_EXP_SLTCTL, 2, 0, 0x13ff);
        config.define(offset + reg.PCI_EXP_SLTSTA, 2, reg.PCI_EXP_SLTSTA_PDS, 0, 0x011f);
      }
      if (type === reg.PCI_EXP_TYPE_ROOT_PORT || type === reg.PCI_EXP_TYPE_RC_EC) {
        config.define(offset + reg.PCI_EXP_RTCTL, 2, 0, 0x000f);
      }
      const devcap2 = reg.PCI_EXP_DEVCAP2_COMP_TMOUT_DIS | (isDownstream ? reg.PCI_EXP_DEVCAP2_ARI : 0);
      config.define(offset + reg.PCI_EXP_DEVCAP2, 4, devcap2 | (options.devcap2 ?? 0));
      const devctl2 = reg.PCI_EXP_DEVCTL2_COMP_TIMEOUT | reg.PCI_EXP_DEVCTL2_COMP_TMOUT_DIS;
      config.define(offset + reg.PCI_EXP_DEVCTL2, 2, 0, devctl2 | (isDownstream ? reg.PCI_EXP_DEVCTL2_ARI : 0));
    },
  };
}

/** Advanced features of conventional functions: a function level reset. */
export function advancedFeatures(options: At = {}): CapabilitySpec {
  return {
    id: reg.PCI_CAP_ID_AF,
    extended: false,
    length: reg.PCI_CAP_AF_SIZEOF,
    ...place(options),
    install: (fn, config, offset) => {
      config.define(offset + reg.PCI_AF_LENGTH, 1, reg.PCI_CAP_AF_SIZEOF);
      config.define(offset + reg.PCI_AF_CAP, 1, reg.PCI_AF_CAP_TP | reg.PCI_AF_CAP_FLR);
      const control = offset + reg.PCI_AF_CTRL;
      config.watch(control, 1, (at, _size, value) => {
        if (((value >>> (8 * (control - at))) & reg.PCI_AF_CTRL_FLR) !== 0) fn.resetHardware('af_flr');
      });
    },
  };
}

/** Vendor-specific: the bytes after id, next and length. */
export function vendorSpecific(body: Uint8Array, options: At = {}): CapabilitySpec {
  const length = 3 + body.length;
  return {
    id: reg.PCI_CAP_ID_VNDR,
    extended: false,
    length,
    ...place(options),
    install: (_fn, config, offset) => {
      config.set(offset + 2, 1, length);
      config.bytes.set(body, offset + 3);
    },
  };
}

/** Any other capability as bytes that nobody can write: what follows id and next. */
export function plainCapability(id: number, body: Uint8Array, options: At = {}): CapabilitySpec {
  return {
    id,
    extended: false,
    length: 2 + body.length,
    ...place(options),
    install: (_fn, config, offset) => {
      config.bytes.set(body, offset + 2);
    },
  };
}

function place(options: At): At {
  return options.at === undefined ? {} : { at: options.at };
}
