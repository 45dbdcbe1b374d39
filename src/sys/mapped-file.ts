/**
 * A file of a program, mapped into this process for DMA.
 *
 * The program may cut the file at any time, and an access beyond its end would end this process. So the mapping is reached only through
 * the system (process_vm_readv on ourselves), which answers EFAULT instead; no JavaScript view of it exists and it can be unmapped.
 */
import { mapFailed, PAGE } from './constants.ts';
import * as libc from './libc.ts';
import { lastErrno, SystemError } from './libc.ts';
import { ProcessMemory } from './process-memory.ts';

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_NORESERVE = 0x4000;
const self = new ProcessMemory(libc.getpid());

export class MappedFile {
  readonly length: number;
  readonly #address: number;
  readonly #isWritable: boolean;
  #closed = false;

  /** Maps `length` bytes from the start of the file. SystemError. */
  constructor(fd: number, length: number, isWritable: boolean) {
    this.length = length;
    this.#isWritable = isWritable;
    if (length === 0) {
      this.#address = 0;
      return;
    }
    const prot = isWritable ? PROT_READ | PROT_WRITE : PROT_READ;
    this.#address = libc.mmap(0, Math.ceil(length / PAGE) * PAGE, prot, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (mapFailed(this.#address)) throw new SystemError('mmap', lastErrno());
  }

  read(offset: number, into: Uint8Array): boolean {
    if (this.#closed || offset + into.length > this.length) return false;
    return self.read(this.#address + offset, into);
  }

  write(offset: number, from: Uint8Array): boolean {
    if (this.#closed || !this.#isWritable || offset + from.length > this.length) return false;
    return self.write(this.#address + offset, from);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.length > 0) libc.munmap(this.#address, Math.ceil(this.length / PAGE) * PAGE);
  }
}
