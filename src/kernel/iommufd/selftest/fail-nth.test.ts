/**
 * What the kernel's `iommufd_fail_nth` does with its fault injection, done with named failpoints: a sequence of calls that succeeds is
 * repeated with its first, second, … point of failure failing, until nothing fails any more. Each failure is answered with its own errno, and
 * nothing is left behind.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../../lib/errno.ts';
import { failNth, failpoints } from '../../../lib/failpoint.ts';
import * as uapi from '../../../uapi/iommufd.ts';
import * as mock from '../../../uapi/iommufd-test.ts';
import { TestMemoryFile } from '../../core/test-task.ts';
import { MockProgram } from './test-mock.ts';

const PAGE = 4096n;
const BASE = BigInt(mock.MOCK_APERTURE_START);
const BUFFER = 16 * 4096;
const PIN = mock.MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES;
const seen = new Set<string>();

/** `prepare` cannot fail; `sequence` is swept. Returns how many points of failure it has. */
function sweep<T>(
  prepare: (p: MockProgram, buffer: number) => T,
  sequence: (p: MockProgram, buffer: number, prepared: T) => void,
): number {
  for (let n = 1; ; n++) {
    const p = new MockProgram();
    const buffer = p.task.memory.map(BUFFER);
    const prepared = prepare(p, buffer);
    let refused: Errno | undefined;
    let failed: readonly string[];
    {
      using order = failNth(n);
      try {
        sequence(p, buffer, prepared);
      } catch (error) {
        if (!(error instanceof Errno)) throw error;
        refused = error;
      }
      failed = order.failed;
    }
    if (failed.length === 0) {
      assert.equal(refused, undefined, 'the sequence succeeds when nothing fails');
      p.end();
      return n - 1;
    }
    const [name] = failed;
    seen.add(name!);
    const { code } = failpoints.find((point) => point.name === name)!;
    assert.equal(refused?.code, code, `the failure at ${name} (point ${n}) is told`);
    p.end();
  }
}

const nothing = (): void => {};

test('fail_nth basic: an address space, its ranges, map, copy, unmap', () => {
  const points = sweep(nothing, (p, buffer) => {
    const ioas = p.ioas();
    p.ranges(ioas);
    p.allow(ioas, [[16384n, 0x100_0000n]]);
    const iova = p.map(ioas, undefined, buffer, BUFFER);
    p.copy(ioas, undefined, ioas, iova, 4096n);
    p.unmap(ioas, iova, BigInt(BUFFER));
  });
  assert.ok(points >= 12, String(points));
});

test('fail_nth map_domain: maps with one page table, and a page table with maps', () => {
  const points = sweep(
    (p) => p.ioas(),
    (p, buffer, ioas) => {
      const { stdev } = p.device(ioas);
      p.map(ioas, undefined, buffer, BUFFER);
      p.destroy(stdev);
      p.device(ioas);
    },
  );
  assert.ok(points >= 20, String(points));
});

test('fail_nth map_file_domain', () => {
  const points = sweep(
    (p) => ({ ioas: p.ioas(), fd: p.task.open(new TestMemoryFile(BUFFER)).descriptor }),
    (p, _buffer, { ioas, fd }) => {
      const { stdev } = p.device(ioas);
      p.mapFile(ioas, BASE, fd, 0n, BigInt(BUFFER));
      p.destroy(stdev);
      p.device(ioas);
    },
  );
  assert.ok(points >= 20, String(points));
});

test('fail_nth map_two_domains', () => {
  const points = sweep(
    (p) => {
      const ioas = p.ioas();
      return { ioas, ...p.device(ioas) };
    },
    (p, buffer, { ioas, hwpt, idev, stdev }) => {
      const other = p.hwpt(idev, ioas);
      const second = p.device(other);
      p.map(ioas, undefined, buffer, BUFFER);
      p.replace(stdev, other);
      p.destroy(stdev);
      p.destroy(second.stdev);
      p.device(ioas);
      assert.notEqual(hwpt, other);
    },
  );
  assert.ok(points >= 25, String(points));
});

test('fail_nth access_rw', () => {
  const points = sweep(
    (p, buffer) => {
      const ioas = p.ioas();
      return { ioas, iova: p.map(ioas, undefined, buffer, BUFFER), into: p.task.memory.map(BUFFER) };
    },
    (p, _buffer, { ioas, iova, into }) => {
      const access = p.access(ioas);
      for (const flags of [0, mock.MOCK_ACCESS_RW_WRITE, mock.MOCK_ACCESS_RW_SLOW_PATH]) {
        p.rw(access, iova, 64n, into, flags);
      }
      p.rw(access, iova, BigInt(BUFFER), into);
      p.task.close(access);
    },
  );
  assert.ok(points >= 8, String(points));
});

test('fail_nth access_pin, access_pin_domain', () => {
  for (const hasDomain of [false, true]) {
    const points = sweep(
      (p, buffer) => {
        const ioas = p.ioas();
        if (hasDomain) p.device(ioas);
        const iova = p.map(ioas, undefined, buffer, BUFFER);
        return { access: p.access(ioas, PIN), iova };
      },
      (p, buffer, { access, iova }) => {
        const id = p.pages(access, iova, BigInt(BUFFER), buffer);
        p.unpinPages(access, id);
        p.task.close(access);
      },
    );
    assert.ok(points >= 2, String(points));
  }
});

test('fail_nth device: page tables of all kinds, PASIDs, virtual IOMMU, queues, events', () => {
  const points = sweep(
    (p) => ({ ioas: p.ioas(), other: p.ioas() }),
    (p, buffer, { ioas, other }) => {
      p.map(ioas, BASE, buffer, BUFFER);
      const { stdev, idev } = p.device(ioas, mock.MOCK_FLAGS_DEVICE_PASID);
      p.call(uapi.IOMMU_GET_HW_INFO, uapi.iommu_hw_info, { dev_id: idev });
      p.replace(stdev, other);
      const parent = p.hwpt(idev, ioas, { flags: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT | uapi.IOMMU_HWPT_ALLOC_PASID });
      p.replace(stdev, parent);
      const viommu = p.viommu(idev, parent, true);
      p.vdevice(viommu, idev, 5n);
      p.hwQueue(viommu, 0, BASE, PAGE);
      const fault = p.faultQueue();
      const given = { flags: uapi.IOMMU_HWPT_FAULT_ID_VALID | uapi.IOMMU_HWPT_ALLOC_PASID, fault_id: fault.id };
      const nested = p.nested(idev, viommu, given);
      p.replace(stdev, nested);
      p.iopf(idev);
      p.veventq(viommu);
      p.vevent(idev);
      p.pasid(mock.IOMMU_TEST_OP_PASID_ATTACH, stdev, 100, parent);
      p.pasid(mock.IOMMU_TEST_OP_PASID_REPLACE, stdev, 100, nested);
      p.pasid(mock.IOMMU_TEST_OP_PASID_DETACH, stdev, 100);
      p.destroy(stdev);
    },
  );
  assert.ok(points >= 60, String(points));
});

test('fail_nth: dma-buf maps and dirty tracking', () => {
  const points = sweep(
    (p) => p.ioas(),
    (p, buffer, ioas) => {
      const { idev } = p.device(ioas);
      p.map(ioas, BASE, buffer, BUFFER);
      const fd = p.dmabuf(8192);
      p.mapFile(ioas, BASE + 0x10_0000n, fd, 0n, 8192n);
      const hwpt_id = p.hwpt(idev, ioas, { flags: uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING });
      p.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.iommu_hwpt_set_dirty_tracking, { hwpt_id, flags: 1 });
      p.revoke(fd, 1);
    },
  );
  assert.ok(points >= 20, String(points));
});

test('every failpoint of iommufd was on one of these ways', () => {
  const all = failpoints.map(({ name }) => name).filter((name) => /^iommufd(_mock)?:/.test(name));
  assert.deepEqual(
    all.filter((name) => !seen.has(name)),
    [],
  );
});
