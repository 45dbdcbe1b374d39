/**
 * Memory of this process that both JavaScript and the system see: fixed regions for system calls, and arenas in which shared files
 * are mapped.
 *
 * What JavaScript can reach is never unmapped, since a read of it would end the process. A slot of an arena that is given back is
 * overlaid with fresh anonymous memory: a stray access then reads zeros.
 */
import { MAX_LENGTH, mapFailed, PAGE } from './constants.ts';
import { lastErrno, mmap, must, SystemError, viewOf } from './libc.ts';

const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;

function reserve(length: number): number {
  const address = mmap(0, length, PROT_READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapFailed(address)) throw new SystemError('mmap', lastErrno());
  return address;
}

/** A fixed piece of memory with its address, for the life of the process. */
export class Region {
  readonly address: number;
  readonly length: number;
  readonly buffer: ArrayBuffer;
  readonly bytes: Uint8Array;
  readonly u32: Uint32Array;
  readonly s32: Int32Array;
  readonly view: DataView;

  constructor(length: number) {
    this.length = Math.ceil(length / PAGE) * PAGE;
    this.address = reserve(this.length);
    this.buffer = viewOf(this.address, this.length);
    this.bytes = new Uint8Array(this.buffer);
    this.u32 = new Uint32Array(this.buffer);
    this.s32 = new Int32Array(this.buffer);
    this.view = new DataView(this.buffer);
  }

  /** Stores a pointer or a length (below 2^53) at byte `offset`. */
  setWord(offset: number, value: number): void {
    this.u32[offset >>> 2] = value;
    this.u32[(offset >>> 2) + 1] = value / 0x1_0000_0000;
  }

  word(offset: number): number {
    return this.u32[offset >>> 2]! + this.u32[(offset >>> 2) + 1]! * 0x1_0000_0000;
  }
}

/** A piece of an arena. Its bytes stay readable for ever, whatever is mapped there. */
export interface Slot {
  readonly address: number;
  readonly length: number;
  readonly bytes: Uint8Array;
  readonly arena: Arena;
}

const ARENA_LENGTH = 16 * 2 ** 20;

class Arena {
  readonly address: number;
  readonly length: number;
  readonly buffer: ArrayBuffer;
  /** Free pieces in order of their start. */
  readonly free: { start: number; end: number }[];

  constructor(length: number) {
    this.length = length;
    this.address = reserve(length);
    this.buffer = viewOf(this.address, length);
    this.free = [{ start: 0, end: length }];
  }

  take(length: number): number {
    for (let i = 0; i < this.free.length; i++) {
      const piece = this.free[i]!;
      if (piece.end - piece.start < length) continue;
      const start = piece.start;
      piece.start += length;
      if (piece.start === piece.end) this.free.splice(i, 1);
      return start;
    }
    return -1;
  }

  give(start: number, length: number): void {
    let i = 0;
    while (i < this.free.length && this.free[i]!.start < start) i++;
    this.free.splice(i, 0, { start, end: start + length });
    for (let k = Math.max(i - 1, 0); k < this.free.length - 1 && k <= i; ) {
      const here = this.free[k]!;
      const next = this.free[k + 1]!;
      if (here.end === next.start) {
        here.end = next.end;
        this.free.splice(k + 1, 1);
      } else k++;
    }
  }
}

const arenas: Arena[] = [];

/** Takes room for `length` bytes in an arena; it holds zeros. SystemError ENOMEM beyond what one buffer may span. */
export function takeSlot(length: number): Slot {
  const rounded = Math.ceil(length / PAGE) * PAGE;
  // Node 20 ends the process for a longer view.
  if (rounded > MAX_LENGTH) throw new SystemError('mmap', 12);
  for (const arena of arenas) {
    const start = arena.take(rounded);
    if (start >= 0) return slotOf(arena, start, rounded, length);
  }
  const arena = new Arena(Math.max(ARENA_LENGTH, rounded));
  arenas.push(arena);
  return slotOf(arena, arena.take(rounded), rounded, length);
}

function slotOf(arena: Arena, start: number, rounded: number, length: number): Slot {
  return { arena, address: arena.address + start, length: rounded, bytes: new Uint8Array(arena.buffer, start, length) };
}

/** Gives a slot back. Its bytes read as zeros from now on. */
export function giveSlot(slot: Slot): void {
  overlayAnonymous(slot);
  slot.arena.give(slot.address - slot.arena.address, slot.length);
}

/** Maps a file over the whole slot, shared and writable. */
export function overlayFile(slot: Slot, fd: number): void {
  const address = mmap(slot.address, slot.length, PROT_READ_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  if (mapFailed(address)) throw new SystemError('mmap', lastErrno());
}

/** Puts fresh zeroed memory over the slot. */
export function overlayAnonymous(slot: Slot): void {
  const flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE;
  must('mmap', mapFailed(mmap(slot.address, slot.length, PROT_READ_WRITE, flags, -1, 0)) ? -1 : 0);
}
