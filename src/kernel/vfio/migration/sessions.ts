/**
 * The two ends of a stream: what is still to be read of a device that is saved, and what has been written of one that is restored.
 */
import { Errno } from '../../../lib/errno.ts';
import { CHUNK, IDENTITY, STATE, StreamReader, StreamWriter } from './stream.ts';

const PAGE = 4096;

/** A device as migration sees it. */
export interface Migratable {
  readonly name: string;
  /** Of the stream's header: 16 bits. */
  readonly kind: number;
  /** Who the device is; equal on both sides. */
  identity(): unknown;
  /** Its memories in a fixed order. */
  memories(): readonly Uint8Array[];
  /** Everything but the memories; fit for JSON. EBUSY: not now. */
  save(): unknown;
  /** EINVAL: the state cannot be its own. */
  restore(state: unknown): void;
  /** Registers and memories as after power-on. */
  powerOn(): void;
}

/** A state that is read. */
export class SavingSession {
  readonly #device: Migratable;
  readonly #writer = new StreamWriter();
  #queue: Uint8Array[] = [];
  #queued = 0;
  /** Bytes of the queue that are initial data. */
  #initial = 0;
  /** Memories as they were when they were last queued; undefined: the device is stopped, and all is queued. */
  #shadows: Uint8Array[] | undefined;
  #isComplete = false;
  /** New initial data since the last question. */
  #isRenewed = false;

  /** `isRunning`: pre-copy; the rest follows with `finish`. */
  constructor(device: Migratable, isRunning: boolean) {
    this.#device = device;
    this.#add(this.#writer.header(device.kind));
    this.#add(this.#writer.json(IDENTITY, device.identity()));
    device.memories().forEach((memory, index) => {
      for (let at = 0; at < memory.length; at += CHUNK) this.#addMemory(index, at, Math.min(CHUNK, memory.length - at));
    });
    this.#initial = this.#queued;
    if (isRunning) this.#shadows = device.memories().map((memory) => memory.slice());
    else this.finish();
  }

  /** Bytes that are still to come, as far as is known now. */
  get left(): number {
    const state = this.#isComplete ? 0 : JSON.stringify(this.#device.save()).length + 32;
    return this.#queued + this.#dirty().length * (PAGE + 24) + state;
  }

  get precopy(): { initial: number; dirty: number; isRenewed: boolean } {
    const dirty = this.#dirty();
    const pages = this.#device.memories().reduce((sum, memory) => sum + Math.ceil(memory.length / PAGE), 0);
    // A device that has changed nearly all of its memory begins anew.
    if (this.#initial === 0 && dirty.length > 8 && dirty.length * 2 > pages) {
      this.#queueDirty(dirty);
      this.#initial = this.#queued;
      this.#isRenewed = true;
    }
    const isRenewed = this.#isRenewed;
    this.#isRenewed = false;
    const changed = isRenewed ? 0 : dirty.length * PAGE;
    return { initial: this.#initial, dirty: this.#queued - this.#initial + changed, isRenewed };
  }

  get isReadable(): boolean {
    return this.#queued > 0 || this.#isComplete || this.#dirty().length > 0;
  }

  /** The next bytes; 0: there are none (any more). ENOMSG: none for now. */
  read(into: Uint8Array): number {
    if (this.#queued === 0 && !this.#isComplete) {
      this.#queueDirty(this.#dirty());
      if (this.#queued === 0) throw new Errno('ENOMSG', 'there is nothing to read until the device changes');
    }
    let done = 0;
    while (done < into.length && this.#queue.length > 0) {
      const first = this.#queue[0]!;
      const length = Math.min(first.length, into.length - done);
      into.set(first.subarray(0, length), done);
      done += length;
      if (length === first.length) this.#queue.shift();
      else this.#queue[0] = first.subarray(length);
    }
    this.#queued -= done;
    this.#initial = Math.max(this.#initial - done, 0);
    return done;
  }

  /** The device is stopped: all that is left follows. */
  finish(): void {
    this.#queueDirty(this.#dirty());
    this.#add(this.#writer.json(STATE, this.#device.save()));
    this.#add(this.#writer.end());
    this.#shadows = undefined;
    this.#isComplete = true;
  }

  /** Pages that changed since they were queued: [memory, byte]. */
  #dirty(): [number, number][] {
    const pages: [number, number][] = [];
    this.#shadows?.forEach((shadow, index) => {
      const memory = this.#device.memories()[index]!;
      for (let at = 0; at < memory.length; at += PAGE) {
        const end = Math.min(at + PAGE, memory.length);
        if (Buffer.compare(memory.subarray(at, end), shadow.subarray(at, end)) !== 0) pages.push([index, at]);
      }
    });
    return pages;
  }

  #queueDirty(pages: readonly [number, number][]): void {
    for (const [index, at] of pages) {
      const memory = this.#device.memories()[index]!;
      const length = Math.min(PAGE, memory.length - at);
      this.#shadows![index]!.set(memory.subarray(at, at + length), at);
      this.#addMemory(index, at, length);
    }
  }

  #addMemory(index: number, at: number, length: number): void {
    this.#add(this.#writer.memory(index, at, this.#device.memories()[index]!.subarray(at, at + length)));
  }

  #add(bytes: Uint8Array): void {
    this.#queue.push(bytes);
    this.#queued += bytes.length;
  }
}

/** A state that is written. Memories are filled as they come; the rest is put in place at the end. */
export class ResumingSession {
  readonly #device: Migratable;
  readonly #reader: StreamReader;
  #state: unknown;
  #refused: Errno | undefined;

  constructor(device: Migratable) {
    this.#device = device;
    device.powerOn();
    this.#reader = new StreamReader(device.kind, {
      identity: (value) => {
        const own = JSON.stringify(device.identity());
        if (JSON.stringify(value) !== own) {
          throw new Errno('EINVAL', `the stream is of ${JSON.stringify(value)}, the device is ${own}`);
        }
      },
      memory: (index, offset, bytes) => {
        const memory = device.memories()[index];
        if (memory === undefined || offset + bytes.length > memory.length) {
          throw new Errno('EINVAL', `${bytes.length} bytes at ${offset} of memory ${index} are not the device's`);
        }
        memory.set(bytes, offset);
      },
      state: (value) => {
        this.#state = value;
      },
    });
  }

  /** Takes bytes in any cuts. What is wrong with them shows at the end. */
  write(bytes: Uint8Array): number {
    if (this.#refused === undefined) {
      try {
        this.#reader.push(bytes);
      } catch (error) {
        if (!(error instanceof Errno)) throw error;
        this.#refused = error;
      }
    }
    return bytes.length;
  }

  /** The state is put in place. EINVAL: the stream is none, or another device's; the device is as after power-on then. */
  finish(): void {
    try {
      if (this.#refused !== undefined) throw this.#refused;
      this.#reader.finish();
      this.#device.restore(this.#state);
    } catch (error) {
      this.#device.powerOn();
      throw error;
    }
  }
}
