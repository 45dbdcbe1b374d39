/** A client in the same process as the server, for tests: it speaks over a real socket, and answers while the server waits for it. */
import { type DeviceModel, type HostConfig, Machine } from '../../host/index.ts';
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
import { SocketTransport, type Transport, TransportBuffers, type Waited } from './transport.ts';

const buffers = new TransportBuffers({ maxMsgFds: 8, maxDataXferSize: 1048576 });
const twinBuffers = new TransportBuffers({ maxMsgFds: 8, maxDataXferSize: 1048576 });
const input = new Region(bufferLength(defaultLimits));
const output = new Region(bufferLength(defaultLimits));

/** A transport that lets the other side act before it waits. */
class WaitingTransport extends SocketTransport {
  onWait: () => void = () => {};

  override wait(milliseconds: number, other?: Transport): Waited {
    this.onWait();
    return super.wait(milliseconds, other);
  }
}

export class TestPeer {
  readonly machine: Machine;
  readonly loop = new EventLoop();
  readonly device: ServedDevice;
  readonly closed: string[] = [];
  readonly notices: string[] = [];
  /** As QEMU: nothing is answered while an answer is awaited. */
  isStubborn = false;
  /** Called whenever the server waits, before its command is answered. */
  onWait: () => void = () => {};
  session!: Session;
  /** Answers the server's commands: the payload of the reply, an errno, or by `answer` some time. */
  onCommand: (message: Message) => Uint8Array | number | 'later' = () => 22;
  /** The client's end of the twin socket. */
  twin = -1;
  #fd = -1;
  #stream = new MessageStream(input.bytes);
  #nextId = 1;
  readonly #mode: DmaMode;
  readonly #strictUnmap: boolean;
  readonly #patience: number;
  /** Ids of commands whose answers are awaited. */
  readonly #awaited = new Set<number>();
  #replies: Message[] = [];

  constructor(
    options: {
      model?: string | DeviceModel;
      options?: Record<string, unknown>;
      mode?: DmaMode;
      strictUnmap?: boolean;
      patience?: number;
    } = {},
  ) {
    const { model = 'testdev', options: modelOptions = {} } = options;
    const config: HostConfig = {
      name: 'test',
      iommu: { units: [{ name: 'dmar0', preset: 'vtd-legacy-sc' }] },
      functions: [
        { at: '00:01.0', model: 'root-port', secondary: 1 },
        {
          at: '01:00.0',
          model: typeof model === 'string' ? model : model.name,
          driver: 'vfio-pci',
          options: modelOptions,
        },
      ],
    };
    this.#mode = options.mode ?? 'auto';
    this.#strictUnmap = options.strictUnmap ?? false;
    this.#patience = options.patience ?? 1000;
    this.machine = new Machine(config, {
      clock: this.loop,
      allocateShared: (name, length) => new NativeShared(name, length),
      log() {},
      ...(typeof model !== 'string' && { models: new Map([[model.name, model]]) }),
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
    this.#awaited.clear();
    const transport = new WaitingTransport(theirs, buffers, -1);
    transport.onWait = () => this.#meanwhile();
    this.session = new Session(
      this.device,
      transport,
      { mode: this.#mode, strictUnmap: this.#strictUnmap, patience: this.#patience },
      { closed: (why) => this.closed.push(why), notice: (text) => this.notices.push(text), pending: () => {} },
      (fd) => new SocketTransport(fd, twinBuffers, -1),
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
    if (flags === 0) this.#awaited.add(id);
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
    const at = this.#replies.findIndex((message) => message.isReply);
    return at < 0 ? undefined : this.#replies.splice(at, 1)[0];
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
        if (message.isReply) this.#awaited.delete(message.id);
        this.#replies.push({ ...message, payload, view: new DataView(payload.buffer), offset: 0 });
      }
    }
  }

  /** The server waits. */
  #meanwhile(): void {
    this.#read();
    this.onWait();
    if (this.isStubborn && this.#awaited.size > 0) return;
    if (this.twin >= 0) this.#answerTwin();
    this.#answer();
  }

  #answerTwin(): void {
    const n = receiveStream(this.twin, output.address, output.length, [], false);
    if (n <= 0) return;
    const stream = new MessageStream(new Uint8Array(bufferLength(defaultLimits)));
    stream.push(output.bytes.subarray(0, n));
    const message = stream.next()!;
    const { id, command } = message;
    const answer = this.onCommand(message);
    if (answer === 'later') return;
    const bytes =
      typeof answer === 'number'
        ? encodeMessage({ id, command, flags: 0x21, error: answer })
        : encodeMessage({ id, command, flags: 1 }, answer);
    output.bytes.set(bytes);
    sendStream(this.twin, output.address, bytes.length);
  }

  #answer(): void {
    const at = this.#replies.findIndex((message) => !message.isReply);
    if (at < 0) return;
    const [message] = this.#replies.splice(at, 1);
    const answer = this.onCommand(message!);
    const { id, command } = message!;
    if (answer !== 'later') this.answer(id, command, answer);
  }

  /** Answers a command of the server. */
  answer(id: number, command: number, answer: Uint8Array | number): void {
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
