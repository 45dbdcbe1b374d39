/** Registers and descriptor fields of an I/OAT DMA engine, version 3, as Linux's ioatdma names them. */
export const VERSION = 0x34;
export const CHANNEL_STRIDE = 0x80;

export const INTRCTRL_MASTER_INT_EN = 0x01;
export const INTRCTRL_INT_STATUS = 0x02;
export const INTRCTRL_INT = 0x04;
export const INTRCTRL_MSIX_VECTOR_CONTROL = 0x08;

export const INTRDELAY_COALESCE_SUPPORT = 0x8000;

/** An interrupt was sent, and none follows until software writes a one here. */
export const CHANCTRL_INT_REARM = 0x0001;
export const CHANCTRL_ERR_COMPLETION_EN = 0x0004;
export const CHANCTRL_ERR_INT_EN = 0x0010;

export const CHANCMD_SUSPEND = 0x04;
export const CHANCMD_ABORT = 0x08;
export const CHANCMD_RESET = 0x20;

export const CHANSTS_ACTIVE = 0;
export const CHANSTS_DONE = 1;
export const CHANSTS_SUSPENDED = 2;
export const CHANSTS_HALTED = 3;

export const CHANERR_NEXT_ADDR = 0x0004;
export const CHANERR_NEXT_DESC_ALIGN = 0x0008;
export const CHANERR_READ_DATA = 0x0100;
export const CHANERR_WRITE_DATA = 0x0200;
export const CHANERR_CONTROL = 0x0400;
export const CHANERR_LENGTH = 0x0800;
export const CHANERR_COMPLETION_ADDR = 0x1000;

export const DESCRIPTOR_SIZE = 64;
export const CTL_INT_EN = 0x01;
export const CTL_COMPL_WRITE = 0x08;
export const CTL_NULL = 0x20;
export const OP_COPY = 0;
