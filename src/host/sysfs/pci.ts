/**
 * /sys/devices/pci… and /sys/bus/pci/devices: what programs read of a PCI function.
 *
 * Formats are those of Linux' drivers/pci/pci-sysfs.c; what a live file says is computed when it is opened.
 */

import type { PciFunction } from '../../hw/pci/function.ts';
import type { Bus } from '../../hw/pci/tree.ts';
import { Errno } from '../../lib/errno.ts';
import { functionPath } from './function-path.ts';
import { unsigned } from './numbers.ts';
import { addSriovFiles, linkVirtualFunction, type SriovControl, unlinkVirtualFunction } from './sriov.ts';
import { type SysfsTree, text } from './tree.ts';

const IORESOURCE_IO = 0x100;
const IORESOURCE_MEM = 0x200;
const IORESOURCE_PREFETCH = 0x2000;
const IORESOURCE_READONLY = 0x4000;
const IORESOURCE_SIZEALIGN = 0x40000;
const IORESOURCE_MEM_64 = 0x100000;

const hex4 = (value: number): string => `0x${value.toString(16).padStart(4, '0')}\n`;
const hex16 = (value: number | bigint): string => `0x${value.toString(16).padStart(16, '0')}`;

/** What binding a driver by name may do; throws Errno. */
export interface DriverControl extends SriovControl {
  /** The driver that has the function and does not let go of it at this moment. */
  driverOf(fn: PciFunction): string | undefined;
  /** The driver that has the function, also while it lets go. */
  holderOf(fn: PciFunction): string | undefined;
  overrideOf(fn: PciFunction): string | undefined;
  setOverride(fn: PciFunction, name: string | undefined): void;
  /** The kernel forgets the function. Blocked, with `result`: a program holds it. */
  remove(fn: PciFunction, result: number): void;
  /** Finds what stands in the slots of a bus, and below. Blocked, with `result`: a removal is under way. */
  rescan(bus: Bus | undefined, result: number): void;
}

function resourceLine(start: number, size: number, flags: number): string {
  return size === 0
    ? `${hex16(0)} ${hex16(0)} ${hex16(0)}\n`
    : `${hex16(start)} ${hex16(BigInt(start) + BigInt(size) - 1n)} ${hex16(flags)}\n`;
}

function barLine(fn: PciFunction, index: number): string {
  const bar = fn.bars[index];
  if (bar === undefined) return resourceLine(0, 0, 0);
  let flags = IORESOURCE_SIZEALIGN;
  if (bar.kind === 'io') flags |= IORESOURCE_IO | 1;
  else {
    flags |= IORESOURCE_MEM;
    if (bar.prefetchable) flags |= IORESOURCE_PREFETCH | 8;
    if (bar.is64) flags |= IORESOURCE_MEM_64 | 4;
  }
  return resourceLine(bar.address, bar.size, flags);
}

/** The file `resource`: six BARs, the ROM, then empty slots (a bridge has four windows more). */
export function resourceText(fn: PciFunction): string {
  let lines = '';
  for (let i = 0; i < 6; i++) lines += barLine(fn, i);
  const rom = fn.rom;
  lines += rom
    ? resourceLine(
        rom.address,
        rom.size,
        IORESOURCE_MEM | IORESOURCE_PREFETCH | IORESOURCE_READONLY | IORESOURCE_SIZEALIGN,
      )
    : resourceLine(0, 0, 0);
  const empty = fn.isBridge ? 10 : 6;
  for (let i = 0; i < empty; i++) lines += resourceLine(0, 0, 0);
  return lines;
}

/** Reads `resource0` and the like are not offered: programs that map registers go through VFIO. */
function modalias(fn: PciFunction): string {
  const h8 = (value: number): string => value.toString(16).toUpperCase().padStart(8, '0');
  const h2 = (value: number): string => value.toString(16).toUpperCase().padStart(2, '0');
  const [base, sub, prog] = [fn.class24 >>> 16, (fn.class24 >>> 8) & 0xff, fn.class24 & 0xff];
  return (
    `pci:v${h8(fn.vendor)}d${h8(fn.device)}sv${h8(fn.subsystemVendor)}sd${h8(fn.subsystemDevice)}` +
    `bc${h2(base)}sc${h2(sub)}i${h2(prog)}`
  );
}

function ueventText(fn: PciFunction, driver: string | undefined): string {
  const h = (value: number, digits: number): string => value.toString(16).toUpperCase().padStart(digits, '0');
  return (
    (driver === undefined ? '' : `DRIVER=${driver}\n`) +
    `PCI_CLASS=${fn.class24.toString(16).toUpperCase()}\nPCI_ID=${h(fn.vendor, 4)}:${h(fn.device, 4)}\n` +
    `PCI_SUBSYS_ID=${h(fn.subsystemVendor, 4)}:${h(fn.subsystemDevice, 4)}\nPCI_SLOT_NAME=${fn.name}\nMODALIAS=${modalias(fn)}\n`
  );
}

function writeConfig(fn: PciFunction, bytes: Uint8Array, position: number): number {
  const { config } = fn;
  if (position >= config.length) throw new Errno('EFBIG', `config space of ${fn.name} has ${config.length} bytes`);
  const count = Math.min(bytes.length, config.length - position);
  let at = 0;
  while (at < count) {
    const offset = position + at;
    const size = offset % 4 === 0 && count - at >= 4 ? 4 : offset % 2 === 0 && count - at >= 2 ? 2 : 1;
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 256 + bytes[at + i]!;
    config.write(offset, size, value);
    at += size;
  }
  return count;
}

export class PciSysfs {
  readonly #tree: SysfsTree;
  readonly #drivers: DriverControl;

  constructor(tree: SysfsTree, drivers: DriverControl) {
    this.#tree = tree;
    this.#drivers = drivers;
  }

  /** Writes the folder of one function and its link in /sys/bus/pci/devices. Its parents are there already. */
  add(fn: PciFunction): void {
    const tree = this.#tree;
    const folder = functionPath(fn);
    const fixed = (name: string, content: string): void => tree.file(`${folder}/${name}`, content);
    fixed('vendor', hex4(fn.vendor));
    fixed('device', hex4(fn.device));
    fixed('subsystem_vendor', hex4(fn.subsystemVendor));
    fixed('subsystem_device', hex4(fn.subsystemDevice));
    fixed('class', `0x${fn.class24.toString(16).padStart(6, '0')}\n`);
    fixed('revision', `0x${fn.revision.toString(16).padStart(2, '0')}\n`);
    fixed('modalias', `${modalias(fn)}\n`);
    fixed('numa_node', '-1\n');
    fixed('local_cpus', 'ffffffff\n');
    fixed('local_cpulist', '0-31\n');
    fixed('dma_mask_bits', '32\n');
    fixed('consistent_dma_mask_bits', '32\n');
    fixed('broken_parity_status', '0\n');
    fixed('d3cold_allowed', '1\n');
    fixed('msi_bus', '1\n');
    fixed('power_state', 'D0\n');
    fixed('ari_enabled', '0\n');
    fixed('resource', resourceText(fn));
    tree.attribute(`${folder}/irq`, { mode: 0o444, show: () => text(`${fn.config.bytes[0x3c] ?? 0}\n`) });
    tree.attribute(`${folder}/enable`, { mode: 0o644, show: () => text(fn.memoryEnabled ? '1\n' : '0\n') });
    tree.attribute(`${folder}/config`, {
      mode: 0o644,
      show: () => fn.config.bytes.slice(0, fn.config.length),
      store: (bytes, position) => writeConfig(fn, bytes, position),
    });
    tree.attribute(`${folder}/uevent`, { mode: 0o644, show: () => text(ueventText(fn, this.#drivers.holderOf(fn))) });
    tree.attribute(`${folder}/driver_override`, {
      mode: 0o644,
      show: () => text(`${this.#drivers.overrideOf(fn) ?? '(null)'}\n`),
      store: (bytes) => {
        const name = new TextDecoder().decode(bytes).replace(/\n$/, '');
        this.#drivers.setOverride(fn, name === '' ? undefined : name);
        return bytes.length;
      },
    });
    if (fn.supportedResetMethods.length > 0) this.#addReset(fn, folder);
    this.#addLife(fn, folder);
    addSriovFiles(tree, fn, this.#drivers);
    tree.link(`${folder}/subsystem`, '/sys/bus/pci');
    tree.link(`/sys/bus/pci/devices/${fn.name}`, folder);
    linkVirtualFunction(tree, fn);
    this.driverChanged(fn);
  }

  #addReset(fn: PciFunction, folder: string): void {
    this.#tree.attribute(`${folder}/reset_method`, {
      mode: 0o644,
      show: () => text(`${fn.resetMethods.join(' ')}\n`),
      store: (bytes) => {
        chooseResetMethods(fn, new TextDecoder().decode(bytes).replace(/\n$/, ''));
        return bytes.length;
      },
    });
    this.#tree.attribute(`${folder}/reset`, {
      mode: 0o200,
      store: (bytes) => {
        if (unsigned(bytes, 'reset', 2 ** 32) !== 1) throw new Errno('EINVAL', 'reset takes a 1');
        fn.reset();
        return bytes.length;
      },
    });
  }

  /** `remove` and `rescan`: a 0 does nothing. */
  #addLife(fn: PciFunction, folder: string): void {
    const tree = this.#tree;
    tree.attribute(`${folder}/remove`, {
      mode: 0o220,
      store: (bytes) => {
        if (unsigned(bytes, 'remove', 2 ** 32) === 0) return bytes.length;
        // The file goes first, so that nobody can ask twice.
        tree.remove(`${folder}/remove`);
        this.#drivers.remove(fn, bytes.length);
        return bytes.length;
      },
    });
    tree.attribute(`${folder}/rescan`, {
      mode: 0o200,
      store: (bytes) => {
        if (unsigned(bytes, 'rescan', 2 ** 32) !== 0) this.#drivers.rescan(fn.bus, bytes.length);
        return bytes.length;
      },
    });
  }

  remove(fn: PciFunction): void {
    this.driverChanged(fn);
    unlinkVirtualFunction(this.#tree, fn);
    this.#tree.remove(`/sys/bus/pci/devices/${fn.name}`);
    this.#tree.remove(functionPath(fn));
  }

  /** The driver of a function has come or gone: links on both sides. */
  driverChanged(fn: PciFunction): void {
    const tree = this.#tree;
    const folder = functionPath(fn);
    const driver = this.#drivers.driverOf(fn);
    const old = tree.readlink(`${folder}/driver`)?.split('/').pop();
    if (old !== undefined && old !== driver) {
      tree.remove(`/sys/bus/pci/drivers/${old}/${fn.name}`);
      tree.remove(`${folder}/driver`);
    }
    if (driver !== undefined && old !== driver) {
      tree.link(`${folder}/driver`, `/sys/bus/pci/drivers/${driver}`);
      tree.link(`/sys/bus/pci/drivers/${driver}/${fn.name}`, folder);
    }
    tree.refresh(`${folder}/uevent`);
    tree.refresh(`${folder}/config`);
    tree.refresh(`${folder}/driver_override`);
  }
}

/** What is written to `reset_method`: names in the order to try, `default` for all, nothing for none. EINVAL: unknown or not possible. */
function chooseResetMethods(fn: PciFunction, written: string): void {
  const all = fn.supportedResetMethods;
  if (written === 'default') {
    fn.resetChoice = undefined;
    return;
  }
  const chosen = written.split(' ').filter((name) => name.trim() !== '');
  fn.resetChoice = chosen.map((name) => {
    const method = all.find((one) => one === name.trim());
    if (method === undefined) {
      throw new Errno('EINVAL', `${fn.name} cannot be reset by '${name}'; it has ${all.join(', ')}`);
    }
    return method;
  });
}
