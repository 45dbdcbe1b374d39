/** Reads and writes that are longer than a message: the program's memory is reached directly, a piece at a time. */
import type { File } from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import type { Program } from './processes.ts';

const CHUNK = 2 ** 20;
const TASK_END = 2 ** 47;

export class LongTransfers {
  #chunk: Uint8Array | undefined;

  /** From `offset` of the file to `address` of the program. The bytes done; after the first piece an error only ends it. EFAULT. */
  read(program: Program, file: File, offset: number, count: number, address: number): number {
    this.#chunk ??= new Uint8Array(CHUNK);
    let done = 0;
    while (done < count) {
      const part = this.#chunk.subarray(0, Math.min(count - done, CHUNK));
      const n = partOf(done, () => file.read(program.process, part, offset + done));
      if (n <= 0) break;
      if (!(address + done < TASK_END && program.memory.write(address + done, part.subarray(0, n)))) {
        if (done > 0) break;
        throw new Errno('EFAULT', `${n} bytes at 0x${address.toString(16)} cannot be written`);
      }
      done += n;
      if (n < part.length) break;
    }
    return done;
  }

  /** From `address` of the program to `offset` of the file. */
  write(program: Program, file: File, offset: number, count: number, address: number): number {
    this.#chunk ??= new Uint8Array(CHUNK);
    let done = 0;
    while (done < count) {
      const part = this.#chunk.subarray(0, Math.min(count - done, CHUNK));
      if (!(address + done < TASK_END && program.memory.read(address + done, part))) {
        if (done > 0) break;
        throw new Errno('EFAULT', `${part.length} bytes at 0x${address.toString(16)} cannot be read`);
      }
      const n = partOf(done, () => file.write(program.process, part, offset + done));
      if (n <= 0) break;
      done += n;
      if (n < part.length) break;
    }
    return done;
  }
}

/** The result of a piece; after the first one an error is the end of the transfer. */
function partOf(done: number, part: () => number): number {
  try {
    return part();
  } catch (error) {
    if (done > 0 && error instanceof Errno) return 0;
    throw error;
  }
}
