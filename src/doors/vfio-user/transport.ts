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
  waitFor,
} from '../../sys/index.ts';
import { bufferLength, HEADER, type StreamLimits } from './codec.ts';

/** How long a read that lingers waits for the next message. */
export const LINGER_MS = 2;

/** What `receive` answers when nothing is there. */
export const NOTHING = -1;
/** The other side is gone, or the connection is broken. */
export const GONE = 0;

/** How long `receive` waits: not at all, a moment, or until something comes. */
export type Patience = 'none' | 'moment' | 'endless';

export interface Transport {
  /** Two buffers for what comes in: while a command's payload lies in one, replies are read into the other. */
  readonly inputs: readonly [Uint8Array, Uint8Array];
  /** Where replies (0) and our own commands (1) are composed. */
  readonly outputs: readonly [Uint8Array, Uint8Array];
  /** Reads into input `which` from `offset` on. The number of bytes, NOTHING or GONE. */
  receive(which: 0 | 1, offset: number, descriptors: number[], patience: Patience): number;
  /** Sends the first `length` bytes of output `which`, all of them. False: the other side is gone, or the server is to stop. */
  send(which: 0 | 1, length: number, descriptors?: readonly number[]): boolean;
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
  #isOpen = true;

  /** Takes the descriptor over. `stop`: a descriptor that becomes readable when nothing may be waited for any longer; -1: none. */
  constructor(fd: number, buffers: TransportBuffers, stop: number) {
    this.#fd = fd;
    this.#buffers = buffers;
    this.#stop = stop;
    this.inputs = [buffers.inputs[0].bytes, buffers.inputs[1].bytes];
    this.outputs = [buffers.outputs[0].bytes, buffers.outputs[1].bytes];
    setReceiveTimeout(fd, LINGER_MS);
  }

  receive(which: 0 | 1, offset: number, descriptors: number[], patience: Patience): number {
    const { address, length } = this.#buffers.inputs[which];
    if (!this.#isOpen) return GONE;
    if (patience === 'endless' && !waitFor(this.#fd, 'read', this.#stop, -1)) return GONE;
    const n = receiveStream(this.#fd, address + offset, length - offset, descriptors, patience === 'moment');
    if (n >= 0) return n;
    return n === -EAGAIN ? NOTHING : GONE;
  }

  send(which: 0 | 1, length: number, descriptors?: readonly number[]): boolean {
    if (!this.#isOpen) return false;
    const { address } = this.#buffers.outputs[which];
    let done = 0;
    while (done < length) {
      const n =
        descriptors !== undefined && descriptors.length > 0 && done === 0
          ? sendStreamDescriptors(this.#fd, address, length, descriptors)
          : sendStream(this.#fd, address + done, length - done);
      if (n > 0) done += n;
      else if (n !== -EAGAIN || !waitFor(this.#fd, 'write', this.#stop, -1)) return false;
    }
    return true;
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    closeDescriptor(this.#fd);
  }
}
