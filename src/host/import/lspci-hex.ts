/**
 * `lspci -xxxx -D` (also -xxx, -x, and with -v, -vv, -vvv, -k, -n, -nn): a line for each function, then 16 bytes a row. Of what -v
 * adds, sizes of BARs, drivers and IOMMU groups are taken.
 */
import { CONFIG_LENGTHS, type Dump, type DumpedFunction, nameOf, parseName, refuse } from './dump.ts';

const HEAD = /^((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]) (.+)$/i;
const ROW = /^([0-9a-f]{2,3}):((?: [0-9a-f]{2}){1,16}) ?$/i;
const UNITS: Readonly<Record<string, number>> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

export function isLspci(text: string): boolean {
  const first = text.split('\n').find((line) => line.trim() !== '' && !line.startsWith('#'));
  return first !== undefined && HEAD.test(first);
}

class Block {
  readonly line: number;
  readonly name: string;
  readonly text: string;
  readonly bytes: number[] = [];
  readonly sizes = new Map<number, number>();
  /** BARs as -v lists them, without their numbers. */
  readonly unnumbered: number[] = [];
  driver: string | undefined;
  group: number | undefined;
  /** BARs of virtual functions follow; they are not the function's own. */
  isInSriov = false;
  lastRow = 0;

  constructor(line: number, name: string, text: string) {
    this.line = line;
    this.name = name;
    this.text = text;
  }
}

export function readLspci(text: string, origin: string): Dump {
  const functions: DumpedFunction[] = [];
  let block: Block | undefined;
  const finish = (): void => {
    if (block !== undefined) functions.push(functionOf(block, origin));
    block = undefined;
  };
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    const where = `${origin}:${i + 1}`;
    if (line.startsWith('#')) continue;
    if (line.trim() === '') {
      finish();
      continue;
    }
    const head = HEAD.exec(line);
    if (head !== null) {
      finish();
      block = new Block(i + 1, head[1]!, head[2]!);
      continue;
    }
    const row = ROW.exec(line);
    if (block === undefined)
      refuse(where, `expected a function such as "0000:00:1f.0 ISA bridge: …", found '${shown(line)}'`);
    else if (row !== null) addRow(block, row, where);
    else if (/^\s/.test(line)) addDetail(block, line.trim());
    else
      refuse(
        where,
        `'${shown(line)}' is no line of lspci: neither a function, nor bytes, nor something about ${block.name}`,
      );
  }
  finish();
  return { origin, functions };
}

const shown = (line: string): string =>
  (line.length > 60 ? `${line.slice(0, 60)}…` : line).replace(/[^\x20-\x7e…]/g, '?');

function addRow(block: Block, row: RegExpExecArray, where: string): void {
  const offset = Number.parseInt(row[1]!, 16);
  const bytes = row[2]!.trim().split(' ');
  if (offset !== block.bytes.length) {
    refuse(
      where,
      `row ${row[1]} of ${block.name} follows ${block.bytes.length} bytes: a row is missing or out of order`,
    );
  }
  if (bytes.length !== 16)
    refuse(where, `row ${row[1]} of ${block.name} has ${bytes.length} bytes of 16: the dump is cut off`);
  block.bytes.push(...bytes.map((byte) => Number.parseInt(byte, 16)));
  block.lastRow = Number(where.slice(where.lastIndexOf(':') + 1));
}

function addDetail(block: Block, line: string): void {
  const group = /^(?:IOMMU group: |Flags: .*\bIOMMU group )(\d+)$/.exec(line); // -vv has a line of its own, -v a flag
  if (group !== null) block.group = Number(group[1]);
  const driver = /^Kernel driver in use: (\S+)$/.exec(line);
  if (driver !== null) block.driver = driver[1];
  if (/^Capabilities: .*SR-IOV/.test(line)) block.isInSriov = true;
  else if (/^Capabilities:/.test(line)) block.isInSriov = false;
  const size = /\[size=(\d+)([KMGT]?)\]/.exec(line);
  if (size === null || block.isInSriov) return;
  const bytes = Number(size[1]) * UNITS[size[2]!]!;
  const region = /^Region (\d):/.exec(line);
  if (/^(?:\[virtual\] )?Expansion ROM/.test(line)) block.sizes.set(6, bytes);
  else if (region !== null) block.sizes.set(Number(region[1]), bytes);
  else if (/^(?:\[virtual\] )?(?:Memory|I\/O ports) at/.test(line)) block.unnumbered.push(bytes);
}

function functionOf(block: Block, origin: string): DumpedFunction {
  const { name, bytes } = block;
  const where = `${origin}:${block.line}`;
  const address = parseName(name)!;
  if (bytes.length === 0) {
    refuse(where, `no bytes follow ${name}: make the dump with lspci -xxxx -D (as root), or it is cut off`);
  }
  if (!CONFIG_LENGTHS.includes(bytes.length)) {
    refuse(
      `${origin}:${block.lastRow}`,
      `${nameOf(address)} ends after 0x${bytes.length.toString(16)} bytes; configuration space has 0x40, 0x80, 0x100 or 0x1000: the dump is cut off`,
    );
  }
  const config = Uint8Array.from(bytes);
  return {
    ...address,
    where,
    config,
    sizes: block.sizes.size > 0 ? block.sizes : numbered(config, block.unnumbered),
    driver: block.driver,
    group: block.group,
    text: block.text,
  };
}

/** -v lists BARs in their order but not their numbers: those that have an address, one after the other. */
function numbered(config: Uint8Array, sizes: readonly number[]): Map<number, number> {
  const result = new Map<number, number>();
  const view = new DataView(config.buffer, config.byteOffset);
  const end = (config[0x0e]! & 0x7f) === 1 ? 2 : 6;
  let next = 0;
  for (let index = 0; index < end && next < sizes.length; index++) {
    const value = view.getUint32(0x10 + 4 * index, true);
    if (value === 0) continue;
    result.set(index, sizes[next++]!);
    if ((value & 7) === 4) index++;
  }
  return result;
}
