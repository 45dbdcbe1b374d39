import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../uapi/pci-regs.ts';
import { areDmaAliases, forEachDmaAlias } from './aliases.ts';
import type { PciFunction } from './function.ts';
import { bridgeSpec, plainSpec, TestMachine } from './test-machine.ts';

/** `<function that causes it>=<rid>` for each alias. */
function aliasesOf(fn: PciFunction): string[] {
  const list: string[] = [];
  forEachDmaAlias(fn, (cause, rid) => {
    list.push(
      `${cause.name.slice(5)}=${(rid >> 8).toString(16).padStart(2, '0')}:${(rid & 0xff).toString(16).padStart(2, '0')}`,
    );
    return 0;
  });
  return list;
}

test('T-1: an endpoint behind a root port has one requester ID, its own; switch ports add none', () => {
  const machine = new TestMachine();
  const port = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT), '1.0', { secondary: 1 });
  const up = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_UPSTREAM), '0.0', { bus: port.secondary!, secondary: 2 });
  const down = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_DOWNSTREAM), '0.0', { bus: up.secondary!, secondary: 3 });
  const endpoint = machine.add(plainSpec(reg.PCI_EXP_TYPE_ENDPOINT), '0.0', { bus: down.secondary! });
  assert.deepEqual(aliasesOf(endpoint), ['03:00.0=03:00']);
  assert.equal(endpoint.requesterId, 0x300);
});

test('T-2: behind a PCIe-to-PCI bridge the secondary bus number with devfn 0 is an alias, unless the bridge has a mark', () => {
  const machine = new TestMachine();
  const port = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT), '1.0', { secondary: 5 });
  const bridge = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_PCI_BRIDGE), '0.0', { bus: port.secondary!, secondary: 6 });
  const card = machine.add(plainSpec(), 'd.1', { bus: bridge.secondary! });
  assert.deepEqual(aliasesOf(card), ['06:0d.1=06:69', '05:00.0=06:00']);
  assert.equal(card.requesterId, 0x600);
  bridge.quirks.bridgeNoAlias = true;
  assert.deepEqual(aliasesOf(card), ['06:0d.1=06:69']);
  assert.equal(card.requesterId, card.rid);
});

test('T-2: with further buses below it is the secondary number that counts, not the subordinate', () => {
  const machine = new TestMachine();
  const bridge = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_PCI_BRIDGE), '1.0', { secondary: 6 });
  const inner = machine.add(bridgeSpec(), '2.0', { bus: bridge.secondary!, secondary: 7 });
  const card = machine.add(plainSpec(), '3.0', { bus: inner.secondary! });
  machine.tree.enumerate();
  assert.equal(bridge.secondary!.subordinate, 7);
  assert.deepEqual(aliasesOf(card), ['07:03.0=07:18', '06:02.0=06:10', '00:01.0=06:00']);
  assert.equal(card.requesterId, 0x600, 'the last bridge decides what arrives');
});

test('T-3: behind a conventional bridge both functions have the requester ID of the bridge', () => {
  const machine = new TestMachine();
  const bridge = machine.add(bridgeSpec(), '1e.0', { secondary: 6 });
  for (const at of ['d.0', 'd.1']) {
    const card = machine.add(plainSpec(), at, { bus: bridge.secondary! });
    assert.equal(aliasesOf(card)[1], '00:1e.0=00:f0');
    assert.equal(card.requesterId, bridge.rid);
  }
  bridge.quirks.pcieBridgeAlias = true;
  assert.equal(aliasesOf(bridge.secondary!.functions[0]!)[1], '00:1e.0=06:00');
});

test('T-3: a PCI-to-PCIe bridge puts its own requester ID on everything', () => {
  const machine = new TestMachine();
  const bridge = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_PCIE_BRIDGE), '2.0', { secondary: 1 });
  const fn = machine.add(plainSpec(reg.PCI_EXP_TYPE_ENDPOINT), '0.0', { bus: bridge.secondary! });
  assert.deepEqual(aliasesOf(fn), ['01:00.0=01:00', '00:02.0=00:10']);
  assert.equal(fn.requesterId, 0x10);
});

test('T-4: the alias mask adds requester IDs, and makes functions aliases of each other in both directions', () => {
  const machine = new TestMachine();
  const a = machine.add(plainSpec(), '1.0', { dmaAliases: [0x01, 0x09] });
  const b = machine.add(plainSpec(), '1.1');
  const c = machine.add(plainSpec(), '2.0');
  assert.deepEqual(aliasesOf(a), ['00:01.0=00:08', '00:01.0=00:01', '00:01.0=00:09']);
  assert.equal(areDmaAliases(a, b), true);
  assert.equal(areDmaAliases(b, a), true);
  assert.equal(areDmaAliases(b, c), false);
});

test('T-4 T-24: a function that does DMA in the name of another is visited as that one', () => {
  const machine = new TestMachine();
  const real = machine.add(plainSpec(), '1.0');
  const first = machine.add(plainSpec(), '2.0', { quirks: { realDmaDevice: real } });
  const second = machine.add(plainSpec(), '3.0', { quirks: { realDmaDevice: real } });
  assert.deepEqual(aliasesOf(first), ['00:01.0=00:08']);
  assert.equal(areDmaAliases(first, real), true);
  assert.equal(areDmaAliases(first, second), true);
});

test('T-5: the walk stops above a bridge with the translation unit', () => {
  const machine = new TestMachine();
  const outer = machine.add(bridgeSpec(), '1.0', { secondary: 1 });
  const inner = machine.add(bridgeSpec(), '0.0', { bus: outer.secondary!, secondary: 2 });
  const card = machine.add(plainSpec(), '0.0', { bus: inner.secondary! });
  assert.deepEqual(aliasesOf(card), ['02:00.0=02:00', '01:00.0=01:00', '00:01.0=00:08']);
  outer.quirks.bridgeTranslationRoot = true;
  assert.deepEqual(aliasesOf(card), ['02:00.0=02:00', '01:00.0=01:00']);
});

test('a visitor stops the walk with what it returns', () => {
  const machine = new TestMachine();
  const bridge = machine.add(bridgeSpec(), '1.0', { secondary: 1 });
  const card = machine.add(plainSpec(), '0.0', { bus: bridge.secondary!, dmaAliases: [8] });
  for (const stop of [1, 2, 3]) {
    let visits = 0;
    assert.equal(
      forEachDmaAlias(card, () => (++visits === stop ? stop * 10 : 0)),
      stop * 10,
    );
    assert.equal(visits, stop);
  }
});
