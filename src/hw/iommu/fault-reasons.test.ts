import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { PageRequest } from '../pci/ats.ts';
import { type Access, READ, WRITE } from '../pci/dma.ts';
import { legacyContext, type PasidEntry } from './entries.ts';
import { FaultReason } from './faults.ts';
import { RID, TestUnit } from './test-unit.ts';
import type { IommuUnitOptions } from './unit.ts';

/** No memory answers here. */
const NOWHERE = 2 ** 30;
const FS_TABLE = 0x27n;
const SS_TABLE = 3n;
const PAGE = 5;
const endpoint = { invalidate: () => true, respond: () => {} };

interface Case {
  readonly code: number;
  readonly what: string;
  /** Builds what is wrong, and returns the codes that a request meets. */
  readonly meets: () => string;
  readonly text: RegExp;
}

const cases: Case[] = [];
function reach(code: number, what: string, text: RegExp, meets: () => string): void {
  cases.push({ code, what, text, meets });
}

const legacy: IommuUnitOptions = { preset: 'legacy-nosc' };

/** A legacy unit with one mapped page, in RAM; `change` damages it. */
function inLegacy(change: (machine: TestUnit, tables: number[]) => void, access: Access = READ, page = PAGE): string {
  const machine = new TestUnit(legacy);
  const target = machine.page();
  const tables = machine.path(4, PAGE, (BigInt(target) << 12n) | 3n, SS_TABLE);
  machine.unit.root.setLegacy(RID, legacyContext({ did: 5, secondStage: { page: tables[0]!, levels: 4 } }));
  change(machine, tables);
  return machine.outcome(-1, page, access);
}

const contextWord = (machine: TestUnit): { page: number; index: number } => machine.unit.root.contextPlace(RID)!;
function set(
  machine: TestUnit,
  place: { page: number; index: number },
  change: (value: bigint) => bigint,
  qword = 0,
): void {
  machine.put(place.page, place.index + qword, change(machine.get(place.page, place.index + qword)));
}

reach(1, 'legacy: no root entry', /root entry .* not present/, () =>
  inLegacy((machine) => machine.put(machine.unit.root.page, 12, 0n)),
);
reach(2, 'legacy: no context entry', /context entry .* not present/, () =>
  inLegacy((machine) => set(machine, contextWord(machine), () => 0n)),
);
reach(3, 'legacy: translation type 3', /not valid/, () =>
  inLegacy((machine) => set(machine, contextWord(machine), (value) => value | 0xcn)),
);
reach(4, 'legacy: beyond MGAW', /48 bits/, () => inLegacy(() => {}, READ, 2 ** 36));
reach(5, 'legacy: leaf without W', /no write permission in the leaf at level 0/, () =>
  inLegacy((machine, tables) => machine.put(tables[3]!, PAGE, 0x1001n), WRITE),
);
reach(6, 'legacy: leaf without R', /no read permission in the leaf at level 0/, () =>
  inLegacy((machine, tables) => machine.put(tables[3]!, PAGE, 0x1002n)),
);
reach(7, 'legacy: table outside memory', /level 2/, () =>
  inLegacy((machine, tables) => machine.put(tables[0]!, 0, (BigInt(NOWHERE) << 12n) | 3n)),
);
reach(8, 'legacy: root table outside memory', /root entry/, () =>
  inLegacy((machine) => (machine.unit.requesters.root = { page: NOWHERE, isScalable: false, isInvalid: false })),
);
reach(9, 'legacy: context table outside memory', /context entry/, () =>
  inLegacy((machine) => machine.put(machine.unit.root.page, 12, (BigInt(NOWHERE) << 12n) | 1n)),
);
reach(0xa, 'legacy: reserved bit in the root entry', /root entry .* reserved/, () =>
  inLegacy((machine) => set(machine, { page: machine.unit.root.page, index: 12 }, (value) => value | 2n)),
);
reach(0xb, 'legacy: reserved bit in the context entry', /context entry .* reserved/, () =>
  inLegacy((machine) => set(machine, contextWord(machine), (value) => value | 0x10n)),
);
reach(0xc, 'legacy: SNP without snoop control', /SNP/, () =>
  inLegacy((machine, tables) => machine.put(tables[3]!, PAGE, 0x1803n)),
);
reach(0xd, 'legacy: translation request while TT is 0', /translation requests/, () => {
  const machine = new TestUnit(legacy);
  machine.unit.root.setLegacy(RID, legacyContext({ did: 5, secondStage: { page: machine.page(), levels: 4 } }));
  assert.equal(machine.unit.translationRequest(endpoint, RID, PAGE, {}), undefined);
  lastDetail = machine.unit.lastFault!.detail;
  return machine.unit.lastFault!.reason.toString(16);
});
reach(0x31, 'legacy: a PASID', /PASID/, () => {
  const machine = new TestUnit(legacy);
  machine.unit.root.setLegacy(RID, legacyContext({ did: 5, secondStage: undefined }));
  return note(machine, machine.outcome(3, PAGE, READ));
});

const wholePageRequest: PageRequest = {
  pasid: 3,
  page: PAGE,
  read: true,
  write: false,
  exec: false,
  privileged: false,
  last: true,
  group: 1,
};

function refusedPageRequest(machine: TestUnit, request = wholePageRequest): string {
  assert.equal(machine.unit.pageRequest(endpoint, RID, request), false);
  return note(machine, machine.unit.lastFault!.reason.toString(16));
}

reach(0x32, 'legacy: a page request', /page request/, () => refusedPageRequest(new TestUnit(legacy)));

let lastDetail = '';
function note(machine: TestUnit, code: string): string {
  lastDetail = machine.unit.lastFault?.detail ?? '';
  return code;
}

type Kind = 'first' | 'second' | 'nested';
interface Scalable {
  readonly machine: TestUnit;
  /** Tables of the stages, top first; those of a nested first stage are guest pages. */
  readonly first: number[];
  readonly second: number[];
}

/**
 * A scalable unit whose PASID 3 maps PAGE; `change` damages it. Nested: the second stage maps each page of RAM to itself, one 2 MiB
 * leaf (read and write) for all.
 */
function inScalable(
  kind: Kind,
  change: (world: Scalable) => void,
  access: Access = READ,
  how: { exec?: boolean; privileged?: boolean; page?: number; entry?: Partial<PasidEntry> } = {},
): string {
  const machine = new TestUnit();
  const target = machine.page();
  const first = machine.path(4, PAGE, (BigInt(target) << 12n) | 7n, FS_TABLE);
  const second =
    kind === 'nested'
      ? machine.path(4, machine.ramPage, (BigInt(machine.ramPage) << 12n) | 0x83n, SS_TABLE, 1)
      : machine.path(4, PAGE, (BigInt(target) << 12n) | 3n, SS_TABLE);
  const stages = {
    ...(kind === 'second' ? {} : { firstStage: { page: first[0]!, levels: 4 } }),
    ...(kind === 'first' ? {} : { secondStage: { page: second[0]!, levels: 4 } }),
  };
  machine.bind(3, { type: kind, did: 9, isWalkSnooped: true, ...stages, ...how.entry });
  change({ machine, first, second });
  return note(machine, machine.outcome(3, how.page ?? PAGE, access, how));
}

const pasidPlace = (machine: TestUnit): { page: number; index: number } => machine.unit.root.pasidPlace(RID, 3)!;
const rootPlace = (machine: TestUnit): { page: number; index: number } => ({
  page: machine.unit.root.page,
  index: 12,
});
const directoryPlace = (machine: TestUnit): { page: number; index: number } => {
  const { page, index } = contextWord(machine);
  return { page: Number((machine.get(page, index) >> 12n) & 0xff_ffff_ffffn), index: 0 };
};
const nowhere = (bits: bigint) => (): bigint => (BigInt(NOWHERE) << 12n) | bits;

reach(0x30, 'RTADDR names no mode', /RTADDR/, () =>
  inScalable(
    'second',
    ({ machine }) => (machine.unit.requesters.root = { page: 1, isScalable: true, isInvalid: true }),
  ),
);
reach(0x38, 'root table outside memory', /root entry/, () =>
  inScalable('second', ({ machine }) => {
    machine.unit.requesters.root = { page: NOWHERE, isScalable: true, isInvalid: false };
  }),
);
reach(0x39, 'no root entry', /root entry .* not present/, () =>
  inScalable('second', ({ machine }) => set(machine, rootPlace(machine), () => 0n)),
);
reach(0x3a, 'reserved bit in the root entry', /reserved/, () =>
  inScalable('second', ({ machine }) => set(machine, rootPlace(machine), (value) => value | 4n)),
);
reach(0x40, 'context table outside memory', /context entry/, () =>
  inScalable('second', ({ machine }) => set(machine, rootPlace(machine), nowhere(1n))),
);
reach(0x41, 'no context entry', /not present/, () =>
  inScalable('second', ({ machine }) => set(machine, contextWord(machine), () => 0n)),
);
reach(0x42, 'reserved bit in the context entry', /reserved/, () =>
  inScalable('second', ({ machine }) => set(machine, contextWord(machine), (value) => value | 1n, 2)),
);
reach(0x43, 'a context entry that the unit cannot do', /not valid/, () => {
  const machine = new TestUnit({ preset: 'sm-noprs' });
  machine.bind(3, { type: 'pass-through', did: 1 });
  return note(machine, machine.outcome(3, PAGE, READ));
});
reach(0x44, 'translated request while DTE is clear', /translated requests/, () => {
  const machine = new TestUnit();
  machine.unit.setRights(RID, { hasDeviceTlb: false, hasPasids: true, hasPageRequests: false });
  assert.equal(machine.unit.request(RID, PAGE, READ, { translated: true }), -1);
  return note(machine, machine.unit.lastFault!.reason.toString(16));
});
reach(0x45, 'PASID while PASIDE is clear', /allows no PASIDs/, () => {
  const machine = new TestUnit();
  machine.unit.setRights(RID, { hasDeviceTlb: false, hasPasids: false, hasPageRequests: false });
  return note(machine, machine.outcome(3, PAGE, READ));
});
reach(0x46, 'PASID beyond the directory', /beyond the directory/, () => {
  const machine = new TestUnit();
  machine.unit.setRights(RID, { hasDeviceTlb: false, hasPasids: true, hasPageRequests: false });
  return note(machine, machine.outcome(2 ** 15, PAGE, READ));
});
reach(0x47, 'page request while PRE is clear', /page requests/, () => {
  const machine = new TestUnit();
  machine.unit.setRights(RID, { hasDeviceTlb: false, hasPasids: true, hasPageRequests: false });
  return refusedPageRequest(machine);
});
reach(0x48, 'RID_PASID beyond the directory', /beyond the directory/, () => {
  const machine = new TestUnit();
  machine.bind(0, { type: 'pass-through', did: 1 });
  set(machine, contextWord(machine), (value) => value | 0xf_ffffn, 1);
  return note(machine, machine.outcome(-1, PAGE, READ));
});
reach(0x50, 'PASID directory outside memory', /PASID directory/, () =>
  inScalable('second', ({ machine }) =>
    set(machine, contextWord(machine), (value) => (value & 0xfffn) | nowhere(0n)()),
  ),
);
reach(0x51, 'no directory entry', /not present/, () =>
  inScalable('second', ({ machine }) => set(machine, directoryPlace(machine), () => 0n)),
);
reach(0x52, 'reserved bit in the directory entry', /reserved/, () =>
  inScalable('second', ({ machine }) => set(machine, directoryPlace(machine), (value) => value | 8n)),
);
reach(0x58, 'PASID table outside memory', /entry of PASID 3/, () =>
  inScalable('second', ({ machine }) => set(machine, directoryPlace(machine), nowhere(1n))),
);
reach(0x59, 'no PASID entry', /not present/, () =>
  inScalable('second', ({ machine }) => set(machine, pasidPlace(machine), () => 0n)),
);
reach(0x5a, 'reserved bit in the PASID entry', /reserved/, () =>
  inScalable('second', ({ machine }) => set(machine, pasidPlace(machine), () => 1n, 5)),
);
reach(0x5b, 'translation type 7', /not valid/, () =>
  inScalable('second', ({ machine }) => set(machine, pasidPlace(machine), (value) => value | 0x1c0n)),
);
reach(0x5c, 'execute request while ERE is clear', /ERE/, () => inScalable('first', () => {}, READ, { exec: true }));
reach(0x5d, 'supervisor request while SRE is clear', /SRE/, () =>
  inScalable('first', () => {}, READ, { privileged: true }),
);
reach(0x70, 'first-stage table outside memory', /level 2 of the first stage/, () =>
  inScalable('first', ({ machine, first }) => machine.put(first[0]!, 0, nowhere(FS_TABLE)())),
);
reach(0x71, 'first-stage leaf not present', /level 0 of the first stage/, () =>
  inScalable('first', ({ machine, first }) => machine.put(first[3]!, PAGE, 0n)),
);
reach(0x72, 'first-stage leaf at level 3', /level 3/, () =>
  inScalable('first', ({ machine, first }) => set(machine, { page: first[0]!, index: 0 }, (value) => value | 0x80n)),
);
reach(0x73, 'first stage outside memory', /level 3/, () =>
  inScalable('first', () => {}, READ, { entry: { firstStage: { page: NOWHERE, levels: 4 } } }),
);
reach(0x74, 'nested: guest table beyond the second stage', /beyond/, () =>
  inScalable('nested', ({ machine, first }) => machine.put(first[0]!, 0, (1n << 48n) | FS_TABLE)),
);
reach(0x75, 'nested: the top table cannot be read', /second stage/, () =>
  inScalable('nested', () => {}, READ, { entry: { firstStage: { page: 1, levels: 4 } } }),
);
reach(0x76, 'nested: a lower table cannot be read', /second stage/, () =>
  inScalable('nested', ({ machine, first }) => machine.put(first[0]!, 0, 0x1000n | FS_TABLE)),
);
reach(0x77, 'nested: an accessed bit cannot be set', /second stage/, () =>
  inScalable('nested', ({ machine, second }) =>
    set(machine, { page: second[2]!, index: Math.floor(machine.ramPage / 512) % 512 }, (value) => value & ~2n),
  ),
);
reach(0x78, 'second-stage table outside memory', /level 2/, () =>
  inScalable('second', ({ machine, second }) => machine.put(second[0]!, 0, nowhere(SS_TABLE)())),
);
reach(0x79, 'nested: the result cannot be reached', /second stage/, () =>
  inScalable('nested', ({ machine, first }) => machine.put(first[3]!, PAGE, 0x5067n)),
);
reach(0x7a, 'large leaf with low address bits', /entry/, () =>
  inScalable('second', ({ machine, second }) => machine.put(second[2]!, 0, 0x1083n)),
);
reach(0x7b, 'second stage outside memory', /level 3/, () =>
  inScalable('second', () => {}, READ, { entry: { secondStage: { page: NOWHERE, levels: 4 } } }),
);
reach(0x7c, 'second-stage A/D while walks are not snooped', /cannot be set/, () =>
  inScalable('second', () => {}, READ, { entry: { hasSecondStageDirty: true, isWalkSnooped: false } }),
);
reach(0x80, 'not canonical', /canonical/, () => inScalable('first', () => {}, READ, { page: 2 ** 35 }));
reach(0x81, 'supervisor page for a user', /supervisor/, () =>
  inScalable('first', ({ machine, first }) => set(machine, { page: first[2]!, index: 0 }, (value) => value & ~4n)),
);
reach(0x82, 'execution of data', /execute/, () =>
  inScalable(
    'first',
    ({ machine, first }) => set(machine, { page: first[1]!, index: 0 }, (value) => value | (1n << 63n)),
    READ,
    { exec: true, entry: { allowsExec: true, hasNoExecute: true } },
  ),
);
reach(0x83, 'beyond the unit', /57 bits/, () => inScalable('second', () => {}, READ, { page: 2 ** 45 }));
reach(0x84, 'nested: the result is beyond the second stage', /beyond/, () =>
  inScalable('nested', ({ machine, first }) => machine.put(first[3]!, PAGE, (1n << 48n) | 0x67n)),
);
reach(0x85, 'first-stage leaf without RW', /write/, () =>
  inScalable('first', ({ machine, first }) => machine.put(first[3]!, PAGE, 0x1025n), WRITE),
);
reach(0x86, 'second-stage leaf without R', /read/, () =>
  inScalable('second', ({ machine, second }) => machine.put(second[3]!, PAGE, 0x1002n)),
);
reach(0x87, 'interrupt window with a PASID', /interrupt/, () =>
  inScalable('first', () => {}, WRITE, { page: 0xfee00 }),
);
reach(0x90, 'first-stage A/D while walks are not snooped', /cannot be set/, () =>
  inScalable('first', () => {}, READ, { entry: { isWalkSnooped: false } }),
);

test('I-30: each reason is met by a constructed table, with the entry that says no', () => {
  for (const { code, what, meets } of cases) assert.equal(meets(), code.toString(16), what);
  const reached = new Set(cases.map(({ code }) => code));
  const missed = Object.entries(FaultReason).filter(([, code]) => code !== 0 && !reached.has(code));
  assert.deepEqual(missed, [], 'every reason there is has a case');
});

test('I-30: what the walk says of it names what is wrong', () => {
  for (const { code, what, text, meets } of cases) {
    if (code < 0x30) continue;
    lastDetail = '';
    meets();
    assert.match(lastDetail, text, what);
  }
});

test('a first stage gives an address of interrupt messages: never DMA, nothing cached', () => {
  const change = ({ machine, first }: Scalable): void => machine.put(first[3]!, PAGE, 0xfee0_0067n);
  assert.equal(inScalable('first', change, WRITE), '87');
});

test('an entry with FPD set, present or not, keeps its faults out of the log', () => {
  const machine = new TestUnit();
  machine.bind(3, { type: 'pass-through', did: 1 });
  machine.unit.clearPasidEntry(RID, 3, true);
  assert.equal(machine.outcome(3, PAGE, READ), '59');
  assert.equal(machine.unit.faults.isPending, false);
  machine.unit.clearPasidEntry(RID, 3);
  assert.equal(machine.outcome(3, PAGE, READ), '59');
  assert.equal(machine.unit.faults.isPending, true);
});

test('tables that point to themselves come to an end, as far as their levels go', () => {
  const machine = new TestUnit();
  const table = machine.page();
  machine.put(table, 0, (BigInt(table) << 12n) | 3n);
  machine.bind(3, { type: 'second', did: 9, secondStage: { page: table, levels: 4 }, isWalkSnooped: true });
  assert.equal(machine.outcome(3, 0, READ), `page ${table - machine.ramPage}`, 'a leaf at level 0 like any other');
  const first = machine.page();
  machine.put(first, 0, (BigInt(first) << 12n) | 0x27n);
  machine.bind(4, { type: 'first', did: 9, firstStage: { page: first, levels: 4 }, isWalkSnooped: true });
  assert.equal(machine.outcome(4, 0, READ), `page ${first - machine.ramPage}`);
  machine.bind(5, {
    type: 'nested',
    did: 10,
    secondStage: { page: table, levels: 4 },
    firstStage: { page: 0, levels: 4 },
    isWalkSnooped: true,
  });
  assert.match(machine.outcome(5, 0, READ), /^(page|7)/);
});
