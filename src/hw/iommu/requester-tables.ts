/**
 * The way from a requester id and a PASID through root table, context table, PASID directory and PASID table to the tables that
 * translate, as it stands in memory at this moment.
 */
import {
  type PasidEntry,
  pageOf,
  pasidIndexes,
  pasidsOf,
  readLegacyContext,
  readPasidEntry,
  readScalableContext,
} from './entries.ts';
import { FaultReason } from './faults.ts';
import type { FirstStageSettings } from './first-stage.ts';
import { vtdss } from './fmt/vtdss.ts';
import { x86_64 } from './fmt/x86-64.ts';
import type { Iotlb, IotlbSpace } from './iotlb.ts';
import type { PageTable } from './page-table.ts';
import type { UnitCapabilities } from './registers.ts';
import type { Marking } from './second-stage.ts';
import type { TableMemory } from './table-memory.ts';

/** How the requests of a requester id and PASID are translated. */
export interface Binding {
  readonly rid: number;
  /** Of the requests, -1 for those without. */
  readonly pasid: number;
  readonly did: number;
  readonly isFaultRecordingOff: boolean;
  readonly space: IotlbSpace;
  /** Neither stage: pass-through. */
  readonly second: { readonly page: number; readonly levels: number; readonly marking: Marking } | undefined;
  readonly first: FirstStageSettings | undefined;
  /** All requests go snooped (PGSNP). */
  readonly isPageSnooped: boolean;
  readonly allowsSupervisor: boolean;
  readonly allowsExec: boolean;
  /** The table of the only stage, when it is one of the machine's own: it has a faster walk. */
  readonly table: PageTable | undefined;
  /** Pages below this one may be walked fast. */
  readonly fastLimit: number;
  readonly context: CachedContext;
}

export interface CachedContext {
  readonly rid: number;
  /** Of a legacy context, -1: each PASID has its own. */
  readonly did: number;
  readonly isFaultRecordingOff: boolean;
  readonly hasDeviceTlb: boolean;
  readonly hasPasids: boolean;
  readonly hasPageRequests: boolean;
  readonly pdts: number;
  readonly directoryPage: number;
  readonly ridPasid: number;
  readonly pasids: Map<number, Binding>;
}

/** Why a requester has no binding. */
export interface EntryFault {
  readonly reason: FaultReason;
  readonly short: string;
  readonly detail: string;
  readonly isFaultRecordingOff: boolean;
}

export function isEntryFault(found: Binding | CachedContext | EntryFault): found is EntryFault {
  return 'short' in found;
}

export interface RootPointer {
  readonly page: number;
  readonly isScalable: boolean;
  /** The register's mode bits are none of the known modes. */
  readonly isInvalid: boolean;
}

export class RequesterTables {
  readonly #memory: TableMemory;
  readonly #iotlb: Iotlb;
  readonly #capabilities: UnitCapabilities;
  readonly #marksLegacy: boolean;

  /** `marksLegacy`: accessed and dirty bits are set in legacy mode too. */
  constructor(memory: TableMemory, iotlb: Iotlb, capabilities: UnitCapabilities, marksLegacy: boolean) {
    this.#memory = memory;
    this.#iotlb = iotlb;
    this.#capabilities = capabilities;
    this.#marksLegacy = marksLegacy;
  }

  /** Reads a context entry; of a legacy one the binding is in `pasids`. */
  readContext(root: RootPointer, rid: number): CachedContext | EntryFault {
    return root.isScalable ? this.#scalableContext(root, rid) : this.#legacyContext(root, rid);
  }

  #legacyContext(root: RootPointer, rid: number): CachedContext | EntryFault {
    const words = this.#contextWords(root, rid, 4);
    if (!(words instanceof Uint32Array)) return words;
    const text = `the context entry of ${ridText(rid)}`;
    const decoded = readLegacyContext(words);
    const isQuiet = (words[0]! & 2) !== 0;
    if (decoded === 'not present') {
      return refused(FaultReason.CONTEXT_NOT_PRESENT, 'blocked', `${text} is not present`, isQuiet);
    }
    if (decoded === 'reserved') {
      return refused(FaultReason.CONTEXT_RESERVED, 'reserved bits', `${text} has reserved bits set`, isQuiet);
    }
    if (decoded === 'invalid' || !this.#walks(decoded.secondStage?.levels)) {
      return refused(FaultReason.CONTEXT_INVALID, 'invalid entry', `${text} is not valid for this unit`, isQuiet);
    }
    const { did, secondStage } = decoded;
    const context: CachedContext = {
      rid,
      did,
      isFaultRecordingOff: decoded.isFaultRecordingOff,
      hasDeviceTlb: decoded.hasDeviceTlb,
      hasPasids: false,
      hasPageRequests: false,
      pdts: 0,
      directoryPage: 0,
      ridPasid: -1,
      pasids: new Map(),
    };
    const marking = this.#marksLegacy ? 'on' : 'off';
    context.pasids.set(-1, {
      rid,
      pasid: -1,
      did,
      isFaultRecordingOff: decoded.isFaultRecordingOff,
      space: this.#iotlb.space(did, -1),
      second: secondStage === undefined ? undefined : { ...secondStage, marking },
      first: undefined,
      isPageSnooped: false,
      allowsSupervisor: false,
      allowsExec: false,
      table: this.#marksLegacy ? undefined : this.#ownTable(secondStage, vtdss.name),
      fastLimit: this.#secondLimit(secondStage),
      context,
    });
    return context;
  }

  #scalableContext(root: RootPointer, rid: number): CachedContext | EntryFault {
    const words = this.#contextWords(root, rid, 8);
    if (!(words instanceof Uint32Array)) return words;
    const text = `the context entry of ${ridText(rid)}`;
    const decoded = readScalableContext(words);
    const isQuiet = (words[0]! & 2) !== 0;
    if (decoded === 'not present') {
      return refused(FaultReason.SM_CONTEXT_NOT_PRESENT, 'blocked', `${text} is not present`, isQuiet);
    }
    if (decoded === 'reserved') {
      return refused(FaultReason.SM_CONTEXT_RESERVED, 'reserved bits', `${text} has reserved bits set`, isQuiet);
    }
    const { hasPasid, hasPageRequests, hasDeviceTlb } = this.#capabilities;
    if (
      decoded === 'invalid' ||
      (decoded.hasPasids && !hasPasid) ||
      (decoded.hasPageRequests && !hasPageRequests) ||
      (decoded.hasDeviceTlb && !hasDeviceTlb)
    ) {
      return refused(FaultReason.SM_CONTEXT_INVALID, 'invalid entry', `${text} is not valid for this unit`, isQuiet);
    }
    return { ...decoded, rid, did: -1, pasids: new Map() };
  }

  /** The words of a context entry, by way of the root entry. */
  #contextWords(root: RootPointer, rid: number, words: 4 | 8): Uint32Array | EntryFault {
    const memory = this.#memory;
    const bus = rid >>> 8;
    const devfn = rid & 255;
    const { isScalable, page, isInvalid } = root;
    if (isInvalid) {
      return refused(FaultReason.ROOT_TABLE_ADDRESS_INVALID, 'blocked', 'RTADDR has an unknown mode', false);
    }
    // Of a scalable root entry the low half is for devfn 0 to 127, of a legacy one it is all there is.
    const isUpper = isScalable && devfn >= 128;
    const text = `the root entry of ${ridText(rid)}`;
    if (!memory.load(page, bus * 2 + (isUpper ? 1 : 0))) {
      const reason = isScalable ? FaultReason.SM_ROOT_UNREADABLE : FaultReason.ROOT_POINTER_INVALID;
      return refused(reason, 'table not in memory', `no memory at ${text}`, false);
    }
    const { low, high } = memory;
    if ((low & 1) === 0) {
      const reason = isScalable ? FaultReason.SM_ROOT_NOT_PRESENT : FaultReason.ROOT_NOT_PRESENT;
      return refused(reason, 'blocked', `${text} is not present`, false);
    }
    const rest = isScalable ? 0 : this.#rootRest(page, bus);
    if ((low & 0xffe) !== 0 || high >>> 20 !== 0 || rest !== 0) {
      const reason = isScalable ? FaultReason.SM_ROOT_RESERVED : FaultReason.ROOT_RESERVED;
      return refused(reason, 'reserved bits', `${text} has reserved bits set`, false);
    }
    const first = (isScalable ? devfn & 127 : devfn) * (words / 2);
    const entry = this.#words(pageOf(low, high), first, words);
    if (entry !== undefined) return entry;
    const reason = isScalable ? FaultReason.SM_CONTEXT_UNREADABLE : FaultReason.CONTEXT_POINTER_INVALID;
    return refused(reason, 'table not in memory', `no memory at the context entry of ${ridText(rid)}`, false);
  }

  #rootRest(page: number, bus: number): number {
    return this.#memory.load(page, bus * 2 + 1) ? this.#memory.low | this.#memory.high : 0;
  }

  /** Reads the entry of a PASID, for -1 that of requests without. */
  readBinding(context: CachedContext, pasid: number): Binding | EntryFault {
    const isQuiet = context.isFaultRecordingOff;
    if (context.did >= 0) {
      const detail = `a request with PASID ${pasid} while the unit is in legacy mode`;
      return refused(FaultReason.PASID_IN_LEGACY_MODE, 'no PASIDs', detail, isQuiet);
    }
    if (pasid >= 0 && !context.hasPasids) {
      const detail = `the context entry of ${ridText(context.rid)} allows no PASIDs`;
      return refused(FaultReason.PASIDE_CLEAR, 'no PASIDs', detail, isQuiet);
    }
    const place = pasid < 0 ? context.ridPasid : pasid;
    if (place >= pasidsOf(context.pdts)) {
      const reason = pasid < 0 ? FaultReason.RID_PASID_TOO_LARGE : FaultReason.PASID_TOO_LARGE;
      return refused(reason, 'PASID too large', `PASID ${place} is beyond the directory`, isQuiet);
    }
    const words = this.#pasidWords(context, place);
    if (!(words instanceof Uint32Array)) return words;
    const decoded = readPasidEntry(words);
    const text = `the entry of PASID ${place} of ${ridText(context.rid)}`;
    const isEntryQuiet = isQuiet || (words[0]! & 2) !== 0;
    if (decoded === 'not present') {
      return refused(FaultReason.PASID_ENTRY_NOT_PRESENT, 'blocked', `${text} is not present`, isEntryQuiet);
    }
    if (decoded === 'reserved') {
      return refused(FaultReason.PASID_ENTRY_RESERVED, 'reserved bits', `${text} has reserved bits set`, isEntryQuiet);
    }
    if (decoded === 'invalid' || !this.#isPossible(decoded)) {
      const detail = `${text} is not valid for this unit`;
      return refused(FaultReason.PASID_ENTRY_INVALID, 'invalid entry', detail, isEntryQuiet);
    }
    return this.#bind(context, pasid, place, decoded, isEntryQuiet);
  }

  #pasidWords(context: CachedContext, place: number): Uint32Array | EntryFault {
    const memory = this.#memory;
    const { directory, table } = pasidIndexes(place);
    const isQuiet = context.isFaultRecordingOff;
    const text = `entry ${directory} of the PASID directory of ${ridText(context.rid)}`;
    if (!memory.load(context.directoryPage, directory)) {
      return refused(FaultReason.PASID_DIRECTORY_UNREADABLE, 'table not in memory', `no memory at ${text}`, isQuiet);
    }
    const { low, high } = memory;
    const isEntryQuiet = isQuiet || (low & 2) !== 0;
    if ((low & 1) === 0) {
      return refused(FaultReason.PASID_DIRECTORY_NOT_PRESENT, 'blocked', `${text} is not present`, isEntryQuiet);
    }
    if ((low & 0xffc) !== 0 || high >>> 20 !== 0) {
      const detail = `${text} has reserved bits set`;
      return refused(FaultReason.PASID_DIRECTORY_RESERVED, 'reserved bits', detail, isEntryQuiet);
    }
    const words = this.#words(pageOf(low, high), table * 8, 16);
    if (words !== undefined) return words;
    const detail = `no memory at the entry of PASID ${place} of ${ridText(context.rid)}`;
    return refused(FaultReason.PASID_ENTRY_UNREADABLE, 'table not in memory', detail, isEntryQuiet);
  }

  #bind(
    context: CachedContext,
    pasid: number,
    place: number,
    entry: Required<PasidEntry>,
    isFaultRecordingOff: boolean,
  ): Binding {
    const hasFirst = entry.type === 'first' || entry.type === 'nested';
    const hasSecond = entry.type === 'second' || entry.type === 'nested';
    const marking: Marking = !entry.hasSecondStageDirty ? 'off' : entry.isWalkSnooped ? 'on' : 'blocked';
    const second = hasSecond ? { ...entry.secondStage, marking } : undefined;
    const first = hasFirst
      ? {
          ...entry.firstStage,
          isWriteProtected: entry.isWriteProtected,
          hasNoExecute: entry.hasNoExecute,
          hasSmep: entry.hasSmep,
          hasExtendedAccessed: entry.hasExtendedAccessed,
          isUnmarkable: !entry.isWalkSnooped,
          second,
        }
      : undefined;
    return {
      rid: context.rid,
      pasid,
      did: entry.did,
      isFaultRecordingOff,
      space: this.#iotlb.space(entry.did, hasFirst ? place : -1),
      second,
      first,
      isPageSnooped: entry.isPageSnooped,
      allowsSupervisor: entry.allowsSupervisor,
      allowsExec: entry.allowsExec,
      table:
        first === undefined
          ? marking === 'off'
            ? this.#ownTable(second, vtdss.name)
            : undefined
          : second === undefined
            ? this.#ownTable(first, x86_64.name)
            : undefined,
      fastLimit: first === undefined ? this.#secondLimit(second) : 2 ** (9 * first.levels - 1),
      context,
    };
  }

  #secondLimit(stage: { readonly levels: number } | undefined): number {
    return 2 ** Math.min(this.#capabilities.mgaw - 12, 9 * (stage?.levels ?? 4));
  }

  #isPossible(entry: Required<PasidEntry>): boolean {
    const { hasFirstStage, hasFirstStage5Level, hasSecondStage, hasNesting, canEnforceCoherency, hasPassThrough } =
      this.#capabilities;
    const { type } = entry;
    if (entry.isPageSnooped && !canEnforceCoherency) return false;
    if (type === 'pass-through') return hasPassThrough;
    if (type !== 'first' && (!hasSecondStage || !this.#walks(entry.secondStage.levels))) return false;
    if (type !== 'second' && (!hasFirstStage || (entry.firstStage.levels === 5 && !hasFirstStage5Level))) return false;
    if (entry.hasSecondStageDirty && !this.#capabilities.canTrackDirty) return false;
    return type !== 'nested' || hasNesting;
  }

  #walks(levels: number | undefined): boolean {
    return levels === undefined || this.#capabilities.levels.includes(levels);
  }

  #ownTable(stage: { page: number; levels: number } | undefined, format: string): PageTable | undefined {
    if (stage === undefined) return undefined;
    const table = this.#memory.pool.tops.get(stage.page);
    return table?.levels === stage.levels && table.format.name === format ? table : undefined;
  }

  #words(page: number, index: number, count: number): Uint32Array | undefined {
    const words = new Uint32Array(count);
    for (let i = 0; i < count; i += 2) {
      if (!this.#memory.load(page, index + i / 2)) return undefined;
      words[i] = this.#memory.low;
      words[i + 1] = this.#memory.high;
    }
    return words;
  }
}

function refused(reason: FaultReason, short: string, detail: string, isFaultRecordingOff: boolean): EntryFault {
  return { reason, short, detail, isFaultRecordingOff };
}

/** `06:0d.1` */
export function ridText(rid: number): string {
  const devfn = rid & 255;
  const bus = (rid >>> 8).toString(16).padStart(2, '0');
  return `${bus}:${(devfn >>> 3).toString(16).padStart(2, '0')}.${devfn & 7}`;
}
