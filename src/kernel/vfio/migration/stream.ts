/**
 * The bytes in which a device's state travels: a header, then pieces of {type, length, payload}, and at the end a checksum of all.
 * Numbers are little-endian; nothing of the host is in it (no physical address, no descriptor).
 *
 * | piece | payload |
 * |---|---|
 * | IDENTITY | JSON: who the device is, its memories with their lengths |
 * | MEMORY | u32 index of the memory, u32 0, u64 offset, bytes: may come again, the last one holds |
 * | STATE | JSON: registers, timers, what the model adds, configuration space as its user sees it, interrupts that wait |
 * | END | u32 CRC-32 of everything before this piece's payload |
 */
import { crc32 } from '../../../lib/crc32.ts';
import { Errno } from '../../../lib/errno.ts';

const MAGIC = 0x5354_4656;
const VERSION = 1;
const HEADER = 12;
const PIECE = 8;
const MEMORY_HEADER = 16;
export const IDENTITY = 1;
export const MEMORY = 2;
export const STATE = 3;
const END = 0xffff;
/** Bytes of memory in one piece. */
export const CHUNK = 65_536;
const LARGEST_PIECE = 16 * 2 ** 20;

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });

/** Composes a stream piece by piece. */
export class StreamWriter {
  #sum = 0;

  header(kind: number): Uint8Array {
    const bytes = new Uint8Array(HEADER);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, MAGIC, true);
    view.setUint16(4, VERSION, true);
    view.setUint16(6, kind, true);
    view.setUint32(8, HEADER, true);
    return this.#counted(bytes);
  }

  json(type: number, value: unknown): Uint8Array {
    return this.#piece(type, encoder.encode(JSON.stringify(value)));
  }

  memory(index: number, offset: number, bytes: Uint8Array): Uint8Array {
    const payload = new Uint8Array(MEMORY_HEADER + bytes.length);
    const view = new DataView(payload.buffer);
    view.setUint32(0, index, true);
    view.setBigUint64(8, BigInt(offset), true);
    payload.set(bytes, MEMORY_HEADER);
    return this.#piece(MEMORY, payload);
  }

  end(): Uint8Array {
    const bytes = new Uint8Array(PIECE + 4);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, END, true);
    view.setUint32(4, 4, true);
    this.#counted(bytes.subarray(0, PIECE));
    view.setUint32(PIECE, this.#sum, true);
    return bytes;
  }

  #piece(type: number, payload: Uint8Array): Uint8Array {
    const bytes = new Uint8Array(PIECE + payload.length);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, type, true);
    view.setUint32(4, payload.length, true);
    bytes.set(payload, PIECE);
    return this.#counted(bytes);
  }

  #counted(bytes: Uint8Array): Uint8Array {
    this.#sum = crc32(bytes, this.#sum);
    return bytes;
  }
}

/** Who takes the pieces of a stream. What it throws makes the stream a bad one. */
export interface StreamTarget {
  identity(value: unknown): void;
  memory(index: number, offset: number, bytes: Uint8Array): void;
  state(value: unknown): void;
}

/** Takes a stream in any cuts. EINVAL: it cannot be one of a device of this kind. */
export class StreamReader {
  readonly #kind: number;
  readonly #target: StreamTarget;
  #rest = new Uint8Array(0);
  #sum = 0;
  #isBehindHeader = false;
  #isIdentified = false;
  #hasState = false;
  #isComplete = false;

  constructor(kind: number, target: StreamTarget) {
    this.#kind = kind;
    this.#target = target;
  }

  push(bytes: Uint8Array): void {
    if (this.#isComplete && bytes.length > 0) throw new Errno('EINVAL', 'the stream goes on behind its end');
    let all: Uint8Array = bytes;
    if (this.#rest.length > 0) {
      all = new Uint8Array(this.#rest.length + bytes.length);
      all.set(this.#rest);
      all.set(bytes, this.#rest.length);
    }
    let at = 0;
    for (let taken = this.#take(all); taken > 0; taken = this.#take(all.subarray(at))) at += taken;
    this.#rest = all.slice(at);
    if (this.#isComplete && this.#rest.length > 0) throw new Errno('EINVAL', 'the stream goes on behind its end');
  }

  /** The stream is over. EINVAL: it was cut, or lacks a piece. */
  finish(): void {
    if (!this.#isComplete) throw new Errno('EINVAL', 'the stream was cut before its end');
    if (!this.#hasState) throw new Errno('EINVAL', "the stream has no piece with the device's state");
  }

  /** Takes the header or one piece; 0: more bytes are needed, or it is over. */
  #take(bytes: Uint8Array): number {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    if (this.#isComplete) return 0;
    if (!this.#isBehindHeader) {
      if (bytes.length < HEADER) return 0;
      if (view.getUint32(0, true) !== MAGIC || view.getUint32(8, true) !== HEADER) {
        throw new Errno('EINVAL', "this is no stream of a device's state");
      }
      const version = view.getUint16(4, true);
      if (version > VERSION || version === 0) throw new Errno('EINVAL', `the stream is of version ${version}`);
      const kind = view.getUint16(6, true);
      if (kind !== this.#kind) {
        throw new Errno('EINVAL', `the stream is of a device ${hex(kind)}, this one is ${hex(this.#kind)}`);
      }
      this.#isBehindHeader = true;
      return this.#count(bytes, HEADER);
    }
    if (bytes.length < PIECE) return 0;
    const type = view.getUint32(0, true);
    const length = view.getUint32(4, true);
    if (length > LARGEST_PIECE) throw new Errno('EINVAL', `a piece of ${length} bytes is too long`);
    if (bytes.length < PIECE + length) return 0;
    const payload = bytes.subarray(PIECE, PIECE + length);
    if (type === END) {
      this.#count(bytes, PIECE);
      if (length !== 4 || view.getUint32(PIECE, true) !== this.#sum) {
        throw new Errno('EINVAL', 'the checksum of the stream is wrong');
      }
      this.#isComplete = true;
      return PIECE + length;
    }
    this.#piece(type, payload);
    return this.#count(bytes, PIECE + length);
  }

  #piece(type: number, payload: Uint8Array): void {
    if (type === IDENTITY) {
      this.#target.identity(json(payload));
      this.#isIdentified = true;
      return;
    }
    if (!this.#isIdentified) throw new Errno('EINVAL', 'the stream does not say first whose state it is');
    if (type === STATE) {
      this.#hasState = true;
      this.#target.state(json(payload));
    } else if (type === MEMORY) {
      if (payload.length < MEMORY_HEADER) throw new Errno('EINVAL', `a piece of memory of ${payload.length} bytes`);
      const view = new DataView(payload.buffer, payload.byteOffset);
      const offset = Number(view.getBigUint64(8, true));
      this.#target.memory(view.getUint32(0, true), offset, payload.subarray(MEMORY_HEADER));
    } else throw new Errno('EINVAL', `the stream has a piece of the unknown type ${type}`);
  }

  #count(bytes: Uint8Array, length: number): number {
    this.#sum = crc32(bytes.subarray(0, length), this.#sum);
    return length;
  }
}

function json(payload: Uint8Array): unknown {
  try {
    return JSON.parse(decoder.decode(payload));
  } catch {
    throw new Errno('EINVAL', 'a piece of the stream is no JSON');
  }
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
