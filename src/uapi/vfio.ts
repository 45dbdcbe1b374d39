/**
 * The contract of `<linux/vfio.h>`: request numbers, constants and structures under the header's names.
 *
 * A structure that ends in a flexible array is given without it; `size` is then where the array starts. What belongs to other
 * platforms (sPAPR, CCW, AP, EEH) has only the numbers that a program may ask for.
 */
import { bytes, s32, struct, type TypeOf, u8, u16, u32, u64 } from '../lib/struct.ts';

export const VFIO_API_VERSION = 0;

// Kinds of IOMMU driver and extensions, for CHECK_EXTENSION and SET_IOMMU.
export const VFIO_TYPE1_IOMMU = 1;
export const VFIO_SPAPR_TCE_IOMMU = 2;
export const VFIO_TYPE1v2_IOMMU = 3;
export const VFIO_DMA_CC_IOMMU = 4;
export const VFIO_EEH = 5;
export const __VFIO_RESERVED_TYPE1_NESTING_IOMMU = 6;
export const VFIO_SPAPR_TCE_v2_IOMMU = 7;
export const VFIO_NOIOMMU_IOMMU = 8;
export const VFIO_UNMAP_ALL = 9;
export const VFIO_UPDATE_VADDR = 10;

export const VFIO_TYPE = 0x3b;
export const VFIO_BASE = 100;
const request = (n: number): number => (VFIO_TYPE << 8) | (VFIO_BASE + n);

export const VFIO_GET_API_VERSION = request(0);
export const VFIO_CHECK_EXTENSION = request(1);
export const VFIO_SET_IOMMU = request(2);
export const VFIO_GROUP_GET_STATUS = request(3);
export const VFIO_GROUP_SET_CONTAINER = request(4);
export const VFIO_GROUP_UNSET_CONTAINER = request(5);
export const VFIO_GROUP_GET_DEVICE_FD = request(6);
export const VFIO_DEVICE_GET_INFO = request(7);
export const VFIO_DEVICE_GET_REGION_INFO = request(8);
export const VFIO_DEVICE_GET_IRQ_INFO = request(9);
export const VFIO_DEVICE_SET_IRQS = request(10);
export const VFIO_DEVICE_RESET = request(11);
export const VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = request(12);
export const VFIO_DEVICE_PCI_HOT_RESET = request(13);
export const VFIO_DEVICE_QUERY_GFX_PLANE = request(14);
export const VFIO_DEVICE_GET_GFX_DMABUF = request(15);
export const VFIO_DEVICE_IOEVENTFD = request(16);
export const VFIO_DEVICE_FEATURE = request(17);
export const VFIO_DEVICE_BIND_IOMMUFD = request(18);
export const VFIO_DEVICE_ATTACH_IOMMUFD_PT = request(19);
export const VFIO_DEVICE_DETACH_IOMMUFD_PT = request(20);
export const VFIO_MIG_GET_PRECOPY_INFO = request(21);
// Requests of a container's IOMMU driver share the numbers of the device's.
export const VFIO_IOMMU_GET_INFO = request(12);
export const VFIO_IOMMU_MAP_DMA = request(13);
export const VFIO_IOMMU_UNMAP_DMA = request(14);
export const VFIO_IOMMU_ENABLE = request(15);
export const VFIO_IOMMU_DISABLE = request(16);
export const VFIO_IOMMU_DIRTY_PAGES = request(17);
export const VFIO_IOMMU_SPAPR_TCE_GET_INFO = request(12);
export const VFIO_EEH_PE_OP = request(21);

/** Names of requests for the trace; where two kinds of file share a number both are given. */
export const vfioRequestNames: ReadonlyMap<number, string> = new Map([
  [VFIO_GET_API_VERSION, 'VFIO_GET_API_VERSION'],
  [VFIO_CHECK_EXTENSION, 'VFIO_CHECK_EXTENSION'],
  [VFIO_SET_IOMMU, 'VFIO_SET_IOMMU'],
  [VFIO_GROUP_GET_STATUS, 'VFIO_GROUP_GET_STATUS'],
  [VFIO_GROUP_SET_CONTAINER, 'VFIO_GROUP_SET_CONTAINER'],
  [VFIO_GROUP_UNSET_CONTAINER, 'VFIO_GROUP_UNSET_CONTAINER'],
  [VFIO_GROUP_GET_DEVICE_FD, 'VFIO_GROUP_GET_DEVICE_FD'],
  [VFIO_DEVICE_GET_INFO, 'VFIO_DEVICE_GET_INFO'],
  [VFIO_DEVICE_GET_REGION_INFO, 'VFIO_DEVICE_GET_REGION_INFO'],
  [VFIO_DEVICE_GET_IRQ_INFO, 'VFIO_DEVICE_GET_IRQ_INFO'],
  [VFIO_DEVICE_SET_IRQS, 'VFIO_DEVICE_SET_IRQS'],
  [VFIO_DEVICE_RESET, 'VFIO_DEVICE_RESET'],
  [VFIO_IOMMU_GET_INFO, 'VFIO_DEVICE_GET_PCI_HOT_RESET_INFO|VFIO_IOMMU_GET_INFO'],
  [VFIO_IOMMU_MAP_DMA, 'VFIO_DEVICE_PCI_HOT_RESET|VFIO_IOMMU_MAP_DMA'],
  [VFIO_IOMMU_UNMAP_DMA, 'VFIO_DEVICE_QUERY_GFX_PLANE|VFIO_IOMMU_UNMAP_DMA'],
  [VFIO_IOMMU_ENABLE, 'VFIO_DEVICE_GET_GFX_DMABUF|VFIO_IOMMU_ENABLE'],
  [VFIO_IOMMU_DISABLE, 'VFIO_DEVICE_IOEVENTFD|VFIO_IOMMU_DISABLE'],
  [VFIO_IOMMU_DIRTY_PAGES, 'VFIO_DEVICE_FEATURE|VFIO_IOMMU_DIRTY_PAGES'],
  [VFIO_DEVICE_BIND_IOMMUFD, 'VFIO_DEVICE_BIND_IOMMUFD'],
  [VFIO_DEVICE_ATTACH_IOMMUFD_PT, 'VFIO_DEVICE_ATTACH_IOMMUFD_PT'],
  [VFIO_DEVICE_DETACH_IOMMUFD_PT, 'VFIO_DEVICE_DETACH_IOMMUFD_PT'],
  [VFIO_MIG_GET_PRECOPY_INFO, 'VFIO_MIG_GET_PRECOPY_INFO'],
]);

export const vfio_info_cap_header = struct('vfio_info_cap_header', { id: u16, version: u16, next: u32 });
export type vfio_info_cap_header = TypeOf<typeof vfio_info_cap_header>;

// ---- Group ----

export const VFIO_GROUP_FLAGS_VIABLE = 1 << 0;
export const VFIO_GROUP_FLAGS_CONTAINER_SET = 1 << 1;
export const vfio_group_status = struct('vfio_group_status', { argsz: u32, flags: u32 });
export type vfio_group_status = TypeOf<typeof vfio_group_status>;

// ---- Device ----

export const VFIO_DEVICE_FLAGS_RESET = 1 << 0;
export const VFIO_DEVICE_FLAGS_PCI = 1 << 1;
export const VFIO_DEVICE_FLAGS_PLATFORM = 1 << 2;
export const VFIO_DEVICE_FLAGS_AMBA = 1 << 3;
export const VFIO_DEVICE_FLAGS_CCW = 1 << 4;
export const VFIO_DEVICE_FLAGS_AP = 1 << 5;
export const VFIO_DEVICE_FLAGS_FSL_MC = 1 << 6;
export const VFIO_DEVICE_FLAGS_CAPS = 1 << 7;
export const VFIO_DEVICE_FLAGS_CDX = 1 << 8;
/** ioctl(VFIO_DEVICE_GET_INFO) */
export const vfio_device_info = struct('vfio_device_info', {
  argsz: u32,
  flags: u32,
  num_regions: u32,
  num_irqs: u32,
  cap_offset: u32,
  pad: u32,
});
export type vfio_device_info = TypeOf<typeof vfio_device_info>;

export const VFIO_DEVICE_API_PCI_STRING = 'vfio-pci';
export const VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP = 5;
export const VFIO_PCI_ATOMIC_COMP32 = 1 << 0;
export const VFIO_PCI_ATOMIC_COMP64 = 1 << 1;
export const VFIO_PCI_ATOMIC_COMP128 = 1 << 2;
export const vfio_device_info_cap_pci_atomic_comp = struct('vfio_device_info_cap_pci_atomic_comp', {
  header: vfio_info_cap_header,
  flags: u32,
  reserved: u32,
});

export const VFIO_REGION_INFO_FLAG_READ = 1 << 0;
export const VFIO_REGION_INFO_FLAG_WRITE = 1 << 1;
export const VFIO_REGION_INFO_FLAG_MMAP = 1 << 2;
export const VFIO_REGION_INFO_FLAG_CAPS = 1 << 3;
/** ioctl(VFIO_DEVICE_GET_REGION_INFO) */
export const vfio_region_info = struct('vfio_region_info', {
  argsz: u32,
  flags: u32,
  index: u32,
  cap_offset: u32,
  size: u64,
  offset: u64,
});
export type vfio_region_info = TypeOf<typeof vfio_region_info>;

export const VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1;
export const vfio_region_sparse_mmap_area = struct('vfio_region_sparse_mmap_area', { offset: u64, size: u64 });
export type vfio_region_sparse_mmap_area = TypeOf<typeof vfio_region_sparse_mmap_area>;
export const vfio_region_info_cap_sparse_mmap = struct('vfio_region_info_cap_sparse_mmap', {
  header: vfio_info_cap_header,
  nr_areas: u32,
  reserved: u32,
});
export const VFIO_REGION_INFO_CAP_TYPE = 2;
export const vfio_region_info_cap_type = struct('vfio_region_info_cap_type', {
  header: vfio_info_cap_header,
  type: u32,
  subtype: u32,
});
export const VFIO_REGION_TYPE_PCI_VENDOR_TYPE = 0x8000_0000;
export const VFIO_REGION_TYPE_PCI_VENDOR_MASK = 0xffff;
export const VFIO_REGION_TYPE_GFX = 1;
export const VFIO_REGION_TYPE_CCW = 2;
export const VFIO_REGION_TYPE_MIGRATION_DEPRECATED = 3;
export const VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION = 1;
export const VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG = 2;
export const VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG = 3;
export const VFIO_REGION_SUBTYPE_GFX_EDID = 1;
export const vfio_region_gfx_edid = struct('vfio_region_gfx_edid', {
  edid_offset: u32,
  edid_max_size: u32,
  edid_size: u32,
  max_xres: u32,
  max_yres: u32,
  link_state: u32,
});
export type vfio_region_gfx_edid = TypeOf<typeof vfio_region_gfx_edid>;
export const VFIO_DEVICE_GFX_LINK_STATE_UP = 1;
export const VFIO_DEVICE_GFX_LINK_STATE_DOWN = 2;
export const VFIO_REGION_INFO_CAP_MSIX_MAPPABLE = 3;

export const VFIO_IRQ_INFO_EVENTFD = 1 << 0;
export const VFIO_IRQ_INFO_MASKABLE = 1 << 1;
export const VFIO_IRQ_INFO_AUTOMASKED = 1 << 2;
export const VFIO_IRQ_INFO_NORESIZE = 1 << 3;
/** ioctl(VFIO_DEVICE_GET_IRQ_INFO) */
export const vfio_irq_info = struct('vfio_irq_info', { argsz: u32, flags: u32, index: u32, count: u32 });
export type vfio_irq_info = TypeOf<typeof vfio_irq_info>;

export const VFIO_IRQ_SET_DATA_NONE = 1 << 0;
export const VFIO_IRQ_SET_DATA_BOOL = 1 << 1;
export const VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2;
export const VFIO_IRQ_SET_ACTION_MASK = 1 << 3;
export const VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4;
export const VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5;
export const VFIO_IRQ_SET_DATA_TYPE_MASK = 7;
export const VFIO_IRQ_SET_ACTION_TYPE_MASK = 0x38;
/** ioctl(VFIO_DEVICE_SET_IRQS), without `data[]` */
export const vfio_irq_set = struct('vfio_irq_set', { argsz: u32, flags: u32, index: u32, start: u32, count: u32 });
export type vfio_irq_set = TypeOf<typeof vfio_irq_set>;

export const VFIO_PCI_BAR0_REGION_INDEX = 0;
export const VFIO_PCI_BAR1_REGION_INDEX = 1;
export const VFIO_PCI_BAR2_REGION_INDEX = 2;
export const VFIO_PCI_BAR3_REGION_INDEX = 3;
export const VFIO_PCI_BAR4_REGION_INDEX = 4;
export const VFIO_PCI_BAR5_REGION_INDEX = 5;
export const VFIO_PCI_ROM_REGION_INDEX = 6;
export const VFIO_PCI_CONFIG_REGION_INDEX = 7;
export const VFIO_PCI_VGA_REGION_INDEX = 8;
export const VFIO_PCI_NUM_REGIONS = 9;
export const VFIO_PCI_INTX_IRQ_INDEX = 0;
export const VFIO_PCI_MSI_IRQ_INDEX = 1;
export const VFIO_PCI_MSIX_IRQ_INDEX = 2;
export const VFIO_PCI_ERR_IRQ_INDEX = 3;
export const VFIO_PCI_REQ_IRQ_INDEX = 4;
export const VFIO_PCI_NUM_IRQS = 5;

/** `group_id` is called `devid` when VFIO_PCI_HOT_RESET_FLAG_DEV_ID is set. */
export const vfio_pci_dependent_device = struct('vfio_pci_dependent_device', {
  group_id: u32,
  segment: u16,
  bus: u8,
  devfn: u8,
});
export type vfio_pci_dependent_device = TypeOf<typeof vfio_pci_dependent_device>;
export const VFIO_PCI_DEVID_OWNED = 0;
export const VFIO_PCI_DEVID_NOT_OWNED = 0xffff_ffff;
export const VFIO_PCI_HOT_RESET_FLAG_DEV_ID = 1 << 0;
export const VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED = 1 << 1;
/** ioctl(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO), without `devices[]` */
export const vfio_pci_hot_reset_info = struct('vfio_pci_hot_reset_info', { argsz: u32, flags: u32, count: u32 });
export type vfio_pci_hot_reset_info = TypeOf<typeof vfio_pci_hot_reset_info>;
/** ioctl(VFIO_DEVICE_PCI_HOT_RESET), without `group_fds[]` */
export const vfio_pci_hot_reset = struct('vfio_pci_hot_reset', { argsz: u32, flags: u32, count: u32 });
export type vfio_pci_hot_reset = TypeOf<typeof vfio_pci_hot_reset>;

export const VFIO_GFX_PLANE_TYPE_PROBE = 1 << 0;
export const VFIO_GFX_PLANE_TYPE_DMABUF = 1 << 1;
export const VFIO_GFX_PLANE_TYPE_REGION = 1 << 2;
/** ioctl(VFIO_DEVICE_QUERY_GFX_PLANE); `region_index` is a union with `dmabuf_id`. */
export const vfio_device_gfx_plane_info = struct('vfio_device_gfx_plane_info', {
  argsz: u32,
  flags: u32,
  drm_plane_type: u32,
  drm_format: u32,
  drm_format_mod: u64,
  width: u32,
  height: u32,
  stride: u32,
  size: u32,
  x_pos: u32,
  y_pos: u32,
  x_hot: u32,
  y_hot: u32,
  region_index: u32,
  reserved: u32,
});
export type vfio_device_gfx_plane_info = TypeOf<typeof vfio_device_gfx_plane_info>;

export const VFIO_DEVICE_IOEVENTFD_8 = 1 << 0;
export const VFIO_DEVICE_IOEVENTFD_16 = 1 << 1;
export const VFIO_DEVICE_IOEVENTFD_32 = 1 << 2;
export const VFIO_DEVICE_IOEVENTFD_64 = 1 << 3;
export const VFIO_DEVICE_IOEVENTFD_SIZE_MASK = 0xf;
/** ioctl(VFIO_DEVICE_IOEVENTFD) */
export const vfio_device_ioeventfd = struct('vfio_device_ioeventfd', {
  argsz: u32,
  flags: u32,
  offset: u64,
  data: u64,
  fd: s32,
  reserved: u32,
});
export type vfio_device_ioeventfd = TypeOf<typeof vfio_device_ioeventfd>;

// ---- Device node with iommufd ----

export const VFIO_DEVICE_BIND_FLAG_TOKEN = 1 << 0;
/** ioctl(VFIO_DEVICE_BIND_IOMMUFD) */
export const vfio_device_bind_iommufd = struct('vfio_device_bind_iommufd', {
  argsz: u32,
  flags: u32,
  iommufd: s32,
  out_devid: u32,
  token_uuid_ptr: u64,
});
export type vfio_device_bind_iommufd = TypeOf<typeof vfio_device_bind_iommufd>;
export const VFIO_DEVICE_ATTACH_PASID = 1 << 0;
/** ioctl(VFIO_DEVICE_ATTACH_IOMMUFD_PT) */
export const vfio_device_attach_iommufd_pt = struct('vfio_device_attach_iommufd_pt', {
  argsz: u32,
  flags: u32,
  pt_id: u32,
  pasid: u32,
});
export type vfio_device_attach_iommufd_pt = TypeOf<typeof vfio_device_attach_iommufd_pt>;
export const VFIO_DEVICE_DETACH_PASID = 1 << 0;
/** ioctl(VFIO_DEVICE_DETACH_IOMMUFD_PT) */
export const vfio_device_detach_iommufd_pt = struct('vfio_device_detach_iommufd_pt', {
  argsz: u32,
  flags: u32,
  pasid: u32,
});
export type vfio_device_detach_iommufd_pt = TypeOf<typeof vfio_device_detach_iommufd_pt>;

// ---- Device features ----

export const VFIO_DEVICE_FEATURE_MASK = 0xffff;
export const VFIO_DEVICE_FEATURE_GET = 1 << 16;
export const VFIO_DEVICE_FEATURE_SET = 1 << 17;
export const VFIO_DEVICE_FEATURE_PROBE = 1 << 18;
/** ioctl(VFIO_DEVICE_FEATURE), without `data[]` */
export const vfio_device_feature = struct('vfio_device_feature', { argsz: u32, flags: u32 });
export type vfio_device_feature = TypeOf<typeof vfio_device_feature>;

export const VFIO_DEVICE_FEATURE_PCI_VF_TOKEN = 0;
export const VFIO_DEVICE_FEATURE_MIGRATION = 1;
export const VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE = 2;
export const VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY = 3;
export const VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP = 4;
export const VFIO_DEVICE_FEATURE_LOW_POWER_EXIT = 5;
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_START = 6;
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP = 7;
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT = 8;
export const VFIO_DEVICE_FEATURE_MIG_DATA_SIZE = 9;
export const VFIO_DEVICE_FEATURE_BUS_MASTER = 10;
export const VFIO_DEVICE_FEATURE_DMA_BUF = 11;
export const VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 = 12;

export const vfio_device_feature_vf_token = struct('vfio_device_feature_vf_token', { uuid: bytes(16) });
export const VFIO_MIGRATION_STOP_COPY = 1 << 0;
export const VFIO_MIGRATION_P2P = 1 << 1;
export const VFIO_MIGRATION_PRE_COPY = 1 << 2;
export const vfio_device_feature_migration = struct('vfio_device_feature_migration', { flags: u64 });
export const vfio_device_feature_mig_state = struct('vfio_device_feature_mig_state', {
  device_state: u32,
  data_fd: s32,
});
export type vfio_device_feature_mig_state = TypeOf<typeof vfio_device_feature_mig_state>;
export const VFIO_DEVICE_STATE_ERROR = 0;
export const VFIO_DEVICE_STATE_STOP = 1;
export const VFIO_DEVICE_STATE_RUNNING = 2;
export const VFIO_DEVICE_STATE_STOP_COPY = 3;
export const VFIO_DEVICE_STATE_RESUMING = 4;
export const VFIO_DEVICE_STATE_RUNNING_P2P = 5;
export const VFIO_DEVICE_STATE_PRE_COPY = 6;
export const VFIO_DEVICE_STATE_PRE_COPY_P2P = 7;
export const VFIO_DEVICE_STATE_NR = 8;
export const VFIO_PRECOPY_INFO_REINIT = 1 << 0;
/** ioctl(VFIO_MIG_GET_PRECOPY_INFO) */
export const vfio_precopy_info = struct('vfio_precopy_info', {
  argsz: u32,
  flags: u32,
  initial_bytes: u64,
  dirty_bytes: u64,
});
export type vfio_precopy_info = TypeOf<typeof vfio_precopy_info>;
export const vfio_device_low_power_entry_with_wakeup = struct('vfio_device_low_power_entry_with_wakeup', {
  wakeup_eventfd: s32,
  reserved: u32,
});
export const vfio_device_feature_dma_logging_control = struct('vfio_device_feature_dma_logging_control', {
  page_size: u64,
  num_ranges: u32,
  __reserved: u32,
  ranges: u64,
});
export type vfio_device_feature_dma_logging_control = TypeOf<typeof vfio_device_feature_dma_logging_control>;
export const vfio_device_feature_dma_logging_range = struct('vfio_device_feature_dma_logging_range', {
  iova: u64,
  length: u64,
});
export const vfio_device_feature_dma_logging_report = struct('vfio_device_feature_dma_logging_report', {
  iova: u64,
  length: u64,
  page_size: u64,
  bitmap: u64,
});
export type vfio_device_feature_dma_logging_report = TypeOf<typeof vfio_device_feature_dma_logging_report>;
export const vfio_device_feature_mig_data_size = struct('vfio_device_feature_mig_data_size', { stop_copy_length: u64 });
export const VFIO_DEVICE_FEATURE_CLEAR_MASTER = 0;
export const VFIO_DEVICE_FEATURE_SET_MASTER = 1;
export const vfio_device_feature_bus_master = struct('vfio_device_feature_bus_master', { op: u32 });
export const vfio_region_dma_range = struct('vfio_region_dma_range', { offset: u64, length: u64 });
/** Without `dma_ranges[]` */
export const vfio_device_feature_dma_buf = struct('vfio_device_feature_dma_buf', {
  region_index: u32,
  open_flags: u32,
  flags: u32,
  nr_ranges: u32,
});
export type vfio_device_feature_dma_buf = TypeOf<typeof vfio_device_feature_dma_buf>;

// ---- Type1 IOMMU driver of a container ----

export const VFIO_IOMMU_INFO_PGSIZES = 1 << 0;
export const VFIO_IOMMU_INFO_CAPS = 1 << 1;
/** ioctl(VFIO_IOMMU_GET_INFO) */
export const vfio_iommu_type1_info = struct('vfio_iommu_type1_info', {
  argsz: u32,
  flags: u32,
  iova_pgsizes: u64,
  cap_offset: u32,
  pad: u32,
});
export type vfio_iommu_type1_info = TypeOf<typeof vfio_iommu_type1_info>;
export const VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1;
/** `end` is inclusive. */
export const vfio_iova_range = struct('vfio_iova_range', { start: u64, end: u64 });
export type vfio_iova_range = TypeOf<typeof vfio_iova_range>;
/** Without `iova_ranges[]` */
export const vfio_iommu_type1_info_cap_iova_range = struct('vfio_iommu_type1_info_cap_iova_range', {
  header: vfio_info_cap_header,
  nr_iovas: u32,
  reserved: u32,
});
export const VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = 2;
export const vfio_iommu_type1_info_cap_migration = struct('vfio_iommu_type1_info_cap_migration', {
  header: vfio_info_cap_header,
  flags: u32,
  pgsize_bitmap: u64,
  max_dirty_bitmap_size: u64,
});
export const VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3;
export const vfio_iommu_type1_info_dma_avail = struct('vfio_iommu_type1_info_dma_avail', {
  header: vfio_info_cap_header,
  avail: u32,
});

export const VFIO_DMA_MAP_FLAG_READ = 1 << 0;
export const VFIO_DMA_MAP_FLAG_WRITE = 1 << 1;
export const VFIO_DMA_MAP_FLAG_VADDR = 1 << 2;
/** ioctl(VFIO_IOMMU_MAP_DMA) */
export const vfio_iommu_type1_dma_map = struct('vfio_iommu_type1_dma_map', {
  argsz: u32,
  flags: u32,
  vaddr: u64,
  iova: u64,
  size: u64,
});
export type vfio_iommu_type1_dma_map = TypeOf<typeof vfio_iommu_type1_dma_map>;
/** `data` is a pointer in the caller's memory. */
export const vfio_bitmap = struct('vfio_bitmap', { pgsize: u64, size: u64, data: u64 });
export type vfio_bitmap = TypeOf<typeof vfio_bitmap>;
export const VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 1 << 0;
export const VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1;
export const VFIO_DMA_UNMAP_FLAG_VADDR = 1 << 2;
/** ioctl(VFIO_IOMMU_UNMAP_DMA), without `data[]` */
export const vfio_iommu_type1_dma_unmap = struct('vfio_iommu_type1_dma_unmap', {
  argsz: u32,
  flags: u32,
  iova: u64,
  size: u64,
});
export type vfio_iommu_type1_dma_unmap = TypeOf<typeof vfio_iommu_type1_dma_unmap>;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 1 << 0;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 1 << 1;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 1 << 2;
/** ioctl(VFIO_IOMMU_DIRTY_PAGES), without `data[]` */
export const vfio_iommu_type1_dirty_bitmap = struct('vfio_iommu_type1_dirty_bitmap', { argsz: u32, flags: u32 });
export type vfio_iommu_type1_dirty_bitmap = TypeOf<typeof vfio_iommu_type1_dirty_bitmap>;
export const vfio_iommu_type1_dirty_bitmap_get = struct('vfio_iommu_type1_dirty_bitmap_get', {
  iova: u64,
  size: u64,
  bitmap: vfio_bitmap,
});
export type vfio_iommu_type1_dirty_bitmap_get = TypeOf<typeof vfio_iommu_type1_dirty_bitmap_get>;
