/** A whole machine under a clock that stands still, and a program in it, for tests of what happens while it runs. */
import { privateShared } from '../hw/memory/backing.ts';
import { ManualClock } from '../hw/pci/clock.ts';
import type { DeviceModel } from '../hw/pci/device-model.ts';
import type { PciFunction } from '../hw/pci/function.ts';
import { Blocked } from '../kernel/core/blocked.ts';
import type { File } from '../kernel/core/file.ts';
import { TestTask } from '../kernel/core/test-task.ts';
import { Errno } from '../lib/errno.ts';
import * as uapi from '../uapi/vfio.ts';
import { type FunctionConfig, type HostConfig, loadHost } from './host-file.ts';
import { Machine } from './machine.ts';
import type { Process } from './process.ts';

/** How a write ended: bytes, an errno's name, or `blocked` with what it waits for. */
export type Written = number | string | Blocked;

export class TestHost {
  readonly clock = new ManualClock();
  readonly machine: Machine;
  readonly said: string[] = [];

  /** A preset by name, or the functions of a machine with one unit. */
  constructor(
    what: string | readonly FunctionConfig[],
    options: HostConfig['options'] = {},
    units: HostConfig['iommu']['units'] = [{ name: 'dmar0', preset: 'vtd-legacy-sc' }],
    models: readonly DeviceModel[] = [],
  ) {
    const config: HostConfig =
      typeof what === 'string' ? loadHost(what) : { name: 'test', iommu: { units }, functions: [...what] };
    this.machine = new Machine(
      { ...config, options: { ...config.options, ...options } },
      {
        clock: this.clock,
        allocateShared: privateShared,
        log: (text) => this.said.push(text),
        models: new Map(models.map((model) => [model.name, model])),
      },
    );
  }

  fn(name: string): PciFunction {
    const found = this.machine.pci.find(name);
    if (found === undefined) throw new Error(`the machine has no ${name}`);
    return found;
  }

  /** A program of whoever runs the machine. */
  task(): TestTask {
    const task = new TestTask({
      physical: this.machine.physical,
      capabilities: ['CAP_SYS_RAWIO', 'CAP_SYS_ADMIN', 'CAP_IPC_LOCK'],
    });
    this.machine.counters.watch(task.mm);
    return task;
  }

  open(task: TestTask, path: string, flags = 2): { file: File; descriptor: number } {
    const file = this.machine.open(task as unknown as Process, path, flags);
    if (file === undefined) throw new Error(`${path} is not the machine's`);
    return task.open(file);
  }

  /** Writes to a live file as `echo` does. */
  write(path: string, text: string): Written {
    const task = this.task();
    try {
      const { file } = this.open(task, path, 1);
      return file.write(task, new TextEncoder().encode(`${text}\n`), 0);
    } catch (error) {
      if (error instanceof Blocked) return error;
      if (error instanceof Errno) return error.code;
      throw error;
    } finally {
      task.exit();
    }
  }

  read(path: string): string {
    const found = this.machine.tree.resolve(path);
    if (found?.node.kind !== 'file') throw new Error(`there is no file ${path}`);
    const { attribute, content } = found.node;
    return new TextDecoder().decode(attribute?.show?.() ?? content);
  }

  has(path: string): boolean {
    return this.machine.tree.resolve(path) !== undefined;
  }

  groupId(name: string): number {
    return this.machine.iommu.groupOf(this.fn(name))!.id;
  }

  /** Opens a device by its group and a container, as programs do. */
  hold(name: string, task = this.task()) {
    const container = this.open(task, '/dev/vfio/vfio');
    const group = this.open(task, `/dev/vfio/${this.groupId(name)}`);
    const fd = new Uint8Array(Int32Array.of(container.descriptor).buffer);
    task.ioctl(group.file, uapi.VFIO_GROUP_SET_CONTAINER, fd);
    task.ioctl(container.file, uapi.VFIO_SET_IOMMU, 1n);
    const text = new TextEncoder().encode(`${name}\0`);
    const descriptor = task.ioctl(group.file, uapi.VFIO_GROUP_GET_DEVICE_FD, text);
    return { task, container, group, descriptor, file: task.file(descriptor) };
  }
}
