/**
 * Refusals: the kernel's errno together with the reason the kernel never tells.
 *
 * A call that is refused throws an `Errno`. It is caught in exactly one place per door, where the number goes to the
 * caller and the reason to `--explain` and the trace. Anything else that is thrown is a bug.
 */

/** Linux numbers of x86-64 and arm64 (include/uapi/asm-generic/errno*.h). */
export const errnoNumbers = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  EXDEV: 18,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOTTY: 25,
  EFBIG: 27,
  ENOSPC: 28,
  ESPIPE: 29,
  EROFS: 30,
  EPIPE: 32,
  EDOM: 33,
  ERANGE: 34,
  EDEADLOCK: 35,
  ENAMETOOLONG: 36,
  ENOSYS: 38,
  ELOOP: 40,
  ENOMSG: 42,
  ETIME: 62,
  EBADE: 52,
  EOVERFLOW: 75,
  EBADFD: 77,
  EMSGSIZE: 90,
  EOPNOTSUPP: 95,
  EADDRINUSE: 98,
  ECONNRESET: 104,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  ECANCELED: 125,
} as const;

export type ErrnoName = keyof typeof errnoNumbers;

/** A refused call: `code` is the errno's name, `errno` its (positive) number, `why` the reason in one sentence. */
export class Errno extends Error {
  readonly code: ErrnoName;
  readonly errno: number;
  readonly why: string;

  constructor(code: ErrnoName, why: string) {
    super(`${code}: ${why}`);
    this.name = 'Errno';
    this.code = code;
    this.errno = errnoNumbers[code];
    this.why = why;
  }
}

const names = new Map<number, ErrnoName>(Object.entries(errnoNumbers).map(([name, n]) => [n, name as ErrnoName]));

/** The name of a positive errno, `errno 123` for one that is not in the table. */
export function errnoName(errno: number): string {
  return names.get(errno) ?? `errno ${errno}`;
}
