/**
 * `vfiobox/iommu`: an IOMMU of the VT-d kind for emulators and tests, usable alone. Structures lie in the memory that you give it, you
 * drive it by its registers or by methods, and devices ask it where their addresses go. docs/iommu.md.
 */

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
