/**
 * One channel of the DMA engine: walks a chain of descriptors as far as DMACOUNT allows, copies, writes its status to memory and
 * interrupts where a descriptor asks for it. An error halts it; CHANERR says why.
 */
import { type Card, isFault } from '../../pci/kit/card.ts';
import { type Register, register } from '../../pci/kit/register.ts';
import * as r from './registers.ts';

export interface ChannelSettings {
  /** Offset of its registers in BAR 0. */
  readonly base: number;
  /** Log2 of the longest transfer of one descriptor. */
  readonly transferLimit: number;
  readonly latencyNs: number;
  /** The channel interrupts. */
  interrupt(): void;
}

interface Saved {
  state: number;
  done: number;
  next: string;
  isFresh: boolean;
  missed: boolean;
}

/** Work of one turn, so that a long chain leaves room for the rest of the machine. */
const TURN_DESCRIPTORS = 64;
const TURN_BYTES = 4 << 20;
const PIECE = 64 << 10;

export class Channel {
  readonly registers: readonly Register[];
  readonly #card: Card;
  readonly #settings: ChannelSettings;
  readonly #control: Register;
  readonly #count: Register;
  readonly #status: Register;
  readonly #chain: Register;
  readonly #completion: Register;
  readonly #current: Register;
  readonly #error: Register;
  readonly #errorMask: Register;
  readonly #piece = new Uint8Array(PIECE);
  #state = r.CHANSTS_HALTED;
  /** Descriptors that are done since the chain began, modulo 2^16 as DMACOUNT. */
  #done = 0;
  #next = 0n;
  /** The next descriptor is at CHAINADDR, not behind the last one. */
  #isFresh = true;
  /** An interrupt came due before the last one was re-armed. */
  #missed = false;
  #cancel: (() => void) | undefined;

  constructor(card: Card, settings: ChannelSettings) {
    this.#card = card;
    this.#settings = settings;
    const { base } = settings;
    const at = (offset: number, width: 1 | 2 | 4 | 8, name: string) => ({ at: base + offset, width, name });
    this.#control = register({
      ...at(0x00, 2, 'CHANCTRL'),
      writeOneToClear: r.CHANCTRL_INT_REARM,
      write: (_self, written) => this.#rearm(written),
    });
    const command = register({
      ...at(0x04, 1, 'CHANCMD'),
      readOnly: true,
      write: (_self, written) => this.#command(written),
    });
    this.#count = register({ ...at(0x06, 2, 'DMACOUNT'), write: () => this.#start() });
    this.#status = register({ ...at(0x08, 8, 'CHANSTS'), readOnly: true, read: () => this.#statusValue() });
    this.#chain = register({ ...at(0x10, 8, 'CHAINADDR'), write: () => this.#newChain() });
    this.#completion = register(at(0x18, 8, 'CHANCMP'));
    this.#current = register({ ...at(0x20, 8, 'CDAR'), readOnly: true });
    this.#error = register({ ...at(0x28, 4, 'CHANERR'), writeOneToClear: true });
    this.#errorMask = register(at(0x2c, 4, 'CHANERR_MASK'));
    this.registers = [
      this.#control,
      register({ ...at(0x02, 2, 'DMA_COMP'), reset: 2, readOnly: true }),
      command,
      this.#count,
      this.#status,
      this.#chain,
      this.#completion,
      this.#current,
      this.#error,
      this.#errorMask,
      register(at(0x30, 4, 'DCACTRL')),
    ];
  }

  reset(): void {
    this.#stop();
    this.#state = r.CHANSTS_HALTED;
    this.#done = 0;
    this.#next = 0n;
    this.#isFresh = true;
    this.#missed = false;
  }

  save(): Saved {
    const { state, done, next, isFresh, missed } = {
      state: this.#state,
      done: this.#done,
      next: this.#next,
      isFresh: this.#isFresh,
      missed: this.#missed,
    };
    return { state, done, next: next.toString(), isFresh, missed };
  }

  restore(saved: Saved): void {
    this.#stop();
    this.#state = saved.state;
    this.#done = saved.done;
    this.#next = BigInt(saved.next);
    this.#isFresh = saved.isFresh;
    this.#missed = saved.missed;
    if (this.#state === r.CHANSTS_ACTIVE) this.#schedule();
  }

  #statusValue(): bigint {
    return (this.#status.wide & ~0x3fn) | BigInt(this.#state);
  }

  #rearm(written: number): void {
    if ((written & r.CHANCTRL_INT_REARM) === 0 || !this.#missed) return;
    this.#missed = false;
    this.#interrupt();
  }

  #command(written: number): void {
    if ((written & r.CHANCMD_RESET) !== 0) {
      for (const one of this.registers) one.reset();
      this.reset();
    } else if ((written & (r.CHANCMD_SUSPEND | r.CHANCMD_ABORT)) !== 0 && this.#state !== r.CHANSTS_HALTED) {
      this.#stop();
      this.#state = (written & r.CHANCMD_ABORT) !== 0 ? r.CHANSTS_HALTED : r.CHANSTS_SUSPENDED;
    }
  }

  #newChain(): void {
    this.#isFresh = true;
    this.#done = 0;
  }

  #start(): void {
    if (this.#error.value !== 0 || this.#pending === 0) return;
    this.#state = r.CHANSTS_ACTIVE;
    this.#schedule();
  }

  get #pending(): number {
    return (this.#count.value - this.#done) & 0xffff;
  }

  #schedule(): void {
    this.#cancel ??= this.#card.clock.after(this.#settings.latencyNs, () => {
      this.#cancel = undefined;
      this.#turn();
    });
  }

  #stop(): void {
    this.#cancel?.();
    this.#cancel = undefined;
  }

  #turn(): void {
    let bytes = 0;
    for (let i = 0; i < TURN_DESCRIPTORS && bytes < TURN_BYTES && this.#pending > 0; i++) {
      const moved = this.#descriptor();
      if (moved < 0) return;
      bytes += moved;
    }
    if (this.#state === r.CHANSTS_ACTIVE && this.#pending > 0) this.#schedule();
  }

  /** Executes the next descriptor. The bytes that it moved; -1 after an error. */
  #descriptor(): number {
    const address = this.#isFresh ? this.#chain.wide : this.#next;
    if ((address & 0x3fn) !== 0n) return this.#fail(r.CHANERR_NEXT_DESC_ALIGN);
    const descriptor = this.#card.dma.view(address, r.DESCRIPTOR_SIZE);
    if (isFault(descriptor)) return this.#fail(r.CHANERR_NEXT_ADDR);
    this.#current.wide = address;
    const size = descriptor.u32(0);
    const control = descriptor.u32(4);
    if (control >>> 24 !== r.OP_COPY) return this.#fail(r.CHANERR_CONTROL);
    if (size === 0 || size > 2 ** this.#settings.transferLimit) return this.#fail(r.CHANERR_LENGTH);
    const isNull = (control & r.CTL_NULL) !== 0;
    if (!isNull) {
      const error = this.#copy(descriptor.u64(8), descriptor.u64(16), size);
      if (error !== 0) return this.#fail(error);
    }
    this.#isFresh = false;
    this.#next = descriptor.u64(24);
    this.#done = (this.#done + 1) & 0xffff;
    this.#status.wide = address;
    if (this.#pending === 0) this.#state = r.CHANSTS_DONE;
    if ((control & r.CTL_COMPL_WRITE) !== 0 && !this.#writeCompletion()) return this.#fail(r.CHANERR_COMPLETION_ADDR);
    if ((control & r.CTL_INT_EN) !== 0) this.#interrupt();
    return isNull ? 0 : size;
  }

  /** Bits of CHANERR, 0 when all went well. */
  #copy(source: bigint, destination: bigint, size: number): number {
    for (let at = 0; at < size; at += PIECE) {
      const piece = this.#piece.subarray(0, Math.min(PIECE, size - at));
      if (this.#card.dma.read(source + BigInt(at), piece) !== undefined) return r.CHANERR_READ_DATA;
      if (this.#card.dma.write(destination + BigInt(at), piece) !== undefined) return r.CHANERR_WRITE_DATA;
    }
    return 0;
  }

  #writeCompletion(): boolean {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, this.#statusValue(), true);
    return this.#card.dma.write(this.#completion.wide, bytes) === undefined;
  }

  #fail(error: number): -1 {
    this.#stop();
    this.#state = r.CHANSTS_HALTED;
    this.#error.set(error);
    if ((error & this.#errorMask.value) === error) return -1;
    const wantsCompletion = this.#control.has(r.CHANCTRL_ERR_COMPLETION_EN) && error !== r.CHANERR_COMPLETION_ADDR;
    if (wantsCompletion && !this.#writeCompletion()) this.#error.set(r.CHANERR_COMPLETION_ADDR);
    if (this.#control.has(r.CHANCTRL_ERR_INT_EN)) this.#interrupt();
    return -1;
  }

  #interrupt(): void {
    if (this.#control.has(r.CHANCTRL_INT_REARM)) {
      this.#missed = true;
      return;
    }
    this.#control.set(r.CHANCTRL_INT_REARM);
    this.#settings.interrupt();
  }
}
