/**
 * IOAS_CHANGE_PROCESS: a program that was handed an iommufd takes over what is charged for its file maps. Maps of a program's own
 * memory cannot move, because they are that memory.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import type { iommu_ioas_change_process } from '../../uapi/iommufd.ts';
import type { Task } from '../core/task.ts';
import type { IommufdContext } from './context.ts';
import { Ioas } from './ioas.ts';
import { chargePages, type Pages, type PagesAccount, unchargePages } from './pages.ts';
import type { Ucmd } from './ucmd.ts';

export function ioasChangeProcess({ context, cmd, task }: Ucmd<iommu_ioas_change_process>): void {
  if (cmd.__reserved !== 0) throw new Errno('EOPNOTSUPP', `the reserved member is ${hex(cmd.__reserved)}`);
  const all = fileMaps(context);
  const charged = new Map<PagesAccount, number>();
  for (const pages of all) {
    if (needsMove(pages, task)) charged.set(pages.account, (charged.get(pages.account) ?? 0) + pages.pinned);
  }
  const { userLocked } = context.core;
  const done: [PagesAccount, number][] = [];
  try {
    for (const account of ['none', 'user', 'mm'] as const) {
      const count = charged.get(account) ?? 0;
      if (count === 0) continue;
      chargePages(task, account, userLocked, count);
      done.push([account, count]);
    }
  } catch (error) {
    for (const [account, count] of done) unchargePages(task, account, userLocked, count);
    throw error;
  }
  for (const pages of all) {
    if (needsMove(pages, task)) pages.moveTo(task);
    else pages.retask(task);
  }
}

/** All pages of the context, which are all of files. EINVAL. */
function fileMaps(context: IommufdContext): Set<Pages> {
  const all = new Set<Pages>();
  for (const [id, object] of context.objects.entries()) {
    if (!(object instanceof Ioas)) continue;
    for (const area of object.iopt.areas) {
      if (area.pages.kind !== 'file') {
        throw new Errno('EINVAL', `address space ${id} maps memory of a program at ${hex(area.first)}, not a file`);
      }
      all.add(area.pages);
    }
  }
  return all;
}

/** Pages that nobody is charged for stay as they are. */
function needsMove(pages: Pages, task: Task): boolean {
  return pages.account !== 'none' && pages.task.mm !== task.mm;
}
