/**
 * A small machine for the tests of this folder: groups and domains that only keep books, so that a test sees exactly what the core
 * asks of the IOMMU and can refuse it; devices that do nothing; and the calls of a program, by name.
 */
import assert from 'node:assert/strict';
import { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { Errno } from '../../lib/errno.ts';
import {
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_GET_STATUS,
  VFIO_GROUP_SET_CONTAINER,
  VFIO_GROUP_UNSET_CONTAINER,
  VFIO_IOMMU_DIRTY_PAGES,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_SET_IOMMU,
  vfio_bitmap,
  vfio_group_status,
  vfio_info_cap_header,
  vfio_iommu_type1_dirty_bitmap,
  vfio_iommu_type1_dirty_bitmap_get,
  vfio_iommu_type1_dma_map,
  vfio_iommu_type1_dma_unmap,
  vfio_iommu_type1_info,
} from '../../uapi/vfio.ts';
import type { FileMapping } from '../core/file.ts';
import { TestTask, type TestTaskOptions } from '../core/test-task.ts';
import type { Domain } from '../iommu/domain.ts';
import type { IommuGroup, ReservedRegion } from '../iommu/group.ts';
import type { Container, GroupKind } from './container.ts';
import type { GroupFile } from './group.ts';
import { Type1 } from './type1.ts';
import { VfioCore, type VfioOptions } from './vfio.ts';
import { DeviceFile, VfioDevice } from './vfio-device.ts';

export const READ_WRITE = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;

/** What of a unit the core looks at. Domains of one unit are exchangeable, those of two are not. */
export class TestUnit {
  readonly name: string;
  canEnforceCoherency = true;
  pgsizeBitmap = 0x4020_1000n;
  firstPage = 0;
  lastPage = 2 ** 36 - 1;
  /** Units with equal families take each other's domains. */
  family: string;
  constructor(name: string, changes: Partial<TestUnit> = {}) {
    this.name = name;
    this.family = name;
    Object.assign(this, changes);
  }
}

/** A domain as a list of pages, with the calls that made it. */
export class TestDomain {
  readonly kind = 'unmanaged';
  readonly unit: TestUnit;
  readonly pages = new Map<number, { physical: number; prot: number }>();
  /** Counts of the map calls, in order. */
  readonly runs: number[] = [];
  attachments = 0;
  isFree = false;
  enforcesCoherency = false;
  constructor(unit: TestUnit) {
    this.unit = unit;
  }
  get pgsizeBitmap(): bigint {
    return this.unit.pgsizeBitmap;
  }
  get firstPage(): number {
    return this.unit.firstPage;
  }
  get lastPage(): number {
    return this.unit.lastPage;
  }
  map(page: number, physicalPage: number, count: number, prot: number): void {
    if (page < this.firstPage || page + count - 1 > this.lastPage) throw new Errno('ERANGE', 'outside the aperture');
    for (let i = 0; i < count; i++) if (this.pages.has(page + i)) throw new Errno('EADDRINUSE', 'mapped');
    for (let i = 0; i < count; i++) this.pages.set(page + i, { physical: physicalPage + i, prot });
    this.runs.push(count);
  }
  unmap(page: number, count: number): number {
    let done = 0;
    while (done < count && this.pages.delete(page + done)) done++;
    return done;
  }
  physicalOf(page: number): number {
    return this.pages.get(page)?.physical ?? -1;
  }
  enforceCacheCoherency(): boolean {
    this.enforcesCoherency = this.unit.canEnforceCoherency;
    return this.enforcesCoherency;
  }
  isCompatible(unit: unknown): boolean {
    return (unit as TestUnit).family === this.unit.family;
  }
  free(): void {
    assert.equal(this.attachments, 0, 'a domain is freed while attached');
    assert.equal(this.isFree, false, 'a domain is freed twice');
    this.isFree = true;
  }
}

/** A group's books: who holds it, which domain is attached. Undefined domain: the default one, or blocked while it is held. */
export class TestGroup {
  readonly id: number;
  readonly unit: TestUnit | undefined;
  domain: TestDomain | undefined;
  owner: object | undefined;
  ownerCount = 0;
  isolatedMsi = true;
  reserved: ReservedRegion[] = [{ firstPage: 0xfee00, lastPage: 0xfeeff, type: 'msi' }];
  /** Attaching any domain is refused with this. */
  refuses: Errno | undefined;
  constructor(id: number, unit: TestUnit | undefined) {
    this.id = id;
    this.unit = unit;
  }
  /** A host driver is bound to a member. */
  useDefaultDomain(): void {
    if (this.owner !== undefined) throw new Errno('EBUSY', 'a user holds the group');
    this.ownerCount++;
  }
  claim(owner: object): void {
    if (this.ownerCount > 0) throw new Errno('EPERM', `group ${this.id} is held`);
    this.owner = owner;
    this.ownerCount = 1;
  }
  release(): void {
    assert.equal(this.domain, undefined, 'a group is released while attached');
    assert.equal(this.ownerCount, 1);
    this.owner = undefined;
    this.ownerCount = 0;
  }
  attach(domain: Domain): void {
    if (this.refuses !== undefined) throw this.refuses;
    const target = domain as unknown as TestDomain;
    if (this.domain !== undefined) throw new Errno('EBUSY', 'another domain is attached');
    if (!target.isCompatible(this.unit)) throw new Errno('EINVAL', 'another IOMMU');
    target.attachments++;
    this.domain = target;
  }
  detach(): void {
    if (this.domain !== undefined) this.domain.attachments--;
    this.domain = undefined;
  }
  reservedRegions(): ReservedRegion[] {
    return this.reserved;
  }
}

/** A device that keeps books. With `dmaUnmap` set it is a mediated one. */
export class TestDevice extends VfioDevice {
  readonly name: string;
  readonly events: string[] = [];
  refusesOpen: Errno | undefined;
  requests = 0;
  onRequest: (() => void) | undefined;
  constructor(name: string, group: TestGroup) {
    super(group as unknown as IommuGroup);
    this.name = name;
  }
  match(text: string): boolean {
    const [name, ...options] = text.split(' ');
    if (name !== this.name) return false;
    if (options.length > 0) throw new Errno('EINVAL', `options "${options.join(' ')}" are not wanted`);
    return true;
  }
  openDevice(): void {
    if (this.refusesOpen !== undefined) throw this.refusesOpen;
    this.events.push('open');
  }
  closeDevice(): void {
    this.events.push('close');
  }
  ioctl(): number {
    throw new Errno('ENOTTY', 'no ioctl');
  }
  read(): number {
    return 0;
  }
  write(): number {
    return 0;
  }
  access(): number {
    return 0;
  }
  mmap(): FileMapping {
    throw new Errno('ENODEV', 'no mmap');
  }
  override request(count: number): void {
    assert.equal(count, this.requests++);
    this.onRequest?.();
  }
}

/** A machine with its core. Tasks share one physical memory. */
export class TestWorld {
  readonly physical = new PhysicalMemory();
  readonly core: VfioCore;
  readonly unit = new TestUnit('dmar0');
  readonly domains: TestDomain[] = [];
  #nextGroup = 3;

  constructor(options: Partial<VfioOptions> = {}) {
    this.core = new VfioCore({
      allocateDomain: (unit) => {
        const domain = new TestDomain(unit as unknown as TestUnit);
        this.domains.push(domain);
        return domain as unknown as Domain;
      },
      ...options,
    });
  }

  task(options: TestTaskOptions = {}): TestTask {
    return new TestTask({ physical: this.physical, ...options });
  }

  /** A registered device in a group of its own. */
  device(name: string, group?: TestGroup, kind: GroupKind = 'iommu'): { device: TestDevice; group: TestGroup } {
    const made = group ?? this.group(kind === 'iommu' ? this.unit : undefined);
    const device = new TestDevice(name, made);
    this.core.register(device, kind);
    return { device, group: made };
  }

  /** A mediated device. `dmaUnmap` hears of unmaps; by default the device lets everything go at once. */
  mediated(name: string, dmaUnmap?: (iova: bigint, length: bigint) => void): { device: TestDevice; group: TestGroup } {
    const group = this.group(undefined);
    const device = new TestDevice(name, group);
    device.dmaUnmap = dmaUnmap ?? (() => {});
    this.core.register(device, 'emulated');
    return { device, group };
  }

  group(unit: TestUnit | undefined): TestGroup {
    return new TestGroup(this.#nextGroup++, unit);
  }

  /** A container with groups in it and a driver chosen, as a program makes it. */
  container(task: TestTask, groups: readonly TestGroup[], version: 1 | 3 = 3): TestContainer {
    const made = new TestContainer(this, task);
    for (const group of groups) made.add(group);
    made.setIommu(version);
    return made;
  }

  /** Live domains. */
  get liveDomains(): TestDomain[] {
    return this.domains.filter((domain) => !domain.isFree);
  }
}

/** A program's descriptors on a container and its groups, and the calls on them. */
export class TestContainer {
  readonly world: TestWorld;
  readonly task: TestTask;
  readonly file: Container;
  readonly descriptor: number;
  readonly groups = new Map<TestGroup, { descriptor: number; file: GroupFile }>();

  constructor(world: TestWorld, task: TestTask) {
    this.world = world;
    this.task = task;
    const opened = task.open(world.core.openContainer(task));
    this.file = opened.file;
    this.descriptor = opened.descriptor;
  }

  get type1(): Type1 {
    assert.ok(this.file.driver instanceof Type1);
    return this.file.driver;
  }

  /** Opens a group and puts it into the container. */
  add(group: TestGroup): GroupFile {
    const opened = this.groups.get(group) ?? this.task.open(this.world.core.openGroup(group.id, this.task));
    this.groups.set(group, opened);
    setContainer(this.task, opened.file, this.descriptor);
    return opened.file;
  }

  remove(group: TestGroup): void {
    this.task.ioctl(this.groups.get(group)!.file, VFIO_GROUP_UNSET_CONTAINER);
  }

  setIommu(version: number): void {
    this.task.ioctl(this.file, VFIO_SET_IOMMU, version);
  }

  /** Opens a device; the result is its descriptor. */
  open(group: TestGroup, name: string): number {
    return getDeviceFd(this.task, this.groups.get(group)!.file, name);
  }

  map(
    iova: bigint | number,
    vaddr: bigint | number,
    size: bigint | number,
    flags = READ_WRITE,
    task = this.task,
  ): void {
    const { size: argsz } = vfio_iommu_type1_dma_map;
    const map = { argsz, flags, vaddr: BigInt(vaddr), iova: BigInt(iova), size: BigInt(size) };
    task.ioctl(this.file, VFIO_IOMMU_MAP_DMA, vfio_iommu_type1_dma_map.write(map));
  }

  /** Returns the bytes that the answer says. */
  unmap(iova: bigint | number, size: bigint | number, flags = 0): bigint {
    const { size: argsz } = vfio_iommu_type1_dma_unmap;
    const bytes = vfio_iommu_type1_dma_unmap.write({ argsz, flags, iova: BigInt(iova), size: BigInt(size) });
    this.task.ioctl(this.file, VFIO_IOMMU_UNMAP_DMA, bytes);
    return vfio_iommu_type1_dma_unmap.read(bytes).size;
  }

  /** UNMAP with the bitmap: what came back in `bytes` of it. */
  unmapDirty(iova: number, size: number, bytes: number, pgsize = 4096): Uint8Array {
    const data = this.task.memory.map(bytes);
    const head = {
      argsz: vfio_iommu_type1_dma_unmap.size + vfio_bitmap.size,
      flags: VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
    };
    const call = join(
      vfio_iommu_type1_dma_unmap.write({ ...head, iova: BigInt(iova), size: BigInt(size) }),
      vfio_bitmap.write({ pgsize: BigInt(pgsize), size: BigInt(bytes), data: BigInt(data) }),
    );
    this.task.ioctl(this.file, VFIO_IOMMU_UNMAP_DMA, call);
    const bits = new Uint8Array(bytes);
    this.task.memory.read(data, bits);
    return bits;
  }

  /** DIRTY_PAGES without data. */
  dirty(flags: number, argsz = vfio_iommu_type1_dirty_bitmap.size): void {
    this.task.ioctl(this.file, VFIO_IOMMU_DIRTY_PAGES, vfio_iommu_type1_dirty_bitmap.write({ argsz, flags }));
  }

  /** DIRTY_PAGES GET into a bitmap of `bytes` filled with `fill` before. */
  getDirty(iova: bigint | number, size: bigint | number, bytes = 16, pgsize = 4096, fill = 0xcc): Uint8Array {
    const data = this.task.memory.map(4096);
    this.task.memory.write(data, new Uint8Array(4096).fill(fill));
    const argsz = vfio_iommu_type1_dirty_bitmap.size + vfio_iommu_type1_dirty_bitmap_get.size;
    const bitmap = { pgsize: BigInt(pgsize), size: BigInt(bytes), data: BigInt(data) };
    const call = join(
      vfio_iommu_type1_dirty_bitmap.write({ argsz, flags: VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP }),
      vfio_iommu_type1_dirty_bitmap_get.write({ iova: BigInt(iova), size: BigInt(size), bitmap }),
    );
    this.task.ioctl(this.file, VFIO_IOMMU_DIRTY_PAGES, call);
    const bits = new Uint8Array(16);
    this.task.memory.read(data, bits);
    return bits;
  }

  /** GET_INFO with this argsz: the structure and, when it came, the chain by id. */
  info(argsz = 4096): {
    info: vfio_iommu_type1_info;
    caps: { id: number; offset: number; next: number; data: Uint8Array }[];
  } {
    const bytes = new Uint8Array(Math.max(argsz, vfio_iommu_type1_info.size));
    bytes.set(vfio_iommu_type1_info.write({ argsz, flags: 0, iova_pgsizes: 0n, cap_offset: 0, pad: 0 }));
    this.task.ioctl(this.file, VFIO_IOMMU_GET_INFO, bytes);
    const info = vfio_iommu_type1_info.read(bytes);
    const caps = [];
    for (let offset = info.cap_offset; offset !== 0; ) {
      const { id, next } = vfio_info_cap_header.read(bytes.subarray(offset));
      caps.push({
        id,
        offset,
        next,
        data: bytes.slice(offset + vfio_info_cap_header.size, next === 0 ? undefined : next),
      });
      offset = next;
    }
    return { info, caps };
  }

  /** Mappings that the DMA_AVAIL capability says are left. */
  get available(): number {
    const cap = this.info().caps.find(({ id }) => id === 3)!;
    return new DataView(cap.data.buffer).getUint32(0, true);
  }
}

export function setContainer(task: TestTask, group: GroupFile, descriptor: number): void {
  task.ioctl(group, VFIO_GROUP_SET_CONTAINER, new Uint8Array(Int32Array.of(descriptor).buffer));
}

/** The flags of GET_STATUS. */
export function groupStatus(task: TestTask, group: GroupFile, argsz = vfio_group_status.size): number {
  const bytes = vfio_group_status.write({ argsz, flags: 0 });
  task.ioctl(group, VFIO_GROUP_GET_STATUS, bytes);
  return vfio_group_status.read(bytes).flags;
}

export function getDeviceFd(task: TestTask, group: GroupFile, name: string): number {
  return task.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, new TextEncoder().encode(`${name}\0`));
}

/** The device file behind a descriptor. */
export function deviceFile(task: TestTask, descriptor: number): DeviceFile {
  const file = task.file(descriptor);
  assert.ok(file instanceof DeviceFile);
  return file;
}

function join(...parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
