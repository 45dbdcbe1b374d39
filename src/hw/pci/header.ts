/**
 * The first 64 bytes of configuration space: identity, COMMAND and STATUS, BARs, and of bridges the windows. Which bits take
 * writes is what QEMU's devices and most silicon have.
 */
import * as reg from '../../uapi/pci-regs.ts';
import type { FunctionBar } from './bar.ts';
import type { ConfigSpace } from './config-space.ts';
import type { PciFunction } from './function.ts';

const COMMAND_BITS =
  reg.PCI_COMMAND_IO |
  reg.PCI_COMMAND_MEMORY |
  reg.PCI_COMMAND_MASTER |
  reg.PCI_COMMAND_SERR |
  reg.PCI_COMMAND_INTX_DISABLE;

/** Error bits of STATUS: set by hardware, cleared by writing one. */
const STATUS_ERRORS =
  reg.PCI_STATUS_PARITY |
  reg.PCI_STATUS_SIG_TARGET_ABORT |
  reg.PCI_STATUS_REC_TARGET_ABORT |
  reg.PCI_STATUS_REC_MASTER_ABORT |
  reg.PCI_STATUS_SIG_SYSTEM_ERROR |
  reg.PCI_STATUS_DETECTED_PARITY;

/** Fills the header of `fn` from its spec. The capability list is not there yet. */
export function writeHeader(fn: PciFunction): void {
  const config = fn.config;
  // A virtual function answers all ones; software takes both from the physical one (SR-IOV 1.1, 3.4.1).
  config.define(reg.PCI_VENDOR_ID, 2, fn.isVirtfn ? 0xffff : fn.vendor);
  config.define(reg.PCI_DEVICE_ID, 2, fn.isVirtfn ? 0xffff : fn.device);
  config.define(reg.PCI_COMMAND, 2, 0, fn.isVirtfn ? reg.PCI_COMMAND_MASTER : COMMAND_BITS);
  config.define(reg.PCI_STATUS, 2, 0, 0, STATUS_ERRORS);
  config.define(reg.PCI_CLASS_REVISION, 4, ((fn.class24 << 8) | fn.revision) >>> 0);
  config.define(reg.PCI_HEADER_TYPE, 1, fn.isBridge ? reg.PCI_HEADER_TYPE_BRIDGE : reg.PCI_HEADER_TYPE_NORMAL);
  config.define(reg.PCI_INTERRUPT_PIN, 1, fn.interruptPin);
  if (!fn.isVirtfn) {
    config.define(reg.PCI_CACHE_LINE_SIZE, 1, 0, 0xff);
    config.define(reg.PCI_INTERRUPT_LINE, 1, 0, 0xff);
    for (const bar of fn.bars) if (bar !== undefined) writeBar(config, reg.PCI_BASE_ADDRESS_0 + 4 * bar.index, bar);
    const romAt = fn.isBridge ? reg.PCI_ROM_ADDRESS1 : reg.PCI_ROM_ADDRESS;
    if (fn.rom !== undefined) {
      config.define(romAt, 4, 0, (addressBits(fn.rom.size) | reg.PCI_ROM_ADDRESS_ENABLE) >>> 0);
    }
  }
  if (fn.isBridge) writeBridge(fn, config);
  else {
    config.define(reg.PCI_SUBSYSTEM_VENDOR_ID, 2, fn.subsystemVendor);
    config.define(reg.PCI_SUBSYSTEM_ID, 2, fn.subsystemDevice);
  }
}

/** The register of one BAR, at its place in the header or in the SR-IOV capability. */
export function writeBar(
  config: ConfigSpace,
  at: number,
  bar: Pick<FunctionBar, 'kind' | 'size' | 'is64' | 'prefetchable'>,
): void {
  if (bar.kind === 'io') {
    config.define(at, 4, reg.PCI_BASE_ADDRESS_SPACE_IO, addressBits(bar.size) & ~3);
    return;
  }
  const kind =
    (bar.is64 ? reg.PCI_BASE_ADDRESS_MEM_TYPE_64 : 0) | (bar.prefetchable ? reg.PCI_BASE_ADDRESS_MEM_PREFETCH : 0);
  config.define(at, 4, kind, addressBits(bar.size) & ~0xf);
  if (bar.is64) config.define(at + 4, 4, 0, bar.size > 2 ** 32 ? -(bar.size / 2 ** 32) >>> 0 : 0xffffffff);
}

/** Address bits below 2^32 that a region of `size` bytes (a power of two) decodes. */
function addressBits(size: number): number {
  return size > 2 ** 31 ? 0 : -size >>> 0;
}

function writeBridge(fn: PciFunction, config: ConfigSpace): void {
  config.define(reg.PCI_PRIMARY_BUS, 4, 0, 0x00ffffff);
  if (config.length === 256) config.define(reg.PCI_SEC_LATENCY_TIMER, 1, 0, 0xf8);
  config.define(reg.PCI_IO_BASE, 1, reg.PCI_IO_RANGE_TYPE_32, 0xf0);
  config.define(reg.PCI_IO_LIMIT, 1, reg.PCI_IO_RANGE_TYPE_32, 0xf0);
  config.define(reg.PCI_SEC_STATUS, 2, 0, 0, STATUS_ERRORS);
  config.define(reg.PCI_MEMORY_BASE, 4, 0, 0xfff0fff0);
  config.define(reg.PCI_PREF_MEMORY_BASE, 2, reg.PCI_PREF_RANGE_TYPE_64, 0xfff0);
  config.define(reg.PCI_PREF_MEMORY_LIMIT, 2, reg.PCI_PREF_RANGE_TYPE_64, 0xfff0);
  config.define(reg.PCI_PREF_BASE_UPPER32, 4, 0, 0xffffffff);
  config.define(reg.PCI_PREF_LIMIT_UPPER32, 4, 0, 0xffffffff);
  config.define(reg.PCI_IO_BASE_UPPER16, 4, 0, 0xffffffff);
  const control =
    reg.PCI_BRIDGE_CTL_PARITY | reg.PCI_BRIDGE_CTL_SERR | reg.PCI_BRIDGE_CTL_VGA | reg.PCI_BRIDGE_CTL_BUS_RESET;
  config.define(reg.PCI_BRIDGE_CONTROL, 2, 0, control);
  let inReset = false;
  config.watch(reg.PCI_BRIDGE_CONTROL, 2, () => {
    const wanted = (config.get(reg.PCI_BRIDGE_CONTROL, 2) & reg.PCI_BRIDGE_CTL_BUS_RESET) !== 0;
    const starts = wanted && !inReset;
    inReset = wanted;
    if (!starts) return;
    for (const below of fn.secondary?.functions ?? []) below.resetHardware('bus');
    fn.spec.bridge?.busReset?.();
  });
  fn.onReset(() => {
    inReset = false;
  });
}
