/*
 * The decoder against the processor: every instruction below runs twice from the same random registers, flags and memory,
 * once on ordinary memory and once on a page without access rights, where the fault is carried out by step_instruction().
 * All registers, the arithmetic flags, the vector registers and the memory must come out equal.
 * Instructions this processor lacks are carried out by the decoder only and compared with what the manual says.
 *   decode-test [SEED [ROUNDS]]     prints `N passed, N failed, N skipped`
 */
#define _GNU_SOURCE
#include "decode.h"
#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Registers at the start: rdi, rbx, r10, rbp, r12, r13 point into the device page, rsi and r11 into ordinary memory, rcx is 0..40,
 * r9 is -200..200, r15 makes %fs:(%r15) the device page; rax rdx r8 r14 are random. The code lies one page before the device page. */
struct test {
	const char *text;
	const unsigned char *code, *end;
	int flags;
};
extern const struct test first_test[], last_test[];
enum { PLAIN, STRING_OUT = 1 /* rsi in the device, rdi not */, BOTH = 2 /* both in the device */, ABSOLUTE = 4, AVX = 8, AVX2 = 16, MOVBE = 32, NO_AF = 64, NO_OF = 128, BMI = 512 };
#define T_(n, text, flags)                                                                                                                  \
	__asm__(".pushsection .text.tests,\"ax\"\n771:\n" text "\n772:\n.popsection\n.pushsection .rodata.names,\"a\"\n773: .asciz \"" text       \
	        "\"\n.popsection\n.pushsection .test_table,\"aw\"\n.quad 773b, 771b, 772b, " #flags "\n.popsection\n");
#define F(flags, text) T_(0, text, flags)
#define T(text) F(0, text)
__asm__(".pushsection .test_table,\"aw\"\n.globl first_test\nfirst_test:\n.popsection\n");

#define ALU(op)                                                                                                                             \
	T(op "b %al, (%rdi)") T(op "b %ah, 3(%rdi)") T(op "b %r8b, (%r12)") T(op "b %sil, (%rdi)") T(op "w %dx, (%rbx,%rcx,2)")               \
	T(op "l %r14d, -64(%rdi,%rcx,4)") T(op "q %rdx, (%r13)") T(op "b (%rdi), %bh") T(op "b (%r10), %r14b") T(op "w (%rdi), %dx")             \
	T(op "l 0x20(%rbp), %edx") T(op "q (%r10,%rcx,8), %r8") T(op "b $0x7f, (%rdi)") T(op "b $0x80, (%rdi)") T(op "w $0x8001, (%rdi)")         \
	T(op "w $-2, (%rdi)") T(op "l $0x12345678, (%rdi)") T(op "l $-1, (%rdi)") T(op "q $-0x12345678, (%rdi)") T(op "q $1, (%rdi)")           \
	T(op "l %eax, 0x1800(%rip)") T(op "l $0x1234567, 0x1800(%rip)") T(op "q $5, 0x1900(%rip)") T(op "l (%edi), %eax") T(op "l %fs:(%r15), %eax")
ALU("add") ALU("or") ALU("adc") ALU("sbb") ALU("and") ALU("sub") ALU("xor") ALU("cmp")
T("lock addl %eax, (%rdi)") T("lock orq $1, (%rdi)")

T("movb %al, (%rdi)") T("movb %ah, (%rdi)") T("movb %dil, (%rdi)") T("movb %r14b, 0x7f(%rdi)") T("movw %ax, (%rdi)") T("movl %eax, (%rdi)")
T("movq %rax, (%rdi)") T("movq %rsp, (%rdi)") T("movb (%rdi), %al") T("movb (%rdi), %ch") T("movb (%rdi), %r8b") T("movb (%rdi), %bpl") T("movw (%rdi), %ax")
T("movl (%rdi), %eax") T("movl (%rdi), %edi") T("movq (%rdi), %r14") T("movl 0x1700(%rip), %r8d") T("movl %eax, 0x1700(%rip)") T("movb %al, 0x1700(%rip)")
T("movl -0x7f(%rbp), %eax") T("movl 0x12c(%rbp,%rcx,1), %eax") T("movl (%r13), %eax") T("movl (%r12), %eax") T("movl (%r12,%r9,2), %eax")
T("movq %r14, (%r13,%r9,1)") T("movl (%edi), %r8d") T("movl %eax, (%edi,%ecx,4)") T("movl %fs:(%r15), %eax") T("movq %rax, %fs:8(%r15)")
T("movb $0x12, (%rdi)") T("movw $0x1234, (%rdi)") T("movl $0x12345678, (%rdi)") T("movq $-5, (%rdi)") T("movl $7, 0x1800(%rip)") T("movw $7, 0x1800(%rip)")
T("movslq (%rdi), %rax") T("movslq (%rdi,%rcx,4), %r14") T(".byte 0x63, 0x07")
T("movzbl (%rdi), %eax") T("movzbw (%rdi), %ax") T("movzbq (%rdi), %rax") T("movzwl (%rdi), %eax") T("movzwq (%rdi), %r8")
T("movsbl (%rdi), %eax") T("movsbw (%rdi), %dx") T("movsbq (%rdi), %r14") T("movswl (%rdi), %eax") T("movswq (%rdi), %rax")
T("movnti %eax, (%rdi)") T("movnti %r8, (%rdi)")
T("testb %al, (%rdi)") T("testb %dh, (%rdi)") T("testw %ax, (%rdi)") T("testl %eax, (%rdi)") T("testq %r8, (%rdi)")
T("testb $0x81, (%rdi)") T("testw $0x8001, (%rdi)") T("testl $0x80000001, (%rdi)") T("testq $-4, (%rdi)") T("testl $1, 0x1800(%rip)") T("testb $1, 0x1800(%rip)")
T("notb (%rdi)") T("notw (%rdi)") T("notl (%rdi)") T("notq (%rdi)") T("negb (%rdi)") T("negw (%rdi)") T("negl (%rdi)") T("negq (%rdi)")
T("incb (%rdi)") T("incw (%rdi)") T("incl (%rdi)") T("incq (%rdi)") T("decb (%rdi)") T("decw (%rdi)") T("decl (%rdi)") T("decq (%rdi)") T("lock incl (%rdi)")
T("xchgb %al, (%rdi)") T("xchgb %dh, (%rdi)") T("xchgw %ax, (%rdi)") T("xchgl %eax, (%rdi)") T("xchgq %r14, (%rdi)")
T("xaddb %al, (%rdi)") T("xaddw %dx, (%rdi)") T("lock xaddl %eax, (%rdi)") T("xaddq %r14, (%rdi)")
T("cmpxchgb %dl, (%rdi)") T("cmpxchgw %dx, (%rdi)") T("lock cmpxchgl %edx, (%rdi)") T("cmpxchgq %r8, (%rdi)")
T("btl $3, (%rdi)") T("btsl $31, (%rdi)") T("btrq $63, (%rdi)") T("btcw $15, (%rdi)") T("btl %r9d, (%rdi)") T("btsl %r9d, (%rdi)") T("btrq %r9, (%rdi)")
T("btcw %r9w, (%rdi)") T("lock btsl $0, (%rdi)")
T("imull (%rdi), %eax") T("imulq (%rdi), %r8") T("imulw (%rdi), %dx") T("imull $100, (%rdi), %eax") T("imulq $0x12345, (%rdi), %rax") T("imulw $0x1234, (%rdi), %ax")
#define CC(c) T("cmov" c "l (%rdi), %eax") T("cmov" c "q (%rdi), %r14") T("cmov" c "w (%rdi), %dx") T("set" c " (%rdi)")
CC("o") CC("no") CC("b") CC("ae") CC("e") CC("ne") CC("be") CC("a") CC("s") CC("ns") CC("p") CC("np") CC("l") CC("ge") CC("le") CC("g")
/* the overflow flag is defined for a count of one only */
#define SHIFT(op) F(192, op "b $1, (%rdi)") F(192, op "b $3, (%rdi)") F(192, op "w $9, (%rdi)") F(192, op "l $31, (%rdi)") F(192, op "q $40, (%rdi)")                         \
	F(192, op "l %cl, (%rdi)") F(192, op "q %cl, (%rdi)") F(192, op "l (%rdi)") F(192, op "b %cl, (%rdi)") F(192, op "l $4, 0x1800(%rip)")
SHIFT("rol") SHIFT("ror") SHIFT("rcl") SHIFT("rcr") SHIFT("shl") SHIFT("shr") SHIFT("sar")
T("popcntl (%rdi), %eax") T("popcntq (%rdi), %r8") T("popcntw (%rdi), %dx") F(192, "tzcntl (%rdi), %eax") F(192, "tzcntq (%rdi), %rax") F(192, "lzcntl (%rdi), %eax")
F(192, "lzcntq (%rdi), %r14") F(192, "lzcntw (%rdi), %dx") F(192, "tzcntw (%rdi), %dx")
F(32, "movbew (%rdi), %ax") F(32, "movbel (%rdi), %eax") F(32, "movbeq (%rdi), %r8") F(32, "movbew %ax, (%rdi)") F(32, "movbel %eax, (%rdi)") F(32, "movbeq %r14, (%rdi)")
#define BMI2(op) F(512, op "l %ecx, (%rdi), %eax") F(512, op "q %r8, (%r12), %r14") F(512, op "l %edx, 0x1800(%rip), %edx")
BMI2("shlx") BMI2("sarx") BMI2("shrx") F(512, "bextrl %edx, (%rdi), %eax") F(512, "bextrq %rcx, (%rdi), %r8") F(512, "bextrl %ecx, (%rdi), %eax")
F(512, "andnl (%rdi), %ecx, %eax") F(512, "andnq (%rdi), %r8, %r14") F(512, "rorxl $7, (%rdi), %eax") F(512, "rorxq $63, (%rdi), %rax") F(512, "rorxl $3, 0x1800(%rip), %eax")
T("clflush (%rdi)")
T("pushq (%rdi)") T("pushw (%rdi)")
F(4, "movabsb 0x1122334455667788, %al") F(4, "movabsl 0x1122334455667788, %eax") F(4, "movabsq %rax, 0x1122334455667788") F(4, "movabsw %ax, 0x1122334455667788")

#define STRING(op) T(op "b") T(op "w") T(op "l") T(op "q") T("rep " op "b") T("rep " op "w") T("rep " op "l") T("rep " op "q")
#define STRING2(op) F(1, op "b") F(1, op "w") F(1, op "l") F(1, op "q") F(1, "rep " op "b") F(1, "rep " op "w") F(1, "rep " op "l") F(1, "rep " op "q") F(2, "rep " op "b") F(2, op "l")
STRING("movs") STRING("stos") STRING2("movs") F(1, "lodsb") F(1, "lodsw") F(1, "lodsl") F(1, "lodsq") F(1, "rep lodsl")
T("scasb") T("scasl") T("repne scasb") T("repe scasb") T("repne scasl") T("cmpsb") T("cmpsl") T("repe cmpsb") T("repne cmpsw") F(1, "repe cmpsb") F(1, "repe cmpsq") F(2, "repe cmpsb")
T("addr32 rep stosb") T("addr32 rep movsl")

#define VECTOR(p, two)                                                                                                                      \
	T(p "movups (%rdi), %xmm1") T(p "movups %xmm9, (%rdi)") T(p "movupd (%rdi), %xmm1") T(p "movupd %xmm9, 5(%rdi)") T(p "movss (%rdi), %xmm2")   \
	T(p "movss %xmm12, (%rdi)") T(p "movsd (%rdi), %xmm2") T(p "movsd %xmm15, (%rdi)") T(p "movdqu (%rdi), %xmm3") T(p "movdqu %xmm11, (%rdi)")   \
	T(p "movaps 0x17f9(%rip), %xmm3") T(p "movaps %xmm8, 0x17f8(%rip)")
#define VECTOR_ALIGNED(p)                                                                                                                   \
	F(256, p "movaps (%rdi), %xmm1") F(256, p "movaps %xmm10, (%rdi)") F(256, p "movapd (%rdi), %xmm1") F(256, p "movapd %xmm10, (%rdi)")           \
	F(256, p "movdqa (%rdi), %xmm1") F(256, p "movdqa %xmm10, (%rdi)") F(256, p "movntdq %xmm10, (%rdi)") F(256, p "movntps %xmm10, (%rdi)")        \
	F(256, p "movntpd %xmm10, (%rdi)") F(256, p "movntdqa (%rdi), %xmm13")
#define VECTOR_SMALL(p)                                                                                                                     \
	T(p "movd (%rdi), %xmm4") T(p "movd %xmm5, (%rdi)") T(p "movq (%rdi), %xmm4") T(p "movq %xmm13, (%rdi)") T(p "movlps %xmm3, (%rdi)")          \
	T(p "movhps %xmm3, (%rdi)") T(p "movlpd %xmm3, (%rdi)") T(p "movhpd %xmm3, (%rdi)") T(p "lddqu (%rdi), %xmm3") T(p "movddup (%rdi), %xmm9")     \
	T(p "pextrb $5, %xmm1, (%rdi)") T(p "pextrw $3, %xmm1, (%rdi)") T(p "pextrd $2, %xmm1, (%rdi)") T(p "pextrq $1, %xmm9, (%rdi)") T(p "extractps $3, %xmm1, (%rdi)")
VECTOR("", "") VECTOR_ALIGNED("") VECTOR_SMALL("")
T("movlps (%rdi), %xmm1") T("movhps (%rdi), %xmm9") T("movlpd (%rdi), %xmm1") T("movhpd (%rdi), %xmm1") T(".byte 0x66, 0x48, 0x0f, 0x6e, 0x0f") T(".byte 0x66, 0x48, 0x0f, 0x7e, 0x0f")
T("pinsrb $9, (%rdi), %xmm1") T("pinsrw $7, (%rdi), %xmm1") T("pinsrd $3, (%rdi), %xmm1") T("pinsrq $1, (%rdi), %xmm9") T("pinsrd $1, 0x1800(%rip), %xmm1")
#define PACKED(op) F(256, op " (%rdi), %xmm1") F(8, "v" op " (%rdi), %xmm9, %xmm1") F(16, "v" op " (%rdi), %ymm1, %ymm12")
PACKED("pcmpeqb") PACKED("pminub") PACKED("pmaxub") PACKED("pand") PACKED("pandn") PACKED("por") PACKED("pxor") PACKED("psubb") PACKED("paddb")
#define V(text) F(8, text)
V("vmovups (%rdi), %xmm1") V("vmovups %xmm9, (%rdi)") V("vmovups (%rdi), %ymm1") V("vmovups %ymm9, (%rdi)") V("vmovupd (%r10,%rcx,8), %ymm14") V("vmovupd %ymm9, 5(%r12)")
V("vmovss (%rdi), %xmm2") V("vmovss %xmm12, (%rdi)") V("vmovsd (%rdi), %xmm2") V("vmovsd %xmm15, (%rdi)") V("vmovdqu (%rdi), %xmm3") V("vmovdqu %xmm11, (%rdi)")
V("vmovdqu (%rdi), %ymm3") V("vmovdqu %ymm11, (%rdi)") V("vmovdqu %ymm1, 0x1800(%rip)") V("vmovdqu -0x20(%rdi,%rcx,1), %ymm3")
F(264, "vmovaps (%rdi), %ymm1") F(264, "vmovaps %ymm10, (%rdi)") F(264, "vmovapd (%rdi), %xmm1") F(264, "vmovdqa (%rdi), %ymm1") F(264, "vmovdqa %ymm10, (%rdi)")
F(264, "vmovntdq %ymm10, (%rdi)") F(264, "vmovntps %ymm10, (%rdi)") F(264, "vmovntdqa (%rdi), %xmm13") F(272, "vmovntdqa (%rdi), %ymm13")
V("vmovd (%rdi), %xmm4") V("vmovd %xmm5, (%rdi)") V("vmovq (%rdi), %xmm4") V("vmovq %xmm13, (%rdi)") V("vmovlps %xmm3, (%rdi)") V("vmovhps %xmm3, (%rdi)")
V("vmovlps (%rdi), %xmm9, %xmm1") V("vmovhps (%rdi), %xmm1, %xmm9") V("vmovlpd (%rdi), %xmm9, %xmm1") V("vmovhpd (%rdi), %xmm1, %xmm9") V("vlddqu (%rdi), %ymm3")
V("vmovddup (%rdi), %xmm9") V("vpinsrb $9, (%rdi), %xmm2, %xmm1") V("vpinsrw $7, (%rdi), %xmm2, %xmm1") V("vpinsrd $3, (%rdi), %xmm2, %xmm1") V("vpinsrq $1, (%rdi), %xmm2, %xmm9")
V("vpextrb $5, %xmm1, (%rdi)") V("vpextrw $3, %xmm1, (%rdi)") V("vpextrd $2, %xmm1, (%rdi)") V("vpextrq $1, %xmm9, (%rdi)") V("vextractps $3, %xmm1, (%rdi)")
V("vinsertf128 $1, (%rdi), %ymm2, %ymm1") V("vinsertf128 $0, (%rdi), %ymm2, %ymm1") V("vextractf128 $1, %ymm2, (%rdi)") V("vextractf128 $0, %ymm2, (%rdi)")
F(16, "vinserti128 $1, (%rdi), %ymm2, %ymm1") F(16, "vextracti128 $1, %ymm2, (%rdi)") V("vbroadcastss (%rdi), %ymm1") V("vbroadcastsd (%rdi), %ymm1") V("vbroadcastf128 (%rdi), %ymm1")
F(16, "vpbroadcastb (%rdi), %ymm1") F(16, "vpbroadcastw (%rdi), %xmm1") F(16, "vpbroadcastd (%rdi), %ymm1") F(16, "vpbroadcastq (%rdi), %xmm1") F(16, "vbroadcasti128 (%rdi), %ymm1")
__asm__(".pushsection .test_table,\"aw\"\n.globl last_test\nlast_test:\n.popsection\n");
#define ALIGNED 256

/* ---- machine state ---- */

#define DEVICE_SIZE 8192
struct state {
	uint64_t gpr[16], flags, rip;
	uint8_t vector[16][32];
	uint8_t device[DEVICE_SIZE], plain[DEVICE_SIZE];
	uint64_t pushed;
};
static uint8_t *code, *device, *plain, shadow[DEVICE_SIZE];
static const uint8_t place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };
static struct state begin, *result;
static volatile int phase, emulating, died, unknown_seen, faults;
static gregset_t saved_gregs;
static uint8_t saved_fp[16384];
static size_t fp_size;
#define FLAG_MASK 0x8d5ull

static int fake_places;
static unsigned cpu_place(unsigned i)
{
	unsigned a, b, c, d;
	__cpuid_count(13, i, a, b, c, d);
	return b;
}
unsigned xsave_place(unsigned i)
{
	static const unsigned fake[8] = {0, 0, 576, 0, 0, 1088, 1152, 1664};
	return fake_places ? fake[i] : cpu_place(i);
}

static int load(void *c, uint64_t a, void *to, unsigned n)
{
	(void)c;
	if (a - (uintptr_t)device < DEVICE_SIZE) memcpy(to, shadow + (a - (uintptr_t)device), n);
	else memcpy(to, (void *)(uintptr_t)a, n);
	return 0;
}
static int store(void *c, uint64_t a, const void *from, unsigned n)
{
	(void)c;
	if (a - (uintptr_t)device < DEVICE_SIZE) memcpy(shadow + (a - (uintptr_t)device), from, n);
	else memcpy((void *)(uintptr_t)a, from, n);
	return 0;
}
static const struct memory backend = {load, store, 0};

static void back_to_test(ucontext_t *uc)
{
	memcpy(uc->uc_mcontext.gregs, saved_gregs, sizeof saved_gregs);
	memcpy(uc->uc_mcontext.fpregs, saved_fp, fp_size);
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
	(void)info;
	ucontext_t *uc = context;
	greg_t *g = uc->uc_mcontext.gregs;
	uint8_t *fp = (uint8_t *)uc->uc_mcontext.fpregs;
	uint64_t bits;
	if (sig == SIGSEGV && emulating && phase == 1) {
		int e = 0;
		faults++;
		int r = step_instruction(uc, &backend, &e);
		if (r == STEP_DONE) return;
		unknown_seen = 1;
		died = sig;
		back_to_test(uc);
		return;
	}
	if (sig != SIGTRAP || phase > 1) {
		if (phase != 1) _exit(70);
		died = sig;
		back_to_test(uc);
		return;
	}
	if (phase == 0) {
		uint32_t magic, size = 512;
		memcpy(&magic, fp + 464, 4);
		if (magic == 0x46505853) memcpy(&size, fp + 468, 4);
		fp_size = size < sizeof saved_fp ? size : sizeof saved_fp;
		memcpy(saved_gregs, g, sizeof saved_gregs);
		memcpy(saved_fp, fp, fp_size);
		for (int i = 0; i < 16; i++)
			if (i != RSP) g[place[i]] = (greg_t)begin.gpr[i];
		g[REG_EFL] = (greg_t)((uint64_t)g[REG_EFL] & ~(FLAG_MASK | 0x400)) | (greg_t)begin.flags;
		g[REG_RIP] = (greg_t)(uintptr_t)code;
		for (int i = 0; i < 16; i++) memcpy(fp + 160 + i * 16, begin.vector[i], 16);
		if (fp_size > 576) {
			memcpy(&bits, fp + 512, 8);
			int ymm = begin.vector[0][31] & 1; /* half of the runs start with the upper halves in their initial state */
			bits = (bits & ~4ull) | (ymm ? 4 : 0);
			memcpy(fp + 512, &bits, 8);
			for (int i = 0; i < 16; i++) {
				if (!ymm) memset(begin.vector[i] + 16, 0, 16);
				if (ymm) memcpy(fp + cpu_place(2) + i * 16, begin.vector[i] + 16, 16);
			}
		}
		phase = 1;
		return;
	}
	phase = 2;
	for (int i = 0; i < 16; i++) result->gpr[i] = (uint64_t)g[place[i]];
	result->gpr[RSP] -= (uint64_t)saved_gregs[REG_RSP];
	memcpy(&result->pushed, (void *)(uintptr_t)g[REG_RSP], 8);
	if (!result->gpr[RSP]) result->pushed = 0;
	result->flags = (uint64_t)g[REG_EFL] & (FLAG_MASK | 0x400);
	result->rip = (uint64_t)g[REG_RIP];
	memset(result->vector, 0, sizeof result->vector);
	bits = 0;
	if (fp_size > 576) memcpy(&bits, fp + 512, 8);
	for (int i = 0; i < 16; i++) {
		memcpy(result->vector[i], fp + 160 + i * 16, 16);
		if (bits & 4) memcpy(result->vector[i] + 16, fp + cpu_place(2) + i * 16, 16);
	}
	back_to_test(uc);
}

static uint64_t seed = 1;
static uint64_t random64(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed * 0x2545f4914f6cdd1dull;
}
static uint64_t value(int narrow)
{
	static const uint64_t edge[] = {0, 1, ~0ull, 0x7fffffff7fffffffull, 0x8000000080000000ull, 0x7f7f7f7f7f7f7f7full, 0x8080808080808080ull, 0x7fffffffffffffffull, 1ull << 63};
	return narrow ? edge[random64() % (sizeof edge / sizeof *edge)] : random64();
}
static uint64_t spot(const uint8_t *base, int aligned)
{
	return (uintptr_t)base + 2048 + random64() % 2048 / (aligned ? 64 : 1) * (aligned ? 64 : 1);
}

static void randomise(const struct test *t)
{
	int narrow = random64() % 4 == 0, aligned = !!(t->flags & ALIGNED);
	memset(&begin, 0, sizeof begin);
	for (int i = 0; i < 16; i++) begin.gpr[i] = value(narrow);
	for (unsigned i = 0; i < DEVICE_SIZE / 8; i++) {
		uint64_t a = value(narrow), b = random64() % 3 ? a : value(narrow);
		memcpy(begin.device + i * 8, &a, 8);
		memcpy(begin.plain + i * 8, &b, 8);
	}
	for (int i = 0; i < 16; i++)
		for (int k = 0; k < 4; k++) {
			uint64_t a = value(narrow);
			memcpy(begin.vector[i] + k * 8, &a, 8);
		}
	begin.gpr[RDI] = spot(t->flags & STRING_OUT ? plain : device, aligned);
	begin.gpr[RSI] = spot(t->flags & (STRING_OUT | BOTH) ? device : plain, aligned);
	begin.gpr[11] = spot(plain, aligned);
	begin.gpr[RBX] = spot(device, aligned);
	begin.gpr[RBP] = spot(device, aligned);
	begin.gpr[10] = spot(device, aligned);
	begin.gpr[12] = spot(device, aligned);
	begin.gpr[13] = spot(device, aligned);
	begin.gpr[RCX] = random64() % 41;
	begin.gpr[9] = random64() % 401 - 200;
	unsigned long fs;
	syscall(SYS_arch_prctl, 0x1003, &fs);
	begin.gpr[15] = spot(device, aligned) - fs;
	begin.flags = random64() & (FLAG_MASK | (strstr(t->text, "s") ? 0x400 : 0));
	if (random64() % 4 == 0) memcpy(&begin.gpr[RAX], begin.device + (begin.gpr[RDI] - (uintptr_t)device) % (DEVICE_SIZE - 8), 8);
}

static int run(struct state *out, int emulated)
{
	result = out;
	memset(out, 0, sizeof *out);
	phase = died = unknown_seen = faults = 0;
	emulating = emulated;
	memcpy(plain, begin.plain, DEVICE_SIZE);
	mprotect(device, DEVICE_SIZE, PROT_READ | PROT_WRITE);
	memcpy(device, begin.device, DEVICE_SIZE);
	memcpy(shadow, begin.device, DEVICE_SIZE);
	if (emulated) mprotect(device, DEVICE_SIZE, PROT_NONE);
	__asm__ volatile("sub $256, %%rsp\n\tint3\n\tadd $256, %%rsp" ::: "memory", "cc");
	if (emulated) memcpy(out->device, shadow, DEVICE_SIZE);
	else memcpy(out->device, device, DEVICE_SIZE);
	memcpy(out->plain, plain, DEVICE_SIZE);
	return died;
}

static int difference(const struct test *t, const struct state *a, const struct state *b)
{
	static const char *names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
	uint64_t ignore = (t->flags & NO_AF ? 0x10 : 0) | (t->flags & NO_OF ? 0x800 : 0);
	int bad = 0;
	if (!strncmp(t->text, "imul", 4)) ignore = 0xd4;
	if (!strncmp(t->text, "tzcnt", 5) || !strncmp(t->text, "lzcnt", 5)) ignore = 0x894;
	if (!strncmp(t->text, "bextr", 5)) ignore = 0x94;
	if (!strncmp(t->text, "andn", 4)) ignore = 0x14;
	if (!strncmp(t->text, "bt", 2) || !strncmp(t->text, "lock bt", 7)) ignore = 0x894;
#define SAY(...) (printf("FAIL %s (%s): ", t->text, names[0] ? "differs" : ""), printf(__VA_ARGS__), bad = 1)
	for (int i = 0; i < 16; i++)
		if (a->gpr[i] != b->gpr[i]) SAY("%s %llx, processor %llx\n", names[i], (unsigned long long)b->gpr[i], (unsigned long long)a->gpr[i]);
	if ((a->flags ^ b->flags) & ~ignore) SAY("flags %llx, processor %llx\n", (unsigned long long)b->flags, (unsigned long long)a->flags);
	if (a->rip != b->rip) SAY("rip +%llx, processor +%llx\n", (unsigned long long)(b->rip - (uintptr_t)code), (unsigned long long)(a->rip - (uintptr_t)code));
	for (int i = 0; i < 16; i++)
		if (memcmp(a->vector[i], b->vector[i], 32)) SAY("vector register %d\n", i);
	if (memcmp(a->device, b->device, DEVICE_SIZE)) SAY("device memory\n");
	if (memcmp(a->plain, b->plain, DEVICE_SIZE)) SAY("memory\n");
	if (a->pushed != b->pushed) SAY("stack\n");
	return bad;
}

/* ---- instructions by the decoder alone ---- */

static struct {
	ucontext_t uc;
	uint8_t fp[4096] __attribute__((aligned(64)));
} fake;

static int alone(const uint8_t *bytes, int n)
{
	memset(&fake, 0, sizeof fake);
	memcpy(code, bytes, (size_t)n);
	greg_t *g = fake.uc.uc_mcontext.gregs;
	for (int i = 0; i < 16; i++) g[place[i]] = (greg_t)begin.gpr[i];
	g[REG_RIP] = (greg_t)(uintptr_t)code;
	uint32_t magic = 0x46505853, size = 2696;
	uint64_t features = 0xe7, bits = 0xe7;
	memcpy(fake.fp + 464, &magic, 4);
	memcpy(fake.fp + 468, &size, 4);
	memcpy(fake.fp + 472, &features, 8);
	memcpy(fake.fp + 512, &bits, 8);
	for (unsigned i = 576; i < 2688; i++) fake.fp[i] = (uint8_t)(i * 31 + i / 256);
	for (unsigned i = 160; i < 416; i++) fake.fp[i] = (uint8_t)(i * 17);
	fake.uc.uc_mcontext.fpregs = (fpregset_t)(void *)fake.fp;
	mprotect(device, DEVICE_SIZE, PROT_READ | PROT_WRITE);
	memcpy(shadow, begin.device, DEVICE_SIZE);
	memcpy(plain, begin.plain, DEVICE_SIZE);
	int e = 0;
	fake_places = 1;
	int r = step_instruction(&fake.uc, &backend, &e);
	fake_places = 0;
	return r == STEP_DONE && g[REG_RIP] == (greg_t)((uintptr_t)code + (unsigned)n);
}
static void zmm(int n, uint8_t out[64])
{
	if (n < 16) {
		memcpy(out, fake.fp + 160 + n * 16, 16);
		memcpy(out + 16, fake.fp + 576 + n * 16, 16);
		memcpy(out + 32, fake.fp + 1152 + n * 32, 32);
	} else memcpy(out, fake.fp + 1664 + (n - 16) * 64, 64);
}
#define AT(r) (shadow + (begin.gpr[r] - (uintptr_t)device))

#define CODE(name, text) __asm__(".pushsection .rodata.alone,\"a\"\n" #name "_start:\n" text "\n" #name "_end:\n.popsection\n"); extern const uint8_t name##_start[], name##_end[];
CODE(movdir64b, "movdir64b (%rsi), %rdi")
CODE(movdir64b_back, "movdir64b 64(%rdi), %r11")
CODE(movdiri4, "movdiri %eax, 8(%rdi)")
CODE(movdiri8, "movdiri %r8, (%rdi)")
CODE(evex_load16, "vmovdqu64 (%rdi), %ymm17")
CODE(evex_store17, "vmovdqu64 %ymm17, 0x20(%rdi)")
CODE(evex_load_zmm, "vmovdqu64 0x40(%rdi), %zmm3")
CODE(evex_store_zmm, "vmovdqu8 %zmm31, -0x40(%rdi)")
CODE(evex_xmm, "vmovdqu8 (%rdi), %xmm16")
CODE(evex_aligned, "vmovntdq %zmm5, (%rbx)")
CODE(evex_ups, "vmovups %zmm20, (%rdi,%rcx,1)")
CODE(evex_masked_store, "vmovdqu8 %ymm18, (%rdi){%k2}")
CODE(evex_masked_load, "vmovdqu8 (%rdi), %ymm18{%k3}{z}")
CODE(evex_merge_load, "vmovdqu32 (%rdi), %zmm4{%k4}")
CODE(evex_movq, "vmovq %xmm22, 8(%rdi)")
CODE(vex_clears, "vmovdqu (%rdi), %ymm3")

static int passed, failed, skipped;
static void verdict(const char *name, int ok)
{
	if (ok) passed++;
	else {
		failed++;
		printf("FAIL %s (decoder alone)\n", name);
	}
}
static int all_zero(const uint8_t *p, int n)
{
	while (n--)
		if (*p++) return 0;
	return 1;
}

static void decoder_alone(void)
{
	static const struct test any = {"any", 0, 0, ALIGNED};
	uint8_t a[64], b[64], k[8];
	int ok;
#define RUN(name) (randomise(&any), alone(name##_start, (int)(name##_end - name##_start)))
	for (int i = 0; i < 50; i++) {
		ok = RUN(movdir64b);
		verdict("movdir64b", ok && !memcmp(AT(RDI), begin.plain + (begin.gpr[RSI] - (uintptr_t)plain), 64));
		ok = RUN(movdir64b_back);
		verdict("movdir64b from the device", ok && !memcmp(plain + (begin.gpr[11] - (uintptr_t)plain), AT(RDI) + 64, 64));
		ok = RUN(movdiri4);
		verdict("movdiri 4", ok && !memcmp(AT(RDI) + 8, &begin.gpr[RAX], 4) && !memcmp(AT(RDI) + 12, begin.device + (AT(RDI) - shadow) + 12, 52));
		ok = RUN(movdiri8);
		verdict("movdiri 8", ok && !memcmp(AT(RDI), &begin.gpr[8], 8));
		ok = RUN(evex_load16);
		zmm(17, a);
		verdict("vmovdqu64 ymm17 load", ok && !memcmp(a, AT(RDI), 32) && all_zero(a + 32, 32));
		ok = RUN(evex_store17);
		zmm(17, a);
		verdict("vmovdqu64 ymm17 store", ok && !memcmp(AT(RDI) + 32, a, 32) && !memcmp(AT(RDI) + 64, begin.device + (AT(RDI) - shadow) + 64, 32));
		ok = RUN(evex_load_zmm);
		zmm(3, a);
		verdict("vmovdqu64 zmm3 load", ok && !memcmp(a, AT(RDI) + 64, 64));
		ok = RUN(evex_store_zmm);
		zmm(31, a);
		verdict("vmovdqu8 zmm31 store", ok && !memcmp(AT(RDI) - 64, a, 64));
		ok = RUN(evex_xmm);
		zmm(16, a);
		verdict("vmovdqu8 xmm16 load", ok && !memcmp(a, AT(RDI), 16) && all_zero(a + 16, 48));
		ok = RUN(evex_aligned);
		zmm(5, a);
		verdict("vmovntdq zmm5", ok && !memcmp(AT(RBX), a, 64));
		ok = RUN(evex_ups);
		zmm(20, a);
		verdict("vmovups zmm20 store", ok && !memcmp(AT(RDI) + begin.gpr[RCX], a, 64));
		ok = RUN(evex_masked_store);
		zmm(18, a);
		memcpy(k, fake.fp + 1088 + 2 * 8, 8);
		for (int j = 0; j < 32; j++) b[j] = (k[j / 8] >> (j % 8)) & 1 ? a[j] : begin.device[AT(RDI) - shadow + j];
		verdict("vmovdqu8 masked store", ok && !memcmp(AT(RDI), b, 32));
		ok = RUN(evex_masked_load);
		zmm(18, a);
		memcpy(k, fake.fp + 1088 + 3 * 8, 8);
		for (int j = 0; j < 32; j++) b[j] = (k[j / 8] >> (j % 8)) & 1 ? AT(RDI)[j] : 0;
		verdict("vmovdqu8 masked load", ok && !memcmp(a, b, 32) && all_zero(a + 32, 32));
		ok = RUN(evex_merge_load);
		zmm(4, a);
		memcpy(k, fake.fp + 1088 + 4 * 8, 8);
		for (int j = 0; j < 64; j++) {
			int element = j / 4;
			unsigned place = j < 16 ? 160 + 4 * 16 + (unsigned)j : j < 32 ? 576 + 4 * 16 + (unsigned)j - 16 : 1152 + 4 * 32 + (unsigned)j - 32;
			uint8_t old = j < 16 ? (uint8_t)(place * 17) : (uint8_t)(place * 31 + place / 256);
			b[j] = (k[element / 8] >> (element % 8)) & 1 ? AT(RDI)[j] : old;
		}
		verdict("vmovdqu32 merging load", ok && !memcmp(a, b, 64));
		ok = RUN(evex_movq);
		zmm(22, a);
		verdict("vmovq xmm22", ok && !memcmp(AT(RDI) + 8, a, 8));
		ok = RUN(vex_clears);
		zmm(3, a);
		verdict("vmovdqu ymm3 clears the rest of zmm3", ok && !memcmp(a, AT(RDI), 32) && all_zero(a + 32, 32));
	}
}

/* Nothing may be touched by what is refused. */
static void refusals(void)
{
	static const struct {
		const char *name;
		uint8_t bytes[8];
	} refused[] = {{"fadds", {0xd8, 0x07}}, {"call", {0xff, 0x17}}, {"div", {0xf7, 0x37}}, {"addps", {0x0f, 0x58, 0x07}}, {"mov reg,reg", {0x89, 0xc0}}, {"evex L=3", {0x62, 0xf1, 0x7e, 0x68, 0x6f, 0x07}}};
	static const struct test any = {"any", 0, 0, 0};
	for (unsigned i = 0; i < sizeof refused / sizeof *refused; i++) {
		randomise(&any);
		int e = 0, done = alone(refused[i].bytes, 8);
		(void)e;
		verdict(refused[i].name, !done && (uint64_t)fake.uc.uc_mcontext.gregs[REG_RIP] == (uintptr_t)code && !memcmp(shadow, begin.device, DEVICE_SIZE));
	}
}

int main(int argc, char **argv)
{
	unsigned a, b, c, d;
	int rounds = argc > 2 ? atoi(argv[2]) : 60;
	seed = argc > 1 ? strtoull(argv[1], 0, 0) : 20240229;
	if (!seed) seed = 1;
	code = mmap(0, 4096 + 2 * DEVICE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (code == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	device = code + 4096;
	plain = device + DEVICE_SIZE;
	static uint8_t stack[65536];
	stack_t st = {.ss_sp = stack, .ss_size = sizeof stack};
	sigaltstack(&st, 0);
	struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigaction(SIGTRAP, &sa, 0);
	sigaction(SIGSEGV, &sa, 0);
	sigaction(SIGILL, &sa, 0);
	sigaction(SIGBUS, &sa, 0);

	__cpuid(1, a, b, c, d);
	int have = (c >> 28 & 1 ? AVX : 0) | (c >> 22 & 1 ? MOVBE : 0);
	__cpuid_count(7, 0, a, b, c, d);
	have |= (b >> 5 & 1 ? AVX2 : 0) | ((b >> 3 & 1) && (b >> 8 & 1) ? BMI : 0);
	int direct = c >> 27 & 1, direct64 = c >> 28 & 1, avx512 = b >> 16 & 1;
	static struct state native, ours;
	int forms = 0;
	for (const struct test *t = first_test; t < last_test; t++) {
		if (t->flags & (AVX | AVX2 | MOVBE | BMI) & ~have) {
			printf("skipped, not on this processor: %s\n", t->text);
			skipped++;
			continue;
		}
		int bad = 0;
		forms++;
		size_t n = (size_t)(t->end - t->code);
		for (int i = 0; i < rounds && !bad; i++) {
			randomise(t);
			memcpy(code, t->code, n);
			if (t->flags & ABSOLUTE) {
				uint64_t where = spot(device, 0);
				for (size_t k = 0; k + 8 <= n; k++)
					if (!memcmp(code + k, "\x88\x77\x66\x55\x44\x33\x22\x11", 8)) memcpy(code + k, &where, 8);
			}
			code[n] = 0xcc;
			if (run(&native, 0)) {
				printf("FAIL %s: the processor raised signal %d\n", t->text, died);
				bad = 1;
				break;
			}
			if (run(&ours, 1)) {
				printf("FAIL %s: %s\n", t->text, unknown_seen ? "not decoded" : "signal");
				bad = 1;
				break;
			}
			bad = difference(t, &native, &ours);
		}
		if (bad) failed++;
		else passed++;
	}
	printf("%d forms against the processor, %d rounds each, seed %llu\n", forms, rounds, (unsigned long long)(argc > 1 ? strtoull(argv[1], 0, 0) : 20240229));
	decoder_alone();
	refusals();
	if (!direct || !direct64) printf("this processor has no movdiri or movdir64b: these were checked by the decoder alone\n");
	if (!avx512) printf("this processor has no AVX-512: the EVEX forms were checked by the decoder alone\n");
	printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
	return failed != 0;
}
