/**
 * What the drivers of mediated devices do with a container: hold single pages of the program's memory, read and write it by IOVA.
 *
 * Contract: when a driver hears by `dmaUnmap` that a range vanishes, it lets go of all pages of it before it returns.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import { IOMMU_READ, IOMMU_WRITE } from '../iommu/domain.ts';
import type { IommuGroup } from '../iommu/group.ts';
import type { Type1 } from './type1.ts';
import { markDirty } from './type1-dirty.ts';
import { type Dma, extraOf, type PinnedPage } from './type1-dma.ts';
import { checkLimit } from './type1-pin.ts';

/** Pages of one call. */
export const PIN_PAGES_MAX = 512;

/**
 * Holds the pages at IOVA pages `iovas` for a device of `iommuGroup` and returns where they are physically. A page held twice has
 * to be let go twice. E2BIG, EINVAL (nothing mapped, or no hardware page), EACCES (version 1), EBUSY (an address is being changed),
 * EPERM (not mapped for `prot`), ENOMEM (the owner's limit), EFAULT. On failure nothing is held.
 */
export function pinPages(type1: Type1, iommuGroup: IommuGroup, iovas: readonly number[], prot: number): number[] {
  if (iovas.length > PIN_PAGES_MAX) {
    throw new Errno('E2BIG', `${iovas.length} pages are more than ${PIN_PAGES_MAX} in one call`);
  }
  if (iovas.length === 0) throw new Errno('EINVAL', 'no page is asked for');
  if (type1.version === 1) throw new Errno('EACCES', 'version 1 of the driver pins no single pages');
  if (type1.vaddrInvalidCount > 0)
    throw new Errno('EBUSY', `${type1.vaddrInvalidCount} mappings wait for a new address`);
  if (type1.devices.size === 0)
    throw new Errno('EINVAL', 'no device of the container wants to hear of unmaps, so none may pin');
  const pages: number[] = [];
  try {
    for (const iova of iovas) pages.push(pinOne(type1, iova, prot));
  } catch (error) {
    unpinPages(type1, iovas.slice(0, pages.length));
    throw error;
  }
  const group = type1.findGroup(iommuGroup);
  if (group !== undefined && !group.isPinnedScope) {
    group.isPinnedScope = true;
    type1.unscopedGroups--;
  }
  return pages;
}

/** Lets pages go. Stops at the first IOVA at which nothing is mapped; returns how many were not let go because of that. */
export function unpinPages(type1: Type1, iovas: readonly number[]): number {
  let done = 0;
  for (; done < iovas.length; done++) {
    const iova = iovas[done]!;
    const dma = type1.dmas.get(iova);
    if (dma === undefined) break;
    const held = dma.pinned?.get(iova);
    if (held === undefined || --held.references > 0) continue;
    dma.mm.unpin(dma.page + (iova - dma.first), 1);
    dma.pinned!.delete(iova);
    if (!dma.isMapped) dma.account(-1);
  }
  return iovas.length - done;
}

/**
 * Copies between `buffer` and the program's memory at byte address `iova`, over as many mappings as it takes. EINVAL: nothing is
 * mapped there; EPERM: not for this; EBUSY: an address is being changed; EFAULT: the memory is not there any more. What was copied
 * before a failure stays.
 */
export function dmaRw(type1: Type1, iova: bigint, buffer: Uint8Array, isWrite: boolean): void {
  if (type1.vaddrInvalidCount > 0)
    throw new Errno('EBUSY', `${type1.vaddrInvalidCount} mappings wait for a new address`);
  let done = 0;
  while (done < buffer.length) {
    const at = iova + BigInt(done);
    const page = Number(at >> 12n);
    const dma = type1.dmas.get(page);
    if (dma === undefined) throw new Errno('EINVAL', `nothing is mapped at IOVA ${hex(at)}`);
    // A mapping without READ is refused for writes too, as the kernel does.
    if ((isWrite && (dma.prot & IOMMU_WRITE) === 0) || (dma.prot & IOMMU_READ) === 0) {
      throw new Errno('EPERM', `${dma.text} is not mapped for ${isWrite ? 'reading and writing' : 'reading'}`);
    }
    const offset = (page - dma.first) * 4096 + Number(at & 0xfffn);
    const length = Math.min(buffer.length - done, dma.count * 4096 - offset);
    const part = buffer.subarray(done, done + length);
    const address = dma.page * 4096 + offset;
    const isDone = isWrite ? dma.mm.memory.write(address, part) : dma.mm.memory.read(address, part);
    if (!isDone)
      throw new Errno(
        'EFAULT',
        `the memory behind IOVA ${hex(at)}, at ${hex(address)} of process ${dma.task.pid}, is not there`,
      );
    if (isWrite) markDirty(type1, dma, page, Math.floor((offset + length - 1) / 4096) - Math.floor(offset / 4096) + 1);
    done += length;
  }
}

function pinOne(type1: Type1, iova: number, prot: number): number {
  const dma = type1.dmas.get(iova);
  if (dma === undefined) throw new Errno('EINVAL', `nothing is mapped at IOVA ${hex(BigInt(iova) << 12n)}`);
  if ((dma.prot & prot) !== prot) {
    throw new Errno('EPERM', `protection ${prot} is asked for, ${dma.text} allows ${dma.prot} (1 read, 2 write)`);
  }
  const held = dma.pinned?.get(iova);
  if (held !== undefined) {
    held.references++;
    return held.physicalPage;
  }
  const physicalPage = holdPage(dma, dma.page + (iova - dma.first));
  const extra = extraOf(dma);
  extra.pinned ??= new Map<number, PinnedPage>();
  extra.pinned.set(iova, { physicalPage, references: 1 });
  markDirty(type1, dma, iova, 1);
  return physicalPage;
}

/** Pins one page of the owner's memory, counted unless the whole mapping is pinned already. */
function holdPage(dma: Dma, page: number): number {
  const [vma] = dma.mm.check(page * 4096, 4096, (dma.prot & IOMMU_WRITE) !== 0);
  if (vma?.device !== undefined)
    throw new Errno('EINVAL', `${hex(page * 4096)} is device memory and has no page to hold`);
  if (!dma.isMapped) checkLimit(dma, 1);
  const physicalPage = dma.mm.pin(page, 1)[0]!.firstPage;
  if (!dma.isMapped) dma.account(1);
  return physicalPage;
}
