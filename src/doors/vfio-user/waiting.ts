/**
 * Commands that arrived while the server waited for an answer of the client, in their order.
 */
import { closeDescriptor } from '../../sys/index.ts';
import { VFIO_PCI_ROM_REGION_INDEX } from '../../uapi/vfio.ts';
import {
  VFIO_USER_DEVICE_FEATURE,
  VFIO_USER_DMA_MAP,
  VFIO_USER_DMA_UNMAP,
  VFIO_USER_F_DMA_UNMAP_ALL,
  VFIO_USER_MIG_DATA_READ,
  VFIO_USER_MIG_DATA_WRITE,
  VFIO_USER_REGION_WRITE,
  vfio_user_dma_map,
  vfio_user_dma_unmap,
  vfio_user_region_access,
} from '../../uapi/vfio-user.ts';
import { fixedPartOf, HEADER, type Message } from './codec.ts';
import { copyOf, type Questions } from './questions.ts';

const MOST = 4096;
const MOST_BYTES = 16 * 2 ** 20;
const PAGE_BITS = 12n;

export class Waiting {
  readonly #messages: Message[] = [];
  #bytes = 0;
  #wanting = 0;

  get count(): number {
    return this.#messages.length;
  }

  /** Whether the client waits for the answer of one of them. */
  get wantsReply(): boolean {
    return this.#wanting > 0;
  }

  get first(): Message | undefined {
    return this.#messages[0];
  }

  /** Keeps a copy. False: there are too many; its descriptors are closed. */
  push(message: Message): boolean {
    this.#bytes += message.payload.length + HEADER;
    if (this.#messages.length >= MOST || this.#bytes > MOST_BYTES) {
      for (const fd of message.descriptors) closeDescriptor(fd);
      return false;
    }
    this.#messages.push(copyOf(message));
    if (message.wantsReply) this.#wanting++;
    return true;
  }

  shift(): Message | undefined {
    const message = this.#messages.shift();
    if (message === undefined) return undefined;
    this.#bytes -= message.payload.length + HEADER;
    if (message.wantsReply) this.#wanting--;
    return message;
  }

  /** The connection is over. */
  clear(): void {
    for (const { descriptors } of this.#messages) for (const fd of descriptors) closeDescriptor(fd);
    this.#messages.length = 0;
    this.#bytes = 0;
    this.#wanting = 0;
  }
}

/** Whether a command must not happen before the transfers that are under way have ended. */
export function waitsForTransfers({ command, payload }: Message, questions: Questions): boolean {
  if (questions.count === 0 || payload.length < (fixedPartOf(command) ?? 0)) return false;
  const touches = (address: bigint, size: bigint): boolean =>
    size > 0n && questions.touches(Number(address >> PAGE_BITS), Number((address + size - 1n) >> PAGE_BITS) + 1);
  switch (command) {
    case VFIO_USER_DEVICE_FEATURE:
    case VFIO_USER_MIG_DATA_READ:
    case VFIO_USER_MIG_DATA_WRITE:
      return true;
    case VFIO_USER_DMA_MAP: {
      const { addr, size } = vfio_user_dma_map.read(payload);
      return touches(addr, size);
    }
    case VFIO_USER_DMA_UNMAP: {
      const { flags, addr, size } = vfio_user_dma_unmap.read(payload);
      return (flags & VFIO_USER_F_DMA_UNMAP_ALL) !== 0 || touches(addr, size);
    }
    default:
      return false;
  }
}

/** Whether it may be answered before it is done. Only BARs: what configuration space does has to be done when it is answered. */
export function isBarWrite({ command, payload }: Message): boolean {
  return command === VFIO_USER_REGION_WRITE && vfio_user_region_access.read(payload).region < VFIO_PCI_ROM_REGION_INDEX;
}
