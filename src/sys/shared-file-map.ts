/**
 * A peer's memory file for DMA, mapped whole once.
 *
 * A file that can never shrink (sealed) is mapped into an arena and is ordinary memory. Any other could be cut under us, and an access
 * beyond its end would end this process: it is reached through the system (MappedFile), which answers with an error instead.
 */

import { MAX_LENGTH, PAGE } from './constants.ts';
import { copyBytes } from './copy.ts';
import { sealsOf } from './files.ts';
import { SystemError } from './libc.ts';
import { MappedFile } from './mapped-file.ts';
import { giveSlot, overlayFile, type Slot, takeSlot } from './memory.ts';

export class SharedFileMap {
  readonly length: number;
  readonly isWritable: boolean;
  readonly #slot: Slot | undefined;
  readonly #mapped: MappedFile | undefined;
  #isOpen = true;

  /** Maps `length` bytes from the start of the file; the descriptor is not needed afterwards. SystemError. */
  constructor(fd: number, length: number, isWritable: boolean) {
    this.length = length;
    this.isWritable = isWritable;
    if (isWritable && length > 0 && length <= MAX_LENGTH && length % PAGE === 0 && sealsOf(fd)?.canShrink === false) {
      const slot = takeSlot(length);
      try {
        overlayFile(slot, fd);
        this.#slot = slot;
        return;
      } catch (error) {
        giveSlot(slot);
        // Huge pages want an alignment of their own.
        if (!(error instanceof SystemError)) throw error;
      }
    }
    this.#mapped = new MappedFile(fd, length, isWritable);
  }

  /** Whether accesses are plain memory accesses. */
  get isDirect(): boolean {
    return this.#slot !== undefined;
  }

  read(offset: number, into: Uint8Array): boolean {
    const slot = this.#slot;
    if (slot === undefined) return this.#mapped!.read(offset, into);
    const { length } = into;
    if (!this.#isOpen || offset + length > this.length) return false;
    const { bytes } = slot;
    if (length <= 16) for (let i = 0; i < length; i++) into[i] = bytes[offset + i]!;
    else copyBytes(into, bytes.subarray(offset, offset + length));
    return true;
  }

  /** The bytes themselves; undefined: they are reached through the system only. */
  direct(offset: number, length: number): Uint8Array | undefined {
    if (this.#slot === undefined || !this.#isOpen || offset + length > this.length) return undefined;
    return this.#slot.bytes.subarray(offset, offset + length);
  }

  write(offset: number, from: Uint8Array): boolean {
    const slot = this.#slot;
    if (slot === undefined) return this.#mapped!.write(offset, from);
    if (!this.#isOpen || offset + from.length > this.length) return false;
    copyBytes(slot.bytes.subarray(offset, offset + from.length), from);
    return true;
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    if (this.#slot !== undefined) giveSlot(this.#slot);
    this.#mapped?.close();
  }
}
