/**
 * Shared virtual addressing: devices that use a process's own addresses, by its PASID.
 *
 * A process has one PASID for all devices. Its address space is a first-stage table that is empty at first; a device that finds nothing
 * asks for the page, and it is mapped with what the process may do there. Requests for what the process does not have are answered
 * INVALID. When the process ends, its PASID reaches nothing and faults of it are not recorded; the number itself is free when the last
 * bond is undone.
 *
 * Pages hold a physical page of `Mm` while they are mapped. Nothing has to be told when the process unmaps memory: what lies behind a
 * physical page is looked up in the process at each access, and is gone when the process has given it up.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PageResponseCode } from '../../hw/pci/ats.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import * as reg from '../../uapi/pci-regs.ts';
import type { Mm } from '../core/mm.ts';
import { Domain, IOMMU_READ, IOMMU_WRITE } from './domain.ts';
import { type IommuGroup, maxPasids } from './group.ts';
import type { PageFaultGroup, PageFaults } from './io-pgfault.ts';
import { INVALID_IOASID, IoasidError, IoasidSet, type Ioasids } from './ioasid.ts';
import { FIRST_GLOBAL_PASID } from './pasid-global.ts';
import { blockedDomain } from './special-domains.ts';

/** A process whose addresses the devices of a group use. */
export interface SvaBond {
  readonly pasid: number;
  /** The process has ended: the PASID reaches nothing any more. */
  readonly isBlocked: boolean;
  /** Undoes one `bind`. The device is to have stopped using the PASID. */
  unbind(): void;
}

/** A process with a PASID. */
class SvaMm {
  readonly mm: Mm;
  pasid = INVALID_IOASID;
  /** The tables of each unit: one for all devices behind it. */
  readonly tables = new Map<IommuUnit, SvaTable>();
  readonly bonds = new Map<IommuGroup, Bond>();
  /** Page requests at work. */
  users = 0;
  isGone = false;

  constructor(mm: Mm) {
    this.mm = mm;
  }
}

/** One unit's view of a process: what is mapped of it. */
class SvaTable {
  readonly domain: Domain;
  readonly #mm: Mm;
  /** Mapped pages, with whether they are writable. */
  readonly #pages = new Map<number, boolean>();
  /** Devices that use it. */
  users = 0;

  constructor(unit: IommuUnit, mm: Mm) {
    this.domain = new Domain(unit, 'sva');
    this.#mm = mm;
  }

  get pages(): number {
    return this.#pages.size;
  }

  /** ENOMEM. */
  map(page: number, isWritable: boolean): void {
    const known = this.#pages.get(page);
    if (known === isWritable) return;
    if (known !== undefined) this.unmap(page);
    const [run] = this.#mm.pin(page, 1);
    try {
      this.domain.map(page, run!.firstPage, 1, isWritable ? IOMMU_READ | IOMMU_WRITE : IOMMU_READ);
    } catch (error) {
      this.#mm.unpin(page, 1);
      throw error;
    }
    this.#pages.set(page, isWritable);
  }

  unmap(page: number): void {
    if (!this.#pages.delete(page)) return;
    this.domain.unmap(page, 1);
    this.#mm.unpin(page, 1);
  }

  /** Nobody is attached any more. */
  free(): void {
    for (const page of this.#pages.keys()) this.#mm.unpin(page, 1);
    this.#pages.clear();
    this.domain.free();
  }
}

class Bond implements SvaBond {
  readonly fn: PciFunction;
  readonly group: IommuGroup;
  readonly unit: IommuUnit;
  readonly process: SvaMm;
  users = 1;
  readonly #undo: (bond: Bond) => void;

  constructor(fn: PciFunction, group: IommuGroup, unit: IommuUnit, process: SvaMm, undo: (bond: Bond) => void) {
    this.fn = fn;
    this.group = group;
    this.unit = unit;
    this.process = process;
    this.#undo = undo;
  }

  get pasid(): number {
    return this.process.pasid;
  }

  get isBlocked(): boolean {
    return this.process.isGone;
  }

  unbind(): void {
    if (this.users === 0) throw new Error(`${this.fn.name} is not bound to PASID ${this.pasid} any more`);
    if (--this.users === 0) this.#undo(this);
  }
}

export class Sva {
  /** Whose PASIDs are processes; a page request on another set's number finds no process. */
  readonly processes = new IoasidSet<object>('sva');
  readonly #ids: Ioasids;
  readonly #faults: PageFaults;
  readonly #byMm = new Map<Mm, SvaMm>();

  constructor(ids: Ioasids, faults: PageFaults) {
    this.#ids = ids;
    this.#faults = faults;
  }

  /** Bonds of all devices and processes. */
  get bonds(): number {
    let sum = 0;
    for (const { bonds } of this.#byMm.values()) sum += bonds.size;
    return sum;
  }

  /** Pages that are mapped for devices. */
  get pages(): number {
    let sum = 0;
    for (const { tables } of this.#byMm.values()) for (const table of tables.values()) sum += table.pages;
    return sum;
  }

  /**
   * Lets a device use a process's addresses. Once more for the same two counts. ENODEV: no IOMMU. ENOSPC: no PASID is free, or the
   * device has none. EOVERFLOW: the process's PASID is beyond the device's. EOPNOTSUPP: the device cannot ask for pages, or the unit
   * cannot. EBUSY: a user holds the group, or somebody else has the PASID there. ESRCH: the process has ended.
   */
  bind(fn: PciFunction, group: IommuGroup | undefined, mm: Mm): SvaBond {
    const unit = group?.unit;
    if (group === undefined || unit === undefined) throw new Errno('ENODEV', `${fn.name} has no IOMMU`);
    if (group.owner !== undefined) throw new Errno('EBUSY', `a user holds group ${group.id}`);
    const process = this.#byMm.get(mm) ?? new SvaMm(mm);
    if (process.isGone) throw new Errno('ESRCH', 'the process has ended');
    this.#givePasid(process, fn, unit);
    const known = process.bonds.get(group);
    if (known !== undefined) {
      known.users++;
      return known;
    }
    try {
      requireFaults(fn, unit);
      this.#attach(process, group, unit);
    } catch (error) {
      this.#dropPasid(process);
      throw error;
    }
    const bond = new Bond(fn, group, unit, process, (undone) => this.#unbind(undone));
    process.bonds.set(group, bond);
    return bond;
  }

  /** A process has ended, or replaced its program: its memory is out of reach at once. */
  exit(mm: Mm): void {
    const process = this.#byMm.get(mm);
    if (process === undefined || process.isGone) return;
    process.isGone = true;
    for (const { group, unit } of process.bonds.values()) {
      this.#block(group, unit, process.pasid);
      this.#faults.drain(group, process.pasid);
    }
    this.#settle(process);
  }

  #block(group: IommuGroup, unit: IommuUnit, pasid: number): void {
    try {
      group.replacePasid(blockedDomain(unit), pasid);
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      // A member is in reset: what is attached may not change, but it may end.
      group.detachPasid(pasid);
    }
    for (const fn of group.members) {
      // Devices may go on trying until their drivers stop them: that is no news.
      if (maxPasids(fn, unit) > pasid) unit.clearPasidEntry(fn.rid, pasid, true);
    }
  }

  #givePasid(process: SvaMm, fn: PciFunction, unit: IommuUnit): void {
    const most = maxPasids(fn, unit);
    if (process.pasid !== INVALID_IOASID) {
      if (process.pasid >= most) {
        throw new Errno('EOVERFLOW', `PASID ${process.pasid} of the process is beyond the ${most} of ${fn.name}`);
      }
      return;
    }
    const pasid =
      most <= FIRST_GLOBAL_PASID
        ? INVALID_IOASID
        : this.#ids.alloc(this.processes, FIRST_GLOBAL_PASID, most - 1, process);
    if (pasid === INVALID_IOASID) throw new Errno('ENOSPC', `no PASID is free for ${fn.name}, which has ${most}`);
    process.pasid = pasid;
    this.#byMm.set(process.mm, process);
  }

  #attach(process: SvaMm, group: IommuGroup, unit: IommuUnit): void {
    let table = process.tables.get(unit);
    if (table === undefined) {
      table = new SvaTable(unit, process.mm);
      this.#faults.setHandler(table.domain, (faults) => this.#handle(faults));
    }
    try {
      group.attachPasid(table.domain, process.pasid);
    } catch (error) {
      if (table.users === 0) table.free();
      throw error;
    }
    table.users++;
    process.tables.set(unit, table);
  }

  #unbind({ group, unit, process }: Bond): void {
    process.bonds.delete(group);
    group.detachPasid(process.pasid);
    this.#faults.drain(group, process.pasid);
    const table = process.tables.get(unit);
    if (table !== undefined) {
      table.users--;
      if (table.users === 0 && !process.isGone) {
        process.tables.delete(unit);
        table.free();
      }
    }
    this.#dropPasid(process);
  }

  /** The number belongs to the process until it has ended and nobody uses it. */
  #dropPasid(process: SvaMm): void {
    const isUsed = !process.isGone || process.users > 0 || process.bonds.size > 0;
    if (isUsed || process.pasid === INVALID_IOASID) return;
    this.#ids.free(process.pasid);
    process.pasid = INVALID_IOASID;
    this.#byMm.delete(process.mm);
  }

  /** The process is gone and no page request is at work: its tables go. */
  #settle(process: SvaMm): void {
    if (!process.isGone || process.users > 0) return;
    for (const table of process.tables.values()) table.free();
    process.tables.clear();
    this.#dropPasid(process);
  }

  /** The handler of page requests: the process is looked up by its PASID and held over the work. */
  #handle(faults: PageFaultGroup): void {
    const section = this.#ids.readers.begin();
    const found = this.#ids.find(this.processes, Math.max(faults.pasid, 0), (value) => {
      const process = value as SvaMm;
      if (process.isGone) return false;
      process.users++;
      return true;
    });
    section.end();
    if (found === null || found instanceof IoasidError) {
      faults.respond('invalid');
      return;
    }
    const process = found as SvaMm;
    let code: PageResponseCode = 'success';
    try {
      for (const { page, read, write, exec } of faults.requests) {
        code = this.#faultIn(process, faults.domain, page, read, write, exec);
        if (code !== 'success') break;
      }
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      code = 'failure';
    } finally {
      process.users--;
    }
    faults.respond(process.isGone ? 'invalid' : code);
    this.#settle(process);
  }

  /** ENOMEM. */
  #faultIn(
    process: SvaMm,
    domain: Domain,
    page: number,
    read: boolean,
    write: boolean,
    exec: boolean,
  ): PageResponseCode {
    const table = process.tables.get(domain.unit);
    if (table === undefined) return 'invalid';
    const { memory } = process.mm;
    const vma = page < 2 ** 35 ? memory.vma(page * 4096) : undefined;
    const isAllowed = vma !== undefined && !exec && (!read || vma.readable) && (!write || vma.writable);
    // Reading a byte brings the page in, and tells when the mapping has nothing behind it.
    const isThere = isAllowed && memory.read(page * 4096, new Uint8Array(1));
    if (process.isGone) return 'invalid';
    if (!isThere) {
      table.unmap(page);
      return 'invalid';
    }
    table.map(page, vma.writable);
    return 'success';
  }
}

function requireFaults(fn: PciFunction, unit: IommuUnit): void {
  if (!unit.capabilities.hasFirstStage || !unit.capabilities.hasPageRequests) {
    throw new Errno('EOPNOTSUPP', `unit ${unit.name} has no first stage with page requests`);
  }
  for (const [id, name] of [
    [reg.PCI_EXT_CAP_ID_ATS, 'translation requests (ATS)'],
    [reg.PCI_EXT_CAP_ID_PRI, 'page requests (PRI)'],
  ] as const) {
    if (fn.config.findExtended(id) === 0) throw new Errno('EOPNOTSUPP', `${fn.name} has no ${name}`);
  }
}
