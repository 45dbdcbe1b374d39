/**
 * A program that uses the machine: its memory, its descriptors, its rights. The kernel sees it as a `Task`.
 *
 * Where the descriptors live is the door's affair: an unmodified program has real ones, which the door resolves; a client in this
 * process has a `DescriptorTable`.
 */

import type { File, NewDescriptor } from '../kernel/core/file.ts';
import type { Mm } from '../kernel/core/mm.ts';
import type { Capability, EventContext, MemoryFile, Task } from '../kernel/core/task.ts';
import { Errno } from '../lib/errno.ts';
import type { Credentials } from './permissions.ts';

export interface DescriptorSource {
  /** EBADF; a descriptor that is not the machine's gives a `ForeignFile`. */
  file(descriptor: number): File;
  eventfd(descriptor: number): EventContext;
  memoryFile(descriptor: number): MemoryFile;
}

export interface ProcessRights {
  capable(capability: Capability): boolean;
  /** RLIMIT_MEMLOCK in bytes, Infinity for none. */
  memlockLimit(): number;
  readonly uid: number;
  /** As of this moment; absent: those of the user who runs the machine. */
  credentials?(): Credentials;
}

export interface ProcessIdentity {
  readonly pid: number;
  /** Short name of the program, for traces. */
  readonly name: string;
}

export class Process implements Task {
  readonly pid: number;
  readonly mm: Mm;
  readonly rights: ProcessRights;
  readonly #identity: ProcessIdentity;
  readonly #descriptors: DescriptorSource;
  readonly #ended: () => void;

  constructor(
    identity: ProcessIdentity,
    mm: Mm,
    descriptors: DescriptorSource,
    rights: ProcessRights,
    ended: () => void = () => {},
  ) {
    this.pid = identity.pid;
    this.#identity = identity;
    this.#ended = ended;
    this.mm = mm;
    this.rights = rights;
    this.#descriptors = descriptors;
  }

  get name(): string {
    return this.#identity.name;
  }

  /** The program is gone. Its mappings may outlive it; its memory does not. */
  exit(): void {
    this.#ended();
  }

  capable(capability: Capability): boolean {
    return this.rights.capable(capability);
  }

  memlockLimit(): number {
    return this.rights.memlockLimit();
  }

  file(descriptor: number): File {
    return this.#descriptors.file(descriptor);
  }

  eventfd(descriptor: number): EventContext {
    return this.#descriptors.eventfd(descriptor);
  }

  memoryFile(descriptor: number): MemoryFile {
    return this.#descriptors.memoryFile(descriptor);
  }
}

/** Descriptor numbers of a client in this process: lowest free first, several numbers may share a file. */
export class DescriptorTable implements DescriptorSource {
  readonly #slots: (File | undefined)[] = [];
  readonly #users = new Map<File, number>();
  readonly #eventfds = new Map<number, () => EventContext>();
  readonly #memoryFiles = new Map<number, () => MemoryFile>();

  /** Puts a file under the lowest free number. */
  install(file: File): number {
    let fd = this.#slots.indexOf(undefined);
    if (fd < 0) fd = this.#slots.length;
    this.#slots[fd] = file;
    this.#users.set(file, (this.#users.get(file) ?? 0) + 1);
    return fd;
  }

  /** As `install`, for the descriptor that an ioctl made. */
  installNew(made: NewDescriptor): number {
    return this.install(made.file);
  }

  dup(descriptor: number): number {
    return this.install(this.file(descriptor));
  }

  /** Gives an eventfd a number; `make` is called for each resolution. */
  addEventfd(descriptor: number, make: () => EventContext): void {
    this.#eventfds.set(descriptor, make);
  }

  addMemoryFile(descriptor: number, make: () => MemoryFile): void {
    this.#memoryFiles.set(descriptor, make);
  }

  close(descriptor: number): void {
    const file = this.file(descriptor);
    this.#slots[descriptor] = undefined;
    const users = this.#users.get(file)! - 1;
    if (users > 0) this.#users.set(file, users);
    else {
      this.#users.delete(file);
      file.close();
    }
  }

  /** The process is gone. */
  closeAll(): void {
    for (let fd = 0; fd < this.#slots.length; fd++) if (this.#slots[fd] !== undefined) this.close(fd);
    this.#eventfds.clear();
    this.#memoryFiles.clear();
  }

  file(descriptor: number): File {
    const file = this.#slots[descriptor];
    if (file === undefined) throw new Errno('EBADF', `descriptor ${descriptor} is not open`);
    return file;
  }

  eventfd(descriptor: number): EventContext {
    const make = this.#eventfds.get(descriptor);
    if (make !== undefined) return make();
    this.file(descriptor);
    throw new Errno('EINVAL', `descriptor ${descriptor} is not an eventfd`);
  }

  memoryFile(descriptor: number): MemoryFile {
    const make = this.#memoryFiles.get(descriptor);
    if (make !== undefined) return make();
    this.file(descriptor);
    throw new Errno('EINVAL', `descriptor ${descriptor} is not a file that can be mapped for DMA`);
  }
}
