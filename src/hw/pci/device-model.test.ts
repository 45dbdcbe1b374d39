import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseInteger, readOptions } from './device-model.ts';

const model = {
  name: 'thing',
  options: {
    count: { type: 'integer', default: 3, description: '' },
    mask: { type: 'u64', default: 1n, description: '' },
    mode: { type: 'text', default: 'a', choices: ['a', 'b'], description: '' },
    on: { type: 'boolean', default: false, description: '' },
    parts: { type: 'list', default: [], description: '' },
    more: { type: 'object', default: {}, description: '' },
  },
} as const;

test('options that are not given have their defaults, numbers may be texts', () => {
  assert.deepEqual(readOptions(model, {}), { count: 3, mask: 1n, mode: 'a', on: false, parts: [], more: {} });
  const given = { count: '0x10', mask: '0xffffffffffffffff', mode: 'b', on: true };
  const values = readOptions(model, given);
  assert.deepEqual([values['count'], values['mask'], values['mode'], values['on']], [16, 2n ** 64n - 1n, 'b', true]);
});

test('unknown options and values that cannot be are refused by name', () => {
  const bad: [Record<string, unknown>, RegExp][] = [
    [{ colour: 1 }, /no option 'colour'; it has count, mask/],
    [{ count: -1 }, /option 'count' of 'thing' must be a whole number.*-1/],
    [{ count: 1.5 }, /whole number/],
    [{ count: '12x' }, /whole number/],
    [{ mask: '0x1ffffffffffffffff' }, /64 bits/],
    [{ mode: 'c' }, /one of a, b/],
    [{ mode: 1 }, /a text/],
    [{ on: 'yes' }, /true or false/],
    [{ parts: {} }, /a list/],
    [{ more: [] }, /an object/],
  ];
  for (const [options, message] of bad) assert.throws(() => readOptions(model, options), { code: 'EINVAL', message });
});

test('sizes may have K, M, G', () => {
  assert.deepEqual(['16M', '4k', '0x10K', '1G', 12, '', 'M', '99999999999999999999'].map(parseInteger), [
    2 ** 24,
    4096,
    16384,
    2 ** 30,
    12,
    undefined,
    undefined,
    undefined,
  ]);
});
