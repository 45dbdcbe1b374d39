/**
 * The caches of the host's processors, so that it can be seen what a request without snooping does: lines of 64 bytes with a copy of
 * their own.
 *
 * Between processors the caches are coherent: a line is in one of them at a time, and moves. Devices' writes that are snooped put
 * lines out (`snoop`); a write that is not leaves an old copy behind, which is read until somebody flushes.
 */
import type { PhysicalMemory } from '../../hw/memory/physical-memory.ts';

export const LINE = 64;

interface Line {
  readonly bytes: Uint8Array;
  isDirty: boolean;
  /** The processor in whose cache it is. */
  cpu: number;
}

export class CpuCache {
  readonly #memory: PhysicalMemory;
  /** By address / 64: page · 64 + line of the page. */
  readonly #lines = new Map<number, Line>();

  constructor(memory: PhysicalMemory) {
    this.#memory = memory;
  }

  /** Lines that are cached now. */
  get size(): number {
    return this.#lines.size;
  }

  /** Processor `cpu` reads through its cache. False: no memory there. */
  read(cpu: number, page: number, offset: number, into: Uint8Array): boolean {
    return this.#each(page, offset, into.length, (key, within, at, count) => {
      const line = this.#fill(cpu, key);
      if (line === undefined) return false;
      into.set(line.bytes.subarray(within, within + count), at);
      return true;
    });
  }

  /** Processor `cpu` writes into its cache; memory gets it when the line is put out. */
  write(cpu: number, page: number, offset: number, from: Uint8Array): boolean {
    return this.#each(page, offset, from.length, (key, within, at, count) => {
      const line = this.#fill(cpu, key);
      if (line === undefined) return false;
      line.bytes.set(from.subarray(at, at + count), within);
      line.isDirty = true;
      return true;
    });
  }

  /** A device's request that is snooped: lines in its way are written back and put out. Call it before the request acts on memory. */
  snoop(page: number, offset: number, length: number): void {
    this.#each(page, offset, length, (key) => {
      this.#evict(key);
      return true;
    });
  }

  /** CLFLUSH: one line, wherever it is. */
  flushLine(page: number, offset: number): void {
    this.#evict(page * (4096 / LINE) + Math.floor(offset / LINE));
  }

  /** WBINVD of one processor: all lines in its cache are written back and put out. */
  flush(cpu: number): void {
    for (const [key, line] of [...this.#lines]) if (line.cpu === cpu) this.#evict(key);
  }

  #fill(cpu: number, key: number): Line | undefined {
    const cached = this.#lines.get(key);
    if (cached !== undefined) {
      cached.cpu = cpu;
      return cached;
    }
    const bytes = new Uint8Array(LINE);
    if (!this.#memory.read(Math.floor(key / (4096 / LINE)), (key % (4096 / LINE)) * LINE, bytes)) return undefined;
    const line = { bytes, isDirty: false, cpu };
    this.#lines.set(key, line);
    return line;
  }

  #evict(key: number): void {
    const line = this.#lines.get(key);
    if (line === undefined) return;
    this.#lines.delete(key);
    if (line.isDirty) this.#memory.write(Math.floor(key / (4096 / LINE)), (key % (4096 / LINE)) * LINE, line.bytes);
  }

  #each(
    page: number,
    offset: number,
    length: number,
    visit: (key: number, within: number, at: number, count: number) => boolean,
  ): boolean {
    let at = 0;
    while (at < length) {
      const within = (offset + at) % LINE;
      const count = Math.min(LINE - within, length - at);
      const key = page * (4096 / LINE) + Math.floor((offset + at) / LINE);
      if (!visit(key, within, at, count)) return false;
      at += count;
    }
    return true;
  }
}
