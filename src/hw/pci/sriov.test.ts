import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../uapi/pci-regs.ts';
import { pciExpress } from './capabilities.ts';
import type { PciFunction } from './function.ts';
import { type SriovOptions, sriov } from './sriov.ts';
import { bridgeSpec, plainSpec, read32, TestMachine } from './test-machine.ts';

function makeMachine(options: Partial<SriovOptions> = {}): { machine: TestMachine; pf: PciFunction; log: string[] } {
  const machine = new TestMachine();
  const log: string[] = [];
  machine.tree.watch({ added: (fn) => log.push(`+${fn.name}`), removed: (fn) => log.push(`-${fn.name}`) });
  const port = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT), '1.0', { secondary: 1 });
  const pf = machine.add(
    {
      ...plainSpec(),
      capabilities: [
        pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT, flr: true }),
        sriov({
          totalVfs: 4,
          vfDevice: 0x10ca,
          firstOffset: 0x80,
          stride: 2,
          vfBars: [{ index: 0, size: 0x4000 }],
          virtualFunction: (index) => ({
            ...plainSpec(),
            capabilities: [pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT, flr: true })],
            interruptPin: 1,
            bars: [
              {
                index: 0,
                kind: 'memory',
                size: 0x4000,
                registers: { read: (_at, into) => into.fill(index), write: () => {} },
              },
            ],
            reset: (kind) => log.push(`vf${index} ${kind}`),
          }),
          ...options,
        }),
      ],
    },
    '0.0',
    { bus: port.secondary! },
  );
  machine.tree.enumerate();
  log.length = 0;
  return { machine, pf, log };
}

test('T-22: virtual functions stand at first offset + n × stride', () => {
  const { machine, pf, log } = makeMachine();
  pf.sriov!.enable(3);
  assert.deepEqual(log, ['+0000:01:10.0', '+0000:01:10.2', '+0000:01:10.4']);
  assert.deepEqual(
    pf.sriov!.functions.map((vf) => vf.rid),
    [0x180, 0x182, 0x184],
  );
  const vf = machine.tree.find('0000:01:10.2')!;
  assert.equal(vf.isVirtfn, true);
  assert.equal(vf.physfn, pf);
  assert.equal(vf.multifunction, false);
  assert.equal(vf.requesterId, 0x182);
});

test('T-22: those beyond devfn 255 are on the next bus number, a bus without a bridge', () => {
  const { machine, pf } = makeMachine({ totalVfs: 140, stride: 1, firstOffset: 0x80, vfBars: [] });
  assert.equal(pf.bus.self!.config.read(reg.PCI_SUBORDINATE_BUS, 1), 2, 'firmware keeps the number free');
  pf.sriov!.enable(140);
  const last = pf.sriov!.functions[139]!;
  assert.equal(last.name, '0000:02:01.3');
  assert.equal(last.bus.self, undefined);
  assert.equal(last.bus.parent, pf.bus);
  assert.equal(machine.tree.find('0000:02:00.0'), pf.sriov!.functions[128]);
  assert.equal(last.requesterId, last.rid);
  pf.sriov!.disable();
  assert.deepEqual(
    machine.tree.busses().map((bus) => bus.number),
    [0, 1],
  );
});

test('T-22: a bus that the description has already given away is refused', () => {
  const machine = new TestMachine();
  machine.add(
    {
      ...plainSpec(),
      capabilities: [
        pciExpress({ type: 0 }),
        sriov({
          totalVfs: 8,
          vfDevice: 1,
          firstOffset: 0xfc,
          stride: 1,
          vfBars: [],
          virtualFunction: () => plainSpec(),
        }),
      ],
    },
    '1.0',
  );
  machine.add(bridgeSpec(), '2.0', { secondary: 1 });
  assert.throws(() => machine.tree.enumerate(), { code: 'EINVAL', message: /need bus 0x1/ });
});

test('a virtual function hides its identity and has its BAR inside the physical one’s', () => {
  const { pf } = makeMachine();
  const bar = pf.sriov!.vfBars[0]!;
  assert.equal(pf.config.read(pf.sriov!.offset + reg.PCI_SRIOV_BAR, 4), bar.address);
  assert.notEqual(bar.address, 0);
  pf.sriov!.enable(4);
  const vf = pf.sriov!.functions[2]!;
  assert.equal(vf.config.read(0, 4), 0xffffffff);
  assert.deepEqual([vf.vendor, vf.device], [0x1234, 0x10ca]);
  assert.equal(vf.config.read(0x10, 4), 0);
  assert.equal(vf.interruptPin, 0);
  vf.config.write(reg.PCI_COMMAND, 2, 0xffff);
  assert.equal(vf.config.read(reg.PCI_COMMAND, 2), reg.PCI_COMMAND_MASTER);
  assert.equal(vf.bars[0]!.address, bar.address + 2 * 0x4000);
  assert.equal(vf.decodedAddress(vf.bars[0]!), vf.bars[0]!.address);
  assert.equal(read32(vf, 0, 0), 0x02020202);
});

test('VF MSE switches the memory of all of them', () => {
  const { pf } = makeMachine();
  pf.sriov!.enable(2);
  const vf = pf.sriov!.functions[1]!;
  assert.equal(vf.memoryEnabled, true);
  pf.config.write(pf.sriov!.offset + reg.PCI_SRIOV_CTRL, 2, reg.PCI_SRIOV_CTRL_VFE);
  assert.equal(vf.memoryEnabled, false);
  assert.equal(vf.decodedAddress(vf.bars[0]!), -1);
  assert.equal(pf.sriov!.functions.length, 2);
});

test('sizing a VF BAR gives the size of one', () => {
  const { pf } = makeMachine({ vfBars: [{ index: 0, size: 0x4000, is64: true, prefetchable: true }] });
  const at = pf.sriov!.offset + reg.PCI_SRIOV_BAR;
  pf.config.write(at, 4, 0xffffffff);
  pf.config.write(at + 4, 4, 0xffffffff);
  assert.equal(pf.config.read(at, 4), 0xffffc00c);
  assert.equal(pf.config.read(at + 4, 4), 0xffffffff);
});

test('numbers that cannot be are refused', () => {
  const { pf } = makeMachine();
  assert.throws(() => pf.sriov!.enable(0), { code: 'EINVAL' });
  assert.throws(() => pf.sriov!.enable(5), { code: 'EINVAL' });
  pf.sriov!.enable(1);
  assert.throws(() => pf.sriov!.enable(2), { code: 'EBUSY' });
});

test('disabling and removal of the physical function take its virtual ones along', () => {
  const { machine, pf, log } = makeMachine();
  pf.sriov!.enable(2);
  log.length = 0;
  pf.sriov!.disable();
  assert.deepEqual(log, ['-0000:01:10.2', '-0000:01:10.0']);
  pf.sriov!.enable(1);
  pf.remove();
  assert.deepEqual(
    machine.tree.functions().map((fn) => fn.name),
    ['0000:00:01.0'],
  );
});

test('a reset of the physical function resets its virtual ones and leaves them on the bus', () => {
  const { pf, log } = makeMachine();
  pf.sriov!.enable(2);
  const before = [...pf.sriov!.functions];
  log.length = 0;
  pf.reset('flr');
  assert.deepEqual(log, ['vf0 flr', 'vf1 flr']);
  assert.deepEqual(pf.sriov!.functions, before);
  assert.equal(before[0]!.memoryEnabled, true);
  log.length = 0;
  before[1]!.reset('flr');
  assert.deepEqual(log, ['vf1 flr'], 'one virtual function alone');
});
