/**
 * Linux's ida as a user-space program, built from a source tree of the kernel that is at hand: `VFIOBOX_LINUX=FOLDER`, or the folder
 * that Debian's linux-source-7.2 unpacks to. Its tools/testing/shared has what the kernel's code needs beside it; RCU, which one
 * thread does not need, is done without. Everything is built in a temporary folder.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

const SOURCES = [
  'lib/radix-tree.c',
  'lib/idr.c',
  'tools/testing/shared/linux.c',
  ...['slab', 'find_bit', 'bitmap', 'hweight', 'vsprintf'].map((name) => `tools/lib/${name}.c`),
];
const FOLDERS = ['tools/testing/shared', 'tools/include', 'tools/arch/x86/include', 'lib', 'tools/testing/radix-tree'];

/** Chunks of 64 as in the kernel; for one thread RCU frees at once, and counters need no atomics. */
const FILES: Record<string, string> = {
  'generated/map-shift.h': '#define XA_CHUNK_SHIFT 6\n',
  'generated/bit-length.h': '#define CONFIG_64BIT 1\n#define CONFIG_PHYS_ADDR_T_64BIT 1\n',
  'generated/autoconf.h': '#include "bit-length.h"\n#define CONFIG_XARRAY_MULTI 1\n',
  'urcu/uatomic.h': '#include <urcu.h>\n',
  'urcu.h': `#pragma once
struct rcu_head { struct rcu_head *next; void (*func)(struct rcu_head *); };
#define rcu_read_lock() do { } while (0)
#define rcu_read_unlock() do { } while (0)
#define rcu_dereference(p) (p)
#define rcu_assign_pointer(p, v) ((p) = (v))
#define call_rcu(head, done) (done)(head)
#define uatomic_inc(p) (++*(p))
#define uatomic_dec(p) (--*(p))
`,
  'xarray.c': '#include "shared.h"\n#include "../lib/xarray.c"\n',
};

/** The compiled program, or a sentence that says why there is none. `main`: bench/ida-twin.c. */
export function compileKernelIda(folder: string, main: string): { program: string } | { missing: string } {
  const { VFIOBOX_LINUX } = process.env;
  const places = [VFIOBOX_LINUX, '/usr/src/linux-source-7.2'];
  const source = places.find((place) => place !== undefined && SOURCES.every((name) => existsSync(join(place, name))));
  if (source === undefined) return { missing: 'no Linux source tree at hand (VFIOBOX_LINUX=FOLDER names one)' };
  const work = join(folder, 'ida');
  for (const [name, text] of Object.entries(FILES)) {
    mkdirSync(dirname(join(work, name)), { recursive: true });
    writeFileSync(join(work, name), text.replace('../lib/', `${source}/lib/`));
  }
  const program = join(work, 'ida-twin');
  const includes = [work, ...FOLDERS.map((name) => join(source, name))].map((path) => `-I${path}`);
  const files = [main, join(work, 'xarray.c'), ...SOURCES.map((name) => join(source, name))];
  try {
    const args = ['-O2', '-w', '-D_LGPL_SOURCE', ...includes, '-o', program, ...files, '-lpthread'];
    execFileSync('cc', args, { stdio: ['ignore', 'ignore', 'pipe'] });
    return { program };
  } catch (error) {
    const text = String((error as { stderr?: Buffer }).stderr ?? error);
    return { missing: `the ida of ${source} does not compile here: ${text.split('\n')[0]}` };
  }
}
