/* Wrappers of calls on paths. */
#include "box.h"
#include <dirent.h>
#include <glob.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define HAS_MODE(flags) (((flags)&O_CREAT) || ((flags)&O_TMPFILE) == O_TMPFILE)

/* What /proc/self/fd/N says of the handle; `name` has PATH_MAX bytes. */
static int ask_name(uint64_t id, char *name)
{
	struct call c = {.q = {.op = OP_NAME, .handle = id}, .in = name, .in_length = PATH_MAX - 1};
	if (box_call(&c) < 0) return 0;
	name[c.got] = 0;
	return name[0] != 0;
}

/* ---- open ---- */

int64_t open_in_box(const struct place *w, int flags, unsigned mode)
{
	struct call c = {
	    .q = {.op = OP_OPEN, .a = (uint32_t)flags, .b = mode}, .out = w->path, .out_length = strlen(w->path) + 1};
	int64_t r = box_call(&c);
	if (c.fd < 0) return r == PASS ? -PASSED : r < 0 ? r : -EIO;
	if (r < 0) {
		SYS(close, c.fd);
		return r;
	}
	if (!(flags & O_CLOEXEC)) SYS(fcntl, c.fd, F_SETFD, 0);
	any_handle = 1;
	hint_set(handle_hint, c.fd);
	return c.fd;
}

static int box_open(const struct place *w, int flags, mode_t mode)
{
	int64_t r = w->kind == PLACE_OUT ? -PASSED : open_in_box(w, flags, mode);
	if (r != -PASSED) return (int)finish(r);
	int fd = REAL(openat)(AT_FDCWD, w->real, flags, mode);
	if (fd >= 0) hint_set(folder_hint, fd);
	return fd;
}

/* A real open met a socket: a node of the tree by way of a folder's descriptor, or a handle under /proc/self/fd. */
static NOINLINE int open_again(int dirfd, const char *path, int flags, mode_t mode, int saved)
{
	struct place w;
	uint64_t id;
	int n = fd_in_path(path);
	if (n >= 0) {
		if (!handle_of(n, &id) || !ask_name(id, w.path) || w.path[0] != '/') goto no;
		strcpy(w.real, w.path);
	} else if (place_of(dirfd, path, &w) != PLACE_DEV) goto no;
	int64_t r = open_in_box(&w, flags, mode);
	if (r == -PASSED) goto no;
	errno = saved;
	return (int)finish(r);
no:
	errno = ENXIO;
	return -1;
}

static NOINLINE int open_placed(int dirfd, const char *path, int flags, mode_t mode, int *done)
{
	struct place w;
	if (!place_of(dirfd, path, &w)) return -1;
	*done = 1;
	return box_open(&w, flags, mode);
}

/* /proc/PID/status, where the box has something to add. `w` is what the box is asked. */
static NOINLINE int status_place(const char *path, struct place *w)
{
	const char *p = path + 6, *digits = p;
	if (strncmp(path, "/proc/", 6)) return 0;
	long pid = 0;
	if (!strcmp(p, "self/status")) pid = SYS(getpid);
	else {
		while (*p >= '0' && *p <= '9' && p - digits < 9) pid = pid * 10 + *p++ - '0';
		if (p == digits || strcmp(p, "/status")) return 0;
	}
	w->kind = PLACE_DEV;
	snprintf(w->path, sizeof w->path, "/proc/%ld/status", pid);
	snprintf(w->real, sizeof w->real, "%s", path);
	return 1;
}

static NOINLINE int open_status(const char *path, int flags, int *done)
{
	struct place w;
	if (!status_place(path, &w)) return -1;
	*done = 1;
	return box_open(&w, flags, 0);
}

static inline int wants_status(const char *path)
{
	return unlikely(any_handle) && path && path[0] == '/' && path[1] == 'p';
}

static int do_open(int dirfd, const char *path, int flags, mode_t mode)
{
	int done = 0, saved = errno;
	if (wants_status(path) && (flags & O_ACCMODE) == O_RDONLY) {
		int r = open_status(path, flags, &done);
		if (done) return r;
	}
	if (unlikely(place_wanted(dirfd, path))) {
		int r = open_placed(dirfd, path, flags, mode, &done);
		if (done) return r;
	}
	int r = REAL(openat)(dirfd, path, flags, mode);
	if (unlikely(r < 0 && errno == ENXIO && box_active)) return open_again(dirfd, path, flags, mode, saved);
	return r;
}

#define MODE_ARGUMENT                                                                                                                       \
	mode_t mode = 0;                                                                                                                    \
	if (HAS_MODE(flags)) {                                                                                                              \
		va_list ap;                                                                                                                 \
		va_start(ap, flags);                                                                                                        \
		mode = va_arg(ap, mode_t);                                                                                                  \
		va_end(ap);                                                                                                                 \
	}

EXPORT int open(const char *path, int flags, ...)
{
	MODE_ARGUMENT
	return do_open(AT_FDCWD, path, flags, mode);
}
EXPORT int open64(const char *path, int flags, ...)
{
	MODE_ARGUMENT
	return do_open(AT_FDCWD, path, flags, mode);
}
EXPORT int openat(int dirfd, const char *path, int flags, ...)
{
	MODE_ARGUMENT
	return do_open(dirfd, path, flags, mode);
}
EXPORT int openat64(int dirfd, const char *path, int flags, ...)
{
	MODE_ARGUMENT
	return do_open(dirfd, path, flags, mode);
}
EXPORT int creat(const char *path, mode_t mode)
{
	return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
EXPORT int creat64(const char *path, mode_t mode)
{
	return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
EXPORT int __open_2(const char *path, int flags)
{
	return do_open(AT_FDCWD, path, flags, 0);
}
EXPORT int __open64_2(const char *path, int flags)
{
	return do_open(AT_FDCWD, path, flags, 0);
}
EXPORT int __openat_2(int dirfd, const char *path, int flags)
{
	return do_open(dirfd, path, flags, 0);
}
EXPORT int __openat64_2(int dirfd, const char *path, int flags)
{
	return do_open(dirfd, path, flags, 0);
}

/* ---- streams ---- */

static int flags_of(const char *mode)
{
	int flags = strchr(mode, '+') ? O_RDWR : mode[0] == 'r' ? O_RDONLY : O_WRONLY;
	if (mode[0] == 'w') flags |= O_CREAT | O_TRUNC;
	if (mode[0] == 'a') flags |= O_CREAT | O_APPEND;
	for (; *mode && *mode != ','; mode++) {
		if (*mode == 'e') flags |= O_CLOEXEC;
		if (*mode == 'x') flags |= O_EXCL;
	}
	return flags;
}

/*
 * stdio reads inside libc, where no wrapper sees it, and would find the handle's socket. What an attribute says now is put
 * into a memfd with the handle's number.
 */
static int snapshot(int fd, uint64_t id)
{
	char chunk[4096];
	long m = SYS(memfd_create, "attribute", 1 /* MFD_CLOEXEC */);
	if (m < 0) return (int)m;
	for (uint64_t at = 0; at < 1 << 24;) {
		int64_t r = box_read(id, chunk, sizeof chunk, at);
		if (r < 0) {
			SYS(close, m);
			return (int)r;
		}
		if (r == 0) break;
		SYS(pwrite64, m, chunk, r, at);
		at += (uint64_t)r;
	}
	long flags = SYS(fcntl, fd, F_GETFD, 0), r = SYS(dup3, m, fd, flags > 0 && (flags & FD_CLOEXEC) ? O_CLOEXEC : 0);
	SYS(close, m);
	hint_clear(handle_hint, fd);
	return r < 0 ? (int)r : 0;
}

/* A handle of an attribute that stdio is going to read. 0, or minus the errno. */
static NOINLINE int prepare_reading(int fd)
{
	uint64_t id;
	char name[PATH_MAX];
	if (!handle_of(fd, &id) || !ask_name(id, name) || strncmp(name, "/sys/", 5)) return 0;
	return snapshot(fd, id);
}

/* Standard input of a program that reads it with stdio: `od < config`. */
void stdin_inherited(void)
{
	if (hint_get(handle_hint, 0)) prepare_reading(0);
}

static inline int only_reads(const char *mode)
{
	return mode[0] == 'r' && !strchr(mode, '+');
}

EXPORT FILE *fdopen(int fd, const char *mode)
{
	if (maybe_handle(fd) && mode && only_reads(mode)) {
		int e = prepare_reading(fd);
		if (e < 0) {
			errno = -e;
			return 0;
		}
	}
	return REAL(fdopen)(fd, mode);
}

static NOINLINE FILE *stream_placed(const char *path, const char *mode, int *done)
{
	struct place w;
	if (!(wants_status(path) && only_reads(mode) && status_place(path, &w)) && !place_of(AT_FDCWD, path, &w)) return 0;
	*done = 1;
	int fd = box_open(&w, flags_of(mode), 0666);
	if (fd < 0) return 0;
	FILE *f = fdopen(fd, mode);
	if (!f) {
		int saved = errno;
		SYS(close, fd);
		errno = saved;
	}
	return f;
}

#define FOPEN(name)                                                                                                                         \
	EXPORT FILE *name(const char *path, const char *mode)                                                                               \
	{                                                                                                                                   \
		int done = 0;                                                                                                               \
		if (unlikely(place_wanted(AT_FDCWD, path) || wants_status(path)) && mode) {                                                 \
			FILE *f = stream_placed(path, mode, &done);                                                                         \
			if (done) return f;                                                                                                 \
		}                                                                                                                           \
		return REAL(name)(path, mode);                                                                                              \
	}
FOPEN(fopen)
FOPEN(fopen64)

static NOINLINE FILE *restream_placed(const char *path, const char *mode, FILE *stream, int *done)
{
	struct place w;
	if (!place_of(AT_FDCWD, path, &w)) return 0;
	*done = 1;
	int fd = box_open(&w, flags_of(mode), 0666);
	if (fd < 0) {
		int saved = errno;
		fclose(stream);
		errno = saved;
		return 0;
	}
	if (only_reads(mode)) prepare_reading(fd);
	FILE *f = REAL(freopen)("/dev/null", mode, stream);
	if (f) dup3(fd, fileno(f), flags_of(mode) & O_CLOEXEC);
	SYS(close, fd);
	return f;
}

#define FREOPEN(name)                                                                                                                       \
	EXPORT FILE *name(const char *path, const char *mode, FILE *stream)                                                                 \
	{                                                                                                                                   \
		int done = 0;                                                                                                               \
		if (unlikely(place_wanted(AT_FDCWD, path)) && mode) {                                                                       \
			FILE *f = restream_placed(path, mode, stream, &done);                                                               \
			if (done) return f;                                                                                                 \
		}                                                                                                                           \
		return REAL(name)(path, mode, stream);                                                                                      \
	}
FREOPEN(freopen)
FREOPEN(freopen64)

/* ---- folders ---- */

/* Declares `w` and turns `path` into what the real call shall get. */
#define REDIRECT(dirfd, path)                                                                                                               \
	struct place w;                                                                                                                     \
	w.kind = PLACE_NONE;                                                                                                                \
	if (unlikely(place_wanted(dirfd, path)) && place_of(dirfd, path, &w)) path = w.real;

EXPORT DIR *opendir(const char *path)
{
	REDIRECT(AT_FDCWD, path)
	DIR *d = REAL(opendir)(path);
	if (d && w.kind) hint_set(folder_hint, dirfd(d));
	return d;
}

/* In the tree the nodes are sockets. */
#define READDIR(name, entry)                                                                                                                \
	EXPORT struct entry *name(DIR *d)                                                                                                   \
	{                                                                                                                                   \
		struct entry *e = REAL(name)(d);                                                                                            \
		if (unlikely(e && e->d_type == DT_SOCK && box_active && hint_get(folder_hint, dirfd(d)))) e->d_type = DT_CHR;               \
		return e;                                                                                                                   \
	}
READDIR(readdir, dirent)
READDIR(readdir64, dirent64)

#define SCANDIR(name, entry)                                                                                                                \
	EXPORT int name(const char *path, struct entry ***list, int (*want)(const struct entry *),                                          \
	                int (*order)(const struct entry **, const struct entry **))                                                         \
	{                                                                                                                                   \
		REDIRECT(AT_FDCWD, path)                                                                                                    \
		int n = REAL(name)(path, list, want, order);                                                                                \
		for (int i = 0; w.kind && i < n; i++)                                                                                       \
			if ((*list)[i]->d_type == DT_SOCK) (*list)[i]->d_type = DT_CHR;                                                     \
		return n;                                                                                                                   \
	}
SCANDIR(scandir, dirent)
SCANDIR(scandir64, dirent64)

EXPORT int chdir(const char *path)
{
	REDIRECT(AT_FDCWD, path)
	int r = (int)finish(SYS(chdir, path));
	if (!r && box_active) cwd_changed();
	return r;
}

EXPORT int fchdir(int fd)
{
	int r = (int)finish(SYS(fchdir, fd));
	if (!r && box_active) cwd_changed();
	return r;
}

EXPORT char *getcwd(char *buffer, size_t size)
{
	char *s = REAL(getcwd)(buffer, size);
	if (s && box_active) strip_root(s);
	return s;
}
extern char *__getcwd_chk(char *buffer, size_t size, size_t room);
EXPORT char *__getcwd_chk(char *buffer, size_t size, size_t room)
{
	char *s = REAL(__getcwd_chk)(buffer, size, room);
	if (s && box_active) strip_root(s);
	return s;
}
EXPORT char *get_current_dir_name(void)
{
	char *s = REAL(get_current_dir_name)();
	if (s && box_active) strip_root(s);
	return s;
}

/* ---- calls that only need the other path ---- */

EXPORT int chmod(const char *path, mode_t mode)
{
	REDIRECT(AT_FDCWD, path)
	return REAL(chmod)(path, mode);
}
EXPORT int chown(const char *path, uid_t uid, gid_t gid)
{
	REDIRECT(AT_FDCWD, path)
	return REAL(chown)(path, uid, gid);
}
EXPORT int lchown(const char *path, uid_t uid, gid_t gid)
{
	REDIRECT(AT_FDCWD, path)
	return REAL(lchown)(path, uid, gid);
}
EXPORT int fchmodat(int dirfd, const char *path, mode_t mode, int flags)
{
	REDIRECT(dirfd, path)
	return REAL(fchmodat)(w.kind ? AT_FDCWD : dirfd, path, mode, flags);
}
EXPORT int fchownat(int dirfd, const char *path, uid_t uid, gid_t gid, int flags)
{
	REDIRECT(dirfd, path)
	return REAL(fchownat)(w.kind ? AT_FDCWD : dirfd, path, uid, gid, flags);
}
EXPORT int inotify_add_watch(int fd, const char *path, uint32_t mask)
{
	REDIRECT(AT_FDCWD, path)
	return REAL(inotify_add_watch)(fd, path, mask);
}
EXPORT ssize_t getxattr(const char *path, const char *name, void *value, size_t size)
{
	REDIRECT(AT_FDCWD, path)
	return REAL(getxattr)(path, name, value, size);
}
EXPORT ssize_t lgetxattr(const char *path, const char *name, void *value, size_t size)
{
	REDIRECT(AT_FDCWD, path)
	return REAL(lgetxattr)(path, name, value, size);
}
EXPORT ssize_t listxattr(const char *path, char *list, size_t size)
{
	REDIRECT(AT_FDCWD, path)
	return REAL(listxattr)(path, list, size);
}
EXPORT ssize_t llistxattr(const char *path, char *list, size_t size)
{
	REDIRECT(AT_FDCWD, path)
	return REAL(llistxattr)(path, list, size);
}

/* ---- stat ---- */

struct node {
	uint32_t mode, uid, gid, major, minor, nlink;
	uint64_t ino, size;
};

/* 1: *n is filled; PASS is -PASSED; else minus the errno. */
static int64_t ask_stat(uint64_t id, const char *path, int flags, struct node *n)
{
	struct call c = {.q = {.op = OP_STAT, .handle = id, .a = !!(flags & AT_SYMLINK_NOFOLLOW)}, .in = n, .in_length = sizeof *n};
	if (path) {
		c.out = path;
		c.out_length = strlen(path) + 1;
	}
	int64_t r = box_call(&c);
	if (r == PASS) return -PASSED;
	if (r < 0) return r;
	return c.got >= sizeof *n ? 1 : -EIO;
}

static void node_to_stat(const struct node *n, struct stat *st)
{
	st->st_mode = n->mode;
	st->st_uid = n->uid;
	st->st_gid = n->gid;
	st->st_nlink = n->nlink;
	st->st_ino = n->ino;
	st->st_size = (off_t)n->size;
	st->st_rdev = makedev(n->major, n->minor);
	st->st_blocks = 0;
}

/*
 * A real stat found a socket: is it a handle, or a node of the tree? When the handle has a path, *named says so and the answer must be
 * that path's, because programs compare stat with fstat.
 */
static NOINLINE int64_t ask_socket(int dirfd, const char *path, int flags, struct node *n, struct place *w, int *named)
{
	uint64_t id;
	int fd = -1;
	*named = 0;
	if (!path || !*path) fd = dirfd;
	else if (!(flags & AT_SYMLINK_NOFOLLOW)) fd = fd_in_path(path);
	if (fd >= 0) {
		if (!handle_of(fd, &id)) return -PASSED;
		*named = ask_name(id, w->path) && w->path[0] == '/';
		return ask_stat(id, 0, 0, n);
	}
	if (path && place_of(dirfd, path, w) == PLACE_DEV) return ask_stat(0, w->path, flags, n);
	return -PASSED;
}

static NOINLINE int stat_placed(int dirfd, const char *path, int flags, struct stat *st, long *result)
{
	struct place w;
	struct node n;
	if (!place_of(dirfd, path, &w)) return 0;
	*result = SYS(newfstatat, AT_FDCWD, w.real, st, flags);
	if (w.kind != PLACE_DEV) return 1;
	int64_t r = ask_stat(0, w.path, flags, &n);
	if (r == 1) {
		if (*result < 0) memset(st, 0, sizeof *st);
		node_to_stat(&n, st);
		if (!st->st_blksize) st->st_blksize = 4096;
		*result = 0;
	} else if (r != -PASSED) *result = r;
	return 1;
}

static int do_stat(int dirfd, const char *path, int flags, struct stat *st)
{
	long r;
	struct node n;
	if (path && unlikely(place_wanted(dirfd, path)) && stat_placed(dirfd, path, flags, st, &r)) return (int)finish(r);
	r = path ? SYS(newfstatat, dirfd, path, st, flags) : SYS(fstat, dirfd, st);
	if (unlikely(r == 0 && S_ISSOCK(st->st_mode) && box_active)) {
		struct place w;
		struct stat same;
		long found;
		int named;
		int64_t a = ask_socket(dirfd, path, flags, &n, &w, &named);
		if (a == 1 && named && stat_placed(AT_FDCWD, strcpy(w.real, w.path), 0, &same, &found) && found == 0) *st = same;
		else if (a == 1) node_to_stat(&n, st);
		else if (a != -PASSED) r = a;
	}
	return (int)finish(r);
}

EXPORT int stat(const char *path, struct stat *st)
{
	return do_stat(AT_FDCWD, path, 0, st);
}
EXPORT int stat64(const char *path, struct stat64 *st)
{
	return do_stat(AT_FDCWD, path, 0, (struct stat *)st);
}
EXPORT int lstat(const char *path, struct stat *st)
{
	return do_stat(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, st);
}
EXPORT int lstat64(const char *path, struct stat64 *st)
{
	return do_stat(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, (struct stat *)st);
}
EXPORT int fstat(int fd, struct stat *st)
{
	return do_stat(fd, 0, 0, st);
}
EXPORT int fstat64(int fd, struct stat64 *st)
{
	return do_stat(fd, 0, 0, (struct stat *)st);
}
EXPORT int fstatat(int dirfd, const char *path, struct stat *st, int flags)
{
	return do_stat(dirfd, path, flags, st);
}
EXPORT int fstatat64(int dirfd, const char *path, struct stat64 *st, int flags)
{
	return do_stat(dirfd, path, flags, (struct stat *)st);
}
/* Programs built before glibc 2.33. The version is 1 (x86-64) or 0: one layout. */
EXPORT int __xstat(int v, const char *path, struct stat *st)
{
	(void)v;
	return do_stat(AT_FDCWD, path, 0, st);
}
EXPORT int __xstat64(int v, const char *path, struct stat64 *st)
{
	(void)v;
	return do_stat(AT_FDCWD, path, 0, (struct stat *)st);
}
EXPORT int __lxstat(int v, const char *path, struct stat *st)
{
	(void)v;
	return do_stat(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, st);
}
EXPORT int __lxstat64(int v, const char *path, struct stat64 *st)
{
	(void)v;
	return do_stat(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, (struct stat *)st);
}
EXPORT int __fxstat(int v, int fd, struct stat *st)
{
	(void)v;
	return do_stat(fd, 0, 0, st);
}
EXPORT int __fxstat64(int v, int fd, struct stat64 *st)
{
	(void)v;
	return do_stat(fd, 0, 0, (struct stat *)st);
}
EXPORT int __fxstatat(int v, int dirfd, const char *path, struct stat *st, int flags)
{
	(void)v;
	return do_stat(dirfd, path, flags, st);
}
EXPORT int __fxstatat64(int v, int dirfd, const char *path, struct stat64 *st, int flags)
{
	(void)v;
	return do_stat(dirfd, path, flags, (struct stat *)st);
}

static void node_to_statx(const struct node *n, struct statx *sx)
{
	sx->stx_mask |= STATX_BASIC_STATS;
	sx->stx_mode = (uint16_t)n->mode;
	sx->stx_uid = n->uid;
	sx->stx_gid = n->gid;
	sx->stx_nlink = n->nlink;
	sx->stx_ino = n->ino;
	sx->stx_size = n->size;
	sx->stx_rdev_major = n->major;
	sx->stx_rdev_minor = n->minor;
	sx->stx_blocks = 0;
	if (!sx->stx_blksize) sx->stx_blksize = 4096;
}

static NOINLINE int statx_placed(int dirfd, const char *path, int flags, unsigned mask, struct statx *sx, long *result)
{
	struct place w;
	struct node n;
	if (!place_of(dirfd, path, &w)) return 0;
	*result = SYS(statx, AT_FDCWD, w.real, flags, mask, sx);
	if (w.kind != PLACE_DEV) return 1;
	int64_t r = ask_stat(0, w.path, flags, &n);
	if (r == 1) {
		if (*result < 0) memset(sx, 0, sizeof *sx);
		node_to_statx(&n, sx);
		*result = 0;
	} else if (r != -PASSED) *result = r;
	return 1;
}

EXPORT int statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *sx)
{
	long r;
	struct node n;
	if (unlikely(place_wanted(dirfd, path)) && statx_placed(dirfd, path, flags, mask, sx, &r)) return (int)finish(r);
	r = SYS(statx, dirfd, path, flags, mask | (box_active ? STATX_TYPE : 0), sx);
	if (unlikely(r == 0 && S_ISSOCK(sx->stx_mode) && box_active)) {
		struct place w;
		struct statx same;
		long found;
		int named;
		int64_t a = ask_socket(dirfd, path, flags, &n, &w, &named);
		if (a == 1 && named && statx_placed(AT_FDCWD, strcpy(w.real, w.path), 0, mask | STATX_TYPE, &same, &found) && found == 0) *sx = same;
		else if (a == 1) node_to_statx(&n, sx);
		else if (a != -PASSED) r = a;
	}
	return (int)finish(r);
}

/* ---- access ---- */

static NOINLINE int access_placed(int dirfd, const char *path, int mode, int flags, int *done)
{
	struct place w;
	if (!place_of(dirfd, path, &w)) return -1;
	*done = 1;
	if (w.kind == PLACE_DEV) {
		struct call c = {.q = {.op = OP_ACCESS, .a = (uint32_t)mode}, .out = w.path, .out_length = strlen(w.path) + 1};
		int64_t r = box_call(&c);
		if (r != PASS) return (int)finish(r);
	}
	return REAL(faccessat)(AT_FDCWD, w.real, mode, flags);
}

EXPORT int faccessat(int dirfd, const char *path, int mode, int flags)
{
	int done = 0;
	if (unlikely(place_wanted(dirfd, path))) {
		int r = access_placed(dirfd, path, mode, flags, &done);
		if (done) return r;
	}
	return REAL(faccessat)(dirfd, path, mode, flags);
}
EXPORT int access(const char *path, int mode)
{
	int done = 0;
	if (unlikely(place_wanted(AT_FDCWD, path))) {
		int r = access_placed(AT_FDCWD, path, mode, 0, &done);
		if (done) return r;
	}
	return (int)finish(SYS(faccessat, AT_FDCWD, path, mode));
}
EXPORT int euidaccess(const char *path, int mode)
{
	return faccessat(AT_FDCWD, path, mode, AT_EACCESS);
}
EXPORT int eaccess(const char *path, int mode)
{
	return faccessat(AT_FDCWD, path, mode, AT_EACCESS);
}

/* ---- links ---- */

/* The real answer names our socket, or a place inside the tree. */
static NOINLINE long link_answer(int dirfd, const char *path, char *buffer, size_t size, long r)
{
	char text[PATH_MAX];
	if ((size_t)r >= sizeof text) return r;
	if (r >= 8 && !memcmp(buffer, "socket:[", 8)) {
		uint64_t id;
		int fd = fd_in_path(path);
		if (fd < 0 && path[0] != '/') { /* relative to /proc/self/fd */
			struct place w;
			if (dirfd == AT_FDCWD) {
				if (SYS(getcwd, w.path, PATH_MAX - 64) <= 0) return r;
			} else {
				char link[32];
				snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
				long n = SYS(readlinkat, AT_FDCWD, link, w.path, PATH_MAX - 64);
				if (n <= 0) return r;
				w.path[n] = 0;
			}
			size_t n = strlen(w.path);
			if (n + strlen(path) + 2 > PATH_MAX) return r;
			w.path[n] = '/';
			strcpy(w.path + n + 1, path);
			fd = fd_in_path(w.path);
		}
		if (fd < 0 || !handle_of(fd, &id)) return r;
		if (!ask_name(id, text)) return r;
		size_t length = strlen(text);
		if (length > size) length = size;
		memcpy(buffer, text, length);
		return (long)length;
	}
	memcpy(text, buffer, (size_t)r);
	text[r] = 0;
	if (!strip_root(text)) return r;
	r = (long)strlen(text);
	memcpy(buffer, text, (size_t)r);
	return r;
}

static ssize_t do_readlink(int dirfd, const char *path, char *buffer, size_t size)
{
	long r;
	{
		const char *real = path;
		REDIRECT(dirfd, real)
		r = SYS(readlinkat, w.kind ? AT_FDCWD : dirfd, real, buffer, size);
	}
	if (unlikely(r > 0 && box_active && (buffer[0] == 's' || buffer[0] == '/'))) r = link_answer(dirfd, path, buffer, size, r);
	return finish(r);
}

EXPORT ssize_t readlink(const char *path, char *buffer, size_t size)
{
	return do_readlink(AT_FDCWD, path, buffer, size);
}
EXPORT ssize_t readlinkat(int dirfd, const char *path, char *buffer, size_t size)
{
	return do_readlink(dirfd, path, buffer, size);
}
extern ssize_t __readlink_chk(const char *path, char *buffer, size_t size, size_t room);
EXPORT ssize_t __readlink_chk(const char *path, char *buffer, size_t size, size_t room)
{
	if (size > room) return REAL(__readlink_chk)(path, buffer, size, room); /* reports the overflow */
	return do_readlink(AT_FDCWD, path, buffer, size);
}
extern ssize_t __readlinkat_chk(int dirfd, const char *path, char *buffer, size_t size, size_t room);
EXPORT ssize_t __readlinkat_chk(int dirfd, const char *path, char *buffer, size_t size, size_t room)
{
	if (size > room) return REAL(__readlinkat_chk)(dirfd, path, buffer, size, room);
	return do_readlink(dirfd, path, buffer, size);
}

static char *stripped(char *s)
{
	if (s && box_active) strip_root(s);
	return s;
}

EXPORT char *realpath(const char *path, char *out)
{
	REDIRECT(AT_FDCWD, path)
	return stripped(REAL(realpath)(path, out));
}
extern char *__realpath_chk(const char *path, char *out, size_t room);
EXPORT char *__realpath_chk(const char *path, char *out, size_t room)
{
	REDIRECT(AT_FDCWD, path)
	return stripped(REAL(__realpath_chk)(path, out, room));
}
EXPORT char *canonicalize_file_name(const char *path)
{
	REDIRECT(AT_FDCWD, path)
	return stripped(REAL(canonicalize_file_name)(path));
}

/* ---- glob: its own opendir and stat are inside libc, but it lets itself be given others ---- */

static int glob_stat(const char *path, struct stat *st)
{
	return stat(path, st);
}
static int glob_lstat(const char *path, struct stat *st)
{
	return lstat(path, st);
}
#define GLOB(name, type)                                                                                                                    \
	EXPORT int name(const char *pattern, int flags, int (*failed)(const char *, int), type *g)                                          \
	{                                                                                                                                   \
		if (!box_active || (flags & GLOB_ALTDIRFUNC)) return REAL(name)(pattern, flags, failed, g);                                 \
		g->gl_opendir = (void *)opendir;                                                                                            \
		g->gl_readdir = (void *)readdir;                                                                                            \
		g->gl_closedir = (void *)closedir;                                                                                          \
		g->gl_stat = (void *)glob_stat;                                                                                             \
		g->gl_lstat = (void *)glob_lstat;                                                                                           \
		int r = REAL(name)(pattern, flags | GLOB_ALTDIRFUNC, failed, g);                                                            \
		g->gl_flags &= ~GLOB_ALTDIRFUNC;                                                                                            \
		return r;                                                                                                                   \
	}
GLOB(glob, glob_t)
GLOB(glob64, glob64_t)
