/**
 * A client for any vfio-user server: what a VMM does with a device in another process.
 *
 * Calls are synchronous, like all of vfiobox: they return when the server has answered, at the latest after the timeout. The server's own
 * DMA_READ and DMA_WRITE are answered during every call and in `serve`, from the maps made with `dmaMap`. `start`-type calls leave
 * several requests under way. Who needs an event loop besides runs the client in a worker.
 */
import { closeDescriptor, MappedFile } from '../../sys/index.ts';
import {
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_MASK,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_REGION_INFO_FLAG_WRITE,
  vfio_irq_info,
  vfio_irq_set,
} from '../../uapi/vfio.ts';
import {
  VFIO_USER_DEVICE_FEATURE,
  VFIO_USER_DEVICE_GET_INFO,
  VFIO_USER_DEVICE_GET_IRQ_INFO,
  VFIO_USER_DEVICE_RESET,
  VFIO_USER_DEVICE_SET_IRQS,
  VFIO_USER_DMA_MAP,
  VFIO_USER_DMA_UNMAP,
  VFIO_USER_F_DMA_UNMAP_ALL,
  VFIO_USER_MIG_DATA_READ,
  VFIO_USER_MIG_DATA_WRITE,
  VFIO_USER_REGION_READ,
  VFIO_USER_REGION_WRITE,
  VFIO_USER_REGION_WRITE_MULTI,
  vfio_user_device_feature,
  vfio_user_device_info,
  vfio_user_dma_map,
  vfio_user_dma_unmap,
  vfio_user_mig_data,
  vfio_user_region_access,
  vfio_user_write_multi,
  vfio_user_write_multi_entry,
} from '../../uapi/vfio-user.ts';
import { type Channel, SocketChannel } from './client-channel.ts';
import { Conversation, type Reply, type RequestOptions } from './client-conversation.ts';
import { answerDma, type DmaMap, DmaTable, fileOf, flagsOf } from './client-dma.ts';
import { BadServerError, DisconnectedError, VfioUserError } from './client-errors.ts';
import { queryIoFds, queryRegion } from './client-region-queries.ts';
import type { RegionInfo, SubRegion } from './client-regions.ts';
import { negotiate } from './client-version.ts';
import type { StreamLimits } from './codec.ts';
import { type Capabilities, ownCapabilities } from './negotiation.ts';

export interface ClientOptions {
  /** Milliseconds that each answer may take. Default 5000. */
  readonly timeout?: number;
  /** Offer a second socket for the server's commands. Default true. */
  readonly twinSocket?: boolean;
}

export interface DeviceInfo {
  /** Bits VFIO_DEVICE_FLAGS_*. */
  readonly flags: number;
  readonly regionCount: number;
  readonly irqCount: number;
}

export interface IrqInfo {
  readonly index: number;
  /** Bits VFIO_IRQ_INFO_*. */
  readonly flags: number;
  readonly count: number;
}

/** Several small writes of one message. `bytes`: at most 8. */
export interface RegionWrite {
  readonly region: number;
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/** A mapped piece of a region. It is reached through the system, so a server that cuts its file gives false and no signal. */
export interface MappedRegion {
  readonly length: number;
  read(offset: number, into: Uint8Array): boolean;
  write(offset: number, from: Uint8Array): boolean;
  close(): void;
}

const nothing = new Uint8Array(0);
/** SCM_RIGHTS takes no more in one message. */
const MOST_DESCRIPTORS = 253;

export class VfioUserClient {
  /** What the server said of itself. */
  readonly version: { readonly major: number; readonly minor: number };
  readonly capabilities: Capabilities;
  /** The maps that were made. */
  readonly maps: Iterable<DmaMap> & { readonly count: number };
  /** The socket, for waiting in a loop of one's own: when it can be read, `serve(0)`. */
  readonly fd: number;
  readonly #conversation: Conversation;
  readonly #maps = new DmaTable();
  readonly #hasTwin: boolean;

  /** Connects to the socket at `path` and negotiates. SystemError (nobody listens there), VfioUserError. */
  static connect(path: string, options: ClientOptions = {}): VfioUserClient {
    return new VfioUserClient(SocketChannel.connect(path, VfioUserClient.limits), options);
  }

  /** Negotiates on a connected socket, which is taken over. */
  static from(fd: number, options: ClientOptions = {}): VfioUserClient {
    return new VfioUserClient(new SocketChannel(fd, VfioUserClient.limits), options);
  }

  /** What servers may send to us. */
  static readonly limits: StreamLimits = {
    maxMsgFds: ownCapabilities.max_msg_fds,
    maxDataXferSize: ownCapabilities.max_data_xfer_size,
  };

  /** For tests: negotiates on a channel without a socket. */
  constructor(channel: Channel, options: ClientOptions = {}) {
    const { timeout = 5000, twinSocket = true } = options;
    this.fd = channel instanceof SocketChannel ? channel.fd : -1;
    this.maps = this.#maps;
    this.#conversation = new Conversation(channel, timeout, (command, payload) =>
      answerDma(this.#maps, command, payload, VfioUserClient.limits.maxDataXferSize),
    );
    try {
      const { version, capabilities, hasTwin } = negotiate(this.#conversation, twinSocket);
      this.version = version;
      this.capabilities = capabilities;
      this.#hasTwin = hasTwin;
    } catch (error) {
      this.#conversation.close(error instanceof VfioUserError ? error : new DisconnectedError('the client was closed'));
      throw error;
    }
  }

  /** Whether there is a connection, as far as was seen. */
  get isConnected(): boolean {
    return this.#conversation.end === undefined;
  }

  /** Whether the server's commands have a socket of their own. */
  get hasTwinSocket(): boolean {
    return this.#hasTwin;
  }

  /** Any command, for tests and commands not known here. */
  request(command: number, payload: Uint8Array = nothing, options?: RequestOptions): Reply {
    return this.#conversation.request(command, payload, options);
  }

  /** As `request`, without waiting: the result is for `finish`. */
  start(command: number, payload: Uint8Array = nothing, options?: RequestOptions): number {
    return this.#conversation.start(command, payload, options);
  }

  finish(id: number): Reply {
    return this.#conversation.finish(id);
  }

  /** Answers what the server asks for, for so many milliseconds. */
  serve(milliseconds: number): void {
    this.#conversation.serve(milliseconds);
  }

  deviceInfo(): DeviceInfo {
    const { size } = vfio_user_device_info;
    const request = vfio_user_device_info.write({ argsz: size, flags: 0, num_regions: 0, num_irqs: 0 });
    const reply = this.#ask(VFIO_USER_DEVICE_GET_INFO, request, size);
    const { flags, num_regions, num_irqs } = vfio_user_device_info.read(reply);
    return { flags, regionCount: num_regions, irqCount: num_irqs };
  }

  /** A region with its capabilities; its file, if it can be mapped, is not kept (`mapRegion`). */
  regionInfo(index: number): RegionInfo {
    const { info, fd } = queryRegion(this.#conversation, index);
    if (fd >= 0) closeDescriptor(fd);
    return info;
  }

  /** A region with its file, -1 if it has none. The descriptor is the caller's. */
  regionFile(index: number): { readonly info: RegionInfo; readonly fd: number } {
    return queryRegion(this.#conversation, index);
  }

  /** Maps a region's file; undefined: it cannot be mapped. SystemError. */
  mapRegion(index: number): MappedRegion | undefined {
    const { info, fd } = queryRegion(this.#conversation, index);
    if (fd < 0) return undefined;
    try {
      const start = Number(info.offset);
      const file = new MappedFile(fd, start + info.length, (info.flags & VFIO_REGION_INFO_FLAG_WRITE) !== 0);
      return {
        length: info.length,
        read: (offset, into) => offset >= 0 && file.read(start + offset, into),
        write: (offset, from) => offset >= 0 && file.write(start + offset, from),
        close: () => file.close(),
      };
    } finally {
      closeDescriptor(fd);
    }
  }

  /** Descriptors that stand for writes to parts of a region. They are the caller's. */
  regionIoFds(index: number): { readonly subRegions: readonly SubRegion[]; readonly descriptors: readonly number[] } {
    return queryIoFds(this.#conversation, index);
  }

  irqInfo(index: number): IrqInfo {
    const { size } = vfio_irq_info;
    const request = vfio_irq_info.write({ argsz: size, flags: 0, index, count: 0 });
    const { flags, count } = vfio_irq_info.read(this.#ask(VFIO_USER_DEVICE_GET_IRQ_INFO, request, size));
    return { index, flags, count };
  }

  /** Reads `length` bytes, in several messages if they are many. Fewer: the server has no more. */
  regionRead(index: number, offset: number, length: number): Uint8Array {
    const most = this.capabilities.max_data_xfer_size;
    if (length <= most) return this.#finishRead(this.startRegionRead(index, offset, length), length);
    const all = new Uint8Array(length);
    let done = 0;
    while (done < length) {
      const asked = Math.min(length - done, most);
      const piece = this.#finishRead(this.startRegionRead(index, offset + done, asked), asked);
      all.set(piece, done);
      done += piece.length;
      if (piece.length < asked) break;
    }
    return all.subarray(0, done);
  }

  /** Starts a read of at most `max_data_xfer_size` bytes; the result is for `finishRegionRead`. */
  startRegionRead(index: number, offset: number, length: number): number {
    return this.#conversation.start(VFIO_USER_REGION_READ, accessOf(index, offset, length));
  }

  finishRegionRead(id: number, length: number): Uint8Array {
    return this.#finishRead(id, length);
  }

  /** A register of 1, 2, 4 or (up to 2^53) 8 bytes. */
  readRegister(index: number, offset: number, size: 1 | 2 | 4 | 8): number {
    const bytes = this.regionRead(index, offset, size);
    let value = 0;
    for (let i = bytes.length - 1; i >= 0; i--) value = value * 256 + bytes[i]!;
    return value;
  }

  writeRegister(index: number, offset: number, size: 1 | 2 | 4 | 8, value: number | bigint, isPosted = false): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
    this.regionWrite(index, offset, bytes.subarray(0, size), isPosted);
  }

  /** Writes; posted: without waiting and without ever hearing of a failure. Returns how many bytes the server took. */
  regionWrite(index: number, offset: number, bytes: Uint8Array, isPosted = false): number {
    const most = this.capabilities.max_data_xfer_size;
    for (let done = 0; ; ) {
      const piece = bytes.subarray(done, done + most);
      const payload = new Uint8Array(vfio_user_region_access.size + piece.length);
      payload.set(accessOf(index, offset + done, piece.length));
      payload.set(piece, vfio_user_region_access.size);
      let taken = piece.length;
      if (isPosted) this.#conversation.post(VFIO_USER_REGION_WRITE, payload);
      else {
        const reply = this.#ask(VFIO_USER_REGION_WRITE, payload, vfio_user_region_access.size);
        taken = vfio_user_region_access.read(reply).count;
        if (taken > piece.length) throw this.#bad(`wrote ${taken} of ${piece.length} bytes`);
      }
      done += taken;
      if (done >= bytes.length || taken < piece.length) return done;
    }
  }

  /** Writes of up to 8 bytes, in order. How many were done: the first that fails ends it. */
  writeMulti(writes: readonly RegionWrite[]): number {
    const { size } = vfio_user_write_multi_entry;
    const payload = new Uint8Array(vfio_user_write_multi.size + writes.length * size);
    payload.set(vfio_user_write_multi.write({ wr_cnt: BigInt(writes.length) }));
    writes.forEach(({ region, offset, bytes }, i) => {
      if (bytes.length > 8) throw new RangeError(`${bytes.length} bytes do not fit one entry`);
      const data = new Uint8Array(8);
      data.set(bytes);
      const entry = vfio_user_write_multi_entry.write({ offset: BigInt(offset), region, count: bytes.length, data });
      payload.set(entry, vfio_user_write_multi.size + i * size);
    });
    const reply = this.#ask(VFIO_USER_REGION_WRITE_MULTI, payload, vfio_user_write_multi.size);
    const done = Number(vfio_user_write_multi.read(reply).wr_cnt);
    if (done > writes.length) throw this.#bad(`did ${done} of ${writes.length} writes`);
    return done;
  }

  /**
   * Gives vectors `start`… their eventfds (-1: none). Sent in as many messages as the server's `max_msg_fds` asks for; vectors without
   * and with eventfd never share one.
   */
  setIrqEventfds(
    index: number,
    start: number,
    eventfds: readonly number[],
    action = VFIO_IRQ_SET_ACTION_TRIGGER,
  ): void {
    const most = Math.max(Math.min(this.capabilities.max_msg_fds, MOST_DESCRIPTORS), 1);
    for (let i = 0; i < eventfds.length; ) {
      const isPresent = eventfds[i]! >= 0;
      let end = i + 1;
      while (end < eventfds.length && eventfds[end]! >= 0 === isPresent && (!isPresent || end - i < most)) end++;
      const descriptors = isPresent ? eventfds.slice(i, end) : [];
      this.setIrqs(VFIO_IRQ_SET_DATA_EVENTFD | action, index, start + i, end - i, descriptors);
      i = end;
    }
  }

  /** Takes all vectors of the index away. */
  disableIrqs(index: number): void {
    this.setIrqs(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 0);
  }

  /** SET_IRQS as it is. `bools`: one byte for each vector, with DATA_BOOL. */
  setIrqs(
    flags: number,
    index: number,
    start: number,
    count: number,
    descriptors: readonly number[] = [],
    bools: Uint8Array = nothing,
  ): void {
    const argsz = vfio_irq_set.size + ((flags & VFIO_IRQ_SET_DATA_BOOL) === 0 ? 0 : bools.length);
    const payload = new Uint8Array(argsz);
    payload.set(vfio_irq_set.write({ argsz, flags, index, start, count }));
    if (argsz > vfio_irq_set.size) payload.set(bools, vfio_irq_set.size);
    this.#conversation.request(VFIO_USER_DEVICE_SET_IRQS, payload, { descriptors });
  }

  /** Lets the device reach this memory. RefusedError EEXIST: it overlaps a map. */
  dmaMap(map: DmaMap): void {
    const file = fileOf(map.backing);
    const payload = vfio_user_dma_map.write({
      argsz: vfio_user_dma_map.size,
      flags: flagsOf(map),
      offset: file?.offset ?? 0n,
      addr: map.address,
      size: map.length,
    });
    // The device may ask for it before the answer is here.
    const isNew = !this.#maps.overlaps(map.address, map.length);
    if (isNew) this.#maps.add(map);
    try {
      this.#conversation.request(VFIO_USER_DMA_MAP, payload, file === undefined ? {} : { descriptors: [file.fd] });
    } catch (error) {
      if (isNew) this.#maps.remove(map.address, map.length);
      throw error;
    }
    if (isNew) return;
    // Servers may take the same map twice (libvfio-user does); what it says now holds.
    this.#maps.remove(map.address, map.length);
    this.#maps.add(map);
  }

  /** Takes a map away; when this returns, the device does not reach it any more. RefusedError. */
  dmaUnmap(address: bigint, length: bigint): void {
    this.#unmap(0, address, length);
    this.#maps.remove(address, length);
  }

  /** Takes all maps away. */
  dmaUnmapAll(): void {
    this.#unmap(VFIO_USER_F_DMA_UNMAP_ALL, 0n, 0n);
    this.#maps.clear();
  }

  reset(): void {
    this.#conversation.request(VFIO_USER_DEVICE_RESET, nothing);
  }

  /** VFIO_DEVICE_FEATURE: `data` goes along with 'set'; the result is what 'get' answers. */
  feature(what: 'get' | 'set' | 'probe', index: number, data: Uint8Array = nothing, room = 0): Uint8Array {
    const bits = {
      get: VFIO_DEVICE_FEATURE_GET,
      set: VFIO_DEVICE_FEATURE_SET,
      probe: VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_GET,
    };
    const { size } = vfio_user_device_feature;
    const payload = new Uint8Array(size + data.length);
    const flags = (index & VFIO_DEVICE_FEATURE_MASK) | bits[what];
    payload.set(vfio_user_device_feature.write({ argsz: size + Math.max(data.length, room), flags }));
    payload.set(data, size);
    return this.#ask(VFIO_USER_DEVICE_FEATURE, payload, size).subarray(size);
  }

  /** The next piece of the device's state; empty: no more for now. */
  migrationRead(length: number): Uint8Array {
    const { size } = vfio_user_mig_data;
    const payload = vfio_user_mig_data.write({ argsz: size + length, size: length });
    const reply = this.#ask(VFIO_USER_MIG_DATA_READ, payload, size);
    const came = vfio_user_mig_data.read(reply).size;
    if (came > length || size + came > reply.length) throw this.#bad(`sent ${came} bytes of state`);
    return reply.subarray(size, size + came);
  }

  migrationWrite(state: Uint8Array): void {
    const { size } = vfio_user_mig_data;
    const payload = new Uint8Array(size + state.length);
    payload.set(vfio_user_mig_data.write({ argsz: size + state.length, size: state.length }));
    payload.set(state, size);
    this.#conversation.request(VFIO_USER_MIG_DATA_WRITE, payload);
  }

  /** Ends the connection. The server forgets maps and interrupts. */
  close(): void {
    this.#conversation.close(new DisconnectedError('the client was closed'));
    this.#maps.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #finishRead(id: number, length: number): Uint8Array {
    const { payload } = this.#conversation.finish(id);
    const { size } = vfio_user_region_access;
    if (payload.length < size) throw this.#bad(`answered a read with ${payload.length} bytes`);
    const count = new DataView(payload.buffer, payload.byteOffset).getUint32(12, true);
    if (count > length || size + count > payload.length) throw this.#bad(`read ${count} of ${length} bytes`);
    return payload.subarray(size, size + count);
  }

  #unmap(flags: number, addr: bigint, size: bigint): void {
    const request = vfio_user_dma_unmap.write({ argsz: vfio_user_dma_unmap.size, flags, addr, size });
    this.#conversation.request(VFIO_USER_DMA_UNMAP, request);
  }

  /** A request whose reply has at least `least` bytes. */
  #ask(command: number, payload: Uint8Array, least: number): Uint8Array {
    const reply = this.#conversation.request(command, payload);
    if (reply.payload.length < least) throw this.#bad(`sent a reply of ${reply.payload.length} bytes, not ${least}`);
    return reply.payload;
  }

  /** The connection ends: the server said what it may not say. */
  #bad(what: string): BadServerError {
    const error = new BadServerError(`the server ${what}`);
    this.#conversation.close(error);
    return error;
  }
}

function accessOf(region: number, offset: number, count: number): Uint8Array {
  const bytes = new Uint8Array(vfio_user_region_access.size);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, offset, true);
  view.setUint32(4, offset / 0x1_0000_0000, true);
  view.setUint32(8, region, true);
  view.setUint32(12, count, true);
  return bytes;
}
