/**
 * One client of a server, from its first message to the end of its connection.
 *
 * Commands are handled in their order. When a device reaches for memory that only the client can give, the server asks by message
 * (`Questions`) and waits inside the device's call. A client like QEMU answers nothing while it waits for an answer itself, so meanwhile
 *
 * - a write to a BAR that is being handled is answered first: the write has arrived, its consequences take their time;
 * - commands that want an answer are handled, and posted writes before them; but RESET ends the transfer, and what must not happen during
 *   one (an unmap of its pages, migration) waits for its end, for `patience` at most;
 * - inside a command that cannot be answered before its end (a read of a register), the transfer has `patience` at most.
 *
 * A transfer that is given up is a fault to the device. docs/decisions/vfio-user.md has the reasons.
 *
 * Errno is caught here and nowhere else in this door. Any other exception is a bug: it ends the connection, not the server.
 */
import { Errno } from '../../lib/errno.ts';
import { closeDescriptor, streamPair } from '../../sys/index.ts';
import {
  VFIO_USER_DEVICE_RESET,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_TYPE_REPLY,
  VFIO_USER_VERSION,
  vfio_user_region_access,
  vfioUserCommandNames,
} from '../../uapi/vfio-user.ts';
import { HEADER, type Message, MessageStream, ProtocolError, writeHeader } from './codec.ts';
import { type Commands, makeCommands } from './commands.ts';
import { ClientDma } from './dma.ts';
import { agree, encodeVersion, ownCapabilities, parseVersion } from './negotiation.ts';
import { PrivateFiles } from './private-files.ts';
import { type Asker, Questions } from './questions.ts';
import type { ServedDevice } from './served-device.ts';
import type { MakeTransport, SessionOptions, SessionReports } from './session-options.ts';
import { GONE, NOTHING, type Sent, type Transport } from './transport.ts';
import { isBarWrite, Waiting, waitsForTransfers } from './waiting.ts';

/** A second socket, for our commands only. */
interface Twin {
  readonly transport: Transport;
  readonly stream: MessageStream;
}

/** Commands that are handled one within the other. */
const DEEPEST = 16;
/** Well below the 5 s after which QEMU takes a device for dead. */
const PATIENCE = 1000;
/** Messages handled before others (timers, signals) get their turn. */
const TURN = 64;

/** A command that is being handled. */
interface Frame {
  readonly message: Message;
  /** Nobody waits for it (any more). */
  isAnswered: boolean;
}

export class Session implements Asker {
  isOpen = true;
  readonly device: ServedDevice;
  readonly dma: ClientDma;
  readonly #transport: Transport;
  readonly #reports: SessionReports;
  readonly #makeTwin: MakeTransport | undefined;
  readonly #commands: Commands;
  readonly #questions = new Questions(this);
  readonly #patience: number;
  #stream: MessageStream;
  #input: 0 | 1 = 0;
  #isNegotiated = false;
  #maxTransfer: number = ownCapabilities.max_data_xfer_size;
  /** A command's payload lies in the input. */
  #isBusy = false;
  /** Commands that are being handled, the innermost last. */
  readonly #frames: Frame[] = [];
  readonly #waiting = new Waiting();
  /** Transfers by message fail from now on, until the device has come back from its call. */
  #isGivenUp = false;
  /** When it is given up; undefined: the client waits for nothing. */
  #deadline: number | undefined;
  #isNoticed = false;
  #twin: Twin | undefined;
  readonly #arrived: number[] = [];
  readonly #view: DataView;

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
    const [output] = transport.outputs;
    this.#view = new DataView(output.buffer, output.byteOffset, output.length);
    this.#patience = options.patience ?? PATIENCE;
    const { mode, strictUnmap } = options;
    const maxDmaMaps = ownCapabilities.max_dma_maps;
    const privateFiles = new PrivateFiles(transport.fd, (text) => reports.notice?.(`${device.name}: ${text}`));
    this.dma = new ClientDma(device, this.#questions, { mode, strictUnmap, maxDmaMaps }, privateFiles);
    this.#commands = makeCommands(device, this.dma, transport.outputs[0]);
  }

  /** Commands wait that came while an answer was awaited. */
  get hasWaiting(): boolean {
    return this.#waiting.count > 0;
  }

  /**
   * Handles what has arrived. `mayLinger` says whether a moment may be spent waiting for the next message. Returns when nothing is there
   * any more or others shall have their turn; the session may be over then.
   */
  turn(mayLinger: () => boolean): void {
    this.#isGivenUp = false;
    if (this.dma.isWindowFull) this.dma.dropWindow();
    this.#drain();
    for (let i = 0; i < TURN && this.isOpen; i++) {
      const n = this.#receive(i > 0 && mayLinger());
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
    this.#waiting.clear();
    this.#reports.ended?.();
    this.#transport.close();
    if (this.#twin !== undefined) {
      for (const fd of this.#twin.stream.takeAll()) closeDescriptor(fd);
      this.#twin.transport.close();
    }
    this.dma.dropWindow();
    this.#commands.forget();
    this.device.forgetClient();
    this.dma.files.dropIdle();
    if (why !== undefined) this.#reports.closed?.(why);
  }

  #receive(lingers: boolean): number {
    const stream = this.#stream;
    stream.prepare();
    const arrived = this.#arrived;
    const n = this.#transport.receive(this.#input, stream.tail, arrived, lingers);
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
      const waiting = this.#waiting.shift();
      const message = waiting ?? this.#next(this.#stream);
      if (message === undefined) return;
      this.#handle(message, waiting === undefined);
    }
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

  /** `isInInput`: its payload lies in the input. */
  #handle(message: Message, isInInput: boolean): void {
    const { command, descriptors } = message;
    if (message.isReply) {
      // An answer to nothing, or one that came too late.
      for (const fd of descriptors) closeDescriptor(fd);
      if (!this.#isNegotiated) this.end('the first message is no command');
      return;
    }
    if (!this.#isNegotiated && command !== VFIO_USER_VERSION) {
      for (const fd of descriptors) closeDescriptor(fd);
      const why = `the first message is ${vfioUserCommandNames[command] ?? `command ${command}`}, not VERSION`;
      if (message.wantsReply) this.#reply(message, 0, new Errno('EINVAL', why), []);
      this.end(why);
      return;
    }
    const commands = this.#commands;
    const frame: Frame = { message, isAnswered: !message.wantsReply };
    this.#frames.push(frame);
    if (isInInput) this.#isBusy = true;
    let error: Errno | undefined;
    let length = 0;
    try {
      if (message.hasSurplus) throw new Errno('EINVAL', `more than ${ownCapabilities.max_msg_fds} descriptors`);
      length = command === VFIO_USER_VERSION ? this.#version(message) : commands.run(message);
    } catch (thrown) {
      if (!(thrown instanceof Errno)) {
        this.#isBusy = false;
        this.#frames.length = 0;
        for (const fd of descriptors) closeDescriptor(fd);
        this.end('an internal error');
        throw thrown;
      }
      error = thrown;
    }
    if (isInInput) this.#isBusy = false;
    this.#frames.pop();
    // The device is back from its call.
    if (this.#frames.length === 0 && this.#questions.count === 0) this.#isGivenUp = false;
    if (descriptors.length > 0) for (const fd of descriptors) closeDescriptor(fd);
    if (this.#reports.message !== undefined) this.#report(message, error);
    if (!this.isOpen) return;
    if (!frame.isAnswered) this.#reply(message, length, error, commands.takeAttached());
    // A client that cannot be agreed with is told so and left.
    if (command === VFIO_USER_VERSION && error !== undefined && !this.#isNegotiated) this.end(error.why);
  }

  #reply(message: Message, length: number, error: Errno | undefined, attached: readonly number[]): void {
    const { id, command } = message;
    const view = this.#view;
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
    const sent = this.#transport.send(0, size, error === undefined ? attached : undefined, this.#takeIn);
    if (command === VFIO_USER_VERSION) for (const fd of attached) closeDescriptor(fd);
    this.#sent(sent);
  }

  /** Reads what the client sends while it takes nothing from us. False: there is no room for more. */
  readonly #takeIn = (): boolean => {
    this.#leaveInput();
    return this.#stream.room().length > 0 && this.#receive(false) !== GONE;
  };

  /** The payload of the command that is being handled stays where it is; what comes now goes elsewhere. */
  #leaveInput(): void {
    if (!this.#isBusy) return;
    this.#input = this.#input === 0 ? 1 : 0;
    this.#stream.moveTo(this.#transport.inputs[this.#input]);
    this.#isBusy = false;
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

  // ---- questions: what the device needs of the client while it is in a call ----

  get mayAsk(): boolean {
    return this.isOpen && this.#isNegotiated && !this.#isGivenUp;
  }

  get maxTransfer(): number {
    return this.#maxTransfer;
  }

  get output(): Uint8Array {
    return this.#twin?.transport.outputs[0] ?? this.#transport.outputs[1];
  }

  beforeQuestion(): void {
    this.#leaveInput();
    const frame = this.#frames[this.#frames.length - 1];
    if (frame !== undefined && !frame.isAnswered) {
      if (isBarWrite(frame.message)) this.#answerWrite(frame);
      else this.#deadline ??= performance.now() + this.#patience;
    }
    this.#handleWaiting();
  }

  sendQuestion(length: number): boolean {
    this.#reports.tap?.(false, this.output.subarray(0, length), 0);
    const twin = this.#twin?.transport;
    return this.#sent(
      twin === undefined ? this.#transport.send(1, length, undefined, this.#takeIn) : twin.send(0, length),
    );
  }

  #sent(sent: Sent): boolean {
    if (sent !== 'sent') this.end(sent === 'full' ? 'the client does not read what it is sent' : undefined);
    return sent === 'sent';
  }

  step(): boolean {
    if (!this.mayAsk) return false;
    const twin = this.#twin;
    const message = this.#next(this.#stream) ?? (twin === undefined ? undefined : this.#next(twin.stream));
    if (message === undefined) return this.isOpen && this.#waitForMessages();
    if (message.isReply) {
      for (const fd of message.descriptors) closeDescriptor(fd);
      this.#questions.take(message);
    } else if (!this.#waiting.push(message)) this.end('the client sends commands without answering');
    else if (message.wantsReply) this.#handleWaiting();
    return this.mayAsk;
  }

  afterQuestions(): void {
    this.#deadline = undefined;
    if (this.#frames.length > 0 || !this.isOpen) return;
    if (this.hasWaiting || this.#isGivenUp || this.#stream.isWithinMessage || this.dma.isWindowFull)
      this.#reports.pending?.();
  }

  /** A write to a BAR has arrived: that is all that the client waits for. */
  #answerWrite(frame: Frame): void {
    const { message } = frame;
    frame.isAnswered = true;
    this.#transport.outputs[0].set(message.payload.subarray(0, vfio_user_region_access.size), HEADER);
    this.#reply(message, vfio_user_region_access.size, undefined, []);
  }

  /** Handles commands that came while an answer is awaited, as far as that can be and somebody waits for it. */
  #handleWaiting(): void {
    while (this.mayAsk && this.#waiting.wantsReply) {
      const frame = this.#frames[this.#frames.length - 1];
      if (frame !== undefined && !frame.isAnswered) return;
      const first = this.#waiting.first!;
      if (this.#questions.count > 0 && first.command === VFIO_USER_DEVICE_RESET) {
        this.#isGivenUp = true;
        return;
      }
      if (this.#frames.length >= DEEPEST || waitsForTransfers(first, this.#questions)) {
        this.#deadline ??= performance.now() + this.#patience;
        return;
      }
      this.#handle(this.#waiting.shift()!, false);
    }
  }

  #waitForMessages(): boolean {
    const deadline = this.#deadline;
    const twin = this.#twin;
    const left = deadline === undefined ? -1 : Math.max(Math.ceil(deadline - performance.now()), 0);
    const waited = this.#transport.wait(left, twin?.transport);
    if (waited === 'late') {
      this.#isGivenUp = true;
      this.#explainGivenUp();
      return false;
    }
    const isGone = waited === 'stopped' || this.#receive(false) === GONE;
    if (!isGone && twin !== undefined) this.#receiveTwin(twin);
    if (isGone) this.end('the client left while the device waited for its memory');
    return this.isOpen;
  }

  #receiveTwin({ transport, stream }: Twin): void {
    const arrived: number[] = [];
    stream.prepare();
    const n = transport.receive(0, stream.tail, arrived, false);
    for (const fd of arrived) closeDescriptor(fd);
    if (n > 0) stream.received(n);
    else if (n === GONE) this.end('the client closed the second socket');
  }

  #explainGivenUp(): void {
    if (this.#isNoticed) return;
    this.#isNoticed = true;
    const frame = this.#frames[this.#frames.length - 1];
    const name = frame === undefined ? undefined : vfioUserCommandNames[frame.message.command];
    this.#reports.notice?.(
      `${this.device.name}: a DMA by message was given up after ${this.#patience} ms: ` +
        (name === undefined
          ? 'the client does not answer while it waits for an answer itself'
          : `it was started inside ${name}, whose answer the client waits for; memory that the client shares, or a DMA after the access, works`),
    );
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
