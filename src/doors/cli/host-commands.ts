/** `vfiobox host ls|groups|check`: the machine of a host file, for people. Nothing of the system is touched. */
import { type HostConfig, HostFileError, loadHostOrDump, Machine, ManualClock } from '../../host/index.ts';
import { describeClass } from './class-names.ts';
import { type GroupsFlags, groupsWhy } from './host-groups.ts';

type Fn = ReturnType<Machine['functions']>[number];

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
const shortName = (fn: Fn): string => fn.name.replace(/^0000:/, '');

function describe(fn: Fn): string {
  return `${describeClass(fn.class24)}: ${hex(fn.vendor, 4)}:${hex(fn.device, 4)} (rev ${hex(fn.revision, 2)})`;
}

/** The machine of a host file, for looking at: nothing of the system is touched. */
export function build(config: HostConfig): Machine {
  return new Machine(config, {
    clock: new ManualClock(),
    allocateShared: (_name, length) => {
      const memory = new Uint8Array(length);
      return { length, bytes: () => memory, revoke() {}, restore() {}, close() {} };
    },
    log() {},
  });
}

/** One line for each function: address, class, ids, model, driver, group. */
export function list(machine: Machine): string[] {
  const rows = machine.functions().map((fn) => {
    const group = machine.iommu.groupOf(fn)?.id;
    return [
      `${shortName(fn)} ${describe(fn)}`,
      machine.hotplug.described.get(fn)?.model ?? (fn.isVirtfn ? `VF of ${shortName(fn.physfn!)}` : ''),
      machine.drivers.driverOf(fn) ?? '(no driver)',
      group === undefined ? 'no group' : `group ${group}`,
    ];
  });
  const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd(),
  );
}

/** Each group with its members and why each of them is in it. */
export function listGroups(machine: Machine): string[] {
  const lines: string[] = [];
  const members = new Map<number, Fn[]>();
  for (const fn of machine.functions()) {
    const id = machine.iommu.groupOf(fn)?.id;
    if (id !== undefined) members.set(id, [...(members.get(id) ?? []), fn]);
  }
  for (const [id, functions] of [...members].sort(([a], [b]) => a - b)) {
    lines.push(`group ${id}`);
    for (const fn of functions) {
      const driver = machine.drivers.driverOf(fn) ?? 'no driver';
      lines.push(`  ${shortName(fn)} ${describe(fn)}, ${driver}`, `    ${machine.iommu.reason(fn)}`);
    }
  }
  const without = machine.functions().filter((fn) => machine.iommu.groupOf(fn) === undefined);
  if (without.length > 0) lines.push(`without a group: ${without.map(shortName).join(' ')}`);
  return lines;
}

function check(machine: Machine): string[] {
  const functions = machine.functions();
  const groups = new Set(functions.map((fn) => machine.iommu.groupOf(fn)?.id).filter((id) => id !== undefined));
  const given = functions.filter((fn) => ['vfio-pci', 'vfio'].includes(machine.drivers.driverOf(fn) ?? ''));
  return [
    `'${machine.config.name}' is good: ${functions.length} functions, ${groups.size} IOMMU groups, ${machine.config.iommu.units.length} IOMMU units`,
    `given to programs (vfio-pci): ${given.length === 0 ? 'none' : given.map(shortName).join(' ')}`,
  ];
}

/** Runs one of the commands; the result is the exit status. `fail` prints a message and gives the status of a failure. */
export function hostCommands(
  command: string,
  host: string,
  out: (text: string) => void,
  fail: (message: string) => number,
): number {
  return printed(out, fail, () => {
    const machine = build(loadHostOrDump(host));
    const lines = command === 'ls' ? list(machine) : check(machine);
    return `${lines.join('\n')}\n`;
  });
}

/** `host groups`: with `why`, the reasons pair by pair, of all groups or of that of `address`. */
export function hostGroups(
  request: GroupsFlags & { readonly host: string; readonly why: boolean; readonly address?: string | undefined },
  out: (text: string) => void,
  fail: (message: string) => number,
): number {
  return printed(out, fail, () => {
    const machine = build(loadHostOrDump(request.host));
    if (!request.why) return `${listGroups(machine).join('\n')}\n`;
    return groupsWhy(machine, request.address, request);
  });
}

/** Nothing is written when the text cannot be made. */
function printed(out: (text: string) => void, fail: (message: string) => number, make: () => string): number {
  let text: string;
  try {
    text = make();
  } catch (error) {
    if (!(error instanceof HostFileError)) throw error;
    return fail(error.message);
  }
  out(text);
  return 0;
}
