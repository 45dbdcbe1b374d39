/** A client in the same process as the server, for tests: it speaks over a real socket, and answers while the server waits for it. */
import { type HostConfig, Machine } from '../../host/index.ts';
import {
  closeDescriptor,
  NativeShared,
  Region,
  receiveStream,
  sendStream,
  sendStreamDescriptors,
  streamPair,
} from '../../sys/index.ts';
import { VFIO_USER_VERSION } from '../../uapi/vfio-user.ts';
import { EventLoop } from '../run/event-loop.ts';
import { bufferLength, defaultLimits, encodeMessage, type Message, MessageStream } from './codec.ts';
import type { DmaMode } from './dma.ts';
import { ServedDevice } from './served-device.ts';
import { Session } from './session.ts';
import { type Patience, SocketTransport, TransportBuffers } from './transport.ts';

const buffers = new TransportBuffers({ maxMsgFds: 8, maxDataXferSize: 1048576 });
const twinBuffers = new TransportBuffers({ maxMsgFds: 8, maxDataXferSize: 1048576 });
const input = new Region(bufferLength(defaultLimits));
const output = new Region(bufferLength(defaultLimits));

/** A transport that lets the other side act before it waits. */
class WaitingTransport extends SocketTransport {
  onWait: () => void = () => {};

  override receive(which: 0 | 1, offset: number, descriptors: number[], patience: Patience): number {
    if (patience === 'endless') this.onWait();
    return super.receive(which, offset, descriptors, patience);
  }
}

export class TestPeer {
  readonly machine: Machine;
  readonly loop = new EventLoop();
  readonly device: ServedDevice;
  readonly closed: string[] = [];
  session!: Session;
  /** Answers the server's commands: the payload of the reply, or an errno. */
  onCommand: (message: Message) => Uint8Array | number = () => 22;
  /** The client's end of the twin socket. */
  twin = -1;
  #fd = -1;
  #stream = new MessageStream(input.bytes);
  #nextId = 1;
  readonly #mode: DmaMode;
  readonly #strictUnmap: boolean;
  #replies: Message[] = [];

  constructor(options: { model?: string; mode?: DmaMode; strictUnmap?: boolean } = {}) {
    const config: HostConfig = {
      name: 'test',
      iommu: { units: [{ name: 'dmar0', preset: 'vtd-legacy-sc' }] },
      functions: [
        { at: '00:01.0', model: 'root-port', secondary: 1 },
        { at: '01:00.0', model: options.model ?? 'testdev', driver: 'vfio-pci' },
      ],
    };
    this.#mode = options.mode ?? 'auto';
    this.#strictUnmap = options.strictUnmap ?? false;
    this.machine = new Machine(config, {
      clock: this.loop,
      allocateShared: (name, length) => new NativeShared(name, length),
      log() {},
      dmaMiss: (_name, page) => this.session.dma.miss(page),
    });
    this.device = new ServedDevice(this.machine, this.loop, '0000:01:00.0');
    this.connect();
  }

  /** A new client; the one before must be gone. */
  connect(): void {
    const [ours, theirs] = streamPair();
    this.#fd = ours;
    this.#stream = new MessageStream(input.bytes, { maxMsgFds: 64, maxDataXferSize: 1048576 });
    this.#replies = [];
    const transport = new WaitingTransport(theirs, buffers, -1);
    transport.onWait = () => this.#answer();
    this.session = new Session(
      this.device,
      transport,
      { mode: this.#mode, strictUnmap: this.#strictUnmap },
      { closed: (why) => this.closed.push(why), pending: () => {} },
      (fd) => {
        const twin = new WaitingTransport(fd, twinBuffers, -1);
        twin.onWait = () => this.#answerTwin();
        return twin;
      },
    );
  }

  /** Sends bytes as they are. */
  sendBytes(bytes: Uint8Array, descriptors: readonly number[] = []): void {
    output.bytes.set(bytes);
    if (descriptors.length > 0) sendStreamDescriptors(this.#fd, output.address, bytes.length, descriptors);
    else sendStream(this.#fd, output.address, bytes.length);
  }

  /** Sends a command; the result is its id. */
  send(
    command: number,
    payload: Uint8Array = new Uint8Array(0),
    descriptors: readonly number[] = [],
    flags = 0,
  ): number {
    const id = this.#nextId++ & 0xffff;
    this.sendBytes(encodeMessage({ id, command, flags }, payload), descriptors);
    return id;
  }

  /** Lets the server handle what has arrived, and its timers. */
  serve(): void {
    for (let i = 0; i < 4; i++) if (this.session.isOpen) this.session.turn(() => false);
    this.loop.turn(0);
    if (this.session.isOpen && this.session.hasWaiting) this.session.turn(() => false);
  }

  /** The next reply; undefined: there is none. */
  reply(): Message | undefined {
    this.#read();
    return this.#replies.shift();
  }

  /** Sends a command, lets it be handled, and takes the reply. */
  call(command: number, payload: Uint8Array = new Uint8Array(0), descriptors: readonly number[] = []): Message {
    this.send(command, payload, descriptors);
    this.serve();
    const reply = this.reply();
    if (reply === undefined) throw new Error(`Command ${command} got no reply (${this.closed.join(', ')})`);
    return reply;
  }

  negotiate(capabilities: object = { max_msg_fds: 16, write_multiple: true }): Message {
    return this.call(VFIO_USER_VERSION, versionPayload(0, 1, JSON.stringify({ capabilities })));
  }

  /** The client goes. */
  disconnect(): void {
    if (this.#fd >= 0) closeDescriptor(this.#fd);
    this.#fd = -1;
    this.serve();
  }

  close(): void {
    this.disconnect();
    this.device.close();
    this.loop.close();
  }

  #read(): void {
    if (this.#fd < 0) return;
    for (;;) {
      const fds: number[] = [];
      this.#stream.prepare();
      const at = this.#stream.tail;
      const n = receiveStream(this.#fd, input.address + at, input.length - at, fds, false);
      if (n <= 0) break;
      this.#stream.received(n, fds);
      for (let message = this.#stream.next(); message !== undefined; message = this.#stream.next()) {
        const payload = message.payload.slice();
        this.#replies.push({ ...message, payload, view: new DataView(payload.buffer), offset: 0 });
      }
    }
  }

  /** The server waits at the twin socket. */
  #answerTwin(): void {
    const n = receiveStream(this.twin, output.address, output.length, [], false);
    if (n <= 0) return;
    const stream = new MessageStream(new Uint8Array(bufferLength(defaultLimits)));
    stream.push(output.bytes.subarray(0, n));
    const message = stream.next()!;
    const { id, command } = message;
    const answer = this.onCommand(message);
    const bytes =
      typeof answer === 'number'
        ? encodeMessage({ id, command, flags: 0x21, error: answer })
        : encodeMessage({ id, command, flags: 1 }, answer);
    output.bytes.set(bytes);
    sendStream(this.twin, output.address, bytes.length);
  }

  /** The server waits: its command is answered. */
  #answer(): void {
    this.#read();
    const at = this.#replies.findIndex((message) => !message.isReply);
    if (at < 0) return;
    const [message] = this.#replies.splice(at, 1);
    const answer = this.onCommand(message!);
    const { id, command } = message!;
    if (typeof answer === 'number') this.sendBytes(encodeMessage({ id, command, flags: 0x21, error: answer }));
    else this.sendBytes(encodeMessage({ id, command, flags: 1 }, answer));
  }
}

export function versionPayload(major: number, minor: number, text: string | undefined): Uint8Array {
  const json = text === undefined ? new Uint8Array(0) : Buffer.from(`${text}\0`);
  const payload = new Uint8Array(4 + json.length);
  new DataView(payload.buffer).setUint16(0, major, true);
  new DataView(payload.buffer).setUint16(2, minor, true);
  payload.set(json, 4);
  return payload;
}
