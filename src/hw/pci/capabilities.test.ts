import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as reg from '../../uapi/pci-regs.ts';
import { advancedFeatures, pciExpress, plainCapability, vendorSpecific } from './capabilities.ts';
import { acs, aer, ats, pasid, plainExtended, pri, serialNumber, vendorExtended } from './extended-capabilities.ts';
import type { PciFunction } from './function.ts';
import type { CapabilitySpec } from './function-spec.ts';
import { bridgeSpec, plainSpec, TestMachine } from './test-machine.ts';

/** A function below a root port, so that an endpoint is one. */
function below(...capabilities: CapabilitySpec[]): PciFunction {
  const machine = new TestMachine();
  const port = machine.add(bridgeSpec(reg.PCI_EXP_TYPE_ROOT_PORT), '1.0');
  const fn = machine.add({ ...plainSpec(), capabilities }, '0.0', { bus: port.secondary! });
  machine.tree.enumerate();
  return fn;
}

const endpoint = pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT });

test('every PCIe port type shows itself; only with the capability are there 4096 bytes', () => {
  for (const type of [0, 1, 4, 5, 6, 7, 8, 9, 10]) {
    const fn = below(pciExpress({ type }));
    const at = fn.config.findCapability(reg.PCI_CAP_ID_EXP);
    assert.equal(fn.portType, type);
    assert.equal(fn.config.read(at + reg.PCI_EXP_FLAGS, 2), 2 | (type << 4));
    assert.equal(fn.config.read(at + reg.PCI_EXP_LNKCAP, 4) === 0, type === 9 || type === 10);
    assert.equal(fn.config.length, 4096);
  }
  const conventional = below();
  assert.equal(conventional.portType, undefined);
  assert.equal(conventional.config.length, 256);
});

test('an endpoint on a root bus is an integrated one without a link', () => {
  const fn = new TestMachine().add({ ...plainSpec(), capabilities: [endpoint] }, '1.0');
  assert.equal(fn.portType, reg.PCI_EXP_TYPE_RC_END);
  assert.equal(fn.config.read(fn.config.findCapability(reg.PCI_CAP_ID_EXP) + reg.PCI_EXP_LNKSTA, 2), 0);
});

test('only endpoints can have FLR; bit 15 of another type’s Device Control resets nothing', () => {
  assert.throws(() => pciExpress({ type: reg.PCI_EXP_TYPE_PCI_BRIDGE, flr: true }), /Only endpoints/);
  const fn = below(pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT }));
  fn.config.write(fn.config.findCapability(reg.PCI_CAP_ID_EXP) + reg.PCI_EXP_DEVCTL, 2, 0xffff);
  assert.equal(fn.config.read(reg.PCI_COMMAND, 2), 0x103);
});

test('slots of ports: number, presence, write-one-to-clear', () => {
  const machine = new TestMachine();
  const spec = {
    ...bridgeSpec(),
    capabilities: [pciExpress({ type: reg.PCI_EXP_TYPE_ROOT_PORT, slot: 5, portNumber: 3 })],
  };
  const port = machine.add(spec, '1.0');
  const at = port.config.findCapability(reg.PCI_CAP_ID_EXP);
  assert.equal(port.config.read(at + reg.PCI_EXP_FLAGS, 2) & reg.PCI_EXP_FLAGS_SLOT, reg.PCI_EXP_FLAGS_SLOT);
  assert.equal(port.config.read(at + reg.PCI_EXP_SLTCAP, 4) >>> 19, 5);
  assert.equal(port.config.read(at + reg.PCI_EXP_LNKCAP, 4) >>> 24, 3);
  port.config.set(at + reg.PCI_EXP_SLTSTA, 2, reg.PCI_EXP_SLTSTA_PDS | reg.PCI_EXP_SLTSTA_PDC);
  port.config.write(at + reg.PCI_EXP_SLTSTA, 2, 0xffff);
  assert.equal(port.config.read(at + reg.PCI_EXP_SLTSTA, 2), reg.PCI_EXP_SLTSTA_PDS);
});

test('AF, vendor-specific and plain capabilities have their bytes', () => {
  const fn = below(
    advancedFeatures(),
    vendorSpecific(Uint8Array.of(0xaa, 0xbb)),
    plainCapability(0x0d, Uint8Array.of(0, 0, 1, 2, 3, 4), { at: 0x80 }),
  );
  const at = (id: number): number => fn.config.findCapability(id);
  assert.equal(fn.config.read(at(0x13) + 2, 2), 0x0306);
  assert.equal(fn.config.read(at(0x09) + 2, 1), 5);
  assert.equal(fn.config.read(at(0x09) + 3, 2), 0xbbaa);
  assert.equal(at(0x0d), 0x80);
  assert.equal(fn.config.read(0x84, 4), 0x04030201);
});

test('ACS: control is limited to the capability, switched on at boot, cleared by reset', () => {
  const isolating = reg.PCI_ACS_SV | reg.PCI_ACS_RR | reg.PCI_ACS_CR | reg.PCI_ACS_UF;
  const fn = below(endpoint, acs({ capability: isolating | reg.PCI_ACS_DT }));
  const control = fn.config.findExtended(reg.PCI_EXT_CAP_ID_ACS) + reg.PCI_ACS_CTRL;
  assert.equal(fn.config.read(control, 2), isolating);
  fn.config.write(control, 2, 0xffff);
  assert.equal(fn.config.read(control, 2), isolating | reg.PCI_ACS_DT);
  fn.resetHardware('bus');
  assert.equal(fn.config.read(control, 2), 0);
});

test('ATS, PASID and PRI: what can be enabled, and that PRI is stopped until then', () => {
  const fn = below(endpoint, ats({ queueDepth: 16 }), pasid({ width: 16, executable: true }), pri({ capacity: 64 }));
  const at = (id: number): number => fn.config.findExtended(id);
  const config = fn.config;
  assert.equal(config.read(at(reg.PCI_EXT_CAP_ID_ATS) + reg.PCI_ATS_CAP, 2), 0x30);
  config.write(at(reg.PCI_EXT_CAP_ID_ATS) + reg.PCI_ATS_CTRL, 2, 0xffff);
  assert.equal(config.read(at(reg.PCI_EXT_CAP_ID_ATS) + reg.PCI_ATS_CTRL, 2), 0x801f);
  assert.equal(config.read(at(reg.PCI_EXT_CAP_ID_PASID) + reg.PCI_PASID_CAP, 2), 0x1002);
  config.write(at(reg.PCI_EXT_CAP_ID_PASID) + reg.PCI_PASID_CTRL, 2, 0xffff);
  assert.equal(config.read(at(reg.PCI_EXT_CAP_ID_PASID) + reg.PCI_PASID_CTRL, 2), 3, 'no privileged mode');
  const control = at(reg.PCI_EXT_CAP_ID_PRI) + reg.PCI_PRI_CTRL;
  const stopped = (): boolean => (config.read(control + 2, 2) & reg.PCI_PRI_STATUS_STOPPED) !== 0;
  assert.equal(config.read(control + 4, 4), 64);
  assert.equal(stopped(), true);
  config.write(control, 2, reg.PCI_PRI_CTRL_ENABLE);
  assert.equal(stopped(), false);
  fn.resetHardware('bus');
  assert.equal(stopped(), true);
});

test('serial number, vendor-specific and plain extended capabilities, and the chain between them', () => {
  const fn = below(
    endpoint,
    aer(),
    serialNumber(0x1122_3344_5566_7788n),
    vendorExtended(0x42, 3, Uint8Array.of(1, 2, 3, 4)),
    plainExtended(0x23, new Uint8Array(12), { at: 0x400 }),
  );
  const { config } = fn;
  const dsn = config.findExtended(reg.PCI_EXT_CAP_ID_DSN);
  assert.equal(config.read(dsn + 4, 4), 0x55667788);
  assert.equal(config.read(dsn + 8, 4), 0x11223344);
  const vendor = config.findExtended(reg.PCI_EXT_CAP_ID_VNDR);
  assert.equal(config.read(vendor + 4, 4), (12 << 20) | (3 << 16) | 0x42);
  const ids: number[] = [];
  for (let at = 0x100; at !== 0; at = config.read(at, 4) >>> 20) ids.push(config.read(at, 2));
  assert.deepEqual(ids, [1, 3, 0x0b, 0x23]);
});
