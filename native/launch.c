/*
 * vfiobox-launch PLAN -- PROGRAM ARGS...
 *
 * Gives the program a mount namespace in which the generated tree lies over the real one, then becomes the program.
 * PLAN: a text file, one operation a line: `tmpfs PATH`, `mkdir PATH`, `bind SRC DST`, `link TARGET PATH`. A space inside
 * a path is written \040, as in fstab. `-`: no mounts.
 * Environment: VFIOBOX_PRELOAD is what LD_PRELOAD shall be for the program, in front of what is there;
 * VFIOBOX_SYSFS_WANTED=mount makes a refused namespace an error. Exit status when the program could not be started:
 * 125 the namespace, 126 not executable, 127 not found.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void say(const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	fputs("vfiobox: ", stderr);
	vfprintf(stderr, format, ap);
	fputc('\n', stderr);
	va_end(ap);
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0) return -1;
	ssize_t n = write(fd, text, strlen(text));
	int e = errno;
	close(fd);
	errno = e;
	return n == (ssize_t)strlen(text) ? 0 : -1;
}

/* A new user namespace gives every capability; exec must leave the program those it would have had. */
static struct __user_cap_data_struct before[2];
static int gifted;

static void look_at_capabilities(void)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	syscall(SYS_capget, &h, before);
}

static void drop_gifts(void)
{
	if (!gifted) return;
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (int c = 0; c < 64 && geteuid() == 0; c++) /* root's exec takes all that the bounding set allows */
		if (!(before[c / 32].permitted >> (c % 32) & 1)) prctl(PR_CAPBSET_DROP, c, 0, 0, 0);
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	syscall(SYS_capset, &h, before);
}

/* 0, or the errno. Without privilege a user namespace comes first, in which everybody stays who they are. */
static int enter_namespace(void)
{
	if (unshare(CLONE_NEWNS) == 0) return 0;
	uid_t uid = geteuid();
	gid_t gid = getegid();
	char line[64];
	look_at_capabilities();
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS)) return errno;
	gifted = 1;
	if (write_file("/proc/self/setgroups", "deny") && errno != ENOENT) return errno;
	snprintf(line, sizeof line, "%u %u 1", gid, gid);
	if (write_file("/proc/self/gid_map", line)) return errno;
	snprintf(line, sizeof line, "%u %u 1", uid, uid);
	if (write_file("/proc/self/uid_map", line)) return errno;
	return 0;
}

static int make_folders(char *path)
{
	for (char *p = path + 1; *p; p++) {
		if (*p != '/') continue;
		*p = 0;
		int r = mkdir(path, 0755);
		*p = '/';
		if (r && errno != EEXIST && errno != EROFS && errno != EACCES) return -1;
	}
	return mkdir(path, 0755) && errno != EEXIST ? -1 : 0;
}

/* A file can only be bound over a file. */
static int bind_over(const char *from, const char *to)
{
	struct stat s, t;
	if (stat(from, &s)) return -1;
	if (lstat(to, &t) && errno == ENOENT) {
		if (S_ISDIR(s.st_mode)) {
			char copy[PATH_MAX];
			snprintf(copy, sizeof copy, "%s", to);
			if (make_folders(copy)) return -1;
		} else {
			int fd = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
			if (fd < 0) return -1;
			close(fd);
		}
	}
	return mount(from, to, 0, MS_BIND | MS_REC, 0);
}

static void unescape(char *s)
{
	char *out = s;
	for (; s && *s; s++) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' && s[3] >= '0' && s[3] <= '7') {
			*out++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 3;
		} else *out++ = *s;
	}
	if (out) *out = 0;
}

/* 0, or -1 and the errno, after a message that names the line. `quiet`: no message when it is not permitted. */
static int carry_out(FILE *plan, const char *name, int quiet)
{
	char *line = 0;
	size_t room = 0;
	int number = 0;
	while (getline(&line, &room, plan) > 0) {
		number++;
		line[strcspn(line, "\n")] = 0;
		char *op = line, *a = strchr(line, ' '), *b = 0;
		if (!*op || *op == '#') continue;
		if (a) {
			*a++ = 0;
			b = strchr(a, ' ');
		}
		int two = !strcmp(op, "bind") || !strcmp(op, "link"), r = -1;
		if (two && b) *b++ = 0;
		unescape(a);
		unescape(b);
		errno = EINVAL;
		if (!a || (two && !b)) r = -1;
		else if (!strcmp(op, "tmpfs")) r = mount("vfiobox", a, "tmpfs", MS_NOSUID, "mode=0755");
		else if (!strcmp(op, "mkdir")) r = make_folders(a);
		else if (!strcmp(op, "bind")) r = bind_over(a, b);
		else if (!strcmp(op, "link")) r = symlink(a, b);
		if (r) {
			int e = errno;
			if (!quiet || (e != EPERM && e != EACCES))
				say("%s line %d: %s %s%s%s: %s", name, number, op, a ? a : "", two && b ? " " : "", two && b ? b : "", strerror(e));
			free(line);
			errno = e;
			return -1;
		}
	}
	free(line);
	return 0;
}

/* Where execvp will find it; 0 and errno when nowhere. */
static int find_program(const char *name, char *out)
{
	if (strchr(name, '/')) {
		snprintf(out, PATH_MAX, "%s", name);
		return access(out, F_OK) == 0;
	}
	const char *p = getenv("PATH");
	int denied = 0;
	if (!p) p = "/bin:/usr/bin";
	while (*name && p) {
		size_t n = strcspn(p, ":");
		struct stat st;
		snprintf(out, PATH_MAX, "%.*s%s%s", (int)n, p, n ? "/" : "", name);
		if (!stat(out, &st) && S_ISREG(st.st_mode)) {
			if (!access(out, X_OK)) return 1;
			denied = 1;
		}
		p = p[n] ? p + n + 1 : 0;
	}
	errno = denied ? EACCES : ENOENT;
	return 0;
}

/* 1: an ELF program that no dynamic linker loads, so no library can be put in front of it. */
static int is_static(const char *path)
{
	Elf64_Ehdr h;
	int result = 0, fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) return 0;
	if (pread(fd, &h, sizeof h, 0) == sizeof h && !memcmp(h.e_ident, ELFMAG, SELFMAG) && h.e_ident[EI_CLASS] == ELFCLASS64 &&
	    (h.e_type == ET_EXEC || h.e_type == ET_DYN) && h.e_phentsize == sizeof(Elf64_Phdr)) {
		result = 1;
		for (unsigned i = 0; i < h.e_phnum; i++) {
			Elf64_Phdr p;
			if (pread(fd, &p, sizeof p, (off_t)(h.e_phoff + i * sizeof p)) != sizeof p || p.p_type == PT_INTERP) {
				result = 0;
				break;
			}
		}
	}
	close(fd);
	return result;
}

static void preload(void)
{
	const char *ours = getenv("VFIOBOX_PRELOAD"), *theirs = getenv("LD_PRELOAD");
	if (!ours || !*ours) return;
	if (theirs && *theirs) {
		size_t n = strlen(ours) + strlen(theirs) + 2;
		char *both = malloc(n);
		if (!both) return;
		snprintf(both, n, "%s:%s", ours, theirs);
		setenv("LD_PRELOAD", both, 1);
		free(both);
	} else setenv("LD_PRELOAD", ours, 1);
}

/* A program built with a shared AddressSanitizer insists on being first, which a preloaded library always is. */
static void allow_sanitizers(void)
{
	const char *theirs = getenv("ASAN_OPTIONS"), *ours = "verify_asan_link_order=0";
	if (theirs && strstr(theirs, "verify_asan_link_order")) return;
	char both[4096];
	snprintf(both, sizeof both, "%s%s%s", ours, theirs && *theirs ? ":" : "", theirs ? theirs : "");
	if (!theirs || strlen(theirs) + 64 < sizeof both) setenv("ASAN_OPTIONS", both, 1);
}

int main(int argc, char **argv)
{
	if (argc < 4 || strcmp(argv[2], "--")) {
		fprintf(stderr, "usage: vfiobox-launch PLAN -- PROGRAM [ARGUMENT...]\n");
		return 125;
	}
	const char *mode = "rewrite", *wanted = getenv("VFIOBOX_SYSFS_WANTED");
	if (strcmp(argv[1], "-")) {
		FILE *plan = fopen(argv[1], "re"); /* before the mounts: they may cover it */
		if (!plan) {
			say("cannot read %s: %s", argv[1], strerror(errno));
			return 125;
		}
		char cwd[PATH_MAX];
		int here = getcwd(cwd, sizeof cwd) != 0;
		int e = enter_namespace();
		if (!e && mount("none", "/", 0, MS_REC | MS_PRIVATE, 0)) e = errno;
		if (e) {
			if (wanted && !strcmp(wanted, "mount")) {
				say("this machine refuses a mount namespace (%s), and sysfs was to be mounted; without that demand paths are rewritten instead",
				    e == ENOSPC || e == EUSERS ? "no user namespaces are left or allowed" : strerror(e));
				return 125;
			}
		} else {
			int demanded = wanted && !strcmp(wanted, "mount");
			if (carry_out(plan, argv[1], !demanded)) {
				if (demanded || (errno != EPERM && errno != EACCES)) return 125;
			} else mode = "mount"; /* else mounting is forbidden here: what was mounted so far does no harm */
			if (here && chdir(cwd)) {} /* a folder that is now covered: see what lies over it */
		}
		fclose(plan);
	}
	setenv("VFIOBOX_SYSFS", mode, 1);

	char path[PATH_MAX];
	char **program = argv + 3;
	if (!find_program(program[0], path)) {
		int e = errno;
		say("cannot run '%s': %s", program[0], strerror(e));
		return e == ENOENT || e == ENOTDIR ? 127 : 126;
	}
	if (is_static(path))
		say("%s is statically linked: its calls cannot be intercepted, so it will not find the devices of the box", program[0]);

	drop_gifts();
	struct sigaction d;
	memset(&d, 0, sizeof d);
	d.sa_handler = SIG_DFL;
	for (int s = 1; s < NSIG; s++) sigaction(s, &d, 0);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, 0);
	preload();
	allow_sanitizers();
	unsetenv("VFIOBOX_PRELOAD");
	unsetenv("VFIOBOX_SYSFS_WANTED");
	execvp(program[0], program);
	int e = errno;
	unsetenv("LD_PRELOAD");
	say("cannot run '%s': %s", program[0], strerror(e));
	return e == ENOENT ? 127 : 126;
}
