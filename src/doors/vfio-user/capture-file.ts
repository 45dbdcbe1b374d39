/** `serve --pcap FILE`: the messages of all clients in one file, written in pieces while the server has nothing else to do. */
import { closeSync, openSync, writeSync } from 'node:fs';
import { VFIO_USER_VERSION } from '../../uapi/vfio-user.ts';
import { PcapWriter } from './pcap.ts';

/** The file cannot be written. One line for a person. */
export class CaptureError extends Error {}

const MOST_PENDING = 1 << 20;

export class CaptureFile {
  readonly #path: string;
  readonly #writer: PcapWriter;
  #fd: number;
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;
  #hasMessages = false;

  /** CaptureError. */
  constructor(path: string) {
    this.#path = path;
    this.#fd = this.#try(() => openSync(path, 'w'));
    this.#writer = new PcapWriter((bytes) => {
      this.#pending.push(bytes);
      this.#pendingBytes += bytes.length;
    });
    this.flush();
  }

  /** Enough has come together to be written although the server is busy. */
  get isLarge(): boolean {
    return this.#pendingBytes >= MOST_PENDING;
  }

  message(fromClient: boolean, bytes: Uint8Array, descriptors: number): void {
    if (this.#fd < 0) return;
    // Only the first message of a connection can be a VERSION that is not refused: it tells connections apart.
    const command = bytes[2]! | (bytes[3]! << 8);
    if (fromClient && command === VFIO_USER_VERSION && this.#hasMessages) this.#writer.nextConnection();
    this.#hasMessages = true;
    this.#writer.message(fromClient ? 'from-client' : 'from-server', bytes, descriptors);
  }

  /** CaptureError, once: nothing is written any more after it. */
  flush(): void {
    if (this.#fd < 0 || this.#pendingBytes === 0) return;
    const bytes = Buffer.concat(this.#pending);
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#try(() => {
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#fd, bytes, done);
    });
  }

  close(): void {
    this.flush();
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }

  #try<T>(action: () => T): T {
    try {
      return action();
    } catch (error) {
      const fd = this.#fd;
      this.#fd = -1;
      if (fd > 2) closeSync(fd);
      throw new CaptureError(`cannot write the capture file '${this.#path}': ${(error as Error).message}`);
    }
  }
}
