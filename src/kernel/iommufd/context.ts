/**
 * The context behind one open /dev/iommu: its objects, their numbers and who uses whom.
 *
 * Objects form a graph of `users` counts: an attached page table is used by the device, an address space by its page tables. An
 * object is made in two phases, `reserve` and `publish`, so that nobody sees half of one, and its `destroy` cannot fail. The
 * context lives as long as the file, the devices that are bound to it and the event files that came from it; at its end leaves
 * are destroyed until none is left.
 */
import type { SharedMemory } from '../../hw/memory/backing.ts';
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { IdTable } from '../../lib/id-table.ts';
import type { IommuGroup } from '../iommu/group.ts';
import type { IommufdShared } from './shared.ts';

const makingFails = new Failpoint('iommufd:object', 'ENOMEM');
const findingFails = new Failpoint('iommufd:get_object', 'ENOENT');

export type ObjectKind =
  | 'ioas'
  | 'hwpt-paging'
  | 'hwpt-nested'
  | 'device'
  | 'access'
  | 'fault'
  | 'viommu'
  | 'vdevice'
  | 'veventq'
  | 'hw-queue'
  | 'selftest';

/** Anything that has a number in a context. */
export abstract class IommufdObject {
  abstract readonly kind: ObjectKind;
  readonly context: IommufdContext;
  readonly id: number;
  /** Other objects, files and callers that need this one; it cannot be destroyed before them. */
  users = 0;

  /** Takes a number; `context.publish` or `context.abandon` follows. */
  constructor(context: IommufdContext) {
    makingFails.hit();
    this.context = context;
    this.id = context.objects.reserve();
  }

  /** Gives back what the object holds. Called once, without users, also for an object that was never published. Cannot fail. */
  abstract destroy(): void;
}

/** Memory of a virtual IOMMU under an offset of the iommufd. */
export interface IommufdMmap {
  readonly start: number;
  readonly length: number;
  readonly memory: SharedMemory;
  readonly owner: IommufdObject;
}

/** Whom locked memory is charged to: all programs of the user, or the one address space. */
export type AccountMode = 'user' | 'mm';

export class IommufdContext {
  readonly core: IommufdShared;
  readonly objects = new IdTable<IommufdObject>();
  accountMode: AccountMode = 'user';
  /** The address space that the container's ioctls work on. */
  vfioIoas: IommufdObject | undefined;
  /** A group without an IOMMU uses this context as its container. */
  noIommuMode = false;
  /** What the context remembers of each IOMMU group with a bound device. Values are of device.ts. */
  readonly groups = new Map<object, unknown>();
  /** Memory that programs may map through the iommufd, in order of its offset. */
  readonly mmaps: IommufdMmap[] = [];
  /** Numbers that stay dead until the end: their object went away under the program's feet. */
  #tombstones = 0;
  #references = 1;

  constructor(core: IommufdShared) {
    this.core = core;
  }

  /** No object, and no number that was taken by one that vanished. */
  get isEmpty(): boolean {
    return this.objects.size === 0 && this.#tombstones === 0;
  }

  publish(object: IommufdObject): void {
    this.objects.publish(object.id, object);
  }

  /** Ends an object that was not published. */
  abort(object: IommufdObject): void {
    object.destroy();
    this.objects.abandon(object.id);
  }

  /** The object with this number. ENOENT. */
  get(id: number): IommufdObject {
    findingFails.hit();
    return this.#find(id);
  }

  /** Ends a published object. ENOENT: no such number. EBUSY: it is used. */
  destroy(id: number): void {
    const object = this.#find(id);
    if (object.users > 0) throw new Errno('EBUSY', `${object.kind} ${id} has ${object.users} users`);
    this.#remove(object);
  }

  /** Ends an object whose owner in the kernel lets go of its use of it; with `tombstone` its number stays dead. */
  destroyUser(object: IommufdObject, tombstone = false): void {
    object.users--;
    if (object.users > 0) throw new Error(`${object.kind} ${object.id} is let go with ${object.users} users`);
    this.#remove(object, tombstone);
  }

  /** Whether any device of `group` is bound to this context: it then owns the group. */
  hasGroup(group: IommuGroup): boolean {
    return this.groups.has(group);
  }

  /** A device, a group or an event file keeps the context alive. */
  hold(): void {
    this.#references++;
  }

  drop(): void {
    this.#references--;
    if (this.#references === 0) this.#end();
  }

  /** Finds the lowest free offset behind the first page. */
  addMmap(memory: SharedMemory, length: number, owner: IommufdObject): number {
    let start = 4096;
    let at = 0;
    for (; at < this.mmaps.length && this.mmaps[at]!.start - start < length; at++) {
      start = this.mmaps[at]!.start + this.mmaps[at]!.length;
    }
    this.mmaps.splice(at, 0, { start, length, memory, owner });
    return start;
  }

  removeMmap(offset: number): void {
    const at = this.mmaps.findIndex(({ start }) => start === offset);
    if (at < 0) throw new Error(`Nothing is mapped at offset 0x${offset.toString(16)}`);
    this.mmaps.splice(at, 1);
  }

  #find(id: number): IommufdObject {
    const object = this.objects.get(id);
    if (object === undefined) throw new Errno('ENOENT', `there is no object ${id}`);
    return object;
  }

  #remove(object: IommufdObject, tombstone = false): void {
    if (this.vfioIoas === object) this.vfioIoas = undefined;
    if (tombstone) {
      this.objects.retire(object.id);
      this.#tombstones++;
    } else this.objects.remove(object.id);
    object.destroy();
  }

  #end(): void {
    for (;;) {
      const leaves = [...this.objects.entries()].filter(([, object]) => object.users === 0);
      for (const [id, object] of leaves) {
        // One leaf may have taken another along.
        if (object.users === 0 && this.objects.get(id) === object) this.#remove(object);
      }
      if (leaves.length > 0) continue;
      if (this.objects.size > 0) throw new Error(`${this.objects.size} objects of a closed iommufd use one another`);
      return;
    }
  }
}
