/**
 * A real machine as a host file: from a copied sysfs, from lspci's bytes, from umockdev's dump, from a tree. What comes out was built
 * once as a machine, and its groups compared with those that the dump names.
 */
import { readFileSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { ConfigImage } from '../../hw/devices/stub/config-image.ts';
import { ManualClock } from '../../hw/pci/clock.ts';
import { allHostDrivers } from '../../kernel/drivers/host-drivers.ts';
import * as reg from '../../uapi/pci-regs.ts';
import { fullAddress, type HostConfig, HostFileError, loadHost, presetNames } from '../host-file.ts';
import { Machine } from '../machine.ts';
import { type Assembled, type AssembleOptions, assemble } from './assemble.ts';
import { type Dump, type DumpedFunction, nameOf, refuse } from './dump.ts';
import { isLspci, readLspci } from './lspci-hex.ts';
import { isTree, readTree } from './lspci-tree.ts';
import { readSysfs } from './sysfs-folder.ts';
import { isUmockdev, readUmockdev } from './umockdev.ts';

export interface Imported {
  readonly host: HostConfig;
  /** Sentences for the person. */
  readonly notes: readonly string[];
}

export interface ImportOptions {
  readonly name?: string | undefined;
  readonly acs?: AssembleOptions['acs'] | undefined;
}

/** Text longer than any dump of a machine. */
const BYTES_AT_MOST = 256 * 2 ** 20;

/** HostFileError, with the line: it cannot be read, is no dump, is cut off, or contradicts itself. */
export function importHost(source: string, options: ImportOptions = {}): Imported {
  const assembled = assemble(readDump(source), {
    name: options.name ?? nameFor(source),
    acs: options.acs ?? 'auto',
    drivers: [...allHostDrivers().map(({ name }) => name), 'vfio-pci'],
    presets: { intel: 'vtd-legacy-sc', amd: 'vtd-legacy-sc' },
  });
  return finish(assembled);
}

function readDump(source: string): Dump {
  let text: string;
  try {
    const stat = statSync(source);
    if (stat.isDirectory()) return readSysfs(source);
    if (!stat.isFile() && !stat.isFIFO()) refuse(source, 'is neither a file nor a folder');
    if (stat.size > BYTES_AT_MOST) refuse(source, `has ${stat.size} bytes, more than a dump of a machine`);
    text = readFileSync(source, 'utf8');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === undefined) throw error;
    return refuse(source, code === 'ENOENT' ? 'there is no such file or folder' : `cannot be read: ${code}`);
  }
  return readDumpText(text, source);
}

function readDumpText(text: string, origin: string): Dump {
  if (isUmockdev(text)) return whole(readUmockdev(text, origin));
  if (isTree(text)) return readTree(text, origin);
  if (isLspci(text)) return whole(readLspci(text, origin));
  if (text.trim() === '') return refuse(origin, 'is empty');
  const line = text.split('\n').findIndex((one) => one.trim() !== '' && !one.startsWith('#')) + 1;
  return refuse(
    `${origin}:${line}`,
    'this is no dump of PCI devices: neither lspci -xxxx -D, nor lspci -t, nor umockdev-record, nor a copied /sys/bus/pci/devices',
  );
}

/** A dump shows as much of its last function as of the others, or it was cut off there. */
function whole(dump: Dump): Dump {
  const last = dump.functions.at(-1);
  const length = last?.config?.length ?? 0;
  const isExpress = (fn: DumpedFunction): boolean => new ConfigImage(fn.config!).find(reg.PCI_CAP_ID_EXP) !== 0;
  const others = dump.functions.slice(0, -1).filter((fn) => fn.config !== undefined && fn.config.length > length);
  const isCut = length === 64 ? others.length > 0 : length === 256 && isExpress(last!) && others.some(isExpress);
  if (isCut) {
    const name = nameOf(last!);
    refuse(last!.where, `${name} is the last one and has ${length} bytes, others have more: the dump is cut off`);
  }
  return dump;
}

function nameFor(source: string): string {
  return basename(source.replace(/\/+$/, '')).replace(/\.[a-z]+$/i, '') || 'imported';
}

/** Builds the machine as programs would get it; where the addresses of the dump do not fit together, firmware chooses them. */
function finish({ host, notes: found, groups }: Assembled): Imported {
  const notes = [...found];
  let machine: Machine;
  try {
    machine = build(host);
  } catch (error) {
    if (!(error instanceof HostFileError)) throw error;
    for (const fn of host.functions) delete fn.bars;
    machine = build(host);
    notes.push(`addresses of BARs are chosen anew: ${error.message}`);
  }
  if (groups.size > 0) notes.push(compare(host, machine, groups));
  return { host, notes };
}

function build(host: HostConfig): Machine {
  return new Machine(host, {
    clock: new ManualClock(),
    allocateShared: (_name, length) => {
      const memory = new Uint8Array(length);
      return { length, bytes: () => memory, revoke() {}, restore() {}, close() {} };
    },
    log() {},
  });
}

/** Says whether the groups are those of the dump; if they are, they keep their numbers. */
function compare(host: HostConfig, machine: Machine, dumped: ReadonlyMap<string, number>): string {
  const computed = new Map<number, string[]>();
  for (const fn of machine.functions()) {
    const id = machine.iommu.groupOf(fn)?.id;
    if (id !== undefined && dumped.has(fn.name)) computed.set(id, [...(computed.get(id) ?? []), fn.name]);
  }
  const textOf = (groups: Iterable<string[]>): Set<string> =>
    new Set(
      [...groups].map((names) =>
        names
          .map((name) => name.replace(/^0000:/, ''))
          .sort()
          .join(' '),
      ),
    );
  const real = new Map<number, string[]>();
  for (const [name, id] of dumped) real.set(id, [...(real.get(id) ?? []), name]);
  const [ours, theirs] = [textOf(computed.values()), textOf(real.values())];
  const differing = [...theirs].filter((names) => !ours.has(names));
  if (differing.length > 0) {
    return `groups differ from those of the dump: there are no groups {${differing.slice(0, 5).join('}, {')}} here${differing.length > 5 ? ', …' : ''}; host groups --why tells which rules apply`;
  }
  const founders = new Map<string, number>();
  for (const names of computed.values()) founders.set(names[0]!, dumped.get(names[0]!)!);
  for (const fn of host.functions) {
    const id = founders.get(fullAddress(fn.at));
    if (id !== undefined) fn.group = id;
  }
  return `groups: ${theirs.size}, the same as in the dump`;
}

/**
 * What `--host` takes: a preset, a host file, or any dump that `importHost` reads. HostFileError.
 */
export function loadHostOrDump(nameOrPath: string): HostConfig {
  if (presetNames().includes(nameOrPath) || !isDump(nameOrPath)) return loadHost(nameOrPath);
  return importHost(nameOrPath).host;
}

function isDump(path: string): boolean {
  try {
    const stat = statSync(path);
    if (stat.isDirectory()) return true;
    if (/\.(?:json|ya?ml)$/.test(path) || !stat.isFile() || stat.size > BYTES_AT_MOST) return false;
    const text = readFileSync(path, 'utf8');
    return isUmockdev(text) || isTree(text) || isLspci(text);
  } catch {
    return false;
  }
}
