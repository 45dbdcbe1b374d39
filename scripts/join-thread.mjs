// Joins the modules of the box's thread (dist/src/doors/run/box-thread.js and all it imports) into one script with a code cache.
//
// Node needs about a millisecond for each module it loads, and compiles all of them at each start; one file that is compiled already is
// what makes `vfiobox run` start quickly. Without it the modules are loaded one by one.
//
//   dist/box-thread.cjs           what the thread starts with
//   dist/box-thread.joined.cjs    the modules
//   dist/box-thread.cache         their code, as this version of Node compiles it; another version ignores it
//   dist/box-thread.json          the files it was made of
import { mkdtempSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { build } from 'esbuild';

const dist = join(dirname(dirname(fileURLToPath(import.meta.url))), 'dist');
const entry = join(dist, 'src/doors/run/box-thread.js');

/** A module's own address stays what it was, so that it finds the files of the package. */
const ownAddress = {
  name: 'own-address',
  setup: ({ onLoad }) =>
    onLoad({ filter: /\.js$/ }, ({ path }) => ({
      contents: readFileSync(path, 'utf8').replaceAll(
        'import.meta.url',
        `new URL(${JSON.stringify(relative(dist, path))}, vfioboxDist).href`,
      ),
    })),
};

for (const name of ['box-thread.cjs', 'box-thread.cache']) rmSync(join(dist, name), { force: true });
const { outputFiles, metafile } = await build({
  entryPoints: [entry],
  bundle: true,
  write: false,
  metafile: true,
  platform: 'node',
  format: 'cjs',
  target: 'node20',
  external: ['koffi', 'zod', 'yaml'],
  plugins: [ownAddress],
  logLevel: 'error',
});
const put = (name, text) => writeFileSync(join(dist, name), text);
put('box-thread.joined.cjs', `(function (require, vfioboxDist, module, exports) {\n${outputFiles[0].text}})`);
put('box-thread.json', JSON.stringify(Object.keys(metafile.inputs).map((file) => relative(dist, resolve(file)))));
put(
  'box-thread.cjs',
  `'use strict'; // made by scripts/join-thread.mjs
const { readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { pathToFileURL } = require('node:url');
const { Script } = require('node:vm');
const { parentPort, workerData } = require('node:worker_threads');
const filename = join(__dirname, 'box-thread.joined.cjs');
const cache = join(__dirname, 'box-thread.cache');
let cachedData;
try {
  cachedData = readFileSync(cache);
} catch {}
const script = new Script(readFileSync(filename, 'utf8'), { filename, cachedData });
const module_ = { exports: {} };
script.runInThisContext()(require, pathToFileURL(filename).href, module_, module_.exports);
if (workerData?.makeCache) parentPort.on('message', (text) => text === 'cache' && writeFileSync(cache, script.createCachedData()));
`,
);

// A whole life of a box, so that what runs at a start is compiled; then the thread writes its code down.
const folder = mkdtempSync(join(tmpdir(), 'vfiobox-build-'));
const thread = new Worker(join(dist, 'box-thread.cjs'), { workerData: { makeCache: true } });
let failure;
thread.on('error', (error) => {
  failure = error.message;
});
thread.on('message', (news) => {
  if (news.kind === 'listening') writeSync(news.address.stop, new Uint8Array([1, 0, 0, 0, 0, 0, 0, 0]));
  else {
    if (news.kind === 'refused') failure = news.message;
    else thread.postMessage('cache');
    setTimeout(() => thread.terminate(), 100);
  }
});
thread.on('exit', () => {
  rmSync(folder, { recursive: true, force: true });
  if (failure !== undefined) console.error(`vfiobox: no code cache was made, so starts are slower: ${failure}`);
});
thread.postMessage({ host: 'default', folder, explain: false, trace: undefined, seed: undefined, plan: true });
