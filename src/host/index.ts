/** What doors import: the machine and the types that they deal in. */
export type { Backing, SharedMemory } from '../hw/memory/backing.ts';
export { type Clock, ManualClock } from '../hw/pci/clock.ts';
export type { CharacterBackend, DeviceModel } from '../hw/pci/device-model.ts';
export { Blocked } from '../kernel/core/blocked.ts';
export { File, type FileMapping, ForeignFile, type IoctlResult, type NewDescriptor } from '../kernel/core/file.ts';
export type { Capability, EventContext, MemoryFile, Task } from '../kernel/core/task.ts';
export type { UserMemory, Vma } from '../kernel/core/user-memory.ts';
export { AttributeFile } from './attribute-file.ts';
export { models } from './catalog.ts';
export type { Invariants } from './counters.ts';
export type { DmaMiss } from './demand-upstream.ts';
export { explainDma } from './dma-refusals.ts';
export {
  type ExplainedGroup,
  type ExplainedJoin,
  type ExplainedMember,
  type ExplainedPair,
  explainGroups,
  PAIRS_UP_TO,
  shortAddress,
} from './explain-groups.ts';
export { decodeFaultLog, type FaultReport, faultReportLines } from './fault-report/report.ts';
export {
  type HostConfig,
  HostFileError,
  isModelFile,
  loadHost,
  parseHost,
  parseText,
  presetNames,
} from './host-file.ts';
export { type ImportOptions, importHost, loadHostOrDump } from './import/index.ts';
export { loadModel } from './load-model.ts';
export { Machine } from './machine.ts';
export type { NodeStat } from './nodes.ts';
export type { Platform } from './platform.ts';
export {
  type DescriptorSource,
  DescriptorTable,
  Process,
  type ProcessIdentity,
  type ProcessRights,
} from './process.ts';
export { loadZod, type Schema, type Zod } from './schema.ts';
export type { SysfsTree, TreeWriter } from './sysfs/tree.ts';
export { type WalkReport, walkLines, walkOf } from './walk.ts';
