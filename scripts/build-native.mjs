// Compiles native/ into build/: libvfiobox.so (preloaded into programs) and vfiobox-launch (starts them).
//   node scripts/build-native.mjs [--force] [--test]
// Run by npm's postinstall, so a missing compiler is a clear line and not a failure. --test also builds and runs the
// decoder's differential test; its failure is a failure.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync, utimesSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const top = dirname(dirname(fileURLToPath(import.meta.url)));
const source = join(top, 'native');
const build = join(top, 'build');
const force = process.argv.includes('--force');
const test = process.argv.includes('--test');

const flags = ['-std=gnu11', '-O2', '-Wall', '-Wextra'];
if (process.arch === 'x64') flags.push('-mno-red-zone');
const targets = [
  {
    output: 'libvfiobox.so',
    sources: [
      'call.c',
      'paths.c',
      'preload.c',
      'files.c',
      'streams.c',
      'children.c',
      'syscalls.c',
      'memory.c',
      'trap.c',
      'decode.c',
    ],
    flags: ['-fPIC', '-shared', '-fvisibility=hidden', '-pthread', '-Wl,-z,defs', '-Wl,-z,now'],
    libraries: ['-ldl'],
  },
  { output: 'vfiobox-launch', sources: ['launch.c'], flags: ['-fPIE', '-pie'], libraries: [] },
];
if (test) targets.push({ output: 'decode-test', sources: ['decode_test.c', 'decode.c'], flags: [], libraries: [] });

function finish(line, status = 0) {
  if (line) console.error(line);
  process.exit(status);
}

function findCompiler() {
  for (const name of [process.env.CC, 'cc', 'gcc', 'clang']) {
    if (!name) continue;
    const [command, ...rest] = name.split(/\s+/);
    const tried = spawnSync(command, [...rest, '--version'], { stdio: 'ignore' });
    if (!tried.error && tried.status === 0) return [command, ...rest];
  }
  return undefined;
}

if (process.platform !== 'linux')
  finish(
    'vfiobox: `vfiobox run` needs Linux; on this system everything else works. Nothing was compiled.',
    test ? 1 : 0,
  );
if (process.arch !== 'x64' && process.arch !== 'arm64')
  finish(
    `vfiobox: \`vfiobox run\` has no support for ${process.arch} processors; everything else works. Nothing was compiled.`,
    test ? 1 : 0,
  );
if (!existsSync(source))
  finish(
    `vfiobox: the folder native/ is missing, so \`vfiobox run\` cannot be built. Reinstall the package.`,
    test ? 1 : 0,
  );

const newestHeader = Math.max(
  ...readdirSync(source)
    .filter((f) => f.endsWith('.h'))
    .map((f) => statSync(join(source, f)).mtimeMs),
);
const script = statSync(fileURLToPath(import.meta.url)).mtimeMs;
function stale(target) {
  const output = join(build, target.output);
  if (force || !existsSync(output)) return true;
  const made = statSync(output).mtimeMs;
  return Math.max(newestHeader, script, ...target.sources.map((s) => statSync(join(source, s)).mtimeMs)) > made;
}

const wanted = targets.filter(stale);
if (wanted.length > 0) {
  const cc = findCompiler();
  if (!cc)
    finish(
      'vfiobox: no C compiler was found (CC, cc, gcc, clang), so `vfiobox run` will not work; everything else does. ' +
        'Install one, for example `apt-get install gcc libc6-dev`, then run `npm rebuild vfiobox`.',
      test ? 1 : 0,
    );
  mkdirSync(build, { recursive: true });
  for (const target of wanted) {
    const output = join(build, target.output);
    const temporary = `${output}.${process.pid}.tmp`; // renamed when whole: another build or a running program never sees a half
    const command = [
      ...cc.slice(1),
      ...flags,
      ...target.flags,
      '-o',
      temporary,
      ...target.sources.map((s) => join(source, s)),
      ...target.libraries,
    ];
    const begun = new Date();
    const made = spawnSync(cc[0], command, { encoding: 'utf8' });
    if (made.stderr) process.stderr.write(made.stderr);
    if (made.error || made.status !== 0) {
      rmSync(temporary, { force: true });
      finish(
        `vfiobox: ${target.output} could not be compiled (${cc.join(' ')}, above), so \`vfiobox run\` will not work; everything else does. ` +
          'Headers missing? `apt-get install gcc libc6-dev`, then `npm rebuild vfiobox`.',
        test ? 1 : 0,
      );
    }
    utimesSync(temporary, begun, begun); // a source that changed meanwhile is newer
    renameSync(temporary, output);
  }
  if (process.arch !== 'x64')
    console.error('vfiobox: register traps need an x86-64 processor; mappings that would be trapped are refused here.');
}

if (test) {
  if (process.arch !== 'x64') finish('vfiobox: the decoder test runs on x86-64 only; 0 passed, 0 failed, 1 skipped');
  const ran = spawnSync(join(build, 'decode-test'), { stdio: 'inherit' });
  process.exit(ran.status ?? 1);
}
