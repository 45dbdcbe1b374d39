/**
 * The calls of programs: requests decoded, carried out on the machine, answered. docs/run-protocol.md says what travels.
 *
 * One request is in the buffer at a time and one answer is composed at a time; both buffers serve all connections. A call runs to its
 * end without waiting. When it needs a descriptor of the program, the connection is asked for it and the request is kept until the
 * descriptor arrives; the call then runs again from its start. When it waits for something in the machine (`Blocked`), it has acted
 * already: the request is kept too, and answered when that has happened.
 *
 * Errno is caught here and nowhere else in this door. Any other exception is a bug: it ends the connection, not the box.
 */
import { Blocked, type File, type Machine, type NodeStat } from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import {
  closeDescriptor,
  type NativeShared,
  Region,
  send,
  sendDescriptors,
  statusWith,
  textFile,
} from '../../sys/index.ts';
import { callRecord } from './call-record.ts';
import { type FetchedDescriptors, NeedDescriptor } from './descriptors.ts';
import type { Handle, Handles } from './handles.ts';
import { LongTransfers } from './long-transfers.ts';
import type { Program } from './processes.ts';
import {
  DESCRIPTOR_IS_RESULT,
  FLAG_CLOSE_ON_EXEC,
  FLAG_NAMES_DESCRIPTOR,
  KIND_ANSWER,
  KIND_ASK,
  LONGEST_PAYLOAD,
  LONGEST_READ_PAYLOAD,
  LONGEST_REPLY,
  LONGEST_TRAP,
  NO_DESCRIPTOR,
  O_CLOEXEC,
  OP_ACCESS,
  OP_FDS,
  OP_IOCTL,
  OP_MMAP,
  OP_NAME,
  OP_OPEN,
  OP_PREAD,
  OP_PWRITE,
  OP_STAT,
  OP_TRAP_READ,
  OP_TRAP_WRITE,
  PASS,
  REPLY_HEADER,
  REQUEST_HEADER,
  wide,
} from './protocol.ts';
import type { CallRecord } from './reporter.ts';

const STATUS = /^\/proc\/(\d+)\/status$/;

export type Outcome = 'answered' | 'asked' | 'waiting' | 'broken';

/** Pages of a program that the machine has locked (VmLck) and pinned (VmPin). */
export interface LockedPages {
  readonly locked: number;
  readonly pinned: number;
}

/** Where reports go; undefined members are not wanted. */
export interface CallReports {
  call?: ((record: CallRecord) => void) | undefined;
  /** A call that its caller has to wait for; `why` says what for. */
  waits?: ((record: CallRecord) => void) | undefined;
  /** A bug, with the call that met it. */
  failed(error: unknown, program: Program, call: string): void;
}

export class CallDoor {
  readonly request = new Region(REQUEST_HEADER + LONGEST_PAYLOAD + 16);
  readonly reply = new Region(REPLY_HEADER + LONGEST_REPLY);
  /** Payloads of both. */
  readonly arrived: Uint8Array;
  readonly gathered: Uint8Array;
  readonly #machine: Machine;
  readonly #handles: Handles;
  readonly #descriptors: FetchedDescriptors;
  readonly #reports: CallReports;
  readonly #lockedPages: (pid: number) => LockedPages | undefined;
  readonly #q: Uint32Array;
  readonly #qs: Int32Array;
  readonly #r: Int32Array;
  /** Views of the reply's payload for reads of the usual sizes. */
  readonly #small: Uint8Array[];
  readonly #smallIn: Uint8Array[];
  readonly #long = new LongTransfers();
  // The answer under way.
  #fdoff = NO_DESCRIPTOR;
  #flags = 0;
  #length = 0;
  #where = 0;
  /** The program's end of a new handle (closed after sending), or a memory's descriptor (kept). */
  #descriptor = -1;
  #isDescriptorOurs = false;
  /** The program's end of a handle that lives as long as the mapping under way. */
  #keep = -1;
  #why: string | undefined;
  /** After `serve` said `waiting`: what the call waits for. */
  blocked: Blocked | undefined;

  constructor(
    machine: Machine,
    handles: Handles,
    descriptors: FetchedDescriptors,
    reports: CallReports,
    lockedPages: (pid: number) => LockedPages | undefined = () => undefined,
  ) {
    this.#lockedPages = lockedPages;
    this.#machine = machine;
    this.#handles = handles;
    this.#descriptors = descriptors;
    this.#reports = reports;
    this.#q = this.request.u32;
    this.#qs = this.request.s32;
    this.#r = this.reply.s32;
    this.arrived = this.request.bytes.subarray(REQUEST_HEADER, REQUEST_HEADER + LONGEST_PAYLOAD);
    this.gathered = this.reply.bytes.subarray(REPLY_HEADER, REPLY_HEADER + LONGEST_REPLY);
    const sizes = Array.from({ length: LONGEST_TRAP + 1 }, (_, size) => size);
    this.#small = sizes.map((size) => this.gathered.subarray(0, size));
    this.#smallIn = sizes.map((size) => this.arrived.subarray(0, size));
  }

  /** Carries out the request in the buffer (`length` bytes in all) and answers on `fd`. `fetched`: descriptors that came for it. */
  serve(fd: number, program: Program, length: number, fetched: Map<number, number>): Outcome {
    this.#fdoff = NO_DESCRIPTOR;
    this.#flags = 0;
    this.#length = 0;
    this.#where = 0;
    this.#why = undefined;
    const op = this.#q[0]!;
    if (op < OP_OPEN || op > OP_ACCESS || op === OP_FDS) return 'broken';
    const payload = length - REQUEST_HEADER;
    let result: number;
    try {
      this.#descriptors.begin(fetched);
      result = this.#dispatch(program, payload);
    } catch (error) {
      if (error instanceof NeedDescriptor) {
        this.#descriptors.interrupted();
        program.memory.closeWindow();
        return this.#ask(fd, error.number);
      }
      if (error instanceof Blocked) return this.#wait(program, error);
      if (!(error instanceof Errno)) {
        this.#dropDescriptor();
        program.memory.closeWindow();
        this.#reports.failed(error, program, this.#describe(program, 0).call);
        return 'broken';
      }
      result = -error.errno;
      this.#why = error.why;
      this.#dropDescriptor();
      this.#fdoff = NO_DESCRIPTOR;
      this.#length = 0;
    }
    if (op === OP_IOCTL) {
      this.#length = program.memory.closeWindow();
      if (this.#descriptors.fetchedHandle >= 0) this.#giveHint(payload);
    }
    const isPassed = result === PASS && (op === OP_OPEN || op === OP_STAT || op === OP_ACCESS);
    if (this.#reports.call !== undefined && !isPassed) this.#reports.call(this.#describe(program, result));
    return this.#answer(fd, result);
  }

  /** What a `waiting` call waited for has happened; its request is in the buffer again. Answers it on `fd`. */
  finish(fd: number, program: Program, blocked: Blocked, error: Errno | undefined): Outcome {
    this.#fdoff = NO_DESCRIPTOR;
    this.#flags = 0;
    this.#length = 0;
    this.#descriptor = -1;
    this.#why = error?.why;
    const result = error === undefined ? blocked.result : -error.errno;
    this.#reports.call?.(this.#describe(program, result));
    return this.#answer(fd, result);
  }

  #wait(program: Program, blocked: Blocked): Outcome {
    this.#dropDescriptor();
    program.memory.closeWindow();
    this.blocked = blocked;
    if (this.#reports.waits !== undefined) {
      this.#why = blocked.why;
      this.#reports.waits(this.#describe(program, blocked.result));
    }
    return 'waiting';
  }

  #dispatch(program: Program, payload: number): number {
    const q = this.#q;
    switch (q[0]) {
      case OP_IOCTL:
        return this.#ioctl(program, payload);
      case OP_PREAD:
        return this.#pread(program);
      case OP_PWRITE:
        return this.#pwrite(program, payload);
      case OP_TRAP_READ:
      case OP_TRAP_WRITE:
        return this.#trap(program, payload, q[0] === OP_TRAP_WRITE);
      case OP_OPEN:
        return this.#open(program, payload);
      case OP_MMAP:
        return this.#mmap(program);
      case OP_STAT:
        return this.#stat(program, payload);
      case OP_NAME:
        return this.#text(this.#handle().file.path);
      case OP_ACCESS: {
        return this.#machine.access(program.process, this.#path(payload), q[4]!) === undefined ? PASS : 0;
      }
      default:
        throw new Error(`Operation ${q[0]} has no handler`);
    }
  }

  #ioctl(program: Program, payload: number): number {
    const file = this.#handle().file;
    const q = this.#q;
    const low = q[6]!;
    const high = q[7]!;
    program.memory.openWindow(low + high * 0x1_0000_0000, payload);
    if (q[11] !== 0) this.#takeHint();
    const result = file.ioctl(program.process, q[4]!, BigInt(low) | (BigInt(high) << 32n));
    if (typeof result === 'number') return result;
    this.#give(result.file, program, result.closeOnExec);
    if (result.offset === undefined) return 0;
    this.#fdoff = result.offset;
    return 0;
  }

  /** The library has looked up a descriptor that the argument names. */
  #takeHint(): void {
    const q = this.#q;
    const handle = this.#handles.get(wide(q[8]!, q[9]!));
    if (handle !== undefined) this.#descriptors.told(q[10]!, handle.file);
  }

  /** Tells the library where the argument names a descriptor, so that it need not be fetched the next time. */
  #giveHint(payload: number): void {
    const number = this.#descriptors.fetchedHandle;
    for (let at = 0; at + 4 <= payload; at += 4) {
      if (this.#q[(REQUEST_HEADER + at) >>> 2] !== number) continue;
      this.#flags |= FLAG_NAMES_DESCRIPTOR;
      this.#where = at;
      return;
    }
  }

  /** A register read of 1 to 64 bytes lands in the reply directly; longer ones go through a piece of memory. */
  #pread(program: Program): number {
    const handle = this.#handle();
    const { file } = handle;
    if (!file.isEventQueue) return this.#preadFile(program, file);
    try {
      return this.#preadFile(program, file);
    } finally {
      this.#handles.wasRead(handle);
    }
  }

  #preadFile(program: Program, file: File): number {
    const q = this.#q;
    const isPositioned = !(q[4] === 0xffff_ffff && q[5] === 0xffff_ffff);
    const offset = isPositioned ? wide(q[4]!, q[5]!) : file.position;
    const count = wide(q[6]!, q[7]!);
    let done: number;
    if (count <= LONGEST_READ_PAYLOAD) {
      const into = count <= LONGEST_TRAP ? this.#small[count]! : this.gathered.subarray(0, count);
      done = file.read(program.process, into, offset);
      this.#length = done;
    } else done = this.#long.read(program, file, offset, count, wide(q[8]!, q[9]!));
    if (!isPositioned) file.position = offset + done;
    return done;
  }

  #pwrite(program: Program, payload: number): number {
    const file = this.#handle().file;
    const q = this.#q;
    const isPositioned = !(q[4] === 0xffff_ffff && q[5] === 0xffff_ffff);
    const offset = isPositioned ? wide(q[4]!, q[5]!) : file.position;
    const count = wide(q[6]!, q[7]!);
    let done: number;
    if (count === payload) {
      const from = count <= LONGEST_TRAP ? this.#smallIn[count]! : this.arrived.subarray(0, count);
      done = file.write(program.process, from, offset);
    } else done = this.#long.write(program, file, offset, count, wide(q[8]!, q[9]!));
    if (!isPositioned) file.position = offset + done;
    return done;
  }

  #trap(program: Program, payload: number, isWrite: boolean): number {
    const file = this.#handle().file;
    const q = this.#q;
    const size = q[6]!;
    if (q[7] !== 0 || size < 1 || size > LONGEST_TRAP || (isWrite && payload !== size)) {
      throw new Errno('EINVAL', `an access of ${size} bytes does not exist`);
    }
    const offset = wide(q[4]!, q[5]!);
    const n = file.access(program.process, isWrite ? this.#smallIn[size]! : this.#small[size]!, offset, isWrite);
    if (!isWrite) this.#length = n;
    return n;
  }

  #open(program: Program, payload: number): number {
    const flags = this.#q[4]!;
    const status = STATUS.exec(this.#path(payload));
    if (status !== null) return this.#openStatus(Number(status[1]));
    const file = this.#machine.open(program.process, this.#path(payload), flags);
    if (file === undefined) return PASS;
    this.#give(file, program, (flags & O_CLOEXEC) !== 0);
    return 0;
  }

  /** /proc/PID/status of a program that has memory locked by the machine: a copy of the system's with those pages added. */
  #openStatus(pid: number): number {
    const locked = this.#lockedPages(pid);
    const text = locked === undefined ? undefined : statusWith(pid, locked);
    if (text === undefined) return PASS;
    this.#descriptor = textFile('status', text);
    this.#isDescriptorOurs = false;
    this.#fdoff = DESCRIPTOR_IS_RESULT;
    this.#flags = FLAG_CLOSE_ON_EXEC;
    return 0;
  }

  #mmap(program: Program): number {
    const q = this.#q;
    const mapping = this.#handle().file.mmap(program.process, wide(q[4]!, q[5]!), q[6]!, q[8]!, wide(q[10]!, q[11]!));
    this.#r[8] = mapping.trapped ? 1 : 0;
    this.#r[9] = 0;
    this.#r[10] = mapping.offset;
    this.#r[11] = mapping.offset / 0x1_0000_0000;
    this.#length = 16;
    this.#fdoff = DESCRIPTOR_IS_RESULT;
    this.#descriptor = (mapping.memory as unknown as NativeShared).fd;
    this.#isDescriptorOurs = true;
    if (mapping.keep !== undefined) this.#keep = this.#handles.create(mapping.keep, program.process);
    return 0;
  }

  #stat(program: Program, payload: number): number {
    const q = this.#q;
    const isPath = q[2] === 0 && q[3] === 0;
    const path = isPath ? this.#path(payload) : this.#handle().file.path;
    const stat = path.startsWith('/') ? this.#machine.stat(path, program.uid) : undefined;
    if (stat === undefined && isPath) return PASS;
    const { mode, uid, gid, major, minor, nlink, ino, size } = stat ?? (path.startsWith('/') ? liveFile : anonymous);
    const r = this.#r;
    r[8] = mode;
    r[9] = uid;
    r[10] = gid;
    r[11] = major;
    r[12] = minor;
    r[13] = nlink;
    r[14] = ino;
    r[15] = ino / 0x1_0000_0000;
    r[16] = size;
    r[17] = size / 0x1_0000_0000;
    this.#length = 40;
    return 0;
  }

  #text(text: string): number {
    this.#length = Buffer.from(this.gathered.buffer, this.gathered.byteOffset, LONGEST_PAYLOAD).write(text);
    return 0;
  }

  #path(payload: number): string {
    const bytes = Buffer.from(this.arrived.buffer, this.arrived.byteOffset, payload);
    const end = bytes.indexOf(0);
    return bytes.toString('utf8', 0, end < 0 ? payload : end);
  }

  #handle(): Handle {
    const handle = this.#handles.get(wide(this.#q[2]!, this.#q[3]!));
    if (handle === undefined) throw unknownHandle;
    return handle;
  }

  #give(file: File, program: Program, isCloseOnExec: boolean): void {
    this.#descriptor = this.#handles.create(file, program.process);
    this.#isDescriptorOurs = false;
    this.#fdoff = DESCRIPTOR_IS_RESULT;
    this.#flags = isCloseOnExec ? FLAG_CLOSE_ON_EXEC : 0;
  }

  #dropDescriptor(): void {
    if (this.#descriptor >= 0 && !this.#isDescriptorOurs) closeDescriptor(this.#descriptor);
    this.#descriptor = -1;
  }

  #answer(fd: number, result: number): Outcome {
    const r = this.#r;
    r[0] = KIND_ANSWER;
    r[1] = this.#qs[1]!;
    r[2] = result;
    r[3] = result < 0 ? -1 : result / 0x1_0000_0000;
    r[4] = this.#fdoff;
    r[5] = this.#flags;
    r[6] = this.#length;
    r[7] = this.#where;
    const total = REPLY_HEADER + this.#length;
    if (this.#descriptor < 0) return send(fd, this.reply.address, total) === total ? 'answered' : 'broken';
    const descriptors = this.#keep < 0 ? [this.#descriptor] : [this.#descriptor, this.#keep];
    const sent = sendDescriptors(fd, this.reply.address, total, descriptors);
    if (this.#keep >= 0) closeDescriptor(this.#keep);
    this.#keep = -1;
    this.#dropDescriptor();
    return sent === total ? 'answered' : 'broken';
  }

  #ask(fd: number, number: number): Outcome {
    const r = this.#r;
    r.fill(0, 0, 8);
    r[0] = KIND_ASK;
    r[1] = this.#qs[1]!;
    r[2] = number;
    r[4] = NO_DESCRIPTOR;
    return send(fd, this.reply.address, REPLY_HEADER) === REPLY_HEADER ? 'asked' : 'broken';
  }

  #describe(program: Program, result: number): CallRecord {
    const handle = this.#handles.get(wide(this.#q[2]!, this.#q[3]!));
    return callRecord(this.#q, handle?.file, () => this.#path(LONGEST_PAYLOAD), program, result, this.#why);
  }
}

/** What fstat says of an anonymous inode, and of a file of sysfs. */
const anonymous: NodeStat = { mode: 0o600, uid: 0, gid: 0, major: 0, minor: 0, nlink: 1, ino: 1057, size: 0 };
const liveFile: NodeStat = { ...anonymous, mode: 0o100644, size: 4096 };

const unknownHandle = new Errno('EBADF', 'the box has no such handle');
