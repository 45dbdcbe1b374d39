/**
 * Addresses of BARs and windows of bridges.
 *
 * Three kinds of address space are given out: I/O ports, memory below 4 GiB, and 64-bit prefetchable memory above it. A bridge's
 * window of one kind covers everything of that kind behind it. Sizes are found from below, addresses given from above.
 */

import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import * as reg from '../../uapi/pci-regs.ts';
import type { FunctionBar } from './bar.ts';
import type { Bus } from './bus.ts';
import type { PciFunction } from './function.ts';
import type { PciTree } from './tree.ts';

type Kind = 'io' | 'memory' | 'prefetchable';

/** What the root buses have to give. Memory ends where the local APIC's and the chipset's registers begin. */
const space: Readonly<Record<Kind, { first: number; end: number; windowAlign: number }>> = {
  io: { first: 0x2000, end: 0x10000, windowAlign: 0x1000 },
  memory: { first: 0xc000_0000, end: 0xfec0_0000, windowAlign: 0x10_0000 },
  prefetchable: { first: 2 ** 35, end: 2 ** 36, windowAlign: 0x10_0000 },
};

/** Something that needs a range. `fixed`: it must be there. */
interface Item {
  readonly what: string;
  readonly size: number;
  readonly align: number;
  readonly fixed: number | undefined;
  place(address: number): void;
}

export function assignResources(tree: PciTree): void {
  for (const kind of ['io', 'memory', 'prefetchable'] as const) {
    const items = tree.roots.flatMap((root) => itemsOf(root, kind));
    placeAll(items, space[kind].first, space[kind].end, kind, tree);
  }
}

/** All that needs addresses on a bus: BARs of its functions, windows of its bridges. */
function itemsOf(bus: Bus, kind: Kind): Item[] {
  const items: Item[] = [];
  for (const fn of bus.functions) {
    if (fn.isVirtfn) continue;
    for (const bar of fn.bars) if (bar !== undefined && kindOf(bar) === kind) items.push(barItem(fn, bar));
    if (kind === 'memory' && fn.rom !== undefined) items.push(romItem(fn, fn.rom));
    for (const bar of fn.sriov?.vfBars ?? []) {
      if ((bar.is64 && bar.prefetchable ? 'prefetchable' : 'memory') !== kind) continue;
      const size = Math.max(bar.size, 4096);
      items.push({
        what: `VF BAR ${bar.index} of ${fn.name}`,
        size: size * fn.sriov!.totalVfs,
        align: size,
        fixed: bar.address === 0 ? undefined : bar.address,
        place: (address) => fn.sriov!.setBarAddress(bar, address),
      });
    }
    if (fn.secondary !== undefined) {
      const window = windowItem(fn, fn.secondary, kind);
      if (window !== undefined) items.push(window);
    }
  }
  return items;
}

function kindOf(bar: FunctionBar): Kind {
  if (bar.kind === 'io') return 'io';
  return bar.is64 && bar.prefetchable ? 'prefetchable' : 'memory';
}

function barItem(fn: PciFunction, bar: FunctionBar): Item {
  const pinned = fn.place.barAddresses?.[bar.index] ?? 0;
  if (pinned % bar.size !== 0) {
    throw new Errno(
      'EINVAL',
      `BAR ${bar.index} of ${fn.name} cannot be at ${hex(pinned)}: it has ${hex(bar.size)} bytes`,
    );
  }
  const present = bar.address !== 0 ? bar.address : pinned;
  // Memory BARs never share a page: each can be mapped alone.
  const size = bar.kind === 'io' ? bar.size : Math.max(bar.size, 4096);
  return {
    what: `BAR ${bar.index} of ${fn.name}`,
    size,
    align: size,
    fixed: present === 0 ? undefined : present,
    place: (address) => {
      if (bar.address === address) return;
      bar.address = address;
      const at = reg.PCI_BASE_ADDRESS_0 + 4 * bar.index;
      fn.config.write(at, 4, address % 2 ** 32);
      if (bar.is64) fn.config.write(at + 4, 4, Math.floor(address / 2 ** 32));
    },
  };
}

function romItem(fn: PciFunction, rom: FunctionBar): Item {
  return {
    what: `ROM of ${fn.name}`,
    size: Math.max(rom.size, 4096),
    align: Math.max(rom.size, 4096),
    fixed: rom.address === 0 ? undefined : rom.address,
    place: (address) => {
      if (rom.address === address) return;
      rom.address = address;
      fn.config.write(fn.isBridge ? reg.PCI_ROM_ADDRESS1 : reg.PCI_ROM_ADDRESS, 4, address);
    },
  };
}

function windowItem(fn: PciFunction, bus: Bus, kind: Kind): Item | undefined {
  const items = itemsOf(bus, kind);
  if (items.length === 0) {
    writeWindow(fn, kind, 0, 0);
    return undefined;
  }
  const unit = space[kind].windowAlign;
  const align = Math.max(unit, ...items.map((item) => item.align));
  const pinned = items.filter((item) => item.fixed !== undefined);
  let free = 0;
  for (const item of items) if (item.fixed === undefined) free += item.size + (pinned.length === 0 ? 0 : item.align);
  // Largest alignment first packs without gaps, so the sum is enough when nothing is pinned.
  let fixed: number | undefined;
  let size = Math.ceil(free / unit) * unit;
  if (pinned.length > 0) {
    const first = Math.min(...pinned.map((item) => item.fixed!));
    const end = Math.max(...pinned.map((item) => item.fixed! + item.size));
    fixed = Math.floor(first / unit) * unit;
    size = Math.ceil((end + free) / unit) * unit - fixed;
  }
  return {
    what: `${kind} window of ${fn.name}`,
    size,
    align: fixed === undefined ? align : unit,
    fixed,
    place: (address) => {
      if (address !== 0) placeAll(items, address, address + size, kind, fn.bus.tree);
      writeWindow(fn, kind, address, address === 0 ? 0 : address + size);
    },
  };
}

/** First those that are fixed, then the others, the most demanding first, at the lowest place that is free. */
function placeAll(items: readonly Item[], first: number, end: number, kind: Kind, tree: PciTree): void {
  const taken: { start: number; end: number; what: string }[] = [];
  for (const item of items) {
    if (item.fixed === undefined) continue;
    const start = item.fixed;
    const other = taken.find((t) => start < t.end && t.start < start + item.size);
    if (other !== undefined) throw new Errno('EINVAL', `${item.what} at ${hex(start)} overlaps ${other.what}`);
    taken.push({ start, end: start + item.size, what: item.what });
  }
  for (const item of items) if (item.fixed !== undefined) item.place(item.fixed);
  const rest = items.filter((item) => item.fixed === undefined).sort((a, b) => b.align - a.align || b.size - a.size);
  for (const item of rest) {
    taken.sort((a, b) => a.start - b.start);
    let start = Math.ceil(first / item.align) * item.align;
    for (const other of taken) {
      if (start < other.end && other.start < start + item.size) start = Math.ceil(other.end / item.align) * item.align;
    }
    if (start + item.size > end) {
      // Ports are scarce and devices live without them, as on every real machine.
      if (kind === 'io') {
        tree.log(`no I/O ports are left for ${item.what}`);
        item.place(0);
        continue;
      }
      throw new Errno('ENOSPC', `no address space is left for ${item.what} (${hex(item.size)} bytes)`);
    }
    taken.push({ start, end: start + item.size, what: item.what });
    item.place(start);
  }
}

/** `[start, end)`; both 0: the window is closed. */
function writeWindow(fn: PciFunction, kind: Kind, start: number, end: number): void {
  const config = fn.config;
  const last = end - 1;
  const isClosed = end === 0;
  if (kind === 'io') {
    config.write(reg.PCI_IO_BASE, 1, isClosed ? 0xf0 : (start >> 8) & 0xf0);
    config.write(reg.PCI_IO_LIMIT, 1, isClosed ? 0 : (last >> 8) & 0xf0);
    return;
  }
  const base = kind === 'memory' ? reg.PCI_MEMORY_BASE : reg.PCI_PREF_MEMORY_BASE;
  const limit = kind === 'memory' ? reg.PCI_MEMORY_LIMIT : reg.PCI_PREF_MEMORY_LIMIT;
  config.write(base, 2, isClosed ? 0xfff0 : (start >>> 16) & 0xfff0);
  config.write(limit, 2, isClosed ? 0 : (last >>> 16) & 0xfff0);
  if (kind === 'prefetchable') {
    config.write(reg.PCI_PREF_BASE_UPPER32, 4, isClosed ? 0 : Math.floor(start / 2 ** 32));
    config.write(reg.PCI_PREF_LIMIT_UPPER32, 4, isClosed ? 0 : Math.floor(last / 2 ** 32));
  }
}
