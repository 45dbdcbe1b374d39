/**
 * Descriptors of a program, as far as one call needs them.
 *
 * A number means nothing here. When a call asks for one, the door interrupts it (`NeedDescriptor`), fetches copies from the program,
 * and runs the call again from its start. What a call keeps, it keeps as copies of its own; the fetched ones are closed at its end.
 */
import { type DescriptorSource, type EventContext, type File, ForeignFile, type MemoryFile } from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import {
  closeDescriptor,
  duplicate,
  eventfdIdentity,
  inodeOf,
  isWritable,
  linkOf,
  MappedFile,
  readEventfd,
  SystemError,
  sealsOf,
  signalEventfd,
} from '../../sys/index.ts';
import type { EventLoop } from './event-loop.ts';

/** Thrown through a call that needs a descriptor which was not fetched yet. */
export class NeedDescriptor extends Error {
  readonly number: number;

  constructor(number: number) {
    super('a descriptor is needed');
    this.number = number;
  }
}

/** Finds the box's own file behind one of our descriptors for a copy of a handle. */
export type FindHandle = (fd: number) => File | undefined;

/** What was fetched for the call that runs now: the program's number → our copy, or -1 for one that is not open. */
export class FetchedDescriptors implements DescriptorSource {
  readonly #loop: EventLoop;
  readonly #findHandle: FindHandle;
  #fetched = new Map<number, number>();
  /** A descriptor of which the program's library says which file of the box it is; -1: none. */
  #toldNumber = -1;
  #toldFile: File | undefined;
  /** The last descriptor that had to be fetched and was a file of the box; -1: none. */
  fetchedHandle = -1;
  /** Made by the present run of the call: closed if it is interrupted. */
  #made: { close(): void }[] = [];

  constructor(loop: EventLoop, findHandle: FindHandle) {
    this.#loop = loop;
    this.#findHandle = findHandle;
  }

  /** A run of a call begins, with these copies. */
  begin(fetched: Map<number, number>): void {
    this.#fetched = fetched;
    this.#toldNumber = -1;
    this.#toldFile = undefined;
    this.fetchedHandle = -1;
    if (this.#made.length > 0) this.#made = [];
  }

  /** The program's descriptor `number` is this file. */
  told(number: number, file: File): void {
    this.#toldNumber = number;
    this.#toldFile = file;
  }

  /** The run was interrupted: what it resolved so far is given back. */
  interrupted(): void {
    for (const made of this.#made) made.close();
    this.#made = [];
  }

  file(descriptor: number): File {
    if (descriptor === this.#toldNumber && descriptor >= 0) return this.#toldFile!;
    const fd = this.#fetch(descriptor);
    const file = this.#findHandle(fd);
    if (file === undefined) return new ForeignFile(linkOf(fd));
    this.fetchedHandle = descriptor;
    return file;
  }

  eventfd(descriptor: number): EventContext {
    const fd = this.#fetch(descriptor);
    const link = linkOf(fd);
    if (link !== 'anon_inode:[eventfd]')
      throw new Errno('EINVAL', `descriptor ${descriptor} is ${link}, not an eventfd`);
    return this.#keep(new Eventfd(this.#loop, this.#copy(fd)));
  }

  memoryFile(descriptor: number): MemoryFile {
    const fd = this.#fetch(descriptor);
    const seals = sealsOf(fd);
    if (seals === undefined) {
      throw new Errno('EINVAL', `descriptor ${descriptor} is ${linkOf(fd)}, not a memfd`);
    }
    return this.#keep(new SharedFile(fd));
  }

  #keep<T extends { close(): void }>(made: T): T {
    this.#made.push(made);
    return made;
  }

  #copy(fd: number): number {
    const copy = duplicate(fd);
    if (copy < 0) throw new Errno('ENFILE', 'the box has no descriptor left');
    return copy;
  }

  #fetch(descriptor: number): number {
    if (descriptor < 0) throw new Errno('EBADF', `${descriptor} is not a descriptor`);
    const fd = this.#fetched.get(descriptor);
    if (fd === undefined) throw new NeedDescriptor(descriptor);
    if (fd < 0) throw new Errno('EBADF', `descriptor ${descriptor} is not open`);
    return fd;
  }
}

/** A program's eventfd; `fd` is a copy of it, closed at the end. */
export class Eventfd implements EventContext {
  readonly #loop: EventLoop;
  readonly #fd: number;
  #slot = -1;
  #isOpen = true;
  #identity: string | undefined;

  constructor(loop: EventLoop, fd: number) {
    this.#loop = loop;
    this.#fd = fd;
  }

  /** The kernel's own number of the counter; looked up at the first use, which is before the end. */
  get identity(): string | undefined {
    this.#identity ??= this.#isOpen ? eventfdIdentity(this.#fd) : undefined;
    return this.#identity;
  }

  signal(count = 1): void {
    if (this.#isOpen) signalEventfd(this.#fd, count);
  }

  watch(onSignal: () => void): () => void {
    this.#unwatch();
    if (this.#isOpen) {
      this.#slot = this.#loop.add(this.#fd, {
        ready: () => {
          if (readEventfd(this.#fd) > 0) onSignal();
        },
      });
    }
    return () => this.#unwatch();
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#unwatch();
    this.#isOpen = false;
    closeDescriptor(this.#fd);
  }

  #unwatch(): void {
    if (this.#slot >= 0) this.#loop.remove(this.#fd, this.#slot);
    this.#slot = -1;
  }
}

/** A program's memfd, mapped as long as somebody holds it. */
export class SharedFile implements MemoryFile {
  readonly length: number;
  readonly writable: boolean;
  readonly identity: string;
  readonly backing: MappedFile;

  constructor(fd: number) {
    const { major, minor, inode, length } = inodeOf(fd);
    this.length = length;
    this.writable = isWritable(fd);
    this.identity = `${major}:${minor}:${inode}`;
    try {
      this.backing = new MappedFile(fd, length, this.writable);
    } catch (error) {
      if (error instanceof SystemError) throw new Errno('ENOMEM', `the box cannot map a file of ${length} bytes`);
      throw error;
    }
  }

  close(): void {
    this.backing.close();
  }
}
