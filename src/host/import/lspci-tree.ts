/**
 * A tree as `lspci -t` draws it (also -tv, -tvnn), with lines about single functions behind it if there are any. It shows who is behind
 * whom and no bytes, so that kinds of bridges are taken from their names, or follow from what is behind them.
 *
 * -[0000:00]-+-1e.0-[06]--+-0d.0
 *                         \-0d.1
 * 00:1e.0 PCI bridge: Intel Corporation 82801 PCI Bridge (rev 90)
 */
import { type Dump, type DumpedFunction, nameOf, parseName, refuse } from './dump.ts';

const TOKEN = /\[(?:([0-9a-f]{4,8}):)?([0-9a-f]{2})(?:-([0-9a-f]{2}))?\]|([01][0-9a-f])\.([0-7])(?= |-|$)/gi;
const DESCRIPTION = /^((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]) (.+)$/i;

export function isTree(text: string): boolean {
  const first = text.split('\n').find((line) => line.trim() !== '' && !line.startsWith('#'));
  return first !== undefined && /^\s*-(?:\+-)?\[(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}\]/i.test(first);
}

interface OpenBus {
  readonly segment: number;
  readonly bus: number;
  /** Where its functions stand in the text; -1 until the first. */
  column: number;
}

type Mutable = { -readonly [K in keyof DumpedFunction]: DumpedFunction[K] };

export function readTree(text: string, origin: string): Dump {
  const functions: Mutable[] = [];
  const open: OpenBus[] = [];
  text.split(/\r?\n/).forEach((line, i) => {
    const where = `${origin}:${i + 1}`;
    if (line.startsWith('#') || /^[\s|]*$/.test(line)) return;
    const description = DESCRIPTION.exec(line);
    if (description !== null) describe(functions, description[1]!, description[2]!, where);
    else readLine(line, where, functions, open);
  });
  return { origin, functions };
}

function describe(functions: readonly Mutable[], name: string, text: string, where: string): void {
  const address = parseName(name)!;
  const fn = functions.find((one) => nameOf(one) === nameOf(address));
  if (fn === undefined) refuse(where, `${name} is not in the tree above`);
  fn.text = text;
}

function readLine(line: string, where: string, functions: Mutable[], open: OpenBus[]): void {
  const drawing = /^[\s|+\\-]*/.exec(line)![0].length;
  let last: Mutable | undefined;
  let end = 0;
  let isFirst = true;
  for (const match of line.matchAll(TOKEN)) {
    const between = line.slice(end, match.index);
    // What follows two spaces is a name, which may contain anything.
    if (!isFirst && !/^[-+\\]*$/.test(between)) break;
    if (isFirst && match.index !== drawing) break;
    end = match.index + match[0].length;
    const [, segment, bus, subordinate, slot, fn] = match;
    if (bus !== undefined) {
      const number = Number.parseInt(bus, 16);
      if (last === undefined) {
        if (!isFirst) refuse(where, `bus [${bus}] has no bridge before it`);
        open.length = 0;
        open.push({ segment: Number.parseInt(segment ?? '0', 16), bus: number, column: -1 });
      } else {
        last.behind = { secondary: number, subordinate: Number.parseInt(subordinate ?? bus, 16) };
        open.push({ segment: last.segment, bus: number, column: -1 });
      }
      last = undefined;
    } else {
      const home = homeOf(open, match.index, isFirst, where);
      const devfn = (Number.parseInt(slot!, 16) << 3) | Number.parseInt(fn!, 16);
      last = { segment: home.segment, bus: home.bus, devfn, where, config: undefined };
      functions.push(last);
    }
    isFirst = false;
  }
  if (isFirst)
    refuse(
      where,
      `'${line.slice(0, 60)}' is no line of a tree as lspci -t draws it, such as "-[0000:00]-+-1e.0-[06]--+-0d.0"`,
    );
  const name = line.slice(end).trim();
  if (last !== undefined && name !== '') last.text = name;
}

/** The bus on which a function at this column stands. */
function homeOf(open: OpenBus[], column: number, isFirst: boolean, where: string): OpenBus {
  const newest = open[open.length - 1];
  if (newest !== undefined && !isFirst && newest.column < 0) {
    newest.column = column;
    return newest;
  }
  const at = open.findLastIndex((one) => one.column === column);
  if (at < 0 || !isFirst)
    return refuse(where, `a function at column ${column + 1} is below no other: the tree is damaged or cut off`);
  open.length = at + 1;
  return open[at]!;
}
