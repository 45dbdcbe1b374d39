/**
 * What is said of a refused walk: beside the reason a sentence with the level and the entry where it ended.
 */
import type { Access } from '../pci/dma.ts';
import type { FirstStageWalk } from './first-stage.ts';
import { entryValue } from './fmt/format.ts';
import { firstStageRefusal, type Refusal, secondStageRefusal } from './reasons.ts';
import type { UnitCapabilities } from './registers.ts';
import type { SecondStageWalk } from './second-stage.ts';

export interface Refused {
  readonly refusal: Refusal;
  readonly detail: string;
}

/** Of a walk of a second stage alone. */
export function describeSecond(
  walk: SecondStageWalk,
  access: Access,
  isScalable: boolean,
  { mgaw, canEnforceCoherency }: UnitCapabilities,
): Refused {
  const { failure, level } = walk;
  const refusal = secondStageRefusal(failure, access, isScalable);
  const entry = entryText(walk);
  switch (failure) {
    case 'beyond':
      return { refusal, detail: `the address has more than the ${mgaw} bits of this unit` };
    case 'permission': {
      const kind = access === 2 ? 'write' : 'read';
      return { refusal, detail: `no ${kind} permission in the leaf at level ${level} (${entry})` };
    }
    case 'not present':
      return { refusal, detail: `not present at level ${level} (${entry})` };
    case 'reserved':
      return { refusal, detail: reservedText(walk, level, entry, canEnforceCoherency) };
    default:
      return { refusal, detail: `${refusal.short} at level ${level} (page 0x${walk.page.toString(16)})` };
  }
}

/** Of a walk of a first stage, and of the second one below it if there is one. */
export function describeFirst(walk: FirstStageWalk, second: SecondStageWalk, access: Access): Refused {
  const { failure, level } = walk;
  const refusal = firstStageRefusal(failure, access);
  const at = failure.kind === 'canonical' ? '' : ` at level ${level} of the first stage (${entryText(walk)})`;
  const below = failure.kind === 'second' ? `, level ${second.level} of the second (${entryText(second)})` : '';
  return { refusal, detail: `${refusal.short}${at}${below}` };
}

function entryText({ low, high }: { readonly low: number; readonly high: number }): string {
  return `entry 0x${entryValue(low, high).toString(16)}`;
}

function reservedText(walk: SecondStageWalk, level: number, entry: string, canSnoop: boolean): string {
  if (walk.isSnooped && !canSnoop) return `${entry} has SNP, which this unit lacks`;
  return level > 2 ? `a leaf at level ${level} (${entry})` : entry;
}
