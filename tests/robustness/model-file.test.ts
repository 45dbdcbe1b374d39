/** A device of a user's own, examples/my-device: the same file under a program, and behind a socket; and files that cannot be devices. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ClientMemory, VfioUserClient } from '../../src/vfio-user.ts';
import { run, runInBox, scratch, tree } from '../support/box.ts';

const example = join(tree, 'examples/my-device');
const LIMIT = { timeout: 60_000 };

test('my-device under a program: a host file names it by its path', LIMIT, async () => {
  const outcome = await runInBox(['cat', '/sys/bus/pci/devices/0000:01:00.0/device'], {
    host: join(example, 'host.json'),
  });
  assert.equal(outcome.stdout, '0xcafe\n', outcome.story);
});

test('my-device behind a socket reverses a buffer of the client, in both kinds of memory', LIMIT, async (t) => {
  const socket = join(scratch(t), 'socket');
  const server = spawn(join(tree, 'bin/vfiobox'), [
    'serve',
    ...['--model', join(example, 'my-device.ts')],
    ...['--socket-path', socket],
  ]);
  t.after(() => server.kill('SIGKILL'));
  let client: VfioUserClient | undefined;
  for (let turn = 0; client === undefined; turn++) {
    try {
      client = VfioUserClient.connect(socket);
    } catch (error) {
      if (turn === 200) throw error;
      await sleep(50);
    }
  }
  assert.equal(client.readRegister(0, 0, 4), 0x0001_cafe);
  client.writeRegister(7, 4, 2, 6);
  const memory = new ClientMemory(4096);
  const bytes = new Uint8Array(4096);
  const buffers = [
    { address: 0x10_0000n, seen: memory.bytes, backing: { kind: 'memory', memory } },
    { address: 0x20_0000n, seen: bytes, backing: { kind: 'bytes', bytes } },
  ] as const;
  for (const { address, seen, backing } of buffers) {
    client.dmaMap({ address, length: 4096n, backing });
    seen.set([1, 2, 3, 4, 5], 16);
    client.writeRegister(0, 0x04, 4, 6);
    client.writeRegister(0, 0x08, 8, address + 16n);
    client.writeRegister(0, 0x10, 4, 5);
    client.writeRegister(0, 0x14, 4, 1);
    for (let turn = 0; client.readRegister(0, 0x04, 4) !== 2; turn++) {
      assert.ok(turn < 1000, `STATUS is ${client.readRegister(0, 0x04, 4)}`);
      client.serve(5);
    }
    assert.deepEqual([...seen.subarray(15, 22)], [0, 5, 4, 3, 2, 1, 0], backing.kind);
  }
  client.close();
  memory.close();
});

test('a model that declares what cannot be is refused in one line, by every command', LIMIT, async (t) => {
  const folder = scratch(t);
  const model = join(folder, 'model.ts');
  const host = join(folder, 'host.json');
  const functions = [{ at: '00:05.0', model: './model.ts', driver: 'vfio-pci' }];
  writeFileSync(host, JSON.stringify({ name: 'h', iommu: { units: [] }, functions }));
  const device = (parts: string): string =>
    `import { device, memoryBar, msi, vendorSpecific } from 'vfiobox/device';
     export default device({ name: 'm', vendor: 1, device: 2, class24: 0xff0000, build: () => (${parts}) });`;
  const bar = device('{ bars: [memoryBar({ index: 0, size: 100 })] }');
  const overlap = device(
    '{ capabilities: [msi({ vectors: 1, at: 64 }), vendorSpecific(new Uint8Array(4), { at: 68 })] }',
  );
  for (const [text, why] of [
    [bar, /BAR 0 of 0x64 bytes is not a power of two/],
    [overlap, /cannot be at 0x44: it overlaps capability 0x5 at 0x40/],
    ["throw new Error('no\\nluck')", /throws when it is loaded: no$/m],
    ['export default {', /model\.ts is not valid: /],
  ] as const) {
    writeFileSync(model, text);
    for (const command of [
      ['host', 'check', '--host', host],
      ['run', '--host', host, '--', 'true'],
      ['serve', '--model', model, '--socket-path', join(folder, 'socket')],
    ]) {
      const outcome = await run([join(tree, 'bin/vfiobox'), ...command]);
      assert.equal(outcome.status, 125, outcome.story);
      assert.match(outcome.stderr, why, outcome.story);
      assert.match(outcome.stderr, /^vfiobox: [^\n]*\n$/, outcome.story);
    }
  }
});
