/**
 * The registers of a unit as software sees them in its 4 KiB of memory (VT-d specification, chapter 11): for whoever drives a unit as
 * a driver does. The kernel of a vfiobox host uses the unit's methods instead, which do the same.
 *
 * Registers of 64 bits are two of 32; what a write starts, the half that holds the bit starts.
 */
import type { IommuUnit } from './unit.ts';

/** Byte offsets. Those of the IOTLB and the fault records follow from CAP and ECAP. */
export const Register = {
  VER: 0x00,
  CAP: 0x08,
  ECAP: 0x10,
  GCMD: 0x18,
  GSTS: 0x1c,
  RTADDR: 0x20,
  CCMD: 0x28,
  FSTS: 0x34,
  FECTL: 0x38,
  IQH: 0x80,
  IQT: 0x88,
  IQA: 0x90,
  ICS: 0x9c,
  IECTL: 0xa0,
  IQER: 0xb0,
  PQH: 0xc0,
  PQT: 0xc8,
  PQA: 0xd0,
  PRS: 0xdc,
  PECTL: 0xe0,
} as const;

const VERSION = 0x60;
const ROOT_POINTER_BIT = 1 << 30;
const QUEUE_BIT = 1 << 26;
/** In the status these stay as commanded; the others are commands that are done at once. */
const STATUS_BITS = 0x8000_0000 | QUEUE_BIT | (1 << 25) | (1 << 23);
const FSTS = { PFO: 1, PPF: 2, IQE: 16, ICE: 32, ITE: 64 } as const;
const MASK_BIT = 0x8000_0000;
const PENDING_BIT = 0x4000_0000;
/** Granularities. */
const GLOBAL = 1;
const DOMAIN = 2;

export class RegisterFile {
  /** A message of one of the three events: faults, completed waits, page requests. */
  onMessage: ((address: bigint, data: number) => void) | undefined;
  readonly #unit: IommuUnit;
  readonly #stored = new Uint32Array(1024);

  /** `unit.registers` makes it. */
  constructor(unit: IommuUnit) {
    this.#unit = unit;
    for (const control of [Register.FECTL, Register.IECTL, Register.PECTL]) this.#stored[control / 4] = MASK_BIT;
    if (unit.isTranslating) this.#stored[Register.GSTS / 4] = MASK_BIT | ROOT_POINTER_BIT;
    this.#store64(
      Register.RTADDR,
      (BigInt(unit.requesters.root.page) << 12n) | (unit.mode === 'scalable' ? 1n << 10n : 0n),
    );
  }

  read64(offset: number): bigint {
    return (BigInt(this.read32(offset + 4)) << 32n) | BigInt(this.read32(offset));
  }

  write64(offset: number, value: bigint): void {
    this.write32(offset, Number(value & 0xffff_ffffn));
    this.write32(offset + 4, Number((value >> 32n) & 0xffff_ffffn));
  }

  /** Reads 32 bits at a multiple of 4. What is not there reads 0. */
  read32(offset: number): number {
    const unit = this.#unit;
    const { queue, devices, faults } = unit;
    const record = this.#faultWord(offset);
    if (record !== undefined) return faults.read(record.index)[record.word]! >>> 0;
    switch (offset) {
      case Register.VER:
        return VERSION;
      case Register.CAP:
      case Register.CAP + 4:
        return half(unit.cap, offset - Register.CAP);
      case Register.ECAP:
      case Register.ECAP + 4:
        return half(unit.ecap, offset - Register.ECAP);
      case Register.GCMD:
        return 0;
      case Register.FSTS:
        return this.#faultStatus();
      case Register.IQH:
        return queue.head;
      case Register.IQT:
        return queue.tail;
      case Register.IQER:
        return queue.errorInfo;
      case Register.IQER + 4:
        return queue.timeoutSource;
      case Register.ICS:
        return queue.hasWaitCompleted ? 1 : 0;
      case Register.PQH:
        return devices.queue.head;
      case Register.PQT:
        return devices.queue.tail;
      case Register.PRS:
        return (devices.queue.isPending ? 1 : 0) | (devices.queue.hasOverflow ? 2 : 0);
      default:
        return offset >= 0 && offset < 4096 ? this.#stored[offset >>> 2]! : 0;
    }
  }

  write32(offset: number, value: number): void {
    const { queue, devices, capabilities, faults } = this.#unit;
    const record = this.#faultWord(offset);
    if (record !== undefined) {
      if (record.word === 3 && (value & MASK_BIT) !== 0) faults.clearRecord(record.index);
      return;
    }
    const iotlb = capabilities.iotlbOffset;
    switch (offset) {
      case Register.GCMD:
        this.#command(value);
        return;
      case Register.FSTS:
        this.#clearFaultStatus(value);
        return;
      case Register.FECTL:
      case Register.IECTL:
      case Register.PECTL:
        this.#control(offset, value);
        return;
      case Register.IQT:
        queue.moveTail(value & 0x7fff0);
        return;
      case Register.ICS:
        if ((value & 1) !== 0) queue.hasWaitCompleted = false;
        return;
      case Register.PQH:
        devices.queue.head = value & 0x7ffe0;
        return;
      case Register.PRS:
        if ((value & 1) !== 0) devices.queue.isPending = false;
        if ((value & 2) !== 0) devices.queue.clearOverflow();
        return;
      case Register.RTADDR:
      case Register.RTADDR + 4:
      case Register.CCMD:
      case Register.IQA:
      case Register.PQA:
      case iotlb:
      case iotlb + 4:
      case iotlb + 8:
        this.#stored[offset / 4] = value;
        return;
      case Register.IQA + 4: {
        this.#stored[offset / 4] = value;
        const low = this.#stored[Register.IQA / 4]!;
        queue.setBase(value * 0x10_0000 + (low >>> 12), low & 7, (low & 0x800) !== 0);
        return;
      }
      case Register.PQA + 4: {
        this.#stored[offset / 4] = value;
        const low = this.#stored[Register.PQA / 4]!;
        devices.queue.setBase(value * 0x10_0000 + (low >>> 12), low & 7);
        return;
      }
      case Register.CCMD + 4:
        this.#contextCommand(value);
        return;
      case iotlb + 12:
        this.#iotlbCommand(value);
        return;
      default:
        if (isEventAddress(offset)) this.#stored[offset / 4] = value;
    }
  }

  /** An event happened: its message goes out, or waits while it is masked. */
  raise(control: number): void {
    const at = control / 4;
    const isMasked = (this.#stored[at]! & MASK_BIT) !== 0;
    if (isMasked) this.#stored[at]! |= PENDING_BIT;
    else this.#send(control);
  }

  #send(control: number): void {
    const at = control / 4;
    const address = (BigInt(this.#stored[at + 3]!) << 32n) | BigInt(this.#stored[at + 2]!);
    this.onMessage?.(address, this.#stored[at + 1]!);
  }

  #control(offset: number, value: number): void {
    const at = offset / 4;
    const isPending = (this.#stored[at]! & PENDING_BIT) !== 0;
    const isMasked = (value & MASK_BIT) !== 0;
    this.#stored[at] = isMasked ? MASK_BIT | (isPending ? PENDING_BIT : 0) : 0;
    if (isPending && !isMasked) this.#send(offset);
  }

  #command(value: number): void {
    const unit = this.#unit;
    const before = this.#stored[Register.GSTS / 4]!;
    let status = ((value & STATUS_BITS) | (before & ~STATUS_BITS)) >>> 0;
    if ((value & ROOT_POINTER_BIT) !== 0) {
      status |= ROOT_POINTER_BIT;
      const low = this.#stored[Register.RTADDR / 4]!;
      const high = this.#stored[Register.RTADDR / 4 + 1]!;
      const mode = (low >>> 10) & 3;
      const isKnown = mode === 0 || (mode === 1 && unit.capabilities.isScalable);
      const page = high * 0x10_0000 + (low >>> 12);
      unit.requesters.root = { page, isScalable: mode === 1, isInvalid: !isKnown || high >>> 20 !== 0 };
    }
    const isTranslating = (value & MASK_BIT) !== 0;
    if (isTranslating !== unit.isTranslating) unit.setTranslating(isTranslating);
    unit.queue.isEnabled = (value & QUEUE_BIT) !== 0;
    this.#stored[Register.GSTS / 4] = status;
  }

  #faultStatus(): number {
    const { faults, queue } = this.#unit;
    const { hasQueueError, hasCompletionError, hasTimeout } = queue;
    return (
      (faults.overflow ? FSTS.PFO : 0) |
      (faults.isPending ? FSTS.PPF : 0) |
      (hasQueueError ? FSTS.IQE : 0) |
      (hasCompletionError ? FSTS.ICE : 0) |
      (hasTimeout ? FSTS.ITE : 0) |
      (faults.first << 8)
    );
  }

  #clearFaultStatus(value: number): void {
    const { faults, queue } = this.#unit;
    if ((value & FSTS.PFO) !== 0) faults.overflow = false;
    if ((value & FSTS.ICE) !== 0) queue.hasCompletionError = false;
    if ((value & (FSTS.IQE | FSTS.ITE)) === 0) return;
    if ((value & FSTS.IQE) !== 0) queue.hasQueueError = false;
    if ((value & FSTS.ITE) !== 0) queue.hasTimeout = false;
    queue.resume();
  }

  /** CCMD's upper half: ICC starts, granularity in bits 61-62; the granularity that was used comes back in 59-60. */
  #contextCommand(value: number): void {
    const { requesters } = this.#unit;
    const granularity = (value >>> 29) & 3;
    const low = this.#stored[Register.CCMD / 4]!;
    if ((value & MASK_BIT) !== 0 && granularity !== 0) {
      if (granularity === GLOBAL) requesters.invalidateContexts();
      else if (granularity === DOMAIN) requesters.invalidateContexts({ did: low & 0xffff });
      else requesters.invalidateContexts({ rid: low >>> 16 });
    }
    this.#stored[Register.CCMD / 4 + 1] = ((granularity << 27) | (granularity << 29)) >>> 0;
  }

  /** The IOTLB register's upper half: IVT starts, granularity in bits 60-61, used one in 57-58. */
  #iotlbCommand(value: number): void {
    const unit = this.#unit;
    const base = unit.capabilities.iotlbOffset / 4;
    const granularity = (value >>> 28) & 3;
    const did = value & 0xffff;
    if ((value & MASK_BIT) !== 0 && granularity !== 0) {
      const low = this.#stored[base]!;
      const page = this.#stored[base + 1]! * 0x10_0000 + (low >>> 12);
      if (granularity === GLOBAL) unit.iotlb.invalidateAll();
      else if (granularity === DOMAIN) unit.invalidateDomain(did);
      else unit.invalidatePages(did, page, low & 0x3f);
    }
    this.#stored[base + 3] = ((value & 0x7000_ffff) | (granularity << 25)) >>> 0;
  }

  #faultWord(offset: number): { index: number; word: number } | undefined {
    const { faultRecordOffset, faultRecords } = this.#unit.capabilities;
    const within = offset - faultRecordOffset;
    if (within < 0 || within >= faultRecords * 16) return undefined;
    return { index: within >> 4, word: (within >> 2) & 3 };
  }

  #store64(offset: number, value: bigint): void {
    this.#stored[offset / 4] = half(value, 0);
    this.#stored[offset / 4 + 1] = half(value, 4);
  }
}

function half(value: bigint, offset: number): number {
  return Number((value >> BigInt(offset * 8)) & 0xffff_ffffn);
}

/** Data and address behind the control register of an event. */
function isEventAddress(offset: number): boolean {
  return [Register.FECTL, Register.IECTL, Register.PECTL].some((base) => offset > base && offset <= base + 12);
}
