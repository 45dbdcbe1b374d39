/**
 * Waiting for many descriptors at once (epoll, edge-triggered).
 *
 * Events come in the order in which things happened: edge-triggered entries are queued when they become ready and not before, so the end of
 * file of a descriptor that a program closed is seen before the call that the program made afterwards. The price: a source hears once
 * of everything that is there. Who relies on the order takes one message for each event and no more, or a later message would
 * be taken on account of an event that is older than what came between.
 *
 * Events are matched by slot and generation, never by descriptor number: a number is reused as soon as it is closed.
 */
import { EINTR } from './constants.ts';
import * as libc from './libc.ts';
import { must } from './libc.ts';
import { Region } from './memory.ts';

export const EPOLLIN = 0x1;
export const EPOLLOUT = 0x4;
export const EPOLLERR = 0x8;
export const EPOLLHUP = 0x10;
export const EPOLLRDHUP = 0x2000;
const EPOLLET = 0x8000_0000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
const EPOLL_CLOEXEC = 0o2000000;

const BATCH = 128;
// struct epoll_event is packed on x86-64 only.
const EVENT_LENGTH = process.arch === 'x64' ? 12 : 16;
const DATA = EVENT_LENGTH - 8;

export interface PollSource {
  /** Something happened: bits EPOLL*. */
  ready(events: number): void;
}

export class Poller {
  /** A source threw: a bug of that source, which the others shall not notice. */
  onError: (error: unknown) => void = (error) => {
    throw error;
  };
  readonly #epfd = must('epoll_create1', libc.epoll_create1(EPOLL_CLOEXEC));
  readonly #region = new Region(BATCH * EVENT_LENGTH + 64);
  readonly #control = new Region(4096);
  readonly #sources: (PollSource | undefined)[] = [];
  readonly #generations: number[] = [];
  readonly #free: number[] = [];

  /** Hears of input and the end of `fd`. The result is needed to stop. Minus the errno on failure. */
  add(fd: number, source: PollSource): number {
    const slot = this.#free.pop() ?? this.#sources.push(undefined) - 1;
    this.#generations[slot] ??= 1;
    if (this.#set(EPOLL_CTL_ADD, fd, slot) < 0) {
      this.#free.push(slot);
      return -libc.lastErrno();
    }
    this.#sources[slot] = source;
    return slot;
  }

  /** Tells the source again, in its turn, if there is something to read. */
  rearm(fd: number, slot: number): void {
    this.#set(EPOLL_CTL_MOD, fd, slot);
  }

  /** Before `fd` is closed. Events that wait for this source are dropped. */
  remove(fd: number, slot: number): void {
    if (this.#sources[slot] === undefined) return;
    libc.epoll_ctl(this.#epfd, EPOLL_CTL_DEL, fd, this.#control.address);
    this.#sources[slot] = undefined;
    this.#generations[slot] = (this.#generations[slot]! + 1) >>> 0;
    this.#free.push(slot);
  }

  /** Waits up to `milliseconds` (-1: for ever) and tells each source that is ready. Returns how many events there were. */
  run(milliseconds: number): number {
    const count = libc.epoll_wait(this.#epfd, this.#region.address, BATCH, milliseconds);
    if (count < 0) {
      const errno = libc.lastErrno();
      if (errno === EINTR) return 0;
      throw new libc.SystemError('epoll_wait', errno);
    }
    const u32 = this.#region.u32;
    if (EVENT_LENGTH === 12) {
      // Handlers do not run the poller, so the batch stays as it is.
      for (let i = 0, at = 0; i < count; i++, at += 3) {
        const slot = u32[at + 1]!;
        if (this.#generations[slot] === u32[at + 2]) this.#tell(slot, u32[at]!);
      }
    } else {
      for (let i = 0, at = 0; i < count; i++, at += 4) {
        const slot = u32[at + 2]!;
        if (this.#generations[slot] === u32[at + 3]) this.#tell(slot, u32[at]!);
      }
    }
    return count;
  }

  close(): void {
    libc.close(this.#epfd);
  }

  #tell(slot: number, events: number): void {
    try {
      this.#sources[slot]?.ready(events);
    } catch (error) {
      this.onError(error);
    }
  }

  #set(operation: number, fd: number, slot: number): number {
    const { u32, view, address } = this.#control;
    u32[0] = EPOLLIN | EPOLLRDHUP | EPOLLET;
    view.setUint32(DATA, slot, true);
    view.setUint32(DATA + 4, this.#generations[slot]!, true);
    return libc.epoll_ctl(this.#epfd, operation, fd, address);
  }
}
