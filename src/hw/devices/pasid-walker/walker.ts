/**
 * The engine of pasid-walker: follows a list in a program's memory by the program's own addresses.
 *
 * It keeps the translations that it was given (ATS) until it is told to forget them, goes to memory with translated requests, and asks
 * for pages that are not there (PRI), one at a time; while it waits for the answer it does nothing else.
 */
import type { AtcInvalidation, PageResponse } from '../../pci/ats.ts';
import type { Registers } from '../../pci/bar.ts';
import type { Clock } from '../../pci/clock.ts';
import type { PciFunction } from '../../pci/function.ts';
import { high32, low32, putHalves } from '../../pci/registers.ts';
import * as r from './registers.ts';

/** Nodes that are visited in one go. */
const BURST = 64;
const GROUPS = 512;
/** How often a page may be promised and not be there. */
const MOST_TRIES = 8;

interface Known {
  readonly physicalPage: number;
  readonly isWritable: boolean;
}

export class Walker implements Registers {
  readonly #clock: Clock;
  readonly #burstNs: number;
  #fn: PciFunction | undefined;
  /** Translations of the current PASID by page. */
  readonly #known = new Map<bigint, Known>();
  #pasid = 0;
  #head = 0n;
  #limit = 0;
  #status = 0;
  #visited = 0;
  #sum = 0n;
  #faultAddress = 0n;
  #requests = 0;
  #at = 0n;
  #adds = false;
  #group = 0;
  /** The group of the page that is waited for, -1: none. */
  #awaited = -1;
  #tries = 0;
  #cancel: (() => void) | undefined;

  constructor(clock: Clock, burstNs: number) {
    this.#clock = clock;
    this.#burstNs = burstNs;
  }

  attach(fn: PciFunction): void {
    this.#fn = fn;
    fn.dma.onPageResponse = (response) => this.#answered(response);
    fn.dma.onAtcInvalidate = (invalidation) => this.#forget(invalidation);
  }

  /** Ends what it does and forgets everything. */
  reset(): void {
    this.#end(0);
    this.#known.clear();
    this.#pasid = 0;
    this.#head = 0n;
    this.#limit = 0;
    this.#visited = 0;
    this.#sum = 0n;
    this.#faultAddress = 0n;
    this.#requests = 0;
  }

  read(offset: number, into: Uint8Array): void {
    if ((into.length !== 4 && into.length !== 8) || offset % into.length !== 0 || offset + into.length > r.END) {
      into.fill(0xff);
      return;
    }
    const value = this.#register(offset & ~7);
    const shifted = value >> BigInt((offset & 4) * 8);
    putHalves(into, Number(shifted & 0xffff_ffffn), Number((shifted >> 32n) & 0xffff_ffffn));
  }

  /** The 8 bytes at an offset. */
  #register(offset: number): bigint {
    const pair = (low: number, high: number): bigint => (BigInt(high) << 32n) | BigInt(low >>> 0);
    switch (offset) {
      case r.IDENTIFICATION:
        return pair(r.ID_VALUE, this.#pasid >>> 0);
      case r.HEAD:
        return this.#head;
      case r.LIMIT:
        return pair(this.#limit, 0);
      case r.STATUS:
        return pair(this.#status | (this.#awaited >= 0 ? r.STATUS_WAITING : 0), this.#visited);
      case r.SUM:
        return this.#sum;
      case r.FAULT_ADDRESS:
        return this.#faultAddress;
      default:
        return pair(this.#requests, 0);
    }
  }

  write(offset: number, from: Uint8Array): void {
    const value = low32(from);
    const isBusy = (this.#status & r.STATUS_BUSY) !== 0;
    if (offset === r.COMMAND && from.length === 4) this.#command(value);
    else if (isBusy) return;
    else if (offset === r.PASID && from.length === 4) {
      this.#pasid = value;
      this.#known.clear();
    } else if (offset === r.LIMIT && from.length === 4) this.#limit = value;
    else if (offset === r.HEAD && from.length === 8) this.#head = (BigInt(high32(from)) << 32n) | BigInt(value);
    else if (offset === r.HEAD) this.#head = (this.#head & ~0xffff_ffffn) | BigInt(value);
    else if (offset === r.HEAD + 4) this.#head = (this.#head & 0xffff_ffffn) | (BigInt(value) << 32n);
  }

  #command(value: number): void {
    if ((value & r.COMMAND_STOP) !== 0) {
      this.#stop();
      return;
    }
    if ((value & r.COMMAND_WALK) === 0 || (this.#status & r.STATUS_BUSY) !== 0) return;
    this.#visited = 0;
    this.#sum = 0n;
    this.#faultAddress = 0n;
    this.#requests = 0;
    this.#tries = 0;
    this.#at = this.#head;
    this.#adds = (value & r.COMMAND_ADD) !== 0;
    if ((this.#pasid & r.PASID_VALID) === 0) {
      this.#status = r.STATUS_DONE | r.STATUS_ERROR | (r.ERROR_PASID << r.STATUS_CODE_SHIFT);
      return;
    }
    this.#status = r.STATUS_BUSY;
    this.#later();
  }

  /** Software wants it to be done with the PASID: a stop marker says that no page request of it follows. */
  #stop(): void {
    if ((this.#status & r.STATUS_BUSY) === 0) return;
    this.#end(r.STATUS_DONE);
    const marker = { address: 0n, read: false, write: false, last: true, group: this.#group };
    this.#fn!.dma.requestPage({ ...marker, pasid: this.#number });
  }

  get #number(): number {
    return this.#pasid & r.PASID_MASK;
  }

  #end(status: number): void {
    this.#cancel?.();
    this.#cancel = undefined;
    this.#awaited = -1;
    this.#status = status;
  }

  #fail(code: number, address: bigint): void {
    this.#faultAddress = (address >> 12n) << 12n;
    this.#end(r.STATUS_DONE | r.STATUS_ERROR | (code << r.STATUS_CODE_SHIFT));
  }

  #later(): void {
    this.#cancel = this.#clock.after(this.#burstNs, () => {
      this.#cancel = undefined;
      this.#walk();
    });
  }

  #walk(): void {
    const node = new Uint8Array(r.NODE_LENGTH);
    const view = new DataView(node.buffer);
    for (let i = 0; i < BURST; i++) {
      if (this.#at === 0n || this.#visited === this.#limit) {
        this.#end(r.STATUS_DONE);
        return;
      }
      // The right to write is asked for before anything is added, so that a node is never counted twice.
      if (!this.#transfer(this.#at, node, false) || (this.#adds && !this.#reach(this.#at + 8n, 8, true))) return;
      const value = view.getBigUint64(8, true);
      if (this.#adds) {
        view.setBigUint64(8, BigInt.asUintN(64, value + 1n), true);
        if (!this.#transfer(this.#at + 8n, node.subarray(8), true)) return;
      }
      this.#sum = BigInt.asUintN(64, this.#sum + value);
      this.#visited++;
      this.#tries = 0;
      this.#at = view.getBigUint64(0, true);
    }
    this.#later();
  }

  /** False: it has to wait, or has failed. */
  #transfer(address: bigint, bytes: Uint8Array, isWrite: boolean): boolean {
    if (!this.#reach(address, bytes.length, isWrite)) return false;
    const { dma } = this.#fn!;
    let done = 0;
    while (done < bytes.length) {
      const at = BigInt.asUintN(64, address + BigInt(done));
      const within = Number(at & 0xfffn);
      const part = bytes.subarray(done, done + Math.min(bytes.length - done, 4096 - within));
      const physical = this.#known.get(at >> 12n)!.physicalPage * 4096 + within;
      const how = { translated: true } as const;
      const fault = isWrite ? dma.write(physical, part, how) : dma.read(physical, part, how);
      if (fault !== undefined) {
        this.#fail(r.ERROR_ACCESS, at);
        return false;
      }
      done += part.length;
    }
    return true;
  }

  /** Whether translations of all these bytes are at hand; else it has asked, or failed. */
  #reach(address: bigint, length: number, isWrite: boolean): boolean {
    const last = BigInt.asUintN(64, address + BigInt(length - 1)) >> 12n;
    for (let page = BigInt.asUintN(64, address) >> 12n; ; page = last) {
      if (!this.#ask(page, isWrite)) return false;
      if (page === last) return true;
    }
  }

  #ask(page: bigint, isWrite: boolean): boolean {
    const known = this.#known.get(page);
    if (known !== undefined && (!isWrite || known.isWritable)) return true;
    const { dma } = this.#fn!;
    const address = page << 12n;
    const pasid = this.#number;
    const answer = dma.translate(address, { pasid, write: isWrite });
    if ('reason' in answer) {
      this.#fail(r.ERROR_TRANSLATION, address);
      return false;
    }
    if (answer.read && (!isWrite || answer.write)) {
      const physicalPage = answer.physicalPage + (Number(page) - answer.firstPage);
      this.#known.set(page, { physicalPage, isWritable: answer.write });
      return true;
    }
    if (this.#tries++ === MOST_TRIES) {
      this.#fail(r.ERROR_PROGRESS, address);
      return false;
    }
    const group = this.#group;
    this.#group = (group + 1) % GROUPS;
    this.#awaited = group;
    this.#faultAddress = address;
    this.#requests++;
    const refusal = dma.requestPage({ pasid, address, read: true, write: isWrite, last: true, group });
    if (refusal !== undefined) this.#fail(r.ERROR_TRANSLATION, address);
    return false;
  }

  #answered({ group, code }: PageResponse): void {
    if (group !== this.#awaited) return;
    this.#awaited = -1;
    if (code === 'success') {
      this.#faultAddress = 0n;
      this.#later();
    } else this.#fail(code === 'invalid' ? r.ERROR_PAGE : r.ERROR_RESPONSE, this.#faultAddress);
  }

  #forget({ pasid, isAllPasids, firstPage, order }: AtcInvalidation): boolean {
    if (!isAllPasids && pasid !== this.#number) return true;
    const count = 2 ** order;
    for (const page of this.#known.keys()) {
      if (Number(page) >= firstPage && Number(page) < firstPage + count) this.#known.delete(page);
    }
    return true;
  }
}
