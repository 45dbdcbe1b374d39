/**
 * Half-done work undone on the way out: the role of the kernel's goto chains.
 *
 *     using undo = new Unwind();
 *     const frame = mm.pin(page);
 *     undo.add(() => mm.unpin(page));
 *     …
 *     undo.keep();                    // from here on it stays
 */
export class Unwind {
  #steps: (() => void)[] = [];

  add(step: () => void): void {
    this.#steps.push(step);
  }

  /** Forgets all steps: the work is complete. */
  keep(): void {
    this.#steps = [];
  }

  /** Runs the steps in reverse order. Every step runs, also after one that throws; the first error is thrown at the end. */
  [Symbol.dispose](): void {
    const steps = this.#steps.reverse();
    this.#steps = [];
    let failed = false;
    let first: unknown;
    for (const step of steps) {
      try {
        step();
      } catch (error) {
        if (!failed) first = error;
        failed = true;
      }
    }
    if (failed) throw first;
  }
}
