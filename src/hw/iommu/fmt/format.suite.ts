/**
 * What every page-table format has to pass, by the walker and mapper it is used with. A format's test file calls `formatSuite`.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { NaiveResult, ReadQword } from '../naive-walk.ts';
import { LEAF_PAGES, PageTable } from '../page-table.ts';
import { TablePool } from '../table-pool.ts';
import type { PageTableFormat } from './format.ts';

/** What a page should translate to. `first` and `pages`: of the leaf. */
interface Expected {
  physicalPage: number;
  prot: number;
  first: number;
  pages: number;
}

/** The same as a map of pages: slow and evident. */
class Oracle {
  readonly pages = new Map<number, Expected>();

  map(page: number, physicalPage: number, count: number, prot: number): number {
    const leaves: [number, number][] = [];
    for (let i = 0; i < count; ) {
      const pages = LEAF_PAGES.findLast(
        (size) => size <= count - i && (page + i) % size === 0 && (physicalPage + i) % size === 0,
      )!;
      const first = page + i;
      for (let k = 0; k < pages; k++) if (this.pages.has(first + k)) return first;
      leaves.push([first, pages]);
      i += pages;
    }
    for (const [first, pages] of leaves) {
      for (let k = first; k < first + pages; k++) {
        this.pages.set(k, { physicalPage: physicalPage + k - page, prot, first, pages });
      }
    }
    return -1;
  }

  unmap(page: number, count: number): number {
    let at = page;
    while (at < page + count) {
      const leaf = this.pages.get(at);
      if (leaf === undefined || leaf.first !== at) break;
      for (let k = 0; k < leaf.pages; k++) this.pages.delete(at + k);
      at += leaf.pages;
    }
    return at - page;
  }
}

const prots = fc.constantFrom(1, 2, 3);
// Around a 2 MiB border, and sizes around whole 2 MiB leaves.
const pages = fc.oneof(
  fc.integer({ min: 0, max: 40 }),
  fc.integer({ min: 500, max: 530 }),
  fc.constantFrom(512, 1024, 1536),
);
const counts = fc.oneof(fc.integer({ min: 1, max: 20 }), fc.constantFrom(500, 512, 520, 1024, 1030));
const skews = fc.constantFrom(0, 0, 0, 512, 1, 17);
const step = fc.oneof(
  fc.record({ op: fc.constant('map' as const), page: pages, count: counts, skew: skews, prot: prots }),
  fc.record({ op: fc.constant('unmap' as const), page: pages, count: counts }),
);

/** What a leaf made for `prot` allows: formats without write-only leaves allow reading too. */
export function permissionOf(format: PageTableFormat, prot: number): number {
  const { permissionsInHigh } = format;
  return (
    (permissionsInHigh === undefined ? format.leaf(0, prot, false) : format.leafHigh(prot) >>> permissionsInHigh) & 3
  );
}

/** What a page translates to by tables read as bytes; undefined: nothing. `top`: address of the top table. */
export type NaiveWalk = (read: ReadQword, top: bigint, levels: number, address: bigint) => NaiveResult | undefined;

/** Numbers that look random and are the same for the same seed. */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed | 1;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/**
 * A long random life of one table: maps, unmaps, accesses of hardware, questions and dirty reads, each compared with a map of pages and
 * with a walk by bytes.
 */
export function liveLong(
  format: PageTableFormat,
  naive: NaiveWalk,
  levels: number,
  operations: number,
  seed: number,
): void {
  const random = randomNumbers(seed);
  const pool = new TablePool();
  const table = new PageTable(format, pool, { levels });
  const oracle = new Oracle();
  const dirty = new Set<number>();
  const read: ReadQword = (address) => {
    const word = Number(address >> 2n);
    if (word >= pool.end << 10) return undefined;
    return (BigInt(pool.words[word + 1]! >>> 0) << 32n) | BigInt(pool.words[word]! >>> 0);
  };
  const top = BigInt(table.top) << 12n;
  // Up to the middle of the addresses: where they are sign-extended, the upper half begins elsewhere.
  const base = 2 ** (format.widths[levels]! - 13) - 8192;
  const span = 4096;
  const near = (): number => base + (random(3) === 0 ? random(8) * 512 : random(span));
  for (let i = 0; i < operations; i++) {
    const kind = random(10);
    const page = near();
    if (kind < 3) {
      const count = random(4) === 0 ? 512 * (1 + random(2)) : 1 + random(24);
      const physicalPage = 0x4_0000_0000 + (random(2) === 0 ? page - base : random(2 ** 20));
      const prot = 1 + random(3);
      const expected = oracle.map(page, physicalPage, count, prot);
      assert.equal(table.map(page, physicalPage, count, prot, false), expected, `step ${i}: map`);
      // What software made dirty is not news.
      if (expected < 0) table.readDirty(page, page + count - 1, true, () => {});
    } else if (kind < 6) {
      const count = random(4) === 0 ? 1024 : 1 + random(40);
      const removed = oracle.unmap(page, count);
      assert.equal(table.unmap(page, count), removed, `step ${i}: unmap`);
      for (const leaf of [...dirty]) if (leaf >= page && leaf < page + removed) dirty.delete(leaf);
      table.releaseTables();
    } else if (kind === 9 && random(20) === 0) {
      const found: number[] = [];
      table.readDirty(base, base + 2 * span, true, (first) => found.push(first));
      assert.deepEqual(
        found,
        [...dirty].sort((a, b) => a - b),
        `step ${i}: dirty`,
      );
      dirty.clear();
    } else {
      const expected = oracle.pages.get(page);
      assert.equal(table.walk(page), expected?.physicalPage ?? -1, `step ${i}: walk`);
      const bytes = naive(read, top, levels, BigInt(page) << 12n);
      assert.equal(bytes?.address, expected && BigInt(expected.physicalPage) << 12n, `step ${i}: bytes`);
      if (expected === undefined) continue;
      const permission = permissionOf(format, expected.prot);
      assert.equal(table.permission, permission);
      assert.deepEqual([bytes!.read, bytes!.write], [(permission & 1) !== 0, (permission & 2) !== 0]);
      if (kind === 7) {
        table.markLeaf(true);
        dirty.add(expected.first);
      }
    }
  }
  for (const [first, leaf] of [...oracle.pages]) if (leaf.first === first) table.unmap(first, leaf.pages);
  table.releaseTables();
  assert.equal(table.tables, 1);
  table.destroy();
  assert.equal(pool.used, 0);
}

export function formatSuite(format: PageTableFormat, naive: NaiveWalk): void {
  const title = (text: string): string => `${format.name}: ${text}`;
  const depths = Object.keys(format.widths).map(Number);
  const make = (levels: number, pool = new TablePool()): PageTable => new PageTable(format, pool, { levels });

  test(title('any sequence of maps and unmaps agrees with a map of pages, and gives all tables back'), () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 14 }), fc.constantFrom(...depths), (steps, levels) => {
        const pool = new TablePool();
        const table = make(levels, pool);
        const oracle = new Oracle();
        const base = 2 ** (format.widths[levels]! - 12) - 4096;
        for (const action of steps) {
          const page = base + action.page;
          if (action.op === 'map') {
            const physicalPage = 0x80000 + action.page + action.skew;
            const expected = oracle.map(page, physicalPage, action.count, action.prot);
            assert.equal(table.map(page, physicalPage, action.count, action.prot, false), expected);
          } else {
            assert.equal(table.unmap(page, action.count), oracle.unmap(page, action.count));
            table.releaseTables();
          }
        }
        for (let page = base; page < base + 2600; page++) {
          const expected = oracle.pages.get(page);
          assert.equal(table.walk(page), expected?.physicalPage ?? -1);
          if (expected === undefined) continue;
          assert.equal(table.permission, permissionOf(format, expected.prot));
          assert.equal(LEAF_PAGES[table.level], expected.pages);
        }
        for (const [first, leaf] of [...oracle.pages]) if (leaf.first === first) table.unmap(first, leaf.pages);
        table.releaseTables();
        assert.equal(table.tables, 1, 'only the top table is left');
        table.destroy();
        assert.equal(pool.used, 0);
      }),
      { numRuns: 60 },
    );
  });

  for (const levels of depths) {
    test(title(`${levels} levels: a life of 1,500 operations agrees with a map of pages and a walk by bytes`), () => {
      liveLong(format, naive, levels, 1500, levels);
    });

    const limit = 2 ** (format.widths[levels]! - 12);

    test(title(`${levels} levels: pages beyond the width are refused, the top page works, nothing aliases`), () => {
      const table = make(levels);
      table.map(0, 0x1000, 1, 3, false);
      assert.equal(table.map(limit - 1, 0x2000, 1, 3, false), -1);
      assert.equal(table.walk(limit - 1), 0x2000);
      assert.equal(table.walk(0), 0x1000);
      for (const page of [limit, limit * 2, 2 ** 44, 2 ** 49, 2 ** 52 - 1]) {
        if (page < limit) continue;
        assert.equal(table.walk(page), -1);
        assert.equal(table.level, levels);
        assert.equal(table.unmap(page, 1), 0);
      }
    });

    test(title(`${levels} levels: leaves of every size, to the highest physical page`), () => {
      const table = make(levels);
      for (const [level, count] of LEAF_PAGES.entries()) {
        const page = count * 3;
        const physicalPage = 2 ** 40 - count;
        assert.equal(table.map(page, physicalPage, count, 3, false), -1);
        assert.equal(table.walk(page + count - 1), 2 ** 40 - 1);
        assert.equal(table.level, level);
        assert.equal(table.walk(page), physicalPage);
        assert.equal(table.unmap(page, count), count);
        table.releaseTables();
        assert.equal(table.tables, 1);
      }
    });
  }

  test(
    title('a map across 2 GiB with ragged ends uses small, large and largest leaves, and one call removes all of it'),
    () => {
      const table = make(4);
      const first = 262144 - 513;
      const count = 513 + 262144 + 512 + 3;
      assert.equal(table.map(first, 262144 * 9 - 513, count, 3, false), -1);
      const seen: number[] = [];
      let at = first;
      table.forEachLeaf(first, first + count - 1, (page, size) => {
        assert.equal(page, at);
        at += size;
        seen.push(size);
      });
      assert.equal(at, first + count);
      assert.deepEqual(
        [1, 512, 262144].map((size) => seen.filter((other) => other === size).length),
        [4, 2, 1],
      );
      assert.equal(table.unmap(first, count), count);
      table.releaseTables();
      assert.equal(table.tables, 1);
    },
  );

  test(title('a table without large leaves, and one with 2 MiB at most'), () => {
    for (const largestLeaf of [0, 1]) {
      const table = new PageTable(format, new TablePool(), { largestLeaf });
      table.map(262144, 262144, 262144, 3, false);
      table.walk(262144);
      assert.equal(table.level, largestLeaf);
      assert.equal(table.unmap(262144, 262144), 262144);
    }
  });

  test(title('a map that meets another one in its middle changes nothing'), () => {
    const pool = new TablePool();
    const table = make(4, pool);
    table.map(1024 + 700, 7, 1, 1, false);
    const before = pool.used;
    for (const [page, count, conflict] of [
      [1020, 2000, 1536],
      [512, 1536, 1536],
      [1724, 1, 1724],
      [1723, 2, 1724],
    ] as const) {
      assert.equal(table.map(page, page, count, 3, false), conflict);
      assert.equal(pool.used, before);
      assert.equal(table.walk(1724), 7);
      assert.equal(table.permission, permissionOf(format, 1));
      if (page < 1724) assert.equal(table.walk(page), -1);
    }
  });

  test(title('when tables run out, nothing of the map stays'), () => {
    for (let limit = 1; limit < 11; limit++) {
      const pool = new TablePool(limit);
      const table = make(4, pool);
      // Needs nine tables: the top one, and in each of two regions of 512 GiB two, one and one.
      const page = 2 ** 27 - 513;
      try {
        table.map(page, 1, 1026, 3, false);
        assert.ok(limit >= 9, `${limit}`);
      } catch (error) {
        assert.equal((error as { code: string }).code, 'ENOMEM');
        assert.ok(limit < 9, `${limit}`);
        assert.equal(pool.used, 1);
        assert.equal(table.walk(page), -1);
      }
    }
  });

  test(title('accessed and dirty bits: found by range, cleared, leaf by leaf'), () => {
    const table = make(4);
    table.map(10, 10, 4, 3, false);
    table.map(512, 512, 512, 3, false);
    const dirty = (isCleared: boolean): number[][] => {
      const found: number[][] = [];
      table.readDirty(0, 2000, isCleared, (first, count) => found.push([first, count]));
      return found;
    };
    // Where software makes leaves that are dirty already, it clears them before it wants to know.
    dirty(true);
    assert.deepEqual(dirty(false), []);
    table.walk(11);
    table.markLeaf(true);
    table.walk(12);
    table.markLeaf(false);
    table.walk(600);
    table.markLeaf(true);
    assert.deepEqual(dirty(false), [
      [11, 1],
      [512, 512],
    ]);
    assert.deepEqual(dirty(true), [
      [11, 1],
      [512, 512],
    ]);
    assert.deepEqual(dirty(false), []);
    table.walk(12);
    assert.notEqual(table.low & format.accessed, 0);
    assert.equal(table.unmap(10, 4), 4);
    assert.equal(table.unmap(512, 1), 512);
  });
}
