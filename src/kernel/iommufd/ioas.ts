/**
 * Address spaces as a program sees them: IOAS_ALLOC, IOVA_RANGES, ALLOW_IOVAS, MAP, MAP_FILE, COPY, UNMAP.
 *
 * A handler is only the policy of its call: flags, limits, numbers. What happens is in io-pagetable.ts.
 */
import { Errno } from '../../lib/errno.ts';
import { hex, U64_MAX } from '../../lib/pages.ts';
import {
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  type iommu_ioas_alloc,
  type iommu_ioas_allow_iovas,
  type iommu_ioas_copy,
  type iommu_ioas_iova_ranges,
  type iommu_ioas_map,
  type iommu_ioas_map_file,
  type iommu_ioas_unmap,
  iommu_iova_range,
} from '../../uapi/iommufd.ts';
import { DmaBuf } from '../core/dma-buf.ts';
import { copyFromUser, copyToUser, type MemoryFile, type Task } from '../core/task.ts';
import { IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from '../iommu/domain.ts';
import { lastOf, type Slice } from './area.ts';
import { type IommufdContext, IommufdObject } from './context.ts';
import { DmabufPages } from './dmabuf-pages.ts';
import type { HwptPaging } from './hw-pagetable.ts';
import { IoPagetable } from './io-pagetable.ts';
import { Pages, type PagesAccount } from './pages.ts';
import { takeOut } from './paging-domain.ts';
import { type IovaRange, show } from './reserved-iovas.ts';
import type { Ucmd } from './ucmd.ts';

const MAP_FLAGS = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE;
/** Ranges that one ALLOW_IOVAS may list; the kernel's bound is its memory. */
const MOST_ALLOWED = 65_536;

export class Ioas extends IommufdObject {
  readonly kind = 'ioas';
  readonly iopt = new IoPagetable();
  /** Its page tables in the order of their making. */
  readonly hwpts = new Set<HwptPaging>();

  override destroy(): void {
    const { refusal } = this.iopt.unmapRange(0n, U64_MAX);
    if (refusal !== undefined) throw refusal;
  }
}

/** ENOENT. */
export function getIoas(context: IommufdContext, id: number): Ioas {
  const object = context.get(id);
  if (!(object instanceof Ioas)) throw new Errno('ENOENT', `object ${id} is a ${object.kind}, not an address space`);
  return object;
}

export function ioasAlloc(ucmd: Ucmd<iommu_ioas_alloc>): void {
  const { context, cmd } = ucmd;
  if (cmd.flags !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}: there are none`);
  const ioas = new Ioas(context);
  cmd.out_ioas_id = ioas.id;
  try {
    ucmd.respond();
  } catch (error) {
    context.abort(ioas);
    throw error;
  }
  context.publish(ioas);
}

export function ioasIovaRanges(ucmd: Ucmd<iommu_ioas_iova_ranges>): void {
  const { context, cmd, task } = ucmd;
  if (cmd.__reserved !== 0) throw new Errno('EOPNOTSUPP', `the reserved member is ${hex(cmd.__reserved)}`);
  const { iopt } = getIoas(context, cmd.ioas_id);
  const ranges = iopt.reserved.usable;
  const room = cmd.num_iovas;
  cmd.num_iovas = ranges.length;
  cmd.out_iova_alignment = iopt.alignment;
  let address = cmd.allowed_iovas;
  for (const { first, last } of ranges.slice(0, room)) {
    copyToUser(task, address, iommu_iova_range.write({ start: first, last }));
    address += BigInt(iommu_iova_range.size);
  }
  ucmd.respond();
  if (ranges.length > room) throw new Errno('EMSGSIZE', `there are ${ranges.length} ranges and room for ${room}`);
}

export function ioasAllowIovas({ context, cmd, task }: Ucmd<iommu_ioas_allow_iovas>): void {
  if (cmd.__reserved !== 0) throw new Errno('EOPNOTSUPP', `the reserved member is ${hex(cmd.__reserved)}`);
  const { iopt } = getIoas(context, cmd.ioas_id);
  const ranges: IovaRange[] = [];
  for (let i = 0; i < cmd.num_iovas; i++) {
    if (i === MOST_ALLOWED) throw new Errno('ENOMEM', `more than ${MOST_ALLOWED} ranges are listed`);
    const address = cmd.allowed_iovas + BigInt(i * iommu_iova_range.size);
    const { start, last } = iommu_iova_range.read(copyFromUser(task, address, iommu_iova_range.size));
    if (start >= last) throw new Errno('EINVAL', `range ${i} is ${hex(start)}-${hex(last)}`);
    insertSorted(ranges, { first: start, last });
  }
  iopt.reserved.allow(ranges);
}

/** EINVAL: it overlaps one that is there. */
function insertSorted(ranges: IovaRange[], range: IovaRange): void {
  let at = ranges.length;
  while (at > 0 && ranges[at - 1]!.first > range.first) at--;
  const [before, after] = [ranges[at - 1], ranges[at]];
  if ((before !== undefined && before.last >= range.first) || (after !== undefined && after.first <= range.last)) {
    throw new Errno('EINVAL', `${show(range)} is allowed twice`);
  }
  ranges.splice(at, 0, range);
}

export function ioasMap(ucmd: Ucmd<iommu_ioas_map>): void {
  const { context, cmd, task } = ucmd;
  if ((cmd.flags & ~MAP_FLAGS) !== 0 || cmd.__reserved !== 0) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}, reserved member ${hex(cmd.__reserved)}`);
  }
  const prot = checkedProt(cmd.flags, cmd.iova, cmd.length);
  const { iopt } = getIoas(context, cmd.ioas_id);
  const wanted = (cmd.flags & IOMMU_IOAS_MAP_FIXED_IOVA) === 0 ? undefined : cmd.iova;
  cmd.iova = mapUserPages(context, task, iopt, wanted, cmd.user_va, cmd.length, prot);
  ucmd.respond();
}

export function ioasMapFile(ucmd: Ucmd<iommu_ioas_map_file>): void {
  const { context, cmd, task } = ucmd;
  if ((cmd.flags & ~MAP_FLAGS) !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}`);
  const prot = checkedProt(cmd.flags, cmd.iova, cmd.length);
  const { iopt } = getIoas(context, cmd.ioas_id);
  lastOf(cmd.start, cmd.length);
  const pages = filePages(context, task, cmd.fd, cmd.start, cmd.length, (prot & IOMMU_WRITE) !== 0);
  const wanted = (cmd.flags & IOMMU_IOAS_MAP_FIXED_IOVA) === 0 ? undefined : cmd.iova;
  const slice = { pages, firstIndex: 0, pageOffset: Number(cmd.start & 0xfffn), length: cmd.length };
  cmd.iova = mapSlices(iopt, [slice], cmd.length, wanted, prot);
  ucmd.respond();
}

export function ioasCopy(ucmd: Ucmd<iommu_ioas_copy>): void {
  const { context, cmd } = ucmd;
  if ((cmd.flags & ~MAP_FLAGS) !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}`);
  if (cmd.src_iova >= U64_MAX) throw new Errno('EOVERFLOW', `source ${hex(cmd.src_iova)}`);
  const prot = checkedProt(cmd.flags, cmd.dst_iova, cmd.length);
  const slices = getIoas(context, cmd.src_ioas_id).iopt.slices(cmd.src_iova, cmd.length);
  let destination: Ioas;
  try {
    destination = getIoas(context, cmd.dst_ioas_id);
  } catch (error) {
    for (const { pages } of slices) pages.put();
    throw error;
  }
  const wanted = (cmd.flags & IOMMU_IOAS_MAP_FIXED_IOVA) === 0 ? undefined : cmd.dst_iova;
  cmd.dst_iova = mapSlices(destination.iopt, slices, cmd.length, wanted, prot);
  ucmd.respond();
}

export function ioasUnmap(ucmd: Ucmd<iommu_ioas_unmap>): void {
  const { context, cmd } = ucmd;
  const { iopt } = getIoas(context, cmd.ioas_id);
  const isAll = cmd.iova === 0n && cmd.length === U64_MAX;
  if (!isAll && (cmd.iova === U64_MAX || cmd.length === U64_MAX)) {
    throw new Errno('EOVERFLOW', `${hex(cmd.length)} bytes at ${hex(cmd.iova)}`);
  }
  const { bytes, refusal } = isAll ? iopt.unmapRange(0n, U64_MAX) : iopt.unmap(cmd.iova, cmd.length);
  if (refusal !== undefined) throw refusal;
  if (!isAll && bytes === 0n) {
    throw new Errno('ENOENT', `nothing is mapped in ${hex(cmd.length)} bytes at ${hex(cmd.iova)}`);
  }
  cmd.length = bytes;
  ucmd.respond();
}

/** Maps a program's memory; for MAP and for the container's MAP_DMA. */
export function mapUserPages(
  context: IommufdContext,
  task: Task,
  iopt: IoPagetable,
  iova: bigint | undefined,
  address: bigint,
  length: bigint,
  prot: number,
): bigint {
  if (address + length > U64_MAX) throw new Errno('EOVERFLOW', `${hex(length)} bytes of memory at ${hex(address)}`);
  if (length === 0n) throw new Errno('EINVAL', 'the length is 0');
  const pageOffset = Number(address & 0xfffn);
  const pages = new Pages({
    kind: 'user',
    task,
    mm: task.mm,
    firstPage: Number(address >> 12n),
    count: Number((BigInt(pageOffset) + length + 4095n) >> 12n),
    isWritable: (prot & IOMMU_WRITE) !== 0,
    account: accountOf(context, task),
    userLocked: context.core.userLocked,
    files: context.core.files,
  });
  return mapSlices(iopt, [{ pages, firstIndex: 0, pageOffset, length }], length, iova, prot);
}

function mapSlices(
  iopt: IoPagetable,
  slices: readonly Slice[],
  length: bigint,
  iova: bigint | undefined,
  prot: number,
): bigint {
  try {
    return iopt.map(slices, length, iova, prot);
  } catch (error) {
    for (const { pages } of slices) pages.put();
    throw error;
  }
}

/** EBADF. Those of `DmabufPages` for a dma-buf. That another file has no pages of its own is found out when they are pinned. */
function filePages(
  context: IommufdContext,
  task: Task,
  descriptor: number,
  start: bigint,
  length: bigint,
  isWritable: boolean,
): Pages {
  const open = task.file(descriptor);
  if (open instanceof DmaBuf) {
    return new DmabufPages(task, open, start, length, {
      isWritable,
      userLocked: context.core.userLocked,
      remove: (area, domain) => takeOut(domain, area),
    });
  }
  let file: MemoryFile | undefined;
  try {
    file = task.memoryFile(descriptor);
  } catch (error) {
    if (!(error instanceof Errno) || error.code === 'EBADF') throw error;
  }
  const mapped = file === undefined ? undefined : context.core.files.open(file);
  return new Pages({
    kind: 'file',
    task,
    mm: mapped?.mm,
    firstPage: Number(start >> 12n),
    count: Number(((start & 0xfffn) + length + 4095n) >> 12n),
    isWritable,
    account: accountOf(context, task),
    userLocked: context.core.userLocked,
    ...(mapped === undefined ? {} : { release: () => mapped.release() }),
  });
}

function accountOf(context: IommufdContext, task: Task): PagesAccount {
  return task.capable('CAP_IPC_LOCK') ? 'none' : context.accountMode;
}

/** EOVERFLOW: a number at the very end of 64 bits. EINVAL: neither readable nor writable. */
function checkedProt(flags: number, iova: bigint, length: bigint): number {
  if (iova === U64_MAX || length === U64_MAX) throw new Errno('EOVERFLOW', `${hex(length)} bytes at ${hex(iova)}`);
  if ((flags & (IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE)) === 0) {
    throw new Errno('EINVAL', 'the map is neither readable nor writable');
  }
  const write = (flags & IOMMU_IOAS_MAP_WRITEABLE) === 0 ? 0 : IOMMU_WRITE;
  const read = (flags & IOMMU_IOAS_MAP_READABLE) === 0 ? 0 : IOMMU_READ;
  return IOMMU_CACHE | write | read;
}
