import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { AreaMap, type Placed } from './area-map.ts';
import { CoverCount } from './cover-count.ts';

const MAX = 2n ** 64n - 1n;
const area = (first: bigint, last: bigint): Placed => ({
  first,
  last,
  firstPage: Number(first >> 12n),
  firstOffset: Number(first & 0xfffn),
  lastPage: Number(last >> 12n),
  lastOffset: Number(last & 0xfffn),
});

/** Addresses that meet: few pages, odd bytes, both ends of the space. */
const address = fc.oneof(
  fc.bigInt(0n, 0x8000n),
  fc.bigInt(0n, 0x40n).map((n) => n << 12n),
  fc.bigInt(MAX - 0x4000n, MAX),
);

test('areas are found as in a list, at every byte of 64 bits', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(address, fc.bigInt(1n, 0x1800n), fc.boolean()), { maxLength: 400 }), (steps) => {
      const map = new AreaMap<Placed>();
      let model: Placed[] = [];
      for (const [first, length, isAdded] of steps) {
        const last = first + length - 1n;
        if (last > MAX) continue;
        const met = model.filter((other) => other.first <= last && first <= other.last);
        assert.equal(map.firstIn(first, last), met[0]);
        if (met.length === 0 && isAdded) {
          const added = area(first, last);
          map.insert(added);
          model = [...model, added].sort((a, b) => (a.first < b.first ? -1 : 1));
        } else if (met.length > 0 && !isAdded) {
          map.remove(met[0]!);
          model = model.filter((other) => other !== met[0]);
        }
      }
      assert.deepEqual([...map], model);
      assert.equal(map.size, model.length);
    }),
    { numRuns: 60 },
  );
});

test('the first hole that is wide enough is found after any changes', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 3000 }), fc.integer({ min: 1, max: 4 })), {
        minLength: 1,
        maxLength: 700,
      }),
      fc.integer({ min: 1, max: 60_000 }),
      (steps, length) => {
        const map = new AreaMap<Placed>();
        const byPage = new Map<number, Placed>();
        for (const [page, step] of steps) {
          const known = byPage.get(page);
          if (known !== undefined) {
            map.remove(known);
            byPage.delete(page);
          } else {
            const first = BigInt(page) * 4096n + (step === 1 ? 0x800n : 0n);
            const added = area(first, BigInt(page) * 4096n + 4095n);
            map.insert(added);
            byPage.set(page, added);
          }
          if (step < 4) continue;
          // Searches in between, so that remembered widths grow old.
          check();
        }
        check();

        function check(): void {
          const [from, to] = [4096n, 3010n * 4096n - 1n];
          const wanted = BigInt(length);
          let expected: bigint | undefined;
          let at = from;
          for (const placed of [...byPage.values()].sort((a, b) => a.firstPage - b.firstPage)) {
            if (placed.first > at && placed.first - at >= wanted && expected === undefined) expected = at;
            if (placed.last + 1n > at) at = placed.last + 1n;
          }
          if (expected === undefined && to - at + 1n >= wanted) expected = at;
          let found: bigint | undefined;
          map.someHole(from, to, wanted, (first) => {
            found = first;
            return true;
          });
          assert.equal(found, expected);
        }
      },
    ),
    { numRuns: 40 },
  );
});

test('holders are counted for each index as in an array', () => {
  const range = fc.tuple(fc.integer({ min: 0, max: 40 }), fc.integer({ min: 1, max: 20 }));
  fc.assert(
    fc.property(fc.array(fc.tuple(range, fc.boolean()), { maxLength: 80 }), (steps) => {
      const cover = new CoverCount();
      const model = new Array<number>(80).fill(0);
      const held: [number, number][] = [];
      for (const [[first, count], isAdded] of steps) {
        if (isAdded) {
          cover.add(first, count);
          held.push([first, count]);
          for (let i = first; i < first + count; i++) model[i]!++;
        } else {
          const gone = held.pop();
          if (gone === undefined) continue;
          cover.remove(...gone);
          for (let i = gone[0]; i < gone[0] + gone[1]; i++) model[i]!--;
        }
        for (const holders of [0, 1, 2]) {
          const seen: number[] = [];
          cover.forEachRun(3, 60, holders, (from, length) => {
            for (let i = 0; i < length; i++) seen.push(from + i);
          });
          const expected = model.flatMap((n, i) => (n === holders && i >= 3 && i < 63 ? [i] : []));
          assert.deepEqual(seen, expected);
        }
      }
      for (const range of held) cover.remove(...range);
      assert.equal(cover.steps, 1);
    }),
    { numRuns: 200 },
  );
});
