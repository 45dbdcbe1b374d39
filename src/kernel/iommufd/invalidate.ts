/**
 * HWPT_INVALIDATE: a guest has changed its own table and says what the IOMMU must forget.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import type { iommu_hwpt_invalidate } from '../../uapi/iommufd.ts';
import { HwptNested } from './hw-pagetable.ts';
import type { Ucmd } from './ucmd.ts';
import { Viommu } from './viommu.ts';

const LONGEST_ENTRY = 4096;
const MOST_ENTRIES = 2 ** 19;

/** Tells in any case how many entries were done. */
export function hwptInvalidate(ucmd: Ucmd<iommu_hwpt_invalidate>): void {
  let done = 0;
  let refusal: Errno | undefined;
  try {
    ({ done, refusal } = invalidate(ucmd));
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    refusal = error;
  }
  ucmd.cmd.entry_num = done;
  ucmd.respond();
  if (refusal !== undefined) throw refusal;
}

function invalidate({ context, cmd, task }: Ucmd<iommu_hwpt_invalidate>): { done: number; refusal: Errno | undefined } {
  if (cmd.__reserved !== 0) throw new Errno('EOPNOTSUPP', `the reserved member is ${hex(cmd.__reserved)}`);
  const { entry_num, entry_len } = cmd;
  if (
    entry_num > 0 &&
    (cmd.data_uptr === 0n || entry_len === 0 || entry_len > LONGEST_ENTRY || entry_num > MOST_ENTRIES)
  ) {
    throw new Errno('EINVAL', `${entry_num} entries of ${entry_len} bytes at ${hex(cmd.data_uptr)}`);
  }
  const request = {
    type: cmd.data_type,
    address: cmd.data_uptr,
    entryLength: entry_len,
    entryCount: entry_num,
  };
  const target = context.get(cmd.hwpt_id);
  if (!(target instanceof HwptNested) && !(target instanceof Viommu)) {
    throw new Errno('EINVAL', `object ${cmd.hwpt_id} is a ${target.kind}, not a nested page table or a virtual IOMMU`);
  }
  const invalidator = target instanceof HwptNested ? target.domain : target.ops;
  if (invalidator.invalidate === undefined) {
    throw new Errno('EOPNOTSUPP', `object ${cmd.hwpt_id} has nothing that could be invalidated`);
  }
  const { done, refusal } = invalidator.invalidate(task, request);
  return { done, refusal };
}
