/**
 * The C library as functions. The only file that knows koffi.
 *
 * Pointers are Numbers (user addresses are below 2^47); who passes one keeps the memory alive. Calls answer as in C: -1 and
 * `lastErrno()`. Variadic functions (fcntl, ioctl) are declared with fixed arguments, which the calling conventions of Linux on x86-64
 * and arm64 allow.
 */
import koffi from 'koffi';
import { errnoName } from '../lib/errno.ts';

const libc = koffi.load(null);

type Type = 'int' | 'uint' | 'uintptr_t' | 'intptr_t' | 'size_t' | 'int64_t' | 'ulong' | 'str' | 'uint8_t *';

function declare<F>(name: string, result: Type, args: Type[]): F {
  return libc.func(name, result, args) as unknown as F;
}

type N = number;
export const close = declare<(fd: N) => N>('close', 'int', ['int']);
export const read = declare<(fd: N, address: N, length: N) => N>('read', 'intptr_t', ['int', 'uintptr_t', 'size_t']);
export const write = declare<(fd: N, address: N, length: N) => N>('write', 'intptr_t', ['int', 'uintptr_t', 'size_t']);
export const preadv2 = declare<(fd: N, iov: N, count: N, offset: N, flags: N) => N>('preadv2', 'intptr_t', [
  'int',
  'uintptr_t',
  'int',
  'int64_t',
  'int',
]);
export const fcntl = declare<(fd: N, command: N, argument: N) => N>('fcntl', 'int', ['int', 'int', 'intptr_t']);
export const ioctl = declare<(fd: N, request: N, argument: N) => N>('ioctl', 'int', ['int', 'ulong', 'uintptr_t']);
export const poll = declare<(fds: N, count: N, timeout: N) => N>('poll', 'int', ['uintptr_t', 'ulong', 'int']);
export const statx = declare<(dir: N, path: string, flags: N, mask: N, at: N) => N>('statx', 'int', [
  'int',
  'str',
  'int',
  'uint',
  'uintptr_t',
]);
export const ftruncate = declare<(fd: N, length: N) => N>('ftruncate', 'int', ['int', 'int64_t']);
export const mknod = declare<(path: string, mode: N, device: N) => N>('mknod', 'int', ['str', 'uint', 'ulong']);

export const socket = declare<(family: N, type: N, protocol: N) => N>('socket', 'int', ['int', 'int', 'int']);
export const socketpair = declare<(family: N, type: N, protocol: N, pair: N) => N>('socketpair', 'int', [
  'int',
  'int',
  'int',
  'uintptr_t',
]);
export const bind = declare<(fd: N, name: N, length: N) => N>('bind', 'int', ['int', 'uintptr_t', 'uint']);
export const connect = declare<(fd: N, name: N, length: N) => N>('connect', 'int', ['int', 'uintptr_t', 'uint']);
export const listen = declare<(fd: N, backlog: N) => N>('listen', 'int', ['int', 'int']);
export const accept4 = declare<(fd: N, name: N, length: N, flags: N) => N>('accept4', 'int', [
  'int',
  'uintptr_t',
  'uintptr_t',
  'int',
]);
export const getsockname = declare<(fd: N, name: N, length: N) => N>('getsockname', 'int', [
  'int',
  'uintptr_t',
  'uintptr_t',
]);
export const getsockopt = declare<(fd: N, level: N, option: N, value: N, length: N) => N>('getsockopt', 'int', [
  'int',
  'int',
  'int',
  'uintptr_t',
  'uintptr_t',
]);
export const setsockopt = declare<(fd: N, level: N, option: N, value: N, length: N) => N>('setsockopt', 'int', [
  'int',
  'int',
  'int',
  'uintptr_t',
  'uint',
]);
export const recv = declare<(fd: N, address: N, length: N, flags: N) => N>('recv', 'intptr_t', [
  'int',
  'uintptr_t',
  'size_t',
  'int',
]);
export const send = declare<(fd: N, address: N, length: N, flags: N) => N>('send', 'intptr_t', [
  'int',
  'uintptr_t',
  'size_t',
  'int',
]);
export const recvmsg = declare<(fd: N, message: N, flags: N) => N>('recvmsg', 'intptr_t', ['int', 'uintptr_t', 'int']);
export const sendmsg = declare<(fd: N, message: N, flags: N) => N>('sendmsg', 'intptr_t', ['int', 'uintptr_t', 'int']);

export const epoll_create1 = declare<(flags: N) => N>('epoll_create1', 'int', ['int']);
export const epoll_ctl = declare<(epfd: N, operation: N, fd: N, event: N) => N>('epoll_ctl', 'int', [
  'int',
  'int',
  'int',
  'uintptr_t',
]);
export const epoll_wait = declare<(epfd: N, events: N, count: N, timeout: N) => N>('epoll_wait', 'int', [
  'int',
  'uintptr_t',
  'int',
  'int',
]);
export const eventfd = declare<(initial: N, flags: N) => N>('eventfd', 'int', ['uint', 'int']);

export const memfd_create = declare<(name: string, flags: N) => N>('memfd_create', 'int', ['str', 'uint']);
export const mmap = declare<(at: N, length: N, prot: N, flags: N, fd: N, offset: N) => N>('mmap', 'uintptr_t', [
  'uintptr_t',
  'size_t',
  'int',
  'int',
  'int',
  'int64_t',
]);
export const munmap = declare<(at: N, length: N) => N>('munmap', 'int', ['uintptr_t', 'size_t']);

type ProcessVm = (pid: N, local: N, localCount: N, remote: N, remoteCount: N, flags: N) => N;
const processVm: Type[] = ['int', 'uintptr_t', 'ulong', 'uintptr_t', 'ulong', 'ulong'];
export const process_vm_readv = declare<ProcessVm>('process_vm_readv', 'intptr_t', processVm);
export const process_vm_writev = declare<ProcessVm>('process_vm_writev', 'intptr_t', processVm);
export const prlimit = declare<(pid: N, resource: N, value: N, old: N) => N>('prlimit', 'int', [
  'int',
  'int',
  'uintptr_t',
  'uintptr_t',
]);
export const capget = declare<(header: N, data: N) => N>('capget', 'int', ['uintptr_t', 'uintptr_t']);
export const getpid = declare<() => N>('getpid', 'int', []);

/** errno of the last call of this thread that answered -1. */
export function lastErrno(): number {
  return koffi.errno();
}

/** Where the bytes of an array lie. Only for arrays outside the JavaScript heap: of 64 bytes or less they may move. */
export function addressOfBytes(bytes: Uint8Array): number {
  return Number(koffi.address(bytes));
}

/** The memory at `address` as a buffer, which is never collected: what lies there must stay mapped for ever. */
export function viewOf(address: number, length: number): ArrayBuffer {
  return koffi.view(address, length);
}

/** A call of the operating system that has no business failing, or whose failure is told to a person. */
export class SystemError extends Error {
  readonly errno: number;
  readonly code: string;

  constructor(call: string, errno: number) {
    super(`${call}: ${errnoName(errno)}`);
    this.name = 'SystemError';
    this.errno = errno;
    this.code = errnoName(errno);
  }
}

/** The result of a call that should not fail; SystemError when it did. */
export function must(call: string, result: number): number {
  if (result < 0) throw new SystemError(call, lastErrno());
  return result;
}
