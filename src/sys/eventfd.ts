/**
 * Event counters of other processes.
 *
 * Neither side may block us, whatever the program does to the counter: a full counter is left alone (the kernel saturates it), and reads
 * do not wait even when the program's descriptor would.
 */
import { readFileSync } from 'node:fs';
import * as libc from './libc.ts';
import { must } from './libc.ts';
import { Region } from './memory.ts';

const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;
const POLLOUT = 4;
const RWF_NOWAIT = 8;

// A pollfd, a vector of one buffer, the buffer.
const VECTOR = 16;
const VALUE = 32;
const region = new Region(4096);
region.setWord(VECTOR, region.address + VALUE);
region.setWord(VECTOR + 8, 8);

/** An event counter of our own. */
export function createEventfd(): number {
  return must('eventfd', libc.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

/** Adds to the counter. A counter that is full stays as it is. */
export function signalEventfd(fd: number, count = 1): void {
  region.s32[0] = fd;
  region.u32[1] = POLLOUT;
  if (libc.poll(region.address, 1, 0) !== 1 || ((region.u32[1]! >>> 16) & POLLOUT) === 0) return;
  region.setWord(VALUE, count);
  libc.write(fd, region.address + VALUE, 8);
}

/** Resets the counter and returns what it was; 0 when it was zero already. */
export function readEventfd(fd: number): number {
  return libc.preadv2(fd, region.address + VECTOR, 1, -1, RWF_NOWAIT) === 8 ? region.word(VALUE) : 0;
}

/** What is equal for all descriptors of one counter; undefined where the kernel does not tell (before Linux 5.2). */
export function eventfdIdentity(fd: number): string | undefined {
  return /^eventfd-id:\s*(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1];
}
