import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { sriov } from '../../hw/pci/sriov.ts';
import { subscribe, type TraceFields } from '../../lib/tracepoint.ts';
import * as reg from '../../uapi/pci-regs.ts';
import { bridge, conventional, endpoint, IommuMachine, refuses, rootPort, shortName } from './test-machine.ts';

test('G-5: virtual functions behind a path with ACS have groups of their own, else they are with their physical function', () => {
  const virtual = (services?: 'none', hasAcs = true): string[][] => {
    const machine = new IommuMachine();
    const port = machine.add(rootPort(services), '1.0', { secondary: 1 });
    const spec = endpoint(hasAcs);
    const card = machine.add(
      {
        ...spec,
        capabilities: [
          ...spec.capabilities!,
          sriov({
            totalVfs: 2,
            vfDevice: 2,
            firstOffset: 1,
            stride: 1,
            vfBars: [],
            virtualFunction: () => ({ ...endpoint(hasAcs), vendor: 0x1234, device: 2 }),
          }),
        ],
      },
      '0.0',
      { bus: port.secondary! },
    );
    machine.boot();
    const at = card.config.findExtended(reg.PCI_EXT_CAP_ID_SRIOV);
    card.config.write(at + reg.PCI_SRIOV_NUM_VF, 2, 2);
    card.config.write(at + reg.PCI_SRIOV_CTRL, 2, reg.PCI_SRIOV_CTRL_VFE | reg.PCI_SRIOV_CTRL_MSE);
    for (const fn of machine.tree.functions()) if (fn.isVirtfn) machine.core.probe(fn);
    return machine.groups();
  };
  assert.deepEqual(virtual(), [['00:01.0'], ['01:00.0'], ['01:00.1'], ['01:00.2']]);
  assert.deepEqual(virtual('none'), [['00:01.0', '01:00.0', '01:00.1', '01:00.2']]);
});

test('G-6: a function that no unit translates has no group, and a group never spans two units', () => {
  const units: { of: (fn: PciFunction) => IommuUnit | undefined } = { of: () => undefined };
  const machine = new IommuMachine({ units: [{}, {}], unitOf: (fn) => units.of(fn) });
  const functions = ['1.0', '1.1', '2.0'].map((at) => machine.add(endpoint(), at));
  units.of = (fn) => ({ '00:01.0': machine.units[0], '00:01.1': machine.units[1] })[shortName(fn)];
  machine.boot();
  assert.deepEqual(machine.groups(), [['00:01.0'], ['00:01.1']]);
  assert.equal(machine.core.groupOf(functions[2]!), undefined);
  assert.equal(machine.core.reason(functions[2]!), 'no IOMMU');
  assert.deepEqual(
    machine.core.groups().map((group) => group.unit?.name),
    ['dmar0', 'dmar1'],
  );
});

test('G-7: the last member takes the group with it, and its id is given again, lowest first', () => {
  const machine = new IommuMachine();
  const [a, b, c] = ['1.0', '2.0', '3.0'].map((at) => machine.add(endpoint(), at));
  const pair = ['4.0', '4.1'].map((at) => machine.add(endpoint(), at));
  machine.boot();
  const used = machine.unit.tables.used;
  machine.core.remove(b!);
  machine.core.remove(a!);
  machine.core.remove(pair[0]!);
  assert.deepEqual(machine.groups(), [['00:03.0'], ['00:04.1']]);
  assert.equal(machine.unit.tables.used, used - 2, 'the tables of the default domains are given back');
  const added = machine.add(endpoint(), '5.0');
  machine.tree.enumerate();
  assert.equal(machine.core.probe(added)!.id, 0);
  assert.equal(machine.core.groupOf(c!)!.id, 2);
  assert.equal(machine.core.groupOf(a!), undefined);
});

test('G-31 G-32: ids of groups can be pinned; others do not take them', () => {
  const machine = new IommuMachine();
  const [a, b, c] = ['1.0', '2.0', '3.0'].map((at) => machine.add(endpoint(), at));
  machine.tree.enumerate();
  machine.core.reserveIds([240, 1]);
  assert.deepEqual(
    [machine.core.probe(a!)!.id, machine.core.probe(b!, 240)!.id, machine.core.probe(c!)!.id],
    [0, 240, 2],
  );
  const d = machine.add(endpoint(), '4.0');
  refuses('EEXIST', () => machine.core.probe(d, 240));
  assert.equal(machine.core.groupOf(d), undefined);
  assert.equal(machine.core.probe(d, 1)!.id, 1);
});

test('T-20: writing ACS control after enumeration moves nobody', () => {
  const machine = new IommuMachine();
  const a = machine.add(endpoint(true), '3.0');
  machine.add(endpoint(true), '3.1');
  machine.boot();
  const at = a.config.findExtended(reg.PCI_EXT_CAP_ID_ACS);
  a.config.write(at + reg.PCI_ACS_CTRL, 2, 0);
  assert.deepEqual(machine.groups(), [['00:03.0'], ['00:03.1']]);
  assert.equal(machine.core.probe(a), machine.core.groupOf(a));
});

test('T-21: after a function was removed, another one in its place meets none of its translations', () => {
  const machine = new IommuMachine();
  const old = machine.add(endpoint(), '3.0');
  machine.boot();
  const group = machine.core.groupOf(old)!;
  const owner = {};
  group.claim(owner);
  const domain = machine.core.allocateDomain(machine.unit, 'unmanaged');
  domain.map(0x10, machine.ramPage, 1, 3);
  group.attach(domain);
  assert.equal(machine.dma(old, 0x10), 'ok');
  group.detach();
  group.release();
  machine.core.remove(old);
  machine.tree.remove(old);
  const fresh = machine.add(endpoint(), '3.0');
  machine.boot([fresh]);
  assert.equal(fresh.rid, 0x18);
  assert.equal(machine.dma(fresh, 0x10), 'not present');
});

test('T-21: a function that is pulled while a domain is attached is blocked at once', () => {
  const machine = new IommuMachine();
  const fn = machine.add(endpoint(), '3.0');
  machine.boot();
  const domain = machine.core.allocateDomain(machine.unit, 'unmanaged');
  domain.map(0x10, machine.ramPage, 1, 3);
  machine.core.groupOf(fn)!.attach(domain);
  assert.equal(machine.dma(fn, 0x10), 'ok');
  machine.core.remove(fn);
  assert.equal(machine.unit.translate(fn.rid, -1, 0x10, 1), -1);
  assert.equal(domain.attachments, 0);
  domain.free();
});

test('T-23: untrusted devices get a DMA domain although the default is pass-through', () => {
  const machine = new IommuMachine({ defaultKind: 'identity' });
  const trusted = machine.add(endpoint(), '1.0');
  const untrusted = machine.add(endpoint(), '2.0', { untrusted: true });
  const late = ['3.0', '3.1'].map((at, i) => machine.add(endpoint(), at, { untrusted: i === 1 }));
  machine.boot();
  const kinds = [trusted, untrusted, late[0]!, late[1]!].map((fn) => machine.core.groupOf(fn)!.defaultDomain.kind);
  assert.deepEqual(kinds, ['identity', 'dma', 'dma', 'dma']);
  assert.equal(machine.dma(trusted, machine.ramPage), 'ok');
  assert.equal(machine.ram[0], 0x5a);
  assert.equal(machine.dma(late[0]!, machine.ramPage), 'not present');
});

test('a unit without pass-through gives every device a DMA domain', () => {
  const ecap = 0xf00fcen & ~(1n << 6n);
  const machine = new IommuMachine({ defaultKind: 'identity', units: [{ ecap }] });
  const fn = machine.add(endpoint(), '1.0');
  machine.boot();
  assert.equal(machine.core.groupOf(fn)!.defaultDomain.kind, 'dma');
  const identity = machine.core.allocateDomain(machine.unit, 'identity');
  refuses('EINVAL', () => machine.core.groupOf(fn)!.attach(identity), /no pass-through/);
});

test('the text of `type` is the kind of the default domain', () => {
  const text = (options: object): string => {
    const machine = new IommuMachine(options);
    const fn = machine.add(endpoint(), '1.0');
    machine.boot();
    const group = machine.core.groupOf(fn)!;
    group.claim({});
    return machine.core.typeText(group);
  };
  assert.equal(text({}), 'DMA-FQ\n');
  assert.equal(text({ isLazy: false }), 'DMA\n');
  assert.equal(text({ defaultKind: 'identity' }), 'identity\n');
});

test('groups without an IOMMU have an id, a name and no domains', () => {
  const machine = new IommuMachine();
  machine.add(endpoint(), '1.0');
  machine.boot();
  const group = machine.core.addSoftwareGroup('vfio-noiommu');
  assert.deepEqual([group.id, group.name, group.unit, group.isolatedMsi], [1, 'vfio-noiommu', undefined, false]);
  refuses('EINVAL', () => group.attach(machine.core.allocateDomain(machine.unit, 'unmanaged')), /no IOMMU/);
  refuses('EINVAL', () => group.claim({}));
  assert.equal(machine.core.typeText(group), 'unknown\n');
  assert.deepEqual(group.reservedRegions(), []);
  machine.core.removeSoftwareGroup(group);
  assert.equal(machine.core.groups().length, 1);
});

test('every join is traced with its reason, every fault is kept for the inspector', () => {
  const heard: TraceFields[] = [];
  const stops = ['iommu:add_device_to_group', 'iommu:remove_device_from_group', 'iommu:attach_device_to_domain'].map(
    (name) => subscribe(name, (fields) => heard.push({ name, ...fields })),
  );
  const machine = new IommuMachine();
  const above = machine.add(bridge(), '1e.0', { secondary: 6 });
  const card = machine.add(conventional(), 'd.0', { bus: above.secondary! });
  machine.boot();
  machine.core.remove(card);
  for (const stop of stops) stop();
  assert.deepEqual(
    heard.map(({ name, device, why }) => [name, device, why].filter((part) => part !== undefined).join(' ')),
    [
      'iommu:attach_device_to_domain 0000:00:1e.0',
      'iommu:add_device_to_group 0000:00:1e.0 own',
      'iommu:attach_device_to_domain 0000:06:0d.0',
      'iommu:add_device_to_group 0000:06:0d.0 alias 00:1e.0',
      'iommu:remove_device_from_group 0000:06:0d.0',
    ],
  );
  for (let i = 0; i < 100; i++) machine.dma(above, i);
  assert.equal(machine.core.faults.length, 64);
  assert.equal(machine.core.faults.at(-1)!.page, 99);
  assert.equal(machine.unit.faults.isPending, false);
});
