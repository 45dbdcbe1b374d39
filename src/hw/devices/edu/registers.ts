/**
 * The registers of QEMU's device for teaching: offsets in BAR0, bits, and the place of its internal buffer.
 */
export const IDENTIFICATION = 0x00;
export const LIVENESS = 0x04;
export const FACTORIAL = 0x08;
export const STATUS = 0x20;
export const INTERRUPT_STATUS = 0x24;
export const INTERRUPT_RAISE = 0x60;
export const INTERRUPT_ACKNOWLEDGE = 0x64;
export const DMA_SOURCE = 0x80;
export const DMA_DESTINATION = 0x88;
export const DMA_COUNT = 0x90;
export const DMA_COMMAND = 0x98;

export const STATUS_COMPUTING = 0x01;
export const STATUS_INTERRUPT = 0x80;

export const DMA_RUN = 1;
/** Set: from the device's buffer to memory. */
export const DMA_TO_MEMORY = 2;
export const DMA_INTERRUPT = 4;

/** Causes in the interrupt status. */
export const CAUSE_FACTORIAL = 0x001;
export const CAUSE_DMA = 0x100;

export const ID_VALUE = 0x010000ed;
/** Device address and length of the internal buffer. */
export const BUFFER_ADDRESS = 0x40000;
export const BUFFER_LENGTH = 4096;
