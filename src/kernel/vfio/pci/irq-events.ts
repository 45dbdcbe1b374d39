/**
 * Eventfds of SET_IRQS: the descriptors in its data, and the two interrupts that are nothing but an eventfd, error and request.
 */
import { Errno } from '../../../lib/errno.ts';
import {
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_PCI_ERR_IRQ_INDEX,
  VFIO_PCI_REQ_IRQ_INDEX,
} from '../../../uapi/vfio.ts';
import type { EventContext, Task } from '../../core/task.ts';

/** A SET_IRQS that has passed the checks. `kind` is its data type, `data` what follows the header. */
export interface IrqRequest {
  readonly index: number;
  readonly start: number;
  readonly count: number;
  readonly kind: number;
  readonly data: Uint8Array;
}

const names = new Map([
  [VFIO_PCI_ERR_IRQ_INDEX, 'error'],
  [VFIO_PCI_REQ_IRQ_INDEX, 'request'],
]);

/** Error and request: one eventfd each. */
export class SingleEvents {
  readonly #held = new Map<number, EventContext>();

  get size(): number {
    return this.#held.size;
  }

  /** The action TRIGGER. EINVAL: more than one, no data, or no eventfd to act on. */
  trigger(task: Task, { index, start, count, kind, data }: IrqRequest): number {
    const name = names.get(index);
    if (start !== 0 || count > 1)
      throw new Errno('EINVAL', `there is one ${name} interrupt, not ${count} from ${start}`);
    const held = this.#held.get(index);
    if (kind === VFIO_IRQ_SET_DATA_NONE) {
      if (held === undefined) throw new Errno('EINVAL', `the ${name} interrupt has no eventfd`);
      if (count > 0) held.signal();
      else this.#set(index, undefined);
      return 0;
    }
    if (count === 0) throw new Errno('EINVAL', 'there is no data');
    if (kind === VFIO_IRQ_SET_DATA_BOOL) {
      if (data[0] !== 0) held?.signal();
      return 0;
    }
    const fd = descriptorAt(data, 0);
    if (fd < -1) throw new Errno('EINVAL', `descriptor ${fd} is neither open nor -1`);
    this.#set(index, fd === -1 ? undefined : task.eventfd(fd));
    return 0;
  }

  /** Signals an interrupt. Returns whether the user has given an eventfd for it. */
  signal(index: number): boolean {
    const context = this.#held.get(index);
    context?.signal();
    return context !== undefined;
  }

  close(): void {
    for (const index of [...this.#held.keys()]) this.#set(index, undefined);
  }

  #set(index: number, context: EventContext | undefined): void {
    this.#held.get(index)?.close();
    if (context === undefined) this.#held.delete(index);
    else this.#held.set(index, context);
  }
}

/** The s32 at byte `at`. */
export function descriptorAt(data: Uint8Array, at: number): number {
  return data[at]! | (data[at + 1]! << 8) | (data[at + 2]! << 16) | (data[at + 3]! << 24);
}

export function closeContext(context: EventContext | Errno | undefined): void {
  if (context !== undefined && !(context instanceof Errno)) context.close();
}

/**
 * All eventfds of a block before anything is changed, up to the first refusal, which stands in its place: the vectors before it are
 * set and taken back, as in the kernel.
 */
export function resolveAll(task: Task, data: Uint8Array, count: number): (EventContext | Errno | undefined)[] {
  const contexts: (EventContext | Errno | undefined)[] = [];
  try {
    for (let i = 0; i < count; i++) {
      const fd = descriptorAt(data, 4 * i);
      if (fd < 0) {
        contexts.push(undefined);
        continue;
      }
      try {
        contexts.push(task.eventfd(fd));
      } catch (error) {
        if (!(error instanceof Errno)) throw error;
        contexts.push(error);
        break;
      }
    }
  } catch (error) {
    for (const context of contexts) closeContext(context);
    throw error;
  }
  return contexts;
}
