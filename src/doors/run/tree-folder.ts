/** The generated sysfs tree as files below a folder: what is mounted over the real one, or what paths are rewritten to. */
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  renameSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import type { TreeWriter } from '../../host/index.ts';
import { makeSocketNode } from '../../sys/index.ts';

export class TreeFolder implements TreeWriter {
  readonly #root: string;
  /** What was written, folders before what they hold. */
  readonly #present = new Set<string>();
  readonly #folders = new Set<string>();

  constructor(root: string) {
    this.#root = root;
  }

  directory(path: string, mode: number): void {
    if (this.#present.has(path)) return;
    this.#present.add(path);
    this.#folders.add(path);
    mkdirSync(this.#root + path, { mode });
  }

  /** A file that is there already is replaced as a whole: a reader has the old bytes or the new ones. */
  file(path: string, mode: number, content: Uint8Array): void {
    const at = this.#root + path;
    if (!this.#present.has(path)) {
      this.#present.add(path);
      writeFileSync(at, content, { mode });
      return;
    }
    const fresh = `${at}.vfiobox-new`;
    writeFileSync(fresh, content, { mode });
    renameSync(fresh, at);
  }

  symlink(path: string, target: string): void {
    if (this.#present.has(path)) rmSync(this.#root + path, { force: true });
    this.#present.add(path);
    symlinkSync(target, this.#root + path);
  }

  node(path: string, mode: number): void {
    if (this.#present.has(path)) return;
    this.#present.add(path);
    makeSocketNode(this.#root + path);
    chmodSync(this.#root + path, mode);
  }

  /** Whose a path is now, and its permissions; undefined: it is not there. */
  ownership(path: string): { uid: number; gid: number; mode: number } | undefined {
    const stat = lstatSync(this.#root + path, { throwIfNoEntry: false });
    return stat === undefined ? undefined : { uid: stat.uid, gid: stat.gid, mode: stat.mode & 0o7777 };
  }

  remove(path: string): void {
    rmSync(this.#root + path, { recursive: true, force: true });
    const below = `${path}/`;
    for (const other of this.#present) {
      if (other === path || other.startsWith(below)) {
        this.#present.delete(other);
        this.#folders.delete(other);
      }
    }
  }

  /** The end of the run. Knowing what is there makes this much quicker than looking for it. */
  removeAll(): void {
    try {
      for (const path of [...this.#present].reverse()) {
        if (this.#folders.has(path)) rmdirSync(this.#root + path);
        else unlinkSync(this.#root + path);
      }
    } catch {
      // Somebody put or removed something: whoever removes the folder of the run finds the rest.
    }
    this.#present.clear();
  }
}
