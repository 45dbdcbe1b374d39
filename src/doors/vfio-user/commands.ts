/**
 * What each command of a client does to the served device: the payload is checked, turned into the call that a program would make, and
 * the answer composed behind the header of the output.
 */
import { Errno } from '../../lib/errno.ts';
import * as uapi from '../../uapi/vfio.ts';
import * as wire from '../../uapi/vfio-user.ts';
import { fixedPartOf, HEADER, type Message } from './codec.ts';
import type { ClientDma } from './dma.ts';
import { WireFeatures } from './features.ts';
import { IoFds } from './io-fds.ts';
import { isMaskRequest } from './irq-masks.ts';
import type { Capabilities } from './negotiation.ts';
import type { Region, ServedDevice } from './served-device.ts';

const REGION_SIZE = 2 ** 40;
const ACCESS = wire.vfio_user_region_access.size;
const REGION_INFO = uapi.vfio_region_info.size;
const IRQ_SET = uapi.vfio_irq_set.size;
/** More interrupts than any index can have. */
const MOST_IRQS = 2048;
const MULTI_ENTRY = wire.vfio_user_write_multi_entry.size;
const none: readonly number[] = [];

export interface Commands {
  /** Handles a command other than VERSION. The length of the reply's payload, which is in the output. Errno. */
  run(message: Message): number;
  negotiated(capabilities: Capabilities): void;
  /** Descriptors that go with the reply. */
  attach(descriptors: readonly number[]): void;
  takeAttached(): readonly number[];
  /** The client is gone. */
  forget(): void;
  /** The command's arguments, for people. */
  describe(message: Message): string;
}

export function makeCommands(device: ServedDevice, dma: ClientDma, output: Uint8Array): Commands {
  return new DeviceCommands(device, dma, output);
}

class DeviceCommands implements Commands {
  readonly #device: ServedDevice;
  readonly #dma: ClientDma;
  readonly #features: WireFeatures;
  readonly #ioFds: IoFds;
  readonly #output: Uint8Array;
  readonly #view: DataView;
  /** Places for the data of small reads. */
  readonly #small: readonly Uint8Array[];
  #attached: readonly number[] = none;
  #maxTransfer = 0;
  #mostDescriptors = 0;
  #writesMultiple = false;

  constructor(device: ServedDevice, dma: ClientDma, output: Uint8Array) {
    this.#device = device;
    this.#dma = dma;
    this.#features = new WireFeatures(device);
    this.#ioFds = new IoFds(device);
    this.#output = output;
    this.#view = new DataView(output.buffer, output.byteOffset, output.length);
    const data = HEADER + ACCESS;
    this.#small = Array.from({ length: 9 }, (_, size) => output.subarray(data, data + size));
  }

  negotiated(capabilities: Capabilities): void {
    this.#maxTransfer = capabilities.max_data_xfer_size;
    this.#features.maxTransfer = this.#maxTransfer;
    this.#mostDescriptors = capabilities.max_msg_fds;
    this.#writesMultiple = capabilities.write_multiple;
  }

  attach(descriptors: readonly number[]): void {
    this.#attached = descriptors;
  }

  takeAttached(): readonly number[] {
    const attached = this.#attached;
    if (attached.length > 0) this.#attached = none;
    return attached;
  }

  forget(): void {
    this.#features.forget();
    this.#ioFds.forget();
  }

  run(message: Message): number {
    const { command } = message;
    const least = fixedPartOf(command);
    if (least === undefined) throw new Errno('EINVAL', `there is no command ${command}`);
    if (message.length < least) throw new Errno('EINVAL', `a payload of ${message.length} bytes is below ${least}`);
    if (
      message.descriptors.length > 0 &&
      command !== wire.VFIO_USER_DMA_MAP &&
      command !== wire.VFIO_USER_DEVICE_SET_IRQS
    ) {
      throw new Errno('EINVAL', `${message.descriptors.length} descriptors, where none belong`);
    }
    switch (command) {
      case wire.VFIO_USER_REGION_READ:
        return this.#regionRead(message);
      case wire.VFIO_USER_REGION_WRITE:
        return this.#regionWrite(message);
      case wire.VFIO_USER_REGION_WRITE_MULTI:
        return this.#writeMulti(message);
      case wire.VFIO_USER_DMA_MAP: {
        const request = wire.vfio_user_dma_map.read(message.payload);
        atLeast(request.argsz, least);
        this.#dma.map(request, message.descriptors);
        return 0;
      }
      case wire.VFIO_USER_DMA_UNMAP: {
        const request = wire.vfio_user_dma_unmap.read(message.payload);
        atLeast(request.argsz, least);
        this.#dma.unmap(request);
        return this.#put(wire.vfio_user_dma_unmap.write(request));
      }
      case wire.VFIO_USER_DEVICE_GET_INFO:
        return this.#getInfo(message.payload);
      case wire.VFIO_USER_DEVICE_GET_REGION_INFO:
        return this.#regionInfo(message.payload);
      case wire.VFIO_USER_DEVICE_GET_REGION_IO_FDS:
        return this.#regionIoFds(message.payload);
      case wire.VFIO_USER_DEVICE_GET_IRQ_INFO:
        return this.#irqInfo(message.payload);
      case wire.VFIO_USER_DEVICE_SET_IRQS:
        return this.#setIrqs(message.payload, message.descriptors);
      case wire.VFIO_USER_DEVICE_RESET:
        this.#device.ioctl(uapi.VFIO_DEVICE_RESET, new Uint8Array(0));
        return 0;
      case wire.VFIO_USER_DEVICE_FEATURE:
        return this.#put(this.#features.feature(message.payload));
      case wire.VFIO_USER_MIG_DATA_READ:
        return this.#features.read(message.payload, this.#output.subarray(HEADER));
      case wire.VFIO_USER_MIG_DATA_WRITE:
        this.#features.write(message.payload);
        return 0;
      default:
        throw new Errno('EINVAL', `command ${command} goes from server to client`);
    }
  }

  describe({ command, payload }: Message): string {
    if (payload.length < (fixedPartOf(command) ?? 0)) return `${payload.length} bytes`;
    switch (command) {
      case wire.VFIO_USER_REGION_READ:
      case wire.VFIO_USER_REGION_WRITE: {
        const { offset, region, count } = wire.vfio_user_region_access.read(payload);
        return `${count} bytes at 0x${offset.toString(16)} of region ${region}`;
      }
      case wire.VFIO_USER_DMA_MAP: {
        const { flags, offset, addr, size } = wire.vfio_user_dma_map.read(payload);
        return `0x${size.toString(16)} bytes at 0x${addr.toString(16)}, flags ${flags}, offset 0x${offset.toString(16)}`;
      }
      case wire.VFIO_USER_DMA_UNMAP: {
        const { flags, addr, size } = wire.vfio_user_dma_unmap.read(payload);
        return `0x${size.toString(16)} bytes at 0x${addr.toString(16)}, flags ${flags}`;
      }
      case wire.VFIO_USER_DEVICE_GET_REGION_INFO:
        return `region ${uapi.vfio_region_info.read(payload).index}`;
      case wire.VFIO_USER_DEVICE_GET_IRQ_INFO:
        return `index ${uapi.vfio_irq_info.read(payload).index}`;
      case wire.VFIO_USER_DEVICE_SET_IRQS: {
        const { flags, index, start, count } = uapi.vfio_irq_set.read(payload);
        return `flags 0x${flags.toString(16)}, index ${index}, ${count} from ${start}`;
      }
      default:
        return payload.length === 0 ? '' : `${payload.length} bytes`;
    }
  }

  #put(payload: Uint8Array): number {
    this.#output.set(payload, HEADER);
    return payload.length;
  }

  /** The region of an access and its place in the device's file. EINVAL. */
  #place(low: number, high: number, index: number, count: number): number {
    const region = this.#device.regions[index];
    if (region === undefined || region.size === 0) throw new Errno('EINVAL', `there is no region ${index}`);
    const offset = low + high * 0x1_0000_0000;
    if (offset + count > region.size) {
      throw new Errno('EINVAL', `${count} bytes at ${offset} are beyond the ${region.size} bytes of region ${index}`);
    }
    return index * REGION_SIZE + offset;
  }

  #count(count: number): void {
    if (count === 0 || count > this.#maxTransfer) {
      throw new Errno('EINVAL', `an access of ${count} bytes: 1 to ${this.#maxTransfer} were agreed on`);
    }
  }

  #regionRead({ view, offset: at }: Message): number {
    const low = view.getUint32(at, true);
    const high = view.getUint32(at + 4, true);
    const index = view.getUint32(at + 8, true);
    const count = view.getUint32(at + 12, true);
    this.#count(count);
    const position = this.#place(low, high, index, count);
    const data = HEADER + ACCESS;
    const into = count <= 8 ? this.#small[count]! : this.#output.subarray(data, data + count);
    const { file, process } = this.#device;
    const done = file.read(process, into, position);
    const out = this.#view;
    out.setUint32(HEADER, low, true);
    out.setUint32(HEADER + 4, high, true);
    out.setUint32(HEADER + 8, index, true);
    out.setUint32(HEADER + 12, done, true);
    return ACCESS + done;
  }

  #regionWrite(message: Message): number {
    const { view, offset: at, length } = message;
    const low = view.getUint32(at, true);
    const high = view.getUint32(at + 4, true);
    const index = view.getUint32(at + 8, true);
    const count = view.getUint32(at + 12, true);
    this.#count(count);
    if (length !== ACCESS + count) {
      throw new Errno('EINVAL', `${length - ACCESS} bytes of data for a write of ${count}`);
    }
    const position = this.#place(low, high, index, count);
    const { file, process } = this.#device;
    const done = file.write(process, message.payload.subarray(ACCESS), position);
    const out = this.#view;
    out.setUint32(HEADER, low, true);
    out.setUint32(HEADER + 4, high, true);
    out.setUint32(HEADER + 8, index, true);
    out.setUint32(HEADER + 12, done, true);
    return ACCESS;
  }

  #writeMulti({ view, offset: at, payload }: Message): number {
    if (!this.#writesMultiple) throw new Errno('EINVAL', 'REGION_WRITE_MULTI was not agreed on');
    const count = view.getUint32(at, true) + view.getUint32(at + 4, true) * 0x1_0000_0000;
    if (payload.length !== 8 + count * MULTI_ENTRY) {
      throw new Errno('EINVAL', `${payload.length} bytes do not hold ${count} writes`);
    }
    const { file, process } = this.#device;
    let done = 0;
    try {
      for (; done < count; done++) {
        const entry = at + 8 + done * MULTI_ENTRY;
        const length = view.getUint32(entry + 12, true);
        if (length === 0 || length > wire.VFIO_USER_WRITE_MULTI_DATA) break;
        const low = view.getUint32(entry, true);
        const position = this.#place(low, view.getUint32(entry + 4, true), view.getUint32(entry + 8, true), length);
        const data = 8 + done * MULTI_ENTRY + 16;
        file.write(process, payload.subarray(data, data + length), position);
      }
    } catch (error) {
      // The first entry that fails ends it; those before it are done, and the answer says how many.
      if (!(error instanceof Errno)) throw error;
    }
    return this.#put(wire.vfio_user_write_multi.write({ wr_cnt: BigInt(done) }));
  }

  #getInfo(payload: Uint8Array): number {
    const { argsz } = wire.vfio_user_device_info.read(payload);
    const { size } = wire.vfio_user_device_info;
    atLeast(argsz, size);
    const { flags, regions, numIrqs } = this.#device;
    return this.#put(
      wire.vfio_user_device_info.write({ argsz: size, flags, num_regions: regions.length, num_irqs: numIrqs }),
    );
  }

  #region(index: number): Region {
    const region = this.#device.regions[index];
    if (region === undefined) throw new Errno('EINVAL', `there is no region ${index}`);
    return region;
  }

  /** A client that has no room for the capabilities learns how much they need, and asks again. */
  #regionInfo(payload: Uint8Array): number {
    const { argsz, index } = uapi.vfio_region_info.read(payload);
    atLeast(argsz, REGION_INFO);
    const { flags, size, capabilities, fd } = this.#region(index);
    const whole = REGION_INFO + capabilities.length;
    const isFull = argsz >= whole;
    const cap_offset = capabilities.length > 0 ? REGION_INFO : 0;
    this.#put(uapi.vfio_region_info.write({ argsz: whole, flags, index, cap_offset, size: BigInt(size), offset: 0n }));
    if (!isFull) return REGION_INFO;
    this.#output.set(capabilities, HEADER + REGION_INFO);
    if (fd >= 0) this.attach([fd]);
    return whole;
  }

  #regionIoFds(payload: Uint8Array): number {
    const { size } = wire.vfio_user_region_io_fds;
    const { argsz, flags, index, count } = wire.vfio_user_region_io_fds.read(payload);
    atLeast(argsz, size);
    if (flags !== 0 || count !== 0) throw new Errno('EINVAL', `flags ${flags} and count ${count} are 0 in a request`);
    if (argsz > this.#maxTransfer) throw new Errno('EINVAL', `argsz ${argsz} is beyond ${this.#maxTransfer}`);
    if (this.#region(index).size === 0) throw new Errno('EINVAL', `there is no region ${index}`);
    const { payload: answer, descriptors } = this.#ioFds.answer(index, argsz, this.#mostDescriptors);
    if (descriptors.length > 0) this.attach(descriptors);
    return this.#put(answer);
  }

  #irqInfo(payload: Uint8Array): number {
    const table = uapi.vfio_irq_info;
    const { argsz, index } = table.read(payload);
    atLeast(argsz, table.size);
    if (index >= this.#device.numIrqs) throw new Errno('EINVAL', `there is no interrupt index ${index}`);
    if (index === uapi.VFIO_PCI_ERR_IRQ_INDEX && !this.#device.hasErrors) {
      // Every vfio-user device has the index: it never fires here.
      const flags = uapi.VFIO_IRQ_INFO_EVENTFD | uapi.VFIO_IRQ_INFO_NORESIZE;
      return this.#put(table.write({ argsz: table.size, flags, index, count: 1 }));
    }
    return this.#put(this.#device.ioctl(uapi.VFIO_DEVICE_GET_IRQ_INFO, payload.subarray(0, table.size)));
  }

  #setIrqs(payload: Uint8Array, descriptors: readonly number[]): number {
    const request = uapi.vfio_irq_set.read(payload);
    const { argsz, flags, index, start, count } = request;
    atLeast(argsz, IRQ_SET);
    const kind = flags & uapi.VFIO_IRQ_SET_DATA_TYPE_MASK;
    const action = flags & uapi.VFIO_IRQ_SET_ACTION_TYPE_MASK;
    if ((kind & (kind - 1)) !== 0 || kind === 0 || (action & (action - 1)) !== 0 || action === 0) {
      throw new Errno('EINVAL', `flags 0x${flags.toString(16)} are not one kind of data and one action`);
    }
    if (descriptors.length > 0 && (kind !== uapi.VFIO_IRQ_SET_DATA_EVENTFD || descriptors.length !== count)) {
      throw new Errno('EINVAL', `${descriptors.length} descriptors for ${count} interrupts`);
    }
    if (count > MOST_IRQS) throw new Errno('EINVAL', `${count} interrupts`);
    if (index === uapi.VFIO_PCI_ERR_IRQ_INDEX && !this.#device.hasErrors) {
      if (start + count > 1) throw new Errno('EINVAL', `there is one error interrupt, not ${count} from ${start}`);
      return 0;
    }
    let data: Uint8Array = new Uint8Array(0);
    if (kind === uapi.VFIO_IRQ_SET_DATA_BOOL) {
      if (payload.length < IRQ_SET + count) throw new Errno('EINVAL', `${count} interrupts, but not as many flags`);
      data = payload.subarray(IRQ_SET, IRQ_SET + count);
      if (isMaskRequest(flags, index)) return this.#mask(request, data, none);
    } else if (kind === uapi.VFIO_IRQ_SET_DATA_EVENTFD) {
      if (isMaskRequest(flags, index)) return this.#mask(request, data, descriptors);
      const numbers = new Int32Array(count).fill(-1);
      for (let i = 0; i < descriptors.length; i++) numbers[i] = this.#device.descriptorOf(i);
      data = new Uint8Array(numbers.buffer);
    } else if (isMaskRequest(flags, index)) return this.#mask(request, data, none);
    const argument = new Uint8Array(IRQ_SET + data.length);
    argument.set(uapi.vfio_irq_set.write({ ...request, argsz: argument.length }));
    argument.set(data, IRQ_SET);
    const isTrigger = action === uapi.VFIO_IRQ_SET_ACTION_TRIGGER;
    try {
      this.#device.ioctlWith(descriptors, uapi.VFIO_DEVICE_SET_IRQS, argument, isTrigger ? request : undefined);
    } catch (error) {
      // An action that an index has not is a bad request on the wire.
      throw error instanceof Errno && error.code === 'ENOTTY' ? new Errno('EINVAL', error.why) : error;
    }
    const isPin = index === uapi.VFIO_PCI_INTX_IRQ_INDEX && kind !== uapi.VFIO_IRQ_SET_DATA_EVENTFD && !isTrigger;
    if (isPin && (kind === uapi.VFIO_IRQ_SET_DATA_NONE || data[0] !== 0)) {
      this.#device.masks.pinChanged(action === uapi.VFIO_IRQ_SET_ACTION_MASK);
    }
    return 0;
  }

  #mask({ flags, index, start, count }: uapi.vfio_irq_set, bools: Uint8Array, descriptors: readonly number[]): number {
    this.#device.mask({ flags, index, start, count, bools }, descriptors);
    return 0;
  }
}

function atLeast(argsz: number, size: number): void {
  if (argsz < size) throw new Errno('EINVAL', `argsz ${argsz} is below ${size}`);
}
