/**
 * An IOMMU group: functions that cannot be told apart, or not kept apart, and who holds them.
 *
 * A group is in one of two hands: the host's drivers, which count themselves in (`useDefaultDomain`) and do DMA through the default
 * domain; or one user, who claims it. While claimed, all members are in the blocking domain until the user attaches one of his own.
 * Members move together: when one cannot, all are where they were.
 */

import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { forEachDmaAlias } from '../../hw/pci/aliases.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import { enableAbilities, hasAts } from './device-abilities.ts';
import type { Domain } from './domain.ts';
import { GroupPasids, type Member } from './group-pasids.ts';
import { mergeReserved, type ReservedRegion } from './reserved-regions.ts';
import { blockedDomain } from './special-domains.ts';

export { maxPasids } from './device-abilities.ts';
export type { ReservedRegion, ReservedType } from './reserved-regions.ts';

const traceAttach = new Tracepoint<{ device: string; group: number; kind: string }>('iommu:attach_device_to_domain');
const traceAdd = new Tracepoint<{ gid: number; device: string; why: string }>('iommu:add_device_to_group');
const traceRemove = new Tracepoint<{ gid: number; device: string }>('iommu:remove_device_from_group');

/** Who claims a group is any object; `api` tells those apart that came by the API of 2011. */
interface GroupOwner {
  readonly api?: string;
}

export class IommuGroup {
  readonly id: number;
  name: string | undefined;
  /** Undefined: devices without an IOMMU (noiommu, mediated). */
  readonly unit: IommuUnit | undefined;
  /** Whether interrupts of other devices cannot be forged (interrupt remapping). */
  isolatedMsi: boolean;
  readonly #members = new Map<PciFunction, Member>();
  #defaultDomain: Domain | undefined;
  #domain: Domain | undefined;
  #owner: object | undefined;
  #ownerCount = 0;
  /** With a unit. */
  readonly #pasids: GroupPasids | undefined;
  /** Members that are being reset. */
  #inReset = 0;

  /** Groups are made by `IommuCore`. Without a unit there are no domains. */
  constructor(id: number, unit: IommuUnit | undefined, defaultDomain: Domain | undefined) {
    this.id = id;
    this.unit = unit;
    this.#pasids = unit === undefined ? undefined : new GroupPasids(id, unit);
    this.isolatedMsi = unit?.hasIsolatedMsi ?? false;
    this.#defaultDomain = defaultDomain;
    this.#domain = defaultDomain;
    if (defaultDomain !== undefined) defaultDomain.attachments++;
  }

  /** In the order in which they came. */
  get members(): ReadonlySet<PciFunction> {
    return new Set(this.#members.keys());
  }

  /** The domain of the host's drivers. Not to be asked of a group without a unit. */
  get defaultDomain(): Domain {
    return this.#hardware(this.#defaultDomain);
  }

  /** The domain through which the members' DMA goes now. Not to be asked of a group without a unit. */
  get domain(): Domain {
    return this.#hardware(this.#domain);
  }

  /** Claims by users, or uses of the default domain by host drivers. */
  get ownerCount(): number {
    return this.#ownerCount;
  }

  get owner(): object | undefined {
    return this.#owner;
  }

  /** Why `f` is in this group: `own`, `alias 00:1e.0`, `no ACS on 00:01.0`, `multifunction without ACS`, `quirk`. */
  reasonOf(f: PciFunction): string {
    return this.#members.get(f)?.reason ?? 'not a member';
  }

  /** Whether requests of a member arrive under this requester id. */
  hasRid(rid: number): boolean {
    for (const { rids } of this.#members.values()) if (rids.includes(rid)) return true;
    return false;
  }

  // ---- owners ----

  /**
   * Takes the group for a user (GROUP_SET_CONTAINER): the blocking domain is attached. EPERM: somebody holds it. EBUSY: another
   * domain is attached. EINVAL: firmware needs a member mapped one to one at all times.
   */
  claim(owner: object): void {
    if (this.#ownerCount > 0) throw this.#held(owner);
    this.#take(owner);
  }

  /** Takes the group for a user through one device, counted for the same owner (BIND_IOMMUFD). Errors as of `claim`; ENODEV: no member. */
  claimDevice(f: PciFunction, owner: object): void {
    if (!this.#members.has(f)) throw new Errno('ENODEV', `${f.name} is not in group ${this.id}`);
    if (this.#ownerCount > 0) {
      if (this.#owner !== owner) throw this.#held(owner);
      this.#ownerCount++;
      return;
    }
    this.#take(owner);
  }

  /** Ends `claim`: back to the default domain. */
  release(): void {
    if (this.#owner === undefined) throw new Error(`Group ${this.id} is not claimed`);
    this.#ownerCount = 0;
    this.#owner = undefined;
    this.#moveBack(this.defaultDomain);
  }

  /** Ends one `claimDevice`; the last one ends the ownership. */
  releaseDevice(_f: PciFunction): void {
    if (this.#ownerCount > 1) this.#ownerCount--;
    else this.release();
  }

  /** A host driver that does its own DMA is to be bound to `f`. EBUSY: a user holds the group. */
  useDefaultDomain(f: PciFunction): void {
    if (this.#ownerCount > 0 && (this.#owner !== undefined || this.#domain !== this.#defaultDomain)) {
      throw new Errno('EBUSY', `a user holds group ${this.id}, so no host driver can have ${f.name}`);
    }
    this.#ownerCount++;
  }

  unuseDefaultDomain(_f: PciFunction): void {
    if (this.#ownerCount === 0) throw new Error(`No host driver uses group ${this.id}`);
    this.#ownerCount--;
  }

  // ---- domains ----

  /**
   * Attaches all members to `domain`. EBUSY: another domain than a default or blocking one is attached. EINVAL: incompatible, or no
   * IOMMU. ENOSPC, ENOMEM. On failure nothing is changed.
   */
  attach(domain: Domain): void {
    const current = this.#domain;
    if (current !== this.#defaultDomain && current?.kind !== 'blocked' && current !== domain) {
      throw new Errno('EBUSY', `another domain is attached to group ${this.id}`);
    }
    this.#move(domain);
  }

  /** Back to the blocking domain when a user holds the group, else to the default domain. */
  detach(): void {
    this.#moveBack(this.#owner === undefined ? this.defaultDomain : blockedDomain(this.#hardware(this.unit)));
  }

  /** Changes the attached domain for another one in one step: no access is refused that both allow. Errors as of `attach`. */
  replace(domain: Domain): void {
    this.#move(domain);
  }

  /** Sorted by start and type, merged. */
  reservedRegions(): ReservedRegion[] {
    return mergeReserved([...this.#members.values()].flatMap((member) => member.reserved));
  }

  // ---- PASIDs ----

  /**
   * Attaches the PASID of every member that has PASIDs to `domain`. EOPNOTSUPP: none has, or the unit has none. EINVAL: the PASID is
   * 0 or beyond what a member has, or the domain does not fit. EBUSY: it is taken, or a member is in reset. On failure nothing is
   * changed.
   */
  attachPasid(domain: Domain, pasid: number): void {
    this.#checkPasid(pasid).attach(this.#members.values(), domain, pasid);
  }

  /** Changes the domain of a PASID in one step. EINVAL: it has none. Else as `attachPasid`. */
  replacePasid(domain: Domain, pasid: number): void {
    this.#checkPasid(pasid).replace(this.#members.values(), domain, pasid);
  }

  /** The PASID reaches nothing any more. */
  detachPasid(pasid: number): void {
    this.#pasids?.detach(this.#members.values(), pasid);
  }

  domainOfPasid(pasid: number): Domain | undefined {
    return this.#pasids?.domainOf(pasid);
  }

  /** The PASIDs with their domains. */
  pasids(): [number, Domain][] {
    return this.#pasids?.list() ?? [];
  }

  #checkPasid(pasid: number): GroupPasids {
    const pasids = this.#hardware(this.#pasids);
    pasids.check(this.#members.values(), pasid, this.#inReset > 0);
    return pasids;
  }

  // ---- resets ----

  /**
   * A reset of `fn` begins: its DMA is blocked, with PASIDs and translations that the device holds, until `finishReset`; what is
   * attached stays noted. Counted. Only devices with translation services need it (PCI Express Base 6.0, 10.3.1).
   */
  prepareReset(fn: PciFunction): void {
    const { unit } = this;
    const member = this.#members.get(fn);
    if (unit === undefined || member === undefined || !hasAts(fn)) return;
    if (member.resets++ > 0) return;
    member.isBlocked = true;
    this.#inReset++;
    const blocking = blockedDomain(unit);
    blocking.program(unit, member.rids, this.domain);
    this.#pasids?.unprogram(member, member.rids);
    for (const rid of member.rids) unit.devices.forget(rid);
  }

  /** The reset is over: what is attached is reached again. */
  finishReset(fn: PciFunction): void {
    const { unit } = this;
    const member = this.#members.get(fn);
    if (unit === undefined || member === undefined || member.resets === 0) return;
    if (--member.resets > 0) return;
    member.isBlocked = false;
    this.#inReset--;
    enableAbilities(member.fn, member.rids, unit);
    this.domain.program(unit, member.rids);
    this.#pasids?.program(member);
  }

  // ---- for IommuCore ----

  /** A function joins, and its DMA goes where the group's goes. Errors as of `attach`. */
  addMember(fn: PciFunction, reason: string, reserved: readonly ReservedRegion[]): void {
    const rids = new Set<number>();
    forEachDmaAlias(fn, (_f, rid) => {
      rids.add(rid);
      return 0;
    });
    const member: Member = { fn, rids: [...rids], reason, reserved, resets: 0, isBlocked: false };
    if (this.unit !== undefined) {
      enableAbilities(fn, member.rids, this.unit);
      this.#mapDirect(this.defaultDomain, reserved);
      this.#enter(member, this.domain);
      this.#pasids?.enter(member);
    }
    this.#members.set(fn, member);
    traceAdd.fire(() => ({ gid: this.id, device: fn.name, why: reason }));
  }

  /** A function is gone: its requester IDs are blocked, except those that another member uses too. */
  removeMember(fn: PciFunction): void {
    const member = this.#members.get(fn);
    if (member === undefined) return;
    this.#members.delete(fn);
    if (this.unit !== undefined) {
      const unit = this.unit;
      const others = new Set([...this.#members.values()].flatMap(({ rids }) => rids));
      const gone = member.rids.filter((rid) => !others.has(rid));
      if (!member.isBlocked) {
        this.#pasids?.unprogram(member, gone);
        blockedDomain(unit).program(unit, gone, this.domain);
      } else this.#inReset--;
      this.#pasids?.letGo(member);
      for (const rid of gone) {
        unit.clearContext(rid);
        unit.devices.forget(rid);
      }
      this.domain.detachDevice(unit);
    }
    traceRemove.fire(() => ({ gid: this.id, device: fn.name }));
  }

  /** Another default domain, chosen while nobody uses the group. The old one is freed. EBUSY: somebody does. */
  changeDefaultDomain(domain: Domain): void {
    const old = this.defaultDomain;
    if (this.#ownerCount > 0 || this.#domain !== old || this.#inReset > 0) {
      throw new Errno('EBUSY', `group ${this.id} is in use`);
    }
    for (const { reserved } of this.#members.values()) this.#mapDirect(domain, reserved);
    this.#move(domain);
    this.#defaultDomain = domain;
    if (old.attachments === 0 && old.table !== undefined) old.free();
  }

  /** The last member is gone; the domains go with the group. */
  destroy(): void {
    if (this.#domain !== undefined) this.#domain.attachments--;
    const old = this.#defaultDomain;
    this.#domain = undefined;
    this.#defaultDomain = undefined;
    if (old?.attachments === 0 && old.table !== undefined) old.free();
  }

  #take(owner: object): void {
    if (this.#domain !== this.#defaultDomain) throw new Errno('EBUSY', `a domain is attached to group ${this.id}`);
    this.#move(blockedDomain(this.#hardware(this.unit)));
    this.#owner = owner;
    this.#ownerCount = 1;
  }

  #move(next: Domain, isForced = false): void {
    const unit = this.unit;
    const old = this.#domain;
    if (unit === undefined || old === undefined) throw new Errno('EINVAL', `group ${this.id} has no IOMMU`);
    if (old === next) return;
    if (this.#inReset > 0 && !isForced) throw new Errno('EBUSY', `a member of group ${this.id} is in reset`);
    const moved: Member[] = [];
    try {
      for (const member of this.#members.values()) {
        this.#enter(member, next, old);
        moved.push(member);
      }
    } catch (error) {
      for (const member of moved) {
        if (!member.isBlocked) old.program(unit, member.rids, next);
        next.detachDevice(unit);
      }
      throw error;
    }
    for (let i = 0; i < moved.length; i++) old.detachDevice(unit);
    next.attachments++;
    old.attachments--;
    this.#domain = next;
  }

  /** As `#move`, to a domain that took the members before: cannot fail. */
  #moveBack(domain: Domain): void {
    try {
      this.#move(domain, true);
    } catch (error) {
      // Nothing else is as safe: the members are blocked, as the kernel does when a move must succeed and does not.
      this.#move(blockedDomain(this.#hardware(this.unit)), true);
      if (!(error instanceof Errno)) throw error;
    }
  }

  #enter({ fn, rids, reserved, isBlocked }: Member, domain: Domain, old?: Domain): void {
    const unit = this.#hardware(this.unit);
    if (domain.kind === 'blocked' && reserved.some(({ type }) => type === 'direct')) {
      throw new Errno(
        'EINVAL',
        `firmware needs a one to one mapping for ${fn.name} at all times, so it cannot be handed out`,
      );
    }
    domain.attachDevice(unit);
    if (!isBlocked) domain.program(unit, rids, old);
    traceAttach.fire(() => ({ device: fn.name, group: this.id, kind: domain.kind }));
  }

  /** What firmware wants one to one is mapped before the device is attached, so that its DMA never stops. */
  #mapDirect(domain: Domain, reserved: readonly ReservedRegion[]): void {
    if (domain.kind !== 'dma') return;
    for (const { firstPage, lastPage, type } of reserved) {
      if (type !== 'direct' && type !== 'direct-relaxable') continue;
      for (let page = firstPage; page <= lastPage; page++) {
        if (domain.physicalOf(page) < 0) domain.map(page, page, 1, 3);
      }
    }
  }

  /** EPERM; EBUSY when the owner came by another API than `owner`. */
  #held(owner: object): Errno {
    const holder = this.#owner as GroupOwner | undefined;
    const isOtherApi = holder !== undefined && holder.api !== (owner as GroupOwner).api;
    return new Errno(isOtherApi ? 'EBUSY' : 'EPERM', this.#heldText());
  }

  #heldText(): string {
    return this.#owner === undefined
      ? `a host driver holds a device of group ${this.id}`
      : `somebody else holds group ${this.id}`;
  }

  #hardware<T>(value: T | undefined): T {
    if (value === undefined) throw new Errno('EINVAL', `group ${this.id} has no IOMMU`);
    return value;
  }
}
