/** For tests: a channel whose other side is a function, without any socket. Descriptors are mere numbers. */
import { VFIO_USER_F_ERROR, VFIO_USER_F_TYPE_REPLY } from '../../uapi/vfio-user.ts';
import type { Channel } from './client-channel.ts';
import { bufferLength, defaultLimits, encodeMessage, MessageStream } from './codec.ts';
import { encodeVersion, ownCapabilities } from './negotiation.ts';

export interface Heard {
  readonly id: number;
  readonly command: number;
  readonly payload: Uint8Array;
  readonly descriptors: readonly number[];
  readonly isReply: boolean;
  readonly wantsReply: boolean;
  readonly error: number;
}

export type Script = (heard: Heard, server: TestServer) => void;

const limits = { maxMsgFds: 8, maxDataXferSize: defaultLimits.maxDataXferSize };
const bell = new Int32Array(new SharedArrayBuffer(4));

export class TestServer implements Channel {
  readonly stream = new MessageStream(new Uint8Array(bufferLength(limits)), limits);
  readonly heard: Heard[] = [];
  readonly dropped: number[] = [];
  isClosed = false;
  isGone = false;
  /** Bytes that arrive and leave at once. */
  pace = 2 ** 21;
  /** The second socket's server, for a reply that has one. */
  readonly seconds: TestServer[] = [];
  readonly #script: Script;
  readonly #input = new MessageStream(new Uint8Array(bufferLength(limits)), { ...limits, maxMsgFds: 253 });
  readonly #outbox: { bytes: Uint8Array; at: number; descriptors: readonly number[] }[] = [];

  constructor(script: Script) {
    this.#script = script;
  }

  /** Puts a message, or any bytes, on the way to the client. */
  say(bytes: Uint8Array, descriptors: readonly number[] = []): void {
    this.#outbox.push({ bytes, at: 0, descriptors });
  }

  reply(heard: Heard, payload: Uint8Array = new Uint8Array(0), descriptors: readonly number[] = []): void {
    this.say(
      encodeMessage({ id: heard.id, command: heard.command, flags: VFIO_USER_F_TYPE_REPLY }, payload),
      descriptors,
    );
  }

  refuse(heard: Heard, error: number): void {
    const flags = VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR;
    this.say(encodeMessage({ id: heard.id, command: heard.command, flags, error }));
  }

  fill(): number {
    const first = this.#outbox[0];
    if (first === undefined) return this.isGone ? -1 : 0;
    const piece = first.bytes.subarray(first.at, first.at + this.pace);
    this.stream.push(piece, first.at === 0 ? first.descriptors : []);
    first.at += piece.length;
    if (first.at === first.bytes.length) this.#outbox.shift();
    return piece.length;
  }

  send(bytes: Uint8Array, start: number, descriptors: readonly number[]): number {
    if (this.isGone) return -1;
    const piece = bytes.subarray(start, start + this.pace);
    this.#input.push(piece, start === 0 ? descriptors : []);
    for (let message = this.#input.next(); message !== undefined; message = this.#input.next()) {
      const heard = { ...message, payload: message.payload.slice() };
      this.heard.push(heard);
      this.#script(heard, this);
    }
    return piece.length;
  }

  wait(_wantsRoom: boolean, _other: Channel | undefined, milliseconds: number): void {
    if (this.#outbox.length === 0 && !this.isGone) Atomics.wait(bell, 0, 0, Math.min(milliseconds, 2));
  }

  second(): Channel {
    const server = new TestServer(this.#script);
    this.seconds.push(server);
    return server;
  }

  drop(descriptor: number): void {
    this.dropped.push(descriptor);
  }

  close(): void {
    this.isClosed = true;
    this.dropped.push(...this.stream.takeAll());
  }
}

/** VERSION's reply of an ordinary server. */
export function versionReply(changes: Partial<typeof ownCapabilities> = {}, minor = 1, major = 0): Uint8Array {
  return encodeVersion({
    major,
    minor,
    capabilities: { ...ownCapabilities, twin_socket: { supported: false }, ...changes },
  });
}
