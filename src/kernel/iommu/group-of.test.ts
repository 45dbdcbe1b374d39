import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { PciFunction } from '../../hw/pci/function.ts';
import * as reg from '../../uapi/pci-regs.ts';
import {
  bridge,
  conventional,
  endpoint,
  IommuMachine,
  type MachineOptions,
  rootPort,
  shortName,
} from './test-machine.ts';

const { PCI_EXP_TYPE_UPSTREAM, PCI_EXP_TYPE_DOWNSTREAM, PCI_EXP_TYPE_PCI_BRIDGE } = reg;

/** Partition without regard to ids. */
function partition(machine: IommuMachine): string {
  return machine
    .groups()
    .map((names) => names.sort().join('+'))
    .sort()
    .join(' | ');
}

test('G-2: two functions behind a conventional bridge form one group with the bridge', () => {
  const machine = new IommuMachine();
  const above = machine.add(bridge(), '1e.0', { secondary: 6 });
  const cards = ['d.0', 'd.1'].map((at) => machine.add(conventional(), at, { bus: above.secondary! }));
  machine.boot();
  assert.deepEqual(machine.groups(), [['00:1e.0', '06:0d.0', '06:0d.1']]);
  assert.deepEqual(
    [above, ...cards].map((fn) => machine.core.reason(fn)),
    ['own', 'alias 00:1e.0', 'alias 00:1e.0'],
  );
  assert.equal(machine.core.groupOf(cards[1]!)?.id, 0);
});

test('G-3: endpoints under root ports that pass ACS have groups of their own, and so have the ports', () => {
  const machine = new IommuMachine();
  for (const slot of [1, 2]) {
    const port = machine.add(rootPort(), `${slot}.0`, { secondary: slot });
    machine.add(endpoint(), '0.0', { bus: port.secondary! });
  }
  machine.boot();
  assert.equal(partition(machine), '00:01.0 | 00:02.0 | 01:00.0 | 02:00.0');
});

test('G-3: root ports that fail ACS take their endpoints in; ports of one slot make one group of all', () => {
  const apart = new IommuMachine();
  const together = new IommuMachine();
  for (const i of [0, 1]) {
    const a = apart.add(rootPort('none'), `${i + 1}.0`, { secondary: i + 1 });
    apart.add(endpoint(), '0.0', { bus: a.secondary! });
    const b = together.add(rootPort('none'), `1.${i}`, { secondary: i + 1 });
    together.add(endpoint(), '0.0', { bus: b.secondary! });
  }
  assert.equal(partition(apart.boot()), '00:01.0+01:00.0 | 00:02.0+02:00.0');
  assert.equal(partition(together.boot()), '00:01.0+00:01.1+01:00.0+02:00.0');
  const reasons = together.tree.functions().map((fn) => `${shortName(fn)} ${together.core.reason(fn)}`);
  assert.deepEqual(reasons, [
    '00:01.0 own',
    '00:01.1 multifunction without ACS',
    '01:00.0 no ACS on 00:01.0',
    '02:00.0 no ACS on 00:01.1',
  ]);
});

/** A switch with two downstream ports in slots of their own, an endpoint behind each. */
function switched(services?: { control?: number } | 'none', above?: 'none'): IommuMachine {
  const machine = new IommuMachine();
  const port = machine.add(rootPort(above), '1.0', { secondary: 1 });
  const up = machine.add(bridge(PCI_EXP_TYPE_UPSTREAM), '0.0', { bus: port.secondary!, secondary: 2 });
  for (const slot of [0, 1]) {
    const down = machine.add(bridge(PCI_EXP_TYPE_DOWNSTREAM, services), `${slot}.0`, {
      bus: up.secondary!,
      secondary: 3 + slot,
    });
    machine.add(endpoint(), '0.0', { bus: down.secondary! });
  }
  return machine.boot();
}

test('G-4: below a root port and a switch without ACS, all endpoints and ports are one group', () => {
  const machine = switched({ control: 0 }, 'none');
  assert.equal(partition(machine), '00:01.0+01:00.0+02:00.0+02:01.0+03:00.0+04:00.0');
  assert.equal(machine.core.reason(machine.tree.find('0000:04:00.0')!), 'no ACS on 02:01.0');
  assert.equal(machine.core.reason(machine.tree.find('0000:02:01.0')!), 'no ACS on 00:01.0');
});

test('T-11: a downstream port with ACS off takes in what is behind it; the search ends at an upstream port that passes', () => {
  // As in the kernel: the two ports can reach each other, but lie in different slots and are not looked for.
  for (const services of [{ control: 0 }, 'none'] as const) {
    assert.equal(partition(switched(services)), '00:01.0 | 01:00.0 | 02:00.0+03:00.0 | 02:01.0+04:00.0');
  }
  assert.equal(partition(switched()), '00:01.0 | 01:00.0 | 02:00.0 | 02:01.0 | 03:00.0 | 04:00.0');
});

test('G-4 T-11: downstream ports of one slot with ACS off put all endpoints into one group with the ports', () => {
  const machine = new IommuMachine();
  const port = machine.add(rootPort(), '1.0', { secondary: 1 });
  const up = machine.add(bridge(PCI_EXP_TYPE_UPSTREAM), '0.0', { bus: port.secondary!, secondary: 2 });
  for (const i of [0, 1]) {
    const down = machine.add(bridge(PCI_EXP_TYPE_DOWNSTREAM, { control: 0 }), `0.${i}`, {
      bus: up.secondary!,
      secondary: 3 + i,
    });
    machine.add(endpoint(), '0.0', { bus: down.secondary! });
  }
  assert.equal(partition(machine.boot()), '00:01.0 | 01:00.0 | 02:00.0+02:00.1+03:00.0+04:00.0');
});

test('T-10 T-13: functions of one slot without ACS share a group, with ACS or a documented exception they do not', () => {
  const grouping = (hasAcs: boolean, quirks = {}): string => {
    const machine = new IommuMachine();
    for (const i of [0, 1]) machine.add(endpoint(hasAcs), `3.${i}`, { quirks });
    return partition(machine.boot());
  };
  assert.equal(grouping(false), '00:03.0+00:03.1');
  assert.equal(grouping(true), '00:03.0 | 00:03.1');
  assert.equal(grouping(false, { acsOverride: true }), '00:03.0 | 00:03.1');
  assert.equal(grouping(true, { acsOverride: false }), '00:03.0+00:03.1');
});

test('G-62: the reason names a quirk where one decides', () => {
  const machine = new IommuMachine();
  for (const i of [0, 1]) machine.add(endpoint(true), `3.${i}`, { quirks: { acsOverride: false } });
  const port = machine.add(rootPort(), '4.0', { secondary: 1, quirks: { acsOverride: false } });
  const behind = machine.add(endpoint(), '0.0', { bus: port.secondary! });
  machine.boot();
  assert.equal(machine.core.reason(machine.root.at(0x19)!), 'quirk');
  assert.equal(machine.core.reason(behind), 'quirk of 00:04.0');
});

test('T-14: a PCIe-to-PCI bridge keeps all that is behind it in its group, but not the port above it', () => {
  const machine = new IommuMachine();
  const port = machine.add(rootPort(), '8.0', { secondary: 1 });
  const to = machine.add(bridge(PCI_EXP_TYPE_PCI_BRIDGE), '0.0', { bus: port.secondary!, secondary: 2 });
  for (const at of ['1.0', '2.0']) machine.add(conventional(), at, { bus: to.secondary! });
  assert.equal(partition(machine.boot()), '00:08.0 | 01:00.0+02:01.0+02:02.0');
  assert.equal(machine.core.reason(machine.tree.find('0000:02:02.0')!), 'alias 02:00.0');
});

test('T-24: functions that do DMA in the name of one device share its group', () => {
  const machine = new IommuMachine();
  const real = machine.add(endpoint(), '1.0');
  machine.add(endpoint(), '2.0', { quirks: { realDmaDevice: real } });
  machine.add(endpoint(), '3.0', { quirks: { realDmaDevice: real } });
  machine.add(endpoint(), '4.0');
  assert.equal(partition(machine.boot()), '00:01.0+00:02.0+00:03.0 | 00:04.0');
});

test('T-4: an alias mask in either direction joins two functions, also through a third', () => {
  const machine = new IommuMachine();
  machine.add(conventional(), '1.0');
  machine.add(conventional(), '2.0', { dmaAliases: [0x08] });
  machine.add(conventional(), '3.0', { dmaAliases: [0x10] });
  machine.add(conventional(), '4.0');
  assert.equal(partition(machine.boot()), '00:01.0+00:02.0+00:03.0 | 00:04.0');
  assert.equal(machine.core.reason(machine.root.at(0x18)!), 'alias 00:02.0');
});

test('T-5: above a bridge with the translation unit at its level nothing is looked at', () => {
  const machine = new IommuMachine();
  const outer = machine.add(bridge(), '1.0', { secondary: 1 });
  const inner = machine.add(bridge(), '0.0', {
    bus: outer.secondary!,
    secondary: 2,
    quirks: { bridgeTranslationRoot: true },
  });
  machine.add(conventional(), '1.0', { bus: inner.secondary! });
  machine.boot();
  assert.equal(machine.core.reason(machine.tree.find('0000:02:01.0')!).startsWith('alias'), false);
});

test('G-8: with group_mf all functions of a slot share a group although ACS passes', () => {
  const build = (options: MachineOptions): string => {
    const machine = new IommuMachine(options);
    for (const i of [0, 1, 2]) machine.add(endpoint(true), `3.${i}`);
    machine.add(endpoint(true), '4.0');
    return partition(machine.boot());
  };
  assert.equal(build({}), '00:03.0 | 00:03.1 | 00:03.2 | 00:04.0');
  assert.equal(build({ groupMultifunction: true }), '00:03.0+00:03.1+00:03.2 | 00:04.0');
});

test('T-25: the recorded machine has the recorded groups with the recorded ids', () => {
  const machine = new IommuMachine();
  for (const at of ['0.0', '1.0', '3.0', '4.0', '5.0']) machine.add(conventional(), at);
  const ports = ['8.0', '9.0', 'a.0'].map((at, i) => machine.add(rootPort(), at, { secondary: [1, 3, 5][i]! }));
  machine.add(conventional(0x060100), '1f.0', { multifunction: true });
  for (const at of ['1f.2', '1f.3']) machine.add(conventional(), at, { multifunction: true });
  for (const [port, secondary] of [
    [ports[0]!, 2],
    [ports[1]!, 4],
  ] as const) {
    const to = machine.add(bridge(PCI_EXP_TYPE_PCI_BRIDGE), '0.0', { bus: port.secondary!, secondary });
    for (const at of ['1.0', '2.0']) machine.add(conventional(), at, { bus: to.secondary! });
  }
  machine.add(endpoint(), '0.0', { bus: ports[2]!.secondary! });
  machine.boot();
  assert.deepEqual(machine.groups(), [
    ['00:00.0'],
    ['00:01.0'],
    ['00:03.0'],
    ['00:04.0'],
    ['00:05.0'],
    ['00:08.0'],
    ['00:09.0'],
    ['00:0a.0'],
    ['00:1f.0', '00:1f.2', '00:1f.3'],
    ['01:00.0', '02:01.0', '02:02.0'],
    ['03:00.0', '04:01.0', '04:02.0'],
    ['05:00.0'],
  ]);
});

test('G-1: the partition does not depend on the order of siblings', () => {
  const shapes = fc.array(
    fc.record({
      kind: fc.constantFrom('endpoint', 'function', 'port', 'conventional', 'legacy bridge', 'pci bridge', 'switch'),
      hasAcs: fc.boolean(),
      functions: fc.integer({ min: 1, max: 3 }),
    }),
    { minLength: 1, maxLength: 6 },
  );
  const build = (shape: readonly { kind: string; hasAcs: boolean; functions: number }[]): IommuMachine => {
    const machine = new IommuMachine();
    let next = 1;
    for (const [i, { kind, hasAcs, functions }] of shape.entries()) {
      const slot = (i + 1).toString(16);
      for (let f = 0; f < functions; f++) {
        const at = `${slot}.${f}`;
        const place = { secondary: next };
        if (kind === 'endpoint' || kind === 'function') machine.add(endpoint(hasAcs), at);
        else if (kind === 'conventional') machine.add(conventional(), at, f === 0 && hasAcs ? { dmaAliases: [8] } : {});
        else {
          const isLegacy = kind === 'legacy bridge';
          const port = machine.add(isLegacy ? bridge() : rootPort(hasAcs ? {} : 'none'), at, place);
          next++;
          let bus = port.secondary!;
          if (kind === 'pci bridge') {
            bus = machine.add(bridge(PCI_EXP_TYPE_PCI_BRIDGE), '0.0', { bus, secondary: next++ }).secondary!;
          } else if (kind === 'switch') {
            const up = machine.add(bridge(PCI_EXP_TYPE_UPSTREAM), '0.0', { bus, secondary: next++ });
            for (const d of [0, 1]) {
              const down = machine.add(bridge(PCI_EXP_TYPE_DOWNSTREAM, hasAcs ? {} : { control: 0 }), `0.${d}`, {
                bus: up.secondary!,
                secondary: next++,
              });
              machine.add(endpoint(), '0.0', { bus: down.secondary! });
            }
            continue;
          }
          for (const d of [0, 1]) machine.add(isLegacy ? conventional() : endpoint(), `0.${d}`, { bus });
        }
      }
    }
    return machine;
  };
  fc.assert(
    fc.property(shapes, fc.infiniteStream(fc.nat(1000)), (shape, random) => {
      const usual = partition(build(shape).boot());
      const machine = build(shape);
      machine.tree.enumerate();
      // Any order in which every bridge comes before what is behind it.
      const waiting = machine.tree.functions();
      const done = new Set<PciFunction>();
      const order: PciFunction[] = [];
      while (waiting.length > 0) {
        const ready = waiting.filter((fn) => fn.bus.self === undefined || done.has(fn.bus.self));
        const fn = ready[random.next().value! % ready.length]!;
        waiting.splice(waiting.indexOf(fn), 1);
        done.add(fn);
        order.push(fn);
      }
      assert.equal(partition(machine.boot(order)), usual);
    }),
    { numRuns: 30 },
  );
});
