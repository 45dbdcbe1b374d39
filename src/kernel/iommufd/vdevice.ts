/**
 * Virtual devices: under which number a guest knows a device behind its virtual IOMMU. A device has one at most, and takes it along
 * when it is unbound: the number of the object then stays dead, so that the program cannot mean another one.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import type { iommu_vdevice_alloc } from '../../uapi/iommufd.ts';
import { type IommufdContext, IommufdObject } from './context.ts';
import type { HwptDevice } from './hw-pagetable.ts';
import type { Ucmd } from './ucmd.ts';
import { getDevice, getViommu, type Viommu } from './viommu.ts';

export class Vdevice extends IommufdObject {
  readonly kind = 'vdevice';
  readonly viommu: Viommu;
  readonly device: HwptDevice;
  readonly virtId: bigint;

  constructor(context: IommufdContext, viommu: Viommu, device: HwptDevice, virtId: bigint) {
    super(context);
    this.viommu = viommu;
    this.device = device;
    this.virtId = virtId;
    viommu.users++;
    device.vdevice = this;
  }

  override destroy(): void {
    if (this.viommu.vdevices.get(this.virtId) === this) this.viommu.vdevices.delete(this.virtId);
    this.viommu.users--;
    this.device.vdevice = undefined;
  }
}

export function vdeviceAlloc(ucmd: Ucmd<iommu_vdevice_alloc>): void {
  const { context, cmd } = ucmd;
  const viommu = getViommu(context, cmd.viommu_id);
  const device = getDevice(context, cmd.dev_id);
  if (!viommu.isFor(device.iommu)) {
    throw new Errno('EINVAL', `${device.iommu.name} is behind another IOMMU than the virtual one ${viommu.id}`);
  }
  if (device.vdevice !== undefined) {
    throw new Errno('EEXIST', `device ${device.id} is the virtual device ${device.vdevice.id} already`);
  }
  const vdevice = new Vdevice(context, viommu, device, cmd.virt_id);
  try {
    const other = viommu.vdevices.get(cmd.virt_id);
    if (other !== undefined) {
      throw new Errno('EEXIST', `the guest's number ${hex(cmd.virt_id)} is that of device ${other.device.id}`);
    }
    viommu.vdevices.set(cmd.virt_id, vdevice);
    cmd.out_vdevice_id = vdevice.id;
    ucmd.respond();
  } catch (error) {
    context.abort(vdevice);
    throw error;
  }
  context.publish(vdevice);
}
