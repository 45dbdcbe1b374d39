/* SIGSEGV: an access to a trapped mapping is carried out by the box; all else is the program's. */
#include "box.h"
#include "decode.h"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ucontext.h>

#define BLOCK_ALL (~0ull)

typedef int (*sigaction_fn)(int, const struct sigaction *, struct sigaction *);
static sigaction_fn real_sigaction;
static struct sigaction programs; /* what the program wants for SIGSEGV */
static _Atomic int installed;     /* 1: ours is in the kernel, `programs` is the program's */
static _Atomic int action_lock;   /* taken with all signals blocked */

static uint64_t action_take(void)
{
	uint64_t all = BLOCK_ALL, old = 0;
	int zero = 0;
	SYS(rt_sigprocmask, SIG_SETMASK, &all, &old, 8);
	while (!atomic_compare_exchange_weak(&action_lock, &zero, 1)) {
		zero = 0;
		SYS(sched_yield);
	}
	return old;
}

static void action_give(uint64_t old)
{
	atomic_store(&action_lock, 0);
	SYS(rt_sigprocmask, SIG_SETMASK, &old, 0, 8);
}

/* ---- the device's side of one access ---- */

struct access {
	int failed;
	uint64_t at;      /* of the failure */
	int is_prot;      /* the program's own protection forbids it */
};

static int trapped_load(void *context, uint64_t address, void *to, unsigned size)
{
	struct access *x = context;
	struct mapping m;
	x->at = address;
	if (!mapping_at(address, &m)) {
		memcpy(to, (const void *)(uintptr_t)address, size);
		return 0;
	}
	if (address + size > m.end) return -EFAULT;
	if (!(m.prot & (PROT_READ | PROT_WRITE))) {
		x->is_prot = 1;
		return -EACCES;
	}
	struct call c = {.q = {.op = OP_TRAP_READ, .handle = m.handle, .a = m.offset + (address - m.start), .b = size}, .in = to, .in_length = size};
	int64_t r = box_call(&c);
	return r < 0 ? (int)r : c.got < size ? -EIO : 0;
}

static int trapped_store(void *context, uint64_t address, const void *from, unsigned size)
{
	struct access *x = context;
	struct mapping m;
	x->at = address;
	if (!mapping_at(address, &m)) {
		memcpy((void *)(uintptr_t)address, from, size);
		return 0;
	}
	if (address + size > m.end) return -EFAULT;
	if (!(m.prot & PROT_WRITE)) {
		x->is_prot = 1;
		return -EACCES;
	}
	struct call c = {.q = {.op = OP_TRAP_WRITE, .handle = m.handle, .a = m.offset + (address - m.start), .b = size}, .out = from, .out_length = size};
	int64_t r = box_call(&c);
	return r < 0 ? (int)r : 0;
}

/* ---- signals for the program ---- */

static void default_action(int sig)
{
	struct sigaction d;
	memset(&d, 0, sizeof d);
	d.sa_handler = SIG_DFL;
	real_sigaction(sig, &d, 0);
}

/* The kernel's SIGBUS for a device that does not answer; it arrives when our handler returns. */
static void raise_bus_error(ucontext_t *uc, uint64_t address)
{
	struct sigaction now;
	uint64_t *mask = (uint64_t *)(void *)&uc->uc_sigmask, bit = 1ull << (SIGBUS - 1);
	real_sigaction(SIGBUS, 0, &now);
	if ((*mask & bit) || now.sa_handler == SIG_IGN) { /* a fault cannot be put off */
		default_action(SIGBUS);
		*mask &= ~bit;
	}
	siginfo_t info;
	memset(&info, 0, sizeof info);
	info.si_signo = SIGBUS;
	info.si_code = BUS_ADRERR;
	info.si_addr = (void *)(uintptr_t)address;
	if (SYS(rt_tgsigqueueinfo, SYS(getpid), SYS(gettid), SIGBUS, &info) < 0) {
		default_action(SIGBUS);
		SYS(tgkill, SYS(getpid), SYS(gettid), SIGBUS);
	}
}

/* As if the kernel had called the program's handler instead of ours. */
static void chain(int sig, siginfo_t *info, ucontext_t *uc)
{
	uint64_t none = action_take();
	struct sigaction a = programs;
	int sent = info->si_code <= 0; /* by kill or raise, not by a fault */
	if (a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN && (a.sa_flags & SA_RESETHAND)) {
		programs.sa_handler = SIG_DFL;
		programs.sa_flags &= ~SA_SIGINFO;
	}
	action_give(none);
	if (!(a.sa_flags & SA_SIGINFO) && a.sa_handler == SIG_IGN && sent) return;
	if (!(a.sa_flags & SA_SIGINFO) && (a.sa_handler == SIG_DFL || a.sa_handler == SIG_IGN)) {
		default_action(SIGSEGV);
		if (sent) SYS(tgkill, SYS(getpid), SYS(gettid), SIGSEGV); /* else the instruction faults again */
		return;
	}
	uint64_t mask = *(uint64_t *)(void *)&uc->uc_sigmask | *(uint64_t *)(void *)&a.sa_mask;
	if (!(a.sa_flags & SA_NODEFER)) mask |= 1ull << (SIGSEGV - 1);
	SYS(rt_sigprocmask, SIG_SETMASK, &mask, 0, 8);
	if (a.sa_flags & SA_SIGINFO) a.sa_sigaction(sig, info, uc);
	else a.sa_handler(sig);
}

static void unknown(ucontext_t *uc, uint64_t address, const struct mapping *m)
{
	char line[512];
#if defined(__x86_64__)
	const uint8_t *code = (const uint8_t *)(uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
#else
	const uint8_t *code = 0;
#endif
	int n = snprintf(line, sizeof line, "vfiobox: cannot carry out the instruction at %p:", (const void *)code);
	/* up to the end of its page: what follows may not be there */
	for (int i = 0; code && i < 15 && (i == 0 || ((uintptr_t)(code + i) & 4095)); i++) n += snprintf(line + n, sizeof line - (size_t)n, " %02x", code[i]);
	snprintf(line + n, sizeof line - (size_t)n, ", access to 0x%llx, offset 0x%llx of the device mapping 0x%llx-0x%llx\n", (unsigned long long)address,
	         (unsigned long long)(m->offset + (address - m->start)), (unsigned long long)m->start, (unsigned long long)m->end);
	say(line);
	SYS(exit_group, 99);
}

static void on_segv(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	int saved = errno;
	struct mapping m;
	uint64_t address = (uintptr_t)info->si_addr;
	if (info->si_code <= 0 || info->si_code == SI_KERNEL || !mapping_at(address, &m)) {
		chain(sig, info, uc);
		errno = saved;
		return;
	}
#if defined(__x86_64__)
	if ((uintptr_t)uc->uc_mcontext.gregs[REG_RIP] >= m.start && (uintptr_t)uc->uc_mcontext.gregs[REG_RIP] < m.end) {
		chain(sig, info, uc); /* a jump into the device */
		errno = saved;
		return;
	}
#endif
	int error = 0;
	struct access x = {0, address, 0};
	struct memory memory = {trapped_load, trapped_store, &x};
	int r = step_instruction(uc, &memory, &error);
	if (r == STEP_UNKNOWN) unknown(uc, address, &m);
	if (r == STEP_FAILED) {
		if (x.is_prot) {
			info->si_code = SEGV_ACCERR;
			info->si_addr = (void *)(uintptr_t)x.at;
			chain(sig, info, uc);
		} else if (error == -EFAULT) unknown(uc, address, &m);
		else raise_bus_error(uc, x.at);
	}
	errno = saved;
}

int trap_install(void)
{
#if defined(__x86_64__)
	if (atomic_load(&installed)) return 0;
	uint64_t old = action_take();
	if (!atomic_load(&installed)) {
		struct sigaction a;
		memset(&a, 0, sizeof a);
		a.sa_sigaction = on_segv;
		a.sa_flags = SA_SIGINFO | SA_ONSTACK;
		memset(&a.sa_mask, 0xff, sizeof a.sa_mask);
		real_sigaction(SIGSEGV, 0, &programs);
		real_sigaction(SIGSEGV, &a, 0);
		atomic_store(&installed, 1);
	}
	action_give(old);
	return 0;
#else
	static _Atomic int said;
	(void)on_segv;
	if (!atomic_exchange(&said, 1)) say("vfiobox: registers can be trapped on x86-64 only; this mapping is refused\n");
	return -ENODEV;
#endif
}

/* A blocked SIGSEGV makes a trapped access deadly: threads that block every signal are common. */
static void never_block(void *mask)
{
	uint64_t m;
	memcpy(&m, mask, sizeof m);
	m &= ~(1ull << (SIGSEGV - 1));
	memcpy(mask, &m, sizeof m);
}

void trap_init(void)
{
	real_sigaction = (sigaction_fn)real_symbol("sigaction");
	uint64_t segv = 1ull << (SIGSEGV - 1);
	SYS(rt_sigprocmask, SIG_UNBLOCK, &segv, 0, 8);
}

/* ---- wrappers ---- */

EXPORT int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	if (!box_active) return REAL(sigaction)(sig, act, old);
	if (sig != SIGSEGV || !atomic_load(&installed)) {
		struct sigaction a;
		if (act && sig != SIGSEGV) {
			a = *act;
			never_block(&a.sa_mask);
			act = &a;
		}
		return REAL(sigaction)(sig, act, old);
	}
	struct sigaction fresh;
	if (act) fresh = *act;
	uint64_t mask = action_take();
	struct sigaction was = programs;
	if (act) programs = fresh;
	action_give(mask);
	if (old) *old = was;
	return 0;
}

extern int __sigaction(int sig, const struct sigaction *act, struct sigaction *old);
EXPORT int __sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	return sigaction(sig, act, old);
}

static sighandler_t signal_with(int sig, sighandler_t handler, int flags)
{
	struct sigaction a, old;
	memset(&a, 0, sizeof a);
	a.sa_handler = handler;
	a.sa_flags = flags;
	if (sig == SIGSEGV && !(flags & SA_RESETHAND)) sigaddset(&a.sa_mask, sig);
	return sigaction(sig, &a, &old) < 0 ? SIG_ERR : old.sa_handler;
}

#define SIGNAL(name, flags)                                                                                                                 \
	extern sighandler_t name(int sig, sighandler_t handler);                                                                            \
	EXPORT sighandler_t name(int sig, sighandler_t handler)                                                                             \
	{                                                                                                                                   \
		if (sig != SIGSEGV || !atomic_load(&installed)) return REAL(name)(sig, handler);                                            \
		return signal_with(sig, handler, flags);                                                                                    \
	}
SIGNAL(signal, SA_RESTART)
SIGNAL(bsd_signal, SA_RESTART)
SIGNAL(ssignal, SA_RESTART)
SIGNAL(sysv_signal, SA_RESETHAND | SA_NODEFER)
SIGNAL(__sysv_signal, SA_RESETHAND | SA_NODEFER)

#define MASK(name)                                                                                                                          \
	EXPORT int name(int how, const sigset_t *set, sigset_t *old)                                                                        \
	{                                                                                                                                   \
		sigset_t s;                                                                                                                 \
		if (set && box_active && how != SIG_UNBLOCK) {                                                                              \
			s = *set;                                                                                                           \
			never_block(&s);                                                                                                    \
			set = &s;                                                                                                           \
		}                                                                                                                           \
		return REAL(name)(how, set, old);                                                                                           \
	}
MASK(sigprocmask)
MASK(pthread_sigmask)
