/** The suites container, group, nonviable, multi and same of the recorded kernel, as far as they are of groups and containers. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../lib/errno.ts';
import {
  VFIO_CHECK_EXTENSION,
  VFIO_DEVICE_GET_INFO,
  VFIO_GET_API_VERSION,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_GET_STATUS,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_GROUP_UNSET_CONTAINER,
  VFIO_IOMMU_DIRTY_PAGES,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_SET_IOMMU,
  vfio_group_status,
  vfio_iommu_type1_dirty_bitmap,
  vfio_iommu_type1_dma_map,
  vfio_iommu_type1_dma_unmap,
  vfio_iommu_type1_info,
} from '../../uapi/vfio.ts';
import type { File } from '../core/file.ts';
import type { TestTask } from '../core/test-task.ts';
import type { GroupFile } from './group.ts';
import { Golden, hexString } from './test-golden.ts';
import { getDeviceFd, type TestGroup, TestWorld } from './test-world.ts';

/** A program that makes recorded calls. */
class Program {
  readonly golden: Golden;
  readonly world: TestWorld;
  readonly task: TestTask;

  constructor(golden: Golden, world = new TestWorld()) {
    this.golden = golden;
    this.world = world;
    this.task = world.task();
  }

  ioctl(name: string, file: File, request: number, argument: Uint8Array | bigint | number = 0n): number | undefined {
    return this.golden.call(name, () => this.task.ioctl(file, request, argument));
  }

  openContainer() {
    return this.task.open(this.world.core.openContainer(this.task));
  }

  openGroup(name: string, group: TestGroup): { file: GroupFile; descriptor: number } {
    const file = this.golden.call(name, () => this.world.core.openGroup(group.id, this.task));
    return file === undefined ? { file: undefined as never, descriptor: -1 } : this.task.open(file);
  }

  setContainer(name: string, group: GroupFile, descriptor: number): void {
    this.ioctl(name, group, VFIO_GROUP_SET_CONTAINER, new Uint8Array(Int32Array.of(descriptor).buffer));
  }

  status(name: string, group: GroupFile, argsz = 8): void {
    const bytes = vfio_group_status.write({ argsz, flags: 0 });
    this.golden.call(
      name,
      () => this.task.ioctl(group, VFIO_GROUP_GET_STATUS, bytes),
      () => {
        const status = vfio_group_status.read(bytes);
        return { out: { argsz: hexString(status.argsz), flags: hexString(status.flags) } };
      },
    );
  }

  deviceFd(name: string, group: GroupFile, text: string): number {
    return this.golden.call(name, () => getDeviceFd(this.task, group, text)) ?? -1;
  }

  close(name: string, descriptor: number): void {
    this.golden.call(name, () => this.task.close(descriptor));
  }

  map(name: string, container: File, vaddr: number, iova: bigint): void {
    const map = { argsz: 32, flags: 3, vaddr: BigInt(vaddr), iova, size: 4096n };
    this.ioctl(name, container, VFIO_IOMMU_MAP_DMA, vfio_iommu_type1_dma_map.write(map));
  }

  finish(): void {
    this.golden.finish();
    this.task.exit();
    assert.equal(this.task.mm.pins, 0);
    assert.equal(this.task.mm.lockedPages, 0);
    assert.deepEqual(this.world.liveDomains, []);
  }
}

const typeInfo = vfio_iommu_type1_info.write({ argsz: 24, flags: 0, iova_pgsizes: 0n, cap_offset: 0, pad: 0 });
const EDU = '0000:00:04.0';

test('C-30: a container without a group answers as the kernel did', () => {
  const golden = new Golden(
    'probe-container.jsonl',
    'container',
    /O_RDONLY|^(stat|poll|lseek|open|dup|close|.* on (dup|closed))/,
  );
  const program = new Program(golden);
  const { file } = program.openContainer();
  program.ioctl('GET_API_VERSION', file, VFIO_GET_API_VERSION);
  program.ioctl('GET_API_VERSION arg=1', file, VFIO_GET_API_VERSION, 1);
  for (let i = 0; i < 14; i++) program.ioctl(`CHECK_EXTENSION ${i} nogroup`, file, VFIO_CHECK_EXTENSION, i);
  program.ioctl('CHECK_EXTENSION -1 nogroup', file, VFIO_CHECK_EXTENSION, (1n << 64n) - 1n);
  for (let i = 0; i < 10; i++) program.ioctl(`SET_IOMMU ${i} nogroup`, file, VFIO_SET_IOMMU, i);
  program.ioctl('IOMMU_GET_INFO noiommu', file, VFIO_IOMMU_GET_INFO, typeInfo.slice());
  program.map('MAP_DMA noiommu', file, 0x10000, 0n);
  const unmap = vfio_iommu_type1_dma_unmap.write({ argsz: 24, flags: 0, iova: 0n, size: 4096n });
  program.ioctl('UNMAP_DMA noiommu', file, VFIO_IOMMU_UNMAP_DMA, unmap);
  const dirty = vfio_iommu_type1_dirty_bitmap.write({ argsz: 8, flags: 1 });
  program.ioctl('DIRTY_PAGES noiommu', file, VFIO_IOMMU_DIRTY_PAGES, dirty);
  program.ioctl('GROUP_GET_STATUS on container', file, VFIO_GROUP_GET_STATUS, new Uint8Array(64));
  program.ioctl('DEVICE_GET_INFO on container', file, VFIO_DEVICE_GET_INFO, new Uint8Array(64));
  program.ioctl('unknown VFIO ioctl on container', file, 0x3b64 + 40);
  program.ioctl('foreign ioctl on container', file, 0x7801);
  golden.call('read container', () => file.read(program.task, new Uint8Array(4), 0));
  golden.call('write container', () => file.write(program.task, new Uint8Array(4), 0));
  golden.call('mmap container', () => file.mmap(program.task, 4096, 1, 1, 0));
  program.finish();
});

test('C-1 C-2 C-31 C-32 C-34 C-35 C-36 C-53 G-50: the life of a group goes as the kernel recorded it', () => {
  const golden = new Golden(
    'probe-edu.jsonl',
    'group',
    /^(note:|F_GETF|DEVICE_GET_INFO|SCM_RIGHTS|fork|UNMAP child)|O_RDONLY while/,
  );
  const program = new Program(golden);
  const { task, world } = program;
  const { group } = world.device(EDU);
  let { file: g, descriptor: gfd } = program.openGroup('open group', group);
  program.openGroup('open group twice', group);
  for (let argsz = 0; argsz <= 16; argsz += 4) program.status(`GROUP_GET_STATUS argsz=${argsz}`, g, argsz);
  program.ioctl('GROUP_GET_STATUS NULL', g, VFIO_GROUP_GET_STATUS);
  program.ioctl('UNSET_CONTAINER before set', g, VFIO_GROUP_UNSET_CONTAINER);
  program.deviceFd('GET_DEVICE_FD before container', g, EDU);
  program.setContainer('SET_CONTAINER fd=-1', g, -1);
  program.setContainer('SET_CONTAINER fd=9999', g, 9999);
  program.setContainer('SET_CONTAINER fd=/dev/null', g, task.openForeign());
  program.setContainer('SET_CONTAINER fd=group itself', g, gfd);
  program.ioctl('SET_CONTAINER NULL', g, VFIO_GROUP_SET_CONTAINER);
  program.ioctl('unknown ioctl on group', g, 0x3b64 + 40);
  program.ioctl('GET_API_VERSION on group', g, VFIO_GET_API_VERSION);
  golden.call('open container', () => undefined);
  let { file: c, descriptor: cfd } = program.openContainer();
  const second = program.openContainer().descriptor;
  program.setContainer('SET_CONTAINER', g, cfd);
  program.setContainer('SET_CONTAINER again same', g, cfd);
  program.setContainer('SET_CONTAINER other', g, second);
  program.status('GROUP_GET_STATUS with container', g);
  program.ioctl('UNSET_CONTAINER', g, VFIO_GROUP_UNSET_CONTAINER);
  program.ioctl('UNSET_CONTAINER again', g, VFIO_GROUP_UNSET_CONTAINER);
  program.status('GROUP_GET_STATUS after unset', g);
  program.setContainer('SET_CONTAINER other after unset', g, second);
  program.ioctl('UNSET_CONTAINER 2', g, VFIO_GROUP_UNSET_CONTAINER);
  program.setContainer('SET_CONTAINER back', g, cfd);
  for (let i = 0; i < 14; i++) program.ioctl(`CHECK_EXTENSION ${i} group,no iommu`, c, VFIO_CHECK_EXTENSION, i);
  program.ioctl('IOMMU_GET_INFO group,no iommu', c, VFIO_IOMMU_GET_INFO, typeInfo.slice());
  program.deviceFd('GET_DEVICE_FD before SET_IOMMU', g, EDU);
  program.ioctl('SET_IOMMU 0', c, VFIO_SET_IOMMU, 0);
  program.ioctl('SET_IOMMU 2 (spapr)', c, VFIO_SET_IOMMU, 2);
  program.ioctl('SET_IOMMU 6 (nesting)', c, VFIO_SET_IOMMU, 6);
  program.ioctl('SET_IOMMU 8 (noiommu)', c, VFIO_SET_IOMMU, 8);
  program.ioctl('SET_IOMMU 99', c, VFIO_SET_IOMMU, 99);
  program.ioctl('SET_IOMMU 3', c, VFIO_SET_IOMMU, 3);
  program.ioctl('SET_IOMMU 3 again', c, VFIO_SET_IOMMU, 3);
  program.ioctl('SET_IOMMU 1 after 3', c, VFIO_SET_IOMMU, 1);
  for (let i = 0; i < 14; i++) program.ioctl(`CHECK_EXTENSION ${i} with iommu`, c, VFIO_CHECK_EXTENSION, i);
  program.deviceFd('GET_DEVICE_FD ""', g, '');
  program.ioctl('GET_DEVICE_FD NULL', g, VFIO_GROUP_GET_DEVICE_FD);
  program.deviceFd('GET_DEVICE_FD absent bdf', g, '0000:ff:1f.7');
  program.deviceFd('GET_DEVICE_FD nonsense', g, 'nonsense');
  program.deviceFd("GET_DEVICE_FD 'dev extra'", g, `${EDU} extra`);
  program.deviceFd('GET_DEVICE_FD dev + vf_token', g, `${EDU} vf_token=00000000-0000-0000-0000-000000000000`);
  program.deviceFd("GET_DEVICE_FD ' dev'", g, ` ${EDU}`);
  program.deviceFd('GET_DEVICE_FD truncated name', g, EDU.slice(0, -1));
  program.deviceFd('GET_DEVICE_FD 4999 chars', g, 'a'.repeat(4999));
  const first = program.deviceFd('GET_DEVICE_FD', g, EDU);
  const other = program.deviceFd('GET_DEVICE_FD second', g, EDU);
  program.ioctl('UNSET_CONTAINER with device open', g, VFIO_GROUP_UNSET_CONTAINER);
  program.status('GROUP_GET_STATUS device open', g);
  program.close('close device 2', other);
  program.ioctl('UNSET_CONTAINER one device left', g, VFIO_GROUP_UNSET_CONTAINER);
  program.close('close group with device open', gfd);
  program.openGroup('reopen group while device open', group);
  program.close('close container with device open', cfd);
  program.close('close device last', first);
  ({ file: g, descriptor: gfd } = program.openGroup('reopen group', group));
  program.status('GROUP_GET_STATUS reopened', g);
  program.setContainer('SET_CONTAINER reopened', g, second);
  program.close('close container first', second);
  program.status('GROUP_GET_STATUS container fd closed', g);
  program.ioctl('UNSET_CONTAINER container fd closed', g, VFIO_GROUP_UNSET_CONTAINER);
  program.close('close group', gfd);
  ({ file: g, descriptor: gfd } = program.openGroup('open group O_RDONLY', group));
  program.status('GROUP_GET_STATUS O_RDONLY', g);
  task.close(gfd);
  ({ file: c, descriptor: cfd } = program.openContainer());
  ({ file: g, descriptor: gfd } = task.open(world.core.openGroup(group.id, task)));
  task.ioctl(g, VFIO_GROUP_SET_CONTAINER, new Uint8Array(Int32Array.of(cfd).buffer));
  task.ioctl(c, VFIO_SET_IOMMU, 3);
  const buffer = task.memory.map(4096);
  program.map('MAP before unset', c, buffer, 0x100000n);
  program.ioctl('UNSET_CONTAINER with maps', g, VFIO_GROUP_UNSET_CONTAINER);
  program.map('MAP after unset', c, buffer, 0x100000n);
  program.ioctl('CHECK_EXTENSION 3 after unset', c, VFIO_CHECK_EXTENSION, 3);
  program.setContainer('SET_CONTAINER after unset', g, cfd);
  program.map('MAP before SET_IOMMU redo', c, buffer, 0x100000n);
  program.ioctl('SET_IOMMU redo', c, VFIO_SET_IOMMU, 3);
  program.map('MAP after redo (old map gone?)', c, buffer, 0x100000n);
  program.finish();
});

test('G-12: a group with a host driver is not viable, and its container is refused with EPERM', () => {
  const golden = new Golden('probe-edu.jsonl', 'nonviable', /iommufd|cdev|BIND/);
  const program = new Program(golden);
  const { group } = program.world.device('0000:02:01.0');
  group.useDefaultDomain();
  const { file: g } = program.openGroup('open group with host-driver sibling', group);
  const { file: c, descriptor } = program.openContainer();
  program.status('GROUP_GET_STATUS nonviable', g);
  program.setContainer('SET_CONTAINER nonviable', g, descriptor);
  program.ioctl('SET_IOMMU nonviable', c, VFIO_SET_IOMMU, 3);
  program.deviceFd('GET_DEVICE_FD nonviable', g, '0000:02:01.0');
  program.finish();
});

test('C-33: two groups and two containers go as the kernel recorded them', () => {
  const golden = new Golden('probe-edu.jsonl', 'multi', /^$/);
  const program = new Program(golden);
  const { task, world } = program;
  const [one, two] = [world.device(EDU).group, world.device('0000:05:00.0').group];
  const { file: c, descriptor: cfd } = program.openContainer();
  const { file: cb, descriptor: cbfd } = program.openContainer();
  const { file: g } = program.openGroup('open group 1', one);
  const { file: g2 } = program.openGroup('open group 2', two);
  program.setContainer('SET_CONTAINER g1', g, cfd);
  program.ioctl('SET_IOMMU 3', c, VFIO_SET_IOMMU, 3);
  program.setContainer('SET_CONTAINER g2 same container', g2, cfd);
  program.deviceFd('GET_DEVICE_FD dev1 via g2', g2, EDU);
  program.deviceFd('GET_DEVICE_FD dev2', g2, '0000:05:00.0');
  const device = program.deviceFd('GET_DEVICE_FD dev1', g, EDU);
  program.ioctl('UNSET g1 busy', g, VFIO_GROUP_UNSET_CONTAINER);
  task.close(device);
  program.ioctl('UNSET g1', g, VFIO_GROUP_UNSET_CONTAINER);
  program.ioctl('CHECK_EXTENSION 3 one group left', c, VFIO_CHECK_EXTENSION, 3);
  const buffer = task.memory.map(4096);
  program.map('MAP one group left', c, buffer, 0x100000n);
  program.setContainer('SET_CONTAINER g1 other container', g, cbfd);
  program.ioctl('SET_IOMMU 1 other container', cb, VFIO_SET_IOMMU, 1);
  program.map('MAP same iova other container', cb, buffer, 0x100000n);
  program.ioctl('UNSET g1 again', g, VFIO_GROUP_UNSET_CONTAINER);
  program.setContainer('SET_CONTAINER g1 joins container with maps', g, cfd);
  program.status('GROUP_GET_STATUS g1', g);
  assert.ok(one.domain === two.domain && one.domain!.pages.has(0x100), 'both groups see the mapping');
  program.finish();
});

test('G-50: two devices of one group, and one file of the group', () => {
  const golden = new Golden('probe-edu.jsonl', 'same', /HOT_RESET/);
  const program = new Program(golden);
  const { world, task } = program;
  const { group } = world.device('0000:04:01.0');
  world.device('0000:04:02.0', group);
  const { file: g } = program.openGroup('open shared group', group);
  program.openGroup('open shared group via sibling (same node)', group);
  program.status('GROUP_GET_STATUS shared', g);
  const { file: c, descriptor } = program.openContainer();
  task.ioctl(g, VFIO_GROUP_SET_CONTAINER, new Uint8Array(Int32Array.of(descriptor).buffer));
  task.ioctl(c, VFIO_SET_IOMMU, 3);
  program.deviceFd('GET_DEVICE_FD a', g, '0000:04:01.0');
  program.deviceFd('GET_DEVICE_FD b', g, '0000:04:02.0');
  program.finish();
});

test('every refusal carries its reason', () => {
  const world = new TestWorld();
  const task = world.task();
  const { group } = world.device(EDU);
  world.core.openGroup(group.id, task);
  assert.throws(
    () => world.core.openGroup(group.id, task),
    (error) => error instanceof Errno && error.code === 'EBUSY' && error.why.includes('opens only once'),
  );
});
