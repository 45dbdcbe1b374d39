#!/usr/bin/env node
// npm test [-- PHASE…]: builds, then runs the phases in order and ends with one line `N passed, N failed, N skipped`.
//
//   check        formatting, lint, types, the statement list
//   unit         everything beside the sources, and the architecture; no process, socket or device of the system
//   conformance  outside judges that need a compiler and Debian packages: layouts, the recorded kernel
//   robustness   death at any point, hostile calls
//   e2e          real programs: the first program, lspci, Python, QEMU guests, DPDK, kernel selftests
//
// What a test needs from outside is fetched by the project's own scripts when CI is set (and root runs them); on a user's machine
// such a test is skipped aloud with the command that would provide it.
import { spawn } from 'node:child_process';
import { readdirSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const PHASES = ['check', 'unit', 'conformance', 'robustness', 'e2e'];
const asked = process.argv.slice(2);
const unknown = asked.filter((phase) => !PHASES.includes(phase));
if (unknown.length > 0) {
  console.error(`test: no phase ${unknown.join(', ')}; there are ${PHASES.join(', ')}`);
  process.exit(2);
}
const phases = asked.length > 0 ? PHASES.filter((phase) => asked.includes(phase)) : PHASES;
const totals = { passed: 0, failed: 0, skipped: 0 };

function filesBelow(folder) {
  let names;
  try {
    names = readdirSync(folder);
  } catch {
    return [];
  }
  return names.sort().flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? filesBelow(path) : name.endsWith('.test.js') ? [path] : [];
  });
}

/** Runs a command, shows its output, and gives its exit status and what it printed. */
function run(command, args) {
  return new Promise((done) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
    let text = '';
    child.stdout.on('data', (data) => {
      text += data;
      process.stdout.write(data);
    });
    child.on('error', (error) => done({ status: 127, text: String(error) }));
    child.on('close', (status) => done({ status: status ?? 1, text }));
  });
}

async function step(name, command, args) {
  const { status } = await run(command, args);
  if (status === 0) totals.passed++;
  else {
    totals.failed++;
    console.log(`✖ ${name} failed (status ${status})`);
  }
  return status === 0;
}

/** Adds the totals that node's reporter printed; 1 failure when it failed without saying how often. */
function addTotals({ status, text }) {
  const count = (word) => Number(text.match(new RegExp(`^ℹ ${word} (\\d+)$`, 'm'))?.[1] ?? 0);
  totals.passed += count('pass');
  totals.skipped += count('skipped') + count('todo');
  const failed = count('fail') + count('cancelled');
  totals.failed += status !== 0 && failed === 0 ? 1 : failed;
}

/** A process for each file, as node does it: for tests that run outside programs. */
async function nodeTests(name, files, concurrency) {
  if (files.length === 0) {
    console.log(`✖ ${name}: no test files found`);
    totals.failed++;
    return;
  }
  const args = ['--test', '--test-reporter=spec', `--test-concurrency=${concurrency}`, ...files];
  addTotals(await run(process.execPath, args));
}

/** Many files in few processes: starting a process for each would take longer than the tests. */
async function unitTests(files, processes) {
  const shares = Array.from({ length: processes }, (_, i) => files.filter((_file, at) => at % processes === i));
  const runs = shares.map((share) => {
    const imports = share.map((file) => `import ${JSON.stringify(pathToFileURL(file).href)};`).join('\n');
    return run(process.execPath, ['--test-reporter=spec', '--input-type=module', '-e', imports]);
  });
  for (const outcome of await Promise.all(runs)) addTotals(outcome);
}

const bin = (name) => join(root, 'node_modules/.bin', name);
const dist = join(root, 'dist');
const began = Date.now();
if (!(await step('native build', process.execPath, ['scripts/build-native.mjs'])))
  console.log('(going on without the native parts)');
if (!(await step('build', bin('tsc'), ['-p', 'tsconfig.json']))) phases.length = 0;

for (const phase of phases) {
  const start = Date.now();
  console.log(`\n== ${phase}`);
  if (phase === 'check') {
    await step('biome', bin('biome'), ['check', '.']);
    await step('statement list', process.execPath, ['scripts/spec.mjs', '--check']);
  } else if (phase === 'unit') {
    const places = ['src', 'examples'].flatMap((folder) => filesBelow(join(dist, folder)));
    await unitTests([...places, join(dist, 'tests/architecture.test.js')], 2);
  } else await nodeTests(phase, filesBelow(join(dist, 'tests', phase)), phase === 'robustness' ? 2 : 1);
  console.log(`== ${phase}: ${((Date.now() - start) / 1000).toFixed(1)} s`);
}
console.log(`\nall phases: ${((Date.now() - began) / 1000).toFixed(1)} s`);
console.log(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`);
process.exitCode = totals.failed === 0 ? 0 : 1;
