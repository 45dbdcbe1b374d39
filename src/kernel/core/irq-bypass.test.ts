import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../lib/errno.ts';
import { type BypassConsumer, type BypassProducer, IrqBypass } from './irq-bypass.ts';
import { refusal } from './test-task.ts';

function parts(options: { addFails?: boolean; consumerFails?: boolean } = {}) {
  const calls: string[] = [];
  const note = (name: string) => () => {
    calls.push(name);
  };
  const producer: BypassProducer = {
    irq: undefined,
    stop: note('prod.stop'),
    start: note('prod.start'),
    addConsumer: () => {
      calls.push('prod.add_consumer');
      if (options.consumerFails) throw new Errno('EIO', 'no');
    },
    delConsumer: note('prod.del_consumer'),
  };
  const consumer: BypassConsumer = {
    stop: note('cons.stop'),
    start: note('cons.start'),
    addProducer: () => {
      calls.push('cons.add_producer');
      if (options.addFails) throw new Errno('ENODEV', 'cannot post');
    },
    delProducer: note('cons.del_producer'),
  };
  return { bypass: new IrqBypass(), calls, producer, consumer };
}

const CONNECT = ['prod.stop', 'cons.stop', 'prod.add_consumer', 'cons.add_producer', 'cons.start', 'prod.start'];
const DISCONNECT = ['prod.stop', 'cons.stop', 'cons.del_producer', 'prod.del_consumer', 'cons.start', 'prod.start'];

for (const first of ['producer', 'consumer'] as const) {
  test(`K-20: both sides are stopped, connected and started in order, the ${first} coming first; undone in order`, () => {
    const { bypass, calls, producer, consumer } = parts();
    const token = {};
    if (first === 'producer') bypass.registerProducer(producer, token);
    bypass.registerConsumer(consumer, token);
    if (first === 'consumer') bypass.registerProducer(producer, token);
    assert.deepEqual(calls.splice(0), CONNECT);
    assert.equal(bypass.connected, 1);
    if (first === 'producer') bypass.unregisterProducer(producer);
    else bypass.unregisterConsumer(consumer);
    assert.deepEqual(calls.splice(0), DISCONNECT);
    if (first === 'producer') bypass.unregisterConsumer(consumer);
    else bypass.unregisterProducer(producer);
    assert.deepEqual([calls, bypass.registered, bypass.connected], [[], 0, 0]);
  });
}

test('K-21: when the consumer refuses, the producer is told, both run on, and the registration that came last fails', () => {
  const { bypass, calls, producer, consumer } = parts({ addFails: true });
  bypass.registerProducer(producer, 'fd');
  assert.equal(
    refusal(() => bypass.registerConsumer(consumer, 'fd')),
    'ENODEV',
  );
  assert.deepEqual(calls, [
    'prod.stop',
    'cons.stop',
    'prod.add_consumer',
    'cons.add_producer',
    'prod.del_consumer',
    'cons.start',
    'prod.start',
  ]);
  assert.deepEqual([bypass.registered, bypass.connected], [1, 0]);
  calls.length = 0;
  bypass.unregisterConsumer(consumer);
  assert.deepEqual(calls, [], 'it was never there');
});

test('K-21: when the producer refuses, the consumer hears nothing of it', () => {
  const { bypass, calls, producer, consumer } = parts({ consumerFails: true });
  bypass.registerConsumer(consumer, 'fd');
  assert.equal(
    refusal(() => bypass.registerProducer(producer, 'fd')),
    'EIO',
  );
  assert.deepEqual(calls, ['prod.stop', 'cons.stop', 'prod.add_consumer', 'cons.start', 'prod.start']);
});

test('an eventfd has one producer and one consumer: EBUSY; a consumer needs its callbacks: EINVAL', () => {
  const { bypass, producer, consumer } = parts();
  bypass.registerProducer(producer, 'fd');
  bypass.registerConsumer(consumer, 'fd');
  assert.equal(
    refusal(() => bypass.registerProducer({ irq: undefined }, 'fd')),
    'EBUSY',
  );
  assert.equal(
    refusal(() => bypass.registerConsumer({ ...consumer }, 'fd')),
    'EBUSY',
  );
  assert.equal(
    refusal(() => bypass.registerProducer(producer, 'other')),
    'EINVAL',
  );
  const half = { addProducer: () => {} } as unknown as BypassConsumer;
  assert.equal(
    refusal(() => bypass.registerConsumer(half, 'other')),
    'EINVAL',
  );
  assert.equal(bypass.registered, 2);
});
