/**
 * The IOMMU core: which functions form a group, which unit translates them, and which default domain they get.
 */
import type { Fault } from '../../hw/iommu/faults.ts';
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import type { TopologyFunction } from '../../hw/pci/topology.ts';
import { Errno } from '../../lib/errno.ts';
import { Domain, type DomainKind } from './domain.ts';
import { IommuGroup } from './group.ts';
import { groupOf } from './group-of.ts';
import { type ReservedRegion, reservedOf } from './reserved-regions.ts';
import { identityDomain } from './special-domains.ts';

export interface IommuOptions {
  /** All functions of a slot in one group, whatever ACS says (2011: `iommu=group_mf`). */
  readonly groupMultifunction?: boolean;
  /** Kind of the default domains (`iommu.passthrough`). */
  readonly defaultKind?: 'dma' | 'identity';
  /** IOTLB invalidation of the host's DMA is collected (`iommu.strict=0`); what `type` in sysfs says. */
  readonly isLazy?: boolean;
  /** The unit in whose scope a function is; undefined: none translates it. Without it the first of `units` serves all. */
  readonly unitOf?: (f: PciFunction) => IommuUnit | undefined;
  /** Ranges that firmware wants mapped for a function (RMRR). */
  readonly firmwareRegionsOf?: (f: PciFunction) => readonly ReservedRegion[];
}

/** Faults that `faults` keeps. */
const KEPT_FAULTS = 64;

export class IommuCore {
  readonly units: IommuUnit[] = [];
  /** The last faults of all units, oldest first. */
  readonly faults: Fault[] = [];
  readonly #options: IommuOptions;
  readonly #groups = new Map<number, IommuGroup>();
  readonly #groupOf = new Map<TopologyFunction, IommuGroup>();
  readonly #pinned = new Set<number>();
  /** Groups whose `type` was written: whether invalidation is collected. */
  readonly #lazy = new WeakMap<IommuGroup, boolean>();
  /** No id below is free. */
  #lowest = 0;

  constructor(options: IommuOptions = {}) {
    this.#options = options;
  }

  /** Keeps these ids for groups that are founded with them: other groups get the lowest id that is free and not among them. */
  reserveIds(ids: Iterable<number>): void {
    for (const id of ids) this.#pinned.add(id);
  }

  /**
   * Finds or makes the group of a function that was just added; bridges come before what is behind them. `id` is the id of the group
   * if `f` founds one. Undefined: no unit translates it. EEXIST: the id is taken.
   */
  probe(f: PciFunction, id?: number): IommuGroup | undefined {
    const known = this.#groupOf.get(f);
    if (known !== undefined) return known;
    const unit = this.#unitOf(f);
    if (unit === undefined) return undefined;
    this.#serve(unit);
    const found = groupOf(f, (other) => this.#sameUnit(other, unit), this.#options.groupMultifunction ?? false);
    const group = found?.group ?? this.#found(unit, this.#kindFor(f, unit), id);
    const reserved = reservedOf(f, this.#options.firmwareRegionsOf?.(f) ?? []);
    try {
      if (found !== undefined) this.#reconsider(group, f, unit);
      group.addMember(f, found?.reason ?? 'own', reserved);
    } catch (error) {
      if (group.members.size === 0) this.#drop(group);
      throw error;
    }
    this.#groupOf.set(f, group);
    f.resetGuard = { begin: () => group.prepareReset(f), end: () => group.finishReset(f) };
    return group;
  }

  /** The function goes away: nothing of it is translated any more. The last member's group goes with it. */
  remove(f: PciFunction): void {
    const group = this.#groupOf.get(f);
    if (group === undefined) return;
    this.#groupOf.delete(f);
    f.resetGuard = undefined;
    group.removeMember(f);
    if (group.members.size === 0) this.#drop(group);
  }

  /** A group of devices that do no DMA of their own, or that nothing translates (mediated devices, noiommu). */
  addSoftwareGroup(name: string, id?: number): IommuGroup {
    const group = new IommuGroup(this.#takeId(id), undefined, undefined);
    group.name = name;
    this.#groups.set(group.id, group);
    return group;
  }

  removeSoftwareGroup(group: IommuGroup): void {
    this.#drop(group);
  }

  groupOf(f: PciFunction): IommuGroup | undefined {
    return this.#groupOf.get(f);
  }

  /** The group whose member's requests arrive at `unit` under this requester id. */
  groupOfRid(unit: IommuUnit, rid: number): IommuGroup | undefined {
    for (const group of this.#groups.values()) if (group.unit === unit && group.hasRid(rid)) return group;
    return undefined;
  }

  /** In the order of their ids. */
  groups(): IommuGroup[] {
    return [...this.#groups.values()].sort((a, b) => a.id - b.id);
  }

  allocateDomain(unit: IommuUnit, kind: DomainKind): Domain {
    return new Domain(unit, kind);
  }

  /** Why `f` is in its group: `own`, `alias 00:1e.0`, `no ACS on 00:01.0`, `multifunction without ACS`, `quirk`. */
  reason(f: PciFunction): string {
    return this.#groupOf.get(f)?.reasonOf(f) ?? 'no IOMMU';
  }

  /** The text of `type` in the group's sysfs folder: the kind of its default domain. */
  typeText(group: IommuGroup): string {
    if (group.unit === undefined) return 'unknown\n';
    const { kind } = group.defaultDomain;
    if (kind !== 'dma') return `${kind}\n`;
    return this.#isLazy(group) ? 'DMA-FQ\n' : 'DMA\n';
  }

  /**
   * What is written to `type`: `identity`, `DMA`, `DMA-FQ`, or `auto` for what the machine would choose. DMA becomes DMA-FQ also while
   * the group is in use. EINVAL: another word, or a member must not (or cannot) have that. EPERM: somebody uses the group.
   */
  setType(group: IommuGroup, wanted: string): void {
    const { unit } = group;
    if (unit === undefined) throw new Errno('EINVAL', `group ${group.id} has no IOMMU`);
    const members = [...group.members];
    const own = members.some((f) => this.#kindFor(f, unit) === 'dma') ? 'dma' : 'identity';
    const kinds: Readonly<Record<string, 'dma' | 'identity'>> = {
      identity: 'identity',
      DMA: 'dma',
      'DMA-FQ': 'dma',
      auto: own,
    };
    const kind = Object.hasOwn(kinds, wanted) ? kinds[wanted] : undefined;
    if (kind === undefined) {
      throw new Errno('EINVAL', `'${wanted}' is no type of a group; there are ${Object.keys(kinds).join(', ')}`);
    }
    if (wanted === 'DMA-FQ' && group.defaultDomain.kind === 'dma') {
      this.#lazy.set(group, true);
      return;
    }
    if (members.length === 0 || group.ownerCount > 0) {
      throw new Errno('EPERM', `group ${group.id} is in use: no driver may be bound to its members`);
    }
    if (kind === 'identity' && (members.some((f) => f.untrusted) || !unit.capabilities.hasPassThrough)) {
      throw new Errno(
        'EINVAL',
        `group ${group.id} has to be translated: a member is not trusted, or ${unit.name} cannot pass requests through`,
      );
    }
    if (group.defaultDomain.kind !== kind) group.changeDefaultDomain(this.#defaultDomain(unit, kind));
    if (wanted === 'auto') this.#lazy.delete(group);
    else this.#lazy.set(group, wanted === 'DMA-FQ');
  }

  #isLazy(group: IommuGroup): boolean {
    return this.#lazy.get(group) ?? this.#options.isLazy ?? true;
  }

  #unitOf(f: PciFunction): IommuUnit | undefined {
    return this.#options.unitOf === undefined ? this.units[0] : this.#options.unitOf(f);
  }

  #sameUnit(f: TopologyFunction, unit: IommuUnit): IommuGroup | undefined {
    const group = this.#groupOf.get(f);
    return group?.unit === unit ? group : undefined;
  }

  #found(unit: IommuUnit, kind: 'dma' | 'identity', id: number | undefined): IommuGroup {
    const group = new IommuGroup(this.#takeId(id), unit, this.#defaultDomain(unit, kind));
    this.#groups.set(group.id, group);
    return group;
  }

  #drop(group: IommuGroup): void {
    this.#groups.delete(group.id);
    this.#lowest = Math.min(this.#lowest, group.id);
    group.destroy();
  }

  #takeId(wanted: number | undefined): number {
    if (wanted !== undefined) {
      if (this.#groups.has(wanted)) throw new Errno('EEXIST', `there is a group ${wanted} already`);
      return wanted;
    }
    while (this.#groups.has(this.#lowest) || this.#pinned.has(this.#lowest)) this.#lowest++;
    return this.#lowest;
  }

  /** Devices that are not trusted get a domain of their own; so do all when the unit cannot pass requests through. */
  #kindFor(f: PciFunction, unit: IommuUnit): 'dma' | 'identity' {
    if (f.untrusted || !unit.capabilities.hasPassThrough) return 'dma';
    return this.#options.defaultKind ?? 'dma';
  }

  #defaultDomain(unit: IommuUnit, kind: 'dma' | 'identity'): Domain {
    return kind === 'identity' ? identityDomain(unit) : new Domain(unit, 'dma');
  }

  /** A member that joins may need another default domain than the group has. */
  #reconsider(group: IommuGroup, f: PciFunction, unit: IommuUnit): void {
    // What the present members need is what the group has.
    const kind = this.#kindFor(f, unit);
    if (!f.untrusted || group.defaultDomain.kind === kind || group.ownerCount > 0) return;
    group.changeDefaultDomain(this.#defaultDomain(unit, kind));
  }

  /** Answers the unit's fault event: reads what it recorded and frees the records. */
  #serve(unit: IommuUnit): void {
    unit.faultEvent ??= () => {
      if (unit.lastFault !== undefined) this.faults.push(unit.lastFault);
      if (this.faults.length > KEPT_FAULTS) this.faults.shift();
      unit.faults.clear();
    };
  }
}
