/**
 * `vfiobox/iommu`: an IOMMU of the VT-d kind for emulators and tests, usable alone. Structures lie in the memory that you give it, you
 * drive it by its registers or by methods, and devices ask it where their addresses go. docs/iommu.md.
 */

import type { IoasidSet, Ioasids } from './kernel/iommu/ioasid.ts';

export { decodeDescriptor, encodeDescriptor, type Invalidation } from './hw/iommu/descriptors.ts';
export {
  type LegacyContext,
  legacyContext,
  type PasidEntry,
  pasidEntry,
  pasidIndexes,
  readLegacyContext,
  readPasidEntry,
  readScalableContext,
  rootHalf,
  type ScalableContext,
  scalableContext,
} from './hw/iommu/entries.ts';
export { type Fault, FaultReason, faultReasonName } from './hw/iommu/faults.ts';
export { amdV1 } from './hw/iommu/fmt/amd-v1.ts';
export type { PageTableFormat } from './hw/iommu/fmt/format.ts';
export { vtdss } from './hw/iommu/fmt/vtdss.ts';
export { x86_64 } from './hw/iommu/fmt/x86-64.ts';
export { coveringBlock } from './hw/iommu/invalidation.ts';
export type { QueuedPageRequest } from './hw/iommu/page-request-queue.ts';
export { PageTable, type PageTableOptions } from './hw/iommu/page-table.ts';
export { Register, type RegisterFile } from './hw/iommu/register-file.ts';
export { decodeCapabilities, type UnitCapabilities, type UnitPresetName, unitPresets } from './hw/iommu/registers.ts';
export { TablePool } from './hw/iommu/table-pool.ts';
export { IommuUnit, type IommuUnitOptions, type Staleness } from './hw/iommu/unit.ts';
export { type Backing, BufferBacking } from './hw/memory/backing.ts';
export { PhysicalMemory } from './hw/memory/physical-memory.ts';
export { Atc, type AtcOptions, PENDING } from './hw/pci/atc.ts';
export {
  ALL_PAGES_ORDER,
  type AtcInvalidation,
  type AtsEndpoint,
  type DmaAttributes,
  type PageRequest,
  type PageResponse,
  type PageResponseCode,
  type Translation,
  type TranslationRequest,
} from './hw/pci/ats.ts';
export { type Access, type DmaFault, DmaPort, READ, type Upstream, WRITE } from './hw/pci/dma.ts';
// Numbers for address spaces: docs/ioasid.md.
export {
  INVALID_IOASID,
  type IoasidAllocatorOps,
  IoasidError,
  type IoasidOptions,
  IoasidSet,
  Ioasids,
  LAST_PASID,
} from './kernel/iommu/ioasid.ts';
export type { ReadSection, ReadSections } from './kernel/iommu/ioasid-readers.ts';
export {
  initVirtualCommands,
  VirtualCommandRegisters,
  type VirtualUnit,
  VmPasids,
  virtualCommandAllocator,
} from './kernel/iommu/ioasid-virtual-command.ts';
// The IOVA allocator of the host's DMA API: docs/dma-api.md.
export { IovaAllocator, type IovaOptions } from './kernel/iommu/iova.ts';
export { type PasidBus, PasidConsumer, PasidConsumers, type PasidOps } from './kernel/iommu/pasid-consumer.ts';
export { GlobalPasids } from './kernel/iommu/pasid-global.ts';
export { type PasidPolicy, VirtualPasids } from './kernel/iommu/pasid-policy.ts';

/** `Ioasids.setData` as a promise: resolved when nobody can still use the old value. Rejected with ENOENT. */
export function setIoasidData(ids: Ioasids, id: number, data: object | null): Promise<void> {
  return new Promise((resolve) => ids.setData(id, data, resolve));
}

/** `Ioasids.allocLater` as a promise. */
export function allocIoasid<T extends object>(
  ids: Ioasids,
  set: IoasidSet<T> | null,
  min: number,
  max: number,
  data: T | null,
): Promise<number> {
  return new Promise((resolve) => ids.allocLater(set, min, max, data, resolve));
}
