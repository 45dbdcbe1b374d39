/**
 * The programs that use the box. A process is known by its number, as the kernel vouches for it, and by the random word of its image,
 * which is new after fork and exec. It lives from its first connection to its last; what it opened may outlive it in another process.
 */
import type { Capability, DescriptorSource, Machine, MemoryFile, Process } from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import {
  capabilities,
  closeDescriptor,
  credentials,
  type Mapping,
  memlockLimit,
  openMapped,
  ProcessMemory,
  programName,
  sealsOf,
} from '../../sys/index.ts';
import { SharedFile } from './descriptors.ts';
import { say } from './reporter.ts';
import { ProgramMemory, type RawMemory, type SharedByKey } from './user-memory.ts';

/** Bits in a process's set. */
const numbers: Readonly<Record<Capability, bigint>> = {
  CAP_IPC_LOCK: 14n,
  CAP_SYS_RAWIO: 17n,
  CAP_SYS_ADMIN: 21n,
  CAP_SYS_RESOURCE: 24n,
};
const boxUser = process.getuid?.();

/** What one program may hold of the box at a time. */
export const MOST_CONNECTIONS = 8192;

export interface Program {
  readonly key: string;
  readonly pid: number;
  readonly uid: number;
  readonly process: Process;
  readonly memory: ProgramMemory;
  readonly raw: ProcessMemory;
  connections: number;
}

/** Programs without a connection that are remembered before the dead ones among them are forgotten. */
const MOST_DORMANT = 16;

export class Processes {
  readonly #machine: Machine;
  readonly #descriptors: DescriptorSource;
  readonly #shared: SharedByKey;
  readonly #arrived: Uint8Array;
  readonly #gathered: Uint8Array;
  readonly #programs = new Map<string, Program>();
  #dormant = 0;
  /** Refusals of the system are told once. */
  #told = false;

  constructor(
    machine: Machine,
    descriptors: DescriptorSource,
    shared: SharedByKey,
    buffers: { arrived: Uint8Array; gathered: Uint8Array },
  ) {
    this.#machine = machine;
    this.#descriptors = descriptors;
    this.#shared = shared;
    this.#arrived = buffers.arrived;
    this.#gathered = buffers.gathered;
  }

  get count(): number {
    return this.#programs.size;
  }

  /** What the machine has locked of a process's memory. Undefined: nothing. */
  lockedPages(pid: number): { locked: number; pinned: number } | undefined {
    for (const program of this.#programs.values()) {
      const { lockedPages, pinnedPages } = program.process.mm;
      if (program.pid === pid && (lockedPages > 0 || pinnedPages > 0))
        return { locked: lockedPages, pinned: pinnedPages };
    }
    return undefined;
  }

  /** A connection says whose it is. Undefined: this program has too many. */
  join(pid: number, uid: number, word: bigint): Program | undefined {
    const key = `${pid}:${word.toString(16)}`;
    let program = this.#programs.get(key);
    if (program === undefined) {
      program = this.#create(key, pid, uid);
      this.#programs.set(key, program);
    }
    if (program.connections >= MOST_CONNECTIONS) return undefined;
    if (program.connections === 0 && program.raw.isHeld) this.#dormant--;
    program.connections++;
    program.raw.attach();
    return program;
  }

  /** A connection is gone. */
  leave(program: Program): void {
    program.connections--;
    if (program.connections > 0) return;
    // Threads may have ended one by one while the process goes on: its memory stays reachable, by a way that ends with it.
    program.raw.detach();
    if (!program.raw.isHeld) this.#forget(program);
    else if (++this.#dormant > MOST_DORMANT) this.#forgetDead();
    const refusal = program.raw.refusal;
    if (refusal !== undefined && !this.#told) {
      this.#told = true;
      say(`vfiobox: ${refusal}; DMA and large arguments fail (is kernel.yama.ptrace_scope 2 or 3?)\n`);
    }
  }

  #forgetDead(): void {
    for (const program of this.#programs.values()) {
      if (program.connections > 0 || isAlive(program.pid)) continue;
      program.raw.close();
      this.#forget(program);
      this.#dormant--;
    }
  }

  #forget(program: Program): void {
    this.#programs.delete(program.key);
    program.process.exit();
  }

  #create(key: string, pid: number, uid: number): Program {
    const raw = new ProcessMemory(pid);
    const reach: RawMemory = {
      read: (address, into) => raw.read(address, into),
      write: (address, from) => raw.write(address, from),
      mapping: (address) => raw.mapping(address),
      openFile: (mapping) => openMemoryFile(pid, mapping),
    };
    const memory = new ProgramMemory(reach, this.#shared, this.#arrived, this.#gathered);
    let name: string | undefined;
    const identity = {
      pid,
      get name(): string {
        name ??= programName(pid);
        return name;
      },
    };
    const rights = {
      uid,
      capable: (capability: Capability) =>
        // Who runs a box administers its machine; what it may lock is the real process's affair, and so is everything of other users.
        (capability !== 'CAP_IPC_LOCK' && uid === boxUser) || ((capabilities(pid) >> numbers[capability]) & 1n) === 1n,
      memlockLimit: () => memlockLimit(pid),
      credentials: () => credentials(pid, uid),
    };
    const process = this.#machine.createProcess(identity, memory, this.#descriptors, rights);
    return { key, pid, uid, process, memory, raw, connections: 0 };
  }
}

/** Undefined: the mapping is not one of a memory file, or the file is out of reach. */
function openMemoryFile(pid: number, mapping: Mapping): MemoryFile | undefined {
  const fd = openMapped(pid, mapping.start, mapping.end, mapping.key!, mapping.writable);
  if (fd < 0) return undefined;
  try {
    return sealsOf(fd) === undefined ? undefined : new SharedFile(fd);
  } catch (error) {
    if (error instanceof Errno) return undefined;
    throw error;
  } finally {
    closeDescriptor(fd);
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
