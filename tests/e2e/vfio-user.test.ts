/**
 * QEMU's `vfio-user-pci` on `vfiobox serve`: stock Linux guests drive the box's devices, with memory that QEMU shares and memory that
 * it keeps to itself, behind the guest's IOMMU, after reboots and after the server's death.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { needs, provided, run, scratch, tree } from '../support/box.ts';
import { bootGuest, compileGuestProgram, type GuestOptions, type GuestOutcome } from '../support/guest/boot.ts';

needs('guest', 'cc', 'tshark');

const TIMEOUT = 120_000;

interface Server {
  socket: string;
  /** What it said on stderr until now. */
  said(): string;
  /** Ends it; gives the exit status, or the signal's name. */
  end(signal: NodeJS.Signals): Promise<number | string>;
}

/** Starts `vfiobox serve` and waits until it listens. */
async function serve(t: TestContext, socket: string, options: readonly string[]): Promise<Server> {
  const args = ['serve', ...options, '--socket-path', socket];
  const child = spawn(join(tree, 'bin/vfiobox'), args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (piece: string) => {
      text += piece;
    });
  }
  const gone = new Promise<number | string>((resolve) => {
    child.on('exit', (status, signal) => resolve(signal ?? status ?? 0));
  });
  t.after(() => child.kill('SIGKILL'));
  for (let turn = 0; !/listen|ready|serving/i.test(text) && !(turn > 20 && existsSync(socket)); turn++) {
    if (child.exitCode !== null || turn === 300) assert.fail(`the server does not listen: ${text}`);
    await sleep(50);
  }
  return {
    socket,
    said: () => text,
    end: (signal) => {
      child.kill(signal);
      return gone;
    },
  };
}

/** QEMU's arguments for a device at this socket. */
function device(server: Server): string[] {
  const socket = { type: 'unix', path: server.socket };
  return ['-device', JSON.stringify({ driver: 'vfio-user-pci', socket, addr: '04.0' })];
}

/** A guest program of tests/support/guest: a script by its file name, or the name of a C program. */
function program(name: string, folder: string): string {
  return name.endsWith('.sh') ? join(tree, 'tests/support/guest', name) : compileGuestProgram(name, folder);
}

type Guest = Pick<GuestOptions, 'modules' | 'sharedMemory' | 'iommu' | 'files' | 'reboots'> & { test: string };

async function boot(t: TestContext, server: Server, guest: Guest): Promise<GuestOutcome> {
  const folder = scratch(t);
  const outcome = await bootGuest({
    ...guest,
    guest: provided(t, 'guest')!,
    scratch: folder,
    test: program(guest.test, folder),
    devices: device(server),
    timeout: TIMEOUT - 30_000,
  });
  const story = `${outcome.story}\n--- server\n${server.said()}`;
  return { ...outcome, story };
}

/** The guest's test held, and QEMU had nothing to say. */
function holds(outcome: GuestOutcome, sum?: string): void {
  const { story } = outcome;
  assert.equal(outcome.timedOut, false, story);
  assert.deepEqual(
    outcome.console.filter((line) => line.includes('WRONG')),
    [],
    story,
  );
  assert.equal(outcome.testStatus, 0, story);
  if (sum !== undefined) assert.ok(outcome.console.includes(sum), story);
  assert.equal(outcome.status, 0, story);
  // What QEMU's own IOMMU says when the guest's program provokes a fault is no complaint about the device.
  const strange = outcome.stderr
    .split('\n')
    .filter((line) => line !== '' && !/vtd_iova_to_|vtd_iommu_translate|New fault is not recorded/.test(line));
  assert.deepEqual(strange, [], story);
}

function ready(t: TestContext): boolean {
  return provided(t, 'guest') !== undefined && provided(t, 'cc') !== undefined;
}

const bare = { test: 'edu', modules: ['uio_pci_generic'] };
const BARE_SUM = 'edu: 39 checks, 0 wrong';
const vfioModules = ['vfio_iommu_type1', 'vfio-pci'];

test('edu: registers, DMA both ways by physical address, INTx; then the same server for a guest with private memory', {
  timeout: TIMEOUT,
}, async (t) => {
  if (!ready(t)) return;
  const server = await serve(t, join(scratch(t), 'edu.sock'), ['--model', 'edu']);
  holds(await boot(t, server, { ...bare, sharedMemory: true }), BARE_SUM);
  // Plain -m: nothing to map, every DMA is a message to QEMU.
  holds(await boot(t, server, bare), BARE_SUM);
  assert.equal(await server.end('SIGTERM'), 0, server.said());
  assert.equal(existsSync(server.socket), false);
});

test('a guest whose memory is a file that QEMU does not share: the data is right, and the server says what to change', {
  timeout: TIMEOUT,
}, async (t) => {
  if (!ready(t)) return;
  const server = await serve(t, join(scratch(t), 'edu.sock'), ['--model', 'edu']);
  holds(await boot(t, server, { ...bare, sharedMemory: 'off' }), BARE_SUM);
  const notices = server.said().match(/the client's memory is private to it .*share=on/g);
  assert.equal(notices?.length, 1, server.said());
  // The next guest shares its memory: there is nothing to say.
  holds(await boot(t, server, { ...bare, sharedMemory: true }), BARE_SUM);
  assert.equal(server.said().match(/share=on/g)?.length, 1, server.said());
});

test('a guest with an IOMMU: VFIO in the guest, MSI, a refused DMA is a DMAR fault there', {
  timeout: TIMEOUT,
}, async (t) => {
  if (!ready(t)) return;
  const server = await serve(t, join(scratch(t), 'edu.sock'), ['--model', 'edu']);
  const files = { 't/program': compileGuestProgram('vfio-edu', scratch(t)) };
  const outcome = await boot(t, server, {
    test: 'faults.sh',
    files,
    modules: vfioModules,
    sharedMemory: true,
    iommu: true,
  });
  holds(outcome, 'edu: 19 checks, 0 wrong');
  const fault = outcome.console.find((line) => /DMAR: \[DMA Write .*fault addr 0x100000 /.test(line));
  assert.ok(fault, outcome.story);
  t.diagnostic(fault);
});

test('testdev behind a guest IOMMU: maps at high addresses, MSI-X, mapped BAR, reset; a DMA to nowhere fails at the device', {
  timeout: TIMEOUT,
}, async (t) => {
  if (!ready(t)) return;
  const server = await serve(t, join(scratch(t), 'testdev.sock'), ['--model', 'testdev']);
  const files = { 't/program': compileGuestProgram('vfio-testdev', scratch(t)) };
  const outcome = await boot(t, server, {
    test: 'faults.sh',
    files,
    modules: vfioModules,
    sharedMemory: true,
    iommu: true,
  });
  holds(outcome);
  assert.match(outcome.stdout, /^testdev: \d+ checks, 0 wrong\r?$/m, outcome.story);
  assert.match(outcome.stdout, /DMAR: \[DMA Read .*fault addr 0xdead000 /, outcome.story);
  t.diagnostic(outcome.console.find((line) => /^testdev: \d+ checks/.test(line)) ?? '');
});

test('gpio-pci-idio-16: the driver binds, lines toggle, changes interrupt; the conversation is a capture that tshark reads', {
  timeout: TIMEOUT,
}, async (t) => {
  if (!ready(t)) return;
  const folder = scratch(t);
  const pcap = join(folder, 'gpio.pcap');
  const server = await serve(t, join(folder, 'gpio.sock'), ['--model', 'gpio-pci-idio-16', '--pcap', pcap]);
  const outcome = await boot(t, server, { test: 'gpio.sh', modules: ['gpio-pci-idio-16'], sharedMemory: true });
  holds(outcome);
  t.diagnostic(outcome.console.find((line) => /^gpio: \d+ checks/.test(line)) ?? '');
  assert.equal(await server.end('SIGTERM'), 0, server.said());
  const tshark = provided(t, 'tshark');
  if (tshark === undefined) return;
  const script = `lua_script:${join(tree, 'tools/wireshark/vfio-user.lua')}`;
  const fields = ['_ws.col.Info', 'vfio_user.no_response', '_ws.expert.message'].flatMap((name) => ['-e', name]);
  const args = ['-X', script, '-2', '-r', pcap, '-T', 'fields', '-E', 'separator=;', ...fields];
  const read = await run([join(tshark, 'bin/tshark'), ...args], { timeout: 30_000 });
  assert.equal(read.status, 0, read.story);
  const rows = read.stdout.trimEnd().split('\n');
  assert.match(rows[0]!, /^VERSION 0\.\d;/);
  assert.match(rows[1]!, /^VERSION reply 0\.0;/);
  for (const wanted of [
    /^DMA_MAP 0x0\+0x10000000 rw \[1 fd\];/,
    /^DEVICE_GET_INFO reply 9 regions, 5 interrupt indexes;/,
    /^DEVICE_SET_IRQS INTX EVENTFD\|TRIGGER start 0 count 1 \[1 fd\];/,
    /^REGION_WRITE BAR2\+0x0 1 B = 0x/,
    /^DEVICE_RESET reply;/,
  ]) {
    assert.ok(
      rows.some((row) => wanted.test(row)),
      `no ${wanted} in the capture`,
    );
  }
  // Every request was answered, and nothing was wrong with any message.
  assert.deepEqual(
    rows.filter((row) => !row.endsWith(';;')),
    [],
  );
  t.diagnostic(`${rows.length} messages in the capture`);
});

test('two guests at two servers at the same time', { timeout: TIMEOUT }, async (t) => {
  if (!ready(t)) return;
  const folder = scratch(t);
  const guests = await Promise.all(
    ['one', 'two'].map(async (name) => {
      const server = await serve(t, join(folder, name), ['--model', 'edu']);
      return boot(t, server, { ...bare, sharedMemory: true });
    }),
  );
  for (const outcome of guests) holds(outcome, BARE_SUM);
});

test('a guest reboots and finds its device again', { timeout: TIMEOUT }, async (t) => {
  if (!ready(t)) return;
  const server = await serve(t, join(scratch(t), 'edu.sock'), ['--model', 'edu']);
  const outcome = await boot(t, server, {
    test: 'reboot.sh',
    files: { 't/program': compileGuestProgram('edu', scratch(t)) },
    modules: bare.modules,
    sharedMemory: true,
    reboots: true,
  });
  holds(outcome);
  assert.equal(outcome.console.filter((line) => line === BARE_SUM).length, 2, outcome.story);
});

test('the server is killed under a guest, and started again at the same path for the next', {
  timeout: TIMEOUT,
}, async (t) => {
  if (!ready(t)) return;
  const path = join(scratch(t), 'edu.sock');
  const trace = `${path}.trace`;
  const first = await serve(t, path, ['--model', 'edu', '--trace', trace]);
  const left = boot(t, first, { ...bare, sharedMemory: true });
  // As soon as the guest's machine has reset its devices: its kernel is about to start.
  for (let i = 0; i < 1200 && !existsSync(trace); i++) await sleep(50);
  while (!readFileSync(trace, 'utf8').includes('DEVICE_RESET')) {
    assert.equal(process.exitCode, undefined);
    await sleep(50);
  }
  assert.equal(await first.end('SIGKILL'), 'SIGKILL');
  assert.ok(existsSync(path), 'a killed server leaves its socket');
  const outcome = await left;
  // The guest goes on without its device: nothing hangs.
  assert.equal(outcome.timedOut, false, outcome.story);
  assert.notEqual(outcome.testStatus, 0, outcome.story);
  const second = await serve(t, path, ['--model', 'edu']);
  holds(await boot(t, second, { ...bare, sharedMemory: true }), BARE_SUM);
});

for (const [memory, sharedMemory] of [
  ['shared memory', true],
  ['private memory, every descriptor fetched by message', false],
] as const) {
  test(`ioat: the stock driver probes with its self-test of copies (${memory})`, { timeout: TIMEOUT }, async (t) => {
    if (!ready(t)) return;
    const server = await serve(t, join(scratch(t), 'ioat.sock'), ['--model', 'ioat']);
    const outcome = await boot(t, server, { test: 'ioat.sh', modules: ['ioatdma'], sharedMemory });
    holds(outcome);
    assert.ok(outcome.console.includes('ioat: 1 channel(s)'), outcome.story);
  });
}

test('serial: a guest and a program on the host talk through /dev/ttyS*', { timeout: TIMEOUT }, async (t) => {
  if (!ready(t)) return;
  const folder = scratch(t);
  const line = join(folder, 'line');
  let heard = '';
  // The whole line arrives before the next is sent: the guest's words come first.
  const answers = new Map([
    ['guest speaks', 'hello from the host, with more than the sixteen bytes of the FIFO'],
    ['HELLO FROM THE HOST, WITH MORE THAN THE SIXTEEN BYTES OF THE FIFO', 'end'],
  ]);
  const listener = createServer((socket: Socket) => {
    socket.setEncoding('latin1').on('data', (piece: string) => {
      heard += piece;
      const said = heard.split('\n').at(-2) ?? '';
      if (heard.endsWith('\n') && answers.has(said)) socket.write(`${answers.get(said)}\n`);
    });
    socket.on('error', () => {});
  });
  await new Promise<void>((resolve) => listener.listen(line, resolve));
  t.after(() => listener.close());
  const host = join(folder, 'host.json');
  const card = { at: '00:01.0', model: 'serial', driver: 'vfio-pci', options: { line: `socket:${line}` } };
  const units = [{ name: 'dmar0', preset: 'vtd-legacy-sc' }];
  writeFileSync(host, JSON.stringify({ name: 'terminal', iommu: { units }, functions: [card] }));
  const server = await serve(t, join(folder, 'serial.sock'), ['--host', host, '--device', '00:01.0']);
  const outcome = await boot(t, server, { test: 'serial.sh', sharedMemory: true });
  holds(outcome);
  assert.deepEqual(heard.trimEnd().split('\n'), [...answers.keys()], outcome.story);
  assert.ok(outcome.console.includes('serial: heard end'), outcome.story);
  t.diagnostic(outcome.console.find((text) => text.startsWith('serial: /dev/')) ?? '');
});
