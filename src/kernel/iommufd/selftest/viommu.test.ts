/** Virtual IOMMUs, their devices, events and queues, on the mock driver: section 7 of the iommufd specification. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../../../uapi/iommufd.ts';
import * as mock from '../../../uapi/iommufd-test.ts';
import { refusal } from '../../core/test-task.ts';
import { MockProgram } from './test-mock.ts';

const BASE = BigInt(mock.MOCK_APERTURE_START);

function withParent(): { p: MockProgram; ioas: number; stdev: number; idev: number; parent: number } {
  const p = new MockProgram();
  const ioas = p.ioas();
  const { stdev, idev } = p.device(ioas);
  const parent = p.hwpt(idev, ioas, { flags: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT });
  return { p, ioas, stdev, idev, parent };
}

test('a virtual IOMMU needs a nesting parent, a known type and no flags', () => {
  const { p, ioas, idev, parent, stdev } = withParent();
  const alloc = (given: Partial<uapi.iommu_viommu_alloc>): string =>
    refusal(() =>
      p.call(uapi.IOMMU_VIOMMU_ALLOC, uapi.iommu_viommu_alloc, {
        type: mock.IOMMU_VIOMMU_TYPE_SELFTEST,
        dev_id: idev,
        hwpt_id: parent,
        ...given,
      }),
    );
  assert.equal(alloc({ flags: 1 }), 'EOPNOTSUPP');
  assert.equal(alloc({ type: 0 }), 'EOPNOTSUPP');
  assert.equal(alloc({ type: 5 }), 'EOPNOTSUPP');
  assert.equal(alloc({ dev_id: 99 }), 'ENOENT');
  assert.equal(alloc({ hwpt_id: 99 }), 'ENOENT');
  const plain = p.hwpt(idev, ioas);
  assert.equal(alloc({ hwpt_id: plain }), 'EINVAL');
  const viommu = p.viommu(idev, parent);
  assert.equal(
    refusal(() => p.destroy(parent)),
    'EBUSY',
  );
  const nested = p.nested(idev, viommu);
  assert.equal(
    refusal(() => p.replace(stdev, nested)),
    'ENOENT',
    'the guest does not know the device',
  );
  p.vdevice(viommu, idev, 5n);
  p.replace(stdev, nested);
  assert.equal(
    refusal(() => p.destroy(viommu)),
    'EBUSY',
  );
  p.replace(stdev, ioas);
  p.destroy(nested);
  p.destroy(stdev);
  p.destroy(viommu);
  p.destroy(parent);
  p.end();
});

test('a virtual device: one for each device, each number once; it goes with the device and its id stays dead', () => {
  const { p, ioas, idev, parent, stdev } = withParent();
  const viommu = p.viommu(idev, parent);
  const first = p.vdevice(viommu, idev, 0x99n);
  assert.equal(
    refusal(() => p.vdevice(viommu, idev, 0x88n)),
    'EEXIST',
  );
  const other = p.device(ioas);
  assert.equal(
    refusal(() => p.vdevice(viommu, other.idev, 0x99n)),
    'EEXIST',
  );
  const second = p.vdevice(viommu, other.idev, 0x88n);
  assert.equal(
    refusal(() => p.destroy(viommu)),
    'EBUSY',
  );
  p.destroy(second);
  p.destroy(other.stdev);
  p.destroy(stdev);
  assert.equal(
    refusal(() => p.destroy(first)),
    'ENOENT',
  );
  p.ioas();
  assert.equal(p.file.context.objects.get(first), undefined, 'the number is not given again');
  p.destroy(viommu);
  p.end();
});

test('virtual events: a number for each, LOST when the queue is full, and no gap afterwards', () => {
  const { p, idev, parent, stdev } = withParent();
  const viommu = p.viommu(idev, parent);
  assert.equal(
    refusal(() => p.veventq(viommu, 0)),
    'EINVAL',
  );
  const { id, fd } = p.veventq(viommu, 2);
  assert.equal(
    refusal(() => p.veventq(viommu, 2)),
    'EEXIST',
  );
  assert.equal(
    refusal(() => p.vevent(idev)),
    'ENOENT',
    'no table of the guest is attached',
  );
  p.vdevice(viommu, idev, 0x99n);
  p.replace(stdev, p.nested(idev, viommu));
  const queue = p.opened(fd);
  const read = (room = 100): string => {
    assert.ok(queue.isEventQueue);
    const into = new Uint8Array(room);
    const length = queue.read(p.task, into, 0);
    const found: string[] = [];
    for (let at = 0; at < length; ) {
      const { flags, sequence } = uapi.iommufd_vevent_header.read(into.subarray(at, at + 8));
      at += 8;
      if ((flags & uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS) !== 0) {
        found.push(`lost ${sequence}`);
        continue;
      }
      found.push(
        `${sequence}:${mock.iommu_viommu_event_selftest.read(into.subarray(at, at + 4)).virt_id.toString(16)}`,
      );
      at += 4;
    }
    return found.join(' ');
  };
  p.vevent(idev);
  assert.equal(read(), '0:99');
  for (let i = 0; i < 5; i++) p.vevent(idev);
  assert.equal(read(12), '1:99');
  assert.equal(read(), '2:99 lost 5');
  p.vevent(idev);
  assert.equal(read(), '6:99');
  assert.equal(read(), '');
  assert.equal(
    refusal(() => p.destroy(id)),
    'EBUSY',
    'the descriptor is open',
  );
  p.task.close(fd);
  p.destroy(id);
  p.end();
});

test('hardware queues: mapped and contiguous memory, in order, each index once, and the pages stay', () => {
  const { p, ioas, idev, parent } = withParent();
  const buffer = p.task.memory.map(8 * 4096);
  p.map(ioas, BASE, buffer, 8 * 4096);
  const viommu = p.viommu(idev, parent);
  const alloc = (given: Partial<uapi.iommu_hw_queue_alloc>): string =>
    refusal(() =>
      p.call(uapi.IOMMU_HW_QUEUE_ALLOC, uapi.iommu_hw_queue_alloc, {
        viommu_id: viommu,
        type: mock.IOMMU_HW_QUEUE_TYPE_SELFTEST,
        nesting_parent_iova: BASE,
        length: 4096n,
        ...given,
      }),
    );
  assert.equal(alloc({ flags: 1 }), 'EOPNOTSUPP');
  assert.equal(alloc({ type: 0 }), 'EOPNOTSUPP');
  assert.equal(alloc({ type: 0, length: 0n }), 'EOPNOTSUPP');
  assert.equal(alloc({ length: 0n }), 'EINVAL');
  assert.equal(alloc({ nesting_parent_iova: 2n ** 64n - 1n, length: 2n }), 'EOVERFLOW');
  assert.equal(alloc({ viommu_id: 99 }), 'ENOENT');
  assert.equal(alloc({ type: 1 }), 'EOPNOTSUPP');
  assert.equal(alloc({ nesting_parent_iova: BASE + 0x10_0000n }), 'ENOENT');
  assert.equal(alloc({ index: 2 }), 'EINVAL');
  assert.equal(alloc({ index: 1 }), 'EIO');
  const first = p.hwQueue(viommu, 0, BASE, 4096n);
  assert.equal(alloc({}), 'EEXIST');
  const second = p.hwQueue(viommu, 1, BASE, 4096n);
  assert.equal(
    refusal(() => p.unmap(ioas, BASE, 8n * 4096n)),
    'EBUSY',
    'the area is locked while a queue has it',
  );
  assert.equal(
    refusal(() => p.destroy(first)),
    'EBUSY',
    'the second queue needs the first',
  );
  p.destroy(second);
  p.destroy(first);
  assert.equal(p.unmap(ioas, BASE, 8n * 4096n), 8n * 4096n);
  p.destroy(viommu);
  p.end();
});

test('a dma-buf is mapped by page table alone, revoked and given back', () => {
  const { p, ioas } = withParent();
  const fd = p.dmabuf(8192);
  p.mapFile(ioas, BASE, fd, 0n, 8192n);
  p.revoke(fd, 1);
  const late = p.ioas();
  assert.equal(
    refusal(() => p.mapFile(late, BASE, fd, 0n, 8192n)),
    'ENODEV',
  );
  p.revoke(fd, 0);
  p.mapFile(late, BASE, fd, 0n, 8192n);
  const access = p.access(late);
  assert.equal(
    refusal(() => p.rw(access, BASE, 16n, p.task.memory.map(4096))),
    'EINVAL',
    'a program’s access does not reach it',
  );
  p.end();
});
