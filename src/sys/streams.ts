/**
 * Stream sockets (AF_UNIX, SOCK_STREAM) whose bytes come with descriptors.
 *
 * Functions of the hot path answer minus the errno instead of throwing. A read ends after the piece that carries descriptors, so they
 * belong to the last bytes of what was read.
 */
import { lstatSync, unlinkSync } from 'node:fs';
import { EAGAIN, EINTR } from './constants.ts';
import * as libc from './libc.ts';
import { must } from './libc.ts';
import { Region } from './memory.ts';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;
const SO_ACCEPTCONN = 30;
const SCM_RIGHTS = 1;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
const POLLIN = 1;
const POLLOUT = 4;
const SCM_MAX_FD = 253;
const LONGEST_PATH = 107;
const ECONNREFUSED = 111;
const ENOENT = 2;

// Message header, its vector and control data for receiving, the same for sending, poll descriptors, an address.
const HEADER = 0;
const VECTOR = 64;
const CONTROL = 128;
const CONTROL_LENGTH = 16 + SCM_MAX_FD * 4 + 4;
const POLL = 1408;
const NAME = 1536;
const VALUE = 1664;
const SEND = 2048;
const region = new Region(4096);
const { u32, s32 } = region;
region.setWord(HEADER + 16, region.address + VECTOR);
region.setWord(HEADER + 24, 1);
region.setWord(HEADER + 32, region.address + CONTROL);
region.setWord(SEND + HEADER + 16, region.address + SEND + VECTOR);
region.setWord(SEND + HEADER + 24, 1);
region.setWord(SEND + HEADER + 32, region.address + SEND + CONTROL);

const encoder = new TextEncoder();

function setName(path: string): number {
  const bytes = encoder.encode(path);
  if (bytes.length > LONGEST_PATH) throw new libc.SystemError(`socket path of ${bytes.length} bytes`, 36);
  region.bytes.fill(0, NAME, NAME + 128);
  region.bytes[NAME] = AF_UNIX;
  region.bytes.set(bytes, NAME + 2);
  return 2 + bytes.length + 1;
}

/** What `listenOnStream` found at the path. */
export type PathState = 'taken' | 'not a socket' | 'free';

/** What is at a path: a socket that somebody listens on, something else, or nothing (a stale socket was removed). */
export function clearStalePath(path: string): PathState {
  const length = setName(path);
  let isSocket: boolean;
  try {
    isSocket = lstatSync(path).isSocket();
  } catch {
    return 'free';
  }
  if (!isSocket) return 'not a socket';
  const fd = must('socket', libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const result = libc.connect(fd, region.address + NAME, length);
  const errno = result < 0 ? libc.lastErrno() : 0;
  libc.close(fd);
  if (errno === ENOENT) return 'free';
  if (errno !== ECONNREFUSED) return 'taken';
  unlinkSync(path);
  return 'free';
}

/** Listens on a path. SystemError. */
export function listenOnStream(path: string): number {
  const fd = must('socket', libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  try {
    const length = setName(path);
    must('bind', libc.bind(fd, region.address + NAME, length));
    must('listen', libc.listen(fd, 128));
  } catch (error) {
    libc.close(fd);
    throw error;
  }
  return fd;
}

/** Connects to a path; the socket blocks. SystemError. */
export function connectStream(path: string): number {
  const fd = must('socket', libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  try {
    const length = setName(path);
    must(`connect ${path}`, libc.connect(fd, region.address + NAME, length));
  } catch (error) {
    libc.close(fd);
    throw error;
  }
  return fd;
}

/** A connection that waits, blocking by itself, or minus the errno (EAGAIN: none). */
export function acceptStream(listener: number): number {
  const fd = libc.accept4(listener, 0, 0, SOCK_CLOEXEC);
  return fd < 0 ? -libc.lastErrno() : fd;
}

/** Two connected sockets. Minus the errno on failure. */
export function streamPair(): [number, number] {
  must('socketpair', libc.socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, region.address + VALUE));
  return [s32[VALUE >>> 2]!, s32[(VALUE >>> 2) + 1]!];
}

/** What kind of descriptor was inherited; undefined: no socket at all. */
export function kindOfSocket(fd: number): 'listening' | 'connected' | undefined {
  u32[NAME >>> 2] = 4;
  if (libc.getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, region.address + VALUE, region.address + NAME) < 0) {
    return undefined;
  }
  return u32[VALUE >>> 2] === 1 ? 'listening' : 'connected';
}

/** From now on a read that waits gives up after `milliseconds`. */
export function setReceiveTimeout(fd: number, milliseconds: number): void {
  region.setWord(VALUE, Math.floor(milliseconds / 1000));
  region.setWord(VALUE + 8, (milliseconds % 1000) * 1000);
  must('SO_RCVTIMEO', libc.setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, region.address + VALUE, 16));
}

/**
 * Reads up to `length` bytes and the descriptors that come along (close-on-exec; they are the caller's). 0: the other side is gone.
 * Minus the errno; EAGAIN: nothing there, or nothing came in time.
 */
export function receiveStream(fd: number, address: number, length: number, fds: number[], waits: boolean): number {
  region.setWord(VECTOR, address);
  region.setWord(VECTOR + 8, length);
  u32[(HEADER + 40) >>> 2] = CONTROL_LENGTH;
  const n = libc.recvmsg(fd, region.address + HEADER, waits ? MSG_CMSG_CLOEXEC : MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) {
    const errno = libc.lastErrno();
    return errno === EINTR ? -EAGAIN : -errno;
  }
  const control = u32[(HEADER + 40) >>> 2]!;
  if (control > 0) takeDescriptors(control, fds);
  return n;
}

function takeDescriptors(control: number, fds: number[]): void {
  let at = CONTROL;
  while (at + 16 <= CONTROL + control) {
    const size = region.word(at);
    if (size < 16) break;
    if (u32[(at + 8) >>> 2] === SOL_SOCKET && u32[(at + 12) >>> 2] === SCM_RIGHTS) {
      for (let o = at + 16; o + 4 <= at + size; o += 4) fds.push(s32[o >>> 2]!);
    }
    at += (size + 7) & ~7;
  }
}

/** Sends what the socket takes now, without waiting. Minus the errno. */
export function sendStream(fd: number, address: number, length: number): number {
  const n = libc.send(fd, address, length, MSG_DONTWAIT | MSG_NOSIGNAL);
  return n < 0 ? -libc.lastErrno() : n;
}

/** As `sendStream`, with copies of our descriptors, which go with the first byte. */
export function sendStreamDescriptors(fd: number, address: number, length: number, fds: readonly number[]): number {
  if (fds.length > SCM_MAX_FD) throw new Error(`${fds.length} descriptors do not fit one message`);
  region.setWord(SEND + VECTOR, address);
  region.setWord(SEND + VECTOR + 8, length);
  const control = SEND + CONTROL;
  region.setWord(SEND + HEADER + 40, (16 + fds.length * 4 + 7) & ~7);
  region.setWord(control, 16 + fds.length * 4);
  u32[(control + 8) >>> 2] = SOL_SOCKET;
  u32[(control + 12) >>> 2] = SCM_RIGHTS;
  for (let i = 0; i < fds.length; i++) s32[((control + 16) >>> 2) + i] = fds[i]!;
  const n = libc.sendmsg(fd, region.address + SEND + HEADER, MSG_DONTWAIT | MSG_NOSIGNAL);
  return n < 0 ? -libc.lastErrno() : n;
}

/**
 * Waits until `fd` can be read (or written), or `stop` can be read (-1: there is none); `milliseconds` -1: for ever. True: `fd` is ready
 * or broken; false: time is over, or `stop`.
 */
export function waitFor(fd: number, direction: 'read' | 'write', stop: number, milliseconds: number): boolean {
  const at = POLL >>> 2;
  s32[at] = fd;
  u32[at + 1] = direction === 'read' ? POLLIN : POLLOUT;
  s32[at + 2] = stop;
  u32[at + 3] = POLLIN;
  const n = libc.poll(region.address + POLL, stop < 0 ? 1 : 2, milliseconds);
  if (n <= 0) return n < 0 && libc.lastErrno() === EINTR;
  return stop < 0 || u32[at + 3]! >>> 16 === 0;
}

const WAIT_MOST = 8;

/**
 * Waits until one of the descriptors can be read (or is broken), or the first can be written (`what`); `milliseconds` -1: for ever.
 * Bit i of the result: descriptor i is ready to be read; bit 31: the first can be written. 0: time is over, or a signal came. A
 * descriptor of -1 is left out.
 */
export function waitForAny(
  fds: readonly number[],
  milliseconds: number,
  what: 'read' | 'write' | 'both' = 'read',
): number {
  const count = Math.min(fds.length, WAIT_MOST);
  for (let i = 0; i < count; i++) {
    s32[(POLL >>> 2) + 2 * i] = fds[i]!;
    u32[(POLL >>> 2) + 2 * i + 1] = i > 0 || what === 'read' ? POLLIN : what === 'write' ? POLLOUT : POLLIN | POLLOUT;
  }
  const n = libc.poll(region.address + POLL, count, milliseconds);
  if (n <= 0) return 0;
  let ready = 0;
  for (let i = 0; i < count; i++) {
    const events = u32[(POLL >>> 2) + 2 * i + 1]! >>> 16;
    if ((events & ~POLLOUT) !== 0) ready |= 1 << i;
    if (i === 0 && (events & POLLOUT) !== 0) ready |= 1 << 31;
  }
  return ready >>> 0;
}
