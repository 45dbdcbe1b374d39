/**
 * Registers as data: where a register lies, how wide it is, what it holds after a reset, which of its bits software may write,
 * clears by writing one, or cannot read back; and what happens at an access.
 *
 * An access may touch a part of a register or several of them. Each one that it touches is asked once, from the lowest on, and
 * only with the bytes that belong to it. Values are kept as two halves of 32 bits: an access makes no bigint.
 */
import { Errno } from '../../../lib/errno.ts';
import type { Registers } from '../bar.ts';

/** Bits of a register: a mask, or all of them. */
export type Bits = number | bigint | true;

export interface RegisterSpec {
  /** Offset inside the BAR, in bytes. */
  readonly at: number;
  /** Bytes; 4 unless said otherwise. */
  readonly width?: 1 | 2 | 4 | 8;
  /** For people: in messages and in saved state. */
  readonly name?: string;
  readonly reset?: number | bigint;
  /** Bits that a write leaves as they are. */
  readonly readOnly?: Bits;
  /** Bits that a write clears where it has ones, and else leaves as they are. */
  readonly writeOneToClear?: Bits;
  /** Bits that read as zero. */
  readonly writeOnly?: Bits;
  /** What a read gives, instead of what the register holds. Called once for each access. */
  read?(register: Register): number | bigint;
  /** After a write. `written` is what software wrote (of 8 bytes: the low 4), `before` what the register held (likewise). */
  write?(register: Register, written: number, before: number): void;
}

const hex = (value: number): string => `0x${value.toString(16)}`;

function halves(value: number | bigint): [low: number, high: number] {
  const wide = BigInt.asUintN(64, BigInt(value));
  return [Number(wide & 0xffff_ffffn), Number(wide >> 32n)];
}

function bits(mask: Bits | undefined): [low: number, high: number] {
  if (mask === undefined) return [0, 0];
  return mask === true ? [0xffff_ffff, 0xffff_ffff] : halves(mask);
}

/** The bits of byte lanes `[first, end)` within one half. */
function lanes(first: number, end: number): number {
  let mask = 0;
  for (let i = Math.max(first, 0); i < Math.min(end, 4); i++) mask |= 0xff << (8 * i);
  return mask >>> 0;
}

export class Register {
  readonly at: number;
  readonly width: 1 | 2 | 4 | 8;
  readonly name: string;
  /** The two halves of what it holds, unsigned. The hardware's side: no mask is asked. */
  low = 0;
  high = 0;
  readonly #spec: RegisterSpec;
  readonly #initial: [number, number];
  readonly #fixed: [number, number];
  readonly #clearable: [number, number];
  readonly #hidden: [number, number];

  constructor(spec: RegisterSpec) {
    this.at = spec.at;
    this.width = spec.width ?? 4;
    this.name = spec.name ?? hex(spec.at);
    if (![1, 2, 4, 8].includes(this.width)) {
      throw new Errno('EINVAL', `register ${this.name} cannot have ${this.width} bytes, but 1, 2, 4 or 8`);
    }
    if (!Number.isSafeInteger(spec.at) || spec.at < 0) {
      throw new Errno('EINVAL', `register ${this.name} cannot be at offset ${spec.at}`);
    }
    this.#spec = spec;
    this.#initial = halves(spec.reset ?? 0);
    this.#clearable = bits(spec.writeOneToClear);
    const fixed = bits(spec.readOnly);
    this.#fixed = [(fixed[0] | this.#clearable[0]) >>> 0, (fixed[1] | this.#clearable[1]) >>> 0];
    this.#hidden = bits(spec.writeOnly);
    if (this.#initial[1] !== 0 && this.width < 8) {
      throw new Errno('EINVAL', `register ${this.name} of ${this.width} bytes cannot hold ${hex(Number(spec.reset))}`);
    }
    this.reset();
  }

  /** What it holds. Of 8 bytes this is exact up to 2^53; `wide` is always. */
  get value(): number {
    return this.high * 2 ** 32 + this.low;
  }

  set value(value: number) {
    if (this.width === 8) this.high = Math.floor(value / 2 ** 32) >>> 0;
    this.low = this.#cut(value);
  }

  get wide(): bigint {
    return (BigInt(this.high) << 32n) | BigInt(this.low);
  }

  set wide(value: bigint) {
    [this.low, this.high] = halves(value);
    this.low = this.#cut(this.low);
    if (this.width < 8) this.high = 0;
  }

  /** Whether all of these bits (below 2^32) are set. */
  has(mask: number): boolean {
    return (this.low & mask) >>> 0 === mask >>> 0;
  }

  set(mask: number): void {
    this.low = this.#cut(this.low | mask);
  }

  clear(mask: number): void {
    this.low = (this.low & ~mask) >>> 0;
  }

  reset(): void {
    [this.low, this.high] = this.#initial;
  }

  /** Software's read of bytes `[first, first + length)` of the register into `into` from `at`. */
  load(first: number, into: Uint8Array, at: number, length: number): void {
    let { low, high } = this;
    if (this.#spec.read !== undefined) {
      const value = this.#spec.read(this);
      if (typeof value === 'number' && value >= 0 && value < 2 ** 32) {
        low = value >>> 0;
        high = 0;
      } else [low, high] = halves(value);
    }
    low &= ~this.#hidden[0];
    high &= ~this.#hidden[1];
    for (let i = 0; i < length; i++) {
      const lane = first + i;
      into[at + i] = lane < 4 ? low >>> (8 * lane) : high >>> (8 * (lane - 4));
    }
  }

  /** Software's write of bytes `[first, first + length)`. */
  store(first: number, from: Uint8Array, at: number, length: number): void {
    let low = 0;
    let high = 0;
    for (let i = 0; i < length; i++) {
      const lane = first + i;
      if (lane < 4) low |= from[at + i]! << (8 * lane);
      else high |= from[at + i]! << (8 * (lane - 4));
    }
    const before = this.low;
    this.low = merge(this.low, low, lanes(first, first + length), this.#fixed[0], this.#clearable[0]);
    if (this.width === 8) {
      this.high = merge(this.high, high, lanes(first - 4, first + length - 4), this.#fixed[1], this.#clearable[1]);
    }
    this.#spec.write?.(this, low >>> 0, before);
  }

  #cut(value: number): number {
    return this.width >= 4 ? value >>> 0 : (value & (2 ** (8 * this.width) - 1)) >>> 0;
  }
}

function merge(present: number, written: number, touched: number, fixed: number, clearable: number): number {
  const changes = touched & ~fixed;
  return (((present & ~changes) | (written & changes)) & ~(written & touched & clearable)) >>> 0;
}

/** Makes a register. Keep it in a constant: hooks and the rest of the device read and change its `value`. */
export function register(spec: RegisterSpec): Register {
  return new Register(spec);
}

export interface TableOptions {
  /** What bytes without a register read as: 0 unless said otherwise. */
  readonly hole?: 0 | 0xff;
}

/** The registers of one BAR. EINVAL: two of them overlap. */
export class RegisterTable implements Registers {
  readonly registers: readonly Register[];
  readonly #hole: number;
  /** For each byte, the index of its register + 1. */
  readonly #owner: Uint16Array;

  constructor(registers: readonly Register[], options: TableOptions = {}) {
    this.registers = [...registers].sort((a, b) => a.at - b.at);
    this.#hole = options.hole ?? 0;
    const end = this.end;
    if (end > 1 << 24) throw new Errno('EINVAL', `a register at ${hex(end)} is out of reach of a table of registers`);
    this.#owner = new Uint16Array(end);
    this.registers.forEach((entry, i) => {
      const other = this.registers[i - 1];
      if (other !== undefined && other.at + other.width > entry.at) {
        throw new Errno(
          'EINVAL',
          `register ${entry.name} at ${hex(entry.at)} overlaps ${other.name} at ${hex(other.at)}`,
        );
      }
      this.#owner.fill(i + 1, entry.at, entry.at + entry.width);
    });
  }

  /** The first byte behind all registers. */
  get end(): number {
    const last = this.registers[this.registers.length - 1];
    return last === undefined ? 0 : last.at + last.width;
  }

  read(offset: number, into: Uint8Array): void {
    for (let at = 0; at < into.length; ) {
      const entry = this.registers[(this.#owner[offset + at] ?? 0) - 1];
      if (entry === undefined) into[at++] = this.#hole;
      else {
        const first = offset + at - entry.at;
        const length = Math.min(entry.width - first, into.length - at);
        entry.load(first, into, at, length);
        at += length;
      }
    }
  }

  write(offset: number, from: Uint8Array): void {
    for (let at = 0; at < from.length; ) {
      const entry = this.registers[(this.#owner[offset + at] ?? 0) - 1];
      if (entry === undefined) at++;
      else {
        const first = offset + at - entry.at;
        const length = Math.min(entry.width - first, from.length - at);
        entry.store(first, from, at, length);
        at += length;
      }
    }
  }

  reset(): void {
    for (const entry of this.registers) entry.reset();
  }

  /** What all registers hold, as texts by offset: fit for JSON. */
  save(): Record<string, string> {
    return Object.fromEntries(this.registers.map((entry) => [hex(entry.at), `0x${entry.wide.toString(16)}`]));
  }

  /** Puts back what `save` gave; no hook is called. EINVAL: the state is of other registers. */
  restore(state: Readonly<Record<string, string>>): void {
    for (const entry of this.registers) {
      const text = state[hex(entry.at)];
      if (typeof text !== 'string' || !/^0x[0-9a-f]{1,16}$/.test(text)) {
        throw new Errno('EINVAL', `the saved state has no value for register ${entry.name}`);
      }
      entry.wide = BigInt(text);
    }
  }
}
