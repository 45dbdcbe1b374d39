/** Names of PCI classes, as lspci says them. */

/** By their upper 16 bits; what is missing is shown as a number. */
const classNames: Readonly<Record<number, string>> = {
  255: 'Unclassified device',
  260: 'RAID controller',
  262: 'SATA controller',
  263: 'SAS controller',
  264: 'NVMe controller',
  512: 'Ethernet controller',
  519: 'InfiniBand controller',
  640: 'Network controller',
  768: 'VGA compatible controller',
  770: '3D controller',
  896: 'Display controller',
  1025: 'Multimedia audio controller',
  1027: 'Audio device',
  1152: 'Multimedia controller',
  1280: 'RAM memory',
  1408: 'Memory controller',
  1536: 'Host bridge',
  1537: 'ISA bridge',
  1540: 'PCI bridge',
  1543: 'CardBus bridge',
  1664: 'Bridge',
  1792: 'Serial controller',
  1920: 'Communication controller',
  2048: 'PIC',
  2054: 'IOMMU',
  2176: 'System peripheral',
  2880: 'Co-processor',
  3072: 'FireWire',
  3075: 'USB controller',
  3077: 'SMBus',
  3200: 'Serial bus controller',
  4224: 'Encryption controller',
  4480: 'Signal processing controller',
  4608: 'Processing accelerator',
  4864: 'Non-Essential Instrumentation',
  65280: 'Unassigned class',
};

export function describeClass(class24: number): string {
  const kind = class24 >>> 8;
  return classNames[kind] ?? `Class ${kind.toString(16).padStart(4, '0')}`;
}
