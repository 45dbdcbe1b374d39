/* Which path belongs to the box. */
#include "box.h"
#include <stdlib.h>
#include <string.h>

int rewrite_sysfs, cwd_near;
unsigned char first_letter[256];
char box_root[PATH_MAX];
static char canonical_root[PATH_MAX];
static size_t root_length, canonical_length;

#define PREFIX_MAX 64
static struct {
	const char *text;
	size_t length;
} prefix[PREFIX_MAX];
static int prefix_count;
#define KVM_NODE "/dev/kvm"
static int has_kvm; /* else the node is the system's */

static int below(const char *path, const char *folder, size_t n)
{
	return !strncmp(path, folder, n) && (path[n] == '/' || !path[n]);
}

static int kind_of(const char *p)
{
	if (!strncmp(p, "/dev/", 5)) return below(p, "/dev/vfio", 9) || !strcmp(p, "/dev/iommu") || !strncmp(p, "/dev/pasid-walker", 17) || (has_kvm && !strcmp(p, KVM_NODE)) ? PLACE_DEV : PLACE_NONE;
	for (int i = 0; i < prefix_count; i++)
		if (below(p, prefix[i].text, prefix[i].length)) return PLACE_SYS;
	return PLACE_NONE;
}

int strip_root(char *s)
{
	size_t n = 0;
	if (root_length && below(s, box_root, root_length)) n = root_length;
	else if (canonical_length && below(s, canonical_root, canonical_length)) n = canonical_length;
	if (!n) return 0;
	memmove(s, s + n, strlen(s + n) + 1);
	if (!*s) strcpy(s, "/");
	return 1;
}

/* `//`, `/./` and `/../` are resolved in the text. 1: there was a `..`. */
static int normalise(const char *in, char *out)
{
	size_t n = 0;
	int up = 0;
	while (*in) {
		while (*in == '/') in++;
		size_t l = strcspn(in, "/");
		if (!l) break;
		if (l == 2 && in[0] == '.' && in[1] == '.') {
			up = 1;
			while (n && out[--n] != '/') {}
		} else if (l != 1 || in[0] != '.') {
			out[n++] = '/';
			memcpy(out + n, in, l);
			n += l;
		}
		in += l;
	}
	if (!n) out[n++] = '/';
	out[n] = 0;
	return up;
}

static long fd_path(int fd, char *out)
{
	char link[40] = "/proc/self/fd/", digits[12];
	int k = 0, n = (int)strlen(link);
	if (fd < 0) return -EBADF;
	do digits[k++] = (char)('0' + fd % 10);
	while (fd /= 10);
	while (k) link[n++] = digits[--k];
	link[n] = 0;
	long r = SYS(readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
	if (r >= 0) out[r] = 0;
	return r;
}

static int join(char *out, const char *a, const char *b)
{
	size_t n = strlen(a), m = strlen(b);
	if (n + m >= PATH_MAX) return 0;
	memcpy(out, a, n);
	memcpy(out + n, b, m + 1);
	return 1;
}

/* A `..` after a symbolic link leaves from the link's target: so the kernel is asked where it arrives. 0: nowhere. */
static NOINLINE int physical(const char *real, char *out)
{
	long fd = SYS(openat, AT_FDCWD, real, O_PATH | O_CLOEXEC, 0);
	if (fd < 0) return 0;
	int found = fd_path((int)fd, out) > 0 && out[0] == '/';
	SYS(close, fd);
	if (found) strip_root(out);
	return found;
}

/* What the path is in before its first `..` */
static int kind_before_up(char *raw)
{
	for (char *p = raw; (p = strstr(p, "/..")); p++) {
		if (p[3] && p[3] != '/') continue;
		char head[PATH_MAX];
		*p = 0;
		normalise(raw, head);
		*p = '/';
		return kind_of(head);
	}
	return PLACE_NONE;
}

static NOINLINE int place_with_up(struct place *w, char *raw)
{
	char link[PATH_MAX];
	if (w->kind == PLACE_DEV) return 0;
	strip_root(raw);
	int before = kind_before_up(raw);
	if (before == PLACE_DEV && !w->kind) { /* no symbolic links there, and the real folder may not exist */
		w->kind = PLACE_OUT;
		strcpy(w->real, w->path);
		return 1;
	}
	if (before != PLACE_SYS || !(rewrite_sysfs ? join(w->real, box_root, raw) : join(w->real, raw, ""))) return 0;
	if (!physical(w->real, link)) {
		if (w->kind) return 0;
		w->kind = rewrite_sysfs ? PLACE_OUT : PLACE_NONE;
		return 1;
	}
	w->kind = kind_of(link);
	if (w->kind) strcpy(w->path, link);
	else if (rewrite_sysfs) {
		w->kind = PLACE_OUT;
		strcpy(w->real, link);
	}
	return 1;
}

int place_of(int dirfd, const char *path, struct place *w)
{
	char raw[PATH_MAX];
	w->kind = PLACE_NONE;
	size_t n = 0, l = strlen(path);
	if (path[0] != '/') {
		if (!l) return 0;
		long r = dirfd == AT_FDCWD ? SYS(getcwd, raw, PATH_MAX - 1) : fd_path(dirfd, raw);
		if (r <= 0 || raw[0] != '/') return 0;
		n = strlen(raw);
		raw[n++] = '/';
	}
	if (n + l >= PATH_MAX) return 0;
	memcpy(raw + n, path, l + 1);
	int up = normalise(raw, w->path);
	strip_root(w->path);
	w->kind = kind_of(w->path);
	if (unlikely(up) && place_with_up(w, raw)) return w->kind;
	if (!w->kind) return 0;

	int done = w->kind == PLACE_DEV || rewrite_sysfs ? join(w->real, box_root, w->path) : join(w->real, w->path, "");
	if (!done) {
		w->kind = PLACE_NONE;
		return 0;
	}
	l = strlen(w->real);
	if (path[strlen(path) - 1] == '/' && w->real[l - 1] != '/' && l + 1 < PATH_MAX) strcpy(w->real + l, "/");
	return w->kind;
}

static const char *number_after(const char *p, long *n)
{
	if (*p < '0' || *p > '9') return 0;
	*n = 0;
	while (*p >= '0' && *p <= '9' && *n < 100000000) *n = *n * 10 + *p++ - '0';
	return p;
}

int fd_in_path(const char *p)
{
	long n, pid;
	if (!strncmp(p, "/dev/fd/", 8)) p += 8;
	else if (!strncmp(p, "/proc/self/fd/", 14)) p += 14;
	else if (!strncmp(p, "/proc/thread-self/fd/", 21)) p += 21;
	else if (!strncmp(p, "/proc/", 6)) {
		p = number_after(p + 6, &pid);
		if (!p || strncmp(p, "/fd/", 4) || (pid != SYS(getpid) && pid != SYS(gettid))) return -1;
		p += 4;
	} else return -1;
	p = number_after(p, &n);
	return p && !*p ? (int)n : -1;
}

/* Relative paths are looked at only in folders from which the box's can be reached downwards. */
void cwd_changed(void)
{
	char cwd[PATH_MAX];
	if (SYS(getcwd, cwd, sizeof cwd) <= 0) {
		cwd_near = 0;
		return;
	}
	strip_root(cwd);
	int near = kind_of(cwd) != PLACE_NONE || !strcmp(cwd, "/") || !strcmp(cwd, "/dev");
	size_t n = strlen(cwd);
	for (int i = 0; i < prefix_count && !near; i++) near = below(prefix[i].text, cwd, n);
	cwd_near = near;
}

void paths_init(void)
{
	const char *mode = getenv("VFIOBOX_SYSFS"), *root = getenv("VFIOBOX_ROOT"), *list = getenv("VFIOBOX_PATHS");
	rewrite_sysfs = !(mode && !strcmp(mode, "mount"));
	if (root && root[0] == '/' && strlen(root) < PATH_MAX - 64) {
		normalise(root, box_root);
		root_length = strlen(box_root);
		long fd = SYS(openat, AT_FDCWD, box_root, O_PATH | O_CLOEXEC | O_DIRECTORY, 0);
		if (fd >= 0) {
			if (fd_path((int)fd, canonical_root) > 0 && strcmp(canonical_root, box_root)) canonical_length = strlen(canonical_root);
			SYS(close, fd);
		}
		first_letter[(unsigned char)box_root[1]] = 1;
		if (canonical_length) first_letter[(unsigned char)canonical_root[1]] = 1;
	} else rewrite_sysfs = 0; /* no tree to rewrite to */
	first_letter['d'] = 1;
	/* A colon separates only in front of a slash: names in sysfs have colons. */
	char *p = list ? strdup(list) : 0;
	while (p && *p) {
		char *next = strstr(p, ":/");
		if (next) *next++ = 0;
		size_t n = strlen(p);
		while (n > 1 && p[n - 1] == '/') p[--n] = 0;
		if (!strcmp(p, KVM_NODE)) has_kvm = 1;
		else if (p[0] == '/' && n > 1 && prefix_count < PREFIX_MAX) {
			prefix[prefix_count].text = p;
			prefix[prefix_count++].length = n;
			first_letter[(unsigned char)p[1]] = 1;
		}
		p = next;
	}
	cwd_changed();
}
