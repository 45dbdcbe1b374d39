/** The control socket of a running box, by clients that speak well and badly. */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { Blocked, loadHost, Machine } from '../../host/index.ts';
import {
  closeDescriptor,
  connectStream,
  EAGAIN,
  Region,
  receiveStream,
  SystemError,
  sendStream,
} from '../../sys/index.ts';
import { ControlSocket } from './control.ts';
import { EventLoop } from './event-loop.ts';

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
const path = join(folder, 'control');
const loop = new EventLoop();
const machine = new Machine(loadHost('default'), {
  clock: loop,
  allocateShared: (_name, length) => {
    const memory = new Uint8Array(length);
    return { length, bytes: () => memory, revoke() {}, restore() {}, close() {} };
  },
  log() {},
});
const failures: unknown[] = [];
const control = new ControlSocket(loop, machine, path, 'lab', (error) => failures.push(error));
after(() => {
  control.close();
  loop.close();
  rmSync(folder, { recursive: true, force: true });
});

function settle(): void {
  for (let i = 0; i < 20; i++) loop.turn(0);
}

class Client {
  readonly fd = connectStream(path);
  readonly #buffer = new Region(1 << 20);
  #rest = '';

  constructor() {
    assert.deepEqual(this.take(), { vfiobox: 1, host: 'default', pid: process.pid, name: 'lab' });
  }

  send(text: string): void {
    const bytes = Buffer.from(text);
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + 65536);
      this.#buffer.bytes.set(part);
      const n = sendStream(this.fd, this.#buffer.address, part.length);
      if (n === -EAGAIN) settle();
      else if (n < 0) return;
      else at += n;
    }
    settle();
  }

  ask(command: string, given?: object): Record<string, unknown> {
    this.send(`${JSON.stringify({ id: 7, command, arguments: given })}\n`);
    const reply = this.take() as Record<string, unknown>;
    assert.equal(reply['id'], 7);
    return reply;
  }

  /** The next line; undefined: there is none, null: the connection has ended. */
  take(): unknown {
    settle();
    for (;;) {
      const end = this.#rest.indexOf('\n');
      if (end >= 0) {
        const line = this.#rest.slice(0, end);
        this.#rest = this.#rest.slice(end + 1);
        return JSON.parse(line);
      }
      const n = receiveStream(this.fd, this.#buffer.address, this.#buffer.length, [], false);
      if (n === -EAGAIN) return undefined;
      if (n <= 0) return null;
      this.#rest += Buffer.from(this.#buffer.bytes.subarray(0, n)).toString('utf8');
      settle();
    }
  }

  close(): void {
    closeDescriptor(this.fd);
    settle();
  }
}

test('the socket is the user’s alone; a second box, or something else at its path, is refused', () => {
  assert.equal(statSync(path).mode & 0o777, 0o600);
  const other = (at: string) => () => new ControlSocket(loop, machine, at, undefined, () => {});
  assert.throws(other(path), (error) => error instanceof SystemError && /another box/.test(error.message));
  const file = join(folder, 'file');
  writeFileSync(file, '');
  assert.throws(other(file), (error) => error instanceof SystemError && /not a socket/.test(error.message));
  assert.ok(existsSync(file));
});

test('plug, bind, unbind, unplug: answers, refusals with their errno, and what changed', () => {
  const client = new Client();
  const at = '0000:00:05.0';
  const plugged = client.ask('plug', { entry: { at: '00:05.0', model: 'edu' } })['result'] as Record<string, unknown>;
  assert.deepEqual([plugged['address'], plugged['model'], plugged['driver']], [at, 'edu', null]);
  assert.deepEqual(client.ask('bind', { function: at, driver: 'vfio-pci' }), { id: 7, result: null });
  assert.equal(machine.drivers.driverOf(machine.pci.find(at)!), 'vfio-pci');
  assert.deepEqual(client.ask('bind', { function: at, driver: 'vfio-pci' }), { id: 7, result: null });
  assert.equal(client.ask('bind', { function: at, driver: 'nobody' })['errno'], 'ENODEV');
  assert.deepEqual(client.ask('unbind', { function: at }), { id: 7, result: null });
  assert.equal(client.ask('unbind', { function: at })['errno'], 'ENODEV');
  const lines = (client.ask('ls')['result'] as { lines: string[] }).lines;
  assert.match(lines.find((line) => line.startsWith('00:05.0')) ?? '', /edu +\(no driver\)/);
  assert.match(JSON.stringify(client.ask('groups')), /00:05\.0/);
  assert.deepEqual(client.ask('unplug', { function: '00:05.0' }), { id: 7, result: null });
  assert.equal(client.ask('unplug', { function: '00:05.0' })['errno'], 'ENODEV');
  assert.deepEqual(client.ask('held')['result'], { ...machine.invariants() });
  const names = (client.ask('commands')['result'] as { name: string }[]).map(({ name }) => name);
  assert.ok(['plug', 'unplug', 'bind', 'unbind', 'ls', 'groups'].every((name) => names.includes(name)));
  client.close();
});

test('what is not a request is answered with a reason, and the connection goes on', () => {
  const client = new Client();
  const error = (text: string): unknown => {
    client.send(`${text}\n`);
    return (client.take() as Record<string, unknown>)['error'];
  };
  assert.match(String(error('{')), /^not JSON/);
  assert.match(String(error('[]')), /^not a request/);
  assert.match(String(error('{"id":1}')), /^not a request: at command/);
  assert.match(String(error('{"id":1,"command":"ls","more":1}')), /^not a request/);
  assert.match(String(error('{"id":1,"command":"toString"}')), /no command 'toString'; there are/);
  assert.match(String(error('{"id":1,"command":"bind"}')), /^bind: at function/);
  assert.match(String(error('{"id":1,"command":"unbind","arguments":{"function":"x"}}')), /expected an address/);
  assert.match(String(error('{"id":1,"command":"plug","arguments":{"entry":{"at":"00:05.0"}}}')), /at model/);
  assert.match(
    String(error('{"id":1,"command":"plug","arguments":{"entry":{"at":"00:05.0","model":"no"}}}')),
    /no device model/,
  );
  assert.deepEqual(Object.keys(client.ask('ls')), ['id', 'result']);
  assert.deepEqual(failures, []);
  client.close();
});

test('a request in pieces, several in one, and one that never ends', () => {
  const client = new Client();
  const request = JSON.stringify({ id: 1, command: 'held' });
  client.send(request.slice(0, 9));
  assert.equal(client.take(), undefined);
  client.send(`${request.slice(9)}\n\n${request}\n`);
  assert.ok(client.take());
  assert.ok(client.take());
  client.send('x'.repeat((1 << 20) + 70_000));
  assert.equal(client.take(), null);
  client.close();
});

test('what waits says so, and answers at the end; who leaves meanwhile leaves it going on', () => {
  const client = new Client();
  const { takeOut } = machine.hotplug;
  const calls: Blocked[] = [];
  machine.hotplug.takeOut = () => {
    calls.push(new Blocked(0, 'somebody holds it'));
    throw calls.at(-1)!;
  };
  try {
    const ask = { id: 3, command: 'unplug', arguments: { function: '00:04.0' } };
    client.send(`${JSON.stringify(ask)}\n`);
    assert.deepEqual(client.take(), { id: 3, waiting: 'somebody holds it' });
    assert.equal(client.take(), undefined);
    assert.ok(client.ask('held')['result'], 'others go on');
    calls[0]!.end();
    assert.deepEqual(client.take(), { id: 3, result: 0 });
    client.send(`${JSON.stringify(ask)}\n`);
    client.close();
    calls[1]!.end();
    settle();
  } finally {
    machine.hotplug.takeOut = takeOut;
  }
});

test('a client that does not read is not waited for', () => {
  const slow = new Client();
  for (let i = 0; i < 120; i++) slow.send('{"id":1,"command":"ls"}\n');
  const quick = new Client();
  assert.ok(quick.ask('held')['result']);
  // What it missed is there when it reads again.
  let count = 0;
  const deadline = Date.now() + 5000;
  while (count < 120 && Date.now() < deadline) {
    const value = slow.take();
    if (value === undefined) loop.turn(5);
    else count++;
  }
  assert.equal(count, 120);
  slow.close();
  quick.close();
});
