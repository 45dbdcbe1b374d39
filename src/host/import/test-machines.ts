/**
 * Six machines of different shape, from data sheets, the PCI ID database and what their owners report about groups. Not copies of
 * anybody's dump: only what isolation depends on.
 */
import type { Fact } from './test-maker.ts';

const [ENDPOINT, LEGACY, ROOT, UP, DOWN, TO_PCI, INTEGRATED] = [0, 1, 4, 5, 6, 7, 9];
const ON = { cap: 0x1f, ctrl: 0x1d };

const conventional = (at: string, id: string, kind: string, group?: number, more: Partial<Fact> = {}): Fact => ({
  ...{ at: `0000:${at}`, id, class: kind },
  ...(group === undefined ? {} : { group }),
  ...more,
});
const express = (
  at: string,
  id: string,
  kind: string,
  type: number,
  group?: number,
  more: Partial<Fact> = {},
): Fact => ({
  ...conventional(at, id, kind, group, more),
  type,
});
const port = (
  at: string,
  id: string,
  type: number,
  bus: [number, number],
  group?: number,
  more: Partial<Fact> = {},
): Fact => express(at, id, '060400', type, group, { bus, driver: 'pcieport', msi: true, ...more });

/**
 * Intel desktop (Haswell, Z87): the processor's two graphics ports have no ACS and share a slot, so that both cards are one group; the
 * chipset's root ports isolate by a quirk; a bridge to conventional PCI that hides its PCI Express capability.
 */
export const intelDesktop: Fact[] = [
  conventional('00:00.0', '8086:0c00', '060000', 0),
  port('00:01.0', '8086:0c01', ROOT, [1, 1], 1, { mf: true, slot: true }),
  port('00:01.1', '8086:0c05', ROOT, [2, 2], 1, { slot: true }),
  conventional('00:14.0', '8086:8c31', '0c0330', 2, {
    driver: 'xhci_hcd',
    msi: true,
    bars: [{ index: 0, value: 0xf7f00004, high: 0, size: 65536 }],
  }),
  express('00:1b.0', '8086:8c20', '040300', INTEGRATED, 3, { driver: 'snd_hda_intel', msi: true }),
  port('00:1c.0', '8086:8c10', ROOT, [3, 3], 4, { mf: true, slot: true }),
  port('00:1c.2', '8086:8c14', ROOT, [4, 4], 5, { slot: true }),
  port('00:1c.3', '8086:8c16', ROOT, [5, 6], 6, { slot: true }),
  conventional('00:1f.0', '8086:8c44', '060100', 7, { mf: true, words: [[0xf0, 0xfed1c001]] }),
  conventional('00:1f.2', '8086:8c02', '010601', 7, {
    msi: true,
    driver: 'ahci',
    bars: [
      { index: 4, value: 0xf021, size: 32 },
      { index: 5, value: 0xf7f1a000, size: 2048 },
    ],
  }),
  conventional('00:1f.3', '8086:8c22', '0c0500', 7),
  express('01:00.0', '10de:13c2', '030000', LEGACY, 1, {
    mf: true,
    driver: 'nvidia',
    msi: true,
    bars: [
      { index: 0, value: 0xf6000000, size: 2 ** 24 },
      { index: 1, value: 0xe000000c, high: 0, size: 2 ** 28 },
      { index: 3, value: 0xf000000c, high: 0, size: 2 ** 25 },
      { index: 5, value: 0xe001, size: 128 },
    ],
  }),
  express('01:00.1', '10de:0fbb', '040300', ENDPOINT, 1, {
    mf: true,
    driver: 'snd_hda_intel',
    bars: [{ index: 0, value: 0xf7080000, size: 16384 }],
  }),
  express('02:00.0', '144d:a802', '010802', ENDPOINT, 1, {
    driver: 'nvme',
    bars: [{ index: 0, value: 0xf7100004, high: 0, size: 16384 }],
    msix: { vectors: 9, table: 0x3000, pba: 0x2000 },
  }),
  express('04:00.0', '10ec:8168', '020000', ENDPOINT, 8, { driver: 'r8169' }),
  conventional('05:00.0', '1b21:1080', '060401', 9, { bus: [6, 6] }),
  conventional('06:00.0', '1102:0004', '040100', 9, { mf: true }),
  conventional('06:00.1', '1102:7003', '098000', 9, { mf: true }),
];

/**
 * AMD Ryzen (B450): graphics behind a switch on the card, endpoints on the chip with ACS, and the chipset, whose ports and functions have
 * none: one large group.
 */
export const amdRyzen: Fact[] = [
  conventional('00:00.0', '1022:1450', '060000', 0),
  conventional('00:01.0', '1022:1452', '060000', 1, { mf: true }),
  port('00:01.3', '1022:1453', ROOT, [1, 5], 2, { mf: true, acs: ON }),
  conventional('00:03.0', '1022:1452', '060000', 3, { mf: true }),
  port('00:03.1', '1022:1453', ROOT, [6, 8], 4, { mf: true, acs: ON, slot: true }),
  port('00:07.1', '1022:1454', ROOT, [9, 9], 5, { acs: ON }),
  conventional('00:14.0', '1022:790b', '0c0500', 6, { mf: true }),
  conventional('00:14.3', '1022:790e', '060100', 6, { mf: true }),
  ...[0, 1, 2, 3].map((fn) => conventional(`00:18.${fn}`, `1022:146${fn}`, '060000', 7, { mf: true })),
  express('01:00.0', '1022:43d5', '0c0330', LEGACY, 8, { mf: true, driver: 'xhci_hcd' }),
  express('01:00.1', '1022:43c8', '010601', LEGACY, 8, { mf: true, driver: 'ahci' }),
  port('01:00.2', '1022:43c6', UP, [2, 5], 8, { mf: true }),
  port('02:00.0', '1022:43c7', DOWN, [3, 3], 8, { slot: true }),
  port('02:01.0', '1022:43c7', DOWN, [4, 4], 8, { slot: true }),
  port('02:04.0', '1022:43c7', DOWN, [5, 5], 8, { slot: true }),
  express('03:00.0', '10ec:8168', '020000', ENDPOINT, 8, { driver: 'r8169' }),
  port('06:00.0', '1002:1478', UP, [7, 8], 9),
  port('07:00.0', '1002:1479', DOWN, [8, 8], 10, { acs: ON }),
  express('08:00.0', '1002:731f', '030000', LEGACY, 11, {
    mf: true,
    acs: ON,
    driver: 'amdgpu',
    bars: [
      { index: 0, value: 0xe000000c, high: 0, size: 2 ** 28 },
      { index: 5, value: 0xfca00000, size: 2 ** 19 },
    ],
  }),
  express('08:00.1', '1002:ab38', '040300', LEGACY, 12, { mf: true, acs: ON, driver: 'snd_hda_intel' }),
  express('09:00.0', '1022:145a', '130000', ENDPOINT, 13, { mf: true, acs: { cap: 0, ctrl: 0 } }),
  express('09:00.2', '1022:1456', '108000', ENDPOINT, 14, { mf: true, acs: { cap: 0, ctrl: 0 } }),
  express('09:00.3', '1022:145f', '0c0330', ENDPOINT, 15, { mf: true, acs: { cap: 0, ctrl: 0 } }),
];

/** Which unit serves each function of `amdRyzen`, and that the kernel said so. */
for (const fact of amdRyzen) fact.unit = 'ivhd0';

const virtualFunctions: Fact[] = [0, 1, 2, 3].map((i) =>
  express(`81:10.${2 * i}`, '8086:10ed', '020000', ENDPOINT, 30 + i, { physfn: '0000:81:00.0', driver: 'ixgbevf' }),
);

/**
 * Server with two root buses: two accelerators behind a PLX switch whose ports have ACS that nobody switched on, a network card with
 * virtual functions, and a management controller behind a bridge to PCI that does not change requester IDs.
 */
export const server: Fact[] = [
  express('00:00.0', '8086:6f00', '060000', ROOT, 10),
  port('00:02.0', '8086:6f04', ROOT, [3, 6], 11, { acs: ON, slot: true }),
  port('00:03.0', '8086:6f08', ROOT, [9, 9], 12, { acs: ON, slot: true }),
  port('00:1c.0', '8086:8d10', ROOT, [7, 8], 13, { mf: true }),
  conventional('00:1f.0', '8086:8d44', '060100', 14, { mf: true, words: [[0xf0, 0xfed1c001]] }),
  port('03:00.0', '10b5:8747', UP, [4, 6], 15),
  port('04:08.0', '10b5:8747', DOWN, [5, 5], 16, { acs: { cap: 0x5f, ctrl: 0 } }),
  port('04:10.0', '10b5:8747', DOWN, [6, 6], 17, { acs: { cap: 0x5f, ctrl: 0 } }),
  express('05:00.0', '10de:102d', '030200', ENDPOINT, 16, { driver: 'nvidia' }),
  express('06:00.0', '10de:102d', '030200', ENDPOINT, 17, { driver: 'nvidia' }),
  express('07:00.0', '1a03:1150', '060400', TO_PCI, 18, { bus: [8, 8] }),
  conventional('08:00.0', '1a03:2000', '030000', 18, { driver: 'ast' }),
  port('80:02.0', '8086:6f04', ROOT, [0x81, 0x81], 19, { acs: ON, slot: true }),
  express('81:00.0', '8086:10fb', '020000', ENDPOINT, 20, {
    mf: true,
    driver: 'ixgbe',
    sriov: { total: 64, num: 4, offset: 128, stride: 2, device: 0x10ed },
    bars: [
      { index: 0, value: 0xc780000c, high: 0, size: 2 ** 19 },
      { index: 4, value: 0xc7a0000c, high: 0, size: 16384 },
    ],
    msix: { vectors: 64, table: 0x4, pba: 0x2004 },
  }),
  express('81:00.1', '8086:10fb', '020000', ENDPOINT, 21, {
    mf: true,
    driver: 'ixgbe',
    sriov: { total: 64, num: 0, offset: 128, stride: 2, device: 0x10ed },
    bars: [{ index: 0, value: 0xc700000c, high: 0, size: 2 ** 19 }],
  }),
  ...virtualFunctions,
];

/** Laptop with Thunderbolt 3 on a chipset whose ACS registers are 32 bits wide; the controller's switch has ACS, and nothing is plugged in. */
export const thunderbolt: Fact[] = [
  conventional('00:00.0', '8086:5904', '060000', 0),
  express('00:02.0', '8086:5916', '030000', INTEGRATED, 1, { driver: 'i915' }),
  port('00:1c.0', '8086:9d10', ROOT, [1, 0x39], 2, { mf: true, slot: true, acs: { ...ON, wide: true } }),
  port('00:1c.4', '8086:9d14', ROOT, [0x3a, 0x3a], 3, { mf: true, slot: true, acs: { ...ON, wide: true } }),
  conventional('00:1f.0', '8086:9d58', '060100', 4, { mf: true }),
  conventional('00:1f.2', '8086:9d21', '058000', 4, { mf: true }),
  port('01:00.0', '8086:1576', UP, [2, 0x39], 5),
  port('02:00.0', '8086:1576', DOWN, [3, 3], 6, { acs: ON }),
  port('02:01.0', '8086:1576', DOWN, [4, 0x38], 7, { acs: ON, slot: true }),
  port('02:02.0', '8086:1576', DOWN, [0x39, 0x39], 8, { acs: ON }),
  express('03:00.0', '8086:1575', '088000', ENDPOINT, 9, { driver: 'thunderbolt' }),
  express('39:00.0', '8086:15b5', '0c0330', ENDPOINT, 10, { driver: 'xhci_hcd' }),
  express('3a:00.0', '168c:003e', '028000', ENDPOINT, 11, { driver: 'ath10k_pci' }),
];

/** Workstation with disks behind Intel VMD: they do DMA in the name of the controller, in a segment of their own. */
export const vmd: Fact[] = [
  conventional('00:00.0', '8086:9a14', '060000', 0),
  express('00:0e.0', '8086:9a0b', '010400', INTEGRATED, 1, { driver: 'vmd' }),
  port('00:1c.0', '8086:a0b8', ROOT, [1, 1], 2, { mf: true, slot: true, acs: ON }),
  express('01:00.0', '8086:2725', '028000', ENDPOINT, 3, { driver: 'iwlwifi' }),
  {
    ...port('00:06.0', '8086:9a09', ROOT, [0xe1, 0xe1], 1, { slot: true, acs: ON }),
    at: '10000:e0:06.0',
    above: '0000:00:0e.0',
  },
  { ...express('00:00.0', '144d:a80a', '010802', ENDPOINT, 1, { driver: 'nvme' }), at: '10000:e1:00.0' },
];

/** The machine that VFIO's first documentation draws, as `lspci -t` draws it. */
export const firstDocumentation = `-[0000:00]-+-1e.0-[06]--+-0d.0
                        \\-0d.1

00:1e.0 PCI bridge: Intel Corporation 82801 PCI Bridge (rev 90)
`;
