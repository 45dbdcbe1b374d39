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
}

const bits = (value: bigint, first: number, width: number): number =>
  Number((value >> BigInt(first)) & ((1n << BigInt(width)) - 1n));

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
  };
}

export interface UnitPreset {
  readonly cap: bigint;
  readonly ecap: bigint;
  readonly description: string;
}

const ECAP_SC = 1n << 7n;
const legacy = { cap: 0x80d2_008c_222f_0606n, ecap: 0x00f0_0fcen };

/** By the names that a host file uses. */
export const unitPresets = {
  'vtd-legacy-sc': {
    ...legacy,
    description: 'VT-d, legacy mode, 48 bits, 1 GiB leaves, snoop control, interrupt remapping',
  },
  'legacy-nosc': {
    ...legacy,
    ecap: legacy.ecap & ~ECAP_SC,
    description: 'as vtd-legacy-sc, but without snoop control',
  },
} as const satisfies Record<string, UnitPreset>;

export type UnitPresetName = keyof typeof unitPresets;
