/**
 * The control socket of a running box: lines of JSON from people's tools (`vfiobox host … --box`), each a command, each answered by a line.
 * docs/hotplug.md describes it; the commands are in control-commands.ts.
 *
 * Whoever can connect administers the machine: the socket belongs to the user (mode 0600). A client that does not read its answers is
 * cut off; nothing here waits for one.
 */
import { chmodSync } from 'node:fs';
import { Blocked, HostFileError, loadZod, type Machine } from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import {
  acceptStream,
  clearStalePath,
  closeDescriptor,
  EAGAIN,
  listenOnStream,
  Region,
  receiveStream,
  SystemError,
  sendStream,
} from '../../sys/index.ts';
import { type ControlCommand, controlCommands } from './control-commands.ts';
import type { EventLoop } from './event-loop.ts';

export const CONTROL_PROTOCOL = 1;
/** Longest line of a request. */
const LONGEST_LINE = 1 << 20;
/** Bytes of answers that wait for a client. */
const LONGEST_BACKLOG = 64 << 20;
const PIECE = 65536;
const RETRY = 2e6;

/** What a client is told of the box when it connects. */
export interface ControlGreeting {
  readonly vfiobox: typeof CONTROL_PROTOCOL;
  readonly host: string;
  readonly pid: number;
  readonly name: string | undefined;
}

export type ControlReply =
  | { readonly id: number; readonly result: unknown }
  /** It has begun and ends later: one more reply follows. */
  | { readonly id: number; readonly waiting: string }
  | { readonly id: number; readonly error: string; readonly errno?: string };

export class ControlSocket {
  readonly #loop: EventLoop;
  readonly #machine: Machine;
  readonly #greeting: ControlGreeting;
  readonly #failed: (error: unknown, command: string) => void;
  readonly #listener: number;
  readonly #slot: number;
  readonly #clients = new Set<ControlClient>();
  readonly #buffer = new Region(PIECE);

  /** SystemError: cannot listen there; something listens already, or it is no socket. */
  constructor(
    loop: EventLoop,
    machine: Machine,
    path: string,
    name: string | undefined,
    failed: (error: unknown, command: string) => void,
  ) {
    this.#loop = loop;
    this.#machine = machine;
    this.#failed = failed;
    this.#greeting = { vfiobox: CONTROL_PROTOCOL, host: machine.config.name, pid: process.pid, name };
    const state = clearStalePath(path);
    if (state !== 'free') {
      const isTaken = state === 'taken';
      throw new SystemError(isTaken ? `another box has ${path}` : `${path} is not a socket`, isTaken ? 98 : 88);
    }
    try {
      this.#listener = listenOnStream(path);
    } catch (error) {
      throw error instanceof SystemError ? new SystemError(`cannot listen at ${path}`, error.errno) : error;
    }
    // The folder is the user's alone, so nobody else comes in before this.
    chmodSync(path, 0o600);
    this.#slot = loop.add(this.#listener, { ready: () => this.#accept() });
  }

  close(): void {
    for (const client of [...this.#clients]) client.close();
    this.#loop.remove(this.#listener, this.#slot);
    closeDescriptor(this.#listener);
  }

  /** Carries out one line. The answer, or answers, go to `reply`. */
  #line(line: string, reply: (reply: ControlReply) => void): void {
    const z = loadZod();
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (error) {
      reply({ id: 0, error: `not JSON: ${(error as Error).message}` });
      return;
    }
    const request = z
      .strictObject({ id: z.int(), command: z.string(), arguments: z.record(z.string(), z.unknown()).optional() })
      .safeParse(value);
    if (!request.success) {
      reply({ id: 0, error: `not a request: ${firstIssue(request.error)}` });
      return;
    }
    const { id, command } = request.data;
    const entry: ControlCommand | undefined = Object.hasOwn(controlCommands, command)
      ? controlCommands[command]
      : undefined;
    if (entry === undefined) {
      const known = Object.keys(controlCommands).join(', ');
      reply({ id, error: `there is no command '${command}'; there are ${known}` });
      return;
    }
    const given = entry.schema(z).safeParse(request.data.arguments ?? {});
    if (!given.success) {
      reply({ id, error: `${command}: ${firstIssue(given.error)}` });
      return;
    }
    this.#carryOut(id, command, () => entry.run(this.#machine, given.data as never), reply);
  }

  #carryOut(id: number, command: string, run: () => unknown, reply: (reply: ControlReply) => void): void {
    try {
      reply({ id, result: run() ?? null });
    } catch (error) {
      if (error instanceof Blocked) {
        reply({ id, waiting: error.why });
        error.onEnd((end) => reply(end === undefined ? { id, result: error.result } : refusal(id, end)));
      } else if (error instanceof Errno) reply(refusal(id, error));
      else if (error instanceof HostFileError) reply({ id, error: error.message });
      else {
        this.#failed(error, command);
        reply({ id, error: `${command} met a bug of vfiobox; the box has said more on its standard error` });
      }
    }
  }

  #accept(): void {
    for (;;) {
      const fd = acceptStream(this.#listener);
      if (fd < 0) return;
      const client = new ControlClient(fd, this.#loop, this.#buffer, {
        line: (line, reply) => this.#line(line, reply),
        closed: (it) => this.#clients.delete(it),
      });
      this.#clients.add(client);
      client.start(this.#greeting);
    }
  }
}

interface ClientOwner {
  line(line: string, reply: (reply: ControlReply) => void): void;
  closed(client: ControlClient): void;
}

class ControlClient {
  readonly #fd: number;
  readonly #loop: EventLoop;
  readonly #buffer: Region;
  readonly #owner: ClientOwner;
  #slot = -1;
  #input = '';
  #output: Buffer[] = [];
  #backlog = 0;
  #isRetrying = false;
  #isClosed = false;

  constructor(fd: number, loop: EventLoop, buffer: Region, owner: ClientOwner) {
    this.#fd = fd;
    this.#loop = loop;
    this.#buffer = buffer;
    this.#owner = owner;
  }

  start(greeting: ControlGreeting): void {
    this.#slot = this.#loop.add(this.#fd, { ready: () => this.#read() });
    if (this.#slot < 0) this.close();
    else this.#send(greeting);
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    if (this.#slot >= 0) this.#loop.remove(this.#fd, this.#slot);
    closeDescriptor(this.#fd);
    this.#owner.closed(this);
  }

  #read(): void {
    const came: number[] = [];
    const n = receiveStream(this.#fd, this.#buffer.address, PIECE, came, false);
    for (const fd of came) closeDescriptor(fd);
    if (n === -EAGAIN) return;
    if (n <= 0) {
      this.close();
      return;
    }
    this.#input += Buffer.from(this.#buffer.bytes.subarray(0, n)).toString('latin1');
    for (let end = this.#input.indexOf('\n'); end >= 0 && !this.#isClosed; end = this.#input.indexOf('\n')) {
      const line = Buffer.from(this.#input.slice(0, end), 'latin1').toString('utf8');
      this.#input = this.#input.slice(end + 1);
      if (line.trim() !== '') this.#owner.line(line, (reply) => this.#send(reply));
    }
    if (this.#input.length > LONGEST_LINE) this.close();
  }

  #send(value: object): void {
    if (this.#isClosed) return;
    const bytes = Buffer.from(`${JSON.stringify(value)}\n`);
    this.#output.push(bytes);
    this.#backlog += bytes.length;
    if (this.#backlog > LONGEST_BACKLOG) this.close();
    else if (!this.#isRetrying) this.#flush();
  }

  /** Sends what the socket takes; the rest a little later. */
  #flush(): void {
    this.#isRetrying = false;
    while (this.#output.length > 0 && !this.#isClosed) {
      const first = this.#output[0]!;
      const part = first.subarray(0, PIECE);
      this.#buffer.bytes.set(part);
      const n = sendStream(this.#fd, this.#buffer.address, part.length);
      if (n === -EAGAIN) {
        this.#isRetrying = true;
        this.#loop.after(RETRY, () => this.#flush());
        return;
      }
      if (n < 0) {
        this.close();
        return;
      }
      this.#backlog -= n;
      if (n === first.length) this.#output.shift();
      else this.#output[0] = first.subarray(n);
    }
  }
}

function refusal(id: number, error: Errno): ControlReply {
  return { id, error: error.why, errno: error.code };
}

function firstIssue(error: { issues: readonly { path: PropertyKey[]; message: string }[] }): string {
  const { path, message } = error.issues[0]!;
  return path.length === 0 ? message : `at ${path.map(String).join('.')}: ${message}`;
}
