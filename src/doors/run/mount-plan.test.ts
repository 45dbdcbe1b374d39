import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mountPlan, type RealTree } from './mount-plan.ts';

/** A real tree from a list: folders end in a slash. */
function tree(...paths: string[]): RealTree {
  const folders = new Set(['/sys']);
  const files = new Set<string>();
  for (const path of paths) {
    const parts = path.split('/').slice(1);
    for (let i = 1; i < parts.length; i++) folders.add(`/${parts.slice(0, i).join('/')}`);
    if (!path.endsWith('/')) files.add(path);
  }
  return {
    isFolder: (path) => folders.has(path),
    exists: (path) => folders.has(path) || files.has(path),
    list: (path) =>
      [...folders, ...files]
        .filter((other) => other.startsWith(`${path}/`) && !other.slice(path.length + 1).includes('/'))
        .map((other) => other.slice(path.length + 1)),
  };
}

function plan(prefixes: string[], real: RealTree): { lines: string[]; made: string[] } {
  const made: string[] = [];
  const lines = mountPlan(prefixes, '/run', '/run/real', real, (path) => made.push(path));
  return { lines, made };
}

test('a folder that exists is covered', () => {
  const { lines, made } = plan(['/sys/bus/pci'], tree('/sys/bus/pci/', '/sys/bus/usb/'));
  assert.deepEqual(lines, ['bind /run/sys/bus/pci /sys/bus/pci']);
  assert.deepEqual(made, []);
});

test('a folder that is missing gets a new parent in which everything else stays', () => {
  const { lines, made } = plan(
    ['/sys/module/vfio', '/sys/module/vfio_pci'],
    tree('/sys/module/kvm/', '/sys/module/ext4/', '/sys/module/notes'),
  );
  assert.deepEqual(made, ['/run/real/0']);
  assert.deepEqual(lines, [
    'bind /sys/module /run/real/0',
    'tmpfs /sys/module',
    'bind /run/real/0/kvm /sys/module/kvm',
    'bind /run/real/0/ext4 /sys/module/ext4',
    'link /run/real/0/notes /sys/module/notes',
    'bind /run/sys/module/vfio /sys/module/vfio',
    'bind /run/sys/module/vfio_pci /sys/module/vfio_pci',
  ]);
});

test('what lies deeper than one missing folder is put into its nearest existing parent', () => {
  const { lines } = plan(['/sys/bus/pci'], tree('/sys/class/net/'));
  assert.deepEqual(lines, [
    'bind /sys /run/real/0',
    'tmpfs /sys',
    'bind /run/real/0/class /sys/class',
    'bind /run/sys/bus/pci /sys/bus/pci',
  ]);
});

test('an existing folder is covered after its parent was replaced, outer parents before inner ones', () => {
  const { lines } = plan(
    ['/sys/devices/virtual/vfio', '/sys/devices/pci0000:00', '/sys/module/kvm', '/sys/module/vfio'],
    tree('/sys/devices/virtual/mem/', '/sys/devices/cpu/', '/sys/module/kvm/'),
  );
  assert.deepEqual(lines, [
    'bind /sys/module /run/real/0',
    'tmpfs /sys/module',
    'bind /run/real/0/kvm /sys/module/kvm',
    'bind /run/sys/module/vfio /sys/module/vfio',
    'bind /sys/devices /run/real/1',
    'tmpfs /sys/devices',
    'bind /run/real/1/virtual /sys/devices/virtual',
    'bind /run/real/1/cpu /sys/devices/cpu',
    'bind /run/sys/devices/pci0000:00 /sys/devices/pci0000:00',
    'bind /sys/devices/virtual /run/real/2',
    'tmpfs /sys/devices/virtual',
    'bind /run/real/2/mem /sys/devices/virtual/mem',
    'bind /run/sys/devices/virtual/vfio /sys/devices/virtual/vfio',
    'bind /run/sys/module/kvm /sys/module/kvm',
  ]);
});
