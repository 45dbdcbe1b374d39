/** Numbers of the protocol with the preloaded library: docs/run-protocol.md. */
export const PROTOCOL_VERSION = 1;

export const OP_HELLO = 1;
export const OP_OPEN = 2;
export const OP_IOCTL = 3;
export const OP_PREAD = 4;
export const OP_PWRITE = 5;
export const OP_MMAP = 6;
export const OP_TRAP_READ = 7;
export const OP_TRAP_WRITE = 8;
export const OP_FDS = 9;
export const OP_STAT = 10;
export const OP_NAME = 11;
export const OP_ACCESS = 12;

/** Answer of OPEN, STAT and ACCESS for a path that is not the box's. */
export const PASS = 1;

export const KIND_ANSWER = 0;
export const KIND_ASK = 1;

export const NO_DESCRIPTOR = -2;
export const DESCRIPTOR_IS_RESULT = -1;
export const FLAG_CLOSE_ON_EXEC = 1;
/** The last word of the header is the byte of the argument at which this request names a descriptor of the box. */
export const FLAG_NAMES_DESCRIPTOR = 2;

export const REQUEST_HEADER = 48;
export const REPLY_HEADER = 32;
/** A path of PATH_MAX, or the data of one write; nothing longer is sent. */
export const LONGEST_PAYLOAD = 4096;
/** A reply may carry what a call stores at its argument. Longer results are written into the program's memory. */
export const LONGEST_REPLY = 61440;
/** Bytes of a read that travel in the reply. */
export const LONGEST_READ_PAYLOAD = 4096;
export const LONGEST_TRAP = 64;

/** Open flags. */
export const O_CLOEXEC = 0o2000000;

/** A 64-bit field as a number; above 2^53 inexact, which is as good as too large everywhere. */
export function wide(low: number, high: number): number {
  return high === 0 ? low : low + high * 0x1_0000_0000;
}
