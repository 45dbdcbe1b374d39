/**
 * Machines as facts (topology, ids, capability bits), and the three ways in which people write them down: `lspci -xxxx -D`, umockdev's
 * dump, a copied /sys/bus/pci/devices.
 */
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Fact {
  /** `0000:01:00.0` */
  at: string;
  /** `10de:13c2` */
  id: string;
  /** `030000` */
  class: string;
  text?: string;
  /** PCI Express port type; absent: conventional PCI. */
  type?: number;
  /** A slot is behind the port. */
  slot?: boolean;
  /** Secondary and subordinate bus: a bridge. */
  bus?: [secondary: number, subordinate: number];
  /** ACS capability and control; `wide`: both 32 bits, as some Intel chipsets have them. */
  acs?: { cap: number; ctrl: number; wide?: boolean };
  sriov?: { total: number; num: number; offset: number; stride: number; device: number };
  /** Multifunction bit of the header. */
  mf?: boolean;
  /** Registers of BARs, with the size. */
  bars?: { index: number; value: number; high?: number; size: number }[];
  /** MSI-X: vectors, table and pending bits as the registers have them. */
  msix?: { vectors: number; table: number; pba: number };
  msi?: boolean;
  /** Further bytes: offset and value of 32 bits. */
  words?: [offset: number, value: number][];
  driver?: string;
  /** The group in which Linux has it. */
  group?: number;
  unit?: string;
  physfn?: string;
  /** A folder in /sys/devices other than that of the bridge above: the controller in front of a root bus. */
  above?: string;
  untrusted?: boolean;
}

const ids = (fact: Fact): [number, number] =>
  fact.id.split(':').map((part) => Number.parseInt(part, 16)) as [number, number];

/** The 256 or 4096 bytes of a function. */
export function configOf(fact: Fact): Uint8Array {
  const bytes = new Uint8Array(fact.type === undefined ? 256 : 4096);
  const view = new DataView(bytes.buffer);
  const [vendor, device] = ids(fact);
  const classCode = Number.parseInt(fact.class, 16);
  const [segmentBus] = [fact.at.split(':')];
  const isVirtfn = fact.physfn !== undefined;
  view.setUint16(0, isVirtfn ? 0xffff : vendor, true);
  view.setUint16(2, isVirtfn ? 0xffff : device, true);
  view.setUint16(4, 0x0006, true);
  view.setUint32(8, classCode * 256 + 5, true);
  bytes[0x0e] = (fact.bus === undefined ? 0 : 1) | (fact.mf ? 0x80 : 0);
  for (const { index, value, high } of fact.bars ?? []) {
    view.setUint32(0x10 + 4 * index, value, true);
    if (high !== undefined) view.setUint32(0x14 + 4 * index, high, true);
  }
  if (fact.bus !== undefined) {
    bytes[0x18] = Number.parseInt(segmentBus[1]!, 16);
    [bytes[0x19], bytes[0x1a]] = fact.bus;
  } else {
    view.setUint16(0x2c, vendor, true);
    view.setUint16(0x2e, 0x1234, true);
  }
  standardCapabilities(fact, view);
  if (fact.type !== undefined) extendedCapabilities(fact, view);
  for (const [offset, value] of fact.words ?? []) view.setUint32(offset, value, true);
  return bytes;
}

function standardCapabilities(fact: Fact, view: DataView): void {
  let link = 0x34;
  const add = (at: number, id: number): void => {
    view.setUint8(link, at);
    view.setUint8(at, id);
    link = at + 1;
    view.setUint16(6, 0x0010, true);
  };
  if (fact.type !== undefined || fact.msi || fact.msix) {
    add(0x40, 0x01);
    view.setUint16(0x42, 0x0003, true);
    view.setUint16(0x44, 0x0008, true);
  }
  if (fact.msi) {
    add(0x50, 0x05);
    view.setUint16(0x52, 0x0080, true);
  }
  if (fact.type !== undefined) {
    add(0x60, 0x10);
    view.setUint16(0x62, 2 | (fact.type << 4) | (fact.slot ? 0x100 : 0), true);
    view.setUint32(0x64, fact.type === 0 ? 0x10008001 : 0x00008001, true);
    view.setUint32(0x6c, 0x00400103, true);
    view.setUint16(0x72, 0x0101, true);
  }
  if (fact.msix !== undefined) {
    add(0xa0, 0x11);
    view.setUint16(0xa2, fact.msix.vectors - 1, true);
    view.setUint32(0xa4, fact.msix.table, true);
    view.setUint32(0xa8, fact.msix.pba, true);
  }
}

function extendedCapabilities(fact: Fact, view: DataView): void {
  const list: [id: number, at: number][] = [[0x01, 0x100]];
  if (fact.acs !== undefined) list.push([0x0d, 0x150]);
  if (fact.sriov !== undefined) list.push([0x10, 0x160]);
  list.forEach(([id, at], i) => {
    view.setUint32(at, id | 0x10000 | ((list[i + 1]?.[1] ?? 0) << 20), true);
  });
  if (fact.acs !== undefined) {
    view.setUint16(0x154, fact.acs.cap, true);
    view.setUint16(fact.acs.wide ? 0x158 : 0x156, fact.acs.ctrl, true);
  }
  if (fact.sriov !== undefined) {
    const { total, num, offset, stride, device } = fact.sriov;
    view.setUint16(0x168, num > 0 ? 0x0009 : 0, true);
    [total, total, num].forEach((value, i) => {
      view.setUint16(0x16c + 2 * i, value, true);
    });
    view.setUint16(0x174, offset, true);
    view.setUint16(0x176, stride, true);
    view.setUint16(0x17a, device, true);
    view.setUint32(0x17c, 0x553, true);
    view.setUint32(0x180, 1, true);
    view.setUint32(0x184, 0xc000000c, true);
    view.setUint32(0x188, 0x00000020, true);
  }
}

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');

/** As `lspci -xxxx -D`; with -v if `verbose`. `bytes` cuts as -xxx (256) and -x (64) do. */
export function toLspci(facts: readonly Fact[], { verbose = false, bytes = 4096 } = {}): string {
  const blocks = facts.map((fact, i) => {
    const lines = [`${fact.at} ${fact.text ?? `Class ${fact.class}: Device ${fact.id}`} (rev 05)`];
    if (verbose) {
      for (const { value, size } of fact.bars ?? []) {
        const unit = size >= 2 ** 20 ? `${size / 2 ** 20}M` : size >= 1024 ? `${size / 1024}K` : `${size}`;
        if ((value & 1) === 1) lines.push(`\tI/O ports at ${hex(value & ~3, 4)} [size=${unit}]`);
        else lines.push(`\tMemory at ${hex((value & ~15) >>> 0, 8)} (64-bit, prefetchable) [size=${unit}]`);
      }
      const isFlag = i % 2 === 0; // as with -v; the others as with -vv
      if (fact.group !== undefined)
        lines.push(isFlag ? `\tFlags: fast devsel, IOMMU group ${fact.group}` : `\tIOMMU group: ${fact.group}`);
      if (fact.driver !== undefined) lines.push(`\tKernel driver in use: ${fact.driver}`);
    }
    const config = configOf(fact).subarray(0, bytes);
    for (let at = 0; at < config.length; at += 16) {
      const row = [...config.subarray(at, at + 16)].map((byte) => hex(byte, 2)).join(' ');
      lines.push(`${hex(at, 2)}: ${row}`);
    }
    return lines.join('\n');
  });
  return `${blocks.join('\n\n')}\n`;
}

/** The lines of `resource`. */
function resourcesOf(fact: Fact): string {
  const lines = Array.from({ length: 13 }, () => [0, 0]);
  for (const { index, value, high, size } of fact.bars ?? []) {
    const start = (value & 1) === 1 ? value & ~3 : ((value & ~15) >>> 0) + (high ?? 0) * 2 ** 32;
    lines[index] = [start, start + size - 1];
  }
  if (fact.sriov !== undefined) lines[7] = [0x20c0000000, 0x20c0000000 + fact.sriov.total * 16384 - 1];
  return lines.map(([first, last]) => `0x${hex(first!, 16)} 0x${hex(last!, 16)} 0x${hex(0x200, 16)}\n`).join('');
}

function pathsOf(facts: readonly Fact[]): Map<string, string> {
  const paths = new Map<string, string>();
  for (const fact of facts) {
    const [segment, bus] = fact.at.split(':') as [string, string];
    const over = facts.find((one) => one.at.startsWith(`${segment}:`) && one.bus?.[0] === Number.parseInt(bus, 16));
    const behind = over === undefined ? undefined : paths.get(over.at);
    const root = fact.above === undefined ? '/devices' : paths.get(fact.above)!;
    const parent = fact.physfn === undefined ? behind : paths.get(fact.physfn)!.replace(/\/[^/]*$/, '');
    paths.set(fact.at, `${parent ?? `${root}/pci${segment}:${bus}`}/${fact.at}`);
  }
  return paths;
}

export function toUmockdev(facts: readonly Fact[]): string {
  const paths = pathsOf(facts);
  const blocks = facts.map((fact) => {
    const [vendor, device] = ids(fact);
    const lines = [
      `P: ${paths.get(fact.at)}`,
      'E: SUBSYSTEM=pci',
      ...(fact.driver === undefined ? [] : [`E: DRIVER=${fact.driver}`]),
      `E: PCI_CLASS=${fact.class.replace(/^0+/, '').toUpperCase()}`,
      `E: PCI_ID=${fact.id.toUpperCase()}`,
      `E: PCI_SLOT_NAME=${fact.at}`,
      `A: class=0x${fact.class}`,
      `A: vendor=0x${hex(vendor, 4)}`,
      `A: device=0x${hex(device, 4)}`,
      `A: resource=${resourcesOf(fact).replace(/\n/g, '\\n')}`,
      `H: config=${Buffer.from(configOf(fact)).toString('hex').toUpperCase()}`,
      ...(fact.group === undefined ? [] : [`L: iommu_group=../../../kernel/iommu_groups/${fact.group}`]),
      ...(fact.unit === undefined ? [] : [`L: iommu=../../virtual/iommu/${fact.unit}`]),
      ...(fact.physfn === undefined ? [] : [`L: physfn=../${fact.physfn}`]),
    ];
    return lines.join('\n');
  });
  const other = 'P: /devices/system/cpu/cpu0\nE: SUBSYSTEM=cpu\nA: online=1';
  return `${[...blocks, other].join('\n\n')}\n`;
}

/** A copy of /sys/bus/pci/devices with its links, as tar makes one. */
export function toSysfs(facts: readonly Fact[], folder: string): string {
  const paths = pathsOf(facts);
  const devices = join(folder, 'bus/pci/devices');
  mkdirSync(devices, { recursive: true });
  for (const fact of facts) {
    const path = join(folder, paths.get(fact.at)!);
    const [vendor, device] = ids(fact);
    mkdirSync(path, { recursive: true });
    writeFileSync(join(path, 'config'), configOf(fact));
    writeFileSync(join(path, 'resource'), resourcesOf(fact));
    writeFileSync(join(path, 'vendor'), `0x${hex(vendor, 4)}\n`);
    writeFileSync(join(path, 'device'), `0x${hex(device, 4)}\n`);
    writeFileSync(join(path, 'class'), `0x${fact.class}\n`);
    if (fact.untrusted) writeFileSync(join(path, 'untrusted'), '1\n');
    if (fact.driver !== undefined) symlinkSync(`../../../bus/pci/drivers/${fact.driver}`, join(path, 'driver'));
    if (fact.group !== undefined) symlinkSync(`../../../kernel/iommu_groups/${fact.group}`, join(path, 'iommu_group'));
    if (fact.unit !== undefined) symlinkSync(`../../virtual/iommu/${fact.unit}`, join(path, 'iommu'));
    if (fact.physfn !== undefined) symlinkSync(join(folder, paths.get(fact.physfn)!), join(path, 'physfn'));
    symlinkSync(join('../../..', paths.get(fact.at)!), join(devices, fact.at));
  }
  return devices;
}
