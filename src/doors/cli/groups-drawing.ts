/**
 * Groups as drawings: the tree of buses, coloured by group, with what joined each function. `dot` for Graphviz, and an SVG with a
 * layout of its own: depth to the right, one function a line.
 */
import { type ExplainedGroup, type Machine, shortAddress } from '../../host/index.ts';
import { describeClass } from './class-names.ts';

interface Drawn {
  readonly name: string;
  readonly label: string;
  readonly group: ExplainedGroup | undefined;
  /** What joins it to another member, in short and in full. */
  readonly reason: string;
  readonly title: string;
  readonly children: Drawn[];
}

interface Root {
  readonly name: string;
  readonly children: Drawn[];
}

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');

/** The part of the machine that the groups need: their members and the bridges above. */
function forest(machine: Machine, groups: readonly ExplainedGroup[]): Root[] {
  const groupOf = new Map(groups.flatMap((group) => group.members.map((member) => [member.at, group] as const)));
  const functions = machine.functions();
  const isWanted = new Set<string>();
  for (const fn of functions) {
    if (!groupOf.has(fn.name)) continue;
    isWanted.add(fn.name);
    for (let bus = fn.bus; bus.parent !== undefined; bus = bus.parent)
      if (bus.self !== undefined) isWanted.add(bus.self.name);
  }
  const drawn = new Map<string, Drawn>();
  const roots = new Map<string, Root>();
  for (const fn of functions) {
    if (!isWanted.has(fn.name)) continue;
    const group = groupOf.get(fn.name);
    const joins = group?.joins.filter(({ a, b }) => a === fn.name || b === fn.name) ?? [];
    const node: Drawn = {
      name: fn.name,
      label: `${shortAddress(fn.name)}  ${hex(fn.vendor, 4)}:${hex(fn.device, 4)} ${describeClass(fn.class24)}`,
      group,
      reason: group?.members.find(({ at }) => at === fn.name)?.reason ?? '',
      title: joins.map(({ text }) => text).join('\n'),
      children: [],
    };
    drawn.set(fn.name, node);
    let bus = fn.bus;
    while (bus.self === undefined && bus.parent !== undefined) bus = bus.parent;
    const above = bus.self === undefined ? undefined : drawn.get(bus.self.name);
    if (above !== undefined) above.children.push(node);
    else {
      const root = roots.get(bus.name) ?? { name: bus.name, children: [] };
      roots.set(bus.name, root);
      root.children.push(node);
    }
  }
  return [...roots.values()];
}

/** A colour for each group with several members, far from that of its neighbours; white for those alone. */
function colour(group: ExplainedGroup | undefined): string {
  if (group === undefined) return '#eeeeee';
  if (group.members.length === 1) return '#ffffff';
  const hue = (group.id * 137) % 360;
  return hsl(hue / 360, 0.65, 0.85);
}

function hsl(hue: number, saturation: number, light: number): string {
  const channel = (n: number): string => {
    const k = (n + hue * 12) % 12;
    const value = light - saturation * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1));
    return hex(Math.round(255 * value), 2);
  };
  return `#${channel(0)}${channel(8)}${channel(4)}`;
}

/** For Graphviz: functions in a box for each group, the tree as lines, relations between members dashed. */
export function groupsDot(machine: Machine, groups: readonly ExplainedGroup[]): string {
  const quote = (text: string): string => `"${text.replace(/["\\]/g, '\\$&').replace(/\n/g, '\\n')}"`;
  const lines = [
    'digraph groups {',
    '  rankdir=LR;',
    '  node [shape=box, style=filled, fontname="sans-serif", fontsize=10];',
  ];
  const edges: string[] = [];
  const outside: string[] = [];
  const byGroup = new Map<ExplainedGroup, string[]>();
  const visit = (node: Drawn, above: string): void => {
    const line = `${quote(node.name)} [label=${quote(node.label)}, fillcolor=${quote(colour(node.group))}];`;
    if (node.group === undefined) outside.push(`  ${line}`);
    else byGroup.set(node.group, [...(byGroup.get(node.group) ?? []), line]);
    edges.push(`  ${quote(above)} -> ${quote(node.name)} [arrowhead=none];`);
    for (const child of node.children) visit(child, node.name);
  };
  for (const root of forest(machine, groups)) {
    outside.push(`  ${quote(root.name)} [label=${quote(`bus ${root.name}`)}, shape=ellipse, fillcolor="#eeeeee"];`);
    for (const node of root.children) visit(node, root.name);
  }
  for (const [group, members] of byGroup) {
    lines.push(`  subgraph cluster_${group.id} {`, `    label=${quote(`group ${group.id}`)};`);
    lines.push(...members.map((line) => `    ${line}`), '  }');
  }
  lines.push(...outside, ...edges);
  for (const { a, b, reason, text } of groups.flatMap(({ joins }) => joins)) {
    const look = 'style=dashed, color=red, fontcolor=red, fontsize=9, constraint=false, dir=none';
    lines.push(`  ${quote(a)} -> ${quote(b)} [${look}, label=${quote(reason)}, tooltip=${quote(text)}];`);
  }
  return `${[...lines, '}'].join('\n')}\n`;
}

const ROW = 40;
const COLUMN = 48;
const BOX = { width: 400, height: 32 };

/** A picture that needs no other program. */
export function groupsSvg(machine: Machine, groups: readonly ExplainedGroup[]): string {
  const plain = (text: string): string => text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
  const parts: string[] = [];
  let row = 0;
  let deepest = 0;
  const box = (depth: number, fill: string, text: readonly string[], title: string): number => {
    const x = 10 + depth * COLUMN;
    const y = 10 + row++ * ROW;
    deepest = Math.max(deepest, depth);
    parts.push(
      `<g>${title === '' ? '' : `<title>${plain(title)}</title>`}`,
      `<rect x="${x}" y="${y}" width="${BOX.width}" height="${BOX.height}" rx="4" fill="${fill}" stroke="#555"/>`,
      ...text.map(
        (line, i) =>
          `<text x="${x + 8}" y="${y + 13 + 13 * i}"${i === 0 ? '' : ' fill="#900" font-size="10"'}>${plain(line)}</text>`,
      ),
      '</g>',
    );
    return y;
  };
  const visit = (node: Drawn, depth: number, above: number): void => {
    const { group } = node;
    const number = group === undefined ? 'no group drawn' : `group ${group.id}`;
    const second =
      group === undefined || group.members.length === 1
        ? []
        : [node.reason === 'own' ? 'first of its group' : node.reason];
    const y = box(depth, colour(group), [`${node.label}   ${number}`, ...second], node.title);
    const x = 10 + (depth - 1) * COLUMN + COLUMN / 2;
    const middle = y + BOX.height / 2;
    parts.push(`<path d="M${x} ${above + BOX.height}V${middle}H${10 + depth * COLUMN}" fill="none" stroke="#555"/>`);
    for (const child of node.children) visit(child, depth + 1, y);
  };
  for (const root of forest(machine, groups)) {
    const y = box(0, '#eeeeee', [`bus ${root.name}`], '');
    for (const node of root.children) visit(node, 1, y);
  }
  const width = 20 + deepest * COLUMN + BOX.width;
  const height = 20 + row * ROW;
  const head = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">`;
  return `${[head, `<rect width="${width}" height="${height}" fill="#fff"/>`, ...parts, '</svg>'].join('\n')}\n`;
}
