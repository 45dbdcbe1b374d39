import assert from 'node:assert/strict';
import { test } from 'node:test';
import { READ } from '../pci/dma.ts';
import { encodeDescriptor, type Invalidation } from './descriptors.ts';
import { vtdss } from './fmt/vtdss.ts';
import { QueueError } from './invalidation-queue.ts';
import { PageTable } from './page-table.ts';
import { RID, TestUnit } from './test-unit.ts';
import type { IommuUnitOptions } from './unit.ts';

/** A unit with a queue of one page in RAM, as a driver has it. */
function world(options: IommuUnitOptions = { preset: 'nested-sm' }, isWide = true) {
  const machine = new TestUnit(options);
  const { unit } = machine;
  const ring = machine.page();
  const status = machine.page();
  unit.queue.setBase(ring, 0, isWide);
  unit.queue.isEnabled = true;
  const step = unit.queue.step;
  let tail = 0;
  /** Writes descriptors into the ring and moves the tail. */
  const submit = (...descriptors: (Invalidation | Uint32Array)[]): void => {
    for (const what of descriptors) {
      const words = what instanceof Uint32Array ? what : encodeDescriptor(what);
      for (let i = 0; i < step / 4; i += 2) {
        machine.put(ring, tail / 8 + i / 2, (BigInt(words[i + 1] ?? 0) << 32n) | BigInt(words[i] ?? 0));
      }
      tail = (tail + step) % 4096;
    }
    unit.queue.moveTail(tail);
  };
  const wait = (data: number): Invalidation => ({ kind: 'wait', status: { address: BigInt(status) << 12n, data } });
  return { machine, unit, submit, wait, statusOf: () => Number(machine.get(status, 0)) };
}

/** Maps pages 0 to 15 of a domain for the requester, and looks at each of them once. */
function filled(machine: TestUnit, rid: number, did: number): { table: PageTable; hits: () => number[] } {
  const { unit } = machine;
  const table = new PageTable(vtdss, unit.tables);
  table.map(0, 0x100, 16, 3, false);
  unit.setContext(rid, did, table);
  for (let page = 0; page < 16; page++) assert.equal(unit.translate(rid, -1, page, READ), 0x100 + page);
  table.unmap(0, 16);
  const hits = (): number[] =>
    Array.from({ length: 16 }, (_, i) => i).filter((i) => unit.translate(rid, -1, i, READ) >= 0);
  return { table, hits };
}

test('I-40 I-41 I-43: page-selective invalidation takes one block of one domain and leaves the neighbours', () => {
  const { machine, submit } = world();
  const one = filled(machine, RID, 5);
  const other = filled(machine, 0x20, 6);
  submit({ kind: 'iotlb', did: 5, pages: { firstPage: 4, order: 2 } });
  assert.deepEqual(one.hits(), [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]);
  assert.equal(other.hits().length, 16);
  submit({ kind: 'iotlb', did: 5 });
  assert.deepEqual(one.hits(), []);
  assert.equal(other.hits().length, 16);
  submit({ kind: 'iotlb' });
  assert.deepEqual(other.hits(), []);
});

test('contexts and PASID entries are believed until their caches are invalidated', () => {
  const { machine, unit, submit } = world();
  machine.bind(3, { type: 'pass-through', did: 1 });
  const go = (): string => (unit.translate(RID, 3, 7, READ) === 7 ? 'passes' : unit.why);
  assert.equal(go(), 'passes');
  unit.root.clearPasid(RID, 3);
  assert.equal(go(), 'passes', 'stale');
  submit({ kind: 'pasid-cache', did: 9 });
  submit({ kind: 'pasid-cache', did: 1, pasid: 4 });
  submit({ kind: 'iotlb' });
  assert.equal(go(), 'passes', 'others');
  submit({ kind: 'pasid-cache', did: 1, pasid: 3 });
  assert.equal(go(), 'blocked');
  machine.bind(3, { type: 'pass-through', did: 1 });
  assert.equal(go(), 'passes');
  unit.root.clear(RID);
  assert.equal(go(), 'passes', 'the context is cached too');
  submit({ kind: 'context', did: 0, rid: RID });
  assert.equal(go(), 'blocked');
});

test('legacy contexts are invalidated by domain and by requester', () => {
  for (const what of [
    { kind: 'context' },
    { kind: 'context', did: 5 },
    { kind: 'context', did: 0, rid: RID },
  ] as const) {
    const { machine, unit, submit } = world({ preset: 'legacy-sc' }, false);
    const { table } = filled(machine, RID, 5);
    unit.invalidateDomain(5);
    unit.root.clear(RID);
    table.map(0, 0x100, 1, 3, false);
    assert.equal(unit.translate(RID, -1, 0, READ), 0x100, 'stale');
    submit({ kind: 'context', did: 6 });
    submit(what);
    assert.equal(unit.translate(RID, -1, 1, READ), -1);
    assert.equal(unit.why, 'blocked');
  }
});

test('waits write their status in order, in both halves of a qword; the ring goes round', () => {
  const { unit, submit, wait, statusOf } = world();
  let interrupts = 0;
  unit.queue.waitEvent = () => interrupts++;
  for (let i = 1; i <= 300; i++) submit({ kind: 'iotlb' }, wait(i));
  assert.equal(statusOf(), 300);
  assert.equal(unit.queue.counters.waits, 300);
  assert.equal(interrupts, 0);
  submit({ kind: 'wait', interrupts: true });
  submit({ kind: 'wait', interrupts: true });
  assert.equal(interrupts, 1, 'until software clears it');
});

test('a malformed descriptor, a bad tail, a queue outside memory stop the queue until software clears the flag', () => {
  const { machine, unit, submit, wait, statusOf } = world();
  let events = 0;
  unit.queue.errorEvent = () => events++;
  submit(wait(1));
  submit(Uint32Array.of(0x0f, 0, 0, 0, 0, 0, 0, 0), wait(2));
  assert.deepEqual([statusOf(), unit.queue.hasQueueError, unit.queue.head, events], [1, true, 32, 1]);
  assert.equal(unit.queue.errorInfo, QueueError.UNKNOWN_TYPE);
  submit(wait(3));
  assert.equal(statusOf(), 1, 'stopped');
  const words = encodeDescriptor({ kind: 'iotlb' });
  machine.put(unit.queue.page, unit.queue.head / 8, (BigInt(words[1]!) << 32n) | BigInt(words[0]!));
  unit.queue.hasQueueError = false;
  unit.queue.resume();
  assert.equal(statusOf(), 3, 'mended and continued');
  unit.queue.moveTail(4096);
  assert.deepEqual([unit.queue.hasQueueError, unit.queue.errorInfo], [true, QueueError.BAD_TAIL]);
  unit.queue.hasQueueError = false;
  unit.queue.moveTail(8);
  assert.equal(unit.queue.errorInfo, QueueError.BAD_TAIL);
  unit.queue.hasQueueError = false;
  unit.queue.setBase(2 ** 30, 0, true);
  unit.queue.moveTail(32);
  assert.equal(unit.queue.errorInfo, QueueError.UNREADABLE);
});

test('what a unit does not have, a range beyond MAMV, a reserved second half, a status nowhere: all stop the queue', () => {
  const bad: (Invalidation | Uint32Array)[] = [
    { kind: 'iotlb', did: 5, pages: { firstPage: 0, order: 19 } },
    Uint32Array.of(0xc2 | 0x10, 0, 0, 0, 1, 0, 0, 0),
    { kind: 'wait', status: { address: BigInt(2 ** 30) << 12n, data: 1 } },
  ];
  for (const what of bad) {
    const { unit, submit } = world();
    submit(what);
    assert.deepEqual([unit.queue.hasQueueError, unit.queue.errorInfo], [true, QueueError.RESERVED_BITS]);
  }
  for (const what of [
    { kind: 'pasid-cache' },
    { kind: 'pasid-iotlb', did: 5, pasid: 3 },
    { kind: 'response', rid: RID, pasid: 3, group: 1, code: 'success' },
    { kind: 'pasid-device-tlb', rid: RID, pasid: 3, pages: { firstPage: 0, order: 0 } },
  ] as const) {
    const { unit, submit } = world({ preset: 'legacy-sc' }, false);
    submit(what);
    assert.equal(unit.queue.hasQueueError, true, what.kind);
  }
});

test('a device that does not answer: the waits behind are aborted, software submits them again', () => {
  const { machine, unit, submit, wait, statusOf } = world();
  machine.bind(3, { type: 'pass-through', did: 1 });
  let answers = false;
  assert.notEqual(
    unit.translationRequest({ invalidate: () => answers, respond: () => {} }, RID, 5, { pasid: 3 }),
    undefined,
  );
  const flush: Invalidation = { kind: 'pasid-device-tlb', rid: RID, pasid: 3, pages: { firstPage: 5, order: 0 } };
  submit(flush, wait(1));
  assert.deepEqual([unit.queue.hasTimeout, unit.queue.timeoutSource, statusOf()], [true, RID, 0]);
  assert.equal(unit.queue.counters.aborted, 1);
  unit.queue.hasTimeout = false;
  answers = true;
  submit(flush, wait(1));
  assert.deepEqual([unit.queue.hasTimeout, statusOf()], [false, 1]);
  assert.equal(unit.devices.counters.timeouts, 1);
});

test('staleness by choice: with none nothing stale is ever used, with a seed it is used now and then, the same each time', () => {
  const uses = (staleness: 'never' | { seed: number }): string => {
    const machine = new TestUnit({ preset: 'legacy-sc', staleness });
    const { hits } = filled(machine, RID, 5);
    return hits().join(' ');
  };
  assert.equal(uses('never'), '');
  const some = uses({ seed: 7 });
  assert.ok(some.length > 0 && some.split(' ').length < 16, some);
  assert.equal(uses({ seed: 7 }), some);
  assert.notEqual(uses({ seed: 8 }), some);
});
