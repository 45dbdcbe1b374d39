import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../lib/errno.ts';
import { Domain } from './domain.ts';
import type { PageFaultGroup } from './io-pgfault.ts';
import { takePageRequests } from './page-requests.ts';
import { svmWorld } from './test-svm.ts';

/** A world in which PASID 5 is an address space whose requests are kept for the test to answer. */
function held(options: Parameters<typeof svmWorld>[0] = {}) {
  const world = svmWorld(options);
  const [device] = world.devices;
  const domain = new Domain(world.machine.unit, 'unmanaged', { stage: 'first' });
  const groups: PageFaultGroup[] = [];
  world.faults.setHandler(domain, (group) => groups.push(group));
  device!.group.attachPasid(domain, 5);
  return { ...world, device: device!, asker: device!.asker, domain, groups };
}

test('I-50: a group of three pages is given as one and answered once', () => {
  const { asker, faults, groups } = held();
  asker.ask(0x10, 5, { last: false, group: 3 });
  asker.ask(0x11, 5, { last: false, group: 3, write: true });
  asker.ask(0x90, 5, { last: false, group: 4 });
  assert.equal(groups.length, 0);
  assert.equal(faults.partial, 3);
  asker.ask(0x12, 5, { group: 3 });
  assert.equal(groups.length, 1);
  const [group] = groups;
  assert.deepEqual(
    group!.requests.map(({ page, read, write }) => [page, read, write]),
    [
      [0x10, true, false],
      [0x11, false, true],
      [0x12, true, false],
    ],
  );
  assert.deepEqual(asker.codes(), []);
  assert.equal(faults.pending, 1);
  assert.equal(group!.respond('success'), true);
  assert.deepEqual(asker.answers, [{ pasid: 5, group: 3, code: 'success' }]);
  assert.equal(group!.respond('invalid'), false, 'late');
  assert.equal(asker.answers.length, 1);
  assert.equal(faults.counters.late, 1);
  assert.equal(faults.partial, 1, 'group 4 still waits for its end');
});

test('I-51: a stop marker is dropped without an answer', () => {
  const { asker, faults, groups } = held();
  assert.equal(asker.ask(0, 5, { read: false }), 'ok');
  assert.deepEqual([groups.length, asker.answers.length, faults.counters.stopMarkers], [0, 0, 1]);
});

test('I-52: a queue that overflows: what found no room is answered FAILURE, incomplete groups are thrown away, and it goes on', () => {
  const { asker, faults, groups, clock, machine } = held({ delay: 1_000 });
  asker.ask(0x10, 5, { last: false, group: 511 });
  clock.advance(1_000);
  assert.equal(faults.partial, 1);
  // 64 KiB of entries of 32 bytes; one stays empty.
  for (let i = 0; i < 2047; i++) asker.ask(0x100 + i, 5, { last: false, group: 1 });
  assert.equal(machine.unit.hasPageRequestOverflow, false);
  asker.ask(0x2000, 5, { last: false, group: 2 });
  assert.equal(machine.unit.hasPageRequestOverflow, true);
  assert.deepEqual(asker.codes(), []);
  asker.ask(0x2001, 5, { group: 1 });
  assert.deepEqual(asker.codes(), ['failure'], 'the hardware itself answers');
  clock.advance(1_000);
  assert.deepEqual([faults.partial, faults.counters.overflows], [0, 1]);
  assert.equal(machine.unit.hasPageRequestOverflow, false);
  asker.ask(0x10, 5, { group: 511 });
  clock.advance(1_000);
  assert.deepEqual(
    groups.map(({ requests }) => requests.length),
    [1],
    'the thrown request does not come back',
  );
});

test('I-53: when an address space is taken away, what is queued, gathered or waits is answered INVALID, and nothing is pending', () => {
  const { asker, faults, groups, clock, device } = held({ delay: 1_000 });
  asker.ask(0x10, 5, { group: 1 });
  asker.ask(0x11, 5, { last: false, group: 2 });
  clock.advance(1_000);
  assert.equal(faults.pending, 1);
  asker.ask(0x12, 5, { group: 3 });
  device.group.detachPasid(5);
  faults.drain(device.group, 5);
  assert.deepEqual(
    asker.answers.map(({ group, code }) => [group, code]),
    [
      [1, 'invalid'],
      [3, 'invalid'],
    ],
  );
  assert.deepEqual([faults.pending, faults.partial], [0, 0]);
  assert.equal(groups[0]!.respond('success'), false);
  assert.equal(asker.ask(0x13, 5), 'ok');
  clock.advance(1_000);
  assert.equal(asker.answers.at(-1)!.code, 'invalid', 'nobody serves it any more');
  assert.equal(groups.length, 1);
});

test('I-55: a request of an unknown device, of an unknown PASID, or without sense is INVALID', () => {
  const { asker, faults, machine, groups, device } = held();
  assert.equal(asker.ask(0x10, 6), 'ok');
  assert.equal(asker.ask(2 ** 44, 5), 'ok', 'not canonical');
  asker.ask(0x10, 5, { privileged: true });
  asker.ask(0x10, 5, { exec: true });
  asker.ask(0x10, 5, { exec: true, last: false });
  asker.ask(0x10, -1);
  assert.deepEqual(asker.codes(), ['invalid', 'invalid', 'invalid', 'invalid', 'invalid']);
  assert.equal(groups.length, 0);
  // The device leaves its group while its request is in the queue.
  machine.unit.pageRequestEvent = undefined;
  asker.ask(0x10, 5);
  machine.core.remove(device.fn);
  faults.handle(machine.unit);
  assert.equal(asker.answers.filter(({ code }) => code !== 'invalid').length, 0);
  assert.equal(faults.pending, 0);
});

test('a handler that fails is a FAILURE; one device cannot keep more than its share of requests waiting', () => {
  const { asker, faults, domain, groups } = held();
  for (let i = 0; i < 5000; i++) asker.ask(i, 5, { last: false, group: 7 });
  assert.equal(faults.partial, 4096);
  asker.ask(1, 5, { group: 7 });
  assert.deepEqual(asker.codes(), ['failure']);
  assert.equal(faults.partial, 0);
  asker.ask(1, 5, { group: 7 });
  assert.equal(groups.length, 1);
  faults.setHandler(domain, () => {
    throw new Errno('ENOMEM', 'no memory');
  });
  asker.ask(1, 5);
  assert.deepEqual(asker.codes(), ['failure']);
  faults.setHandler(domain, undefined);
  asker.ask(1, 5);
  assert.deepEqual(asker.codes(), ['invalid']);
});

test('the requests of a device that a user answers for are his; the other devices of the unit go on being served', () => {
  const world = svmWorld({ widths: [20, 20] });
  const [mine, users] = world.devices;
  const domain = new Domain(world.machine.unit, 'unmanaged', { stage: 'first' });
  world.faults.setHandler(domain, (group) => group.respond('success'));
  mine!.group.attachPasid(domain, 5);
  users!.group.attachPasid(domain, 5);
  const taken: number[] = [];
  const stop = takePageRequests(world.machine.unit, ({ rid, page }) => rid === users!.fn.rid && taken.push(page) > 0);
  mine!.asker.ask(0x10, 5);
  users!.asker.ask(0x11, 5);
  users!.asker.ask(0x12, 5, { privileged: true });
  assert.deepEqual([mine!.asker.codes(), users!.asker.codes(), taken], [['success'], ['invalid'], [0x11]]);
  stop();
  users!.asker.ask(0x13, 5);
  assert.deepEqual(users!.asker.codes(), ['success']);
});
