/**
 * Interrupt message storage (IMS): messages that a device keeps in its own registers instead of an MSI-X table, one for each of its
 * work queues or contexts. 16 bytes an entry: address, data, control. What is stored is a message like any other, so each has its own
 * entry of the interrupt remapping table; and it is sent only for work that carries the entry's PASID.
 */
import type { PciFunction } from './function.ts';

export const MESSAGE_SIZE = 16;
const CONTROL = 12;
/** Of the control word: the message is held back. */
export const MESSAGE_MASK = 1 << 0;
/** The message is only for work of the PASID in bits 12 to 31. */
export const MESSAGE_PASID_ENABLE = 1 << 3;
export const MESSAGE_PASID_SHIFT = 12;

export class MessageStore {
  /** All entries as bytes, 16 each. */
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  readonly #pending = new Set<number>();

  /** Every entry is masked after reset. */
  constructor(entries: number) {
    this.bytes = new Uint8Array(entries * MESSAGE_SIZE);
    this.#view = new DataView(this.bytes.buffer);
    this.reset();
  }

  get entries(): number {
    return this.bytes.length / MESSAGE_SIZE;
  }

  reset(): void {
    this.bytes.fill(0);
    this.#pending.clear();
    for (let i = 0; i < this.entries; i++) this.#view.setUint32(i * MESSAGE_SIZE + CONTROL, MESSAGE_MASK, true);
  }

  /** Stores a message; `pasid` undefined: for work of every PASID. */
  set(index: number, message: { readonly address: number; readonly data: number }, pasid?: number): void {
    const at = index * MESSAGE_SIZE;
    this.#view.setBigUint64(at, BigInt(message.address), true);
    this.#view.setUint32(at + 8, message.data, true);
    const control = pasid === undefined ? 0 : (MESSAGE_PASID_ENABLE | (pasid << MESSAGE_PASID_SHIFT)) >>> 0;
    this.#view.setUint32(at + CONTROL, control, true);
  }

  isPending(index: number): boolean {
    return this.#pending.has(index);
  }

  /** Holds an entry's message back, or lets it (and one that waits) out. */
  setMask(fn: PciFunction, index: number, isMasked: boolean): void {
    const at = index * MESSAGE_SIZE + CONTROL;
    const control = this.#view.getUint32(at, true);
    this.#view.setUint32(at, isMasked ? control | MESSAGE_MASK : control & ~MESSAGE_MASK, true);
    if (!isMasked && this.#pending.delete(index)) this.#send(fn, index);
  }

  /** Sends the message for work of `pasid`, -1 for none. False: there is no such entry, or it is for another PASID. */
  fire(fn: PciFunction, index: number, pasid = -1): boolean {
    if (!(index >= 0 && index < this.entries)) return false;
    const control = this.#view.getUint32(index * MESSAGE_SIZE + CONTROL, true);
    if ((control & MESSAGE_PASID_ENABLE) !== 0 && control >>> MESSAGE_PASID_SHIFT !== pasid) return false;
    if ((control & MESSAGE_MASK) !== 0) this.#pending.add(index);
    else this.#send(fn, index);
    return true;
  }

  #send(fn: PciFunction, index: number): void {
    const at = index * MESSAGE_SIZE;
    const { bytes } = this;
    const view = new DataView(bytes.buffer, bytes.byteOffset + at, MESSAGE_SIZE);
    fn.dma.message(view.getUint32(0, true), view.getUint32(4, true), view.getUint32(8, true));
  }
}
