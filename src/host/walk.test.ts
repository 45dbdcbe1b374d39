/** `walk` against the unit itself: same answers, and an opinion about the IOTLB that can be wrong on purpose. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ManualClock } from '../hw/pci/clock.ts';
import { loadHost } from './host-file.ts';
import { Machine } from './machine.ts';
import { walkLines, walkOf } from './walk.ts';

function world() {
  const machine = new Machine(loadHost('default'), {
    clock: new ManualClock(),
    allocateShared: (_name, length) => {
      const memory = new Uint8Array(length);
      return { length, bytes: () => memory, revoke() {}, restore() {}, close() {} };
    },
    log() {},
  });
  const fn = machine.pci.find('0000:00:04.0')!;
  const group = machine.iommu.groupOf(fn)!;
  const unit = group.unit!;
  return { machine, fn, domain: group.domain, unit, walk: (iova: bigint) => walkOf(machine, '00:04.0', -1, iova) };
}

test('a walk says what the unit does, for any maps', () => {
  const { domain, fn, unit, walk } = world();
  fc.assert(
    fc.property(
      fc.array(
        fc.record({ page: fc.nat(4000), count: fc.nat(1200), at: fc.nat(9000), prot: fc.integer({ min: 1, max: 3 }) }),
        {
          maxLength: 4,
        },
      ),
      fc.array(fc.nat(6000), { minLength: 1, maxLength: 8 }),
      (maps, pages) => {
        for (let page = 0; page < 6000; ) page += domain.unmap(page, 6000 - page) || 1;
        for (const { page, count, at, prot } of maps) {
          try {
            domain.map(page, at, count + 1, prot);
          } catch {
            // Overlaps: refused as a whole.
          }
        }
        for (const page of pages) {
          const report = walk((BigInt(page) << 12n) + 5n);
          for (const access of [1, 2] as const) {
            const physical = unit.translate(fn.requesterId, -1, page, access);
            const isAllowed = report.outcome === 'translated' && (access === 1 ? report.read : report.write);
            assert.equal(physical >= 0, isAllowed, report.verdict);
            if (physical >= 0) assert.equal(report.physical, `0x${((physical << 12) + 5).toString(16)}`);
          }
        }
      },
    ),
    { numRuns: 30 },
  );
});

test('the IOTLB: miss, hit, and stale after a change that nobody told it about', () => {
  const { domain, fn, unit, walk } = world();
  domain.map(0x200, 0x7000, 512, 3);
  assert.equal(walk(0x200abcn).iotlb.opinion, 'miss');
  assert.equal(unit.translate(fn.requesterId, -1, 0x200, 1), 0x7000);
  const before = unit.iotlb.entries().next().value;
  assert.deepEqual(walk(0x200abcn).iotlb, {
    opinion: 'hit',
    text: `hit: 0x7000abc, read and write (DID ${before!.did})`,
  });
  // Software writes the entry away and forgets the invalidation.
  const leaf = walk(0x200abcn).steps.at(-1)!;
  assert.equal(unit.memory.poke(BigInt(leaf.address), 0n), true);
  const after = walk(0x200abcn);
  assert.equal(after.outcome, 'refused');
  assert.equal(after.iotlb.opinion, 'stale');
  assert.equal(unit.translate(fn.requesterId, -1, 0x200, 1), 0x7000);
  unit.invalidateDomain(before!.did);
  assert.equal(walk(0x200abcn).iotlb.opinion, 'miss');
  assert.equal(unit.translate(fn.requesterId, -1, 0x200, 1), -1);
});

test('a walk leaves nothing behind', () => {
  const { machine, unit, walk } = world();
  walk(0x1000n);
  walkOf(machine, '07:01.0', 5, 0x1000n);
  assert.deepEqual([...unit.iotlb.entries()], []);
  assert.equal(unit.lastFault, undefined);
  assert.equal(unit.faults.isPending, false);
});

test('lines for people; a function behind a conventional bridge is asked for by its alias', () => {
  const { machine, domain, walk } = world();
  domain.map(0x40, 0x99, 1, 1);
  const text = walkLines(walk(0x40123n)).join('\n');
  assert.match(text, /^0x40123 of 0000:00:04\.0: requester 00:04\.0, dmar0 in legacy mode$/m);
  assert.match(text, /level 1 \(PTE\) \[64\] +0x[0-9a-f]+: 0x99[0-9a-f]01 +R, page 0x99000\n +up to here: read only$/m);
  assert.match(text, /verdict {2}Translated to 0x99123 in a page of 4 KiB, read only\.$/);
  assert.equal(walkOf(machine, '0000:07:01.0', -1, 0n).requester, '07:00.0');
});

test('what cannot be walked', () => {
  const { machine } = world();
  assert.throws(() => walkOf(machine, '00:1f.0', -1, 0n), { code: 'ENODEV', why: /no function 0000:00:1f\.0/ });
  assert.throws(() => walkOf(machine, '00:04.0', 2 ** 20, 0n), { code: 'EINVAL', why: /more than 20 bits/ });
  assert.throws(() => walkOf(machine, '00:04.0', -1, 1n << 64n), { code: 'EINVAL' });
});
