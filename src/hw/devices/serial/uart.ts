/**
 * A 16550A: registers, FIFOs of 16 bytes, loopback, interrupts by priority. Bytes leave it to a character backend and arrive from
 * there; what does not fit into the FIFO waits outside, so a guest that is slow loses nothing.
 */
import type { CharacterBackend } from '../../pci/device-model.ts';
import type { Card } from '../../pci/kit/card.ts';
import { type Register, register } from '../../pci/kit/register.ts';

const FIFO = 16;
/** Bytes that wait outside at most; what arrives beyond that is lost, and LSR says so. */
const WAITING = 1 << 20;

const IER_RECEIVED = 0x01;
const IER_SENT = 0x02;
const IER_LINE = 0x04;
const IER_MODEM = 0x08;

const IIR_NONE = 0x01;
const IIR_SENT = 0x02;
const IIR_RECEIVED = 0x04;
const IIR_LINE = 0x06;
const IIR_TIMEOUT = 0x0c;
const IIR_MODEM = 0x00;
const IIR_FIFOS = 0xc0;

const FCR_ENABLE = 0x01;
const FCR_CLEAR_RECEIVED = 0x02;
const FCR_CLEAR_SENT = 0x04;
const TRIGGER = [1, 4, 8, 14] as const;

const LCR_DIVISOR = 0x80;

const MCR_LOOP = 0x10;

const LSR_READY = 0x01;
const LSR_OVERRUN = 0x02;
const LSR_HOLDING_EMPTY = 0x20;
const LSR_EMPTY = 0x40;

/** Carrier, data set ready, clear to send: somebody is there. */
const MSR_CONNECTED = 0xb0;

interface Saved {
  received: number[];
  sending: number[];
  divisor: number;
  interrupts: number;
  fifos: number;
  sent: boolean;
  overrun: boolean;
  modem: number;
  modemChanges: number;
}

export class Uart {
  readonly registers: readonly Register[];
  readonly #card: Card;
  readonly #backend: CharacterBackend | undefined;
  readonly #byteNs: number;
  readonly #lcr: Register;
  readonly #mcr: Register;
  readonly #waiting: Uint8Array[] = [];
  #waitingBytes = 0;
  #received: number[] = [];
  #sending: number[] = [];
  #divisor = 1;
  #interrupts = 0;
  #fifos = 0;
  /** The holding register became empty, and nobody was told yet. */
  #sent = false;
  #overrun = false;
  #modem = MSR_CONNECTED;
  #modemChanges = 0;
  #isDraining = false;

  constructor(card: Card, backend: CharacterBackend | undefined, byteNs: number) {
    this.#card = card;
    this.#backend = backend;
    this.#byteNs = byteNs;
    const hasDivisor = (): boolean => this.#lcr.has(LCR_DIVISOR);
    this.#lcr = register({ at: 3, width: 1, name: 'LCR' });
    this.#mcr = register({
      at: 4,
      width: 1,
      name: 'MCR',
      readOnly: 0xe0,
      write: (_self, _written, before) => this.#modemControl(before),
    });
    this.registers = [
      register({
        at: 0,
        width: 1,
        name: 'RBR/THR/DLL',
        read: () => (hasDivisor() ? this.#divisor & 0xff : this.#take()),
        write: (_self, written) => {
          if (hasDivisor()) this.#divisor = (this.#divisor & 0xff00) | written;
          else this.#send(written);
        },
      }),
      register({
        at: 1,
        width: 1,
        name: 'IER/DLM',
        read: () => (hasDivisor() ? this.#divisor >> 8 : this.#interrupts),
        write: (_self, written) => {
          if (hasDivisor()) this.#divisor = (this.#divisor & 0xff) | (written << 8);
          else this.#enable(written & 0x0f);
        },
      }),
      register({
        at: 2,
        width: 1,
        name: 'IIR/FCR',
        read: () => this.#identify(),
        write: (_self, written) => this.#fifoControl(written),
      }),
      this.#lcr,
      this.#mcr,
      register({ at: 5, width: 1, name: 'LSR', read: () => this.#lineStatus(), readOnly: true }),
      register({ at: 6, width: 1, name: 'MSR', read: () => this.#modemStatus(), readOnly: true }),
      register({ at: 7, width: 1, name: 'SCR' }),
    ];
    backend?.onInput((bytes) => this.#arrive(bytes));
  }

  reset(): void {
    this.#received = [];
    this.#sending = [];
    this.#divisor = 1;
    this.#interrupts = 0;
    this.#fifos = 0;
    this.#sent = false;
    this.#overrun = false;
    this.#modem = MSR_CONNECTED;
    this.#modemChanges = 0;
    this.#isDraining = false;
  }

  save(): Saved {
    return {
      received: [...this.#received],
      sending: [...this.#sending],
      divisor: this.#divisor,
      interrupts: this.#interrupts,
      fifos: this.#fifos,
      sent: this.#sent,
      overrun: this.#overrun,
      modem: this.#modem,
      modemChanges: this.#modemChanges,
    };
  }

  restore(saved: Saved): void {
    this.#received = [...saved.received];
    this.#sending = [...saved.sending];
    this.#divisor = saved.divisor;
    this.#interrupts = saved.interrupts;
    this.#fifos = saved.fifos;
    this.#sent = saved.sent;
    this.#overrun = saved.overrun;
    this.#modem = saved.modem;
    this.#modemChanges = saved.modemChanges;
    if (this.#sending.length > 0) this.#drainLater();
    this.#update();
  }

  get #isLooped(): boolean {
    return this.#mcr.has(MCR_LOOP);
  }

  /** Bytes that fit into the receiver: one without FIFOs. */
  get #room(): number {
    return (this.#fifos & FCR_ENABLE) !== 0 ? FIFO : 1;
  }

  #arrive(bytes: Uint8Array): void {
    if (this.#waitingBytes + bytes.length > WAITING) this.#overrun = true;
    else {
      this.#waiting.push(bytes.slice());
      this.#waitingBytes += bytes.length;
    }
    this.#refill();
    this.#update();
  }

  /** Takes in what waits outside, as far as it fits. */
  #refill(): void {
    if (this.#isLooped) return;
    while (this.#received.length < this.#room && this.#waiting.length > 0) {
      const first = this.#waiting[0]!;
      const part = first.subarray(0, this.#room - this.#received.length);
      this.#received.push(...part);
      this.#waitingBytes -= part.length;
      if (part.length === first.length) this.#waiting.shift();
      else this.#waiting[0] = first.subarray(part.length);
    }
  }

  #take(): number {
    const byte = this.#received.shift() ?? 0;
    this.#refill();
    this.#update();
    return byte;
  }

  #send(byte: number): void {
    this.#sent = false;
    if (this.#sending.length < FIFO) this.#sending.push(byte);
    this.#drainLater();
    this.#update();
  }

  #drainLater(): void {
    if (this.#isDraining) return;
    this.#isDraining = true;
    this.#card.clock.after(this.#byteNs, () => this.#drain());
  }

  #drain(): void {
    this.#isDraining = false;
    const bytes = Uint8Array.from(this.#sending.splice(0));
    if (this.#isLooped) {
      for (const byte of bytes) {
        if (this.#received.length < this.#room) this.#received.push(byte);
        else this.#overrun = true;
      }
    } else this.#backend?.write(bytes);
    this.#sent = true;
    this.#update();
  }

  #enable(interrupts: number): void {
    const added = interrupts & ~this.#interrupts;
    this.#interrupts = interrupts;
    // Enabled while the register is empty, the interrupt comes at once, as silicon does and drivers check.
    if ((added & IER_SENT) !== 0 && this.#sending.length === 0) this.#sent = true;
    this.#update();
  }

  #fifoControl(written: number): void {
    const changed = ((written ^ this.#fifos) & FCR_ENABLE) !== 0;
    this.#fifos = written & 0xc1;
    if (changed || (written & FCR_CLEAR_RECEIVED) !== 0) this.#received = [];
    if (changed || (written & FCR_CLEAR_SENT) !== 0) this.#sending = [];
    this.#refill();
    this.#update();
  }

  #modemControl(before: number): void {
    const wasLooped = (before & MCR_LOOP) !== 0;
    const present = this.#lines();
    const changed = present ^ this.#modem;
    // The four upper bits changed: their deltas; ring only counts when it ends.
    this.#modemChanges |= (changed >> 4) & ~0x04;
    if ((changed & 0x40) !== 0 && (present & 0x40) === 0) this.#modemChanges |= 0x04;
    this.#modem = present;
    if (wasLooped && !this.#isLooped) this.#refill();
    this.#update();
  }

  #lines(): number {
    if (!this.#isLooped) return MSR_CONNECTED;
    const control = this.#mcr.value;
    return ((control & 0x0c) << 4) | ((control & 0x02) << 3) | ((control & 0x01) << 5);
  }

  #modemStatus(): number {
    const value = this.#modem | this.#modemChanges;
    this.#modemChanges = 0;
    this.#update();
    return value;
  }

  #lineStatus(): number {
    const ready = this.#received.length > 0 ? LSR_READY : 0;
    const empty = this.#sending.length === 0 ? LSR_HOLDING_EMPTY | LSR_EMPTY : 0;
    const overrun = this.#overrun ? LSR_OVERRUN : 0;
    this.#overrun = false;
    this.#update();
    return ready | empty | overrun;
  }

  /** The cause of the highest priority, IIR_NONE without one. */
  #cause(): number {
    const enabled = this.#interrupts;
    if ((enabled & IER_LINE) !== 0 && this.#overrun) return IIR_LINE;
    if ((enabled & IER_RECEIVED) !== 0 && this.#received.length > 0) {
      const level = (this.#fifos & FCR_ENABLE) !== 0 ? TRIGGER[this.#fifos >> 6]! : 1;
      return this.#received.length >= level ? IIR_RECEIVED : IIR_TIMEOUT;
    }
    if ((enabled & IER_SENT) !== 0 && this.#sent) return IIR_SENT;
    if ((enabled & IER_MODEM) !== 0 && this.#modemChanges !== 0) return IIR_MODEM;
    return IIR_NONE;
  }

  #identify(): number {
    const cause = this.#cause();
    if (cause === IIR_SENT) {
      this.#sent = false;
      this.#update();
    }
    return cause | ((this.#fifos & FCR_ENABLE) !== 0 ? IIR_FIFOS : 0);
  }

  #update(): void {
    this.#card.interrupts.set(this.#cause() !== IIR_NONE);
  }
}
