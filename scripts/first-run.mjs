// Compiles examples/first-program.c, which knows nothing of vfiobox, and runs it in a box: what `npm start` shows.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const top = dirname(dirname(fileURLToPath(import.meta.url)));
const source = join('examples', 'first-program.c');
const program = join('build', 'first-program');

function stop(line) {
  console.error(`vfiobox: ${line}`);
  process.exit(125);
}

function compile() {
  const flags = ['-O2', '-Wall', '-o', program, source];
  for (const compiler of [process.env.CC, 'cc', 'gcc', 'clang']) {
    if (!compiler) continue;
    const [command, ...rest] = compiler.split(/\s+/);
    const result = spawnSync(command, [...rest, ...flags], {
      cwd: top,
      stdio: ['ignore', 'inherit', 'pipe'],
      encoding: 'utf8',
    });
    if (result.error) continue;
    if (result.status === 0) return;
    if (/linux\/vfio\.h/.test(result.stderr))
      stop(`${source} needs linux/vfio.h; install the kernel headers (Debian: linux-libc-dev)`);
    process.stderr.write(result.stderr);
    stop(`${command} could not compile ${source}`);
  }
  stop('there is no C compiler; install gcc or clang (Debian: apt install gcc libc6-dev), then run npm start again');
}

mkdirSync(join(top, 'build'), { recursive: true });
compile();
if (!existsSync(join(top, 'dist/src/doors/cli/main.js'))) stop("not built yet; run 'npm run build'");

const command = ['run', '--explain', '--', program];
console.log(`An ordinary VFIO program (${source}), compiled without vfiobox, run without hardware and without root:\n`);
console.log(`$ bin/vfiobox ${command.join(' ')}`);
const { status, signal } = spawnSync(process.execPath, [join('bin', 'vfiobox'), ...command], {
  cwd: top,
  stdio: 'inherit',
});
if (status === 0) {
  console.log(`
The program found the device in /sys, opened its IOMMU group, gave it memory, read registers, took an interrupt, moved data by
DMA, and was refused what the kernel refuses; the line that starts with "vfiobox:" is the reason, which a kernel never tells.
Next: bin/vfiobox host ls      the machine that it saw
      bin/vfiobox run -- YOUR-PROGRAM`);
} else {
  console.error(
    `\nThe program ended with ${signal ? `signal ${signal}` : `exit status ${status}`}; this should not happen.`,
  );
}
process.exit(status ?? 1);
