/**
 * One client of a server, from its first message to the end of its connection.
 *
 * A command is handled to its end before the next one. When the device reaches for memory that only the client can give, the server asks
 * by message and waits for the answer; commands that arrive meanwhile are kept and follow in their order.
 *
 * Errno is caught here and nowhere else in this door. Any other exception is a bug: it ends the connection, not the server.
 */
import { Errno } from '../../lib/errno.ts';
import { closeDescriptor, streamPair } from '../../sys/index.ts';
import {
  VFIO_USER_DMA_READ,
  VFIO_USER_DMA_WRITE,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_TYPE_COMMAND,
  VFIO_USER_F_TYPE_REPLY,
  VFIO_USER_REGION_READ,
  VFIO_USER_REGION_WRITE,
  VFIO_USER_VERSION,
  vfioUserCommandNames,
} from '../../uapi/vfio-user.ts';
import { HEADER, type Message, MessageStream, ProtocolError, writeHeader } from './codec.ts';
import { type Commands, makeCommands } from './commands.ts';
import { ClientDma, type DmaMode } from './dma.ts';
import { agree, encodeVersion, ownCapabilities, parseVersion } from './negotiation.ts';
import type { ServedDevice } from './served-device.ts';
import { GONE, NOTHING, type Patience, type Transport } from './transport.ts';

export interface SessionOptions {
  readonly mode: DmaMode;
  /** An unmap of anything but one exact map is refused, as libvfio-user does. */
  readonly strictUnmap: boolean;
}

export interface MessageRecord {
  readonly command: string;
  readonly details: string;
  /** 0, or minus the errno. */
  readonly result: number;
  readonly why: string | undefined;
}

/** Who wants to know; undefined members are not wanted. */
export interface SessionReports {
  message?: ((record: MessageRecord) => void) | undefined;
  /** Every message as it travels, header included. Valid within the call. */
  tap?: ((fromClient: boolean, message: Uint8Array, descriptors: number) => void) | undefined;
  /** Why a connection was closed by the server. */
  closed?: ((why: string) => void) | undefined;
  /** The session is over; its socket is still open. */
  ended?: (() => void) | undefined;
  /** Something arrived while the device, on its own account, waited for the client: `turn` has to be called. */
  pending?: (() => void) | undefined;
}

/** Makes a transport of a connected socket: the server's end of a twin socket. */
export type MakeTransport = (fd: number) => Transport;

/** A second socket, for our commands only. */
interface Twin {
  readonly transport: Transport;
  readonly stream: MessageStream;
}

/** Commands that may wait while the client's answer is waited for. */
const MOST_WAITING = 4096;
const MOST_WAITING_BYTES = 16 * 2 ** 20;
/** Messages handled before others (timers, signals) get their turn. */
const TURN = 64;

export class Session {
  isOpen = true;
  readonly device: ServedDevice;
  readonly dma: ClientDma;
  readonly #transport: Transport;
  readonly #reports: SessionReports;
  readonly #makeTwin: MakeTransport | undefined;
  readonly #commands: Commands;
  #stream: MessageStream;
  #input: 0 | 1 = 0;
  #isNegotiated = false;
  #maxTransfer: number = ownCapabilities.max_data_xfer_size;
  /** A command's payload lies in the input. */
  #isBusy = false;
  #isInCommand = false;
  readonly #waiting: Message[] = [];
  #waitingBytes = 0;
  #nextId = 0;
  #twin: Twin | undefined;
  readonly #arrived: number[] = [];
  readonly #views: readonly [DataView, DataView];

  constructor(
    device: ServedDevice,
    transport: Transport,
    options: SessionOptions,
    reports: SessionReports = {},
    makeTwin?: MakeTransport,
  ) {
    this.device = device;
    this.#transport = transport;
    this.#reports = reports;
    this.#makeTwin = makeTwin;
    this.#stream = new MessageStream(transport.inputs[0], {
      maxMsgFds: ownCapabilities.max_msg_fds,
      maxDataXferSize: ownCapabilities.max_data_xfer_size,
    });
    const [first, second] = transport.outputs;
    this.#views = [viewOf(first), viewOf(second)];
    this.dma = new ClientDma(
      device,
      {
        readDma: (address, into) => this.#readDma(address, into),
        writeDma: (address, from) => this.#writeDma(address, from),
      },
      { mode: options.mode, strictUnmap: options.strictUnmap, maxDmaMaps: ownCapabilities.max_dma_maps },
    );
    this.#commands = makeCommands(device, this.dma, transport.outputs[0]);
  }

  /** Commands wait that came while an answer was awaited. */
  get hasWaiting(): boolean {
    return this.#waiting.length > 0;
  }

  /**
   * Handles what has arrived. `mayLinger` says whether a moment may be spent waiting for the next message. Returns when nothing is there
   * any more or others shall have their turn; the session may be over then.
   */
  turn(mayLinger: () => boolean): void {
    if (this.dma.isWindowFull) this.dma.dropWindow();
    this.#drain();
    for (let i = 0; i < TURN && this.isOpen; i++) {
      const n = this.#receive(i > 0 && mayLinger() ? 'moment' : 'none');
      if (n === NOTHING) return;
      if (n === GONE) {
        this.end(this.#stream.isWithinMessage ? 'the client left in the middle of a message' : undefined);
        return;
      }
      this.#drain();
    }
  }

  /** The connection is over: everything of the client's goes. `why`: it was us who closed it, or something was wrong. */
  end(why?: string): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    for (const fd of this.#stream.takeAll()) closeDescriptor(fd);
    for (const { descriptors } of this.#waiting) for (const fd of descriptors) closeDescriptor(fd);
    this.#waiting.length = 0;
    this.#reports.ended?.();
    this.#transport.close();
    if (this.#twin !== undefined) {
      for (const fd of this.#twin.stream.takeAll()) closeDescriptor(fd);
      this.#twin.transport.close();
    }
    this.dma.dropWindow();
    this.device.forgetClient();
    this.dma.files.dropIdle();
    if (why !== undefined) this.#reports.closed?.(why);
  }

  #receive(patience: Patience): number {
    const stream = this.#stream;
    stream.prepare();
    const arrived = this.#arrived;
    const n = this.#transport.receive(this.#input, stream.tail, arrived, patience);
    if (n > 0) {
      if (arrived.length > 0) {
        stream.received(n, [...arrived]);
        arrived.length = 0;
        for (const fd of stream.takeSurplus()) closeDescriptor(fd);
      } else stream.received(n);
    } else if (arrived.length > 0) {
      for (const fd of arrived) closeDescriptor(fd);
      arrived.length = 0;
    }
    return n;
  }

  /** Handles whole messages until there is none. */
  #drain(): void {
    while (this.isOpen) {
      const message = this.#waiting.length > 0 ? this.#takeWaiting() : this.#next(this.#stream);
      if (message === undefined) return;
      this.#handle(message);
    }
  }

  #takeWaiting(): Message {
    const message = this.#waiting.shift()!;
    this.#waitingBytes -= message.payload.length + HEADER;
    return message;
  }

  /** The next whole message; a stream that cannot be followed ends the session. */
  #next(stream: MessageStream): Message | undefined {
    try {
      const message = stream.next();
      if (message !== undefined && this.#reports.tap !== undefined) {
        const { payload, descriptors } = message;
        const whole = new Uint8Array(payload.buffer, payload.byteOffset - HEADER, payload.length + HEADER);
        this.#reports.tap(true, whole, descriptors.length);
      }
      return message;
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.end(error.message);
      return undefined;
    }
  }

  #handle(message: Message): void {
    const { command, descriptors } = message;
    if (message.isReply) {
      // An answer to nothing, or one that came too late.
      for (const fd of descriptors) closeDescriptor(fd);
      if (!this.#isNegotiated) this.end('the first message is no command');
      return;
    }
    if (!this.#isNegotiated && command !== VFIO_USER_VERSION) {
      for (const fd of descriptors) closeDescriptor(fd);
      this.end(`the first message is ${vfioUserCommandNames[command] ?? `command ${command}`}, not VERSION`);
      return;
    }
    this.#isBusy = true;
    this.#isInCommand = true;
    const commands = this.#commands;
    let error: Errno | undefined;
    let length = 0;
    try {
      if (message.hasSurplus) throw new Errno('EINVAL', `more than ${ownCapabilities.max_msg_fds} descriptors`);
      length = command === VFIO_USER_VERSION ? this.#version(message) : commands.run(message);
    } catch (thrown) {
      if (!(thrown instanceof Errno)) {
        this.#isBusy = false;
        this.#isInCommand = false;
        for (const fd of descriptors) closeDescriptor(fd);
        this.end('an internal error');
        throw thrown;
      }
      error = thrown;
    }
    this.#isBusy = false;
    this.#isInCommand = false;
    if (descriptors.length > 0) for (const fd of descriptors) closeDescriptor(fd);
    if (this.#reports.message !== undefined) this.#report(message, error);
    if (!this.isOpen) return;
    if (message.wantsReply) this.#reply(message, length, error, commands.takeAttached());
    // A client that cannot be agreed with is told so and left.
    if (command === VFIO_USER_VERSION && error !== undefined && !this.#isNegotiated) this.end(error.why);
  }

  #reply(message: Message, length: number, error: Errno | undefined, attached: readonly number[]): void {
    const { id, command } = message;
    const view = this.#views[0];
    let size = HEADER + length;
    if (error !== undefined) {
      size = HEADER;
      const flags = VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR;
      writeHeader(view, 0, { id, command, size, flags, error: error.errno });
    } else {
      // Field by field: this is the way of every register access.
      view.setUint16(0, id, true);
      view.setUint16(2, command, true);
      view.setUint32(4, size, true);
      view.setUint32(8, VFIO_USER_F_TYPE_REPLY, true);
      view.setUint32(12, 0, true);
    }
    this.#reports.tap?.(false, this.#transport.outputs[0].subarray(0, size), attached.length);
    const isSent = this.#transport.send(0, size, error === undefined ? attached : undefined);
    if (command === VFIO_USER_VERSION) for (const fd of attached) closeDescriptor(fd);
    if (!isSent) this.end();
  }

  #version(message: Message): number {
    if (this.#isNegotiated) throw new Errno('EINVAL', 'the version was agreed on already');
    const proposed = parseVersion(message.payload);
    const agreed = agree(proposed, {
      ...ownCapabilities,
      twin_socket: { supported: this.#makeTwin !== undefined },
    });
    const { capabilities } = agreed;
    this.#maxTransfer = capabilities.max_data_xfer_size;
    this.#commands.negotiated(capabilities);
    if (capabilities.twin_socket.supported) this.#openTwin();
    const payload = encodeVersion(agreed);
    this.#transport.outputs[0].set(payload, HEADER);
    this.#isNegotiated = true;
    return payload.length;
  }

  /** A second socket for our commands; the client gets the other end with the reply. */
  #openTwin(): void {
    const [ours, theirs] = streamPair();
    const transport = this.#makeTwin!(ours);
    const stream = new MessageStream(transport.inputs[0], this.#stream.limits);
    this.#twin = { transport, stream };
    this.#commands.attach([theirs]);
  }

  // ---- our commands ----

  #readDma(address: number, into: Uint8Array): boolean {
    for (let done = 0; done < into.length; ) {
      const count = Math.min(into.length - done, this.#maxTransfer);
      const reply = this.#ask(VFIO_USER_DMA_READ, address + done, count, undefined);
      if (reply === undefined || reply.payload.length < HEADER) return false;
      const got = reply.view.getUint32(reply.offset + 8, true);
      if (got === 0 || got > count || reply.payload.length < HEADER + got) return false;
      into.set(reply.payload.subarray(HEADER, HEADER + got), done);
      done += got;
    }
    return true;
  }

  #writeDma(address: number, from: Uint8Array): boolean {
    for (let done = 0; done < from.length; ) {
      const count = Math.min(from.length - done, this.#maxTransfer);
      const reply = this.#ask(VFIO_USER_DMA_WRITE, address + done, count, from.subarray(done, done + count));
      if (reply === undefined || reply.payload.length < HEADER) return false;
      const got = reply.view.getUint32(reply.offset + 8, true);
      if (got === 0 || got > count) return false;
      done += got;
    }
    return true;
  }

  /** Sends a command of ours and waits for its reply. Undefined: it was refused, or the client is gone. */
  #ask(command: number, address: number, count: number, data: Uint8Array | undefined): Message | undefined {
    if (!this.isOpen || !this.#isNegotiated) return undefined;
    const id = this.#nextId;
    this.#nextId = (id + 1) & 0xffff;
    const twin = this.#twin;
    const transport = twin?.transport ?? this.#transport;
    const which = twin === undefined ? 1 : 0;
    const output = transport.outputs[which];
    const view = twin === undefined ? this.#views[1] : viewOf(output);
    const size = HEADER + 16 + (data?.length ?? 0);
    writeHeader(view, 0, { id, command, size, flags: VFIO_USER_F_TYPE_COMMAND });
    view.setBigUint64(HEADER, BigInt(address), true);
    view.setBigUint64(HEADER + 8, BigInt(count), true);
    if (data !== undefined) output.set(data, HEADER + 16);
    this.#reports.tap?.(false, output.subarray(0, size), 0);
    if (!transport.send(which, size)) return undefined;
    const reply = twin === undefined ? this.#awaitReply(id, command) : this.#awaitTwin(twin, id, command);
    if (!this.#isInCommand && (this.hasWaiting || this.#stream.isWithinMessage || this.dma.isWindowFull))
      this.#reports.pending?.();
    return reply === undefined || reply.error !== 0 ? undefined : reply;
  }

  #awaitReply(id: number, command: number): Message | undefined {
    if (this.#isBusy) {
      // The payload of the command that is being handled stays where it is.
      this.#input = this.#input === 0 ? 1 : 0;
      this.#stream.moveTo(this.#transport.inputs[this.#input]);
      this.#isBusy = false;
    }
    for (;;) {
      let message: Message | undefined;
      while (message === undefined) {
        message = this.#next(this.#stream);
        if (!this.isOpen) return undefined;
        if (message !== undefined) break;
        if (this.#receive('endless') === GONE) {
          this.end('the client left while the device waited for its memory');
          return undefined;
        }
      }
      if (message.isReply) {
        for (const fd of message.descriptors) closeDescriptor(fd);
        if (message.id === id && message.command === command) return message;
      } else if (!this.#isInCommand && this.#waiting.length === 0 && isRegionAccess(message.command)) {
        // QEMU answers us only after its own register access was answered: the device, busy with its DMA, answers as hardware does.
        this.#handle(message);
        if (!this.isOpen) return undefined;
      } else if (!this.#keep(message)) return undefined;
    }
  }

  #awaitTwin(twin: Twin, id: number, command: number): Message | undefined {
    const { transport, stream } = twin;
    const arrived: number[] = [];
    for (;;) {
      const message = this.#next(stream);
      if (!this.isOpen) return undefined;
      if (message === undefined) {
        stream.prepare();
        const n = transport.receive(0, stream.tail, arrived, 'endless');
        if (n === GONE) return undefined;
        if (n > 0) stream.received(n);
      } else if (message.isReply && message.id === id && message.command === command) return message;
      for (const fd of arrived) closeDescriptor(fd);
      arrived.length = 0;
    }
  }

  /** A command that came while an answer was awaited. False: there are too many, the session is over. */
  #keep(message: Message): boolean {
    const { payload } = message;
    this.#waitingBytes += payload.length + HEADER;
    if (this.#waiting.length >= MOST_WAITING || this.#waitingBytes > MOST_WAITING_BYTES) {
      for (const fd of message.descriptors) closeDescriptor(fd);
      this.end('the client sends commands without answering');
      return false;
    }
    const copy = payload.slice();
    this.#waiting.push({ ...message, payload: copy, view: viewOf(copy), offset: 0 });
    return true;
  }

  #report(message: Message, error: Errno | undefined): void {
    const { command } = message;
    this.#reports.message?.({
      command: vfioUserCommandNames[command] ?? `command ${command}`,
      details: this.#commands.describe(message),
      result: error === undefined ? 0 : -error.errno,
      why: error?.why,
    });
  }
}

function isRegionAccess(command: number): boolean {
  return command === VFIO_USER_REGION_READ || command === VFIO_USER_REGION_WRITE;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
