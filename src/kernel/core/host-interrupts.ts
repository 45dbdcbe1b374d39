/**
 * The host's processors as far as interrupts go: which handler stands behind a vector of a processor.
 *
 * A device's interrupt gets a vector on some processor and keeps both until it is freed. There are as many processors as are needed;
 * the vectors above the devices' belong to the system, one handler for all processors.
 */
import { Errno } from '../../lib/errno.ts';

/** Vectors as in arch/x86/include/asm/irq_vectors.h. */
export const FIRST_EXTERNAL_VECTOR = 0x20;
const FIRST_SYSTEM_VECTOR = 0xeb;
const SYSCALL_VECTOR = 0x80;
export const POSTED_INTR_VECTOR = 0xf2;
export const POSTED_INTR_WAKEUP_VECTOR = 0xf1;

const VECTORS_EACH = FIRST_SYSTEM_VECTOR - FIRST_EXTERNAL_VECTOR;
const MOST_CPUS = 4096;

/** A vector of a processor. */
export interface HostVector {
  /** APIC ID. */
  readonly destination: number;
  readonly vector: number;
}

export class HostInterrupts {
  readonly #handlers = new Map<number, () => void>();
  readonly #system = new Map<number, (destination: number) => void>();
  #next = 0;
  /** Messages that found no handler. */
  spurious = 0;

  /** Vectors in use. */
  get used(): number {
    return this.#handlers.size;
  }

  /** ENOSPC: all vectors of all processors are in use. */
  allocate(handler: () => void): HostVector {
    for (let tries = 0; tries < MOST_CPUS * VECTORS_EACH; tries++) {
      const vector = FIRST_EXTERNAL_VECTOR + (this.#next % VECTORS_EACH);
      const destination = Math.floor(this.#next / VECTORS_EACH);
      this.#next = (this.#next + 1) % (MOST_CPUS * VECTORS_EACH);
      const key = destination * 256 + vector;
      if (vector === SYSCALL_VECTOR || this.#handlers.has(key)) continue;
      this.#handlers.set(key, handler);
      return { destination, vector };
    }
    throw new Errno('ENOSPC', 'no processor has a vector left');
  }

  free({ destination, vector }: HostVector): void {
    if (!this.#handlers.delete(destination * 256 + vector)) throw new Error(`Vector ${vector} is not in use`);
    if (this.#handlers.size === 0) this.#next = 0;
  }

  /** Handler of a system vector, told which processor got it. */
  setSystemHandler(vector: number, handler: (destination: number) => void): void {
    this.#system.set(vector, handler);
  }

  /** A message has reached a processor. */
  deliver(destination: number, vector: number): void {
    const handler = this.#handlers.get(destination * 256 + vector);
    const system = vector >= FIRST_SYSTEM_VECTOR ? this.#system.get(vector) : undefined;
    if (handler !== undefined) handler();
    else if (system !== undefined) system(destination);
    else this.spurious++;
  }
}
