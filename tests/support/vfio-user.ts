/** A vfio-user server of ours in a process of its own, and a peer that sends it whatever it likes. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  bufferLength,
  defaultLimits,
  encodeMessage,
  type Message,
  MessageStream,
} from '../../src/doors/vfio-user/codec.ts';
import { encodeVersion, ownCapabilities } from '../../src/doors/vfio-user/negotiation.ts';
import {
  closeDescriptor,
  connectStream,
  EAGAIN,
  Region,
  receiveStream,
  sendStream,
  sendStreamDescriptors,
  waitFor,
} from '../../src/sys/index.ts';
import { scratch, tree } from './box.ts';

export interface RunningServer {
  readonly pid: number;
  readonly path: string;
  readonly child: ChildProcess;
  /** What it wrote on stderr so far. */
  errors(): string;
  /** How many descriptors it has. */
  descriptors(): number;
  /** Bytes of memory it has. */
  resident(): number;
}

/** Starts `vfiobox serve` and waits until it listens; it is ended with the test. */
export async function startServer(
  t: TestContext,
  device: readonly string[] = ['--model', 'testdev'],
): Promise<RunningServer> {
  const path = join(scratch(t), 'dev.sock');
  const child = spawn(join(tree, 'bin/vfiobox'), ['serve', ...device, '--socket-path', path], {
    cwd: tree,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let errors = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    if (errors.length < 100_000) errors += text;
  });
  t.after(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const over = new Promise((done) => child.once('exit', done));
    child.kill('SIGTERM');
    const slow = setTimeout(() => child.kill('SIGKILL'), 5000);
    await over;
    clearTimeout(slow);
  });
  for (let i = 0; !isListening(path); i++) {
    if (child.exitCode !== null || i > 1000) throw new Error(`vfiobox serve does not listen: ${errors}`);
    await sleep(10);
  }
  const pid = child.pid!;
  return {
    pid,
    path,
    child,
    errors: () => errors,
    descriptors: () => readdirSync(`/proc/${pid}/fd`).length,
    resident: () => Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[1]) * 4096,
  };
}

/** Tries to connect; the file is there a moment before somebody listens. */
function isListening(path: string): boolean {
  try {
    closeDescriptor(connectStream(path));
    return true;
  } catch {
    return false;
  }
}

/** How many descriptors the server has when it is at rest: the number that stays the same for a while. */
export async function descriptorsAtRest(server: RunningServer): Promise<number> {
  let number = server.descriptors();
  for (let same = 0; same < 15; ) {
    await sleep(20);
    const now = server.descriptors();
    same = now === number ? same + 1 : 0;
    number = now;
  }
  return number;
}

/** Waits until the server has no more descriptors than before, and fails when it always has. */
export async function expectDescriptors(server: RunningServer, before: number): Promise<void> {
  for (let i = 0; i < 300 && server.descriptors() > before; i++) await sleep(10);
  assert.ok(server.descriptors() <= before, `${server.descriptors()} descriptors of the server, ${before} before`);
}

const input = new Region(bufferLength(defaultLimits));
const output = new Region(4 << 20);

/** A connection without manners. One is used at a time. */
export class RawPeer {
  readonly fd: number;
  #stream = new MessageStream(input.bytes, { maxMsgFds: 253, maxDataXferSize: defaultLimits.maxDataXferSize });
  #nextId = 0;
  isClosed = false;

  constructor(path: string) {
    this.fd = connectStream(path);
  }

  /** Connects and negotiates. */
  static async greet(path: string): Promise<RawPeer> {
    const peer = new RawPeer(path);
    const capabilities = { ...ownCapabilities, twin_socket: { supported: false } };
    const reply = peer.ask(1, encodeVersion({ major: 0, minor: 1, capabilities }));
    assert.equal(reply?.error, 0, 'VERSION is accepted');
    return peer;
  }

  /** Sends as much as the other side takes within two seconds. False: it is gone, or takes no more. */
  send(bytes: Uint8Array, descriptors: readonly number[] = []): boolean {
    output.bytes.set(bytes);
    for (let done = 0; done < bytes.length; ) {
      const n =
        done === 0 && descriptors.length > 0
          ? sendStreamDescriptors(this.fd, output.address, bytes.length, descriptors)
          : sendStream(this.fd, output.address + done, bytes.length - done);
      if (n > 0) done += n;
      else if (n !== -EAGAIN || !waitFor(this.fd, 'write', -1, 2000)) return false;
    }
    return true;
  }

  /** The next message; undefined: the other side closed (`isClosed`), or said nothing in time. Its payload is a copy. */
  next(milliseconds = 2000): Message | undefined {
    for (;;) {
      const message = this.#stream.next();
      if (message !== undefined) {
        for (const fd of message.descriptors) closeDescriptor(fd);
        return { ...message, payload: message.payload.slice() };
      }
      if (this.isClosed || !waitFor(this.fd, 'read', -1, milliseconds)) return undefined;
      const { offset, length } = this.#stream.room();
      const fds: number[] = [];
      const n = receiveStream(this.fd, input.address + offset, length, fds, false);
      if (n > 0) this.#stream.received(n, fds);
      else if (n !== -EAGAIN) this.isClosed = true;
    }
  }

  /** A command and its reply. Undefined: the connection was closed, or there was none. */
  ask(
    command: number,
    payload: Uint8Array = new Uint8Array(0),
    descriptors: readonly number[] = [],
  ): Message | undefined {
    const id = this.#nextId++ & 0xffff;
    this.send(encodeMessage({ id, command }, payload), descriptors);
    const reply = this.next();
    if (reply !== undefined) {
      assert.ok(reply.isReply);
      assert.deepEqual([reply.id, reply.command], [id, command], 'the reply belongs to the command');
      if (reply.error !== 0) assert.equal(reply.payload.length, 0, 'an error reply is a header only');
    }
    return reply;
  }

  /** Whether the server still understands us. */
  isUnderstood(): boolean {
    return this.ask(4, words(16, 0, 0, 0))?.payload.length === 16;
  }

  /** Whether the other side closes the connection, within two seconds. */
  getsClosed(): boolean {
    while (this.next() !== undefined) {
      // Answers to what came before.
    }
    return this.isClosed;
  }

  close(): void {
    closeDescriptor(this.fd);
  }
}

/** Little-endian words; a bigint takes two. */
export function words(...values: (number | bigint)[]): Uint8Array {
  const flat = values.flatMap((v) => (typeof v === 'bigint' ? [Number(v & 0xffff_ffffn), Number(v >> 32n)] : [v]));
  return new Uint8Array(Uint32Array.from(flat).buffer);
}

export function joined(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}
