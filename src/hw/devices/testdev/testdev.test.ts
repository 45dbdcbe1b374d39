import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../../uapi/pci-regs.ts';
import { READ } from '../../pci/dma.ts';
import type { PciFunction } from '../../pci/function.ts';
import { bridgeSpec, RecordingSink, read32, read64, TestMachine, write32, write64 } from '../../pci/test-machine.ts';
import { testdev } from './model.ts';
import * as r from './registers.ts';

const BASE = 0x12_3456_7000_0000n;
const BASE_PAGE = Number(BASE >> 12n);

interface Setup {
  machine: TestMachine;
  fn: PciFunction;
  sink: RecordingSink;
}

function setup(options: Record<string, unknown> = {}): Setup {
  const machine = new TestMachine();
  const port = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT), '1.0', { secondary: 1 });
  const fn = machine.addModel(testdev, '0.0', options, { bus: port.secondary! });
  machine.tree.enumerate();
  fn.config.write(reg.PCI_COMMAND, 2, 0x107);
  const sink = new RecordingSink();
  fn.sink = sink;
  return { machine, fn, sink };
}

function run({ machine, fn }: Setup, registers: Record<number, number | bigint>, command: number): number {
  for (const [offset, value] of Object.entries(registers)) {
    if (typeof value === 'bigint') write64(fn, 4, Number(offset), value);
    else write32(fn, 4, Number(offset), value);
  }
  write32(fn, 4, r.COMMAND, command);
  machine.clock.advance(1_000);
  return read32(fn, 4, r.STATUS);
}

function enableMsix(fn: PciFunction): void {
  for (let v = 0; v < fn.msix!.vectors; v++) write32(fn, 5, 16 * v + 12, 0);
  fn.config.write(fn.msix!.offset + 2, 2, reg.PCI_MSIX_FLAGS_ENABLE);
}

const failed = (code: number): number => r.STATUS_DONE | r.STATUS_ERROR | (code << r.STATUS_CODE_SHIFT);

test('one of each kind of BAR, an endpoint that can be reset', () => {
  const { fn } = setup();
  const kinds = fn.bars.map(
    (bar) => bar && `${bar.kind} 0x${bar.size.toString(16)} ${bar.shared ? 'shared' : ''}${bar.is64 ? ' 64' : ''}`,
  );
  assert.deepEqual(kinds, [
    'memory 0x10000 shared',
    'io 0x100 ',
    'memory 0x100000 shared 64',
    undefined,
    'memory 0x1000 ',
    'memory 0x8000 ',
  ]);
  assert.equal(fn.portType, reg.PCI_EXP_TYPE_ENDPOINT);
  assert.deepEqual(fn.resetMethods, ['flr', 'pm', 'bus']);
  assert.equal(fn.msix!.vectors, 8);
  assert.equal(fn.msi!.vectors, 4);
  assert.deepEqual(
    fn.config.capabilities().map((c) => c.id),
    [1, 5, 0x11, 0x10],
  );
});

test('identification, features, scratch; ports keep bytes', () => {
  const { fn } = setup({ vectors: 16 });
  assert.equal(read32(fn, 4, r.IDENTIFICATION), r.ID_VALUE);
  assert.equal(read32(fn, 4, r.VERSION), 1);
  assert.equal(read32(fn, 4, r.FEATURES), (24 << 16) | 16);
  write64(fn, 4, r.SCRATCH, 0x0123_4567_89ab_cdefn);
  assert.equal(read32(fn, 4, r.SCRATCH + 4), 0x01234567);
  write32(fn, 4, r.VERSION, 99);
  assert.equal(read32(fn, 4, r.VERSION), 1);
  fn.bars[1]!.write(0xff, Uint8Array.of(0x77));
  const byte = new Uint8Array(1);
  fn.bars[1]!.read(0xff, byte);
  assert.equal(byte[0], 0x77);
});

test('accesses that are not 4 or 8 aligned bytes, or beyond the registers, read as ones', () => {
  const { fn } = setup();
  for (const [offset, size] of [
    [0, 1],
    [0, 2],
    [2, 4],
    [4, 8],
    [0x80, 4],
    [0x7c, 8],
  ] as const) {
    const into = new Uint8Array(size);
    fn.bars[4]!.read(offset, into);
    assert.equal(
      into.every((byte) => byte === 0xff),
      true,
      `0x${offset.toString(16)} of ${size}`,
    );
  }
  fn.bars[4]!.write(r.SCRATCH, Uint8Array.of(1));
  assert.equal(read32(fn, 4, r.SCRATCH), 0);
});

test('copy, fill and checksum work at 64-bit addresses', () => {
  const it = setup();
  const { machine } = it;
  machine.mapRam(BASE_PAGE, 0, 64);
  for (let i = 0; i < 0x20000; i++) machine.ram[i] = (i * 13) & 0xff;
  const status = run(
    it,
    { [r.SOURCE]: BASE + 5n, [r.DESTINATION]: BASE + 0x20000n, [r.LENGTH]: 0x12345 },
    r.OPERATION_COPY,
  );
  assert.equal(status, r.STATUS_DONE);
  assert.equal(read32(it.fn, 4, r.TRANSFERRED), 0x12345);
  assert.deepEqual(machine.ram.subarray(0x20000, 0x32345), machine.ram.subarray(5, 0x1234a));
  run(it, { [r.DESTINATION]: BASE + 0x100n, [r.LENGTH]: 7, [r.PATTERN]: 0x44332211 }, r.OPERATION_FILL);
  assert.deepEqual([...machine.ram.subarray(0x100, 0x107)], [0x11, 0x22, 0x33, 0x44, 0x11, 0x22, 0x33]);
  run(it, { [r.SOURCE]: BASE, [r.LENGTH]: 0x20000 }, r.OPERATION_CHECKSUM);
  assert.equal(
    read32(it.fn, 4, r.RESULT),
    machine.ram.subarray(0, 0x20000).reduce((sum, byte) => sum + byte, 0),
  );
});

test('a command runs later and keeps its registers until then', () => {
  const { machine, fn } = setup();
  machine.mapRam(BASE_PAGE, 0, 1);
  write64(fn, 4, r.DESTINATION, BASE);
  write32(fn, 4, r.LENGTH, 4);
  write32(fn, 4, r.COMMAND, r.OPERATION_FILL);
  assert.equal(read32(fn, 4, r.STATUS), r.STATUS_BUSY);
  write32(fn, 4, r.LENGTH, 99);
  write32(fn, 4, r.COMMAND, r.OPERATION_COPY);
  machine.clock.advance(1_000);
  assert.equal(read32(fn, 4, r.STATUS), r.STATUS_DONE);
  assert.equal(read32(fn, 4, r.TRANSFERRED), 4);
  assert.equal(machine.clock.next, undefined);
});

test('faults tell read from write, where, and how far it came', () => {
  const it = setup();
  it.machine.mapRam(BASE_PAGE, 0, 2);
  it.machine.mapRam(BASE_PAGE + 0x10, 2, 20);
  it.machine.mapRam(BASE_PAGE + 0x100, 40, 1, READ);
  it.machine.ram.fill(0x5a, 0, 0x2000);
  const to = BASE + 0x10000n;
  assert.equal(
    run(it, { [r.SOURCE]: BASE + 0x1ff0n, [r.DESTINATION]: to, [r.LENGTH]: 0x40 }, r.OPERATION_COPY),
    failed(r.ERROR_READ),
  );
  assert.equal(read64(it.fn, 4, r.FAULT_ADDRESS), BASE + 0x2000n);
  assert.equal(read32(it.fn, 4, r.TRANSFERRED), 0x10);
  assert.deepEqual([it.machine.ram[0x200f], it.machine.ram[0x2010]], [0x5a, 0]);
  const readOnly = BASE + 0x100010n;
  assert.equal(run(it, { [r.DESTINATION]: readOnly, [r.LENGTH]: 4 }, r.OPERATION_FILL), failed(r.ERROR_WRITE));
  assert.equal(read64(it.fn, 4, r.FAULT_ADDRESS), readOnly);
  assert.equal(read32(it.fn, 4, r.TRANSFERRED), 0);
  assert.equal(
    run(it, { [r.DESTINATION]: BASE + 0x23f00n, [r.LENGTH]: 0x200 }, r.OPERATION_FILL),
    failed(r.ERROR_WRITE),
  );
  assert.equal(read32(it.fn, 4, r.TRANSFERRED), 0x100);
  assert.equal(run(it, { [r.SOURCE]: BASE + 0x1fffn, [r.LENGTH]: 2 }, r.OPERATION_CHECKSUM), failed(r.ERROR_READ));
  assert.equal(read32(it.fn, 4, r.RESULT), 0x5a);
});

test('errors without a fault: unknown command, too long, Bus Master off; a length of 0 is done at once', () => {
  const it = setup();
  for (const command of [0, 4, 15]) assert.equal(run(it, { [r.LENGTH]: 4 }, command), failed(r.ERROR_COMMAND));
  assert.equal(run(it, { [r.LENGTH]: 2 ** 24 + 1 }, r.OPERATION_FILL), failed(r.ERROR_LENGTH));
  assert.equal(run(it, { [r.LENGTH]: 0 }, r.OPERATION_COPY), r.STATUS_DONE);
  it.fn.config.write(reg.PCI_COMMAND, 2, 0x103);
  assert.equal(run(it, { [r.LENGTH]: 4 }, r.OPERATION_FILL), failed(r.ERROR_BUS_MASTER));
});

test('the completion record comes after the data and counts', () => {
  const it = setup();
  it.machine.mapRam(BASE_PAGE, 0, 2);
  const registers = { [r.SOURCE]: BASE, [r.LENGTH]: 8, [r.COMPLETION]: BASE + 0x1000n };
  it.machine.ram.fill(2, 0, 8);
  run(it, registers, r.OPERATION_CHECKSUM | r.COMMAND_COMPLETION);
  run(it, registers, r.OPERATION_CHECKSUM | r.COMMAND_COMPLETION);
  assert.deepEqual([...new Uint32Array(it.machine.ram.buffer, 0x1000, 4)], [r.STATUS_DONE, 16, 8, 2]);
  assert.equal(
    run(it, { [r.COMPLETION]: BASE + 0x2000n }, r.OPERATION_CHECKSUM | r.COMMAND_COMPLETION),
    failed(r.ERROR_COMPLETION),
  );
  assert.equal(read64(it.fn, 4, r.FAULT_ADDRESS), BASE + 0x2000n);
});

test('interrupts: MSI-X by the vector of the command, else MSI, else INTx with a cause', () => {
  const it = setup();
  const { fn, sink } = it;
  const command = r.OPERATION_COPY | r.COMMAND_INTERRUPT | (3 << r.COMMAND_VECTOR_SHIFT);
  run(it, { [r.LENGTH]: 0 }, command);
  assert.deepEqual(sink.take(), [], 'causes are not enabled');
  assert.equal(read32(fn, 4, r.INTERRUPT_STATUS), r.CAUSE_DONE);
  write32(fn, 4, r.INTERRUPT_ENABLE, 7);
  assert.deepEqual(sink.take(), ['intx 1']);
  write32(fn, 4, r.INTERRUPT_STATUS, r.CAUSE_DONE);
  assert.deepEqual(sink.take(), ['intx 0']);
  run(it, {}, r.COMMAND_INTERRUPT);
  write32(fn, 4, r.RAISE, 0);
  assert.equal(read32(fn, 4, r.INTERRUPT_STATUS), r.CAUSE_ERROR | r.CAUSE_RAISED);
  write32(fn, 4, r.INTERRUPT_STATUS, 7);
  sink.take();
  fn.config.write(fn.msi!.offset + 2, 2, 1 | (2 << 4));
  write32(fn, 4, r.RAISE, 2);
  assert.deepEqual(sink.take(), ['message 2']);
  enableMsix(fn);
  run(it, {}, command);
  write32(fn, 4, r.RAISE, 7);
  write32(fn, 4, r.RAISE, 8);
  assert.deepEqual(sink.take(), ['message 3', 'message 7']);
});

test('PASID goes with requests only while the capability is enabled', () => {
  const it = setup({ pasid: true });
  it.machine.mapRam(BASE_PAGE, 0, 1);
  const registers = { [r.DESTINATION]: BASE, [r.LENGTH]: 4, [r.PASID]: 0x8000_0000 + 42 };
  run(it, registers, r.OPERATION_FILL);
  assert.equal(it.machine.upstream.lastPasid, -1);
  const at = it.fn.config.findExtended(reg.PCI_EXT_CAP_ID_PASID);
  it.fn.config.write(at + reg.PCI_PASID_CTRL, 2, reg.PCI_PASID_CTRL_ENABLE);
  run(it, registers, r.OPERATION_FILL);
  assert.equal(it.machine.upstream.lastPasid, 42);
  run(it, { [r.PASID]: 42 }, r.OPERATION_FILL);
  assert.equal(it.machine.upstream.lastPasid, -1);
});

test('FLR and the reset bit stop a command and clear registers and memory', () => {
  for (const reset of [
    (fn: PciFunction) => fn.reset('flr'),
    (fn: PciFunction) => write32(fn, 4, r.CONTROL, r.CONTROL_RESET),
  ]) {
    const { machine, fn, sink } = setup();
    fn.bars[0]!.shared!.bytes()[7] = 1;
    fn.bars[2]!.shared!.bytes()[0xfffff] = 1;
    write32(fn, 4, r.SCRATCH, 1);
    write32(fn, 4, r.INTERRUPT_ENABLE, 7);
    write32(fn, 4, r.RAISE, 0);
    write32(fn, 4, r.COMMAND, r.OPERATION_FILL);
    reset(fn);
    assert.equal(machine.clock.next, undefined);
    assert.deepEqual(
      [r.SCRATCH, r.STATUS, r.INTERRUPT_STATUS].map((offset) => read32(fn, 4, offset)),
      [0, 0, 0],
    );
    assert.equal(fn.bars[0]!.shared!.bytes()[7], 0);
    assert.equal(fn.bars[2]!.shared!.bytes()[0xfffff], 0);
    assert.deepEqual(sink.take(), ['intx 1', 'intx 0']);
  }
});

test('virtual functions: the same engine and vectors, their own requester ID, no ports and no INTx', () => {
  const it = setup({ totalVfs: 3 });
  it.fn.sriov!.enable(3);
  const vf = it.fn.sriov!.functions[1]!;
  assert.equal(vf.name, '0000:01:01.1');
  assert.deepEqual([vf.vendor, vf.device], [0x1234, 0x11ea]);
  assert.deepEqual(
    vf.bars.map((bar) => bar?.size),
    [0x10000, undefined, undefined, undefined, 0x1000, 0x8000],
  );
  vf.config.write(reg.PCI_COMMAND, 2, reg.PCI_COMMAND_MASTER);
  const sink = new RecordingSink();
  vf.sink = sink;
  enableMsix(vf);
  it.machine.mapRam(BASE_PAGE, 0, 1);
  const status = run(
    { ...it, fn: vf },
    { [r.DESTINATION]: BASE, [r.LENGTH]: 4, [r.PATTERN]: 0x01010101 },
    r.OPERATION_FILL | r.COMMAND_INTERRUPT,
  );
  assert.equal(status, r.STATUS_DONE);
  assert.equal(it.machine.upstream.asked[0]!.split(':')[0], '109');
  assert.deepEqual(sink.take(), ['message 0']);
});

test('options that cannot be are refused; removal closes the memory', () => {
  for (const options of [{ vectors: 0 }, { vectors: 1025 }, { totalVfs: 257 }, { bars: 'x' }]) {
    assert.throws(() => setup(options), { code: 'EINVAL' });
  }
  let open = 0;
  const machine = new TestMachine();
  const env = {
    ...machine.env,
    allocateShared: (name: string, length: number) => {
      open++;
      return { ...machine.env.allocateShared(name, length), close: () => open-- };
    },
  };
  const fn = machine.add(testdev.create(env, { bars: 'trapped' }), '1.0');
  assert.equal(fn.bars[4]!.trapped, true);
  assert.equal(open, 2);
  fn.remove();
  assert.equal(open, 0);
});
