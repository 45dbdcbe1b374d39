/**
 * What the server asks its client: DMA_READ and DMA_WRITE for memory that only the client can reach.
 *
 * A device waits inside `ask` until the answer is there, so questions can be under way one within the other: while one waits, a command
 * of the client may make the device ask again. Answers may come in any order. docs/decisions/vfio-user.md says which commands are
 * handled meanwhile.
 */
import { VFIO_USER_DMA_READ, VFIO_USER_DMA_WRITE, VFIO_USER_F_TYPE_COMMAND } from '../../uapi/vfio-user.ts';
import type { DmaMessages } from './backings.ts';
import { HEADER, type Message, writeHeader } from './codec.ts';

const PAGE = 4096;

interface Question {
  readonly id: number;
  readonly command: number;
  /** IOVA pages that it is about. */
  readonly firstPage: number;
  readonly endPage: number;
  reply: Message | undefined;
}

/** The conversation that questions are part of. */
export interface Asker {
  /** Whether a question can be asked now. */
  readonly mayAsk: boolean;
  /** Bytes of data in one message. */
  readonly maxTransfer: number;
  /** Where questions are composed, header included. */
  readonly output: Uint8Array;
  /** Before a question goes out: nobody shall wait for us who has to answer it. */
  beforeQuestion(): void;
  /** Sends what was composed. False: it cannot be sent. */
  sendQuestion(length: number): boolean;
  /** Lets one thing happen: a message is taken in, or waited for. False: no answer is to be expected any more. */
  step(): boolean;
  /** The outermost question has its answer, or never will. */
  afterQuestions(): void;
}

export class Questions implements DmaMessages {
  readonly #asker: Asker;
  readonly #open: Question[] = [];
  #nextId = 0;

  constructor(asker: Asker) {
    this.#asker = asker;
  }

  /** Questions that wait for their answers. */
  get count(): number {
    return this.#open.length;
  }

  /** Whether one of them is about a page of the range. */
  touches(firstPage: number, endPage: number): boolean {
    return this.#open.some((question) => question.firstPage < endPage && question.endPage > firstPage);
  }

  readDma(address: number, into: Uint8Array): boolean {
    for (let done = 0; done < into.length; ) {
      const count = Math.min(into.length - done, this.#asker.maxTransfer);
      const reply = this.#ask(VFIO_USER_DMA_READ, address + done, count, undefined);
      if (reply === undefined || reply.payload.length < HEADER) return false;
      const got = reply.view.getUint32(reply.offset + 8, true);
      if (got === 0 || got > count || reply.payload.length < HEADER + got) return false;
      into.set(reply.payload.subarray(HEADER, HEADER + got), done);
      done += got;
    }
    return true;
  }

  writeDma(address: number, from: Uint8Array): boolean {
    for (let done = 0; done < from.length; ) {
      const count = Math.min(from.length - done, this.#asker.maxTransfer);
      const reply = this.#ask(VFIO_USER_DMA_WRITE, address + done, count, from.subarray(done, done + count));
      if (reply === undefined || reply.payload.length < HEADER) return false;
      const got = reply.view.getUint32(reply.offset + 8, true);
      if (got === 0 || got > count) return false;
      done += got;
    }
    return true;
  }

  /** A reply came. False: it answers nothing. It is copied unless the question that waits innermost is its own. */
  take(message: Message): boolean {
    const { id, command } = message;
    for (let i = this.#open.length - 1; i >= 0; i--) {
      const question = this.#open[i]!;
      if (question.id !== id || question.command !== command || question.reply !== undefined) continue;
      const isInnermost = i === this.#open.length - 1;
      question.reply = isInnermost ? message : copyOf(message);
      return true;
    }
    return false;
  }

  /** Asks and waits. Undefined: it was refused, given up, or the client is gone. */
  #ask(command: number, address: number, count: number, data: Uint8Array | undefined): Message | undefined {
    const asker = this.#asker;
    if (!asker.mayAsk) return undefined;
    asker.beforeQuestion();
    if (!asker.mayAsk) return undefined;
    const id = this.#nextId;
    this.#nextId = (id + 1) & 0xffff;
    const { output } = asker;
    const view = new DataView(output.buffer, output.byteOffset, output.length);
    const size = HEADER + 16 + (data?.length ?? 0);
    writeHeader(view, 0, { id, command, size, flags: VFIO_USER_F_TYPE_COMMAND });
    view.setBigUint64(HEADER, BigInt(address), true);
    view.setBigUint64(HEADER + 8, BigInt(count), true);
    if (data !== undefined) output.set(data, HEADER + 16);
    if (!asker.sendQuestion(size)) return undefined;
    const firstPage = Math.floor(address / PAGE);
    const endPage = Math.floor((address + count - 1) / PAGE) + 1;
    const question: Question = { id, command, firstPage, endPage, reply: undefined };
    this.#open.push(question);
    while (question.reply === undefined && asker.step());
    this.#open.splice(this.#open.indexOf(question), 1);
    if (this.#open.length === 0) asker.afterQuestions();
    const { reply } = question;
    return reply === undefined || reply.error !== 0 ? undefined : reply;
  }
}

/** The message with a payload of its own. */
export function copyOf(message: Message): Message {
  const payload = message.payload.slice();
  return { ...message, payload, view: new DataView(payload.buffer), offset: 0 };
}
