/** Numbers of Linux on x86-64 and arm64 that several files of this folder need. */
import { constants } from 'node:buffer';

export const PAGE = 4096;
/** The longest buffer that one view may span. */
export const MAX_LENGTH = constants.MAX_LENGTH;

/** mmap answers MAP_FAILED, (void *)-1, which a Number cannot hold exactly. */
export function mapFailed(address: number): boolean {
  return address > 2 ** 52;
}

export const EINTR = 4;
export const EAGAIN = 11;
