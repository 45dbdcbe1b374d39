/**
 * Sockets that carry whole messages (AF_UNIX, SOCK_SEQPACKET) and descriptors (SCM_RIGHTS).
 *
 * Functions of the hot path answer minus the errno instead of throwing. Every receive is non-blocking. Descriptors that arrive
 * unasked are closed by the kernel, because no room is offered for them.
 */
import * as libc from './libc.ts';
import { must } from './libc.ts';
import { Region } from './memory.ts';

const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;
const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
const SCM_RIGHTS = 1;
const MSG_TRUNC = 0x20;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
/** The kernel's limit of descriptors in one message. */
export const SCM_MAX_FD = 253;

// Where things lie in the region: the address of a socket, its length, the message header, its vector, the control data.
const NAME = 0;
const NAME_LENGTH = 128;
const LENGTH = 136;
const HEADER = 192;
const VECTOR = 256;
const CONTROL = 512;
const CONTROL_LENGTH = 16 + SCM_MAX_FD * 4 + 4;
const region = new Region(4096);

/** Bytes of sun_path, without and with the final NUL. */
export const LONGEST_PATH = 107;

function setName(path: Uint8Array, isAbstract: boolean): number {
  if (path.length > LONGEST_PATH) throw new libc.SystemError(`socket name of ${path.length} bytes`, 36);
  region.bytes.fill(0, NAME, NAME + 128);
  region.bytes[NAME] = AF_UNIX;
  region.bytes.set(path, NAME + 2 + (isAbstract ? 1 : 0));
  return 2 + path.length + 1;
}

const encoder = new TextEncoder();

/** Listens on a path. */
export function listenOn(path: string): number {
  const fd = must('socket', libc.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const length = setName(encoder.encode(path), false);
  must(`bind ${path}`, libc.bind(fd, region.address + NAME, length));
  must('listen', libc.listen(fd, 4096));
  return fd;
}

/** Connects to a path; the socket blocks. For tests and clients. */
export function connectTo(path: string): number {
  const fd = must('socket', libc.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const length = setName(encoder.encode(path), false);
  must(`connect ${path}`, libc.connect(fd, region.address + NAME, length));
  return fd;
}

/** A connection that waits, or minus the errno (EAGAIN: none). */
export function accept(listener: number): number {
  const fd = libc.accept4(listener, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK);
  return fd < 0 ? -libc.lastErrno() : fd;
}

/** Who made the connection, as the kernel saw it then. `pid` 0: a process of another pid namespace. */
export function peerOf(fd: number): { pid: number; uid: number; gid: number } {
  region.u32[LENGTH >>> 2] = 12;
  must('SO_PEERCRED', libc.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, region.address + NAME, region.address + LENGTH));
  return { pid: region.s32[0]!, uid: region.u32[1]!, gid: region.u32[2]! };
}

/** Two connected sockets; the second blocks and bears an abstract name (without its leading NUL). Minus the errno on failure. */
export function namedPair(name: Uint8Array, pair: { ours: number; theirs: number }): number {
  const at = region.address + CONTROL;
  if (libc.socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, at) < 0) return -libc.lastErrno();
  pair.ours = region.s32[CONTROL >>> 2]!;
  pair.theirs = region.s32[(CONTROL >>> 2) + 1]!;
  const length = setName(name, true);
  if (libc.bind(pair.theirs, region.address + NAME, length) < 0) {
    const errno = libc.lastErrno();
    libc.close(pair.ours);
    libc.close(pair.theirs);
    return -errno;
  }
  return 0;
}

/** The abstract name of a socket without its leading NUL; undefined for anything else. */
export function abstractName(fd: number): string | undefined {
  region.u32[LENGTH >>> 2] = NAME_LENGTH;
  if (libc.getsockname(fd, region.address + NAME, region.address + LENGTH) < 0) return undefined;
  const length = Math.min(region.u32[LENGTH >>> 2]!, 110);
  if (region.bytes[NAME] !== AF_UNIX || length <= 3 || region.bytes[NAME + 2] !== 0) return undefined;
  return String.fromCharCode(...region.bytes.subarray(NAME + 3, NAME + length));
}

/** Receives one message. 0: the other side is gone. A result above `length`: the message was longer. Minus the errno. */
export function receive(fd: number, address: number, length: number): number {
  const n = libc.recv(fd, address, length, MSG_DONTWAIT | MSG_TRUNC);
  return n < 0 ? -libc.lastErrno() : n;
}

/** As `receive`, with the descriptors that came along (close-on-exec). They are the caller's, whatever the result. */
export function receiveDescriptors(fd: number, address: number, length: number, fds: number[]): number {
  setMessage(address, length);
  region.setWord(HEADER + 32, region.address + CONTROL);
  region.setWord(HEADER + 40, CONTROL_LENGTH);
  const n = libc.recvmsg(fd, region.address + HEADER, MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
  if (n < 0) return -libc.lastErrno();
  const control = region.word(HEADER + 40);
  let at = CONTROL;
  while (at + 16 <= CONTROL + control) {
    const size = region.word(at);
    if (size < 16) break;
    if (region.u32[(at + 8) >>> 2] === SOL_SOCKET && region.u32[(at + 12) >>> 2] === SCM_RIGHTS) {
      for (let o = at + 16; o + 4 <= at + size; o += 4) fds.push(region.s32[o >>> 2]!);
    }
    at += (size + 7) & ~7;
  }
  return n;
}

/** Sends one message without waiting. Minus the errno. */
export function send(fd: number, address: number, length: number): number {
  const n = libc.send(fd, address, length, MSG_DONTWAIT | MSG_NOSIGNAL);
  return n < 0 ? -libc.lastErrno() : n;
}

/** As `send`, with copies of our descriptors. */
export function sendDescriptors(fd: number, address: number, length: number, fds: readonly number[]): number {
  if (fds.length > SCM_MAX_FD) throw new Error(`${fds.length} descriptors do not fit one message`);
  setMessage(address, length);
  if (fds.length > 0) {
    region.setWord(HEADER + 32, region.address + CONTROL);
    region.setWord(HEADER + 40, (16 + fds.length * 4 + 7) & ~7);
    region.setWord(CONTROL, 16 + fds.length * 4);
    region.u32[(CONTROL + 8) >>> 2] = SOL_SOCKET;
    region.u32[(CONTROL + 12) >>> 2] = SCM_RIGHTS;
    for (let i = 0; i < fds.length; i++) region.s32[((CONTROL + 16) >>> 2) + i] = fds[i]!;
  }
  const n = libc.sendmsg(fd, region.address + HEADER, MSG_DONTWAIT | MSG_NOSIGNAL);
  return n < 0 ? -libc.lastErrno() : n;
}

/** struct msghdr with one buffer and no control data. */
function setMessage(address: number, length: number): void {
  region.setWord(HEADER, 0);
  region.setWord(HEADER + 8, 0);
  region.setWord(HEADER + 16, region.address + VECTOR);
  region.setWord(HEADER + 24, 1);
  region.setWord(HEADER + 32, 0);
  region.setWord(HEADER + 40, 0);
  region.setWord(HEADER + 48, 0);
  region.setWord(VECTOR, address);
  region.setWord(VECTOR + 8, length);
}
