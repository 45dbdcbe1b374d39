/**
 * Read sections and grace periods: when what was replaced can be thrown away.
 *
 * A reader that looks something up and uses it later (a page request that waits for its pages) works within a section. What is
 * replaced meanwhile may be disposed of only after all sections have ended that had begun before: that is a grace period. Nothing
 * blocks; who waits leaves a callback.
 */

/** One reader at work. */
export interface ReadSection {
  end(): void;
}

export class ReadSections {
  /** Live sections by the order in which they began; the first key is the oldest. */
  readonly #live = new Map<number, ReadSection>();
  /** Who waits, in order: until no section that began before `sequence` is live. */
  readonly #waiting: { readonly sequence: number; readonly done: () => void }[] = [];
  #next = 0;

  /** Sections that have not ended. */
  get live(): number {
    return this.#live.size;
  }

  /** Callbacks that wait for a grace period. */
  get waiting(): number {
    return this.#waiting.length;
  }

  begin(): ReadSection {
    const sequence = this.#next++;
    const section = {
      end: () => {
        if (!this.#live.delete(sequence)) throw new Error('A read section ends once');
        this.#advance();
      },
    };
    this.#live.set(sequence, section);
    return section;
  }

  /** A section around one call. */
  run<T>(read: () => T): T {
    const section = this.begin();
    try {
      return read();
    } finally {
      section.end();
    }
  }

  /** Calls `done` when all sections that have begun until now have ended: at once when there is none. */
  afterGrace(done: () => void): void {
    if (this.#live.size === 0) done();
    else this.#waiting.push({ sequence: this.#next, done });
  }

  #advance(): void {
    while (this.#waiting.length > 0) {
      const [oldest] = this.#live.keys();
      if (oldest !== undefined && oldest < this.#waiting[0]!.sequence) return;
      this.#waiting.shift()!.done();
    }
  }
}
