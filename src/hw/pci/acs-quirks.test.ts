import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../uapi/pci-regs.ts';
import { acsEnabled } from './acs.ts';
import { acsControlOffset, isolationQuirk } from './acs-quirks.ts';
import { pciExpress } from './capabilities.ts';
import { acs } from './extended-capabilities.ts';
import type { PciFunction } from './function.ts';
import { TestMachine } from './test-machine.ts';

const { PCI_EXP_TYPE_ROOT_PORT: ROOT, PCI_EXP_TYPE_RC_END: INTEGRATED, PCI_EXP_TYPE_ENDPOINT: ENDPOINT } = reg;

/** Two functions of one slot, the first with this identity; on the root bus. */
function first(vendor: number, device: number, type?: number): PciFunction {
  const machine = new TestMachine();
  const spec = {
    ...{ vendor, device, class24: 0xff0000 },
    capabilities: type === undefined ? [] : [pciExpress({ type })],
    ...(type === ROOT ? { bridge: {} } : {}),
  };
  const fn = machine.add(spec, '3.0');
  machine.add({ ...spec, vendor: 0x1234 }, '3.1');
  return fn;
}

test('T-13: makers vouch for devices without ACS, each row under its condition', () => {
  const cases: [vendor: number, device: number, type: number | undefined, isIsolated: boolean | undefined][] = [
    [0x8086, 0x10fb, ENDPOINT, true],
    [0x8086, 0x1523, ENDPOINT, true],
    [0x8086, 0x1525, INTEGRATED, true],
    [0x8086, 0x1533, undefined, undefined],
    [0x8086, 0x8c10, ROOT, true],
    [0x8086, 0x8c10, undefined, undefined],
    [0x8086, 0x8c97, ROOT, undefined],
    [0x8086, 0x9d10, ROOT, undefined],
    [0x1002, 0x4385, undefined, true],
    [0x1022, 0x780f, undefined, true],
    [0x177d, 0xa123, ROOT, true],
    [0x177d, 0xa123, INTEGRATED, undefined],
    [0x1d17, 0x0712, ROOT, true],
    [0x1d17, 0x0800, ROOT, false],
    [0x1234, 0x10fb, INTEGRATED, undefined],
  ];
  for (const [vendor, device, type, isIsolated] of cases) {
    const fn = first(vendor, device, type);
    const name = `${vendor.toString(16)}:${device.toString(16)} ${type}`;
    assert.equal(isolationQuirk(fn)?.isIsolated, isIsolated, name);
    assert.equal(acsEnabled(fn), isIsolated ?? false, name);
  }
});

test('a southbridge of AMD alone in its slot is not what its row is about', () => {
  const fn = new TestMachine().add({ vendor: 0x1022, device: 0x780f, class24: 0x060401, bridge: {} }, '14.4');
  assert.equal(isolationQuirk(fn), undefined);
  assert.equal(acsEnabled(fn), false);
});

test('T-11: root ports with ACS registers of 32 bits have their control two bytes further', () => {
  for (const [device, at] of [
    [0x9d10, 8],
    [0xa167, 8],
    [0xa2ee, 8],
    [0x9d1c, 6],
  ] as const) {
    const machine = new TestMachine();
    const capabilities = [pciExpress({ type: ROOT }), acs({ capability: 0x1d })];
    const fn = machine.add({ vendor: 0x8086, device, class24: 0x060400, bridge: {}, capabilities }, '1c.0');
    assert.equal(acsControlOffset(fn), at);
    assert.equal(acsEnabled(fn), false);
    machine.tree.enumerate();
    const offset = fn.config.findExtended(reg.PCI_EXT_CAP_ID_ACS);
    assert.equal(fn.config.read(offset + at, 2), 0x1d);
    assert.equal(acsEnabled(fn), true);
  }
});
