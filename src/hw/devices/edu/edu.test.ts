import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../../uapi/pci-regs.ts';
import type { PciFunction } from '../../pci/function.ts';
import { RecordingSink, read32, read64, TestMachine, write32, write64 } from '../../pci/test-machine.ts';
import { edu } from './model.ts';

interface Setup {
  machine: TestMachine;
  fn: PciFunction;
  sink: RecordingSink;
}

function setup(options: Record<string, unknown> = {}): Setup {
  const machine = new TestMachine();
  const fn = machine.addModel(edu, '4.0', options, { barAddresses: { 0: 0xfea00000 } });
  machine.tree.enumerate();
  fn.config.write(reg.PCI_COMMAND, 2, 0x107);
  const sink = new RecordingSink();
  fn.sink = sink;
  return { machine, fn, sink };
}

/** Starts a transfer and lets it end. */
function transfer({ machine, fn }: Setup, source: bigint, destination: bigint, count: bigint, command: number): void {
  write64(fn, 0, 0x80, source);
  write64(fn, 0, 0x88, destination);
  write64(fn, 0, 0x90, count);
  write32(fn, 0, 0x98, command);
  machine.clock.advance(100_000);
}

const access = (fn: PciFunction, offset: number, size: number): number[] => {
  const into = new Uint8Array(size);
  fn.bars[0]!.read(offset, into);
  return [...into];
};

test('configuration space is byte for byte what the real kernel read from QEMU’s edu', () => {
  const { fn } = setup();
  fn.config.write(reg.PCI_COMMAND, 2, 0x103);
  const expected = new Uint8Array(256);
  const put = (at: number, hex: string): void => expected.set(Buffer.from(hex.replaceAll(' ', ''), 'hex'), at);
  put(0x00, '34 12 e8 11 03 01 10 00 10 00 ff 00 00 00 00 00');
  put(0x10, '00 00 a0 fe');
  put(0x2c, 'f4 1a 00 11');
  put(0x34, '40');
  put(0x3c, '0a 01');
  put(0x40, '05 00 80 00');
  assert.deepEqual(fn.config.bytes, expected);
  assert.deepEqual(fn.resetMethods, []);
  fn.config.write(reg.PCI_COMMAND, 2, 0xffff);
  assert.equal(fn.config.read(reg.PCI_COMMAND, 2), 0x507);
  fn.config.write(0x10, 4, 0xffffffff);
  assert.equal(fn.config.read(0x10, 4), 0xfff00000);
  fn.config.write(reg.PCI_INTERRUPT_LINE, 1, 0x5a);
  fn.config.write(reg.PCI_CACHE_LINE_SIZE, 1, 0x20);
  assert.deepEqual([fn.config.read(0x3c, 2), fn.config.read(0x0c, 1)], [0x015a, 0x20]);
  fn.config.write(0x42, 2, 0x71);
  fn.config.write(0x44, 4, 0xfee01007);
  assert.deepEqual([fn.config.read(0x42, 2), fn.config.read(0x44, 4)], [0xf1, 0xfee01004]);
});

test('identification and liveness', () => {
  const { fn } = setup();
  assert.equal(read32(fn, 0, 0), 0x010000ed);
  assert.equal(read32(fn, 0, 4), 0);
  write32(fn, 0, 4, 0x12345678);
  assert.equal(read32(fn, 0, 4), 0xedcba987);
  write32(fn, 0, 0, 7);
  assert.equal(read32(fn, 0, 0), 0x010000ed);
});

test('accesses of the wrong size or to no register read as ones and write nothing', () => {
  const { fn } = setup();
  const ones = (size: number): number[] => new Array(size).fill(0xff);
  for (const [offset, size] of [
    [0, 1],
    [0, 2],
    [0, 8],
    [1, 4],
    [0x0c, 4],
    [0x60, 4],
    [0x64, 4],
    [0x80, 1],
    [0x84, 4],
    [0x9c, 4],
    [0xa0, 8],
    [0xffffc, 4],
  ] as const) {
    assert.deepEqual(access(fn, offset, size), ones(size), `0x${offset.toString(16)} of ${size}`);
  }
  write32(fn, 0, 4, 1);
  write64(fn, 0, 4, 5n);
  fn.bars[0]!.write(4, Uint8Array.of(9));
  assert.equal(read32(fn, 0, 4), 0xfffffffe);
});

test('factorial: busy until the clock says so, the result modulo 2^32, no second request meanwhile', () => {
  const { machine, fn, sink } = setup();
  write32(fn, 0, 8, 10);
  assert.equal(read32(fn, 0, 0x20), 1);
  write32(fn, 0, 8, 3);
  assert.equal(read32(fn, 0, 8), 10, 'until then it holds n');
  machine.clock.advance(1_000);
  assert.equal(read32(fn, 0, 0x20), 0);
  assert.equal(read32(fn, 0, 8), 3_628_800);
  assert.deepEqual(sink.take(), []);
  for (const [n, result] of [
    [0, 1],
    [1, 1],
    [12, 479001600],
    [13, 1932053504],
    [33, 2147483648],
    [34, 0],
    [0xffffffff, 0],
  ] as const) {
    write32(fn, 0, 8, n);
    machine.clock.advance(1_000);
    assert.equal(read32(fn, 0, 8), result, `${n}!`);
  }
});

test('status: only the interrupt bit is writable; with it the factorial interrupts', () => {
  const { machine, fn, sink } = setup();
  write32(fn, 0, 0x20, 0xffffffff);
  assert.equal(read32(fn, 0, 0x20), 0x80);
  write32(fn, 0, 8, 5);
  write32(fn, 0, 0x20, 0x80);
  assert.equal(read32(fn, 0, 0x20), 0x81);
  machine.clock.advance(1_000);
  assert.equal(read32(fn, 0, 0x24), 1);
  assert.deepEqual(sink.take(), ['intx 1']);
});

test('INTx: raise adds causes, acknowledge clears them, the line falls with the last', () => {
  const { fn, sink } = setup();
  write32(fn, 0, 0x60, 0);
  assert.deepEqual(sink.take(), []);
  write32(fn, 0, 0x60, 0x10);
  write32(fn, 0, 0x60, 0x80000001);
  assert.equal(read32(fn, 0, 0x24), 0x80000011);
  write32(fn, 0, 0x64, 0x80000010);
  assert.deepEqual(sink.take(), ['intx 1']);
  write32(fn, 0, 0x64, 1);
  assert.deepEqual(sink.take(), ['intx 0']);
  assert.equal(read32(fn, 0, 0x24), 0);
});

test('MSI: every raise is a message, INTx stays quiet', () => {
  const { fn, sink } = setup();
  fn.config.write(0x42, 2, 1);
  write32(fn, 0, 0x60, 1);
  write32(fn, 0, 0x60, 1);
  assert.deepEqual(sink.take(), ['message 0', 'message 0']);
  assert.equal(fn.intx.asserted, false);
});

test('DMA goes to the buffer and back, takes its time, and interrupts if asked', () => {
  const it = setup();
  const { machine, fn, sink } = it;
  machine.mapRam(0x100, 0, 4);
  for (let i = 0; i < 4096; i++) machine.ram[0x800 + i] = (i * 3) & 0xff;
  write64(fn, 0, 0x80, 0x100800n);
  write64(fn, 0, 0x88, 0x40000n);
  write64(fn, 0, 0x90, 4096n);
  write32(fn, 0, 0x98, 5);
  assert.equal(read32(fn, 0, 0x98), 5, 'busy');
  machine.clock.advance(99_999);
  assert.equal(read32(fn, 0, 0x98) & 1, 1);
  machine.clock.advance(1);
  assert.equal(read64(fn, 0, 0x98), 4n);
  assert.equal(read32(fn, 0, 0x24), 0x100);
  assert.deepEqual(sink.take(), ['intx 1']);
  transfer(it, 0x40010n, 0x103000n, 256n, 3);
  assert.deepEqual(machine.ram.subarray(0x3000, 0x3100), machine.ram.subarray(0x810, 0x910));
  assert.deepEqual(sink.take(), [], 'not asked');
});

test('a running transfer keeps its registers; without the start bit the command changes nothing', () => {
  const it = setup();
  const { machine, fn } = it;
  machine.mapRam(0x100, 0, 1);
  write32(fn, 0, 0x98, 6);
  assert.equal(read32(fn, 0, 0x98), 0);
  write32(fn, 0, 0x80, 0x100000);
  write32(fn, 0, 0x88, 0x40000);
  write32(fn, 0, 0x90, 8);
  write32(fn, 0, 0x98, 1);
  for (const offset of [0x80, 0x88, 0x90, 0x98]) write32(fn, 0, offset, 0x5a5a5a5b);
  assert.deepEqual(
    [0x80, 0x88, 0x90, 0x98].map((offset) => read32(fn, 0, offset)),
    [0x100000, 0x40000, 8, 1],
  );
  machine.clock.advance(100_000);
  assert.equal(machine.clock.next, undefined, 'only one transfer was started');
});

test('registers of 64 bits: 8 bytes at once, or the lower 4 with the upper cleared', () => {
  const { fn } = setup();
  write64(fn, 0, 0x80, 0x1122_3344_5566_7788n);
  assert.equal(read64(fn, 0, 0x80), 0x1122_3344_5566_7788n);
  assert.equal(read32(fn, 0, 0x80), 0x55667788);
  write32(fn, 0, 0x80, 1);
  assert.equal(read64(fn, 0, 0x80), 1n);
});

test('bus addresses are cut by dma_mask', () => {
  const it = setup();
  it.machine.mapRam(0x100, 0, 1);
  it.machine.ram[0] = 0x42;
  transfer(it, 0x7000_0010_0000n, 0x40000n, 1n, 1);
  transfer(it, 0x40000n, 0x100001n, 1n, 3);
  assert.equal(it.machine.ram[1], 0x42);
  assert.equal(it.machine.upstream.asked[0], '20:100');
  const wide = setup({ dma_mask: '0xffffffffffffffff' });
  wide.machine.mapRam(0xf_ffff_ffff_ffff, 0, 1);
  transfer(wide, 0x40000n, 0xffff_ffff_ffff_f010n, 4n, 3);
  assert.equal(wide.machine.upstream.asked[0], '20:fffffffffffff');
});

test('transfers that are not inside the buffer are dropped and written down; the command still ends', () => {
  for (const [destination, count] of [
    [0x3ffffn, 1n],
    [0x40000n, 4097n],
    [0x40fffn, 2n],
    [0n, 16n],
    [0x1_0004_0000n, 1n],
    [0x40000n, 0x1_0000_0001n],
    [0xffff_ffff_ffff_ffffn, 1n],
  ] as const) {
    const it = setup();
    it.machine.mapRam(0x100, 0, 4);
    transfer(it, 0x100000n, destination, count, 5);
    assert.equal(it.machine.log.length, 1, `${destination.toString(16)} ${count}`);
    assert.match(it.machine.log[0]!, /^0000:00:04.0: transfer of 0x.* is outside the buffer and was dropped$/);
    assert.deepEqual(it.machine.upstream.asked, []);
    assert.equal(read32(it.fn, 0, 0x98), 4);
    assert.deepEqual(it.sink.take(), ['intx 1']);
  }
  const whole = setup();
  whole.machine.mapRam(0x100, 0, 1);
  transfer(whole, 0x100000n, 0x40000n, 4096n, 1);
  transfer(whole, 0x100000n, 0x41000n, 0n, 1);
  assert.deepEqual(whole.machine.log, [], 'the whole buffer, and nothing at its end, are inside');
});

test('a fault while fetching leaves the buffer as it was; one while storing stops there', () => {
  const it = setup();
  const { machine, fn, sink } = it;
  machine.mapRam(0x100, 0, 1);
  machine.ram.fill(0x11);
  transfer(it, 0x100000n, 0x40000n, 4096n, 1);
  machine.ram.fill(0x22);
  transfer(it, 0x100800n, 0x40000n, 4096n, 5);
  assert.deepEqual(sink.take(), ['intx 1'], 'the end is told all the same');
  machine.ram.fill(0);
  transfer(it, 0x40000n, 0x100800n, 4096n, 3);
  assert.equal(read32(fn, 0, 0x98) & 1, 0);
  assert.equal(machine.ram[0x7ff], 0);
  assert.deepEqual(
    [...new Set(machine.ram.subarray(0x800, 0x1000))],
    [0x11],
    'old contents, up to the end of the page',
  );
});

test('with Bus Master off nothing is moved', () => {
  const it = setup();
  it.machine.mapRam(0x100, 0, 1);
  it.machine.ram.fill(0x33);
  it.fn.config.write(reg.PCI_COMMAND, 2, 0x103);
  transfer(it, 0x100000n, 0x40000n, 16n, 1);
  it.fn.config.write(reg.PCI_COMMAND, 2, 0x107);
  transfer(it, 0x40000n, 0x100100n, 16n, 3);
  assert.deepEqual([...new Set(it.machine.ram.subarray(0x100, 0x110))], [0]);
});

test('a reset of the bus stops what is under way and clears all registers; so does removal', () => {
  const { machine, fn, sink } = setup();
  write32(fn, 0, 4, 1);
  write32(fn, 0, 0x60, 4);
  write32(fn, 0, 8, 5);
  write32(fn, 0, 0x98, 5);
  fn.resetHardware('bus');
  assert.equal(machine.clock.next, undefined);
  assert.deepEqual(
    [4, 8, 0x20, 0x24, 0x98].map((offset) => read32(fn, 0, offset)),
    [0, 0, 0, 0, 0],
  );
  assert.deepEqual(sink.take(), ['intx 1', 'intx 0']);
  write32(fn, 0, 8, 5);
  fn.remove();
  assert.equal(machine.clock.next, undefined);
});

test('options: latency, whether the BAR is offered for mmap', () => {
  const { machine, fn } = setup({ dmaLatencyNs: 100_000_000, bars: 'trapped' });
  assert.equal(fn.bars[0]!.trapped, true);
  assert.equal(fn.bars[0]!.shared, undefined);
  assert.equal(setup().fn.bars[0]!.trapped, false);
  write32(fn, 0, 0x98, 1);
  assert.equal(machine.clock.next, 100_000_000);
  assert.throws(() => setup({ bars: 'shared' }), { code: 'EINVAL' });
});
