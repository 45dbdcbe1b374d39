/** Mappings of 2011: any page may go, neighbours join, and all that is pinned is counted. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { failNth } from '../../lib/failpoint.ts';
import {
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_UNMAP_DMA,
  vfio_dma_map,
  vfio_dma_unmap,
  vfio_iommu_info,
} from '../../uapi/vfio-2011.ts';
import { vfio_iommu_info as late_info } from '../../uapi/vfio-2011-late.ts';
import { refusal, type User, World, type WorldOptions } from './test-world.ts';

function open(options: WorldOptions = {}, limits: { memlockLimit?: number } = {}) {
  const world = new World(options);
  const device = world.add('1.0');
  const user = world.user(limits);
  const iommu = user.iommu(user.group(device.group));
  const { maps } = [...world.core.objects()][0]!;
  const entries = (): string => [...maps.entries.areas()].map(({ first, last }) => `${first}-${last}`).join(' ');
  return { world, device, user, iommu, maps, entries };
}

const map = (user: User, iommu: number, changes: Partial<vfio_dma_map>): string =>
  refusal(() =>
    user.call(
      iommu,
      VFIO_IOMMU_MAP_DMA,
      vfio_dma_map.write({ argsz: 32, flags: 3, vaddr: 0n, iova: 0n, size: 4096n, ...changes }),
    ),
  );

test('MAP_DMA refuses what is malformed with EINVAL, what overlaps with EBUSY', () => {
  const { user, iommu, maps } = open();
  const vaddr = BigInt(user.memory.map(16 * 4096));
  assert.equal(map(user, iommu, { vaddr, argsz: 31 }), 'EINVAL');
  assert.equal(map(user, iommu, { vaddr, flags: 0 }), 'EINVAL');
  assert.equal(map(user, iommu, { vaddr, flags: 7 }), 'EINVAL');
  assert.equal(map(user, iommu, { vaddr: vaddr + 1n }), 'EINVAL');
  assert.equal(map(user, iommu, { vaddr, iova: 0x800n }), 'EINVAL');
  assert.equal(map(user, iommu, { vaddr, size: 0x1800n }), 'EINVAL');
  assert.equal(map(user, iommu, { vaddr, size: 0n }), 'EINVAL');
  assert.equal(map(user, iommu, { vaddr, iova: 0xffff_ffff_ffff_f000n, size: 8192n }), 'EINVAL');
  assert.equal(map(user, iommu, { vaddr: 0xffff_ffff_ffff_f000n, size: 8192n }), 'EINVAL');
  assert.equal(map(user, iommu, { vaddr, iova: 1n << 48n }), 'EINVAL', 'beyond the address bits of the IOMMU');
  assert.equal(map(user, iommu, { vaddr: 0x1000n }), 'EFAULT');
  assert.equal(user.mm.pins + user.mm.lockedPages + maps.entries.size, 0);
  assert.equal(map(user, iommu, { vaddr, iova: 0x2000n, size: 0x3000n, argsz: 40 }), 'ok');
  assert.equal(map(user, iommu, { vaddr, iova: 0x4000n }), 'EBUSY');
  assert.equal(map(user, iommu, { vaddr, iova: 0x1000n, size: 0x2000n }), 'EBUSY');
  assert.equal(map(user, iommu, { vaddr, iova: 0x5000n }), 'ok');
  assert.equal(user.mm.pins, 4);
});

test('mappings that continue each other become one entry; another permission or other memory does not', () => {
  const { world, device, user, iommu, entries } = open();
  const address = user.memory.map(64 * 4096);
  user.map(iommu, 10, 2, { address });
  user.map(iommu, 14, 2, { address: address + 4 * 4096 });
  assert.equal(entries(), '10-11 14-15');
  user.map(iommu, 12, 2, { address: address + 2 * 4096 });
  assert.equal(entries(), '10-15');
  user.map(iommu, 16, 1, { address: address + 6 * 4096, flags: 1 });
  user.map(iommu, 17, 1, { address: address + 20 * 4096, flags: 1 });
  assert.equal(entries(), '10-15 16-16 17-17');
  assert.notEqual(world.dma(device, 16), 'ok', 'readable only');
  user.unmap(iommu, 0, 100);
  assert.equal(entries(), '');
  assert.equal(user.mm.pins, 0);
});

test('UNMAP_DMA trims, splits, and does not mind holes', () => {
  const { world, device, user, iommu, entries } = open();
  const address = user.map(iommu, 10, 10);
  user.unmap(iommu, 14, 2);
  assert.equal(entries(), '10-13 16-19');
  user.unmap(iommu, 8, 3);
  user.unmap(iommu, 19, 9);
  user.unmap(iommu, 100, 9);
  assert.equal(entries(), '11-13 16-18');
  assert.equal(user.mm.pins, 6);
  for (let page = 9; page < 21; page++) {
    const isMapped = (page >= 11 && page <= 13) || (page >= 16 && page <= 18);
    assert.equal(world.dma(device, page, page) === 'ok', isMapped, `page ${page}`);
    if (isMapped) assert.equal(user.byte(address + (page - 10) * 4096), page);
  }
  const unmap = (changes: Partial<vfio_dma_unmap>): string =>
    refusal(() =>
      user.call(
        iommu,
        VFIO_IOMMU_UNMAP_DMA,
        vfio_dma_unmap.write({ argsz: 24, flags: 0, iova: 0n, size: 4096n, ...changes }),
      ),
    );
  assert.equal(unmap({ argsz: 23 }), 'EINVAL');
  assert.equal(unmap({ flags: 1 }), 'EINVAL');
  assert.equal(unmap({ iova: 1n }), 'EINVAL');
  assert.equal(unmap({ size: 1n }), 'EINVAL');
  assert.equal(unmap({ size: 0xffff_ffff_ffff_f000n }), 'ok', 'everything');
  assert.equal(entries(), '');
});

test('RLIMIT_MEMLOCK counts pages, ENOMEM beyond it, CAP_IPC_LOCK lifts it; entries are limited too', () => {
  const { user, iommu } = open({ core: { entryLimit: 3 } }, { memlockLimit: 8 * 4096 });
  user.map(iommu, 0, 6);
  assert.equal(
    refusal(() => user.map(iommu, 10, 3)),
    'ENOMEM',
  );
  user.unmap(iommu, 1, 1);
  user.map(iommu, 10, 3);
  user.capabilities.add('CAP_IPC_LOCK');
  assert.equal(
    refusal(() => user.map(iommu, 20)),
    'ENOSPC',
  );
  assert.equal(
    refusal(() => user.unmap(iommu, 11)),
    'ENOSPC',
    'it would split an entry',
  );
  assert.equal(user.mm.pins, 8);
  user.unmap(iommu, 0);
  user.map(iommu, 20);
  user.exit();
  assert.equal(user.mm.lockedPages, 0);
});

test('every failure on the way of a map leaves nothing', () => {
  const { world, user, iommu, maps } = open();
  const address = user.memory.map(8 * 4096);
  let n = 1;
  for (; ; n++) {
    using order = failNth(n);
    const outcome = refusal(() => user.map(iommu, 3, 8, { address }));
    if (order.failed.length === 0) {
      assert.equal(outcome, 'ok');
      break;
    }
    assert.notEqual(outcome, 'ok');
    assert.deepEqual([user.mm.pins, user.mm.lockedPages, maps.entries.size], [0, 0, 0], `failure ${n}`);
  }
  assert.ok(n > 8, `${n - 1} failures were walked`);
  user.exit();
  assert.equal(world.held().owners, 0);
});

test('IOMMU_GET_INFO describes the IOMMU in both revisions', () => {
  const seed = open();
  const bytes = vfio_iommu_info.write({ argsz: 32, flags: 0, iova_max: 0n, iova_min: 9n, pgsize_bitmap: 0n });
  seed.user.call(seed.iommu, VFIO_IOMMU_GET_INFO, bytes);
  assert.deepEqual(vfio_iommu_info.read(bytes), {
    argsz: 32,
    flags: 0,
    iova_max: 0xffff_ffff_ffffn,
    iova_min: 0n,
    pgsize_bitmap: 0x4020_1000n,
  });
  bytes[0] = 31;
  assert.equal(
    refusal(() => seed.user.call(seed.iommu, VFIO_IOMMU_GET_INFO, bytes)),
    'EINVAL',
  );
  const later = open({ core: { revision: 'late', entryLimit: 100 } });
  const more = late_info.write({
    argsz: 40,
    flags: 0,
    iova_start: 9n,
    iova_size: 0n,
    iova_entries: 0n,
    iova_pgsizes: 0n,
  });
  later.user.call(later.iommu, VFIO_IOMMU_GET_INFO, more);
  assert.deepEqual(late_info.read(more), {
    argsz: 40,
    flags: 0,
    iova_start: 0n,
    iova_size: 1n << 48n,
    iova_entries: 100n,
    iova_pgsizes: 0x4020_1000n,
  });
  assert.equal(
    refusal(() => later.user.call(later.iommu, 0x3b6c)),
    'ENOTTY',
  );
});

test('random maps and unmaps agree with a list of pages', () => {
  const step = fc.record({
    isMap: fc.boolean(),
    page: fc.nat(40),
    count: fc.integer({ min: 1, max: 12 }),
    from: fc.nat(20),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const { world, device, user, iommu, maps } = open();
      const address = user.memory.map(64 * 4096);
      const pages = new Map<number, number>();
      for (const { isMap, page, count, from } of steps) {
        const range = Array.from({ length: count }, (_, i) => i);
        if (isMap) {
          const isTaken = range.some((i) => pages.has(page + i));
          const outcome = refusal(() => user.map(iommu, page, count, { address: address + from * 4096 }));
          assert.equal(outcome, isTaken ? 'EBUSY' : 'ok');
          if (!isTaken) for (const i of range) pages.set(page + i, from + i);
        } else {
          user.unmap(iommu, page, count);
          for (const i of range) pages.delete(page + i);
        }
        assert.equal(user.mm.pins, pages.size);
        assert.equal(user.mm.lockedPages, pages.size);
      }
      for (let page = 0; page < 56; page++) {
        const behind = pages.get(page);
        assert.equal(world.dma(device, page, page + 1) === 'ok', behind !== undefined, `page ${page}`);
        if (behind !== undefined) assert.equal(user.byte(address + behind * 4096), page + 1);
      }
      const ordered = [...pages].sort(([a], [b]) => a - b);
      const fewest = ordered.filter(([page, behind]) => pages.get(page - 1) !== behind - 1).length;
      assert.equal(maps.entries.size, fewest, 'as few entries as possible');
    }),
    { numRuns: 30 },
  );
});
