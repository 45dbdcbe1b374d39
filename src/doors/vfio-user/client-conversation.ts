/**
 * Requests and their replies, in any order; and the server's own commands, which are answered whenever we wait.
 *
 * Nothing is awaited by promise: `finish` waits in the system. While a request cannot be sent because the server is itself sending, what
 * the server sends is taken in, so the two never wait for each other.
 */
import { Errno, errnoNumbers } from '../../lib/errno.ts';
import { VFIO_USER_F_ERROR, VFIO_USER_F_NO_REPLY, VFIO_USER_F_TYPE_REPLY } from '../../uapi/vfio-user.ts';
import type { Channel } from './client-channel.ts';
import {
  BadServerError,
  commandName,
  DisconnectedError,
  RefusedError,
  TimeoutError,
  type VfioUserError,
} from './client-errors.ts';
import { encodeMessage, type Message, ProtocolError } from './codec.ts';

export interface Reply {
  readonly payload: Uint8Array;
  /** The caller's, to be closed. */
  readonly descriptors: readonly number[];
}

export interface RequestOptions {
  readonly descriptors?: readonly number[];
  /** The reply may carry descriptors. Without it they end the connection. */
  readonly takesDescriptors?: boolean;
}

interface Pending {
  readonly command: number;
  readonly takesDescriptors: boolean;
  isAbandoned: boolean;
  reply: Reply | undefined;
  refusal: VfioUserError | undefined;
}

/** A channel and what has to be sent on it. */
interface Line {
  readonly channel: Channel;
  readonly queue: { readonly bytes: Uint8Array; done: number; readonly descriptors: readonly number[] }[];
}

/** Answers a command of the server with the reply's payload. Errno: the error reply. */
export type CommandHandler = (command: number, payload: Uint8Array) => Uint8Array;

const nothing = new Uint8Array(0);

export class Conversation {
  readonly #main: Line;
  readonly #onCommand: CommandHandler;
  readonly #pending = new Map<number, Pending>();
  readonly #timeout: number;
  #twin: Line | undefined;
  #nextId = 0;
  #end: VfioUserError | undefined;

  /** `timeout` in milliseconds, for each wait. */
  constructor(channel: Channel, timeout: number, onCommand: CommandHandler) {
    this.#main = { channel, queue: [] };
    this.#timeout = timeout;
    this.#onCommand = onCommand;
  }

  /** Why there is no connection any more; undefined: there is one. */
  get end(): VfioUserError | undefined {
    return this.#end;
  }

  /** From now on the server's commands come by this socket. */
  setTwin(descriptor: number): void {
    this.#twin = { channel: this.#main.channel.second(descriptor), queue: [] };
  }

  /** Closes descriptors of a reply. */
  drop(descriptors: readonly number[]): void {
    for (const descriptor of descriptors) this.#main.channel.drop(descriptor);
  }

  /** Sends a request; the result is for `finish`. */
  start(command: number, payload: Uint8Array, options: RequestOptions = {}): number {
    this.#mustBeOpen();
    if (this.#pending.size >= 0xffff) throw new RangeError('65535 requests wait for their reply');
    while (this.#pending.has(this.#nextId)) this.#nextId = (this.#nextId + 1) & 0xffff;
    const id = this.#nextId;
    this.#nextId = (id + 1) & 0xffff;
    const pending: Pending = {
      command,
      takesDescriptors: options.takesDescriptors === true,
      isAbandoned: false,
      reply: undefined,
      refusal: undefined,
    };
    this.#pending.set(id, pending);
    this.#send(id, pending, command, encodeMessage({ id, command }, payload), options.descriptors ?? []);
    return id;
  }

  /** Sends a request that is never answered. */
  post(command: number, payload: Uint8Array): void {
    this.#mustBeOpen();
    const id = this.#nextId;
    this.#nextId = (id + 1) & 0xffff;
    this.#send(id, undefined, command, encodeMessage({ id, command, flags: VFIO_USER_F_NO_REPLY }, payload), []);
  }

  /** Waits for the reply. RefusedError, TimeoutError, DisconnectedError, BadServerError. */
  finish(id: number): Reply {
    const pending = this.#pending.get(id);
    if (pending === undefined || pending.isAbandoned) throw new RangeError(`Request ${id} is not waiting for a reply`);
    const deadline = performance.now() + this.#timeout;
    while (pending.reply === undefined && pending.refusal === undefined) {
      if (this.#end !== undefined) {
        this.#pending.delete(id);
        throw this.#end;
      }
      const left = deadline - performance.now();
      if (left <= 0) {
        pending.isAbandoned = true;
        throw new TimeoutError(commandName(pending.command), this.#timeout);
      }
      this.#turn(Math.ceil(left));
    }
    this.#pending.delete(id);
    if (pending.refusal !== undefined) throw pending.refusal;
    return pending.reply!;
  }

  request(command: number, payload: Uint8Array, options?: RequestOptions): Reply {
    return this.finish(this.start(command, payload, options));
  }

  /** Answers what the server asks for, for so long. Returns early when the connection ends. */
  serve(milliseconds: number): void {
    const deadline = performance.now() + milliseconds;
    for (;;) {
      if (this.#end !== undefined) return;
      const left = deadline - performance.now();
      this.#turn(Math.max(Math.ceil(left), 0));
      if (left <= 0) return;
    }
  }

  /** Ends the connection; what waits for a reply fails with `why`. */
  close(why: VfioUserError): void {
    if (this.#end !== undefined) return;
    this.#end = why;
    for (const pending of this.#pending.values()) {
      if (pending.reply === undefined || pending.reply.descriptors.length === 0) continue;
      this.drop(pending.reply.descriptors);
      pending.reply = undefined;
    }
    this.#main.channel.close();
    this.#twin?.channel.close();
  }

  #mustBeOpen(): void {
    if (this.#end !== undefined) throw new DisconnectedError(this.#end.message);
  }

  #send(
    id: number,
    pending: Pending | undefined,
    command: number,
    bytes: Uint8Array,
    descriptors: readonly number[],
  ): void {
    const { queue } = this.#main;
    queue.push({ bytes, done: 0, descriptors });
    const deadline = performance.now() + this.#timeout;
    try {
      this.#flush(this.#main);
      while (queue.length > 0 && this.#end === undefined) {
        const left = deadline - performance.now();
        if (left <= 0) {
          if (pending !== undefined) pending.isAbandoned = true;
          throw new TimeoutError(commandName(command), this.#timeout);
        }
        this.#turn(Math.ceil(left));
      }
    } catch (error) {
      if (!(error instanceof TimeoutError)) {
        // Nothing of this message went out.
        this.#pending.delete(id);
        queue.pop();
      }
      throw error;
    }
  }

  /** Sends and receives once, after waiting for either when there is nothing to do. */
  #turn(milliseconds: number): void {
    const twin = this.#twin;
    const waitsForRoom = this.#main.queue.length > 0;
    // While two sockets want different things, none is waited for longer than a moment.
    const isTorn = twin !== undefined && (waitsForRoom || twin.queue.length > 0);
    this.#main.channel.wait(waitsForRoom, twin?.channel, isTorn ? Math.min(milliseconds, 1) : milliseconds);
    this.#take(this.#main);
    if (twin !== undefined) this.#take(twin);
    this.#flush(this.#main);
    if (twin !== undefined) this.#flush(twin);
  }

  #flush(line: Line): void {
    const { queue, channel } = line;
    while (queue.length > 0 && this.#end === undefined) {
      const first = queue[0]!;
      const n = channel.send(first.bytes, first.done, first.descriptors);
      if (n < 0) {
        // What it said before it went may be the reply that is waited for.
        this.#take(line);
        this.close(new DisconnectedError('the server has closed the connection'));
      }
      if (n <= 0) return;
      first.done += n;
      if (first.done === first.bytes.length) queue.shift();
    }
  }

  #take(line: Line): void {
    if (this.#end !== undefined) return;
    const n = line.channel.fill();
    try {
      if (n > 0) {
        for (let message = line.channel.stream.next(); message !== undefined; message = line.channel.stream.next()) {
          this.#dispatch(line, message);
          if (this.#end !== undefined) return;
        }
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.close(new BadServerError(error.message));
    }
    if (n < 0) this.close(new DisconnectedError('the server has closed the connection'));
  }

  #dispatch(line: Line, message: Message): void {
    if (message.hasSurplus) this.drop(line.channel.stream.takeSurplus());
    if (message.isReply) this.#reply(line, message);
    else this.#command(line, message);
  }

  #reply(line: Line, message: Message): void {
    const pending = line === this.#main ? this.#pending.get(message.id) : undefined;
    const name = commandName(message.command);
    const fault =
      pending === undefined || pending.reply !== undefined || pending.refusal !== undefined
        ? `a reply to ${name} with id ${message.id}, which nobody asked for`
        : pending.command !== message.command
          ? `a reply to ${name} with the id of ${commandName(pending.command)}`
          : message.hasSurplus || (message.descriptors.length > 0 && !pending.takesDescriptors)
            ? `descriptors with the reply to ${name}`
            : undefined;
    if (pending === undefined || fault !== undefined) {
      this.drop(message.descriptors);
      this.close(new BadServerError(`the server sent ${fault}`));
      return;
    }
    if (pending.isAbandoned || message.error !== 0) this.drop(message.descriptors);
    if (pending.isAbandoned) this.#pending.delete(message.id);
    else if (message.error !== 0) pending.refusal = new RefusedError(message.command, message.error);
    else pending.reply = { payload: message.payload.slice(), descriptors: message.descriptors };
  }

  #command(line: Line, message: Message): void {
    const { id, command } = message;
    let error = 0;
    let payload: Uint8Array = nothing;
    if (message.descriptors.length > 0 || message.hasSurplus) {
      this.drop(message.descriptors);
      error = errnoNumbers.EINVAL;
    } else {
      try {
        payload = this.#onCommand(command, message.payload);
      } catch (refusal) {
        if (!(refusal instanceof Errno)) throw refusal;
        error = refusal.errno;
      }
    }
    if (!message.wantsReply) return;
    const flags = VFIO_USER_F_TYPE_REPLY | (error === 0 ? 0 : VFIO_USER_F_ERROR);
    line.queue.push({
      bytes: encodeMessage({ id, command, flags, error }, error === 0 ? payload : nothing),
      done: 0,
      descriptors: [],
    });
  }
}
