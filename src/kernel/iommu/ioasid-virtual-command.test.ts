import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../../hw/pci/clock.ts';
import { INVALID_IOASID, IoasidError, IoasidSet, Ioasids } from './ioasid.ts';
import {
  initVirtualCommands,
  VCCAP,
  VCMD,
  VCRSP,
  type VirtualCommandOptions,
  VirtualCommandRegisters,
  type VmPasidOptions,
  VmPasids,
  virtualCommandAllocator,
} from './ioasid-virtual-command.ts';

interface Mm {
  readonly comm: string;
}
interface GuestBind {
  readonly gpgd: bigint;
}

/** A guest on a host: both have a registry of their own. */
function guest(options: VmPasidOptions & VirtualCommandOptions & { host?: Ioasids } = {}) {
  const host = options.host ?? new Ioasids();
  const vm = new VmPasids(host, 'vm', options);
  const unit = new VirtualCommandRegisters(vm, options);
  const ids = new Ioasids();
  return { host, vm, unit, ids, processes: new IoasidSet<Mm>('sva') };
}

test('A-30 A-31 A-36: scenarios 1 and 2, a guest registers at start; each allocation asks the host once, lookups never', () => {
  const { host, vm, unit, ids, processes } = guest();
  host.alloc(null, 1, 3, null);
  assert.notEqual(initVirtualCommands(unit, ids), undefined);
  assert.equal(ids.hasCustomAllocator, true);
  const mm = { comm: 'guest process' };
  const id = ids.alloc(processes, 1, 0xf_ffff, mm);
  assert.equal(id, 2, 'the number that the host chose, at exactly that index');
  assert.equal(unit.commands, 1);
  for (let i = 0; i < 10; i++) assert.equal(ids.find(processes, id), mm);
  assert.equal(ids.find(processes, id + 1) instanceof IoasidError, true);
  assert.equal(unit.commands, 1);
  assert.equal(vm.hostOf(id), id);
  ids.free(id);
  assert.equal(unit.commands, 2);
  assert.equal(vm.count, 0);
  assert.equal(host.used, 1);
});

test('A-32 A-33: scenarios 3 and 4, natively nothing is registered, and a process is found right after its bind', () => {
  const { unit, ids, processes } = guest({ isCachingMode: false });
  assert.equal(initVirtualCommands(unit, ids), undefined);
  const other = guest({ offersPasids: false });
  assert.equal(initVirtualCommands(other.unit, other.ids), undefined);
  const mm = { comm: 'native' };
  assert.equal(ids.alloc(processes, 1, 0xf_ffff, mm), 1, 'the lowest free one of the table');
  assert.equal(ids.find(processes, 1), mm);
  assert.equal(unit.commands, 0);
});

test("A-34: scenario 5, VFIO allocates for a guest without data; the guest's bind brings them later", () => {
  const host = new Ioasids();
  const binds = new IoasidSet<GuestBind>('guest bind');
  const id = host.alloc(binds, 1, 99, null);
  const fault = host.readers.begin();
  assert.equal(host.find(binds, id), null, 'a page fault that comes too early is to be answered INVALID');
  fault.end();
  const data = { gpgd: 0x1000n };
  host.setData(id, data);
  assert.equal(host.find(binds, id), data);
});

test("A-35: a host without PASIDs answers status 16, and the guest's table stays as it is", () => {
  const { unit, ids, processes, vm } = guest({ quota: 2 });
  const allocator = initVirtualCommands(unit, ids)!;
  ids.alloc(processes, 1, 99, null);
  ids.alloc(processes, 1, 99, null);
  assert.equal(ids.alloc(processes, 1, 99, null), INVALID_IOASID);
  assert.equal(unit.read64(VCRSP), 16n << 1n);
  assert.equal(allocator.lastError, 'ENOMEM');
  assert.equal(ids.used, 2);
  assert.equal(vm.count, 2);
});

test('A-36: a PASID at an index that is taken, or outside of the range, goes back to the host at once', () => {
  const { unit, ids, processes, vm } = guest();
  initVirtualCommands(unit, ids);
  assert.equal(ids.alloc(processes, 100, 200, null), INVALID_IOASID, 'the host gave 1');
  assert.equal(vm.count, 0);
  assert.equal(ids.used, 0);
  const broken = guest();
  initVirtualCommands(broken.unit, broken.ids);
  assert.equal(broken.ids.alloc(broken.processes, 1, 9, null), 1);
  broken.unit.write64(VCMD, 2n | (1n << 16n));
  assert.equal(broken.vm.count, 0, 'somebody freed the PASID behind the registry, so the host gives it again');
  assert.equal(broken.ids.alloc(broken.processes, 1, 9, null), INVALID_IOASID);
  assert.equal(broken.vm.count, 0);
  assert.equal(broken.ids.used, 1);
});

test('A-37: a VM that ends gives back all that the host had given to it, and only that', () => {
  const host = new Ioasids();
  const a = guest({ host });
  const b = guest({ host });
  for (const { unit, ids, processes } of [a, b]) {
    initVirtualCommands(unit, ids);
    for (let i = 0; i < 5; i++) ids.alloc(processes, 1, 99, null);
  }
  assert.equal(host.used, 10);
  a.vm.exit();
  assert.equal(host.used, 5);
  b.ids.free(b.ids.alloc(b.processes, 1, 99, null));
  b.vm.exit();
  assert.equal(host.used, 0);
  assert.equal(host.warnings, 0);
});

test("the VM's own numbers: two guests have the same PASIDs for different ones of the host", () => {
  const host = new Ioasids();
  const a = guest({ host, numbers: 'own' });
  const b = guest({ host, numbers: 'own', last: 1 });
  for (const { unit, ids } of [a, b]) initVirtualCommands(unit, ids);
  assert.equal(a.ids.alloc(a.processes, 1, 99, null), 1);
  assert.equal(b.ids.alloc(b.processes, 1, 99, null), 1);
  assert.notEqual(a.vm.hostOf(1), b.vm.hostOf(1));
  assert.equal(b.ids.alloc(b.processes, 1, 99, null), INVALID_IOASID, 'it has no second number');
  assert.equal(host.used, 2);
});

test('registers: commands by value, unknown ones refused, none taken while one is in progress', () => {
  const clock = new ManualClock();
  const { unit, vm } = guest({ delay: { clock, nanoseconds: 100 } });
  assert.equal(unit.read64(VCCAP), 1n);
  unit.write64(VCMD, 1n);
  assert.equal(unit.read64(VCRSP), 1n, 'in progress');
  unit.write64(VCMD, 1n);
  clock.advance(100);
  assert.equal(unit.read64(VCRSP), 1n << 16n);
  assert.equal(vm.count, 1);
  unit.write64(VCMD, 2n | (77n << 16n));
  clock.advance(100);
  assert.equal(unit.read64(VCRSP), 32n);
  unit.write64(VCMD, 9n);
  clock.advance(100);
  assert.equal(unit.read64(VCRSP), 2n);
});

test('A-81: a host that takes its time: the guest polls, others wait their turn; one that never answers is ENODEV', () => {
  const clock = new ManualClock();
  const { unit, ids, processes } = guest({ delay: { clock, nanoseconds: 5_000 } });
  const allocator = initVirtualCommands(unit, ids, { clock })!;
  const given: number[] = [];
  for (let i = 0; i < 3; i++) ids.allocLater(processes, 1, 99, null, (id) => given.push(id));
  assert.equal(given.length, 0);
  clock.advance(20_000);
  assert.deepEqual(given, [1, 2, 3]);
  // Ten seconds of polls of a microsecond are many: here each is half a second late.
  let now = 0;
  let poll: (() => void) | undefined;
  const late = {
    now: () => now,
    after(_nanoseconds: number, action: () => void) {
      poll = action;
      return () => {};
    },
  };
  const dead = virtualCommandAllocator({ read64: () => 1n, write64: () => {} }, { clock: late });
  dead.allocLater!(1, 99, undefined, (id) => given.push(id));
  for (now = 500_000_000; now < 10_000_000_000; now += 500_000_000) poll!();
  assert.equal(given.length, 3);
  poll!();
  assert.equal(given[3], INVALID_IOASID);
  assert.equal(dead.lastError, 'ENODEV');
  assert.equal(allocator.lastError, undefined);
});
