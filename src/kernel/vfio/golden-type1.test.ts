/** The suites type1v1 and type1v2 of the recorded kernel, made again in this process. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { privateShared } from '../../hw/memory/backing.ts';
import {
  VFIO_CHECK_EXTENSION,
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_IOMMU_DIRTY_PAGES,
  VFIO_IOMMU_DISABLE,
  VFIO_IOMMU_ENABLE,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_SET_IOMMU,
  vfio_bitmap,
  vfio_iommu_type1_dirty_bitmap,
  vfio_iommu_type1_dirty_bitmap_get,
  vfio_iommu_type1_dma_map,
  vfio_iommu_type1_dma_unmap,
  vfio_iommu_type1_info,
} from '../../uapi/vfio.ts';
import { bytesString, Golden, hexString } from './test-golden.ts';
import { TestContainer, TestWorld } from './test-world.ts';

const PS = 4096n;
const I = 0x1000_0000n;
const MINUS_PAGE = (1n << 64n) - PS;

for (const version of [1, 3] as const) {
  const suite = version === 1 ? 'type1v1' : 'type1v2';
  test(`every call of the recorded suite ${suite} is answered as the kernel answered`, () => {
    const golden = new Golden('probe-edu.jsonl', suite, /^(note:|open |munmap)/);
    const bar = privateShared('bar', 1 << 20);
    const world = new TestWorld({ physicalOfDevice: (_memory, offset) => 0xfea00 + offset / 4096 });
    const { group } = world.device('0000:00:04.0');
    const task = world.task({ capabilities: ['CAP_IPC_LOCK'] });
    let user = task;
    let box = new TestContainer(world, task);
    const memory = task.memory;
    const call = (request: number, bytes: Uint8Array | bigint): number => user.ioctl(box.file, request, bytes);

    const mapArgsz = (name: string, argsz: number, iova: bigint): void => {
      const map = { argsz, flags: 3, vaddr: va, iova, size: PS };
      golden.call(`MAP ${name}`, () => call(VFIO_IOMMU_MAP_DMA, vfio_iommu_type1_dma_map.write(map)));
    };
    const map = (vaddr: bigint, iova: bigint, size: bigint, flags: number, name: string): void => {
      const argument = { argsz: 32, flags, vaddr: BigInt.asUintN(64, vaddr), iova: BigInt.asUintN(64, iova), size };
      golden.call(`MAP ${name}`, () => call(VFIO_IOMMU_MAP_DMA, vfio_iommu_type1_dma_map.write(argument)));
    };
    const unmapBytes = (bytes: Uint8Array, name: string, bm?: () => string): void => {
      golden.call(
        `UNMAP ${name}`,
        () => call(VFIO_IOMMU_UNMAP_DMA, bytes),
        () => {
          const { argsz, flags, iova, size } = vfio_iommu_type1_dma_unmap.read(bytes);
          const out = {
            argsz: hexString(argsz),
            flags: hexString(flags),
            iova: hexString(iova),
            size: hexString(size),
          };
          return bm === undefined ? { out } : { out, bm: bm() };
        },
      );
    };
    const unmap = (iova: bigint, size: bigint, flags: number, name: string): void =>
      unmapBytes(vfio_iommu_type1_dma_unmap.write({ argsz: 24, flags, iova, size }), name);
    const unmapArgsz = (argsz: number, name: string): void => {
      const bytes = vfio_iommu_type1_dma_unmap.write({ argsz, flags: 0, iova: I, size: PS });
      golden.call(`UNMAP ${name}`, () => call(VFIO_IOMMU_UNMAP_DMA, bytes));
    };
    const info = (argsz: number, name: string, hasCaps: boolean): void => {
      const bytes = new Uint8Array(4096).fill(0xa5);
      bytes.set(vfio_iommu_type1_info.write({ argsz, flags: 0, iova_pgsizes: 0n, cap_offset: 0, pad: 0 }));
      golden.call(
        `IOMMU_GET_INFO ${name}`,
        () => call(VFIO_IOMMU_GET_INFO, bytes),
        () => {
          const got = vfio_iommu_type1_info.read(bytes);
          assert.ok(
            bytes.subarray(Math.max(24, argsz)).every((byte) => byte === 0xa5),
            `${name}: beyond argsz`,
          );
          const out = {
            argsz: hexString(got.argsz),
            flags: hexString(got.flags),
            pgsizes: hexString(got.iova_pgsizes),
            cap_offset: hexString(got.cap_offset),
          };
          if (!hasCaps) return { out };
          const view = new DataView(bytes.buffer);
          const caps = [];
          for (let off = got.cap_offset; off !== 0; ) {
            const next = view.getUint32(off + 4, true);
            const data = bytesString(bytes.subarray(off + 8, next === 0 ? off + 48 : next));
            caps.push({ off, id: view.getUint16(off, true), ver: view.getUint16(off + 2, true), next, data });
            off = next;
          }
          return { out, caps };
        },
      );
    };

    box.add(group);
    const opened = box.groups.get(group)!;
    golden.call('SET_CONTAINER', () => 0);
    golden.call(`SET_IOMMU ${version}`, () => call(VFIO_SET_IOMMU, BigInt(version)));
    for (let i = 0; i < 12; i++) golden.call(`CHECK_EXTENSION ${i}`, () => call(VFIO_CHECK_EXTENSION, BigInt(i)));
    for (const argsz of [0, 8, 15, 16, 20, 24, 32, 40, 64, 80, 128, 4096]) info(argsz, `argsz=${argsz}`, argsz >= 24);
    golden.call('IOMMU_GET_INFO NULL', () => call(VFIO_IOMMU_GET_INFO, 0n));
    const device = golden.call('GET_DEVICE_FD', () => box.open(group, '0000:00:04.0'))!;

    const va = BigInt(memory.map(8 << 20, 0x7f00_0020_0000));
    mapArgsz('argsz=0', 0, I);
    mapArgsz('argsz=31', 31, I);
    mapArgsz('argsz=32 ok', 32, I);
    mapArgsz('argsz=4096', 4096, I + PS);
    golden.call('MAP NULL', () => call(VFIO_IOMMU_MAP_DMA, 0n));
    unmap(I, 2n * PS, 0, 'two pages after argsz tests');
    map(va, I, PS, 0, 'flags=0');
    map(va, I, PS, 8, 'flags=8');
    map(va, I, PS, 0x8000_0003, 'flags=0x80000003');
    map(va, I, PS, 4, 'flags=VADDR only');
    map(va, I, PS, 7, 'flags=R|W|VADDR');
    map(va, I, PS, 1, 'R only');
    map(va, I + PS, PS, 2, 'W only');
    unmap(I, 2n * PS, 0, 'R and W pages');
    map(va + 1n, I, PS, 3, 'vaddr+1');
    map(va, I + 1n, PS, 3, 'iova+1');
    map(va, I, PS + 1n, 3, 'size+1');
    map(va + 512n, I + 512n, PS, 3, 'vaddr+512,iova+512');
    map(va, I, 2048n, 3, 'size=2048');
    map(va, I, 0n, 3, 'size=0');
    map(va, I, MINUS_PAGE, 3, 'size=-4096');
    map(va, -PS, PS, 3, 'last page of 64-bit');
    map(va, -PS, 2n * PS, 3, 'iova+size wraps');
    map(-PS, I, 2n * PS, 3, 'vaddr+size wraps');
    map(va, I, 1n << 63n, 3, 'size=1<<63');
    unmap(0n, 0n, VFIO_DMA_UNMAP_FLAG_ALL, 'ALL after bad args');
    map(va, 1n << 39n, PS, 3, 'iova=1<<39');
    map(va, (1n << 48n) - PS, PS, 3, 'iova=2^48-4K');
    map(va, 1n << 48n, PS, 3, 'iova=1<<48');
    map(va, 1n << 57n, PS, 3, 'iova=1<<57');
    map(va, 0xfee00000n, PS, 3, 'MSI window');
    map(va, 0xfedff000n, 2n * PS, 3, 'straddles MSI window');
    map(va, 0n, PS, 3, 'iova=0');
    unmap(0n, 0n, 2, 'ALL 1');
    map(0x1000n, I, PS, 3, 'vaddr not mapped');
    map(va + (8n << 20n) - PS, I, 2n * PS, 3, 'vaddr half mapped');
    unmap(I, 2n * PS, 0, 'after half mapped');
    const readOnly = BigInt(memory.map(4096, undefined, { writable: false, shared: true }));
    const none = BigInt(memory.map(4096, undefined, { writable: false, readable: false }));
    const readOnlyPrivate = BigInt(memory.map(4096, undefined, { writable: false }));
    map(readOnly, I, PS, 3, 'RW of PROT_READ shared');
    map(readOnly, I, PS, 1, 'R of PROT_READ shared');
    map(readOnlyPrivate, I + PS, PS, 3, 'RW of PROT_READ private');
    map(none, I + 2n * PS, PS, 1, 'R of PROT_NONE');
    unmap(0n, 0n, 2, 'ALL 2');

    map(va, I, 4n * PS, 3, 'base 4 pages');
    map(va, I, 4n * PS, 3, 'exact again');
    map(va, I, PS, 3, 'inside head');
    map(va, I + 3n * PS, PS, 3, 'inside tail');
    map(va, I - PS, 2n * PS, 3, 'overlap head');
    map(va, I + 3n * PS, 2n * PS, 3, 'overlap tail');
    map(va, I - PS, 8n * PS, 3, 'covers');
    map(va + 4n * PS, I + 4n * PS, 4n * PS, 3, 'adjacent after');
    map(va, I - 4n * PS, 4n * PS, 3, 'adjacent before');
    map(va, I + 0x100000n, 4n * PS, 3, 'same vaddr, other iova');
    info(4096, 'with 4 maps', true);

    unmapArgsz(0, 'argsz=0');
    unmapArgsz(23, 'argsz=23');
    golden.call('UNMAP NULL', () => call(VFIO_IOMMU_UNMAP_DMA, 0n));
    unmap(I, PS, 0x80, 'flags=0x80');
    unmap(I, 0n, 0, 'size=0');
    unmap(I, PS + 1n, 0, 'size+1');
    unmap(I + 1n, PS, 0, 'iova+1');
    unmap(MINUS_PAGE, 2n * PS, 0, 'wraps');
    unmap(0x7000_0000n, PS, 0, 'nothing there');
    unmap(0n, MINUS_PAGE, 0, '0..2^64-4K (all)');
    map(va, I, 8n * PS, 3, '8 pages');
    unmap(I, PS, 0, 'head page of 8');
    unmap(I + 3n * PS, 2n * PS, 0, 'middle of 8');
    unmap(I + 7n * PS, PS, 0, 'tail page of 8');
    unmap(I + 7n * PS, 4n * PS, 0, 'from last page past end');
    unmap(I - PS, 3n * PS, 0, 'from before into head');
    unmap(I - PS, 10n * PS, 0, 'superset of 8');
    unmap(I, 8n * PS, 0, 'exact after');
    for (let i = 0n; i < 4n; i++) map(va + 2n * i * PS, I + 2n * i * PS, PS, 3, `sparse page ${i}`);
    unmap(I, 7n * PS, 0, 'range with holes');
    unmap(I, 7n * PS, 0, 'range empty');
    map(va, I, 2n << 20n, 3, '2M aligned');
    unmap(I, PS, 0, 'first 4K of 2M');
    unmap(I + (1n << 20n), 1n << 20n, 0, 'second MB of 2M');
    unmap(I, 2n << 20n, 0, 'whole 2M');
    map(va, I, 8n * PS, 3, 'x1');
    map(va, I + 8n * PS, 8n * PS, 3, 'x2');
    unmap(I + 4n * PS, 12n * PS, 0, 'second half of x1 + all x2');
    unmap(I, 12n * PS, 0, 'all x1 + first half of x2');
    unmap(I, 16n * PS, 0, 'x1+x2');
    map(va, I, PS, 3, 'for ALL');
    unmap(I, 0n, 2, 'ALL with iova');
    unmap(0n, PS, 2, 'ALL with size');
    unmap(0n, 0n, 2, 'ALL');
    unmap(0n, 0n, 2, 'ALL empty');
    unmap(0n, 0n, 3, 'ALL|GET_DIRTY');
    unmap(0n, 0n, 6, 'ALL|VADDR');
    unmap(I, PS, 4, 'VADDR');
    map(va, I, PS, 3, 'one');
    unmap(I, PS, 4, 'VADDR one page');
    unmap(0n, 0n, 2, 'ALL 3');
    const cuts: readonly (readonly [bigint, bigint, string])[] = [
      [0n, 1n, 'head'],
      [3n, 2n, 'middle'],
      [7n, 1n, 'tail'],
      [7n, 4n, 'tail and beyond'],
      [-1n, 3n, 'before and head'],
      [-1n, 10n, 'superset'],
      [0n, 8n, 'exact'],
      [0n, 4n, 'first half'],
      [4n, 4n, 'second half'],
    ];
    for (const [offset, count, name] of cuts) {
      map(va, I, 8n * PS, 3, `fresh 8 for ${name}`);
      unmap(I + offset * PS, count * PS, 0, `fresh8 ${name}`);
      map(va, I, PS, 3, `page 0 after ${name}`);
      map(va, I + 4n * PS, PS, 3, `page 4 after ${name}`);
      unmap(0n, 0n, 2, `ALL after ${name}`);
    }
    map(va, I, 4n * PS, 3, 'pair a');
    map(va + 4n * PS, I + 4n * PS, 4n * PS, 3, 'pair b');
    unmap(I + 2n * PS, 4n * PS, 0, 'across pair');
    unmap(0n, 0n, 2, 'ALL after pair');
    map(va, I, 2n << 20n, 3, 'fresh 2M');
    unmap(I + PS, PS, 0, 'second 4K of fresh 2M');
    unmap(0n, 0n, 2, 'ALL after fresh 2M');

    const memfd = BigInt(memory.map(4 * 4096, undefined, { shared: true }));
    map(memfd, I, 4n * PS, 3, 'memfd');
    unmap(I, 4n * PS, 0, 'memfd');
    const huge = BigInt(memory.map(2 << 20, 0x7e00_0000_0000, { shared: true }));
    map(huge, 0x4000_0000n, 2n << 20n, 3, 'hugetlb 2M');
    unmap(0x4000_0000n, PS, 0, '4K of hugetlb 2M');
    unmap(0x4000_0000n, 2n << 20n, 0, 'hugetlb 2M');
    map(va, I, PS, 3, 'then munmap');
    const passing = memory.map(4096);
    map(BigInt(passing), I + PS, PS, 3, 'tmp');
    memory.unmap(passing, 4096);
    unmap(I, 2n * PS, 0, 'after munmap');
    const barAddress = BigInt(memory.map(1 << 20, undefined, { device: { memory: bar, offset: 0 } }));
    map(barAddress, I, PS, 3, 'BAR0 page (P2P)');
    unmap(I, PS, 0, 'BAR0 page');

    const bitmapAt = memory.map(4096);
    const bm = (length: number): string => {
      const bytes = new Uint8Array(length);
      memory.read(bitmapAt, bytes);
      return bytesString(bytes);
    };
    const dirty = (flags: number, argsz: number, name: string): void => {
      const bytes = new Uint8Array(56);
      bytes.set(vfio_iommu_type1_dirty_bitmap.write({ argsz, flags }));
      golden.call(`DIRTY ${name}`, () => call(VFIO_IOMMU_DIRTY_PAGES, bytes));
    };
    const get = (iova: bigint, size: bigint, pgsize: bigint, length: bigint, data: number, name: string): void => {
      memory.write(bitmapAt, new Uint8Array(512).fill(0xcc));
      const bytes = new Uint8Array(48);
      bytes.set(vfio_iommu_type1_dirty_bitmap.write({ argsz: 48, flags: 4 }));
      const bitmap = { pgsize, size: length, data: BigInt(data) };
      bytes.set(vfio_iommu_type1_dirty_bitmap_get.write({ iova: BigInt.asUintN(64, iova), size, bitmap }), 8);
      golden.call(
        `DIRTY GET ${name}`,
        () => call(VFIO_IOMMU_DIRTY_PAGES, bytes),
        () => ({ bm: bm(16) }),
      );
    };
    map(va, I, 16n * PS, 3, 'for dirty');
    dirty(0, 8, 'flags=0');
    dirty(8, 8, 'flags=8');
    dirty(3, 8, 'START|STOP');
    dirty(5, 8, 'START|GET');
    dirty(1, 7, 'argsz=7');
    get(I, 16n * PS, PS, 8n, bitmapAt, 'before START');
    dirty(2, 8, 'STOP before START');
    dirty(1, 8, 'START');
    dirty(1, 8, 'START again');
    get(I, 16n * PS, PS, 8n, bitmapAt, 'all 16');
    get(I, 16n * PS, PS, 8n, bitmapAt, 'all 16 again');
    get(I, 16n * PS, 8192n, 8n, bitmapAt, 'pgsize=8192');
    get(I, 16n * PS, 0n, 8n, bitmapAt, 'pgsize=0');
    get(I, 16n * PS, PS, 1n, bitmapAt, 'bitmap size=1');
    get(I, 16n * PS, PS, 0n, bitmapAt, 'bitmap size=0');
    get(I, 16n * PS, PS, 8n, 0, 'data NULL');
    get(I + PS, 4n * PS, PS, 8n, bitmapAt, 'inner range');
    get(I - PS, 4n * PS, PS, 8n, bitmapAt, 'partly unmapped');
    get(0x7000_0000n, 4n * PS, PS, 8n, bitmapAt, 'unmapped range');
    get(I + 1n, 4n * PS, PS, 8n, bitmapAt, 'iova+1');
    get(I, 4n * PS + 1n, PS, 8n, bitmapAt, 'size+1');
    get(I, 0n, PS, 8n, bitmapAt, 'size=0');
    get(I, 32n * PS, PS, 8n, bitmapAt, 'beyond end');
    get(-PS, 2n * PS, PS, 8n, bitmapAt, 'wraps');
    dirty(4, 8, 'GET argsz=8');
    memory.write(bitmapAt, new Uint8Array(512));
    const unmapDirty = (argsz: number, size: bigint, pgsize: bigint, name: string, withBitmap = false): void => {
      const bytes = new Uint8Array(48);
      bytes.set(vfio_iommu_type1_dma_unmap.write({ argsz, flags: 1, iova: I, size }));
      bytes.set(vfio_bitmap.write({ pgsize, size: 8n, data: BigInt(bitmapAt) }), 24);
      unmapBytes(bytes, `GET_DIRTY${name}`, withBitmap ? () => bm(8) : undefined);
    };
    unmapDirty(24, 16n * PS, PS, ' argsz=24');
    unmapDirty(48, 16n * PS, 3n, ' pgsize=3');
    unmapDirty(48, 4n * PS, PS, ' part');
    unmapDirty(48, 16n * PS, PS, '', true);
    dirty(2, 8, 'STOP');
    dirty(2, 8, 'STOP again');
    map(va, I, PS, 3, 'for stopped');
    unmapDirty(48, PS, PS, ' while stopped');
    unmap(0n, 0n, 2, 'ALL 4');
    golden.call('IOMMU_ENABLE', () => call(VFIO_IOMMU_ENABLE, 0n));
    golden.call('IOMMU_DISABLE', () => call(VFIO_IOMMU_DISABLE, 0n));
    golden.call('VFIO_BASE+18 on container', () => call(VFIO_DEVICE_BIND_IOMMUFD, 0n));
    golden.call('VFIO_BASE+30 on container', () => call(0x3b64 + 30, 0n));

    // The child of the program: other memory, a limit, no right to exceed it.
    user = world.task({ pid: 1001, name: 'child', memlockLimit: 16 * 4096 });
    const own = BigInt(user.memory.map(64 * 4096));
    map(own, I, 8n * PS, 3, 'rlimit: 8 of 16 pages');
    map(own + 8n * PS, I + 8n * PS, 8n * PS, 3, 'rlimit: next 8');
    map(own + 16n * PS, I + 16n * PS, PS, 3, 'rlimit: one more');
    map(own, I + 0x100000n, PS, 3, 'rlimit: page already pinned');
    unmap(I, 8n * PS, 0, 'rlimit: free 8');
    map(own, I + 0x200000n, 9n * PS, 3, 'rlimit: 9 after freeing 8');
    map(own, I + 0x200000n, 8n * PS, 3, 'rlimit: 8 after freeing 8');
    const child = user;
    user = task;
    unmap(0n, 0n, 2, 'ALL after rlimit child exited');
    assert.equal(child.mm.lockedPages, 0);
    task.close(device);
    task.close(opened.descriptor);
    task.close(box.descriptor);

    world.core.options.dmaEntryLimit = 3;
    box = world.container(task, [group], version);
    info(4096, 'limit=3', true);
    for (let i = 0n; i < 5n; i++) map(va, I + i * 16n * PS, PS, 3, `limit=3 #${i}`);
    info(4096, 'limit=3 full', true);
    unmap(I, PS, 0, 'limit=3 free one');
    map(va, I, PS, 3, 'limit=3 reuse');
    world.core.options.dmaEntryLimit = 65535;
    task.close(box.groups.get(group)!.descriptor);
    task.close(box.descriptor);

    box = world.container(task, [group], version);
    map(va, I, PS, 3, 'fresh container');
    task.close(box.groups.get(group)!.descriptor);
    golden.call('IOMMU_GET_INFO after group closed', () => call(VFIO_IOMMU_GET_INFO, 0n));
    map(va, I + PS, PS, 3, 'after group closed');
    golden.finish();

    assert.equal(task.mm.pins, 0);
    assert.equal(task.mm.lockedPages, 0);
    assert.equal(world.physical.blocks, 0);
    assert.deepEqual(world.liveDomains, []);
  });
}
