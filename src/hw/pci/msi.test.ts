import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../uapi/pci-regs.ts';
import type { PciFunction } from './function.ts';
import { msi } from './msi.ts';
import { RecordingSink, TestMachine } from './test-machine.ts';

function makeFunction(options: Parameters<typeof msi>[0]): { fn: PciFunction; sink: RecordingSink; at: number } {
  const fn = new TestMachine().add({ vendor: 1, device: 2, class24: 0, capabilities: [msi(options)] }, '1.0');
  const sink = new RecordingSink();
  fn.sink = sink;
  return { fn, sink, at: fn.msi!.offset };
}

const enable = (vectorsLog2: number): number => 1 | (vectorsLog2 << 4);

test('MSI says what it has: vectors, 64 bits, masks', () => {
  const { fn, at } = makeFunction({ vectors: 8, maskable: true });
  assert.equal(fn.config.read(at + reg.PCI_MSI_FLAGS, 2), 0x0186);
  const small = makeFunction({ vectors: 1, is64: false });
  assert.equal(small.fn.config.read(small.at + reg.PCI_MSI_FLAGS, 2), 0);
  assert.equal(small.fn.config.capabilities()[0]!.length, 10);
  assert.throws(() => makeFunction({ vectors: 3 }), /3 vectors/);
  assert.throws(() => makeFunction({ vectors: 64 }), /64 vectors/);
});

test('only enable and number of vectors are writable in the control, the address is aligned', () => {
  const { fn, at } = makeFunction({ vectors: 4 });
  fn.config.write(at + reg.PCI_MSI_FLAGS, 2, 0xffff);
  assert.equal(fn.config.read(at + reg.PCI_MSI_FLAGS, 2), 0x0084 | 0x71);
  fn.config.write(at + reg.PCI_MSI_ADDRESS_LO, 4, 0xfee01007);
  assert.equal(fn.config.read(at + reg.PCI_MSI_ADDRESS_LO, 4), 0xfee01004);
});

test('a message is sent only while MSI is enabled', () => {
  const { fn, sink, at } = makeFunction({ vectors: 2 });
  fn.msi!.fire(1);
  assert.deepEqual(sink.take(), []);
  fn.config.write(at + reg.PCI_MSI_FLAGS, 2, enable(1));
  assert.equal(fn.msi!.enabled, true);
  fn.msi!.fire(1);
  assert.deepEqual(sink.take(), ['message 1']);
});

test('with fewer vectors granted the lower bits of the number decide', () => {
  const { fn, sink, at } = makeFunction({ vectors: 8 });
  fn.config.write(at + reg.PCI_MSI_FLAGS, 2, enable(1));
  for (const vector of [0, 1, 2, 7]) fn.msi!.fire(vector);
  assert.deepEqual(sink.take(), ['message 0', 'message 1', 'message 0', 'message 1']);
  fn.config.write(at + reg.PCI_MSI_FLAGS, 2, enable(5));
  assert.equal(fn.msi!.enabledVectors, 8, 'never more than it has');
});

test('a masked vector stays pending and is sent once when it is unmasked', () => {
  const { fn, sink, at } = makeFunction({ vectors: 4, maskable: true });
  fn.config.write(at + reg.PCI_MSI_FLAGS, 2, enable(2));
  fn.config.write(at + reg.PCI_MSI_MASK_64, 4, 0xffffffff);
  assert.equal(fn.config.read(at + reg.PCI_MSI_MASK_64, 4), 0xf, 'masks exist only for vectors');
  fn.msi!.fire(2);
  fn.msi!.fire(2);
  assert.equal(fn.config.read(at + reg.PCI_MSI_PENDING_64, 4), 4);
  fn.config.write(at + reg.PCI_MSI_PENDING_64, 4, 0);
  assert.equal(fn.config.read(at + reg.PCI_MSI_PENDING_64, 4), 4, 'software cannot clear it');
  fn.config.write(at + reg.PCI_MSI_MASK_64, 4, 0xb);
  assert.deepEqual(sink.take(), ['message 2']);
  assert.equal(fn.config.read(at + reg.PCI_MSI_PENDING_64, 4), 0);
});

test('reset disables MSI and forgets what was pending', () => {
  const { fn, sink, at } = makeFunction({ vectors: 2, is64: false, maskable: true });
  fn.config.write(at + reg.PCI_MSI_FLAGS, 2, enable(1));
  fn.config.write(at + reg.PCI_MSI_MASK_32, 4, 3);
  fn.msi!.fire(0);
  fn.resetHardware('bus');
  assert.equal(fn.msi!.enabled, false);
  assert.equal(fn.config.read(at + reg.PCI_MSI_PENDING_32, 4), 0);
  fn.config.write(at + reg.PCI_MSI_FLAGS, 2, enable(1));
  assert.deepEqual(sink.take(), []);
});
