/**
 * Paravirtual PASIDs: a guest's numbers come from its host, by the virtual command registers of a virtual VT-d unit (VT-d
 * specification, "Virtual Command Interface").
 *
 * Host side: `VmPasids` is what one VM has been given; `VirtualCommandRegisters` are the registers that its unit shows. Guest side:
 * `virtualCommandAllocator` is the custom allocator that the guest's driver registers before anything is allocated; its table stays
 * in the guest, so that only allocating and freeing asks the host.
 */
import type { Clock } from '../../hw/pci/clock.ts';
import { IdSpace } from '../../lib/id-space.ts';
import { INVALID_IOASID, type IoasidAllocatorOps, IoasidSet, type Ioasids, LAST_PASID } from './ioasid.ts';

/** Offsets of the 64-bit registers. */
export const CAP = 0x8;
export const VCMD = 0xe00;
export const VCRSP = 0xe10;
export const VCCAP = 0xe30;

const CAP_CM = 1n << 7n;
/** VCCAP: PASIDs are allocated and freed by command. */
const VCCAP_PAS = 1n;
const COMMAND_ALLOCATE = 1;
const COMMAND_FREE = 2;
/** VCRSP: in progress. */
const IP = 1n;
const STATUS_SUCCESS = 0;
const STATUS_UNKNOWN_COMMAND = 1;
/** No PASID is available, or the PASID to be freed is none of the guest's. */
const STATUS_REFUSED = 16;

// ---- host ----

export interface VmPasidOptions {
  /** What the guest sees: the host's own number, or numbers of the VM's own from 1. */
  readonly numbers?: 'identical' | 'own';
  /** Most PASIDs that the VM may hold. */
  readonly quota?: number;
  /** Largest number given to the guest. */
  readonly last?: number;
}

/** The PASIDs that the host has given to one VM. */
export class VmPasids {
  readonly #host: Ioasids;
  readonly #set: IoasidSet;
  readonly #hostOf = new Map<number, number>();
  readonly #own: IdSpace | undefined;
  readonly #last: number;

  constructor(host: Ioasids, name: string, options: VmPasidOptions = {}) {
    this.#host = host;
    this.#set = new IoasidSet(name, options.quota === undefined ? {} : { quota: options.quota });
    this.#own = options.numbers === 'own' ? new IdSpace() : undefined;
    this.#last = options.last ?? LAST_PASID;
  }

  get count(): number {
    return this.#hostOf.size;
  }

  /** A PASID for the guest, INVALID_IOASID when the host has none for it. */
  allocate(): number {
    const host = this.#host.alloc(this.#set, 1, this.#own === undefined ? this.#last : LAST_PASID, null);
    if (host === INVALID_IOASID) return INVALID_IOASID;
    const guest = this.#own === undefined ? host : this.#own.allocate(1, this.#last);
    if (guest < 0) {
      this.#host.free(host);
      return INVALID_IOASID;
    }
    this.#hostOf.set(guest, host);
    return guest;
  }

  /** False: not one of this guest's. */
  free(guest: number): boolean {
    const host = this.#hostOf.get(guest);
    if (host === undefined) return false;
    this.#hostOf.delete(guest);
    this.#own?.release(guest);
    this.#host.free(host);
    return true;
  }

  /** The host's number, -1 when the guest has no such PASID. */
  hostOf(guest: number): number {
    return this.#hostOf.get(guest) ?? -1;
  }

  /** The VM has ended: all goes back. */
  exit(): void {
    for (const guest of [...this.#hostOf.keys()]) this.free(guest);
  }
}

export interface VirtualCommandOptions {
  /** CAP.CM, by which a guest knows that its unit is emulated. */
  readonly isCachingMode?: boolean;
  /** VCCAP.PAS. */
  readonly offersPasids?: boolean;
  /** Answers come this many nanoseconds later, by `clock`. */
  readonly delay?: { readonly clock: Clock; readonly nanoseconds: number };
}

/** The registers of a virtual unit that concern PASIDs, as a VMM shows them. */
export class VirtualCommandRegisters {
  readonly #pasids: VmPasids;
  readonly #options: VirtualCommandOptions;
  #response = 0n;
  /** Commands that were taken, for tests and figures. */
  commands = 0;

  constructor(pasids: VmPasids, options: VirtualCommandOptions = {}) {
    this.#pasids = pasids;
    this.#options = options;
  }

  read64(offset: number): bigint {
    switch (offset) {
      case CAP:
        return (this.#options.isCachingMode ?? true) ? CAP_CM : 0n;
      case VCCAP:
        return (this.#options.offersPasids ?? true) ? VCCAP_PAS : 0n;
      case VCRSP:
        return this.#response;
      default:
        return 0n;
    }
  }

  /** A command is not taken while the one before is in progress. */
  write64(offset: number, value: bigint): void {
    if (offset !== VCMD || (this.#response & IP) !== 0n) return;
    this.commands++;
    this.#response = IP;
    const { delay } = this.#options;
    const answer = (): void => {
      this.#response = this.#answer(Number(value & 0xffn), Number((value >> 16n) & 0xf_ffffn));
    };
    if (delay === undefined) answer();
    else delay.clock.after(delay.nanoseconds, answer);
  }

  #answer(command: number, operand: number): bigint {
    if (this.#options.offersPasids === false) return responseOf(STATUS_UNKNOWN_COMMAND, 0);
    if (command === COMMAND_ALLOCATE) {
      const guest = this.#pasids.allocate();
      return guest === INVALID_IOASID ? responseOf(STATUS_REFUSED, 0) : responseOf(STATUS_SUCCESS, guest);
    }
    if (command === COMMAND_FREE) {
      return responseOf(this.#pasids.free(operand) ? STATUS_SUCCESS : STATUS_REFUSED, 0);
    }
    return responseOf(STATUS_UNKNOWN_COMMAND, 0);
  }
}

function responseOf(status: number, id: number): bigint {
  return (BigInt(status) << 1n) | (BigInt(id) << 16n);
}

// ---- guest ----

/** Registers as the guest's driver reaches them. */
export interface VirtualUnit {
  read64(offset: number): bigint;
  write64(offset: number, value: bigint): void;
}

export interface GuestAllocatorOptions {
  /** For hosts that do not answer within the write of the command: polls by this clock, for `timeout` nanoseconds (10 s). */
  readonly clock?: Clock;
  readonly timeout?: number;
}

export interface VirtualCommandAllocator extends IoasidAllocatorOps {
  /** Why the last allocation gave nothing: ENOMEM the host has none, ENODEV it did not answer. */
  readonly lastError: 'ENOMEM' | 'ENODEV' | undefined;
}

const POLL = 1_000;
const TIMEOUT = 10_000_000_000;

/** The guest's custom allocator. Without a clock, a host that does not answer at once counts as one that never does. */
export function virtualCommandAllocator(
  unit: VirtualUnit,
  options: GuestAllocatorOptions = {},
): VirtualCommandAllocator {
  let lastError: 'ENOMEM' | 'ENODEV' | undefined;
  const isIdle = (): boolean => (unit.read64(VCRSP) & IP) === 0n;
  const free = (id: number): void => {
    if (isIdle()) unit.write64(VCMD, BigInt(COMMAND_FREE) | (BigInt(id) << 16n));
  };
  /** Reads the answer to an allocation; what does not fit is given back at once. */
  const take = (min: number, max: number): number => {
    const response = unit.read64(VCRSP);
    const status = Number((response >> 1n) & 0x7fn);
    lastError = status === STATUS_SUCCESS ? undefined : status === STATUS_REFUSED ? 'ENOMEM' : 'ENODEV';
    if (lastError !== undefined) return INVALID_IOASID;
    const id = Number((response >> 16n) & 0xf_ffffn);
    if (id >= min && id <= max) return id;
    free(id);
    lastError = 'ENOMEM';
    return INVALID_IOASID;
  };
  const gone = (): number => {
    lastError = 'ENODEV';
    return INVALID_IOASID;
  };
  const alloc = (min: number, max: number): number => {
    if (!isIdle()) return gone();
    unit.write64(VCMD, BigInt(COMMAND_ALLOCATE));
    return isIdle() ? take(min, max) : gone();
  };
  const { clock } = options;
  const allocLater = (min: number, max: number, _pdata: unknown, done: (id: number) => void): void => {
    const end = clock!.now() + (options.timeout ?? TIMEOUT);
    let isSent = false;
    const poll = (): void => {
      if (isIdle()) {
        if (isSent) {
          done(take(min, max));
          return;
        }
        unit.write64(VCMD, BigInt(COMMAND_ALLOCATE));
        isSent = true;
        poll();
      } else if (clock!.now() >= end) done(gone());
      else clock!.after(POLL, poll);
    };
    poll();
  };
  return {
    alloc,
    free,
    ...(clock !== undefined && { allocLater }),
    get lastError() {
      return lastError;
    },
  };
}

/**
 * What the guest's driver does when it starts, before anybody allocates: on an emulated unit that offers PASIDs, its allocator is
 * registered. Undefined: the guest's own numbers will do (or this is no guest). Errors as of `registerAllocator`.
 */
export function initVirtualCommands(
  unit: VirtualUnit,
  ids: Ioasids,
  options: GuestAllocatorOptions = {},
): VirtualCommandAllocator | undefined {
  if ((unit.read64(CAP) & CAP_CM) === 0n || (unit.read64(VCCAP) & VCCAP_PAS) === 0n) return undefined;
  const allocator = virtualCommandAllocator(unit, options);
  ids.registerAllocator(allocator);
  return allocator;
}
