/**
 * An IOMMU for tests: page tables that are plain maps, devices that a test makes by the line, and a program with an open iommufd.
 */
import assert from 'node:assert/strict';
import { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { Errno } from '../../lib/errno.ts';
import type { Members, Struct, TypeOf } from '../../lib/struct.ts';
import * as uapi from '../../uapi/iommufd.ts';
import { IOMMU_HWPT_ALLOC_PASID } from '../../uapi/iommufd.ts';
import { TestTask, type TestTaskOptions } from '../core/test-task.ts';
import { IommufdCore } from './core.ts';
import { bindIommu, type IommufdDevice } from './device.ts';
import type { DeviceIommu, NestedDomain, UserData } from './device-iommu.ts';
import type { IommufdFile } from './main.ts';
import type { PagingDomain } from './paging-domain.ts';
import type { IovaRange } from './reserved-iovas.ts';

export const READ_WRITE = uapi.IOMMU_IOAS_MAP_READABLE | uapi.IOMMU_IOAS_MAP_WRITEABLE;
export const FIXED = uapi.IOMMU_IOAS_MAP_FIXED_IOVA;

/** A page table: page → physical page and permissions. */
export class TestDomain implements PagingDomain {
  readonly pgsizeBitmap: bigint;
  readonly firstPage = 0;
  readonly lastPage = 2 ** 36 - 1;
  readonly pages = new Map<number, { physicalPage: number; prot: number }>();
  /** Calls of `map`: how the area was cut into runs. */
  maps = 0;
  /** How many pages may still be mapped; then ENOMEM. */
  room = Number.POSITIVE_INFINITY;
  enforces = false;
  isFreed = false;
  attachments = 0;

  constructor(pgsizeBitmap = 0x4020_1000n) {
    this.pgsizeBitmap = pgsizeBitmap;
  }

  map(page: number, physicalPage: number, count: number, prot: number): void {
    this.maps++;
    for (let i = 0; i < count; i++) assert(!this.pages.has(page + i), 'mapped twice');
    if (count > this.room) throw new Errno('ENOMEM', 'no room for tables');
    this.room -= count;
    for (let i = 0; i < count; i++) this.pages.set(page + i, { physicalPage: physicalPage + i, prot });
  }

  unmap(page: number, count: number): number {
    for (let i = 0; i < count; i++) {
      if (!this.pages.delete(page + i)) return i;
      this.room++;
    }
    return count;
  }

  physicalOf(page: number): number {
    return this.pages.get(page)?.physicalPage ?? -1;
  }

  enforceCacheCoherency(): boolean {
    this.enforces = true;
    return true;
  }

  free(): void {
    assert.equal(this.attachments, 0, 'freed while attached');
    assert.equal(this.pages.size, 0, 'freed while filled');
    this.isFreed = true;
  }
}

/** What the devices of a group share. */
export class TestGroup {
  domain: TestDomain | undefined;
  owner: object | undefined;
  owners = 0;
}

export interface TestIommuOptions {
  readonly group?: TestGroup;
  readonly canEnforceCoherency?: boolean;
  readonly isCoherent?: boolean;
  readonly hasIsolatedMsi?: boolean;
  readonly maxPasids?: number;
  readonly reserved?: readonly IovaRange[];
  readonly driver?: object;
  readonly pgsizeBitmap?: bigint;
}

const defaultDriver = {};
let devices = 0;

export class TestIommu implements DeviceIommu {
  readonly name: string;
  readonly group: TestGroup;
  readonly driver: object;
  readonly isCoherent: boolean;
  readonly canEnforceCoherency: boolean;
  readonly hasIsolatedMsi: boolean;
  readonly hasDirtyTracking = false;
  readonly hasAts = false;
  readonly maxPasids: number;
  readonly hasSharedPageRequests = false;
  /** Every domain that was made for it. */
  readonly domains: TestDomain[] = [];
  readonly pasids = new Map<number, TestDomain>();
  readonly #reserved: readonly IovaRange[];
  readonly #pgsizeBitmap: bigint | undefined;

  constructor(options: TestIommuOptions = {}) {
    this.name = `test${devices++}`;
    this.group = options.group ?? new TestGroup();
    this.driver = options.driver ?? defaultDriver;
    this.isCoherent = options.isCoherent ?? true;
    this.canEnforceCoherency = options.canEnforceCoherency ?? false;
    this.hasIsolatedMsi = options.hasIsolatedMsi ?? true;
    this.maxPasids = options.maxPasids ?? 0;
    this.#reserved = options.reserved ?? [{ first: 0xfee0_0000n, last: 0xfeef_ffffn }];
    this.#pgsizeBitmap = options.pgsizeBitmap;
  }

  hwInfo(): { type: number; data: Uint8Array } {
    return { type: 77, data: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8) };
  }

  allocatePaging(flags: number, data: UserData | undefined): PagingDomain {
    if ((flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0 || data !== undefined) throw new Errno('EOPNOTSUPP', 'not this one');
    const domain = new TestDomain(this.#pgsizeBitmap);
    this.domains.push(domain);
    return domain;
  }

  claim(owner: object): void {
    const { group } = this;
    if (group.owner !== undefined && group.owner !== owner) throw new Errno('EPERM', 'the group is held');
    group.owner = owner;
    group.owners++;
  }

  release(): void {
    if (--this.group.owners === 0) this.group.owner = undefined;
  }

  reservedRanges(): IovaRange[] {
    return [...this.#reserved];
  }

  attach(domain: PagingDomain | NestedDomain): void {
    assert.equal(this.group.domain, undefined);
    this.#use(domain);
  }

  detach(): void {
    this.group.domain!.attachments--;
    this.group.domain = undefined;
  }

  replace(domain: PagingDomain | NestedDomain): void {
    const old = this.group.domain!;
    this.#use(domain);
    old.attachments--;
  }

  attachPasid(domain: PagingDomain | NestedDomain, pasid: number): void {
    (domain as TestDomain).attachments++;
    this.pasids.set(pasid, domain as TestDomain);
  }

  detachPasid(pasid: number): void {
    this.pasids.get(pasid)!.attachments--;
    this.pasids.delete(pasid);
  }

  replacePasid(domain: PagingDomain | NestedDomain, pasid: number): void {
    this.detachPasid(pasid);
    this.attachPasid(domain, pasid);
  }

  /** The pages that the device reaches now. */
  get domain(): TestDomain | undefined {
    return this.group.domain;
  }

  #use(domain: PagingDomain | NestedDomain): void {
    if (!this.domains.includes(domain as TestDomain) && !(domain instanceof TestDomain)) {
      throw new Errno('EINVAL', 'the table does not fit');
    }
    (domain as TestDomain).attachments++;
    this.group.domain = domain as TestDomain;
  }
}

/** A program with one open iommufd. */
export class TestProgram {
  readonly physical: PhysicalMemory;
  readonly core: IommufdCore;
  readonly task: TestTask;
  readonly file: IommufdFile;
  readonly descriptor: number;

  constructor(options: TestTaskOptions & { core?: IommufdCore } = {}) {
    this.physical = options.core?.physical ?? options.physical ?? new PhysicalMemory();
    this.core = options.core ?? new IommufdCore({ physical: this.physical });
    this.task = new TestTask({ ...options, physical: this.physical });
    const { descriptor, file } = this.task.open(this.core.open(this.task));
    this.descriptor = descriptor;
    this.file = file;
  }

  bind(iommu: TestIommu): IommufdDevice {
    return bindIommu(this.file.context, iommu);
  }

  /** A call with `size` filled in; members that are not given are zero. Returns the structure afterwards. */
  call<M extends Members>(request: number, type: Struct<M>, given: Partial<TypeOf<Struct<M>>>): TypeOf<Struct<M>> {
    const zero = type.read(new Uint8Array(type.size)) as TypeOf<Struct<M>>;
    const bytes = type.write({ ...zero, size: type.size, ...given } as never);
    this.task.ioctl(this.file, request, bytes);
    return type.read(bytes) as TypeOf<Struct<M>>;
  }

  ioas(): number {
    return this.call(uapi.IOMMU_IOAS_ALLOC, uapi.iommu_ioas_alloc, {}).out_ioas_id;
  }

  /** Maps memory at a fixed IOVA, or anywhere when it is undefined; returns where. */
  map(
    ioas: number,
    iova: bigint | undefined,
    address: number | bigint,
    length: number | bigint,
    flags = READ_WRITE,
  ): bigint {
    return this.call(uapi.IOMMU_IOAS_MAP, uapi.iommu_ioas_map, {
      flags: flags | (iova === undefined ? 0 : FIXED),
      ioas_id: ioas,
      user_va: BigInt(address),
      length: BigInt(length),
      iova: iova ?? 0n,
    }).iova;
  }

  mapFile(ioas: number, iova: bigint, fd: number, start: bigint, length: bigint, flags = READ_WRITE): bigint {
    return this.call(uapi.IOMMU_IOAS_MAP_FILE, uapi.iommu_ioas_map_file, {
      flags: flags | FIXED,
      ioas_id: ioas,
      fd,
      start,
      length,
      iova,
    }).iova;
  }

  copy(
    dst: number,
    dstIova: bigint | undefined,
    src: number,
    srcIova: bigint,
    length: bigint,
    flags = READ_WRITE,
  ): bigint {
    return this.call(uapi.IOMMU_IOAS_COPY, uapi.iommu_ioas_copy, {
      flags: flags | (dstIova === undefined ? 0 : FIXED),
      dst_ioas_id: dst,
      src_ioas_id: src,
      length,
      dst_iova: dstIova ?? 0n,
      src_iova: srcIova,
    }).dst_iova;
  }

  /** Bytes that were removed. */
  unmap(ioas: number, iova: bigint, length: bigint): bigint {
    return this.call(uapi.IOMMU_IOAS_UNMAP, uapi.iommu_ioas_unmap, { ioas_id: ioas, iova, length }).length;
  }

  destroy(id: number): void {
    this.call(uapi.IOMMU_DESTROY, uapi.iommu_destroy, { id });
  }

  hwpt(device: number, pt: number, given: Partial<uapi.iommu_hwpt_alloc> = {}): number {
    return this.call(uapi.IOMMU_HWPT_ALLOC, uapi.iommu_hwpt_alloc, { dev_id: device, pt_id: pt, ...given }).out_hwpt_id;
  }

  /** Usable ranges as text, and how many there are. */
  ranges(ioas: number, room = 16): { text: string; count: number; alignment: bigint } {
    const at = this.task.memory.map(4096);
    const answer = this.call(uapi.IOMMU_IOAS_IOVA_RANGES, uapi.iommu_ioas_iova_ranges, {
      ioas_id: ioas,
      num_iovas: room,
      allowed_iovas: BigInt(at),
    });
    const parts: string[] = [];
    for (let i = 0; i < Math.min(room, answer.num_iovas); i++) {
      const bytes = new Uint8Array(16);
      this.task.memory.read(at + i * 16, bytes);
      const { start, last } = uapi.iommu_iova_range.read(bytes);
      parts.push(`${start.toString(16)}-${last.toString(16)}`);
    }
    this.task.memory.unmap(at, 4096);
    return { text: parts.join(' '), count: answer.num_iovas, alignment: answer.out_iova_alignment };
  }

  allow(ioas: number, ranges: readonly [bigint, bigint][]): void {
    const at = this.task.memory.map(4096);
    ranges.forEach(([start, last], i) => {
      this.task.memory.write(at + i * 16, uapi.iommu_iova_range.write({ start, last }));
    });
    try {
      this.call(uapi.IOMMU_IOAS_ALLOW_IOVAS, uapi.iommu_ioas_allow_iovas, {
        ioas_id: ioas,
        num_iovas: ranges.length,
        allowed_iovas: BigInt(at),
      });
    } finally {
      this.task.memory.unmap(at, 4096);
    }
  }

  /** The program ends, and nothing of it may be left. */
  end(): void {
    this.task.exit();
    assert.equal(this.task.mm.pins, 0, 'pages stay pinned');
    assert.equal(this.task.mm.pinnedPages, 0);
    assert.equal(this.task.mm.lockedPages, 0);
    assert.equal(this.core.userLocked.pages, 0);
    assert.equal(this.physical.blocks, 0);
    assert.equal(this.core.files.size, 0);
    assert.equal(this.file.context.objects.size, 0);
  }
}
