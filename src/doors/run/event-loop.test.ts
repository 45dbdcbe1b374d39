import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { closeDescriptor, createEventfd, readEventfd, signalEventfd } from '../../sys/index.ts';
import { EventLoop } from './event-loop.ts';

test('timers run in the order of their times, those of one time in the order in which they were set', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(20), { maxLength: 40 }), (delays) => {
      const loop = new EventLoop();
      let now = 0;
      loop.now = () => now;
      const ran: [number, number][] = [];
      delays.forEach((delay, i) => {
        loop.after(delay, () => ran.push([delay, i]));
      });
      now = 100;
      loop.turn(0);
      const expected = delays.map((delay, i): [number, number] => [delay, i]).sort(([a, i], [b, j]) => a - b || i - j);
      assert.deepEqual(ran, expected);
      loop.close();
    }),
    { numRuns: 100 },
  );
});

test('a timer is never early, a cancelled one never runs, one that sets another leaves the loop its turn', () => {
  const loop = new EventLoop();
  const start = loop.now();
  let at = 0;
  let rounds = 0;
  loop.after(3_000_000, () => {
    at = loop.now();
  });
  const cancel = loop.after(1_000_000, () => assert.fail('cancelled'));
  cancel();
  const again = (): void => {
    rounds++;
    loop.after(0, again);
  };
  loop.after(0, again);
  loop.turn(0);
  assert.equal(rounds, 1);
  while (at === 0) loop.turn();
  assert.ok(at - start >= 3_000_000);
  loop.close();
});

test('idle is told once after each burst of events', () => {
  const loop = new EventLoop();
  let idle = 0;
  loop.onIdle = () => idle++;
  const fd = createEventfd();
  const slot = loop.add(fd, { ready: () => readEventfd(fd) });
  loop.turn(0);
  loop.turn(0);
  assert.equal(idle, 1);
  signalEventfd(fd);
  loop.turn(0);
  loop.turn(0);
  loop.turn(0);
  assert.equal(idle, 2);
  loop.remove(fd, slot);
  closeDescriptor(fd);
  loop.close();
});

test('what a source or a timer throws does not keep the others from their turn', () => {
  const loop = new EventLoop();
  const errors: string[] = [];
  const ran: string[] = [];
  loop.onError = (error) => errors.push((error as Error).message);
  const [a, b] = [createEventfd(), createEventfd()];
  const first = loop.add(a, {
    ready: () => {
      throw new Error('source');
    },
  });
  const second = loop.add(b, { ready: () => ran.push('b') });
  loop.after(0, () => {
    throw new Error('timer');
  });
  loop.after(0, () => ran.push('later'));
  signalEventfd(a);
  signalEventfd(b);
  loop.turn(0);
  assert.deepEqual(errors, ['source', 'timer']);
  assert.deepEqual(ran, ['b', 'later']);
  loop.remove(a, first);
  loop.remove(b, second);
  closeDescriptor(a);
  closeDescriptor(b);
  loop.close();
});

test('stop ends the loop from within', () => {
  const loop = new EventLoop();
  loop.after(100_000, () => loop.stop());
  loop.run();
  loop.close();
});
