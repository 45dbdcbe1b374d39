/**
 * The pseudo device by which a program tells its virtual machine of the VFIO files that it uses for it (KVM_DEV_TYPE_VFIO).
 *
 * The device holds the files, shows the machine to their drivers, and decides whether DMA may go past the caches: then, and only
 * then, the guest's WBINVD costs the host something. There is no flag by which a program could ask for that.
 */
import { Errno } from '../../lib/errno.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import type { File } from '../core/file.ts';
import { type AssignableFile, assignable, type DmaCoherence } from '../core/virtual-machine.ts';
import type { KvmHost } from './host.ts';
import type { Vm } from './vm.ts';

const traceCoherency = new Tracepoint<{ vm: string; noncoherent: boolean; why: string }>('kvm:noncoherent_dma');

/** Whether one device's DMA may leave old lines in the caches, by the host's policy. */
export function isNoncoherent(device: DmaCoherence, host: KvmHost): boolean {
  if (host.policy === 'kernel') return !device.canEnforce;
  return device.mayIssueNoSnoop && !device.pathEnforces && host.platformHonoursNoSnoop;
}

export class KvmVfio {
  readonly #vm: Vm;
  readonly #files: (File & AssignableFile)[] = [];
  #isNoncoherent = false;

  constructor(vm: Vm) {
    this.#vm = vm;
  }

  get files(): readonly File[] {
    return this.#files;
  }

  /** EINVAL: no file of VFIO. EEXIST. */
  add(file: File): void {
    const known = assignable(file);
    if (known === undefined) throw new Errno('EINVAL', `${file.path} is neither a group nor a device of VFIO`);
    if (this.#files.includes(known)) throw new Errno('EEXIST', `${file.path} was added already`);
    known.hold();
    this.#files.push(known);
    known.setVirtualMachine(this.#vm);
    this.refresh();
  }

  /** ENOENT: it was not added. */
  remove(file: File): void {
    const known = this.#files.find((other) => other === file);
    if (known === undefined) throw new Errno('ENOENT', `${file.path} was not added`);
    this.#files.splice(this.#files.indexOf(known), 1);
    this.#letGo(known);
    this.refresh();
  }

  /** Looks again at every device: what its IOMMU does may have changed since. */
  refresh(): void {
    const devices = this.#files.flatMap((file) => file.dmaCoherence());
    const culprit = devices.find((device) => isNoncoherent(device, this.#vm.host));
    if ((culprit !== undefined) === this.#isNoncoherent) return;
    this.#isNoncoherent = culprit !== undefined;
    traceCoherency.fire(() => ({
      vm: this.#vm.name,
      noncoherent: this.#isNoncoherent,
      why: culprit === undefined ? 'every device is coherent' : `${culprit.device} may go past the caches`,
    }));
    if (this.#isNoncoherent) this.#vm.registerNoncoherentDma();
    else this.#vm.unregisterNoncoherentDma();
  }

  /** The device's end: all files are let go. */
  release(): void {
    for (const file of this.#files.splice(0)) this.#letGo(file);
    this.refresh();
  }

  #letGo(file: File & AssignableFile): void {
    file.setVirtualMachine(undefined);
    file.drop();
  }
}
