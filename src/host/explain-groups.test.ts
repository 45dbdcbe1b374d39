import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../hw/pci/clock.ts';
import { type ExplainedPair, explainGroups } from './explain-groups.ts';
import type { FunctionConfig, HostConfig } from './host-file.ts';
import { Machine } from './machine.ts';

function machineOf(functions: FunctionConfig[], options: HostConfig['options'] = {}): Machine {
  const host: HostConfig = {
    name: 'x',
    iommu: { units: [{ name: 'dmar0', preset: 'vtd-legacy-sc' }] },
    functions,
    options,
  };
  return new Machine(host, {
    clock: new ManualClock(),
    allocateShared: () => assert.fail('no memory is mapped'),
    log() {},
  });
}

function pairOf(machine: Machine, a: string, b: string): ExplainedPair {
  const pairs = explainGroups(machine, `0000:${a}`).flatMap((group) => group.pairs);
  const found = pairs.find((pair) => pair.a === `0000:${a}` && pair.b === `0000:${b}`);
  assert.ok(found !== undefined, `${a} and ${b} are not in one group`);
  return found;
}

const texts = (pair: ExplainedPair): string[] => pair.splits.map(({ text }) => text);
const reasons = (pair: ExplainedPair): string[] => pair.joins.map(({ reason }) => reason);
const card = (at: string, more: Partial<FunctionConfig> = {}): FunctionConfig => ({
  ...{ at, model: 'stub', options: { pcie: true } },
  ...more,
});
const port = (at: string, secondary: number, options: Record<string, unknown> = {}): FunctionConfig => ({
  ...{ at, model: 'root-port', secondary, options },
});

test('G-62: ACS that is off is named by bit and port, and switching it on parts the two', () => {
  const machine = machineOf([port('01.0'.padStart(7, '00:'), 1, { acsControl: 'SV|UF' }), card('01:00.0')]);
  const pair = pairOf(machine, '00:01.0', '01:00.0');
  assert.deepEqual(pair.joins[0]!.leaks, [{ at: '0000:00:01.0', cause: 'bits', missing: ['RR', 'CR'] }]);
  assert.deepEqual(reasons(pair), ['no ACS on 00:01.0']);
  assert.deepEqual(texts(pair), ['ACS control of 00:01.0: switch on RR CR']);
  const mended = machineOf([port('00:01.0', 1, { acsControl: 'SV|UF|RR|CR' }), card('01:00.0')]);
  assert.equal(explainGroups(mended).length, 2);
});

test('G-62: a missing capability cannot be switched on; another slot helps, and the free one comes first', () => {
  const machine = machineOf([
    port('00:01.0', 1, { acs: 'none' }),
    port('00:01.1', 2, { acs: 'none' }),
    port('00:02.0', 3),
    port('00:03.0', 4),
    card('01:00.0'),
    card('02:00.0'),
    card('03:00.0'),
  ]);
  const pair = pairOf(machine, '01:00.0', '02:00.0');
  assert.deepEqual(pair.through, ['0000:00:01.0', '0000:00:01.1']);
  assert.deepEqual(texts(pair), [
    'acsOverride on 00:01.0',
    'acsOverride on 00:01.1',
    'another slot: the card behind 00:01.0 into the free slot behind 00:03.0',
    'another slot: the card behind 00:01.0 into the slot behind 00:02.0',
  ]);
});

test('what parts a pair was tried: two changes where one is not enough', () => {
  const machine = machineOf([
    port('00:01.0', 1, { acsControl: 'none' }),
    ...[0, 1].map((fn) => card(`01:00.${fn}`, { options: { pcie: true, acs: 0x1d } })),
    card('01:01.0'),
  ]);
  // Behind one port that lets requests turn round, no change of a card parts two of them.
  assert.deepEqual(texts(pairOf(machine, '01:00.0', '01:00.1')), ['ACS control of 00:01.0: switch on SV RR CR UF']);
  const slot = machineOf([port('00:01.0', 1, { acsControl: 'none' }), card('01:00.0'), card('01:00.1')]);
  assert.deepEqual(texts(pairOf(slot, '01:00.0', '01:00.1')), [
    'ACS control of 00:01.0: switch on SV RR CR UF, and acsOverride on 01:00.1',
  ]);
});

test('T-3 G-2: behind a bridge to conventional PCI the requester ID is the reason, and nothing parts them', () => {
  const machine = machineOf([
    { at: '00:1e.0', model: 'pci-bridge', secondary: 6 },
    { at: '06:0d.0', model: 'stub' },
    { at: '06:0d.1', model: 'stub' },
  ]);
  const up = pairOf(machine, '00:1e.0', '06:0d.1');
  assert.deepEqual([reasons(up), texts(up)], [['alias 00:1e.0'], []]);
  const side = pairOf(machine, '06:0d.0', '06:0d.1');
  assert.deepEqual(reasons(side), ['multifunction without ACS', 'alias 00:1e.0', 'alias 00:1e.0']);
  assert.deepEqual(texts(side), []);
});

test('T-4 T-24: aliases of the requester ID, and DMA in the name of another', () => {
  const machine = machineOf([
    { at: '00:03.0', model: 'stub', dmaAliases: ['04.0'] },
    { at: '00:04.0', model: 'stub' },
    { at: '00:05.0', model: 'stub', quirks: { realDmaDevice: '00:04.0' } },
  ]);
  const alias = pairOf(machine, '00:03.0', '00:04.0');
  assert.deepEqual(reasons(alias), ['alias 00:04.0']);
  assert.deepEqual(texts(alias), ['a device at 00:03.0 that uses no requester ID but its own (no dmaAliases)']);
  const real = pairOf(machine, '00:04.0', '00:05.0');
  assert.deepEqual(
    real.joins.map(({ kind }) => kind),
    ['real-device'],
  );
  assert.deepEqual(texts(real), ['a device at 00:05.0 that does DMA in its own name']);
});

test('G-8 G-62: group_mf joins the functions of a slot although ACS passes, a slot with a backdoor among them', () => {
  const functions = [0, 1].map((fn) =>
    card(`00:03.${fn}`, { options: { pcie: true, acs: 0x1d }, wellBehaved: 'backdoor' }),
  );
  assert.equal(explainGroups(machineOf(functions)).length, 2);
  const machine = machineOf(functions, { groupMultifunction: true });
  const [group] = explainGroups(machine);
  assert.deepEqual(
    group!.members.map(({ wellBehaved }) => wellBehaved),
    ['backdoor', 'backdoor'],
  );
  assert.deepEqual(
    group!.members.map(({ reason }) => reason),
    ['own', 'multifunction slot of 00:03.0 (group_mf)'],
  );
  assert.deepEqual(
    group!.pairs[0]!.joins.map(({ kind }) => kind),
    ['group_mf'],
  );
  assert.deepEqual(texts(group!.pairs[0]!), ['option groupMultifunction (group_mf) off']);
});

test('T-13 G-62: a quirk is named, for and against', () => {
  const against = machineOf([{ ...port('00:01.0', 1), quirks: { acsOverride: false } }, card('01:00.0')]);
  const pair = pairOf(against, '00:01.0', '01:00.0');
  assert.deepEqual([reasons(pair), texts(pair)], [['quirk of 00:01.0'], ['acsOverride on 00:01.0']]);
  const options = { pcie: true, vendor: '0x8086', device: '0x1521' };
  const [alone] = explainGroups(
    machineOf([port('00:01.0', 1), card('01:00.0', { options }), card('01:00.1', { options })]),
    '0000:01:00.0',
  );
  assert.match(alone!.alone!, /^01:00\.0 isolates without ACS: its functions do not reach each other \(maker\)/);
});

test('every split that is named parts its pair when the host file is changed so', () => {
  // A machine with all kinds of joins; each acs and override split of it is made in the host file, and the machine built again.
  const functions = [
    port('00:01.0', 1, { acsControl: 'SV' }),
    { ...port('00:01.1', 2, { acs: 'none' }) },
    { ...port('00:02.0', 3, { acsControl: 'none' }) },
    card('01:00.0'),
    card('01:00.1'),
    card('02:00.0'),
    card('03:00.0'),
  ];
  let tried = 0;
  for (const group of explainGroups(machineOf(functions))) {
    for (const pair of group.pairs) {
      for (const { changes } of pair.splits) {
        if (changes.some(({ kind }) => kind === 'slot')) continue;
        const changed = structuredClone(functions);
        for (const change of changes) {
          const entry = 'at' in change ? changed.find(({ at }) => `0000:${at}` === change.at)! : assert.fail();
          if (change.kind === 'acs') entry.options = { ...entry.options, acsControl: 'SV|RR|CR|UF' };
          else entry.quirks = { acsOverride: true };
        }
        const machine = machineOf(changed);
        const [a, b] = [pair.a, pair.b].map((name) => machine.iommu.groupOf(machine.pci.find(name)!)!.id);
        assert.notEqual(a, b, `${pair.a} ${pair.b} ${JSON.stringify(changes)}`);
        tried++;
      }
    }
  }
  assert.ok(tried > 10, `${tried} splits`);
});
