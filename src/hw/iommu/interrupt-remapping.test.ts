import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BufferBacking } from '../memory/backing.ts';
import { PhysicalMemory } from '../memory/physical-memory.ts';
import {
  decodeMessage,
  decodePosted,
  decodeRemapped,
  type EntryWords,
  encodeMessage,
  IRTE_SIZE,
  postedEntry,
  type RemappedEntry,
  remappedEntry,
} from './interrupt-entry.ts';
import {
  InterruptFault,
  type InterruptMessage,
  InterruptRemapping,
  interruptFaultName,
  type RemappingOptions,
} from './interrupt-remapping.ts';
import { PostedDescriptor } from './posted-interrupt.ts';

const TABLE = 0x100;
const DESCRIPTOR_PAGE = 0x300;
const RID = 0x0610;
const entry: RemappedEntry = { vector: 0x41, destination: 5, sid: RID, sq: 0, svt: 1 };

function machine(options: Partial<RemappingOptions> = {}) {
  const memory = new PhysicalMemory();
  const table = new BufferBacking(0x10000);
  memory.addWindow(TABLE, 16, table);
  memory.addWindow(DESCRIPTOR_PAGE, 1, new BufferBacking(4096));
  const sent: InterruptMessage[] = [];
  const recorded: [number, number, number][] = [];
  const unit = new InterruptRemapping({
    memory,
    tablePage: TABLE,
    entries: 4096,
    isX2apic: true,
    canPost: true,
    send: (message) => sent.push(message),
    record: (rid, index, reason) => recorded.push([rid, index, reason]),
    ...options,
  });
  const put = (index: number, words: EntryWords) =>
    table.bytes.set(new Uint8Array(words.buffer, 0, IRTE_SIZE), index * IRTE_SIZE);
  const send = (index: number, rid = RID) => {
    const { address, data } = encodeMessage(index);
    return unit.request(rid, address, data);
  };
  return { memory, unit, sent, recorded, put, send };
}

function reasonOf(outcome: ReturnType<InterruptRemapping['request']>): number {
  assert.equal(outcome.kind, 'blocked');
  return outcome.kind === 'blocked' ? outcome.reason : 0;
}

test('K-40: handle 0x8001 with a subhandle is address 0xfee0003c, and subhandle 3 makes it entry 0x8004', () => {
  assert.deepEqual(encodeMessage(0x8001, 3), { address: 0xfee0003c, data: 3 });
  assert.deepEqual(decodeMessage(0xfee0003c, 3), {
    isRemappable: true,
    handle: 0x8001,
    hasSubhandle: true,
    index: 0x8004,
  });
  assert.equal(decodeMessage(0xfee0_0010, 3).index, 0, 'without SHV the data is not looked at');
  assert.equal(decodeMessage(0xfee0_0000, 0x31).isRemappable, false);
});

test('any handle and subhandle survive the message', () => {
  fc.assert(
    fc.property(fc.nat(0xffff), fc.nat(0xffff), (handle, subhandle) => {
      const { address, data } = encodeMessage(handle, subhandle);
      assert.equal(address >>> 20, 0xfee);
      assert.equal(decodeMessage(address, data).index, handle + subhandle);
    }),
  );
});

test('K-42: a posted entry has these values bit for bit, and the remapped one comes back', () => {
  const words = postedEntry({ descriptor: 0x1_2345_6780n, vector: 0x31, sid: 0, sq: 0, svt: 0 });
  assert.deepEqual([...words], [0x0031_8001, 0x2345_6780, 0, 1]);
  const owned = postedEntry({ descriptor: 0x1_2345_6780n, vector: 0x31, sid: RID, sq: 0, svt: 1 });
  assert.deepEqual([...owned], [0x0031_8001, 0x2345_6780, 0x0004_0610, 1]);
  assert.equal(decodePosted(owned).descriptor, 0x1_2345_6780n);
  assert.deepEqual([...remappedEntry({ ...entry, redirectionHint: true })], [0x0041_0009, 5, 0x0004_0610, 0]);
});

test('entries survive encoding, whatever is in them', () => {
  const source = { sid: fc.nat(0xffff), sq: fc.nat(3), svt: fc.nat(2), faultsOff: fc.boolean() };
  const remapped = fc.record({
    ...source,
    vector: fc.nat(255),
    destination: fc.nat(0xffff_ffff),
    isLogical: fc.boolean(),
    redirectionHint: fc.boolean(),
    isLevel: fc.boolean(),
    deliveryMode: fc.nat(7),
  });
  fc.assert(fc.property(remapped, (value) => assert.deepEqual(decodeRemapped(remappedEntry(value)), { ...value })));
  const posted = fc.record({
    ...source,
    vector: fc.nat(255),
    descriptor: fc.bigInt(0n, 2n ** 58n - 1n).map((n) => n * 64n),
    isUrgent: fc.boolean(),
  });
  fc.assert(fc.property(posted, (value) => assert.deepEqual(decodePosted(postedEntry(value)), { ...value })));
});

test('a message of the right device is delivered as its entry says', () => {
  const { put, send, sent } = machine();
  put(7, remappedEntry({ ...entry, isLogical: true, deliveryMode: 1 }));
  assert.equal(send(7).kind, 'delivered');
  assert.deepEqual(sent, [{ vector: 0x41, destination: 5, isLogical: true, isLevel: false, deliveryMode: 1 }]);
});

test('without x2APIC mode destinations stand in bits 8 to 15', () => {
  const { put, send, sent } = machine({ isX2apic: false });
  put(7, remappedEntry({ ...entry, destination: 5 << 8 }));
  send(7);
  assert.equal(sent[0]!.destination, 5);
});

test('K-41: a forged source is blocked with 0x26 and recorded; nothing is sent', () => {
  const { put, send, sent, recorded } = machine();
  put(9, remappedEntry(entry));
  assert.equal(reasonOf(send(9, RID + 1)), 0x26);
  assert.deepEqual(sent, []);
  assert.deepEqual(recorded, [[RID + 1, 9, 0x26]]);
});

test('source checks: masked function bits, a range of buses, none', () => {
  const { put, send } = machine();
  const kinds: [Partial<RemappedEntry>, number[], number[]][] = [
    [{ svt: 1, sq: 1 }, [RID, RID ^ 4], [RID ^ 1, RID ^ 8]],
    [{ svt: 1, sq: 2 }, [RID, RID ^ 6], [RID ^ 1, RID ^ 8]],
    [{ svt: 1, sq: 3 }, [RID, RID ^ 7], [RID ^ 8]],
    [{ svt: 2, sid: 0x0608 }, [0x0600, 0x0710, 0x08ff], [0x0500, 0x0900]],
    [{ svt: 0 }, [0, 0xffff], []],
  ];
  kinds.forEach(([change, good, bad], index) => {
    put(index, remappedEntry({ ...entry, ...change }));
    for (const rid of good) assert.equal(send(index, rid).kind, 'delivered', `${index}: 0x${rid.toString(16)}`);
    for (const rid of bad) assert.equal(reasonOf(send(index, rid)), 0x26, `${index}: 0x${rid.toString(16)}`);
  });
});

test('each refusal has its code', () => {
  const { unit, put, send, recorded } = machine();
  put(
    1,
    remappedEntry(entry).map((word, i) => (i === 0 ? word | (1 << 12) : word)),
  );
  put(2, remappedEntry({ ...entry, svt: 3 }));
  put(
    3,
    postedEntry({ ...entry, descriptor: 0n }).map((word, i) => (i === 0 ? word | 4 : word)),
  );
  put(
    4,
    remappedEntry(entry).map((word, i) => (i === 3 ? 1 : word)),
  );
  assert.equal(reasonOf(unit.request(RID, 0xfee0_0018, 0x1_0000)), InterruptFault.REQUEST_RESERVED);
  assert.equal(reasonOf(send(4096)), InterruptFault.INDEX_BEYOND_TABLE);
  assert.equal(reasonOf(send(5)), InterruptFault.ENTRY_NOT_PRESENT);
  for (const index of [1, 2, 3, 4]) assert.equal(reasonOf(send(index)), InterruptFault.ENTRY_RESERVED, `${index}`);
  assert.equal(reasonOf(unit.request(RID, 0xfee0_0000, 0x31)), InterruptFault.COMPATIBILITY_BLOCKED);
  assert.deepEqual(
    recorded.map(([, , reason]) => reason),
    [0x20, 0x21, 0x22, 0x24, 0x24, 0x24, 0x24, 0x25],
  );
  assert.equal(interruptFaultName(0x24), 'reserved bits in the entry');
  const gone = machine({ tablePage: 0x5000 });
  assert.equal(reasonOf(gone.send(1)), InterruptFault.TABLE_ACCESS);
});

test('a unit that cannot post takes a posted entry for reserved bits; a descriptor without memory is a table access error', () => {
  const old = machine({ canPost: false });
  old.put(1, postedEntry({ ...entry, descriptor: 0x30_0000n }));
  assert.equal(reasonOf(old.send(1)), InterruptFault.ENTRY_RESERVED);
  const { put, send } = machine();
  put(1, postedEntry({ ...entry, descriptor: 0x70_0000n }));
  assert.equal(reasonOf(send(1)), InterruptFault.TABLE_ACCESS);
});

test('an entry that says so is silent about what it refuses', () => {
  const { put, send, recorded } = machine();
  put(1, remappedEntry({ ...entry, faultsOff: true }));
  assert.equal(reasonOf(send(1, 1)), 0x26);
  assert.deepEqual(recorded, []);
});

test('entries stay cached until they are invalidated: one, a block, all', () => {
  const { unit, put, send, sent } = machine();
  for (const index of [8, 9, 12]) put(index, remappedEntry(entry));
  for (const index of [8, 9, 12]) send(index);
  assert.equal(unit.cached, 3);
  for (const index of [8, 9, 12]) put(index, remappedEntry({ ...entry, vector: 0x55 }));
  sent.length = 0;
  const vectors = (): number[] => {
    sent.length = 0;
    for (const index of [8, 9, 12]) send(index);
    return sent.map(({ vector }) => vector);
  };
  assert.deepEqual(vectors(), [0x41, 0x41, 0x41], 'stale');
  unit.invalidate(8);
  assert.deepEqual(vectors(), [0x55, 0x41, 0x41]);
  unit.invalidate(10, 2);
  assert.deepEqual(vectors(), [0x55, 0x55, 0x41]);
  unit.invalidateAll();
  assert.deepEqual(vectors(), [0x55, 0x55, 0x55]);
  put(8, new Uint32Array(4));
  unit.invalidate(8);
  assert.equal(reasonOf(send(8)), InterruptFault.ENTRY_NOT_PRESENT);
  put(8, remappedEntry(entry));
  assert.equal(send(8).kind, 'delivered', 'an entry that is not present is not cached');
});

test('a unit that lets old messages pass does not isolate, unless it is in x2APIC mode', () => {
  const open = machine({ allowsCompatibility: true, isX2apic: false });
  assert.equal(open.unit.isIsolating, false);
  assert.equal(open.unit.request(RID, 0xfee0_3004, 0x4131).kind, 'delivered');
  assert.deepEqual(open.sent, [{ vector: 0x31, destination: 3, isLogical: true, isLevel: false, deliveryMode: 1 }]);
  assert.equal(machine({ allowsCompatibility: true }).unit.isIsolating, true);
  assert.equal(machine().unit.isIsolating, true);
});

test('explain says what would become of a message, and nothing happens', () => {
  const { unit, put, sent, recorded } = machine();
  put(3, remappedEntry(entry));
  const { address, data } = encodeMessage(3);
  assert.equal(unit.explain(RID, address, data).why, '');
  assert.match(unit.explain(0x77, address, data).why, /source check failed: entry 0x3 belongs to requester 0x610/);
  assert.deepEqual([sent, recorded, unit.cached], [[], [], 0]);
});

test('K-33: posting sets the bit in memory and notifies once, until the notification is taken', () => {
  const { memory, put, send, sent } = machine();
  const address = BigInt(DESCRIPTOR_PAGE) * 4096n + 0x40n;
  const descriptor = new PostedDescriptor(memory, address);
  descriptor.nv = 0xf2;
  descriptor.ndst = 6;
  put(1, postedEntry({ ...entry, descriptor: address, vector: 0x31 }));
  put(2, postedEntry({ ...entry, descriptor: address, vector: 0xfe }));
  assert.deepEqual(send(1), { kind: 'posted', vector: 0x31, isNotified: true });
  assert.deepEqual(send(2), { kind: 'posted', vector: 0xfe, isNotified: false });
  assert.deepEqual(sent, [{ vector: 0xf2, destination: 6, isLogical: false, isLevel: false, deliveryMode: 0 }]);
  const bytes = descriptor.bytes();
  const expected = new Uint8Array(64);
  expected[0x31 >> 3] = 1 << (0x31 & 7);
  expected[0xfe >> 3] = 1 << (0xfe & 7);
  expected[32] = 1;
  expected[34] = 0xf2;
  expected[36] = 6;
  assert.deepEqual(bytes, expected);
  assert.deepEqual(descriptor.take(), [0x31, 0xfe]);
  assert.deepEqual([descriptor.isEmpty, descriptor.on], [true, false]);
  assert.deepEqual(send(1), { kind: 'posted', vector: 0x31, isNotified: true });
});

test('a suppressed notification is not sent, an urgent one is', () => {
  const { memory, put, send, sent } = machine();
  const address = BigInt(DESCRIPTOR_PAGE) * 4096n;
  const descriptor = new PostedDescriptor(memory, address);
  descriptor.sn = true;
  put(1, postedEntry({ ...entry, descriptor: address }));
  put(2, postedEntry({ ...entry, descriptor: address, isUrgent: true }));
  assert.deepEqual(send(1), { kind: 'posted', vector: 0x41, isNotified: false });
  assert.equal(descriptor.on, false);
  assert.equal(descriptor.isRequested(0x41), true);
  assert.deepEqual(send(2), { kind: 'posted', vector: 0x41, isNotified: true });
  assert.equal(sent.length, 1);
  assert.throws(() => new PostedDescriptor(memory, 0x20n), /not aligned/);
});
