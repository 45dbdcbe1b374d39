import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Atc, PENDING } from '../../hw/pci/atc.ts';
import { pciExpress } from '../../hw/pci/capabilities.ts';
import { type DmaFault, READ, WRITE } from '../../hw/pci/dma.ts';
import { ats, pasid, pri } from '../../hw/pci/extended-capabilities.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import type { FunctionSpec } from '../../hw/pci/function-spec.ts';
import * as reg from '../../uapi/pci-regs.ts';
import { Domain } from './domain.ts';
import { maxPasids } from './group.ts';
import { identityDomain, nestedDomain } from './special-domains.ts';
import { endpoint, IommuMachine, refuses, rootPort } from './test-machine.ts';

const SCALABLE = { units: [{ preset: 'nested-sm' }] } as const;

/** A device that does everything: PASIDs of `width` bits, translation and page requests. */
function capable(width = 20): FunctionSpec {
  const plain = endpoint(true);
  return { ...plain, capabilities: [...plain.capabilities!, ats(), pri(), pasid({ width, executable: true })] };
}

function world(width?: number) {
  const machine = new IommuMachine(SCALABLE);
  const port = machine.add(rootPort(), '1c.0');
  const fn = machine.add(capable(width), '0.0', { bus: port.secondary! });
  machine.boot();
  const group = machine.core.groupOf(fn)!;
  group.claim(machine);
  return { machine, fn, group, unit: machine.unit };
}

/** Writes a byte with a PASID; `ok` or the reason. */
function write(fn: PciFunction, page: number, pasidNumber: number, value = 0x5a): string {
  return fn.dma.write(page * 4096, Uint8Array.of(value), pasidNumber)?.reason ?? 'ok';
}

function mapped(machine: IommuMachine, page: number, ramIndex: number, stage: 'first' | 'second' = 'second'): Domain {
  const domain = new Domain(machine.unit, 'unmanaged', { stage });
  domain.map(page, machine.ramPage + ramIndex, 1, 3);
  return domain;
}

test('I-10 I-11: PASID 0 cannot be attached, a PASID carries one domain, and what cannot be is left as it was', () => {
  const { machine, fn, group } = world(8);
  const one = mapped(machine, 0x10, 1);
  const two = mapped(machine, 0x10, 2, 'first');
  refuses('EINVAL', () => group.attachPasid(one, 0), /PASID 0/);
  refuses('EINVAL', () => group.attachPasid(one, 256), /beyond the 256/);
  refuses('EINVAL', () => group.replacePasid(one, 7), /not attached/);
  group.attachPasid(one, 7);
  refuses('EBUSY', () => group.attachPasid(two, 7), /attached already/);
  group.attachPasid(two, 9);
  assert.deepEqual([write(fn, 0x10, 7, 1), write(fn, 0x10, 9, 2)], ['ok', 'ok']);
  assert.deepEqual([machine.ram[0x1000], machine.ram[0x2000]], [1, 2]);
  assert.equal(write(fn, 0x10, 8), 'blocked');
  refuses('EBUSY', () => one.free(), /attached/);
  assert.equal(group.domainOfPasid(7), one);
  group.detachPasid(7);
  assert.equal(write(fn, 0x10, 7), 'blocked');
  one.free();
});

test('PASIDs: of a device without them, of a legacy unit, of the smallest member', () => {
  const machine = new IommuMachine();
  const fn = machine.add(capable(), '3.0');
  machine.boot();
  assert.equal(maxPasids(fn, machine.unit), 0);
  refuses('EOPNOTSUPP', () => machine.core.groupOf(fn)!.attachPasid(new Domain(machine.unit, 'unmanaged'), 5));
  refuses('EOPNOTSUPP', () => new Domain(machine.unit, 'unmanaged', { stage: 'first' }), /first stage/);
  refuses('EOPNOTSUPP', () => new Domain(machine.unit, 'sva'));
  const group = world(6).group;
  assert.deepEqual(
    [...group.members].map((member) => maxPasids(member, group.unit)),
    [64],
  );
});

test('I-13: a PASID and the requester itself change to a domain with equal mappings without a fault', () => {
  const { machine, fn, group, unit } = world();
  group.attach(mapped(machine, 0x10, 1));
  group.attachPasid(mapped(machine, 0x10, 1), 3);
  assert.deepEqual([write(fn, 0x10, -1), write(fn, 0x10, 3)], ['ok', 'ok']);
  group.replacePasid(mapped(machine, 0x10, 1, 'first'), 3);
  group.replace(mapped(machine, 0x10, 1));
  assert.deepEqual([write(fn, 0x10, -1), write(fn, 0x10, 3)], ['ok', 'ok']);
  assert.equal(unit.lastFault, undefined);
  group.replacePasid(mapped(machine, 0x11, 4), 3);
  assert.deepEqual([write(fn, 0x10, 3), write(fn, 0x11, 3, 9), machine.ram[0x4000]], ['not present', 'ok', 9]);
});

test('what cannot be attached leaves every member of the group as it was', () => {
  const machine = new IommuMachine(SCALABLE);
  const plain = { ...capable(), capabilities: [ats(), pasid({ width: 20 }), ...endpoint().capabilities!] };
  const functions = ['4.0', '4.1'].map((at) => machine.add(plain, at));
  machine.boot();
  const group = machine.core.groupOf(functions[0]!)!;
  assert.equal(group.members.size, 2, 'no ACS');
  const kept = mapped(machine, 0x10, 1);
  group.attachPasid(kept, 5);
  const freed = new Domain(machine.unit, 'unmanaged');
  freed.free();
  refuses('EINVAL', () => group.replacePasid(freed, 5), /freed/);
  refuses('EINVAL', () => group.attachPasid(freed, 6), /freed/);
  assert.deepEqual(group.pasids(), [[5, kept]]);
  for (const fn of functions) assert.deepEqual([write(fn, 0x10, 5), write(fn, 0x10, 6)], ['ok', 'blocked']);
  assert.equal(freed.attachments, 0);
});

test('dirty tracking: bits only while it is on, found by range, cleared and set again', () => {
  const { machine, fn, group, unit } = world();
  const domain = new Domain(unit, 'unmanaged', { hasDirtyTracking: true });
  domain.map(0x10, machine.ramPage, 4, 3);
  domain.map(0x200, machine.ramPage, 512, 3);
  group.attach(domain);
  const dirty = (isCleared: boolean): number[][] => {
    const found: number[][] = [];
    domain.readAndClearDirty(0, 0x1000, { isCleared }, (first, pages) => found.push([first, pages]));
    return found;
  };
  refuses('EINVAL', () => dirty(true), /off/);
  assert.equal(write(fn, 0x10, -1), 'ok');
  domain.setDirtyTracking(true);
  assert.equal(domain.isDirtyTracking, true);
  assert.deepEqual(dirty(false), []);
  assert.deepEqual([write(fn, 0x11, -1), write(fn, 0x2ff, -1)], ['ok', 'ok']);
  assert.equal(fn.dma.read(0x12000, new Uint8Array(8)), undefined);
  const both = [
    [0x11, 1],
    [0x200, 512],
  ];
  assert.deepEqual(dirty(false), both);
  assert.deepEqual(dirty(true), both);
  assert.deepEqual(dirty(true), []);
  assert.equal(write(fn, 0x11, -1), 'ok');
  assert.deepEqual(dirty(true), [[0x11, 1]], 'the IOTLB forgot that the page was dirty');
  domain.setDirtyTracking(false);
  assert.equal(write(fn, 0x12, -1), 'ok');
  domain.readAndClearDirty(0, 0x1000, { isCleared: true });
  domain.setDirtyTracking(true);
  assert.deepEqual(dirty(true), []);
  refuses('EOPNOTSUPP', () => new Domain(unit, 'unmanaged').setDirtyTracking(true));
});

test('enforced coherency of a first stage is in the PASID entries, also in those that exist', () => {
  const { machine, fn, group } = world();
  const domain = mapped(machine, 0x10, 1, 'first');
  group.attachPasid(domain, 3);
  const isCoherent = (): boolean => {
    assert.equal(fn.dma.write(0x10000, Uint8Array.of(1), { pasid: 3, noSnoop: true }), undefined);
    return fn.dma.isCoherent;
  };
  assert.equal(isCoherent(), false);
  assert.equal(domain.enforceCacheCoherency(), true);
  assert.equal(isCoherent(), true);
  const second = mapped(machine, 0x10, 1);
  assert.equal(second.enforceCacheCoherency(), false, 'leaves made before would not do it');
});

test('a domain nested on another: guest addresses, guest flushes, parent unmap', () => {
  const { machine, fn, group, unit } = world();
  const parent = new Domain(unit, 'unmanaged', { isNestParent: true });
  refuses('EINVAL', () => nestedDomain(new Domain(unit, 'unmanaged'), { pageTable: 0n, addressWidth: 48 }));
  refuses('EINVAL', () => nestedDomain(parent, { pageTable: 0n, addressWidth: 39 }));
  // The guest's memory is RAM from its page 16 on; guest page 0 is the top table, 1 to 3 the lower ones.
  parent.map(0, machine.ramPage + 16, 64, 3);
  const table = new DataView(machine.ram.buffer, 16 * 4096);
  const entry = (page: number, index: number, value: bigint): void =>
    table.setBigUint64(page * 4096 + index * 8, value, true);
  for (const level of [0, 1, 2]) entry(level, 0, BigInt((level + 1) << 12) | 7n);
  entry(3, 5, (40n << 12n) | 7n);
  const nested = nestedDomain(parent, { pageTable: 0n, addressWidth: 48 });
  group.attachPasid(nested, 4);
  assert.equal(write(fn, 5, 4, 0x77), 'ok');
  assert.equal(machine.ram[(16 + 40) * 4096], 0x77);
  assert.equal(table.getUint32(3 * 4096 + 40, true) & 0xfff, 0x67, 'accessed and dirty in the guest');
  entry(3, 5, (41n << 12n) | 7n);
  assert.equal(write(fn, 5, 4, 0x78), 'ok');
  assert.equal(machine.ram[(16 + 41) * 4096], 0, 'stale until the guest flushes');
  nested.invalidateFirstStage(5, 1);
  assert.equal(write(fn, 5, 4, 0x79), 'ok');
  assert.equal(machine.ram[(16 + 41) * 4096], 0x79);
  refuses('EBUSY', () => parent.free(), /nested/);
  parent.unmap(41, 1);
  assert.match(write(fn, 5, 4), /^second stage: /, 'what is nested is flushed with the parent');
  group.detachPasid(4);
  nested.free();
});

test('while a device is reset its requests and PASIDs are blocked, and nothing can be attached', () => {
  const { machine, fn, group } = world();
  const domain = mapped(machine, 0x10, 1);
  group.attach(domain);
  group.attachPasid(domain, 3);
  group.prepareReset(fn);
  group.prepareReset(fn);
  assert.deepEqual([write(fn, 0x10, -1), write(fn, 0x10, 3)], ['blocked', 'blocked']);
  refuses('EBUSY', () => group.attachPasid(domain, 4), /reset/);
  refuses('EBUSY', () => group.replace(mapped(machine, 0x10, 1)), /reset/);
  group.finishReset(fn);
  assert.equal(write(fn, 0x10, 3), 'blocked');
  group.finishReset(fn);
  assert.deepEqual([write(fn, 0x10, -1), write(fn, 0x10, 3)], ['ok', 'ok']);
  group.prepareReset(fn);
  group.release();
  group.detachPasid(3);
  group.finishReset(fn);
  assert.equal(write(fn, 0x10, 3), 'blocked');
  assert.equal(write(fn, 0x10, -1), 'not present', 'the default domain');
});

test('a member that goes takes its PASIDs along; domains can then be freed', () => {
  const { machine, fn, group, unit } = world();
  const domain = mapped(machine, 0x10, 1);
  group.attachPasid(domain, 3);
  machine.core.remove(fn);
  assert.equal(unit.translate(fn.rid, 3, 0x10, READ), -1);
  assert.equal(unit.translate(fn.rid, -1, 0x10, WRITE), -1);
  group.detachPasid(3);
  domain.free();
});

test('identity by PASID: the address is physical', () => {
  const { machine, fn, group, unit } = world();
  group.attachPasid(identityDomain(unit), 6);
  assert.equal(write(fn, machine.ramPage, 6, 0x11), 'ok');
  assert.equal(machine.ram[0], 0x11);
});

test('I-44 I-82: after unmap no DMA reaches the page, not by the IOTLB and not by the device TLB either', () => {
  const { machine, fn, group } = world();
  const atc = new Atc(fn.dma);
  for (const stage of ['first', 'second'] as const) {
    const domain = new Domain(machine.unit, 'unmanaged', { stage });
    domain.map(0x10, machine.ramPage + 1, 2, 3);
    group.attachPasid(domain, 3);
    group.attach(domain);
    for (const pasidNumber of [3, -1]) {
      assert.equal(atc.write(0x10000, Uint8Array.of(1), pasidNumber), undefined);
      assert.equal(atc.write(0x11000, Uint8Array.of(1), pasidNumber), undefined);
    }
    assert.equal(atc.size, 4);
    domain.unmap(0x10, 1);
    assert.equal(atc.size, 2, 'the neighbour is kept');
    for (const pasidNumber of [3, -1]) {
      assert.equal((atc.write(0x10000, Uint8Array.of(2), pasidNumber) as DmaFault).reason, 'not present');
    }
    assert.equal(machine.ram[4096], 1);
    group.detachPasid(3);
    group.detach();
    assert.equal(atc.size, 0, 'detaching takes the rest');
  }
});

test('I-54: SVA: a page request is answered by mapping the page, and the device goes on', () => {
  const { machine, fn, group, unit } = world();
  const domain = new Domain(unit, 'sva');
  group.attachPasid(domain, 3);
  const atc = new Atc(fn.dma, { asksForPages: true });
  assert.equal(atc.write(0x7000_0000_1000n, Uint8Array.of(5), 3), PENDING);
  const [request] = unit.takePageRequests();
  assert.equal(machine.core.groupOfRid(unit, request!.rid), group);
  assert.equal(group.domainOfPasid(request!.pasid), domain);
  domain.map(request!.page, machine.ramPage + 5, 1, 3);
  unit.respondPageRequest(request!, 'success');
  assert.equal(atc.write(0x7000_0000_1000n, Uint8Array.of(5), 3), undefined);
  assert.equal(machine.ram[5 * 4096], 5);
  domain.unmap(request!.page, 1);
  assert.equal(atc.size, 0);
  group.detachPasid(3);
  domain.free();
});

test('a device that is not trusted gets no translation requests', () => {
  const machine = new IommuMachine(SCALABLE);
  const port = machine.add(rootPort(), '1c.0');
  const fn = machine.add(capable(), '0.0', { bus: port.secondary!, untrusted: true });
  machine.boot();
  assert.equal((fn.dma.translate(0x1000) as DmaFault).reason, 'ATS is off');
  const at = fn.config.findExtended(reg.PCI_EXT_CAP_ID_ATS);
  fn.config.write(at + reg.PCI_ATS_CTRL, 2, reg.PCI_ATS_CTRL_ENABLE);
  assert.equal((fn.dma.translate(0x1000) as DmaFault).reason, 'no translation requests', 'nor can it take them');
});

test('a reset by software goes the same way: meanwhile requests are blocked and nothing can be attached', () => {
  const machine = new IommuMachine(SCALABLE);
  const port = machine.add(rootPort(), '1c.0');
  const seen: string[] = [];
  const reset = (): void => {
    const isReached = machine.unit.translate(fn.rid, 3, 0x10, WRITE) >= 0;
    seen.push(isReached ? 'reached' : machine.unit.why);
    refuses('EBUSY', () => group.attachPasid(mapped(machine, 0x10, 1), 4), /reset/);
  };
  const withFlr = pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT, flr: true });
  const others = capable().capabilities!.slice(1);
  const fn = machine.add({ ...capable(), capabilities: [withFlr, ...others], reset }, '0.0', { bus: port.secondary! });
  machine.boot();
  const group = machine.core.groupOf(fn)!;
  group.attachPasid(mapped(machine, 0x10, 1), 3);
  for (const method of ['flr', 'bus'] as const) {
    seen.length = 0;
    fn.reset(method);
    assert.deepEqual(seen, ['blocked'], method);
    assert.equal(write(fn, 0x10, 3), 'ok');
  }
});
