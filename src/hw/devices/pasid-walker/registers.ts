/**
 * The registers of pasid-walker: offsets in BAR 0, bits, codes. Described in docs/devices/pasid-walker.md.
 */
export const IDENTIFICATION = 0x00;
export const PASID = 0x04;
export const HEAD = 0x08;
export const LIMIT = 0x10;
export const COMMAND = 0x14;
export const STATUS = 0x18;
export const VISITED = 0x1c;
export const SUM = 0x20;
export const FAULT_ADDRESS = 0x28;
export const PAGE_REQUESTS = 0x30;
/** End of the registers: above, reads give all ones. */
export const END = 0x38;

/** `walk` in the order of bytes. */
export const ID_VALUE = 0x6b6c6177;

export const PASID_VALID = 0x8000_0000;
export const PASID_MASK = 0xf_ffff;

export const COMMAND_WALK = 1;
/** With `COMMAND_WALK`: 1 is added to the value of each node. */
export const COMMAND_ADD = 2;
export const COMMAND_STOP = 4;

export const STATUS_BUSY = 1;
export const STATUS_DONE = 2;
export const STATUS_ERROR = 4;
/** Busy, and waits for a page. */
export const STATUS_WAITING = 8;
export const STATUS_CODE_SHIFT = 8;

/** The IOMMU refused to translate. */
export const ERROR_TRANSLATION = 1;
/** A page request was answered: the program has no such memory. */
export const ERROR_PAGE = 2;
/** A page request was answered: nobody serves them. */
export const ERROR_RESPONSE = 3;
/** What was translated could not be reached. */
export const ERROR_ACCESS = 4;
/** No PASID was given. */
export const ERROR_PASID = 5;
/** A page that was promised was not there, several times. */
export const ERROR_PROGRESS = 6;

/** A node: the address of the next one (0: none), and a value; 8 bytes each. */
export const NODE_LENGTH = 16;
