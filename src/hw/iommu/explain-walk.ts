/**
 * A walk shown step by step: root, context, PASID directory and entry, each level of each stage, every entry read from memory as bytes
 * and put into words. For people and tests: it follows the same tables as the unit and asks none of its caches, so that it also is a
 * second opinion. It changes nothing: no accessed bits, no fault records.
 */
import {
  type Described,
  describeContextEntry,
  describePageEntry,
  describePasidDirectoryEntry,
  describePasidEntry,
  describeRootEntry,
  describeScalableContextEntry,
  fieldsText,
  indexAt,
  LEVEL_NAMES,
  pageSizeText,
  type Stage,
} from './describe.ts';

/** Memory in which the structures lie. */
export interface WalkMemory {
  /** 64 bits at a byte address that is a multiple of 8; undefined: no memory answers there. */
  peek(address: bigint): bigint | undefined;
}

/** Where a walk starts. */
export interface WalkRoot {
  /** Physical address of the root table. */
  readonly address: bigint;
  readonly isScalable: boolean;
}

export interface WalkRequest {
  readonly rid: number;
  /** -1: none. */
  readonly pasid: number;
  readonly iova: bigint;
}

/** One entry that was read. */
export interface WalkStep {
  /** `root entry`, `second stage level 4 (P4D)`, … */
  readonly what: string;
  /** Which entry of its table; undefined where that says nothing. */
  readonly index: number | undefined;
  /** Physical address of the entry; guest-physical would be misleading, so it is always where the memory really is. */
  readonly address: bigint;
  /** Undefined: no memory answers there. */
  readonly value: bigint | undefined;
  readonly isPresent: boolean;
  readonly text: string;
  readonly problems: readonly string[];
  /** 1 for the second-stage walks that serve a first-stage one. */
  readonly depth: 0 | 1;
  /** What is allowed up to here, in the stage of this entry. */
  readonly allows?: { readonly read: boolean; readonly write: boolean };
}

export interface WalkResult {
  readonly steps: readonly WalkStep[];
  readonly outcome: 'translated' | 'pass-through' | 'refused';
  /** With `translated` and `pass-through`. */
  readonly physical: bigint | undefined;
  /** Bytes of the smallest leaf on the way. */
  readonly pageSize: bigint | undefined;
  readonly allows: { readonly read: boolean; readonly write: boolean };
  /** No-snoop requests are made coherent. */
  readonly isSnooped: boolean;
  /** DID of the translation, if the walk came so far. */
  readonly did: number | undefined;
  /** The IOTLB keeps it under the PASID (first stage and nested), or under none. */
  readonly isTaggedByPasid: boolean;
  readonly verdict: string;
}

const hex = (value: bigint | number): string => `0x${value.toString(16)}`;

class Walker {
  readonly #memory: WalkMemory;
  readonly steps: WalkStep[] = [];
  verdict = '';

  constructor(memory: WalkMemory) {
    this.#memory = memory;
  }

  /** Reads and keeps one entry. Undefined: the walk ends here, `verdict` says why. */
  read(
    what: string,
    index: number | undefined,
    address: bigint,
    describe: (value: bigint) => Described,
    depth: 0 | 1 = 0,
    carried?: { read: boolean; write: boolean },
  ): Described | undefined {
    const value = this.#memory.peek(address);
    if (value === undefined) {
      const text = 'no memory';
      this.steps.push({ what, index, address, value, isPresent: false, text, problems: [], depth });
      this.verdict = `The ${what} would lie at ${hex(address)}, where no memory answers.`;
      return undefined;
    }
    const described = describe(value);
    const { isPresent, problems, allows } = described;
    const sum =
      allows === undefined
        ? undefined
        : { read: allows.read && carried?.read !== false, write: allows.write && carried?.write !== false };
    const text = isPresent ? fieldsText(described) : 'not present';
    this.steps.push({
      what,
      index,
      address,
      value,
      isPresent,
      text,
      problems,
      depth,
      ...(sum === undefined ? {} : { allows: sum }),
    });
    if (!isPresent) {
      this.verdict = `The ${what} is not present.`;
      return undefined;
    }
    if (problems.length > 0) {
      this.verdict = `The ${what} is wrong: ${problems.join('; ')}.`;
      return undefined;
    }
    return described;
  }

  /** Further quadwords of a structure, without steps of their own. */
  words(address: bigint, count: number): bigint[] {
    return Array.from({ length: count }, (_, i) => this.#memory.peek(address + BigInt(8 * i)) ?? 0n);
  }
}

interface StageWalk {
  readonly physical: bigint;
  readonly level: number;
  readonly allows: { readonly read: boolean; readonly write: boolean };
  readonly isSnooped: boolean;
}

/** Where the tables of a stage lie: at physical addresses, or (nested) behind a second stage. */
type Place = (address: bigint) => bigint | undefined;

function walkStage(
  walker: Walker,
  stage: Stage,
  top: bigint,
  levels: number,
  address: bigint,
  place: Place,
  depth: 0 | 1,
): StageWalk | undefined {
  const name = stage === 'first' ? 'first stage' : 'second stage';
  const width = 12 + 9 * levels;
  if (stage === 'second' && address >> BigInt(width) !== 0n) {
    walker.verdict = `${hex(address)} has more than the ${width} bits of the ${levels}-level ${name}.`;
    return undefined;
  }
  if (stage === 'first' && BigInt.asUintN(64, BigInt.asIntN(width, address)) !== address) {
    walker.verdict = `${hex(address)} is not canonical: bits ${width} to 63 are not copies of bit ${width - 1}.`;
    return undefined;
  }
  let table = top;
  let allows = { read: true, write: true };
  for (let level = levels; level >= 1; level--) {
    const index = indexAt(address, level);
    const at = place(table + BigInt(index * 8));
    if (at === undefined) return undefined;
    const what = `${name} level ${level} (${LEVEL_NAMES[level]})`;
    const entry = walker.read(what, index, at, (value) => describePageEntry(stage, value, level), depth, allows);
    if (entry === undefined) {
      if (!walker.steps.at(-1)!.isPresent && walker.steps.at(-1)!.value !== undefined) {
        walker.verdict = `Nothing is mapped at ${hex(address)}: the entry of the ${what} is not present.`;
      }
      return undefined;
    }
    allows = { read: allows.read && entry.allows!.read, write: allows.write && entry.allows!.write };
    if (entry.isLeaf === true) {
      const offset = address & ((1n << BigInt(12 + 9 * (level - 1))) - 1n);
      const isSnooped = entry.fields.some((field) => field.name.startsWith('SNP'));
      return { physical: entry.next! + offset, level, allows, isSnooped };
    }
    table = entry.next!;
  }
  throw new Error('a page table without a leaf level');
}

/** Follows a request through the structures of a unit, entry by entry. */
export function explainWalk(memory: WalkMemory, root: WalkRoot, request: WalkRequest): WalkResult {
  const walker = new Walker(memory);
  const end = (more: Partial<WalkResult> = {}): WalkResult => ({
    steps: walker.steps,
    outcome: 'refused',
    physical: undefined,
    pageSize: undefined,
    allows: { read: false, write: false },
    isSnooped: false,
    did: undefined,
    isTaggedByPasid: false,
    verdict: walker.verdict,
    ...more,
  });
  const { iova } = request;
  if (request.pasid < 0 && iova >= 0xfee0_0000n && iova <= 0xfeef_ffffn) {
    return end({ verdict: `${hex(iova)} is in the interrupt window 0xfee00000 to 0xfeefffff: never DMA.` });
  }
  const passThrough = (did: number): WalkResult =>
    end({
      outcome: 'pass-through',
      physical: iova,
      allows: { read: true, write: true },
      did,
      verdict: `Passes through: the physical address is ${hex(iova)}.`,
    });
  return root.isScalable
    ? scalable(walker, root, request, end, passThrough)
    : legacy(walker, root, request, end, passThrough);
}

type End = (more?: Partial<WalkResult>) => WalkResult;

function legacy(
  walker: Walker,
  root: WalkRoot,
  { rid, pasid, iova }: WalkRequest,
  end: End,
  passThrough: (did: number) => WalkResult,
): WalkResult {
  const bus = rid >>> 8;
  const devfn = rid & 255;
  const rootEntry = walker.read('root entry', bus, root.address + BigInt(bus * 16), describeRootEntry);
  if (rootEntry === undefined) return end();
  const at = rootEntry.next! + BigInt(devfn * 16);
  const [low = 0n, high = 0n] = walker.words(at, 2);
  const context = walker.read('context entry', devfn, at, (value) => describeContextEntry(value, high));
  if (context === undefined) return end();
  const did = Number((high >> 8n) & 0xffffn);
  if (pasid >= 0) return end({ did, verdict: 'A request with PASID while the unit is in legacy mode is refused.' });
  if (((low >> 2n) & 3n) === 2n) return passThrough(did);
  const levels = Number(high & 7n) + 2;
  return finish(
    walkStage(walker, 'second', context.next!, levels, iova, (address) => address, 0),
    end,
    did,
    false,
  );
}

function scalable(
  walker: Walker,
  root: WalkRoot,
  { rid, pasid, iova }: WalkRequest,
  end: End,
  passThrough: (did: number) => WalkResult,
): WalkResult {
  const bus = rid >>> 8;
  const devfn = rid & 255;
  const isUpper = devfn >= 128;
  const rootAt = root.address + BigInt(bus * 16 + (isUpper ? 8 : 0));
  const rootEntry = walker.read(`root entry (${isUpper ? 'upper' : 'lower'} half)`, bus, rootAt, describeRootEntry);
  if (rootEntry === undefined) return end();
  const contextAt = rootEntry.next! + BigInt((devfn & 127) * 32);
  const [q0 = 0n, q1 = 0n] = walker.words(contextAt, 2);
  const context = walker.read('context entry', devfn & 127, contextAt, (value) =>
    describeScalableContextEntry(value, q1),
  );
  if (context === undefined) return end();
  const isPasidOn = ((q0 >> 3n) & 1n) === 1n;
  if (pasid >= 0 && !isPasidOn)
    return end({ verdict: 'The context does not allow requests with PASID (PASIDE is clear).' });
  const place = pasid >= 0 ? pasid : Number(q1 & 0xfffffn);
  const room = 2 ** (Number((q0 >> 9n) & 7n) + 7 + 6);
  if (place >= room) return end({ verdict: `PASID ${place} is beyond the directory, which has room for ${room}.` });
  const directoryAt = context.next! + BigInt((place >>> 6) * 8);
  const directory = walker.read('PASID directory entry', place >>> 6, directoryAt, describePasidDirectoryEntry);
  if (directory === undefined) return end();
  const entryAt = directory.next! + BigInt((place & 63) * 64);
  const words = walker.words(entryAt, 8);
  const entry = walker.read(`PASID entry of ${place}`, place & 63, entryAt, () => describePasidEntry(words));
  if (entry === undefined) return end();
  const { walk } = describePasidEntry(words);
  const did = Number(words[1]! & 0xffffn);
  const isPageSnooped = ((words[1]! >> 24n) & 1n) === 1n;
  if (walk.stage === 'pass-through') return passThrough(did);
  if (walk.stage === 'second') {
    const stage = walkStage(walker, 'second', walk.secondTable, walk.secondLevels, iova, (address) => address, 0);
    return finish(stage, end, did, false);
  }
  const firstTop = words[2]! & 0x000f_ffff_ffff_f000n;
  const behind = (address: bigint): bigint | undefined => {
    const inner = walkStage(walker, 'second', walk.secondTable, walk.secondLevels, address, (at) => at, 1);
    if (inner === undefined) return undefined;
    if (inner.allows.read) return inner.physical;
    walker.verdict = `The second stage does not let the first-stage entry at ${hex(address)} be read.`;
    return undefined;
  };
  const isNested = walk.stage === 'nested';
  const first = walkStage(walker, 'first', firstTop, walk.levels, iova, isNested ? behind : (address) => address, 0);
  if (first === undefined || !isNested) return finish(first, end, did, true, isPageSnooped);
  const last = walkStage(walker, 'second', walk.secondTable, walk.secondLevels, first.physical, (at) => at, 1);
  if (last === undefined) return end({ did, isTaggedByPasid: true });
  const allows = { read: first.allows.read && last.allows.read, write: first.allows.write && last.allows.write };
  const level = Math.min(first.level, last.level);
  return finish({ physical: last.physical, level, allows, isSnooped: last.isSnooped }, end, did, true, isPageSnooped);
}

function finish(
  stage: StageWalk | undefined,
  end: End,
  did: number,
  isTaggedByPasid: boolean,
  isPageSnooped = false,
): WalkResult {
  if (stage === undefined) return end({ did, isTaggedByPasid });
  const { physical, level, allows } = stage;
  const rights =
    allows.read && allows.write
      ? 'read and write'
      : allows.read
        ? 'read only'
        : allows.write
          ? 'write only'
          : 'nothing';
  return end({
    outcome: 'translated',
    physical,
    pageSize: 1n << BigInt(12 + 9 * (level - 1)),
    allows,
    isSnooped: stage.isSnooped || isPageSnooped,
    did,
    isTaggedByPasid,
    verdict: `Translated to ${hex(physical)} in a page of ${pageSizeText(level)}, ${rights}.`,
  });
}
