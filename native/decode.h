/* One x86-64 instruction with a memory operand, carried out on a signal's saved registers. */
#ifndef VFIOBOX_DECODE_H
#define VFIOBOX_DECODE_H
#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

/* Memory of any kind; 0 or minus an errno. A size is what the instruction says: 1 to 64. */
struct memory {
	int (*load)(void *context, uint64_t address, void *to, unsigned size);
	int (*store)(void *context, uint64_t address, const void *from, unsigned size);
	void *context;
};
enum { STEP_DONE, STEP_UNKNOWN, STEP_FAILED };
/*
 * STEP_DONE: registers, flags and the instruction pointer are as after the instruction (after some rounds of a repeated one).
 * STEP_UNKNOWN: nothing was touched. STEP_FAILED: load or store said *error; the registers are as before it.
 */
int step_instruction(ucontext_t *uc, const struct memory *memory, int *error);
#endif
