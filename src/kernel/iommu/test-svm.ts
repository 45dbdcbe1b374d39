/**
 * For tests of page requests and shared addressing: a scalable machine, devices that can do everything, and a device's half of the
 * conversation.
 */
import type { PageResponse, PageResponseCode } from '../../hw/pci/ats.ts';
import { ManualClock } from '../../hw/pci/clock.ts';
import { ats, pasid, pri } from '../../hw/pci/extended-capabilities.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import type { FunctionSpec } from '../../hw/pci/function-spec.ts';
import { Mm } from '../core/mm.ts';
import { TestMemory } from '../core/test-task.ts';
import type { IommuGroup } from './group.ts';
import { PageFaults } from './io-pgfault.ts';
import { Ioasids } from './ioasid.ts';
import { Sva } from './sva.ts';
import { endpoint, IommuMachine, rootPort } from './test-machine.ts';

/** A device with PASIDs of `width` bits, translation and page requests. */
export function capable(width = 20): FunctionSpec {
  const plain = endpoint(true);
  return { ...plain, capabilities: [...plain.capabilities!, ats(), pri(), pasid({ width, executable: true })] };
}

/** What a device notes of the answers to its page requests. */
export class Asker {
  readonly fn: PciFunction;
  readonly answers: PageResponse[] = [];
  #group = 0;

  constructor(fn: PciFunction) {
    this.fn = fn;
    fn.dma.onPageResponse = (response) => this.answers.push(response);
  }

  /** The codes of all answers so far; they are forgotten. */
  codes(): PageResponseCode[] {
    return this.answers.splice(0).map(({ code }) => code);
  }

  /** Sends a request; `ok` or why it was refused. */
  ask(
    page: number,
    pasidNumber: number,
    how: { write?: boolean; exec?: boolean; privileged?: boolean; read?: boolean; last?: boolean; group?: number } = {},
  ): string {
    const { write = false, read = !write, last = true, group = this.#group++ % 512, ...rest } = how;
    const address = BigInt.asUintN(64, BigInt(page) << 12n);
    return this.fn.dma.requestPage({ pasid: pasidNumber, address, read, write, last, group, ...rest })?.reason ?? 'ok';
  }

  /** Whether a translation request finds the page: '', 'r' or 'rw'. */
  found(page: number, pasidNumber: number): string {
    const answer = this.fn.dma.translate(BigInt(page) << 12n, { pasid: pasidNumber, write: true });
    if ('reason' in answer) return answer.reason;
    return `${answer.read ? 'r' : ''}${answer.write ? 'w' : ''}`;
  }

  /** Reads bytes as such a device does: asks where they are, asks for the page if need be, and goes there with what it was told. */
  read(address: number, length: number, pasidNumber: number): Uint8Array | string {
    const bytes = new Uint8Array(length);
    for (let attempt = 0; attempt < 2; attempt++) {
      const answer = this.fn.dma.translate(address, { pasid: pasidNumber });
      if ('reason' in answer) return answer.reason;
      if (answer.read) {
        const page = Math.floor(address / 4096) - answer.firstPage + answer.physicalPage;
        const fault = this.fn.dma.read(page * 4096 + (address % 4096), bytes, { translated: true });
        return fault?.reason ?? bytes;
      }
      this.ask(Math.floor(address / 4096), pasidNumber);
      const code = this.codes().at(-1);
      if (code !== 'success') return code ?? 'no answer';
    }
    return 'not found after the answer';
  }
}

export interface SvmWorld {
  readonly machine: IommuMachine;
  readonly clock: ManualClock;
  readonly faults: PageFaults;
  readonly ids: Ioasids;
  readonly sva: Sva;
  readonly devices: readonly { readonly fn: PciFunction; readonly group: IommuGroup; readonly asker: Asker }[];
  /** A new process with an address space over buffers. */
  process(): { readonly mm: Mm; readonly memory: TestMemory };
}

/** A machine with one device for each width of PASIDs. `delay`: nanoseconds until queues are looked at. */
export function svmWorld(options: { widths?: readonly number[]; delay?: number } = {}): SvmWorld {
  const machine = new IommuMachine({ units: [{ preset: 'nested-sm' }] });
  const widths = options.widths ?? [20];
  const functions = widths.map((width, i) => {
    const port = machine.add(rootPort(), `${(16 + i).toString(16)}.0`);
    return machine.add(capable(width), '0.0', { bus: port.secondary! });
  });
  machine.boot();
  const clock = new ManualClock();
  const { delay } = options;
  const faults = new PageFaults(machine.core, delay === undefined ? {} : { delay: { clock, nanoseconds: delay } });
  faults.serve(machine.unit);
  const ids = new Ioasids();
  const devices = functions.map((fn) => ({ fn, group: machine.core.groupOf(fn)!, asker: new Asker(fn) }));
  return {
    machine,
    clock,
    faults,
    ids,
    sva: new Sva(ids, faults),
    devices,
    process: () => {
      const memory = new TestMemory();
      return { memory, mm: new Mm(memory, machine.memory) };
    },
  };
}
