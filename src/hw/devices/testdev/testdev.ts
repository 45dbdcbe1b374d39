/**
 * The engine behind testdev's registers: copies, fills and sums memory by DMA with 64-bit addresses, tells faults apart, and
 * raises any of its vectors.
 *
 * A command runs once, `dmaLatencyNs` after it was written. It stops at the first byte that cannot be reached; everything before
 * that byte is done, and TRANSFERRED says how much that is.
 */
import * as reg from '../../../uapi/pci-regs.ts';
import type { Registers } from '../../pci/bar.ts';
import type { DeviceClock, DeviceTimer } from '../../pci/device-clock.ts';
import { type DmaFault, transferBuffer } from '../../pci/dma.ts';
import type { PciFunction } from '../../pci/function.ts';
import { get32, high32, low32, put32, putHalves } from '../../pci/registers.ts';
import * as r from './registers.ts';

const CHUNK = 65536;
/** As much is copied at a time where source and destination lie together. */
const LARGE_CHUNK = 16 * CHUNK;

/** Registers that keep what is written while no command runs. */
const writable = new Set([
  r.SOURCE,
  r.SOURCE + 4,
  r.DESTINATION,
  r.DESTINATION + 4,
  r.LENGTH,
  r.PATTERN,
  r.COMPLETION,
  r.COMPLETION + 4,
  r.PASID,
]);

/** What a testdev holds besides its memories and its timer. */
export interface TestdevState {
  readonly words: readonly number[];
  readonly sequence: number;
}

export class Testdev implements Registers {
  readonly clock: DeviceClock;
  readonly #timer: DeviceTimer;
  readonly #dmaLatencyNs: number;
  readonly #vectors: number;
  readonly #memories: () => readonly Uint8Array[];
  /** All registers, as words. */
  readonly #words = new Uint32Array(r.END / 4);
  readonly #record = new Uint8Array(r.COMPLETION_LENGTH);
  #chunk: Uint8Array | undefined;
  #sequence = 0;
  #fn: PciFunction | undefined;

  /** `memories`: the BARs that are memory, zeroed at reset. */
  constructor(clock: DeviceClock, dmaLatencyNs: number, vectors: number, memories: () => readonly Uint8Array[]) {
    this.clock = clock;
    this.#timer = clock.timer('command', () => this.#execute());
    this.#dmaLatencyNs = dmaLatencyNs;
    this.#vectors = vectors;
    this.#memories = memories;
    this.#powerOn();
  }

  attach(fn: PciFunction): void {
    this.#fn = fn;
  }

  read(offset: number, into: Uint8Array): void {
    const size = into.length;
    if ((size !== 4 && size !== 8) || offset % size !== 0 || offset + size > r.END) {
      into.fill(0xff);
      return;
    }
    const at = offset >> 2;
    putHalves(into, this.#words[at]!, size === 8 ? this.#words[at + 1]! : 0);
  }

  write(offset: number, from: Uint8Array): void {
    const size = from.length;
    if ((size !== 4 && size !== 8) || offset % size !== 0 || offset + size > r.END) return;
    this.#writeWord(offset, low32(from));
    if (size === 8) this.#writeWord(offset + 4, high32(from));
  }

  reset(): void {
    this.stop();
    this.#powerOn();
    for (const memory of this.#memories()) memory.fill(0);
  }

  stop(): void {
    this.clock.cancelAll();
  }

  /** All that it holds; fit for JSON. */
  save(): TestdevState {
    return { words: [...this.#words], sequence: this.#sequence };
  }

  restore({ words, sequence }: TestdevState): void {
    this.#words.set(words);
    this.#sequence = sequence;
    this.#updateIntx();
  }

  #powerOn(): void {
    const words = this.#words;
    words.fill(0);
    words[r.IDENTIFICATION >> 2] = r.ID_VALUE;
    words[r.VERSION >> 2] = r.VERSION_VALUE;
    words[r.FEATURES >> 2] = this.#vectors | (Math.log2(r.LARGEST_TRANSFER) << 16);
    this.#sequence = 0;
  }

  #writeWord(offset: number, value: number): void {
    const words = this.#words;
    switch (offset) {
      case r.SCRATCH:
      case r.SCRATCH + 4:
        words[offset >> 2] = value;
        break;
      case r.CONTROL:
        if ((value & r.CONTROL_RESET) !== 0) {
          this.reset();
          this.#fn!.intx.deassert();
        }
        break;
      case r.INTERRUPT_STATUS:
        words[offset >> 2] = words[offset >> 2]! & ~value;
        this.#updateIntx();
        break;
      case r.INTERRUPT_ENABLE:
        words[offset >> 2] = value & 7;
        this.#updateIntx();
        break;
      case r.RAISE:
        this.#raise(r.CAUSE_RAISED, value);
        break;
      case r.COMMAND:
        this.#start(value);
        break;
      default:
        if (writable.has(offset) && !this.#isBusy) words[offset >> 2] = value;
    }
  }

  get #isBusy(): boolean {
    return (this.#words[r.STATUS >> 2]! & r.STATUS_BUSY) !== 0;
  }

  #start(command: number): void {
    if (this.#isBusy) return;
    const words = this.#words;
    words[r.COMMAND >> 2] = command;
    words[r.STATUS >> 2] = r.STATUS_BUSY;
    words[r.RESULT >> 2] = 0;
    words[r.TRANSFERRED >> 2] = 0;
    this.#setFault(0n);
    this.#timer.start(this.#dmaLatencyNs);
  }

  #execute(): void {
    const command = this.#words[r.COMMAND >> 2]!;
    this.#finish(command, this.#run(command));
  }

  /** Returns an error code, 0 for none. */
  #run(command: number): number {
    const operation = command & r.COMMAND_OPERATION;
    if (operation < r.OPERATION_COPY || operation > r.OPERATION_CHECKSUM) return r.ERROR_COMMAND;
    const length = this.#words[r.LENGTH >> 2]!;
    if (length > r.LARGEST_TRANSFER) return r.ERROR_LENGTH;
    const chunk = this.#chunk ?? transferBuffer(CHUNK);
    this.#chunk = chunk;
    if (operation === r.OPERATION_FILL) {
      // The pattern continues over chunks because their length is a multiple of 4.
      for (let at = 0; at < CHUNK; at += 4) put32(chunk, at, this.#words[r.PATTERN >> 2]!);
    }
    // From memory to memory at once, where the memory's bytes can be had; in larger pieces as long as these lie together.
    let most = operation === r.OPERATION_COPY ? LARGE_CHUNK : 0;
    for (let done = 0; done < length; ) {
      const left = length - done;
      let direct = most > CHUNK && left > CHUNK ? this.#direct(done, Math.min(most, left)) : undefined;
      if (direct === undefined) {
        most = Math.min(most, CHUNK);
        if (most > 0) direct = this.#direct(done, Math.min(most, left));
      }
      const part = direct ?? chunk.subarray(0, Math.min(CHUNK, left));
      const error = this.#step(operation, done, part, direct !== undefined);
      if (error !== 0) return error;
      done += part.length;
    }
    return 0;
  }

  /** The bytes of the source themselves; undefined: they lie apart, or can only be copied. */
  #direct(done: number, length: number): Uint8Array | undefined {
    return this.#fn!.dma.direct(this.#address(r.SOURCE) + BigInt(done), length, this.#pasid());
  }

  /** `isDirect`: `part` is the source itself. */
  #step(operation: number, done: number, part: Uint8Array, isDirect: boolean): number {
    const { dma } = this.#fn!;
    const pasid = this.#pasid();
    const source = this.#address(r.SOURCE) + BigInt(done);
    let readFault: DmaFault | undefined;
    let bytes = part;
    if (!isDirect && operation !== r.OPERATION_FILL) {
      readFault = dma.read(source, part, pasid);
      if (readFault !== undefined) bytes = part.subarray(0, this.#reached(readFault, source));
    }
    if (operation === r.OPERATION_CHECKSUM) {
      let sum = this.#words[r.RESULT >> 2]!;
      for (const byte of bytes) sum += byte;
      this.#words[r.RESULT >> 2] = sum;
    } else {
      const destination = this.#address(r.DESTINATION) + BigInt(done);
      const fault = dma.write(destination, bytes, pasid);
      if (fault !== undefined) {
        this.#words[r.TRANSFERRED >> 2] = done + this.#reached(fault, destination);
        return this.#faulted(fault);
      }
    }
    this.#words[r.TRANSFERRED >> 2] = done + bytes.length;
    return readFault === undefined ? 0 : this.#faulted(readFault);
  }

  /** Bytes of a transfer from `start` before the fault. */
  #reached(fault: DmaFault, start: bigint): number {
    return Number(BigInt.asUintN(64, fault.address - start));
  }

  #faulted(fault: DmaFault): number {
    this.#setFault(fault.address);
    if (!this.#fn!.busMaster) return r.ERROR_BUS_MASTER;
    return fault.access === 'read' ? r.ERROR_READ : r.ERROR_WRITE;
  }

  #finish(command: number, error: number): void {
    this.#setStatus(error);
    this.#sequence = (this.#sequence + 1) >>> 0;
    if ((command & r.COMMAND_COMPLETION) !== 0) {
      // Written after all data: who polls it finds the data in place.
      const fault = this.#fn!.dma.write(this.#address(r.COMPLETION), this.#completionRecord(), this.#pasid());
      if (fault !== undefined && error === 0) {
        this.#setFault(fault.address);
        this.#setStatus(r.ERROR_COMPLETION);
      }
    }
    if ((command & r.COMMAND_INTERRUPT) !== 0) {
      const failed = (this.#words[r.STATUS >> 2]! & r.STATUS_ERROR) !== 0;
      this.#raise(failed ? r.CAUSE_ERROR : r.CAUSE_DONE, command >>> r.COMMAND_VECTOR_SHIFT);
    }
  }

  #completionRecord(): Uint8Array {
    const record = this.#record;
    put32(record, 0, this.#words[r.STATUS >> 2]!);
    put32(record, 4, this.#words[r.RESULT >> 2]!);
    put32(record, 8, this.#words[r.TRANSFERRED >> 2]!);
    put32(record, 12, this.#sequence);
    return record;
  }

  #setStatus(error: number): void {
    this.#words[r.STATUS >> 2] =
      error === 0 ? r.STATUS_DONE : r.STATUS_DONE | r.STATUS_ERROR | (error << r.STATUS_CODE_SHIFT);
  }

  #setFault(address: bigint): void {
    this.#words[r.FAULT_ADDRESS >> 2] = Number(address & 0xffffffffn);
    this.#words[(r.FAULT_ADDRESS >> 2) + 1] = Number(address >> 32n);
  }

  #address(offset: number): bigint {
    return (BigInt(this.#words[(offset >> 2) + 1]!) << 32n) | BigInt(this.#words[offset >> 2]!);
  }

  /** The PASID that requests carry: only while the PASID capability is enabled. */
  #pasid(): number {
    const word = this.#words[r.PASID >> 2]!;
    const { config } = this.#fn!;
    const at = config.findExtended(reg.PCI_EXT_CAP_ID_PASID);
    if ((word & r.PASID_VALID) === 0 || at === 0) return -1;
    return (get32(config.bytes, at + reg.PCI_PASID_CAP) >>> 16) & reg.PCI_PASID_CTRL_ENABLE ? word & r.PASID_MASK : -1;
  }

  /** By MSI-X, else MSI, else INTx with a cause. */
  #raise(cause: number, vector: number): void {
    const { msix, msi } = this.#fn!;
    if (msix?.enabled) msix.fire(vector);
    else if (msi?.enabled) msi.fire(vector);
    else {
      this.#words[r.INTERRUPT_STATUS >> 2] = this.#words[r.INTERRUPT_STATUS >> 2]! | cause;
      this.#updateIntx();
    }
  }

  #updateIntx(): void {
    const wanted = (this.#words[r.INTERRUPT_STATUS >> 2]! & this.#words[r.INTERRUPT_ENABLE >> 2]!) !== 0;
    if (wanted === this.#fn!.intx.asserted) return;
    if (wanted) this.#fn!.intx.assert();
    else this.#fn!.intx.deassert();
  }
}
