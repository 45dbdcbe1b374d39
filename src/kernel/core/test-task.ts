/**
 * A program made of plain buffers, for tests: memory with mappings and protections, a descriptor table, eventfds that count,
 * limits and rights that a test sets. It stands where a door stands.
 */

import { BufferBacking, type SharedMemory } from '../../hw/memory/backing.ts';
import { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { Errno } from '../../lib/errno.ts';
import { File, ForeignFile, type IoctlResult } from './file.ts';
import { Mm } from './mm.ts';
import type { Capability, EventContext, MemoryFile, Task } from './task.ts';
import type { UserMemory, Vma, VmaFile } from './user-memory.ts';

interface Mapping extends Vma {
  /** The byte of `bytes` at `start`. */
  readonly bytesOffset: number;
  readonly bytes: Uint8Array;
}

export interface MapOptions {
  readable?: boolean;
  writable?: boolean;
  shared?: boolean;
  /** Mapping of a BAR: its memory answers, and the mapping says so. */
  device?: { memory: SharedMemory; offset: number };
  /** A shared mapping of a memfd, from byte `offset` of it. */
  file?: { file: TestMemoryFile; offset: number };
  /** What lies behind the mapping, zeroed new bytes when absent. */
  bytes?: Uint8Array;
}

/** An address space over buffers. Mappings are page-aligned and do not overlap; `unmap` and `protect` split them. */
export class TestMemory implements UserMemory {
  /** Calls of `vma`: tests of speed count them. */
  vmaCalls = 0;
  #mappings: Mapping[] = [];
  #next = 0x7f00_0000_0000;

  /** Maps `length` bytes at `address` (somewhere free when undefined), replacing what was there. Returns the address. */
  map(length: number, address?: number, options: MapOptions = {}): number {
    const start = address ?? this.#next;
    const rounded = Math.ceil(length / 4096) * 4096;
    // A gap after each mapping keeps those without a wanted address apart, as guard pages would.
    if (address === undefined) this.#next += rounded + 4096;
    this.unmap(start, rounded);
    const bytes =
      options.device?.memory.bytes() ?? options.file?.file.bytes ?? options.bytes ?? new Uint8Array(rounded);
    this.#insert({
      start,
      end: start + rounded,
      readable: options.readable ?? true,
      writable: options.writable ?? true,
      shared: options.shared ?? (options.device ?? options.file) !== undefined,
      ...(options.device === undefined ? {} : { device: options.device }),
      ...(options.file === undefined ? {} : { file: vmaFile(options.file.file, options.file.offset) }),
      bytes,
      bytesOffset: options.device?.offset ?? options.file?.offset ?? 0,
    });
    return start;
  }

  unmap(address: number, length: number): void {
    this.#cut(address, address + length);
  }

  /** Changes the rights of what is mapped in the range. */
  protect(address: number, length: number, rights: { readable: boolean; writable: boolean }): void {
    for (const part of this.#cut(address, address + length)) this.#insert({ ...part, ...rights });
  }

  vma(address: number): Vma | undefined {
    this.vmaCalls++;
    return this.#find(address);
  }

  read(address: number, into: Uint8Array): boolean {
    return this.#copy(address, into, false);
  }

  write(address: number, from: Uint8Array): boolean {
    return this.#copy(address, from, true);
  }

  #find(address: number): Mapping | undefined {
    let low = 0;
    let high = this.#mappings.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#mappings[middle]!.end <= address) low = middle + 1;
      else high = middle;
    }
    const found = this.#mappings[low];
    return found !== undefined && found.start <= address ? found : undefined;
  }

  #copy(address: number, buffer: Uint8Array, isWrite: boolean): boolean {
    let done = 0;
    while (done < buffer.length) {
      const mapping = this.#find(address + done);
      if (mapping === undefined || !(isWrite ? mapping.writable : mapping.readable)) return false;
      const within = address + done - mapping.start;
      const count = Math.min(buffer.length - done, mapping.end - mapping.start - within);
      const at = mapping.bytesOffset + within;
      if (at + count > mapping.bytes.length) return false;
      if (isWrite) mapping.bytes.set(buffer.subarray(done, done + count), at);
      else buffer.set(mapping.bytes.subarray(at, at + count), done);
      done += count;
    }
    return true;
  }

  #insert(mapping: Mapping): void {
    this.#mappings.push(mapping);
    this.#mappings.sort((a, b) => a.start - b.start);
  }

  /** Takes the range out, splitting what crosses its borders, and returns the parts that were taken. */
  #cut(start: number, end: number): Mapping[] {
    const taken: Mapping[] = [];
    const left: Mapping[] = [];
    for (const mapping of this.#mappings) {
      const part = (from: number, to: number): Mapping => ({
        ...mapping,
        start: from,
        end: to,
        bytesOffset: mapping.bytesOffset + (from - mapping.start),
        ...(mapping.device === undefined
          ? {}
          : { device: { memory: mapping.device.memory, offset: mapping.device.offset + (from - mapping.start) } }),
        ...(mapping.file === undefined
          ? {}
          : { file: { ...mapping.file, offset: mapping.file.offset + (from - mapping.start) } }),
      });
      const from = Math.max(start, mapping.start);
      const to = Math.min(end, mapping.end);
      if (from >= to) {
        left.push(mapping);
        continue;
      }
      taken.push(part(from, to));
      if (mapping.start < from) left.push(part(mapping.start, from));
      if (to < mapping.end) left.push(part(to, mapping.end));
    }
    this.#mappings = left;
    return taken;
  }
}

/** An eventfd of a test program: the counter, and how many contexts of it are held. */
export class TestEventfd extends File {
  readonly kind = 'foreign';
  readonly path = 'anon_inode:[eventfd]';
  counter = 0;
  /** Contexts that were resolved and not closed. */
  contexts = 0;
  readonly #watchers = new Set<() => void>();

  /** What the program's read() gives: the counter, which is then 0. */
  take(): number {
    const value = this.counter;
    this.counter = 0;
    return value;
  }

  /** What the program's write() does. */
  add(count = 1): void {
    this.counter += count;
    for (const watcher of [...this.#watchers]) {
      this.counter = 0;
      watcher();
    }
  }

  context(): EventContext {
    this.contexts++;
    let open = true;
    return {
      identity: this,
      signal: (count = 1) => this.add(count),
      watch: (onSignal) => {
        this.#watchers.add(onSignal);
        if (this.counter > 0) this.add(0);
        return () => {
          this.#watchers.delete(onSignal);
        };
      },
      close: () => {
        if (!open) throw new Error('An eventfd context is closed twice');
        open = false;
        this.contexts--;
      },
    };
  }
}

/** A memfd of a test program. */
export class TestMemoryFile extends File {
  readonly kind = 'foreign';
  readonly path: string;
  readonly bytes: Uint8Array;
  readonly writable: boolean;
  references = 0;

  constructor(length: number, options: { name?: string; writable?: boolean } = {}) {
    super();
    this.path = `/memfd:${options.name ?? 'test'}`;
    this.bytes = new Uint8Array(length);
    this.writable = options.writable ?? true;
  }

  reference(): MemoryFile {
    this.references++;
    return {
      length: this.bytes.length,
      writable: this.writable,
      identity: identityOf(this),
      backing: new BufferBacking(this.bytes),
      close: () => {
        this.references--;
      },
    };
  }
}
const identities = new WeakMap<TestMemoryFile, string>();
let nextIdentity = 1;

function identityOf(file: TestMemoryFile): string {
  const identity = identities.get(file) ?? `test-file-${nextIdentity++}`;
  identities.set(file, identity);
  return identity;
}

function vmaFile(file: TestMemoryFile, offset: number): VmaFile {
  return { identity: identityOf(file), offset, open: () => file.reference() };
}

/** Where `ioctl` puts arguments: out of the way of what tests map. */
const SCRATCH = 0x6000_0000_0000;

export interface TestTaskOptions {
  pid?: number;
  name?: string;
  /** Shared by all tasks of one machine. */
  physical?: PhysicalMemory;
  /** Bytes; no limit when absent. */
  memlockLimit?: number;
  /** Rights; none when absent. */
  capabilities?: Capability[];
}

export class TestTask implements Task {
  readonly pid: number;
  readonly name: string;
  readonly memory = new TestMemory();
  readonly mm: Mm;
  readonly capabilities: Set<Capability>;
  limit: number;
  readonly #descriptors = new Map<number, File>();
  /** Where `ioctl` puts its arguments. */
  #scratch = 0;

  constructor(options: TestTaskOptions = {}) {
    this.pid = options.pid ?? 1000;
    this.name = options.name ?? 'test';
    this.mm = new Mm(this.memory, options.physical ?? new PhysicalMemory());
    this.limit = options.memlockLimit ?? Number.POSITIVE_INFINITY;
    this.capabilities = new Set(options.capabilities ?? []);
  }

  capable(capability: Capability): boolean {
    return this.capabilities.has(capability);
  }

  memlockLimit(): number {
    return this.limit;
  }

  /** Puts a file under the lowest free descriptor from 3. */
  open<F extends File>(file: F): { descriptor: number; file: F } {
    let descriptor = 3;
    while (this.#descriptors.has(descriptor)) descriptor++;
    this.#descriptors.set(descriptor, file);
    return { descriptor, file };
  }

  /** A second descriptor of the same file. */
  dup(descriptor: number): number {
    return this.open(this.file(descriptor)).descriptor;
  }

  /** Closes a descriptor; with the last one of a file the file is released. */
  close(descriptor: number): void {
    const file = this.file(descriptor);
    this.#descriptors.delete(descriptor);
    if (![...this.#descriptors.values()].includes(file)) file.close();
  }

  /** Closes everything, as the end of a process does. */
  exit(): void {
    for (const descriptor of [...this.#descriptors.keys()].sort((a, b) => a - b)) this.close(descriptor);
  }

  file(descriptor: number): File {
    const file = this.#descriptors.get(descriptor);
    if (file === undefined) throw new Errno('EBADF', `descriptor ${descriptor} is not open`);
    return file;
  }

  /** Opens a file that is not the box's. */
  openForeign(path = '/dev/null'): number {
    return this.open(new ForeignFile(path)).descriptor;
  }

  openEventfd(): { descriptor: number; file: TestEventfd } {
    return this.open(new TestEventfd());
  }

  eventfd(descriptor: number): EventContext {
    const file = this.file(descriptor);
    if (!(file instanceof TestEventfd))
      throw new Errno('EINVAL', `descriptor ${descriptor} (${file.path}) is not an eventfd`);
    return file.context();
  }

  memoryFile(descriptor: number): MemoryFile {
    const file = this.file(descriptor);
    if (!(file instanceof TestMemoryFile))
      throw new Errno('EINVAL', `descriptor ${descriptor} (${file.path}) is not a memfd`);
    return file.reference();
  }

  /**
   * An ioctl whose argument is a pointer to `argument`; what the kernel stored is copied back into it. A new file gets a
   * descriptor, which is returned (or stored where the result says).
   */
  ioctl(file: File, request: number, argument: Uint8Array | bigint | number = 0n): number {
    let address: bigint;
    if (argument instanceof Uint8Array) {
      if (this.#scratch === 0) this.#scratch = this.memory.map(1 << 20, SCRATCH);
      this.memory.write(this.#scratch, argument);
      address = BigInt(this.#scratch);
    } else address = BigInt(argument);
    try {
      const result: IoctlResult = file.ioctl(this, request, address);
      if (typeof result === 'number') return result;
      const { descriptor } = this.open(result.file);
      if (result.offset === undefined) return descriptor;
      this.memory.write(Number(address) + result.offset, new Uint8Array(Int32Array.of(descriptor).buffer));
      return 0;
    } finally {
      if (argument instanceof Uint8Array) this.memory.read(this.#scratch, argument);
    }
  }
}

/** The errno's name with which `call` is refused, `ok` when it is not. Anything else that is thrown goes on. */
export function refusal(call: () => unknown): string {
  try {
    call();
    return 'ok';
  } catch (error) {
    if (error instanceof Errno) return error.code;
    throw error;
  }
}
