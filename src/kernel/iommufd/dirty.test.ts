import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../lib/errno.ts';
import * as uapi from '../../uapi/iommufd.ts';
import { refusal } from '../core/test-task.ts';
import type { DirtyTracking } from './paging-domain.ts';
import { TestDomain, TestIommu, TestProgram } from './test-iommu.ts';

class DirtyDomain extends TestDomain {
  isTracked = false;
  readonly written = new Set<number>();
  readonly dirty: DirtyTracking = {
    setTracking: (isOn) => {
      this.isTracked = isOn;
    },
    readAndClear: (first, last, isCleared, report) => {
      if (!this.isTracked && report !== undefined) throw new Errno('EINVAL', 'tracking is off');
      for (let page = Number(first >> 12n); page <= Number(last >> 12n); page++) {
        if (!this.written.has(page)) continue;
        if (isCleared) this.written.delete(page);
        report?.(BigInt(page) * 4096n, BigInt(page) * 4096n + 4095n);
      }
    },
  };
}

test('F-41 F-42: dirty bits are read as a bitmap, again if they are not cleared, and only while tracking is on', () => {
  const p = new TestProgram();
  const domain = new DirtyDomain();
  const iommu = new TestIommu();
  iommu.allocatePaging = () => domain;
  const device = p.bind(iommu);
  const ioas = p.ioas();
  device.attach(ioas);
  const memory = p.task.memory.map(64 * 4096);
  p.map(ioas, 0x10000n, memory, 64 * 4096);
  const hwpt_id = [...device.igroup.attachments.values()][0]!.hwpt.id;
  const bitmap = p.task.memory.map(4096);
  const set = (flags: number, id = hwpt_id): string =>
    refusal(() =>
      p.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.iommu_hwpt_set_dirty_tracking, { flags, hwpt_id: id }),
    );
  const get = (given: Partial<uapi.iommu_hwpt_get_dirty_bitmap> = {}): string => {
    p.task.memory.write(bitmap, new Uint8Array(8));
    const answer = refusal(() =>
      p.call(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.iommu_hwpt_get_dirty_bitmap, {
        hwpt_id,
        iova: 0x10000n,
        length: 64n * 4096n,
        page_size: 4096n,
        data: BigInt(bitmap),
        ...given,
      }),
    );
    const bytes = new Uint8Array(8);
    p.task.memory.read(bitmap, bytes);
    return answer === 'ok' ? Buffer.from(bytes).toString('hex') : answer;
  };
  domain.written.add(0x11);
  assert.equal(get(), 'EINVAL');
  assert.equal(set(uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE), 'ok');
  assert.equal(get(), '0000000000000000', 'what was written before does not count');
  domain.written.add(0x13).add(0x4f);
  const keep = { flags: uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR };
  assert.equal(get(keep), '0800000000000080');
  assert.equal(get(keep), '0800000000000080');
  assert.equal(get({ page_size: 0x4000n }), '0180000000000000', 'in larger pages');
  assert.equal(get(), '0000000000000000');
  assert.equal(get({ flags: 2 }), 'EOPNOTSUPP');
  assert.equal(get({ page_size: 0n }), 'EINVAL');
  assert.equal(get({ iova: 0x10800n }), 'EINVAL');
  assert.equal(get({ length: 2n ** 64n - 4096n }), 'EOVERFLOW');
  assert.equal(get({ length: 0n }), 'EOVERFLOW');
  assert.equal(get({ hwpt_id: ioas }), 'ENOENT');
  domain.written.add(0x13);
  assert.equal(get({ data: 0n }), '0000000000000000', 'bits that have no room are lost');
  assert.equal(get(), '0000000000000000');
  assert.equal(set(2), 'EOPNOTSUPP');
  assert.equal(set(0, 99), 'ENOENT');
  assert.equal(set(0), 'ok');
  assert.equal(get(), 'EINVAL');
  device.unbind();
  p.end();
});

test('a page table without dirty bits refuses after the numbers were checked', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  const hwpt_id = p.hwpt(device.id, p.ioas());
  const get = (given: Partial<uapi.iommu_hwpt_get_dirty_bitmap>): string =>
    refusal(() =>
      p.call(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.iommu_hwpt_get_dirty_bitmap, {
        hwpt_id,
        iova: 0x1000_0000n,
        length: 0x1000n,
        page_size: 4096n,
        ...given,
      }),
    );
  assert.equal(get({}), 'EOPNOTSUPP');
  assert.equal(get({ page_size: 3000n }), 'EOPNOTSUPP');
  assert.equal(get({ length: 0n }), 'EOVERFLOW');
  assert.equal(
    refusal(() => p.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.iommu_hwpt_set_dirty_tracking, { hwpt_id })),
    'EOPNOTSUPP',
  );
  device.unbind();
  p.end();
});
