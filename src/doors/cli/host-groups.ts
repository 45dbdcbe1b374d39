/**
 * `vfiobox host groups --why`: why devices belong together and what would part them, as text or JSON. The drawings are in
 * groups-drawing.ts.
 */
import {
  type ExplainedGroup,
  type ExplainedMember,
  type ExplainedPair,
  explainGroups,
  HostFileError,
  type Machine,
  PAIRS_UP_TO,
  shortAddress,
} from '../../host/index.ts';
import { describeClass } from './class-names.ts';
import { groupsDot, groupsSvg } from './groups-drawing.ts';

export interface GroupsFlags {
  readonly json?: boolean;
  readonly dot?: boolean;
  readonly svg?: boolean;
}

/** The output for `machine`, all of it or the group of `address`. HostFileError: there is no such function, or it has no group. */
export function groupsWhy(machine: Machine, address: string | undefined, flags: GroupsFlags): string {
  const only = address === undefined ? undefined : fullName(machine, address);
  const groups = explainGroups(machine, only);
  if (only !== undefined && groups.length === 0) {
    throw new HostFileError(`${shortAddress(only)} is in no group: no IOMMU unit serves it`);
  }
  if (flags.json) return `${JSON.stringify(jsonOf(machine, groups), undefined, 2)}\n`;
  if (flags.dot) return groupsDot(machine, groups);
  if (flags.svg) return groupsSvg(machine, groups);
  const lines = groups.flatMap((group) => groupLines(group));
  const without = only === undefined ? ungrouped(machine) : [];
  if (without.length > 0)
    lines.push(`without a group (no IOMMU unit serves them): ${without.map(shortAddress).join(' ')}`);
  if (groups.some(({ pairs }) => pairs.some(({ splits }) => splits.some(({ text }) => text.includes('acsOverride'))))) {
    lines.push(
      '',
      'acsOverride: "quirks": { "acsOverride": true } of that function in the host file; on a real machine what a kernel with the',
      'pcie_acs_override patch does. It declares that a function isolates and protects nothing where that is not so.',
    );
  }
  return `${lines.join('\n')}\n`;
}

function fullName(machine: Machine, address: string): string {
  const wanted = /^[0-9a-f]{2}:/i.test(address) ? `0000:${address}` : address;
  const fn = machine.functions().find((one) => one.name === wanted.toLowerCase());
  if (fn === undefined) {
    throw new HostFileError(`there is no function '${address}' in '${machine.config.name}' (see vfiobox host ls)`);
  }
  return fn.name;
}

function ungrouped(machine: Machine): string[] {
  return machine
    .functions()
    .filter((fn) => machine.iommu.groupOf(fn) === undefined)
    .map((fn) => fn.name);
}

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');

function memberLine(member: ExplainedMember): string {
  const { at, vendor, device, kind, driver, wellBehaved } = member;
  const mark = wellBehaved === 'unknown' || wellBehaved === 'vf' ? '' : `, well behaved: ${wellBehaved}`;
  return `  ${shortAddress(at)}  ${describeClass(member.class24)} ${hex(vendor, 4)}:${hex(device, 4)}, ${kind}, ${driver ?? 'no driver'}${mark}`;
}

function groupLines(group: ExplainedGroup): string[] {
  const { id, members, alone, pairs } = group;
  const lines = [`group ${id}${members.length === 1 ? ', alone' : `, ${members.length} members`}`];
  lines.push(...members.map(memberLine));
  if (alone !== undefined) lines.push(`    apart from the others: ${alone}`);
  for (const pair of pairs) lines.push(...pairLines(pair));
  if (members.length > PAIRS_UP_TO) lines.push(`    (only pairs that are joined directly; all follow from these)`);
  return lines;
}

function pairLines({ a, b, through, joins, splits }: ExplainedPair): string[] {
  const lines = [`    ${shortAddress(a)} and ${shortAddress(b)}`];
  if (through.length > 0) lines.push(`      together through ${through.map(shortAddress).join(', ')}`);
  else lines.push(...joins.map(({ text, reason }) => `      together: ${text} [${reason}]`));
  if (splits.length === 0) lines.push('      apart: nothing in this machine would part them');
  else lines.push(...splits.map(({ text }) => `      apart with: ${text}`));
  return lines;
}

/** What `--json` prints; numbers of PCI are texts in hexadecimal, as lspci has them. */
function jsonOf(machine: Machine, groups: readonly ExplainedGroup[]): unknown {
  return {
    host: machine.config.name,
    groups: groups.map((group) => ({
      ...group,
      members: group.members.map(({ at, vendor, device, class24, ...rest }) => ({
        at,
        vendor: hex(vendor, 4),
        device: hex(device, 4),
        class: hex(class24, 6),
        ...rest,
      })),
    })),
    ungrouped: ungrouped(machine),
  };
}
