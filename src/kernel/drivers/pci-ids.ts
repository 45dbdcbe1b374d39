/**
 * Which functions a PCI driver takes: rows of ids as in its table, and the text of `new_id` and `remove_id`.
 */
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';

export const PCI_ANY_ID = 0xffff_ffff;

/** One row. `class` and `class_mask` are 24 bits. */
export interface PciDeviceId {
  readonly vendor: number;
  readonly device: number;
  readonly subvendor: number;
  readonly subdevice: number;
  readonly class: number;
  readonly class_mask: number;
  /** Matches only functions whose driver_override names the driver. */
  readonly override_only?: boolean;
}

/** A row for one vendor and device. */
export function deviceId(vendor: number, device = PCI_ANY_ID): PciDeviceId {
  return { vendor, device, subvendor: PCI_ANY_ID, subdevice: PCI_ANY_ID, class: 0, class_mask: 0 };
}

/** A row for a class, e.g. `classId(0x0604_00, 0xffff_ff)` for bridges. */
export function classId(class24: number, mask: number): PciDeviceId {
  return { ...deviceId(PCI_ANY_ID), class: class24, class_mask: mask };
}

export interface Identity {
  readonly vendor: number;
  readonly device: number;
  readonly subvendor: number;
  readonly subdevice: number;
  readonly class24: number;
}

export function identityOf(fn: PciFunction): Identity {
  return {
    vendor: fn.vendor,
    device: fn.device,
    subvendor: fn.subsystemVendor,
    subdevice: fn.subsystemDevice,
    class24: fn.class24,
  };
}

const fits = (wanted: number, is: number): boolean => wanted === PCI_ANY_ID || wanted === is;

export function matches(id: PciDeviceId, is: Identity): boolean {
  return (
    fits(id.vendor, is.vendor) &&
    fits(id.device, is.device) &&
    fits(id.subvendor, is.subvendor) &&
    fits(id.subdevice, is.subdevice) &&
    ((id.class ^ is.class24) & id.class_mask) === 0
  );
}

/**
 * Up to `most` hexadecimal numbers, with or without 0x, up to the first thing that is none (as sscanf reads them). EINVAL: fewer
 * than two.
 */
export function parseIds(text: string, most: number): number[] {
  const numbers: number[] = [];
  for (const word of text.trim().split(/\s+/)) {
    const digits = /^(?:0x)?([0-9a-f]+)/i.exec(word);
    if (digits === null || numbers.length === most) break;
    numbers.push(Number.parseInt(digits[1]!.slice(-8), 16));
    if (digits[0].length !== word.length) break;
  }
  if (numbers.length < 2) throw new Errno('EINVAL', `'${text.trim()}' is not "<vendor> <device> …" in hexadecimal`);
  return numbers;
}

/** The row that a text of `new_id` or `remove_id` means. */
export function idOf(numbers: readonly number[]): PciDeviceId {
  return {
    vendor: numbers[0]!,
    device: numbers[1]!,
    subvendor: numbers[2] ?? PCI_ANY_ID,
    subdevice: numbers[3] ?? PCI_ANY_ID,
    class: numbers[4] ?? 0,
    class_mask: numbers[5] ?? 0,
  };
}
