/**
 * The capability registers of a VT-d unit, and presets of them (VT-d specification, "Capability Register" and "Extended Capability
 * Register"). What a unit can do is derived from these two numbers alone, so that a preset is two numbers.
 */

/** The fields of CAP and ECAP that this model looks at. */
export interface UnitCapabilities {
  /** Domain ids: 2^(4 + 2·CAP.ND). */
  readonly domains: number;
  /** Levels of second-stage tables that the unit walks (CAP.SAGAW). */
  readonly levels: readonly number[];
  /** Bits of an address that it takes (CAP.MGAW + 1). */
  readonly mgaw: number;
  /** Highest level of a leaf: 0, 1 (2 MiB) or 2 (1 GiB) (CAP.SLLPS). */
  readonly largestLeaf: number;
  /** Fault recording registers (CAP.NFR + 1). */
  readonly faultRecords: number;
  /** Largest order of pages in one page-selective invalidation (CAP.MAMV). */
  readonly mamv: number;
  /** ECAP.C: page walks are coherent. */
  readonly isCoherent: boolean;
  /** ECAP.IR. */
  readonly hasInterruptRemapping: boolean;
  /** ECAP.PT: pass-through contexts. */
  readonly hasPassThrough: boolean;
  /** ECAP.SC: leaves can make no-snoop requests coherent. */
  readonly canEnforceCoherency: boolean;
  /** ECAP.DT: translated requests of devices. */
  readonly hasDeviceTlb: boolean;
  /** ECAP.SMTS: scalable mode. */
  readonly isScalable: boolean;
  /** ECAP.NEST, FLTS, SLTS. */
  readonly hasNesting: boolean;
  readonly hasFirstStage: boolean;
  readonly hasSecondStage: boolean;
  /** CAP.FL1GP, FL5LP. */
  readonly hasFirstStage1G: boolean;
  readonly hasFirstStage5Level: boolean;
  /** ECAP.PRS. */
  readonly hasPageRequests: boolean;
  /** ECAP.ERS, SRS: execute and supervisor requests. */
  readonly hasExecuteRequests: boolean;
  readonly hasSupervisorRequests: boolean;
  /** ECAP.EAFS: the extended accessed flag. */
  readonly hasExtendedAccessed: boolean;
  /** ECAP.PASID, and the bits of a PASID (ECAP.PSS + 1; 0 without). */
  readonly hasPasid: boolean;
  readonly pasidBits: number;
  /** ECAP.SMTS, SLADS and SMPWC: second-stage dirty bits can be used. */
  readonly canTrackDirty: boolean;
  /** CAP.CM: not-present entries may be cached too. */
  readonly isCaching: boolean;
  /** CAP.PSI: page-selective invalidation. */
  readonly hasPageInvalidation: boolean;
  /** Offsets of the fault recording and the IOTLB registers (CAP.FRO, ECAP.IRO), in bytes. */
  readonly faultRecordOffset: number;
  readonly iotlbOffset: number;
}

const bits = (value: bigint, first: number, width: number): number =>
  Number((value >> BigInt(first)) & ((1n << BigInt(width)) - 1n));

const has = (value: bigint, bit: number): boolean => ((value >> BigInt(bit)) & 1n) === 1n;

export function decodeCapabilities(cap: bigint, ecap: bigint): UnitCapabilities {
  const sagaw = bits(cap, 8, 5);
  const sllps = bits(cap, 34, 4);
  return {
    domains: 2 ** (4 + 2 * bits(cap, 0, 3)),
    levels: [3, 4, 5].filter((levels) => (sagaw & (1 << (levels - 2))) !== 0),
    mgaw: bits(cap, 16, 6) + 1,
    largestLeaf: (sllps & 1) === 0 ? 0 : (sllps & 2) === 0 ? 1 : 2,
    faultRecords: bits(cap, 40, 8) + 1,
    mamv: bits(cap, 48, 6),
    isCoherent: bits(ecap, 0, 1) === 1,
    hasDeviceTlb: bits(ecap, 2, 1) === 1,
    hasInterruptRemapping: bits(ecap, 3, 1) === 1,
    hasPassThrough: bits(ecap, 6, 1) === 1,
    canEnforceCoherency: bits(ecap, 7, 1) === 1,
    isScalable: has(ecap, 43),
    hasNesting: has(ecap, 26),
    hasFirstStage: has(ecap, 47),
    hasSecondStage: has(ecap, 46),
    hasFirstStage1G: has(cap, 56),
    hasFirstStage5Level: has(cap, 60),
    hasPageRequests: has(ecap, 29),
    hasExecuteRequests: has(ecap, 30),
    hasSupervisorRequests: has(ecap, 31),
    hasExtendedAccessed: has(ecap, 34),
    hasPasid: has(ecap, 40),
    pasidBits: has(ecap, 40) ? bits(ecap, 35, 5) + 1 : 0,
    canTrackDirty: has(ecap, 43) && has(ecap, 45) && has(ecap, 48),
    isCaching: has(cap, 7),
    hasPageInvalidation: has(cap, 39),
    faultRecordOffset: bits(cap, 24, 10) * 16,
    iotlbOffset: bits(ecap, 8, 10) * 16,
  };
}

export interface UnitPreset {
  readonly cap: bigint;
  readonly ecap: bigint;
  readonly description: string;
}

const one = (...set: readonly number[]): bigint => set.reduce((value, bit) => value | (1n << BigInt(bit)), 0n);
const field = (value: number, first: number): bigint => BigInt(value) << BigInt(first);

const ECAP_SC = one(7);
const ECAP_PAGE_REQUESTS = one(29);
const legacy = { cap: 0x80d2_008c_222f_0606n, ecap: 0x00f0_0fcen };
/** All there is: 57 bits by 3 to 5 levels in both stages, 2^20 PASIDs, nesting, page requests, second-stage dirty bits. */
const scalable = {
  // ND, PHMR, SAGAW, MGAW, ZLR, FRO, SLLPS, PSI, NFR, MAMV, DWD, DRD, FL1GP, PI, FL5LP
  cap:
    field(6, 0) |
    field(0b01110, 8) |
    field(56, 16) |
    one(22) |
    field(0x22, 24) |
    field(3, 34) |
    one(39) |
    field(7, 40) |
    field(18, 48) |
    one(54, 55, 56, 59, 60),
  // C, QI, DT, IR, EIM, PT, SC, IRO, MHMV, NEST, PRS, ERS, SRS, NWFS, EAFS, PSS, PASID, DIT, SMTS, SLADS, SLTS, FLTS, SMPWC
  ecap:
    one(0, 1, 2, 3, 4, 6, 7) |
    field(0x0f, 8) |
    field(15, 20) |
    one(26, 29, 30, 31, 33, 34) |
    field(19, 35) |
    one(40, 41, 43, 45, 46, 47, 48),
};

/** By the names that a host file uses. */
export const unitPresets = {
  'vtd-legacy-sc': {
    ...legacy,
    description: 'VT-d, legacy mode, 48 bits, 1 GiB leaves, snoop control, interrupt remapping',
  },
  'legacy-sc': {
    ...legacy,
    description: 'the same as vtd-legacy-sc',
  },
  'legacy-nosc': {
    ...legacy,
    ecap: legacy.ecap & ~ECAP_SC,
    description: 'as vtd-legacy-sc, but without snoop control',
  },
  'nested-sm': {
    ...scalable,
    description:
      'VT-d, scalable mode: PASIDs, both stages and nested, 57 bits, page requests, dirty bits, snoop control',
  },
  'sm-nosc': {
    ...scalable,
    ecap: scalable.ecap & ~ECAP_SC,
    description: 'as nested-sm, but without snoop control',
  },
  'sm-noprs': {
    ...scalable,
    ecap: scalable.ecap & ~ECAP_PAGE_REQUESTS,
    description: 'as nested-sm, but without page requests',
  },
} as const satisfies Record<string, UnitPreset>;

export type UnitPresetName = keyof typeof unitPresets;
