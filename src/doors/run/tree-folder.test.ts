import assert from 'node:assert/strict';
import {
  existsSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { TreeFolder } from './tree-folder.ts';

const root = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
after(() => rmSync(root, { recursive: true, force: true }));
const bytes = (text: string): Uint8Array => Buffer.from(text);

test('the tree appears as folders, files, links and nodes, follows changes, and goes as a whole', () => {
  const tree = new TreeFolder(root);
  tree.directory('/sys', 0o755);
  tree.directory('/sys/bus', 0o755);
  tree.directory('/sys/bus', 0o755);
  tree.file('/sys/bus/vendor', 0o444, bytes('0x1234\n'));
  tree.symlink('/sys/bus/driver', '../drivers/vfio-pci');
  tree.node('/sys/bus/node', 0o600);
  assert.equal(readFileSync(join(root, 'sys/bus/vendor'), 'utf8'), '0x1234\n');
  assert.equal(lstatSync(join(root, 'sys/bus/vendor')).mode & 0o777, 0o444);
  assert.equal(readlinkSync(join(root, 'sys/bus/driver')), '../drivers/vfio-pci');
  assert.ok(lstatSync(join(root, 'sys/bus/node')).isSocket());

  tree.file('/sys/bus/vendor', 0o444, bytes('0x8086\n'));
  tree.symlink('/sys/bus/driver', '../drivers/other');
  tree.node('/sys/bus/node', 0o600);
  assert.equal(readFileSync(join(root, 'sys/bus/vendor'), 'utf8'), '0x8086\n');
  assert.equal(readlinkSync(join(root, 'sys/bus/driver')), '../drivers/other');
  assert.deepEqual(readdirSync(join(root, 'sys/bus')).sort(), ['driver', 'node', 'vendor']);

  tree.directory('/sys/bus/gone', 0o755);
  tree.file('/sys/bus/gone/x', 0o644, bytes(''));
  tree.remove('/sys/bus/gone');
  assert.ok(!existsSync(join(root, 'sys/bus/gone')));
  tree.directory('/sys/bus/gone', 0o755);
  tree.file('/sys/bus/gone/x', 0o644, bytes('again'));

  tree.removeAll();
  assert.deepEqual(readdirSync(root), []);
});

test('what somebody else put there does not disturb the end', () => {
  const tree = new TreeFolder(root);
  tree.directory('/sys', 0o755);
  writeFileSync(join(root, 'sys/foreign'), '');
  tree.removeAll();
  assert.ok(existsSync(join(root, 'sys/foreign')));
});
