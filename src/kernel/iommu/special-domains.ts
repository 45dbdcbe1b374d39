/**
 * Domains that nobody maps: those of a guest's own tables, and the two that every unit has one of.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { Errno } from '../../lib/errno.ts';
import { Domain, type DomainKind, type GuestStage } from './domain.ts';

/**
 * A guest's first stage above `parent`, which translates the guest's physical addresses. EOPNOTSUPP: the unit does not nest. EINVAL:
 * the parent was not made for it, or the address width is neither 48 nor 57.
 */
export function nestedDomain(parent: Domain, guest: GuestStage): Domain {
  if (!parent.unit.capabilities.hasNesting || parent.unit.mode !== 'scalable') {
    throw new Errno('EOPNOTSUPP', `unit ${parent.unit.name} does not nest`);
  }
  if (parent.stage !== 'second' || parent.options.isNestParent !== true) {
    throw new Errno('EINVAL', 'nothing can be nested on this domain');
  }
  if (guest.addressWidth !== 48 && guest.addressWidth !== 57) {
    throw new Errno('EINVAL', `a first stage has 48 or 57 address bits, not ${guest.addressWidth}`);
  }
  return new Domain(parent.unit, 'nested', {}, { parent, guest });
}

const blocked = new WeakMap<IommuUnit, Domain>();
const identity = new WeakMap<IommuUnit, Domain>();

/** The one domain of a unit in which nothing is reachable. */
export function blockedDomain(unit: IommuUnit): Domain {
  return staticDomain(blocked, unit, 'blocked');
}

/** The one domain of a unit in which IOVAs are physical addresses. */
export function identityDomain(unit: IommuUnit): Domain {
  return staticDomain(identity, unit, 'identity');
}

function staticDomain(known: WeakMap<IommuUnit, Domain>, unit: IommuUnit, kind: DomainKind): Domain {
  let domain = known.get(unit);
  if (domain === undefined) {
    domain = new Domain(unit, kind);
    known.set(unit, domain);
  }
  return domain;
}
