import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../uapi/pci-regs.ts';
import type { PciFunction } from './function.ts';
import { msix } from './msix.ts';
import { RecordingSink, read32, read64, TestMachine, write32, write64 } from './test-machine.ts';

function makeFunction(vectors = 4): { fn: PciFunction; sink: RecordingSink; control: number } {
  const fn = new TestMachine().add(
    {
      vendor: 1,
      device: 2,
      class24: 0,
      bars: [{ index: 0, kind: 'memory', size: 0x1_0000 }],
      capabilities: [msix({ vectors, tableBar: 0, tableOffset: 0x800, pbaOffset: 0xc000 })],
    },
    '1.0',
  );
  const sink = new RecordingSink();
  fn.sink = sink;
  return { fn, sink, control: fn.msix!.offset + reg.PCI_MSIX_FLAGS };
}

test('MSI-X says where table and pending bits are', () => {
  const { fn } = makeFunction(4);
  const at = fn.msix!.offset;
  assert.equal(fn.config.read(at + reg.PCI_MSIX_FLAGS, 2), 3);
  assert.equal(fn.config.read(at + reg.PCI_MSIX_TABLE, 4), 0x800);
  assert.equal(fn.config.read(at + reg.PCI_MSIX_PBA, 4), 0xc000);
  fn.config.write(at + reg.PCI_MSIX_FLAGS, 2, 0xffff);
  assert.equal(fn.config.read(at + reg.PCI_MSIX_FLAGS, 2), 0xc003);
});

test('the table keeps messages; of the vector control only the mask bit exists, and it starts masked', () => {
  const { fn } = makeFunction();
  assert.equal(read32(fn, 0, 0x80c), 1);
  write64(fn, 0, 0x810, 0x1122_3344_fee0_1007n);
  write64(fn, 0, 0x818, 0xffff_fffe_0000_4041n);
  assert.equal(read64(fn, 0, 0x810), 0x1122_3344_fee0_1004n);
  assert.equal(read64(fn, 0, 0x818), 0x0000_0000_0000_4041n);
  assert.equal(fn.msix!.isMasked(1), false);
});

test('fire: nothing while disabled, pending while masked, sent when entry and function are unmasked', () => {
  const { fn, sink, control } = makeFunction();
  fn.msix!.fire(2);
  fn.config.write(control, 2, reg.PCI_MSIX_FLAGS_ENABLE);
  assert.equal(read64(fn, 0, 0xc000), 0n, 'what was fired while disabled is lost');
  fn.msix!.fire(2);
  assert.equal(read64(fn, 0, 0xc000), 4n);
  write64(fn, 0, 0xc000, 0n);
  assert.equal(read64(fn, 0, 0xc000), 4n, 'pending bits are read-only');
  assert.deepEqual(sink.take(), []);
  write32(fn, 0, 0x82c, 0);
  assert.deepEqual(sink.take(), ['message 2']);
  assert.equal(read64(fn, 0, 0xc000), 0n);
  fn.msix!.fire(2);
  assert.deepEqual(sink.take(), ['message 2']);
  fn.msix!.fire(4);
  assert.deepEqual(sink.take(), [], 'there is no such vector');
});

test('the function mask holds back all vectors and lets them go together', () => {
  const { fn, sink, control } = makeFunction(70);
  for (let v = 0; v < 70; v++) fn.msix!.setMask(v, false);
  fn.config.write(control, 2, reg.PCI_MSIX_FLAGS_ENABLE | reg.PCI_MSIX_FLAGS_MASKALL);
  fn.msix!.fire(0);
  fn.msix!.fire(69);
  assert.equal(read64(fn, 0, 0xc008), 0x20n);
  fn.config.write(control, 2, reg.PCI_MSIX_FLAGS_ENABLE);
  assert.deepEqual(sink.take(), ['message 0', 'message 69']);
});

test('reset masks all entries, clears the table and what was pending', () => {
  const { fn, control } = makeFunction();
  fn.config.write(control, 2, reg.PCI_MSIX_FLAGS_ENABLE);
  write64(fn, 0, 0x800, 0xfee0_0000n);
  fn.msix!.fire(1);
  fn.resetHardware('flr');
  assert.equal(fn.msix!.enabled, false);
  assert.equal(read64(fn, 0, 0x800), 0n);
  assert.equal(read64(fn, 0, 0xc000), 0n);
  assert.equal(fn.msix!.isMasked(1), true);
});

test('a table that does not fit is a bug of the model', () => {
  const machine = new TestMachine();
  const make = (options: Parameters<typeof msix>[0]) => () =>
    machine.add(
      {
        vendor: 1,
        device: 2,
        class24: 0,
        bars: [{ index: 0, kind: 'memory', size: 0x1000 }],
        capabilities: [msix(options)],
      },
      '1.0',
    );
  assert.throws(make({ vectors: 0, tableBar: 0, tableOffset: 0 }), /0 vectors/);
  assert.throws(make({ vectors: 4, tableBar: 1, tableOffset: 0 }), /does not exist/);
  assert.throws(make({ vectors: 257, tableBar: 0, tableOffset: 0 }), /too small/);
});
