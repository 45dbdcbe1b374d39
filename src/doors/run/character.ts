/**
 * What character devices talk to outside: a file, a socket, the terminal. Output never waits: what is not taken at once is dropped,
 * and of that nothing is said, as on a line that nobody listens to.
 */
import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs';
import type { CharacterBackend } from '../../host/index.ts';
import { connectStream, EPOLLERR, EPOLLHUP, Region, SystemError, sendStream, waitForAny } from '../../sys/index.ts';
import type { EventLoop } from './event-loop.ts';

/** The target says nothing that can be opened. The message is one line for a person. */
export class CharacterError extends Error {}

const PIECE = 4096;

/** Opens `file:PATH`, `socket:PATH` or `stdio`. CharacterError. */
export function openCharacter(loop: EventLoop, target: string): CharacterBackend {
  const [kind, path] = target.split(/:(.*)/s);
  try {
    if (target === 'stdio')
      return new Stream(
        loop,
        0,
        (bytes) => writeAll(1, bytes),
        () => {},
      );
    if (kind === 'file' && path) return outputFile(path);
    if (kind === 'socket' && path) return socket(loop, path);
  } catch (error) {
    const code = error instanceof SystemError ? error.code : (error as NodeJS.ErrnoException).code;
    if (code === undefined) throw error;
    throw new CharacterError(`cannot open '${target}': ${code}`);
  }
  throw new CharacterError(`a line cannot end in '${target}', but in none, stdio, file:PATH or socket:PATH`);
}

function outputFile(path: string): CharacterBackend {
  // A pipe that nobody reads is refused (ENXIO), not waited for.
  const { O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK } = constants;
  const fd = openSync(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK, 0o666);
  return { write: (bytes) => writeAll(fd, bytes), onInput: () => {}, close: () => closeSync(fd) };
}

function socket(loop: EventLoop, path: string): CharacterBackend {
  const fd = connectStream(path);
  const region = new Region(PIECE);
  const write = (bytes: Uint8Array): void => {
    for (let at = 0; at < bytes.length; at += PIECE) {
      const part = bytes.subarray(at, at + PIECE);
      region.bytes.set(part);
      if (sendStream(fd, region.address, part.length) < part.length) return;
    }
  };
  return new Stream(loop, fd, write, () => closeSync(fd));
}

/** Writes what is taken at once. A full pipe or a stopped terminal takes nothing, and nobody waits for it. */
function writeAll(fd: number, bytes: Uint8Array): void {
  try {
    for (let at = 0; at < bytes.length && canWrite(fd); )
      at += writeSync(fd, bytes, at, Math.min(bytes.length - at, AT_ONCE));
  } catch {
    // The reader is gone: the bytes are lost.
  }
}

/** A pipe that can be written takes so many bytes without waiting (PIPE_BUF), files and terminals as well. */
const AT_ONCE = 4096;

function canWrite(fd: number): boolean {
  return waitForAny([fd], 0, 'write') >>> 31 === 1;
}

/** A descriptor that bytes come from. */
class Stream implements CharacterBackend {
  readonly write: (bytes: Uint8Array) => void;
  readonly #loop: EventLoop;
  readonly #fd: number;
  readonly #release: () => void;
  readonly #buffer = new Uint8Array(PIECE);
  #slot = -1;

  constructor(loop: EventLoop, fd: number, write: (bytes: Uint8Array) => void, release: () => void) {
    this.#loop = loop;
    this.#fd = fd;
    this.write = write;
    this.#release = release;
  }

  onInput(receive: (bytes: Uint8Array) => void): void {
    this.#slot = this.#loop.add(this.#fd, { ready: (events) => this.#read(events, receive) });
    // A file cannot be waited for, and need not be: all of it is there.
    if (this.#slot < 0) this.#loop.after(0, () => this.#readFile(receive));
  }

  close(): void {
    this.#ignore();
    this.#release();
  }

  #read(events: number, receive: (bytes: Uint8Array) => void): void {
    let length = 0;
    try {
      length = readSync(this.#fd, this.#buffer);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EAGAIN') {
        if ((events & (EPOLLERR | EPOLLHUP)) !== 0) this.#ignore();
        return;
      }
    }
    if (length === 0) this.#ignore();
    else receive(this.#buffer.subarray(0, length));
  }

  #readFile(receive: (bytes: Uint8Array) => void): void {
    try {
      for (;;) {
        const length = readSync(this.#fd, this.#buffer);
        if (length === 0) return;
        receive(this.#buffer.subarray(0, length));
      }
    } catch {
      // No input at all: a closed descriptor, a folder.
    }
  }

  /** The other side is gone. */
  #ignore(): void {
    if (this.#slot >= 0) this.#loop.remove(this.#fd, this.#slot);
    this.#slot = -1;
  }
}
