/**
 * REGION_IO_FDS: eventfds that stand for writes to doorbells. The device's author says which registers are doorbells; a client that asks gets
 * an eventfd for each (doorbells may share one), and a kick of it is the write of the doorbell's value, of all that share it.
 */
import { Errno } from '../../lib/errno.ts';
import { createEventfd } from '../../sys/index.ts';
import {
  VFIO_USER_IO_FD_TYPE_IOEVENTFD,
  vfio_user_region_io_fds,
  vfio_user_sub_region_ioeventfd,
} from '../../uapi/vfio-user.ts';
import type { Doorbell, ServedDevice } from './served-device.ts';

const REGION_SIZE = 2 ** 40;
/** KVM_IOEVENTFD_FLAG_DATAMATCH */
const DATAMATCH = 1;
const ENTRY = vfio_user_sub_region_ioeventfd.size;

export interface IoFdsAnswer {
  readonly payload: Uint8Array;
  readonly descriptors: readonly number[];
}

export class IoFds {
  readonly #device: ServedDevice;
  /** Eventfds that were handed out, by region and the name that doorbells share. */
  readonly #eventfds = new Map<string, { readonly fd: number; readonly rings: Doorbell[]; close(): void }>();

  constructor(device: ServedDevice) {
    this.#device = device;
  }

  /** The answer for a region; a request of `argsz` bytes without room for all entries gets none, and how many bytes are needed. */
  answer(index: number, argsz: number, mostDescriptors: number): IoFdsAnswer {
    const doorbells = this.#within(this.#device.regions[index]!.doorbells, mostDescriptors);
    const { size } = vfio_user_region_io_fds;
    const whole = size + doorbells.length * ENTRY;
    const header = vfio_user_region_io_fds.write({ argsz: whole, flags: 0, index, count: doorbells.length });
    if (argsz < whole || doorbells.length === 0) return { payload: header, descriptors: [] };
    this.#connect(index, doorbells);
    const payload = new Uint8Array(whole);
    payload.set(header);
    const descriptors: number[] = [];
    doorbells.forEach((doorbell, i) => {
      const { fd } = this.#eventfds.get(nameOf(index, doorbell))!;
      if (!descriptors.includes(fd)) descriptors.push(fd);
      const entry = vfio_user_sub_region_ioeventfd.write({
        gpa_offset: BigInt(doorbell.at),
        size: BigInt(doorbell.size),
        fd_index: descriptors.indexOf(fd),
        type: VFIO_USER_IO_FD_TYPE_IOEVENTFD,
        flags: doorbell.value === undefined ? 0 : DATAMATCH,
        shadow_mem_fd_index: 0,
        datamatch: BigInt(doorbell.value ?? 0),
      });
      payload.set(entry, size + i * ENTRY);
    });
    return { payload, descriptors };
  }

  /** The client is gone: its eventfds do nothing any more. */
  forget(): void {
    for (const eventfd of this.#eventfds.values()) eventfd.close();
    this.#eventfds.clear();
  }

  /** As many doorbells as descriptors can be sent for. */
  #within(doorbells: readonly Doorbell[], most: number): readonly Doorbell[] {
    const names = new Set<string>();
    const end = doorbells.findIndex((doorbell) => names.add(nameOf(0, doorbell)).size > most);
    return end < 0 ? doorbells : doorbells.slice(0, end);
  }

  #connect(index: number, doorbells: readonly Doorbell[]): void {
    for (const doorbell of doorbells) {
      const name = nameOf(index, doorbell);
      const known = this.#eventfds.get(name);
      if (known === undefined) {
        const rings = [doorbell];
        const fd = createEventfd();
        const close = this.#device.watchEventfd(fd, () => this.#ring(index, rings));
        this.#eventfds.set(name, { fd, rings, close });
      } else if (!known.rings.includes(doorbell)) known.rings.push(doorbell);
    }
  }

  #ring(index: number, doorbells: readonly Doorbell[]): void {
    const { file, process } = this.#device;
    for (const { at, size, value } of doorbells) {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setUint32(0, value ?? 0, true);
      try {
        file.write(process, bytes.subarray(0, size), index * REGION_SIZE + at);
      } catch (error) {
        // A write that the device does not take, as while its memory is off, is lost.
        if (!(error instanceof Errno)) throw error;
      }
    }
  }
}

function nameOf(index: number, { at, shares }: Doorbell): string {
  return shares === undefined ? `${index} at ${at}` : `${index} shares ${shares}`;
}
