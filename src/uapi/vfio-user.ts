/**
 * The vfio-user protocol as tables: what a VMM and a device process say to each other over a UNIX stream socket.
 *
 * Names are those of the protocol's own header. Offsets in payloads count from the end of the header. Replies of
 * GET_INFO, GET_REGION_INFO and GET_IRQ_INFO are the structures of the ioctls of those names (vfio.ts).
 */
import { bytes, s32, struct, type TypeOf, u16, u32, u64 } from '../lib/struct.ts';

export const VFIO_USER_VERSION = 1;
export const VFIO_USER_DMA_MAP = 2;
export const VFIO_USER_DMA_UNMAP = 3;
export const VFIO_USER_DEVICE_GET_INFO = 4;
export const VFIO_USER_DEVICE_GET_REGION_INFO = 5;
export const VFIO_USER_DEVICE_GET_REGION_IO_FDS = 6;
export const VFIO_USER_DEVICE_GET_IRQ_INFO = 7;
export const VFIO_USER_DEVICE_SET_IRQS = 8;
export const VFIO_USER_REGION_READ = 9;
export const VFIO_USER_REGION_WRITE = 10;
/** Server to client. */
export const VFIO_USER_DMA_READ = 11;
/** Server to client. */
export const VFIO_USER_DMA_WRITE = 12;
export const VFIO_USER_DEVICE_RESET = 13;
export const VFIO_USER_REGION_WRITE_MULTI = 15;
export const VFIO_USER_DEVICE_FEATURE = 16;
export const VFIO_USER_MIG_DATA_READ = 17;
export const VFIO_USER_MIG_DATA_WRITE = 18;

/** Names of the commands, for traces. */
export const vfioUserCommandNames: Readonly<Record<number, string>> = {
  [VFIO_USER_VERSION]: 'VERSION',
  [VFIO_USER_DMA_MAP]: 'DMA_MAP',
  [VFIO_USER_DMA_UNMAP]: 'DMA_UNMAP',
  [VFIO_USER_DEVICE_GET_INFO]: 'DEVICE_GET_INFO',
  [VFIO_USER_DEVICE_GET_REGION_INFO]: 'DEVICE_GET_REGION_INFO',
  [VFIO_USER_DEVICE_GET_REGION_IO_FDS]: 'DEVICE_GET_REGION_IO_FDS',
  [VFIO_USER_DEVICE_GET_IRQ_INFO]: 'DEVICE_GET_IRQ_INFO',
  [VFIO_USER_DEVICE_SET_IRQS]: 'DEVICE_SET_IRQS',
  [VFIO_USER_REGION_READ]: 'REGION_READ',
  [VFIO_USER_REGION_WRITE]: 'REGION_WRITE',
  [VFIO_USER_DMA_READ]: 'DMA_READ',
  [VFIO_USER_DMA_WRITE]: 'DMA_WRITE',
  [VFIO_USER_DEVICE_RESET]: 'DEVICE_RESET',
  [VFIO_USER_REGION_WRITE_MULTI]: 'REGION_WRITE_MULTI',
  [VFIO_USER_DEVICE_FEATURE]: 'DEVICE_FEATURE',
  [VFIO_USER_MIG_DATA_READ]: 'MIG_DATA_READ',
  [VFIO_USER_MIG_DATA_WRITE]: 'MIG_DATA_WRITE',
};

export const VFIO_USER_F_TYPE_MASK = 0xf;
export const VFIO_USER_F_TYPE_COMMAND = 0;
export const VFIO_USER_F_TYPE_REPLY = 1;
export const VFIO_USER_F_NO_REPLY = 1 << 4;
export const VFIO_USER_F_ERROR = 1 << 5;
/** Before every message. `msg_size` counts the header. */
export const vfio_user_header = struct('vfio_user_header', {
  msg_id: u16,
  cmd: u16,
  msg_size: u32,
  flags: u32,
  error_no: u32,
});
export type vfio_user_header = TypeOf<typeof vfio_user_header>;

/** Versions of the protocol that vfiobox speaks: 0.0 and 0.1. */
export const VFIO_USER_MAJOR = 0;
export const VFIO_USER_MINOR = 1;
/** VERSION, without the JSON text and its NUL. */
export const vfio_user_version = struct('vfio_user_version', { major: u16, minor: u16 });
export type vfio_user_version = TypeOf<typeof vfio_user_version>;

/** What holds for a side that says nothing of it. */
export const VFIO_USER_DEFAULT_MAX_MSG_FDS = 1;
export const VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE = 1048576;
export const VFIO_USER_DEFAULT_MAX_DMA_MAPS = 65535;
export const VFIO_USER_DEFAULT_PGSIZES = 4096;

export const VFIO_USER_F_DMA_REGION_READ = 1 << 0;
export const VFIO_USER_F_DMA_REGION_WRITE = 1 << 1;
/** How the file that comes along may be used: mapped, or with pread and pwrite. */
export const VFIO_USER_F_DMA_REGION_MMAP = 1 << 2;
export const VFIO_USER_F_DMA_REGION_FILEIO = 1 << 3;
/** DMA_MAP. The reply has no payload. */
export const vfio_user_dma_map = struct('vfio_user_dma_map', {
  argsz: u32,
  flags: u32,
  offset: u64,
  addr: u64,
  size: u64,
});
export type vfio_user_dma_map = TypeOf<typeof vfio_user_dma_map>;

export const VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP = 1 << 0;
export const VFIO_USER_F_DMA_UNMAP_ALL = 1 << 1;
/** DMA_UNMAP, and its reply. */
export const vfio_user_dma_unmap = struct('vfio_user_dma_unmap', { argsz: u32, flags: u32, addr: u64, size: u64 });
export type vfio_user_dma_unmap = TypeOf<typeof vfio_user_dma_unmap>;

/** DEVICE_GET_INFO: `vfio_device_info` as it was before capabilities. */
export const vfio_user_device_info = struct('vfio_user_device_info', {
  argsz: u32,
  flags: u32,
  num_regions: u32,
  num_irqs: u32,
});
export type vfio_user_device_info = TypeOf<typeof vfio_user_device_info>;

/** DEVICE_GET_REGION_IO_FDS, without the sub-regions of the reply. */
export const vfio_user_region_io_fds = struct('vfio_user_region_io_fds', {
  argsz: u32,
  flags: u32,
  index: u32,
  count: u32,
});
export type vfio_user_region_io_fds = TypeOf<typeof vfio_user_region_io_fds>;
export const VFIO_USER_IO_FD_TYPE_IOEVENTFD = 0;
export const VFIO_USER_IO_FD_TYPE_IOREGIONFD = 1;
export const VFIO_USER_IO_FD_TYPE_IOEVENTFD_SHADOW = 2;
/** One sub-region. `shadow_mem_fd_index` and `datamatch` as an ioeventfd has them; other types reuse the places. */
export const vfio_user_sub_region_ioeventfd = struct('vfio_user_sub_region_ioeventfd', {
  gpa_offset: u64,
  size: u64,
  fd_index: u32,
  type: u32,
  flags: u32,
  shadow_mem_fd_index: u32,
  datamatch: u64,
});
export type vfio_user_sub_region_ioeventfd = TypeOf<typeof vfio_user_sub_region_ioeventfd>;

/** REGION_READ, REGION_WRITE and their replies, without data. */
export const vfio_user_region_access = struct('vfio_user_region_access', { offset: u64, region: u32, count: u32 });
export type vfio_user_region_access = TypeOf<typeof vfio_user_region_access>;

/** DMA_READ, DMA_WRITE and their replies, without data. */
export const vfio_user_dma_region_access = struct('vfio_user_dma_region_access', { addr: u64, count: u64 });
export type vfio_user_dma_region_access = TypeOf<typeof vfio_user_dma_region_access>;

/** REGION_WRITE_MULTI, without its entries; the reply says how many were carried out. */
export const vfio_user_write_multi = struct('vfio_user_write_multi', { wr_cnt: u64 });
export const VFIO_USER_WRITE_MULTI_DATA = 8;
/** One entry of REGION_WRITE_MULTI. */
export const vfio_user_write_multi_entry = struct('vfio_user_write_multi_entry', {
  offset: u64,
  region: u32,
  count: u32,
  data: bytes(VFIO_USER_WRITE_MULTI_DATA),
});

/** DEVICE_FEATURE, without data. */
export const vfio_user_device_feature = struct('vfio_user_device_feature', { argsz: u32, flags: u32 });
export type vfio_user_device_feature = TypeOf<typeof vfio_user_device_feature>;
/** Data of the feature MIG_DEVICE_STATE; the descriptor is unused. */
export const vfio_user_mig_state = struct('vfio_user_mig_state', { device_state: u32, data_fd: s32 });
/** MIG_DATA_READ, MIG_DATA_WRITE, without data. */
export const vfio_user_mig_data = struct('vfio_user_mig_data', { argsz: u32, size: u32 });
export type vfio_user_mig_data = TypeOf<typeof vfio_user_mig_data>;
