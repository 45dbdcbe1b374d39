/** Boots a Linux guest in QEMU under TCG with a test program as its only job, by itself or inside the box. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { type Outcome, run, tree } from '../box.ts';
import { writeInitramfs } from './initramfs.ts';

export interface GuestOptions {
  /** Folder of the component `guest`. */
  guest: string;
  /** A folder for the archive. */
  scratch: string;
  /** The static program or script that the guest runs. */
  test: string;
  /** Kernel modules to load before, without their dependencies. */
  modules?: readonly string[];
  /** Further files, name in the guest to path here. */
  files?: Readonly<Record<string, string>>;
  /** Added to the kernel's command line. */
  append?: string;
  /** The guest may reboot; otherwise that ends it. */
  reboots?: boolean;
  /** QEMU's further arguments: the devices under test. */
  devices: readonly string[];
  /** RAM from a shared memfd instead of anonymous memory; `off`: from a memfd that is mapped privately. */
  sharedMemory?: boolean | 'off';
  /** Gives the guest an IOMMU (VT-d), which it uses. */
  iommu?: boolean;
  /** Puts the command line into another one, e.g. `boxed`. */
  within?: (command: readonly string[]) => readonly string[];
  /** Default 120,000. */
  timeout?: number;
}

export interface GuestOutcome extends Outcome {
  /** The console's lines. */
  console: string[];
  /** Exit status of the test in the guest, or undefined when it did not end. */
  testStatus: number | undefined;
}

/** 256 MiB: all of it within reach of a device with 28 address bits. */
const MEMORY = '256M';

export async function bootGuest(options: GuestOptions): Promise<GuestOutcome> {
  const archive = join(options.scratch, 'guest.cpio');
  writeInitramfs(archive, options.guest, options.test, options.modules, options.files);
  const machine = `q35${options.sharedMemory ? ',memory-backend=m0' : ''}${options.iommu ? ',kernel-irqchip=split' : ''}`;
  const share = options.sharedMemory === 'off' ? 'off' : 'on';
  const memory = options.sharedMemory ? ['-object', `memory-backend-memfd,id=m0,size=${MEMORY},share=${share}`] : [];
  const iommu = options.iommu ? ['-device', 'intel-iommu,intremap=on,caching-mode=on'] : [];
  const command = [
    join(options.guest, 'bin/qemu-system-x86_64'),
    ...['-machine', machine],
    ...memory,
    ...iommu,
    ...['-m', MEMORY, '-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '1'],
    ...['-nographic', '-nodefaults', '-serial', 'stdio', '-net', 'none'],
    ...(options.reboots ? [] : ['-no-reboot']),
    ...['-kernel', join(options.guest, 'vmlinux'), '-initrd', archive],
    ...['-append', `console=ttyS0 panic=-1 quiet${options.iommu ? ' intel_iommu=on' : ''} ${options.append ?? ''}`],
    ...options.devices,
  ];
  const outcome = await run(options.within?.(command) ?? command, { timeout: options.timeout ?? 120_000 });
  const console = outcome.stdout.split(/\r*\n/);
  const status = console.map((line) => /^guest: exit (\d+)/.exec(line)?.[1]).find((found) => found !== undefined);
  return { ...outcome, console, testStatus: status === undefined ? undefined : Number(status) };
}

/** Compiles one of this folder's C programs for the guest; throws with the compiler's words. */
export function compileGuestProgram(name: string, scratch: string): string {
  const target = join(scratch, name);
  const source = join(tree, 'tests/support/guest', `${name}.c`);
  const cc = spawnSync('cc', ['-static', '-O1', '-Wall', '-Werror', '-o', target, source], { encoding: 'utf8' });
  if (cc.status !== 0) throw new Error(`cc ${source}: ${cc.error?.message ?? cc.stderr}`);
  return target;
}
