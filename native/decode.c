/*
 * The instructions that reach device registers: compilers' plain loads and stores, arithmetic with a memory operand,
 * string operations, vector moves as in memcpy, and the direct stores.
 * Arithmetic is done by the processor's own instruction on registers, so the flags are true by construction.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "decode.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <string.h>
#include "sys.h"

unsigned xsave_place(unsigned i);

#define ROUNDS 256 /* of a repeated string operation in one go */
#define ARITHMETIC_FLAGS 0x8d5ull

struct insn {
	ucontext_t *uc;
	greg_t *g;
	const struct memory *mem;
	int *error;
	const uint8_t *start, *p;
	int rex, w, r, x, b, opsize16, addr32, rep, repne, segment;
	int size; /* of the operand: 2, 4, 8 */
	int mod, reg, rm;
	uint64_t ea;
	/* VEX and EVEX */
	int vex, evex, l, v, pp, map, r2, x2, mask, zeroing, broadcast;
};

static const uint8_t register_place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                           REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
#define GPR(n) (d->g[register_place[n]])

static uint64_t cut_to(uint64_t v, int size)
{
	return size == 8 ? v : v & ((1ull << (size * 8)) - 1);
}
static int64_t extend(uint64_t v, int size)
{
	int s = 64 - size * 8;
	return (int64_t)(v << s) >> s;
}

static uint64_t get(struct insn *d, int n, int size)
{
	if (size == 1 && !d->rex && n >= 4 && n < 8) return (uint64_t)GPR(n - 4) >> 8 & 0xff;
	return cut_to((uint64_t)GPR(n), size);
}
static void set(struct insn *d, int n, int size, uint64_t v)
{
	if (size == 1 && !d->rex && n >= 4 && n < 8) GPR(n - 4) = (greg_t)(((uint64_t)GPR(n - 4) & ~0xff00ull) | (v & 0xff) << 8);
	else if (size == 8) GPR(n) = (greg_t)v;
	else if (size == 4) GPR(n) = (greg_t)(v & 0xffffffff);
	else GPR(n) = (greg_t)(((uint64_t)GPR(n) & ~((1ull << (size * 8)) - 1)) | cut_to(v, size));
}

/* ---- memory ---- */

static int load(struct insn *d, uint64_t a, void *to, int size)
{
	int e = d->mem->load(d->mem->context, a, to, (unsigned)size);
	if (e) *d->error = e;
	return e;
}
static int store(struct insn *d, uint64_t a, const void *from, int size)
{
	int e = d->mem->store(d->mem->context, a, from, (unsigned)size);
	if (e) *d->error = e;
	return e;
}
static int load_int(struct insn *d, uint64_t a, uint64_t *v, int size)
{
	*v = 0;
	return load(d, a, v, size);
}
#define LOAD(v, size)                                                                                                                       \
	if (load_int(d, d->ea, &(v), size)) return STEP_FAILED
#define STORE(v, size)                                                                                                                      \
	do {                                                                                                                                \
		uint64_t s_ = (v);                                                                                                          \
		if (store(d, d->ea, &s_, size)) return STEP_FAILED;                                                                         \
	} while (0)
#define FLAGS (d->g[REG_EFL])

static int done(struct insn *d)
{
	d->g[REG_RIP] = (greg_t)(uintptr_t)d->p;
	return STEP_DONE;
}

/* ---- arithmetic ---- */

#define WITH_FLAGS(op, type)                                                                                                                \
	({                                                                                                                                  \
		type a_ = (type)a, b_ = (type)b;                                                                                            \
		__asm__("push %[f]\n\tpopf\n\t" op " %[b], %[a]\n\tpushf\n\tpop %[f]" : [a] "+q"(a_), [f] "+r"(f) : [b] "q"(b_) : "cc");        \
		a = a_;                                                                                                                     \
	})
#define SIZES(name)                                                                                                                         \
	switch (size) {                                                                                                                     \
	case 1: WITH_FLAGS(name "b", uint8_t); break;                                                                                       \
	case 2: WITH_FLAGS(name "w", uint16_t); break;                                                                                      \
	case 4: WITH_FLAGS(name "l", uint32_t); break;                                                                                      \
	default: WITH_FLAGS(name "q", uint64_t);                                                                                            \
	}                                                                                                                                   \
	break
#define WITH_COUNT(op, type)                                                                                                                \
	({                                                                                                                                  \
		type a_ = (type)a;                                                                                                          \
		__asm__("push %[f]\n\tpopf\n\t" op " %%cl, %[a]\n\tpushf\n\tpop %[f]" : [a] "+q"(a_), [f] "+r"(f) : "c"((uint8_t)b) : "cc");    \
		a = a_;                                                                                                                     \
	})
#define SIZES_COUNT(name)                                                                                                                   \
	switch (size) {                                                                                                                     \
	case 1: WITH_COUNT(name "b", uint8_t); break;                                                                                       \
	case 2: WITH_COUNT(name "w", uint16_t); break;                                                                                      \
	case 4: WITH_COUNT(name "l", uint32_t); break;                                                                                      \
	default: WITH_COUNT(name "q", uint64_t);                                                                                            \
	}                                                                                                                                   \
	break
#define WITH_ONE(op, type)                                                                                                                  \
	({                                                                                                                                  \
		type a_ = (type)a;                                                                                                          \
		__asm__("push %[f]\n\tpopf\n\t" op " %[a]\n\tpushf\n\tpop %[f]" : [a] "+q"(a_), [f] "+r"(f) : : "cc");                          \
		a = a_;                                                                                                                     \
	})
#define SIZES_ONE(name)                                                                                                                     \
	switch (size) {                                                                                                                     \
	case 1: WITH_ONE(name "b", uint8_t); break;                                                                                         \
	case 2: WITH_ONE(name "w", uint16_t); break;                                                                                        \
	case 4: WITH_ONE(name "l", uint32_t); break;                                                                                        \
	default: WITH_ONE(name "q", uint64_t);                                                                                              \
	}                                                                                                                                   \
	break

enum { ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, NOT, NEG, INC, DEC };

static uint64_t arithmetic(struct insn *d, int op, uint64_t a, uint64_t b, int size)
{
	uint64_t f = (uint64_t)FLAGS & ARITHMETIC_FLAGS;
	switch (op) {
	case ADD: SIZES("add");
	case OR: SIZES("or");
	case ADC: SIZES("adc");
	case SBB: SIZES("sbb");
	case AND: SIZES("and");
	case SUB: SIZES("sub");
	case XOR: SIZES("xor");
	case CMP: SIZES("cmp");
	case TEST: SIZES("test");
	case NOT: SIZES_ONE("not");
	case NEG: SIZES_ONE("neg");
	case INC: SIZES_ONE("inc");
	default: SIZES_ONE("dec");
	}
	FLAGS = (greg_t)(((uint64_t)FLAGS & ~ARITHMETIC_FLAGS) | (f & ARITHMETIC_FLAGS));
	return cut_to(a, size);
}

static uint64_t shift(struct insn *d, int op, uint64_t a, uint64_t b, int size)
{
	uint64_t f = (uint64_t)FLAGS & ARITHMETIC_FLAGS;
	switch (op) {
	case 0: SIZES_COUNT("rol");
	case 1: SIZES_COUNT("ror");
	case 2: SIZES_COUNT("rcl");
	case 3: SIZES_COUNT("rcr");
	case 5: SIZES_COUNT("shr");
	case 7: SIZES_COUNT("sar");
	default: SIZES_COUNT("shl");
	}
	FLAGS = (greg_t)(((uint64_t)FLAGS & ~ARITHMETIC_FLAGS) | (f & ARITHMETIC_FLAGS));
	return cut_to(a, size);
}

static uint64_t multiply(struct insn *d, uint64_t a, uint64_t b, int size)
{
	uint64_t f = (uint64_t)FLAGS & ARITHMETIC_FLAGS;
	if (size == 2) WITH_FLAGS("imulw", uint16_t);
	else if (size == 4) WITH_FLAGS("imull", uint32_t);
	else WITH_FLAGS("imulq", uint64_t);
	FLAGS = (greg_t)(((uint64_t)FLAGS & ~ARITHMETIC_FLAGS) | (f & ARITHMETIC_FLAGS));
	return cut_to(a, size);
}

static int condition(struct insn *d, int cc)
{
	uint64_t f = (uint64_t)FLAGS;
	int cf = f & 1, pf = f >> 2 & 1, zf = f >> 6 & 1, sf = f >> 7 & 1, of = f >> 11 & 1, r;
	switch (cc >> 1) {
	case 0: r = of; break;
	case 1: r = cf; break;
	case 2: r = zf; break;
	case 3: r = cf | zf; break;
	case 4: r = sf; break;
	case 5: r = pf; break;
	case 6: r = sf != of; break;
	default: r = zf | (sf != of);
	}
	return r ^ (cc & 1);
}

/* ---- vector registers in the signal frame: the XSAVE area, standard form ---- */

struct xsave {
	uint8_t *base;
	uint64_t *bits; /* XSTATE_BV; 0 when the frame has the legacy part only */
	unsigned place[8];
};
enum { YMM_UPPER = 2, OPMASK = 5, ZMM_UPPER = 6, ZMM_16 = 7 };

/* Where a component lies: the same for every processor of the machine. The test of the decoder has its own. */
__attribute__((weak)) unsigned xsave_place(unsigned i)
{
	static unsigned known[8];
	unsigned at = __atomic_load_n(&known[i], __ATOMIC_RELAXED), a, c, e;
	if (!at) {
		__cpuid_count(13, i, a, at, c, e);
		__atomic_store_n(&known[i], at, __ATOMIC_RELAXED);
	}
	return at;
}

static void find_xsave(struct insn *d, struct xsave *s)
{
	memset(s, 0, sizeof *s);
	s->base = (uint8_t *)d->uc->uc_mcontext.fpregs;
	uint32_t magic;
	uint64_t features;
	memcpy(&magic, s->base + 464, 4);
	memcpy(&features, s->base + 472, 8);
	if (magic != 0x46505853) return;
	s->bits = (uint64_t *)(void *)(s->base + 512);
	for (unsigned i = 2; i < 8; i++)
		if (features >> i & 1) s->place[i] = xsave_place(i);
}

/* A component that is in its initial state has no defined bytes. */
static uint8_t *component(struct xsave *s, int i, unsigned length, int make)
{
	if (!s->bits || !s->place[i]) return 0;
	uint8_t *p = s->base + s->place[i];
	if (!(*s->bits >> i & 1)) {
		if (!make) return 0;
		memset(p, 0, length);
		*s->bits |= 1ull << i;
	}
	return p;
}

static void vector_get(struct xsave *s, int n, uint8_t out[64])
{
	memset(out, 0, 64);
	if (n < 16) {
		memcpy(out, s->base + 160 + n * 16, 16);
		uint8_t *p = component(s, YMM_UPPER, 256, 0);
		if (p) memcpy(out + 16, p + n * 16, 16);
		p = component(s, ZMM_UPPER, 512, 0);
		if (p) memcpy(out + 32, p + n * 32, 32);
	} else {
		uint8_t *p = component(s, ZMM_16, 1024, 0);
		if (p) memcpy(out, p + (n - 16) * 64, 64);
	}
}

/* All 64 bytes; parts that are zero need no component. 0: the frame has no place for it. */
static int is_zero(const uint8_t *p, int n)
{
	while (n--)
		if (*p++) return 0;
	return 1;
}
static int vector_set(struct xsave *s, int n, const uint8_t in[64])
{
	if (n >= 16) {
		int zero = is_zero(in, 64);
		uint8_t *p = component(s, ZMM_16, 1024, !zero);
		if (p) memcpy(p + (n - 16) * 64, in, 64);
		return p || zero;
	}
	int zero = is_zero(in + 16, 16), zero2 = is_zero(in + 32, 32);
	uint8_t *p = component(s, YMM_UPPER, 256, !zero), *q = component(s, ZMM_UPPER, 512, !zero2);
	if ((!p && !zero) || (!q && !zero2)) return 0;
	memcpy(s->base + 160 + n * 16, in, 16);
	if (p) memcpy(p + n * 16, in + 16, 16);
	if (q) memcpy(q + n * 32, in + 32, 32);
	return 1;
}

/* ---- ModRM ---- */

static uint64_t segment_base(int segment)
{
	unsigned long base = 0;
	SYS(arch_prctl, segment == 4 ? 0x1003 /* ARCH_GET_FS */ : 0x1004 /* ARCH_GET_GS */, &base);
	return base;
}

/* `immediate`: bytes after the operand, for addresses relative to the next instruction. 0: no memory operand. */
static int modrm(struct insn *d, int immediate, int disp8_scale)
{
	uint8_t m = *d->p++;
	d->mod = m >> 6;
	d->reg = (m >> 3 & 7) | d->r << 3;
	d->rm = m & 7;
	if (d->mod == 3) return 0;
	uint64_t ea = 0;
	int relative = 0;
	if (d->rm == 4) {
		uint8_t s = *d->p++;
		int index = (s >> 3 & 7) | d->x << 3, base = (s & 7) | d->b << 3;
		if (index != 4) ea += (uint64_t)GPR(index) << (s >> 6);
		if ((s & 7) == 5 && d->mod == 0) {
			int32_t disp;
			memcpy(&disp, d->p, 4);
			d->p += 4;
			ea += (uint64_t)(int64_t)disp;
		} else ea += (uint64_t)GPR(base);
	} else if (d->rm == 5 && d->mod == 0) {
		int32_t disp;
		memcpy(&disp, d->p, 4);
		d->p += 4;
		ea = (uint64_t)(int64_t)disp;
		relative = 1;
	} else ea = (uint64_t)GPR(d->rm | d->b << 3);
	if (d->mod == 1) ea += (uint64_t)((int64_t)(int8_t)*d->p++ * disp8_scale);
	else if (d->mod == 2) {
		int32_t disp;
		memcpy(&disp, d->p, 4);
		d->p += 4;
		ea += (uint64_t)(int64_t)disp;
	}
	if (relative) ea += (uint64_t)(uintptr_t)d->p + (uint64_t)immediate;
	if (d->addr32) ea &= 0xffffffff;
	if (d->segment) ea += segment_base(d->segment);
	d->ea = ea;
	return 1;
}
#define MODRM(immediate)                                                                                                                    \
	if (!modrm(d, immediate, 1)) return STEP_UNKNOWN

static uint64_t immediate(struct insn *d, int size) /* sign-extended; at most 4 bytes in the code */
{
	int n = size == 8 ? 4 : size;
	uint64_t v = 0;
	memcpy(&v, d->p, (size_t)n);
	d->p += n;
	return (uint64_t)extend(v, n);
}

/* ---- string operations ---- */

static int string(struct insn *d, int op)
{
	int size = op & 1 ? d->size : 1, kind = op & ~1, repeated = d->rep || d->repne, rounds = 0;
	int64_t stride = (uint64_t)FLAGS & 0x400 ? -size : size;
	uint64_t limit = d->addr32 ? 0xffffffff : ~0ull, base = d->segment ? segment_base(d->segment) : 0;
#define COUNT ((uint64_t)GPR(1) & limit)
	for (;;) {
		if (repeated && !COUNT) return done(d);
		if (rounds++ == ROUNDS) return STEP_DONE; /* still at this instruction: signals get their turn */
		uint64_t from = ((uint64_t)GPR(6) & limit) + base, to = (uint64_t)GPR(7) & limit, v = 0, v2;
		switch (kind) {
		case 0xa4: /* movs */
			if (load_int(d, from, &v, size) || store(d, to, &v, size)) return STEP_FAILED;
			break;
		case 0xa6: /* cmps */
			if (load_int(d, from, &v, size) || load_int(d, to, &v2, size)) return STEP_FAILED;
			arithmetic(d, CMP, v, v2, size);
			break;
		case 0xaa: /* stos */
			v = (uint64_t)GPR(0);
			if (store(d, to, &v, size)) return STEP_FAILED;
			break;
		case 0xac: /* lods */
			if (load_int(d, from, &v, size)) return STEP_FAILED;
			set(d, 0, size, v);
			break;
		default: /* scas */
			if (load_int(d, to, &v, size)) return STEP_FAILED;
			arithmetic(d, CMP, cut_to((uint64_t)GPR(0), size), v, size);
		}
		int uses_si = kind == 0xa4 || kind == 0xa6 || kind == 0xac, uses_di = kind != 0xac;
		if (uses_si) GPR(6) = (greg_t)(((uint64_t)GPR(6) + (uint64_t)stride) & limit);
		if (uses_di) GPR(7) = (greg_t)(((uint64_t)GPR(7) + (uint64_t)stride) & limit);
		if (!repeated) return done(d);
		GPR(1) = (greg_t)((COUNT - 1) & limit);
		if (kind == 0xa6 || kind == 0xae) {
			int zero = (uint64_t)FLAGS >> 6 & 1;
			if (d->repne ? zero : !zero) return done(d);
		}
	}
}

/* ---- one-byte opcodes ---- */

static int one_byte(struct insn *d, int op)
{
	int size = op & 1 ? d->size : 1;
	uint64_t a, b;
	if (op < 0x40 && (op & 7) < 4) {
		MODRM(0);
		LOAD(a, size);
		b = get(d, d->reg, size);
		int what = op >> 3;
		if (op & 2) {
			a = arithmetic(d, what, b, a, size);
			if (what != CMP) set(d, d->reg, size, a);
			return done(d);
		}
		greg_t before = FLAGS;
		a = arithmetic(d, what, a, b, size);
		if (what != CMP && store(d, d->ea, &a, size)) {
			FLAGS = before;
			return STEP_FAILED;
		}
		return done(d);
	}
	switch (op) {
	case 0x63: /* movsxd */
		MODRM(0);
		LOAD(a, d->size == 2 ? 2 : 4);
		set(d, d->reg, d->size, (uint64_t)extend(a, d->size == 2 ? 2 : 4));
		return done(d);
	case 0x69:
	case 0x6b: { /* imul with an immediate */
		int n = op == 0x6b ? 1 : d->size == 2 ? 2 : 4;
		MODRM(n);
		LOAD(a, d->size);
		b = immediate(d, n);
		set(d, d->reg, d->size, multiply(d, a, b, d->size));
		return done(d);
	}
	case 0x80:
	case 0x81:
	case 0x83: {
		int n = op == 0x81 ? (size == 2 ? 2 : 4) : 1;
		MODRM(n);
		LOAD(a, size);
		b = immediate(d, n);
		greg_t before = FLAGS;
		int what = d->reg & 7;
		a = arithmetic(d, what, a, cut_to(b, size), size);
		if (what != CMP && store(d, d->ea, &a, size)) {
			FLAGS = before;
			return STEP_FAILED;
		}
		return done(d);
	}
	case 0x84:
	case 0x85:
		MODRM(0);
		LOAD(a, size);
		arithmetic(d, TEST, a, get(d, d->reg, size), size);
		return done(d);
	case 0x86:
	case 0x87: /* xchg */
		MODRM(0);
		LOAD(a, size);
		STORE(get(d, d->reg, size), size);
		set(d, d->reg, size, a);
		return done(d);
	case 0x88:
	case 0x89:
		MODRM(0);
		STORE(get(d, d->reg, size), size);
		return done(d);
	case 0x8a:
	case 0x8b:
		MODRM(0);
		LOAD(a, size);
		set(d, d->reg, size, a);
		return done(d);
	case 0xa0:
	case 0xa1:
	case 0xa2:
	case 0xa3: /* mov with a full address */
		d->ea = 0;
		memcpy(&d->ea, d->p, d->addr32 ? 4 : 8);
		d->p += d->addr32 ? 4 : 8;
		if (d->segment) d->ea += segment_base(d->segment);
		if (op < 0xa2) {
			LOAD(a, size);
			set(d, 0, size, a);
		} else STORE(cut_to((uint64_t)GPR(0), size), size);
		return done(d);
	case 0xa4 ... 0xa7:
	case 0xaa ... 0xaf: return string(d, op);
	case 0xc0:
	case 0xc1:
	case 0xd0 ... 0xd3: {
		MODRM(op < 0xd0);
		LOAD(a, size);
		b = op < 0xd0 ? *d->p++ : op < 0xd2 ? 1 : (uint64_t)GPR(1) & 0xff;
		greg_t before = FLAGS;
		a = shift(d, d->reg & 7, a, b, size);
		if (store(d, d->ea, &a, size)) {
			FLAGS = before;
			return STEP_FAILED;
		}
		return done(d);
	}
	case 0xc6:
	case 0xc7:
		MODRM(size == 8 ? 4 : size);
		if (d->reg & 7) return STEP_UNKNOWN;
		b = immediate(d, size);
		STORE(b, size);
		return done(d);
	case 0xf6:
	case 0xf7: {
		int kind = *d->p >> 3 & 7;
		if (kind > 3) return STEP_UNKNOWN;
		int n = kind < 2 ? (size == 8 ? 4 : size) : 0;
		MODRM(n);
		LOAD(a, size);
		if (kind < 2) {
			arithmetic(d, TEST, a, cut_to(immediate(d, n), size), size);
			return done(d);
		}
		greg_t before = FLAGS;
		a = arithmetic(d, kind == 2 ? NOT : NEG, a, 0, size);
		if (store(d, d->ea, &a, size)) {
			FLAGS = before;
			return STEP_FAILED;
		}
		return done(d);
	}
	case 0xfe:
	case 0xff: {
		int kind = *d->p >> 3 & 7;
		if (op == 0xff && kind == 6) { /* push */
			size = d->size == 2 ? 2 : 8;
			MODRM(0);
			LOAD(a, size);
			if (store(d, (uint64_t)GPR(4) - (uint64_t)size, &a, size)) return STEP_FAILED;
			GPR(4) -= size;
			return done(d);
		}
		if (kind > 1) return STEP_UNKNOWN;
		MODRM(0);
		LOAD(a, size);
		greg_t before = FLAGS;
		a = arithmetic(d, kind ? DEC : INC, a, 0, size);
		if (store(d, d->ea, &a, size)) {
			FLAGS = before;
			return STEP_FAILED;
		}
		return done(d);
	}
	}
	return STEP_UNKNOWN;
}

/* ---- vectors: legacy, VEX and EVEX forms of the same opcodes ---- */

/* Writes `n` bytes into the register; a VEX form clears all above, a legacy form leaves all above byte 16 (or n) as it was. */
static int vector_write(struct insn *d, const uint8_t *bytes, int n, int clear_to_16)
{
	struct xsave s;
	uint8_t v[64];
	find_xsave(d, &s);
	if (d->vex || d->evex) memset(v, 0, sizeof v);
	else {
		vector_get(&s, d->reg, v);
		if (clear_to_16) memset(v, 0, 16);
	}
	memcpy(v, bytes, (size_t)n);
	if (!vector_set(&s, d->reg, v)) return STEP_UNKNOWN;
	return done(d);
}

static int vector_load(struct insn *d, int n, int clear_to_16)
{
	uint8_t b[64];
	if (load(d, d->ea, b, n)) return STEP_FAILED;
	return vector_write(d, b, n, clear_to_16);
}

static int vector_store(struct insn *d, int at, int n)
{
	struct xsave s;
	uint8_t v[64];
	find_xsave(d, &s);
	vector_get(&s, d->reg, v);
	if (store(d, d->ea, v + at, n)) return STEP_FAILED;
	return done(d);
}

/* EVEX with an opmask: element by element, masked ones are not touched. */
static int masked_move(struct insn *d, int n, int element, int storing)
{
	struct xsave s;
	uint8_t v[64], old[64];
	uint64_t k = 0;
	find_xsave(d, &s);
	uint8_t *p = component(&s, OPMASK, 64, 0);
	if (p) memcpy(&k, p + d->mask * 8, 8);
	vector_get(&s, d->reg, old);
	memset(v, 0, sizeof v);
	for (int i = 0; i < n / element; i++) {
		uint8_t *at = v + i * element;
		if (!(k >> i & 1)) {
			if (!d->zeroing) memcpy(at, old + i * element, (size_t)element);
		} else if (storing ? store(d, d->ea + (uint64_t)(i * element), old + i * element, element)
		                   : load(d, d->ea + (uint64_t)(i * element), at, element))
			return STEP_FAILED;
	}
	if (!storing && !vector_set(&s, d->reg, v)) return STEP_UNKNOWN;
	return done(d);
}

static int byte_operation(int op, int a, int b)
{
	switch (op) {
	case 0x74: return a == b ? 0xff : 0;
	case 0xda: return a < b ? a : b;
	case 0xdb: return a & b;
	case 0xde: return a > b ? a : b;
	case 0xdf: return ~a & b;
	case 0xeb: return a | b;
	case 0xf8: return a - b;
	case 0xfc: return a + b;
	default: return a ^ b;
	}
}

/* Map 1, opcode of a vector instruction. pp: 0 none, 1 66, 2 f3, 3 f2. */
static int vector_map1(struct insn *d, int op, int pp)
{
	int full = d->evex ? 16 << d->l : d->l ? 32 : 16; /* bytes of the whole register */
	int three = d->vex || d->evex;                    /* a second source in vvvv */
	int n, storing = 0;
	uint8_t b[64];
	struct xsave s;
	if (d->mask && op != 0x6f && op != 0x7f && op != 0x10 && op != 0x11 && op != 0x28 && op != 0x29) return STEP_UNKNOWN;
	if (d->broadcast) return STEP_UNKNOWN;
	switch (op) {
	case 0x10:
	case 0x11: /* movups movupd movss movsd */
		n = pp == 2 ? 4 : pp == 3 ? 8 : full;
		storing = op & 1;
		goto move;
	case 0x28:
	case 0x29: /* movaps movapd */
		if (pp > 1) return STEP_UNKNOWN;
		n = full;
		storing = op & 1;
		goto move;
	case 0x2b: /* movntps */
		if (pp > 1) return STEP_UNKNOWN;
		n = full;
		storing = 1;
		goto move;
	case 0x6f:
	case 0x7f: /* movdqa movdqu, vmovdqu8 and 16 */
		if (pp == 0 || (pp == 3 && !d->evex)) return STEP_UNKNOWN;
		n = full;
		storing = op == 0x7f;
		goto move;
	case 0xe7: /* movntdq */
		if (pp != 1) return STEP_UNKNOWN;
		n = full;
		storing = 1;
		goto move;
	case 0xf0: /* lddqu */
		if (pp != 3 || d->evex) return STEP_UNKNOWN;
		n = full;
		goto move;
	case 0x6e: /* movd movq */
		if (pp != 1) return STEP_UNKNOWN;
		n = d->w ? 8 : 4;
		goto move;
	case 0x7e:
		if (pp == 2) n = 8;
		else if (pp == 1) {
			n = d->w ? 8 : 4;
			storing = 1;
		} else return STEP_UNKNOWN;
		goto move;
	case 0xd6: /* movq */
		if (pp != 1) return STEP_UNKNOWN;
		n = 8;
		storing = 1;
	move : {
		if (!modrm(d, 0, d->evex ? n : 1)) return STEP_UNKNOWN;
		d->reg |= d->r2 << 4;
		if (d->mask) {
			int element = op == 0x6f || op == 0x7f ? (pp == 3 ? (d->w ? 2 : 1) : (d->w ? 8 : 4)) : pp == 0 || pp == 2 ? 4 : 8;
			return masked_move(d, n, element, storing);
		}
		if (storing) return vector_store(d, 0, n);
		return vector_load(d, n, n < 16);
	}
	case 0x12:
	case 0x13:
	case 0x16:
	case 0x17: /* movlps movhps and pd */
		if (pp > 1 || (d->l && three)) {
			if (op == 0x12 && pp == 3 && full == 16) { /* movddup */
				if (!modrm(d, 0, d->evex ? 8 : 1)) return STEP_UNKNOWN;
				d->reg |= d->r2 << 4;
				if (load(d, d->ea, b, 8)) return STEP_FAILED;
				memcpy(b + 8, b, 8);
				return vector_write(d, b, 16, 0);
			}
			return STEP_UNKNOWN;
		}
		if (!modrm(d, 0, d->evex ? 8 : 1)) return STEP_UNKNOWN;
		d->reg |= d->r2 << 4;
		if (op & 1) return vector_store(d, op == 0x17 ? 8 : 0, 8);
		find_xsave(d, &s);
		vector_get(&s, three ? d->v : d->reg, b);
		if (load(d, d->ea, b + (op == 0x16 ? 8 : 0), 8)) return STEP_FAILED;
		return vector_write(d, b, 16, 0);
	case 0xc4: /* pinsrw */
		if (pp != 1 || !modrm(d, 1, d->evex ? 2 : 1)) return STEP_UNKNOWN;
		d->reg |= d->r2 << 4;
		find_xsave(d, &s);
		vector_get(&s, three ? d->v : d->reg, b);
		if (load(d, d->ea, b + (*d->p & 7) * 2, 2)) return STEP_FAILED;
		d->p++;
		return vector_write(d, b, 16, 0);
	case 0x74: /* what comparing and searching routines use on bytes */
	case 0xda:
	case 0xde:
	case 0xf8:
	case 0xfc:
	case 0xdb:
	case 0xdf:
	case 0xeb:
	case 0xef: {
		uint8_t m[64];
		if (pp != 1 || d->evex || !modrm(d, 0, 1)) return STEP_UNKNOWN;
		find_xsave(d, &s);
		vector_get(&s, three ? d->v : d->reg, b);
		if (load(d, d->ea, m, full)) return STEP_FAILED;
		for (int i = 0; i < full; i++) b[i] = (uint8_t)byte_operation(op, b[i], m[i]);
		return vector_write(d, b, full, 0);
	}
	}
	return STEP_UNKNOWN;
}

static int vector_map2(struct insn *d, int op, int pp)
{
	int full = d->evex ? 16 << d->l : d->l ? 32 : 16;
	if (d->mask || d->broadcast) return STEP_UNKNOWN;
	if (op == 0x2a && pp == 1) { /* movntdqa */
		if (!modrm(d, 0, d->evex ? full : 1)) return STEP_UNKNOWN;
		d->reg |= d->r2 << 4;
		return vector_load(d, full, 0);
	}
	if (pp == 1 && (d->vex || d->evex)) {
		static const struct {
			uint8_t op, n;
		} broadcast[] = {{0x18, 4}, {0x19, 8}, {0x1a, 16}, {0x58, 4}, {0x59, 8}, {0x5a, 16}, {0x78, 1}, {0x79, 2}};
		for (unsigned i = 0; i < sizeof broadcast / sizeof *broadcast; i++) {
			if (broadcast[i].op != op) continue;
			int n = broadcast[i].n;
			uint8_t b[64];
			if (!modrm(d, 0, d->evex ? n : 1)) return STEP_UNKNOWN;
			d->reg |= d->r2 << 4;
			if (load(d, d->ea, b, n)) return STEP_FAILED;
			for (int k = n; k < full; k += n) memcpy(b + k, b, (size_t)n);
			return vector_write(d, b, full, 0);
		}
	}
	return STEP_UNKNOWN;
}

static int vector_map3(struct insn *d, int op, int pp)
{
	struct xsave s;
	uint8_t b[64];
	int three = d->vex || d->evex, n, places;
	if (pp != 1 || d->mask || d->broadcast) return STEP_UNKNOWN;
	switch (op) {
	case 0x14: n = 1; break;                 /* pextrb */
	case 0x15: n = 2; break;                 /* pextrw */
	case 0x16: n = d->w ? 8 : 4; break;      /* pextrd pextrq */
	case 0x17: n = 4; break;                 /* extractps */
	case 0x20: n = 1; break;                 /* pinsrb */
	case 0x22: n = d->w ? 8 : 4; break;      /* pinsrd pinsrq */
	case 0x18: case 0x38: case 0x19: case 0x39: /* insert and extract 128 bits */
		if (!three || !d->l) return STEP_UNKNOWN;
		n = 16;
		break;
	default: return STEP_UNKNOWN;
	}
	if (!modrm(d, 1, d->evex ? n : 1)) return STEP_UNKNOWN;
	d->reg |= d->r2 << 4;
	int full = n == 16 ? (d->evex ? 16 << d->l : 32) : 16;
	places = full / n;
	int at = (*d->p++ & (places - 1)) * n;
	if (op < 0x18 || op == 0x19 || op == 0x39) return vector_store(d, at, n);
	find_xsave(d, &s);
	vector_get(&s, three ? d->v : d->reg, b);
	if (load(d, d->ea, b + at, n)) return STEP_FAILED;
	return vector_write(d, b, full, 0);
}

/* ---- two-byte opcodes ---- */

static int bit_operation(struct insn *d, int kind, uint64_t index, int size)
{
	uint64_t v, bit = 1ull << (index & (unsigned)(size * 8 - 1));
	LOAD(v, size);
	uint64_t was = !!(v & bit);
	if (kind == 5) v |= bit;
	if (kind == 6) v &= ~bit;
	if (kind == 7) v ^= bit;
	if (kind != 4) STORE(v, size);
	FLAGS = (greg_t)(((uint64_t)FLAGS & ~1ull) | was);
	return done(d);
}

static int two_byte(struct insn *d, int op)
{
	int pp = d->rep ? 2 : d->repne ? 3 : d->opsize16 ? 1 : 0, size = d->size;
	uint64_t a;
	switch (op) {
	case 0x40 ... 0x4f: /* cmovcc: loads in any case */
		MODRM(0);
		LOAD(a, size);
		set(d, d->reg, size, condition(d, op & 15) ? a : get(d, d->reg, size));
		return done(d);
	case 0x90 ... 0x9f:
		MODRM(0);
		STORE((uint64_t)condition(d, op & 15), 1);
		return done(d);
	case 0xa3:
	case 0xab:
	case 0xb3:
	case 0xbb: { /* bt bts btr btc: the register may point beyond the operand */
		MODRM(0);
		int64_t index = extend(get(d, d->reg, size), size);
		d->ea += (uint64_t)((index >> (size == 2 ? 4 : size == 4 ? 5 : 6)) * size);
		return bit_operation(d, 4 + (op >> 3 & 3), (uint64_t)index, size);
	}
	case 0xba:
		MODRM(1);
		if ((d->reg & 7) < 4) return STEP_UNKNOWN;
		a = *d->p++;
		return bit_operation(d, d->reg & 7, a, size);
	case 0xaf:
		MODRM(0);
		LOAD(a, size);
		set(d, d->reg, size, multiply(d, get(d, d->reg, size), a, size));
		return done(d);
	case 0xb0:
	case 0xb1: { /* cmpxchg */
		if (!(op & 1)) size = 1;
		MODRM(0);
		LOAD(a, size);
		greg_t before = FLAGS;
		arithmetic(d, CMP, cut_to((uint64_t)GPR(0), size), a, size);
		uint64_t equal = (uint64_t)FLAGS >> 6 & 1, v = equal ? get(d, d->reg, size) : a;
		if (store(d, d->ea, &v, size)) {
			FLAGS = before;
			return STEP_FAILED;
		}
		if (!equal) set(d, 0, size, a);
		return done(d);
	}
	case 0xc0:
	case 0xc1: { /* xadd */
		if (!(op & 1)) size = 1;
		MODRM(0);
		LOAD(a, size);
		greg_t before = FLAGS;
		uint64_t v = arithmetic(d, ADD, a, get(d, d->reg, size), size);
		if (store(d, d->ea, &v, size)) {
			FLAGS = before;
			return STEP_FAILED;
		}
		set(d, d->reg, size, a);
		return done(d);
	}
	case 0xb6:
	case 0xb7:
	case 0xbe:
	case 0xbf: {
		int n = op & 1 ? 2 : 1;
		MODRM(0);
		LOAD(a, n);
		set(d, d->reg, size, op >= 0xbe ? (uint64_t)extend(a, n) : a);
		return done(d);
	}
	case 0xae: /* clflush clflushopt clwb: nothing is cached */
		if (d->rep || d->repne || (*d->p >> 3 & 7) < (d->opsize16 ? 6 : 7)) return STEP_UNKNOWN;
		MODRM(0);
		return done(d);
	case 0xb8:
	case 0xbc:
	case 0xbd: { /* popcnt tzcnt lzcnt */
		if (!d->rep) return STEP_UNKNOWN;
		MODRM(0);
		LOAD(a, size);
		uint64_t v, bits = (uint64_t)size * 8;
		if (op == 0xb8) v = (uint64_t)__builtin_popcountll(a);
		else if (op == 0xbc) v = a ? (uint64_t)__builtin_ctzll(a) : bits;
		else v = a ? (uint64_t)__builtin_clzll(a) - (64 - bits) : bits;
		uint64_t f = (uint64_t)FLAGS;
		if (op == 0xb8) f = (f & ~ARITHMETIC_FLAGS) | (a ? 0 : 0x40);
		else f = (f & ~0x41ull) | (v == bits ? 1 : 0) | (v ? 0 : 0x40);
		FLAGS = (greg_t)f;
		set(d, d->reg, size, v);
		return done(d);
	}
	case 0xc3: /* movnti */
		if (pp) return STEP_UNKNOWN;
		MODRM(0);
		STORE(get(d, d->reg, size), size);
		return done(d);
	}
	return vector_map1(d, op, pp);
}

static int map_0f38(struct insn *d, int op)
{
	int pp = d->rep ? 2 : d->repne ? 3 : d->opsize16 ? 1 : 0;
	uint64_t a;
	if ((op == 0xf0 || op == 0xf1) && pp <= 1) { /* movbe */
		int size = d->size;
		MODRM(0);
		a = get(d, d->reg, size);
		if (op == 0xf0) {
			LOAD(a, size);
		}
		a = __builtin_bswap64(a) >> (64 - size * 8);
		if (op == 0xf1) STORE(a, size);
		else set(d, d->reg, size, a);
		return done(d);
	}
	if (op == 0xf9 && pp == 0) { /* movdiri */
		int size = d->w ? 8 : 4;
		MODRM(0);
		STORE(get(d, d->reg, size), size);
		return done(d);
	}
	if (op == 0xf8 && pp == 1) { /* movdir64b: from the memory operand to where the register points, always ES */
		uint8_t line[64];
		MODRM(0);
		uint64_t to = (uint64_t)GPR(d->reg);
		if (d->addr32) to &= 0xffffffff;
		if (load(d, d->ea, line, 64) || store(d, to, line, 64)) return STEP_FAILED;
		return done(d);
	}
	return vector_map2(d, op, pp);
}

/* shlx sarx shrx, andn, bextr, rorx: the VEX forms on general registers */
static int bit_field(struct insn *d, int op)
{
	int size = d->w ? 8 : 4, bits = size * 8;
	uint64_t a, by = get(d, d->v, size), f = (uint64_t)FLAGS & ~ARITHMETIC_FLAGS;
	if (op == 0xf2 ? d->pp != 0 : op == 0xf0 ? d->pp != 3 : 0) return STEP_UNKNOWN;
	MODRM(op == 0xf0);
	LOAD(a, size);
	int n = (int)((op == 0xf0 ? *d->p++ : by) & (unsigned)(bits - 1));
	if (op == 0xf0) a = n ? a >> n | a << (bits - n) : a;
	else if (op == 0xf2) {
		a &= ~by;
		FLAGS = (greg_t)(f | (cut_to(a, size) >> (bits - 1) << 7) | (cut_to(a, size) ? 0 : 0x40));
	} else if (d->pp == 1) a <<= n;
	else if (d->pp == 2) a = (uint64_t)(extend(a, size) >> n);
	else if (d->pp == 3) a >>= n;
	else {
		unsigned first = by & 0xff, length = by >> 8 & 0xff;
		a = first < (unsigned)bits ? a >> first : 0;
		if (length < 64) a &= (1ull << length) - 1;
		FLAGS = (greg_t)(f | (cut_to(a, size) ? 0 : 0x40));
	}
	set(d, d->reg, size, cut_to(a, size));
	return done(d);
}

/* ---- the whole ---- */

static int vector_prefixed(struct insn *d, int first)
{
	uint8_t a = *d->p++, c;
	if (first == 0xc5) {
		d->r = !(a & 0x80);
		d->map = 1;
		c = a;
	} else {
		d->r = !(a & 0x80);
		d->x = !(a & 0x40);
		d->b = !(a & 0x20);
		d->map = a & (first == 0x62 ? 7 : 31);
		c = *d->p++;
		d->w = c >> 7;
	}
	d->rex = 1;
	d->v = ~(c >> 3) & 15;
	d->pp = c & 3;
	if (first == 0x62) {
		uint8_t e = *d->p++;
		d->evex = 1;
		if ((a & 8) || !(c & 4)) return STEP_UNKNOWN;
		d->r2 = !(a & 0x10);
		d->zeroing = e >> 7;
		d->l = e >> 5 & 3;
		d->broadcast = e >> 4 & 1;
		d->v |= !(e & 8) << 4;
		d->mask = e & 7;
		if (d->l == 3) return STEP_UNKNOWN;
	} else {
		d->vex = 1;
		d->l = c >> 2 & 1;
	}
	int op = *d->p++;
	if (d->vex && !d->l && ((d->map == 2 && (op == 0xf2 || op == 0xf7)) || (d->map == 3 && op == 0xf0))) return bit_field(d, op);
	if (d->map == 1) return vector_map1(d, op, d->pp);
	if (d->map == 2) return vector_map2(d, op, d->pp);
	if (d->map == 3) return vector_map3(d, op, d->pp);
	return STEP_UNKNOWN;
}

int step_instruction(ucontext_t *uc, const struct memory *memory, int *error)
{
	struct insn it, *d = &it;
	memset(d, 0, sizeof *d);
	d->uc = uc;
	d->g = uc->uc_mcontext.gregs;
	d->mem = memory;
	d->error = error;
	d->start = d->p = (const uint8_t *)(uintptr_t)d->g[REG_RIP];
	int op;
	for (;;) {
		op = *d->p++;
		if (d->p - d->start > 14) return STEP_UNKNOWN;
		if (op == 0x66) d->opsize16 = 1;
		else if (op == 0x67) d->addr32 = 1;
		else if (op == 0xf2) d->repne = 1, d->rep = 0;
		else if (op == 0xf3) d->rep = 1, d->repne = 0;
		else if (op == 0x64) d->segment = 4;
		else if (op == 0x65) d->segment = 5;
		else if (op == 0xf0 || op == 0x2e || op == 0x36 || op == 0x3e || op == 0x26) continue; /* lock; segments without a base */
		else break;
	}
	if (op >= 0x40 && op < 0x50) {
		d->rex = 1;
		d->w = op >> 3 & 1;
		d->r = op >> 2 & 1;
		d->x = op >> 1 & 1;
		d->b = op & 1;
		op = *d->p++;
	}
	d->size = d->w ? 8 : d->opsize16 ? 2 : 4;
	if (op == 0xc4 || op == 0xc5 || op == 0x62) return vector_prefixed(d, op);
	if (op != 0x0f) return one_byte(d, op);
	op = *d->p++;
	if (op == 0x38) return map_0f38(d, *d->p++);
	if (op == 0x3a) return vector_map3(d, *d->p++, d->opsize16 ? 1 : 0);
	return two_byte(d, op);
}
#else
int step_instruction(ucontext_t *uc, const struct memory *memory, int *error)
{
	(void)uc;
	(void)memory;
	(void)error;
	return STEP_UNKNOWN;
}
#endif
