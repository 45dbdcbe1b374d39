/** How another process has mapped a file whose descriptor it gave us. */
import { readFileSync } from 'node:fs';

/** A file as `inodeOf` tells it. */
export interface FileIdentity {
  readonly major: number;
  readonly minor: number;
  readonly inode: number;
}

/**
 * `private`: the process has the file mapped, and every mapping is its own copy, so that neither side sees what the other writes. `shared`:
 * there is a mapping that is shared. Undefined: it has the file not mapped, or /proc/PID/maps cannot be read; nothing is known then.
 */
export function howMapped(pid: number, file: FileIdentity): 'private' | 'shared' | undefined {
  // A process of another PID namespace has no number here.
  if (pid <= 0) return undefined;
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/maps`, 'utf8');
  } catch {
    return undefined;
  }
  const hex = (value: number): string => value.toString(16).padStart(2, '0');
  const key = ` ${hex(file.major)}:${hex(file.minor)} ${file.inode} `;
  let found: 'private' | undefined;
  for (let at = text.indexOf(key); at >= 0; at = text.indexOf(key, at + key.length)) {
    const start = text.lastIndexOf('\n', at) + 1;
    // `start-end rwxp offset major:minor inode name`; a name that looks like the key comes later in its line.
    const fields = text.slice(start, at).split(' ');
    if (fields.length !== 3) continue;
    if (fields[1]!.endsWith('s')) return 'shared';
    found = 'private';
  }
  return found;
}
