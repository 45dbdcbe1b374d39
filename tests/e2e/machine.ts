/** The machine of the preset `kernel-golden`, as the real one was: what programs must find. */

export const HOST = 'kernel-golden';

/** An edu alone in its group, bound to vfio-pci. */
export const EDU = '0000:00:04.0';
export const EDU_GROUP = 3;

/** A testdev on the preset `default`. */
export const TESTDEV_HOST = 'default';
export const TESTDEV = '0000:01:00.0';

export interface Function {
  address: string;
  ids: string;
  class: string;
  driver: string;
  group: number;
}

const rows = `
0000:00:00.0 8086:29c0 060000 -          0
0000:00:01.0 1234:1111 030000 -          1
0000:00:03.0 1af4:1009 000200 virtio-pci 2
0000:00:04.0 1234:11e8 00ff00 vfio-pci   3
0000:00:05.0 1b36:0005 00ff00 vfio-pci   4
0000:00:08.0 1b36:000c 060400 pcieport   5
0000:00:09.0 1b36:000c 060400 pcieport   6
0000:00:0a.0 1b36:000c 060400 pcieport   7
0000:00:1f.0 8086:2918 060100 -          8
0000:00:1f.2 8086:2922 010601 -          8
0000:00:1f.3 8086:2930 0c0500 -          8
0000:01:00.0 1b36:000e 060400 -          9
0000:02:01.0 1234:11e8 00ff00 vfio-pci   9
0000:02:02.0 1b36:0002 070002 serial     9
0000:03:00.0 1b36:000e 060400 -          10
0000:04:01.0 1234:11e8 00ff00 vfio-pci   10
0000:04:02.0 1234:11e8 00ff00 vfio-pci   10
0000:05:00.0 8086:10c9 020000 vfio-pci   11
`;

export const functions: readonly Function[] = rows
  .trim()
  .split('\n')
  .map((row) => {
    const [address, ids, code, driver, group] = row.split(/\s+/);
    return { address: address!, ids: ids!, class: code!, driver: driver!, group: Number(group) };
  });
