/**
 * The little of `<linux/kvm.h>` that VFIO meets: request numbers, constants and structures under the header's names.
 */
import { array, bytes, struct, type TypeOf, u32, u64 } from '../lib/struct.ts';

export const KVMIO = 0xae;
export const KVM_API_VERSION = 12;

const IOC_WRITE = 1;
const IOC_READ = 2;
const request = (direction: number, n: number, size: number): number =>
  ((direction << 30) | (size << 16) | (KVMIO << 8) | n) >>> 0;

/** IRQFD. */
export const kvm_irqfd = struct('kvm_irqfd', { fd: u32, gsi: u32, flags: u32, resamplefd: u32, pad: bytes(16) });
export type kvm_irqfd = TypeOf<typeof kvm_irqfd>;

export const kvm_irq_routing_irqchip = struct('kvm_irq_routing_irqchip', { irqchip: u32, pin: u32 });
export type kvm_irq_routing_irqchip = TypeOf<typeof kvm_irq_routing_irqchip>;

/** The header's union of `pad` and `devid` is `devid` here. */
export const kvm_irq_routing_msi = struct('kvm_irq_routing_msi', {
  address_lo: u32,
  address_hi: u32,
  data: u32,
  devid: u32,
});
export type kvm_irq_routing_msi = TypeOf<typeof kvm_irq_routing_msi>;

/** `u` is the header's union: eight words. */
export const kvm_irq_routing_entry = struct('kvm_irq_routing_entry', {
  gsi: u32,
  type: u32,
  flags: u32,
  pad: u32,
  u: array(u32, 8),
});
export type kvm_irq_routing_entry = TypeOf<typeof kvm_irq_routing_entry>;

/** Followed by `nr` entries. */
export const kvm_irq_routing = struct('kvm_irq_routing', { nr: u32, flags: u32 });
export type kvm_irq_routing = TypeOf<typeof kvm_irq_routing>;

export const kvm_msi = struct('kvm_msi', {
  address_lo: u32,
  address_hi: u32,
  data: u32,
  flags: u32,
  devid: u32,
  pad: bytes(12),
});
export type kvm_msi = TypeOf<typeof kvm_msi>;

export const kvm_create_device = struct('kvm_create_device', { type: u32, fd: u32, flags: u32 });
export type kvm_create_device = TypeOf<typeof kvm_create_device>;

export const kvm_device_attr = struct('kvm_device_attr', { flags: u32, group: u32, attr: u64, addr: u64 });
export type kvm_device_attr = TypeOf<typeof kvm_device_attr>;

export const KVM_GET_API_VERSION = request(0, 0x00, 0);
export const KVM_CREATE_VM = request(0, 0x01, 0);
export const KVM_CHECK_EXTENSION = request(0, 0x03, 0);
export const KVM_GET_VCPU_MMAP_SIZE = request(0, 0x04, 0);
export const KVM_CREATE_VCPU = request(0, 0x41, 0);
export const KVM_CREATE_IRQCHIP = request(0, 0x60, 0);
export const KVM_SET_GSI_ROUTING = request(IOC_WRITE, 0x6a, kvm_irq_routing.size);
export const KVM_IRQFD = request(IOC_WRITE, 0x76, kvm_irqfd.size);
export const KVM_SIGNAL_MSI = request(IOC_WRITE, 0xa5, kvm_msi.size);
export const KVM_CREATE_DEVICE = request(IOC_READ | IOC_WRITE, 0xe0, kvm_create_device.size);
export const KVM_SET_DEVICE_ATTR = request(IOC_WRITE, 0xe1, kvm_device_attr.size);
export const KVM_GET_DEVICE_ATTR = request(IOC_WRITE, 0xe2, kvm_device_attr.size);
export const KVM_HAS_DEVICE_ATTR = request(IOC_WRITE, 0xe3, kvm_device_attr.size);

export const KVM_CAP_IRQCHIP = 0;
export const KVM_CAP_IRQ_ROUTING = 25;
export const KVM_CAP_IRQFD = 32;
export const KVM_CAP_SIGNAL_MSI = 77;
export const KVM_CAP_IRQFD_RESAMPLE = 82;
export const KVM_CAP_DEVICE_CTRL = 89;
export const KVM_CAP_CHECK_EXTENSION_VM = 105;

export const KVM_IRQFD_FLAG_DEASSIGN = 1;
export const KVM_IRQFD_FLAG_RESAMPLE = 2;

export const KVM_IRQ_ROUTING_IRQCHIP = 1;
export const KVM_IRQ_ROUTING_MSI = 2;
export const KVM_MSI_VALID_DEVID = 1;
export const KVM_IRQCHIP_PIC_MASTER = 0;
export const KVM_IRQCHIP_PIC_SLAVE = 1;
export const KVM_IRQCHIP_IOAPIC = 2;
export const KVM_IOAPIC_NUM_PINS = 24;

export const KVM_CREATE_DEVICE_TEST = 1;
export const KVM_DEV_TYPE_VFIO = 4;
export const KVM_DEV_VFIO_FILE = 1;
export const KVM_DEV_VFIO_FILE_ADD = 1;
export const KVM_DEV_VFIO_FILE_DEL = 2;

/** Names of requests for the trace. */
export const kvmRequestNames: ReadonlyMap<number, string> = new Map(
  Object.entries({
    KVM_GET_API_VERSION,
    KVM_CREATE_VM,
    KVM_CHECK_EXTENSION,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_CREATE_VCPU,
    KVM_CREATE_IRQCHIP,
    KVM_SET_GSI_ROUTING,
    KVM_IRQFD,
    KVM_SIGNAL_MSI,
    KVM_CREATE_DEVICE,
    KVM_SET_DEVICE_ATTR,
    KVM_GET_DEVICE_ATTR,
    KVM_HAS_DEVICE_ATTR,
  }).map(([name, number]) => [number, name]),
);
