import assert from 'node:assert/strict';
import { test } from 'node:test';
import { INVALID_IOASID, IoasidSet } from './ioasid.ts';
import { endpoint, refuses } from './test-machine.ts';
import { svmWorld } from './test-svm.ts';

test('I-12: three processes have three PASIDs; a process has the same one on two devices', () => {
  const { sva, devices, process } = svmWorld({ widths: [20, 20] });
  const [one, two] = devices;
  const processes = [process(), process(), process()];
  const bonds = processes.map(({ mm }) => sva.bind(one!.fn, one!.group, mm));
  assert.deepEqual(
    bonds.map(({ pasid }) => pasid),
    [1, 2, 3],
  );
  const second = sva.bind(two!.fn, two!.group, processes[1]!.mm);
  assert.equal(second.pasid, 2);
  assert.equal(one!.group.domainOfPasid(2), two!.group.domainOfPasid(2), 'and one table behind one unit');
  const again = sva.bind(two!.fn, two!.group, processes[1]!.mm);
  again.unbind();
  assert.notEqual(two!.group.domainOfPasid(2), undefined, 'counted');
  second.unbind();
  assert.equal(two!.group.domainOfPasid(2), undefined);
  assert.notEqual(one!.group.domainOfPasid(2), undefined);
});

test('I-54: a device finds nothing, asks, and after SUCCESS it finds the page: with what the process may do there', () => {
  const { sva, devices, process } = svmWorld();
  const [{ fn, group, asker } = assert.fail()] = devices;
  const { mm, memory } = process();
  const heap = memory.map(8192);
  const constants = memory.map(4096, undefined, { writable: false });
  memory.write(heap + 4090, Uint8Array.of(1, 2, 3));
  const { pasid } = sva.bind(fn, group, mm);
  assert.equal(asker.found(heap / 4096, pasid), '');
  assert.deepEqual(asker.read(heap + 4090, 3, pasid), Uint8Array.of(1, 2, 3));
  assert.equal(asker.found(heap / 4096, pasid), 'rw');
  assert.equal(asker.found(heap / 4096 + 1, pasid), '', 'only what was asked for');
  asker.ask(constants / 4096, pasid);
  assert.equal(asker.found(constants / 4096, pasid), 'r');
  asker.ask(constants / 4096, pasid, { write: true });
  assert.deepEqual(asker.codes(), ['success', 'invalid']);
  assert.equal(sva.pages, 1, 'what must not be is taken back too');
  fn.dma.write(heap + 8, Uint8Array.of(9), pasid);
  const seen = new Uint8Array(1);
  memory.read(heap + 8, seen);
  assert.equal(seen[0], 9, "a device's write is the process's memory");
});

test('what the process has not, or gives up, is INVALID; what it maps anew is found', () => {
  const { sva, devices, process } = svmWorld();
  const [{ fn, group, asker } = assert.fail()] = devices;
  const { mm, memory } = process();
  const heap = memory.map(4096);
  const { pasid } = sva.bind(fn, group, mm);
  assert.equal(asker.read(heap + 4096 * 9, 1, pasid), 'invalid');
  assert.equal(asker.read(2 ** 46, 1, pasid), 'invalid');
  assert.deepEqual(asker.read(heap, 1, pasid), Uint8Array.of(0));
  memory.unmap(heap, 4096);
  assert.equal(asker.read(heap, 1, pasid), 'memory has gone');
  asker.ask(heap / 4096, pasid);
  assert.deepEqual(asker.codes(), ['invalid']);
  assert.equal(mm.pins, 0);
  memory.map(4096, heap, { bytes: new Uint8Array(4096).fill(7) });
  assert.deepEqual(asker.read(heap, 1, pasid), Uint8Array.of(7));
  memory.protect(heap, 4096, { readable: true, writable: false });
  asker.ask(heap / 4096, pasid, { write: true });
  assert.deepEqual(asker.codes(), ['invalid']);
  assert.equal(asker.found(heap / 4096, pasid), '');
});

test('errors stick: the first page of a group that cannot be had ends it', () => {
  const { sva, devices, process } = svmWorld();
  const [{ fn, group, asker } = assert.fail()] = devices;
  const { mm, memory } = process();
  const heap = memory.map(4096 * 3) / 4096;
  const { pasid } = sva.bind(fn, group, mm);
  asker.ask(heap, pasid, { last: false, group: 1 });
  asker.ask(heap + 100, pasid, { last: false, group: 1 });
  asker.ask(heap + 1, pasid, { group: 1 });
  assert.deepEqual(asker.codes(), ['invalid']);
  assert.equal(sva.pages, 1);
});

test('I-53: unbinding answers what waits, and leaves no page, pin or table', () => {
  const { sva, devices, process, clock, faults, machine } = svmWorld({ delay: 1_000 });
  const [{ fn, group, asker } = assert.fail()] = devices;
  const tables = machine.unit.tables.used;
  const { mm, memory } = process();
  const heap = memory.map(4096 * 4) / 4096;
  const bond = sva.bind(fn, group, mm);
  asker.ask(heap, bond.pasid);
  clock.advance(1_000);
  asker.ask(heap + 1, bond.pasid);
  bond.unbind();
  assert.deepEqual(asker.codes(), ['success', 'invalid']);
  assert.deepEqual([sva.bonds, sva.pages, mm.pins, faults.pending, faults.partial], [0, 0, 0, 0, 0]);
  assert.equal(machine.unit.tables.used, tables);
  assert.equal(fn.dma.read(heap * 4096, new Uint8Array(1), bond.pasid)?.reason, 'blocked');
  assert.throws(() => bond.unbind(), /not bound/);
  assert.equal(sva.bind(fn, group, mm).pasid, bond.pasid, 'the process keeps its number');
});

test('a process that ends: its PASID reaches nothing and its faults are no news, until the last bond is undone', () => {
  const { sva, devices, process, ids, faults, machine } = svmWorld({ widths: [20, 20] });
  const [one, two] = devices;
  const first = process();
  const heap = first.memory.map(4096);
  const bonds = [one!, two!].map(({ fn, group }) => sva.bind(fn, group, first.mm));
  const { pasid } = bonds[0]!;
  assert.deepEqual(one!.asker.read(heap, 1, pasid), Uint8Array.of(0));
  sva.exit(first.mm);
  assert.equal(bonds[0]!.isBlocked, true);
  assert.deepEqual([first.mm.pins, sva.pages], [0, 0]);
  const recorded = machine.core.faults.length;
  assert.notEqual(one!.fn.dma.read(heap, new Uint8Array(1), pasid), undefined);
  assert.equal(machine.core.faults.length, recorded, 'FPD');
  one!.asker.ask(heap / 4096, pasid);
  assert.deepEqual(one!.asker.codes(), ['invalid']);
  refuses('ESRCH', () => sva.bind(one!.fn, one!.group, first.mm));
  const second = process();
  assert.equal(sva.bind(one!.fn, one!.group, second.mm).pasid, pasid + 1, 'the number is still in use');
  bonds[0]!.unbind();
  assert.equal(ids.refsOf(pasid), 1);
  bonds[1]!.unbind();
  assert.equal(ids.refsOf(pasid), 0);
  const third = process();
  assert.equal(sva.bind(two!.fn, two!.group, third.mm).pasid, pasid, 'free again');
  sva.exit(process().mm);
  assert.equal(faults.pending, 0);
});

test('A-20 A-82: the fault path finds processes only, and holds the process while it works; one that is ending is INVALID', () => {
  const { sva, devices, process, ids, faults } = svmWorld();
  const [{ fn, group, asker } = assert.fail()] = devices;
  const { mm, memory } = process();
  const heap = memory.map(4096 * 3) / 4096;
  const bond = sva.bind(fn, group, mm);
  const plain = memory.vma.bind(memory);
  let pinsWithin = -1;
  memory.vma = (address) => {
    // The process ends while its page is looked for.
    memory.vma = plain;
    sva.exit(mm);
    pinsWithin = mm.pins;
    return plain(address);
  };
  asker.ask(heap, bond.pasid);
  assert.deepEqual(asker.codes(), ['invalid'], 'once');
  assert.equal(pinsWithin, 0);
  assert.deepEqual([mm.pins, sva.pages, faults.pending], [0, 0, 0]);
  bond.unbind();
  assert.equal(ids.used, 0);
  const driver = new IoasidSet<{ queue: number }>('driver');
  const own = ids.alloc(driver, 1, 9, { queue: 1 });
  assert.notEqual(own, INVALID_IOASID);
  const other = process();
  assert.equal(sva.bind(fn, group, other.mm).pasid, own + 1);
  asker.ask(heap, own);
  assert.deepEqual(asker.codes(), ['invalid']);
});

test('A-51: what bind refuses, and that nothing is left then', () => {
  const { sva, devices, process, machine, ids } = svmWorld({ widths: [20, 1] });
  const [wide, narrow] = devices;
  const a = process();
  const b = process();
  assert.equal(sva.bind(wide!.fn, wide!.group, a.mm).pasid, 1);
  assert.equal(sva.bind(wide!.fn, wide!.group, b.mm).pasid, 2);
  refuses('EOVERFLOW', () => sva.bind(narrow!.fn, narrow!.group, b.mm), /beyond the 2/);
  assert.equal(sva.bind(narrow!.fn, narrow!.group, a.mm).pasid, 1);
  refuses('ENOSPC', () => sva.bind(narrow!.fn, narrow!.group, process().mm));
  refuses('ENODEV', () => sva.bind(wide!.fn, undefined, a.mm));
  const plain = machine.add(endpoint(true), '3.0');
  machine.core.probe(plain);
  refuses('ENOSPC', () => sva.bind(plain, machine.core.groupOf(plain), process().mm));
  const before = ids.used;
  wide!.group.claim({});
  refuses('EBUSY', () => sva.bind(wide!.fn, wide!.group, process().mm));
  assert.equal(ids.used, before);
});

test('three processes on two devices, thousands of requests, one after the other ends: all answered, nothing left', () => {
  const { sva, devices, process, faults, clock, ids } = svmWorld({ widths: [20, 20], delay: 500 });
  let state = 3;
  const random = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const processes = [process(), process(), process()].map((one) => ({
    ...one,
    heap: one.memory.map(4096 * 64) / 4096,
  }));
  const bonds = processes.flatMap(({ mm }) => devices.map(({ fn, group }) => sva.bind(fn, group, mm)));
  let asked = 0;
  let answered = 0;
  for (let round = 0; round < 300; round++) {
    for (const { asker } of devices) {
      const at = random(3);
      asker.ask(processes[at]!.heap + random(80), at + 1, { write: random(2) === 0 });
      asked++;
    }
    if (random(4) === 0) clock.advance(500);
    if (round === 100 || round === 200) sva.exit(processes[round / 100]!.mm);
    for (const { asker } of devices) answered += asker.codes().length;
  }
  clock.advance(500);
  for (const { asker } of devices) answered += asker.codes().length;
  assert.equal(answered, asked);
  assert.ok(sva.pages > 0);
  for (const bond of bonds) bond.unbind();
  sva.exit(processes[0]!.mm);
  assert.deepEqual([sva.pages, sva.bonds, faults.pending, faults.partial, ids.used], [0, 0, 0, 0, 0]);
  for (const { mm } of processes) assert.equal(mm.pins, 0);
});
