/**
 * `vfiobox/kvm`: virtual machines as VFIO meets them, and the hardware by which interrupts of devices reach them. Usable alone: a
 * memory, a host of processors, machines on it. See docs/kvm.md.
 */
export {
  decodeMessage,
  decodePosted,
  decodeRemapped,
  type EntryWords,
  encodeMessage,
  type InterruptSource,
  IRTE_COUNT,
  IRTE_SIZE,
  isPosted,
  isPresent,
  type MessageFields,
  type PostedEntry,
  postedEntry,
  type RemappedEntry,
  remappedEntry,
} from './hw/iommu/interrupt-entry.ts';
export {
  InterruptFault,
  type InterruptMessage,
  type InterruptOutcome,
  InterruptRemapping,
  interruptFaultName,
  type RemappingOptions,
} from './hw/iommu/interrupt-remapping.ts';
export { DESCRIPTOR_SIZE, type DescriptorMemory, PostedDescriptor } from './hw/iommu/posted-interrupt.ts';
export { type Backing, BufferBacking } from './hw/memory/backing.ts';
export { PhysicalMemory } from './hw/memory/physical-memory.ts';
export { MESSAGE_MASK, MESSAGE_PASID_ENABLE, MESSAGE_SIZE, MessageStore } from './hw/pci/message-store.ts';
export { File } from './kernel/core/file.ts';
export { HostInterrupts, type HostVector } from './kernel/core/host-interrupts.ts';
export { type BypassConsumer, type BypassProducer, type HostIrq, IrqBypass } from './kernel/core/irq-bypass.ts';
export type { AssignableFile, DmaCoherence, VirtualMachine } from './kernel/core/virtual-machine.ts';
export { CpuCache } from './kernel/kvm/cpu-cache.ts';
export { type HostCpu, KvmHost, type KvmHostOptions, type WbinvdPolicy } from './kernel/kvm/host.ts';
export { type GuestMessage, guestMessage, IrqRouting, type Route } from './kernel/kvm/irq-routing.ts';
export { isNoncoherent, type KvmVfio } from './kernel/kvm/kvm-vfio.ts';
export { PasidTranslation } from './kernel/kvm/pasid-translation.ts';
export type { AccessResult, ExitReason, GuestAccess, Portal, Vcpu, VcpuState } from './kernel/kvm/vcpu.ts';
export { Vm } from './kernel/kvm/vm.ts';
export * from './uapi/kvm.ts';
