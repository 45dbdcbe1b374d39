/**
 * Extended capabilities: ACS, AER, ATS, page requests, PASID, serial number, vendor-specific, and any other as plain bytes.
 * SR-IOV has its own file.
 */
import * as reg from '../../uapi/pci-regs.ts';
import { acsControlOffset } from './acs-quirks.ts';
import type { CapabilitySpec } from './function-spec.ts';

export interface AcsOptions {
  /** Services that exist (`PCI_ACS_…`). */
  readonly capability: number;
  /** What is switched on at boot; unless given, all that isolates. Reset clears the register itself. */
  readonly control?: number;
}

/** Access control services (Base 5.0, 7.7.8). */
export function acs(options: AcsOptions): CapabilitySpec {
  return {
    id: reg.PCI_EXT_CAP_ID_ACS,
    extended: true,
    length: 8,
    install: (fn, config, offset) => {
      const { capability } = options;
      config.define(offset + reg.PCI_ACS_CAP, 2, capability);
      config.define(offset + acsControlOffset(fn), 2, 0, capability & 0x7f);
      fn.acsControl = options.control;
    },
  };
}

const UNCORRECTABLE =
  reg.PCI_ERR_UNC_DLP |
  reg.PCI_ERR_UNC_POISON_TLP |
  reg.PCI_ERR_UNC_COMP_TIME |
  reg.PCI_ERR_UNC_COMP_ABORT |
  reg.PCI_ERR_UNC_UNX_COMP |
  reg.PCI_ERR_UNC_MALF_TLP |
  reg.PCI_ERR_UNC_UNSUP |
  reg.PCI_ERR_UNC_ACSV |
  reg.PCI_ERR_UNC_INTN;

/** Advanced error reporting (Base 5.0, 7.8.4). Errors are set by `PciFunction.reportError`. */
export function aer(): CapabilitySpec {
  return {
    id: reg.PCI_EXT_CAP_ID_ERR,
    extended: true,
    version: 2,
    length: 0x48,
    install: (_fn, config, offset) => {
      config.define(offset + reg.PCI_ERR_UNCOR_STATUS, 4, 0, 0, UNCORRECTABLE);
      config.define(offset + reg.PCI_ERR_UNCOR_MASK, 4, reg.PCI_ERR_UNC_INTN, UNCORRECTABLE);
      const severity = reg.PCI_ERR_UNC_DLP | reg.PCI_ERR_UNC_MALF_TLP | reg.PCI_ERR_UNC_INTN;
      config.define(offset + reg.PCI_ERR_UNCOR_SEVER, 4, severity, UNCORRECTABLE);
      config.define(offset + reg.PCI_ERR_COR_STATUS, 4, 0, 0, 0x0000f1c1);
      config.define(offset + reg.PCI_ERR_COR_MASK, 4, reg.PCI_ERR_COR_ADV_NFAT, 0x0000f1c1);
    },
  };
}

export interface AtsOptions {
  /** Invalidations that the function can queue, 1 to 32. */
  readonly queueDepth?: number;
}

/** Address translation services (Base 5.0, 10.5.1). */
export function ats(options: AtsOptions = {}): CapabilitySpec {
  return {
    id: reg.PCI_EXT_CAP_ID_ATS,
    extended: true,
    length: reg.PCI_EXT_CAP_ATS_SIZEOF,
    install: (fn, config, offset) => {
      const depth = (options.queueDepth ?? 32) & 0x1f;
      config.define(offset + reg.PCI_ATS_CAP, 2, depth | reg.PCI_ATS_CAP_PAGE_ALIGNED);
      config.define(offset + reg.PCI_ATS_CTRL, 2, 0, reg.PCI_ATS_CTRL_ENABLE | (fn.isVirtfn ? 0 : 0x1f));
    },
  };
}

export interface PriOptions {
  /** Page requests that may be outstanding. */
  readonly capacity?: number;
}

/** Page request interface (Base 5.0, 10.5.2). */
export function pri(options: PriOptions = {}): CapabilitySpec {
  return {
    id: reg.PCI_EXT_CAP_ID_PRI,
    extended: true,
    length: reg.PCI_EXT_CAP_PRI_SIZEOF,
    install: (fn, config, offset) => {
      const control = offset + reg.PCI_PRI_CTRL;
      const status = offset + reg.PCI_PRI_STATUS;
      const idle = reg.PCI_PRI_STATUS_STOPPED | reg.PCI_PRI_STATUS_PASID;
      config.define(control, 2, 0, reg.PCI_PRI_CTRL_ENABLE);
      config.define(status, 2, idle, 0, reg.PCI_PRI_STATUS_RF | reg.PCI_PRI_STATUS_UPRGI);
      config.define(offset + reg.PCI_PRI_MAX_REQ, 4, options.capacity ?? 512);
      config.define(offset + reg.PCI_PRI_ALLOC_REQ, 4, 0, 0xffffffff);
      const update = (): void => {
        const running = (config.get(control, 2) & reg.PCI_PRI_CTRL_ENABLE) !== 0;
        const rest = config.get(status, 2) & ~reg.PCI_PRI_STATUS_STOPPED;
        config.set(status, 2, running ? rest : rest | reg.PCI_PRI_STATUS_STOPPED);
      };
      config.watch(control, 2, update);
      fn.onReset(update);
    },
  };
}

export interface PasidOptions {
  /** Bits of a PASID, up to 20. */
  readonly width?: number;
  readonly executable?: boolean;
  readonly privileged?: boolean;
}

/** Process address space IDs (Base 5.0, 7.8.8). */
export function pasid(options: PasidOptions = {}): CapabilitySpec {
  return {
    id: reg.PCI_EXT_CAP_ID_PASID,
    extended: true,
    length: reg.PCI_EXT_CAP_PASID_SIZEOF,
    install: (_fn, config, offset) => {
      const bits =
        (options.executable ? reg.PCI_PASID_CAP_EXEC : 0) | (options.privileged ? reg.PCI_PASID_CAP_PRIV : 0);
      config.define(offset + reg.PCI_PASID_CAP, 2, bits | ((options.width ?? 20) << 8));
      config.define(offset + reg.PCI_PASID_CTRL, 2, 0, reg.PCI_PASID_CTRL_ENABLE | bits);
    },
  };
}

export function serialNumber(serial: bigint): CapabilitySpec {
  return {
    id: reg.PCI_EXT_CAP_ID_DSN,
    extended: true,
    length: reg.PCI_EXT_CAP_DSN_SIZEOF,
    install: (_fn, config, offset) => {
      config.set(offset + 4, 4, Number(serial & 0xffffffffn));
      config.set(offset + 8, 4, Number((serial >> 32n) & 0xffffffffn));
    },
  };
}

export interface PlainExtendedOptions {
  readonly version?: number;
  readonly at?: number;
}

/** Any other extended capability as bytes that nobody can write: what follows the 4 bytes of header. */
export function plainExtended(id: number, body: Uint8Array, options: PlainExtendedOptions = {}): CapabilitySpec {
  return {
    id,
    extended: true,
    length: 4 + body.length,
    ...options,
    install: (_fn, config, offset) => {
      config.bytes.set(body, offset + 4);
    },
  };
}

/** Vendor-specific extended capability: id, revision and length of its own header, then `body`. */
export function vendorExtended(id: number, revision: number, body: Uint8Array): CapabilitySpec {
  const length = 8 + body.length;
  const header = new Uint8Array(4 + body.length);
  new DataView(header.buffer).setUint32(0, (id | (revision << 16) | (length << 20)) >>> 0, true);
  header.set(body, 4);
  return plainExtended(reg.PCI_EXT_CAP_ID_VNDR, header);
}
