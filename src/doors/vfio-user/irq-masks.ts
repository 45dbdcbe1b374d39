/**
 * Masks of MSI and MSI-X vectors, and eventfds that tell a client of masks.
 *
 * VFIO masks the pin only. vfio-user's SET_IRQS masks any vector: here the vector's eventfd waits while it is masked, and has its signal
 * when that ends. EVENTFD with MASK (for messages also with UNMASK) asks for a notice of each such change; of the pin, EVENTFD with UNMASK keeps the
 * kernel's meaning, an eventfd that unmasks, which VMMs use with it.
 */
import type { EventContext } from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import * as uapi from '../../uapi/vfio.ts';

/** An eventfd of a vector that may be masked. */
class MaskableEvent implements EventContext {
  readonly #event: EventContext;
  readonly #isMasked: () => boolean;
  #pending = 0;

  constructor(event: EventContext, isMasked: () => boolean) {
    this.#event = event;
    this.#isMasked = isMasked;
  }

  signal(count = 1): void {
    if (this.#isMasked()) this.#pending = 1;
    else this.#event.signal(count);
  }

  unmasked(): void {
    if (this.#pending > 0) this.#event.signal(1);
    this.#pending = 0;
  }

  watch(onSignal: () => void): () => void {
    return this.#event.watch(onSignal);
  }

  close(): void {
    this.#event.close();
  }
}

/** A request that is about masks and is not the kernel's. */
export interface MaskRequest {
  readonly flags: number;
  readonly index: number;
  readonly start: number;
  readonly count: number;
  /** One flag for each vector, of DATA_BOOL. */
  readonly bools: Uint8Array;
  /** Eventfds of DATA_EVENTFD, or none of them. Taken over. */
  readonly events: readonly EventContext[];
}

const MASK = uapi.VFIO_IRQ_SET_ACTION_MASK;
const UNMASK = uapi.VFIO_IRQ_SET_ACTION_UNMASK;
const EVENTFD = uapi.VFIO_IRQ_SET_DATA_EVENTFD;

function isMessage(index: number): boolean {
  return index === uapi.VFIO_PCI_MSI_IRQ_INDEX || index === uapi.VFIO_PCI_MSIX_IRQ_INDEX;
}

/** Whether a request with these flags is handled here. */
export function isMaskRequest(flags: number, index: number): boolean {
  if ((flags & (MASK | UNMASK)) === 0) return false;
  return (
    isMessage(index) || (index === uapi.VFIO_PCI_INTX_IRQ_INDEX && (flags & (MASK | EVENTFD)) === (MASK | EVENTFD))
  );
}

export class IrqMasks {
  readonly #masked = new Set<number>();
  readonly #events = new Map<number, MaskableEvent>();
  /** Who is told: by vector, of masks and of their ends. */
  readonly #notices = { masked: new Map<number, EventContext>(), unmasked: new Map<number, EventContext>() };

  /** A vector gets this eventfd. */
  wrap(index: number, vector: number, event: EventContext): EventContext {
    if (!isMessage(index)) return event;
    const key = keyOf(index, vector);
    const made = new MaskableEvent(event, () => this.#masked.has(key));
    this.#events.set(key, made);
    return made;
  }

  /** EINVAL: the vectors are not the device's `most`, or there are none. */
  set({ flags, index, start, count, bools, events }: MaskRequest, most: number): void {
    const isMask = (flags & MASK) !== 0;
    if (count === 0 || start + count > most) {
      for (const event of events) event.close();
      throw new Errno('EINVAL', `index ${index} has ${most} interrupts, not ${count} from ${start}`);
    }
    for (let i = 0; i < count; i++) {
      const key = keyOf(index, start + i);
      if ((flags & EVENTFD) !== 0) this.#setNotice(isMask, key, events[i]);
      else if ((flags & uapi.VFIO_IRQ_SET_DATA_BOOL) === 0 || bools[i] !== 0) this.#change(key, isMask);
    }
  }

  /** The kernel has masked or unmasked the pin. */
  pinChanged(isMasked: boolean): void {
    this.#tell(keyOf(uapi.VFIO_PCI_INTX_IRQ_INDEX, 0), isMasked);
  }

  /** The client is gone. */
  clear(): void {
    for (const notices of [this.#notices.masked, this.#notices.unmasked]) {
      for (const event of notices.values()) event.close();
      notices.clear();
    }
    this.#masked.clear();
    this.#events.clear();
  }

  #change(key: number, isMasked: boolean): void {
    if (this.#masked.has(key) === isMasked) return;
    if (isMasked) this.#masked.add(key);
    else {
      this.#masked.delete(key);
      this.#events.get(key)?.unmasked();
    }
    this.#tell(key, isMasked);
  }

  #setNotice(isMask: boolean, key: number, event: EventContext | undefined): void {
    const notices = isMask ? this.#notices.masked : this.#notices.unmasked;
    notices.get(key)?.close();
    notices.delete(key);
    if (event !== undefined) notices.set(key, event);
  }

  #tell(key: number, isMasked: boolean): void {
    (isMasked ? this.#notices.masked : this.#notices.unmasked).get(key)?.signal(1);
  }
}

function keyOf(index: number, vector: number): number {
  return index * 65_536 + vector;
}
