/** The suites device, device-cdev and same of the recorded kernel, made again in this process on the models of the recorded machine. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../../../uapi/vfio.ts';
import type { TestTask } from '../../core/test-task.ts';
import { IommufdContext } from '../../iommufd/context.ts';
import { IommufdFile } from '../../iommufd/main.ts';
import { openCdev } from '../../vfio/cdev.ts';
import { bytesString, Golden, hexString } from '../../vfio/test-golden.ts';
import { deviceFile } from '../../vfio/test-world.ts';
import type { DeviceFile } from '../../vfio/vfio-device.ts';
import { recordedMachine } from './test-machine.ts';

const REGION = 2 ** 40;
const CONFIG = 7 * REGION;
const NONE = 1;
const BOOL = 2;
const EVENTFD = 4;
const MASK = 8;
const UNMASK = 16;
const TRIGGER = 32;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;

/** What needs a program's own memory or descriptors below the door. */
const elsewhere = /^(note:|load from|poll|lseek|pread config NULL|open |ATTACH$)/;

class Caller {
  readonly golden: Golden;
  readonly task: TestTask;
  readonly file: DeviceFile;

  constructor(golden: Golden, task: TestTask, file: DeviceFile) {
    this.golden = golden;
    this.task = task;
    this.file = file;
  }

  ioctl(
    name: string,
    request: number,
    argument: Uint8Array | bigint,
    answer?: () => Record<string, unknown>,
  ): number | undefined {
    return this.golden.call(name, () => this.task.ioctl(this.file, request, argument), answer);
  }

  read(
    name: string,
    position: number,
    length: number,
    answer: (bytes: Uint8Array) => Record<string, unknown> = () => ({}),
  ): void {
    const bytes = new Uint8Array(length);
    this.golden.call(
      name,
      () => this.file.read(this.task, bytes, position),
      () => answer(bytes),
    );
  }

  write(name: string, position: number, value: number, length: number, readback = false): void {
    const bytes = little(value, length);
    this.golden.call(
      name,
      () => this.file.write(this.task, bytes, position),
      () => (readback ? { readback: hexString(this.get(position, length)) } : {}),
    );
  }

  get(position: number, length: number): number {
    const bytes = new Uint8Array(length);
    this.file.read(this.task, bytes, position);
    return bytes.reduceRight((sum, byte) => sum * 256 + byte, 0);
  }

  put(position: number, value: number, length: number): void {
    this.file.write(this.task, little(value, length), position);
  }
}

function little(value: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => Math.floor(value / 256 ** i) & 0xff);
}

function words(...values: number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

function information(caller: Caller): void {
  for (const argsz of [0, 8, 15, 16, 20, 24, 32, 64, 4096]) {
    const bytes = new Uint8Array(4096);
    bytes.set(words(argsz));
    caller.ioctl(`DEVICE_GET_INFO argsz=${argsz}`, uapi.VFIO_DEVICE_GET_INFO, bytes, () => {
      const { argsz: now, flags, num_regions, num_irqs, cap_offset } = uapi.vfio_device_info.read(bytes);
      const out = { argsz: now, flags, regions: num_regions, irqs: num_irqs, cap_offset };
      return { out: Object.fromEntries(Object.entries(out).map(([key, value]) => [key, hexString(value)])) };
    });
  }
  caller.ioctl('DEVICE_GET_INFO NULL', uapi.VFIO_DEVICE_GET_INFO, 0n);
  const region = (name: string, argsz: number, index: number, flags = 0, shows = true): void => {
    const bytes = uapi.vfio_region_info.write({ argsz, flags, index, cap_offset: 0, size: 0n, offset: 0n });
    caller.ioctl(`REGION_INFO ${name}`, uapi.VFIO_DEVICE_GET_REGION_INFO, bytes, () => {
      if (!shows) return {};
      const out = Object.entries(uapi.vfio_region_info.read(bytes)).map(([key, value]) => [key, hexString(value)]);
      return { out: Object.fromEntries(out) };
    });
  };
  for (let index = 0; index < 11; index++) region(`${index}`, 32, index);
  region('argsz=31', 31, 0, 0, false);
  region('index=-1', 32, 0xffff_ffff, 0, false);
  region('flags=-1', 32, 0, 0xffff_ffff);
  caller.ioctl('REGION_INFO NULL', uapi.VFIO_DEVICE_GET_REGION_INFO, 0n);
  const irq = (name: string, argsz: number, index: number, shows = true): void => {
    const bytes = words(argsz, 0, index, 0);
    caller.ioctl(`IRQ_INFO ${name}`, uapi.VFIO_DEVICE_GET_IRQ_INFO, bytes, () => {
      if (!shows) return {};
      const out = Object.entries(uapi.vfio_irq_info.read(bytes)).map(([key, value]) => [key, hexString(value)]);
      return { out: Object.fromEntries(out) };
    });
  };
  for (let index = 0; index < 7; index++) irq(`${index}`, 16, index);
  irq('argsz=15', 15, 0, false);
  irq('index=-1', 16, 0xffff_ffff, false);
  irq('argsz=64', 64, 0);
  caller.ioctl('IRQ_INFO NULL', uapi.VFIO_DEVICE_GET_IRQ_INFO, 0n);
}

function configuration(caller: Caller): void {
  const d = (bytes: Uint8Array): Record<string, unknown> => ({ d: bytesString(bytes) });
  const v = (bytes: Uint8Array): Record<string, unknown> => ({
    v: hexString(bytes.reduceRight((s, b) => s * 256 + b, 0)),
  });
  caller.read('pread config 0..63', CONFIG, 64, d);
  caller.read('pread config 0..255', CONFIG, 256, d);
  caller.read('pread config byte 3', CONFIG + 3, 1, v);
  caller.read('pread config word at 1', CONFIG + 1, 2, v);
  caller.read('pread config dword at 2', CONFIG + 2, 4, v);
  caller.read('pread config 0 bytes', CONFIG, 0);
  caller.read('pread config crossing end', CONFIG + 254, 4);
  caller.read('pread config at end', CONFIG + 256, 4);
  caller.read('pread config +1M', CONFIG + 0x10_0000, 4);
  caller.read('pread absent region', 12 * REGION, 4);
  caller.read('read() device at file position 0', 0, 4);
  caller.write('write() 0 bytes', 0, 0, 0);
  caller.write('pwrite config vendor/device', CONFIG, 0xffff_ffff, 4);
  caller.read('pread vendor/device', CONFIG, 4, v);
  caller.read('pread COMMAND', CONFIG + 4, 2, v);
  for (let i = 0; i < 6; i++) {
    const old = caller.get(CONFIG + 16 + 4 * i, 4);
    caller.write(`pwrite BAR${i} sizing`, CONFIG + 16 + 4 * i, 0xffff_ffff, 4, true);
    caller.put(CONFIG + 16 + 4 * i, old, 4);
  }
  caller.write('pwrite ROM sizing', CONFIG + 0x30, 0xffff_ffff, 4, true);
  caller.put(CONFIG + 0x30, 0, 4);
  caller.write('pwrite COMMAND=0xffff', CONFIG + 4, 0xffff, 2, true);
  caller.put(CONFIG + 4, 0x103, 2);
  caller.write('pwrite STATUS=0xffff', CONFIG + 6, 0xffff, 2, true);
  caller.write('pwrite INTLINE', CONFIG + 0x3c, 0x5a, 1, true);
  caller.write('pwrite INTPIN', CONFIG + 0x3d, 9, 1, true);
  caller.write('pwrite SUBSYS', CONFIG + 0x2c, 0xffff_ffff, 4, true);
  caller.write('pwrite CACHELINE', CONFIG + 0xc, 0x20, 1, true);
  caller.read('capability at list position 0', CONFIG + 0x40, 16, (bytes) => ({ at: '0x40', ...d(bytes) }));
  caller.write('pwrite MSI control=0x71', CONFIG + 0x42, 0x71, 2, true);
  caller.write('pwrite MSI address', CONFIG + 0x44, 0xfee0_1004, 4, true);
  caller.put(CONFIG + 0x42, 0, 2);
  caller.put(CONFIG + 4, 0x100, 2);
  caller.read('pread BAR0 mem/io disabled', 0, 4, v);
  caller.write('enable mem+io', CONFIG + 4, 0x103, 2);
  caller.read('pread BAR0 +0 4', 0, 4, v);
  caller.read('pread BAR0 +0 8', 0, 8);
  caller.read('pread BAR0 +1 1', 1, 1);
  caller.read('pread BAR0 +1 3', 1, 3);
  caller.read('pread BAR0 last 4', 0xf_fffc, 4);
  caller.read('pread BAR0 crossing end', 0xf_fffc, 8);
  caller.read('pread BAR0 past end', 0x10_0000, 4);
  caller.write('pwrite BAR0 past end', 0x10_0000, 0, 4);
  const map = (name: string, length: number, flags: number, offset: number, answer = {}): void => {
    const make = (): number => {
      caller.file.mmap(caller.task, length, 1, flags, offset);
      return 0;
    };
    caller.golden.call(`mmap ${name}`, make, () => answer);
  };
  map('BAR0', 0x10_0000, MAP_SHARED, 0, { flag_mmap: '0x1' });
  map('BAR0 MAP_PRIVATE', 0x10_0000, MAP_PRIVATE, 0);
  map('BAR0 twice its size', 0x20_0000, MAP_SHARED, 0);
  map('BAR0 last page', 4096, MAP_SHARED, 0xf_f000);
  map('config', 4096, MAP_SHARED, CONFIG);
  map('absent region', 4096, MAP_SHARED, 60 * REGION);
  // The probe takes the offset that the refused REGION_INFO left: 0.
  caller.read('pread VGA region', 0, 4);
  caller.read('pread ROM region', 6 * REGION, 4, () => ({ size: '0x0' }));
}

function interrupts(caller: Caller): void {
  const { task } = caller;
  const ev = task.openEventfd();
  const ev2 = task.openEventfd();
  const nul = task.openForeign();
  const taken = (event: typeof ev): number => event.file.take() || -1;
  const set = (
    index: number,
    flags: number,
    start: number,
    count: number,
    argsz: number,
    ...data: number[]
  ): Uint8Array => {
    const bytes = new Uint8Array(64);
    bytes.set(words(argsz, flags, index, start, count, ...data));
    return bytes;
  };
  const call = (name: string, bytes: Uint8Array | bigint, ...events: string[]): void => {
    caller.ioctl(`SET_IRQS${name}`, uapi.VFIO_DEVICE_SET_IRQS, bytes, () =>
      Object.fromEntries(events.map((key) => [key, taken(key === 'ev' ? ev : ev2)])),
    );
  };
  call(' argsz=19', set(0, TRIGGER | NONE, 0, 0, 19));
  call(' flags=0', set(0, 0, 0, 0, 20));
  call(' no action', set(0, NONE, 0, 1, 20));
  call(' no data type', set(0, TRIGGER, 0, 1, 20));
  call(' two data types', set(0, TRIGGER | NONE | BOOL, 0, 1, 24));
  call(' two actions', set(0, TRIGGER | MASK | NONE, 0, 1, 24));
  call(' flags bit 6', set(0, TRIGGER | NONE | 64, 0, 0, 20));
  call(' index=9', set(9, TRIGGER | NONE, 0, 0, 20));
  call(' index=-1', set(0xffff_ffff, TRIGGER | NONE, 0, 0, 20));
  call(' NULL', 0n);
  for (const index of [0, 1, 4]) {
    const a = ev.descriptor;
    const b = ev2.descriptor;
    const irq = (
      name: string,
      flags: number,
      start: number,
      count: number,
      argsz: number,
      data: number,
      ...events: string[]
    ): void => call(`[${index}] ${name}`, set(index, flags, start, count, argsz, data), ...events);
    irq('disable when not enabled', TRIGGER | NONE, 0, 0, 20, 0);
    irq('trigger NONE before enable', TRIGGER | NONE, 0, 1, 20, 0);
    irq('mask before enable', MASK | NONE, 0, 1, 20, 0);
    irq('unmask before enable', UNMASK | NONE, 0, 1, 20, 0);
    irq('start=count', TRIGGER | EVENTFD, 1, 1, 24, a);
    irq('start+count>n', TRIGGER | EVENTFD, 0, 2, 28, a);
    irq('start=-1', TRIGGER | EVENTFD, 0xffff_ffff, 1, 24, a);
    irq('count=-1', TRIGGER | EVENTFD, 0, 0xffff_ffff, 24, a);
    irq('EVENTFD argsz too small', TRIGGER | EVENTFD, 0, 1, 20, a);
    irq('BOOL argsz too small', TRIGGER | BOOL, 0, 1, 20, 1);
    irq('eventfd=/dev/null', TRIGGER | EVENTFD, 0, 1, 24, nul);
    irq('eventfd=999', TRIGGER | EVENTFD, 0, 1, 24, 999);
    irq('eventfd=-1 before enable', TRIGGER | EVENTFD, 0, 1, 24, -1);
    irq('eventfd=-2', TRIGGER | EVENTFD, 0, 1, 24, -2);
    irq('enable', TRIGGER | EVENTFD, 0, 1, 24, a);
    irq('trigger NONE', TRIGGER | NONE, 0, 1, 20, 0, 'ev');
    irq('trigger BOOL 1', TRIGGER | BOOL, 0, 1, 21, 1, 'ev');
    irq('trigger BOOL 0', TRIGGER | BOOL, 0, 1, 21, 0, 'ev');
    irq('mask NONE', MASK | NONE, 0, 1, 20, 0);
    irq('trigger while masked', TRIGGER | NONE, 0, 1, 20, 0, 'ev');
    irq('mask BOOL', MASK | BOOL, 0, 1, 21, 1);
    irq('mask EVENTFD', MASK | EVENTFD, 0, 1, 24, b);
    irq('unmask NONE', UNMASK | NONE, 0, 1, 20, 0, 'ev');
    irq('unmask BOOL', UNMASK | BOOL, 0, 1, 21, 1);
    irq('unmask EVENTFD', UNMASK | EVENTFD, 0, 1, 24, b);
    irq('unmask EVENTFD -1', UNMASK | EVENTFD, 0, 1, 24, -1);
    irq('replace eventfd', TRIGGER | EVENTFD, 0, 1, 24, b);
    irq('trigger after replace', TRIGGER | NONE, 0, 1, 20, 0, 'ev', 'ev2');
    irq('eventfd=-1 (de-assign)', TRIGGER | EVENTFD, 0, 1, 24, -1);
    irq('trigger after de-assign', TRIGGER | NONE, 0, 1, 20, 0, 'ev2');
    irq('count=0 EVENTFD', TRIGGER | EVENTFD, 0, 0, 20, 0);
    if (index < 3) {
      const other = 1 - index;
      irq('enable again', TRIGGER | EVENTFD, 0, 1, 24, a);
      call(`[${other}] enable while [${index}] active`, set(other, TRIGGER | EVENTFD, 0, 1, 24, b));
    }
    irq('disable', TRIGGER | NONE, 0, 0, 20, 0);
    irq('disable again', TRIGGER | NONE, 0, 0, 20, 0);
  }
  assert.equal(ev.file.contexts + ev2.file.contexts, 0, 'eventfds are held after everything was disabled');
}

function resets(caller: Caller, descriptor: number): void {
  caller.ioctl('DEVICE_RESET', uapi.VFIO_DEVICE_RESET, 0n, () => ({ command: hexString(caller.get(CONFIG + 4, 2)) }));
  const info = (name: string, argsz: number, shows: boolean): void => {
    const bytes = new Uint8Array(1024);
    bytes.set(words(argsz));
    caller.ioctl(`HOT_RESET_INFO ${name}`, uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, bytes, () => {
      if (!shows) return {};
      const out = Object.entries(uapi.vfio_pci_hot_reset_info.read(bytes)).map(([key, value]) => [
        key,
        hexString(value),
      ]);
      return { out: Object.fromEntries(out) };
    });
  };
  info('argsz=8', 8, false);
  info('argsz=12', 12, true);
  info('argsz=1024', 1024, true);
  const reset = (name: string, ...values: number[]): void => {
    caller.ioctl(`PCI_HOT_RESET ${name}`, uapi.VFIO_DEVICE_PCI_HOT_RESET, words(...values));
  };
  reset('argsz=8', 8, 0, 0);
  reset('count=0', 12, 0, 0);
  reset('flags=1', 12, 1, 0);
  reset('fd=-1', 16, 0, 1, -1);
  reset('fd=device', 16, 0, 1, descriptor);
  reset('count=1000 argsz=16', 16, 0, 1000, descriptor);
  const event = caller.task.openEventfd().descriptor;
  const io = (name: string, flags: number, fd: number, offset = 0, argsz = 40): void => {
    const bytes = uapi.vfio_device_ioeventfd.write({ argsz, flags, offset: BigInt(offset), data: 1n, fd, reserved: 0 });
    caller.ioctl(`IOEVENTFD ${name}`, uapi.VFIO_DEVICE_IOEVENTFD, bytes);
  };
  io('argsz=31', 4, -1, 0, 31);
  io('fd=-1 none assigned', 4, -1);
  io('flags=0', 0, -1);
  io('two sizes', 6, -1);
  io('flags=16', 16, -1);
  io('fd=999', 4, 999);
  io('config region', 4, event, CONFIG);
  io('unaligned', 4, event, 2);
  io('past end', 4, event, 0x10_0000);
  io('BAR0', 4, event);
  io('BAR0 again', 4, event);
  io('de-assign', 4, -1);
}

function features(caller: Caller): void {
  const names = ['PROBE', 'PROBE|GET', 'PROBE|SET', 'PROBE|GET|SET'];
  const GET = 1 << 16;
  const SET = 1 << 17;
  const PROBE = 1 << 18;
  const feature = (
    name: string,
    argsz: number,
    flags: number,
    data: number[] = [],
    answer?: () => Record<string, unknown>,
  ): void => {
    const bytes = new Uint8Array(96);
    bytes.set(words(argsz, flags, ...data));
    caller.ioctl(`FEATURE ${name}`, uapi.VFIO_DEVICE_FEATURE, bytes, answer);
  };
  for (let index = 0; index < 14; index++) {
    [0, GET, SET, GET | SET].forEach((way, i) => {
      feature(`${index} ${names[i]}`, 8, PROBE | way | index);
    });
  }
  feature('argsz=7', 7, PROBE | GET | SET | 13);
  feature('flags=0', 8, 0);
  feature('flags bit19', 8, 1 << 19);
  feature('GET|SET no PROBE', 8, GET | SET);
  feature('1000 GET', 8, GET | 1000);
  feature('MIGRATION GET argsz=8', 8, GET | 1);
  feature('MIGRATION GET', 16, GET | 1, [], () => ({ d: '0000000000000000' }));
  feature('MIG_DEVICE_STATE GET', 16, GET | 2, [], () => ({ state: 0 }));
  feature('MIG_DATA_SIZE GET', 16, GET | 9);
  feature('VF_TOKEN SET on non-PF', 24, SET);
  feature('BUS_MASTER SET 1', 12, SET | 10, [1], () => ({ command: hexString(caller.get(CONFIG + 4, 2)) }));
  feature('BUS_MASTER SET 0', 12, SET | 10, [0]);
  feature('BUS_MASTER SET 7', 12, SET | 10, [7]);
  caller.ioctl('FEATURE NULL', uapi.VFIO_DEVICE_FEATURE, 0n);
  feature('LOW_POWER_ENTRY SET', 8, SET | 3);
  feature('LOW_POWER_EXIT SET', 8, SET | 5);
  feature('DMA_BUF GET BAR0 4K', 40, GET | 11, [0, 0o2000002, 0, 1, 0, 0, 4096, 0]);
  feature('DMA_BUF config region', 40, GET | 11, [7, 0, 0, 1, 0, 0, 4096, 0]);
  feature('DMA_BUF length=100', 40, GET | 11, [0, 0, 0, 1, 0, 0, 100, 0]);
  feature('DMA_BUF 0 ranges', 40, GET | 11, [0, 0, 0, 0, 0, 0, 100, 0]);
  const plane = new Uint8Array(64);
  caller.ioctl('QUERY_GFX_PLANE probe region', uapi.VFIO_DEVICE_QUERY_GFX_PLANE, plane);
  caller.ioctl('QUERY_GFX_PLANE probe dmabuf', uapi.VFIO_DEVICE_QUERY_GFX_PLANE, plane);
  caller.ioctl('QUERY_GFX_PLANE region', uapi.VFIO_DEVICE_QUERY_GFX_PLANE, plane);
  caller.ioctl('GET_GFX_DMABUF 0', uapi.VFIO_DEVICE_GET_GFX_DMABUF, plane);
  caller.ioctl('GET_API_VERSION on device', uapi.VFIO_GET_API_VERSION, 0n);
  caller.ioctl('GROUP_GET_STATUS on device', uapi.VFIO_GROUP_GET_STATUS, plane);
  caller.ioctl('unknown ioctl on device', 0x3b64 + 40, 0n);
  caller.ioctl('foreign ioctl on device', 0x7801, 0n);
}

function whole(caller: Caller, descriptor: number): void {
  information(caller);
  configuration(caller);
  interrupts(caller);
  resets(caller, descriptor);
  features(caller);
}

test('C-1 C-2 C-3 D-1 D-2 D-4 D-5 D-8 D-14 D-17 D-18: every call of the recorded suite device is answered as the kernel answered', () => {
  const machine = recordedMachine();
  const golden = new Golden('probe-edu.jsonl', 'device', elsewhere);
  machine.bind(machine.edu);
  const container = machine.container(machine.edu);
  const descriptor = golden.call('GET_DEVICE_FD', () => container.open(machine.group(machine.edu), '0000:00:04.0'))!;
  const caller = new Caller(golden, machine.task, deviceFile(machine.task, descriptor));
  whole(caller, descriptor);
  const group = container.groups.get(machine.group(machine.edu))!.descriptor;
  caller.ioctl('PCI_HOT_RESET own group', uapi.VFIO_DEVICE_PCI_HOT_RESET, words(16, 0, 1, group));
  golden.finish();
  assert.ok(golden.compared > 300);
});

test('every call of the recorded suite device-cdev is answered as the kernel answered', () => {
  const machine = recordedMachine();
  const golden = new Golden('probe-edu.jsonl', 'device-cdev', elsewhere);
  const device = machine.bind(machine.edu);
  const opened = machine.task.open(openCdev(machine.world.core, device, '/dev/vfio/devices/vfio0'));
  const caller = new Caller(golden, machine.task, opened.file);
  const iommufd = machine.task.open(new IommufdFile(new IommufdContext({ allowUnsafeInterrupts: false } as never)));
  const bind = words(16, 0, iommufd.descriptor, 0, 0, 0);
  caller.ioctl('BIND', uapi.VFIO_DEVICE_BIND_IOMMUFD, bind);
  whole(caller, opened.descriptor);
  caller.ioctl('PCI_HOT_RESET zero fds (cdev)', uapi.VFIO_DEVICE_PCI_HOT_RESET, words(12, 0, 0));
  golden.finish();
});

test('D-16: every call of the recorded suite same is answered as the kernel answered', () => {
  const machine = recordedMachine();
  const golden = new Golden('probe-edu.jsonl', 'same', /^(open|GROUP_GET_STATUS)/);
  machine.bind(machine.first);
  machine.bind(machine.second);
  const container = machine.container(machine.first);
  const group = machine.group(machine.first);
  const open = (name: string, fn: string): number => golden.call(name, () => container.open(group, fn))!;
  const a = open('GET_DEVICE_FD a', '0000:04:01.0');
  open('GET_DEVICE_FD b', '0000:04:02.0');
  const caller = new Caller(golden, machine.task, deviceFile(machine.task, a));
  const info = (name: string, argsz: number): void => {
    const bytes = new Uint8Array(512);
    bytes.set(words(argsz));
    caller.ioctl(`HOT_RESET_INFO ${name}`, uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, bytes, () => {
      const header = uapi.vfio_pci_hot_reset_info.read(bytes);
      const out = Object.fromEntries(Object.entries(header).map(([key, value]) => [key, hexString(value)]));
      if (argsz < 28) return { out };
      const entry = (i: number): string => {
        const { segment, bus, devfn } = uapi.vfio_pci_dependent_device.read(bytes.subarray(12 + 8 * i));
        return hexString((segment << 16) | (bus << 8) | devfn);
      };
      return { out, dev0: entry(0), dev1: entry(1) };
    });
  };
  info('small', 12);
  info('shared', 512);
  const own = container.groups.get(group)!.descriptor;
  caller.ioctl('PCI_HOT_RESET with group', uapi.VFIO_DEVICE_PCI_HOT_RESET, words(16, 0, 1, own));
  golden.finish();
});
