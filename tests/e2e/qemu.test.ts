/**
 * QEMU hands the box's edu to a Linux guest, whose program reads its registers, does DMA with its own physical addresses and takes
 * level interrupts. The same program runs on QEMU's own model of the card first: the two must answer alike.
 */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { boxed, needs, provided, scratch } from '../support/box.ts';
import { bootGuest, compileGuestProgram, type GuestOptions } from '../support/guest/boot.ts';
import { EDU, HOST } from './machine.ts';

needs('guest', 'cc');

const TIMEOUT = 240_000;

interface Program {
  name: 'edu' | 'vfio-edu';
  modules: readonly string[];
  /** The program's last line when all holds. */
  sum: string;
  /** What it exercises. */
  what: string;
}

const bare: Program = {
  name: 'edu',
  modules: ['uio_pci_generic'],
  sum: 'edu: 39 checks, 0 wrong',
  what: 'registers, DMA both ways by physical address, INTx',
};
const nested: Program = {
  name: 'vfio-edu',
  modules: ['vfio_iommu_type1', 'vfio-pci'],
  sum: 'edu: 19 checks, 0 wrong',
  what: "registers, DMA through the guest's IOMMU, MSI",
};

type Way = Pick<GuestOptions, 'devices' | 'sharedMemory' | 'iommu' | 'within'>;

async function boot(t: TestContext, program: Program, way: Way): Promise<void> {
  const guest = provided(t, 'guest');
  if (guest === undefined || provided(t, 'cc') === undefined) return;
  const folder = scratch(t);
  const test = compileGuestProgram(program.name, folder);
  const outcome = await bootGuest({
    ...way,
    guest,
    scratch: folder,
    test,
    modules: program.modules,
    timeout: TIMEOUT - 30_000,
  });
  assert.equal(outcome.timedOut, false, outcome.story);
  assert.deepEqual(
    outcome.console.filter((line) => line.startsWith('edu: WRONG')),
    [],
    outcome.story,
  );
  assert.equal(outcome.testStatus, 0, outcome.story);
  assert.ok(outcome.console.includes(program.sum), outcome.story);
  assert.equal(outcome.status, 0, outcome.story);
  const strange = outcome.stderr
    .split('\n')
    .filter((line) => line !== '' && !expected.some((known) => known.test(line)));
  assert.deepEqual(strange, [], outcome.story);
  t.diagnostic(`${program.sum} in the guest (${program.what}), ${outcome.milliseconds} ms`);
}

/** What QEMU says with this card on a real machine too. */
const expected = [
  // edu has no function-level reset, and nothing resets a root bus.
  /vfio: Cannot reset device .*, no available reset mechanism/,
  // A BAR is no memfd: IOAS_MAP_FILE refuses it, and QEMU does without peer-to-peer.
  /vfio_container_dma_map\(\w+, 0xf\w{7}, 0x100000, .* = -22 \(Invalid argument\)/,
  /PCI peer-to-peer transactions on BARs are not supported/,
  // QEMU's own IOMMU, when the guest's program provokes a fault on QEMU's own edu.
  /vtd_iova_to_sspte|vtd_iommu_translate|New fault is not recorded/,
];

const own = ['-device', 'edu,addr=04.0'];
const byGroup = ['-device', `vfio-pci,host=${EDU},addr=04.0`];
const byNode = ['-object', 'iommufd,id=i0', '-device', `vfio-pci,host=${EDU},iommufd=i0,addr=04.0`];
// On the preset `default` QEMU calls for each register access; on the other the BAR is mapped, and the box traps the access.
const within = (command: readonly string[]) => boxed(command, { host: 'default' });
const trapped = (command: readonly string[]) => boxed(command, { host: HOST });

const runs: readonly { title: string; program: Program; way: Way }[] = [
  { title: "the guest's program holds on QEMU's own edu", program: bare, way: { devices: own } },
  { title: "the guest's VFIO program holds on QEMU's own edu", program: nested, way: { devices: own, iommu: true } },
  { title: 'QEMU vfio-pci by group and container, private memory', program: bare, way: { devices: byGroup, within } },
  {
    title: 'QEMU vfio-pci by group and container, shared memory, trapped BAR',
    program: bare,
    way: { devices: byGroup, sharedMemory: true, within: trapped },
  },
  {
    title: 'QEMU vfio-pci by device node and iommufd, private memory',
    program: bare,
    way: { devices: byNode, within },
  },
  {
    title: 'QEMU vfio-pci by device node and iommufd, shared memory (IOAS_MAP_FILE), trapped BAR',
    program: bare,
    way: { devices: byNode, sharedMemory: true, within: trapped },
  },
  {
    title: "QEMU vfio-pci by group and container behind the guest's IOMMU, driven by VFIO in the guest",
    program: nested,
    way: { devices: byGroup, iommu: true, within },
  },
  {
    title: "QEMU vfio-pci by device node and iommufd behind the guest's IOMMU, driven by VFIO in the guest",
    program: nested,
    way: { devices: byNode, sharedMemory: true, iommu: true, within },
  },
];

for (const { title, program, way } of runs) test(title, { timeout: TIMEOUT }, (t) => boot(t, program, way));
