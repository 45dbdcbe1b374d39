/**
 * What the fault reasons of VT-d mean for the person who reads a kernel's log: one sentence each, and where to look. The codes are those
 * of the VT-d specification ("Fault Reason Encodings").
 */
export interface ReasonMeaning {
  readonly name: string;
  /** Where the cause usually is. */
  readonly look: string;
}

const MAPPING =
  'the driver (or user program) did not map this address for this device, unmapped it too early, or the device used a wrong one';
const CONTEXT =
  'the device has no domain: its driver is not bound, it uses a requester ID of another function (an alias, a phantom function), or the IOMMU blocks it';
const BROKEN =
  'the tables are damaged or were written for other capabilities of the unit: a bug of the IOMMU driver, or memory corruption';
const NESTED = 'the guest that owns the first-stage table, or the VMM that maps guest memory in the second stage';
const PASID =
  'the PASID was never attached, was detached while the device still used it, or the device tags its requests wrongly';
const INTERRUPT =
  'the device writes an interrupt message that nobody gave it: its MSI or MSI-X registers were changed behind the kernel, or it was reset';

const meanings: Readonly<Record<number, ReasonMeaning>> = {
  0: { name: 'not a DMA request', look: 'the address is in the interrupt window 0xfee00000 to 0xfeefffff' },
  1: { name: 'the root entry of the bus is not present', look: CONTEXT },
  2: { name: 'the context entry of the device is not present', look: CONTEXT },
  3: { name: 'the context entry is invalid', look: BROKEN },
  4: { name: 'the address has more bits than the unit takes', look: MAPPING },
  5: { name: 'no write permission', look: MAPPING },
  6: { name: 'no read permission', look: MAPPING },
  7: { name: 'a page-table pointer leads nowhere', look: BROKEN },
  8: { name: 'the root table cannot be read', look: BROKEN },
  9: { name: 'the context table cannot be read', look: BROKEN },
  10: { name: 'reserved bits in the root entry', look: BROKEN },
  11: { name: 'reserved bits in the context entry', look: BROKEN },
  12: { name: 'reserved bits in a page-table entry', look: BROKEN },
  13: {
    name: 'a translation request (ATS) is not allowed for this device',
    look: 'ATS was enabled in the device and not in its context entry',
  },
  32: { name: 'reserved bits in the interrupt request', look: INTERRUPT },
  33: { name: 'the interrupt index is beyond the remapping table', look: INTERRUPT },
  34: { name: 'the interrupt remapping entry is not present', look: INTERRUPT },
  35: { name: 'the interrupt remapping table cannot be read', look: BROKEN },
  36: { name: 'reserved bits in the interrupt remapping entry', look: BROKEN },
  37: { name: 'an interrupt request of the old format was blocked', look: INTERRUPT },
  38: {
    name: 'the interrupt belongs to another device (source-id check)',
    look: 'a device sends an interrupt message of another one, or through a bridge whose requester ID the kernel did not expect',
  },
  48: { name: 'the root table address is invalid', look: BROKEN },
  49: { name: 'a request with PASID while the unit is in legacy mode', look: PASID },
  50: { name: 'a page request while the unit is in legacy mode', look: PASID },
  56: { name: 'the root entry cannot be read', look: BROKEN },
  57: { name: 'the root entry of the bus is not present', look: CONTEXT },
  58: { name: 'reserved bits in the root entry', look: BROKEN },
  64: { name: 'the context entry cannot be read', look: BROKEN },
  65: { name: 'the context entry of the device is not present', look: CONTEXT },
  66: { name: 'reserved bits in the context entry', look: BROKEN },
  67: { name: 'the context entry is invalid', look: BROKEN },
  68: {
    name: 'ATS or translated requests are not allowed for this device (DTE is clear)',
    look: 'ATS was enabled in the device and not in its context entry',
  },
  69: { name: 'requests with PASID are not allowed for this device (PASIDE is clear)', look: PASID },
  70: { name: 'the PASID is larger than the directory of the device', look: PASID },
  71: {
    name: 'page requests are not allowed for this device (PRE is clear)',
    look: 'the page request interface was enabled in the device and not in its context entry',
  },
  72: { name: 'RID_PASID in the context entry is wrong', look: BROKEN },
  80: { name: 'the PASID directory entry cannot be read', look: BROKEN },
  81: { name: 'the PASID directory entry is not present', look: PASID },
  82: { name: 'reserved bits in the PASID directory entry', look: BROKEN },
  88: { name: 'the PASID entry cannot be read', look: BROKEN },
  89: { name: 'the PASID entry is not present', look: PASID },
  90: { name: 'reserved bits in the PASID entry', look: BROKEN },
  91: { name: 'the PASID entry is invalid', look: BROKEN },
  92: { name: 'execute requests are not allowed with this PASID (ERE is clear)', look: PASID },
  93: { name: 'privileged requests are not allowed with this PASID (SRE is clear)', look: PASID },
  112: { name: 'a first-stage entry cannot be read', look: BROKEN },
  113: { name: 'a first-stage entry is not present', look: MAPPING },
  114: { name: 'reserved bits in a first-stage entry', look: BROKEN },
  115: { name: 'the first-stage top table cannot be read', look: BROKEN },
  116: { name: 'a guest address in a first-stage entry has more bits than the unit takes', look: NESTED },
  117: { name: 'the second stage does not let the first-stage top table be read', look: NESTED },
  118: { name: 'the second stage does not let a first-stage entry be read', look: NESTED },
  119: { name: 'the second stage does not let a first-stage entry be written (accessed and dirty bits)', look: NESTED },
  120: { name: 'a second-stage entry cannot be read', look: BROKEN },
  121: { name: 'no permission in the second stage', look: MAPPING },
  122: { name: 'reserved bits in a second-stage entry', look: BROKEN },
  123: { name: 'the second-stage table pointer is invalid', look: BROKEN },
  124: { name: 'an accessed or dirty bit of the second stage must be set without snooping', look: BROKEN },
  128: { name: 'the address is not canonical', look: MAPPING },
  129: { name: 'a user request to a supervisor page', look: PASID },
  130: { name: 'no execute permission', look: MAPPING },
  131: { name: 'the address is beyond what the hardware can reach', look: MAPPING },
  132: { name: 'a second-stage address is beyond what the hardware can reach', look: MAPPING },
  133: { name: 'no write permission in the first stage', look: MAPPING },
  134: { name: 'no read permission in the first stage', look: MAPPING },
  135: {
    name: 'the address is an interrupt message',
    look: 'the address is in the interrupt window 0xfee00000 to 0xfeefffff',
  },
  144: { name: 'an accessed or dirty bit of the first stage must be set without snooping', look: BROKEN },
};

/** The meaning of a reason; undefined for a code that the specification does not have. */
export function reasonMeaning(code: number): ReasonMeaning | undefined {
  return meanings[code];
}

/** Flags of an AMD-Vi IO_PAGE_FAULT event (AMD I/O Virtualization specification, "IO_PAGE_FAULT Event"). */
export function amdFlags(flags: number): string[] {
  const names: readonly (readonly [number, string, string])[] = [
    [0x001, 'GN: the address is a guest address', ''],
    [0x002, 'NX: an execute request', ''],
    [0x004, 'US: a user request', ''],
    [0x008, 'I: an interrupt request, not memory', ''],
    [0x010, 'PR: the page is present', 'PR clear: the page is not present'],
    [0x020, 'RW: a write', 'RW clear: a read'],
    [0x040, 'PE: no permission', ''],
    [0x080, 'RZ: reserved bits in an entry', ''],
    [0x100, 'TR: a translation request (ATS)', ''],
  ];
  return names.map(([mask, set, clear]) => ((flags & mask) !== 0 ? set : clear)).filter((text) => text !== '');
}
