/**
 * Handles: the box's ends of the socket pairs whose other ends are the descriptors in programs.
 *
 * A handle lives until the last copy of the program's end is gone, in whatever process; then our end reads end of file and the open
 * file is released. A message that arrives before is a plain write() that no wrapper saw.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import type { File, Process } from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import {
  abstractName,
  closeDescriptor,
  EAGAIN,
  EPOLLHUP,
  EPOLLRDHUP,
  namedPair,
  Region,
  receive,
  send,
} from '../../sys/index.ts';
import type { EventLoop } from './event-loop.ts';
import { LONGEST_PAYLOAD } from './protocol.ts';

const POLLIN = 1;
/** Bit of the number by which the library knows that poll() must be told. */
const EVENT_QUEUE = 2 ** 32;

export interface Handle {
  readonly id: number;
  readonly file: File;
  /** Who opened it: for writes that come without a caller. */
  readonly opener: Process;
}

/** What a handle's life reports to the door. */
export interface HandleEvents {
  /** The last copy is gone; the file was released. */
  closed(handle: Handle): void;
  /** Somebody wrote to the descriptor past all wrappers. */
  written(handle: Handle, bytes: Uint8Array): void;
  /** A bug in a release. */
  failed(error: unknown, handle: Handle): void;
}

const NAME = /^vfiobox:([0-9a-f]{16}):[a-z]+:([0-9a-f]{16})$/;

export class Handles {
  /** Tells this box's handles from those of another one. */
  readonly box = randomName();
  readonly #loop: EventLoop;
  readonly #events: HandleEvents;
  readonly #handles = new Map<number, Handle & { fd: number; slot: number; isAwake: boolean }>();
  readonly #buffer = new Region(LONGEST_PAYLOAD);
  readonly #wake = new Region(1);
  readonly #pair = { ours: -1, theirs: -1 };
  #next = 1;

  constructor(loop: EventLoop, events: HandleEvents) {
    this.#loop = loop;
    this.#events = events;
    this.#wake.bytes[0] = 0x30;
  }

  get count(): number {
    return this.#handles.size;
  }

  get(id: number): Handle | undefined {
    return this.#handles.get(id);
  }

  /** The file behind a copy of a handle; undefined for any other descriptor, also of another box. */
  find(fd: number): File | undefined {
    const match = NAME.exec(abstractName(fd) ?? '');
    if (match === null || match[1] !== this.box) return undefined;
    return this.#handles.get(Number.parseInt(match[2]!, 16))?.file;
  }

  /** Makes a descriptor for a file: the program's end, to be sent and then closed. On failure the file is released. ENFILE. */
  create(file: File, opener: Process): number {
    const id = this.#next++ + (file.isEventQueue ? EVENT_QUEUE : 0);
    const name = Buffer.from(
      `vfiobox:${this.box}:${file.kind.replace(/[^a-z]/g, '')}:${id.toString(16).padStart(16, '0')}`,
    );
    const pair = this.#pair;
    if (namedPair(name, pair) < 0) {
      file.close();
      throw new Errno('ENFILE', `the box has no descriptor left (${this.#handles.size} handles are open)`);
    }
    const fd = pair.ours;
    const handle = { id, file, opener, fd, slot: -1, isAwake: false };
    handle.slot = this.#loop.add(fd, { comesFirst: true, ready: (events) => this.#ready(handle, events) });
    if (handle.slot < 0) {
      closeDescriptor(fd);
      closeDescriptor(pair.theirs);
      file.close();
      throw new Errno('ENFILE', 'the box cannot watch one more handle');
    }
    // poll() on the program's end then says "readable and writable", as on the kernel's files that have nothing to wait for.
    if ((file.poll() & POLLIN) !== 0) send(fd, this.#wake.address, 1);
    if (file.isEventQueue) file.onReadable = () => this.#wakeUp(handle);
    this.#handles.set(id, handle);
    return pair.theirs;
  }

  /** A program has read: its library took what said that there is something to read, which may still be so. */
  wasRead(handle: Handle): void {
    const open = this.#handles.get(handle.id);
    if (open === undefined) return;
    open.isAwake = false;
    if ((open.file.poll() & POLLIN) !== 0) this.#wakeUp(open);
  }

  /** The end of the box: releases everything. */
  closeAll(): void {
    for (const handle of [...this.#handles.values()]) this.#close(handle);
  }

  #wakeUp(handle: Handle & { fd: number; isAwake: boolean }): void {
    if (handle.isAwake) return;
    handle.isAwake = true;
    send(handle.fd, this.#wake.address, 1);
  }

  #ready(handle: Handle & { fd: number; slot: number }, events: number): void {
    for (;;) {
      const n = receive(handle.fd, this.#buffer.address, this.#buffer.length);
      if (n === -EAGAIN) return;
      if (n <= 0) {
        // A write of no bytes looks like the end of file, but the end comes with an event of its own.
        if (n < 0 || (events & (EPOLLRDHUP | EPOLLHUP)) !== 0) this.#close(handle);
        return;
      }
      this.#events.written(handle, this.#buffer.bytes.subarray(0, Math.min(n, this.#buffer.length)));
    }
  }

  #close(handle: Handle & { fd: number; slot: number }): void {
    if (!this.#handles.delete(handle.id)) return;
    this.#loop.remove(handle.fd, handle.slot);
    closeDescriptor(handle.fd);
    try {
      handle.file.close();
      this.#events.closed(handle);
    } catch (error) {
      this.#events.failed(error, handle);
    }
  }
}

/** 16 random hexadecimal digits. node:crypto takes longer to load than everything else here. */
function randomName(): string {
  const bytes = Buffer.alloc(8);
  const fd = openSync('/dev/urandom', 'r');
  readSync(fd, bytes);
  closeSync(fd);
  return bytes.toString('hex');
}
