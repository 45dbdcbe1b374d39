/**
 * Where a domain is in use: its domain ids at the units, the requesters and PASIDs that are programmed to it, and the domains that
 * are nested on it. From here entries are written again when something in them has changed, and caches forget.
 */
import { coveringBlock } from '../../hw/iommu/invalidation.ts';
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { ALL_PAGES_ORDER } from '../../hw/pci/ats.ts';
import type { Domain, GuestStage } from './domain.ts';
import { entryOf } from './domain-entry.ts';
import { allocateDid, freeDid, PASS_THROUGH_DID } from './domain-ids.ts';

interface Attachment {
  readonly unit: IommuUnit;
  readonly rid: number;
  /** -1: requests without PASID. */
  readonly pasid: number;
}

interface Hold {
  readonly did: number;
  devices: number;
}

export class Attachments {
  /** Of the domains that are nested on this one. */
  readonly nested = new Set<Attachments>();
  readonly #domain: Domain;
  readonly #guest: GuestStage | undefined;
  readonly #hasDid: boolean;
  readonly #holds = new Map<IommuUnit, Hold>();
  readonly #all = new Map<string, Attachment>();
  /** Attachments that may have a device TLB. */
  #deviceTlbs = 0;

  /** `guest`: of a nested domain the guest's first stage. */
  constructor(domain: Domain, guest: GuestStage | undefined) {
    this.#domain = domain;
    this.#guest = guest;
    this.#hasDid = domain.kind !== 'blocked' && domain.kind !== 'identity';
  }

  /** The units at which the domain has an id. */
  units(): IterableIterator<IommuUnit> {
    return this.#holds.keys();
  }

  /** One device more behind `unit`: the domain has an id there from now on. ENOSPC. */
  hold(unit: IommuUnit): void {
    if (!this.#hasDid) return;
    const hold = this.#holds.get(unit);
    if (hold !== undefined) hold.devices++;
    else {
      const did = this.#domain.kind === 'sva' ? PASS_THROUGH_DID : allocateDid(unit, this.#domain);
      this.#holds.set(unit, { did, devices: 1 });
    }
  }

  /** Ends one `hold`. */
  letGo(unit: IommuUnit): void {
    if (!this.#hasDid) return;
    const hold = this.#holds.get(unit)!;
    if (--hold.devices > 0) return;
    this.#holds.delete(unit);
    if (hold.did !== PASS_THROUGH_DID) freeDid(unit, hold.did);
  }

  /** Points the contexts of these requesters to the domain; they leave the one where they were, if any. */
  program(unit: IommuUnit, rids: readonly number[], from: Attachments | undefined): void {
    const { kind, table } = this.#domain;
    for (const rid of rids) {
      if (from !== undefined) from.#remove(unit, rid, -1);
      if (kind === 'blocked') {
        if (unit.mode === 'scalable') unit.clearPasidEntry(rid, 0);
        else unit.clearContext(rid);
      } else if (unit.mode === 'scalable') {
        this.#writeEntry(unit, rid, 0);
        if (this.#hasDid) this.#add(unit, rid, -1);
      } else if (table === undefined) unit.setContext(rid, PASS_THROUGH_DID, undefined);
      else {
        unit.setContext(rid, this.#holds.get(unit)!.did, table);
        this.#add(unit, rid, -1);
      }
      // What the device had asked for in the domain before.
      if (from !== undefined && from !== this) {
        unit.devices.invalidate(rid, { pasid: -1, isAllPasids: false, firstPage: 0, order: ALL_PAGES_ORDER });
      }
    }
  }

  /** Points a PASID of these requesters to the domain; it leaves the one where it was, if any. */
  programPasid(unit: IommuUnit, rids: readonly number[], pasid: number, from: Attachments | undefined): void {
    for (const rid of rids) {
      if (from !== undefined) from.#leavePasid(unit, rid, pasid);
      if (this.#domain.kind === 'blocked') continue;
      this.#writeEntry(unit, rid, pasid);
      if (this.#hasDid) this.#add(unit, rid, pasid);
    }
  }

  /** Takes a PASID of these requesters away. */
  unprogramPasid(unit: IommuUnit, rids: readonly number[], pasid: number): void {
    for (const rid of rids) this.#leavePasid(unit, rid, pasid);
  }

  /** Writes all PASID entries of the domain again: something in them has changed. */
  reprogram(): void {
    for (const { unit, rid, pasid } of [...this.#all.values()]) {
      if (unit.mode === 'scalable') this.#writeEntry(unit, rid, Math.max(pasid, 0));
    }
    this.flushAll();
  }

  /** IOTLBs and device TLBs forget the pages `[first, last]`; what is nested on the domain is forgotten whole. */
  flush(first: number, last: number): void {
    const { firstPage, order } = coveringBlock(first, last);
    for (const [unit, { did }] of this.#holds) unit.invalidatePages(did, firstPage, order);
    if (this.#deviceTlbs > 0) this.#invalidateDevices(firstPage, order);
    for (const nested of this.nested) nested.flushAll();
  }

  flushAll(): void {
    for (const [unit, { did }] of this.#holds) unit.invalidateDomain(did);
    this.#invalidateDevices(0, ALL_PAGES_ORDER);
    for (const nested of this.nested) nested.flushAll();
  }

  /** The order of VT-d 6.5.3.4: entry away, PASID cache, IOTLB, device TLB. */
  #leavePasid(unit: IommuUnit, rid: number, pasid: number): void {
    this.#remove(unit, rid, pasid);
    unit.clearPasidEntry(rid, pasid);
    unit.iotlb.invalidateDomain(this.#didAt(unit), this.#domain.stage === 'second' ? -1 : pasid);
    unit.devices.invalidate(rid, { pasid, isAllPasids: false, firstPage: 0, order: ALL_PAGES_ORDER });
  }

  #add(unit: IommuUnit, rid: number, pasid: number): void {
    const key = `${unit.name} ${rid} ${pasid}`;
    if (this.#all.has(key)) return;
    this.#all.set(key, { unit, rid, pasid });
    if (unit.mode === 'scalable') this.#deviceTlbs++;
  }

  #remove(unit: IommuUnit, rid: number, pasid: number): void {
    if (this.#all.delete(`${unit.name} ${rid} ${pasid}`) && unit.mode === 'scalable') this.#deviceTlbs--;
  }

  #didAt(unit: IommuUnit): number {
    return this.#holds.get(unit)?.did ?? PASS_THROUGH_DID;
  }

  #writeEntry(unit: IommuUnit, rid: number, pasid: number): void {
    unit.setPasidEntry(rid, pasid, entryOf(this.#domain, this.#guest, this.#didAt(unit), unit.isWalkSnooped));
  }

  #invalidateDevices(firstPage: number, order: number): void {
    for (const { unit, rid, pasid } of this.#all.values()) {
      unit.devices.invalidate(rid, { pasid, isAllPasids: false, firstPage, order });
    }
  }
}
