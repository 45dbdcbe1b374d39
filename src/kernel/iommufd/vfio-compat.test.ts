import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../../uapi/iommufd.ts';
import * as vfio from '../../uapi/vfio.ts';
import { refusal } from '../core/test-task.ts';
import { TestIommu, TestProgram } from './test-iommu.ts';
import { compatIoasId, createCompatIoas, setNoIommu } from './vfio-compat.ts';

const RW = vfio.VFIO_DMA_MAP_FLAG_READ | vfio.VFIO_DMA_MAP_FLAG_WRITE;

function container(type = vfio.VFIO_TYPE1v2_IOMMU): TestProgram {
  const p = new TestProgram();
  createCompatIoas(p.file);
  p.task.ioctl(p.file, vfio.VFIO_SET_IOMMU, type);
  return p;
}

function mapDma(p: TestProgram, iova: bigint, vaddr: number, size: number, flags = RW): void {
  const { size: argsz } = vfio.vfio_iommu_type1_dma_map;
  const map = { argsz, flags, vaddr: BigInt(vaddr), iova, size: BigInt(size) };
  p.task.ioctl(p.file, vfio.VFIO_IOMMU_MAP_DMA, vfio.vfio_iommu_type1_dma_map.write(map));
}

/** The refusal, or `ok`, and the size afterwards. */
function unmapDma(p: TestProgram, iova: bigint, size: bigint, flags = 0): [string, bigint] {
  const bytes = vfio.vfio_iommu_type1_dma_unmap.write({ argsz: 24, flags, iova, size });
  const answer = refusal(() => p.task.ioctl(p.file, vfio.VFIO_IOMMU_UNMAP_DMA, bytes));
  return [answer, vfio.vfio_iommu_type1_dma_unmap.read(bytes).size];
}

test('the container of a fresh iommufd: extensions are known, the rest is ENODEV', () => {
  const p = new TestProgram();
  const call = (request: number, argument: bigint | number | Uint8Array = 0): number | string => {
    let answer: number | undefined;
    const error = refusal(() => {
      answer = p.task.ioctl(p.file, request, argument);
    });
    return answer ?? error;
  };
  assert.equal(call(vfio.VFIO_GET_API_VERSION), 0);
  const extensions = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11].map((n) => call(vfio.VFIO_CHECK_EXTENSION, n));
  assert.deepEqual(extensions, [0, 1, 0, 1, 'ENODEV', 0, 0, 0, 1, 1, 0, 0]);
  assert.equal(call(vfio.VFIO_SET_IOMMU, 3), 'ENODEV');
  assert.equal(call(vfio.VFIO_SET_IOMMU, 2), 'EINVAL');
  assert.equal(call(vfio.VFIO_SET_IOMMU, 8), 'EINVAL');
  const info = vfio.vfio_iommu_type1_info.write({ argsz: 24, flags: 0, iova_pgsizes: 0n, cap_offset: 0, pad: 0 });
  assert.equal(call(vfio.VFIO_IOMMU_GET_INFO, info), 'ENODEV');
  assert.equal(call(vfio.VFIO_IOMMU_DIRTY_PAGES, info), 'ENOTTY');
  assert.equal(
    refusal(() => compatIoasId(p.file)),
    'ENODEV',
  );
  createCompatIoas(p.file);
  createCompatIoas(p.file);
  assert.equal(compatIoasId(p.file), 1);
  assert.equal(call(vfio.VFIO_CHECK_EXTENSION, vfio.VFIO_DMA_CC_IOMMU), 1, 'no table that is not coherent');
  assert.equal(call(vfio.VFIO_SET_IOMMU, 3), 0);
  assert.equal(call(vfio.VFIO_SET_IOMMU, 1), 0);
  p.end();
});

test('VFIO_IOAS names, sets and clears the address space of the container', () => {
  const p = new TestProgram();
  const call = (op: number, ioas_id = 0): number =>
    p.call(uapi.IOMMU_VFIO_IOAS, uapi.iommu_vfio_ioas, { op, ioas_id }).ioas_id;
  assert.equal(
    refusal(() => call(uapi.IOMMU_VFIO_IOAS_GET)),
    'ENODEV',
  );
  assert.equal(
    refusal(() => call(uapi.IOMMU_VFIO_IOAS_SET, 99)),
    'ENOENT',
  );
  const ioas = p.ioas();
  call(uapi.IOMMU_VFIO_IOAS_SET, ioas);
  assert.equal(call(uapi.IOMMU_VFIO_IOAS_GET), ioas);
  call(uapi.IOMMU_VFIO_IOAS_CLEAR);
  assert.equal(
    refusal(() => call(uapi.IOMMU_VFIO_IOAS_GET)),
    'ENODEV',
  );
  call(uapi.IOMMU_VFIO_IOAS_SET, ioas);
  p.destroy(ioas);
  assert.equal(
    refusal(() => call(uapi.IOMMU_VFIO_IOAS_GET)),
    'ENODEV',
    'it went with its number',
  );
  p.end();
});

test('F-40: a container program maps, looks and unmaps as on the native container', () => {
  const p = container();
  const device = p.bind(new TestIommu({ canEnforceCoherency: true }));
  device.attach(compatIoasId(p.file));
  assert.equal(p.task.ioctl(p.file, vfio.VFIO_CHECK_EXTENSION, vfio.VFIO_DMA_CC_IOMMU), 1);
  const memory = p.task.memory.map(0x4000);
  mapDma(p, 0x10000n, memory, 0x4000);
  assert.equal(
    refusal(() => mapDma(p, 0x12000n, memory, 0x1000)),
    'EEXIST',
  );
  assert.equal(
    refusal(() => mapDma(p, 0x20000n, memory, 0x1000, 4)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => mapDma(p, 0x20000n, memory, 0)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => mapDma(p, 0x20000n, 0x1000, 0x1000)),
    'EFAULT',
  );
  assert.deepEqual(unmapDma(p, 0x10000n, 0x1000n), ['ENOENT', 0n]);
  assert.deepEqual(unmapDma(p, 0x10000n, 0n), ['EINVAL', 0n]);
  assert.deepEqual(unmapDma(p, 0x10000n, 0x4000n), ['ok', 0x4000n]);
  assert.deepEqual(unmapDma(p, 0x10000n, 0x4000n), ['ok', 0n], 'nothing there is fine');
  mapDma(p, 0x10000n, memory, 0x1000);
  mapDma(p, 0x11000n, memory, 0x3000);
  // The map before the one that is cut is gone and counted.
  assert.deepEqual(unmapDma(p, 0x10000n, 0x2000n), ['ENOENT', 0x1000n]);
  assert.deepEqual(unmapDma(p, 0n, 1n, vfio.VFIO_DMA_UNMAP_FLAG_ALL), ['EINVAL', 1n]);
  assert.deepEqual(unmapDma(p, 0n, 0n, vfio.VFIO_DMA_UNMAP_FLAG_ALL), ['ok', 0x3000n]);
  device.unbind();
  p.end();
});

test('type 1 cuts maps where it is told to; their pages stay pinned until the last part is gone', () => {
  const p = container(vfio.VFIO_TYPE1_IOMMU);
  const device = p.bind(new TestIommu());
  device.attach(compatIoasId(p.file));
  const domain = (device.iommu as TestIommu).domain!;
  const memory = p.task.memory.map(0x8000);
  domain.room = 5;
  assert.equal(
    refusal(() => mapDma(p, 0x10000n, memory, 0x8000)),
    'ENOMEM',
  );
  assert.deepEqual([domain.pages.size, p.task.mm.pins], [0, 0], 'nothing stays of a map that fails half-way');
  domain.room = 8;
  mapDma(p, 0x10000n, memory, 0x8000);
  assert.deepEqual(unmapDma(p, 0x12000n, 0x2000n), ['ok', 0x2000n]);
  assert.deepEqual([domain.pages.size, p.task.mm.pins, p.core.userLocked.pages], [6, 6, 6]);
  assert.deepEqual(unmapDma(p, 0x10000n, 0x1000n), ['ok', 0x1000n]);
  assert.deepEqual(unmapDma(p, 0x17000n, 0x9000n), ['ok', 0x1000n]);
  assert.equal(unmapDma(p, 0x14800n, 0x1000n)[0], 'EINVAL', 'not at a page');
  assert.deepEqual(unmapDma(p, 0n, 0n, vfio.VFIO_DMA_UNMAP_FLAG_ALL), ['ok', 0x4000n]);
  assert.equal(p.task.mm.pins, 0);
  device.unbind();
  p.end();
});

test('information is as long as it is; capabilities are written as far as there is room', () => {
  const p = container();
  const at = p.task.memory.map(4096);
  const info = (argsz: number): { head: vfio.vfio_iommu_type1_info; bytes: Uint8Array } => {
    const bytes = new Uint8Array(0x100).fill(0xcc);
    new DataView(bytes.buffer).setUint32(0, argsz, true);
    p.task.memory.write(at, bytes);
    p.task.ioctl(p.file, vfio.VFIO_IOMMU_GET_INFO, at);
    p.task.memory.read(at, bytes);
    return { head: vfio.vfio_iommu_type1_info.read(bytes), bytes };
  };
  assert.equal(
    refusal(() => info(15)),
    'EINVAL',
  );
  const short = info(16);
  assert.deepEqual([short.head.argsz, short.head.flags], [0x48, 3]);
  assert.equal(short.bytes[16], 0xcc);
  const { head, bytes } = info(0x100);
  assert.deepEqual(head, { argsz: 0x48, flags: 3, iova_pgsizes: 0xffff_ffff_ffff_f000n, cap_offset: 0x18, pad: 0 });
  assert.equal(Buffer.from(bytes.subarray(24, 36)).toString('hex'), '030001002800000' + '0ffffffff');
  assert.equal(
    Buffer.from(bytes.subarray(40, 72)).toString('hex'),
    '01000100000000000100000000000000' + '0000000000000000ffffffffffffffff',
  );
  assert(bytes.subarray(72).every((byte) => byte === 0xcc));
  const middle = info(0x40);
  assert.deepEqual([middle.head.argsz, middle.head.cap_offset], [0x48, 0]);
  assert.equal(middle.bytes[24], 3, 'the first capability has room');
  assert.equal(middle.bytes[40], 0xcc, 'the second has not');
  const device = p.bind(new TestIommu());
  device.attach(compatIoasId(p.file));
  assert.equal(info(24).head.iova_pgsizes, 0x4020_1000n);
  assert.equal(info(0x100).head.argsz, 0x58, 'two ranges');
  device.unbind();
  p.end();
});

test('an iommufd is the container of groups with an IOMMU or of one without', () => {
  const p = new TestProgram({ capabilities: ['CAP_SYS_RAWIO'] });
  setNoIommu(p.file);
  assert.equal(
    refusal(() => createCompatIoas(p.file)),
    'EINVAL',
  );
  const extension = (n: number): number => p.task.ioctl(p.file, vfio.VFIO_CHECK_EXTENSION, n);
  assert.deepEqual([1, 3, 8, 9].map(extension), [0, 0, 1, 0]);
  assert.equal(
    refusal(() => p.task.ioctl(p.file, vfio.VFIO_SET_IOMMU, 3)),
    'EINVAL',
  );
  assert.equal(p.task.ioctl(p.file, vfio.VFIO_SET_IOMMU, 8), 0);
  p.task.capabilities.clear();
  assert.equal(
    refusal(() => p.task.ioctl(p.file, vfio.VFIO_SET_IOMMU, 8)),
    'EPERM',
  );
  const with_iommu = new TestProgram();
  createCompatIoas(with_iommu.file);
  assert.equal(
    refusal(() => setNoIommu(with_iommu.file)),
    'EINVAL',
  );
  with_iommu.end();
  p.end();
});
