/* The way to the box: one connection per thread, one request and one answer at a time. */
#include "box.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

_Atomic uint64_t handle_hint[HINT_FDS / 64], folder_hint[HINT_FDS / 64], own_hint[HINT_FDS / 64];
int any_handle;
int box_active;

static struct sockaddr_un box_address;
static socklen_t box_address_length;
static pthread_key_t thread_key;
static int thread_key_made;

/* Zero-filled by the kernel in a forked child (MADV_WIPEONFORK): that is how a fork is noticed without asking for the pid. */
struct forgotten {
	_Atomic uint64_t word;
	_Atomic int told_yama;
};
static struct forgotten fallback_page, *page = &fallback_page;

/* Of this thread. Tiny: it comes out of the program's static TLS. */
static __thread struct {
	int fd; /* number + 1 */
	uint32_t seq;
	uint64_t cookie, word;
	char *busy; /* frame of the exchange under way */
} mine __attribute__((tls_model("initial-exec")));

/* ---- descriptors of the library itself ---- */

#define OWN_MAX 1024
static struct own {
	_Atomic int fd; /* number + 1 */
	uint64_t cookie;
} own_table[OWN_MAX];
static _Atomic int own_used;

static uint64_t cookie_of(int fd)
{
	uint64_t cookie = 0;
	socklen_t l = sizeof cookie;
	if (SYS(getsockopt, fd, SOL_SOCKET, SO_COOKIE, &cookie, &l) < 0) return 0;
	return cookie;
}

void own_add(int fd)
{
	for (int i = 0; i < OWN_MAX; i++) {
		int empty = 0;
		if (atomic_compare_exchange_strong(&own_table[i].fd, &empty, fd + 1)) {
			own_table[i].cookie = cookie_of(fd);
			hint_set(own_hint, fd);
			int used = atomic_load(&own_used);
			while (used < i + 1 && !atomic_compare_exchange_weak(&own_used, &used, i + 1)) {}
			return;
		}
	}
}

/* Closes it, unless the program closed it already and the number is another's now. */
void own_drop(int fd)
{
	int n = atomic_load(&own_used);
	for (int i = 0; i < n; i++)
		if (atomic_load(&own_table[i].fd) == fd + 1) {
			uint64_t cookie = own_table[i].cookie;
			atomic_store(&own_table[i].fd, 0);
			if (cookie_of(fd) == cookie) SYS(close, fd);
			return;
		}
}

int own_fd(int fd)
{
	if (likely(!hint_get(own_hint, fd))) return 0;
	int n = atomic_load(&own_used);
	for (int i = 0; i < n; i++)
		if (atomic_load(&own_table[i].fd) == fd + 1 && cookie_of(fd) == own_table[i].cookie) return 1;
	hint_clear(own_hint, fd);
	return 0;
}

int move_high(int fd)
{
	static const int floors[] = {512, 256, 128, 64, 32};
	for (size_t i = 0; i < sizeof floors / sizeof *floors; i++) {
		long n = SYS(fcntl, fd, F_DUPFD_CLOEXEC, floors[i]);
		if (n >= 0) return (int)n;
	}
	return -1;
}

/* ---- whose process is this ---- */

static uint64_t random_word(void)
{
	uint64_t w = 0;
	if (SYS(getrandom, &w, sizeof w, 0) != sizeof w) {
		struct timespec t;
		SYS(clock_gettime, 0, &t);
		w = ((uint64_t)SYS(getpid) << 40) ^ ((uint64_t)t.tv_sec << 30) ^ (uint64_t)t.tv_nsec;
	}
	return w ? w : 1;
}

uint64_t process_word(void)
{
	uint64_t w = atomic_load_explicit(&page->word, memory_order_acquire);
	if (likely(w)) return w;
	uint64_t fresh = random_word();
	return atomic_compare_exchange_strong(&page->word, &w, fresh) ? fresh : w;
}

/* In the child: the connections of the parent's threads must not be kept open here. */
static void after_fork(void)
{
	int n = atomic_load(&own_used);
	atomic_store(&page->word, 0);
	atomic_store(&page->told_yama, 0);
	for (int i = 0; i < n; i++) {
		int fd = atomic_load(&own_table[i].fd) - 1;
		uint64_t id;
		/* What a mapping keeps stays: a handle, or a file, which has no cookie. */
		if (fd < 0 || !own_table[i].cookie || handle_of(fd, &id)) continue;
		if (cookie_of(fd) == own_table[i].cookie) SYS(close, fd);
		atomic_store(&own_table[i].fd, 0);
	}
	mine.fd = 0;
	mine.busy = 0;
}

static void thread_ends(void *unused)
{
	(void)unused;
	if (mine.fd && mine.word == process_word()) own_drop(mine.fd - 1);
	mine.fd = 0;
}

/* ---- connections ---- */

static long send_with(int s, const struct iovec *iov, int n, int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr m = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)n};
	if (fd >= 0) {
		memset(&control, 0, sizeof control);
		m.msg_control = &control;
		m.msg_controllen = sizeof control;
		struct cmsghdr *h = CMSG_FIRSTHDR(&m);
		h->cmsg_level = SOL_SOCKET;
		h->cmsg_type = SCM_RIGHTS;
		h->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(h), &fd, sizeof fd);
	}
	long r;
	do r = SYS(sendmsg, s, &m, MSG_NOSIGNAL);
	while (r == -EINTR);
	return r;
}

static long send_request(int s, const struct iovec *iov, int n)
{
	struct msghdr m = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)n};
	long r;
	do r = SYS(sendmsg, s, &m, MSG_NOSIGNAL);
	while (r == -EINTR);
	return r;
}

static long open_connection(void)
{
	long s = SYS(socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), r;
	if (s < 0) return s;
	int high = move_high((int)s);
	if (high >= 0) {
		SYS(close, s);
		s = high;
	}
	do r = SYS(connect, s, &box_address, box_address_length);
	while (r == -EINTR);
	if (r < 0 && r != -EISCONN) {
		SYS(close, s);
		return r;
	}
	if (!atomic_exchange(&page->told_yama, 1)) { /* Yama: the box may read our memory */
		struct ucred peer;
		socklen_t l = sizeof peer;
		if (SYS(getsockopt, s, SOL_SOCKET, SO_PEERCRED, &peer, &l) >= 0 && peer.pid > 0) SYS(prctl, PR_SET_PTRACER, peer.pid, 0, 0, 0);
	}
	struct request hello = {.op = OP_HELLO, .a = process_word(), .b = PROTOCOL_VERSION};
	struct iovec iov = {&hello, sizeof hello};
	r = send_request((int)s, &iov, 1);
	if (r < 0) {
		SYS(close, s);
		return r;
	}
	return s;
}

static void drop_mine(void)
{
	if (!mine.fd) return;
	int fd = mine.fd - 1;
	mine.fd = 0;
	if (mine.word == process_word()) own_drop(fd);
	else if (cookie_of(fd) == mine.cookie) SYS(close, fd); /* the parent's, inherited */
}

static long my_connection(void)
{
	uint64_t word = process_word();
	if (mine.fd) {
		/* The program may have closed every descriptor it did not know, and the number may be another's. */
		if (mine.word == word && cookie_of(mine.fd - 1) == mine.cookie) return mine.fd - 1;
		drop_mine();
	}
	long s = open_connection();
	if (s < 0) return s;
	own_add((int)s);
	mine.cookie = cookie_of((int)s);
	mine.word = word;
	mine.fd = (int)s + 1;
	if (thread_key_made) pthread_setspecific(thread_key, (void *)1);
	return s;
}

/* ---- one exchange ---- */

/* The box wants the program's descriptor `wanted`. */
static long answer_ask(int s, uint32_t seq, int wanted)
{
	struct request q = {.op = OP_FDS, .seq = seq};
	int32_t state;
	struct iovec out[2] = {{&q, sizeof q}, {&state, sizeof state}};
	for (;;) {
		int open_now = wanted >= 0 && SYS(fcntl, wanted, F_GETFD, 0) >= 0;
		state = open_now ? 0 : EBADF;
		long n = send_with(s, out, 2, open_now ? wanted : -1);
		if (n != -EBADF) return n < 0 ? -EIO : 0; /* EBADF: another thread closed it just now */
	}
}

static int64_t exchange(int s, struct call *c, int *lost)
{
	struct iovec iov[2] = {{&c->q, sizeof c->q}, {(void *)c->out, c->out_length}};
	long n = send_request(s, iov, c->out_length ? 2 : 1);
	if (n == -EFAULT && c->out_length) n = send_request(s, iov, 1);
	*lost = 1;
	if (n < 0) return -EIO;

	if (c->q.op == OP_IOCTL) { /* as much as a reply can have; the kernel refuses a length that leads out of user space */
		uintptr_t end = 0x7ffffffff000, at = (uintptr_t)c->in;
		c->in_length = at >= end ? 0 : end - at < 65536 ? end - at : 65536;
	}
	union {
		char bytes[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control;
	for (;;) {
		struct iovec in[2] = {{&c->r, sizeof c->r}, {c->in, c->in_length}};
		struct msghdr m = {.msg_iov = in, .msg_iovlen = c->in_length ? 2 : 1, .msg_control = &control, .msg_controllen = sizeof control};
		do n = SYS(recvmsg, s, &m, MSG_CMSG_CLOEXEC);
		while (n == -EINTR);
		if (n == -EFAULT) { /* the message is consumed, the connection is in step */
			*lost = 0;
			return -EFAULT;
		}
		if (n < (long)sizeof c->r) return -EIO;
		struct cmsghdr *h = CMSG_FIRSTHDR(&m);
		c->fd = c->keep = -1;
		if (h && h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS) {
			if (h->cmsg_len >= CMSG_LEN(sizeof(int))) memcpy(&c->fd, CMSG_DATA(h), sizeof(int));
			if (h->cmsg_len >= CMSG_LEN(2 * sizeof(int))) memcpy(&c->keep, CMSG_DATA(h) + sizeof(int), sizeof(int));
		}
		if (c->keep >= 0 && c->q.op != OP_MMAP) {
			SYS(close, c->keep);
			c->keep = -1;
		}
		if (c->r.seq == c->q.seq && c->r.kind == 1) {
			if (answer_ask(s, c->q.seq, (int)c->r.ret) < 0) return -EIO;
			continue;
		}
		if (c->r.seq != c->q.seq || c->r.kind != 0) { /* of a call that was abandoned */
			if (c->fd >= 0) SYS(close, c->fd);
			if (c->keep >= 0) SYS(close, c->keep);
			continue;
		}
		*lost = 0;
		c->got = (size_t)n - sizeof c->r;
		if (c->r.ret >= 0 && c->r.fdoff != -2 && c->fd < 0) return -EMFILE; /* no number was free */
		return c->r.ret;
	}
}

int64_t box_call(struct call *c)
{
	char here;
	int lost = 0;
	int64_t r;
	c->fd = c->keep = -1;
	c->got = 0;
	c->r.fdoff = -2;
	c->r.flags = 0;
	if (unlikely(mine.busy)) {
		/* In a signal handler that came during an exchange; or that exchange was left by longjmp and its frame is gone. */
		stack_t st = {0};
		SYS(sigaltstack, 0, &st);
		if (!(st.ss_flags & SS_ONSTACK) && &here > mine.busy) {
			mine.busy = 0;
			drop_mine();
		} else {
			long s = open_connection();
			if (s < 0) return c->q.op == OP_OPEN ? -ENODEV : -EIO;
			c->q.seq = 1;
			r = exchange((int)s, c, &lost);
			SYS(close, s);
			return r;
		}
	}
	mine.busy = &here;
	atomic_signal_fence(memory_order_seq_cst);
	long s = my_connection();
	if (s < 0) {
		mine.busy = 0;
		return c->q.op == OP_OPEN ? -ENODEV : -EIO;
	}
	c->q.seq = ++mine.seq;
	r = exchange((int)s, c, &lost);
	if (lost) drop_mine();
	atomic_signal_fence(memory_order_seq_cst);
	mine.busy = 0;
	return r;
}

/* ---- whose descriptor is this ---- */

void drain_wakes(int fd)
{
	char wake[64];
	while (SYS(recvfrom, fd, wake, sizeof wake, MSG_DONTWAIT, 0, 0) > 0) {}
}

static int hex_digit(int c)
{
	if (c >= '0' && c <= '9') return c - '0';
	if (c >= 'a' && c <= 'f') return c - 'a' + 10;
	return -1;
}

int handle_of(int fd, uint64_t *id)
{
	static const char mark[] = "\0vfiobox:";
	struct sockaddr_un a;
	socklen_t l = sizeof a;
	if (fd < 0 || SYS(getsockname, fd, &a, &l) < 0) goto no;
	size_t n = l > offsetof(struct sockaddr_un, sun_path) ? l - offsetof(struct sockaddr_un, sun_path) : 0;
	if (n > sizeof a.sun_path) n = sizeof a.sun_path;
	if (a.sun_family != AF_UNIX || n < sizeof mark - 1 + 17 || memcmp(a.sun_path, mark, sizeof mark - 1)) goto no;
	uint64_t v = 0; /* the name is not NUL-terminated: the id is its last 16 characters */
	if (a.sun_path[n - 17] != ':') goto no;
	for (size_t i = n - 16; i < n; i++) {
		int d = hex_digit(a.sun_path[i]);
		if (d < 0) goto no;
		v = v << 4 | (uint64_t)d;
	}
	*id = v;
	any_handle = 1;
	hint_set(handle_hint, fd);
	return 1;
no:
	if (fd >= 0 && any_handle) hint_clear(handle_hint, fd);
	return 0;
}

void call_init(void)
{
	const char *path = getenv("VFIOBOX_SOCKET");
	if (!path || !*path || strlen(path) >= sizeof box_address.sun_path) return;
	box_address.sun_family = AF_UNIX;
	strcpy(box_address.sun_path, path);
	box_address_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
	void *p = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p != MAP_FAILED) {
		madvise(p, 4096, MADV_WIPEONFORK);
		page = p;
	}
	thread_key_made = pthread_key_create(&thread_key, thread_ends) == 0;
	pthread_atfork(0, 0, after_fork);
	box_active = 1;
}
