/**
 * What lies behind physical pages: a program's memory, a mapped file, the registers of a device, plain bytes.
 *
 * Nothing here is ever unmapped under a reader: a backing whose memory has gone (the program ended, the file shrank) answers
 * `false`, and the device sees a fault.
 */
export interface Backing {
  /** Copies from byte `offset` of the backing; the length is that of `into`. False: not readable (any more), `into` is undefined. */
  read(offset: number, into: Uint8Array): boolean;
  /** Copies to byte `offset` of the backing. False: not writable (any more); a part may have been written. */
  write(offset: number, from: Uint8Array): boolean;
  /** The bytes themselves, to be read at once; undefined or absent: they can only be copied. */
  direct?(offset: number, length: number): Uint8Array | undefined;
}

/** Plain bytes of this process: host RAM of tests and tables. */
export class BufferBacking implements Backing {
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array | number) {
    this.bytes = typeof bytes === 'number' ? new Uint8Array(bytes) : bytes;
  }

  direct(offset: number, length: number): Uint8Array | undefined {
    return offset + length > this.bytes.length ? undefined : this.bytes.subarray(offset, offset + length);
  }

  read(offset: number, into: Uint8Array): boolean {
    if (offset + into.length > this.bytes.length) return false;
    into.set(this.bytes.subarray(offset, offset + into.length));
    return true;
  }

  write(offset: number, from: Uint8Array): boolean {
    if (offset + from.length > this.bytes.length) return false;
    this.bytes.set(from, offset);
    return true;
  }
}

/**
 * Memory that can be given to another process as a file: the BARs that a program maps. `revoke` makes every mapping of it in
 * other processes fault (SIGBUS), as the kernel does while a device's memory is disabled; the contents survive and the owner's
 * `bytes()` stay valid. `restore` ends that.
 */
export interface SharedMemory {
  readonly length: number;
  bytes(): Uint8Array;
  revoke(): void;
  restore(): void;
  close(): void;
}

/** Makes zeroed shared memory; `name` is for people. In a host without an operating system below it this is plain bytes. */
export type AllocateShared = (name: string, length: number) => SharedMemory;

/** Shared memory that nobody else can map: for hosts in one process. */
export function privateShared(_name: string, length: number): SharedMemory {
  const memory = new Uint8Array(length);
  return { length, bytes: () => memory, revoke() {}, restore() {}, close() {} };
}
