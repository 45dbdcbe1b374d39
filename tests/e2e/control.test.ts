/** A running box, changed from outside by `vfiobox host … --box`, as a program in it sees it. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { boxed, needs, type Outcome, provided, run, scratch, tree } from '../support/box.ts';
import { EDU, HOST } from './machine.ts';

needs('python');

const hold = join(tree, 'tests/e2e/hold.py');

/** A box with a shell in it that carries out one line after the other. */
class Shell {
  readonly folder: string;
  readonly #child: ChildProcess;
  readonly ended: Promise<number | null>;
  stderr = '';
  #text = '';
  #waiting: (() => void) | undefined;

  constructor(t: TestContext, options: string[] = []) {
    this.folder = scratch(t);
    const command = boxed(['sh', '-s'], { host: HOST, options: ['--check-left', ...options] });
    this.#child = spawn(command[0]!, command.slice(1), { env: this.env, stdio: ['pipe', 'pipe', 'pipe'] });
    t.after(() => this.#child.kill('SIGKILL'));
    this.ended = new Promise((resolve) => this.#child.on('close', resolve));
    this.#child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      this.#text += text;
      this.#waiting?.();
    });
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text;
    });
  }

  get env() {
    return { ...process.env, XDG_RUNTIME_DIR: this.folder };
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** The next line of output. */
  async line(): Promise<string> {
    const deadline = Date.now() + 15_000;
    for (;;) {
      const end = this.#text.indexOf('\n');
      if (end >= 0) {
        const line = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 1);
        return line;
      }
      if (Date.now() > deadline) throw new Error(`no line came; stderr: ${this.stderr}`);
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
        setTimeout(resolve, 200);
      });
    }
  }

  /** Has the shell run a command, whose output is one line. */
  ask(command: string): Promise<string> {
    this.#child.stdin!.write(`${command}\n`);
    return this.line();
  }

  /** `vfiobox host …` from outside. */
  host(...args: string[]): Promise<Outcome> {
    return run([join(tree, 'bin/vfiobox'), 'host', ...args], { env: this.env });
  }

  async end(): Promise<void> {
    this.#child.stdin!.end();
    const status = await this.ended;
    assert.equal(status, 0, this.stderr);
  }
}

test('plug, bind, unbind, unplug: a program in the box sees each of them; the socket goes with the box', {
  timeout: 60_000,
}, async (t) => {
  const shell = new Shell(t, ['--name', 'lab']);
  assert.equal(await shell.ask('echo ready'), 'ready');
  const socket = join(shell.folder, 'vfiobox/lab.sock');
  assert.equal(statSync(socket).mode & 0o777, 0o600);
  assert.equal(statSync(join(shell.folder, 'vfiobox')).mode & 0o777, 0o700);
  const at = '0000:00:06.0';
  const driver = `basename $(readlink /sys/bus/pci/devices/${at}/driver || echo none)`;
  const plugged = await shell.host('plug', '--box', 'lab', '--model', 'edu', '--at', at, '--driver', 'vfio-pci');
  assert.match(plugged.stdout, /^0000:00:06.0: vfio-pci, group \d+\n$/, plugged.story);
  assert.equal(await shell.ask(driver), 'vfio-pci');
  assert.match(await shell.ask(`cat /sys/bus/pci/devices/${at}/resource | head -1`), /^0x0*[1-9a-f]/);
  assert.equal((await shell.host('unbind', at)).status, 0);
  assert.equal(await shell.ask(driver), 'none');
  assert.equal((await shell.host('bind', at, '--box', String(shell.pid))).status, 0, 'by the process number, too');
  assert.equal(await shell.ask(driver), 'vfio-pci');
  const boxes = await shell.host('boxes');
  assert.equal(boxes.stdout, `lab  pid ${shell.pid}  ${HOST}\n`);
  const list = await shell.host('ls', '--box', socket);
  assert.match(list.stdout, /^00:06\.0 .*edu +vfio-pci +group \d+$/m, list.story);
  assert.match((await shell.host('groups', '--box', 'lab')).stdout, /00:06\.0/);
  assert.equal((await shell.host('unplug', at)).status, 0);
  assert.equal(await shell.ask(`ls /sys/bus/pci/devices | grep -c ${at}; true`), '0');
  await shell.end();
  assert.equal(existsSync(join(shell.folder, 'vfiobox')), false);
});

test('unplug of a device in use waits for its user; --no-wait does not; --pull takes it away at once', {
  timeout: 60_000,
}, async (t) => {
  if (provided(t, 'python') === undefined) return;
  const shell = new Shell(t);
  await shell.ask(`mkfifo ${shell.folder}/go; echo`);
  const holder = `(python3 ${hold} ${EDU} <${shell.folder}/go; echo closed) & exec 7>${shell.folder}/go`;
  assert.equal(await shell.ask(holder), 'held');
  const started = performance.now();
  const early = await shell.host('unplug', EDU, '--no-wait');
  assert.equal(early.status, 0, early.story);
  assert.match(early.stderr, /begun, not waiting: a program holds 0000:00:04.0/);
  const waiting = shell.host('unplug', EDU);
  await new Promise((resolve) => setTimeout(resolve, 1000));
  assert.equal(await shell.ask(`ls /sys/bus/pci/devices | grep -c ${EDU}`), '1', 'others in the box go on');
  assert.equal(await shell.ask('echo >&7'), 'closed');
  const late = await waiting;
  assert.equal(late.status, 0, late.story);
  assert.match(late.stderr, /waiting: a program holds/, late.story);
  assert.ok(performance.now() - started > 900);
  assert.equal(await shell.ask(`ls /sys/bus/pci/devices | grep -c ${EDU}; true`), '0');
  // The slot is free for another card.
  assert.equal((await shell.host('plug', '--model', 'edu', '--at', EDU, '--driver', 'vfio-pci')).status, 0);
  assert.equal(await shell.ask(holder), 'held');
  const pulled = await shell.host('unplug', EDU, '--pull');
  assert.equal(pulled.status, 0, pulled.story);
  assert.equal(pulled.stderr, '');
  const refused = await shell.host('plug', '--model', 'edu', '--at', EDU);
  assert.equal(refused.status, 125);
  assert.match(refused.stderr, /a program still holds what was at 0000:00:04.0/);
  assert.equal(await shell.ask('echo >&7'), 'closed');
  await shell.end();
});

test('wrong usage: no box, an unknown one, two to choose from, bad entries', { timeout: 60_000 }, async (t) => {
  const first = new Shell(t, ['--name', 'one']);
  assert.equal(await first.ask('echo ready'), 'ready');
  const say = async (...args: string[]): Promise<string> => {
    const outcome = await first.host(...args);
    assert.equal(outcome.status, 125, outcome.story);
    assert.equal(outcome.stderr.trim().split('\n').length, 1, outcome.story);
    return outcome.stderr;
  };
  assert.match(await say('bind', EDU, '--box', 'two'), /there is no box 'two'; running: one/);
  assert.match(await say('bind', EDU, '--box', '/nowhere/x'), /no box listens at \/nowhere\/x/);
  assert.match(await say('bind', EDU, 'nobody'), /there is no driver 'nobody'/);
  assert.match(await say('bind', 'edu'), /expected an address/);
  assert.match(await say('plug'), /nothing to plug/);
  assert.match(await say('plug', '--model', 'nothing', '--at', '00:06.0'), /no device model 'nothing'/);
  assert.match(await say('plug', '/nowhere.json'), /cannot read '\/nowhere.json': ENOENT/);
  const taken = await run(boxed(['true'], { options: ['--name', 'one'] }), { env: first.env });
  assert.equal(taken.status, 125, taken.story);
  assert.match(taken.stderr, /another box has/);
  const named = await run(boxed(['true'], { options: ['--name', '1'] }), { env: first.env });
  assert.match(named.stderr, /'1' is no name for a box/);
  const other = spawn(boxed([])[0]!, boxed(['sleep', '20']).slice(1), { env: first.env, stdio: 'ignore' });
  t.after(() => other.kill('SIGTERM'));
  for (let i = 0; i < 50 && !existsSync(join(first.folder, `vfiobox/${other.pid}.sock`)); i++) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.match(await say('bind', EDU), /2 boxes are running; say which one with --box/);
  other.kill('SIGTERM');
  await first.end();
});

test('a box whose folder for sockets cannot be had runs without one, unless it was asked for', {
  timeout: 60_000,
}, async (t) => {
  const folder = scratch(t);
  const env = { XDG_RUNTIME_DIR: join(folder, 'not/there') };
  const silent = await run(boxed(['true']), { env });
  assert.equal(silent.status, 0, silent.story);
  assert.equal(silent.stderr, '');
  const named = await run(boxed(['true'], { options: ['--name', 'x'] }), { env });
  assert.equal(named.status, 125, named.story);
  const path = join(folder, 'here');
  const given = await run(boxed(['test', '-S', path], { options: ['--control', path] }), { env });
  assert.equal(given.status, 0, given.story);
  assert.equal(existsSync(path), false);
});
