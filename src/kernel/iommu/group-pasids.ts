/**
 * The PASIDs of a group: which domain each of them reaches, for all members that have PASIDs. Members move together: when one cannot,
 * all are where they were.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import { maxPasids } from './device-abilities.ts';
import type { Domain } from './domain.ts';
import type { ReservedRegion } from './reserved-regions.ts';

/** A function in a group. */
export interface Member {
  readonly fn: PciFunction;
  /** Requester IDs under which its DMA arrives: its own and its aliases. */
  readonly rids: readonly number[];
  /** Why it is in this group. */
  readonly reason: string;
  readonly reserved: readonly ReservedRegion[];
  /** Resets under way; its requests are blocked while there is one. */
  resets: number;
  isBlocked: boolean;
}

export class GroupPasids {
  readonly #group: number;
  readonly #unit: IommuUnit;
  readonly #domains = new Map<number, Domain>();

  /** `group`: its id, for what is said. */
  constructor(group: number, unit: IommuUnit) {
    this.#group = group;
    this.#unit = unit;
  }

  /** EOPNOTSUPP, EINVAL, EBUSY: the PASID cannot be attached, as `IommuGroup.attachPasid` says. */
  check(members: Iterable<Member>, pasid: number, isInReset: boolean): void {
    const most = [...members].map(({ fn }) => maxPasids(fn, this.#unit)).filter((count) => count > 0);
    if (most.length === 0) throw new Errno('EOPNOTSUPP', `no member of group ${this.#group} has PASIDs`);
    if (pasid === 0) throw new Errno('EINVAL', 'PASID 0 stands for requests without PASID');
    if (isInReset) throw new Errno('EBUSY', `a member of group ${this.#group} is in reset`);
    const least = Math.min(...most);
    if (!(pasid > 0 && pasid < least)) {
      throw new Errno('EINVAL', `PASID ${pasid} is beyond the ${least} of a member of group ${this.#group}`);
    }
  }

  /** EBUSY: it is attached. Errors of `Domain.attachDevice`. */
  attach(members: Iterable<Member>, domain: Domain, pasid: number): void {
    if (this.#domains.has(pasid))
      throw new Errno('EBUSY', `PASID ${pasid} of group ${this.#group} is attached already`);
    this.#enterAll(members, domain, pasid, undefined);
  }

  /** EINVAL: it is not attached. Errors of `Domain.attachDevice`. */
  replace(members: Iterable<Member>, domain: Domain, pasid: number): void {
    const old = this.#domains.get(pasid);
    if (old === undefined) throw new Errno('EINVAL', `PASID ${pasid} of group ${this.#group} is not attached`);
    if (old !== domain) this.#enterAll(members, domain, pasid, old);
  }

  detach(members: Iterable<Member>, pasid: number): void {
    const domain = this.#domains.get(pasid);
    if (domain === undefined) return;
    this.#domains.delete(pasid);
    domain.attachments--;
    for (const member of members) {
      if (!this.#isAble(member)) continue;
      if (!member.isBlocked) domain.unprogramPasid(this.#unit, member.rids, pasid);
      domain.detachDevice(this.#unit);
    }
  }

  domainOf(pasid: number): Domain | undefined {
    return this.#domains.get(pasid);
  }

  list(): [number, Domain][] {
    return [...this.#domains];
  }

  /** A new member gets the PASIDs that are attached. Errors of `Domain.attachDevice`. */
  enter(member: Member): void {
    if (!this.#isAble(member)) return;
    for (const [pasid, domain] of this.#domains) {
      domain.attachDevice(this.#unit);
      domain.programPasid(this.#unit, member.rids, pasid);
    }
  }

  /** Ends `enter`; `unprogram` came before. */
  letGo(member: Member): void {
    if (this.#isAble(member)) for (const domain of this.#domains.values()) domain.detachDevice(this.#unit);
  }

  /** What is attached is reached again. */
  program(member: Member): void {
    if (!this.#isAble(member)) return;
    for (const [pasid, domain] of this.#domains) domain.programPasid(this.#unit, member.rids, pasid);
  }

  /** Under these requester IDs of a member nothing is reached any more. */
  unprogram(member: Member, rids: readonly number[]): void {
    if (!this.#isAble(member)) return;
    for (const [pasid, domain] of this.#domains) domain.unprogramPasid(this.#unit, rids, pasid);
  }

  #isAble({ fn }: Member): boolean {
    return maxPasids(fn, this.#unit) > 0;
  }

  #enterAll(members: Iterable<Member>, domain: Domain, pasid: number, old: Domain | undefined): void {
    const entered: Member[] = [];
    try {
      for (const member of members) {
        if (!this.#isAble(member)) continue;
        domain.attachDevice(this.#unit);
        entered.push(member);
      }
    } catch (error) {
      for (let i = 0; i < entered.length; i++) domain.detachDevice(this.#unit);
      throw error;
    }
    // Nothing below can fail.
    for (const member of entered) domain.programPasid(this.#unit, member.rids, pasid, old);
    if (old !== undefined) {
      for (let i = 0; i < entered.length; i++) old.detachDevice(this.#unit);
      old.attachments--;
    }
    domain.attachments++;
    this.#domains.set(pasid, domain);
  }
}
