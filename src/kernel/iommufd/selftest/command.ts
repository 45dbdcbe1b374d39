/**
 * IOMMU_TEST_CMD: the ioctl of kernels that are built for tests, by which the kernel's own suite makes mock devices and looks inside.
 * One file for each group of operations; this is their table.
 */
import { Errno } from '../../../lib/errno.ts';
import type { Members, Struct, TypeOf } from '../../../lib/struct.ts';
import * as uapi from '../../../uapi/iommufd-test.ts';
import type { NewDescriptor } from '../../core/file.ts';
import { copyToUser, type Task } from '../../core/task.ts';
import type { IommufdContext } from '../context.ts';
import { type IoctlOp, respondFails } from '../ucmd.ts';
import { accessPages, accessReplaceIoas, accessRw, createAccess, destroyAccessPages } from './access.ts';
import { addReserved, checkIotlb, checkMap, checkRefs, dirty } from './checks.ts';
import {
  checkDevCache,
  mockDomain,
  mockDomainReplace,
  pasidAttach,
  pasidCheckHwpt,
  pasidDetach,
  pasidReplace,
  triggerIopf,
  triggerVevent,
} from './devices.ts';
import { dmabufGet, dmabufRevoke } from './dmabuf.ts';

/** One call while it is handled: its structure as bytes, of which each operation reads its own members. */
export class TestCall {
  readonly context: IommufdContext;
  readonly task: Task;
  readonly id: number;
  readonly op: number;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #address: bigint;
  readonly #userSize: number;

  constructor(context: IommufdContext, task: Task, bytes: Uint8Array, address: bigint, userSize: number) {
    this.context = context;
    this.task = task;
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.op = this.#view.getUint32(4, true);
    this.id = this.#view.getUint32(8, true);
    this.#address = address;
    this.#userSize = userSize;
  }

  members<M extends Members>(table: Struct<M>): TypeOf<Struct<M>> {
    return table.get(this.#view, uapi.IOMMU_TEST_UNION) as TypeOf<Struct<M>>;
  }

  /** Stores one member and copies the structure back. EFAULT. */
  respond<M extends Members>(table: Struct<M>, members: TypeOf<Struct<M>>): void {
    respondFails.hit();
    table.set(this.#view, uapi.IOMMU_TEST_UNION, members as never);
    copyToUser(this.task, this.#address, this.#bytes.subarray(0, Math.min(this.#userSize, this.#bytes.length)));
  }
}

// biome-ignore lint/suspicious/noConfusingVoidType: most operations return nothing.
type Operation = (call: TestCall) => NewDescriptor | void;

const operations: ReadonlyMap<number, Operation> = new Map<number, Operation>([
  [uapi.IOMMU_TEST_OP_ADD_RESERVED, addReserved],
  [uapi.IOMMU_TEST_OP_MOCK_DOMAIN, mockDomain],
  [uapi.IOMMU_TEST_OP_MD_CHECK_MAP, checkMap],
  [uapi.IOMMU_TEST_OP_MD_CHECK_REFS, checkRefs],
  [uapi.IOMMU_TEST_OP_CREATE_ACCESS, createAccess],
  [uapi.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, destroyAccessPages],
  [uapi.IOMMU_TEST_OP_ACCESS_PAGES, accessPages],
  [uapi.IOMMU_TEST_OP_ACCESS_RW, accessRw],
  [uapi.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, setMemoryLimit],
  [uapi.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, mockDomainReplace],
  [uapi.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, accessReplaceIoas],
  [uapi.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, mockDomain],
  [uapi.IOMMU_TEST_OP_DIRTY, dirty],
  [uapi.IOMMU_TEST_OP_MD_CHECK_IOTLB, checkIotlb],
  [uapi.IOMMU_TEST_OP_TRIGGER_IOPF, triggerIopf],
  [uapi.IOMMU_TEST_OP_DEV_CHECK_CACHE, checkDevCache],
  [uapi.IOMMU_TEST_OP_TRIGGER_VEVENT, triggerVevent],
  [uapi.IOMMU_TEST_OP_PASID_ATTACH, pasidAttach],
  [uapi.IOMMU_TEST_OP_PASID_REPLACE, pasidReplace],
  [uapi.IOMMU_TEST_OP_PASID_DETACH, pasidDetach],
  [uapi.IOMMU_TEST_OP_PASID_CHECK_HWPT, pasidCheckHwpt],
  [uapi.IOMMU_TEST_OP_DMABUF_GET, dmabufGet],
  [uapi.IOMMU_TEST_OP_DMABUF_REVOKE, dmabufRevoke],
]);

/** The row of the table of requests. EOPNOTSUPP: no such operation. */
export const testOp: IoctlOp = {
  size: uapi.iommu_test_cmd.size,
  minimum: uapi.iommu_test_cmd.endOf('last'),
  execute(context, task, bytes, address, userSize) {
    const call = new TestCall(context, task, bytes, address, userSize);
    const operation = operations.get(call.op);
    if (operation === undefined) throw new Errno('EOPNOTSUPP', `the mock driver has no operation ${call.op}`);
    return operation(call) ?? undefined;
  },
};

/** How much memory pinning may use at a time: nothing of it is visible here. EINVAL: less than one entry of a batch. */
function setMemoryLimit(call: TestCall): void {
  const { limit } = call.members(uapi.test_memory_limit);
  if (limit < 12) throw new Errno('EINVAL', `a limit of ${limit} bytes; a batch has at least 12`);
}
