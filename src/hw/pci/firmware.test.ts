import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import * as reg from '../../uapi/pci-regs.ts';
import type { BarSpec } from './bar.ts';
import type { PciFunction } from './function.ts';
import { bridgeSpec, plainSpec, TestMachine } from './test-machine.ts';

const MiB = 2 ** 20;
const memoryBar = (size: number, index = 0): BarSpec => ({ index, kind: 'memory', size });
const withBars = (...bars: BarSpec[]) => ({ ...plainSpec(), bars });

test('buses are numbered depth first, pinned numbers are kept, bridges carry them', () => {
  const machine = new TestMachine();
  const a = machine.add(bridgeSpec(), '1.0');
  const b = machine.add(bridgeSpec(), '2.0', { secondary: 9 });
  const inner = machine.add(bridgeSpec(), '0.0', { bus: a.secondary! });
  const c = machine.add(bridgeSpec(), '3.0');
  machine.tree.enumerate();
  const numbers = (fn: PciFunction): number[] => [0x18, 0x19, 0x1a].map((at) => fn.config.read(at, 1));
  assert.deepEqual(numbers(a), [0, 1, 2]);
  assert.deepEqual(numbers(inner), [1, 2, 2]);
  assert.deepEqual(numbers(b), [0, 9, 9]);
  assert.deepEqual(numbers(c), [0, 10, 10]);
  assert.deepEqual(
    machine.tree.busses().map((bus) => bus.number),
    [0, 1, 2, 9, 10],
  );
  assert.equal(inner.name, '0000:01:00.0');
  assert.equal(machine.tree.find('0000:01:00.0'), inner);
});

test('bus numbers that contradict each other are refused', () => {
  const machine = new TestMachine();
  const a = machine.add(bridgeSpec(), '1.0', { secondary: 5 });
  assert.throws(() => machine.add(bridgeSpec(), '2.0', { secondary: 5 }), { code: 'EEXIST' });
  assert.equal(machine.root.functions.length, 1);
  machine.add(bridgeSpec(), '0.0', { bus: a.secondary!, secondary: 3 });
  assert.throws(() => machine.tree.enumerate(), { code: 'EINVAL', message: /higher number/ });
});

test('BARs get addresses of their own, decoded, with windows of bridges around them', () => {
  const machine = new TestMachine();
  const bridge = machine.add(bridgeSpec(), '1.0');
  const wide: BarSpec = { index: 2, kind: 'memory', size: 4 * MiB, is64: true, prefetchable: true };
  const below = machine.add(withBars(memoryBar(0x2000), { index: 1, kind: 'io', size: 0x20 }, wide), '0.0', {
    bus: bridge.secondary!,
  });
  const beside = machine.add(withBars(memoryBar(16 * MiB)), '2.0');
  machine.tree.enumerate();
  const config = bridge.config;
  const [memory, io, prefetchable] = [below.bars[0]!, below.bars[1]!, below.bars[2]!];
  assert.equal(below.config.read(0x10, 4), memory.address);
  assert.equal(below.config.read(0x14, 4), io.address | 1);
  assert.equal(config.read(reg.PCI_MEMORY_BASE, 2), memory.address >>> 16);
  assert.equal(config.read(reg.PCI_MEMORY_LIMIT, 2), memory.address >>> 16);
  assert.equal(config.read(reg.PCI_IO_BASE, 1), ((io.address >> 8) & 0xf0) | 1);
  assert.equal(prefetchable.address, 2 ** 35);
  assert.equal(config.read(reg.PCI_PREF_BASE_UPPER32, 4), 8);
  assert.equal(config.read(reg.PCI_PREF_MEMORY_LIMIT, 2), 0x0031);
  assert.equal(below.config.read(0x1c, 4), 8);
  assert.equal(beside.bars[0]!.address % (16 * MiB), 0);
  assert.equal(below.config.read(reg.PCI_COMMAND, 2), 0x103);
  assert.equal(below.busMaster, false);
  assert.equal(bridge.busMaster, true);
  assert.equal(machine.memory.isFree(memory.address / 4096, 1), false);
});

test('windows with nothing behind them are closed', () => {
  const machine = new TestMachine();
  const bridge = machine.add(bridgeSpec(), '1.0');
  machine.tree.enumerate();
  assert.ok(bridge.config.read(reg.PCI_MEMORY_BASE, 2) > bridge.config.read(reg.PCI_MEMORY_LIMIT, 2));
  assert.ok((bridge.config.read(reg.PCI_IO_BASE, 1) & 0xf0) > (bridge.config.read(reg.PCI_IO_LIMIT, 1) & 0xf0));
  assert.ok(bridge.config.read(reg.PCI_PREF_MEMORY_BASE, 2) > bridge.config.read(reg.PCI_PREF_MEMORY_LIMIT, 2));
});

test('pinned addresses are kept; the rest goes around them', () => {
  const machine = new TestMachine();
  const bridge = machine.add(bridgeSpec(), '1.0');
  const pinned = machine.add(withBars(memoryBar(MiB)), '1.0', {
    bus: bridge.secondary!,
    barAddresses: { 0: 0xfe000000 },
  });
  const free = machine.add(withBars(memoryBar(MiB)), '2.0', { bus: bridge.secondary! });
  const root = machine.add(withBars(memoryBar(MiB)), '4.0', { barAddresses: { 0: 0xfea00000 }, interruptLine: 10 });
  machine.tree.enumerate();
  assert.equal(pinned.bars[0]!.address, 0xfe000000);
  assert.equal(free.bars[0]!.address, 0xfe100000);
  assert.equal(root.bars[0]!.address, 0xfea00000);
  assert.equal(root.config.read(reg.PCI_INTERRUPT_LINE, 1), 10);
});

test('pinned addresses that overlap or are not aligned are refused by name', () => {
  const overlapping = new TestMachine();
  overlapping.add(withBars(memoryBar(MiB)), '1.0', { barAddresses: { 0: 0xe0000000 } });
  overlapping.add(withBars(memoryBar(2 * MiB)), '2.0', { barAddresses: { 0: 0xe0000000 } });
  assert.throws(() => overlapping.tree.enumerate(), { code: 'EINVAL', message: /00:02\.0.*overlaps.*00:01\.0/ });
  const crooked = new TestMachine();
  crooked.add(withBars(memoryBar(MiB)), '1.0', { barAddresses: { 0: 0xe0001000 } });
  assert.throws(() => crooked.tree.enumerate(), { code: 'EINVAL', message: /cannot be at 0xe0001000/ });
});

test('memory that does not fit is refused, ports that do not fit are left out with a note', () => {
  const full = new TestMachine();
  full.add(withBars(memoryBar(2 ** 31)), '1.0');
  assert.throws(() => full.tree.enumerate(), { code: 'ENOSPC' });
  const ports = new TestMachine();
  for (let i = 1; i <= 16; i++) ports.add(withBars({ index: 0, kind: 'io', size: 0x1000 }), `${i.toString(16)}.0`);
  ports.tree.enumerate();
  assert.equal(ports.tree.functions().filter((fn) => fn.bars[0]!.address === 0).length, 2);
  assert.equal(ports.log.length, 2);
});

test('interrupt lines rotate by slot and pin as on q35', () => {
  const machine = new TestMachine();
  const pin = (interruptPin: number) => ({ ...plainSpec(), interruptPin });
  const line = (fn: PciFunction): number => fn.config.read(reg.PCI_INTERRUPT_LINE, 1);
  const four = machine.add(pin(1), '4.0');
  const high = machine.add(pin(3), '1d.0');
  const none = machine.add(pin(0), '5.0');
  const port = machine.add(bridgeSpec(), '9.0');
  const bridge = machine.add(bridgeSpec(), '0.0', { bus: port.secondary! });
  const deep = machine.add(pin(1), '1.0', { bus: bridge.secondary! });
  machine.tree.enumerate();
  assert.deepEqual([line(four), line(high), line(none), line(deep)], [10, 11, 0, 11]);
});

test('a function that is added later gets its place and moves nobody', () => {
  const machine = new TestMachine();
  const port = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT), '1.0');
  const first = machine.add(withBars(memoryBar(MiB)), '2.0');
  machine.tree.enumerate();
  const before = first.bars[0]!.address;
  const hot = machine.add(withBars(memoryBar(MiB)), '0.0', { bus: port.secondary! });
  assert.equal(first.bars[0]!.address, before);
  assert.notEqual(hot.bars[0]!.address, 0);
  assert.equal(hot.memoryEnabled, true);
  assert.throws(() => machine.add(withBars(memoryBar(2 ** 31)), '3.0'), { code: 'ENOSPC' });
  assert.equal(machine.root.at(0x18), undefined, 'what did not fit is not there');
});

test('whatever the machine, no two BARs overlap and every BAR is inside the windows above it', () => {
  const bar = fc.record({ kind: fc.constantFrom('memory', 'pref', 'io'), log: fc.integer({ min: 5, max: 22 }) });
  const slot = fc.record({ isBridge: fc.boolean(), on: fc.nat(7), bars: fc.array(bar, { maxLength: 2 }) });
  fc.assert(
    fc.property(fc.array(slot, { maxLength: 14 }), (slots) => {
      const machine = new TestMachine();
      const buses = [machine.root];
      for (const { isBridge, on, bars } of slots) {
        const bus = buses[on % buses.length]!;
        const at = `${bus.functions.length.toString(16)}.0`;
        if (isBridge) buses.push(machine.add(bridgeSpec(), at, { bus }).secondary!);
        else {
          const specs = bars.map(({ kind, log }, i): BarSpec => {
            if (kind === 'io') return { index: 2 * i, kind: 'io', size: 2 ** Math.min(log, 8) };
            const isPref = kind === 'pref';
            return { index: 2 * i, kind: 'memory', size: 2 ** log, is64: isPref, prefetchable: isPref };
          });
          machine.add(withBars(...specs), at, { bus });
        }
      }
      machine.tree.enumerate();
      machine.tree.enumerate();
      const ranges: { kind: string; start: number; end: number }[] = [];
      for (const fn of machine.tree.functions()) {
        for (const b of fn.bars) {
          if (b === undefined || b.address === 0) continue;
          assert.equal(b.address % b.size, 0);
          const end = b.address + b.size;
          for (const other of ranges) {
            assert.ok(other.kind !== b.kind || b.address >= other.end || other.start >= end, `${fn.name} overlaps`);
          }
          ranges.push({ kind: b.kind, start: b.address, end });
          if (b.kind === 'io' || b.prefetchable) continue;
          for (let bridge = fn.bus.self; bridge !== undefined; bridge = bridge.bus.self) {
            const first = bridge.config.read(reg.PCI_MEMORY_BASE, 2) * 65536;
            const last = bridge.config.read(reg.PCI_MEMORY_LIMIT, 2) * 65536 + 0xfffff;
            assert.ok(first <= b.address && end - 1 <= last, `${fn.name} is outside ${bridge.name}`);
          }
        }
      }
    }),
    { numRuns: 40 },
  );
});
