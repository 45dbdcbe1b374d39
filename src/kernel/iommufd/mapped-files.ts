/**
 * The files of a machine whose pages are mapped for DMA. A page of a file has one physical page, whoever maps it: through MAP_FILE, or
 * through a program's own shared mapping of the file.
 */
import type { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { Mm } from '../core/mm.ts';
import type { MemoryFile } from '../core/task.ts';
import type { VmaFile } from '../core/user-memory.ts';

/** A file that is mapped somewhere: its pages are pinned like those of an address space that begins at byte 0 of the file. */
class MappedFile {
  readonly mm: Mm;
  references = 1;
  #file: MemoryFile;

  constructor(file: MemoryFile, physical: PhysicalMemory) {
    this.#file = file;
    this.mm = new Mm(
      {
        read: (offset, into) => this.#file.backing.read(offset, into),
        write: (offset, from) => this.#file.backing.write(offset, from),
        vma: (offset) => {
          const end = Math.ceil(this.#file.length / 4096) * 4096;
          return offset < end ? { start: 0, end, readable: true, writable: true, shared: true } : undefined;
        },
      },
      physical,
    );
  }

  /** The same file, resolved again: the better one stays open. */
  renew(file: MemoryFile): void {
    const isBetter = file.length > this.#file.length || (file.writable && !this.#file.writable);
    const worse = isBetter ? this.#file : file;
    if (isBetter) this.#file = file;
    worse.close();
  }

  close(): void {
    this.#file.close();
  }
}

/** The files of a machine that are mapped. A page of a file has one physical page, whoever maps it. */
export class MappedFiles {
  readonly #files = new Map<string, MappedFile>();
  readonly #physical: PhysicalMemory;

  constructor(physical: PhysicalMemory) {
    this.#physical = physical;
  }

  get size(): number {
    return this.#files.size;
  }

  /** The pages of a file of which something is mapped. */
  find(identity: string): Mm | undefined {
    return this.#files.get(identity)?.mm;
  }

  /** The file behind a program's mapping, as `open`. Undefined: it cannot be reached. */
  openMapping(file: VmaFile): { mm: Mm; release(): void } | undefined {
    const mapped = this.#files.get(file.identity);
    if (mapped === undefined) {
      const reference = file.open();
      return reference === undefined ? undefined : this.open(reference);
    }
    mapped.references++;
    return { mm: mapped.mm, release: () => this.#release(file.identity, mapped) };
  }

  /** Takes over `file`. The result's `mm` has the file's pages; `release` when nothing of it is pinned any more. */
  open(file: MemoryFile): { mm: Mm; release(): void } {
    const { identity } = file;
    let mapped = this.#files.get(identity);
    if (mapped === undefined) {
      mapped = new MappedFile(file, this.#physical);
      this.#files.set(identity, mapped);
    } else {
      mapped.references++;
      mapped.renew(file);
    }
    const found = mapped;
    return { mm: found.mm, release: () => this.#release(identity, found) };
  }

  #release(identity: string, mapped: MappedFile): void {
    mapped.references--;
    if (mapped.references > 0) return;
    this.#files.delete(identity);
    mapped.close();
  }
}
