/** A request in words, for --explain and --trace. */
import type { File } from '../../host/index.ts';
import { ioctlName } from './call-names.ts';
import type { Program } from './processes.ts';
import {
  OP_ACCESS,
  OP_IOCTL,
  OP_MMAP,
  OP_NAME,
  OP_OPEN,
  OP_PREAD,
  OP_PWRITE,
  OP_STAT,
  OP_TRAP_READ,
  OP_TRAP_WRITE,
  wide,
} from './protocol.ts';
import type { CallRecord } from './reporter.ts';

/** `q`: the words of the request; `file`: behind its handle, if it has one; `path`: the text of its payload. */
export function callRecord(
  q: Uint32Array,
  file: File | undefined,
  path: () => string,
  program: Program,
  result: number,
  why: string | undefined,
): CallRecord {
  const common = { program: program.process.name, pid: program.pid, result, why };
  const name = file?.path ?? '';
  const at = (word: number): string => `0x${wide(q[word]!, q[word + 1]!).toString(16)}`;
  switch (q[0]) {
    case OP_IOCTL:
      return { ...common, call: 'ioctl', file: name, details: `${ioctlName(file?.kind ?? '', q[4]!)}, ${at(6)}` };
    case OP_PREAD:
    case OP_PWRITE: {
      const where = q[4] === 0xffff_ffff && q[5] === 0xffff_ffff ? 'its position' : at(4);
      const call = q[0] === OP_PREAD ? 'pread' : 'pwrite';
      return { ...common, call, file: name, details: `${at(6)} bytes at ${where}` };
    }
    case OP_TRAP_READ:
    case OP_TRAP_WRITE: {
      const call = q[0] === OP_TRAP_READ ? 'load' : 'store';
      return { ...common, call, file: name, details: `${q[6]} bytes at ${at(4)}` };
    }
    case OP_MMAP:
      return { ...common, call: 'mmap', file: name, details: `${at(4)} bytes at ${at(10)}` };
    case OP_OPEN:
      return { ...common, call: 'open', file: path(), details: `flags 0x${q[4]!.toString(16)}` };
    case OP_ACCESS:
      return { ...common, call: 'access', file: path(), details: `mode ${q[4]}` };
    case OP_STAT:
      return { ...common, call: 'stat', file: file === undefined ? path() : name, details: '' };
    default:
      return { ...common, call: q[0] === OP_NAME ? 'readlink' : `operation ${q[0]}`, file: name, details: '' };
  }
}
