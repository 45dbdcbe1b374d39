/**
 * Fault queues: a file from which a program reads the page requests of devices and to which it writes the answers.
 *
 * Requests come in groups; a group is read whole and gets one cookie. Reading never waits: an empty queue gives 0 bytes, poll
 * tells when there is something.
 */
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { IdTable } from '../../lib/id-table.ts';
import { hex } from '../../lib/pages.ts';
import {
  iommu_fault_alloc as faultAllocStruct,
  IOMMUFD_PAGE_RESP_INVALID,
  IOMMUFD_PAGE_RESP_SUCCESS,
  type iommu_fault_alloc,
  iommu_hwpt_page_response,
  iommu_hwpt_pgfault,
} from '../../uapi/iommufd.ts';
import { File, type NewDescriptor, POLLIN, POLLOUT } from '../core/file.ts';
import type { Task } from '../core/task.ts';
import { type IommufdContext, IommufdObject } from './context.ts';
import type { Ucmd } from './ucmd.ts';

/** No descriptor is free for the file of a queue. */
export const fileFails = new Failpoint('iommufd:file', 'ENOMEM');

/** Page requests of one device that are answered together. */
export interface FaultGroup {
  /** The attachment through which they came: when it ends, they are answered. */
  readonly attachment: object;
  readonly faults: readonly Omit<iommu_hwpt_pgfault, 'cookie'>[];
  /** Tells the device: IOMMUFD_PAGE_RESP_SUCCESS or IOMMUFD_PAGE_RESP_INVALID. */
  respond(code: number): void;
}

export class FaultQueue extends IommufdObject {
  readonly kind = 'fault';
  /** Called when there is something to read. */
  onPending: (() => void) | undefined;
  readonly #pending: FaultGroup[] = [];
  readonly #unanswered = new IdTable<FaultGroup>();

  get hasPending(): boolean {
    return this.#pending.length > 0;
  }

  deliver(group: FaultGroup): void {
    this.#pending.push(group);
    this.onPending?.();
  }

  /** Answers what came through an attachment that ends: nobody will any more. */
  drop(attachment: object): void {
    for (let i = this.#pending.length - 1; i >= 0; i--) {
      if (this.#pending[i]!.attachment !== attachment) continue;
      this.#pending.splice(i, 1)[0]!.respond(IOMMUFD_PAGE_RESP_INVALID);
    }
    for (const [cookie, group] of [...this.#unanswered.entries()]) {
      if (group.attachment !== attachment) continue;
      this.#unanswered.remove(cookie);
      group.respond(IOMMUFD_PAGE_RESP_INVALID);
    }
  }

  /** Bytes stored. EINVAL: there is no room for the first group. */
  read(into: Uint8Array): number {
    const size = iommu_hwpt_pgfault.size;
    let done = 0;
    for (let group = this.#pending[0]; group !== undefined; group = this.#pending[0]) {
      if (done >= into.length || group.faults.length * size > into.length - done) {
        if (done === 0) throw new Errno('EINVAL', `the next group has ${group.faults.length} page requests`);
        break;
      }
      this.#pending.shift();
      const cookie = this.#unanswered.add(group);
      for (const fault of group.faults) {
        into.set(iommu_hwpt_pgfault.write({ ...fault, cookie }), done);
        done += size;
      }
    }
    return done;
  }

  /** Bytes understood. EINVAL: the first answer has an unknown cookie or code. */
  write(from: Uint8Array): number {
    const size = iommu_hwpt_page_response.size;
    let done = 0;
    for (; done < from.length; done += size) {
      const { cookie, code } = iommu_hwpt_page_response.read(from.subarray(done, done + size));
      const isKnownCode = code === IOMMUFD_PAGE_RESP_SUCCESS || code === IOMMUFD_PAGE_RESP_INVALID;
      const group = isKnownCode ? this.#unanswered.get(cookie) : undefined;
      if (group === undefined) {
        if (done === 0) throw new Errno('EINVAL', `no group waits for cookie ${cookie} and code ${code}`);
        break;
      }
      this.#unanswered.remove(cookie);
      group.respond(code);
    }
    return done;
  }

  override destroy(): void {
    for (const group of this.#pending.splice(0)) group.respond(IOMMUFD_PAGE_RESP_INVALID);
    for (const [cookie, group] of [...this.#unanswered.entries()]) {
      this.#unanswered.remove(cookie);
      group.respond(IOMMUFD_PAGE_RESP_INVALID);
    }
  }
}

/** The file of a queue. The queue cannot be destroyed while it is open. */
export class FaultQueueFile extends File {
  readonly kind = 'fault';
  readonly path = 'anon_inode:[iommufd-pgfault]';
  override readonly isEventQueue = true;
  readonly queue: FaultQueue;

  constructor(queue: FaultQueue) {
    super();
    this.queue = queue;
    queue.users++;
    queue.context.hold();
    queue.onPending = () => this.onReadable?.();
  }

  // The position is not looked at: the file has none, whatever the program's descriptor counts.
  override read(_task: Task, into: Uint8Array, _position: number): number {
    checkMultiple(into.length, iommu_hwpt_pgfault.size);
    return this.queue.read(into);
  }

  override write(_task: Task, from: Uint8Array, _position: number): number {
    checkMultiple(from.length, iommu_hwpt_page_response.size);
    return this.queue.write(from);
  }

  override poll(): number {
    return POLLOUT | (this.queue.hasPending ? POLLIN : 0);
  }

  override release(): void {
    this.queue.onPending = undefined;
    this.queue.users--;
    this.queue.context.drop();
  }
}

function checkMultiple(length: number, size: number): void {
  if (length % size !== 0) throw new Errno('ESPIPE', `${length} bytes are not a multiple of ${size}`);
}

/** ENOENT. */
export function getFaultQueue(context: IommufdContext, id: number): FaultQueue {
  const object = context.get(id);
  if (!(object instanceof FaultQueue)) throw new Errno('ENOENT', `object ${id} is a ${object.kind}, not a fault queue`);
  return object;
}

export function faultQueueAlloc(ucmd: Ucmd<iommu_fault_alloc>): NewDescriptor {
  const { context, cmd } = ucmd;
  if (cmd.flags !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}: there are none`);
  const queue = new FaultQueue(context);
  cmd.out_fault_id = queue.id;
  try {
    fileFails.hit();
    ucmd.respond();
  } catch (error) {
    context.abort(queue);
    throw error;
  }
  context.publish(queue);
  return { file: new FaultQueueFile(queue), closeOnExec: true, offset: faultAllocStruct.offsets.out_fault_fd };
}
