/**
 * How the generated tree comes to lie over the real /sys in a program's own mount namespace. The launcher carries the plan out.
 *
 * A folder that exists is covered. For one that does not, its parent is replaced by an empty one in which everything the parent holds
 * is bound again, beside ours; what the parent held is first bound to a place of its own, since the new folder hides it.
 */
import { existsSync, lstatSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** The few questions asked about the real tree; a test answers them from a table. */
export interface RealTree {
  isFolder(path: string): boolean;
  exists(path: string): boolean;
  list(path: string): string[];
}

const system: RealTree = {
  isFolder: (path) => statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false,
  exists: (path) => lstatSync(path, { throwIfNoEntry: false }) !== undefined,
  list: (path) => readdirSync(path),
};

/**
 * Lines of the plan. `prefixes`: absolute paths of folders that the tree replaces; `root`: where the generated tree lies; `stash`: an
 * existing empty folder for what is hidden; folders for it are made through `makeFolder`.
 */
export function mountPlan(
  prefixes: readonly string[],
  root: string,
  stash: string,
  real: RealTree = system,
  makeFolder: (path: string) => void = (path) => mkdirSync(path),
): string[] {
  const lines: string[] = [];
  const missing = new Map<string, string[]>();
  for (const prefix of [...prefixes].sort()) {
    if (real.isFolder(prefix)) {
      lines.push(`bind ${root}${prefix} ${prefix}`);
      continue;
    }
    let parent = dirname(prefix);
    while (!real.isFolder(parent)) parent = dirname(parent);
    missing.set(parent, [...(missing.get(parent) ?? []), prefix]);
  }
  let number = 0;
  // Outer folders first: what is put over an inner one would be hidden otherwise.
  const replaced: string[] = [];
  for (const [parent, ours] of [...missing].sort(([a], [b]) => a.length - b.length)) {
    const kept = join(stash, String(number++));
    makeFolder(kept);
    replaced.push(`bind ${parent} ${kept}`, `tmpfs ${parent}`);
    for (const name of real.list(parent)) {
      const path = join(parent, name);
      if (ours.some((prefix) => prefix === path || prefix.startsWith(`${path}/`))) continue;
      if (real.isFolder(path)) replaced.push(`bind ${join(kept, name)} ${path}`);
      else if (real.exists(path)) replaced.push(`link ${join(kept, name)} ${path}`);
    }
    for (const prefix of ours) replaced.push(`bind ${root}${prefix} ${prefix}`);
  }
  // A prefix that exists below a replaced parent must be covered after its parent came back.
  return [...replaced, ...lines];
}

/** Whether the generated tree has the folder; a prefix without one is left out of the plan. */
export function existingPrefixes(prefixes: readonly string[], root: string): string[] {
  return prefixes.filter((prefix) => existsSync(root + prefix));
}
