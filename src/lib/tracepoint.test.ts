import assert from 'node:assert/strict';
import { test } from 'node:test';
import { subscribe, type TraceFields, Tracepoint, tracepoints } from './tracepoint.ts';

test('fields are computed for a listener only, and reach it', () => {
  const point = new Tracepoint<{ iova: bigint; length: number }>('test:map');
  let computed = 0;
  const fire = (): void =>
    point.fire(() => {
      computed++;
      return { iova: 4096n, length: 1 };
    });
  fire();
  assert.deepEqual([computed, point.heard], [0, false]);
  const heard: TraceFields[] = [];
  const stop = subscribe('test:map', (fields) => heard.push(fields));
  assert.equal(point.heard, true);
  fire();
  stop();
  fire();
  assert.deepEqual([computed, heard], [1, [{ iova: 4096n, length: 1 }]]);
  assert.ok(tracepoints.includes('test:map'));
});
