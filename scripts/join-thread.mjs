// Joins the modules of the box's thread (dist/src/doors/run/box-thread.js and all it imports) into one script with a code cache.
//
// Node needs about a millisecond for each module it loads, and compiles all of them at each start; one file that is compiled already is
// what makes `vfiobox run` start quickly. Nothing is changed or left out: each module becomes a function that is called once, in
// the order of imports. Only the forms of import and export that occur are known; anything else is told here and the
// modules are loaded one by one.
//
//   dist/box-thread.cjs           what the thread starts with
//   dist/box-thread.joined.cjs    the modules
//   dist/box-thread.cache         their code, as this version of Node compiles it; another version ignores it
//   dist/box-thread.json          the files it was made of
import { mkdtempSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';

const dist = join(dirname(dirname(fileURLToPath(import.meta.url))), 'dist');
const entry = join(dist, 'src/doors/run/box-thread.js');

/** Number of each module, in the order in which they are first met. */
const numbers = new Map();
const finished = new Set();
const external = new Map();
const pieces = [];

const names = (list) =>
  list
    .split(',')
    .map((item) => item.trim())
    .filter((item) => item !== '')
    .map((item) => item.split(/\s+as\s+/))
    .map(([from, to]) => [from, to ?? from]);

function add(file) {
  if (numbers.has(file)) return;
  numbers.set(file, numbers.size);
  const head = [];
  const exported = [];
  const refer = (target) => {
    if (!target.startsWith('.')) {
      if (!external.has(target)) external.set(target, `x${external.size}`);
      return external.get(target);
    }
    const path = join(dirname(file), target);
    add(path);
    return `m${numbers.get(path)}`;
  };
  /** A module of a cycle is not there yet when this one starts: its functions are looked up when they are called. */
  const isUnfinished = (target) => target.startsWith('.') && !finished.has(join(dirname(file), target));

  let text = readFileSync(file, 'utf8');
  text = text.replace(/^import \* as (\w+) from '([^']+)';$/gm, (_, name, target) => {
    head.push(`const ${name} = ${refer(target)};`);
    return '';
  });
  text = text.replace(/^import(?: (\w+))?,? ?(?:\{([^}]*)\})? ?from '([^']+)';$/gm, (_, byDefault, list, target) => {
    const module = refer(target);
    if (byDefault) head.push(`const ${byDefault} = ${module};`);
    for (const [from, to] of names(list ?? '')) {
      head.push(
        isUnfinished(target) ? `const ${to} = (...a) => ${module}.${from}(...a);` : `const ${to} = ${module}.${from};`,
      );
    }
    return '';
  });
  text = text.replace(/^import '(\.[^']+)';$/gm, (_, target) => {
    refer(target);
    return '';
  });
  text = text.replace(/^export \{([^}]*)\} from '([^']+)';$/gm, (_, list, target) => {
    const module = refer(target);
    for (const [from, to] of names(list)) exported.push(`${to}: ${module}.${from}`);
    return '';
  });
  text = text.replace(/^export \* from '([^']+)';$/gm, (_, target) => {
    exported.push(`...${refer(target)}`);
    return '';
  });
  text = text.replace(/^export ((?:async )?function\*?|class|const) (\w+)/gm, (_, kind, name) => {
    exported.push(name);
    return `${kind} ${name}`;
  });
  text = text.replace(/^export \{([^}]*)\};$/gm, (_, list) => {
    for (const [from, to] of names(list)) exported.push(`${to}: ${from}`);
    return '';
  });
  text = text.replaceAll('import.meta.url', `new URL(${JSON.stringify(relative(dist, file))}, here).href`);
  const left = /^(?:import|export)\b(?! *\().*/m.exec(text);
  if (left !== null) throw new Error(`${relative(dist, file)}: join-thread.mjs does not know this form: ${left[0]}`);
  finished.add(file);
  pieces.push(
    `// ${relative(dist, file)}\nconst m${numbers.get(file)} = (() => {\n${head.join('\n')}\n${text}\nreturn { ${exported.join(', ')} };\n})();\n`,
  );
}

for (const name of ['box-thread.cjs', 'box-thread.cache']) rmSync(join(dist, name), { force: true });
try {
  add(entry);
} catch (error) {
  console.error(`vfiobox: the box's thread was not joined, so starts are slower: ${error.message}`);
  process.exit(0);
}
const modules = [...external].map(([target, name]) => `const ${name} = require('${target}');\n`);
const put = (name, text) => writeFileSync(join(dist, name), text);
put('box-thread.joined.cjs', `(function (require, here) {\n${modules.join('')}${pieces.join('')}})`);
put('box-thread.json', JSON.stringify([...numbers.keys()].map((file) => relative(dist, file))));
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
script.runInThisContext()(require, pathToFileURL(filename).href);
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
