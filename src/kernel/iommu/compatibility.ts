/**
 * What a domain needs of a unit: how deep its tables are, and why a device behind another unit cannot be attached to it.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { Errno } from '../../lib/errno.ts';
import type { Domain, DomainKind, DomainOptions, GuestStage } from './domain.ts';

/** The second-stage depth that a unit's domains get: as many bits as both MGAW and SAGAW allow, by as few levels as the unit walks. */
export function levelsFor(unit: IommuUnit): { levels: number; width: number } {
  const { mgaw, levels } = unit.capabilities;
  for (const wanted of [5, 4, 3]) {
    const narrower = 12 + 9 * (wanted - 1);
    const walked = levels.find((known) => known >= wanted);
    if (mgaw > narrower && walked !== undefined) return { levels: walked, width: Math.min(12 + 9 * wanted, mgaw) };
  }
  throw new Errno('ENODEV', `unit ${unit.name} walks no second-stage tables`);
}

/** First stages have all the levels that the unit walks; addresses are of the lower half, so that none has to be sign-extended. */
export function firstStageFor(unit: IommuUnit): { levels: number; width: number } {
  const levels = unit.capabilities.hasFirstStage5Level ? 5 : 4;
  return { levels, width: 12 + 9 * levels - 1 };
}

/** EOPNOTSUPP: the unit cannot do what a new domain is to do. */
export function requireAbilities(
  unit: IommuUnit,
  kind: DomainKind,
  stage: 'first' | 'second' | undefined,
  options: DomainOptions,
): void {
  const { capabilities } = unit;
  const isScalable = unit.mode === 'scalable';
  const refuse = (what: string): never => {
    throw new Errno('EOPNOTSUPP', `unit ${unit.name} has no ${what}`);
  };
  if (stage === 'first' && !(isScalable && capabilities.hasFirstStage)) refuse('first stage');
  if (stage === 'second' && isScalable && !capabilities.hasSecondStage) refuse('second stage');
  if (options.hasDirtyTracking === true && !(isScalable && capabilities.canTrackDirty && stage === 'second')) {
    refuse('second-stage dirty bits');
  }
  if (options.isNestParent === true && !(isScalable && capabilities.hasNesting && stage === 'second'))
    refuse('nesting');
  if (kind === 'sva' && !capabilities.hasPasid) refuse('PASIDs');
}

/** Why devices behind `unit` cannot be attached to a domain that is not nested; undefined: they can. */
export function obstacle(domain: Domain, unit: IommuUnit, enforcesCoherency: boolean): string | undefined {
  const { capabilities, name } = unit;
  if (domain.kind === 'identity') return capabilities.hasPassThrough ? undefined : `unit ${name} has no pass-through`;
  const table = domain.table!;
  if (table.pool !== unit.tables) return `unit ${name} cannot reach the memory of the domain's tables`;
  if (enforcesCoherency && !unit.canEnforceCoherency) {
    return `the domain makes no-snoop DMA coherent, which unit ${name} cannot`;
  }
  if (domain.stage === 'first') return firstStageObstacle(domain, unit);
  if (capabilities.mgaw < Math.log2(domain.lastPage + 1) + 12) {
    return `the domain has more address bits than the ${capabilities.mgaw} of unit ${name}`;
  }
  if (!capabilities.levels.includes(table.levels)) return `unit ${name} does not walk ${table.levels} levels`;
  if (capabilities.largestLeaf < table.largestLeaf) return `unit ${name} lacks the leaf sizes of the domain`;
  if (domain.options.hasDirtyTracking === true && !(unit.mode === 'scalable' && capabilities.canTrackDirty)) {
    return `unit ${name} sets no dirty bits`;
  }
  return undefined;
}

function firstStageObstacle(domain: Domain, unit: IommuUnit): string | undefined {
  const { capabilities, name } = unit;
  const table = domain.table!;
  if (unit.mode !== 'scalable' || !capabilities.hasFirstStage) return `unit ${name} has no first stage`;
  if (table.levels === 5 && !capabilities.hasFirstStage5Level) return `unit ${name} walks no 5-level first stage`;
  if (table.largestLeaf === 2 && !capabilities.hasFirstStage1G)
    return `unit ${name} lacks the leaf sizes of the domain`;
  return undefined;
}

/** Why a guest's first stage cannot be walked by `unit`. */
export function guestObstacle({ addressWidth, flags }: GuestStage, unit: IommuUnit): string | undefined {
  const { capabilities, name } = unit;
  if (!capabilities.hasNesting) return `unit ${name} does not nest`;
  if (addressWidth === 57 && !capabilities.hasFirstStage5Level) return `unit ${name} walks no 5-level first stage`;
  if (flags?.sre === true && !capabilities.hasSupervisorRequests) return `unit ${name} has no supervisor requests`;
  if (flags?.eafe === true && !capabilities.hasExtendedAccessed) return `unit ${name} sets no extended accessed flag`;
  return undefined;
}
