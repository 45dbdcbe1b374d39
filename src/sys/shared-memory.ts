/**
 * Memory that programs may map: the BARs of a device. A memfd, with a mapping of our own.
 *
 * `revoke` cuts the file to nothing, so that every access through another process's mapping raises SIGBUS, as the kernel does while
 * a device's memory is disabled. Before that our own mapping is overlaid with ordinary memory that holds the contents.
 */
import { inodeOf } from './files.ts';
import * as libc from './libc.ts';
import { must } from './libc.ts';
import { giveSlot, overlayAnonymous, overlayFile, type Slot, takeSlot } from './memory.ts';

const MFD_CLOEXEC = 1;

export class NativeShared {
  readonly length: number;
  /** The memfd, for giving to a program. */
  readonly fd: number;
  /** `major:minor:inode`, as a program's list of mappings shows it. */
  readonly key: string;
  readonly #slot: Slot;
  #revoked = false;
  #closed = false;

  constructor(name: string, length: number) {
    this.length = length;
    this.#slot = takeSlot(length);
    this.fd = must('memfd_create', libc.memfd_create(`vfiobox:${name}`, MFD_CLOEXEC));
    must('ftruncate', libc.ftruncate(this.fd, this.#slot.length));
    overlayFile(this.#slot, this.fd);
    const { major, minor, inode } = inodeOf(this.fd);
    this.key = `${major}:${minor}:${inode}`;
  }

  bytes(): Uint8Array {
    return this.#slot.bytes;
  }

  revoke(): void {
    if (this.#revoked || this.#closed) return;
    const contents = this.#slot.bytes.slice();
    overlayAnonymous(this.#slot);
    this.#slot.bytes.set(contents);
    must('ftruncate', libc.ftruncate(this.fd, 0));
    this.#revoked = true;
  }

  restore(): void {
    if (!this.#revoked || this.#closed) return;
    const contents = this.#slot.bytes.slice();
    must('ftruncate', libc.ftruncate(this.fd, this.#slot.length));
    overlayFile(this.#slot, this.fd);
    this.#slot.bytes.set(contents);
    this.#revoked = false;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    giveSlot(this.#slot);
    libc.close(this.fd);
  }
}
