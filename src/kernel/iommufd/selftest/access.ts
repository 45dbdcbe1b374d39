/**
 * Operations on accesses: what an emulated device does with an address space. The access is a descriptor, and the operations name it by
 * its number in the program.
 */
import { Errno } from '../../../lib/errno.ts';
import { hex } from '../../../lib/pages.ts';
import {
  IOMMU_TEST_UNION,
  MOCK_ACCESS_RW_SLOW_PATH,
  MOCK_ACCESS_RW_WRITE,
  MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES,
  MOCK_FLAGS_ACCESS_SYZ,
  MOCK_FLAGS_ACCESS_WRITE,
  test_access_pages,
  test_access_replace_ioas,
  test_access_rw,
  test_create_access,
  test_destroy_access_pages,
} from '../../../uapi/iommufd-test.ts';
import { File, type NewDescriptor } from '../../core/file.ts';
import { copyFromUser, copyToUser, type Task } from '../../core/task.ts';
import { IommufdAccess } from '../access.ts';
import type { IommufdContext } from '../context.ts';
import type { TestCall } from './command.ts';
import { physicalOfUser } from './user-pages.ts';

/** The most that is pinned or copied by one call. */
const LONGEST = 16n * 1024n * 1024n;

interface Item {
  readonly id: number;
  readonly iova: bigint;
  readonly length: bigint;
}

class AccessFile extends File {
  readonly kind = 'access';
  readonly path = 'anon_inode:[iommufd_test_staccess]';
  readonly iommufd: IommufdAccess;
  #items: Item[] = [];
  #nextId = 0;

  constructor(context: IommufdContext, needsPinPages: boolean) {
    super();
    const unmap = (iova: bigint, length: bigint): void => this.#letGo(iova, iova + length - 1n);
    this.iommufd = new IommufdAccess(context, { needsPinPages, unmap });
  }

  add(iova: bigint, length: bigint): number {
    const id = this.#nextId++;
    this.#items.push({ id, iova, length });
    return id;
  }

  /** False: there is no such item. */
  remove(id: number): boolean {
    const at = this.#items.findIndex((item) => item.id === id);
    if (at < 0) return false;
    const [item] = this.#items.splice(at, 1);
    this.iommufd.unpin(item!.iova, item!.length);
    return true;
  }

  override release(): void {
    for (const { id } of [...this.#items]) this.remove(id);
    this.iommufd.unbind();
  }

  #letGo(first: bigint, last: bigint): void {
    for (const { id, iova, length } of [...this.#items]) {
      if (first <= iova + length - 1n && last >= iova) this.remove(id);
    }
  }
}

/** EBADFD: not an access, or not open. */
function getAccess(task: Task, descriptor: number): AccessFile {
  let file: File;
  try {
    file = task.file(descriptor | 0);
  } catch (error) {
    if (error instanceof Errno) throw new Errno('EBADFD', `descriptor ${descriptor} is not open`);
    throw error;
  }
  if (!(file instanceof AccessFile)) throw new Errno('EBADFD', `descriptor ${descriptor} (${file.path}) is no access`);
  return file;
}

export function createAccess(call: TestCall): NewDescriptor {
  const { context } = call;
  const members = call.members(test_create_access);
  if ((members.flags & ~MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES) !== 0) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(members.flags)} of an access`);
  }
  const file = new AccessFile(context, members.flags !== 0);
  context.publish(file.iommufd);
  try {
    file.iommufd.attach(call.id);
    call.respond(test_create_access, members);
  } catch (error) {
    file.iommufd.unbind();
    throw error;
  }
  return { file, closeOnExec: true, offset: IOMMU_TEST_UNION + test_create_access.offsets.out_access_fd };
}

export function accessReplaceIoas(call: TestCall): void {
  getAccess(call.task, call.id).iommufd.replace(call.members(test_access_replace_ioas).ioas_id);
}

export function destroyAccessPages(call: TestCall): void {
  const { access_pages_id } = call.members(test_destroy_access_pages);
  if (!getAccess(call.task, call.id).remove(access_pages_id)) {
    throw new Errno('ENOENT', `nothing is pinned under number ${access_pages_id}`);
  }
}

export function accessPages(call: TestCall): void {
  const { task } = call;
  const members = call.members(test_access_pages);
  const { flags, length, uptr } = members;
  if (length > LONGEST) throw new Errno('ENOMEM', `${hex(length)} bytes are too many`);
  if ((flags & ~(MOCK_FLAGS_ACCESS_WRITE | MOCK_FLAGS_ACCESS_SYZ)) !== 0) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(flags)}`);
  }
  const file = getAccess(task, call.id);
  const access = file.iommufd;
  if (!access.canPin) throw new Errno('EOPNOTSUPP', 'the access was not made for pinning');
  const iova = (flags & MOCK_FLAGS_ACCESS_SYZ) !== 0 ? access.iovaOfArea(members.iova) : members.iova;
  const pages = access.pin(iova, length, (flags & MOCK_FLAGS_ACCESS_WRITE) !== 0);
  try {
    if (uptr !== 0n) comparePages(call, uptr - (iova & 0xfffn), pages);
    members.out_access_pages_id = file.add(iova, length);
  } catch (error) {
    access.unpin(iova, length);
    throw error;
  }
  try {
    call.respond(test_access_pages, members);
  } catch (error) {
    file.remove(members.out_access_pages_id);
    throw error;
  }
}

/** EBADE: a page is another one than that of the program at this place. EFAULT: the program has none there. */
function comparePages(call: TestCall, address: bigint, pages: readonly number[]): void {
  for (let i = 0; i < pages.length; i++) {
    const at = BigInt.asUintN(64, address + BigInt(i) * 4096n);
    if (physicalOfUser(call.context, call.task, at) !== pages[i])
      throw new Errno('EBADE', `page ${i} is not the one at ${hex(at)}`);
  }
}

export function accessRw(call: TestCall): void {
  const { task } = call;
  const members = call.members(test_access_rw);
  const { flags, length, uptr } = members;
  if (length > LONGEST) throw new Errno('ENOMEM', `${hex(length)} bytes are too many`);
  if ((flags & ~(MOCK_ACCESS_RW_WRITE | MOCK_ACCESS_RW_SLOW_PATH | MOCK_FLAGS_ACCESS_SYZ)) !== 0) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(flags)}`);
  }
  const access = getAccess(task, call.id).iommufd;
  const isWrite = (flags & MOCK_ACCESS_RW_WRITE) !== 0;
  const buffer = isWrite ? copyFromUser(task, uptr, Number(length)) : new Uint8Array(Number(length));
  const iova = (flags & MOCK_FLAGS_ACCESS_SYZ) !== 0 ? access.iovaOfArea(members.iova) : members.iova;
  access.transfer(iova, buffer, isWrite);
  if (!isWrite) copyToUser(task, uptr, buffer);
}
