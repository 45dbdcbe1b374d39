/** The PCI driver core: ids, binding, overrides, and the shell loop of the documentation. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { refusal } from '../core/test-task.ts';
import { recordedMachine, TestMachine } from './vfio-pci/test-machine.ts';

const SERIAL = { vendor: 0x1b36, device: 2, class24: 0x07_0002 };

test('G-30: readlink, unbind, new_id, bind for each of two equal functions ends with both bound, although calls are refused', () => {
  const machine = new TestMachine();
  const functions = [machine.addSpec(SERIAL, 5), machine.addSpec(SERIAL, 6)];
  machine.tree.enumerate();
  const answers: string[] = [];
  for (const fn of functions) {
    const held = machine.bus.driverOf(fn);
    if (held !== undefined) answers.push(refusal(() => machine.bus.unbind(held, fn.name)));
    answers.push(refusal(() => machine.bus.newId('vfio-pci', '1b36 0002')));
    answers.push(refusal(() => machine.bus.bind('vfio-pci', fn.name)));
  }
  assert.deepEqual(
    functions.map((fn) => machine.bus.driverOf(fn)),
    ['vfio-pci', 'vfio-pci'],
  );
  // new_id binds what is free; the ids are known the second time.
  assert.deepEqual(answers, ['ok', 'ok', 'EBUSY', 'ok', 'EEXIST', 'ok']);
  assert.deepEqual(
    functions.map((fn) => machine.group(fn).ownerCount),
    [0, 0],
    'nothing keeps users from the groups',
  );
});

test('new_id takes hexadecimal with or without 0x, at least two numbers', () => {
  const machine = recordedMachine();
  const { bus } = machine;
  assert.equal(
    refusal(() => bus.newId('vfio-pci', '1234')),
    'EINVAL',
  );
  assert.equal(
    refusal(() => bus.newId('vfio-pci', 'edu 11e8')),
    'EINVAL',
  );
  assert.equal(
    refusal(() => bus.newId('vfio-pci', '')),
    'EINVAL',
  );
  assert.equal(
    refusal(() => bus.newId('no-driver', '1234 11e8')),
    'ENOENT',
  );
  bus.newId('vfio-pci', '0x1234 11e8\n');
  assert.equal(bus.driverOf(machine.edu), 'vfio-pci');
  assert.equal(bus.driverOf(machine.second), 'vfio-pci');
  assert.equal(bus.driverOf(machine.express), undefined);
  assert.equal(
    refusal(() => bus.newId('vfio-pci', '1234 11e8 1af4 1100')),
    'EEXIST',
    'wider ids are there',
  );
  assert.equal(
    refusal(() => bus.newId('serial', '1234 11e8 ffffffff ffffffff 70002 ffffff 0')),
    'ok',
  );
  assert.equal(
    refusal(() => bus.newId('vfio-pci', '1234:11e8')),
    'EINVAL',
  );
});

test('remove_id forgets the ids; what the driver holds it keeps', () => {
  const machine = recordedMachine();
  const { bus } = machine;
  bus.newId('vfio-pci', '1234 11e8');
  assert.equal(
    refusal(() => bus.removeId('vfio-pci', '1234 11e9')),
    'ENODEV',
  );
  bus.removeId('vfio-pci', '1234 11e8');
  assert.equal(
    refusal(() => bus.removeId('vfio-pci', '1234 11e8')),
    'ENODEV',
  );
  assert.equal(bus.driverOf(machine.edu), 'vfio-pci');
  bus.unbind('vfio-pci', machine.edu.name);
  assert.equal(
    refusal(() => bus.bind('vfio-pci', machine.edu.name)),
    'ENODEV',
  );
});

test('bind and unbind: ENODEV for what is not there, does not match or is not held, EBUSY for what is held', () => {
  const machine = recordedMachine();
  const { bus, edu } = machine;
  assert.equal(
    refusal(() => bus.bind('vfio-pci', '0000:00:1f.7')),
    'ENODEV',
  );
  assert.equal(
    refusal(() => bus.bind('vfio-pci', edu.name)),
    'ENODEV',
  );
  assert.equal(
    refusal(() => bus.unbind('vfio-pci', edu.name)),
    'ENODEV',
  );
  bus.setOverride(edu, 'vfio-pci');
  bus.bind('vfio-pci', edu.name);
  assert.equal(
    refusal(() => bus.bind('vfio-pci', edu.name)),
    'EBUSY',
  );
  assert.equal(
    refusal(() => bus.unbind('serial', edu.name)),
    'ENODEV',
  );
  assert.equal(bus.unbind('vfio-pci', edu.name), 'done');
});

test('driver_override gives a function to one driver only; drivers_probe then binds it', () => {
  const machine = new TestMachine();
  const fn = machine.addSpec(SERIAL, 5);
  machine.tree.enumerate();
  const { bus } = machine;
  assert.equal(bus.driverOf(fn), 'serial');
  bus.setOverride(fn, 'vfio-pci');
  assert.equal(bus.driverOf(fn), 'serial', 'nothing is unbound by it');
  bus.unbind('serial', fn.name);
  assert.equal(
    refusal(() => bus.bind('serial', fn.name)),
    'ENODEV',
  );
  bus.probe(fn.name);
  assert.equal(bus.driverOf(fn), 'vfio-pci');
  bus.setOverride(fn, undefined);
  bus.unbind('vfio-pci', fn.name);
  bus.probe(fn.name);
  assert.equal(bus.driverOf(fn), 'serial');
  assert.equal(
    refusal(() => bus.probe('0000:00:1f.7')),
    'ENODEV',
  );
});

test('a function that is pulled while a user holds it leaves the bus when he lets go', () => {
  const machine = recordedMachine();
  const { bus, edu } = machine;
  machine.bind(edu);
  machine.open(edu);
  const events: string[] = [];
  bus.watch((event, fn) => events.push(`${event} ${fn.name}`));
  edu.remove();
  assert.deepEqual(events, ['removing 0000:00:04.0', 'leaving 0000:00:04.0']);
  assert.equal(machine.world.core.devices().length, 0);
  machine.task.exit();
  assert.deepEqual(events.slice(2), ['unbound 0000:00:04.0', 'removed 0000:00:04.0']);
});
