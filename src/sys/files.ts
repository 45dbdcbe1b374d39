/** What a descriptor is, and the few things done with files outside node:fs. */
import { fstatSync, readlinkSync } from 'node:fs';
import * as libc from './libc.ts';
import { must } from './libc.ts';

const F_GETFL = 3;
const F_DUPFD_CLOEXEC = 1030;
const F_GET_SEALS = 1034;
const F_SEAL_SHRINK = 2;
const S_IFSOCK = 0o140000;

/** What /proc says that a descriptor of ours is: `anon_inode:[eventfd]`, a path, … */
export function linkOf(fd: number): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return '?';
  }
}

/** Device and inode of the file behind a descriptor, as /proc/PID/maps names them, and its length. */
export function inodeOf(fd: number): { major: number; minor: number; inode: number; length: number } {
  const stat = fstatSync(fd, { bigint: true });
  const dev = stat.dev;
  return {
    major: Number(((dev >> 8n) & 0xfffn) | ((dev >> 32n) & 0xfffff000n)),
    minor: Number((dev & 0xffn) | ((dev >> 12n) & 0xffffff00n)),
    inode: Number(stat.ino),
    length: Number(stat.size),
  };
}

/** Seals of a memfd; undefined for a file that is none (neither of tmpfs nor of hugetlbfs). */
export function sealsOf(fd: number): { canShrink: boolean } | undefined {
  const seals = libc.fcntl(fd, F_GET_SEALS, 0);
  return seals < 0 ? undefined : { canShrink: (seals & F_SEAL_SHRINK) === 0 };
}

/** Whether a descriptor was opened for writing, too. */
export function isWritable(fd: number): boolean {
  return (libc.fcntl(fd, F_GETFL, 0) & 3) === 2;
}

/** A second descriptor for the same open file. Minus the errno. */
export function duplicate(fd: number): number {
  const copy = libc.fcntl(fd, F_DUPFD_CLOEXEC, 3);
  return copy < 0 ? -libc.lastErrno() : copy;
}

export function closeDescriptor(fd: number): void {
  libc.close(fd);
}

/** An inode at a path that nobody can open: the place of a device node. */
export function makeSocketNode(path: string): void {
  must(`mknod ${path}`, libc.mknod(path, S_IFSOCK | 0o600, 0));
}
