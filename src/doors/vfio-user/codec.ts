/**
 * A stream of bytes and descriptors, cut into messages. No I/O: who reads the socket puts bytes at `tail`, says so with `received`,
 * and takes messages with `next` until there is none.
 *
 * Descriptors belong to the message that holds the last byte of what they arrived with: the kernel ends a read after the piece that
 * carries descriptors, and peers send each message by one call.
 */
import {
  VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE,
  VFIO_USER_DEVICE_FEATURE,
  VFIO_USER_DEVICE_GET_INFO,
  VFIO_USER_DEVICE_GET_IRQ_INFO,
  VFIO_USER_DEVICE_GET_REGION_INFO,
  VFIO_USER_DEVICE_GET_REGION_IO_FDS,
  VFIO_USER_DEVICE_RESET,
  VFIO_USER_DEVICE_SET_IRQS,
  VFIO_USER_DMA_MAP,
  VFIO_USER_DMA_READ,
  VFIO_USER_DMA_UNMAP,
  VFIO_USER_DMA_WRITE,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE_COMMAND,
  VFIO_USER_F_TYPE_MASK,
  VFIO_USER_F_TYPE_REPLY,
  VFIO_USER_MIG_DATA_READ,
  VFIO_USER_MIG_DATA_WRITE,
  VFIO_USER_REGION_READ,
  VFIO_USER_REGION_WRITE,
  VFIO_USER_REGION_WRITE_MULTI,
  VFIO_USER_VERSION,
} from '../../uapi/vfio-user.ts';

export const HEADER = 16;

/** Bytes of the fixed part of each command's payload; what follows is bounded by max_data_xfer_size. */
const fixedParts: readonly (number | undefined)[] = (() => {
  const parts: (number | undefined)[] = [];
  parts[VFIO_USER_VERSION] = 4;
  parts[VFIO_USER_DMA_MAP] = 32;
  parts[VFIO_USER_DMA_UNMAP] = 24;
  parts[VFIO_USER_DEVICE_GET_INFO] = 16;
  parts[VFIO_USER_DEVICE_GET_REGION_INFO] = 32;
  parts[VFIO_USER_DEVICE_GET_REGION_IO_FDS] = 16;
  parts[VFIO_USER_DEVICE_GET_IRQ_INFO] = 16;
  parts[VFIO_USER_DEVICE_SET_IRQS] = 20;
  parts[VFIO_USER_REGION_READ] = 16;
  parts[VFIO_USER_REGION_WRITE] = 16;
  parts[VFIO_USER_DMA_READ] = 16;
  parts[VFIO_USER_DMA_WRITE] = 16;
  parts[VFIO_USER_DEVICE_RESET] = 0;
  parts[VFIO_USER_REGION_WRITE_MULTI] = 8;
  parts[VFIO_USER_DEVICE_FEATURE] = 8;
  parts[VFIO_USER_MIG_DATA_READ] = 8;
  parts[VFIO_USER_MIG_DATA_WRITE] = 8;
  return parts;
})();
const LARGEST_FIXED_PART = 32;

/** Bytes that the payload of a command has at least; undefined: there is no such command. */
export function fixedPartOf(command: number): number | undefined {
  return fixedParts[command];
}

/** What a peer may send. */
export interface StreamLimits {
  /** Descriptors of one message. */
  readonly maxMsgFds: number;
  /** Bytes of data behind the fixed part. */
  readonly maxDataXferSize: number;
}

export const defaultLimits: StreamLimits = { maxMsgFds: 1, maxDataXferSize: VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE };

/** The stream cannot be followed any more: the connection has to be closed. The message says what was wrong. */
export class ProtocolError extends Error {}

/** One message. `payload` is a view into the stream's buffer: valid until `tail` is asked for again. */
export interface Message {
  readonly id: number;
  readonly command: number;
  readonly isReply: boolean;
  readonly wantsReply: boolean;
  /** Positive errno of an error reply (EINVAL where the peer gave none); 0: no error. */
  readonly error: number;
  readonly payload: Uint8Array;
  /** Bytes of the payload. */
  readonly length: number;
  /** The same bytes for reading numbers: the payload starts at `offset`. */
  readonly view: DataView;
  readonly offset: number;
  /** Theirs who takes the message. */
  readonly descriptors: readonly number[];
  /** There were more than the limit; the surplus is in `takeSurplus`. */
  readonly hasSurplus: boolean;
}

const none: readonly number[] = [];

/** A message in the stream's buffer. The view of its payload is made when somebody wants it: a register access does without. */
class StreamMessage implements Message {
  readonly id: number;
  readonly command: number;
  readonly isReply: boolean;
  readonly wantsReply: boolean;
  readonly error: number;
  readonly view: DataView;
  readonly offset: number;
  readonly length: number;
  readonly descriptors: readonly number[];
  readonly hasSurplus: boolean;
  readonly #buffer: Uint8Array;

  constructor(
    id: number,
    command: number,
    isReply: boolean,
    wantsReply: boolean,
    error: number,
    buffer: Uint8Array,
    view: DataView,
    offset: number,
    length: number,
    descriptors: readonly number[],
    hasSurplus: boolean,
  ) {
    this.id = id;
    this.command = command;
    this.isReply = isReply;
    this.wantsReply = wantsReply;
    this.error = error;
    this.#buffer = buffer;
    this.view = view;
    this.offset = offset;
    this.length = length;
    this.descriptors = descriptors;
    this.hasSurplus = hasSurplus;
  }

  get payload(): Uint8Array {
    return this.#buffer.subarray(this.offset, this.offset + this.length);
  }
}

/** The header of a message. */
export interface HeaderFields {
  readonly id: number;
  readonly command: number;
  /** Bytes, header included. */
  readonly size: number;
  /** VFIO_USER_F_*, type included. */
  readonly flags: number;
  readonly error?: number;
}

/** Stores a header at `offset`. */
export function writeHeader(view: DataView, offset: number, fields: HeaderFields): void {
  view.setUint16(offset, fields.id, true);
  view.setUint16(offset + 2, fields.command, true);
  view.setUint32(offset + 4, fields.size, true);
  view.setUint32(offset + 8, fields.flags, true);
  view.setUint32(offset + 12, fields.error ?? 0, true);
}

/** A whole message as bytes, for clients and tests. */
export function encodeMessage(
  fields: { id: number; command: number; flags?: number; error?: number },
  payload: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const bytes = new Uint8Array(HEADER + payload.length);
  const { id, command, flags = VFIO_USER_F_TYPE_COMMAND, error = 0 } = fields;
  writeHeader(new DataView(bytes.buffer), 0, { id, command, size: bytes.length, flags, error });
  bytes.set(payload, HEADER);
  return bytes;
}

/** Bytes that a stream's buffer needs for these limits. */
export function bufferLength(limits: StreamLimits): number {
  return 2 * (HEADER + LARGEST_FIXED_PART + limits.maxDataXferSize);
}

interface Arrived {
  /** Stream position of the last byte that the descriptors came with. */
  readonly at: number;
  readonly descriptors: number[];
}

export class MessageStream {
  limits: StreamLimits;
  #buffer: Uint8Array;
  #view: DataView;
  /** Bytes in the buffer that are not taken yet: [start, end). */
  #start = 0;
  #end = 0;
  /** Stream position of the buffer's first byte. */
  #base = 0;
  #arrived: Arrived[] = [];
  #pending = 0;
  #surplus: number[] = [];
  /** Stream positions of messages that lost descriptors. */
  #surplusAt: number[] = [];

  /** `buffer`: at least `bufferLength(limits)` bytes, for the largest limits that will hold. */
  constructor(buffer: Uint8Array, limits: StreamLimits = defaultLimits) {
    this.#buffer = buffer;
    this.#view = new DataView(buffer.buffer, buffer.byteOffset, buffer.length);
    this.limits = limits;
  }

  /** Where the next bytes go: an offset in the buffer, and how many fit. May move what is there: payloads become invalid. */
  room(): { offset: number; length: number } {
    this.prepare();
    return { offset: this.#end, length: this.#buffer.length - this.#end };
  }

  /** Offset in the buffer at which the next bytes go. */
  get tail(): number {
    return this.#end;
  }

  /** Makes room behind `tail`, at least half of the buffer. Payloads become invalid. */
  prepare(): void {
    if (this.#start === this.#end) {
      this.#base += this.#start;
      this.#start = 0;
      this.#end = 0;
    } else if (this.#start > 0 && this.#end > this.#buffer.length / 2) {
      this.#buffer.copyWithin(0, this.#start, this.#end);
      this.#base += this.#start;
      this.#end -= this.#start;
      this.#start = 0;
    }
  }

  /** Goes on in another buffer; payloads taken so far stay valid in the old one. */
  moveTo(buffer: Uint8Array): void {
    buffer.set(this.#buffer.subarray(this.#start, this.#end));
    this.#base += this.#start;
    this.#end -= this.#start;
    this.#start = 0;
    this.#buffer = buffer;
    this.#view = new DataView(buffer.buffer, buffer.byteOffset, buffer.length);
  }

  /** `length` bytes were put at `tail`, with these descriptors. They are the stream's now. */
  received(length: number, descriptors: readonly number[] = none): void {
    this.#end += length;
    if (descriptors.length > 0) this.#keep(descriptors);
  }

  /** Copies bytes in, for tests and readers without a buffer of their own. */
  push(bytes: Uint8Array, descriptors: readonly number[] = none): void {
    this.prepare();
    if (bytes.length > this.#buffer.length - this.#end) throw new Error(`${bytes.length} bytes do not fit the buffer`);
    this.#buffer.set(bytes, this.#end);
    this.received(bytes.length, descriptors);
  }

  /** Whether part of a message has arrived. */
  get isWithinMessage(): boolean {
    return this.#end > this.#start;
  }

  /** The next whole message; undefined: more bytes are needed. ProtocolError: nothing behind this can be understood. */
  next(): Message | undefined {
    const start = this.#start;
    const have = this.#end - start;
    if (have < HEADER) return undefined;
    const view = this.#view;
    const command = view.getUint16(start + 2, true);
    const size = view.getUint32(start + 4, true);
    this.#check(command, size);
    if (have < size) return undefined;
    const flags = view.getUint32(start + 8, true);
    const type = flags & VFIO_USER_F_TYPE_MASK;
    if (type > VFIO_USER_F_TYPE_REPLY) throw new ProtocolError(`a message of type ${type}: it is 0 or 1`);
    this.#start = start + size;
    const isReply = type === VFIO_USER_F_TYPE_REPLY;
    const end = this.#base + start + size;
    return new StreamMessage(
      view.getUint16(start, true),
      command,
      isReply,
      !isReply && (flags & VFIO_USER_F_NO_REPLY) === 0,
      isReply && (flags & VFIO_USER_F_ERROR) !== 0 ? view.getUint32(start + 12, true) || 22 : 0,
      this.#buffer,
      view,
      start + HEADER,
      size - HEADER,
      this.#arrived.length === 0 ? none : this.#take(end),
      this.#surplusAt.length > 0 && this.#takeSurplusMark(end),
    );
  }

  /** Descriptors beyond the limit, to be closed by the caller. */
  takeSurplus(): number[] {
    const surplus = this.#surplus;
    if (surplus.length > 0) this.#surplus = [];
    return surplus;
  }

  /** All descriptors that no message took: the connection is over. */
  takeAll(): number[] {
    const all = [...this.#surplus, ...this.#arrived.flatMap(({ descriptors }) => descriptors)];
    this.#surplus = [];
    this.#arrived = [];
    this.#pending = 0;
    return all;
  }

  #check(command: number, size: number): void {
    if (size < HEADER) throw new ProtocolError(`a message of ${size} bytes: its header alone has ${HEADER}`);
    const most = HEADER + (fixedParts[command] ?? 0) + this.limits.maxDataXferSize;
    if (size > most) throw new ProtocolError(`a message of ${size} bytes: at most ${most} were agreed on`);
  }

  /** Unread messages bound how many descriptors are kept: each may have `maxMsgFds`, and messages have 16 bytes at least. */
  #keep(descriptors: readonly number[]): void {
    const at = this.#base + this.#end - 1;
    const last = this.#arrived[this.#arrived.length - 1];
    // What came with bytes of a message that has descriptors already, as far as can be seen before it is whole, counts together.
    const before = last !== undefined && !this.#hasMessageEndSince(last.at) ? last.descriptors.length : 0;
    const kept = descriptors.slice(0, Math.max(this.limits.maxMsgFds - before, 0));
    if (kept.length < descriptors.length) {
      this.#surplus.push(...descriptors.slice(kept.length));
      this.#surplusAt.push(at);
    }
    if (kept.length > 0) this.#arrived.push({ at, descriptors: kept });
    this.#pending += kept.length;
  }

  /** Whether a message ends at or behind stream position `at` within what has arrived. */
  #hasMessageEndSince(at: number): boolean {
    let from = this.#start;
    while (this.#end - from >= HEADER) {
      const size = this.#view.getUint32(from + 4, true);
      if (size < HEADER || size > this.#end - from) return false;
      if (this.#base + from + size > at && from + size < this.#end) return true;
      from += size;
    }
    return false;
  }

  #take(end: number): readonly number[] {
    if (this.#arrived[0]!.at >= end) return none;
    let taken = this.#arrived.shift()!.descriptors;
    while (this.#arrived.length > 0 && this.#arrived[0]!.at < end)
      taken = [...taken, ...this.#arrived.shift()!.descriptors];
    this.#pending -= taken.length;
    return taken;
  }

  #takeSurplusMark(end: number): boolean {
    let isMine = false;
    while (this.#surplusAt.length > 0 && this.#surplusAt[0]! < end) {
      this.#surplusAt.shift();
      isMine = true;
    }
    return isMine;
  }
}
