/**
 * A device's own node, /dev/vfio/devices/vfioN: nothing works on its file until it is bound to an iommufd, and only one file of a
 * device can be. The iommufd may be closed first: its context lives on in the device.
 */
import { Errno } from '../../lib/errno.ts';
import { Unwind } from '../../lib/unwind.ts';
import {
  VFIO_DEVICE_ATTACH_IOMMUFD_PT,
  VFIO_DEVICE_ATTACH_PASID,
  VFIO_DEVICE_BIND_FLAG_TOKEN,
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DEVICE_DETACH_IOMMUFD_PT,
  VFIO_DEVICE_DETACH_PASID,
  vfio_device_attach_iommufd_pt,
  vfio_device_bind_iommufd,
  vfio_device_detach_iommufd_pt,
} from '../../uapi/vfio.ts';
import type { File, IoctlResult } from '../core/file.ts';
import { copyFromUser, copyToUser, readU32, type Task } from '../core/task.ts';
import { IommufdContext } from '../iommufd/context.ts';
import { bindDevice } from '../iommufd/device.ts';
import type { VfioCore } from './vfio.ts';
import { type CdevBinding, type DeviceAccess, DeviceFile, type VfioDevice } from './vfio-device.ts';

const TOKEN_LENGTH = 16;
/** Bytes behind a structure that are looked at at a time, and at most. */
const TAIL_PART = 4096;
const TAIL_MOST = 1 << 20;

/** Opens the node of `device`; `path` is the node's. ENODEV: the device is being removed. */
export function openCdev(core: VfioCore, device: VfioDevice, path: string): DeviceFile {
  if (!core.hold(device)) throw new Errno('ENODEV', `${device.name} is being removed`);
  const file = new DeviceFile(device, path);
  file.way = new CdevAccess(core, device, file);
  return file;
}

class CdevAccess implements DeviceAccess {
  readonly through = 'cdev';
  readonly #core: VfioCore;
  readonly #device: VfioDevice;
  readonly #file: DeviceFile;
  #isBound = false;
  /** Undefined while bound: a device without an IOMMU, which the iommufd only lets pass. */
  #binding: CdevBinding | undefined;

  constructor(core: VfioCore, device: VfioDevice, file: DeviceFile) {
    this.#core = core;
    this.#device = device;
    this.#file = file;
  }

  get ready(): boolean {
    return this.#isBound;
  }

  ioctl(task: Task, request: number, argument: bigint): IoctlResult | undefined {
    if (request === VFIO_DEVICE_BIND_IOMMUFD) return this.#bind(task, argument);
    if (!this.#isBound) return undefined;
    if (request === VFIO_DEVICE_ATTACH_IOMMUFD_PT) return this.#attach(task, argument);
    if (request === VFIO_DEVICE_DETACH_IOMMUFD_PT) return this.#detach(task, argument);
    return undefined;
  }

  released(): void {
    if (this.#isBound) {
      this.#isBound = false;
      this.#close();
    }
    this.#core.release(this.#device);
  }

  #bind(task: Task, argument: bigint): number {
    const table = vfio_device_bind_iommufd;
    const argsz = readU32(task, argument);
    if (argsz < table.endOf('out_devid'))
      throw new Errno('EINVAL', `argsz ${argsz} is below ${table.endOf('out_devid')}`);
    zeroTail(task, argument, table.size, argsz);
    const request = table.read(copyFromUser(task, argument, Math.min(argsz, table.size)));
    if (request.iommufd < 0 || request.flags & ~VFIO_DEVICE_BIND_FLAG_TOKEN) {
      throw new Errno(
        'EINVAL',
        `iommufd ${request.iommufd} is no descriptor, or flags 0x${request.flags.toString(16)} are unknown`,
      );
    }
    const device = this.#device;
    if (this.#core.groupOf(device)?.hasGroupOpen) {
      throw new Errno(
        'EBUSY',
        `the group of ${device.name} is open; a device is used through its group or its own node`,
      );
    }
    if (this.#isBound) throw new Errno('EINVAL', `this file of ${device.name} is bound already`);
    this.#checkToken(task, request);
    const context = contextOf(task.file(request.iommufd));
    if (device.openCount > 0) throw new Errno('EINVAL', `${device.name} is bound through another file`);
    this.#open(task, argument, context);
    return 0;
  }

  #checkToken(task: Task, request: vfio_device_bind_iommufd): void {
    const device = this.#device;
    const hasToken = (request.flags & VFIO_DEVICE_BIND_FLAG_TOKEN) !== 0;
    if (device.matchToken === undefined) {
      if (hasToken) throw new Errno('EINVAL', `${device.name} needs no token`);
      return;
    }
    device.matchToken(hasToken ? copyFromUser(task, request.token_uuid_ptr, TOKEN_LENGTH) : undefined);
  }

  #open(task: Task, argument: bigint, context: IommufdContext): void {
    const device = this.#device;
    using undo = new Unwind();
    device.takeVm(this.#file.vm);
    undo.add(() => device.dropVm());
    const hasIommu = device.bindIommufd !== undefined || device.iommuGroup.unit !== undefined;
    const binding = hasIommu ? (device.bindIommufd?.(context) ?? bindDevice({ context }, device)) : undefined;
    undo.add(() => binding?.unbind());
    device.openCount++;
    undo.add(() => {
      device.openCount--;
    });
    device.openDevice();
    undo.add(() => device.closeDevice());
    const id = binding?.id ?? 0;
    const at = argument + BigInt(vfio_device_bind_iommufd.offsets.out_devid);
    copyToUser(task, at, new Uint8Array(Uint32Array.of(id).buffer));
    undo.keep();
    this.#binding = binding;
    this.#isBound = true;
    device.cdevOpened = true;
    device.iommufd = { context, id };
  }

  #close(): void {
    const device = this.#device;
    device.openCount--;
    device.closeDevice();
    this.#binding?.unbind();
    this.#binding = undefined;
    device.iommufd = undefined;
    device.cdevOpened = false;
    device.dropVm();
  }

  #attach(task: Task, argument: bigint): number {
    const table = vfio_device_attach_iommufd_pt;
    const { bytes, flags } = fields(
      task,
      argument,
      table.endOf('pt_id'),
      table.endOf('pasid'),
      VFIO_DEVICE_ATTACH_PASID,
      () => this.#pasids(this.#binding?.attachPasid),
    );
    const { pt_id, pasid } = table.read(bytes);
    const binding = this.#binding;
    if (binding === undefined) throw new Errno('EINVAL', `${this.#device.name} has no IOMMU to attach`);
    let id: number;
    if (flags & VFIO_DEVICE_ATTACH_PASID) {
      if (pasid > 0x7fff_ffff) throw new Errno('ENOSPC', `${pasid} is beyond the PASIDs that can be`);
      id = binding.attachPasid!(pasid, pt_id);
    } else id = binding.isAttached() ? binding.replace(pt_id) : binding.attach(pt_id);
    try {
      copyToUser(task, argument + BigInt(table.offsets.pt_id), new Uint8Array(Uint32Array.of(id).buffer));
    } catch (error) {
      binding.detach();
      throw error;
    }
    return 0;
  }

  #detach(task: Task, argument: bigint): number {
    const table = vfio_device_detach_iommufd_pt;
    const { bytes, flags } = fields(
      task,
      argument,
      table.endOf('flags'),
      table.endOf('pasid'),
      VFIO_DEVICE_DETACH_PASID,
      () => this.#pasids(this.#binding?.detachPasid),
    );
    if (flags & VFIO_DEVICE_DETACH_PASID) this.#binding?.detachPasid?.(table.read(bytes).pasid);
    else this.#binding?.detach();
    return 0;
  }

  #pasids(operation: unknown): void {
    if (operation === undefined) throw new Errno('EOPNOTSUPP', `${this.#device.name} cannot use PASIDs`);
  }
}

/** The fields of ATTACH and DETACH: `least` bytes, and up to `most` when `pasidFlag` is set. */
function fields(
  task: Task,
  argument: bigint,
  least: number,
  most: number,
  pasidFlag: number,
  checkPasid: () => void,
): { bytes: Uint8Array; flags: number } {
  const bytes = copyFromUser(task, argument, least);
  const view = new DataView(bytes.buffer);
  const argsz = view.getUint32(0, true);
  const flags = view.getUint32(4, true);
  if (argsz < least) throw new Errno('EINVAL', `argsz ${argsz} is below ${least}`);
  if (flags & ~pasidFlag) throw new Errno('EINVAL', `unknown flags 0x${flags.toString(16)}`);
  if (!(flags & pasidFlag)) return { bytes, flags };
  checkPasid();
  if (argsz < most) throw new Errno('EINVAL', `argsz ${argsz} leaves no room for a PASID`);
  return { bytes: copyFromUser(task, argument, most), flags };
}

/** Bytes that a newer program knows of must be zero. E2BIG. */
function zeroTail(task: Task, argument: bigint, known: number, argsz: number): void {
  for (let at = known; at < argsz; at += TAIL_PART) {
    if (at > TAIL_MOST) throw new Errno('E2BIG', `argsz ${argsz} is far beyond the ${known} bytes that are known`);
    const part = copyFromUser(task, argument + BigInt(at), Math.min(TAIL_PART, argsz - at));
    if (part.some((byte) => byte !== 0))
      throw new Errno('E2BIG', `bytes beyond the ${known} that are known are not zero`);
  }
}

/** EBADFD: the file is not an iommufd. */
function contextOf(file: File): IommufdContext {
  const context = (file as { readonly context?: unknown }).context;
  if (!(context instanceof IommufdContext)) throw new Errno('EBADFD', `${file.path} is not an iommufd`);
  return context;
}
