/**
 * What a session needs of its socket: bytes and descriptors in, bytes and descriptors out. The buffers belong to the transport and serve
 * one connection after the other; tests have one without a socket.
 */
import {
  closeDescriptor,
  EAGAIN,
  Region,
  receiveStream,
  sendStream,
  sendStreamDescriptors,
  setReceiveTimeout,
  waitForAny,
} from '../../sys/index.ts';
import { bufferLength, HEADER, type StreamLimits } from './codec.ts';

/** How long a read that lingers waits for the next message. */
export const LINGER_MS = 2;
/** How long a client may leave its answers where they are. */
export const FULL_MS = 5000;

/** What `receive` answers when nothing is there. */
export const NOTHING = -1;
/** The other side is gone, or the connection is broken. */
export const GONE = 0;

/** What a wait ended with: something to read, the time, or the server's stop. */
export type Waited = 'ready' | 'late' | 'stopped';

/** How a send ended; `gone`: the other side, or the server is to stop; `full`: nothing was taken for `FULL_MS`. */
export type Sent = 'sent' | 'gone' | 'full';

export interface Transport {
  /** Two buffers for what comes in: while a command's payload lies in one, replies are read into the other. */
  readonly inputs: readonly [Uint8Array, Uint8Array];
  /** Where replies (0) and our own commands (1) are composed. */
  readonly outputs: readonly [Uint8Array, Uint8Array];
  readonly fd: number;
  /** Reads into input `which` from `offset` on; `lingers`: waits a moment for something to come. The number of bytes, NOTHING or GONE. */
  receive(which: 0 | 1, offset: number, descriptors: number[], lingers: boolean): number;
  /** Waits for something to read, here or at `other`; -1 milliseconds: until it comes. */
  wait(milliseconds: number, other?: Transport): Waited;
  /**
   * Sends the first `length` bytes of output `which`, all of them. While the other side takes nothing, `whileFull` may read what it
   * sends, so that two full sockets do not wait for each other; false: there is no room for more of it.
   */
  send(which: 0 | 1, length: number, descriptors?: readonly number[], whileFull?: () => boolean): Sent;
  close(): void;
}

/** The buffers of a server, which are never given back to the system. */
export class TransportBuffers {
  readonly inputs: readonly [Region, Region];
  readonly outputs: readonly [Region, Region];

  constructor(limits: StreamLimits) {
    const input = bufferLength(limits);
    const output = HEADER + 64 + limits.maxDataXferSize;
    this.inputs = [new Region(input), new Region(input)];
    this.outputs = [new Region(output), new Region(output)];
  }
}

export class SocketTransport implements Transport {
  readonly inputs: readonly [Uint8Array, Uint8Array];
  readonly outputs: readonly [Uint8Array, Uint8Array];
  readonly #buffers: TransportBuffers;
  readonly #fd: number;
  readonly #stop: number;
  readonly #spin: Spin | undefined;
  #isOpen = true;

  /** Takes the descriptor over. `stop`: a descriptor that becomes readable when nothing may be waited for any longer; -1: none. `spin`: microseconds. */
  constructor(fd: number, buffers: TransportBuffers, stop: number, spin = 0) {
    this.#spin = spin > 0 ? new Spin(spin) : undefined;
    this.#fd = fd;
    this.#buffers = buffers;
    this.#stop = stop;
    this.inputs = [buffers.inputs[0].bytes, buffers.inputs[1].bytes];
    this.outputs = [buffers.outputs[0].bytes, buffers.outputs[1].bytes];
    setReceiveTimeout(fd, LINGER_MS);
  }

  get fd(): number {
    return this.#fd;
  }

  receive(which: 0 | 1, offset: number, descriptors: number[], lingers: boolean): number {
    const { address, length } = this.#buffers.inputs[which];
    if (!this.#isOpen) return GONE;
    const at = address + offset;
    const room = length - offset;
    const n =
      lingers && this.#spin !== undefined
        ? this.#spin.receive((waits) => receiveStream(this.#fd, at, room, descriptors, waits))
        : receiveStream(this.#fd, at, room, descriptors, lingers);
    if (n >= 0) return n;
    return n === -EAGAIN ? NOTHING : GONE;
  }

  wait(milliseconds: number, other?: Transport): Waited {
    const end = milliseconds < 0 ? 0 : performance.now() + milliseconds;
    const fds = [this.#fd, this.#stop, other?.fd ?? -1];
    for (;;) {
      const left = milliseconds < 0 ? -1 : Math.max(Math.ceil(end - performance.now()), 0);
      const ready = waitForAny(fds, left);
      if ((ready & 2) !== 0) return 'stopped';
      if (ready !== 0) return 'ready';
      if (left === 0) return 'late';
    }
  }

  send(which: 0 | 1, length: number, descriptors?: readonly number[], whileFull?: () => boolean): Sent {
    if (!this.#isOpen) return 'gone';
    const { address } = this.#buffers.outputs[which];
    let done = 0;
    while (done < length) {
      const n =
        descriptors !== undefined && descriptors.length > 0 && done === 0
          ? sendStreamDescriptors(this.#fd, address, length, descriptors)
          : sendStream(this.#fd, address + done, length - done);
      if (n > 0) done += n;
      else if (n !== -EAGAIN) return 'gone';
      else {
        const waited = this.#waitForRoom(whileFull);
        if (waited !== 'ready') return waited === 'late' ? 'full' : 'gone';
      }
    }
    return 'sent';
  }

  #waitForRoom(whileFull: (() => boolean) | undefined): Waited {
    let reads = whileFull !== undefined;
    const end = performance.now() + FULL_MS;
    for (;;) {
      const left = Math.ceil(end - performance.now());
      if (left <= 0) return 'late';
      const ready = waitForAny([this.#fd, this.#stop], left, reads ? 'both' : 'write');
      if ((ready & 2) !== 0) return 'stopped';
      if (ready >>> 31 === 1) return 'ready';
      // Broken, or something to read.
      if ((ready & 1) === 0) continue;
      if (!reads) return 'ready';
      reads = whileFull!();
    }
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    closeDescriptor(this.#fd);
  }
}

const LONGEST_SPIN = 1000;
/** Fruitless spins after which it is left for a while, and how many waits that is. */
const MISSES = 8;
const REST = 256;

/**
 * Looks for the next message again and again before it sleeps, as long as that pays: a sleeper is woken tens of microseconds late when the
 * client runs on another processor. When the message mostly does not come in time (the client is slow, or needs this very processor), it
 * sleeps at once for the next waits.
 */
class Spin {
  readonly #milliseconds: number;
  #misses = 0;
  #rest = 0;

  constructor(microseconds: number) {
    this.#milliseconds = Math.min(microseconds, LONGEST_SPIN) / 1000;
  }

  receive(take: (waits: boolean) => number): number {
    if (this.#rest > 0) {
      this.#rest--;
      return take(true);
    }
    const end = performance.now() + this.#milliseconds;
    do {
      const n = take(false);
      if (n !== -EAGAIN) {
        this.#misses = 0;
        return n;
      }
    } while (performance.now() < end);
    if (++this.#misses >= MISSES) {
      this.#misses = 0;
      this.#rest = REST;
    }
    return take(true);
  }
}
