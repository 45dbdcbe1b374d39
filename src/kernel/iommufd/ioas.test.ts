import assert from 'node:assert/strict';
import { test } from 'node:test';
import { privateShared } from '../../hw/memory/backing.ts';
import * as uapi from '../../uapi/iommufd.ts';
import { refusal, TestMemoryFile, TestTask } from '../core/test-task.ts';
import { TestIommu, TestProgram } from './test-iommu.ts';

const READ = uapi.IOMMU_IOAS_MAP_READABLE;
const WRITE = uapi.IOMMU_IOAS_MAP_WRITEABLE;
const MAX = 2n ** 64n - 1n;

test('F-10: a fixed map over an area is EEXIST and leaves the area alone', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  const memory = p.task.memory.map(0x10000);
  p.map(ioas, 0x40000n, memory, 0x4000);
  for (const [iova, length] of [
    [0x40000n, 0x1000],
    [0x3f000n, 0x2000],
    [0x43000n, 0x2000],
    [0x3f000n, 0x8000],
    [0x43fffn, 1],
  ] as const) {
    assert.equal(
      refusal(() => p.map(ioas, iova, memory, length)),
      'EEXIST',
    );
  }
  p.map(ioas, 0x44000n, memory, 0x1000);
  assert.equal(p.unmap(ioas, 0x40000n, 0x4000n), 0x4000n);
  p.end();
});

test('F-11: automatic addresses are never 0, never overlap, and are aligned as their memory is', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  assert.equal(p.map(ioas, undefined, 0x1000, 4096), 0x1000n);
  assert.equal(p.map(ioas, undefined, 0x20_0000, 0x20_0000), 0x20_0000n);
  assert.equal(p.map(ioas, undefined, 0x1000, 4096), 0x2000n);
  assert.equal(p.map(ioas, undefined, 0x1234, 100), 0x3234n, 'the offset in the page stays');
  // Without a hole between: the pages that are touched overlap nothing.
  assert.equal(p.map(ioas, undefined, 0x4000_0000, 0x4000_0000), 0x40_0000n, 'never more than 2 MiB');
  const taken = [...(p.file.context.get(ioas) as import('./ioas.ts').Ioas).iopt.areas];
  for (let i = 1; i < taken.length; i++) assert(taken[i - 1]!.last < taken[i]!.first);
  assert.equal(
    refusal(() => p.map(ioas, undefined, 0x1000, 2n ** 63n)),
    'EOVERFLOW',
  );
  p.end();
});

test('F-12 F-13: unmap removes whole areas only, and something has to be there', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  assert.equal(p.unmap(ioas, 0n, MAX), 0n);
  p.map(ioas, 0x40_0000n, 0x1000, 0x8000);
  for (const [iova, length] of [
    [0x40_0000n, 0x1000n],
    [0x40_1000n, 0x2000n],
    [0x40_7000n, 0x10000n],
    [0x40_0000n, 0x7fffn],
  ] as const) {
    assert.equal(
      refusal(() => p.unmap(ioas, iova, length)),
      'ENOENT',
    );
  }
  assert.equal(
    refusal(() => p.unmap(ioas, 0x50_0000n, 0x1000n)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => p.unmap(ioas, 0x40_0000n, 0n)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.unmap(ioas, MAX - 0xfffn, 0x2000n)),
    'EOVERFLOW',
  );
  assert.equal(
    refusal(() => p.unmap(ioas, 1n, MAX)),
    'EOVERFLOW',
  );
  assert.equal(p.unmap(ioas, 0x3f_f000n, 0xa000n), 0x8000n);
  // What comes before the area that is cut goes all the same.
  p.map(ioas, 0x1000n, 0x1000, 0x1000);
  p.map(ioas, 0x3000n, 0x1000, 0x2000);
  assert.equal(
    refusal(() => p.unmap(ioas, 0x1000n, 0x3000n)),
    'ENOENT',
  );
  assert.equal(p.unmap(ioas, 0n, MAX), 0x2000n);
  p.end();
});

test('a map is checked in the order of the kernel; without a page table memory is not looked at', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  const map = (flags: number, user_va: bigint, length: bigint, iova: bigint, ioas_id = ioas): string =>
    refusal(() => p.call(uapi.IOMMU_IOAS_MAP, uapi.iommu_ioas_map, { flags, ioas_id, user_va, length, iova }));
  assert.equal(map(0, 0x1000n, 4096n, 0n), 'EINVAL');
  assert.equal(map(1, 0x1000n, 4096n, 0x4000n), 'EINVAL');
  assert.equal(map(7, 0x1000n, 4096n, 0n, 99), 'ENOENT');
  assert.equal(map(7, 0x1000n, 0n, 0n), 'EINVAL');
  assert.equal(map(7, 0x1000n, MAX - 4095n, 0n), 'EOVERFLOW');
  assert.equal(map(7, MAX - 4095n, 0x2000n, 0x4000n), 'EOVERFLOW');
  assert.equal(map(7, 0x1000n, 0x2000n, MAX - 4095n), 'EOVERFLOW');
  assert.equal(map(7, 0x1000n, MAX, 0n), 'EOVERFLOW');
  assert.equal(map(7, 0x1000n, 4096n, MAX), 'EOVERFLOW');
  assert.equal(map(7, 0xdead_0000n, 4096n, MAX - 4095n), 'ok', 'the last page');
  assert.equal(map(7, 0x1001n, 1n, 0x50_0001n), 'ok', 'one byte');
  assert.equal(map(7, 0x1007n, 3000n, 0x60_0005n), 'ok', 'another offset than the memory');
  assert.equal(p.task.mm.pins, 0);
  assert.equal(p.task.memory.vmaCalls, 0);
  p.end();
});

test('F-14: a copy shares the pages: nothing is counted twice and the source may go', () => {
  const p = new TestProgram({ memlockLimit: 8 * 4096 });
  const device = p.bind(new TestIommu());
  const [source, destination] = [p.ioas(), p.ioas()];
  const memory = p.task.memory.map(8 * 4096, 0x10_0000);
  p.map(source, 0x10_0000n, memory, 8 * 4096);
  const hwpt = device.attach(source);
  assert.equal(p.core.userLocked.pages, 8);
  assert.equal(p.copy(source, undefined, source, 0x10_0000n, 0x8000n), 0x8000n);
  assert.equal(p.core.userLocked.pages, 8);
  p.copy(destination, 0x20_0000n, source, 0x10_0000n, 0x8000n);
  p.copy(destination, 0x30_0000n, source, 0x10_2000n, 0x1000n);
  p.unmap(source, 0n, MAX);
  assert.equal(p.task.mm.pins, 0, 'the destination has no page table');
  device.replace(destination);
  assert.equal(p.core.userLocked.pages, 8);
  assert.equal(p.task.mm.pins, 8);
  const domain = (device.iommu as TestIommu).domain!;
  assert.equal(domain.physicalOf(0x300), domain.physicalOf(0x202));
  assert.equal(domain.pages.size, 9);
  assert.equal(
    refusal(() => p.destroy(hwpt)),
    'ENOENT',
    'the automatic table went',
  );
  device.unbind();
  p.end();
});

test('a copy needs a source without holes and a free destination', () => {
  const p = new TestProgram();
  const [source, destination] = [p.ioas(), p.ioas()];
  p.map(source, 0x1000n, 0x10000, 0x2000);
  p.map(source, 0x3000n, 0x20000, 0x1000);
  p.map(source, 0x5000n, 0x30000, 0x1000);
  p.copy(destination, 0x10000n, source, 0x1800n, 0x2000n);
  assert.equal(
    refusal(() => p.copy(destination, 0x80000n, source, 0x1000n, 0x4000n)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => p.copy(destination, 0x80000n, source, 0x1000n, 0n)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.copy(destination, 0x11000n, source, 0x1000n, 0x1000n)),
    'EEXIST',
  );
  assert.equal(
    refusal(() => p.copy(99, 0x80000n, source, 0x1000n, 0x1000n)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => p.copy(destination, 0x80000n, 99, 0x1000n, 0x1000n)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => p.copy(destination, 0x80000n, source, 0x1000n, MAX)),
    'EOVERFLOW',
  );
  assert.equal(
    refusal(() => p.copy(destination, 0x80000n, source, 0x1000n, 0x1000n, 0)),
    'EINVAL',
  );
  // A copy of several areas is as many areas.
  assert.equal(
    refusal(() => p.unmap(destination, 0x10000n, 0x1000n)),
    'ENOENT',
  );
  assert.equal(p.unmap(destination, 0x10000n, 0x1800n), 0x1800n);
  assert.equal(p.unmap(destination, 0n, MAX), 0x800n);
  p.end();
});

test('F-15: a copy cannot gain write permission', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  p.map(ioas, 0x1000n, 0x10000, 0x1000, READ);
  assert.equal(
    refusal(() => p.copy(ioas, 0x8000n, ioas, 0x1000n, 0x1000n, READ | WRITE)),
    'EPERM',
  );
  p.copy(ioas, 0x8000n, ioas, 0x1000n, 0x1000n, READ);
  p.end();
});

test('F-16: automatic addresses stay inside the allowed ranges', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  const memory = 0x10_0000;
  p.allow(ioas, [
    [0x40_0000n, 0x40_1fffn],
    [0x10_0000n, 0x1f_ffffn],
  ]);
  assert.equal(p.map(ioas, undefined, memory, 0x8_0000), 0x10_0000n);
  assert.equal(p.map(ioas, undefined, memory, 0x8_0000), 0x18_0000n);
  assert.equal(p.map(ioas, undefined, memory, 0x1000), 0x40_0000n);
  assert.equal(p.map(ioas, undefined, memory, 0x1000), 0x40_1000n);
  assert.equal(
    refusal(() => p.map(ioas, undefined, memory, 0x1000)),
    'ENOSPC',
  );
  p.map(ioas, 0x800_0000n, memory, 0x1000);
  p.allow(ioas, []);
  assert.equal(p.map(ioas, undefined, memory, 0x1000), 0x1000n);
  assert.equal(
    refusal(() => p.allow(ioas, [[2n, 1n]])),
    'EINVAL',
  );
  assert.equal(
    refusal(() =>
      p.allow(ioas, [
        [1n, 9n],
        [5n, 20n],
      ]),
    ),
    'EINVAL',
  );
  assert.equal(
    refusal(() =>
      p.allow(ioas, [
        [5n, 20n],
        [1n, 5n],
      ]),
    ),
    'EINVAL',
  );
  p.end();
});

test('F-17 F-18: what a device reserves can be neither mapped nor allowed, and splits the usable ranges', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  assert.deepEqual(p.ranges(ioas), { text: '0-ffffffffffffffff', count: 1, alignment: 1n });
  device.attach(ioas);
  assert.deepEqual(p.ranges(ioas), {
    text: '0-fedfffff fef00000-ffffffffffff',
    count: 2,
    alignment: 4096n,
  });
  const memory = p.task.memory.map(0x2000);
  for (const iova of [0xfee0_0000n, 0xfedf_f000n, 0xfeef_f000n, 2n ** 48n, 2n ** 57n]) {
    assert.equal(
      refusal(() => p.map(ioas, iova, memory, 0x2000)),
      'EINVAL',
      iova.toString(16),
    );
  }
  assert.equal(
    refusal(() => p.allow(ioas, [[0xfee0_0000n, 0xfee0_ffffn]])),
    'EADDRINUSE',
  );
  assert.equal(
    refusal(() => p.ranges(ioas, 0)),
    'EMSGSIZE',
  );
  const bytes = uapi.iommu_ioas_iova_ranges.write({
    size: 32,
    ioas_id: ioas,
    num_iovas: 1,
    __reserved: 0,
    allowed_iovas: BigInt(memory),
    out_iova_alignment: 0n,
  });
  assert.equal(
    refusal(() => p.task.ioctl(p.file, uapi.IOMMU_IOAS_IOVA_RANGES, bytes)),
    'EMSGSIZE',
  );
  assert.equal(uapi.iommu_ioas_iova_ranges.read(bytes).num_iovas, 2, 'the count comes back with the refusal');
  device.unbind();
  assert.equal(p.ranges(ioas).count, 1);
  p.end();
});

test('F-20: the accounting mode is set before any object exists and needs its privilege', () => {
  const option = (p: TestProgram, given: Partial<uapi.iommu_option>): bigint =>
    p.call(uapi.IOMMU_OPTION, uapi.iommu_option, { option_id: uapi.IOMMU_OPTION_RLIMIT_MODE, ...given }).val64;
  const set = { op: uapi.IOMMU_OPTION_OP_SET, val64: 1n };
  const get = { op: uapi.IOMMU_OPTION_OP_GET };
  const poor = new TestProgram();
  assert.equal(
    refusal(() => option(poor, set)),
    'EPERM',
  );
  const p = new TestProgram({ capabilities: ['CAP_SYS_RESOURCE'] });
  assert.equal(option(p, get), 0n);
  assert.equal(
    refusal(() => option(p, { ...set, val64: 2n })),
    'EINVAL',
  );
  option(p, set);
  assert.equal(option(p, get), 1n);
  assert.equal(
    refusal(() => option(p, { ...get, object_id: 1 })),
    'EOPNOTSUPP',
  );
  assert.equal(
    refusal(() => option(p, { op: 2 })),
    'EOPNOTSUPP',
  );
  const ioas = p.ioas();
  assert.equal(
    refusal(() => option(p, set)),
    'EBUSY',
  );
  const device = p.bind(new TestIommu());
  device.attach(ioas);
  p.map(ioas, 0x1000n, p.task.memory.map(4096), 4096);
  assert.deepEqual([p.task.mm.lockedPages, p.core.userLocked.pages, p.task.mm.pinnedPages], [1, 0, 1]);
  device.unbind();
  p.end();
  poor.end();
});

test('locked memory is charged for each map and bounded by RLIMIT_MEMLOCK; a program with CAP_IPC_LOCK is free', () => {
  const p = new TestProgram({ memlockLimit: 3 * 4096 + 100 });
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  device.attach(ioas);
  const memory = p.task.memory.map(4 * 4096);
  assert.equal(
    refusal(() => p.map(ioas, 0x10000n, memory, 4 * 4096)),
    'ENOMEM',
  );
  assert.equal(p.task.mm.pins, 0);
  p.map(ioas, 0x10000n, memory, 2 * 4096);
  p.map(ioas, 0x20000n, memory, 4096);
  assert.equal(
    refusal(() => p.map(ioas, 0x30000n, memory, 4096)),
    'ENOMEM',
  );
  p.task.capabilities.add('CAP_IPC_LOCK');
  p.map(ioas, 0x30000n, memory, 4 * 4096);
  assert.equal(p.core.userLocked.pages, 3);
  assert.equal(p.task.mm.pinsOf(memory / 4096), 3);
  // Attaching charges as well: all or nothing.
  const second = p.ioas();
  p.task.capabilities.clear();
  p.map(second, 0x10000n, memory, 4096);
  const other = p.bind(new TestIommu());
  assert.equal(
    refusal(() => other.attach(second)),
    'ENOMEM',
  );
  assert.equal(p.core.userLocked.pages, 3);
  assert.equal(
    refusal(() => p.destroy(second)),
    'ok',
  );
  other.unbind();
  device.unbind();
  p.end();
});

test("with a page table memory must be there, writable, a program's own and aligned", () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  device.attach(ioas);
  const memory = p.task.memory.map(3 * 4096);
  p.task.memory.protect(memory + 4096, 4096, { readable: true, writable: false });
  const bar = p.task.memory.map(4096, undefined, {
    device: { memory: privateShared('bar', 4096), offset: 0 },
  });
  assert.equal(
    refusal(() => p.map(ioas, 0x10000n, 0xdead_0000, 4096)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => p.map(ioas, 0x10000n, memory, 3 * 4096)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => p.map(ioas, 0x10000n, memory, 4 * 4096, READ)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => p.map(ioas, 0x10000n, bar, 4096)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => p.map(ioas, 0x10000n, 2n ** 63n, 4096)),
    'EFAULT',
  );
  p.map(ioas, 0x10000n, memory, 3 * 4096, READ);
  assert.equal(
    refusal(() => p.map(ioas, 0x20000n, memory, 2048)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.map(ioas, 0x20000n, memory + 1, 4096)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.map(ioas, 0x20001n, memory, 4096)),
    'EINVAL',
  );
  assert.equal(p.task.mm.pins, 3);
  device.unbind();
  p.end();
});

test('MAP_FILE: a page of a file is one physical page, whoever maps it and whenever', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  device.attach(ioas);
  const first = p.task.open(new TestMemoryFile(4 * 4096));
  const again = p.task.dup(first.descriptor);
  p.mapFile(ioas, 0x10000n, first.descriptor, 0n, 0x4000n);
  p.mapFile(ioas, 0x20000n, again, 0x2000n, 0x1000n);
  const domain = (device.iommu as TestIommu).domain!;
  assert.equal(domain.physicalOf(0x20), domain.physicalOf(0x12));
  assert.equal(first.file.references, 1, 'one reference, however often it is mapped');
  p.task.close(first.descriptor);
  p.task.close(again);
  assert(p.physical.write(domain.physicalOf(0x12), 5, Uint8Array.of(42)));
  assert.equal(first.file.bytes[0x2005], 42, 'DMA lands in the file');
  assert.equal(p.task.mm.pins, 0);
  assert.equal(p.core.userLocked.pages, 5);
  p.unmap(ioas, 0x10000n, 0x4000n);
  p.unmap(ioas, 0x20000n, 0x1000n);
  assert.equal(first.file.references, 0);
  device.unbind();
  p.end();
});

test('MAP_FILE: what is no file is EBADF at once; what has no pages is EINVAL when they are needed', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  const memfd = p.task.open(new TestMemoryFile(4096)).descriptor;
  const foreign = p.task.openForeign();
  assert.equal(
    refusal(() => p.mapFile(ioas, 0x10000n, -1, 0n, 0x1000n)),
    'EBADF',
  );
  assert.equal(
    refusal(() => p.mapFile(ioas, 0x10000n, memfd, 0n, 0n)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.mapFile(ioas, 0x10000n, memfd, MAX, 0x1000n)),
    'EOVERFLOW',
  );
  p.mapFile(ioas, 0x10000n, foreign, 0n, 0x1000n);
  p.mapFile(ioas, 0x20000n, memfd, 0x1000n, 0x1000n);
  assert.equal(
    refusal(() => p.mapFile(ioas, 0x20000n, foreign, 0n, 0x1000n)),
    'EEXIST',
  );
  const device = p.bind(new TestIommu());
  assert.equal(
    refusal(() => device.attach(ioas)),
    'EINVAL',
  );
  p.unmap(ioas, 0x10000n, 0x1000n);
  assert.equal(
    refusal(() => device.attach(ioas)),
    'EINVAL',
    'behind the end of the file',
  );
  p.unmap(ioas, 0x20000n, 0x1000n);
  device.attach(ioas);
  device.unbind();
  p.end();
});

test('CHANGE_PROCESS moves the charge of file maps to the caller, and only of those', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  device.attach(ioas);
  const memfd = p.task.open(new TestMemoryFile(8192)).descriptor;
  p.mapFile(ioas, 0x10000n, memfd, 0n, 0x2000n);
  const heir = new TestTask({ physical: p.physical, pid: 2 });
  const change = (): number =>
    heir.ioctl(
      p.file,
      uapi.IOMMU_IOAS_CHANGE_PROCESS,
      uapi.iommu_ioas_change_process.write({ size: 8, __reserved: 0 }),
    );
  // Old and new charge stand next to each other for a moment, as in the kernel.
  heir.limit = 3 * 4096;
  assert.equal(refusal(change), 'ENOMEM');
  assert.deepEqual([p.task.mm.pinnedPages, heir.mm.pinnedPages, p.core.userLocked.pages], [2, 0, 2]);
  heir.limit = 4 * 4096;
  change();
  assert.deepEqual([p.task.mm.pinnedPages, heir.mm.pinnedPages, p.core.userLocked.pages], [0, 2, 2]);
  p.map(ioas, 0x20000n, p.task.memory.map(4096), 4096);
  assert.equal(refusal(change), 'EINVAL');
  device.unbind();
  p.task.exit();
  assert.equal(heir.mm.pinnedPages, 0);
  p.end();
});

test('large leaves are given up only before there are some, and only for whole pages', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  const huge = (val64: bigint, op = uapi.IOMMU_OPTION_OP_SET): string =>
    refusal(() => p.call(uapi.IOMMU_OPTION, uapi.iommu_option, { option_id: 1, object_id: ioas, op, val64 }));
  assert.equal(huge(2n), 'EINVAL');
  assert.equal(huge(0n, 2), 'EOPNOTSUPP');
  p.map(ioas, 0x1001n, 0x10001, 100);
  assert.equal(huge(0n), 'EADDRINUSE');
  p.unmap(ioas, 0n, MAX);
  assert.equal(huge(0n), 'ok');
  assert.equal(p.ranges(ioas).alignment, 4096n);
  const device = p.bind(new TestIommu());
  device.attach(ioas);
  p.map(ioas, 0x20_0000n, p.task.memory.map(8 * 4096), 8 * 4096);
  assert.equal((device.iommu as TestIommu).domain!.maps, 8, 'page by page');
  assert.equal(huge(0n), 'ok', 'it is off already');
  assert.equal(huge(1n), 'ok');
  assert.equal(huge(0n), 'EINVAL');
  device.unbind();
  p.end();
});
