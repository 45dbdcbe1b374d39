import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { PciFunction } from '../../hw/pci/function.ts';
import { failAt } from '../../lib/failpoint.ts';
import { subscribe } from '../../lib/tracepoint.ts';
import type { Domain } from './domain.ts';
import type { IommuGroup } from './group.ts';
import { mergeReserved, type ReservedRegion, reservedRegionsText } from './reserved-regions.ts';
import { bridge, conventional, endpoint, IommuMachine, type MachineOptions, refuses } from './test-machine.ts';

interface World {
  machine: IommuMachine;
  group: IommuGroup;
  members: PciFunction[];
  domain(): Domain;
}

/** A group of `count` functions of one slot. */
function world(count = 3, options: MachineOptions = {}): World {
  const machine = new IommuMachine(options);
  const members = Array.from({ length: count }, (_, i) => machine.add(endpoint(), `3.${i}`));
  machine.boot();
  const group = machine.core.groupOf(members[0]!)!;
  assert.equal(group.members.size, count);
  return { machine, group, members, domain: () => machine.core.allocateDomain(machine.unit, 'unmanaged') };
}

const rmrr: ReservedRegion = { firstPage: 0xdb, lastPage: 0xdb, type: 'direct' };

test('G-10: while a host driver holds a member, the group cannot be claimed', () => {
  const { group, members } = world();
  group.useDefaultDomain(members[1]!);
  refuses('EPERM', () => group.claim({}), /host driver/);
  refuses('EPERM', () => group.claimDevice(members[0]!, {}));
  group.unuseDefaultDomain(members[1]!);
  group.claim({});
});

test('G-11: after a claim no member can be bound to a host driver', () => {
  const { group, members } = world();
  group.claim({});
  for (const member of members) refuses('EBUSY', () => group.useDefaultDomain(member), /a user holds/);
  group.release();
  for (const member of members) group.useDefaultDomain(member);
  assert.equal(group.ownerCount, 3);
});

test('G-13: a second owner is refused, the same owner is counted device by device', () => {
  const { group, members } = world();
  const owner = {};
  group.claimDevice(members[0]!, owner);
  group.claimDevice(members[1]!, owner);
  assert.deepEqual([group.ownerCount, group.owner], [2, owner]);
  refuses('EPERM', () => group.claimDevice(members[2]!, {}));
  refuses('EPERM', () => group.claim(owner), /somebody else/);
  group.releaseDevice(members[0]!);
  assert.equal(group.domain.kind, 'blocked');
  group.releaseDevice(members[1]!);
  assert.deepEqual([group.ownerCount, group.owner, group.domain], [0, undefined, group.defaultDomain]);
  const stranger = new IommuMachine();
  const other = stranger.add(endpoint(), '1.0');
  refuses('ENODEV', () => group.claimDevice(other, owner));
});

test('a claim is refused while a domain other than the default one is attached', () => {
  const { group, domain } = world();
  group.attach(domain());
  refuses('EBUSY', () => group.claim({}));
  group.detach();
  group.claim({});
});

test('G-14: while a user holds the group and has attached nothing, DMA of every member faults', () => {
  const { machine, group, members, domain } = world();
  group.claim({});
  for (const member of members) assert.equal(machine.dma(member, machine.ramPage), 'blocked');
  const own = domain();
  own.map(7, machine.ramPage + 1, 1, 3);
  group.attach(own);
  for (const member of members) assert.equal(machine.dma(member, 7), 'ok');
  group.detach();
  for (const member of members) assert.equal(machine.dma(member, 7), 'blocked');
});

test('G-15: release puts the host domain back with what is mapped there', () => {
  const { machine, group, members } = world();
  group.useDefaultDomain(members[0]!);
  group.defaultDomain.map(0x20, machine.ramPage + 2, 1, 3);
  assert.equal(machine.dma(members[0]!, 0x20, 1), 'ok');
  refuses('EPERM', () => group.claim({}));
  group.unuseDefaultDomain(members[0]!);
  group.claim({});
  assert.equal(machine.dma(members[0]!, 0x20), 'blocked');
  group.release();
  assert.equal(machine.dma(members[0]!, 0x20, 2), 'ok');
  assert.equal(machine.ram[2 * 4096], 2);
});

test('G-16: when the third of three members cannot be attached, all three stay where they were', () => {
  const { machine, group, members, domain } = world();
  group.claim({});
  const first = domain();
  const second = domain();
  first.map(1, machine.ramPage, 1, 3);
  second.map(2, machine.ramPage, 1, 3);
  group.attach(first);
  {
    using _order = failAt('iommu:attach_device', 2);
    refuses('ENOMEM', () => group.replace(second));
  }
  assert.equal(group.domain, first);
  assert.deepEqual([first.attachments, second.attachments], [1, 0]);
  for (const member of members) {
    assert.equal(machine.dma(member, 1), 'ok');
    assert.equal(machine.dma(member, 2), 'not present');
  }
  second.free();
  group.replace(domain());
  first.free();
});

test('G-16: a member that firmware needs mapped one to one keeps the whole group from being claimed', () => {
  const { machine, group, members } = world(3, {
    firmwareRegionsOf: (fn) => (fn.devfn === 0x1a ? [rmrr] : []),
  });
  refuses('EINVAL', () => group.claim({}), /firmware/);
  assert.deepEqual([group.ownerCount, group.owner, group.domain], [0, undefined, group.defaultDomain]);
  for (const member of members) assert.notEqual(machine.dma(member, 0xdb), 'not present');
  refuses('EINVAL', () => group.claimDevice(members[0]!, {}));
});

test('what firmware wants is mapped in the DMA domain before the device is attached; relaxed for graphics and USB', () => {
  for (const [class24, isRelaxed] of [
    [0x030000, true],
    [0x0c0330, true],
    [0x020000, false],
  ] as const) {
    const machine = new IommuMachine({ firmwareRegionsOf: () => [{ ...rmrr, lastPage: 0xdd }] });
    const fn = machine.add(endpoint(false, class24), '3.0');
    machine.boot();
    const group = machine.core.groupOf(fn)!;
    assert.deepEqual(
      [0xda, 0xdb, 0xdd, 0xde].map((page) => group.defaultDomain.physicalOf(page)),
      [-1, 0xdb, 0xdd, -1],
    );
    if (isRelaxed) group.claim({});
    else refuses('EINVAL', () => group.claim({}));
  }
});

test('attach: a second domain is refused, the same one is nothing to do, replace takes its place', () => {
  const { machine, group, members, domain } = world();
  group.claim({});
  const first = domain();
  const second = domain();
  first.map(1, machine.ramPage, 1, 3);
  second.map(1, machine.ramPage, 1, 3);
  group.attach(first);
  refuses('EBUSY', () => group.attach(second));
  group.attach(first);
  assert.equal(first.attachments, 1);
  assert.equal(machine.dma(members[0]!, 1), 'ok');
  group.replace(second);
  assert.deepEqual([first.attachments, second.attachments, group.domain], [0, 1, second]);
  assert.equal(machine.dma(members[0]!, 1), 'ok');
  second.unmap(1, 1);
  assert.equal(machine.dma(members[0]!, 1), 'not present', 'nothing of the first domain is left');
  group.detach();
  first.free();
  second.free();
});

test('I-13: replace under running DMA: no access faults that both domains allow', () => {
  const { machine, group, members, domain } = world(1);
  const first = domain();
  const second = domain();
  for (const each of [first, second]) each.map(1, machine.ramPage, 1, 3);
  group.claim({});
  group.attach(first);
  for (let i = 0; i < 20; i++) {
    group.replace(i % 2 === 0 ? second : first);
    assert.equal(machine.dma(members[0]!, 1), 'ok');
  }
});

test('I-81: whoever translates in the middle of a map or a move sees the old state or the new one', () => {
  const { machine, group, members, domain } = world();
  const [first, second] = [domain(), domain()];
  first.map(1, machine.ramPage + 1, 1, 3);
  second.map(1, machine.ramPage + 2, 1, 3);
  const seen = new Set<number>();
  const look = (): void => {
    for (const member of members) seen.add(machine.unit.translate(member.rid, -1, 1, 1) - machine.ramPage);
  };
  group.attach(first);
  let stop = subscribe('iommu:attach_device_to_domain', look);
  group.replace(second);
  stop();
  assert.deepEqual([...seen].sort(), [1, 2]);
  seen.clear();
  stop = subscribe('iommu:map', look);
  second.map(0, machine.ramPage, 1, 3);
  stop();
  assert.deepEqual([...seen], [2]);
});

test('attach: a domain that the unit cannot walk is refused', () => {
  const machine = new IommuMachine({
    units: [{}, { preset: 'legacy-nosc' }, { cap: 0x80d2_0000_222f_0606n }, { cap: 0x80d2_008c_2226_0606n }],
    unitOf: (fn) => machine?.units[fn.devfn >> 3],
  });
  for (const at of ['0.0', '1.0', '2.0', '3.0']) machine.add(endpoint(), at);
  machine.boot();
  const groups = machine.core.groups();
  const domain = machine.core.allocateDomain(machine.unit, 'unmanaged');
  groups[1]!.attach(domain);
  groups[1]!.detach();
  refuses('EINVAL', () => groups[2]!.attach(domain), /leaf sizes/);
  refuses('EINVAL', () => groups[3]!.attach(domain), /address bits/);
  assert.equal(domain.enforceCacheCoherency(), true);
  refuses('EINVAL', () => groups[1]!.attach(domain), /no-snoop/);
  groups[0]!.attach(domain);
  assert.deepEqual(
    machine.units.map((unit) => domain.isCompatible(unit)),
    [true, false, false, false],
  );
});

test('members behind one bridge have its requester ID, and it stays while one of them is left', () => {
  const machine = new IommuMachine();
  const above = machine.add(bridge(), '1e.0', { secondary: 6 });
  const [a, b] = ['d.0', 'd.1'].map((at) => machine.add(conventional(), at, { bus: above.secondary! }));
  machine.boot();
  const group = machine.core.groupOf(a!)!;
  group.claim({});
  const domain = machine.core.allocateDomain(machine.unit, 'unmanaged');
  domain.map(1, machine.ramPage, 1, 3);
  group.attach(domain);
  assert.equal(machine.dma(a!, 1), 'ok');
  machine.core.remove(b!);
  assert.equal(machine.dma(a!, 1), 'ok');
  machine.core.remove(above);
  assert.equal(machine.dma(a!, 1), 'ok');
  machine.core.remove(a!);
  assert.equal(machine.dma(a!, 1), 'blocked');
});

test('a function that joins a claimed group is blocked, or goes where the group goes', () => {
  const { machine, group, members, domain } = world(1);
  group.claim({});
  const second = machine.add(endpoint(), '3.1');
  machine.boot([second]);
  // The slot had one function until now, so the newcomer finds no isolation and joins.
  assert.equal(machine.core.groupOf(second), group);
  assert.equal(machine.dma(second, 1), 'blocked');
  const own = domain();
  own.map(1, machine.ramPage, 1, 3);
  group.attach(own);
  const third = machine.add(endpoint(), '3.2');
  machine.boot([third]);
  assert.equal(machine.dma(third, 1), 'ok');
  refuses('EBUSY', () => group.useDefaultDomain(third));
  assert.equal(group.reasonOf(members[0]!), 'own');
});

test('G-20: the interrupt window and a firmware range print as two lines in order', () => {
  const { group } = world(1, { firmwareRegionsOf: () => [rmrr] });
  assert.equal(
    reservedRegionsText(group.reservedRegions()),
    '0x00000000000db000 0x00000000000dbfff direct\n0x00000000fee00000 0x00000000feefffff msi\n',
  );
});

test('G-21: adjacent and overlapping ranges of one type print as one, those of different types do not', () => {
  const region = (firstPage: number, lastPage: number, type: ReservedRegion['type'] = 'reserved'): ReservedRegion => ({
    firstPage,
    lastPage,
    type,
  });
  assert.deepEqual(mergeReserved([region(5, 6), region(1, 2), region(3, 4)]), [region(1, 6)]);
  assert.deepEqual(mergeReserved([region(1, 9), region(2, 3), region(11, 11)]), [region(1, 9), region(11, 11)]);
  assert.deepEqual(mergeReserved([region(1, 4), region(2, 3, 'msi'), region(5, 6), region(1, 1, 'direct')]), [
    region(1, 1, 'direct'),
    region(1, 6),
    region(2, 3, 'msi'),
  ]);
});

test('the regions of a group are those of its members, each once; an ISA bridge reserves the lowest 16 MiB', () => {
  const machine = new IommuMachine();
  for (const [i, class24] of [0x060100, 0x010601].entries()) machine.add(conventional(class24), `1f.${i}`);
  machine.boot();
  const [group] = machine.core.groups();
  assert.equal(
    reservedRegionsText(group!.reservedRegions()),
    '0x0000000000000000 0x0000000000ffffff direct-relaxable\n0x00000000fee00000 0x00000000feefffff msi\n',
  );
  group!.claim({});
});
