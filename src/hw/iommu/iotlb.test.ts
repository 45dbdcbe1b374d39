import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Iotlb } from './iotlb.ts';

const LEAVES = [1, 512, 262144];

test('an entry of each size answers for its pages only, and only for what it allows', () => {
  const iotlb = new Iotlb();
  const { tag } = iotlb.space(7, -1);
  for (const [level, pages] of LEAVES.entries()) {
    const first = pages * 5;
    iotlb.fill(tag, first + pages - 1, 2 ** 39 + pages * 8 + pages - 1, level, 1);
    assert.equal(iotlb.lookup(tag, first, 1), 2 ** 39 + pages * 8);
    assert.equal(iotlb.lookup(tag, first, 2), -1);
    assert.equal(iotlb.lookup(tag, first - 1, 1), -1);
    assert.equal(iotlb.lookup(tag, first + pages, 1), -1);
    assert.equal(iotlb.lookup(tag, first + 2 ** 32, 1), -1, 'no aliasing of far pages');
    assert.equal(iotlb.lookup(tag, first + 2 ** 44, 1), -1);
  }
});

test('an entry tells how far it reaches; a smaller one for the page comes first', () => {
  const iotlb = new Iotlb();
  const { tag } = iotlb.space(7, -1);
  assert.equal(iotlb.reach(tag, 5, 1), 1, 'nothing is known');
  iotlb.fill(tag, 512 * 3, 512 * 9, 1, 1);
  assert.deepEqual(
    [0, 1, 511, 512, -1].map((within) => iotlb.reach(tag, 512 * 3 + within, 1)),
    [512, 511, 1, 1, 1],
  );
  assert.equal(iotlb.reach(tag, 512 * 3, 2), 1, 'not for writing');
  assert.equal(iotlb.reach(tag + 1, 512 * 3, 1), 1, 'not for another space');
  iotlb.fill(tag, 512 * 3 + 7, 99, 0, 1);
  assert.equal(iotlb.reach(tag, 512 * 3 + 7, 1), 1);
  iotlb.fill(tag, 2 ** 18, 2 ** 20, 2, 3);
  assert.equal(iotlb.reach(tag, 2 ** 18 + 3, 2), 2 ** 18 - 3);
  iotlb.invalidatePages(7, undefined, 2 ** 18 + 9, 2 ** 18 + 9);
  assert.equal(iotlb.reach(tag, 2 ** 18 + 3, 2), 1, 'no longer');
});

test('I-43: domains and PASIDs do not see each other, and are forgotten one by one', () => {
  const iotlb = new Iotlb();
  const a = iotlb.space(2, -1);
  const b = iotlb.space(3, -1);
  const c = iotlb.space(2, 9);
  assert.equal(iotlb.space(2, 9), c);
  for (const [i, space] of [a, b, c].entries()) iotlb.fill(space.tag, 100 + i, 200 + i, 0, 3);
  assert.equal(iotlb.lookup(a.tag, 101, 1), -1);
  assert.equal(iotlb.lookup(b.tag, 101, 1), 201);
  assert.equal([...iotlb.entries()].length, 3);
  iotlb.invalidateDomain(2, 9);
  assert.equal(iotlb.lookup(c.tag, 102, 1), -1);
  assert.equal(iotlb.lookup(a.tag, 100, 1), 200);
  iotlb.invalidateDomain(2);
  assert.equal(iotlb.lookup(a.tag, 100, 1), -1);
  assert.deepEqual(
    [...iotlb.entries()],
    [{ did: 3, pasid: -1, firstPage: 101, pages: 1, physicalPage: 201, attributes: 3 }],
  );
  iotlb.invalidateAll();
  assert.equal(iotlb.lookup(b.tag, 101, 1), -1);
});

test('I-41: a page-selective invalidation leaves the neighbours, but takes any large entry that it touches', () => {
  const iotlb = new Iotlb();
  const { tag } = iotlb.space(2, -1);
  for (let page = 0; page < 10; page++) iotlb.fill(tag, page, page + 50, 0, 3);
  iotlb.fill(tag, 512, 1024, 1, 3);
  iotlb.fill(tag, 262144, 262144, 2, 3);
  iotlb.invalidatePages(2, undefined, 4, 7);
  assert.deepEqual(
    Array.from({ length: 10 }, (_, page) => iotlb.lookup(tag, page, 1) >= 0),
    [true, true, true, true, false, false, false, false, true, true],
  );
  assert.equal(iotlb.lookup(tag, 513, 1), 1025);
  iotlb.invalidatePages(2, -1, 700, 700);
  assert.equal(iotlb.lookup(tag, 513, 1), -1);
  iotlb.invalidatePages(2, undefined, 300000, 300000);
  assert.equal(iotlb.lookup(tag, 262144, 1), -1);
  // A range that is larger than the arrays.
  for (let page = 0; page < 10; page++) iotlb.fill(tag, page, page + 50, 0, 3);
  iotlb.invalidatePages(2, undefined, 5, 2 ** 30);
  assert.equal(iotlb.lookup(tag, 4, 1), 54);
  assert.equal(iotlb.lookup(tag, 5, 1), -1);
});

test('a hit is always what was filled last for that page and not invalidated since', () => {
  const action = fc.record({
    op: fc.constantFrom('fill', 'fill', 'fill', 'pages', 'domain'),
    did: fc.constantFrom(2, 3),
    page: fc.oneof(fc.nat(2000), fc.nat(2000), fc.integer({ min: 2 ** 17, max: 2 ** 17 + 500 }), fc.constant(2 ** 30)),
    count: fc.oneof(fc.integer({ min: 1, max: 600 }), fc.constantFrom(5000, 2 ** 18, 2 ** 30)),
    level: fc.constantFrom(0, 0, 1),
  });
  fc.assert(
    fc.property(fc.array(action, { maxLength: 40 }), (actions) => {
      const iotlb = new Iotlb();
      const spaces = new Map([2, 3].map((did) => [did, iotlb.space(did, -1)]));
      // By domain: leaves that may be hit, by level and first page.
      const model = new Map<string, number>();
      let next = 0;
      for (const { op, did, page, count, level } of actions) {
        if (op === 'fill') {
          const pages = LEAVES[level]!;
          const first = page - (page % pages);
          const target = ++next * 4096;
          iotlb.fill(spaces.get(did)!.tag, page, target + page - first, level, 3);
          model.set(`${did} ${level} ${first}`, target);
        } else if (op === 'domain') {
          iotlb.invalidateDomain(did);
          for (const key of [...model.keys()]) if (key.startsWith(`${did} `)) model.delete(key);
        } else {
          iotlb.invalidatePages(did, undefined, page, page + count - 1);
          for (const key of [...model.keys()]) {
            const [owner, at, first] = key.split(' ').map(Number);
            if (owner === did && first! <= page + count - 1 && page < first! + LEAVES[at!]!) model.delete(key);
          }
        }
        for (const probe of [page, page + count - 1, page ^ 1]) {
          const found = iotlb.lookup(spaces.get(did)!.tag, probe, 1);
          const allowed = [0, 1].flatMap((at) => {
            const first = probe - (probe % LEAVES[at]!);
            const target = model.get(`${did} ${at} ${first}`);
            return target === undefined ? [] : [target + probe - first];
          });
          assert.ok(found === -1 || allowed.includes(found), `page ${probe}: ${found} is not in ${allowed}`);
        }
      }
    }),
  );
});

test('when the tags are used up, everything is forgotten once and nothing stale is hit', () => {
  const iotlb = new Iotlb(6);
  const a = iotlb.space(2, -1);
  const b = iotlb.space(3, -1);
  for (let i = 0; i < 40; i++) {
    iotlb.fill(a.tag, 7, 1000 + i, 0, 3);
    iotlb.fill(b.tag, 8, 2000 + i, 1, 3);
    assert.equal(iotlb.lookup(a.tag, 7, 1), 1000 + i);
    iotlb.invalidateDomain(2);
    assert.equal(iotlb.lookup(a.tag, 7, 1), -1);
    assert.notEqual(a.tag, b.tag);
    assert.ok([-1, 2000 + i].includes(iotlb.lookup(b.tag, 8, 1)));
    assert.ok([...iotlb.entries()].every((entry) => entry.did === 3));
  }
});
