/*
 * Writing to a handle with stdio. The write inside libc cannot be wrapped, so it would reach the box as a plain message and the
 * error would be lost: `echo 0000:00:04.0 > /sys/bus/pci/drivers/vfio-pci/bind` must fail when the bind fails.
 * Therefore what a stream has buffered is taken out before libc flushes it.
 */
#include "box.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#if defined(__GLIBC__)
#define UNBUFFERED 0x2
#define ERROR_SEEN 0x20
#define LINE_BUFFERED 0x200
#define WRITING 0x800

static int on_handle(FILE *f, uint64_t *id)
{
	if (likely(!any_handle) || !f) return 0;
	int fd = fileno_unlocked(f);
	return fd >= 0 && hint_get(handle_hint, fd) && handle_of(fd, id);
}

static int send_out(FILE *f, uint64_t id, const char *p, size_t n)
{
	while (n) {
		int64_t r = box_write(id, p, n, FILE_POSITION);
		if (r <= 0) {
			f->_flags |= ERROR_SEEN;
			errno = r < 0 ? (int)-r : EIO;
			return -1;
		}
		p += r;
		n -= (size_t)r;
	}
	return 0;
}

static int drain(FILE *f)
{
	uint64_t id;
	if (likely(!on_handle(f, &id))) return 0;
	flockfile(f);
	int r = 0;
	if (f->_IO_write_ptr > f->_IO_write_base) {
		size_t n = (size_t)(f->_IO_write_ptr - f->_IO_write_base);
		f->_IO_write_ptr = f->_IO_write_base;
		r = send_out(f, id, f->_IO_write_base, n);
	}
	funlockfile(f);
	return r;
}

EXPORT int fflush(FILE *f)
{
	if (drain(f)) return EOF;
	return REAL(fflush)(f);
}
EXPORT int fflush_unlocked(FILE *f)
{
	if (drain(f)) return EOF;
	return REAL(fflush_unlocked)(f);
}
EXPORT int fclose(FILE *f)
{
	int bad = drain(f), e = errno, r = REAL(fclose)(f);
	if (!bad) return r;
	errno = e;
	return EOF;
}

#undef fwrite_unlocked
#define FWRITE(name)                                                                                                                        \
	EXPORT size_t name(const void *p, size_t size, size_t n, FILE *f)                                                                   \
	{                                                                                                                                   \
		uint64_t id;                                                                                                                \
		if (likely(!any_handle) || !(f->_flags & UNBUFFERED) || !size || !n || !on_handle(f, &id)) return REAL(name)(p, size, n, f);  \
		return send_out(f, id, p, size * n) ? 0 : n;                                                                                \
	}
FWRITE(fwrite)
FWRITE(fwrite_unlocked)

/* bash's stdout is line-buffered: while it is a handle it must wait for bash's fflush, which looks at the result. */
void stdout_moved(int from)
{
	static _Atomic int taken;
	uint64_t id;
	if (!stdout) return;
	if (hint_get(handle_hint, from) && handle_of(from, &id)) {
		if (stdout->_flags & LINE_BUFFERED) {
			stdout->_flags &= ~LINE_BUFFERED;
			/* A line-buffered stream that was written to has no room left on purpose, and would flush at every word. */
			if ((stdout->_flags & WRITING) && stdout->_IO_buf_base) stdout->_IO_write_end = stdout->_IO_buf_end;
			taken = 1;
		}
	} else if (atomic_exchange(&taken, 0)) {
		stdout->_flags |= LINE_BUFFERED;
		if (stdout->_flags & WRITING) stdout->_IO_write_end = stdout->_IO_write_ptr;
	}
}
#else
void stdout_moved(int from)
{
	(void)from;
}
#endif
