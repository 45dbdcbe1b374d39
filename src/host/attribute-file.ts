/** A live file of the sysfs tree, opened: reads what it says now, writes act at once. */

import { Blocked } from '../kernel/core/blocked.ts';
import { File } from '../kernel/core/file.ts';
import type { Task } from '../kernel/core/task.ts';
import { Errno } from '../lib/errno.ts';
import type { Attribute } from './sysfs/tree.ts';

export class AttributeFile extends File {
  readonly kind = 'attribute';
  readonly path: string;
  readonly #attribute: Attribute;
  /** After each write, and after the end of one that blocked: what the tree shows may have changed. */
  readonly #written: () => void;

  constructor(path: string, attribute: Attribute, written: () => void) {
    super();
    this.path = path;
    this.#attribute = attribute;
    this.#written = written;
  }

  /** Everything it says now, for a descriptor that is only read. EIO for a write-only file. */
  content(): Uint8Array {
    const bytes = this.#attribute.show?.();
    if (bytes === undefined) throw new Errno('EIO', `${this.path} can only be written`);
    return bytes;
  }

  override read(_task: Task, into: Uint8Array, position: number): number {
    const bytes = this.content();
    if (position >= bytes.length) return 0;
    const part = bytes.subarray(position, position + into.length);
    into.set(part);
    return part.length;
  }

  override write(task: Task, from: Uint8Array, position: number): number {
    if (this.#attribute.store === undefined) throw new Errno('EIO', `${this.path} cannot be written`);
    try {
      return this.#attribute.store(from, position, task);
    } catch (error) {
      if (error instanceof Blocked) error.onEnd(() => this.#written());
      throw error;
    } finally {
      this.#written();
    }
  }
}
