#!/usr/bin/env node
// npm run conformance [-- SUITE…] [--list]: the box's answers against those of Linux 7.2, call by call.
import { judge, probe, SUITES } from '../dist/tests/conformance/probe.js';

const args = process.argv.slice(2);
const isListed = args.includes('--list');
const named = args.filter((arg) => !arg.startsWith('--'));
const unknown = named.filter((suite) => !SUITES.includes(suite));
if (unknown.length > 0) {
  console.error(`conformance: no suite ${unknown.join(', ')}; there are ${SUITES.join(', ')}`);
  process.exit(2);
}
let program;
try {
  program = probe();
} catch (error) {
  console.error(`conformance: ${error.message}`);
  process.exit(1);
}
const suites = named.length > 0 ? named : SUITES;
const result = await judge(program, suites);
let calls = 0;
let differences = 0;
for (const suite of suites) {
  const entry = result.get(suite);
  calls += entry.calls;
  differences += entry.differences.length;
  console.log(`${suite.padEnd(12)} ${String(entry.calls).padStart(5)} calls, ${entry.differences.length} differ`);
  if (isListed)
    for (const { call, occurrence, fields } of entry.differences)
      console.log(`    ${call} #${occurrence}: ${fields.join('; ')}`);
}
console.log(`${calls} calls, ${differences} differ`);
process.exitCode = differences === 0 ? 0 : 1;
