#!/usr/bin/env node
// npm run spec: which statements of the specification have a test, and which have none.
//
// spec/statements.json holds every statement in the project's words. A test proves a statement when its title begins with the
// statement's id (`Y-12: …`, or several ids before the colon). Writes docs/statements.md; `--check` fails when it is not up to date, or
// when a title names an id that does not exist.
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const isCheck = process.argv.includes('--check');
const statements = JSON.parse(readFileSync(join(root, 'spec/statements.json'), 'utf8'));

const areas = {
  T: 'PCI topology',
  G: 'Groups',
  C: 'VFIO core: containers, groups, the device node',
  D: 'VFIO devices',
  Y: 'type1',
  I: 'IOMMU',
  A: 'IOASID',
  F: 'iommufd',
  M: 'Mediated devices',
  V: 'vGPU',
  S: 'DSA',
  K: 'KVM coupling',
  U: 'vfio-user',
  R: 'Migration',
};

function filesBelow(folder) {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    if (name === 'node_modules' || name === 'dist') return [];
    return statSync(path).isDirectory() ? filesBelow(path) : /\.test\.(ts|mjs)$/.test(name) ? [path] : [];
  });
}

const proofs = new Map();
const unknown = [];
for (const file of [...filesBelow(join(root, 'src')), ...filesBelow(join(root, 'tests'))]) {
  const text = readFileSync(file, 'utf8');
  for (const match of text.matchAll(
    /\b(?:test|it|describe)(?:\.\w+)?\(\s*(['"`])((?:[A-Z]-\d+[ ,]*(?:and )?)+):\s*((?:\\.|(?!\1)[\s\S])*)\1/g,
  )) {
    for (const id of match[2].match(/[A-Z]-\d+/g)) {
      if (!(id in statements)) unknown.push(`${relative(root, file)}: ${id}`);
      const list = proofs.get(id) ?? [];
      list.push({ file: relative(root, file), title: match[3].replace(/\\(.)/g, '$1') });
      proofs.set(id, list);
    }
  }
}

const byNumber = (a, b) => Number(a.slice(2)) - Number(b.slice(2));
const ids = Object.keys(statements);
let markdown = `# Statements of the specification

What vfiobox promises, one sentence each, and the tests that prove it. Made by \`npm run spec\`; the sentences are in spec/statements.json.
`;
let covered = 0;
const lines = [];
for (const [letter, name] of Object.entries(areas)) {
  const own = ids.filter((id) => id.startsWith(`${letter}-`)).sort(byNumber);
  if (own.length === 0) continue;
  const proven = own.filter((id) => proofs.has(id));
  covered += proven.length;
  const missing = own.filter((id) => !proofs.has(id));
  lines.push(`${letter}  ${name}: ${proven.length} of ${own.length}`);
  lines.push(`   covered: ${proven.join(' ') || '-'}`);
  lines.push(`   missing: ${missing.join(' ') || '-'}`);
  markdown += `\n## ${name} (${proven.length} of ${own.length})\n\n| id | statement | tests |\n|---|---|---|\n`;
  for (const id of own) {
    const tests = (proofs.get(id) ?? []).map((proof) => `${proof.file}: ${proof.title.replaceAll('|', '\\|')}`);
    markdown += `| ${id} | ${statements[id].replaceAll('|', '\\|')} | ${[...new Set(tests)].join('<br>') || '**none yet**'} |\n`;
  }
}
for (const line of lines) console.log(line);
console.log(`${covered} of ${ids.length} statements have a test`);
for (const text of unknown) console.error(`unknown id in a test title: ${text}`);

const target = join(root, 'docs/statements.md');
if (isCheck) {
  let present = '';
  try {
    present = readFileSync(target, 'utf8');
  } catch {}
  if (present !== markdown) {
    console.error('docs/statements.md is not up to date: npm run spec');
    process.exitCode = 1;
  }
} else writeFileSync(target, markdown);
if (unknown.length > 0) process.exitCode = 1;
