import { test } from 'node:test';
import { checkGroups } from './test-topology.ts';

test('G-1 G-8: random machines have the groups of the plain rules, in every order of siblings, and of the relations between pairs', () => {
  for (let seed = 0; seed < 300; seed++) checkGroups(seed);
});
