/**
 * Tracepoints under the kernel's names, over `node:diagnostics_channel`. Unheard, a tracepoint costs one property read:
 * the fields are computed only for a listener. Fields are plain data; addresses are bigint, lengths and counts numbers.
 */
import { type Channel, channel } from 'node:diagnostics_channel';

export type TraceValue = string | number | bigint | boolean | null;
export type TraceFields = Readonly<Record<string, TraceValue>>;

export class Tracepoint<F extends TraceFields> {
  /** Name as in Linux where it exists there, e.g. `iommu:map`. The channel is called `vfiobox:<name>`. */
  readonly name: string;
  readonly #channel: Channel;

  constructor(name: string) {
    this.name = name;
    this.#channel = channel(`vfiobox:${name}`);
    tracepoints.push(name);
  }

  get heard(): boolean {
    return this.#channel.hasSubscribers;
  }

  fire(fields: () => F): void {
    if (this.#channel.hasSubscribers) this.#channel.publish(fields());
  }
}

/** Names of all tracepoints that exist in this process, in the order of their modules. */
export const tracepoints: string[] = [];

/** Calls `listener` for each event of the tracepoint `name`; the result stops it. */
export function subscribe(name: string, listener: (fields: TraceFields) => void): () => void {
  const wrapped = (message: unknown): void => listener(message as TraceFields);
  const target = channel(`vfiobox:${name}`);
  target.subscribe(wrapped);
  return () => {
    target.unsubscribe(wrapped);
  };
}
