/**
 * Where running boxes are found: one socket each, in a folder of the user's own, named after the box (`--name`) or its process.
 */
import { lstatSync, mkdirSync, readdirSync, rmdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';

/** `$XDG_RUNTIME_DIR/vfiobox`, or a folder in /tmp that belongs to the user alone. */
export function controlFolder(): string {
  const runtime = process.env['XDG_RUNTIME_DIR'] ?? '';
  return runtime !== '' ? join(runtime, 'vfiobox') : join('/tmp', `vfiobox-${process.getuid?.() ?? 'user'}`);
}

/** Why a box cannot be called so; undefined: it can. Digits alone are process numbers. */
export function badName(name: string): string | undefined {
  if (/^[A-Za-z0-9._-]{1,40}$/.test(name) && !/^[0-9.]/.test(name)) return undefined;
  return `'${name}' is no name for a box: a letter first, then up to 39 letters, digits, '.', '_' and '-'`;
}

/** The socket of a new box. Undefined: the folder cannot be had, or is somebody else's. */
export function controlSocketFor(name: string | undefined): string | undefined {
  const folder = controlFolder();
  try {
    mkdirSync(folder, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') return undefined;
  }
  return isOurs(folder) ? join(folder, `${name ?? process.pid}.sock`) : undefined;
}

/** After the end of a box: the socket, and the folder when it was the last one. */
export function removeControlSocket(path: string): void {
  rmSync(path, { force: true });
  if (path.startsWith(`${controlFolder()}/`)) removeControlFolder();
}

/** The folder, unless sockets are in it. */
export function removeControlFolder(): void {
  try {
    rmdirSync(controlFolder());
  } catch {
    // Others are running.
  }
}

/** Names of sockets in the folder, without `.sock`. */
export function controlNames(): string[] {
  const folder = controlFolder();
  try {
    if (!isOurs(folder)) return [];
    return readdirSync(folder)
      .filter((name) => name.endsWith('.sock'))
      .map((name) => name.slice(0, -5))
      .sort();
  } catch {
    return [];
  }
}

/** The socket that `--box` means: a path, a name or a process number. */
export function controlSocketOf(box: string): string {
  return box.includes('/') ? box : join(controlFolder(), `${box}.sock`);
}

/** Nobody else could have put sockets there. */
function isOurs(folder: string): boolean {
  const stat = lstatSync(folder, { throwIfNoEntry: false });
  return stat?.isDirectory() === true && stat.uid === process.getuid?.() && (stat.mode & 0o022) === 0;
}
