/**
 * QEMU hands the box's edu to a Linux guest, whose program reads its registers, does DMA with its own physical addresses and takes
 * level interrupts. The same program runs on QEMU's own model of the card first: the two must answer alike.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { boxed, provided, scratch } from '../support/box.ts';
import { bootGuest, compileGuestProgram, type GuestOptions, type GuestOutcome } from '../support/guest/boot.ts';
import { EDU, HOST } from './machine.ts';

const TIMEOUT = 240_000;

async function boot(t: TestContext, options: Pick<GuestOptions, 'devices' | 'sharedMemory' | 'within'>) {
  const guest = provided(t, 'guest');
  if (guest === undefined || provided(t, 'cc') === undefined) return undefined;
  const folder = scratch(t);
  return bootGuest({
    ...options,
    guest,
    scratch: folder,
    test: compileGuestProgram('edu', folder),
    modules: ['uio_pci_generic'],
    timeout: TIMEOUT - 30_000,
  });
}

function judge(t: TestContext, outcome: GuestOutcome): void {
  assert.equal(outcome.timedOut, false, outcome.story);
  assert.deepEqual(
    outcome.console.filter((line) => line.startsWith('edu: WRONG')),
    [],
    outcome.story,
  );
  assert.equal(outcome.testStatus, 0, outcome.story);
  const sum = outcome.console.find((line) => line.startsWith('edu: ') && line.endsWith(' wrong'));
  assert.equal(sum, 'edu: 38 checks, 0 wrong', outcome.story);
  assert.equal(outcome.status, 0, outcome.story);
  assert.doesNotMatch(outcome.stderr, /vfio/i, outcome.story);
  t.diagnostic(`${sum} in the guest (registers, DMA both ways, INTx), ${outcome.milliseconds} ms`);
}

test("the guest's program holds on QEMU's own edu", { timeout: TIMEOUT }, async (t) => {
  const outcome = await boot(t, { devices: ['-device', 'edu,addr=04.0'] });
  if (outcome !== undefined) judge(t, outcome);
});

const ways: { title: string; options: Pick<GuestOptions, 'devices' | 'sharedMemory'> }[] = [
  {
    title: 'QEMU -device vfio-pci by group and container, private memory',
    options: { devices: ['-device', `vfio-pci,host=${EDU},addr=04.0`] },
  },
  {
    title: 'QEMU -device vfio-pci by group and container, shared memory',
    options: { devices: ['-device', `vfio-pci,host=${EDU},addr=04.0`], sharedMemory: true },
  },
  {
    title: 'QEMU -device vfio-pci by device node and iommufd, private memory',
    options: { devices: ['-object', 'iommufd,id=i0', '-device', `vfio-pci,host=${EDU},iommufd=i0,addr=04.0`] },
  },
  {
    title: 'QEMU -device vfio-pci by device node and iommufd, shared memory (IOAS_MAP_FILE)',
    options: {
      devices: ['-object', 'iommufd,id=i0', '-device', `vfio-pci,host=${EDU},iommufd=i0,addr=04.0`],
      sharedMemory: true,
    },
  },
];

for (const { title, options } of ways) {
  test(title, { timeout: TIMEOUT }, async (t) => {
    const outcome = await boot(t, { ...options, within: (command) => boxed(command, { host: HOST }) });
    if (outcome !== undefined) judge(t, outcome);
  });
}
