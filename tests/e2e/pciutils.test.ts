/** lspci and setpci see the box's machine as they saw the real one. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { needs, provided, runInBox } from '../support/box.ts';
import { EDU, functions, HOST } from './machine.ts';

needs('pciutils');

const options = { host: HOST, timeout: 30_000 };
// Both ways by which programs see the box's sysfs.
const modes = ['auto', 'rewrite'];

function program(t: TestContext, name: 'lspci' | 'setpci'): string | undefined {
  const folder = provided(t, 'pciutils');
  return folder === undefined ? undefined : join(folder, 'bin', name);
}

for (const mode of modes) {
  test(`lspci -nnk lists every function with its ids, class and driver (--sysfs ${mode})`, {
    timeout: 60_000,
  }, async (t) => {
    const lspci = program(t, 'lspci');
    if (lspci === undefined) return;
    const outcome = await runInBox([lspci, '-D', '-nnk'], { ...options, options: ['--sysfs', mode] });
    assert.equal(outcome.status, 0, outcome.story);
    const seen = outcome.stdout
      .split(/\n(?=\S)/)
      .filter((block) => block.trim() !== '')
      .map((block) => {
        const first = block.split('\n')[0]!;
        const driver = /Kernel driver in use: (\S+)/.exec(block)?.[1] ?? '-';
        return `${first.slice(0, 12)} ${/\[([0-9a-f]{4}:[0-9a-f]{4})\]/.exec(first)?.[1]} ${/ \[([0-9a-f]{4})\]: /.exec(first)?.[1]} ${driver}`;
      });
    const wanted = functions.map(
      ({ address, ids, class: code, driver }) => `${address} ${ids} ${code.slice(0, 4)} ${driver}`,
    );
    assert.deepEqual(seen, wanted, outcome.story);
    // A machine without modules of its running kernel makes lspci complain about libkmod.
    assert.equal(outcome.stderr.replace(/^.*libkmod.*\n/gm, ''), '', outcome.story);
    t.diagnostic(`${seen.length} functions: address, vendor, device, class and driver equal`);
  });
}

test('lspci -vvxxx reads the configuration space and its resources', { timeout: 60_000 }, async (t) => {
  const lspci = program(t, 'lspci');
  if (lspci === undefined) return;
  const outcome = await runInBox([lspci, '-D', '-vv', '-xxx', '-s', EDU], options);
  assert.equal(outcome.status, 0, outcome.story);
  for (const pattern of [
    /Memory at [0-9a-f]{6,} \(32-bit, non-prefetchable\).* \[size=1M\]/,
    /Interrupt: pin A/,
    /IOMMU group: 3/,
    /Capabilities: \[40\] MSI: Enable- Count=1\/1 Maskable- 64bit\+/,
    /^00: 34 12 e8 11 /m,
  ]) {
    assert.match(outcome.stdout, pattern, outcome.story);
  }
  assert.equal(outcome.stdout.match(/^[0-9a-f]0: ([0-9a-f]{2} ?){16}$/gm)?.length, 16, outcome.story);
  t.diagnostic('BAR, interrupt pin, group, MSI capability and 256 bytes of configuration space');
});

test('lspci -t shows the bridges', { timeout: 60_000 }, async (t) => {
  const lspci = program(t, 'lspci');
  if (lspci === undefined) return;
  const outcome = await runInBox([lspci, '-tn'], options);
  assert.equal(outcome.status, 0, outcome.story);
  for (const pattern of [/08\.0-\[01-02\]----00\.0-\[02\]--\+-01\.0/, /0a\.0-\[05\]----00\.0/]) {
    assert.match(outcome.stdout, pattern, outcome.story);
  }
  t.diagnostic('root port, PCIe-to-PCI bridge and the two functions behind it');
});

test('setpci reads and writes registers, and the box keeps what it wrote', { timeout: 60_000 }, async (t) => {
  const setpci = program(t, 'setpci');
  if (setpci === undefined) return;
  const script = `
    set -e
    show() { "${setpci}" -s ${EDU} "$@"; }
    show VENDOR_ID DEVICE_ID COMMAND.W
    show COMMAND=0006 LATENCY_TIMER=40 INTERRUPT_LINE=0b
    show COMMAND.W INTERRUPT_LINE
    show COMMAND=0:4
    show COMMAND
    show VENDOR_ID=ffff
    show VENDOR_ID CAP_MSI+2.W`;
  const outcome = await runInBox(['sh', '-c', script], options);
  assert.equal(outcome.status, 0, outcome.story);
  const [vendor, device, , command, line, masked, again, msi] = outcome.stdout.trim().split('\n');
  assert.deepEqual(
    { vendor, device, command, line, masked, again, msi },
    { vendor: '1234', device: '11e8', command: '0006', line: '0b', masked: '0002', again: '1234', msi: '0080' },
    outcome.story,
  );
  t.diagnostic('ids, COMMAND with mask, INTERRUPT_LINE, a read-only register, the MSI capability');
});
