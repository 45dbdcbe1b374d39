/**
 * /sys/devices/pci… and /sys/bus/pci/devices: what programs read of a PCI function.
 *
 * Formats are those of Linux' drivers/pci/pci-sysfs.c; what a live file says is computed when it is opened.
 */

import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
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
export interface DriverControl {
  driverOf(fn: PciFunction): string | undefined;
  overrideOf(fn: PciFunction): string | undefined;
  setOverride(fn: PciFunction, name: string | undefined): void;
}

/** `/sys/devices/pci0000:00/0000:00:08.0/0000:01:00.0`: the function's own folder. */
export function functionPath(fn: PciFunction): string {
  const bridge = fn.bus.self;
  if (bridge !== undefined) return `${functionPath(bridge)}/${fn.name}`;
  const segment = fn.name.slice(0, 4);
  return `/sys/devices/pci${segment}:${fn.bus.number.toString(16).padStart(2, '0')}/${fn.name}`;
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
    tree.attribute(`${folder}/uevent`, { mode: 0o644, show: () => text(ueventText(fn, this.#drivers.driverOf(fn))) });
    tree.attribute(`${folder}/driver_override`, {
      mode: 0o644,
      show: () => text(`${this.#drivers.overrideOf(fn) ?? '(null)'}\n`),
      store: (bytes) => {
        const name = new TextDecoder().decode(bytes).replace(/\n$/, '');
        this.#drivers.setOverride(fn, name === '' ? undefined : name);
        return bytes.length;
      },
    });
    if (fn.resetMethods.length > 0) {
      fixed('reset_method', `${fn.resetMethods.join(' ')}\n`);
      tree.attribute(`${folder}/reset`, {
        mode: 0o200,
        store: (bytes) => {
          if (new TextDecoder().decode(bytes).trim() !== '1') throw new Errno('EINVAL', 'reset takes a 1');
          fn.reset();
          return bytes.length;
        },
      });
    }
    tree.link(`${folder}/subsystem`, '/sys/bus/pci');
    tree.link(`/sys/bus/pci/devices/${fn.name}`, folder);
    this.driverChanged(fn);
  }

  remove(fn: PciFunction): void {
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
