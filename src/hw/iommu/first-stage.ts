/**
 * The hardware's walk of a first stage (VT-d specification, 3.6), alone or nested: then the tables lie in guest memory, and each
 * fetch of an entry, each accessed or dirty bit and the result go through the second stage (a four-level table over a four-level
 * one: 24 entries).
 */
import { FS_A, FS_D, FS_EA, FS_P, FS_PS, FS_RW, FS_US, FS_XD_HIGH } from './fmt/x86-64.ts';
import { indexAt } from './page-table.ts';
import type { Marking, SecondStageWalk, WalkFailure } from './second-stage.ts';
import type { TableMemory } from './table-memory.ts';

/** What a first stage can be set to (fields of the PASID entry of the same names). */
export interface FirstStageSettings {
  readonly page: number;
  readonly levels: number;
  readonly isWriteProtected: boolean;
  readonly hasNoExecute: boolean;
  readonly hasSmep: boolean;
  readonly hasExtendedAccessed: boolean;
  /** Walks are not snooped: accessed and dirty bits cannot be set. */
  readonly isUnmarkable: boolean;
  /** Nested on this one. */
  readonly second: { readonly page: number; readonly levels: number; readonly marking: Marking } | undefined;
}

export type FirstStageFailure =
  | { readonly kind: 'canonical' | 'not present' | 'reserved' | 'user' | 'write' | 'exec' | 'unmarkable' }
  | { readonly kind: 'unreadable'; readonly isTop: boolean }
  /** The second stage said no to the fetch of an entry, to a bit that had to be set in one, or to the result. */
  | {
      readonly kind: 'second';
      readonly of: 'fetch' | 'mark' | 'result';
      readonly isTop: boolean;
      readonly why: WalkFailure;
    };

export class FirstStageWalk {
  readonly #memory: TableMemory;
  readonly #second: SecondStageWalk;
  readonly #largestLeaf: number;
  failure: FirstStageFailure = { kind: 'not present' };
  /** The entry that decided. */
  level = 0;
  low = 0;
  high = 0;
  /** Of the last success: the smaller leaf of both stages, what a user's ordinary request may do, SNP of the second stage. */
  leafLevel = 0;
  permission = 0;
  isSnooped = false;
  mayExecute = false;
  /** Guest-physical page that the first stage gave. */
  output = 0;
  // The way of the walk under way: of each level the table's page, the index and the entry.
  readonly #pages = new Float64Array(5);
  readonly #indexes = new Int32Array(5);
  readonly #lows = new Uint32Array(5);
  readonly #highs = new Uint32Array(5);

  constructor(memory: TableMemory, second: SecondStageWalk, largestLeaf: number) {
    this.#memory = memory;
    this.#second = second;
    this.#largestLeaf = largestLeaf;
  }

  /** The physical page behind `page` (of a 64-bit address), -1: see `failure`. */
  walk(stage: FirstStageSettings, page: number, access: number, isSupervisor: boolean, isExec: boolean): number {
    const { levels } = stage;
    this.level = levels;
    this.low = 0;
    this.high = 0;
    const half = 2 ** (9 * levels - 1);
    if (page >= half && page < 2 ** 52 - half) return this.#fail({ kind: 'canonical' });
    const lower = page & 0x3ffff;
    const upper = (page / 0x40000) | 0;
    let table = stage.page;
    let all = FS_RW | FS_US;
    let anyHigh = 0;
    for (let level = levels - 1; ; level--) {
      this.level = level;
      if (!this.#fetch(stage, table, indexAt(level, lower, upper), level)) return -1;
      const { low, high } = this;
      if ((low & FS_P) === 0) return this.#fail({ kind: 'not present' });
      all &= low;
      anyHigh |= high;
      const target = (high & 0xf_ffff) * 0x10_0000 + (low >>> 12);
      if (level > 0 && (low & FS_PS) === 0) {
        table = target;
        continue;
      }
      // Bit 12 of a large leaf is its memory type.
      const base = level > 0 && target % 2 === 1 ? target - 1 : target;
      if (level > this.#largestLeaf || (level > 0 && base % 512 ** level !== 0))
        return this.#fail({ kind: 'reserved' });
      const isDenied = this.#denied(stage, all, anyHigh, access, isSupervisor, isExec);
      if (isDenied !== undefined) return this.#fail(isDenied);
      if (!this.#markAll(stage, level, access)) return -1;
      return this.#finish(stage, base + (level === 0 ? 0 : page % 512 ** level), all, anyHigh, access);
    }
  }

  /** Reads an entry of the table at `table`, through the second stage when there is one. */
  #fetch(stage: FirstStageSettings, table: number, index: number, level: number): boolean {
    const isTop = level === stage.levels - 1;
    const place = this.#throughSecond(stage, table, 1, 'fetch', isTop);
    if (place < 0) return false;
    if (!this.#memory.load(place, index)) {
      this.#fail({ kind: 'unreadable', isTop });
      return false;
    }
    this.low = this.#memory.low;
    this.high = this.#memory.high;
    this.#pages[level] = table;
    this.#indexes[level] = index;
    this.#lows[level] = this.low;
    this.#highs[level] = this.high;
    return true;
  }

  #throughSecond(
    { second }: FirstStageSettings,
    page: number,
    access: number,
    of: 'fetch' | 'mark' | 'result',
    isTop: boolean,
  ): number {
    if (second === undefined) return page;
    const place = this.#second.walk(second.page, second.levels, page, access, second.marking);
    if (place < 0) this.#fail({ kind: 'second', of, isTop, why: this.#second.failure });
    return place;
  }

  #denied(
    stage: FirstStageSettings,
    all: number,
    anyHigh: number,
    access: number,
    isSupervisor: boolean,
    isExec: boolean,
  ): FirstStageFailure | undefined {
    const isUsers = (all & FS_US) !== 0;
    if (!isSupervisor && !isUsers) return { kind: 'user' };
    if ((access & 2) !== 0 && (all & FS_RW) === 0 && (!isSupervisor || stage.isWriteProtected))
      return { kind: 'write' };
    if (isExec) {
      const isData = stage.hasNoExecute && (anyHigh & FS_XD_HIGH) !== 0;
      if (isData || (isSupervisor && isUsers && stage.hasSmep)) return { kind: 'exec' };
    }
    return undefined;
  }

  /** Accessed bits of every entry on the way, dirty in the leaf for a write. */
  #markAll(stage: FirstStageSettings, leafLevel: number, access: number): boolean {
    const accessed = FS_A | (stage.hasExtendedAccessed ? FS_EA : 0);
    for (let level = stage.levels - 1; level >= leafLevel; level--) {
      const low = this.#lows[level]!;
      const wanted = low | accessed | (level === leafLevel && (access & 2) !== 0 ? FS_D : 0);
      if (wanted >>> 0 === low) continue;
      this.level = level;
      if (stage.isUnmarkable) {
        this.#fail({ kind: 'unmarkable' });
        return false;
      }
      const isTop = level === stage.levels - 1;
      const place = this.#throughSecond(stage, this.#pages[level]!, 3, 'mark', isTop);
      if (place < 0) return false;
      this.#memory.store(place, this.#indexes[level]!, wanted >>> 0, this.#highs[level]!);
      if (level === leafLevel) this.low = wanted >>> 0;
    }
    this.level = leafLevel;
    return true;
  }

  #finish(stage: FirstStageSettings, output: number, all: number, anyHigh: number, access: number): number {
    const level = this.level;
    this.output = output;
    const isUsers = (all & FS_US) !== 0;
    const canWrite = (all & FS_RW) !== 0 && (this.low & FS_D) !== 0;
    let permission = isUsers ? (canWrite ? 3 : 1) : 0;
    this.leafLevel = level;
    this.isSnooped = false;
    this.mayExecute = !stage.hasNoExecute || (anyHigh & FS_XD_HIGH) === 0;
    const { second } = stage;
    if (second !== undefined) {
      const place = this.#throughSecond(stage, output, access, 'result', false);
      if (place < 0) return -1;
      const walk = this.#second;
      this.leafLevel = Math.min(level, walk.level);
      this.isSnooped = walk.isSnooped;
      permission &= walk.permission;
      if (second.marking !== 'off' && !walk.isDirty) permission &= ~2;
      this.permission = permission;
      return place;
    }
    this.permission = permission;
    return output;
  }

  #fail(failure: FirstStageFailure): -1 {
    this.failure = failure;
    return -1;
  }
}
