/** What a descriptor is, and the few things done with files outside node:fs. */
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync, statSync, writeSync } from 'node:fs';
import * as libc from './libc.ts';
import { must } from './libc.ts';
import { Region } from './memory.ts';

const F_GETFL = 3;
const F_DUPFD_CLOEXEC = 1030;
const F_GET_SEALS = 1034;
const F_SEAL_SHRINK = 2;
const S_IFSOCK = 0o140000;
const MFD_CLOEXEC = 1;
const AT_EMPTY_PATH = 0x1000;
const STATX_INO_SIZE = 0x300;
/** struct statx: the same on every architecture. */
const stat = new Region(256);

/** What /proc says that a descriptor of ours is: `anon_inode:[eventfd]`, a path, … */
export function linkOf(fd: number): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return '?';
  }
}

/** Device and inode of the file behind a descriptor, as /proc/PID/maps names them, and its length. SystemError. */
export function inodeOf(fd: number): { major: number; minor: number; inode: number; length: number } {
  must('statx', libc.statx(fd, '', AT_EMPTY_PATH, STATX_INO_SIZE, stat.address));
  return { major: stat.u32[34]!, minor: stat.u32[35]!, inode: stat.word(32), length: stat.word(40) };
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

/** A memfd with a text in it, for reading by somebody else. SystemError. */
export function textFile(name: string, text: string): number {
  const fd = must('memfd_create', libc.memfd_create(name, MFD_CLOEXEC));
  // Written at a place of its own: whoever gets the descriptor reads from the start.
  writeSync(fd, text, 0);
  return fd;
}

/** /proc/PID/status with more locked and pinned pages than the system counts. Undefined: there is no such process. */
export function statusWith(
  pid: number,
  more: { readonly locked: number; readonly pinned: number },
): string | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/status`, 'utf8');
  } catch {
    return undefined;
  }
  const add = (name: string, pages: number): void => {
    text = text.replace(new RegExp(`^(${name}:\\s*)(\\d+)`, 'm'), (_, head: string, kilobytes: string) => {
      const width = head.length + kilobytes.length;
      const value = String(Number(kilobytes) + pages * 4);
      return name.length + 1 + value.length >= width
        ? `${name}:\t${value}`
        : head.trimEnd() + value.padStart(width - name.length - 1);
    });
  };
  add('VmLck', more.locked);
  add('VmPin', more.pinned);
  return text;
}

/** Whether /proc/PID/map_files may be used, which takes a right that few have; undefined: not tried yet. */
let hasMapFiles: boolean | undefined;

/**
 * Opens the file behind a shared mapping of another process, by the mapping itself or by one of the process's descriptors. `key` as in
 * `Mapping`. -1: it cannot be reached.
 */
export function openMapped(pid: number, start: number, end: number, key: string, isWritable: boolean): number {
  const mode = isWritable ? 'r+' : 'r';
  if (hasMapFiles !== false) {
    try {
      const fd = openSync(`/proc/${pid}/map_files/${start.toString(16)}-${end.toString(16)}`, mode);
      hasMapFiles = true;
      if (isKey(fd, key)) return fd;
      closeSync(fd);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EPERM') hasMapFiles = false;
    }
  }
  return openByDescriptor(pid, key, mode);
}

function openByDescriptor(pid: number, key: string, mode: string): number {
  const inode = Number(key.slice(key.lastIndexOf(':') + 1));
  let names: string[];
  try {
    names = readdirSync(`/proc/${pid}/fd`);
  } catch {
    return -1;
  }
  // The library keeps its descriptors at the upper end.
  for (const name of names.reverse()) {
    const path = `/proc/${pid}/fd/${name}`;
    try {
      if (statSync(path).ino !== inode) continue;
      const fd = openSync(path, mode);
      if (isKey(fd, key)) return fd;
      closeSync(fd);
    } catch {
      // Closed meanwhile, or not ours to open.
    }
  }
  return -1;
}

function isKey(fd: number, key: string): boolean {
  const { major, minor, inode } = inodeOf(fd);
  return `${major}:${minor}:${inode}` === key;
}
