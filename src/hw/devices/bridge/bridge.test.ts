import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../../uapi/pci-regs.ts';
import { acsEnabled } from '../../pci/acs.ts';
import type { PciFunction } from '../../pci/function.ts';
import { plainSpec, TestMachine } from '../../pci/test-machine.ts';
import { bridges, hostBridge, pciBridge, pciePciBridge, rootPort, switchDownstream, switchUpstream } from './model.ts';

test('every bridge has its port type, class and header type', () => {
  const expected: [string, number | undefined, number, number, number][] = [
    ['host-bridge', undefined, 0x8086_29c0, 0x060000, 0],
    ['root-port', reg.PCI_EXP_TYPE_ROOT_PORT, 0x1b36_000c, 0x060400, 1],
    ['switch-upstream', reg.PCI_EXP_TYPE_UPSTREAM, 0x104c_8232, 0x060400, 1],
    ['switch-downstream', reg.PCI_EXP_TYPE_DOWNSTREAM, 0x104c_8233, 0x060400, 1],
    ['pcie-pci-bridge', reg.PCI_EXP_TYPE_PCI_BRIDGE, 0x1b36_000e, 0x060400, 1],
    ['pci-bridge', undefined, 0x1b36_0001, 0x060400, 1],
  ];
  const machine = new TestMachine();
  bridges.forEach((model, i) => {
    const fn = machine.addModel(model, `${i + 1}.0`);
    const found = [
      model.name,
      fn.portType,
      fn.vendor * 65536 + fn.device,
      fn.class24,
      fn.config.read(reg.PCI_HEADER_TYPE, 1),
    ];
    assert.deepEqual(found, expected[i]);
    assert.equal(fn.isBridge, expected[i]![4] === 1);
  });
  assert.equal(machine.tree.find('0000:00:01.0')!.spec.bridge, undefined);
  assert.ok(hostBridge.description.length > 0);
});

const acsOf = (fn: PciFunction): [number, number] => {
  const at = fn.config.findExtended(reg.PCI_EXT_CAP_ID_ACS);
  return at === 0 ? [-1, -1] : [fn.config.read(at + reg.PCI_ACS_CAP, 2), fn.config.read(at + reg.PCI_ACS_CTRL, 2)];
};

test('T-11 T-12: ports isolate unless the host file says otherwise', () => {
  const machine = new TestMachine();
  const port = (at: string, options: Record<string, unknown>): PciFunction => machine.addModel(rootPort, at, options);
  const list = [
    port('1.0', {}),
    port('2.0', { acs: 'none' }),
    port('3.0', { acs: 'SV|RR|CR' }),
    port('4.0', { acsControl: 'none' }),
    port('5.0', { acs: '0x1d', acsControl: 'SV|RR' }),
  ];
  machine.tree.enumerate();
  assert.deepEqual(list.map(acsOf), [
    [0x5f, 0x1d],
    [-1, -1],
    [0x0d, 0x0d],
    [0x5f, 0],
    [0x1d, 0x05],
  ]);
  assert.deepEqual(
    list.map((fn) => acsEnabled(fn)),
    [true, false, true, false, false],
  );
});

test('ACS that does not exist is refused by name; bridges without ACS have no such option', () => {
  const machine = new TestMachine();
  assert.throws(() => machine.addModel(rootPort, '1.0', { acs: 'SV|XX' }), {
    code: 'EINVAL',
    message: /XX is none of SV, TB/,
  });
  for (const model of [switchUpstream, pciePciBridge, pciBridge]) {
    assert.throws(() => machine.addModel(model, '1.0', { acs: 'SV' }), { code: 'EINVAL', message: /no option 'acs'/ });
  }
});

test('a switch carries a bus between its ports and one behind each', () => {
  const machine = new TestMachine();
  const port = machine.addModel(rootPort, '1.0', { slot: 3, port: 9 });
  const up = machine.addModel(switchUpstream, '0.0', {}, { bus: port.secondary! });
  const left = machine.addModel(switchDownstream, '0.0', {}, { bus: up.secondary! });
  const right = machine.addModel(switchDownstream, '1.0', {}, { bus: up.secondary! });
  const leaf = machine.add(plainSpec(reg.PCI_EXP_TYPE_ENDPOINT), '0.0', { bus: right.secondary! });
  machine.tree.enumerate();
  assert.deepEqual(
    [port, up, left, right].map((fn) => fn.secondary!.number),
    [1, 2, 3, 4],
  );
  assert.equal(port.secondary!.subordinate, 4);
  assert.equal(leaf.name, '0000:04:00.0');
  assert.equal(leaf.requesterId, 0x400);
  assert.deepEqual(left.resetMethods, []);
});

test('Secondary Bus Reset of a port reaches what is behind it', () => {
  const machine = new TestMachine();
  const port = machine.addModel(rootPort, '1.0');
  const bridge = machine.addModel(pciePciBridge, '0.0', {}, { bus: port.secondary! });
  let resets = 0;
  machine.add({ ...plainSpec(), reset: () => resets++ }, '1.0', { bus: bridge.secondary! });
  machine.tree.enumerate();
  port.config.write(reg.PCI_BRIDGE_CONTROL, 2, reg.PCI_BRIDGE_CTL_BUS_RESET);
  port.config.write(reg.PCI_BRIDGE_CONTROL, 2, reg.PCI_BRIDGE_CTL_BUS_RESET);
  assert.equal(resets, 1, 'the edge counts');
  port.config.write(reg.PCI_BRIDGE_CONTROL, 2, 0);
  bridge.pulseBusReset();
  assert.equal(resets, 2);
});
