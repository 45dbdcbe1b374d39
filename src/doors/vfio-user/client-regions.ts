/** What a server says of its regions, decoded. Pure. */
import {
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_CAP_TYPE,
  VFIO_REGION_INFO_FLAG_CAPS,
  vfio_info_cap_header,
  vfio_region_info,
  vfio_region_info_cap_sparse_mmap,
  vfio_region_info_cap_type,
  vfio_region_sparse_mmap_area,
} from '../../uapi/vfio.ts';
import { vfio_user_region_io_fds, vfio_user_sub_region_ioeventfd } from '../../uapi/vfio-user.ts';
import { BadServerError } from './client-errors.ts';

export interface MappableArea {
  readonly offset: number;
  readonly length: number;
}

export type RegionCapability =
  | { readonly kind: 'sparse-mmap'; readonly areas: readonly MappableArea[] }
  | { readonly kind: 'type'; readonly type: number; readonly subtype: number }
  | { readonly kind: 'unknown'; readonly id: number; readonly version: number; readonly bytes: Uint8Array };

export interface RegionInfo {
  readonly index: number;
  /** Bits VFIO_REGION_INFO_FLAG_*. */
  readonly flags: number;
  /** Bytes; 0: there is no such region. */
  readonly length: number;
  /** Where the region begins in its file. */
  readonly offset: bigint;
  readonly capabilities: readonly RegionCapability[];
}

/** GET_REGION_INFO's whole reply. BadServerError: a chain that leaves the reply, or runs in a circle. */
export function parseRegionInfo(payload: Uint8Array): RegionInfo {
  const info = vfio_region_info.read(payload);
  const capabilities: RegionCapability[] = [];
  if ((info.flags & VFIO_REGION_INFO_FLAG_CAPS) !== 0) {
    for (let at = info.cap_offset; at !== 0; ) {
      if (at < vfio_region_info.size || at + vfio_info_cap_header.size > payload.length) {
        throw new BadServerError(`the server sent a capability at ${at} of ${payload.length} bytes`);
      }
      const header = vfio_info_cap_header.read(payload.subarray(at));
      if (header.next !== 0 && header.next <= at) {
        throw new BadServerError(`the server sent a capability at ${at} whose next one is at ${header.next}`);
      }
      capabilities.push(parseCapability(payload.subarray(at, header.next === 0 ? undefined : header.next)));
      at = header.next;
    }
  }
  const { index, flags, offset } = info;
  return { index, flags, length: lengthOf(info.size), offset, capabilities };
}

function parseCapability(bytes: Uint8Array): RegionCapability {
  const { id, version } = vfio_info_cap_header.read(bytes);
  if (id === VFIO_REGION_INFO_CAP_SPARSE_MMAP && version === 1) {
    const { nr_areas } = vfio_region_info_cap_sparse_mmap.read(bytes);
    const { size } = vfio_region_sparse_mmap_area;
    const start = vfio_region_info_cap_sparse_mmap.size;
    if (start + nr_areas * size > bytes.length) {
      throw new BadServerError(`the server sent ${nr_areas} mappable areas in ${bytes.length} bytes`);
    }
    const areas = Array.from({ length: nr_areas }, (_, i) => {
      const area = vfio_region_sparse_mmap_area.read(bytes.subarray(start + i * size));
      return { offset: lengthOf(area.offset), length: lengthOf(area.size) };
    });
    return { kind: 'sparse-mmap', areas };
  }
  if (id === VFIO_REGION_INFO_CAP_TYPE && version === 1 && bytes.length >= vfio_region_info_cap_type.size) {
    const { type, subtype } = vfio_region_info_cap_type.read(bytes);
    return { kind: 'type', type, subtype };
  }
  return { kind: 'unknown', id, version, bytes: bytes.slice(vfio_info_cap_header.size) };
}

function lengthOf(size: bigint): number {
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw new BadServerError(`the server sent a length of ${size} bytes`);
  return Number(size);
}

export interface SubRegion {
  /** Place in the region. */
  readonly offset: bigint;
  readonly length: bigint;
  /** Place in the list of descriptors. */
  readonly fdIndex: number;
  /** VFIO_USER_IO_FD_TYPE_*. */
  readonly type: number;
  readonly flags: number;
  readonly datamatch: bigint;
}

/** GET_REGION_IO_FDS' whole reply. Entries have 40 bytes, or 48 with a second word at their end as libvfio-user sends them. */
export function parseIoFds(payload: Uint8Array, descriptors: number): SubRegion[] {
  const { count } = vfio_user_region_io_fds.read(payload);
  if (count === 0) return [];
  const start = vfio_user_region_io_fds.size;
  const room = payload.length - start;
  const each = room === count * 48 ? 48 : vfio_user_sub_region_ioeventfd.size;
  if (count * each > room) throw new BadServerError(`the server sent ${count} sub-regions in ${room} bytes`);
  return Array.from({ length: count }, (_, i) => {
    const bytes = payload.subarray(start + i * each, start + (i + 1) * each);
    const entry = vfio_user_sub_region_ioeventfd.read(bytes);
    if (entry.fd_index >= descriptors) {
      throw new BadServerError(`the server names descriptor ${entry.fd_index} of ${descriptors}`);
    }
    const datamatch =
      each === 48 ? new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(40, true) : entry.datamatch;
    const { gpa_offset: offset, size: length, fd_index: fdIndex, type, flags } = entry;
    return { offset, length, fdIndex, type, flags, datamatch };
  });
}
