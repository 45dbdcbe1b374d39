/*
 * syscall(2) by programs that do not use libc's wrappers for everything (libuv's statx, tests, language runtimes).
 * The numbers that may concern the box go to our wrappers, all others straight to the kernel.
 */
#include "box.h"
#if defined(__x86_64__)
#include <dirent.h>
#include <sys/mman.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

unsigned char syscall_ours[512] = {
    [SYS_ioctl] = 1,    [SYS_open] = 1,     [SYS_openat] = 1,   [SYS_creat] = 1,      [SYS_read] = 1,     [SYS_write] = 1,   [SYS_readv] = 1,    [SYS_writev] = 1,
    [SYS_pread64] = 1,  [SYS_pwrite64] = 1, [SYS_mmap] = 1,     [SYS_munmap] = 1,     [SYS_mprotect] = 1, [SYS_mremap] = 1,  [SYS_stat] = 1,     [SYS_lstat] = 1,
    [SYS_fstat] = 1,    [SYS_statx] = 1,    [SYS_access] = 1,   [SYS_newfstatat] = 1, [SYS_readlink] = 1, [SYS_chdir] = 1,   [SYS_faccessat] = 1, [SYS_readlinkat] = 1,
    [SYS_fchdir] = 1,   [SYS_dup] = 1,      [SYS_dup2] = 1,     [SYS_dup3] = 1,       [SYS_close] = 1,    [SYS_close_range] = 1, [SYS_execve] = 1, [SYS_rt_sigprocmask] = 1,
    [SYS_pidfd_getfd] = 1, [SYS_recvmsg] = 1,
};

__attribute__((used)) static long failed_syscall(long r)
{
	return finish(r);
}

__attribute__((used)) static long our_syscall(long n, long a, long b, long c, long d, long e, long f)
{
	if (!box_active) return finish(sys6(n, a, b, c, d, e, f));
	switch (n) {
	case SYS_ioctl: return ioctl((int)a, (unsigned long)b, (void *)c);
	case SYS_open: return open((const char *)a, (int)b, (mode_t)c);
	case SYS_openat: return openat((int)a, (const char *)b, (int)c, (mode_t)d);
	case SYS_creat: return creat((const char *)a, (mode_t)b);
	case SYS_read: return read((int)a, (void *)b, (size_t)c);
	case SYS_write: return write((int)a, (const void *)b, (size_t)c);
	case SYS_readv: return readv((int)a, (const struct iovec *)b, (int)c);
	case SYS_writev: return writev((int)a, (const struct iovec *)b, (int)c);
	case SYS_pread64: return pread((int)a, (void *)b, (size_t)c, d);
	case SYS_pwrite64: return pwrite((int)a, (const void *)b, (size_t)c, d);
	case SYS_mmap: return (long)mmap((void *)a, (size_t)b, (int)c, (int)d, (int)e, f);
	case SYS_munmap: return munmap((void *)a, (size_t)b);
	case SYS_mprotect: return mprotect((void *)a, (size_t)b, (int)c);
	case SYS_mremap: return (long)mremap((void *)a, (size_t)b, (size_t)c, (int)d, (void *)e);
	case SYS_stat: return stat((const char *)a, (struct stat *)b);
	case SYS_lstat: return lstat((const char *)a, (struct stat *)b);
	case SYS_fstat: return fstat((int)a, (struct stat *)b);
	case SYS_newfstatat: return fstatat((int)a, (const char *)b, (struct stat *)c, (int)d);
	case SYS_statx: return statx((int)a, (const char *)b, (int)c, (unsigned)d, (struct statx *)e);
	case SYS_access: return access((const char *)a, (int)b);
	case SYS_faccessat: return faccessat((int)a, (const char *)b, (int)c, 0);
	case SYS_readlink: return readlink((const char *)a, (char *)b, (size_t)c);
	case SYS_readlinkat: return readlinkat((int)a, (const char *)b, (char *)c, (size_t)d);
	case SYS_chdir: return chdir((const char *)a);
	case SYS_fchdir: return fchdir((int)a);
	case SYS_dup: return dup((int)a);
	case SYS_dup2: return dup2((int)a, (int)b);
	case SYS_dup3: return dup3((int)a, (int)b, (int)c);
	case SYS_close: return close((int)a);
	case SYS_close_range: return close_range((unsigned)a, (unsigned)b, (int)c);
	case SYS_execve: return execve((const char *)a, (char *const *)b, (char *const *)c);
	case SYS_recvmsg: return recvmsg((int)a, (struct msghdr *)b, (int)c);
	case SYS_pidfd_getfd: {
		long fd = finish(sys6(n, a, b, c, 0, 0, 0));
		if (fd >= 0) {
			any_handle = 1;
			hint_set(handle_hint, (int)fd);
		}
		return fd;
	}
	default: { /* rt_sigprocmask: SIGSEGV stays open, for trapped registers */
		uint64_t mask;
		if (b && a != SIG_UNBLOCK && d == 8) {
			mask = *(uint64_t *)b & ~(1ull << (SIGSEGV - 1));
			return finish(sys6(n, a, (long)&mask, c, d, 0, 0));
		}
		return finish(sys6(n, a, b, c, d, e, f));
	}
	}
}

/* No frame of its own: a raw clone may return on another stack. */
__asm__(".text\n"
        ".globl syscall\n"
        ".type syscall, @function\n"
        ".p2align 4\n"
        "syscall:\n"
        "	cmpq $512, %rdi\n"
        "	jae 1f\n"
        "	leaq syscall_ours(%rip), %rax\n"
        "	cmpb $0, (%rax,%rdi)\n"
        "	jne our_syscall\n"
        "1:	movq %rdi, %rax\n"
        "	movq %rsi, %rdi\n"
        "	movq %rdx, %rsi\n"
        "	movq %rcx, %rdx\n"
        "	movq %r8, %r10\n"
        "	movq %r9, %r8\n"
        "	movq 8(%rsp), %r9\n"
        "	syscall\n"
        "	cmpq $-4095, %rax\n"
        "	jae 2f\n"
        "	ret\n"
        "2:	movq %rax, %rdi\n"
        "	jmp failed_syscall\n"
        ".size syscall, .-syscall\n");
#endif
