/**
 * The consumer layer of the 2019 proposal: a range and a set for each user of PASIDs, and hardware that may insist on numbers of its
 * own.
 *
 * It adds nothing to `Ioasids` that a set and a custom allocator do not do, and is kept as an adapter only. Its bounds are half-open,
 * the registry's are inclusive. Two mistakes of the posted code are repaired; `seedBugs` brings them back.
 */
import { INVALID_IOASID, IoasidError, IoasidSet, type Ioasids } from './ioasid.ts';

export const PASID_MAX = 0x10_0000;

/** What a bus's IOMMU may do about PASIDs. Numbers are 0 or an error's name. */
export interface PasidOps {
  /** May narrow the consumer's range. */
  readonly pasidInit?: (consumer: PasidConsumer) => 0 | string;
  /** A number of the hardware's own in [start, end); EAGAIN leaves it to the registry. */
  readonly pasidAlloc?: (consumer: PasidConsumer, start: number, end: number) => { errno: 0 | string; id: number };
  readonly pasidFree?: (consumer: PasidConsumer, id: number) => void;
}

export interface PasidBus {
  /** Null: a bus without an IOMMU. */
  readonly iommu: PasidOps | null;
}

export class PasidConsumer<T extends object = object> {
  /** Its ids are in [min, max). */
  min = 0;
  max = PASID_MAX;
  readonly set = new IoasidSet<T>('pasid consumer');
  readonly ops: PasidOps;
  /** For the bus's operations. */
  priv: unknown;

  constructor(ops: PasidOps) {
    this.ops = ops;
  }
}

export interface PasidConsumersOptions {
  /** False: the calls are stubs, as in a kernel without IOMMU support. */
  readonly enabled?: boolean;
  readonly seedBugs?: boolean;
}

export class PasidConsumers {
  warnings = 0;
  readonly #ids: Ioasids;
  readonly #isEnabled: boolean;
  readonly #hasSeedBugs: boolean;
  /** What an uninitialised variable holds: whatever the last call left there. */
  #stale = 0;

  constructor(ids: Ioasids, options: PasidConsumersOptions = {}) {
    this.#ids = ids;
    this.#isEnabled = options.enabled ?? true;
    this.#hasSeedBugs = options.seedBugs ?? false;
  }

  /** Null: no bus, no IOMMU, or the hardware refused. */
  init<T extends object>(bus: PasidBus | null): PasidConsumer<T> | null {
    if (!this.#isEnabled || bus?.iommu == null) return null;
    const consumer = new PasidConsumer<T>(bus.iommu);
    const result = bus.iommu.pasidInit?.(consumer) ?? 0;
    return result === 0 ? consumer : null;
  }

  /** Freeing its ids before is the caller's duty; those left are only warned of. */
  exit(consumer: PasidConsumer): void {
    if (this.#isEnabled && this.#ids.forEach(consumer.set, () => 1) !== 0) this.warnings++;
  }

  /** An id of [min, max) within the consumer's range. The only error is ENODEV. */
  alloc<T extends object>(
    consumer: PasidConsumer<T>,
    min: number,
    max: number,
    data: T | null,
  ): { errno: 0 | 'ENODEV'; id: number } {
    const failed = { errno: 'ENODEV', id: INVALID_IOASID } as const;
    if (!this.#isEnabled) return failed;
    const { ops, set } = consumer;
    const start = this.#hasSeedBugs
      ? (min | 0) > (consumer.min | 0)
        ? min
        : consumer.min
      : Math.max(min, consumer.min);
    const end = this.#hasSeedBugs ? ((max | 0) < (consumer.max | 0) ? max : consumer.max) : Math.min(max, consumer.max);
    const hardware = ops.pasidAlloc?.(consumer, start, end) ?? { errno: 'EAGAIN', id: this.#stale };
    this.#stale = hardware.id;
    if (hardware.errno !== 0 && hardware.errno !== 'EAGAIN') return failed;
    const isHardware = hardware.errno === 0;
    const id = isHardware
      ? this.#ids.alloc(set, hardware.id, hardware.id, data)
      : this.#ids.alloc(set, start, end - 1, data);
    if (id !== INVALID_IOASID) return { errno: 0, id };
    if (isHardware || this.#hasSeedBugs) ops.pasidFree?.(consumer, hardware.id);
    return failed;
  }

  free(consumer: PasidConsumer, id: number): void {
    if (!this.#isEnabled) return;
    consumer.ops.pasidFree?.(consumer, id);
    this.#ids.free(id);
  }

  /** As `Ioasids.forEach`; ENODEV when switched off. */
  forEach<T extends object>(
    consumer: PasidConsumer<T>,
    visit: (id: number, data: T | null) => number,
  ): number | 'ENODEV' {
    return this.#isEnabled ? this.#ids.forEach(consumer.set, visit) : 'ENODEV';
  }

  /** Another consumer's id is EACCES; the proposal gave null. */
  find<T extends object>(consumer: PasidConsumer<T>, id: number): T | null | IoasidError {
    if (!this.#isEnabled) return null;
    const found = this.#ids.find(consumer.set, id);
    return this.#hasSeedBugs && found instanceof IoasidError ? null : found;
  }
}
