/**
 * A generated /sys (and the names in /dev): folders, files, links and device nodes under absolute paths.
 *
 * The tree is kept in memory and mirrored by any number of writers, so that what a program finds on disk follows every change at
 * once. A file is either *static* (its bytes are in the tree) or *live*: read by a function at each open, written by a
 * function that may refuse. Live files are mirrored too, with the bytes of the last change, for programs that nobody can intercept.
 */
import type { Task } from '../../kernel/core/task.ts';
import { Errno } from '../../lib/errno.ts';

export type AttributeStore = (bytes: Uint8Array, position: number, writer: Task) => number;

export interface Attribute {
  /** Bytes at this moment. Undefined: cannot be read (EIO on write-only files, as sysfs does it). */
  readonly show?: () => Uint8Array;
  /** Takes what was written and returns how much; throws the Errno of the write. */
  readonly store?: AttributeStore;
  readonly mode: number;
}

export type TreeNode =
  | { readonly kind: 'directory'; readonly children: Map<string, TreeNode> }
  | { readonly kind: 'file'; content: Uint8Array; readonly attribute: Attribute | undefined; readonly mode: number }
  | { readonly kind: 'symlink'; readonly target: string }
  | { readonly kind: 'node'; readonly mode: number };

/** Whoever mirrors the tree, e.g. into a folder. Paths are absolute (`/sys/bus/pci/…`). Parents come before children. */
export interface TreeWriter {
  directory(path: string, mode: number): void;
  file(path: string, mode: number, content: Uint8Array): void;
  symlink(path: string, target: string): void;
  /** The place of a character device: any inode that cannot be opened. Its owner and mode are the device's. */
  node(path: string, mode: number): void;
  /** The path and everything below it. */
  remove(path: string): void;
}

const encoder = new TextEncoder();

/** A text attribute's bytes. */
export function text(value: string): Uint8Array {
  return encoder.encode(value);
}

export class SysfsTree {
  readonly #root: TreeNode & { kind: 'directory' } = { kind: 'directory', children: new Map() };
  readonly #writers: TreeWriter[] = [];

  /** Gives `writer` the whole tree now and every change from now on. */
  attach(writer: TreeWriter): () => void {
    const visit = (path: string, node: TreeNode): void => {
      if (path !== '') this.#tell(writer, path, node);
      if (node.kind === 'directory') for (const [name, child] of node.children) visit(`${path}/${name}`, child);
    };
    visit('', this.#root);
    this.#writers.push(writer);
    return () => {
      const at = this.#writers.indexOf(writer);
      if (at >= 0) this.#writers.splice(at, 1);
    };
  }

  directory(path: string): void {
    this.#parent(`${path}/x`);
  }

  file(path: string, content: string | Uint8Array, mode = 0o444): void {
    const bytes = typeof content === 'string' ? text(content) : content;
    this.#put(path, { kind: 'file', content: bytes, attribute: undefined, mode });
  }

  attribute(path: string, attribute: Attribute): void {
    const content = attribute.show?.() ?? new Uint8Array(0);
    this.#put(path, { kind: 'file', content, attribute, mode: attribute.mode });
  }

  symlink(path: string, target: string): void {
    this.#put(path, { kind: 'symlink', target });
  }

  /** A link whose target is written relative to the folder it lies in, as sysfs writes its links. */
  link(path: string, to: string): void {
    const from = path.split('/').slice(1, -1);
    const target = to.split('/').slice(1);
    let same = 0;
    while (same < from.length && same < target.length - 1 && from[same] === target[same]) same++;
    this.symlink(path, [...from.slice(same).map(() => '..'), ...target.slice(same)].join('/'));
  }

  node(path: string, mode: number): void {
    this.#put(path, { kind: 'node', mode });
  }

  /** Mirrors a live file's present bytes again. Nothing happens for a path that is not a live file. */
  refresh(path: string): void {
    const node = this.#find(path);
    if (node?.kind !== 'file' || node.attribute?.show === undefined) return;
    const bytes = node.attribute.show();
    if (bytes.length === node.content.length && bytes.every((byte, i) => byte === node.content[i])) return;
    node.content = bytes.slice();
    for (const writer of this.#writers) this.#tell(writer, path, node);
  }

  remove(path: string): void {
    const parts = path.split('/').slice(1);
    const name = parts.pop()!;
    const parent = parts.length === 0 ? this.#root : this.#find(`/${parts.join('/')}`);
    if (parent?.kind !== 'directory' || !parent.children.delete(name)) return;
    for (const writer of this.#writers) writer.remove(path);
  }

  has(path: string): boolean {
    return this.#find(path) !== undefined;
  }

  /** Names in a folder; empty when there is none. */
  list(path: string): string[] {
    const node = this.#find(path);
    return node?.kind === 'directory' ? [...node.children.keys()] : [];
  }

  /** The node at `path` after following links, with the path it then has. Undefined: the tree has no such path. ELOOP. */
  resolve(path: string): { path: string; node: TreeNode } | undefined {
    let parts = path.split('/').filter((part) => part !== '' && part !== '.');
    let followed = 0;
    for (;;) {
      let node: TreeNode = this.#root;
      const here: string[] = [];
      let again = false;
      for (let i = 0; i < parts.length; i++) {
        const part = parts[i]!;
        if (part === '..') {
          here.pop();
          parts = [...here, ...parts.slice(i + 1)];
          again = true;
          break;
        }
        if (node.kind !== 'directory') return undefined;
        const child: TreeNode | undefined = node.children.get(part);
        if (child === undefined) return undefined;
        if (child.kind === 'symlink') {
          if (++followed > 40) throw new Errno('ELOOP', `too many links in ${path}`);
          const target = child.target.split('/').filter((p) => p !== '' && p !== '.');
          parts = [...(child.target.startsWith('/') ? [] : here), ...target, ...parts.slice(i + 1)];
          again = true;
          break;
        }
        here.push(part);
        node = child;
      }
      if (!again) return { path: `/${here.join('/')}`, node };
    }
  }

  /** What a link says, undefined when `path` is no link. The last component is not followed. */
  readlink(path: string): string | undefined {
    const cut = path.lastIndexOf('/');
    const parent = this.resolve(path.slice(0, cut));
    if (parent?.node.kind !== 'directory') return undefined;
    const node = parent.node.children.get(path.slice(cut + 1));
    return node?.kind === 'symlink' ? node.target : undefined;
  }

  #put(path: string, node: TreeNode): void {
    const parent = this.#parent(path);
    const name = path.slice(path.lastIndexOf('/') + 1);
    const old = parent.children.get(name);
    if (old !== undefined && old.kind !== node.kind) for (const writer of this.#writers) writer.remove(path);
    parent.children.set(name, node);
    for (const writer of this.#writers) this.#tell(writer, path, node);
  }

  #parent(path: string): TreeNode & { kind: 'directory' } {
    const parts = path.split('/').slice(1, -1);
    let node = this.#root;
    let at = '';
    for (const part of parts) {
      at += `/${part}`;
      let child = node.children.get(part);
      if (child === undefined) {
        child = { kind: 'directory', children: new Map() };
        node.children.set(part, child);
        for (const writer of this.#writers) writer.directory(at, 0o755);
      }
      if (child.kind !== 'directory') throw new Error(`${at} is not a folder of the tree`);
      node = child;
    }
    return node;
  }

  #find(path: string): TreeNode | undefined {
    let node: TreeNode = this.#root;
    for (const part of path.split('/').slice(1)) {
      if (part === '') continue;
      const child: TreeNode | undefined = node.kind === 'directory' ? node.children.get(part) : undefined;
      if (child === undefined) return undefined;
      node = child;
    }
    return node;
  }

  #tell(writer: TreeWriter, path: string, node: TreeNode): void {
    if (node.kind === 'directory') writer.directory(path, 0o755);
    else if (node.kind === 'file') writer.file(path, node.mode, node.content);
    else if (node.kind === 'symlink') writer.symlink(path, node.target);
    else writer.node(path, node.mode);
  }
}
