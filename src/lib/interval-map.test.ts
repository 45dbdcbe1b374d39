import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { IntervalMap } from './interval-map.ts';

interface Plain {
  first: number;
  last: number;
  value: number;
}

/** The same as a sorted array: slow and evident. */
class NaiveMap {
  areas: Plain[] = [];

  insert(first: number, last: number, value: number): boolean {
    if (this.areas.some((area) => area.first <= last && first <= area.last)) return false;
    this.areas.push({ first, last, value });
    this.areas.sort((a, b) => a.first - b.first);
    return true;
  }

  remove(first: number): boolean {
    const at = this.areas.findIndex((area) => area.first === first);
    if (at < 0) return false;
    this.areas.splice(at, 1);
    return true;
  }
}

type Step = { op: 'insert'; first: number; count: number } | { op: 'remove'; nth: number } | { op: 'look'; at: number };

const steps = (space: number): fc.Arbitrary<Step[]> =>
  fc.array(
    fc.oneof(
      {
        weight: 4,
        arbitrary: fc.record({
          op: fc.constant('insert' as const),
          first: fc.nat(space),
          count: fc.integer({ min: 1, max: 5 }),
        }),
      },
      { weight: 2, arbitrary: fc.record({ op: fc.constant('remove' as const), nth: fc.nat(1000) }) },
      { weight: 2, arbitrary: fc.record({ op: fc.constant('look' as const), at: fc.nat(space) }) },
    ),
    { maxLength: 200 },
  );

function compare(map: IntervalMap<number>, naive: NaiveMap, at: number): void {
  const { areas } = naive;
  assert.equal(map.size, areas.length);
  assert.deepEqual(
    map.floor(at),
    areas.findLast((area) => area.first <= at),
  );
  assert.deepEqual(
    map.ceiling(at),
    areas.find((area) => area.first >= at),
  );
  const containing = areas.find((area) => area.first <= at && at <= area.last);
  assert.deepEqual(map.at(at), containing);
  assert.equal(map.get(at), containing?.value);
  const within = areas.filter((area) => area.first <= at + 7 && at <= area.last);
  assert.deepEqual([...map.areas(at, at + 7)], within);
  assert.equal(map.overlaps(at, at + 7), within.length > 0);
  const visited: Plain[] = [];
  map.forEach(at, at + 7, (first, last, value) => visited.push({ first, last, value }));
  assert.deepEqual(visited, within);
}

test('IntervalMap answers as a sorted array does, for any sequence of changes', () => {
  fc.assert(
    fc.property(steps(60), (sequence) => {
      const map = new IntervalMap<number>();
      const naive = new NaiveMap();
      let value = 0;
      for (const step of sequence) {
        if (step.op === 'insert') {
          const last = step.first + step.count - 1;
          assert.equal(map.insert(step.first, last, ++value), naive.insert(step.first, last, value));
        } else if (step.op === 'remove') {
          const first = naive.areas[step.nth % Math.max(1, naive.areas.length)]?.first ?? step.nth;
          assert.equal(map.remove(first), naive.remove(first));
        } else compare(map, naive, step.at);
      }
      assert.deepEqual([...map.areas()], naive.areas);
    }),
    { numRuns: 100 },
  );
});

test('IntervalMap keeps order through splits and merges of leaves', () => {
  const random = (seed: number) => () => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return seed / 2 ** 32;
  };
  const next = random(7);
  const map = new IntervalMap<number>();
  const model = new Map<number, number>();
  const keys: number[] = [];
  const check = (): void => {
    const expected = [...model.entries()].sort((a, b) => a[0] - b[0]);
    assert.deepEqual(
      [...map.areas()].map((area) => [area.first, area.value]),
      expected,
    );
    assert.equal(map.size, expected.length);
  };
  for (let i = 0; i < 6000; i++) {
    const first = Math.floor(next() * 2 ** 20) * 4;
    const done = map.insert(first, first + 3, i);
    assert.equal(done, !model.has(first));
    if (done) {
      model.set(first, i);
      keys.push(first);
    }
  }
  check();
  for (let i = 0; i < 5900; i++) {
    const at = Math.floor(next() * keys.length);
    const first = keys[at]!;
    keys[at] = keys[keys.length - 1]!;
    keys.pop();
    assert.equal(map.remove(first), true);
    assert.equal(map.get(first), undefined);
    model.delete(first);
    if (i % 1000 === 999) check();
    if (keys.length === 0) break;
  }
  check();
  for (const first of keys) assert.equal(map.remove(first), true);
  assert.equal(map.size, 0);
  assert.equal(map.floor(2 ** 40), undefined);
});

test('IntervalMap takes rising and falling order without half-empty leaves', () => {
  for (const falling of [false, true]) {
    const map = new IntervalMap<number>();
    for (let i = 0; i < 2000; i++) {
      const at = falling ? 2000 - i : i;
      assert.equal(map.insert(at * 2, at * 2 + 1, at), true);
    }
    assert.equal(map.insert(100, 100, 0), false);
    let expected = falling ? 1 : 0;
    map.forEach(0, 1e9, (first, last, value) => {
      assert.deepEqual([first, last, value], [expected * 2, expected * 2 + 1, expected]);
      expected++;
    });
    assert.equal(expected, falling ? 2001 : 2000);
  }
});

test('IntervalMap refuses what overlaps by one page on either side', () => {
  const map = new IntervalMap<string>();
  assert.equal(map.insert(10, 19, 'a'), true);
  assert.equal(map.insert(19, 30, 'b'), false);
  assert.equal(map.insert(0, 10, 'b'), false);
  assert.equal(map.insert(12, 13, 'b'), false);
  assert.equal(map.insert(0, 99, 'b'), false);
  assert.equal(map.insert(0, 9, 'b'), true);
  assert.equal(map.insert(20, 2 ** 52 - 1, 'c'), true);
  assert.deepEqual([...map.holes(0, 2 ** 52 - 1)], []);
  assert.equal(map.remove(10), true);
  assert.deepEqual([...map.holes(5, 30)], [{ first: 10, last: 19 }]);
  map.resize(0, 2, 12);
  assert.deepEqual(
    [...map.holes(0, 30)],
    [
      { first: 0, last: 1 },
      { first: 13, last: 19 },
    ],
  );
  assert.throws(() => map.resize(2, 2, 20), /overlap/);
  assert.equal(map.get(12), 'b');
  map.setValue(2, 'd');
  assert.equal(map.get(2), 'd');
  assert.throws(() => map.setValue(3, 'e'), /No area/);
});

test('IntervalMap areas may be removed while they are visited', () => {
  const map = new IntervalMap<number>();
  for (let i = 0; i < 1000; i++) map.insert(i * 3, i * 3 + 1, i);
  for (const area of map.areas(300, 2000)) map.remove(area.first);
  assert.equal(map.size, 1000 - (666 - 100 + 1));
});

test('IntervalMap with numbers costs well under 200 bytes an area at 65,535 areas', () => {
  const map = new IntervalMap<number>();
  const before = process.memoryUsage();
  for (let i = 0; i < 65535; i++) map.insert(((i * 40503) % 65536) * 16, ((i * 40503) % 65536) * 16 + 7, i);
  const after = process.memoryUsage();
  assert.equal(map.size, 65535);
  const bytes = (after.heapUsed - before.heapUsed + after.arrayBuffers - before.arrayBuffers) / 65535;
  assert.ok(bytes < 200, `${bytes} bytes`);
});
