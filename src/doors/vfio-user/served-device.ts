/**
 * The device that a server gives away, as the user program that it is: a process of the machine with the device's node and an iommufd
 * open. It lives as long as the server, so registers survive the loss of a client; what belongs to a client is taken back by
 * `forgetClient`.
 */
import {
  type DescriptorSource,
  DescriptorTable,
  type EventContext,
  type File,
  type Machine,
  type Process,
} from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import { closeDescriptor, duplicate, linkOf, type NativeShared } from '../../sys/index.ts';
import {
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_IOVA_RANGES,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  iommu_ioas_alloc,
  iommu_ioas_iova_ranges,
  iommu_ioas_map,
  iommu_ioas_unmap,
  iommu_iova_range,
} from '../../uapi/iommufd.ts';
import * as uapi from '../../uapi/vfio.ts';
import { Eventfd } from '../run/descriptors.ts';
import type { EventLoop } from '../run/event-loop.ts';
import { DmaMaps } from './dma-maps.ts';
import { IrqMasks, type MaskRequest } from './irq-masks.ts';
import { ARGUMENTS, ServerMemory } from './server-memory.ts';

const REGION_SIZE = 2 ** 40;
const PCI_COMMAND = 4;
const COMMAND_ALL = 7;
const O_RDWR = 2;
const MAP_SHARED = 1;
const PROT_READ_WRITE = 3;
/** Descriptor numbers from here on are those of the message that is handled. */
const FIRST_OF_MESSAGE = 1 << 16;
/** The length that stands for the whole address space. */
const EVERYTHING = (1n << 64n) - 1n;
const argumentAddress = BigInt(ARGUMENTS);

export interface Region {
  readonly index: number;
  readonly flags: number;
  readonly size: number;
  /** Capabilities behind the structure, as the kernel's call gives them. */
  readonly capabilities: Uint8Array;
  /** Descriptor of memory that the client may map; -1: none. */
  readonly fd: number;
  /** Registers that can be rung by eventfd. */
  readonly doorbells: readonly Doorbell[];
}

/** A register that can be rung by eventfd, as the device's author says. */
export interface Doorbell {
  readonly at: number;
  readonly size: number;
  readonly value?: number;
  /** Those with the same name share one eventfd. */
  readonly shares?: string;
}

/** A device cannot be given away. The message is for a person. */
export class ServeError extends Error {}

export class ServedDevice {
  readonly name: string;
  readonly maps = new DmaMaps();
  readonly masks = new IrqMasks();
  readonly memory: ServerMemory;
  readonly process: Process;
  readonly file: File;
  readonly flags: number;
  readonly numIrqs: number;
  /** Whether the function can report errors; conventional PCI cannot. */
  readonly hasErrors: boolean;
  readonly regions: readonly Region[];
  readonly #table = new DescriptorTable();
  readonly #loop: EventLoop;
  readonly #machine: Machine;
  readonly #iommufd: File;
  readonly #ioas: number;
  /** Pages that can be mapped. */
  #translated: readonly { readonly first: number; readonly last: number }[] = [];
  #messageDescriptors: readonly number[] = [];
  /** The vectors that descriptors of the message are for; index -1: none. */
  #messageVectors = { index: -1, start: 0 };

  /** Opens the function at `address` (0000:00:04.0) of the machine. ServeError. */
  constructor(machine: Machine, loop: EventLoop, address: string) {
    this.name = address;
    this.#loop = loop;
    this.#machine = machine;
    this.memory = new ServerMemory(this.maps);
    const descriptors: DescriptorSource = {
      file: (descriptor) => this.#table.file(descriptor),
      eventfd: (descriptor) => {
        const event = this.#eventfd(loop, descriptor);
        const { index, start } = this.#messageVectors;
        return index < 0 ? event : this.masks.wrap(index, start + descriptor - FIRST_OF_MESSAGE, event);
      },
      memoryFile: (descriptor) => this.#table.memoryFile(descriptor),
    };
    this.process = machine.createProcess({ pid: process.pid, name: 'vfio-user' }, this.memory, descriptors, {
      uid: 0,
      capable: () => true,
      memlockLimit: () => Number.POSITIVE_INFINITY,
    });
    this.file = openNode(machine, this.process, address);
    this.#table.install(this.file);
    const iommufd = machine.open(this.process, '/dev/iommu', O_RDWR);
    if (iommufd === undefined) throw new ServeError('the machine has no /dev/iommu');
    this.#iommufd = iommufd;
    try {
      this.#ioas = this.#attach(this.#table.install(iommufd));
      this.#translated = this.#ranges();
      const info = this.#info();
      this.flags = info.flags & (uapi.VFIO_DEVICE_FLAGS_RESET | uapi.VFIO_DEVICE_FLAGS_PCI);
      this.numIrqs = info.num_irqs;
      this.regions = Array.from({ length: info.num_regions }, (_, index) => this.#region(index));
      this.hasErrors = this.#hasIrq(uapi.VFIO_PCI_ERR_IRQ_INDEX);
      this.#powerUp();
    } catch (error) {
      if (error instanceof Errno) throw new ServeError(`${address} cannot be used: ${error.why}`);
      throw error;
    }
  }

  /** An ioctl of the device with `argument` in the argument area; its result is there afterwards. Errno. */
  ioctl(request: number, argument: Uint8Array): Uint8Array {
    return this.#ioctl(this.file, request, argument);
  }

  /** An ioctl that may open a file, which is the caller's. Errno. */
  open(request: number, argument: Uint8Array): File | undefined {
    this.memory.arguments.set(argument);
    const result = this.file.ioctl(this.process, request, argumentAddress);
    return typeof result === 'number' ? undefined : result.file;
  }

  /** The bytes that the last ioctl left, which may be more than were given. */
  result(length: number): Uint8Array {
    return this.memory.arguments.subarray(0, length);
  }

  /** As `ioctl`, with descriptors of the message: number `descriptorOf(i)` is the i-th. */
  ioctlWith(
    descriptors: readonly number[],
    request: number,
    argument: Uint8Array,
    vectors: { readonly index: number; readonly start: number } = { index: -1, start: 0 },
  ): Uint8Array {
    this.#messageDescriptors = descriptors;
    this.#messageVectors = vectors;
    try {
      return this.ioctl(request, argument);
    } finally {
      this.#messageDescriptors = [];
      this.#messageVectors = { index: -1, start: 0 };
    }
  }

  /** A request about masks that VFIO has no word for. Errno. */
  mask(request: Omit<MaskRequest, 'events'>, descriptors: readonly number[]): void {
    const table = uapi.vfio_irq_info;
    const info = table.write({ argsz: table.size, flags: 0, index: request.index, count: 0 });
    const { count } = table.read(this.ioctl(uapi.VFIO_DEVICE_GET_IRQ_INFO, info));
    this.#messageDescriptors = descriptors;
    const events: EventContext[] = [];
    try {
      for (let i = 0; i < descriptors.length; i++) events.push(this.#eventfd(this.#loop, this.descriptorOf(i)));
    } catch (error) {
      for (const event of events) event.close();
      throw error;
    } finally {
      this.#messageDescriptors = [];
    }
    this.masks.set({ ...request, events }, count);
  }

  descriptorOf(i: number): number {
    return FIRST_OF_MESSAGE + i;
  }

  /** Whether the IOMMU translates all of these pages: reserved ranges are left out. */
  isTranslated(firstPage: number, count: number): boolean {
    return this.#translated.some(({ first, last }) => firstPage >= first && firstPage + count - 1 <= last);
  }

  map(iova: number, length: number, address: number, readable: boolean, writable: boolean): void {
    const flags =
      IOMMU_IOAS_MAP_FIXED_IOVA | (readable ? IOMMU_IOAS_MAP_READABLE : 0) | (writable ? IOMMU_IOAS_MAP_WRITEABLE : 0);
    const argument = iommu_ioas_map.write({
      size: iommu_ioas_map.size,
      flags,
      ioas_id: this.#ioas,
      __reserved: 0,
      user_va: BigInt(address),
      length: BigInt(length),
      iova: BigInt(iova),
    });
    this.#ioctl(this.#iommufd, IOMMU_IOAS_MAP, argument);
  }

  unmap(iova: number, length: number): void {
    const argument = iommu_ioas_unmap.write({
      size: iommu_ioas_unmap.size,
      ioas_id: this.#ioas,
      iova: BigInt(iova),
      length: BigInt(length),
    });
    this.#ioctl(this.#iommufd, IOMMU_IOAS_UNMAP, argument);
  }

  /** Everything that is mapped, the window included, by one call. */
  unmapAll(): void {
    const { size } = iommu_ioas_unmap;
    const argument = iommu_ioas_unmap.write({ size, ioas_id: this.#ioas, iova: 0n, length: EVERYTHING });
    try {
      this.#ioctl(this.#iommufd, IOMMU_IOAS_UNMAP, argument);
    } catch (error) {
      // There was nothing.
      if (!(error instanceof Errno) || error.code !== 'ENOENT') throw error;
    }
    const maps = this.maps.all();
    this.maps.clear();
    this.memory.cleared();
    for (const { backing } of maps) backing.close();
  }

  /** Takes an eventfd over and hears of its kicks; the result closes it. */
  watchEventfd(fd: number, onSignal: () => void): () => void {
    const event = new Eventfd(this.#loop, fd);
    event.watch(onSignal);
    return () => event.close();
  }

  /** The client is gone: its maps and interrupts end. Registers stay. */
  forgetClient(): void {
    this.unmapAll();
    this.masks.clear();
    for (let index = 0; index < this.numIrqs; index++) {
      try {
        this.ioctl(
          uapi.VFIO_DEVICE_SET_IRQS,
          uapi.vfio_irq_set.write({
            argsz: uapi.vfio_irq_set.size,
            flags: uapi.VFIO_IRQ_SET_DATA_NONE | uapi.VFIO_IRQ_SET_ACTION_TRIGGER,
            index,
            start: 0,
            count: 0,
          }),
        );
      } catch (error) {
        // An index that is not enabled, or that the device has not.
        if (!(error instanceof Errno)) throw error;
      }
    }
  }

  close(): void {
    this.#table.closeAll();
    this.process.exit();
  }

  #ioctl(file: File, request: number, argument: Uint8Array): Uint8Array {
    this.memory.arguments.set(argument);
    const result = file.ioctl(this.process, request, argumentAddress);
    if (typeof result !== 'number') result.file.release();
    return this.memory.arguments.subarray(0, argument.length);
  }

  #attach(iommufd: number): number {
    const bind = uapi.vfio_device_bind_iommufd;
    const argsz = bind.endOf('out_devid');
    this.ioctl(
      uapi.VFIO_DEVICE_BIND_IOMMUFD,
      bind.write({ argsz, flags: 0, iommufd, out_devid: 0, token_uuid_ptr: 0n }, argsz),
    );
    const alloc = iommu_ioas_alloc;
    const made = this.#ioctl(
      this.#iommufd,
      IOMMU_IOAS_ALLOC,
      alloc.write({ size: alloc.size, flags: 0, out_ioas_id: 0 }),
    );
    const { out_ioas_id } = alloc.read(made);
    const attach = uapi.vfio_device_attach_iommufd_pt;
    const attachLength = attach.endOf('pt_id');
    this.ioctl(
      uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
      attach.write({ argsz: attachLength, flags: 0, pt_id: out_ioas_id, pasid: 0 }, attachLength),
    );
    return out_ioas_id;
  }

  #ranges(): { first: number; last: number }[] {
    const table = iommu_ioas_iova_ranges;
    const most = 64;
    const at = 1024;
    const result = this.#ioctl(
      this.#iommufd,
      IOMMU_IOAS_IOVA_RANGES,
      table.write({
        size: table.size,
        ioas_id: this.#ioas,
        num_iovas: most,
        __reserved: 0,
        allowed_iovas: BigInt(ARGUMENTS + at),
        out_iova_alignment: 0n,
      }),
    );
    return Array.from({ length: Math.min(table.read(result).num_iovas, most) }, (_, i) => {
      const range = iommu_iova_range.read(this.memory.arguments.subarray(at + i * iommu_iova_range.size));
      return { first: Number((range.start + 4095n) >> 12n), last: Number((range.last + 1n) >> 12n) - 1 };
    });
  }

  #info(): { flags: number; num_regions: number; num_irqs: number } {
    const argsz = uapi.vfio_device_info.endOf('num_irqs');
    const request = { argsz, flags: 0, num_regions: 0, num_irqs: 0, cap_offset: 0, pad: 0 };
    return uapi.vfio_device_info.read(
      this.ioctl(uapi.VFIO_DEVICE_GET_INFO, uapi.vfio_device_info.write(request, argsz)),
    );
  }

  #region(index: number): Region {
    const table = uapi.vfio_region_info;
    const none: Region = { index, flags: 0, size: 0, capabilities: new Uint8Array(0), fd: -1, doorbells: [] };
    const argsz = 4096;
    const argument = new Uint8Array(argsz);
    argument.set(table.write({ argsz, flags: 0, index, cap_offset: 0, size: 0n, offset: 0n }));
    let info: uapi.vfio_region_info;
    let capabilities: Uint8Array;
    try {
      const result = this.ioctl(uapi.VFIO_DEVICE_GET_REGION_INFO, argument);
      info = table.read(result);
      capabilities = capabilitiesOf(result, info.flags, info.cap_offset);
    } catch (error) {
      // The VGA region: there is none.
      if (error instanceof Errno) return none;
      throw error;
    }
    const size = Number(info.size);
    let { flags } = info;
    const fd = flags & uapi.VFIO_REGION_INFO_FLAG_MMAP ? this.#mappableFd(index, size) : -1;
    if (fd < 0) {
      // Capabilities tell about mapping only.
      flags &= ~(uapi.VFIO_REGION_INFO_FLAG_MMAP | uapi.VFIO_REGION_INFO_FLAG_CAPS);
      capabilities = new Uint8Array(0);
    }
    return { index, flags, size, capabilities, fd, doorbells: this.#doorbells(index) };
  }

  /** Of the device's data sheet: VFIO has no question for it. */
  #doorbells(index: number): readonly Doorbell[] {
    const fn = this.#machine.functions().find(({ name }) => name === this.name);
    return fn?.spec.bars?.find((bar) => bar.index === index)?.doorbells ?? [];
  }

  #hasIrq(index: number): boolean {
    const table = uapi.vfio_irq_info;
    try {
      this.ioctl(uapi.VFIO_DEVICE_GET_IRQ_INFO, table.write({ argsz: table.size, flags: 0, index, count: 0 }));
      return true;
    } catch (error) {
      if (error instanceof Errno) return false;
      throw error;
    }
  }

  /** Memory that can be given to another process; registers that only look mappable to programs in the box cannot. */
  #mappableFd(index: number, size: number): number {
    try {
      const mapping = this.file.mmap(this.process, size, PROT_READ_WRITE, MAP_SHARED, index * REGION_SIZE);
      if (mapping.trapped || mapping.offset !== 0) return -1;
      return (mapping.memory as unknown as Partial<NativeShared>).fd ?? -1;
    } catch (error) {
      if (error instanceof Errno) return -1;
      throw error;
    }
  }

  /** As firmware leaves a function: it decodes its BARs and may do DMA. A VMM that resets its machine decides anew. */
  #powerUp(): void {
    const position = uapi.VFIO_PCI_CONFIG_REGION_INDEX * REGION_SIZE + PCI_COMMAND;
    const command = new Uint8Array(2);
    this.file.read(this.process, command, position);
    command[0] = command[0]! | COMMAND_ALL;
    this.file.write(this.process, command, position);
  }

  #eventfd(loop: EventLoop, descriptor: number): Eventfd {
    const fd = this.#messageDescriptors[descriptor - FIRST_OF_MESSAGE];
    if (fd === undefined) throw new Errno('EBADF', `descriptor ${descriptor} is not open`);
    const link = linkOf(fd);
    if (link !== 'anon_inode:[eventfd]') throw new Errno('EINVAL', `a descriptor is ${link}, not an eventfd`);
    const copy = duplicate(fd);
    if (copy < 0) throw new Errno('ENFILE', 'the server has no descriptor left');
    try {
      return new Eventfd(loop, copy);
    } catch (error) {
      closeDescriptor(copy);
      throw error;
    }
  }
}

function openNode(machine: Machine, caller: Process, address: string): File {
  if (!machine.functions().some((fn) => fn.name === address)) {
    const known = machine.functions().map((fn) => fn.name);
    throw new ServeError(`there is no device ${address}; there are ${known.join(', ')}`);
  }
  const folder = machine.tree.resolve(`/sys/bus/pci/devices/${address}/vfio-dev`);
  const names = folder === undefined ? [] : machine.tree.list(folder.path);
  if (names[0] === undefined) {
    throw new ServeError(`${address} is not bound to vfio-pci; give it "driver": "vfio-pci" in the host file`);
  }
  const file = machine.open(caller, `/dev/vfio/devices/${names[0]}`, O_RDWR);
  if (file === undefined) throw new ServeError(`the machine has no node for ${address}`);
  return file;
}

/** The chain of capabilities behind a structure of 32 bytes, offsets included as they are. */
function capabilitiesOf(result: Uint8Array, flags: number, first: number): Uint8Array {
  if ((flags & uapi.VFIO_REGION_INFO_FLAG_CAPS) === 0 || first === 0) return new Uint8Array(0);
  const header = uapi.vfio_info_cap_header;
  let end = first;
  for (let at = first; at !== 0; ) {
    const { id, next } = header.read(result.subarray(at, at + header.size));
    let length = header.size;
    if (id === uapi.VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
      const { nr_areas } = uapi.vfio_region_info_cap_sparse_mmap.read(result.subarray(at));
      length = uapi.vfio_region_info_cap_sparse_mmap.size + nr_areas * uapi.vfio_region_sparse_mmap_area.size;
    } else if (id === uapi.VFIO_REGION_INFO_CAP_TYPE) length = uapi.vfio_region_info_cap_type.size;
    end = Math.max(end, at + length);
    at = next;
  }
  return result.slice(uapi.vfio_region_info.size, end);
}
