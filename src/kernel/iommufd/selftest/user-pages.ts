/** Which physical page lies behind an address of a program now, and how often it is pinned. */
import { Errno } from '../../../lib/errno.ts';
import { hex } from '../../../lib/pages.ts';
import type { Mm } from '../../core/mm.ts';
import type { Task } from '../../core/task.ts';
import type { IommufdContext } from '../context.ts';

export interface UserPage {
  /** The address space that the page is counted in: a file's or the program's. Undefined: a file of which nothing is pinned. */
  readonly mm: Mm | undefined;
  readonly page: number;
}

/** EFAULT: nothing is mapped there. */
export function userPage(context: IommufdContext, task: Task, address: bigint): UserPage {
  const at = address < 1n << 47n ? Number(address) : 2 ** 47;
  const vma = at < 2 ** 47 ? task.mm.memory.vma(at) : undefined;
  if (vma === undefined || vma.device !== undefined || !vma.readable) {
    throw new Errno('EFAULT', `the program has no page at ${hex(address)}`);
  }
  if (vma.file === undefined) return { mm: task.mm, page: Math.floor(at / 4096) };
  const page = Math.floor((vma.file.offset + (at - vma.start)) / 4096);
  return { mm: context.core.files.find(vma.file.identity), page };
}

/** The physical page, -1 when it is not pinned. EFAULT. */
export function physicalOfUser(context: IommufdContext, task: Task, address: bigint): number {
  const { mm, page } = userPage(context, task, address);
  return mm?.physicalOf(page) ?? -1;
}
