/**
 * Call connections: one per thread of a program. Listening, HELLO, one request after the other, the wait for descriptors, the end.
 *
 * Exactly one message is taken for each event, so that calls are served in the order in which things happened in the program: the end of
 * file of a closed descriptor comes before the call that was made after the close. What was sent ahead is reported again.
 */
import type { Blocked } from '../../host/index.ts';
import type { Errno } from '../../lib/errno.ts';
import {
  accept,
  closeDescriptor,
  EAGAIN,
  EPOLLHUP,
  EPOLLRDHUP,
  listenOn,
  type PollSource,
  peerOf,
  receive,
  receiveDescriptors,
} from '../../sys/index.ts';
import type { CallDoor } from './call-door.ts';
import type { EventLoop } from './event-loop.ts';
import type { Processes, Program } from './processes.ts';
import { LONGEST_PAYLOAD, OP_FDS, OP_HELLO, PROTOCOL_VERSION, REQUEST_HEADER } from './protocol.ts';
import { say } from './reporter.ts';

const LONGEST_REQUEST = REQUEST_HEADER + LONGEST_PAYLOAD;
/** How often one call may ask for descriptors: an array of interrupts takes one round for each. */
const MOST_ROUNDS = 4096;
const none = new Map<number, number>();

export class Connections {
  readonly #loop: EventLoop;
  readonly #door: CallDoor;
  readonly #processes: Processes;
  readonly #listener: number;
  readonly #slot: number;
  readonly #all = new Set<CallConnection>();
  #toldVersion = false;

  /** Listens on `path`. SystemError. */
  constructor(loop: EventLoop, door: CallDoor, processes: Processes, path: string) {
    this.#loop = loop;
    this.#door = door;
    this.#processes = processes;
    this.#listener = listenOn(path);
    this.#slot = loop.add(this.#listener, { ready: () => this.#accept() });
  }

  get count(): number {
    return this.#all.size;
  }

  closeAll(): void {
    for (const connection of [...this.#all]) connection.close();
    this.#loop.remove(this.#listener, this.#slot);
    closeDescriptor(this.#listener);
  }

  #accept(): void {
    for (;;) {
      const fd = accept(this.#listener);
      // ECONNABORTED and EMFILE leave the rest for the next event.
      if (fd < 0) return;
      const connection = new CallConnection(fd, this.#loop, this.#door, {
        join: (word, version) => this.#join(fd, word, version),
        leave: (program) => this.#processes.leave(program),
        closed: (it) => this.#all.delete(it),
      });
      this.#all.add(connection);
      connection.start();
    }
  }

  #join(fd: number, word: bigint, version: number): Program | undefined {
    if (version !== PROTOCOL_VERSION) {
      if (!this.#toldVersion) {
        this.#toldVersion = true;
        say(
          `vfiobox: the library in the program speaks version ${version} of the protocol and the box version ` +
            `${PROTOCOL_VERSION}; build both anew (node scripts/build-native.mjs)\n`,
        );
      }
      return undefined;
    }
    const { pid, uid } = peerOf(fd);
    return this.#processes.join(pid, uid, word);
  }
}

interface ConnectionOwner {
  join(word: bigint, version: number): Program | undefined;
  leave(program: Program): void;
  closed(connection: CallConnection): unknown;
}

/** A call that waits for descriptors. */
interface Parked {
  readonly request: Uint8Array;
  /** The number that was asked for. */
  number: number;
  readonly fetched: Map<number, number>;
  rounds: number;
}

/** A call that waits for something in the machine. */
interface Waiting {
  readonly request: Uint8Array;
}

class CallConnection implements PollSource {
  readonly #fd: number;
  readonly #loop: EventLoop;
  readonly #door: CallDoor;
  readonly #owner: ConnectionOwner;
  #slot = -1;
  #program: Program | undefined;
  #parked: Parked | undefined;
  #waiting: Waiting | undefined;
  #isClosed = false;

  constructor(fd: number, loop: EventLoop, door: CallDoor, owner: ConnectionOwner) {
    this.#fd = fd;
    this.#loop = loop;
    this.#door = door;
    this.#owner = owner;
  }

  start(): void {
    this.#slot = this.#loop.add(this.#fd, this);
    if (this.#slot < 0) this.close();
  }

  ready(events: number): void {
    const isEnding = (events & (EPOLLRDHUP | EPOLLHUP)) !== 0;
    while (this.#takeOne() && isEnding) {}
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#waiting = undefined;
    if (this.#slot >= 0) this.#loop.remove(this.#fd, this.#slot);
    closeDescriptor(this.#fd);
    if (this.#parked !== undefined) this.#unpark(this.#parked);
    if (this.#program !== undefined) this.#owner.leave(this.#program);
    this.#owner.closed(this);
  }

  /** Takes one message. False: there was none, or the connection has ended. */
  #takeOne(): boolean {
    if (this.#isClosed) return false;
    if (this.#parked !== undefined) return this.#takeDescriptors(this.#parked);
    if (this.#waiting !== undefined) return this.#takeEnd();
    const request = this.#door.request;
    const n = receive(this.#fd, request.address, LONGEST_REQUEST);
    if (n === -EAGAIN) return false;
    if (n < REQUEST_HEADER || n > LONGEST_REQUEST) {
      this.close();
      return false;
    }
    const program = this.#program;
    if (program === undefined) return this.#hello();
    const outcome = this.#door.serve(this.#fd, program, n, none);
    if (outcome === 'asked') this.#park(n);
    else if (outcome === 'waiting') this.#wait(n);
    else if (outcome === 'broken') this.close();
    return !this.#isClosed;
  }

  #hello(): boolean {
    const { u32, view } = this.#door.request;
    if (u32[0] === OP_HELLO) this.#program = this.#owner.join(view.getBigUint64(16, true), u32[6]!);
    if (this.#program === undefined) this.close();
    return !this.#isClosed;
  }

  #park(length: number): void {
    this.#parked = {
      request: this.#door.request.bytes.slice(0, length),
      number: this.#asked(),
      fetched: new Map(),
      rounds: 0,
    };
  }

  /** What the ASK in the reply buffer asks for. */
  #asked(): number {
    return this.#door.reply.s32[2]!;
  }

  /** The message that carries the descriptor; then the call again. */
  #takeDescriptors(parked: Parked): boolean {
    const request = this.#door.request;
    const came: number[] = [];
    const n = receiveDescriptors(this.#fd, request.address, LONGEST_REQUEST, came);
    if (n === -EAGAIN) return false;
    const isOpen = request.s32[REQUEST_HEADER / 4] === 0;
    const isGood = n === REQUEST_HEADER + 4 && request.u32[0] === OP_FDS && came.length === (isOpen ? 1 : 0);
    if (!isGood || ++parked.rounds > MOST_ROUNDS) {
      for (const fd of came) closeDescriptor(fd);
      this.close();
      return false;
    }
    parked.fetched.set(parked.number, came[0] ?? -1);
    request.bytes.set(parked.request);
    const outcome = this.#door.serve(this.#fd, this.#program!, parked.request.length, parked.fetched);
    if (outcome === 'asked') {
      parked.number = this.#asked();
      return true;
    }
    this.#parked = undefined;
    this.#unpark(parked);
    if (outcome === 'waiting') this.#wait(parked.request.length);
    else if (outcome === 'broken') this.close();
    return !this.#isClosed;
  }

  /** The call of `length` bytes in the buffer is answered when what it waits for has happened. */
  #wait(length: number): void {
    const blocked = this.#door.blocked!;
    const waiting = { request: this.#door.request.bytes.slice(0, length) };
    this.#waiting = waiting;
    blocked.onEnd((error) => {
      // Not at once: another call may be under way, and the buffers are its own.
      this.#loop.after(0, () => {
        if (this.#waiting === waiting) this.#finish(waiting, blocked, error);
      });
    });
  }

  #finish(waiting: Waiting, blocked: Blocked, error: Errno | undefined): void {
    this.#waiting = undefined;
    this.#door.request.bytes.set(waiting.request);
    if (this.#door.finish(this.#fd, this.#program!, blocked, error) === 'broken') this.close();
  }

  /** A caller that waits says nothing: what comes is its end, or against the protocol. */
  #takeEnd(): boolean {
    const n = receive(this.#fd, this.#door.request.address, LONGEST_REQUEST);
    if (n !== -EAGAIN) this.close();
    return false;
  }

  #unpark(parked: Parked): void {
    this.#parked = undefined;
    for (const fd of parked.fetched.values()) if (fd >= 0) closeDescriptor(fd);
    parked.fetched.clear();
  }
}
