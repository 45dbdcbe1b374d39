import assert from 'node:assert/strict';
import { test } from 'node:test';
import { aliasesOf, type Marked, quirksOf } from './marks.ts';

const device = (vendor: number, id: number, more: Partial<Marked> = {}): Marked => ({
  ...{ vendor, device: id, subsystemVendor: 0, subsystemDevice: 0, devfn: 0x18, isBridge: false },
  ...{ portType: undefined, above: 'root' as const },
  ...more,
});

test('T-4: devices that use the requester ID of another function of their slot, a fixed one, or any', () => {
  assert.deepEqual(aliasesOf(device(0x1b4b, 0x9230)), [0x19]);
  assert.deepEqual(aliasesOf(device(0x1b4b, 0x9230, { devfn: 0x19 })), []);
  assert.deepEqual(aliasesOf(device(0x1180, 0xe832, { devfn: 0x1a })), [0x18]);
  assert.deepEqual(aliasesOf(device(0x8086, 0x2260)), [0x80, 0x88, 0x93]);
  assert.equal(aliasesOf(device(0x10b5, 0x87b0)).length, 255);
  const adaptec = { subsystemVendor: 0x9005, subsystemDevice: 0x02bb };
  assert.deepEqual(aliasesOf(device(0x9005, 0x0285, adaptec)), [0x08]);
  assert.deepEqual(aliasesOf(device(0x9005, 0x0285)), []);
  assert.deepEqual(aliasesOf(device(0x1234, 0x9230)), []);
});

test('T-2 T-5: bridges that do not alias as their registers say', () => {
  const bridge = { isBridge: true };
  assert.deepEqual(quirksOf(device(0x1a03, 0x1150, { ...bridge, portType: 7 })), { bridgeNoAlias: true });
  assert.deepEqual(quirksOf(device(0x14e4, 0x9000, bridge)), { bridgeTranslationRoot: true });
  assert.deepEqual(quirksOf(device(0x1b21, 0x1080, { ...bridge, above: 4 })), { pcieBridgeAlias: true });
  for (const above of ['root', 7, undefined] as const) {
    assert.equal(quirksOf(device(0x8086, 0x244e, { ...bridge, above })), undefined);
  }
  assert.equal(quirksOf(device(0x1a03, 0x1150)), undefined);
});
