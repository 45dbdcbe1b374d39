/**
 * The house's import table (docs/architecture.md) as a test: who may know whom.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const source = join(root, 'src');

const KERNEL_BASE = ['lib', 'uapi', 'hw/memory', 'kernel/core'];
const IOMMU = [...KERNEL_BASE, 'hw/pci', 'hw/iommu', 'kernel/iommu'];
const IOMMUFD = [...IOMMU, 'kernel/iommufd'];

/** Room → rooms it may import from (its own always). Longer names win. */
const allowed: Record<string, string[]> = {
  lib: [],
  uapi: ['lib'],
  'hw/memory': ['lib'],
  'hw/pci': ['lib', 'uapi', 'hw/memory'],
  'hw/iommu': ['lib', 'uapi', 'hw/memory', 'hw/pci'],
  'hw/devices': ['lib', 'uapi', 'hw/pci'],
  'kernel/core': ['lib', 'uapi', 'hw/memory'],
  'kernel/iommu': IOMMU,
  'kernel/iommufd': IOMMUFD,
  'kernel/vfio': [...IOMMUFD, 'kernel/vfio'],
  'kernel/vfio-2011': [...IOMMUFD, 'kernel/vfio', 'kernel/vfio-2011'],
  'kernel/mdev': [...IOMMUFD, 'kernel/mdev'],
  'kernel/kvm': [...IOMMUFD, 'kernel/kvm'],
  'kernel/drivers': ['lib', 'uapi', 'hw/memory', 'hw/pci', 'hw/iommu', 'hw/devices', 'kernel'],
  host: ['lib', 'uapi', 'hw', 'kernel'],
  sys: ['lib'],
  doors: ['lib', 'uapi', 'host', 'sys'],
};
const rooms = Object.keys(allowed).sort((a, b) => b.length - a.length);

/** Packages that belong to one room only. */
const keepers: Record<string, string> = {
  koffi: 'sys',
  commander: 'doors',
  zod: 'host',
  yaml: 'host',
  esbuild: 'host',
};

function filesBelow(folder: string): string[] {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? filesBelow(path) : name.endsWith('.ts') ? [path] : [];
  });
}

function roomOf(path: string): string | undefined {
  return rooms.find((room) => path === room || path.startsWith(`${room}/`));
}

function isAllowed(from: string, to: string): boolean {
  return from === to || allowed[from]!.some((room) => to === room || to.startsWith(`${room}/`));
}

interface Import {
  file: string;
  target: string;
}

function importsOf(file: string): Import[] {
  const text = readFileSync(file, 'utf8');
  return [...text.matchAll(/(?:from|import)\s*\(?\s*'([^']+)'/g)].map((match) => ({ file, target: match[1]! }));
}

/** What is wrong with one import, undefined when nothing is. */
function complaint({ file, target }: Import): string | undefined {
  const here = relative(source, file);
  const from = roomOf(here);
  if (from === undefined) return `${here}: lies in no room of the house`;
  if (!target.startsWith('.')) {
    const keeper = keepers[target.split('/')[0]!];
    return keeper !== undefined && from !== keeper && !from.startsWith(`${keeper}/`)
      ? `${here}: only ${keeper} may import ${target}`
      : undefined;
  }
  const there = relative(source, resolve(dirname(file), target));
  const to = roomOf(there);
  if (to === undefined) return `${here}: imports ${target}, outside the house`;
  return isAllowed(from, to) ? undefined : `${here}: ${from} may not import ${to} (${target})`;
}

test('every import follows the table of the house', () => {
  const files = filesBelow(source).filter((file) => !file.endsWith('.test.ts') || !file.includes('/doors/'));
  assert.ok(files.length > 30, `only ${files.length} files found below ${source}`);
  const complaints = files
    .filter((file) => relative(source, file).includes('/'))
    .flatMap(importsOf)
    .map(complaint)
    .filter((text) => text !== undefined);
  assert.deepEqual(complaints, []);
});

test('the check sees a planted violation', () => {
  const planted = { file: join(source, 'hw/pci/planted.ts'), target: '../../host/machine.ts' };
  assert.match(complaint(planted) ?? '', /hw\/pci may not import host/);
  assert.match(
    complaint({ file: join(source, 'host/planted.ts'), target: 'koffi' }) ?? '',
    /only sys may import koffi/,
  );
  assert.match(
    complaint({ file: join(source, 'doors/run/planted.ts'), target: '../../kernel/core/file.ts' }) ?? '',
    /doors may not import kernel\/core/,
  );
});

test('nothing in hw or kernel is asynchronous', () => {
  const found = filesBelow(source)
    .filter((file) => /^(hw|kernel)\//.test(relative(source, file)) && !file.endsWith('.test.ts'))
    .filter((file) =>
      /\basync\b|\bawait\b|\bPromise\b/.test(readFileSync(file, 'utf8').replace(/\/\*[\s\S]*?\*\/|\/\/.*/g, '')),
    )
    .map((file) => relative(source, file));
  assert.deepEqual(found, []);
});
