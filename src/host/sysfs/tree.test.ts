import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SysfsTree, type TreeWriter, text } from './tree.ts';

function recorder(): { writer: TreeWriter; lines: string[] } {
  const lines: string[] = [];
  return {
    lines,
    writer: {
      directory: (path) => lines.push(`d ${path}`),
      file: (path, mode, content) => lines.push(`f ${path} ${mode.toString(8)} ${new TextDecoder().decode(content)}`),
      symlink: (path, target) => lines.push(`l ${path} ${target}`),
      node: (path) => lines.push(`n ${path}`),
      remove: (path) => lines.push(`- ${path}`),
    },
  };
}

test('a writer gets the whole tree, parents first, and then every change', () => {
  const tree = new SysfsTree();
  tree.file('/sys/a/b', 'one');
  const { writer, lines } = recorder();
  const stop = tree.attach(writer);
  assert.deepEqual(lines, ['d /sys', 'd /sys/a', 'f /sys/a/b 444 one']);
  tree.node('/dev/x', 0o600);
  tree.remove('/sys/a');
  stop();
  tree.file('/sys/c', '');
  assert.deepEqual(lines.slice(3), ['d /dev', 'n /dev/x', '- /sys/a']);
});

test('link writes targets relative to the folder of the link', () => {
  const tree = new SysfsTree();
  tree.link('/sys/bus/pci/devices/x', '/sys/devices/pci0000:00/x');
  tree.link('/sys/devices/pci0000:00/x/iommu_group', '/sys/kernel/iommu_groups/3');
  tree.link('/sys/a/b', '/sys/a/c');
  assert.equal(tree.readlink('/sys/bus/pci/devices/x'), '../../../devices/pci0000:00/x');
  assert.equal(tree.readlink('/sys/devices/pci0000:00/x/iommu_group'), '../../../kernel/iommu_groups/3');
  assert.equal(tree.readlink('/sys/a/b'), 'c');
});

test('resolve follows links and dots, and refuses loops', () => {
  const tree = new SysfsTree();
  tree.file('/sys/devices/d/vendor', '0x1234\n');
  tree.link('/sys/bus/devices/d', '/sys/devices/d');
  assert.equal(tree.resolve('/sys/bus/devices/d/vendor')?.path, '/sys/devices/d/vendor');
  assert.equal(tree.resolve('/sys//bus/./devices/../devices/d/vendor')?.path, '/sys/devices/d/vendor');
  assert.equal(tree.resolve('/sys/bus/devices/e'), undefined);
  assert.equal(tree.resolve('/sys/devices/d/vendor/x'), undefined);
  tree.symlink('/sys/loop', 'loop');
  assert.throws(() => tree.resolve('/sys/loop'), { code: 'ELOOP' });
});

test('refresh mirrors a live file only when it says something new', () => {
  const tree = new SysfsTree();
  let value = 'a';
  tree.attribute('/sys/live', { mode: 0o644, show: () => text(value) });
  const { writer, lines } = recorder();
  tree.attach(writer);
  tree.refresh('/sys/live');
  value = 'b';
  tree.refresh('/sys/live');
  tree.refresh('/sys/none');
  assert.deepEqual(lines, ['d /sys', 'f /sys/live 644 a', 'f /sys/live 644 b']);
});
