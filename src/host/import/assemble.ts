/**
 * From a dump to a host file: each function a model of its bytes, bridges in order, what the kernel knows about such devices as marks.
 */
import { acsControlOffset } from '../../hw/pci/acs-quirks.ts';
import * as reg from '../../uapi/pci-regs.ts';
import type { FunctionConfig, HostConfig, UnitConfig } from '../host-file.ts';
import { barsOf, virtualBarsOf } from './bars.ts';
import { layOut, type Node } from './buses.ts';
import { type Dump, parseName } from './dump.ts';
import { type Kind, kindsOf } from './kinds.ts';
import { aliasesOf, type Marked, quirksOf } from './marks.ts';

export interface AssembleOptions {
  readonly name: string;
  /**
   * State of ACS: as it was when the dump was made, or as Linux switches it on at boot when there is an IOMMU. `auto`: as dumped, unless
   * it was off everywhere, as it is without an IOMMU.
   */
  readonly acs: 'auto' | 'dumped' | 'boot';
  /** Drivers that the box has. */
  readonly drivers: readonly string[];
  /** Unit presets by kind of unit. */
  readonly presets: { readonly intel: string; readonly amd: string };
}

export interface Assembled {
  readonly host: HostConfig;
  /** Sentences for the person: what was guessed or left out. */
  readonly notes: readonly string[];
  /** Group of each function that the dump names, by full address. */
  readonly groups: ReadonlyMap<string, number>;
}

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
const slotText = (devfn: number): string => `${hex(devfn >> 3, 2)}.${devfn & 7}`;
const shortName = (name: string): string => name.replace(/^0000:/, '');

/** Of the Intel chipsets whose root ports isolate by registers of their own: the register of the LPC bridge that opens them, at 1f.0. */
const RCBA = 0xf0;
/** Devices that carry a VMD controller's root bus. */
const VMD_IDS: readonly number[] = [0x201d, 0x28c0, 0x467f, 0x4c3d, 0x7d0b, 0x9a0b, 0xa77f, 0xad0b, 0xb60b, 0xb06f];

/** HostFileError: the dump contradicts itself. */
export function assemble(dump: Dump, options: AssembleOptions): Assembled {
  const { nodes, roots } = layOut(dump);
  const notes: string[] = [];
  const kinds = kindsOf(nodes);
  const state = acsState(nodes, options.acs, notes);
  tellWhatIsMissing(nodes, notes);
  tellOfOrphans(nodes, notes);
  const physical = nodes.filter((node) => node.physfn === undefined);
  const unknownDrivers = new Map<string, number>();
  const functions = physical.map((node) => {
    const config =
      node.image === undefined ? fromTree(node, kinds.get(node)!) : fromImage(node, kinds.get(node)!, state);
    const { driver } = node.fn;
    if (driver !== undefined && options.drivers.includes(driver)) config.driver = driver;
    else if (driver !== undefined) unknownDrivers.set(driver, (unknownDrivers.get(driver) ?? 0) + 1);
    if (node.fn.untrusted === true) config.untrusted = true;
    mark(config, node, nodes);
    return config;
  });
  if (unknownDrivers.size > 0) {
    const list = [...unknownDrivers].map(([name, count]) => (count === 1 ? name : `${name} (${count})`)).join(', ');
    notes.push(`drivers that the box does not have are left out: ${list}`);
  }
  const host: HostConfig = {
    name: options.name,
    description: `Imported from ${dump.origin}`,
    iommu: { units: unitsOf(nodes, options.presets) },
    ...(roots.length === 0 ? {} : { roots: [...roots] }),
    functions,
  };
  const groups = new Map(nodes.flatMap(({ name, fn }) => (fn.group === undefined ? [] : [[name, fn.group] as const])));
  return { host, notes, groups };
}

/** Whether ACS control is taken from the dump. */
function acsState(nodes: readonly Node[], wanted: AssembleOptions['acs'], notes: string[]): 'dumped' | 'boot' {
  if (wanted !== 'auto') return wanted;
  const controls = nodes.flatMap((node) => {
    const acs = acsOf(node);
    return acs === undefined || (acs.capability & 0x1d) === 0 ? [] : [acs.control & 0x1d];
  });
  if (controls.length === 0 || controls.some((control) => control !== 0)) return 'dumped';
  notes.push(
    'ACS is off everywhere, as on a machine without an IOMMU in use: taken as Linux switches it on (--acs dumped keeps it)',
  );
  return 'boot';
}

function acsOf({ image }: Node): { capability: number; control: number } | undefined {
  const at = image?.findExtended(reg.PCI_EXT_CAP_ID_ACS) ?? 0;
  if (image === undefined || at === 0) return undefined;
  const fn = { vendor: image.get(0, 2), device: image.get(2, 2), portType: typeOf(image) };
  return { capability: image.get(at + reg.PCI_ACS_CAP, 2), control: image.get(at + acsControlOffset(fn), 2) };
}

function typeOf(image: NonNullable<Node['image']>): number | undefined {
  const at = image.find(reg.PCI_CAP_ID_EXP);
  return at === 0 ? undefined : (image.get(at + reg.PCI_EXP_FLAGS, 2) >> 4) & 0xf;
}

/**
 * Buses other than 0 with an endpoint or switch port (types 0, 1, 5, 6) to which no bridge leads. Virtual machines have such root
 * buses; elsewhere the bridge is missing from the dump.
 */
function tellOfOrphans(nodes: readonly Node[], notes: string[]): void {
  for (const { name, fn, image, parent, physfn } of nodes) {
    if (parent !== undefined || physfn !== undefined || fn.bus === 0 || image === undefined) continue;
    if ([0, 1, 5, 6].includes(typeOf(image) ?? -1)) {
      notes.push(
        `no bridge leads to ${name}: its bus is taken as a root bus (if a bridge is missing from the dump, its groups are not those of the machine)`,
      );
    }
  }
}

/** What the lengths of the dump hide. */
function tellWhatIsMissing(nodes: readonly Node[], notes: string[]): void {
  const bytes = nodes.filter(({ image, physfn }) => image !== undefined && physfn === undefined);
  if (bytes.length < nodes.filter(({ physfn }) => physfn === undefined).length) {
    notes.push(
      'a tree shows no registers: kinds of bridges follow from names and shape, and ports are taken to have ACS',
    );
    return;
  }
  const header = bytes.filter(
    ({ image }) => image!.length < 256 && (image!.get(reg.PCI_STATUS, 2) & reg.PCI_STATUS_CAP_LIST) !== 0,
  );
  if (header.length > 0) {
    notes.push(
      `only the first 64 bytes of ${header.length} functions: what kind they are is guessed, ACS is unknown and taken as missing (as root, lspci -xxxx shows all)`,
    );
  }
  const short = bytes.filter(({ image }) => image!.length === 256 && typeOf(image!) !== undefined);
  if (short.length > 0) {
    notes.push(
      `only 256 bytes of ${short.length} PCI Express functions: their ACS is unknown and taken as missing (lspci -xxxx shows all)`,
    );
  }
}

function fromImage(node: Node, kind: Kind, state: 'dumped' | 'boot'): FunctionConfig {
  const image = node.image!;
  const { bars, addresses, romSize } = barsOf(node.fn, image);
  const options: Record<string, unknown> = { length: image.length, config: image.rows() };
  if (bars.length > 0) options['bars'] = bars;
  if (romSize > 0) options['romSize'] = romSize;
  const acs = acsOf(node);
  if (acs !== undefined && state === 'dumped') {
    const on = ['SV', 'TB', 'RR', 'CR', 'UF', 'EC', 'DT'].filter((_, bit) => ((acs.control >> bit) & 1) === 1);
    options['acsControl'] = on.length === 0 ? 'none' : on.join('|');
  }
  const hasUnseen = image.length < 256 && (image.get(reg.PCI_STATUS, 2) & reg.PCI_STATUS_CAP_LIST) !== 0;
  if (hasUnseen && kind !== 'conventional' && kind !== 'pci-bridge') options['portType'] = kind;
  const virtual = node.numVfs === 0 ? undefined : node.children.find(({ physfn }) => physfn === node);
  const vfBars = virtualBarsOf(node.fn, image);
  if (vfBars.length > 0) options['vfBars'] = vfBars;
  if (virtual?.image !== undefined && virtual.image.length >= 256) options['vfConfig'] = virtual.image.rows();
  return {
    at: shortName(node.name),
    model: 'image',
    options,
    ...placeOf(node),
    ...(Object.keys(addresses).length === 0 ? {} : { bars: addresses }),
    ...(image.get(reg.PCI_INTERRUPT_PIN, 1) === 0 ? {} : { interruptLine: image.get(reg.PCI_INTERRUPT_LINE, 1) }),
    ...(node.numVfs === 0 ? {} : { numVfs: node.numVfs }),
  };
}

function fromTree(node: Node, kind: Kind): FunctionConfig {
  const { text } = node.fn;
  const ids = /\[([0-9a-f]{4}):([0-9a-f]{4})\]|\b([0-9a-f]{4}):([0-9a-f]{4})\b/i.exec(text ?? '');
  const vendor = ids?.[1] ?? ids?.[3];
  const device = ids?.[2] ?? ids?.[4];
  const options: Record<string, unknown> = {};
  if (!node.isBridge) {
    if (vendor !== undefined) Object.assign(options, { vendor: `0x${vendor}`, device: `0x${device}` });
    if (kind === 'endpoint') options['pcie'] = true;
  } else if (kind === 'pci-bridge' && vendor !== undefined) {
    Object.assign(options, { vendor: `0x${vendor}`, device: `0x${device}` });
  }
  return {
    at: shortName(node.name),
    model: node.isBridge ? kind : 'stub',
    ...(Object.keys(options).length === 0 ? {} : { options }),
    ...placeOf(node),
  };
}

function placeOf({ fn, image, behind, parent, children }: Node): Partial<FunctionConfig> {
  const place: Partial<FunctionConfig> = {};
  if (behind !== undefined) {
    place.secondary = behind.secondary;
    if (behind.subordinate > behind.secondary) place.subordinate = behind.subordinate;
  }
  // Linux believes the header of function 0, and takes every other function for one of several.
  if (image !== undefined) {
    const isMarked = (fn.devfn & 7) !== 0 || (image.get(reg.PCI_HEADER_TYPE, 1) & reg.PCI_HEADER_TYPE_MFD) !== 0;
    place.multifunction = isMarked;
  }
  void parent;
  void children;
  return place;
}

/** Adds what Linux knows about such a device. */
function mark(config: FunctionConfig, node: Node, nodes: readonly Node[]): void {
  const { image, fn, parent } = node;
  const quirks: NonNullable<FunctionConfig['quirks']> = {};
  if (image !== undefined) {
    const marked: Marked = {
      vendor: image.get(reg.PCI_VENDOR_ID, 2),
      device: image.get(reg.PCI_DEVICE_ID, 2),
      subsystemVendor: node.isBridge ? 0 : image.get(reg.PCI_SUBSYSTEM_VENDOR_ID, 2),
      subsystemDevice: node.isBridge ? 0 : image.get(reg.PCI_SUBSYSTEM_ID, 2),
      devfn: fn.devfn,
      isBridge: node.isBridge,
      portType: typeOf(image),
      above: parent === undefined ? 'root' : parent.image === undefined ? undefined : typeOf(parent.image),
    };
    const aliases = aliasesOf(marked);
    if (aliases.length > 0) config.dmaAliases = aliases.map(slotText);
    Object.assign(quirks, quirksOf(marked));
    if (isClosedChipset(node, nodes)) quirks.acsOverride = false;
  }
  const real = fn.realDmaDevice ?? vmdOf(node, nodes);
  if (real !== undefined) quirks.realDmaDevice = shortName(real);
  if (Object.keys(quirks).length > 0) config.quirks = quirks;
}

/** A root port of an Intel chipset from before ACS, whose own switches Linux cannot reach: the LPC bridge does not show where they are. */
function isClosedChipset({ fn, image }: Node, nodes: readonly Node[]): boolean {
  if (image === undefined || image.get(0, 2) !== 0x8086 || typeOf(image) !== reg.PCI_EXP_TYPE_ROOT_PORT) return false;
  const series = image.get(2, 2) >> 8;
  if (![0x3b, 0x1c, 0x1d, 0x1e, 0x8c, 0x8d, 0x9c].includes(series)) return false;
  const lpc = nodes.find((one) => one.fn.segment === fn.segment && one.fn.bus === fn.bus && one.fn.devfn === 0xf8);
  return lpc?.image !== undefined && lpc.image.length >= 256 && (lpc.image.get(RCBA, 4) & 1) === 0;
}

/** Linux gives buses of VMD controllers segments from 0x10000 on. With one controller there is no doubt whose they are. */
function vmdOf({ fn }: Node, nodes: readonly Node[]): string | undefined {
  if (fn.segment < 0x10000) return undefined;
  const controllers = nodes.filter(
    ({ image }) => image !== undefined && image.get(0, 2) === 0x8086 && VMD_IDS.includes(image.get(2, 2)),
  );
  return controllers.length === 1 ? controllers[0]!.name : undefined;
}

/** One unit for each that the dump names, with the functions that it serves; else one for all. */
function unitsOf(nodes: readonly Node[], presets: AssembleOptions['presets']): UnitConfig[] {
  const named = new Map<string, string[]>();
  for (const { name, fn } of nodes) {
    if (fn.unit !== undefined) named.set(fn.unit, [...(named.get(fn.unit) ?? []), shortName(name)]);
  }
  const isAmd = nodes.some(({ image, fn }) => image?.get(0, 2) === 0x1022 && fn.bus === 0 && fn.devfn === 0);
  if (named.size === 0) return [{ name: isAmd ? 'ivhd0' : 'dmar0', preset: isAmd ? presets.amd : presets.intel }];
  return [...named]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, functions]) => ({
      name,
      preset: name.startsWith('ivhd') ? presets.amd : presets.intel,
      functions: functions.filter((at) => parseName(at) !== undefined),
    }));
}
