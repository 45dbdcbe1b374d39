/**
 * Open files: what a descriptor of the box stands for. All doors end here.
 *
 * A handler copies in, acts and copies out without waiting for anything. Descriptors are resolved first, before anything is
 * changed: a door may have to fetch a descriptor from the program and then runs the call again from its start.
 */

import type { SharedMemory } from '../../hw/memory/backing.ts';
import { Errno } from '../../lib/errno.ts';
import type { Task } from './task.ts';

/** The result of a call that makes a descriptor. Without `offset` its number is the return value, else it is stored there as s32. */
export interface NewDescriptor {
  readonly file: File;
  readonly closeOnExec: boolean;
  /** Byte of the ioctl's argument at which the number is stored; the return value is then 0. */
  readonly offset?: number;
}

export type IoctlResult = number | NewDescriptor;

/** What mmap of a file gives. */
export interface FileMapping {
  readonly memory: SharedMemory;
  /** Byte of `memory` at which the mapping starts. */
  readonly offset: number;
  /** Released when the last copy of the mapping is gone; without it, the file itself is held as long. */
  readonly keep?: File;
  /** Accesses are not made to the memory but forwarded one by one to `readDevice`/`writeDevice` of the file. */
  readonly trapped: boolean;
}

export const POLLIN = 0x1;
export const POLLOUT = 0x4;

export abstract class File {
  /** Lower-case word: `container`, `group`, `device`, `iommufd`, `attribute`, … It is part of a handle's name. */
  abstract readonly kind: string;
  /** What readlink of /proc/self/fd/N says. */
  abstract readonly path: string;
  /** What poll says changes by itself: the file tells when there is something to read. */
  readonly isEventQueue: boolean = false;
  /** Set by whoever waits for the file: called when there is something to read. */
  onReadable: (() => void) | undefined;
  /** Of the file as read() and write() use it. */
  position = 0;
  #holds = 0;
  #isClosed = false;

  ioctl(_task: Task, _request: number, _argument: bigint): IoctlResult {
    throw new Errno('ENOTTY', `${this.path} has no ioctls`);
  }

  /** Reads at `position`; the length wanted is that of `into`. Returns the bytes read. */
  read(_task: Task, _into: Uint8Array, _position: number): number {
    throw new Errno('EINVAL', `${this.path} cannot be read`);
  }

  /** Writes at `position`. Returns the bytes written. */
  write(_task: Task, _from: Uint8Array, _position: number): number {
    throw new Errno('EINVAL', `${this.path} cannot be written`);
  }

  /** Events of poll(2) that are there now; readable and writable when a file has nothing to wait for. */
  poll(): number {
    return POLLIN | POLLOUT;
  }

  /** One access of the processor to a trapped mapping: 1 to 64 bytes, exactly as the instruction made it. EIO: nobody answers. */
  access(task: Task, buffer: Uint8Array, position: number, isWrite: boolean): number {
    return isWrite ? this.write(task, buffer, position) : this.read(task, buffer, position);
  }

  mmap(_task: Task, _length: number, _prot: number, _flags: number, _offset: number): FileMapping {
    throw new Errno('ENODEV', `${this.path} cannot be mapped`);
  }

  /** The last descriptor and mapping are gone, and nobody in the kernel holds the file. Cannot fail. */
  release(): void {}

  /** Called by doors: the last descriptor and mapping are gone. The file lives on while somebody in the kernel holds it. */
  close(): void {
    this.#isClosed = true;
    if (this.#holds === 0) this.release();
  }

  /** A reference of the kernel: the file is not released before `drop`. */
  hold(): void {
    this.#holds++;
  }

  drop(): void {
    if (this.#holds === 0) throw new Error(`${this.path} is dropped more often than held`);
    if (--this.#holds === 0 && this.#isClosed) this.release();
  }
}

/** A descriptor of the program that is not ours, as `/dev/null`: good enough to be refused with the right errno. */
export class ForeignFile extends File {
  readonly kind = 'foreign';
  readonly path: string;

  constructor(path = 'a file of the system') {
    super();
    this.path = path;
  }
}
