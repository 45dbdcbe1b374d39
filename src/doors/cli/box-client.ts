/** The other end of a running box's control socket, for commands of the command line. */
import { existsSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { clearStalePath } from '../../sys/index.ts';
import type { ControlGreeting, ControlReply } from '../run/control.ts';
import { controlFolder, controlNames, controlSocketOf } from '../run/control-path.ts';

/** What a person has to be told: no such box, a refusal. */
export class BoxError extends Error {}

const PROTOCOL = 1;
const CONNECT_MS = 5000;

export class BoxClient {
  readonly greeting: ControlGreeting;
  readonly #socket: Socket;
  readonly #lines: AsyncIterator<string>;
  #id = 0;

  private constructor(socket: Socket, lines: AsyncIterator<string>, greeting: ControlGreeting) {
    this.#socket = socket;
    this.#lines = lines;
    this.greeting = greeting;
  }

  /** Connects to a box by its name, its process number or the path of its socket; to the only one there is without. BoxError. */
  static async connect(box: string | undefined): Promise<BoxClient> {
    if (box === undefined) return BoxClient.#only();
    const path = controlSocketOf(box);
    if (/^\d+$/.test(box) && !existsSync(path)) {
      const named = await BoxClient.#byProcess(Number(box));
      if (named !== undefined) return named;
    }
    const socket = connect(path);
    const lines = linesOf(socket);
    const timer = setTimeout(() => socket.destroy(new Error('it does not answer')), CONNECT_MS);
    try {
      const first = await lines.next();
      const greeting = JSON.parse(first.value ?? 'null') as ControlGreeting | null;
      if (greeting?.vfiobox !== PROTOCOL) {
        throw new Error(greeting === null ? 'it closed the connection' : 'it speaks another version of the protocol');
      }
      return new BoxClient(socket, lines, greeting);
    } catch (error) {
      socket.destroy();
      const { code, message } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT' || code === 'ECONNREFUSED') throw new BoxError(`${noBox(box)}; ${running()}`);
      if (code === 'EACCES') throw new BoxError(`${path} belongs to another user`);
      throw new BoxError(`no box answers at ${path}: ${message}`);
    } finally {
      clearTimeout(timer);
    }
  }

  /** The only box that answers. BoxError. */
  static async #only(): Promise<BoxClient> {
    const names = runningBoxes();
    const clients = await Promise.all(names.map((name) => BoxClient.connect(name).catch(() => undefined)));
    const found = names.filter((_, i) => clients[i] !== undefined);
    const [first] = clients.filter((client) => client !== undefined);
    if (found.length === 1) return first!;
    for (const client of clients) client?.close();
    throw new BoxError(
      found.length === 0
        ? `no box is running (none answers in ${controlFolder()}); start one with 'vfiobox run'`
        : `${found.length} boxes are running; say which one with --box: ${found.join(', ')}`,
    );
  }

  /** A box with a name, by its process number. */
  static async #byProcess(pid: number): Promise<BoxClient | undefined> {
    for (const name of runningBoxes().filter((other) => !/^\d+$/.test(other))) {
      const client = await BoxClient.connect(name).catch(() => undefined);
      if (client?.greeting.pid === pid) return client;
      client?.close();
    }
    return undefined;
  }

  /**
   * Asks for a command. `waiting` is called when it takes until something happens in the box. BoxError: refused, or the box has ended.
   */
  async ask(
    command: string,
    given: object,
    waiting: (why: string) => 'wait' | 'leave' = () => 'wait',
  ): Promise<unknown> {
    const id = ++this.#id;
    this.#socket.write(`${JSON.stringify({ id, command, arguments: given })}\n`);
    for (;;) {
      const { value, done } = await this.#next();
      if (done === true) throw new BoxError('the box has ended');
      const reply = JSON.parse(value) as ControlReply;
      if ('waiting' in reply) {
        if (waiting(reply.waiting) === 'leave') return undefined;
      } else if ('error' in reply) {
        throw new BoxError(reply.errno === undefined ? reply.error : `${reply.error} (${reply.errno})`);
      } else return reply.result;
    }
  }

  close(): void {
    this.#socket.destroy();
  }

  async #next(): Promise<IteratorResult<string>> {
    try {
      return await this.#lines.next();
    } catch {
      return { done: true, value: undefined };
    }
  }
}

async function* linesOf(socket: Socket): AsyncGenerator<string, undefined> {
  let rest = '';
  socket.setEncoding('utf8');
  for await (const text of socket) {
    const parts = (rest + text).split('\n');
    rest = parts.pop()!;
    yield* parts;
  }
  return undefined;
}

/** Names and process numbers of the boxes that run now. Sockets that killed boxes left are removed. */
export function runningBoxes(): string[] {
  return controlNames().filter((name) => clearStalePath(controlSocketOf(name)) === 'taken');
}

function noBox(box: string): string {
  return box.includes('/') ? `no box listens at ${box}` : `there is no box '${box}'`;
}

function running(): string {
  const boxes = runningBoxes();
  return boxes.length === 0 ? 'none is running' : `running: ${boxes.join(', ')}`;
}
