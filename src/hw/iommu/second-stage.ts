/**
 * The hardware's walk of a second stage (VT-d specification, 3.7): every entry is read from memory and every bit of it looked at.
 * page-table.ts has a faster walk for tables that only the mapper has written; what that one does not translate comes here.
 */
import { SS_A, SS_D, SS_PS, SS_SNP } from './fmt/vtdss.ts';
import { indexAt } from './page-table.ts';
import type { TableMemory } from './table-memory.ts';

/** Why a walk came to no end. */
export type WalkFailure =
  | 'beyond' // the address has more bits than the tables
  | 'root' // no memory answers where the top table should be
  | 'unreadable' // nor where a lower one should
  | 'not present'
  | 'reserved' // bits are set that must not be
  | 'permission'
  | 'unmarkable'; // an accessed or dirty bit must be set and cannot be

export interface SecondStageRules {
  /** Highest level of a leaf. */
  readonly largestLeaf: number;
  /** Leaves may have SNP. */
  readonly canSnoop: boolean;
}

/** What hardware does with accessed and dirty bits: nothing, sets them, or has to and may not (walks are not snooped). */
export type Marking = 'off' | 'on' | 'blocked';

export class SecondStageWalk {
  readonly #memory: TableMemory;
  readonly #rules: SecondStageRules;
  failure: WalkFailure = 'not present';
  /** The entry that decided: its level, halves and place. */
  level = 0;
  low = 0;
  high = 0;
  page = 0;
  index = 0;
  /** AND of READ|WRITE along the way. */
  permission = 0;

  constructor(memory: TableMemory, rules: SecondStageRules) {
    this.#memory = memory;
    this.#rules = rules;
  }

  get isSnooped(): boolean {
    return (this.low & SS_SNP) !== 0;
  }

  get isDirty(): boolean {
    return (this.low & SS_D) !== 0;
  }

  /** The physical page behind `page`, -1: see `failure`. `access`: READ|WRITE bits that must be allowed all the way. */
  walk(top: number, levels: number, page: number, access: number, marking: Marking): number {
    this.level = levels;
    this.low = 0;
    this.high = 0;
    if (page >= 2 ** (9 * levels)) return this.#fail('beyond');
    const memory = this.#memory;
    const lower = page & 0x3ffff;
    const upper = (page / 0x40000) | 0;
    let table = top;
    let permission = 3;
    for (let level = levels - 1; ; level--) {
      const index = indexAt(level, lower, upper);
      this.level = level;
      this.page = table;
      this.index = index;
      if (!memory.load(table, index)) {
        this.low = 0;
        this.high = 0;
        return this.#fail(level === levels - 1 ? 'root' : 'unreadable');
      }
      const { low, high } = memory;
      this.low = low;
      this.high = high;
      if ((low & 3) === 0) return this.#fail('not present');
      permission &= low;
      const target = (high & 0xf_ffff) * 0x10_0000 + (low >>> 12);
      if (level === 0 || (low & SS_PS) !== 0) {
        if (!this.#isWellFormed(level, low, target)) return this.#fail('reserved');
        this.permission = permission;
        if ((permission & access) !== access) return this.#fail('permission');
        if (marking !== 'off' && !this.#mark(access, marking)) return this.#fail('unmarkable');
        return target + (level === 0 ? 0 : page % 512 ** level);
      }
      if ((low & SS_SNP) !== 0) return this.#fail('reserved');
      table = target;
    }
  }

  #isWellFormed(level: number, low: number, target: number): boolean {
    const { largestLeaf, canSnoop } = this.#rules;
    if (level > largestLeaf || ((low & SS_SNP) !== 0 && !canSnoop)) return false;
    return level === 0 || target % 512 ** level === 0;
  }

  #mark(access: number, marking: Marking): boolean {
    const wanted = this.low | SS_A | ((access & 2) !== 0 ? SS_D : 0);
    if (wanted >>> 0 === this.low) return true;
    if (marking === 'blocked') return false;
    this.low = wanted >>> 0;
    return this.#memory.store(this.page, this.index, this.low, this.high);
  }

  #fail(failure: WalkFailure): -1 {
    this.failure = failure;
    return -1;
  }
}
