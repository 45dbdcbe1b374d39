/**
 * The contract of `<linux/iommufd.h>`: request numbers, constants and structures under the header's names.
 *
 * Every structure of a request begins with its `size`, set by the caller: how it is checked is told in kernel/iommufd/main.ts.
 */
import { array, bytes, s32, struct, type TypeOf, u8, u16, u32, u64 } from '../lib/struct.ts';

export const IOMMUFD_TYPE = 0x3b;
export const IOMMUFD_CMD_BASE = 0x80;
const request = (n: number): number => (IOMMUFD_TYPE << 8) | (IOMMUFD_CMD_BASE + n);

export const IOMMU_DESTROY = request(0x00);
export const IOMMU_IOAS_ALLOC = request(0x01);
export const IOMMU_IOAS_ALLOW_IOVAS = request(0x02);
export const IOMMU_IOAS_COPY = request(0x03);
export const IOMMU_IOAS_IOVA_RANGES = request(0x04);
export const IOMMU_IOAS_MAP = request(0x05);
export const IOMMU_IOAS_UNMAP = request(0x06);
export const IOMMU_OPTION = request(0x07);
export const IOMMU_VFIO_IOAS = request(0x08);
export const IOMMU_HWPT_ALLOC = request(0x09);
export const IOMMU_GET_HW_INFO = request(0x0a);
export const IOMMU_HWPT_SET_DIRTY_TRACKING = request(0x0b);
export const IOMMU_HWPT_GET_DIRTY_BITMAP = request(0x0c);
export const IOMMU_HWPT_INVALIDATE = request(0x0d);
export const IOMMU_FAULT_QUEUE_ALLOC = request(0x0e);
export const IOMMU_IOAS_MAP_FILE = request(0x0f);
export const IOMMU_VIOMMU_ALLOC = request(0x10);
export const IOMMU_VDEVICE_ALLOC = request(0x11);
export const IOMMU_IOAS_CHANGE_PROCESS = request(0x12);
export const IOMMU_VEVENTQ_ALLOC = request(0x13);
export const IOMMU_HW_QUEUE_ALLOC = request(0x14);
/** Of kernels that are built with the iommufd test driver: the last number that iommufd looks at. */
export const IOMMU_TEST_CMD = request(0x20);

/** Names of requests for the trace. */
export const iommufdRequestNames: ReadonlyMap<number, string> = new Map(
  Object.entries({
    IOMMU_DESTROY,
    IOMMU_IOAS_ALLOC,
    IOMMU_IOAS_ALLOW_IOVAS,
    IOMMU_IOAS_COPY,
    IOMMU_IOAS_IOVA_RANGES,
    IOMMU_IOAS_MAP,
    IOMMU_IOAS_UNMAP,
    IOMMU_OPTION,
    IOMMU_VFIO_IOAS,
    IOMMU_HWPT_ALLOC,
    IOMMU_GET_HW_INFO,
    IOMMU_HWPT_SET_DIRTY_TRACKING,
    IOMMU_HWPT_GET_DIRTY_BITMAP,
    IOMMU_HWPT_INVALIDATE,
    IOMMU_FAULT_QUEUE_ALLOC,
    IOMMU_IOAS_MAP_FILE,
    IOMMU_VIOMMU_ALLOC,
    IOMMU_VDEVICE_ALLOC,
    IOMMU_IOAS_CHANGE_PROCESS,
    IOMMU_VEVENTQ_ALLOC,
    IOMMU_HW_QUEUE_ALLOC,
    IOMMU_TEST_CMD,
  }).map(([name, number]) => [number, name]),
);

/** ioctl(IOMMU_DESTROY) */
export const iommu_destroy = struct('iommu_destroy', { size: u32, id: u32 });
export type iommu_destroy = TypeOf<typeof iommu_destroy>;

// ---- I/O address space ----

/** ioctl(IOMMU_IOAS_ALLOC) */
export const iommu_ioas_alloc = struct('iommu_ioas_alloc', { size: u32, flags: u32, out_ioas_id: u32 });
export type iommu_ioas_alloc = TypeOf<typeof iommu_ioas_alloc>;

/** Both ends included. */
export const iommu_iova_range = struct('iommu_iova_range', { start: u64, last: u64 });
export type iommu_iova_range = TypeOf<typeof iommu_iova_range>;

/** ioctl(IOMMU_IOAS_IOVA_RANGES) */
export const iommu_ioas_iova_ranges = struct('iommu_ioas_iova_ranges', {
  size: u32,
  ioas_id: u32,
  num_iovas: u32,
  __reserved: u32,
  allowed_iovas: u64,
  out_iova_alignment: u64,
});
export type iommu_ioas_iova_ranges = TypeOf<typeof iommu_ioas_iova_ranges>;

/** ioctl(IOMMU_IOAS_ALLOW_IOVAS) */
export const iommu_ioas_allow_iovas = struct('iommu_ioas_allow_iovas', {
  size: u32,
  ioas_id: u32,
  num_iovas: u32,
  __reserved: u32,
  allowed_iovas: u64,
});
export type iommu_ioas_allow_iovas = TypeOf<typeof iommu_ioas_allow_iovas>;

export const IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0;
export const IOMMU_IOAS_MAP_WRITEABLE = 1 << 1;
export const IOMMU_IOAS_MAP_READABLE = 1 << 2;
/** ioctl(IOMMU_IOAS_MAP) */
export const iommu_ioas_map = struct('iommu_ioas_map', {
  size: u32,
  flags: u32,
  ioas_id: u32,
  __reserved: u32,
  user_va: u64,
  length: u64,
  iova: u64,
});
export type iommu_ioas_map = TypeOf<typeof iommu_ioas_map>;

/** ioctl(IOMMU_IOAS_MAP_FILE) */
export const iommu_ioas_map_file = struct('iommu_ioas_map_file', {
  size: u32,
  flags: u32,
  ioas_id: u32,
  fd: s32,
  start: u64,
  length: u64,
  iova: u64,
});
export type iommu_ioas_map_file = TypeOf<typeof iommu_ioas_map_file>;

/** ioctl(IOMMU_IOAS_COPY) */
export const iommu_ioas_copy = struct('iommu_ioas_copy', {
  size: u32,
  flags: u32,
  dst_ioas_id: u32,
  src_ioas_id: u32,
  length: u64,
  dst_iova: u64,
  src_iova: u64,
});
export type iommu_ioas_copy = TypeOf<typeof iommu_ioas_copy>;

/** ioctl(IOMMU_IOAS_UNMAP) */
export const iommu_ioas_unmap = struct('iommu_ioas_unmap', { size: u32, ioas_id: u32, iova: u64, length: u64 });
export type iommu_ioas_unmap = TypeOf<typeof iommu_ioas_unmap>;

export const IOMMU_OPTION_RLIMIT_MODE = 0;
export const IOMMU_OPTION_HUGE_PAGES = 1;
export const IOMMU_OPTION_OP_SET = 0;
export const IOMMU_OPTION_OP_GET = 1;
/** ioctl(IOMMU_OPTION) */
export const iommu_option = struct('iommu_option', {
  size: u32,
  option_id: u32,
  op: u16,
  __reserved: u16,
  object_id: u32,
  val64: u64,
});
export type iommu_option = TypeOf<typeof iommu_option>;

export const IOMMU_VFIO_IOAS_GET = 0;
export const IOMMU_VFIO_IOAS_SET = 1;
export const IOMMU_VFIO_IOAS_CLEAR = 2;
/** ioctl(IOMMU_VFIO_IOAS) */
export const iommu_vfio_ioas = struct('iommu_vfio_ioas', { size: u32, ioas_id: u32, op: u16, __reserved: u16 });
export type iommu_vfio_ioas = TypeOf<typeof iommu_vfio_ioas>;

/** ioctl(IOMMU_IOAS_CHANGE_PROCESS) */
export const iommu_ioas_change_process = struct('iommu_ioas_change_process', { size: u32, __reserved: u32 });
export type iommu_ioas_change_process = TypeOf<typeof iommu_ioas_change_process>;

// ---- Hardware page table ----

export const IOMMU_HWPT_ALLOC_NEST_PARENT = 1 << 0;
export const IOMMU_HWPT_ALLOC_DIRTY_TRACKING = 1 << 1;
export const IOMMU_HWPT_FAULT_ID_VALID = 1 << 2;
export const IOMMU_HWPT_ALLOC_PASID = 1 << 3;
export const IOMMU_HWPT_DATA_NONE = 0;
export const IOMMU_HWPT_DATA_VTD_S1 = 1;
export const IOMMU_HWPT_DATA_ARM_SMMUV3 = 2;
export const IOMMU_HWPT_DATA_AMD_GUEST = 3;
/** ioctl(IOMMU_HWPT_ALLOC) */
export const iommu_hwpt_alloc = struct('iommu_hwpt_alloc', {
  size: u32,
  flags: u32,
  dev_id: u32,
  pt_id: u32,
  out_hwpt_id: u32,
  __reserved: u32,
  data_type: u32,
  data_len: u32,
  data_uptr: u64,
  fault_id: u32,
  __reserved2: u32,
});
export type iommu_hwpt_alloc = TypeOf<typeof iommu_hwpt_alloc>;

export const IOMMU_VTD_S1_SRE = 1 << 0;
export const IOMMU_VTD_S1_EAFE = 1 << 1;
export const IOMMU_VTD_S1_WPE = 1 << 2;
export const iommu_hwpt_vtd_s1 = struct('iommu_hwpt_vtd_s1', {
  flags: u64,
  pgtbl_addr: u64,
  addr_width: u32,
  __reserved: u32,
});
export type iommu_hwpt_vtd_s1 = TypeOf<typeof iommu_hwpt_vtd_s1>;
export const iommu_hwpt_arm_smmuv3 = struct('iommu_hwpt_arm_smmuv3', { ste: array(u64, 2) });
export const iommu_hwpt_amd_guest = struct('iommu_hwpt_amd_guest', { dte: array(u64, 4) });

export const IOMMU_HW_INFO_TYPE_NONE = 0;
export const IOMMU_HW_INFO_TYPE_DEFAULT = 0;
export const IOMMU_HW_INFO_TYPE_INTEL_VTD = 1;
export const IOMMU_HW_INFO_TYPE_ARM_SMMUV3 = 2;
export const IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV = 3;
export const IOMMU_HW_INFO_TYPE_AMD = 4;
export const IOMMU_HW_CAP_DIRTY_TRACKING = 1 << 0;
export const IOMMU_HW_CAP_PCI_PASID_EXEC = 1 << 1;
export const IOMMU_HW_CAP_PCI_PASID_PRIV = 1 << 2;
export const IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 1 << 3;
export const IOMMU_HW_INFO_FLAG_INPUT_TYPE = 1 << 0;
/** ioctl(IOMMU_GET_HW_INFO). `in_data_type` and `out_data_type` are one member of the header's union. */
export const iommu_hw_info = struct('iommu_hw_info', {
  size: u32,
  flags: u32,
  dev_id: u32,
  data_len: u32,
  data_uptr: u64,
  out_data_type: u32,
  out_max_pasid_log2: u8,
  __reserved: bytes(3),
  out_capabilities: u64,
});
export type iommu_hw_info = TypeOf<typeof iommu_hw_info>;

export const IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 = 1 << 0;
export const iommu_hw_info_vtd = struct('iommu_hw_info_vtd', {
  flags: u32,
  __reserved: u32,
  cap_reg: u64,
  ecap_reg: u64,
});
export type iommu_hw_info_vtd = TypeOf<typeof iommu_hw_info_vtd>;
export const iommu_hw_info_arm_smmuv3 = struct('iommu_hw_info_arm_smmuv3', {
  flags: u32,
  __reserved: u32,
  idr: array(u32, 6),
  iidr: u32,
  aidr: u32,
});
export const iommu_hw_info_amd = struct('iommu_hw_info_amd', { efr: u64, efr2: u64 });

export const IOMMU_HWPT_DIRTY_TRACKING_ENABLE = 1;
/** ioctl(IOMMU_HWPT_SET_DIRTY_TRACKING) */
export const iommu_hwpt_set_dirty_tracking = struct('iommu_hwpt_set_dirty_tracking', {
  size: u32,
  flags: u32,
  hwpt_id: u32,
  __reserved: u32,
});
export type iommu_hwpt_set_dirty_tracking = TypeOf<typeof iommu_hwpt_set_dirty_tracking>;

export const IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR = 1;
/** ioctl(IOMMU_HWPT_GET_DIRTY_BITMAP) */
export const iommu_hwpt_get_dirty_bitmap = struct('iommu_hwpt_get_dirty_bitmap', {
  size: u32,
  hwpt_id: u32,
  flags: u32,
  __reserved: u32,
  iova: u64,
  length: u64,
  page_size: u64,
  data: u64,
});
export type iommu_hwpt_get_dirty_bitmap = TypeOf<typeof iommu_hwpt_get_dirty_bitmap>;

export const IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 = 0;
export const IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = 1;
export const IOMMU_VTD_INV_FLAGS_LEAF = 1 << 0;
export const iommu_hwpt_vtd_s1_invalidate = struct('iommu_hwpt_vtd_s1_invalidate', {
  addr: u64,
  npages: u64,
  flags: u32,
  __reserved: u32,
});
export type iommu_hwpt_vtd_s1_invalidate = TypeOf<typeof iommu_hwpt_vtd_s1_invalidate>;
export const iommu_viommu_arm_smmuv3_invalidate = struct('iommu_viommu_arm_smmuv3_invalidate', { cmd: array(u64, 2) });
/** ioctl(IOMMU_HWPT_INVALIDATE) */
export const iommu_hwpt_invalidate = struct('iommu_hwpt_invalidate', {
  size: u32,
  hwpt_id: u32,
  data_uptr: u64,
  data_type: u32,
  entry_len: u32,
  entry_num: u32,
  __reserved: u32,
});
export type iommu_hwpt_invalidate = TypeOf<typeof iommu_hwpt_invalidate>;

// ---- Page faults ----

export const IOMMU_PGFAULT_FLAGS_PASID_VALID = 1 << 0;
export const IOMMU_PGFAULT_FLAGS_LAST_PAGE = 1 << 1;
export const IOMMU_PGFAULT_PERM_READ = 1 << 0;
export const IOMMU_PGFAULT_PERM_WRITE = 1 << 1;
export const IOMMU_PGFAULT_PERM_EXEC = 1 << 2;
export const IOMMU_PGFAULT_PERM_PRIV = 1 << 3;
export const iommu_hwpt_pgfault = struct('iommu_hwpt_pgfault', {
  flags: u32,
  dev_id: u32,
  pasid: u32,
  grpid: u32,
  perm: u32,
  __reserved: u32,
  addr: u64,
  length: u32,
  cookie: u32,
});
export type iommu_hwpt_pgfault = TypeOf<typeof iommu_hwpt_pgfault>;
export const IOMMUFD_PAGE_RESP_SUCCESS = 0;
export const IOMMUFD_PAGE_RESP_INVALID = 1;
export const iommu_hwpt_page_response = struct('iommu_hwpt_page_response', { cookie: u32, code: u32 });
export type iommu_hwpt_page_response = TypeOf<typeof iommu_hwpt_page_response>;
/** ioctl(IOMMU_FAULT_QUEUE_ALLOC) */
export const iommu_fault_alloc = struct('iommu_fault_alloc', {
  size: u32,
  flags: u32,
  out_fault_id: u32,
  out_fault_fd: u32,
});
export type iommu_fault_alloc = TypeOf<typeof iommu_fault_alloc>;

// ---- Virtual IOMMU ----

export const IOMMU_VIOMMU_TYPE_DEFAULT = 0;
export const IOMMU_VIOMMU_TYPE_ARM_SMMUV3 = 1;
export const IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV = 2;
export const iommu_viommu_tegra241_cmdqv = struct('iommu_viommu_tegra241_cmdqv', {
  out_vintf_mmap_offset: u64,
  out_vintf_mmap_length: u64,
});
/** ioctl(IOMMU_VIOMMU_ALLOC) */
export const iommu_viommu_alloc = struct('iommu_viommu_alloc', {
  size: u32,
  flags: u32,
  type: u32,
  dev_id: u32,
  hwpt_id: u32,
  out_viommu_id: u32,
  data_len: u32,
  __reserved: u32,
  data_uptr: u64,
});
export type iommu_viommu_alloc = TypeOf<typeof iommu_viommu_alloc>;

/** ioctl(IOMMU_VDEVICE_ALLOC) */
export const iommu_vdevice_alloc = struct('iommu_vdevice_alloc', {
  size: u32,
  viommu_id: u32,
  dev_id: u32,
  out_vdevice_id: u32,
  virt_id: u64,
});
export type iommu_vdevice_alloc = TypeOf<typeof iommu_vdevice_alloc>;

export const IOMMU_VEVENTQ_FLAG_LOST_EVENTS = 1 << 0;
export const iommufd_vevent_header = struct('iommufd_vevent_header', { flags: u32, sequence: u32 });
export type iommufd_vevent_header = TypeOf<typeof iommufd_vevent_header>;
export const IOMMU_VEVENTQ_TYPE_DEFAULT = 0;
export const IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 = 1;
export const IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV = 2;
export const iommu_vevent_arm_smmuv3 = struct('iommu_vevent_arm_smmuv3', { evt: array(u64, 4) });
export const iommu_vevent_tegra241_cmdqv = struct('iommu_vevent_tegra241_cmdqv', { lvcmdq_err_map: array(u64, 2) });
/** ioctl(IOMMU_VEVENTQ_ALLOC) */
export const iommu_veventq_alloc = struct('iommu_veventq_alloc', {
  size: u32,
  flags: u32,
  viommu_id: u32,
  type: u32,
  veventq_depth: u32,
  out_veventq_id: u32,
  out_veventq_fd: u32,
  __reserved: u32,
});
export type iommu_veventq_alloc = TypeOf<typeof iommu_veventq_alloc>;

export const IOMMU_HW_QUEUE_TYPE_DEFAULT = 0;
export const IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV = 1;
/** ioctl(IOMMU_HW_QUEUE_ALLOC) */
export const iommu_hw_queue_alloc = struct('iommu_hw_queue_alloc', {
  size: u32,
  flags: u32,
  viommu_id: u32,
  type: u32,
  index: u32,
  out_hw_queue_id: u32,
  nesting_parent_iova: u64,
  length: u64,
});
export type iommu_hw_queue_alloc = TypeOf<typeof iommu_hw_queue_alloc>;
