/**
 * The device author's kit (`import … from 'vfiobox/device'`): everything that a PCI device in TypeScript needs, and a host to test
 * it in. Walk-through: docs/writing-a-device.md.
 */
export type { Backing, SharedMemory } from './hw/memory/backing.ts';
export { Atc, type AtcOptions, PENDING } from './hw/pci/atc.ts';
export type { DmaAttributes, PageResponseCode, Translation, TranslationRequest } from './hw/pci/ats.ts';
export type { BarSpec, Doorbell, Registers } from './hw/pci/bar.ts';
export {
  advancedFeatures,
  pciExpress,
  plainCapability,
  powerManagement,
  vendorSpecific,
} from './hw/pci/capabilities.ts';
export { type Clock, ManualClock } from './hw/pci/clock.ts';
export { DeviceClock, DeviceTimer } from './hw/pci/device-clock.ts';
export {
  type CharacterBackend,
  type DeviceEnvironment,
  type DeviceModel,
  type ModelOption,
  parseInteger,
} from './hw/pci/device-model.ts';
export type { DmaFault, DmaPort } from './hw/pci/dma.ts';
export {
  acs,
  aer,
  ats,
  pasid,
  plainExtended,
  pri,
  serialNumber,
  vendorExtended,
} from './hw/pci/extended-capabilities.ts';
export type { PciFunction } from './hw/pci/function.ts';
export type { CapabilitySpec, DeviceState, FunctionSpec, MigrationAbility, ResetKind } from './hw/pci/function-spec.ts';
export { type Card, type CardDma, type CardInterrupts, DmaView, isFault } from './hw/pci/kit/card.ts';
export {
  type CardParts,
  type DeviceDescription,
  device,
  type Identity,
  ioBar,
  mappedBar,
  memoryBar,
} from './hw/pci/kit/device.ts';
export { type Bits, Register, type RegisterSpec, RegisterTable, register } from './hw/pci/kit/register.ts';
export { type AccessSize, type Step, TestHost, type TestHostOptions } from './hw/pci/kit/test-host.ts';
export { msi } from './hw/pci/msi.ts';
export { msix } from './hw/pci/msix.ts';
export { Errno } from './lib/errno.ts';
export {
  PCI_EXP_TYPE_ENDPOINT,
  PCI_EXP_TYPE_LEG_END,
  PCI_EXP_TYPE_RC_END,
} from './uapi/pci-regs.ts';
