/**
 * Event queues of virtual IOMMUs: what the hardware has to tell a guest, read through a file. A queue has room for so many events; one
 * that finds no room is lost, and a record without data tells the number of the newest one that was.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import {
  IOMMU_VEVENTQ_FLAG_LOST_EVENTS,
  IOMMU_VEVENTQ_TYPE_DEFAULT,
  type iommu_veventq_alloc,
  iommufd_vevent_header,
  iommu_veventq_alloc as veventqAllocStruct,
} from '../../uapi/iommufd.ts';
import { File, type NewDescriptor, POLLIN } from '../core/file.ts';
import type { Task } from '../core/task.ts';
import { IommufdObject } from './context.ts';
import { fileFails } from './eventq.ts';
import type { Ucmd } from './ucmd.ts';
import { type EventSink, getViommu, type Viommu } from './viommu.ts';

/** The most events that a queue may hold. */
const DEEPEST_QUEUE = 2 ** 19;
const LAST_SEQUENCE = 0x7fff_ffff;

interface Vevent {
  readonly sequence: number;
  /** Undefined: events were lost up to this one. */
  readonly data: Uint8Array | undefined;
}

export class Veventq extends IommufdObject implements EventSink {
  readonly kind = 'veventq';
  readonly viommu: Viommu;
  readonly type: number;
  readonly depth: number;
  /** Called when there is something to read. */
  onPending: (() => void) | undefined;
  readonly #events: Vevent[] = [];
  /** Events with data in the queue. */
  #count = 0;
  #sequence = 0;

  constructor(viommu: Viommu, type: number, depth: number) {
    super(viommu.context);
    this.viommu = viommu;
    this.type = type;
    this.depth = depth;
    viommu.users++;
    viommu.eventQueues.set(type, this);
  }

  get hasPending(): boolean {
    return this.#events.length > 0;
  }

  report(data: Uint8Array): void {
    const events = this.#events;
    // The record of losses is always the last one, with the newest number.
    if (events.length > 0 && events[events.length - 1]!.data === undefined) events.pop();
    const isLost = this.#count === this.depth;
    if (!isLost) this.#count++;
    events.push({ sequence: this.#sequence, data: isLost ? undefined : data });
    this.#sequence = this.#sequence === LAST_SEQUENCE ? 0 : this.#sequence + 1;
    this.onPending?.();
  }

  /** Bytes stored. EINVAL: there is no room for the first event. */
  read(into: Uint8Array): number {
    const { size } = iommufd_vevent_header;
    let done = 0;
    for (let event = this.#events[0]; event !== undefined; event = this.#events[0]) {
      const { sequence, data } = event;
      if (size > into.length - done) break;
      if (data !== undefined && size + data.length > into.length - done) {
        if (done === 0) throw new Errno('EINVAL', `the next event has ${size + data.length} bytes`);
        break;
      }
      this.#events.shift();
      const flags = data === undefined ? IOMMU_VEVENTQ_FLAG_LOST_EVENTS : 0;
      into.set(iommufd_vevent_header.write({ flags, sequence }), done);
      done += size;
      if (data === undefined) continue;
      into.set(data, done);
      done += data.length;
      this.#count--;
    }
    return done;
  }

  override destroy(): void {
    this.viommu.users--;
    this.viommu.eventQueues.delete(this.type);
  }
}

class VeventqFile extends File {
  readonly kind = 'veventq';
  readonly path = 'anon_inode:[iommufd-viommu-event]';
  override readonly isEventQueue = true;
  readonly queue: Veventq;

  constructor(queue: Veventq) {
    super();
    this.queue = queue;
    queue.users++;
    queue.context.hold();
    queue.onPending = () => this.onReadable?.();
  }

  override read(_task: Task, into: Uint8Array, _position: number): number {
    if (into.length < iommufd_vevent_header.size) throw new Errno('EINVAL', `${into.length} bytes hold no event`);
    return this.queue.read(into);
  }

  override poll(): number {
    return this.queue.hasPending ? POLLIN : 0;
  }

  override release(): void {
    this.queue.onPending = undefined;
    this.queue.users--;
    this.queue.context.drop();
  }
}

export function veventqAlloc(ucmd: Ucmd<iommu_veventq_alloc>): NewDescriptor {
  const { context, cmd } = ucmd;
  if (cmd.flags !== 0 || cmd.__reserved !== 0 || cmd.type === IOMMU_VEVENTQ_TYPE_DEFAULT) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}, type ${cmd.type}, reserved ${hex(cmd.__reserved)}`);
  }
  if (cmd.veventq_depth === 0 || cmd.veventq_depth > DEEPEST_QUEUE) {
    throw new Errno('EINVAL', `a queue of ${cmd.veventq_depth} events; 1 to ${DEEPEST_QUEUE} are possible`);
  }
  const viommu = getViommu(context, cmd.viommu_id);
  if (viommu.eventQueues.has(cmd.type)) {
    throw new Errno('EEXIST', `virtual IOMMU ${viommu.id} has a queue for events ${hex(cmd.type)} already`);
  }
  const queue = new Veventq(viommu, cmd.type, cmd.veventq_depth);
  cmd.out_veventq_id = queue.id;
  try {
    fileFails.hit();
    ucmd.respond();
  } catch (error) {
    context.abort(queue);
    throw error;
  }
  context.publish(queue);
  return { file: new VeventqFile(queue), closeOnExec: true, offset: veventqAllocStruct.offsets.out_veventq_fd };
}
