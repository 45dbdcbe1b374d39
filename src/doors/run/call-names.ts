/** What calls are called, for people: names of ioctls by the kind of file they were made on (the numbers collide between kinds). */

const VFIO = 0x3b00;
type Names = Readonly<Record<number, string>>;

const container: Names = {
  100: 'VFIO_GET_API_VERSION',
  101: 'VFIO_CHECK_EXTENSION',
  102: 'VFIO_SET_IOMMU',
  112: 'VFIO_IOMMU_GET_INFO',
  113: 'VFIO_IOMMU_MAP_DMA',
  114: 'VFIO_IOMMU_UNMAP_DMA',
  115: 'VFIO_IOMMU_ENABLE',
  116: 'VFIO_IOMMU_DISABLE',
  117: 'VFIO_IOMMU_DIRTY_PAGES',
};

const kinds: Readonly<Record<string, Names>> = {
  container,
  iommufd: {
    ...container,
    128: 'IOMMU_DESTROY',
    129: 'IOMMU_IOAS_ALLOC',
    130: 'IOMMU_IOAS_ALLOW_IOVAS',
    131: 'IOMMU_IOAS_COPY',
    132: 'IOMMU_IOAS_IOVA_RANGES',
    133: 'IOMMU_IOAS_MAP',
    134: 'IOMMU_IOAS_UNMAP',
    135: 'IOMMU_OPTION',
    136: 'IOMMU_VFIO_IOAS',
    137: 'IOMMU_HWPT_ALLOC',
    138: 'IOMMU_GET_HW_INFO',
    139: 'IOMMU_HWPT_SET_DIRTY_TRACKING',
    140: 'IOMMU_HWPT_GET_DIRTY_BITMAP',
    141: 'IOMMU_HWPT_INVALIDATE',
    142: 'IOMMU_FAULT_QUEUE_ALLOC',
    143: 'IOMMU_IOAS_MAP_FILE',
    144: 'IOMMU_VIOMMU_ALLOC',
    145: 'IOMMU_VDEVICE_ALLOC',
    146: 'IOMMU_IOAS_CHANGE_PROCESS',
    147: 'IOMMU_VEVENTQ_ALLOC',
    148: 'IOMMU_HW_QUEUE_ALLOC',
  },
  group: {
    103: 'VFIO_GROUP_GET_STATUS',
    104: 'VFIO_GROUP_SET_CONTAINER',
    105: 'VFIO_GROUP_UNSET_CONTAINER',
    106: 'VFIO_GROUP_GET_DEVICE_FD',
  },
  vfiogroup: {
    100: 'VFIO_GROUP_GET_INFO',
    101: 'VFIO_GROUP_MERGE',
    102: 'VFIO_GROUP_UNMERGE',
    103: 'VFIO_GROUP_GET_IOMMU_FD',
    104: 'VFIO_GROUP_GET_DEVICE_FD',
  },
  vfioiommu: {
    105: 'VFIO_IOMMU_GET_INFO',
    106: 'VFIO_IOMMU_MAP_DMA',
    107: 'VFIO_IOMMU_UNMAP_DMA',
  },
  vfiodevice: {
    108: 'VFIO_DEVICE_GET_INFO',
    109: 'VFIO_DEVICE_GET_REGION_INFO',
    110: 'VFIO_DEVICE_GET_IRQ_INFO',
    111: 'VFIO_DEVICE_SET_IRQ_EVENTFDS or SET_IRQS',
    112: 'VFIO_DEVICE_UNMASK_IRQ or RESET',
    113: 'VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFDS',
    114: 'VFIO_DEVICE_RESET',
  },
  device: {
    107: 'VFIO_DEVICE_GET_INFO',
    108: 'VFIO_DEVICE_GET_REGION_INFO',
    109: 'VFIO_DEVICE_GET_IRQ_INFO',
    110: 'VFIO_DEVICE_SET_IRQS',
    111: 'VFIO_DEVICE_RESET',
    112: 'VFIO_DEVICE_GET_PCI_HOT_RESET_INFO',
    113: 'VFIO_DEVICE_PCI_HOT_RESET',
    114: 'VFIO_DEVICE_QUERY_GFX_PLANE',
    115: 'VFIO_DEVICE_GET_GFX_DMABUF',
    116: 'VFIO_DEVICE_IOEVENTFD',
    117: 'VFIO_DEVICE_FEATURE',
    118: 'VFIO_DEVICE_BIND_IOMMUFD',
    119: 'VFIO_DEVICE_ATTACH_IOMMUFD_PT',
    120: 'VFIO_DEVICE_DETACH_IOMMUFD_PT',
  },
};

/** Requests of the box's own /dev/kvm and of what comes of it; their numbers do not collide. */
const kvm: Names = {
  0: 'KVM_GET_API_VERSION',
  1: 'KVM_CREATE_VM',
  3: 'KVM_CHECK_EXTENSION',
  4: 'KVM_GET_VCPU_MMAP_SIZE',
  65: 'KVM_CREATE_VCPU',
  70: 'KVM_SET_USER_MEMORY_REGION',
  96: 'KVM_CREATE_IRQCHIP',
  106: 'KVM_SET_GSI_ROUTING',
  118: 'KVM_IRQFD',
  165: 'KVM_SIGNAL_MSI',
  224: 'KVM_CREATE_DEVICE',
  225: 'KVM_SET_DEVICE_ATTR',
  226: 'KVM_GET_DEVICE_ATTR',
  227: 'KVM_HAS_DEVICE_ATTR',
};
const KVMIO = 0xae;

/** The name of an ioctl, its number where it has none. */
export function ioctlName(kind: string, request: number): string {
  if (kind.startsWith('kvm') && ((request >>> 8) & 0xff) === KVMIO) {
    return kvm[request & 0xff] ?? `0x${request.toString(16)}`;
  }
  const name = (request & 0xff00) === VFIO ? kinds[kind]?.[request & 0xff] : undefined;
  return name ?? `0x${request.toString(16)}`;
}
