import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../../uapi/iommufd.ts';
import { VFIO_GET_API_VERSION } from '../../uapi/vfio.ts';
import { refusal } from '../core/test-task.ts';
import { TestIommu, TestProgram } from './test-iommu.ts';

/** A call whose structure is `length` bytes, all zero but for the size and `bytes`. */
function raw(p: TestProgram, request: number, size: number, length = size, bytes: Record<number, number> = {}): string {
  const buffer = new Uint8Array(Math.max(4, length));
  for (const [at, value] of Object.entries(bytes)) buffer[Number(at)] = value;
  new DataView(buffer.buffer).setUint32(0, size, true);
  return refusal(() => p.task.ioctl(p.file, request, buffer));
}

test('F-1: an unknown request is ENOTTY, after its first word was read where the number is one of ours', () => {
  const p = new TestProgram();
  for (const request of [0x3b7f, 0x3b95, 0x3b9f, 0x3ba0, 0x7881, 0xc00c3b81]) {
    assert.equal(raw(p, request, 16), 'ENOTTY', request.toString(16));
  }
  assert.equal(
    refusal(() => p.task.ioctl(p.file, uapi.IOMMU_TEST_CMD, 0n)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => p.task.ioctl(p.file, 0x3b7f, 0n)),
    'ENOTTY',
  );
  assert.equal(p.task.ioctl(p.file, VFIO_GET_API_VERSION), 0);
  p.end();
});

test('F-2 F-3: every request checks its size, and what lies behind the structure', () => {
  const minima: [number, number][] = [
    [uapi.IOMMU_DESTROY, 8],
    [uapi.IOMMU_IOAS_ALLOC, 12],
    [uapi.IOMMU_IOAS_ALLOW_IOVAS, 24],
    [uapi.IOMMU_IOAS_COPY, 40],
    [uapi.IOMMU_IOAS_IOVA_RANGES, 32],
    [uapi.IOMMU_IOAS_MAP, 40],
    [uapi.IOMMU_IOAS_UNMAP, 24],
    [uapi.IOMMU_OPTION, 24],
    [uapi.IOMMU_VFIO_IOAS, 12],
    [uapi.IOMMU_HWPT_ALLOC, 24],
    [uapi.IOMMU_GET_HW_INFO, 32],
    [uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, 16],
    [uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, 48],
    [uapi.IOMMU_HWPT_INVALIDATE, 32],
    [uapi.IOMMU_FAULT_QUEUE_ALLOC, 16],
    [uapi.IOMMU_IOAS_MAP_FILE, 40],
    [uapi.IOMMU_VIOMMU_ALLOC, 24],
    [uapi.IOMMU_VDEVICE_ALLOC, 24],
    [uapi.IOMMU_IOAS_CHANGE_PROCESS, 8],
    [uapi.IOMMU_VEVENTQ_ALLOC, 28],
    [uapi.IOMMU_HW_QUEUE_ALLOC, 40],
  ];
  const p = new TestProgram();
  for (const [request, minimum] of minima) {
    const name = uapi.iommufdRequestNames.get(request)!;
    assert.equal(
      refusal(() => p.task.ioctl(p.file, request, 0n)),
      'EFAULT',
      name,
    );
    for (let size = 0; size < minimum; size += 4) assert.equal(raw(p, request, size), 'EINVAL', `${name} ${size}`);
    // The structure's own errors begin here; for some it is EINVAL again.
    const own = raw(p, request, minimum);
    assert.notEqual(own, 'E2BIG', name);
    assert.equal(raw(p, request, 5000), own, `${name} with a zero tail`);
    assert.equal(raw(p, request, 128, 128, { 127: 1 }), 'E2BIG', name);
    assert.equal(raw(p, request, 5000, 5000, { 4999: 1 }), 'E2BIG', name);
  }
  p.end();
});

test('F-3: a tail that cannot be read is EFAULT, but not before a byte that is not zero', () => {
  const p = new TestProgram();
  const at = p.task.memory.map(8192);
  p.task.memory.write(at, new Uint8Array(Uint32Array.of(100_000, 0, 0).buffer));
  assert.equal(
    refusal(() => p.task.ioctl(p.file, uapi.IOMMU_IOAS_ALLOC, at)),
    'EFAULT',
  );
  p.task.memory.write(at + 8000, Uint8Array.of(7));
  assert.equal(
    refusal(() => p.task.ioctl(p.file, uapi.IOMMU_IOAS_ALLOC, at)),
    'E2BIG',
  );
  p.end();
});

test('F-4: reserved members and unknown flags are EOPNOTSUPP', () => {
  const p = new TestProgram();
  const ioas_id = p.ioas();
  const cases: [number, () => unknown][] = [
    [1, () => p.call(uapi.IOMMU_IOAS_ALLOC, uapi.iommu_ioas_alloc, { flags: 1 })],
    [2, () => p.call(uapi.IOMMU_IOAS_IOVA_RANGES, uapi.iommu_ioas_iova_ranges, { ioas_id, __reserved: 1 })],
    [3, () => p.call(uapi.IOMMU_IOAS_ALLOW_IOVAS, uapi.iommu_ioas_allow_iovas, { ioas_id, __reserved: 1 })],
    [4, () => p.call(uapi.IOMMU_IOAS_MAP, uapi.iommu_ioas_map, { ioas_id, flags: 8 })],
    [5, () => p.call(uapi.IOMMU_IOAS_MAP, uapi.iommu_ioas_map, { ioas_id, flags: 7, __reserved: 1 })],
    [6, () => p.call(uapi.IOMMU_IOAS_COPY, uapi.iommu_ioas_copy, { flags: 8 })],
    [7, () => p.call(uapi.IOMMU_OPTION, uapi.iommu_option, { __reserved: 1 })],
    [8, () => p.call(uapi.IOMMU_OPTION, uapi.iommu_option, { option_id: 5 })],
    [9, () => p.call(uapi.IOMMU_VFIO_IOAS, uapi.iommu_vfio_ioas, { op: 3 })],
    [10, () => p.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.iommu_fault_alloc, { flags: 1 })],
    [11, () => p.call(uapi.IOMMU_IOAS_CHANGE_PROCESS, uapi.iommu_ioas_change_process, { __reserved: 1 })],
    [12, () => p.call(uapi.IOMMU_VIOMMU_ALLOC, uapi.iommu_viommu_alloc, { flags: 1, type: 1 })],
    [13, () => p.call(uapi.IOMMU_HWPT_INVALIDATE, uapi.iommu_hwpt_invalidate, { __reserved: 1 })],
  ];
  for (const [n, call] of cases) assert.equal(refusal(call), 'EOPNOTSUPP', `case ${n}`);
  p.end();
});

test('F-6: ids begin at 1, the lowest free one is taken, and a destroyed one is ENOENT', () => {
  const p = new TestProgram();
  assert.deepEqual([p.ioas(), p.ioas(), p.ioas()], [1, 2, 3]);
  p.destroy(2);
  for (const id of [2, 0, 4, 0xffff_ffff])
    assert.equal(
      refusal(() => p.destroy(id)),
      'ENOENT',
      String(id),
    );
  assert.equal(
    refusal(() => p.map(2, 0x1000n, 0x1000, 4096)),
    'ENOENT',
  );
  assert.equal(p.ioas(), 2);
  const fault = p.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.iommu_fault_alloc, {});
  assert.equal(fault.out_fault_id, 4);
  assert.equal(
    refusal(() => p.map(4, 0x1000n, 0x1000, 4096)),
    'ENOENT',
    'an object of another kind',
  );
  p.end();
});

test('requests for virtual IOMMUs, invalidation and dirty bits are refused in the order of their members', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  const viommu = (given: Partial<uapi.iommu_viommu_alloc>): string =>
    refusal(() => p.call(uapi.IOMMU_VIOMMU_ALLOC, uapi.iommu_viommu_alloc, given));
  assert.equal(viommu({ type: 1, dev_id: 99 }), 'ENOENT');
  assert.equal(viommu({ type: 1, dev_id: ioas }), 'ENOENT');
  assert.equal(viommu({ type: 1, dev_id: device.id }), 'EOPNOTSUPP');
  const queue = (given: Partial<uapi.iommu_hw_queue_alloc>): string =>
    refusal(() => p.call(uapi.IOMMU_HW_QUEUE_ALLOC, uapi.iommu_hw_queue_alloc, { type: 1, ...given }));
  assert.equal(queue({ type: 0 }), 'EOPNOTSUPP');
  assert.equal(queue({}), 'EINVAL');
  assert.equal(queue({ nesting_parent_iova: 2n ** 64n - 1n, length: 2n }), 'EOVERFLOW');
  assert.equal(queue({ length: 1n }), 'ENOENT');
  const events = (given: Partial<uapi.iommu_veventq_alloc>): string =>
    refusal(() => p.call(uapi.IOMMU_VEVENTQ_ALLOC, uapi.iommu_veventq_alloc, { type: 1, ...given }));
  assert.equal(events({}), 'EINVAL');
  assert.equal(events({ veventq_depth: 2 ** 19 + 1 }), 'EINVAL');
  assert.equal(events({ veventq_depth: 1 }), 'ENOENT');
  const invalidate = (given: Partial<uapi.iommu_hwpt_invalidate>): string =>
    refusal(() => p.call(uapi.IOMMU_HWPT_INVALIDATE, uapi.iommu_hwpt_invalidate, given));
  assert.equal(invalidate({ hwpt_id: 99 }), 'ENOENT');
  assert.equal(invalidate({ hwpt_id: ioas }), 'EINVAL');
  assert.equal(invalidate({ hwpt_id: 99, entry_num: 1, entry_len: 4, data_uptr: 0n }), 'EINVAL');
  assert.equal(invalidate({ hwpt_id: 99, entry_num: 2 ** 19 + 1, entry_len: 4, data_uptr: 8n }), 'EINVAL');
  device.unbind();
  p.end();
});

test('the file cannot be read, written or mapped', () => {
  const p = new TestProgram();
  assert.equal(
    refusal(() => p.file.read(p.task, new Uint8Array(8), 0)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.file.write(p.task, new Uint8Array(8), 0)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.file.mmap(p.task, 4096, 3, 1, 0)),
    'ENXIO',
  );
  assert.equal(
    refusal(() => p.file.mmap(p.task, 4096, 3, 2, 0)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.file.mmap(p.task, 4096, 7, 1, 0)),
    'EPERM',
  );
  p.end();
});
