/**
 * How many holders each page index of a range has: a step function over indexes, kept as its steps.
 *
 * Most ranges have one holder, so that there is one step; copies of an area add holders to the same pages. The caller learns which
 * indexes go from no holder to one, and back.
 */
export class CoverCount {
  /** Where the n-th step begins; it ends where the next one begins. The last step has no holders. */
  readonly #starts: number[] = [0];
  readonly #holders: number[] = [0];

  /** Adds a holder to `[first, first + count)`. */
  add(first: number, count: number): void {
    this.#change(first, count, 1);
  }

  /** Takes a holder from `[first, first + count)`. */
  remove(first: number, count: number): void {
    this.#change(first, count, -1);
  }

  /** Calls back for each run of `[first, first + count)` that has exactly `holders` of them. */
  forEachRun(first: number, count: number, holders: number, callback: (first: number, count: number) => void): void {
    const end = first + count;
    for (let at = this.#stepOf(first); at < this.#starts.length && this.#starts[at]! < end; at++) {
      if (this.#holders[at] !== holders) continue;
      const from = Math.max(first, this.#starts[at]!);
      const to = Math.min(end, this.#starts[at + 1] ?? end);
      if (from < to) callback(from, to - from);
    }
  }

  /** Steps in use; 1 when nothing is held. */
  get steps(): number {
    return this.#starts.length;
  }

  #change(first: number, count: number, delta: number): void {
    if (count === 0) return;
    const from = this.#split(first);
    const to = this.#split(first + count);
    for (let at = from; at < to; at++) {
      const holders = this.#holders[at]! + delta;
      if (holders < 0) throw new Error(`Index ${this.#starts[at]} is let go too often`);
      this.#holders[at] = holders;
    }
    this.#join(to);
    this.#join(from);
  }

  /** The step that contains `index`. */
  #stepOf(index: number): number {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#starts[middle]! <= index) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** Makes a step begin at `index` and returns its place. */
  #split(index: number): number {
    const at = this.#stepOf(index);
    if (this.#starts[at] === index) return at;
    this.#starts.splice(at + 1, 0, index);
    this.#holders.splice(at + 1, 0, this.#holders[at]!);
    return at + 1;
  }

  /** Joins a step with the one before it when both are equal. */
  #join(at: number): void {
    if (at <= 0 || at >= this.#starts.length || this.#holders[at] !== this.#holders[at - 1]) return;
    this.#starts.splice(at, 1);
    this.#holders.splice(at, 1);
  }
}
