/**
 * What the PASID entry of an attached domain says.
 */
import type { PasidEntry } from '../../hw/iommu/entries.ts';
import type { Domain, GuestStage } from './domain.ts';

/** `guest`: of a nested domain the guest's first stage. `did`: its domain id there. */
export function entryOf(
  domain: Domain,
  guest: GuestStage | undefined,
  did: number,
  isWalkSnooped: boolean,
): PasidEntry {
  const { parent, table } = domain;
  if (parent !== undefined && guest !== undefined) {
    const { pageTable, addressWidth, flags } = guest;
    const below = parent.table!;
    return {
      type: 'nested',
      did,
      isWalkSnooped,
      secondStage: { page: below.top, levels: below.levels },
      firstStage: { page: Number(pageTable >> 12n), levels: addressWidth === 57 ? 5 : 4 },
      hasSecondStageDirty: parent.isDirtyTracking,
      isPageSnooped: parent.enforcesCoherency,
      allowsSupervisor: flags?.sre ?? false,
      isWriteProtected: flags?.wpe ?? false,
      hasExtendedAccessed: flags?.eafe ?? false,
    };
  }
  if (table === undefined) return { type: 'pass-through', did, isWalkSnooped };
  const stage = { page: table.top, levels: table.levels };
  if (domain.stage === 'first') {
    return { type: 'first', did, isWalkSnooped, firstStage: stage, isPageSnooped: domain.enforcesCoherency };
  }
  return { type: 'second', did, isWalkSnooped, secondStage: stage, hasSecondStageDirty: domain.isDirtyTracking };
}
