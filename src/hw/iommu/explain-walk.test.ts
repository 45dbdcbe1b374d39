/** A walk shown step by step, over structures written by hand as 64-bit words. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { explainWalk, type WalkMemory } from './explain-walk.ts';

/** Words at byte addresses; reads of pages that were never written to find no memory. */
function memory(words: Readonly<Record<string, bigint>>): WalkMemory {
  const pages = new Set(Object.keys(words).map((address) => BigInt(address) >> 12n));
  return { peek: (address) => words[`0x${address.toString(16)}`] ?? (pages.has(address >> 12n) ? 0n : undefined) };
}

// 05:00.0, tables of four levels: 0x1000 root, 0x2000 contexts, 0x3000 to 0x6000 second stage, one page mapped read-only.
const rid = 0x0500;
const legacyWords = {
  '0x1050': 0x2001n,
  '0x2000': 0x3001n,
  '0x2008': 0x502n,
  '0x3000': 0x4003n,
  '0x4000': 0x5003n,
  '0x5008': 0x6003n,
  '0x6018': 0x0000_0001_2345_6801n,
  '0x5010': 0x4000_0083n,
};
const legacyRoot = { address: 0x1000n, isScalable: false };

test('I-91: each level of a legacy walk, with index, place and value', () => {
  const result = explainWalk(memory(legacyWords), legacyRoot, { rid, pasid: -1, iova: 0x203abcn });
  assert.deepEqual(
    result.steps.map(({ what, index, address, value }) => [what, index, address, value]),
    [
      ['root entry', 5, 0x1050n, 0x2001n],
      ['context entry', 0, 0x2000n, 0x3001n],
      ['second stage level 4 (P4D)', 0, 0x3000n, 0x4003n],
      ['second stage level 3 (PUD)', 0, 0x4000n, 0x5003n],
      ['second stage level 2 (PMD)', 1, 0x5008n, 0x6003n],
      ['second stage level 1 (PTE)', 3, 0x6018n, 0x1_2345_6801n],
    ],
  );
  assert.equal(result.outcome, 'translated');
  assert.equal(result.physical, 0x1_2345_6abcn);
  assert.deepEqual(
    [result.pageSize, result.allows, result.isSnooped, result.did],
    [4096n, { read: true, write: false }, true, 5],
  );
});

test('a large leaf ends the walk early; an absent entry says at which level', () => {
  const large = explainWalk(memory(legacyWords), legacyRoot, { rid, pasid: -1, iova: 0x45_6789n });
  assert.deepEqual([large.physical, large.pageSize, large.isSnooped], [0x4005_6789n, 0x20_0000n, false]);
  const absent = explainWalk(memory(legacyWords), legacyRoot, { rid, pasid: -1, iova: 0x20_4000n });
  assert.equal(absent.outcome, 'refused');
  assert.match(absent.verdict, /Nothing is mapped at 0x204000: .*level 1 \(PTE\) is not present/);
});

test('what is refused before any page table: window, absent root and context, PASID, width, reserved bits, no memory', () => {
  const verdict = (
    request: { rid?: number; pasid?: number; iova: bigint },
    more: Record<string, bigint> = {},
  ): string => explainWalk(memory({ ...legacyWords, ...more }), legacyRoot, { rid, pasid: -1, ...request }).verdict;
  assert.match(verdict({ iova: 0xfee0_1000n }), /interrupt window/);
  assert.match(verdict({ rid: 0x0600, iova: 0n }), /root entry is not present/);
  assert.match(verdict({ rid: 0x0501, iova: 0n }), /context entry is not present/);
  assert.match(verdict({ pasid: 3, iova: 0n }), /PASID while the unit is in legacy mode/);
  assert.match(verdict({ iova: 1n << 48n }), /more than the 48 bits/);
  assert.match(verdict({ iova: 0x203000n }, { '0x2008': 0x507n }), /address width code 7 is reserved/);
  assert.match(verdict({ iova: 0x45_6789n }, { '0x5010': 0x4000_1083n }), /bits 0x1000 of the address/);
  assert.match(verdict({ iova: 0x203000n }, { '0x4000': 0x9_9003n }), /0x99008, where no memory answers/);
});

test('pass-through', () => {
  const result = explainWalk(memory({ ...legacyWords, '0x2000': 0x9n }), legacyRoot, { rid, pasid: -1, iova: 0x1234n });
  assert.deepEqual([result.outcome, result.physical, result.did], ['pass-through', 0x1234n, 5]);
});

// Scalable: 0x1000 root, 0x2000 contexts, 0x7000 directory, 0x8000 PASID table, 0x9000… first stage, 0x3000… second stage.
const scalableWords = {
  '0x1050': 0x2001n,
  '0x2000': 0x7000n | 0b1101n,
  '0x7008': 0x8001n,
  // PASID 0x41: nested, DID 9, PGSNP, first stage at guest 0x1000, second stage at 0x3000.
  '0x8040': 0x30c9n,
  '0x8048': 0x0100_0009n,
  '0x8050': 0x1000n,
  // Second stage: guest pages 1 to 4 are at 0xa000 to 0xd000, guest page 5 (data) at 0x77000, all in one table at 0x6000.
  '0x3000': 0x4003n,
  '0x4000': 0x5003n,
  '0x5000': 0x6003n,
  '0x6008': 0xa003n,
  '0x6010': 0xb003n,
  '0x6018': 0xc003n,
  '0x6020': 0xd003n,
  '0x6028': 0x7_7001n,
  // First stage for 0x0: guest tables 1 → 2 → 3 → 4 → data in guest page 5.
  '0xa000': 0x2027n,
  '0xb000': 0x3027n,
  '0xc000': 0x4027n,
  '0xd000': 0x5067n,
};
const scalableRoot = { address: 0x1000n, isScalable: true };

test('a nested walk reads 4 first-stage entries, each behind 4 second-stage ones, and 4 more for the page: 24 steps', () => {
  const result = explainWalk(memory(scalableWords), scalableRoot, { rid, pasid: 0x41, iova: 0x10n });
  const pages = result.steps.filter(({ what }) => what.includes('stage'));
  assert.equal(pages.length, 24);
  assert.equal(pages.filter(({ depth }) => depth === 1).length, 20);
  assert.deepEqual(
    result.steps.slice(2, 4).map(({ what, index, address }) => [what, index, address]),
    [
      ['PASID directory entry', 1, 0x7008n],
      ['PASID entry of 65', 1, 0x8040n],
    ],
  );
  assert.deepEqual(
    [result.outcome, result.physical, result.did, result.isTaggedByPasid],
    ['translated', 0x7_7010n, 9, true],
  );
  // The first stage allows writes, the second does not.
  assert.deepEqual([result.allows, result.isSnooped], [{ read: true, write: false }, true]);
});

test('a nested walk tells a hole of the guest from a hole of the host', () => {
  const verdict = (more: Record<string, bigint>, iova = 0x10n): string =>
    explainWalk(memory({ ...scalableWords, ...more }), scalableRoot, { rid, pasid: 0x41, iova }).verdict;
  assert.match(verdict({ '0xd000': 0n }), /Nothing is mapped at 0x10: the entry of the first stage level 1/);
  assert.match(verdict({ '0x6018': 0n }), /Nothing is mapped at 0x3000: the entry of the second stage level 1/);
  assert.match(verdict({}, 0x8000_0000_0000n), /not canonical/);
  assert.match(verdict({ '0x8040': 0n }), /PASID entry of 65 is not present/);
  assert.match(verdict({ '0x7008': 0n }), /PASID directory entry is not present/);
  assert.match(verdict({ '0x2000': 0x7005n }), /does not allow requests with PASID/);
});

test('a table that points to itself is followed level by level and no further', () => {
  const result = explainWalk(memory({ ...legacyWords, '0x3000': 0x3003n }), legacyRoot, { rid, pasid: -1, iova: 0n });
  assert.equal(result.steps.length, 6);
  assert.deepEqual([result.outcome, result.physical], ['translated', 0x3000n]);
});
