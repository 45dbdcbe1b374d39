/**
 * iommufd's calls against the mock driver, in the kernel part alone: maps and unmaps, copies, reads by an access, dirty bitmaps of 128 MiB
 * and of 16 GiB, 10^6 areas in one address space, and the replacement of a page table.
 */
import { PhysicalMemory } from '../src/hw/memory/physical-memory.ts';
import { IommufdCore } from '../src/kernel/iommufd/core.ts';
import { MockProgram } from '../src/kernel/iommufd/selftest/test-mock.ts';
import * as uapi from '../src/uapi/iommufd.ts';
import * as mock from '../src/uapi/iommufd-test.ts';

const BASE = BigInt(mock.MOCK_APERTURE_START);
const PAGE = 4096n;

const print = (name: string, value: number, unit: string): void =>
  console.log(`${name.padEnd(58)} ${value.toLocaleString('en', { maximumFractionDigits: 2 })} ${unit}`);

function timed(work: () => void): number {
  const start = performance.now();
  work();
  return performance.now() - start;
}

function program(): MockProgram {
  return new MockProgram({ core: new IommufdCore({ physical: new PhysicalMemory(), selftest: true }) });
}

{
  const p = program();
  const ioas = p.ioas();
  p.device(ioas);
  const buffer = p.task.memory.map(1 << 20);
  const COUNT = 20_000;
  const map = (): void => {
    for (let i = 0; i < COUNT; i++) p.map(ioas, BASE + BigInt(i) * PAGE, buffer, 4096);
  };
  const unmap = (): void => {
    for (let i = 0; i < COUNT; i++) p.unmap(ioas, BASE + BigInt(i) * PAGE, PAGE);
  };
  map();
  unmap();
  print('IOAS_MAP of a page, with a page table', COUNT / (timed(map) / 1000), '/s');
  print('IOAS_UNMAP of a page', COUNT / (timed(unmap) / 1000), '/s');
  const other = p.ioas();
  p.map(ioas, BASE, buffer, 1 << 20);
  const copy = (): void => {
    for (let i = 0; i < COUNT; i++) p.copy(other, BASE + BigInt(i) * PAGE, ioas, BASE, PAGE);
  };
  print('IOAS_COPY of a page', COUNT / (timed(copy) / 1000), '/s');
  const access = p.access(ioas);
  const into = p.task.memory.map(4096);
  const read = (): void => {
    for (let i = 0; i < COUNT; i++) p.rw(access, BASE + BigInt(i % 4096), 64n, into);
  };
  read();
  print('ACCESS_RW of 64 bytes', COUNT / (timed(read) / 1000), '/s');
}

{
  const p = program();
  const ioas = p.ioas();
  const buffer = p.task.memory.map(1 << 20);
  const COUNT = 1_000_000;
  const map = timed(() => {
    for (let i = 0; i < COUNT; i++) p.map(ioas, BigInt(i) * 2n * PAGE, buffer, 4096);
  });
  print('10^6 areas in one address space: made', COUNT / (map / 1000), '/s');
  const one = timed(() => {
    for (let i = 0; i < 10_000; i++) {
      p.unmap(ioas, BigInt(i) * 2n * PAGE, PAGE);
      p.map(ioas, BigInt(i) * 2n * PAGE, buffer, 4096);
    }
  });
  print('  unmap and map again among them', 10_000 / (one / 1000), '/s');
  print(
    '  unmap of all of them at once',
    timed(() => p.unmap(ioas, 0n, 2n ** 64n - 1n)),
    'ms',
  );
}

for (const [name, length] of [
  ['128 MiB', 2 ** 27],
  ['16 GiB', 2 ** 34],
] as const) {
  const p = program();
  const ioas = p.ioas();
  // The device's own table ends at 2 GiB, the one for large pages at 2^38; 128 MiB of memory are mapped again and again.
  const { idev } = p.device(p.ioas());
  const hwpt_id = p.withBytes(
    mock.iommu_hwpt_selftest.write({ iotlb: 0, pagetable_type: mock.MOCK_IOMMUPT_HUGE }),
    (data_uptr, data_len) =>
      p.hwpt(idev, ioas, {
        flags: uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
        data_type: mock.IOMMU_HWPT_DATA_SELFTEST,
        data_uptr,
        data_len,
      }),
  );
  p.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.iommu_hwpt_set_dirty_tracking, { hwpt_id, flags: 1 });
  const bytes = new Uint8Array(Math.min(length, 2 ** 27));
  const buffer = p.task.memory.map(bytes.length, 0x10_0000_0000, { bytes });
  for (let at = 0; at < length; at += bytes.length) p.map(ioas, BASE * 64n + BigInt(at), buffer, bytes.length);
  const bitmap = p.task.memory.map(length / 4096 / 8);
  const read = (): void => {
    p.call(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.iommu_hwpt_get_dirty_bitmap, {
      hwpt_id,
      iova: BASE * 64n,
      length: BigInt(length),
      page_size: PAGE,
      data: BigInt(bitmap),
    });
  };
  read();
  print(`dirty bitmap of ${name}`, timed(read), 'ms');
}

{
  const p = program();
  const ioas = p.ioas();
  const { stdev, idev } = p.device(ioas);
  const buffer = p.task.memory.map(1 << 20);
  p.map(ioas, BASE, buffer, 1 << 20);
  const hwpts = [p.hwpt(idev, ioas), p.hwpt(idev, ioas)];
  const COUNT = 20_000;
  const replace = timed(() => {
    for (let i = 0; i < COUNT; i++) p.replace(stdev, hwpts[i & 1]!);
  });
  print('replacement of a page table', (replace / COUNT) * 1000, 'µs');
}
