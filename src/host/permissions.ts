/** Who may open what: the owner, group and mode of a node or live file, against the credentials of who opens it. */
import { Errno } from '../lib/errno.ts';

export const MAY_READ = 4;
export const MAY_WRITE = 2;

export interface Ownership {
  readonly uid: number;
  readonly gid: number;
  /** Permission bits. */
  readonly mode: number;
}

/** As the system sees a process at this moment. */
export interface Credentials {
  /** The one that files are opened with. */
  readonly uid: number;
  readonly groups: readonly number[];
  /** Root that may pass over permissions (CAP_DAC_OVERRIDE). */
  readonly overrides: boolean;
}

/** EACCES: `who` may not use the file in this way. `who` is asked only when it matters. */
export function permit(path: string, { uid, gid, mode }: Ownership, wanted: number, who: () => Credentials): void {
  const everybody = mode & (mode >> 3) & (mode >> 6);
  if ((everybody & wanted) === wanted) return;
  const caller = who();
  if (caller.overrides) return;
  const [whose, bits] =
    caller.uid === uid
      ? ['its owner', mode >> 6]
      : caller.groups.includes(gid)
        ? ['its group', mode >> 3]
        : ['others', mode];
  if ((bits & wanted) === wanted) return;
  const octal = (mode & 0o777).toString(8).padStart(4, '0');
  throw new Errno(
    'EACCES',
    `${path} has mode ${octal} and belongs to user ${uid}, group ${gid}: ${whose} may not ${
      wanted === MAY_READ ? 'read it' : wanted === MAY_WRITE ? 'write it' : 'read and write it'
    } (user ${caller.uid} asks; chown or chmod would let him)`,
  );
}
