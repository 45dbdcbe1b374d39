/**
 * The structures of a VT-d unit and their entries in words, for people: which bits are set, where the entry points, and what is wrong
 * with it. Used by the walk that is shown step by step and for decoding the dumps of real kernels. Layouts: VT-d specification,
 * chapter 9 ("Translation Structure Formats"). Nothing here is on the way of a DMA.
 */

/** One field of an entry. */
export interface Field {
  readonly name: string;
  readonly value: string;
}

/** An entry in words. */
export interface Described {
  readonly isPresent: boolean;
  readonly fields: readonly Field[];
  /** Address of the next table, or of the page when `isLeaf`. */
  readonly next?: bigint;
  readonly isLeaf?: boolean;
  /** What the entry allows; absent where it does not speak of permissions. */
  readonly allows?: { readonly read: boolean; readonly write: boolean };
  /** Reserved bits and impossible values. */
  readonly problems: readonly string[];
}

/** The two stages that have a format here. */
export type Stage = 'first' | 'second';

const ADDRESS = 0x000f_ffff_ffff_f000n;
const bit = (value: bigint, at: number): boolean => ((value >> BigInt(at)) & 1n) === 1n;
const bits = (value: bigint, low: number, high: number): number =>
  Number((value >> BigInt(low)) & ((1n << BigInt(high - low + 1)) - 1n));
const address = (value: bigint): string => `0x${value.toString(16)}`;
const flag = (name: string, value: boolean): Field[] => (value ? [{ name, value: '1' }] : []);

/** Names of the levels as Linux calls them, from level 1 (the leaves of 4 KiB). */
export const LEVEL_NAMES: readonly string[] = ['', 'PTE', 'PMD', 'PUD', 'P4D', 'PGD'];

/** A root entry; in scalable mode `value` is the half that serves the function (lower: devfn 0 to 127). */
export function describeRootEntry(value: bigint): Described {
  const isPresent = bit(value, 0);
  return {
    isPresent,
    fields: [...flag('P', isPresent), { name: 'context table', value: address(value & ADDRESS) }],
    next: value & ADDRESS,
    problems: isPresent && (value & 0xffen) !== 0n ? ['reserved bits 1 to 11 are set'] : [],
  };
}

const TRANSLATION_TYPES = [
  'untranslated requests only',
  'untranslated and translated requests, ATS',
  'pass-through',
  'reserved',
];

/** A context entry of legacy mode. */
export function describeContextEntry(low: bigint, high: bigint): Described {
  const isPresent = bit(low, 0);
  const type = bits(low, 2, 3);
  const width = bits(high, 0, 2);
  const problems: string[] = [];
  if (isPresent && type === 3) problems.push('translation type 3 is reserved');
  if (isPresent && type !== 2 && (width < 1 || width > 3)) problems.push(`address width code ${width} is reserved`);
  if (isPresent && (low & 0xff0n) !== 0n) problems.push('reserved bits 4 to 11 are set');
  return {
    isPresent,
    fields: [
      ...flag('P', isPresent),
      ...flag('FPD (faults are not recorded)', bit(low, 1)),
      { name: 'TT', value: `${type} (${TRANSLATION_TYPES[type]})` },
      { name: 'AW', value: `${width} (${widthText(width)})` },
      { name: 'DID', value: String(bits(high, 8, 23)) },
      ...(type === 2 ? [] : [{ name: 'second-stage table', value: address(low & ADDRESS) }]),
    ],
    ...(type === 2 ? {} : { next: low & ADDRESS }),
    problems,
  };
}

function widthText(code: number): string {
  return ['reserved', '39 bits, 3 levels', '48 bits, 4 levels', '57 bits, 5 levels'][code] ?? 'reserved';
}

/** A context entry of scalable mode: the first two of its four quadwords matter. */
export function describeScalableContextEntry(q0: bigint, q1: bigint): Described {
  const isPresent = bit(q0, 0);
  return {
    isPresent,
    fields: [
      ...flag('P', isPresent),
      ...flag('FPD (faults are not recorded)', bit(q0, 1)),
      ...flag('DTE (translated requests and ATS)', bit(q0, 2)),
      ...flag('PASIDE', bit(q0, 3)),
      ...flag('PRE', bit(q0, 4)),
      { name: 'PDTS', value: `${bits(q0, 9, 11)} (${2 ** (bits(q0, 9, 11) + 7)} directory entries)` },
      { name: 'RID_PASID', value: String(bits(q1, 0, 19)) },
      { name: 'PASID directory', value: address(q0 & ADDRESS) },
    ],
    next: q0 & ADDRESS,
    problems: [],
  };
}

/** An entry of the PASID directory. */
export function describePasidDirectoryEntry(value: bigint): Described {
  const isPresent = bit(value, 0);
  return {
    isPresent,
    fields: [
      ...flag('P', isPresent),
      ...flag('FPD (faults are not recorded)', bit(value, 1)),
      { name: 'PASID table', value: address(value & ADDRESS) },
    ],
    next: value & ADDRESS,
    problems: [],
  };
}

const PGTT = ['reserved', 'first stage only', 'second stage only', 'nested', 'pass-through'];

/** What a PASID entry says about the walk that follows. */
export interface PasidWalk {
  readonly stage: Stage | 'nested' | 'pass-through' | undefined;
  readonly levels: number;
  readonly secondTable: bigint;
  readonly secondLevels: number;
}

/** An entry of a PASID table: eight quadwords, of which three matter. */
export function describePasidEntry(words: readonly bigint[]): Described & { readonly walk: PasidWalk } {
  const [q0 = 0n, q1 = 0n, q2 = 0n] = words;
  const isPresent = bit(q0, 0);
  const type = bits(q0, 6, 8);
  const hasSecond = type === 2 || type === 3;
  const hasFirst = type === 1 || type === 3;
  const width = bits(q0, 2, 4);
  const problems: string[] = [];
  if (isPresent && PGTT[type] === undefined) problems.push(`PGTT ${type} is reserved`);
  if (isPresent && type === 0) problems.push('PGTT 0 is reserved');
  if (isPresent && hasSecond && (width < 1 || width > 3)) problems.push(`address width code ${width} is reserved`);
  return {
    isPresent,
    fields: [
      ...flag('P', isPresent),
      ...flag('FPD (faults are not recorded)', bit(q0, 1)),
      { name: 'PGTT', value: `${type} (${PGTT[type] ?? 'reserved'})` },
      { name: 'DID', value: String(bits(q1, 0, 15)) },
      ...flag('PWSNP (page walks snoop)', bit(q1, 23)),
      ...flag('PGSNP (all accesses snoop)', bit(q1, 24)),
      ...(hasSecond
        ? [
            { name: 'AW', value: `${width} (${widthText(width)})` },
            { name: 'second-stage table', value: address(q0 & ADDRESS) },
            ...flag('SLADE (second-stage accessed and dirty bits)', bit(q0, 9)),
          ]
        : []),
      ...(hasFirst
        ? [
            { name: 'FLPM', value: bits(q2, 2, 3) === 1 ? '1 (5 levels)' : '0 (4 levels)' },
            { name: 'first-stage table', value: address(q2 & ADDRESS) },
            ...flag('SRE', bit(q2, 0)),
            ...flag('WPE', bit(q2, 4)),
            ...flag('EAFE', bit(q2, 7)),
          ]
        : []),
    ],
    ...(hasFirst ? { next: q2 & ADDRESS } : hasSecond ? { next: q0 & ADDRESS } : {}),
    problems,
    walk: {
      stage: ([undefined, 'first', 'second', 'nested', 'pass-through'] as const)[type],
      levels: hasFirst ? (bits(q2, 2, 3) === 1 ? 5 : 4) : width + 2,
      secondTable: q0 & ADDRESS,
      secondLevels: width + 2,
    },
  };
}

/**
 * An entry of a page table. `level` counts as Linux prints it: 1 holds pages of 4 KiB, 2 may hold 2 MiB, 3 may hold 1 GiB.
 */
export function describePageEntry(stage: Stage, value: bigint, level: number): Described {
  return stage === 'second' ? secondStage(value, level) : firstStage(value, level);
}

function pageAddress(value: bigint, level: number): { page: bigint; problems: string[] } {
  const below = (1n << BigInt(12 + 9 * (level - 1))) - 1n;
  const low = value & ADDRESS & below;
  const problem = `bits ${address(low)} of the address lie below the page size of level ${level} and are reserved`;
  return { page: value & ADDRESS & ~below, problems: low === 0n ? [] : [problem] };
}

function secondStage(value: bigint, level: number): Described {
  const read = bit(value, 0);
  const write = bit(value, 1);
  const isPresent = read || write;
  const isLeaf = level === 1 || bit(value, 7);
  const { page, problems } = isLeaf ? pageAddress(value, level) : { page: value & ADDRESS, problems: [] };
  if (isPresent && bit(value, 7) && level > 3) problems.push(`bit 7 (large page) at level ${level}`);
  if (isPresent && !isLeaf && bit(value, 11)) problems.push('SNP in an entry that points to a table');
  return {
    isPresent,
    isLeaf,
    next: page,
    allows: { read, write },
    fields: [
      ...flag('R', read),
      ...flag('W', write),
      ...(isLeaf && level > 1 ? [{ name: 'PS', value: `1 (${pageSizeText(level)})` }] : []),
      ...flag('A', isLeaf && bit(value, 8)),
      ...flag('D', isLeaf && bit(value, 9)),
      ...flag('SNP (no-snoop is overridden)', isLeaf && bit(value, 11)),
      { name: isLeaf ? 'page' : 'table', value: address(page) },
    ],
    problems: isPresent ? problems : [],
  };
}

function firstStage(value: bigint, level: number): Described {
  const isPresent = bit(value, 0);
  const isLeaf = level === 1 || bit(value, 7);
  const { page, problems } = isLeaf ? pageAddress(value, level) : { page: value & ADDRESS, problems: [] };
  if (isPresent && bit(value, 7) && level > 3) problems.push(`bit 7 (large page) at level ${level}`);
  return {
    isPresent,
    isLeaf,
    next: page,
    allows: { read: isPresent, write: isPresent && bit(value, 1) },
    fields: [
      ...flag('P', isPresent),
      ...flag('R/W', bit(value, 1)),
      ...flag('U/S', bit(value, 2)),
      ...(isLeaf && level > 1 ? [{ name: 'PS', value: `1 (${pageSizeText(level)})` }] : []),
      ...flag('A', bit(value, 5)),
      ...flag('D', isLeaf && bit(value, 6)),
      ...flag('G', isLeaf && bit(value, 8)),
      ...flag('EA', bit(value, 10)),
      ...flag('XD', bit(value, 63)),
      { name: isLeaf ? 'page' : 'table', value: address(page) },
    ],
    problems: isPresent ? problems : [],
  };
}

/** `4 KiB`, `2 MiB`, `1 GiB`, for levels 1 to 3. */
export function pageSizeText(level: number): string {
  return ['', '4 KiB', '2 MiB', '1 GiB', '512 GiB', '256 TiB'][level] ?? `level ${level}`;
}

/** Index into the table of `level` (from 1) for an address. */
export function indexAt(iova: bigint, level: number): number {
  return bits(iova, 12 + 9 * (level - 1), 20 + 9 * (level - 1));
}

/** The fields of an entry as one text: `R W SNP, page 0x1000`. */
export function fieldsText(described: Described): string {
  const flags = described.fields.filter(({ value }) => value === '1').map(({ name }) => name.replace(/ \(.*/, ''));
  const values = described.fields.filter(({ value }) => value !== '1').map(({ name, value }) => `${name} ${value}`);
  return [flags.join(' '), ...values].filter((part) => part !== '').join(', ');
}
