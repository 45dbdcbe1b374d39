/**
 * Waiting for many descriptors at once (epoll, level-triggered).
 *
 * One wait reports everything that is ready at that moment, so what happened before something that is reported is reported with it.
 * Sources that say so are told first: thus the end of file of a descriptor that a program closed is served before the call that the
 * program made afterwards. Who relies on that takes one message for each event and no more; what is left is reported again.
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
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CLOEXEC = 0o2000000;

const BATCH = 128;
// struct epoll_event is packed on x86-64 only.
const EVENT_LENGTH = process.arch === 'x64' ? 12 : 16;
const DATA = EVENT_LENGTH - 8;

export interface PollSource {
  /** Told before the others of the same wait. */
  readonly comesFirst?: boolean;
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
    // Handlers do not run the poller, so the batch stays as it is.
    if (count > 1) for (let i = 0; i < count; i++) this.#tell(i, true);
    for (let i = 0; i < count; i++) this.#tell(i, false);
    return count;
  }

  close(): void {
    libc.close(this.#epfd);
  }

  /** Tells the source of event `i`, unless it is gone or (`onlyFirst`) its turn is later. Told once: the event is then cleared. */
  #tell(i: number, onlyFirst: boolean): void {
    const u32 = this.#region.u32;
    const at = (i * EVENT_LENGTH) >>> 2;
    const events = u32[at]!;
    const slot = u32[at + DATA / 4]!;
    if (events === 0 || this.#generations[slot] !== u32[at + DATA / 4 + 1]) return;
    const source = this.#sources[slot];
    if (source === undefined || (onlyFirst && source.comesFirst !== true)) return;
    u32[at] = 0;
    try {
      source.ready(events);
    } catch (error) {
      this.onError(error);
    }
  }

  #set(operation: number, fd: number, slot: number): number {
    const { u32, view, address } = this.#control;
    u32[0] = EPOLLIN | EPOLLRDHUP;
    view.setUint32(DATA, slot, true);
    view.setUint32(DATA + 4, this.#generations[slot]!, true);
    return libc.epoll_ctl(this.#epfd, operation, fd, address);
  }
}
