/**
 * From what a walk met to what is reported: the reason's code in the fault record, and the short stable words for the device.
 */
import { FaultReason } from './faults.ts';
import type { FirstStageFailure } from './first-stage.ts';
import type { WalkFailure } from './second-stage.ts';

export interface Refusal {
  readonly reason: FaultReason;
  readonly short: string;
}

const shortOf: Readonly<Record<WalkFailure, string>> = {
  beyond: 'beyond address width',
  root: 'table not in memory',
  unreadable: 'table not in memory',
  'not present': 'not present',
  reserved: 'reserved bits',
  permission: '',
  unmarkable: 'accessed or dirty bit cannot be set',
};

function denied(access: number): string {
  return access === 2 ? 'no write permission' : 'no read permission';
}

/** Whether a page request can mend what the walk met. */
export function isSecondStageRecoverable(failure: WalkFailure): boolean {
  return failure === 'not present' || failure === 'permission';
}

/** As `isSecondStageRecoverable`, of a first stage, alone or nested. */
export function isFirstStageRecoverable(failure: FirstStageFailure): boolean {
  if (failure.kind === 'second') return isSecondStageRecoverable(failure.why);
  return ['not present', 'user', 'write', 'exec'].includes(failure.kind);
}

/** Of a second stage alone. */
export function secondStageRefusal(failure: WalkFailure, access: number, isScalable: boolean): Refusal {
  const short = failure === 'permission' ? denied(access) : shortOf[failure];
  const isWrite = access === 2;
  if (isScalable) {
    const reasons: Readonly<Record<WalkFailure, FaultReason>> = {
      beyond: FaultReason.SM_BEYOND_WIDTH,
      root: FaultReason.SS_POINTER_INVALID,
      unreadable: FaultReason.SS_UNREADABLE,
      'not present': isWrite ? FaultReason.SM_NO_WRITE_PERMISSION : FaultReason.SM_NO_READ_PERMISSION,
      reserved: FaultReason.SS_RESERVED,
      permission: isWrite ? FaultReason.SM_NO_WRITE_PERMISSION : FaultReason.SM_NO_READ_PERMISSION,
      unmarkable: FaultReason.SS_NOT_MARKABLE,
    };
    return { reason: reasons[failure], short };
  }
  const reasons: Readonly<Record<WalkFailure, FaultReason>> = {
    beyond: FaultReason.BEYOND_MGAW,
    root: FaultReason.NEXT_TABLE_INVALID,
    unreadable: FaultReason.NEXT_TABLE_INVALID,
    'not present': isWrite ? FaultReason.NO_WRITE_PERMISSION : FaultReason.NO_READ_PERMISSION,
    reserved: FaultReason.ENTRY_RESERVED,
    permission: isWrite ? FaultReason.NO_WRITE_PERMISSION : FaultReason.NO_READ_PERMISSION,
    unmarkable: FaultReason.ENTRY_RESERVED,
  };
  return { reason: reasons[failure], short };
}

/** Of a first stage, alone or nested. */
export function firstStageRefusal(failure: FirstStageFailure, access: number): Refusal {
  switch (failure.kind) {
    case 'canonical':
      return { reason: FaultReason.NOT_CANONICAL, short: 'not canonical' };
    case 'not present':
      return { reason: FaultReason.FS_NOT_PRESENT, short: 'not present' };
    case 'reserved':
      return { reason: FaultReason.FS_RESERVED, short: 'reserved bits' };
    case 'user':
      return { reason: FaultReason.SUPERVISOR_ONLY, short: 'supervisor only' };
    case 'write':
      return { reason: FaultReason.SM_NO_WRITE_PERMISSION, short: 'no write permission' };
    case 'exec':
      return { reason: FaultReason.NO_EXECUTE_PERMISSION, short: 'no execute permission' };
    case 'unmarkable':
      return { reason: FaultReason.FS_NOT_MARKABLE, short: shortOf.unmarkable };
    case 'unreadable': {
      const reason = failure.isTop ? FaultReason.FS_TOP_UNREADABLE : FaultReason.FS_UNREADABLE;
      return { reason, short: shortOf.unreadable };
    }
    case 'second':
      return nestedRefusal(failure, access);
  }
}

function nestedRefusal(failure: FirstStageFailure & { kind: 'second' }, access: number): Refusal {
  const { of, why, isTop } = failure;
  const short = `second stage: ${why === 'permission' ? denied(of === 'mark' ? 2 : of === 'fetch' ? 1 : access) : shortOf[why]}`;
  switch (why) {
    case 'beyond':
      return { reason: of === 'result' ? FaultReason.SS_BEYOND_WIDTH : FaultReason.FS_BEYOND_MGAW, short };
    case 'root':
      return { reason: FaultReason.SS_POINTER_INVALID, short };
    case 'unreadable':
      return { reason: FaultReason.SS_UNREADABLE, short };
    case 'reserved':
      return { reason: FaultReason.SS_RESERVED, short };
    case 'unmarkable':
      return { reason: FaultReason.SS_NOT_MARKABLE, short };
    default: {
      const fetch = isTop ? FaultReason.FS_TOP_NO_READ_PERMISSION : FaultReason.FS_NO_READ_PERMISSION;
      const reasons = {
        fetch,
        mark: FaultReason.FS_NO_WRITE_PERMISSION,
        result: FaultReason.SS_NO_PERMISSION,
      };
      return { reason: reasons[of], short };
    }
  }
}
