/**
 * An eventfd of a program on whose signal the kernel acts: INTx unmask, writes by eventfd.
 */
import type { EventContext } from '../core/task.ts';

export class Virqfd {
  readonly #context: EventContext;
  readonly #stop: () => void;
  #isRunning = false;

  /** Takes the context over. A signal that is already there is acted on at once. */
  constructor(context: EventContext, onSignal: () => void) {
    this.#context = context;
    this.#stop = context.watch(() => {
      // The action may signal the same eventfd, directly or through the device: that must not call it again without end.
      if (this.#isRunning) return;
      this.#isRunning = true;
      try {
        onSignal();
      } finally {
        this.#isRunning = false;
      }
    });
  }

  close(): void {
    this.#stop();
    this.#context.close();
  }
}
