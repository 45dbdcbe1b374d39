/**
 * Hot reset: the bus of a function is reset with everything on it, which needs a user who holds all that is hit. Through a group he
 * shows the groups' files; through a device's own node everything must be bound to one iommufd.
 */
import { resetBus } from '../../../hw/pci/saved-state.ts';
import { Errno } from '../../../lib/errno.ts';
import * as uapi from '../../../uapi/vfio.ts';
import { copyFromUser, copyToUser, type Task } from '../../core/task.ts';
import { GroupFile } from '../group.ts';
import type { VfioPciDevice } from './vfio-pci-core.ts';

/** ENODEV: the function is on a root bus, which nothing resets. */
function resettable(device: VfioPciDevice): void {
  if (device.fn.bus.self === undefined) {
    throw new Errno('ENODEV', `${device.name} is on a root bus: neither its slot nor its bus can be reset`);
  }
}

/** The device's number in the iommufd that `asking` is bound to; 0 when only its group is held there; -1 when it is not held. */
function ownedAs(device: VfioPciDevice | undefined, asking: VfioPciDevice): number {
  const context = asking.iommufd?.context;
  if (device === undefined || context === undefined) return uapi.VFIO_PCI_DEVID_NOT_OWNED;
  if (device.iommufd?.context === context) return device.iommufd.id;
  for (const other of device.environment.sets.devices()) {
    if (other.iommuGroup === device.iommuGroup && other.iommufd?.context === context) return uapi.VFIO_PCI_DEVID_OWNED;
  }
  return uapi.VFIO_PCI_DEVID_NOT_OWNED;
}

/** VFIO_DEVICE_GET_PCI_HOT_RESET_INFO. ENODEV; ENOSPC with `count` set; EPERM: something hit has no IOMMU group. */
export function hotResetInfo(device: VfioPciDevice, task: Task, argument: bigint): number {
  const table = uapi.vfio_pci_hot_reset_info;
  const each = uapi.vfio_pci_dependent_device;
  const { argsz } = table.read(copyFromUser(task, argument, table.size));
  if (argsz < table.size) throw new Errno('EINVAL', `argsz ${argsz} is below ${table.size}`);
  resettable(device);
  const functions = device.fn.bus.subtree();
  const count = functions.length;
  if (count > Math.floor((argsz - table.size) / each.size)) {
    copyToUser(task, argument, table.write({ argsz, flags: 0, count }));
    throw new Errno('ENOSPC', `${count} devices are hit, argsz ${argsz} leaves no room for them`);
  }
  const byNumber = device.cdevOpened;
  let flags = byNumber ? uapi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID | uapi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED : 0;
  const entries = new Uint8Array(count * each.size);
  functions.forEach((fn, i) => {
    let id: number;
    if (byNumber) {
      const member = device.environment.sets.deviceOf(fn);
      id = ownedAs(member?.set === device.set ? member : undefined, device);
      if (id === uapi.VFIO_PCI_DEVID_NOT_OWNED) flags &= ~uapi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED;
    } else {
      const group = device.environment.groupOf(fn);
      if (group === undefined) throw new Errno('EPERM', `${fn.name} is in no IOMMU group`);
      id = group.id;
    }
    entries.set(each.write({ group_id: id, segment: fn.segment, bus: fn.bus.number, devfn: fn.devfn }), i * each.size);
  });
  copyToUser(task, argument + BigInt(table.size), entries);
  copyToUser(task, argument, table.write({ argsz, flags, count }));
  return 0;
}

/** VFIO_DEVICE_PCI_HOT_RESET. EINVAL: something hit is not held by the caller; ENODEV. */
export function hotReset(device: VfioPciDevice, task: Task, argument: bigint): number {
  const table = uapi.vfio_pci_hot_reset;
  const { argsz, flags, count } = table.read(copyFromUser(task, argument, table.size));
  if (argsz < table.size || flags !== 0)
    throw new Errno('EINVAL', `argsz ${argsz} is short, or flags 0x${flags.toString(16)} are set`);
  if ((count !== 0) === device.cdevOpened) {
    throw new Errno('EINVAL', device.cdevOpened ? 'a device of a node shows no files' : 'no group file is shown');
  }
  resettable(device);
  const functions = device.fn.bus.subtree();
  let owns: (member: VfioPciDevice) => boolean;
  if (count === 0) owns = (member) => ownedAs(member, device) !== uapi.VFIO_PCI_DEVID_NOT_OWNED;
  else {
    if (count > functions.length) throw new Errno('EINVAL', `${count} files for ${functions.length} devices`);
    const bytes = copyFromUser(task, argument + BigInt(table.size), 4 * count);
    const view = new DataView(bytes.buffer);
    const files: GroupFile[] = [];
    for (let i = 0; i < count; i++) {
      const file = task.file(view.getInt32(4 * i, true));
      if (!(file instanceof GroupFile)) throw new Errno('EINVAL', `${file.path} is not a file of a VFIO group`);
      files.push(file);
    }
    owns = (member) => files.some((file) => file.group.devices.includes(member));
  }
  resetSet(device, functions.length, owns);
  return 0;
}

function resetSet(device: VfioPciDevice, hit: number, owns: (member: VfioPciDevice) => boolean): void {
  const { devices } = device.set;
  if (devices.size !== hit)
    throw new Errno('EINVAL', `${hit} devices are hit, ${devices.size} of them are held by vfio-pci`);
  for (const member of devices)
    if (!owns(member)) throw new Errno('EINVAL', `${member.name} is hit and not held by the caller`);
  for (const member of devices) member.beforeReset();
  resetBus(device.fn.bus.self!);
  for (const member of devices) member.afterReset();
}
