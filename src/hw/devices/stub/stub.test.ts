import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../../uapi/pci-regs.ts';
import { bridgeSpec, read32, TestMachine, write32 } from '../../pci/test-machine.ts';
import { stub } from './model.ts';

test('a stub is what it is told to be', () => {
  const machine = new TestMachine();
  const vga = machine.addModel(stub, '1.0', {
    vendor: '0x1234',
    device: '0x1111',
    class: '0x030000',
    revision: 2,
    bars: [
      { index: 0, kind: 'memory', size: '16M', prefetchable: true, mappable: true },
      { index: 2, kind: 'memory', size: '4K' },
      { index: 3, kind: 'io', size: 32 },
    ],
    romSize: '64K',
  });
  machine.tree.enumerate();
  assert.equal(vga.config.read(0, 4), 0x11111234);
  assert.equal(vga.class24, 0x030000);
  assert.deepEqual(
    vga.bars.map((bar) => bar?.size),
    [2 ** 24, undefined, 4096, 32, undefined, undefined],
  );
  assert.equal(vga.bars[0]!.shared!.length, 2 ** 24);
  assert.equal(vga.bars[2]!.shared, undefined);
  assert.equal(vga.rom!.size, 65536);
  vga.config.write(reg.PCI_ROM_ADDRESS, 4, 0xffffffff);
  assert.equal(vga.config.read(reg.PCI_ROM_ADDRESS, 4), 0xffff0001);
  assert.equal(vga.config.length, 256);
  assert.equal(vga.portType, undefined);
  assert.deepEqual(vga.resetMethods, []);
});

test('registers read as zero, writes are lost', () => {
  const machine = new TestMachine();
  const fn = machine.addModel(stub, '1.0', { bars: [{ index: 0, size: 4096 }] });
  write32(fn, 0, 8, 5);
  assert.equal(read32(fn, 0, 8), 0);
});

test('capabilities by option', () => {
  const machine = new TestMachine();
  const port = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT), '1.0');
  const fn = machine.addModel(
    stub,
    '0.0',
    {
      pcie: true,
      flr: true,
      pm: 'no-reset',
      msi: 4,
      msix: 10,
      msixBar: 3,
      bars: [{ index: 3, size: '16K' }],
      aer: true,
      acs: 0x1d,
      ats: true,
      pri: true,
      pasidWidth: 20,
      serial: '0x1122334455667788',
    },
    { bus: port.secondary! },
  );
  assert.deepEqual(
    fn.config.capabilities().map((c) => c.id),
    [1, 5, 0x11, 0x10],
  );
  assert.deepEqual(
    fn.config.extended().map((c) => c.id),
    [1, 0x0d, 0x0f, 0x13, 0x1b, 3],
  );
  assert.equal(fn.resetMethods[0], 'flr');
  assert.equal(fn.msix!.vectors, 10);
  const conventional = machine.addModel(stub, '2.0', { flr: true, pm: 'reset' });
  assert.deepEqual(conventional.resetMethods, ['af_flr', 'pm']);
});

test('a reset clears mappable memory', () => {
  const machine = new TestMachine();
  const fn = machine.addModel(stub, '1.0', { pm: 'reset', bars: [{ index: 0, size: 4096, mappable: true }] });
  fn.bars[0]!.shared!.bytes()[5] = 1;
  fn.reset();
  assert.equal(fn.bars[0]!.shared!.bytes()[5], 0);
});

test('what cannot be is refused and says where', () => {
  const machine = new TestMachine();
  const bad: [Record<string, unknown>, RegExp][] = [
    [{ bars: [5] }, /bars\[0\]: must be an object/],
    [
      {
        bars: [
          { index: 0, size: 4096 },
          { index: 6, size: 4096 },
        ],
      },
      /bars\[1\]: index must be 0 to 5/,
    ],
    [{ bars: [{ index: 0, size: 4097 }] }, /power of two from 16/],
    [{ bars: [{ index: 0, size: 'big' }] }, /size must be/],
    [{ bars: [{ index: 0, kind: 'port', size: 16 }] }, /kind must be/],
    [{ bars: [{ index: 0, kind: 'io', size: 16, is64: true }] }, /none of these/],
    [{ bars: [{ index: 0, size: 16, colour: 1 }] }, /there is no 'colour'/],
    [{ bars: [{ index: 0, size: 16, prefetchable: 1 }] }, /true or false/],
    [{ aer: true }, /need pcie/],
    [{ pm: 'maybe' }, /one of none, reset, no-reset/],
  ];
  for (const [options, message] of bad) {
    assert.throws(() => machine.addModel(stub, '1.0', options), { code: 'EINVAL', message });
  }
});
