import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import * as reg from '../../uapi/pci-regs.ts';
import { advancedFeatures, pciExpress, powerManagement } from './capabilities.ts';
import { aer } from './extended-capabilities.ts';
import type { FunctionSpec, ResetKind } from './function-spec.ts';
import { msix } from './msix.ts';
import { resetBus } from './saved-state.ts';
import { bridgeSpec, plainSpec, RecordingSink, read32, TestMachine, write32 } from './test-machine.ts';

const COMMAND = reg.PCI_COMMAND;

test('the header shows what the spec says and takes the bits that hardware takes', () => {
  const fn = new TestMachine().add(
    {
      vendor: 0x8086,
      device: 0x10c9,
      class24: 0x020000,
      revision: 1,
      subsystemVendor: 0x1af4,
      subsystemDevice: 0x1100,
      interruptPin: 2,
    },
    '3.1',
  );
  assert.equal(fn.name, '0000:00:03.1');
  assert.equal(fn.rid, 0x19);
  assert.equal(fn.config.read(0, 4), 0x10c98086);
  assert.equal(fn.config.read(8, 4), 0x02000001);
  assert.equal(fn.config.read(0x2c, 4), 0x11001af4);
  assert.equal(fn.config.read(0x3d, 1), 2);
  fn.config.write(COMMAND, 2, 0xffff);
  assert.equal(fn.config.read(COMMAND, 2), 0x0507);
});

test('no write by software ever changes identity, class, pin or a BAR’s kind', () => {
  const write = fc.record({
    offset: fc.nat(0x3f),
    size: fc.constantFrom<1 | 2 | 4>(1, 2, 4),
    value: fc.integer({ min: 0, max: 0xffffffff }),
  });
  fc.assert(
    fc.property(fc.array(write, { maxLength: 30 }), (writes) => {
      const fn = new TestMachine().add(
        {
          ...plainSpec(),
          interruptPin: 1,
          bars: [{ index: 0, kind: 'memory', size: 4096, is64: true, prefetchable: true }],
        },
        '1.0',
      );
      const fixed = (): number[] => [0x00, 0x08, 0x2c, 0x34].map((at) => fn.config.read(at, 4));
      const before = fixed();
      for (const { offset, size, value } of writes) fn.config.write(offset, size, value);
      assert.deepEqual(fixed(), before);
      assert.equal(fn.config.read(0x10, 1), 0x0c);
      assert.equal(fn.config.read(0x3d, 1), 1);
      assert.equal(fn.config.read(0x0e, 1), 0);
    }),
    { numRuns: 50 },
  );
});

test('the multifunction bit follows who stands in the slot', () => {
  const machine = new TestMachine();
  const a = machine.add(plainSpec(), '1.0');
  assert.equal(a.config.read(reg.PCI_HEADER_TYPE, 1), 0);
  const b = machine.add(plainSpec(), '1.2');
  assert.deepEqual(
    [a, b].map((fn) => fn.config.read(reg.PCI_HEADER_TYPE, 1)),
    [0x80, 0x80],
  );
  b.remove();
  assert.equal(a.config.read(reg.PCI_HEADER_TYPE, 1), 0);
  const forced = machine.add(plainSpec(), '2.0', { multifunction: true });
  assert.equal(forced.config.read(reg.PCI_HEADER_TYPE, 1), 0x80);
});

test('INTx: STATUS shows what the device wants, INTX_DISABLE holds it back, the sink hears changes', () => {
  const machine = new TestMachine();
  const fn = machine.add({ ...plainSpec(), interruptPin: 1 }, '1.0');
  const sink = new RecordingSink();
  fn.sink = sink;
  fn.intx.assert();
  fn.intx.assert();
  assert.deepEqual(sink.take(), ['intx 1']);
  assert.equal(fn.config.read(reg.PCI_STATUS, 2) & reg.PCI_STATUS_INTERRUPT, reg.PCI_STATUS_INTERRUPT);
  fn.config.write(COMMAND, 2, reg.PCI_COMMAND_INTX_DISABLE);
  assert.deepEqual(sink.take(), ['intx 0']);
  assert.equal(fn.config.read(reg.PCI_STATUS, 2) & reg.PCI_STATUS_INTERRUPT, reg.PCI_STATUS_INTERRUPT);
  fn.config.write(COMMAND + 1, 1, 0);
  assert.deepEqual(sink.take(), ['intx 1']);
  const late = new RecordingSink();
  fn.sink = late;
  assert.deepEqual(late.take(), ['intx 1'], 'who comes late hears the level');
  fn.intx.deassert();
  assert.deepEqual(late.take(), ['intx 0']);
});

test('DMA: refused while Bus Master is off, translated under the requester ID, cut where it faults', () => {
  const machine = new TestMachine();
  const bridge = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_PCI_BRIDGE), '1.0', { secondary: 3 });
  const fn = machine.add(plainSpec(), '2.0', { bus: bridge.secondary! });
  machine.tree.enumerate();
  machine.mapRam(0x10, 0, 2);
  const data = new Uint8Array(8).fill(0x11);
  assert.equal(fn.dma.write(0x10000, data)?.reason, 'bus master is off');
  fn.config.write(COMMAND, 2, reg.PCI_COMMAND_MASTER);
  assert.equal(fn.dma.write(0x10ffc, data), undefined);
  assert.equal(machine.ram[0x1000], 0x11);
  assert.equal(machine.upstream.asked[0], '300:10');
  const fault = fn.dma.read(0x11ffcn, new Uint8Array(8));
  assert.deepEqual(fault, { address: 0x12000n, access: 'read', reason: 'not present' });
});

const resettable = (
  capability: NonNullable<FunctionSpec['capabilities']>[number],
  heard: ResetKind[],
): FunctionSpec => ({
  ...plainSpec(),
  bars: [{ index: 0, kind: 'memory', size: 0x1000 }],
  capabilities: [capability],
  reset: (kind) => heard.push(kind),
});

test('a write of the FLR bit resets: registers as after power-on, the bit reads 0', () => {
  const machine = new TestMachine();
  const heard: ResetKind[] = [];
  const fn = machine.add(resettable(pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT, flr: true }), heard), '1.0');
  machine.tree.enumerate();
  const devctl = fn.config.findCapability(reg.PCI_CAP_ID_EXP) + reg.PCI_EXP_DEVCTL;
  fn.config.write(devctl, 1, 0x80);
  assert.deepEqual(heard, [], 'another byte of the register');
  fn.config.write(devctl, 2, reg.PCI_EXP_DEVCTL_BCR_FLR);
  assert.deepEqual(heard, ['flr']);
  assert.equal(fn.config.read(devctl, 2), 0x2810);
  assert.equal(fn.config.read(COMMAND, 2), 0);
  assert.equal(fn.config.read(0x10, 4), 0);
  assert.equal(fn.memoryEnabled, false);
  for (const [offset, size, value] of [
    [1, 1, 0x80],
    [0, 4, 0x8000],
  ] as const)
    fn.config.write(devctl + offset, size, value);
  assert.deepEqual(heard, ['flr', 'flr', 'flr'], 'as a byte and as four');
});

test('reset() keeps what software set up, whatever the method', () => {
  for (const [capability, kind] of [
    [pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT, flr: true }), 'flr'],
    [advancedFeatures(), 'af_flr'],
    [powerManagement(), 'pm'],
  ] as const) {
    const machine = new TestMachine();
    const heard: ResetKind[] = [];
    const fn = machine.add(resettable(capability, heard), '1.0');
    machine.tree.enumerate();
    fn.config.write(COMMAND, 2, 0x106);
    const before = fn.config.bytes.slice();
    assert.deepEqual(fn.resetMethods, [kind]);
    fn.reset();
    assert.deepEqual(heard, [kind]);
    assert.deepEqual(fn.config.bytes, before);
    assert.equal(fn.decodedAddress(fn.bars[0]!), fn.bars[0]!.address);
  }
});

test('reset() of a function without a method is refused with ENOTTY', () => {
  const machine = new TestMachine();
  const fn = machine.add({ ...plainSpec(), capabilities: [powerManagement({ noSoftReset: true })] }, '1.0');
  assert.deepEqual(fn.resetMethods, []);
  assert.throws(() => fn.reset(), { code: 'ENOTTY' });
  assert.throws(() => fn.reset('flr'), { code: 'ENOTTY' });
});

test('a function alone behind a bridge can be reset by its bus, one with neighbours cannot', () => {
  const machine = new TestMachine();
  const heard: ResetKind[] = [];
  const bridge = machine.add(bridgeSpec(), '1.0');
  const fn = machine.add({ ...plainSpec(), reset: (kind) => heard.push(kind) }, '0.0', { bus: bridge.secondary! });
  machine.tree.enumerate();
  assert.deepEqual(fn.resetMethods, ['bus']);
  fn.reset();
  assert.deepEqual(heard, ['bus']);
  machine.add(plainSpec(), '1.0', { bus: bridge.secondary! });
  assert.deepEqual(fn.resetMethods, []);
});

test('in D3hot neither memory nor DMA works, and D0 comes with a reset unless NO_SOFT_RESET', () => {
  for (const noSoftReset of [false, true]) {
    const machine = new TestMachine();
    const heard: ResetKind[] = [];
    const fn = machine.add(resettable(powerManagement({ noSoftReset }), heard), '1.0');
    machine.tree.enumerate();
    fn.config.write(COMMAND, 2, 0x107);
    const control = fn.config.findCapability(reg.PCI_CAP_ID_PM) + reg.PCI_PM_CTRL;
    fn.config.write(control, 2, 1);
    assert.equal(fn.powerState, 0, 'D1 does not exist');
    fn.config.write(control, 2, 3);
    assert.deepEqual([fn.powerState, fn.memoryEnabled, fn.busMaster], [3, false, false]);
    assert.equal(fn.decodedAddress(fn.bars[0]!), -1);
    fn.config.write(control, 2, 0);
    assert.equal(fn.powerState, 0);
    assert.deepEqual(heard, noSoftReset ? [] : ['pm']);
    assert.equal(fn.memoryEnabled, noSoftReset);
  }
});

test('Secondary Bus Reset resets everything below once, also behind further bridges; the tree stays', () => {
  const machine = new TestMachine();
  const heard: string[] = [];
  const spec = (name: string): FunctionSpec => ({ ...plainSpec(), reset: (kind) => heard.push(`${name} ${kind}`) });
  const bridge = machine.add(bridgeSpec(), '1.0');
  const inner = machine.add(bridgeSpec(), '0.0', { bus: bridge.secondary! });
  machine.add(spec('a'), '1.0', { bus: bridge.secondary! });
  const b = machine.add(spec('b'), '1.0', { bus: inner.secondary! });
  machine.add(spec('beside'), '2.0');
  machine.tree.enumerate();
  bridge.pulseBusReset();
  assert.deepEqual(heard.sort(), ['a bus', 'b bus']);
  assert.equal(inner.config.read(reg.PCI_SECONDARY_BUS, 1), 0, 'software has to number the bus again');
  assert.equal(b.name, '0000:02:01.0');
  heard.length = 0;
  b.config.write(COMMAND, 2, 0x106);
  inner.config.write(reg.PCI_SECONDARY_BUS, 1, 2);
  resetBus(bridge);
  assert.equal(heard.length, 2);
  assert.equal(b.config.read(COMMAND, 2), 0x106, 'resetBus restores');
  assert.equal(inner.config.read(reg.PCI_SECONDARY_BUS, 1), 2);
});

test('reset keeps the MSI-X table for software that restores', () => {
  const machine = new TestMachine();
  const fn = machine.add(
    {
      ...plainSpec(),
      bars: [{ index: 0, kind: 'memory', size: 0x1000 }],
      capabilities: [pciExpress({ type: 0, flr: true }), msix({ vectors: 2, tableBar: 0, tableOffset: 0 })],
    },
    '1.0',
  );
  machine.tree.enumerate();
  write32(fn, 0, 0x18, 0x4041);
  fn.msix!.setMask(1, false);
  fn.config.write(fn.msix!.offset + 2, 2, 0x8000);
  fn.reset();
  assert.equal(read32(fn, 0, 0x18), 0x4041);
  assert.equal(fn.msix!.isMasked(1), false);
  assert.equal(fn.msix!.enabled, true);
});

test('BARs follow their registers: DMA of one function reaches another’s BAR where it decodes', () => {
  const machine = new TestMachine();
  const shared = machine.env.allocateShared('bar', 0x2000);
  const target = machine.add({ ...plainSpec(), bars: [{ index: 0, kind: 'memory', size: 0x2000, shared }] }, '1.0');
  const source = machine.add(plainSpec(), '2.0');
  machine.tree.enumerate();
  source.config.write(COMMAND, 2, reg.PCI_COMMAND_MASTER);
  const page = machine.tree.physicalOf(shared, 0x1004);
  assert.equal(page, target.bars[0]!.address / 4096 + 1);
  machine.upstream.map(7, page);
  assert.equal(source.dma.write(0x7010, Uint8Array.of(1, 2, 3)), undefined);
  assert.deepEqual([...shared.bytes().subarray(0x1010, 0x1013)], [1, 2, 3]);
  target.config.write(COMMAND, 2, 0);
  assert.equal(source.dma.write(0x7010, Uint8Array.of(9))?.reason, 'memory has gone');
  assert.equal(machine.tree.physicalOf(shared, 0), -1);
  target.config.write(0x10, 4, 0xd0000000);
  target.config.write(COMMAND, 2, reg.PCI_COMMAND_MEMORY);
  assert.equal(target.decodedAddress(target.bars[0]!), 0xd0000000);
});

test('a BAR that is put onto another one does not answer, and does when the other is gone', () => {
  const machine = new TestMachine();
  const spec: FunctionSpec = { ...plainSpec(), bars: [{ index: 0, kind: 'memory', size: 0x1000 }] };
  const a = machine.add(spec, '1.0');
  const b = machine.add(spec, '2.0');
  machine.tree.enumerate();
  b.config.write(0x10, 4, a.bars[0]!.address);
  assert.equal(b.decodedAddress(b.bars[0]!), -1);
  a.remove();
  b.updateDecoding();
  assert.equal(b.decodedAddress(b.bars[0]!), a.bars[0]!.address);
});

test('removal: reads of ones, DMA refused, the model told, what is behind a bridge goes first', () => {
  const machine = new TestMachine();
  const gone: string[] = [];
  machine.tree.watch({ removed: (fn) => gone.push(fn.name) });
  let told = 0;
  const bridge = machine.add(bridgeSpec(), '1.0');
  const fn = machine.add(
    { ...plainSpec(), bars: [{ index: 0, kind: 'memory', size: 4096 }], removed: () => told++ },
    '0.0',
    {
      bus: bridge.secondary!,
    },
  );
  machine.tree.enumerate();
  fn.config.write(COMMAND, 2, 0x106);
  bridge.remove();
  bridge.remove();
  assert.deepEqual(gone, ['0000:01:00.0', '0000:00:01.0']);
  assert.equal(told, 1);
  assert.equal(fn.present, false);
  assert.equal(fn.config.read(0, 4), 0xffffffff);
  assert.equal(read32(fn, 0, 0), 0xffffffff);
  assert.equal(fn.dma.read(0x1000, new Uint8Array(4))?.reason, 'bus master is off');
  assert.deepEqual(machine.tree.functions(), []);
  assert.equal(machine.memory.isFree(0, 2 ** 20), true);
});

test('an error sets the AER status and tells the sink, unless it is masked', () => {
  const machine = new TestMachine();
  const fn = machine.add({ ...plainSpec(), capabilities: [pciExpress({ type: 0 }), aer()] }, '1.0');
  const sink = new RecordingSink();
  fn.sink = sink;
  const at = fn.config.findExtended(reg.PCI_EXT_CAP_ID_ERR);
  fn.reportError(reg.PCI_ERR_UNC_COMP_TIME, false);
  fn.reportError(reg.PCI_ERR_UNC_INTN, true);
  assert.deepEqual(sink.take(), ['error']);
  assert.equal(fn.config.read(at + reg.PCI_ERR_UNCOR_STATUS, 4), reg.PCI_ERR_UNC_COMP_TIME | reg.PCI_ERR_UNC_INTN);
  fn.config.write(at + reg.PCI_ERR_UNCOR_STATUS, 4, reg.PCI_ERR_UNC_COMP_TIME);
  assert.equal(fn.config.read(at + reg.PCI_ERR_UNCOR_STATUS, 4), reg.PCI_ERR_UNC_INTN);
});

test('slots are taken once, and only those that exist', () => {
  const machine = new TestMachine();
  machine.add(plainSpec(), '1.0');
  assert.throws(() => machine.add(plainSpec(), '1.0'), { code: 'EEXIST' });
  assert.throws(() => machine.tree.add(plainSpec(), { bus: machine.root, devfn: 256 }), { code: 'EINVAL' });
  assert.throws(() => machine.tree.addRoot(0, 0), { code: 'EEXIST' });
  const other = machine.tree.addRoot(1, 0);
  assert.equal(machine.tree.add(plainSpec(), { bus: other, devfn: 8 }).name, '0001:00:01.0');
});
