import assert from 'node:assert/strict';
import { test } from 'node:test';
import { refusal } from '../kernel/core/test-task.ts';
import { type Credentials, permit } from './permissions.ts';

const owned = (mode: number) => ({ uid: 1000, gid: 50, mode });
const user =
  (uid: number, groups: number[] = [uid], overrides = false): (() => Credentials) =>
  () => ({ uid, groups, overrides });

test('G-33: owner, group and others have their own bits, the first that fits counts; root passes over them', () => {
  const ask = (mode: number, wanted: number, who: () => Credentials): string =>
    refusal(() => permit('/dev/vfio/3', owned(mode), wanted, who));
  assert.equal(ask(0o600, 6, user(1000)), 'ok');
  assert.equal(ask(0o600, 6, user(1001)), 'EACCES');
  assert.equal(ask(0o600, 6, user(0, [0], true)), 'ok');
  assert.equal(ask(0o600, 6, user(0)), 'EACCES');
  assert.equal(ask(0o660, 6, user(1001, [7, 50])), 'ok');
  assert.equal(ask(0o640, 6, user(1001, [50])), 'EACCES');
  assert.equal(ask(0o640, 4, user(1001, [50])), 'ok');
  assert.equal(ask(0o066, 4, user(1000)), 'EACCES');
  assert.equal(ask(0o606, 4, user(1001, [50])), 'EACCES');
});

test('who opens a file that all may use is not asked for', () => {
  permit('/dev/vfio/vfio', owned(0o666), 6, () => assert.fail('asked'));
});
