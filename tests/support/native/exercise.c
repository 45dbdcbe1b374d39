/*
 * Exercises libvfiobox.so against stub_box.py:   stub_box.py -- ./exercise [all | NAME...]
 * Prints one line per test and `N passed, N failed`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Past every library. */
#define RAW(n, a, b, c, d)                                                                                                                  \
	({                                                                                                                                  \
		long r_;                                                                                                                    \
		register long d_ __asm__("r10") = (long)(d);                                                                                \
		__asm__ volatile("syscall" : "=a"(r_) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(d_) : "rcx", "r11", "memory");                    \
		r_;                                                                                                                         \
	})
#define T(n) (0x3b00 | n)
enum { T_VALUE = T(1), T_INVERT, T_BIG, T_ASK, T_NEW, T_NEW_AT, T_SLEEP, T_ERROR, T_DIE, T_LIVE, T_REVIVE, T_PROCESSES, T_HANDLE_ID, T_PLAIN, T_PEEK_REGISTER };

static int failures_here;
static const char *test_name;
#define CHECK(x)                                                                                                                            \
	do {                                                                                                                                \
		errno = 0;                                                                                                                  \
		if (!(x)) {                                                                                                                 \
			printf("  %s:%d: %s  (errno %d %s)\n", test_name, __LINE__, #x, errno, strerror(errno));                             \
			failures_here++;                                                                                                    \
		}                                                                                                                           \
	} while (0)
#define FAILS(x, e) CHECK((x) == -1 && errno == (e))

static int node(void)
{
	return open("/dev/vfio/vfio", O_RDWR);
}
static uint8_t *page_then_nothing(void)
{
	uint8_t *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(p + 4096, 4096);
	return p;
}

static void t_open(void)
{
	int fd = node();
	CHECK(fd >= 0 && fd < 512);
	CHECK(fcntl(fd, F_GETFD) == 0);
	int g = open("/dev//vfio/./7", O_RDWR | O_CLOEXEC);
	CHECK(g >= 0 && fcntl(g, F_GETFD) == FD_CLOEXEC);
	FAILS(open("/dev/vfio/99", O_RDWR), ENOENT);
	CHECK(openat(AT_FDCWD, "/dev/iommu", O_RDWR) >= 0);
	CHECK(open("/tmp/../dev/vfio/vfio", O_RDWR) >= 0);
	errno = 77;
	close(node());
	CHECK(1);
	errno = 77;
	int x = node();
	if (errno != 77) CHECK(!"errno kept");
	close(x);
	int d = open("/dev/vfio", O_RDONLY | O_DIRECTORY);
	CHECK(d >= 0);
	int v = openat(d, "vfio", O_RDWR);
	CHECK(v >= 0 && ioctl(v, T_VALUE, 3) == 3);
	close(v);
	struct stat st;
	CHECK(fstatat(d, "vfio", &st, 0) == 0 && S_ISCHR(st.st_mode));
	char cwd[256];
	CHECK(chdir("/dev/vfio") == 0 && getcwd(cwd, sizeof cwd) && !strcmp(cwd, "/dev/vfio"));
	v = open("vfio", O_RDWR);
	CHECK(v >= 0 && ioctl(v, T_VALUE, 4) == 4);
	close(v);
	CHECK(chdir("/dev") == 0);
	v = open("vfio/7", O_RDWR);
	CHECK(v >= 0);
	close(v);
	CHECK(chdir("/") == 0);
	v = open("dev/vfio/7", O_RDWR);
	CHECK(v >= 0);
	close(v);
	close(d);
	close(fd);
	close(g);
}

static void t_ioctl(void)
{
	int fd = node();
	uint8_t b[64], big[9000];
	CHECK(ioctl(fd, T_VALUE, 41) == 41);
	for (int i = 0; i < 64; i++) b[i] = (uint8_t)i;
	CHECK(ioctl(fd, T_INVERT, b) == 5 && b[0] == 0xff && b[63] == (63 ^ 0xff));
	memset(big, 7, sizeof big);
	CHECK(ioctl(fd, T_BIG, big) == 0 && big[8191] == 0xff && big[8192] == 7);
	FAILS(ioctl(fd, T_ERROR, EBUSY), EBUSY);
	FAILS(ioctl(fd, T(99), 0), ENOTTY);
	FAILS(ioctl(fd, T_INVERT, (void *)0x10), EFAULT);
	FAILS(ioctl(fd, T_INVERT, 0), EFAULT);
	uint8_t *edge = page_then_nothing();
	FAILS(ioctl(fd, T_INVERT, edge + 4096 - 32), EFAULT); /* 64 bytes are not there */
	uint8_t *ro = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	FAILS(ioctl(fd, T_INVERT, ro), EFAULT);
	CHECK(ioctl(fd, T_VALUE, 42) == 42); /* the connection is in step */
	int p[2];
	CHECK(pipe(p) == 0);
	FAILS(ioctl(p[0], T_VALUE, 1), ENOTTY);
	FAILS(ioctl(-1, T_VALUE, 1), EBADF);
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	FAILS(ioctl(s, T_VALUE, 1), ENOTTY);
	close(s), close(p[0]), close(p[1]), close(fd);
}

static void t_ask(void)
{
	int fd = node();
	struct {
		uint32_t n;
		int32_t fd[253];
	} a = {3, {eventfd(0, EFD_NONBLOCK), 4000, eventfd(0, EFD_NONBLOCK)}}, before = a;
	CHECK(ioctl(fd, T_ASK, &a) == 1000 + 2 - 100);
	CHECK(!memcmp(&a, &before, sizeof a));
	uint64_t v = 0;
	CHECK(read(a.fd[0], &v, 8) == 8 && v == 1);
	CHECK(read(a.fd[2], &v, 8) == 8 && v == 1);
	int e0 = a.fd[0];
	a.n = 253;
	for (int i = 0; i < 253; i++) a.fd[i] = e0;
	CHECK(ioctl(fd, T_ASK, &a) == 1253);
	CHECK(read(e0, &v, 8) == 8 && v == 253);
	a.n = 1;
	a.fd[0] = -1;
	CHECK(ioctl(fd, T_ASK, &a) == 900);
	close(fd);
}

static void t_descriptors(void)
{
	int fd = node();
	int before = ioctl(fd, T_LIVE, 0);
	int d = ioctl(fd, T_NEW, 0);
	CHECK(d >= 0 && fcntl(d, F_GETFD) == FD_CLOEXEC);
	struct {
		uint64_t a;
		int32_t fd, b;
	} at = {1, -5, 9};
	CHECK(ioctl(fd, T_NEW_AT, &at) == 0 && at.a == 1 && at.fd >= 0 && at.fd != d && at.b == 9);
	CHECK(ioctl(fd, T_LIVE, 0) == before + 2);
	int id = ioctl(d, T_HANDLE_ID, 0), e = dup(d);
	CHECK(ioctl(e, T_HANDLE_ID, 0) == id);
	close(d);
	CHECK(ioctl(fd, T_LIVE, 0) == before + 2);
	CHECK(ioctl(e, T_HANDLE_ID, 0) == id);
	int f = dup2(e, 100), g = fcntl(e, F_DUPFD_CLOEXEC, 200);
	CHECK(f == 100 && g >= 200 && ioctl(f, T_HANDLE_ID, 0) == id && ioctl(g, T_HANDLE_ID, 0) == id);
	close(e), close(f), close(g), close(at.fd);
	CHECK(ioctl(fd, T_LIVE, 0) == before);
	struct stat st;
	CHECK(fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && major(st.st_rdev) == 511);
	struct statx sx;
	CHECK(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &sx) == 0 && S_ISCHR(sx.stx_mode) && sx.stx_rdev_minor == 7);
	char link[64], text[64] = "";
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	CHECK(readlink(link, text, sizeof text) == 14 && !strncmp(text, "/dev/vfio/vfio", 14));
	snprintf(link, sizeof link, "%d", fd);
	int procfd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
	memset(text, 0, sizeof text);
	CHECK(readlinkat(procfd, link, text, sizeof text) == 14 && !strncmp(text, "/dev/vfio/vfio", 14));
	close(procfd);
	snprintf(link, sizeof link, "/proc/%d/fd/%d", getpid(), fd);
	CHECK(stat(link, &st) == 0 && S_ISCHR(st.st_mode));
	int again = open(link, O_RDWR);
	CHECK(again >= 0 && ioctl(again, T_VALUE, 9) == 9);
	close(again);
	CHECK(ioctl(fd, FIOCLEX) == 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC && ioctl(fd, FIONCLEX) == 0 && fcntl(fd, F_GETFD) == 0);
	struct pollfd p = {fd, POLLIN | POLLOUT, 0};
	CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLOUT));
	close(fd);
}

static void t_readwrite(void)
{
	int fd = node();
	char b[16] = "", c[16] = "";
	CHECK(pwrite(fd, "hello", 5, 16) == 5 && pread(fd, b, 5, 16) == 5 && !strcmp(b, "hello"));
	CHECK(write(fd, "abcdef", 6) == 6 && read(fd, b, 4) == 4);
	CHECK(pread(fd, b, 6, 0) == 6 && !strncmp(b, "abcdef", 6));
	struct iovec v[2] = {{b, 3}, {c, 3}};
	CHECK(preadv(fd, v, 2, 0) == 6 && !strncmp(b, "abc", 3) && !strncmp(c, "def", 3));
	CHECK(pwritev(fd, v, 2, 100) == 6 && pread(fd, b, 6, 100) == 6 && !strncmp(b, "abcdef", 6));
	FAILS(pread(fd, b, 4, 0x10000), EINVAL);
	FAILS(pread(fd, b, 4, -1), EINVAL);
	char *volatile nowhere = (char *)8;
	FAILS(pread(fd, nowhere, 4, 0), EFAULT);
	FAILS(pwrite(fd, nowhere, 4, 0), EFAULT);
	char *big = malloc(20000), *back = malloc(20000);
	for (int i = 0; i < 20000; i++) big[i] = (char)(i * 7);
	CHECK(pwrite(fd, big, 20000, 0) == 20000 && pread(fd, back, 20000, 0) == 20000 && !memcmp(big, back, 20000));
	int d = dup(fd);
	CHECK(read(d, b, 1) == 1);
	close(fd);
	fd = open("/dev/null", O_RDWR); /* the same number again */
	CHECK(read(fd, b, 1) == 0 && write(fd, b, 1) == 1);
	FAILS(lseek(d, 0, SEEK_SET), ESPIPE);
	close(fd), close(d);
	int p[2];
	CHECK(pipe(p) == 0 && write(p[1], "x", 1) == 1 && read(p[0], b, 1) == 1 && b[0] == 'x');
	FAILS(pread(p[0], b, 1, 0), ESPIPE);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0 && write(p[1], "y", 1) == 1 && read(p[0], b, 1) == 1 && b[0] == 'y');
	free(big), free(back);
}

static void t_stat(void)
{
	struct stat st;
	CHECK(stat("/dev/vfio/7", &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(511, 7) && st.st_ino == 4711);
	CHECK(lstat("/dev/vfio/devices/vfio0", &st) == 0 && S_ISCHR(st.st_mode));
	CHECK(stat("/dev/vfio", &st) == 0 && S_ISDIR(st.st_mode));
	FAILS(stat("/dev/vfio/99", &st), ENOENT);
	CHECK(access("/dev/vfio/7", R_OK | W_OK) == 0);
	FAILS(access("/dev/vfio/7", X_OK), EACCES);
	FAILS(access("/dev/vfio/99", F_OK), ENOENT);
	CHECK(faccessat(AT_FDCWD, "/dev/vfio", F_OK, 0) == 0);
	DIR *d = opendir("/dev/vfio");
	int chr = 0, dir = 0;
	CHECK(d != 0);
	for (struct dirent *e; d && (e = readdir(d));) chr += e->d_type == DT_CHR, dir += e->d_type == DT_DIR && e->d_name[0] != '.';
	CHECK(chr == 2 && dir == 1);
	if (d) closedir(d);
	struct dirent **list;
	CHECK(scandir("/dev/vfio/devices", &list, 0, alphasort) == 3 && list[2]->d_type == DT_CHR);
	glob_t g = {0};
	CHECK(glob("/dev/vfio/[0-9]*", 0, 0, &g) == 0 && g.gl_pathc == 1 && !strcmp(g.gl_pathv[0], "/dev/vfio/7"));
	globfree(&g);
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(fstat(s, &st) == 0 && S_ISSOCK(st.st_mode));
	close(s);
}

static void t_sysfs(void)
{
	char b[256] = "", *r;
	struct stat st;
	int fd = open("/sys/bus/pci/devices/0000:00:04.0/vendor", O_RDONLY);
	CHECK(fd >= 0 && read(fd, b, sizeof b) == 7 && !strncmp(b, "0x1234", 6));
	close(fd);
	FILE *f = fopen("/sys/bus/pci//devices/0000:00:04.0/vendor", "r");
	CHECK(f && fgets(b, sizeof b, f) && !strcmp(b, "0x1234\n"));
	if (f) fclose(f);
	f = fopen("/sys/bus/pci/devices/0000:00:04.0/live", "re");
	CHECK(f && fgets(b, sizeof b, f) && !strcmp(b, "live text\n"));
	if (f) fclose(f);
	FAILS(open("/sys/bus/pci/devices/0000:00:05.0/vendor", O_RDONLY), ENOENT);
	ssize_t n = readlink("/sys/bus/pci/devices/0000:00:04.0/iommu_group", b, sizeof b);
	CHECK(n > 0 && !strncmp(b + n - 2, "/7", 2));
	r = realpath("/sys/bus/pci/devices/0000:00:04.0", b);
	CHECK(r && !strcmp(r, "/sys/devices/pci0000:00/0000:00:04.0"));
	r = realpath("/sys/bus/pci/devices/0000:00:04.0/iommu_group", 0);
	CHECK(r && !strcmp(r, "/sys/kernel/iommu_groups/7"));
	free(r);
	/* `..` leaves from the link's target */
	DIR *d = opendir("/sys/bus/pci/devices/0000:00:04.0/..");
	int seen = 0;
	CHECK(d != 0);
	for (struct dirent *e; d && (e = readdir(d));) seen += !strcmp(e->d_name, "0000:00:04.0");
	CHECK(seen == 1);
	if (d) closedir(d);
	d = opendir("/dev/vfio/..");
	CHECK(d != 0);
	if (d) closedir(d);
	CHECK(stat("/dev/vfio/devices/../7", &st) == 0 && S_ISCHR(st.st_mode));
	FAILS(readlink("/sys/bus/pci/devices/0000:00:04.0/../../../kernel/iommu_groups/7/type", b, sizeof b), EINVAL);
	r = realpath("/sys/bus/pci/devices/0000:00:04.0/../../../kernel/iommu_groups/7", b);
	CHECK(r && !strcmp(r, "/sys/kernel/iommu_groups/7"));
	r = realpath("/sys/bus/pci/devices/0000:00:04.0/../..", b);
	CHECK(r && !strcmp(r, "/sys/devices"));
	CHECK(chdir("/dev/vfio") == 0 && chdir("..") == 0 && getcwd(b, sizeof b) && !strcmp(b, "/dev") && access("null", F_OK) == 0);
	struct stat by_fd;
	fd = open("/sys/bus/pci/devices/0000:00:04.0/driver_override", O_RDWR);
	CHECK(fd >= 0 && fstat(fd, &by_fd) == 0 && stat("/sys/bus/pci/devices/0000:00:04.0/driver_override", &st) == 0);
	CHECK(st.st_dev == by_fd.st_dev && st.st_ino == by_fd.st_ino && S_ISREG(by_fd.st_mode));
	f = fdopen(dup(fd), "r");
	CHECK(f && fgets(b, sizeof b, f) && !strcmp(b, "value\n") && !fgets(b, sizeof b, f));
	if (f) fclose(f);
	pid_t p = fork();
	if (!p) {
		dup2(fd, 0);
		execl("/bin/sh", "sh", "-c", "test \"$(od -An -c)\" = '   v   a   l   u   e  \\n'", (char *)0);
		_exit(9);
	}
	int status;
	CHECK(waitpid(p, &status, 0) == p && WIFEXITED(status) && WEXITSTATUS(status) == 0);
	close(fd);
	glob_t g = {0};
	CHECK(glob("/sys/bus/pci/devices/*/vendor", 0, 0, &g) == 0 && g.gl_pathc == 1 && !strcmp(g.gl_pathv[0], "/sys/bus/pci/devices/0000:00:04.0/vendor"));
	globfree(&g);
	CHECK(chdir("/sys/bus/pci/devices") == 0 && getcwd(b, sizeof b) && !strcmp(b, "/sys/bus/pci/devices"));
	fd = open("0000:00:04.0/live", O_RDONLY);
	CHECK(fd >= 0 && read(fd, b, 10) == 10 && !strncmp(b, "live text", 9));
	close(fd);
	CHECK(chdir("/") == 0);
	int dir = open("/sys/bus/pci/devices", O_RDONLY | O_DIRECTORY);
	fd = openat(dir, "0000:00:04.0/live", O_RDONLY);
	CHECK(fd >= 0 && read(fd, b, 10) == 10 && !strncmp(b, "live text", 9));
	close(fd), close(dir);
	fd = open("/sys/bus/pci/drivers/vfio-pci/bind", O_WRONLY);
	CHECK(fd >= 0 && write(fd, "0000:00:04.0", 12) == 12);
	FAILS(write(fd, "bad", 3), EINVAL);
	close(fd);
	f = fopen("/sys/bus/pci/drivers/vfio-pci/bind", "w");
	CHECK(f && fprintf(f, "bad") == 3);
	FAILS(f ? fflush(f) : 0, EINVAL);
	if (f) fclose(f);
	f = fopen("/sys/bus/pci/drivers/vfio-pci/bind", "w");
	CHECK(f && fprintf(f, "bad") == 3);
	FAILS(f ? fclose(f) : 0, EINVAL);
	CHECK(access("/sys/kernel/iommu_groups/7/type", R_OK) == 0);
	CHECK(lstat("/sys/bus/pci/devices/0000:00:04.0", &st) == 0 && S_ISLNK(st.st_mode));
	CHECK(stat("/sys/bus/pci/devices/0000:00:04.0/", &st) == 0 && S_ISDIR(st.st_mode));
}

static void *thread_calls(void *arg)
{
	long bad = 0, me = (long)arg, fd = node();
	for (int i = 0; i < 200; i++)
		if (ioctl((int)fd, T_VALUE, me * 1000 + i) != me * 1000 + i) bad++;
	close((int)fd);
	return (void *)bad;
}

static void t_threads(void)
{
	pthread_t t[8];
	for (long i = 0; i < 8; i++) CHECK(pthread_create(&t[i], 0, thread_calls, (void *)i) == 0);
	for (int i = 0; i < 8; i++) {
		void *bad;
		pthread_join(t[i], &bad);
		CHECK(bad == 0);
	}
	int open_ones = 0;
	for (int i = 512; i < 700; i++) open_ones += fcntl(i, F_GETFD) >= 0;
	CHECK(open_ones <= 1); /* connections of ended threads are closed */
}

static int wait_ok(pid_t p)
{
	int st;
	return waitpid(p, &st, 0) == p && WIFEXITED(st) && WEXITSTATUS(st) == 0;
}

static void t_fork(void)
{
	int fd = node(), words = ioctl(fd, T_PROCESSES, 0);
	int id = ioctl(fd, T_HANDLE_ID, 0);
	for (int i = 0; i < 3; i++) {
		pid_t p = fork();
		if (!p) {
			int ok = 1;
			for (int k = 0; k < 50; k++) ok &= ioctl(fd, T_VALUE, 100 + k) == 100 + k;
			ok &= ioctl(fd, T_HANDLE_ID, 0) == id && ioctl(fd, T_PROCESSES, 0) > words;
			char b[4];
			ok &= pread(fd, b, 4, 0) == 4;
			_exit(!ok);
		}
		for (int k = 0; k < 50; k++) CHECK(ioctl(fd, T_VALUE, k) == k);
		CHECK(wait_ok(p));
	}
	/* without libc's fork */
	pid_t p = (pid_t)RAW(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L);
	if (!p) syscall(SYS_exit_group, !(ioctl(fd, T_VALUE, 5) == 5 && ioctl(fd, T_PROCESSES, 0) > words));
	CHECK(wait_ok(p));
	p = vfork();
	if (!p) {
		int ok = ioctl(fd, T_VALUE, 6) == 6;
		_exit(!ok);
	}
	CHECK(wait_ok(p));
	CHECK(ioctl(fd, T_VALUE, 7) == 7);
	p = fork();
	if (!p) {
		char n[16];
		snprintf(n, sizeof n, "%d", fd);
		execl("/proc/self/exe", "exercise", "inherited", n, (char *)0);
		_exit(9);
	}
	CHECK(wait_ok(p));
	close(fd);
}

static int inherited(int fd)
{
	char b[4];
	return !(ioctl(fd, T_VALUE, 8) == 8 && read(fd, b, 3) == 3);
}

static void t_closefrom(void)
{
	int fd = node();
	CHECK(ioctl(fd, T_VALUE, 1) == 1);
	RAW(SYS_close_range, 512L, 0xffffffffL, 0L, 0L);
	CHECK(ioctl(fd, T_VALUE, 2) == 2);
	/* the number of the connection is taken by another socket */
	RAW(SYS_close_range, 512L, 0xffffffffL, 0L, 0L);
	int s[2];
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s) == 0 && dup2(s[0], 512) == 512);
	CHECK(ioctl(fd, T_VALUE, 3) == 3);
	char b;
	CHECK(recv(s[1], &b, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	CHECK(ioctl(fd, T_VALUE, 4) == 4);
	/* a mapping keeps its device through all of it */
	int dev = ioctl(fd, T_NEW, 0), live = ioctl(fd, T_LIVE, 0);
	volatile uint32_t *r = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, dev, 0x10000);
	CHECK(r != MAP_FAILED);
	close(dev);
	for (int i = 500; i < 600; i++)
		if (i != fd && i != 512) close(i);
	closefrom(514);
	CHECK(close_range(514, ~0u, 0) == 0);
	for (int i = 513; i < 530; i++) dup2(s[0], i);
	r[0] = 88;
	CHECK(r[0] == 88 && ioctl(fd, T_LIVE, 0) == live);
	for (int i = 513; i < 530; i++) close(i);
	CHECK(munmap((void *)r, 4096) == 0 && ioctl(fd, T_LIVE, 0) == live - 1);
	close(512), close(s[0]), close(s[1]), close(fd);
}

static void t_rights(void)
{
	int s[2], fd = node(), id = ioctl(fd, T_HANDLE_ID, 0);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
	pid_t p = fork();
	if (!p) {
		close(fd);
		char c, control[CMSG_SPACE(4)];
		struct iovec v = {&c, 1};
		struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
		if (recvmsg(s[1], &m, 0) != 1) _exit(1);
		int got;
		memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&m)), 4);
		char b[8];
		if (read(got, b, 4) != 4) _exit(2);
		_exit(ioctl(got, T_HANDLE_ID, 0) == id ? 0 : 3);
	}
	char c = 'x', control[CMSG_SPACE(4)] = {0};
	struct iovec v = {&c, 1};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(4);
	memcpy(CMSG_DATA(h), &fd, 4);
	CHECK(sendmsg(s[0], &m, 0) == 1);
	CHECK(wait_ok(p));
	close(fd), close(s[0]), close(s[1]);
}

static volatile int alarms, alarm_bad, alarm_fd;
static void on_alarm(int n)
{
	(void)n;
	int saved = errno;
	alarms++;
	if (ioctl(alarm_fd, T_VALUE, 4321) != 4321) alarm_bad++;
	errno = saved;
}
static sigjmp_buf jump;
static void on_alarm_jump(int n)
{
	(void)n;
	siglongjmp(jump, 1);
}

static void t_signals(void)
{
	int fd = alarm_fd = node(), bad = 0;
	struct sigaction a = {.sa_handler = on_alarm};
	sigaction(SIGALRM, &a, 0);
	struct itimerval t = {{0, 2000}, {0, 2000}}, off = {{0, 0}, {0, 0}};
	setitimer(ITIMER_REAL, &t, 0);
	for (int i = 0; i < 100; i++) bad += ioctl(fd, T_SLEEP, 5) != 0;
	for (int i = 0; i < 2000; i++) bad += ioctl(fd, T_VALUE, i) != i;
	setitimer(ITIMER_REAL, &off, 0);
	CHECK(bad == 0 && alarm_bad == 0 && alarms > 50);
	/* a handler that jumps out of a call */
	a.sa_handler = on_alarm_jump;
	sigaction(SIGALRM, &a, 0);
	for (int i = 0; i < 5; i++) {
		if (!sigsetjmp(jump, 1)) {
			t.it_interval.tv_usec = 0;
			t.it_value.tv_usec = 20000;
			setitimer(ITIMER_REAL, &t, 0);
			ioctl(fd, T_SLEEP, 100);
			CHECK(!"jumped");
		}
		CHECK(ioctl(fd, T_VALUE, 11 + i) == 11 + i);
	}
	signal(SIGALRM, SIG_DFL);
	close(fd);
}

static volatile void *fault_address;
static volatile int fault_signal, fault_code;
static void on_fault(int sig, siginfo_t *i, void *c)
{
	(void)c;
	fault_signal = sig;
	fault_code = i->si_code;
	fault_address = i->si_addr;
	siglongjmp(jump, 1);
}
static int revive_fd, bus_count;
static void on_bus_retry(int sig, siginfo_t *i, void *c)
{
	(void)sig, (void)i, (void)c;
	bus_count++;
	ioctl(revive_fd, T_REVIVE, 1);
}

static void *blocked_thread(void *p)
{
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, 0);
	volatile uint32_t *r = p;
	r[4] = 0x1234;
	return (void *)(uintptr_t)r[4];
}

static void t_mmap(void)
{
	int fd = node(), before = ioctl(fd, T_LIVE, 0);
	int dev = ioctl(fd, T_NEW, 0);
	volatile uint32_t *m = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, dev, 0x1000);
	CHECK(m != MAP_FAILED);
	m[1] = 0xabcdef01;
	uint32_t v = 0;
	CHECK(pread(dev, &v, 4, 0x1004) == 4 && v == 0xabcdef01);
	volatile uint32_t *r = mmap(0, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED, dev, 0x10000);
	CHECK(r != MAP_FAILED);
	r[0] = 0x11223344;
	CHECK(r[0] == 0x11223344 && ioctl(dev, T_PEEK_REGISTER, 0) == 0x11223344);
	r[0] |= 0x44000000;
	CHECK(r[0] == 0x55223344);
	((volatile uint8_t *)r)[1] = 0x99;
	CHECK(r[0] == 0x55229944);
	*(volatile uint64_t *)(r + 2) = 0x0123456789abcdefull;
	CHECK(r[2] == 0x89abcdef && r[3] == 0x01234567);
	char text[200], back[200];
	for (int i = 0; i < 200; i++) text[i] = (char)(i * 3);
	memcpy((void *)(r + 64), text, sizeof text);
	memcpy(back, (void *)(r + 64), sizeof back);
	CHECK(!memcmp(text, back, sizeof text));
	char *large = malloc(0x3000), *large2 = calloc(1, 0x3000);
	for (int i = 0; i < 0x3000; i++) large[i] = (char)(i * 5 + i / 256);
	memcpy((void *)(r + 256), large, 0x3000);
	memcpy(large2, (void *)(r + 256), 0x3000);
	CHECK(!memcmp(large, large2, 0x3000));
	CHECK(memcmp((void *)(r + 256), large, 0x100) == 0);
	memset((void *)(r + 256), 0x5a, 0x100);
	CHECK(r[256 + 63] == 0x5a5a5a5a);
	free(large), free(large2);
	/* threads that block every signal */
	pthread_t t;
	void *got;
	pthread_create(&t, 0, blocked_thread, (void *)r);
	pthread_join(t, &got);
	CHECK(got == (void *)0x1234);
	/* read-only */
	CHECK(mprotect((void *)(r + 1024), 4096, PROT_READ) == 0);
	struct sigaction a = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	sigaction(SIGSEGV, &a, 0);
	sigaction(SIGBUS, &a, 0);
	CHECK(r[1024] == r[1024]);
	if (!sigsetjmp(jump, 1)) {
		r[1025] = 1;
		CHECK(!"must fault");
	}
	CHECK(fault_signal == SIGSEGV && fault_code == SEGV_ACCERR && fault_address == r + 1025);
	r[1] = 5; /* the rest is as before */
	r[2049] = 6;
	CHECK(r[1] == 5 && r[2049] == 6);
	/* the program's own faults */
	if (!sigsetjmp(jump, 1)) {
		*(volatile int *)16 = 1;
		CHECK(!"must fault");
	}
	CHECK(fault_signal == SIGSEGV && fault_address == (void *)16);
	struct sigaction old;
	sigaction(SIGSEGV, 0, &old);
	CHECK(old.sa_sigaction == on_fault);
	/* a device that does not answer */
	volatile uint32_t *x = mmap(0, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED, dev, 0x1f000);
	if (!sigsetjmp(jump, 1)) {
		(void)x[3];
		CHECK(!"must fault");
	}
	CHECK(fault_signal == SIGBUS && fault_code == BUS_ADRERR && fault_address == x + 3);
	revive_fd = dev;
	a.sa_sigaction = on_bus_retry;
	sigaction(SIGBUS, &a, 0);
	x[3] = 77;
	CHECK(bus_count == 1 && x[3] == 77);
	ioctl(dev, T_REVIVE, 0);
	signal(SIGBUS, SIG_DFL);
	pid_t p = fork();
	if (!p) {
		r[5] = 55; /* trapped in the child too */
		if (r[5] != 55) _exit(1);
		(void)x[0];
		_exit(2);
	}
	int st;
	CHECK(waitpid(p, &st, 0) == p && WIFSIGNALED(st) && WTERMSIG(st) == SIGBUS);
	CHECK(r[5] == 55);
	/* unmapping parts; the device lives as long as a mapping */
	munmap((void *)x, 4096);
	munmap((void *)m, 8192);
	close(dev);
	CHECK(ioctl(fd, T_LIVE, 0) == before + 1);
	CHECK(munmap((void *)(r + 1024), 4096) == 0);
	r[1] = 6;
	r[2049] = 7;
	CHECK(r[1] == 6 && r[2049] == 7);
	if (!sigsetjmp(jump, 1)) {
		r[1024] = 1;
		CHECK(!"must fault");
	}
	CHECK(mmap((void *)r, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == r);
	r[0] = 1; /* plain memory now */
	CHECK(munmap((void *)r, 0x4000) == 0);
	CHECK(ioctl(fd, T_LIVE, 0) == before);
	signal(SIGSEGV, SIG_DFL);
	sigaction(SIGSEGV, 0, &old);
	CHECK(old.sa_handler == SIG_DFL);
	p = fork();
	if (!p) {
		*(volatile int *)16 = 1;
		_exit(0);
	}
	CHECK(waitpid(p, &st, 0) == p && WIFSIGNALED(st) && WTERMSIG(st) == SIGSEGV);
	/* MAP_FIXED over a reservation, as VMMs do */
	dev = ioctl(fd, T_NEW, 0);
	char *hole = mmap(0, 0x4000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	r = mmap(hole + 0x1000, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, dev, 0x10000);
	CHECK((char *)r == hole + 0x1000);
	r[7] = 70;
	volatile uint32_t *moved = mremap((void *)r, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, hole + 0x2000);
	CHECK((char *)moved == hole + 0x2000 && moved[7] == 70);
	munmap(hole, 0x4000);
	close(dev);
	CHECK(ioctl(fd, T_LIVE, 0) == before);
	close(fd);
}

static void t_children(void)
{
	char *argv[] = {"exercise", "open", 0}, *none[] = {0}, *other[] = {"LD_PRELOAD=/nonexistent/other.so", "A=b", 0}, *out[] = {"LD_PRELOAD=", 0};
	for (int i = 0; i < 5; i++) {
		pid_t p = fork();
		if (!p) {
			int null = open("/dev/null", O_WRONLY);
			dup2(null, 1), dup2(null, 2);
			if (i == 0) execve("/proc/self/exe", argv, none);
			if (i == 1) execve("/proc/self/exe", argv, other);
			if (i == 2) clearenv(), execl("/proc/self/exe", "exercise", "open", (char *)0);
			if (i == 3) clearenv(), execvp("/proc/self/exe", argv);
			if (i == 4) execve("/proc/self/exe", argv, out);
			_exit(9);
		}
		int st;
		CHECK(waitpid(p, &st, 0) == p && WIFEXITED(st) && WEXITSTATUS(st) == (i == 4));
	}
}

/* What programs do past libc's wrappers. */
static void t_syscall(void)
{
	int fd = (int)syscall(SYS_openat, AT_FDCWD, "/dev/vfio/vfio", O_RDWR, 0);
	struct statx sx;
	struct stat st;
	char b[8] = "";
	CHECK(fd >= 0 && syscall(SYS_ioctl, fd, T_VALUE, 3) == 3);
	FAILS(syscall(SYS_ioctl, fd, T_ERROR, EBUSY), EBUSY);
	CHECK(syscall(SYS_statx, AT_FDCWD, "/dev/vfio/7", 0, STATX_BASIC_STATS, &sx) == 0 && S_ISCHR(sx.stx_mode));
	CHECK(syscall(SYS_fstat, fd, &st) == 0 && S_ISCHR(st.st_mode));
	CHECK(syscall(SYS_pwrite64, fd, "abc", 3, 0) == 3 && syscall(SYS_pread64, fd, b, 3, 0) == 3 && !strcmp(b, "abc"));
	volatile uint32_t *r = (void *)syscall(SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0x10000);
	CHECK(r != MAP_FAILED);
	r[0] = 9;
	CHECK(r[0] == 9 && syscall(SYS_munmap, r, 4096) == 0);
	CHECK(syscall(SYS_getpid) == getpid() && syscall(SYS_gettid) == gettid());
	FAILS(syscall(SYS_close, -1), EBADF);
	FAILS(syscall(511), ENOSYS);
	FAILS(syscall(100000), ENOSYS);
	CHECK(syscall(SYS_close, fd) == 0);
}

static void t_hugetlb(void)
{
	char *p = mmap(0, 2 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	CHECK(p != MAP_FAILED && ((uintptr_t)p & ((2 << 20) - 1)) == 0);
	if (p != MAP_FAILED) {
		p[0] = p[(2 << 20) - 1] = 1;
		CHECK(munmap(p, 2 << 20) == 0);
	}
}

/* Last: kills the box. */
static void *waits(void *arg)
{
	int fd = *(int *)arg;
	return (void *)(long)(ioctl(fd, T_SLEEP, 60000) == -1 ? errno : 0);
}
static void t_death(void)
{
	int fd = node();
	int dev = ioctl(fd, T_NEW, 0);
	volatile uint32_t *r = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, dev, 0x10000);
	pthread_t t;
	pthread_create(&t, 0, waits, &fd);
	usleep(100000);
	FAILS(ioctl(fd, T_DIE, 0), EIO);
	void *e;
	pthread_join(t, &e);
	CHECK(e == (void *)EIO);
	FAILS(ioctl(fd, T_VALUE, 1), EIO);
	FAILS(open("/dev/vfio/vfio", O_RDWR), ENODEV);
	char b[4];
	FAILS(pread(fd, b, 4, 0), EIO);
	FAILS(read(fd, b, 4), EIO);
	struct sigaction a = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	sigaction(SIGBUS, &a, 0);
	if (!sigsetjmp(jump, 1)) {
		(void)r[0];
		CHECK(!"must fault");
	}
	CHECK(fault_signal == SIGBUS);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}
/* Costs; `raw` is the same call past the library. */
#define BATCH(name, n, code)                                                                                                                \
	do {                                                                                                                                \
		double best = 1e18;                                                                                                         \
		for (int b_ = 0; b_ < 9; b_++) {                                                                                            \
			double t_ = now();                                                                                                  \
			for (int i_ = 0; i_ < n; i_++) {                                                                                    \
				code;                                                                                                       \
			}                                                                                                                   \
			t_ = (now() - t_) / n;                                                                                              \
			if (t_ < best) best = t_;                                                                                           \
		}                                                                                                                           \
		printf("  %-44s %9.0f ns\n", name, best);                                                                                   \
	} while (0)
static void t_cost(void)
{
	char b[64];
	int z = open("/dev/zero", O_RDWR), p = open("/proc/self/exe", O_RDONLY), fd = node();
	BATCH("read of /dev/zero, 1 byte", 100000, read(z, b, 1));
	BATCH("  the same, raw", 100000, RAW(SYS_read, (long)(z), (long)(b), (long)(1), 0L));
	BATCH("pread of a file, 64 bytes", 100000, pread(p, b, 64, 0));
	BATCH("  the same, raw", 100000, RAW(SYS_pread64, (long)(p), (long)(b), (long)(64), (long)(0)));
	BATCH("write to /dev/zero", 100000, write(z, b, 1));
	BATCH("  the same, raw", 100000, RAW(SYS_write, (long)(z), (long)(b), (long)(1), 0L));
	BATCH("failing ioctl", 100000, ioctl(z, T_VALUE, 0));
	BATCH("  the same, raw", 100000, RAW(SYS_ioctl, (long)(z), (long)(T_VALUE), (long)(0), 0L));
	BATCH("open and close of /etc/hostname", 20000, close(open("/etc/hostname", O_RDONLY)));
	BATCH("  the same, raw", 20000, close((int)RAW(SYS_openat, (long)(AT_FDCWD), (long)("/etc/hostname"), (long)(O_RDONLY), (long)(0))));
	BATCH("stat of /etc/hostname", 20000, struct stat st; stat("/etc/hostname", &st));
	BATCH("  the same, raw", 20000, struct stat st; RAW(SYS_newfstatat, (long)(AT_FDCWD), (long)("/etc/hostname"), (long)(&st), (long)(0)));
	if (fd < 0) return;
	BATCH("ioctl of a handle (Python answers)", 300, ioctl(fd, T_VALUE, 5));
	BATCH("pread of a handle", 300, pread(fd, b, 4, 0));
	int dev = ioctl(fd, T_NEW, 0);
	volatile uint32_t *r = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, dev, 0x10000);
	BATCH("read of a trapped register", 300, (void)r[0]);
	close(z), close(p), close(fd);
}

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {{"open", t_open}, {"ioctl", t_ioctl}, {"ask", t_ask}, {"descriptors", t_descriptors}, {"readwrite", t_readwrite}, {"stat", t_stat},
             {"sysfs", t_sysfs}, {"threads", t_threads}, {"fork", t_fork}, {"closefrom", t_closefrom}, {"rights", t_rights}, {"signals", t_signals},
             {"mmap", t_mmap}, {"hugetlb", t_hugetlb}, {"children", t_children}, {"syscall", t_syscall}, {"cost", t_cost}, {"death", t_death}};

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "inherited")) return inherited(atoi(argv[2]));
	setvbuf(stdout, 0, _IONBF, 0);
	int passed = 0, failed = 0;
	for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
		int wanted = argc < 2 || !strcmp(argv[1], "all");
		for (int k = 1; k < argc; k++) wanted |= !strcmp(argv[k], tests[i].name);
		if (!wanted) continue;
		failures_here = 0;
		test_name = tests[i].name;
		tests[i].run();
		printf("%s %s\n", failures_here ? "FAIL" : "ok  ", test_name);
		if (failures_here) failed++;
		else passed++;
	}
	printf("%d passed, %d failed\n", passed, failed);
	return failed != 0;
}
