import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Atc } from '../pci/atc.ts';
import type { PageResponse, Translation } from '../pci/ats.ts';
import { DmaPort } from '../pci/dma.ts';
import { vtdss } from './fmt/vtdss.ts';
import { x86_64 } from './fmt/x86-64.ts';
import { PageTable } from './page-table.ts';
import { RID, TestUnit } from './test-unit.ts';

/** A device behind a unit: PASID 3 goes through a first stage of the host's, requests without PASID through a second stage. */
function world() {
  const machine = new TestUnit();
  const { unit } = machine;
  const dma = new DmaPort(
    machine.memory,
    unit,
    () => RID,
    () => true,
  );
  const first = new PageTable(x86_64, unit.tables);
  const second = new PageTable(vtdss, unit.tables);
  machine.bind(3, { type: 'first', did: 9, firstStage: { page: first.top, levels: 4 }, isWalkSnooped: true });
  machine.bind(0, { type: 'second', did: 10, secondStage: { page: second.top, levels: 4 }, isWalkSnooped: true });
  return { machine, unit, dma, first, second };
}

const answer = (found: Translation | { reason: string }): unknown =>
  'reason' in found
    ? found.reason
    : [found.firstPage, found.pages, found.physicalPage, found.read, found.write, found.mustSnoop];

test('translation requests: what is there, how far it reaches, what may be done; what is not there is no fault', () => {
  const { machine, dma, first, second, unit } = world();
  first.map(5, machine.ramPage, 1, 3, false);
  first.map(6, machine.ramPage, 1, 1, false);
  second.map(0x200, machine.ramPage - (machine.ramPage % 512), 512, 3, true);
  const ask = (page: number, pasid: number, write = false): unknown =>
    answer(dma.translate(page * 4096, { pasid, write }));
  assert.deepEqual(ask(5, 3), [5, 1, machine.ramPage, true, true, false]);
  assert.deepEqual(ask(6, 3, true), [6, 1, machine.ramPage, true, false, false]);
  assert.deepEqual(ask(0x2ff, -1), [0x200, 512, machine.ramPage, true, true, true]);
  assert.deepEqual(ask(7, 3), [7, 1, 0, false, false, false]);
  assert.deepEqual(ask(7, -1, true), [7, 1, 0, false, false, false]);
  assert.equal(unit.faults.isPending, false);
  const window = dma.translate(0xfee0_0000, {}) as Translation;
  assert.equal(window.isUntranslatedOnly, true);
  assert.equal(ask(2 ** 35, 3), 'not canonical');
  assert.equal(ask(5, 4), 'blocked');
  assert.equal(unit.faults.isPending, true);
});

test('I-44: a device TLB is used until it is invalidated; the page may be used again only then', () => {
  const { machine, unit, dma, first } = world();
  const atc = new Atc(dma);
  first.map(5, machine.ramPage + 1, 1, 3, false);
  assert.equal(atc.write(0x5000, Uint8Array.of(1), 3), undefined);
  assert.equal(atc.write(0x5001, Uint8Array.of(2), 3), undefined);
  assert.deepEqual(atc.counters, { hits: 1, misses: 1, pageRequests: 0, invalidations: 0 });
  first.unmap(5, 1);
  unit.invalidateDomain(9);
  assert.equal(atc.write(0x5002, Uint8Array.of(3), 3), undefined, 'the device still has its own translation');
  assert.deepEqual([...machine.ram.subarray(4096, 4099)], [1, 2, 3]);
  assert.equal(
    unit.invalidate({ kind: 'pasid-device-tlb', rid: RID, pasid: 3, pages: { firstPage: 8, order: 3 } }),
    true,
  );
  assert.equal(atc.size, 1, 'other pages');
  assert.equal(
    unit.invalidate({ kind: 'pasid-device-tlb', rid: RID, pasid: 4, pages: { firstPage: 5, order: 0 } }),
    true,
  );
  assert.equal(atc.size, 1, 'another PASID');
  assert.equal(
    unit.invalidate({ kind: 'pasid-device-tlb', rid: RID, pasid: 3, pages: { firstPage: 4, order: 1 } }),
    true,
  );
  assert.equal(atc.size, 0);
  assert.equal((atc.write(0x5002, Uint8Array.of(4), 3) as { reason: string }).reason, 'not present');
});

test('translated requests of a device that must not send them are refused', () => {
  const { unit, dma } = world();
  unit.setRights(RID, { hasDeviceTlb: false, hasPasids: true, hasPageRequests: false }, 2 ** 15);
  assert.equal(dma.read(0x5000, new Uint8Array(1), { translated: true })?.reason, 'no translated requests');
  assert.equal(answer(dma.translate(0x5000)), 'no translation requests');
});

const page = (at: number, group: number, last = true) =>
  ({ address: at * 4096, pasid: 3, read: true, write: false, last, group }) as const;

test('I-50 I-54: a group of page requests waits in the queue, is answered once, and the device finds the page', () => {
  const { machine, unit, dma, first } = world();
  const answers: PageResponse[] = [];
  dma.onPageResponse = (response) => answers.push(response);
  let events = 0;
  unit.pageRequestEvent = () => events++;
  for (const [i, at] of [5, 6, 7].entries()) assert.equal(dma.requestPage(page(at, 12, i === 2)), undefined);
  assert.equal(events, 3);
  const taken = unit.takePageRequests();
  assert.deepEqual(
    taken.map(({ rid, pasid, page: at, group, last }) => [rid, pasid, at, group, last]),
    [5, 6, 7].map((at) => [RID, 3, at, 12, at === 7]),
  );
  assert.deepEqual(unit.takePageRequests(), []);
  assert.equal(unit.respondPageRequest({ rid: RID, pasid: 3, group: 12 }, 'success'), true);
  assert.deepEqual(answers, [{ pasid: 3, group: 12, code: 'success' }]);
  assert.equal(unit.respondPageRequest({ rid: 0x1234, pasid: 3, group: 12 }, 'success'), false, 'nobody asked');
  assert.equal(unit.devices.counters.strayResponses, 1);

  const atc = new Atc(dma, { asksForPages: true });
  const heard: unknown[] = [];
  atc.onAnswer = (...what) => heard.push(what);
  assert.equal(atc.write(0x9000, Uint8Array.of(7), 3), 'pending');
  assert.equal(atc.write(0x9000, Uint8Array.of(7), 3), 'pending');
  const [request] = unit.takePageRequests();
  assert.deepEqual([request!.page, request!.write, atc.counters.pageRequests], [9, true, 1]);
  first.map(9, machine.ramPage + 2, 1, 3, false);
  unit.respondPageRequest(request!, 'success');
  assert.deepEqual(heard, [[9, 3, 'success']]);
  assert.equal(atc.write(0x9000, Uint8Array.of(7), 3), undefined);
  assert.equal(machine.ram[2 * 4096], 7);
});

test('software that answers at once, and software that always lies', () => {
  const { machine, unit, dma, first } = world();
  const atc = new Atc(dma, { asksForPages: true });
  unit.pageRequestEvent = () => {
    for (const request of unit.takePageRequests()) {
      if (request.page === 5) first.map(5, machine.ramPage, 1, 3, false);
      unit.respondPageRequest(request, request.page === 7 ? 'invalid' : 'success');
    }
  };
  assert.equal(atc.read(0x5000, new Uint8Array(8), 3), undefined);
  assert.equal((atc.read(0x6000, new Uint8Array(8), 3) as { reason: string }).reason, 'not present');
  assert.equal((atc.read(0x7000, new Uint8Array(8), 3) as { reason: string }).reason, 'page request: invalid');
  assert.equal(atc.waiting, 0);
});

test('I-52: a full queue loses requests, answers their groups with failure, and says so until software has cleared it', () => {
  const { unit, dma } = world();
  const codes: string[] = [];
  dma.onPageResponse = ({ group, code }) => codes.push(`${group} ${code}`);
  for (let i = 0; i < 2047; i++) dma.requestPage(page(i, i % 512));
  assert.equal(unit.hasPageRequestOverflow, false);
  dma.requestPage(page(0, 1, false));
  dma.requestPage(page(0, 2));
  assert.equal(unit.hasPageRequestOverflow, true);
  assert.deepEqual(codes, ['2 failure'], 'only the last of a group is answered');
  assert.equal(unit.takePageRequests().length, 2047);
  dma.requestPage(page(0, 3));
  assert.deepEqual(codes, ['2 failure', '3 failure'], 'lost while the flag is set');
  unit.clearPageRequestOverflow();
  dma.requestPage(page(0, 4));
  assert.equal(unit.takePageRequests().length, 1);
  assert.equal(unit.devices.queue.dropped, 3);
});

test('requests lie in the ring in memory, which goes round', () => {
  const { machine, unit, dma } = world();
  const at = machine.page();
  unit.devices.queue.setBase(at, 0);
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 100; i++) dma.requestPage(page(round * 100 + i, i));
    assert.equal(machine.get(at, unit.devices.queue.head / 8) & 0xffff_ffffn, BigInt(RID) * 65536n + 0x101n);
    assert.deepEqual(
      unit.takePageRequests().map((request) => request.page),
      Array.from({ length: 100 }, (_, i) => round * 100 + i),
    );
  }
});
