/**
 * The engine of the edu device: factorials, interrupts by request, DMA to and from a buffer of 4096 bytes. Behaves as QEMU's
 * `-device edu`, with the differences that docs/devices/edu.md lists.
 *
 * The four DMA registers are 64 bits wide and kept as two halves: a register access makes no bigint.
 */

import type { Registers } from '../../pci/bar.ts';
import type { DeviceClock, DeviceTimer } from '../../pci/device-clock.ts';
import type { PciFunction } from '../../pci/function.ts';
import { high32, low32, putHalves } from '../../pci/registers.ts';
import * as r from './registers.ts';

export interface EduOptions {
  /** Address bits that its DMA engine drives. */
  readonly dmaMask: bigint;
  readonly dmaLatencyNs: number;
  readonly factorialLatencyNs: number;
}

/** What an edu holds besides its timers. */
export interface EduState {
  readonly liveness: number;
  readonly factorial: number;
  readonly status: number;
  readonly causes: number;
  readonly dma: readonly number[];
  readonly buffer: string;
}

const REGISTER_SPACE = 0x80;

export class Edu implements Registers {
  readonly clock: DeviceClock;
  readonly #transferTimer: DeviceTimer;
  readonly #factorialTimer: DeviceTimer;
  readonly #options: EduOptions;
  readonly #log: (text: string) => void;
  readonly #buffer = new Uint8Array(r.BUFFER_LENGTH);
  readonly #incoming = new Uint8Array(r.BUFFER_LENGTH);
  /** Source, destination, count and command; low and high half of each. */
  readonly #dma = new Uint32Array(8);
  #fn: PciFunction | undefined;
  #liveness = 0;
  #factorial = 0;
  #status = 0;
  #causes = 0;

  constructor(clock: DeviceClock, options: EduOptions, log: (text: string) => void = () => {}) {
    this.clock = clock;
    this.#transferTimer = clock.timer('dma', () => this.#transfer());
    this.#factorialTimer = clock.timer('factorial', () => this.#finishFactorial());
    this.#options = options;
    this.#log = log;
  }

  attach(fn: PciFunction): void {
    this.#fn = fn;
  }

  /** The internal buffer, for tests and the inspector. */
  get buffer(): Uint8Array {
    return this.#buffer;
  }

  read(offset: number, into: Uint8Array): void {
    const size = into.length;
    if (size !== 4 && (size !== 8 || offset < REGISTER_SPACE)) {
      into.fill(0xff);
      return;
    }
    if (offset >= r.DMA_SOURCE && offset <= r.DMA_COMMAND && offset % 8 === 0) {
      const at = (offset - r.DMA_SOURCE) >> 2;
      putHalves(into, this.#dma[at]!, this.#dma[at + 1]!);
      return;
    }
    const value = this.#register(offset);
    if (value < 0) into.fill(0xff);
    else putHalves(into, value, 0);
  }

  /** A register of 32 bits, -1 where none is. */
  #register(offset: number): number {
    switch (offset) {
      case r.IDENTIFICATION:
        return r.ID_VALUE;
      case r.LIVENESS:
        return this.#liveness;
      case r.FACTORIAL:
        return this.#factorial;
      case r.STATUS:
        return this.#status;
      case r.INTERRUPT_STATUS:
        return this.#causes;
      default:
        return -1;
    }
  }

  write(offset: number, from: Uint8Array): void {
    const size = from.length;
    if (size !== 4 && (size !== 8 || offset < REGISTER_SPACE)) return;
    const value = low32(from);
    switch (offset) {
      case r.LIVENESS:
        this.#liveness = ~value >>> 0;
        break;
      case r.FACTORIAL:
        this.#startFactorial(value);
        break;
      case r.STATUS:
        this.#status = (this.#status & ~r.STATUS_INTERRUPT) | (value & r.STATUS_INTERRUPT);
        break;
      case r.INTERRUPT_RAISE:
        this.#raise(value);
        break;
      case r.INTERRUPT_ACKNOWLEDGE:
        this.#acknowledge(value);
        break;
      case r.DMA_SOURCE:
      case r.DMA_DESTINATION:
      case r.DMA_COUNT:
        this.#setDma(offset, value, high32(from));
        break;
      case r.DMA_COMMAND:
        if ((value & r.DMA_RUN) === 0 || this.#isBusy) break;
        this.#setDma(offset, value, high32(from));
        this.#transferTimer.start(this.#options.dmaLatencyNs);
        break;
    }
  }

  reset(): void {
    this.stop();
    this.#liveness = 0;
    this.#factorial = 0;
    this.#status = 0;
    this.#causes = 0;
    this.#dma.fill(0);
    this.#buffer.fill(0);
  }

  /** Drops what is under way. */
  stop(): void {
    this.clock.cancelAll();
  }

  /** All that it holds; fit for JSON. */
  save(): EduState {
    return {
      liveness: this.#liveness,
      factorial: this.#factorial,
      status: this.#status,
      causes: this.#causes,
      dma: [...this.#dma],
      buffer: Buffer.from(this.#buffer).toString('base64'),
    };
  }

  restore(state: EduState): void {
    this.#liveness = state.liveness;
    this.#factorial = state.factorial;
    this.#status = state.status;
    this.#causes = state.causes;
    this.#dma.set(state.dma);
    this.#buffer.set(Buffer.from(state.buffer, 'base64'));
    const fn = this.#fn!;
    if (this.#causes !== 0 && !fn.msi!.enabled) fn.intx.assert();
  }

  get #isBusy(): boolean {
    return (this.#dma[6]! & r.DMA_RUN) !== 0;
  }

  /** While a transfer runs its registers keep their values. */
  #setDma(offset: number, low: number, high: number): void {
    if (this.#isBusy) return;
    const at = (offset - r.DMA_SOURCE) >> 2;
    this.#dma[at] = low;
    this.#dma[at + 1] = high;
  }

  #startFactorial(n: number): void {
    if ((this.#status & r.STATUS_COMPUTING) !== 0) return;
    this.#factorial = n;
    this.#status |= r.STATUS_COMPUTING;
    this.#factorialTimer.start(this.#options.factorialLatencyNs);
  }

  #finishFactorial(): void {
    this.#factorial = factorial(this.#factorial);
    this.#status &= ~r.STATUS_COMPUTING;
    if ((this.#status & r.STATUS_INTERRUPT) !== 0) this.#raise(r.CAUSE_FACTORIAL);
  }

  #raise(causes: number): void {
    this.#causes = (this.#causes | causes) >>> 0;
    if (this.#causes === 0) return;
    const fn = this.#fn!;
    if (fn.msi!.enabled) fn.msi!.fire(0);
    else fn.intx.assert();
  }

  #acknowledge(causes: number): void {
    this.#causes = (this.#causes & ~causes) >>> 0;
    if (this.#causes === 0) this.#fn!.intx.deassert();
  }

  #transfer(): void {
    const command = this.#dma[6]!;
    const toMemory = (command & r.DMA_TO_MEMORY) !== 0;
    const inside = this.#insideBuffer(toMemory ? 0 : 2);
    if (inside >= 0) {
      const count = this.#dma[4]!;
      if (toMemory) this.#fn!.dma.write(this.#busAddress(2), this.#buffer.subarray(inside, inside + count));
      else {
        // Fetched aside first: a transfer that faults leaves the buffer as it was.
        const incoming = this.#incoming.subarray(0, count);
        const fault = this.#fn!.dma.read(this.#busAddress(0), incoming);
        if (fault === undefined) this.#buffer.set(incoming, inside);
      }
    }
    this.#dma[6] = command & ~r.DMA_RUN;
    if ((command & r.DMA_INTERRUPT) !== 0) this.#raise(r.CAUSE_DMA);
  }

  /** Where in the buffer the transfer is whose device address is in the register at `at`; -1: not completely inside. */
  #insideBuffer(at: number): number {
    const dma = this.#dma;
    const start = dma[at + 1]! === 0 ? dma[at]! - r.BUFFER_ADDRESS : -1;
    const fits = dma[5]! === 0 && start >= 0 && start + dma[4]! <= r.BUFFER_LENGTH;
    if (fits) return start;
    this.#log(
      `${this.#fn!.name}: transfer of 0x${hex64(dma, 4)} bytes at device address 0x${hex64(dma, at)} is outside the buffer and was dropped`,
    );
    return -1;
  }

  #busAddress(at: number): bigint {
    return ((BigInt(this.#dma[at + 1]!) << 32n) | BigInt(this.#dma[at]!)) & this.#options.dmaMask;
  }
}

/** n! modulo 2^32: 0 from 34 on, because 2^32 divides it. */
function factorial(n: number): number {
  if (n >= 34) return 0;
  let result = 1;
  for (let i = 2; i <= n; i++) result = Math.imul(result, i) >>> 0;
  return result;
}

function hex64(halves: Uint32Array, at: number): string {
  return ((BigInt(halves[at + 1]!) << 32n) | BigInt(halves[at]!)).toString(16);
}
