/** A program for tests with an iommufd of a machine that has the mock driver: its operations as functions. */
import { PhysicalMemory } from '../../../hw/memory/physical-memory.ts';
import type { Members, Struct, TypeOf } from '../../../lib/struct.ts';
import * as uapi from '../../../uapi/iommufd.ts';
import * as test from '../../../uapi/iommufd-test.ts';
import type { File } from '../../core/file.ts';
import type { TestTaskOptions } from '../../core/test-task.ts';
import { IommufdCore } from '../core.ts';
import { TestProgram } from '../test-iommu.ts';

export class MockProgram extends TestProgram {
  constructor(options: TestTaskOptions & { core?: IommufdCore } = {}) {
    super({ ...options, core: options.core ?? new IommufdCore({ physical: new PhysicalMemory(), selftest: true }) });
  }

  /** One operation; returns its members afterwards. */
  test<M extends Members>(
    op: number,
    id: number,
    table: Struct<M>,
    given: Partial<TypeOf<Struct<M>>>,
  ): TypeOf<Struct<M>> {
    const bytes = this.command(op, id, table, given);
    this.task.ioctl(this.file, uapi.IOMMU_TEST_CMD, bytes);
    return table.read(bytes.subarray(test.IOMMU_TEST_UNION)) as TypeOf<Struct<M>>;
  }

  command<M extends Members>(op: number, id: number, table: Struct<M>, given: Partial<TypeOf<Struct<M>>>): Uint8Array {
    const { size } = test.iommu_test_cmd;
    const bytes = new Uint8Array(size);
    new DataView(bytes.buffer).setUint32(0, size, true);
    new DataView(bytes.buffer).setUint32(4, op, true);
    new DataView(bytes.buffer).setUint32(8, id, true);
    const zero = table.read(new Uint8Array(table.size)) as TypeOf<Struct<M>>;
    bytes.set(table.write({ ...zero, ...given } as never), test.IOMMU_TEST_UNION);
    return bytes;
  }

  /** A mock device attached to an address space or a page table. */
  device(pt: number, flags?: number): { stdev: number; hwpt: number; idev: number } {
    const op = flags === undefined ? test.IOMMU_TEST_OP_MOCK_DOMAIN : test.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS;
    const members = this.test(op, pt, test.test_mock_domain, { dev_flags: flags ?? 0 });
    return { stdev: members.out_stdev_id, hwpt: members.out_hwpt_id, idev: members.out_idev_id };
  }

  replace(stdev: number, pt_id: number): number {
    return this.test(test.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, test.test_mock_domain_replace, { pt_id }).pt_id;
  }

  /** The descriptor of a new access. */
  access(ioas: number, flags = 0): number {
    return this.test(test.IOMMU_TEST_OP_CREATE_ACCESS, ioas, test.test_create_access, { flags }).out_access_fd;
  }

  pages(access: number, iova: bigint, length: bigint, address: number, flags = 0): number {
    const given = { flags, iova, length, uptr: BigInt(address) };
    return this.test(test.IOMMU_TEST_OP_ACCESS_PAGES, access, test.test_access_pages, given).out_access_pages_id;
  }

  unpinPages(access: number, access_pages_id: number): void {
    this.test(test.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, access, test.test_destroy_access_pages, { access_pages_id });
  }

  rw(access: number, iova: bigint, length: bigint, address: number, flags = 0): void {
    const given = { flags, iova, length, uptr: BigInt(address) };
    this.test(test.IOMMU_TEST_OP_ACCESS_RW, access, test.test_access_rw, given);
  }

  checkMap(hwpt: number, iova: bigint, length: bigint, address: number): void {
    this.test(test.IOMMU_TEST_OP_MD_CHECK_MAP, hwpt, test.test_check_map, { iova, length, uptr: BigInt(address) });
  }

  checkRefs(length: bigint, address: number, refs: number): void {
    this.test(test.IOMMU_TEST_OP_MD_CHECK_REFS, 0, test.test_check_refs, { length, uptr: BigInt(address), refs });
  }

  /** A nested table, whose words are all `iotlb`. */
  nested(device: number, parent: number, given: Partial<uapi.iommu_hwpt_alloc> = {}): number {
    return this.withBytes(test.iommu_hwpt_selftest.write({ iotlb: 7, pagetable_type: 0 }), (data_uptr, data_len) =>
      this.hwpt(device, parent, { data_type: test.IOMMU_HWPT_DATA_SELFTEST, data_len, data_uptr, ...given }),
    );
  }

  viommu(dev_id: number, hwpt_id: number, hasData = false): number {
    const data = test.iommu_viommu_selftest.write({
      in_data: 5,
      out_data: 0,
      out_mmap_offset: 0n,
      out_mmap_length: 0n,
    });
    return this.withBytes(data, (data_uptr, data_len) => {
      const given = { type: test.IOMMU_VIOMMU_TYPE_SELFTEST, dev_id, hwpt_id };
      const more = hasData ? { data_uptr, data_len } : {};
      return this.call(uapi.IOMMU_VIOMMU_ALLOC, uapi.iommu_viommu_alloc, { ...given, ...more }).out_viommu_id;
    });
  }

  vdevice(viommu_id: number, dev_id: number, virt_id: bigint): number {
    return this.call(uapi.IOMMU_VDEVICE_ALLOC, uapi.iommu_vdevice_alloc, { viommu_id, dev_id, virt_id }).out_vdevice_id;
  }

  faultQueue(): { id: number; fd: number } {
    const answer = this.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.iommu_fault_alloc, {});
    return { id: answer.out_fault_id, fd: answer.out_fault_fd };
  }

  veventq(viommu_id: number, veventq_depth = 4): { id: number; fd: number } {
    const given = { viommu_id, type: test.IOMMU_VEVENTQ_TYPE_SELFTEST, veventq_depth };
    const answer = this.call(uapi.IOMMU_VEVENTQ_ALLOC, uapi.iommu_veventq_alloc, given);
    return { id: answer.out_veventq_id, fd: answer.out_veventq_fd };
  }

  hwQueue(viommu_id: number, index: number, iova: bigint, length: bigint): number {
    const given = { viommu_id, type: test.IOMMU_HW_QUEUE_TYPE_SELFTEST, index, nesting_parent_iova: iova, length };
    return this.call(uapi.IOMMU_HW_QUEUE_ALLOC, uapi.iommu_hw_queue_alloc, given).out_hw_queue_id;
  }

  /** The descriptor of a new dma-buf. */
  dmabuf(length: number): number {
    const bytes = this.command(test.IOMMU_TEST_OP_DMABUF_GET, 0, test.test_dmabuf_get, { length, open_flags: 0 });
    return this.task.ioctl(this.file, uapi.IOMMU_TEST_CMD, bytes);
  }

  revoke(dmabuf_fd: number, revoked: number): void {
    this.test(test.IOMMU_TEST_OP_DMABUF_REVOKE, 0, test.test_dmabuf_revoke, { dmabuf_fd, revoked });
  }

  pasid(op: number, stdev: number, pasid: number, pt_id = 0): void {
    this.test(op, stdev, test.test_pasid_attach, { pasid, pt_id });
  }

  iopf(dev_id: number, pasid = 0): void {
    this.test(test.IOMMU_TEST_OP_TRIGGER_IOPF, 0, test.test_trigger_iopf, {
      dev_id,
      pasid,
      grpid: 1,
      perm: 1,
      addr: 0x1000n,
    });
  }

  vevent(dev_id: number): void {
    this.test(test.IOMMU_TEST_OP_TRIGGER_VEVENT, 0, test.test_trigger_vevent, { dev_id });
  }

  /** The file behind a descriptor. */
  opened(fd: number): File {
    return this.task.file(fd);
  }

  withBytes<T>(bytes: Uint8Array, call: (address: bigint, length: number) => T): T {
    const at = this.task.memory.map(4096);
    this.task.memory.write(at, bytes);
    try {
      return call(BigInt(at), bytes.length);
    } finally {
      this.task.memory.unmap(at, 4096);
    }
  }
}
