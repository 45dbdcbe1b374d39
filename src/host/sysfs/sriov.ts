/**
 * The files by which SR-IOV is controlled and found: `sriov_*` in a physical function's folder, links between it and its virtual
 * functions.
 */
import type { PciFunction } from '../../hw/pci/function.ts';
import { functionPath } from './function-path.ts';
import { onOrOff, unsigned } from './numbers.ts';
import { type SysfsTree, text } from './tree.ts';

/** Who carries out what is written. */
export interface SriovControl {
  /** ERANGE, ENOENT, EBUSY, Blocked (with `result`): see `PciCore.setNumVfs`. */
  setNumVfs(fn: PciFunction, count: number, result: number): void;
  readonly withoutAutoprobe: WeakSet<PciFunction>;
}

/** Adds the files of a physical function. Nothing for other functions. */
export function addSriovFiles(tree: SysfsTree, fn: PciFunction, control: SriovControl): void {
  const { sriov } = fn;
  if (sriov === undefined || fn.isVirtfn) return;
  const folder = functionPath(fn);
  tree.file(`${folder}/sriov_totalvfs`, `${sriov.totalVfs}\n`);
  tree.file(`${folder}/sriov_offset`, `${sriov.firstOffset}\n`);
  tree.file(`${folder}/sriov_stride`, `${sriov.stride}\n`);
  tree.file(`${folder}/sriov_vf_device`, `${sriov.vfDevice.toString(16)}\n`);
  tree.file(`${folder}/sriov_vf_total_msix`, '0\n');
  tree.attribute(`${folder}/sriov_numvfs`, {
    mode: 0o644,
    show: () => text(`${sriov.functions.length}\n`),
    store: (bytes) => {
      control.setNumVfs(fn, unsigned(bytes, 'sriov_numvfs', 0xffff), bytes.length);
      return bytes.length;
    },
  });
  tree.attribute(`${folder}/sriov_drivers_autoprobe`, {
    mode: 0o644,
    show: () => text(control.withoutAutoprobe.has(fn) ? '0\n' : '1\n'),
    store: (bytes) => {
      if (onOrOff(bytes, 'sriov_drivers_autoprobe')) control.withoutAutoprobe.delete(fn);
      else control.withoutAutoprobe.add(fn);
      return bytes.length;
    },
  });
}

/** The link from the physical function to a virtual one: `virtfnN`. */
function linkName(virtual: PciFunction): string {
  const { physfn } = virtual;
  const { firstOffset, stride } = physfn!.sriov!;
  return `${functionPath(physfn!)}/virtfn${(virtual.rid - physfn!.rid - firstOffset) / Math.max(stride, 1)}`;
}

export function linkVirtualFunction(tree: SysfsTree, fn: PciFunction): void {
  if (fn.physfn === undefined) return;
  tree.link(`${functionPath(fn)}/physfn`, functionPath(fn.physfn));
  tree.link(linkName(fn), functionPath(fn));
  tree.refresh(`${functionPath(fn.physfn)}/sriov_numvfs`);
}

export function unlinkVirtualFunction(tree: SysfsTree, fn: PciFunction): void {
  if (fn.physfn !== undefined) tree.remove(linkName(fn));
}
