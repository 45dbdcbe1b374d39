/**
 * A copied /sys/bus/pci/devices: a folder for each function with `config`, `resource` and the like (docs/groups.md has the
 * commands). Links are read by their names: what they lead to need not have been copied.
 */
import { existsSync, lstatSync, readdirSync, readFileSync, readlinkSync, realpathSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { CONFIG_LENGTHS, type Dump, type DumpedFunction, parseName, parseResources, refuse } from './dump.ts';
import { standInOf } from './stand-in.ts';

/** Where the functions may be, seen from the folder that was named. */
const BELOW = ['', 'devices', 'bus/pci/devices', 'sys/bus/pci/devices', 'pci/devices'];

/** More than any machine has; a folder with more is something else. */
const ENTRIES_AT_MOST = 65536;

export function readSysfs(folder: string): Dump {
  for (const below of BELOW) {
    const path = join(folder, below);
    if (!existsSync(path) || !statSync(path).isDirectory()) continue;
    const names = readdirSync(path).filter((name) => parseName(name) !== undefined);
    if (names.length === 0 || names.length > ENTRIES_AT_MOST) continue;
    return { origin: folder, functions: names.sort().map((name) => readFunction(join(path, name), name)) };
  }
  return refuse(folder, 'no folder of a PCI function (such as 0000:00:1f.0) in it, as in /sys/bus/pci/devices');
}

function readFunction(path: string, name: string): DumpedFunction {
  if (!existsSync(path))
    refuse(
      path,
      'is a link that leads nowhere: copy the folders that the links of /sys/bus/pci/devices lead to (docs/groups.md)',
    );
  const config = bytesOf(join(path, 'config'));
  if (config === undefined)
    refuse(join(path, 'config'), `${name} has no configuration space: the copy is not complete`);
  if (!CONFIG_LENGTHS.includes(config.length)) {
    refuse(
      join(path, 'config'),
      `configuration space has ${CONFIG_LENGTHS.join(', ')} bytes, not ${config.length}: the copy is cut off`,
    );
  }
  const isVirtfn = linkName(join(path, 'physfn')) !== undefined || existsSync(join(path, 'physfn'));
  checkIds(path, config, isVirtfn);
  const resource = textOf(join(path, 'resource'));
  const group = linkName(join(path, 'iommu_group'));
  return {
    ...parseName(name)!,
    where: path,
    config,
    ...(resource === undefined ? {} : { resources: parseResources(resource, join(path, 'resource')) }),
    driver: linkName(join(path, 'driver')) ?? /^DRIVER=(\S+)$/m.exec(textOf(join(path, 'uevent')) ?? '')?.[1],
    group: group !== undefined && /^\d+$/.test(group) ? Number(group) : undefined,
    unit: linkName(join(path, 'iommu')),
    isVirtfn,
    realDmaDevice: standInOf(placeOf(path)),
    untrusted: (textOf(join(path, 'untrusted')) ?? '0').trim() === '1',
  };
}

/** What the small files say must be what the bytes say. */
function checkIds(path: string, config: Uint8Array, isVirtfn: boolean): void {
  if (isVirtfn) return;
  for (const [file, at] of [
    ['vendor', 0],
    ['device', 2],
  ] as const) {
    const text = textOf(join(path, file));
    if (text === undefined) continue;
    const value = config[at]! | (config[at + 1]! << 8);
    if (Number.parseInt(text.trim(), 16) !== value) {
      refuse(
        join(path, file),
        `contradicts config: ${text.trim()} here, 0x${value.toString(16).padStart(4, '0')} there`,
      );
    }
  }
}

/** The path of a function: of the link if it is one, where the copy has it otherwise. */
function placeOf(path: string): string {
  return lstatSync(path).isSymbolicLink() ? realpathSync(path) : path;
}

/** The last part of a link's target; undefined when the copying made a folder of it, which has lost the name. */
function linkName(path: string): string | undefined {
  try {
    return basename(readlinkSync(path));
  } catch {
    return undefined;
  }
}

function bytesOf(path: string): Uint8Array | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined;
  }
}

function textOf(path: string): string | undefined {
  const bytes = bytesOf(path);
  return bytes === undefined ? undefined : new TextDecoder().decode(bytes);
}
