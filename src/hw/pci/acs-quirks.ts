/**
 * Functions whose maker has said more about isolation than their ACS capability does (Linux 7.2, drivers/pci/quirks.c): identity,
 * condition and what was said, as data.
 */
import * as reg from '../../uapi/pci-regs.ts';
import type { AcsState, TopologyFunction } from './topology.ts';

type Ids = readonly (number | readonly [first: number, last: number])[];

interface Row {
  readonly vendor: number;
  /** Absent: every device of this vendor that meets the condition. */
  readonly devices?: Ids;
  readonly types?: readonly number[];
  readonly condition?: (fn: TopologyFunction) => boolean;
  readonly isIsolated: boolean;
  readonly why: string;
}

const ENDPOINT = 'its functions do not reach each other (maker)';
const PORT = 'the port keeps requests from its neighbours without ACS (maker)';
const rootPort = [reg.PCI_EXP_TYPE_ROOT_PORT];
const ports = [reg.PCI_EXP_TYPE_ROOT_PORT, reg.PCI_EXP_TYPE_DOWNSTREAM];

const endpoints = (vendor: number, ...devices: (number | readonly [number, number])[]): Row => ({
  vendor,
  devices,
  isIsolated: true,
  why: ENDPOINT,
});
const portsOf = (vendor: number, types: readonly number[] | undefined, ...devices: Ids): Row => ({
  vendor,
  devices,
  ...(types === undefined ? {} : { types }),
  isIsolated: true,
  why: PORT,
});
const isSouthbridge = (fn: TopologyFunction): boolean => fn.multifunction && fn.bus.isRoot;

const rows: readonly Row[] = [
  {
    vendor: 0x1002,
    devices: [0x4383, 0x4384, 0x4385, 0x4399, 0x439c, 0x439d],
    condition: isSouthbridge,
    isIsolated: true,
    why: 'functions of this southbridge send everything to the root complex (maker)',
  },
  {
    vendor: 0x1022,
    devices: [0x7809, 0x780f],
    condition: isSouthbridge,
    isIsolated: true,
    why: 'functions of this southbridge send everything to the root complex (maker)',
  },
  endpoints(0x1924, 0x0903, 0x0923, 0x0a03),
  endpoints(0x8086, 0x10c6, 0x10db, 0x10dd, 0x10e1, 0x10f1, [0x10f7, 0x10fc], 0x1507, 0x1514, 0x151c, 0x1529, 0x152a),
  endpoints(0x8086, 0x154d, 0x154f, 0x1551, 0x1558, 0x1509, [0x150d, 0x1511], 0x1516, 0x1527, 0x10c9, [0x10e6, 0x10e8]),
  endpoints(0x8086, 0x150a, 0x1518, 0x1526, 0x10a7, 0x10a9, 0x10d6, [0x1521, 0x1524], [0x105e, 0x1060], 0x10d9),
  endpoints(0x8086, 0x15b7, 0x15b8),
  {
    vendor: 0x8086,
    types: [reg.PCI_EXP_TYPE_RC_END],
    isIsolated: true,
    why: "Intel's integrated endpoints reach each other by translated addresses only (VT-d 3.16)",
  },
  portsOf(0x17cb, undefined, 0x0400, 0x0401, 0x0115, 0x0111, 0x0120),
  portsOf(0x1dbf, undefined, 0x0401),
  {
    vendor: 0x8086,
    types: rootPort,
    devices: [
      [0x3b42, 0x3b51],
      [0x1c10, 0x1c1f],
      [0x1e10, 0x1e1f],
      [0x8c10, 0x8c1f],
      [0x9c10, 0x9c1b],
      [0x9c90, 0x9c9b],
      ...[0x1d10, 0x1d12, 0x1d14, 0x1d16, 0x1d18, 0x1d1a, 0x1d1c, 0x1d1e],
      [0x8d10, 0x8d1e],
      ...[0x8c90, 0x8c92, 0x8c94, 0x8c96, 0x8c98, 0x8c9a, 0x8c9c, 0x8c9e],
    ],
    isIsolated: true,
    why: 'the chipset has switches of its own for what ACS does, and Linux sets them (Intel PCH)',
  },
  endpoints(0x19a2, 0x0710),
  endpoints(0x10df, 0x0720),
  portsOf(0x177d, rootPort, [0xa000, 0xa7ff], 0xaf84, 0xb884),
  endpoints(0x177d, 0xa026, 0xa059, 0xa060),
  portsOf(0x10e8, undefined, 0xe004),
  portsOf(0x1def, undefined, [0xe005, 0xe00c]),
  endpoints(0x14e4, 0x16d7, [0x1750, 0x1752], [0x1760, 0x1763]),
  portsOf(0x14e4, undefined, 0xd714),
  portsOf(0x0014, undefined, 0x3c09, 0x3c19, 0x3c29, 0x7a09, 0x7a19, 0x7a29, 0x7a39, 0x7a49, 0x7a59, 0x7a69),
  portsOf(0x1c36, rootPort, 0x0031),
  endpoints(0x1d17, 0x3038, 0x3104, 0x9083),
  portsOf(0x1957, undefined, [0x8d80, 0x8d83], [0x8d88, 0x8d8b], [0x8d90, 0x8d93], [0x8d98, 0x8d9b]),
  portsOf(0x1957, undefined, 0x8da0, 0x8da1, 0x8da8, 0x8da9, 0x8db0, 0x8db1, 0x8db8, 0x8db9),
  portsOf(0x1d17, ports, [0x0710, 0x071e], 0x0721, [0x0723, 0x0752]),
  {
    vendor: 0x1d17,
    types: ports,
    isIsolated: false,
    why: 'other ports of this maker must have ACS and its table says no',
  },
  endpoints(0x8088, [0x0100, 0x010f], 0x1001, 0x2001, 0x5010, 0x5025, 0x5040, 0x5110, 0x5125, 0x5140),
];

const byVendor = new Map<number, Row[]>();
for (const row of rows) byVendor.set(row.vendor, [...(byVendor.get(row.vendor) ?? []), row]);

/** What the tables say of `fn`; undefined when they say nothing and its registers count. */
export function isolationQuirk(
  fn: TopologyFunction,
): { readonly isIsolated: boolean; readonly why: string } | undefined {
  return byVendor
    .get(fn.vendor)
    ?.find(
      (row) =>
        (row.devices === undefined || includes(row.devices, fn.device)) &&
        (row.types === undefined || (fn.portType !== undefined && row.types.includes(fn.portType))) &&
        (row.condition?.(fn) ?? true),
    );
}

/** Root ports of 100- and 200-series chipsets, whose ACS registers are 32 bits wide, so that control is at 8 instead of 6. */
const wideAcs: Ids = [
  [0xa110, 0xa11f],
  [0xa167, 0xa16a],
  [0xa290, 0xa29f],
  [0xa2e7, 0xa2ee],
  [0x9d10, 0x9d1b],
];

/** Where the control register is, counted from the start of the ACS capability. */
export function acsControlOffset(fn: Pick<TopologyFunction, 'vendor' | 'device' | 'portType'>): number {
  const isWide = fn.vendor === 0x8086 && fn.portType === reg.PCI_EXP_TYPE_ROOT_PORT && includes(wideAcs, fn.device);
  return isWide ? reg.PCI_ACS_CAP + 4 : reg.PCI_ACS_CTRL;
}

function includes(ids: Ids, id: number): boolean {
  return ids.some((one) => (typeof one === 'number' ? one === id : one[0] <= id && id <= one[1]));
}

/** The registers behind `AcsState`, or undefined when `config` has no such capability. */
export function readAcs(
  fn: Pick<TopologyFunction, 'vendor' | 'device' | 'portType'>,
  config: { findExtended(id: number): number; get(offset: number, size: 1 | 2 | 4): number },
): AcsState | undefined {
  const at = config.findExtended(reg.PCI_EXT_CAP_ID_ACS);
  if (at === 0) return undefined;
  return { capability: config.get(at + reg.PCI_ACS_CAP, 2), control: config.get(at + acsControlOffset(fn), 2) };
}
