/**
 * image: a function as its configuration space says, from a dump of a real one. Identity, header type and capabilities are those of the
 * dump, at their places; what a capability does (MSI, MSI-X, function level reset, virtual functions, power states, ACS) works as in
 * other models. Behind the BARs there is nothing: registers read as zero. Described in docs/devices/image.md.
 */
import * as reg from '../../../uapi/pci-regs.ts';
import type { BarSpec } from '../../pci/bar.ts';
import { plainCapability, powerManagement } from '../../pci/capabilities.ts';
import { type DeviceModel, readOptions } from '../../pci/device-model.ts';
import { acs, aer, ats, pasid, plainExtended, pri } from '../../pci/extended-capabilities.ts';
import type { PciFunction } from '../../pci/function.ts';
import type { CapabilitySpec, FunctionSpec } from '../../pci/function-spec.ts';
import { msi } from '../../pci/msi.ts';
import { msix } from '../../pci/msix.ts';
import { sriov } from '../../pci/sriov.ts';
import { acsBits } from '../bridge/model.ts';
import { ConfigImage } from './config-image.ts';
import { imageExpress } from './image-express.ts';
import { readBars } from './stub-bars.ts';

/** Header type of a bridge to CardBus, which has its bus numbers where other bridges have them. */
const CARDBUS = 2;
/** Of STATUS: 66 MHz, fast back-to-back, DEVSEL timing. */
const STATUS_FIXED = 0x06a0;

export const image: DeviceModel = {
  name: 'image',
  description: 'A function as a dump of its configuration space says (vfiobox host import); its registers read as zero',
  options: {
    config: {
      type: 'object',
      default: {},
      description: 'Configuration space: bytes in hexadecimal, 16 a row, by the offset of the row; other rows are zero',
    },
    length: { type: 'integer', default: 256, description: 'Bytes of the dump: 64, 128, 256 or 4096' },
    bars: { type: 'list', default: [], description: 'BARs: {index, kind: memory|io, size, is64, prefetchable}' },
    romSize: { type: 'integer', default: 0, description: 'Bytes of an expansion ROM, 0 for none' },
    acsControl: {
      type: 'text',
      default: '',
      description: 'ACS services switched on at boot, such as SV|RR|CR|UF; none: all off; empty: all that isolates',
    },
    portType: {
      type: 'text',
      default: '',
      choices: ['', 'endpoint', 'root-port', 'switch-upstream', 'switch-downstream', 'pcie-pci-bridge'],
      description: 'What it is on PCI Express, where the dump ends before its capabilities',
    },
    vfBars: { type: 'list', default: [], description: 'BARs of each virtual function, as bars' },
    vfConfig: { type: 'object', default: {}, description: 'Configuration space of a virtual function, as config' },
  },
  create(env, given) {
    const options = readOptions(image, given);
    const config = ConfigImage.ofRows(options['config'] as Record<string, unknown>, options['length'] as number);
    const spec = specOf(config, readBars(env, 'image', 'bars', options['bars'] as unknown[]), {
      acsControl: options['acsControl'] as string,
      romSize: options['romSize'] as number,
      virtual: { bars: readBars(env, 'image', 'vfBars', options['vfBars'] as unknown[]), rows: options['vfConfig'] },
    });
    const type = options['portType'] as string;
    return type === '' || config.find(reg.PCI_CAP_ID_EXP) !== 0 ? spec : withType(spec, TYPES[type]!);
  },
};

const TYPES: Readonly<Record<string, number>> = {
  endpoint: reg.PCI_EXP_TYPE_ENDPOINT,
  'root-port': reg.PCI_EXP_TYPE_ROOT_PORT,
  'switch-upstream': reg.PCI_EXP_TYPE_UPSTREAM,
  'switch-downstream': reg.PCI_EXP_TYPE_DOWNSTREAM,
  'pcie-pci-bridge': reg.PCI_EXP_TYPE_PCI_BRIDGE,
};

/** Gives a function whose capabilities nobody has seen the one that says what it is. */
function withType(spec: FunctionSpec, type: number): FunctionSpec {
  return { ...spec, capabilities: [imageExpress(undefined, type, 0x40, 0x3c)] };
}

interface Parts {
  readonly acsControl: string;
  readonly romSize: number;
  readonly virtual: { readonly bars: readonly BarSpec[]; readonly rows: unknown };
}

function specOf(config: ConfigImage, bars: readonly BarSpec[], parts: Parts): FunctionSpec {
  const header = config.get(reg.PCI_HEADER_TYPE, 1) & reg.PCI_HEADER_TYPE_MASK;
  const isBridge = header === reg.PCI_HEADER_TYPE_BRIDGE || header === CARDBUS;
  return {
    vendor: config.get(reg.PCI_VENDOR_ID, 2),
    device: config.get(reg.PCI_DEVICE_ID, 2),
    class24: config.get(reg.PCI_CLASS_REVISION, 4) >>> 8,
    revision: config.get(reg.PCI_CLASS_REVISION, 1),
    subsystemVendor: isBridge ? 0 : config.get(reg.PCI_SUBSYSTEM_VENDOR_ID, 2),
    subsystemDevice: isBridge ? 0 : config.get(reg.PCI_SUBSYSTEM_ID, 2),
    interruptPin: Math.min(4, config.get(reg.PCI_INTERRUPT_PIN, 1)),
    bars,
    ...(parts.romSize === 0 ? {} : { rom: new Uint8Array(parts.romSize) }),
    ...(isBridge ? { bridge: {} } : {}),
    capabilities: [...standard(config, bars), ...extended(config, parts)],
    attach: (fn) => showRest(fn, config),
  };
}

function standard(config: ConfigImage, bars: readonly BarSpec[]): CapabilitySpec[] {
  return config.capabilities().map(({ id, offset: at, room }) => {
    const plain = plainCapability(id, config.bytes.slice(at + 2, at + Math.min(room, 4)), { at });
    switch (id) {
      case reg.PCI_CAP_ID_PM: {
        if (room < reg.PCI_PM_SIZEOF) return plain;
        const noSoftReset = (config.get(at + reg.PCI_PM_CTRL, 2) & reg.PCI_PM_CTRL_NO_SOFT_RESET) !== 0;
        return powerManagement({ noSoftReset, at });
      }
      case reg.PCI_CAP_ID_MSI: {
        const flags = config.get(at + reg.PCI_MSI_FLAGS, 2);
        const vectors = 1 << Math.min(5, (flags >> 1) & 7);
        const is64 = (flags & reg.PCI_MSI_FLAGS_64BIT) !== 0;
        const maskable = (flags & reg.PCI_MSI_FLAGS_MASKBIT) !== 0;
        const length = 10 + (is64 ? 4 : 0) + (maskable ? 10 : 0);
        return room < length ? plain : msi({ vectors, is64, maskable, at });
      }
      case reg.PCI_CAP_ID_MSIX:
        return msixOf(config, at, bars) ?? plain;
      case reg.PCI_CAP_ID_EXP:
        return imageExpress(config, (config.get(at + 2, 2) >> 4) & 0xf, at, room);
      default:
        return plain;
    }
  });
}

/** Undefined: the BARs that it names are not there, or too small. */
function msixOf(config: ConfigImage, at: number, bars: readonly BarSpec[]): CapabilitySpec | undefined {
  const vectors = (config.get(at + reg.PCI_MSIX_FLAGS, 2) & reg.PCI_MSIX_FLAGS_QSIZE) + 1;
  const [table, pba] = [config.get(at + reg.PCI_MSIX_TABLE, 4), config.get(at + reg.PCI_MSIX_PBA, 4)];
  const [tableOffset, pbaOffset] = [(table & ~7) >>> 0, (pba & ~7) >>> 0];
  const fits = (index: number, end: number): boolean =>
    bars.some((bar) => bar.index === index && bar.kind === 'memory' && bar.size >= end);
  const tableEnd = tableOffset + vectors * reg.PCI_MSIX_ENTRY_SIZE;
  const pbaEnd = pbaOffset + Math.ceil(vectors / 64) * 8;
  if (!fits(table & 7, tableEnd) || !fits(pba & 7, pbaEnd)) return undefined;
  if ((table & 7) === (pba & 7) && tableOffset < pbaEnd && pbaOffset < tableEnd) return undefined;
  return msix({ vectors, tableBar: table & 7, tableOffset, pbaBar: pba & 7, pbaOffset, at });
}

function extended(config: ConfigImage, parts: Parts): CapabilitySpec[] {
  return config.extended().map(({ id, version, offset: at, room }) => {
    const plain = plainExtended(id, config.bytes.slice(at + 4, at + Math.min(room, 8)), { version, at });
    const known = knownExtended(config, parts, id, at);
    return known === undefined || known.length > room ? plain : { ...known, version, at };
  });
}

function knownExtended(config: ConfigImage, parts: Parts, id: number, at: number): CapabilitySpec | undefined {
  switch (id) {
    case reg.PCI_EXT_CAP_ID_ACS: {
      const capability = config.get(at + reg.PCI_ACS_CAP, 2);
      const wanted = parts.acsControl;
      return acs(wanted === '' ? { capability } : { capability, control: acsBits('image', 'acsControl', wanted) });
    }
    case reg.PCI_EXT_CAP_ID_ERR:
      return aer();
    case reg.PCI_EXT_CAP_ID_ATS:
      return ats({ queueDepth: config.get(at + reg.PCI_ATS_CAP, 2) & 0x1f });
    case reg.PCI_EXT_CAP_ID_PRI:
      return pri();
    case reg.PCI_EXT_CAP_ID_PASID:
      return pasid({ width: (config.get(at + reg.PCI_PASID_CAP, 2) >> 8) & 0x1f });
    case reg.PCI_EXT_CAP_ID_SRIOV:
      return sriovOf(config, at, parts);
    default:
      return undefined;
  }
}

function sriovOf(config: ConfigImage, at: number, { virtual }: Parts): CapabilitySpec | undefined {
  const totalVfs = config.get(at + reg.PCI_SRIOV_TOTAL_VF, 2);
  const stride = config.get(at + reg.PCI_SRIOV_VF_STRIDE, 2);
  const firstOffset = config.get(at + reg.PCI_SRIOV_VF_OFFSET, 2);
  if (totalVfs === 0 || firstOffset === 0 || (stride === 0 && totalVfs > 1)) return undefined;
  const rows = virtual.rows as Record<string, unknown>;
  const vf = Object.keys(rows).length === 0 ? undefined : ConfigImage.ofRows(rows, 4096);
  return sriov({
    ...{ totalVfs, firstOffset, stride },
    vfDevice: config.get(at + reg.PCI_SRIOV_VF_DID, 2),
    vfBars: virtual.bars.map(({ index, size, is64, prefetchable }) => ({
      ...{ index, size },
      is64: is64 ?? false,
      prefetchable: prefetchable ?? false,
    })),
    virtualFunction: () => {
      const spec = {
        ...{ vendor: 0, device: 0 },
        class24: config.get(reg.PCI_CLASS_REVISION, 4) >>> 8,
        bars: virtual.bars,
      };
      if (vf === undefined) {
        return { ...spec, capabilities: [imageExpress(undefined, reg.PCI_EXP_TYPE_ENDPOINT, 0x40, 0x3c)] };
      }
      const own = { acsControl: '', romSize: 0, virtual: { bars: [], rows: {} } };
      return { ...specOf(vf, virtual.bars, own), bars: virtual.bars };
    },
  });
}

/** Registers that software, firmware and the machine fill: not taken from the dump. */
const FILLED_ENDPOINT: readonly (readonly [first: number, end: number])[] = [
  [0x00, 0x08],
  [0x10, 0x28],
  [0x30, 0x35],
  [0x3c, 0x3d],
];
const FILLED_BRIDGE: readonly (readonly [first: number, end: number])[] = [
  [0x00, 0x08],
  [0x10, 0x35],
  [0x38, 0x40],
];

/** Everything that nobody can write is as the dump has it. */
function showRest(fn: PciFunction, image: ConfigImage): void {
  const { config } = fn;
  const filled = fn.isBridge ? FILLED_BRIDGE : FILLED_ENDPOINT;
  const end = Math.min(image.length, config.length);
  for (let at = 0; at < end; at++) {
    const value = image.bytes[at]!;
    if (value === config.bytes[at]) continue;
    if (filled.some(([first, last]) => first <= at && at < last)) continue;
    const kept = config.writableBits(at, 1) | config.clearableBits(at);
    config.set(at, 1, (config.get(at, 1) & kept) | (value & ~kept));
  }
  if (!fn.isVirtfn) {
    const fixed = image.get(reg.PCI_STATUS, 2) & STATUS_FIXED;
    config.set(reg.PCI_STATUS, 2, config.get(reg.PCI_STATUS, 2) | fixed);
  }
  // The multifunction bit is the slot's affair.
  const type = config.get(reg.PCI_HEADER_TYPE, 1) & reg.PCI_HEADER_TYPE_MASK;
  config.set(reg.PCI_HEADER_TYPE, 1, fn.multifunction ? type | reg.PCI_HEADER_TYPE_MFD : type);
}
