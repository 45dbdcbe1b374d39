/**
 * DEVICE_FEATURE, MIG_DATA_READ and MIG_DATA_WRITE: on the wire a state has no file, lists and bitmaps lie behind their structures instead
 * of at an address, and the states for peer-to-peer DMA are not used.
 */
import type { File } from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import * as uapi from '../../uapi/vfio.ts';
import { vfio_user_device_feature, vfio_user_mig_data, vfio_user_mig_state } from '../../uapi/vfio-user.ts';
import type { ServedDevice } from './served-device.ts';
import { ARGUMENTS } from './server-memory.ts';

const HEADER = vfio_user_device_feature.size;
const RANGE = uapi.vfio_device_feature_dma_logging_range.size;
const REPORT = uapi.vfio_device_feature_dma_logging_report.endOf('page_size');
const CONTROL = uapi.vfio_device_feature_dma_logging_control.endOf('__reserved');
/** Where lists and bitmaps lie in the area of arguments. */
const LIST = 4096;
/** The smallest page that the kernel reports. */
const SMALLEST = 4096n;
/** All of the address space but its last page, which no range can end with. */
const EVERYTHING = { iova: 0n, length: (1n << 64n) - (1n << 30n) };
/** Features that are turned into another form here. */
const OWN: readonly number[] = [
  uapi.VFIO_DEVICE_FEATURE_MIGRATION,
  uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
  uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
  uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
];
const P2P_STATES: readonly number[] = [uapi.VFIO_DEVICE_STATE_RUNNING_P2P, uapi.VFIO_DEVICE_STATE_PRE_COPY_P2P];

export class WireFeatures {
  maxTransfer = 0;
  readonly #device: ServedDevice;
  /** The stream that is open. */
  #stream: File | undefined;

  constructor(device: ServedDevice) {
    this.#device = device;
  }

  /** DEVICE_FEATURE; the payload of the reply. EOPNOTSUPP: there is no such feature. */
  feature(payload: Uint8Array): Uint8Array {
    const { argsz, flags } = vfio_user_device_feature.read(payload);
    if (argsz < HEADER) throw new Errno('EINVAL', `argsz ${argsz} is below ${HEADER}`);
    if (argsz > this.maxTransfer) throw new Errno('EINVAL', `argsz ${argsz} is beyond ${this.maxTransfer}`);
    try {
      if ((flags & uapi.VFIO_DEVICE_FEATURE_PROBE) === 0) {
        if (OWN.includes(flags & uapi.VFIO_DEVICE_FEATURE_MASK)) this.#probe(flags & uapi.VFIO_DEVICE_FEATURE_MASK);
        switch (flags & uapi.VFIO_DEVICE_FEATURE_MASK) {
          case uapi.VFIO_DEVICE_FEATURE_MIGRATION:
            return this.#flags(payload, argsz);
          case uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
            return this.#state(payload, argsz);
          case uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
            return this.#startLogging(payload, flags);
          case uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
            return this.#report(payload, flags);
        }
      }
      return this.#call(payload, argsz).slice();
    } catch (error) {
      // On the wire a feature that is not there is ENOTSUP.
      if (error instanceof Errno && error.code === 'ENOTTY') throw new Errno('EOPNOTSUPP', error.why);
      throw error;
    }
  }

  /** MIG_DATA_READ; the payload of the reply. EINVAL: no state is being saved. */
  read(payload: Uint8Array, output: Uint8Array): number {
    const { argsz, size } = vfio_user_mig_data.read(payload);
    const head = vfio_user_mig_data.size;
    if (argsz < head || size === 0 || size > this.maxTransfer) {
      throw new Errno('EINVAL', `argsz ${argsz}, ${size} bytes of at most ${this.maxTransfer}`);
    }
    let done = 0;
    const stream = this.#open();
    try {
      done = stream.read(this.#device.process, output.subarray(head, head + size), 0);
    } catch (error) {
      // The end of the data for now.
      if (!(error instanceof Errno) || error.code !== 'ENOMSG') throw over(error);
    }
    output.set(vfio_user_mig_data.write({ argsz: head + done, size: done }));
    return head + done;
  }

  /** MIG_DATA_WRITE. EINVAL: no state is being restored. */
  write(payload: Uint8Array): void {
    const { argsz, size } = vfio_user_mig_data.read(payload);
    const head = vfio_user_mig_data.size;
    if (argsz < head || payload.length !== head + size || size === 0) {
      throw new Errno('EINVAL', `${payload.length - head} bytes where ${size} are told`);
    }
    const stream = this.#open();
    try {
      stream.write(this.#device.process, payload.subarray(head), 0);
    } catch (error) {
      throw over(error);
    }
  }

  /** The client is gone: its stream ends, logging, too; the device goes on, if it can. */
  forget(): void {
    this.#closeStream();
    for (const [index, data] of [
      [uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, new Uint8Array(0)],
      [
        uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
        vfio_user_mig_state.write({ device_state: uapi.VFIO_DEVICE_STATE_RUNNING, data_fd: -1 }),
      ],
    ] as const) {
      const flags = uapi.VFIO_DEVICE_FEATURE_SET | index;
      const request = new Uint8Array(HEADER + data.length);
      request.set(vfio_user_device_feature.write({ argsz: request.length, flags }));
      request.set(data, HEADER);
      try {
        this.#device.open(uapi.VFIO_DEVICE_FEATURE, request)?.release();
      } catch (error) {
        if (!(error instanceof Errno)) throw error;
      }
    }
  }

  /** ENOTTY: there is no such feature, whatever else is wrong with the request. */
  #probe(index: number): void {
    const both = uapi.VFIO_DEVICE_FEATURE_GET | uapi.VFIO_DEVICE_FEATURE_SET;
    try {
      this.#structure(uapi.VFIO_DEVICE_FEATURE_PROBE | both | index, new Uint8Array(0));
    } catch (error) {
      if (error instanceof Errno && error.code === 'ENOTTY') throw error;
    }
  }

  #open(): File {
    if (this.#stream === undefined) throw new Errno('EINVAL', `no state of ${this.#device.name} is saved or restored`);
    return this.#stream;
  }

  #closeStream(): void {
    this.#stream?.release();
    this.#stream = undefined;
  }

  /** The request as it is, with room for the answer. */
  #call(payload: Uint8Array, argsz: number): Uint8Array {
    const argument = new Uint8Array(Math.max(argsz, payload.length));
    argument.set(payload);
    return this.#device.ioctl(uapi.VFIO_DEVICE_FEATURE, argument);
  }

  #flags(payload: Uint8Array, argsz: number): Uint8Array {
    const answer = this.#call(payload, argsz).slice();
    const flags = answer[HEADER];
    if (flags !== undefined) answer[HEADER] = flags & ~uapi.VFIO_MIGRATION_P2P;
    return answer;
  }

  #state(payload: Uint8Array, argsz: number): Uint8Array {
    const table = vfio_user_mig_state;
    const { flags } = vfio_user_device_feature.read(payload);
    const isSet = (flags & uapi.VFIO_DEVICE_FEATURE_SET) !== 0;
    if (!isSet) return this.#call(payload, argsz).slice();
    if (payload.length < HEADER + table.size) throw new Errno('EINVAL', `${payload.length} bytes hold no state`);
    const { device_state } = table.read(payload.subarray(HEADER));
    if (P2P_STATES.includes(device_state)) throw new Errno('EINVAL', 'states for peer-to-peer DMA are not used');
    const argument = new Uint8Array(Math.max(argsz, payload.length));
    argument.set(payload);
    const opened = this.#device.open(uapi.VFIO_DEVICE_FEATURE, argument);
    if (opened !== undefined) {
      this.#closeStream();
      this.#stream = opened;
    }
    return payload.slice();
  }

  /** No ranges: everything, which the kernel's call has no word for. */
  #startLogging(payload: Uint8Array, flags: number): Uint8Array {
    if (payload.length < HEADER + CONTROL) throw new Errno('EINVAL', `${payload.length} bytes hold no ranges`);
    const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
    const page_size = view.getBigUint64(HEADER, true);
    const asked = view.getUint32(HEADER + 8, true);
    if (payload.length < HEADER + CONTROL + asked * RANGE) {
      throw new Errno('EINVAL', `${payload.length} bytes do not hold ${asked} ranges`);
    }
    const list =
      asked === 0
        ? uapi.vfio_device_feature_dma_logging_range.write(EVERYTHING)
        : payload.subarray(HEADER + CONTROL, HEADER + CONTROL + asked * RANGE);
    this.#device.memory.arguments.set(list, LIST);
    const table = uapi.vfio_device_feature_dma_logging_control;
    const control = { page_size, num_ranges: Math.max(asked, 1), __reserved: 0, ranges: BigInt(ARGUMENTS + LIST) };
    const result = this.#structure(flags, table.write(control));
    const answer = payload.slice();
    answer.set(result.subarray(HEADER, HEADER + 8), HEADER);
    return answer;
  }

  #report(payload: Uint8Array, flags: number): Uint8Array {
    if (payload.length < HEADER + REPORT) throw new Errno('EINVAL', `${payload.length} bytes hold no range`);
    const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
    const iova = view.getBigUint64(HEADER, true);
    const length = view.getBigUint64(HEADER + 8, true);
    const page_size = view.getBigUint64(HEADER + 16, true);
    if (page_size === 0n) throw new Errno('EINVAL', 'pages of 0 bytes');
    if (page_size < SMALLEST) return this.#fineReport(payload, flags, iova, length, page_size);
    const bytes = ((length + page_size - 1n) / page_size / 64n + 1n) * 8n;
    const exact = Number((((length + page_size - 1n) / page_size + 63n) / 64n) * 8n);
    if (bytes > BigInt(this.maxTransfer))
      throw new Errno('EINVAL', `${bytes} bytes of bits are too many for a message`);
    this.#device.memory.arguments.fill(0, LIST, LIST + exact);
    const table = uapi.vfio_device_feature_dma_logging_report;
    this.#structure(flags, table.write({ iova, length, page_size, bitmap: BigInt(ARGUMENTS + LIST) }));
    const answer = new Uint8Array(HEADER + REPORT + exact);
    answer.set(payload.subarray(0, HEADER + REPORT));
    answer.set(vfio_user_device_feature.write({ argsz: answer.length, flags }));
    answer.set(this.#device.memory.arguments.subarray(LIST, LIST + exact), HEADER + REPORT);
    return answer;
  }

  /** Pages below those that the kernel takes: each bit of a larger page is repeated. */
  #fineReport(payload: Uint8Array, flags: number, iova: bigint, length: bigint, page_size: bigint): Uint8Array {
    if ((page_size & (page_size - 1n)) !== 0n) throw new Errno('EINVAL', `pages of ${page_size} bytes`);
    const first = iova & ~(SMALLEST - 1n);
    const asked = payload.slice();
    const view = new DataView(asked.buffer);
    view.setBigUint64(HEADER, first, true);
    view.setBigUint64(HEADER + 8, iova + length - first, true);
    view.setBigUint64(HEADER + 16, SMALLEST, true);
    const bits = (length + page_size - 1n) / page_size;
    const bytes = ((bits + 63n) / 64n) * 8n;
    if (bytes > BigInt(this.maxTransfer))
      throw new Errno('EINVAL', `${bytes} bytes of bits are too many for a message`);
    const coarse = this.#report(asked, flags).subarray(HEADER + REPORT);
    const answer = new Uint8Array(HEADER + REPORT + Number(bytes));
    answer.set(payload.subarray(0, HEADER + REPORT));
    answer.set(vfio_user_device_feature.write({ argsz: answer.length, flags }));
    for (let bit = 0; bit < Number(bits); bit++) {
      const page = Number((iova + BigInt(bit) * page_size - first) / SMALLEST);
      if (((coarse[page >> 3]! >> (page & 7)) & 1) === 0) continue;
      const at = HEADER + REPORT + (bit >> 3);
      answer[at] = answer[at]! | (1 << (bit & 7));
    }
    return answer;
  }

  #structure(flags: number, data: Uint8Array): Uint8Array {
    const argument = new Uint8Array(HEADER + data.length);
    argument.set(vfio_user_device_feature.write({ argsz: argument.length, flags }));
    argument.set(data, HEADER);
    return this.#device.ioctl(uapi.VFIO_DEVICE_FEATURE, argument);
  }
}

/** A session that is over is no state in which data can be moved. */
function over(error: unknown): unknown {
  return error instanceof Errno && error.code === 'ENODEV' ? new Errno('EINVAL', error.why) : error;
}
