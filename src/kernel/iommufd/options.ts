/**
 * OPTION: how locked memory is accounted, and whether an address space uses large leaves.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import {
  IOMMU_OPTION_HUGE_PAGES,
  IOMMU_OPTION_OP_GET,
  IOMMU_OPTION_OP_SET,
  IOMMU_OPTION_RLIMIT_MODE,
  iommu_option,
} from '../../uapi/iommufd.ts';
import { copyToUser } from '../core/task.ts';
import { getIoas } from './ioas.ts';
import type { Ucmd } from './ucmd.ts';

export function option(ucmd: Ucmd<iommu_option>): void {
  const { cmd, task, address } = ucmd;
  if (cmd.__reserved !== 0) throw new Errno('EOPNOTSUPP', `the reserved member is ${hex(cmd.__reserved)}`);
  if (cmd.option_id === IOMMU_OPTION_RLIMIT_MODE) rlimitMode(ucmd);
  else if (cmd.option_id === IOMMU_OPTION_HUGE_PAGES) hugePages(ucmd);
  else throw new Errno('EOPNOTSUPP', `there is no option ${cmd.option_id}`);
  // Only the value goes back.
  const value = new Uint8Array(8);
  new DataView(value.buffer).setBigUint64(0, cmd.val64, true);
  copyToUser(task, address + BigInt(iommu_option.offsets.val64), value);
}

function rlimitMode({ context, cmd, task }: Ucmd<iommu_option>): void {
  if (cmd.object_id !== 0)
    throw new Errno('EOPNOTSUPP', 'the accounting is that of the whole iommufd, not of an object');
  if (cmd.op === IOMMU_OPTION_OP_GET) {
    cmd.val64 = context.accountMode === 'mm' ? 1n : 0n;
    return;
  }
  if (cmd.op !== IOMMU_OPTION_OP_SET) throw new Errno('EOPNOTSUPP', `operation ${cmd.op}`);
  if (!task.capable('CAP_SYS_RESOURCE')) throw new Errno('EPERM', 'the accounting needs CAP_SYS_RESOURCE');
  if (!context.isEmpty) throw new Errno('EBUSY', 'the accounting can be changed only before there are objects');
  if (cmd.val64 > 1n) throw new Errno('EINVAL', `accounting ${cmd.val64}; there are 0 (user) and 1 (process)`);
  context.accountMode = cmd.val64 === 1n ? 'mm' : 'user';
}

function hugePages({ context, cmd }: Ucmd<iommu_option>): void {
  const { iopt } = getIoas(context, cmd.object_id);
  if (cmd.op === IOMMU_OPTION_OP_GET) {
    cmd.val64 = iopt.isSmallPagesOnly ? 0n : 1n;
    return;
  }
  if (cmd.op !== IOMMU_OPTION_OP_SET) throw new Errno('EOPNOTSUPP', `operation ${cmd.op}`);
  if (cmd.val64 === 0n) iopt.disableLargePages();
  else if (cmd.val64 === 1n) iopt.enableLargePages();
  else throw new Errno('EINVAL', `large pages ${cmd.val64}; there are 0 (off) and 1 (on)`);
}
