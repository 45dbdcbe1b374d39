import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Unwind } from './unwind.ts';

test('steps run backwards when the work was not finished', () => {
  const done: number[] = [];
  assert.throws(() => {
    using undo = new Unwind();
    for (const step of [1, 2, 3]) undo.add(() => done.push(step));
    throw new Error('no');
  }, /^Error: no$/);
  assert.deepEqual(done, [3, 2, 1]);
});

test('kept work stays, and steps added after that count again', () => {
  const done: number[] = [];
  {
    using undo = new Unwind();
    undo.add(() => done.push(1));
    undo.keep();
    undo.add(() => done.push(2));
  }
  assert.deepEqual(done, [2]);
});

test('every step runs, and the first error comes out', () => {
  const done: number[] = [];
  const undo = new Unwind();
  undo.add(() => done.push(1));
  undo.add(() => {
    throw new Error('second');
  });
  undo.add(() => {
    throw new Error('first');
  });
  assert.throws(() => undo[Symbol.dispose](), /first/);
  assert.deepEqual(done, [1]);
  undo[Symbol.dispose]();
  assert.deepEqual(done, [1], 'no step runs twice');
});
