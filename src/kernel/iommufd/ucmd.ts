/**
 * One call of a program while it is handled: the decoded structure, who made it, and how the answer gets back.
 */
import { Failpoint } from '../../lib/failpoint.ts';
import type { Members, Struct, TypeOf } from '../../lib/struct.ts';
import type { NewDescriptor } from '../core/file.ts';
import { copyToUser, type Task } from '../core/task.ts';
import type { IommufdContext } from './context.ts';

/** The structure cannot be copied back: what was done for it has to be undone. */
export const respondFails = new Failpoint('iommufd:respond', 'EFAULT');

export class Ucmd<T> {
  readonly context: IommufdContext;
  readonly task: Task;
  /** The structure as the program passed it; handlers store their results in it. */
  readonly cmd: T;
  /** Where the structure lies in the program's memory. */
  readonly address: bigint;
  readonly #encode: () => Uint8Array;

  constructor(context: IommufdContext, task: Task, cmd: T, address: bigint, encode: () => Uint8Array) {
    this.context = context;
    this.task = task;
    this.cmd = cmd;
    this.address = address;
    this.#encode = encode;
  }

  /** Copies the structure back, as much of it as the program knows. EFAULT. */
  respond(): void {
    respondFails.hit();
    copyToUser(this.task, this.address, this.#encode());
  }
}

/** A handler. What makes a descriptor returns its file. */
// biome-ignore lint/suspicious/noConfusingVoidType: most handlers return nothing.
export type Handler<T> = (ucmd: Ucmd<T>) => NewDescriptor | void;

/** One row of the table of requests. */
export interface IoctlOp {
  readonly size: number;
  /** The end of the last member that a program must know. */
  readonly minimum: number;
  /** `bytes` is a copy of the program's structure, filled with zeros to `size`; `userSize` how much of it the program knows. */
  execute(
    context: IommufdContext,
    task: Task,
    bytes: Uint8Array,
    address: bigint,
    userSize: number,
  ): NewDescriptor | undefined;
}

export function ioctlOp<M extends Members>(
  type: Struct<M>,
  last: keyof M & string,
  handler: Handler<TypeOf<Struct<M>>>,
): IoctlOp {
  return {
    size: type.size,
    minimum: type.endOf(last),
    execute(context, task, bytes, address, userSize) {
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
      const cmd = type.get(view, 0) as TypeOf<Struct<M>>;
      const encode = (): Uint8Array => {
        type.set(view, 0, cmd as never);
        return userSize < bytes.length ? bytes.subarray(0, userSize) : bytes;
      };
      return handler(new Ucmd(context, task, cmd, address, encode)) ?? undefined;
    },
  };
}
