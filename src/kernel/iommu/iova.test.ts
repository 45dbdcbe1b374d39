import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ManualClock } from '../../hw/pci/clock.ts';
import { IovaAllocator } from './iova.ts';
import { refuses } from './test-machine.ts';

const LIMIT_32 = 2 ** 20 - 1;
const LIMIT_48 = 2 ** 36 - 1;

test('I-60: consecutive allocations descend from the limit', () => {
  const iova = new IovaAllocator();
  assert.deepEqual(
    [1, 1, 2, 1].map((count) => iova.allocate(count, LIMIT_32)),
    [0xf_ffff, 0xf_fffe, 0xf_fffc, 0xf_fffb],
  );
  assert.equal(iova.allocate(1, LIMIT_48), LIMIT_48);
  assert.equal(iova.allocate(1, LIMIT_32), 0xf_fffa, 'each limit goes on where it was');
});

test('I-61: five pages are aligned to eight and keep eight; unaligned ranges of the space keep five', () => {
  const iova = new IovaAllocator();
  assert.equal(iova.allocate(1, LIMIT_32), 0xf_ffff);
  const page = iova.allocate(5, LIMIT_32);
  assert.equal(page, 0xf_fff0);
  assert.deepEqual(iova.find(page + 7), { firstPage: page, lastPage: page + 7 });
  assert.equal(iova.allocateRange(5, LIMIT_32, false), page - 5);
  assert.equal(iova.allocate(100, LIMIT_32), 0xf_ff80, 'above 32 pages only the alignment is rounded');
  assert.deepEqual(iova.find(0xf_ff90), { firstPage: 0xf_ff80, lastPage: 0xf_ffe3 });
});

test('I-62: what was freed is given again to the same size, unless it lies above the limit', () => {
  const iova = new IovaAllocator();
  const page = iova.allocate(3, LIMIT_48);
  iova.free(page, 3);
  assert.equal(iova.allocate(4, LIMIT_48), page, 'three pages are four');
  iova.free(page, 4);
  assert.equal(iova.cached, 1);
  assert.notEqual(iova.allocate(2, LIMIT_48), page);
  assert.equal(iova.allocate(4, LIMIT_32), 0xf_fffc, 'not from the magazine: too high');
  assert.equal(iova.allocate(4, LIMIT_48), page);
});

test('I-63: page 0 is never given, nor what is below the start', () => {
  refuses('EINVAL', () => new IovaAllocator({ startPage: 0 }));
  const iova = new IovaAllocator({ startPage: 3 });
  const given = new Set<number>();
  for (;;) {
    const page = iova.allocate(1, 9);
    if (page === 0) break;
    given.add(page);
  }
  assert.deepEqual(
    [...given].sort((a, b) => a - b),
    [3, 4, 5, 6, 7, 8, 9],
  );
});

test('I-64: when nothing is free, what is cached is given up once and the request is tried again', () => {
  const iova = new IovaAllocator({ cpus: 2 });
  const pages = Array.from({ length: 15 }, () => iova.allocate(1, 15));
  assert.equal(iova.allocate(1, 15), 0);
  for (const page of pages) iova.free(page, 1, 1);
  assert.equal(iova.cached, 15);
  assert.equal(iova.allocate(8, 15, 0, true), 0, 'the first CPU has none, and the caches are kept');
  assert.equal(iova.allocate(8, 15), 8);
  assert.equal(iova.cached, 0);
  assert.equal(iova.taken, 1);
});

test('I-65: reserved pages are never given; a reservation fills the gaps between what is there', () => {
  const iova = new IovaAllocator();
  assert.equal(iova.allocateRange(4, 0xff, false), 0xfc);
  assert.equal(iova.allocateRange(4, 0xe3, false), 0xe0);
  iova.reserve(0xd0, 0xf0);
  iova.reserve(0xfe, 0x103);
  iova.reserve(0xd4, 0xd8);
  const free = new Set<number>();
  for (let page = iova.allocate(1, 0x110); page !== 0; page = iova.allocate(1, 0x110)) free.add(page);
  for (let page = 1; page <= 0x110; page++) {
    const isKept = (page >= 0xd0 && page <= 0xf0) || (page >= 0xfc && page <= 0x103);
    assert.equal(free.has(page), !isKept, `0x${page.toString(16)}`);
  }
  refuses('EINVAL', () => iova.reserve(5, 4));
  refuses('EINVAL', () => iova.reserve(5, 2 ** 53));
});

test('full magazines go to the depot, and a depot larger than the number of CPUs is trimmed every 100 ms', () => {
  const clock = new ManualClock();
  const iova = new IovaAllocator({ clock });
  const pages = Array.from({ length: 127 * 6 }, () => iova.allocate(1, LIMIT_32));
  for (const page of pages) iova.free(page, 1);
  assert.equal(iova.cached, 127 * 6);
  clock.advance(99_000_000);
  assert.equal(iova.taken, 127 * 6);
  clock.advance(1_000_000);
  assert.equal(iova.taken, 127 * 5);
  clock.advance(1_000_000_000);
  assert.equal(iova.taken, 127 * 3, 'two magazines of the CPU and one in the depot');
  assert.equal(clock.next, undefined);
  const again = new Set(Array.from({ length: 127 * 3 }, () => iova.allocate(1, LIMIT_32)));
  assert.equal(again.size, 127 * 3);
  assert.equal(iova.cached, 0);
});

test('a request below 4 GiB that failed fails at once, until something there is freed', () => {
  const iova = new IovaAllocator({ startPage: 0x10_0000 - 16 });
  const big = iova.allocate(16, LIMIT_32);
  assert.equal(big, 0x10_0000 - 16);
  assert.equal(iova.allocate(1, LIMIT_32), 0);
  iova.freeRange(big + 3);
  assert.equal(iova.allocate(1, LIMIT_32), LIMIT_32);
});

/** The rules once more, over a sorted array: what the allocator's structure must agree with. */
class Plain {
  ranges: { lo: number; hi: number }[] = [{ lo: Number.POSITIVE_INFINITY, hi: Number.POSITIVE_INFINITY }];
  cached = this.ranges[0]!;
  cached32 = this.ranges[0]!;
  max32 = 2 ** 20;

  allocate(count: number, limitPage: number, aligned: boolean): number {
    const limit = limitPage + 1;
    if (limit <= 2 ** 20 && count >= this.max32) return 0;
    const align = aligned ? 2 ** Math.ceil(Math.log2(count)) : 1;
    const start = limit <= 2 ** 20 ? this.cached32 : this.cached;
    const tries: [number, number][] = [[this.ranges.indexOf(start), 1]];
    if (start.hi < limit) tries.push([this.ranges.findIndex(({ lo }) => lo >= limit), start.hi + 1]);
    for (const [from, low] of tries) {
      let high = limit;
      for (let at = from; ; at--) {
        high = Math.min(high, this.ranges[at]!.lo);
        const page = Math.floor((high - count) / align) * align;
        if (page < low) break;
        if (at > 0 && this.ranges[at - 1]!.hi >= page) continue;
        const made = { lo: page, hi: page + count - 1 };
        this.ranges.splice(at, 0, made);
        if (made.hi < 2 ** 20) this.cached32 = made;
        else this.cached = made;
        return page;
      }
    }
    this.max32 = count;
    return 0;
  }

  free(page: number): void {
    const at = this.ranges.findIndex(({ lo, hi }) => lo <= page && page <= hi);
    const [gone] = this.ranges.splice(at, 1);
    const next = this.ranges[at]!;
    if (gone === this.cached32 || (gone!.hi < 2 ** 20 && gone!.lo >= this.cached32.lo)) this.cached32 = next;
    if (gone!.lo < 2 ** 20) this.max32 = 2 ** 20;
    if (gone === this.cached || gone!.lo >= this.cached.lo) this.cached = next;
  }
}

test('the same addresses as the rules over a plain array, under any sequence', () => {
  const step = fc.record({
    count: fc.oneof(fc.constantFrom(1, 2, 3, 5, 8), fc.integer({ min: 1, max: 70 })),
    limit: fc.constantFrom(0x1ff, 2 ** 20 - 1, 2 ** 20 + 100, LIMIT_48),
    aligned: fc.boolean(),
    frees: fc.boolean(),
    pick: fc.nat(),
  });
  fc.assert(
    fc.property(fc.array(step, { minLength: 50, maxLength: 300 }), (steps) => {
      const iova = new IovaAllocator();
      const plain = new Plain();
      const live: number[] = [];
      for (const { count, limit, aligned, frees, pick } of steps) {
        if (frees && live.length > 0) {
          const [page] = live.splice(pick % live.length, 1);
          iova.freeRange(page!);
          plain.free(page!);
          continue;
        }
        const page = iova.allocateRange(count, limit, aligned);
        assert.equal(page, plain.allocate(count, limit, aligned));
        if (page !== 0) live.push(page);
      }
      for (const { lo, hi } of plain.ranges.slice(0, -1))
        assert.deepEqual(iova.find(lo), { firstPage: lo, lastPage: hi });
      assert.equal(iova.taken, plain.ranges.length - 1);
    }),
    { numRuns: 40 },
  );
});

test('thousands of ranges: found by any page, none overlaps, all can be freed', () => {
  const iova = new IovaAllocator();
  let state = 1;
  const random = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const live: { page: number; count: number }[] = [];
  for (let i = 0; i < 12_000; i++) {
    if (live.length > 0 && random(3) === 0) {
      const at = random(live.length);
      iova.freeRange(live[at]!.page);
      live[at] = live[live.length - 1]!;
      live.pop();
    } else {
      const count = 1 + random(40);
      const page = iova.allocateRange(count, random(2) === 0 ? LIMIT_32 : LIMIT_48, random(2) === 0);
      if (page !== 0) live.push({ page, count });
    }
  }
  assert.equal(iova.taken, live.length);
  live.sort((a, b) => a.page - b.page);
  let end = 0;
  for (const { page, count } of live) {
    assert.ok(page >= end);
    end = page + count;
    assert.deepEqual(iova.find(page + (count >> 1)), { firstPage: page, lastPage: end - 1 });
  }
  for (const { page } of live) iova.freeRange(page);
  assert.equal(iova.taken, 0);
});
