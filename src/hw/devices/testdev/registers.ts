/**
 * The registers of testdev: offsets in BAR 4, bits, codes. Described in docs/devices/testdev.md.
 */
export const IDENTIFICATION = 0x00;
export const VERSION = 0x04;
export const SCRATCH = 0x08;
export const FEATURES = 0x10;
export const CONTROL = 0x14;
export const INTERRUPT_STATUS = 0x18;
export const INTERRUPT_ENABLE = 0x1c;
export const RAISE = 0x20;
export const SOURCE = 0x40;
export const DESTINATION = 0x48;
export const LENGTH = 0x50;
export const PATTERN = 0x54;
export const COMMAND = 0x58;
export const STATUS = 0x5c;
export const FAULT_ADDRESS = 0x60;
export const RESULT = 0x68;
export const TRANSFERRED = 0x6c;
export const COMPLETION = 0x70;
export const PASID = 0x78;
/** End of the registers: above, reads give all ones. */
export const END = 0x80;

/** `tdev` in the order of bytes. */
export const ID_VALUE = 0x76656474;
export const VERSION_VALUE = 1;

export const CONTROL_RESET = 1;

/** Causes of INTx. */
export const CAUSE_DONE = 1;
export const CAUSE_ERROR = 2;
export const CAUSE_RAISED = 4;

export const COMMAND_OPERATION = 0x0f;
export const OPERATION_COPY = 1;
export const OPERATION_FILL = 2;
export const OPERATION_CHECKSUM = 3;
export const COMMAND_INTERRUPT = 0x100;
export const COMMAND_COMPLETION = 0x200;
export const COMMAND_VECTOR_SHIFT = 16;

export const STATUS_BUSY = 1;
export const STATUS_DONE = 2;
export const STATUS_ERROR = 4;
export const STATUS_CODE_SHIFT = 8;

export const ERROR_COMMAND = 1;
export const ERROR_LENGTH = 2;
export const ERROR_BUS_MASTER = 3;
export const ERROR_READ = 4;
export const ERROR_WRITE = 5;
export const ERROR_COMPLETION = 6;

export const PASID_VALID = 0x8000_0000;
export const PASID_MASK = 0xfffff;

export const LARGEST_TRANSFER = 2 ** 24;
export const COMPLETION_LENGTH = 16;
