import assert from 'node:assert/strict';
import { test } from 'node:test';
import { INVALID_IOASID, IoasidError, Ioasids } from './ioasid.ts';
import { type PasidBus, PasidConsumers, type PasidOps } from './pasid-consumer.ts';

const bus = (iommu: PasidOps | null = {}): PasidBus => ({ iommu });
const failed = { errno: 'ENODEV', id: INVALID_IOASID };

test('A-40: no bus, no IOMMU, or hardware that refuses: null; operations that are missing are accepted', () => {
  const layer = new PasidConsumers(new Ioasids());
  assert.equal(layer.init(null), null);
  assert.equal(layer.init(bus(null)), null);
  assert.equal(layer.init(bus({ pasidInit: () => 'ENODEV' })), null);
  const consumer = layer.init(bus())!;
  assert.deepEqual([consumer.min, consumer.max], [0, 0x10_0000]);
});

test('A-41: the hardware narrows the range to [10, 20), whatever is asked for', () => {
  const layer = new PasidConsumers(new Ioasids());
  const narrow: PasidOps = {
    pasidInit: (consumer) => {
      consumer.min = 10;
      consumer.max = 20;
      return 0;
    },
  };
  const consumer = layer.init(bus(narrow))!;
  for (let id = 10; id < 20; id++) assert.deepEqual(layer.alloc(consumer, 0, 100, null), { errno: 0, id });
  assert.deepEqual(layer.alloc(consumer, 0, 100, null), failed);
  assert.deepEqual(layer.alloc(consumer, 15, 12, null), failed);
});

test('A-42 A-44: EAGAIN leaves it to the registry, a number is taken exactly, another error is ENODEV', () => {
  const ids = new Ioasids();
  const layer = new PasidConsumers(ids);
  let answer: { errno: 0 | string; id: number } = { errno: 'EAGAIN', id: 0 };
  const asked: number[][] = [];
  const freed: number[] = [];
  const consumer = layer.init<{ n: number }>(
    bus({
      pasidAlloc: (_c, start, end) => {
        asked.push([start, end]);
        return answer;
      },
      pasidFree: (_c, id) => freed.push(id),
    }),
  )!;
  assert.deepEqual(layer.alloc(consumer, 3, 9, { n: 1 }), { errno: 0, id: 3 });
  answer = { errno: 0, id: 77 };
  assert.deepEqual(layer.alloc(consumer, 3, 9, { n: 2 }), { errno: 0, id: 77 });
  answer = { errno: 'ENOMEM', id: 5 };
  assert.deepEqual(layer.alloc(consumer, 3, 9, null), failed);
  assert.deepEqual(asked, [
    [3, 9],
    [3, 9],
    [3, 9],
  ]);
  assert.deepEqual(freed, []);
  layer.free(consumer, 77);
  assert.deepEqual(freed, [77]);
  assert.equal(ids.used, 1);
  assert.deepEqual(layer.find(consumer, 3), { n: 1 });
  layer.exit(consumer);
  assert.equal(layer.warnings, 1, 'an id is left');
  assert.equal(ids.used, 1);
});

test('A-43: a number of the hardware that somebody else holds is given back to it once', () => {
  const ids = new Ioasids();
  const layer = new PasidConsumers(ids);
  const freed: number[] = [];
  const consumer = layer.init(bus({ pasidAlloc: () => ({ errno: 0, id: 5 }), pasidFree: (_c, id) => freed.push(id) }))!;
  ids.alloc(null, 5, 5, null);
  assert.deepEqual(layer.alloc(consumer, 0, 100, null), failed);
  assert.deepEqual(freed, [5]);
});

test('A-48: with a custom allocator in the registry every number comes from there, and nothing can be in conflict', () => {
  const ids = new Ioasids();
  let next = 5;
  ids.registerAllocator({ alloc: () => next++, free: () => {} });
  const layer = new PasidConsumers(ids);
  const one = layer.init(bus())!;
  const two = layer.init(bus())!;
  const given = [one, two, one, two].map((consumer) => layer.alloc(consumer, 0, 100, null));
  assert.deepEqual(
    given,
    [5, 6, 7, 8].map((id) => ({ errno: 0, id })),
  );
});

test('A-46 A-47: a consumer finds and visits its own ids; forEach is broken off by a number', () => {
  const ids = new Ioasids();
  const layer = new PasidConsumers(ids);
  const one = layer.init<{ n: number }>(bus())!;
  const two = layer.init<{ n: number }>(bus())!;
  for (let n = 0; n < 6; n++) layer.alloc(n % 2 === 0 ? one : two, 1, 100, { n });
  const foreign = layer.find(one, 2);
  assert.equal(foreign instanceof IoasidError && foreign.code, 'EACCES');
  const seen: number[] = [];
  assert.equal(
    layer.forEach(one, (id) => (seen.push(id) === 2 ? 7 : 0)),
    7,
  );
  assert.deepEqual(seen, [1, 3]);
  assert.equal(
    layer.forEach(two, () => 0),
    0,
  );
});

test('A-45: switched off, the calls are harmless', () => {
  const ids = new Ioasids();
  const layer = new PasidConsumers(ids, { enabled: false });
  const consumer = new PasidConsumers(ids).init<{ n: number }>(bus())!;
  assert.equal(layer.init(bus()), null);
  assert.deepEqual(layer.alloc(consumer, 0, 9, null), failed);
  assert.equal(
    layer.forEach(consumer, () => 0),
    'ENODEV',
  );
  assert.equal(layer.find(consumer, 1), null);
  layer.free(consumer, 1);
  layer.exit(consumer);
  assert.equal(ids.warnings + layer.warnings, 0);
});

test('the two mistakes of the posted code: a number that nobody set is freed, and bounds are compared with signs', () => {
  for (const seedBugs of [false, true]) {
    const layer = new PasidConsumers(new Ioasids(), { seedBugs });
    const freed: number[] = [];
    const pasidAlloc = (): { errno: string; id: number } => ({ errno: 'EAGAIN', id: 0xbad });
    const consumer = layer.init(bus({ pasidAlloc, pasidFree: (_c, id) => freed.push(id) }))!;
    assert.deepEqual(layer.alloc(consumer, 7, 7, null), failed);
    assert.deepEqual(freed, seedBugs ? [0xbad] : []);
    const high = layer.alloc(consumer, 0x8000_0000, 0xffff_ffff, null);
    assert.deepEqual(high, seedBugs ? { errno: 0, id: 0 } : failed, 'taken for negative numbers');
  }
});
