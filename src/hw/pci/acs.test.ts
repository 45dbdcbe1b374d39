import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../uapi/pci-regs.ts';
import { ACS_ISOLATION, acsEnabled, acsPathEnabled } from './acs.ts';
import { bridgeSpec, plainSpec, TestMachine } from './test-machine.ts';

const { PCI_ACS_SV: SV, PCI_ACS_RR: RR, PCI_ACS_CR: CR, PCI_ACS_UF: UF, PCI_ACS_EC: EC } = reg;
const ALL = SV | RR | CR | UF;

test('T-10: a multifunction endpoint needs ACS, a function alone in its slot does not', () => {
  const machine = new TestMachine();
  const a = machine.add(plainSpec(reg.PCI_EXP_TYPE_ENDPOINT), '1.0');
  assert.equal(acsEnabled(a), true);
  const b = machine.add(plainSpec(reg.PCI_EXP_TYPE_ENDPOINT), '1.1');
  assert.deepEqual([acsEnabled(a), acsEnabled(b)], [false, false]);
  b.remove();
  assert.equal(acsEnabled(a), true);
  machine.add(plainSpec(reg.PCI_EXP_TYPE_ENDPOINT, { capability: ALL }), '2.0');
  const c = machine.add(plainSpec(reg.PCI_EXP_TYPE_ENDPOINT, { capability: ALL }), '2.1');
  machine.tree.enumerate();
  assert.equal(acsEnabled(c), true, 'with ACS switched on');
});

test('T-11: a downstream port whose control is 0 does not isolate', () => {
  const machine = new TestMachine();
  const port = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT, { capability: ALL }), '1.0', { secondary: 1 });
  const up = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_UPSTREAM), '0.0', { bus: port.secondary!, secondary: 2 });
  const off = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_DOWNSTREAM, { capability: ALL, control: 0 }), '0.0', {
    bus: up.secondary!,
    secondary: 3,
  });
  const on = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_DOWNSTREAM, { capability: ALL }), '1.0', {
    bus: up.secondary!,
    secondary: 4,
  });
  machine.tree.enumerate();
  assert.equal(acsEnabled(off), false);
  assert.equal(acsPathEnabled(off, null), false);
  assert.equal(acsPathEnabled(on, null), true);
  assert.equal(acsPathEnabled(on, up), true);
});

test('T-12: what the capability lacks counts as always on, except egress control', () => {
  const machine = new TestMachine();
  const port = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT, { capability: SV | RR | CR }), '1.0', {
    secondary: 1,
  });
  machine.tree.enumerate();
  assert.equal(port.config.read(port.config.findExtended(reg.PCI_EXT_CAP_ID_ACS) + reg.PCI_ACS_CTRL, 2), SV | RR | CR);
  assert.equal(acsEnabled(port, ACS_ISOLATION), true);
  assert.equal(acsEnabled(port, ACS_ISOLATION | EC), false);
});

test('T-13: a quirk decides before anything else, in both directions', () => {
  const machine = new TestMachine();
  const conventional = machine.add(plainSpec(), '1.0', { quirks: { acsOverride: true } });
  assert.equal(acsEnabled(conventional), true);
  const single = machine.add(plainSpec(reg.PCI_EXP_TYPE_ENDPOINT), '2.0', { quirks: { acsOverride: false } });
  assert.equal(acsEnabled(single), false);
  const known = { ...plainSpec(reg.PCI_EXP_TYPE_ENDPOINT), vendor: 0x8086, device: 0x10c9 };
  const network = machine.add(known, '3.0');
  machine.add(known, '3.1');
  assert.equal(acsEnabled(network), true, 'in the table of documented devices');
});

test('T-14: bridges to or from conventional PCI, event collectors and conventional functions never pass', () => {
  const machine = new TestMachine();
  const services = { capability: ALL };
  const list = [
    machine.add(bridgeSpec(reg.PCI_EXP_TYPE_PCI_BRIDGE, services), '1.0', { secondary: 1 }),
    machine.add(bridgeSpec(reg.PCI_EXP_TYPE_PCIE_BRIDGE, services), '2.0', { secondary: 2 }),
    machine.add(plainSpec(reg.PCI_EXP_TYPE_RC_EC, services), '3.0'),
    machine.add(plainSpec(), '4.0'),
    machine.add(bridgeSpec(), '5.0', { secondary: 3 }),
    machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT), '6.0', { secondary: 4 }),
  ];
  machine.tree.enumerate();
  assert.deepEqual(
    list.map((fn) => acsEnabled(fn)),
    [false, false, false, false, false, false],
  );
});

test('a path that never meets its end does not pass', () => {
  const machine = new TestMachine();
  const port = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT, { capability: ALL }), '1.0', { secondary: 1 });
  const other = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT, { capability: ALL }), '2.0', { secondary: 2 });
  const fn = machine.add(plainSpec(reg.PCI_EXP_TYPE_ENDPOINT), '0.0', { bus: port.secondary! });
  machine.tree.enumerate();
  assert.equal(acsPathEnabled(fn, null), true);
  assert.equal(acsPathEnabled(fn, other), false);
});
