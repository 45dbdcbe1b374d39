/**
 * The device nodes: /dev/iommu, /dev/vfio/vfio, a group's node, a device's node. What they are called, what stat says of them,
 * and what opening them gives.
 *
 * They belong to the user who runs the box, who may give them away by chown and chmod.
 */
import { Errno } from '../lib/errno.ts';
import type { Ownership } from './permissions.ts';
import type { SysfsTree } from './sysfs/tree.ts';

export interface NodeStat {
  /** S_IFCHR and permissions. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly major: number;
  readonly minor: number;
  readonly nlink: number;
  readonly ino: number;
  readonly size: number;
}

const S_IFCHR = 0o020000;

/** Numbers as the recorded kernel gave them. */
export const MISC_MAJOR = 10;
export const IOMMU_MINOR = 257;
export const CONTAINER_MINOR = 196;
export const KVM_MINOR = 232;
export const GROUP_MAJOR = 248;
export const CDEV_MAJOR = 247;
export const WALKER_MAJOR = 246;

export interface DeviceNode<T> {
  readonly major: number;
  readonly minor: number;
  readonly mode: number;
  readonly open: T;
}

/** Nodes by path; the tree shows their names. */
export class DeviceNodes<T> {
  readonly #nodes = new Map<string, DeviceNode<T>>();
  readonly #tree: SysfsTree;

  constructor(tree: SysfsTree) {
    this.#tree = tree;
  }

  add(path: string, major: number, minor: number, mode: number, open: T): void {
    this.#nodes.set(path, { major, minor, mode, open });
    this.#tree.node(path, mode);
  }

  /** A folder that is there also without nodes in it. */
  addFolder(path: string): void {
    this.#tree.directory(path);
  }

  remove(path: string): void {
    if (this.#nodes.delete(path)) this.#tree.remove(path);
  }

  paths(): string[] {
    return [...this.#nodes.keys()];
  }

  /** Undefined: no node of that name. ENOENT when the name lies in a folder that is the machine's alone. */
  find(path: string): DeviceNode<T> | undefined {
    const node = this.#nodes.get(path);
    if (node !== undefined) return node;
    if (path.startsWith('/dev/vfio/') && path !== '/dev/vfio/devices') {
      throw new Errno('ENOENT', `the machine has no node ${path}; it has ${this.paths().join(', ')}`);
    }
    return undefined;
  }

  /** `owner`: whose it is; else the user who asks, with the mode that it was made with. */
  stat(path: string, uid: number, owner: Ownership | undefined): NodeStat | undefined {
    const node = this.find(path);
    if (node === undefined) return undefined;
    return {
      mode: S_IFCHR | ((owner?.mode ?? node.mode) & 0o7777),
      uid: owner?.uid ?? uid,
      gid: owner?.gid ?? uid,
      major: node.major,
      minor: node.minor,
      nlink: 1,
      ino: 0x10000 + node.major * 256 + node.minor,
      size: 0,
    };
  }
}
