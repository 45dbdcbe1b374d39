import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ForeignFile } from './file.ts';
import { copyFromUser, copyToUser, readU32 } from './task.ts';
import { refusal, TestEventfd, TestMemoryFile, TestTask } from './test-task.ts';

test('copies cross the borders of areas, and fault where nothing is', () => {
  const task = new TestTask();
  task.memory.map(4096, 0x10000);
  task.memory.map(4096, 0x11000);
  copyToUser(task, 0x10ffen, Uint8Array.of(1, 2, 3, 4));
  assert.deepEqual(copyFromUser(task, 0x10ffdn, 6), Uint8Array.of(0, 1, 2, 3, 4, 0));
  assert.equal(readU32(task, 0x10ffen), 0x04030201);
  assert.equal(
    refusal(() => copyFromUser(task, 0x11ffen, 4)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => copyToUser(task, 0n, Uint8Array.of(1))),
    'EFAULT',
  );
  assert.equal(
    refusal(() => copyFromUser(task, (1n << 64n) - 1n, 1)),
    'EFAULT',
  );
  assert.equal(copyFromUser(task, (1n << 64n) - 1n, 0).length, 0, 'nothing is copied from anywhere');
});

test('protection counts: what is not readable cannot be read', () => {
  const task = new TestTask();
  const address = task.memory.map(0x3000);
  task.memory.protect(address + 0x1000, 0x1000, { readable: true, writable: false });
  assert.equal(
    refusal(() => copyToUser(task, BigInt(address + 0xfff), Uint8Array.of(1, 2))),
    'EFAULT',
  );
  assert.equal(
    refusal(() => copyFromUser(task, BigInt(address), 0x3000)),
    'ok',
  );
  task.memory.protect(address, 0x3000, { readable: false, writable: false });
  assert.equal(
    refusal(() => copyFromUser(task, BigInt(address), 1)),
    'EFAULT',
  );
});

test('descriptors name files; the last one of a file releases it', () => {
  const task = new TestTask();
  let released = 0;
  class Counting extends ForeignFile {
    override release(): void {
      released++;
    }
  }
  const { descriptor } = task.open(new Counting());
  const copy = task.dup(descriptor);
  task.close(descriptor);
  assert.deepEqual([released, refusal(() => task.file(descriptor))], [0, 'EBADF']);
  task.close(copy);
  assert.equal(released, 1);
  assert.equal(
    refusal(() => task.eventfd(task.openForeign())),
    'EINVAL',
  );
});

test('an eventfd counts, wakes its watchers, and knows its contexts', () => {
  const task = new TestTask();
  const { descriptor, file } = task.openEventfd();
  assert.ok(file instanceof TestEventfd);
  const context = task.eventfd(descriptor);
  context.signal(2);
  assert.deepEqual([file.take(), file.contexts], [2, 1]);
  let woken = 0;
  const stop = context.watch(() => woken++);
  file.add();
  stop();
  file.add();
  assert.deepEqual([woken, file.take()], [1, 1]);
  context.close();
  assert.equal(file.contexts, 0);
  assert.throws(() => context.close(), /twice/);
});

test('a memfd is one file, however it is reached', () => {
  const task = new TestTask();
  const { descriptor } = task.open(new TestMemoryFile(8192));
  const [one, two] = [task.memoryFile(descriptor), task.memoryFile(task.dup(descriptor))];
  assert.equal(one.identity, two.identity);
  assert.ok(one.backing.write(5, Uint8Array.of(1)));
  const byte = new Uint8Array(1);
  assert.ok(two.backing.read(5, byte));
  assert.equal(byte[0], 1);
});
