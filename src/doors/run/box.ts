/**
 * One box: a machine, its door for programs, its loop. Composed here and run in one thread.
 */
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Blocked, explainDma, type HostConfig, type Invariants, Machine } from '../../host/index.ts';
import {
  closeDescriptor,
  createEventfd,
  NativeShared,
  raiseDescriptorLimit,
  readEventfd,
  SystemError,
} from '../../sys/index.ts';
import { CallDoor } from './call-door.ts';
import { openCharacter } from './character.ts';
import { Connections } from './connections.ts';
import { ControlSocket } from './control.ts';
import { FetchedDescriptors } from './descriptors.ts';
import { EventLoop } from './event-loop.ts';
import { Handles } from './handles.ts';
import { existingPrefixes, mountPlan } from './mount-plan.ts';
import { Processes } from './processes.ts';
import { type CallRecord, explain, explainWait, say, TraceError, TraceFile } from './reporter.ts';
import { TreeFolder } from './tree-folder.ts';

export interface BoxOptions {
  readonly host: HostConfig;
  /** An empty folder of this run: the tree, the socket and the mount plan go there. */
  readonly folder: string;
  readonly explain: boolean;
  readonly trace: string | undefined;
  readonly seed: number | undefined;
  /** The control socket; `isWanted`: somebody asked for it, so that not having it is an error. */
  readonly control?: { readonly path: string; readonly name: string | undefined; readonly isWanted: boolean };
  /** Whether a mount plan is wanted. */
  readonly plan: boolean;
}

/** What somebody needs to know to start a program in the box. */
export interface BoxAddress {
  readonly socket: string;
  /** Absolute sysfs prefixes that the tree replaces, longest first. */
  readonly prefixes: readonly string[];
  /** Path of the mount plan, undefined when none was wanted. */
  readonly plan: string | undefined;
  /** Whether the control socket is there. */
  readonly hasControl: boolean;
  /** Nodes outside of /dev/vfio and /dev/iommu that are the box's. */
  readonly nodes: readonly string[];
  /** Eventfd that ends the box when it is written to. */
  readonly stop: number;
}

export interface BoxEnd {
  /** What was left after everything was released; all zero unless there is a bug. */
  readonly left: Invariants;
  /** Why the trace is not complete. */
  readonly traceError: string | undefined;
}

export class Box {
  readonly machine: Machine;
  readonly address: BoxAddress;
  readonly #loop = new EventLoop();
  readonly #shared = new Map<string, NativeShared>();
  readonly #handles: Handles;
  readonly #connections: Connections;
  readonly #trace: TraceFile | undefined;
  readonly #tree: TreeFolder;
  readonly #stopSlot: number;
  readonly #control: ControlSocket | undefined;
  #traceError: string | undefined;

  /** Builds the machine, writes the tree and listens. HostFileError, SystemError, TraceError. */
  constructor(options: BoxOptions) {
    const { folder } = options;
    raiseDescriptorLimit();
    if (options.trace !== undefined) this.#trace = new TraceFile(options.trace, () => this.#loop.now());
    this.machine = new Machine(options.host, {
      clock: this.#loop,
      allocateShared: (name, length) => this.#allocate(name, length),
      log: (text) => say(`vfiobox: ${text}\n`),
      seed: options.seed,
      ownershipOf: (path) => this.#tree.ownership(path),
      openCharacter: (target) => openCharacter(this.#loop, target),
    });
    this.#handles = new Handles(this.#loop, {
      closed: () => {},
      written: (handle, bytes) => {
        try {
          handle.file.position += handle.file.write(handle.opener, bytes, handle.file.position);
        } catch (error) {
          // Nobody waits for the end of such a write.
          if (error instanceof Blocked) return;
          say(`vfiobox: a write to ${handle.file.path} failed, and the program was not told: ${error}\n`);
        }
      },
      failed: (error, handle) => this.#bug(error, `the release of ${handle.file.path}`),
    });
    const descriptors = new FetchedDescriptors(this.#loop, (fd) => this.#handles.find(fd));
    const door = new CallDoor(
      this.machine,
      this.#handles,
      descriptors,
      {
        call: this.#callReport(options.explain),
        waits: options.explain ? (record) => say(explainWait(record)) : undefined,
        failed: (error, program, call) =>
          this.#bug(error, `${call} of ${program.process.name}[${program.pid}]; its connection is closed`),
      },
      (pid) => processes.lockedPages(pid),
    );
    const processes: Processes = new Processes(this.machine, descriptors, this.#shared, door);
    this.#tree = new TreeFolder(folder);
    this.machine.tree.attach(this.#tree);
    const socket = join(folder, 'socket');
    this.#connections = new Connections(this.#loop, door, processes, socket);
    if (process.getuid?.() === 0) chmodSync(socket, 0o666);
    const prefixes = existingPrefixes(this.machine.prefixes, folder).sort((a, b) => b.length - a.length);
    const stop = createEventfd();
    this.#stopSlot = this.#loop.add(stop, { ready: () => readEventfd(stop) > 0 && this.#loop.stop() });
    const plan = options.plan ? join(folder, 'plan') : undefined;
    if (plan !== undefined) {
      const stash = join(folder, 'real');
      mkdirSync(stash);
      writeFileSync(plan, `${mountPlan(prefixes, folder, stash).join('\n')}\n`);
    }
    this.#control = this.#listenForControl(options.control);
    this.address = {
      socket,
      prefixes,
      plan,
      stop,
      hasControl: this.#control !== undefined,
      nodes: this.machine.otherNodes,
    };
    this.#loop.onError = (error) => this.#bug(error, 'an event');
    this.#loop.onIdle = () => {
      this.#flush();
    };
    this.#trace?.start();
    if (options.explain) explainDma(this.machine, (line) => say(`vfiobox: ${line}\n`));
  }

  /** Serves programs until somebody writes to `address.stop`; then releases everything. */
  run(): BoxEnd {
    this.#loop.run();
    this.#control?.close();
    this.#connections.closeAll();
    this.#handles.closeAll();
    const left = this.machine.counters.now();
    this.#tree.removeAll();
    try {
      this.#trace?.close();
    } catch (error) {
      this.#traceFailed(error);
    }
    this.#loop.remove(this.address.stop, this.#stopSlot);
    closeDescriptor(this.address.stop);
    this.#loop.close();
    return { left, traceError: this.#traceError };
  }

  /** SystemError: it was asked for and cannot be had. */
  #listenForControl(control: BoxOptions['control']): ControlSocket | undefined {
    if (control === undefined) return undefined;
    try {
      return new ControlSocket(this.#loop, this.machine, control.path, control.name, (error, command) =>
        this.#bug(error, `the command ${command}`),
      );
    } catch (error) {
      if (control.isWanted || !(error instanceof SystemError)) throw error;
      return undefined;
    }
  }

  #allocate(name: string, length: number): NativeShared {
    const memory = new NativeShared(name, length);
    this.#shared.set(memory.key, memory);
    return memory;
  }

  #callReport(isExplaining: boolean): ((record: CallRecord) => void) | undefined {
    const trace = this.#trace;
    if (!isExplaining && trace === undefined) return undefined;
    return (record) => {
      if (isExplaining && record.result < 0) say(explain(record));
      if (trace === undefined) return;
      trace.call(record);
      if (trace.isLarge) this.#flush();
    };
  }

  #flush(): void {
    try {
      this.#trace?.flush();
    } catch (error) {
      this.#traceFailed(error);
    }
  }

  #traceFailed(error: unknown): void {
    if (!(error instanceof TraceError)) throw error;
    this.#traceError ??= error.message;
  }

  #bug(error: unknown, during: string): void {
    const stack = error instanceof Error ? error.stack : String(error);
    say(`vfiobox: internal error during ${during}\n${stack}\n`);
  }
}
