/**
 * What the client needs of a connection: bytes and descriptors, in and out, and a wait. Tests have one without a socket.
 */
import {
  closeDescriptor,
  connectStream,
  EAGAIN,
  Region,
  receiveStream,
  SystemError,
  sendStream,
  sendStreamDescriptors,
  waitFor,
} from '../../sys/index.ts';
import { bufferLength, defaultLimits, MessageStream, type StreamLimits } from './codec.ts';

export interface Channel {
  /** Messages that arrived; `fill` puts more there. */
  readonly stream: MessageStream;
  /** Takes in what has arrived. Number of bytes, 0: nothing yet, -1: the other side is gone. */
  fill(): number;
  /** Sends part of `bytes` from `start` on, the descriptors with the first byte. How many were taken; -1: the other side is gone. */
  send(bytes: Uint8Array, start: number, descriptors: readonly number[]): number;
  /** Waits for something to read, here or on `other`, or for room to write. May return early. */
  wait(wantsRoom: boolean, other: Channel | undefined, milliseconds: number): void;
  /** A channel for a socket that came along. */
  second(descriptor: number): Channel;
  /** Closes a descriptor that came along. */
  drop(descriptor: number): void;
  close(): void;
}

const OUTPUT = 1 << 16;

interface Buffers {
  readonly input: Region;
  readonly output: Region;
}

/** Memory that the system writes to is never given back to it, so connections hand it on to each other. */
const idle: Buffers[] = [];

export class SocketChannel implements Channel {
  readonly stream: MessageStream;
  /** The socket; for waiting in a loop of one's own. */
  readonly fd: number;
  readonly #buffers: Buffers;
  readonly #arrived: number[] = [];
  #isOpen = true;

  /** Takes the socket over. */
  constructor(fd: number, limits: StreamLimits) {
    // Only so much is agreed on.
    if (bufferLength(limits) > bufferLength(defaultLimits)) throw new RangeError('Limits beyond those of the protocol');
    this.fd = fd;
    this.#buffers = idle.pop() ?? { input: new Region(bufferLength(defaultLimits)), output: new Region(OUTPUT) };
    this.stream = new MessageStream(this.#buffers.input.bytes, limits);
  }

  /** Connects to a server's socket. SystemError. */
  static connect(path: string, limits: StreamLimits): SocketChannel {
    return new SocketChannel(connectStream(path), limits);
  }

  fill(): number {
    if (!this.#isOpen) return -1;
    const { offset, length } = this.stream.room();
    if (length === 0) return 0;
    const arrived = this.#arrived;
    const n = receiveStream(this.fd, this.#buffers.input.address + offset, length, arrived, false);
    if (n <= 0) return n === -EAGAIN ? 0 : -1;
    this.stream.received(n, arrived.length === 0 ? undefined : arrived.splice(0));
    return n;
  }

  send(bytes: Uint8Array, start: number, descriptors: readonly number[]): number {
    if (!this.#isOpen) return -1;
    const { output } = this.#buffers;
    const length = Math.min(bytes.length - start, output.length);
    if (length <= 64) for (let i = 0; i < length; i++) output.bytes[i] = bytes[start + i]!;
    else output.bytes.set(bytes.subarray(start, start + length));
    const n =
      descriptors.length > 0 && start === 0
        ? sendStreamDescriptors(this.fd, output.address, length, descriptors)
        : sendStream(this.fd, output.address, length);
    if (n >= 0) return n;
    if (n === -EAGAIN) return 0;
    // A descriptor of the caller that is none: nothing was sent, and the connection is as good as before.
    if (n === -9) throw new SystemError('sendmsg', 9);
    return -1;
  }

  wait(wantsRoom: boolean, other: Channel | undefined, milliseconds: number): void {
    if (!this.#isOpen) return;
    if (wantsRoom) waitFor(this.fd, 'write', this.fd, milliseconds);
    else waitFor(this.fd, 'read', other instanceof SocketChannel ? other.fd : -1, milliseconds);
  }

  second(descriptor: number): Channel {
    return new SocketChannel(descriptor, this.stream.limits);
  }

  drop(descriptor: number): void {
    closeDescriptor(descriptor);
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    for (const descriptor of [...this.stream.takeAll(), ...this.#arrived]) closeDescriptor(descriptor);
    closeDescriptor(this.fd);
    idle.push(this.#buffers);
  }
}
