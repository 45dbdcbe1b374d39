/** Packs an initramfs: the static busybox of the component `guest`, chosen kernel modules in loading order, and files of the test. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { tree } from '../box.ts';

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

/** A cpio archive in the "newc" form, which the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst). */
class Cpio {
  readonly #parts: Buffer[] = [];
  #inode = 1;

  add(name: string, mode: number, content: Buffer = Buffer.alloc(0)): void {
    const path = Buffer.from(`${name}\0`);
    const fields = [this.#inode++, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, path.length, 0];
    const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`);
    this.#parts.push(header, path, padding(header.length + path.length), content, padding(content.length));
  }

  end(): Buffer {
    this.add('TRAILER!!!', 0);
    return Buffer.concat(this.#parts);
  }
}

function padding(length: number): Buffer {
  return Buffer.alloc(-length & 3);
}

/** Files of the kernel's module folder to load for these modules, dependencies first; what is built in needs nothing. */
function loadingOrder(folder: string, modules: readonly string[]): string[] {
  const name = (path: string) =>
    basename(path)
      .replace(/\.ko(\.\w+)?$/, '')
      .replaceAll('-', '_');
  const entries = new Map<string, { path: string; needs: string[] }>();
  for (const line of readFileSync(join(folder, 'modules.dep'), 'utf8').split('\n')) {
    const [path, rest] = line.split(':');
    if (path) entries.set(name(path), { path, needs: (rest ?? '').split(' ').filter(Boolean) });
  }
  const builtin = new Set(readFileSync(join(folder, 'modules.builtin'), 'utf8').split('\n').map(name));
  const order: string[] = [];
  for (const module of modules.map((wanted) => wanted.replaceAll('-', '_'))) {
    const entry = entries.get(module);
    if (entry === undefined && !builtin.has(module)) throw new Error(`the guest's kernel has no module ${module}`);
    // modules.dep lists all of a module's needs, the first to load last.
    for (const path of entry === undefined ? [] : [...entry.needs.toReversed(), entry.path]) {
      if (!order.includes(path)) order.push(path);
    }
  }
  return order;
}

/**
 * Writes the archive.
 * @param guest folder of the component `guest`
 * @param test program or script that init runs as /t/test
 * @param modules names, without their dependencies
 * @param files further files, name in the guest to path here
 */
export function writeInitramfs(
  target: string,
  guest: string,
  test: string,
  modules: readonly string[] = [],
  files: Readonly<Record<string, string>> = {},
): void {
  const release = readFileSync(join(guest, 'kernel'), 'utf8').trim();
  const folder = join(guest, 'tree/usr/lib/modules', release);
  const busybox = join(guest, 'tree/usr/bin/busybox');
  const cpio = new Cpio();
  for (const name of ['bin', 'dev', 'proc', 'sys', 'm', 't']) cpio.add(name, S_IFDIR | 0o755);
  cpio.add('init', S_IFREG | 0o755, readFileSync(join(tree, 'tests/support/guest/init.sh')));
  cpio.add('bin/busybox', S_IFREG | 0o755, readFileSync(busybox));
  const applets = spawnSync(busybox, ['--list'], { encoding: 'utf8' });
  for (const applet of applets.stdout.split('\n')) {
    if (applet !== '' && applet !== 'busybox') cpio.add(`bin/${applet}`, S_IFLNK | 0o777, Buffer.from('busybox'));
  }
  const order = loadingOrder(folder, modules).map((path) => {
    const name = basename(path).replace(/\.xz$/, '');
    const packed = join(folder, path);
    if (!existsSync(packed)) throw new Error(`no module file ${packed}`);
    const content = path.endsWith('.xz')
      ? spawnSync(join(guest, 'bin/xz'), ['-dc', packed], { maxBuffer: 64 << 20 }).stdout
      : readFileSync(packed);
    cpio.add(`m/${name}`, S_IFREG | 0o644, content);
    return name;
  });
  cpio.add('m/order', S_IFREG | 0o644, Buffer.from(order.map((name) => `${name}\n`).join('')));
  cpio.add('t/test', S_IFREG | 0o755, readFileSync(test));
  for (const [name, path] of Object.entries(files)) cpio.add(name, S_IFREG | 0o755, readFileSync(path));
  writeFileSync(target, cpio.end());
}
