/** Operations that look inside: which page is mapped where, how often it is pinned, what is dirty; and reserved IOVAs. */
import { Errno } from '../../../lib/errno.ts';
import { hex, U64_MAX } from '../../../lib/pages.ts';
import {
  MOCK_NESTED_DOMAIN_IOTLB_ID_MAX,
  test_add_reserved,
  test_check_iotlb,
  test_check_map,
  test_check_refs,
  test_dirty,
} from '../../../uapi/iommufd-test.ts';
import { copyFromUser } from '../../core/task.ts';
import { getHwptPaging, HwptNested } from '../hw-pagetable.ts';
import { getIoas } from '../ioas.ts';
import type { TestCall } from './command.ts';
import { MockDomain, MockNested } from './mock-domain.ts';
import { GRANULE } from './mock-table.ts';
import { userPage } from './user-pages.ts';

/** The owner of ranges that nobody takes back. */
const FOREVER = {};
/** Bits of the longest bitmap: 16 MiB. */
const MOST_DIRTY = 16n * 1024n * 1024n * 8n;

/** ENOENT. EINVAL: of another driver. */
function getMockDomain(call: TestCall): MockDomain {
  const { domain } = getHwptPaging(call.context, call.id);
  if (!(domain instanceof MockDomain)) throw new Errno('EINVAL', `page table ${call.id} is not the mock driver's`);
  return domain;
}

export function addReserved(call: TestCall): void {
  const { start, length } = call.members(test_add_reserved);
  if (length === 0n) throw new Errno('EINVAL', 'nothing is to be reserved');
  const last = start + length - 1n;
  if (last > U64_MAX) throw new Errno('EOVERFLOW', `${hex(length)} bytes at ${hex(start)}`);
  getIoas(call.context, call.id).iopt.reserve({ first: start, last }, FOREVER);
}

export function checkMap(call: TestCall): void {
  const { iova, length, uptr } = call.members(test_check_map);
  const domain = getMockDomain(call);
  const size = domain.pgsizeBitmap & -domain.pgsizeBitmap;
  if (iova % size !== 0n || length % size !== 0n || uptr % size !== 0n || uptr + length > U64_MAX) {
    throw new Errno('EINVAL', `${hex(length)} bytes at ${hex(iova)} and ${hex(uptr)} are not multiples of ${size}`);
  }
  for (let done = 0n; done < length; done += size) {
    const address = uptr + done;
    const { mm, page } = userPage(call.context, call.task, address);
    const physical = mm?.physicalOf(page) ?? -1;
    const wanted = physical < 0 ? -1 : physical * 2 + Number(address & 0xfffn) / GRANULE;
    const granule = domain.table.physicalOf(Number((iova + done) / BigInt(GRANULE)));
    if (granule < 0 || granule !== wanted) {
      throw new Errno('EINVAL', `${hex(iova + done)} does not lead to the page at ${hex(address)}`);
    }
  }
}

export function checkRefs(call: TestCall): void {
  const { length, uptr, refs } = call.members(test_check_refs);
  if (length % 4096n !== 0n || uptr % 4096n !== 0n || uptr + length > U64_MAX) {
    throw new Errno('EINVAL', `${hex(length)} bytes at ${hex(uptr)} are not whole pages`);
  }
  for (let done = 0n; done < length; done += 4096n) {
    const { mm, page } = userPage(call.context, call.task, uptr + done);
    const pins = mm?.pinsOf(page) ?? 0;
    if (pins !== refs) throw new Errno('EIO', `the page at ${hex(uptr + done)} is pinned ${pins} times, not ${refs}`);
  }
}

export function checkIotlb(call: TestCall): void {
  const { id, iotlb } = call.members(test_check_iotlb);
  const object = call.context.get(call.id);
  if (!(object instanceof HwptNested)) throw new Errno('ENOENT', `object ${call.id} is not a nested page table`);
  if (!(object.domain instanceof MockNested)) throw new Errno('EINVAL', "the page table is not the mock driver's");
  if (id > MOCK_NESTED_DOMAIN_IOTLB_ID_MAX || object.domain.iotlb[id] !== iotlb) {
    throw new Errno('EINVAL', `word ${id} is ${hex(object.domain.iotlb[id] ?? 0)}, not ${hex(iotlb)}`);
  }
}

/** The devices write to the pages whose bits are set. */
export function dirty(call: TestCall): void {
  const members = call.members(test_dirty);
  const { iova, length, page_size, uptr } = members;
  if (page_size === 0n || length === 0n || iova % page_size !== 0n || length % page_size !== 0n || uptr === 0n) {
    throw new Errno('EINVAL', `${hex(length)} bytes at ${hex(iova)} in pages of ${page_size}, bitmap ${hex(uptr)}`);
  }
  const count = length / page_size;
  if (count > MOST_DIRTY) throw new Errno('EOVERFLOW', `${count} pages; ${MOST_DIRTY} are possible`);
  const domain = getMockDomain(call);
  if (!domain.isTracking) throw new Errno('EINVAL', 'dirty tracking is off');
  const bits = copyFromUser(call.task, uptr, Math.ceil(Number(count) / 8));
  let found = 0;
  for (let i = 0; i < Number(count); i++) {
    if (((bits[i >> 3]! >> (i & 7)) & 1) === 0) continue;
    domain.table.setDirty(Number((iova + BigInt(i) * page_size) / BigInt(GRANULE)));
    found++;
  }
  members.out_nr_dirty = BigInt(found);
  call.respond(test_dirty, members);
}
