/*
 * A program whose heap a device walks: lists that the device follows by the program's own addresses, lists that lead nowhere, and
 * processes that end while the device is at it.
 *
 *   sva NODE walk COUNT     builds a list over COUNT pages that nobody has touched but for the nodes, lets the device add 1 to each
 *   sva NODE astray         lists that leave the program's memory, and one in memory that cannot be written
 *   sva NODE die ROUNDS     processes that exit or are killed while the device follows their endless list
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "pasid-walker.h"

typedef struct pasid_walker_node node;

static int fail(const char *what)
{
	printf("FAIL %s: %s\n", what, strerror(errno));
	exit(1);
}

static int open_bound(const char *path, unsigned *pasid)
{
	struct pasid_walker_bind bind = { .argsz = sizeof(bind) };
	int fd = open(path, O_RDWR);
	if (fd < 0)
		fail(path);
	if (ioctl(fd, PASID_WALKER_BIND, &bind))
		fail("BIND");
	if (pasid)
		*pasid = bind.pasid;
	return fd;
}

static void start(int fd, void *head, unsigned limit, unsigned flags)
{
	struct pasid_walker_walk walk = { .argsz = sizeof(walk), .flags = flags, .head = (unsigned long)head, .limit = limit };
	if (ioctl(fd, PASID_WALKER_WALK, &walk))
		fail("WALK");
}

static struct pasid_walker_status status(int fd)
{
	struct pasid_walker_status s = { .argsz = sizeof(s) };
	if (ioctl(fd, PASID_WALKER_STATUS, &s))
		fail("STATUS");
	return s;
}

static struct pasid_walker_status finish(int fd)
{
	for (int i = 0; i < 20000; i++) {
		struct pasid_walker_status s = status(fd);
		if (s.state != PASID_WALKER_BUSY)
			return s;
		usleep(500);
	}
	errno = ETIMEDOUT;
	fail("the walk");
	return (struct pasid_walker_status){ 0 };
}

/* Nodes in shuffled order, one on each page, some over the border of two pages. */
static node *build(int count)
{
	char *pages = mmap(NULL, (size_t)(count + 1) * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int *order = malloc(count * sizeof(int));
	node *head = NULL;
	if (pages == MAP_FAILED || !order)
		fail("memory");
	for (int i = 0; i < count; i++)
		order[i] = i;
	srand(5);
	for (int i = count - 1; i > 0; i--) {
		int j = rand() % (i + 1), kept = order[i];
		order[i] = order[j];
		order[j] = kept;
	}
	for (int i = 0; i < count; i++) {
		node *n = (node *)(pages + (size_t)order[i] * 4096 + (i % 7 ? 16 * (i % 200) : 4088));
		n->value = i;
		n->next = (unsigned long)head;
		head = n;
	}
	free(order);
	return head;
}

static long counter(const char *name)
{
	char path[96], text[32] = { 0 };
	snprintf(path, sizeof(path), "/sys/module/vfiobox/counters/%s", name);
	int fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 1)
		fail(path);
	close(fd);
	return atol(text);
}

static void walk(const char *path, int count)
{
	unsigned pasid;
	int fd = open_bound(path, &pasid);
	node *head = build(count);
	start(fd, head, count + 5, PASID_WALKER_ADD);
	struct pasid_walker_status s = finish(fd);
	unsigned long wrong = 0, value = count;
	for (node *n = head; n; n = (node *)n->next)
		if (n->value != value--)
			wrong++;
	printf("walk state %u code %u visited %u sum %llu requests %s wrong %lu pasid %u\n", s.state, s.code, s.visited,
	       (unsigned long long)s.sum, s.page_requests >= (unsigned)count ? "many" : "few", wrong, pasid);
	start(fd, head, count + 5, 0);
	s = finish(fd);
	printf("again state %u visited %u sum %llu requests %u\n", s.state, s.visited, (unsigned long long)s.sum, s.page_requests);
	if (ioctl(fd, PASID_WALKER_UNBIND))
		fail("UNBIND");
	printf("unbound pins %ld bonds %ld faults %ld\n", counter("pins"), counter("bonds"), counter("faults"));
	close(fd);
}

static void report(const char *what, int fd, unsigned long where)
{
	struct pasid_walker_status s = finish(fd);
	printf("%s state %u code %u visited %u at %s\n", what, s.state, s.code, s.visited,
	       s.fault_address == (where & ~4095ul) ? "the place" : "another place");
}

static void astray(const char *path)
{
	int fd = open_bound(path, NULL);
	char *pages = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	node *a = (node *)pages, *b = (node *)(pages + 4096), *c = (node *)(pages + 8192);
	a->next = (unsigned long)b;
	b->next = (unsigned long)c;
	munmap(c, 4096);
	start(fd, a, 100, 0);
	report("hole", fd, (unsigned long)c);
	start(fd, (void *)0x7ffffffff000ul, 100, 0);
	report("kernel", fd, 0x7ffffffff000ul);
	start(fd, (void *)0x123456789abcdef0ul, 100, 0);
	report("nonsense", fd, 0x123456789abcdef0ul);
	b->next = 0;
	mprotect(b, 4096, PROT_READ);
	start(fd, a, 100, PASID_WALKER_ADD);
	report("read-only", fd, (unsigned long)b);
	start(fd, a, 100, 0);
	report("readable", fd, 0);
	/* Unmapped under the device's feet: the translation that it holds leads nowhere. */
	a->next = (unsigned long)a;
	start(fd, a, ~0u, 0);
	while (status(fd).visited < 100)
		usleep(100);
	munmap(pages, 2 * 4096);
	report("pulled", fd, (unsigned long)a);
	close(fd);
}

static void endless(const char *path, int out)
{
	int fd = open_bound(path, NULL);
	node *head = build(64), *last = head;
	while (last->next)
		last = (node *)last->next;
	last->next = (unsigned long)head;
	start(fd, head, ~0u, PASID_WALKER_ADD);
	while (status(fd).visited < 100)
		usleep(100);
	if (write(out, "!", 1) != 1)
		exit(3);
}

static void die(const char *path, int rounds)
{
	for (int i = 0; i < rounds; i++) {
		int p[2];
		char byte;
		if (pipe(p))
			fail("pipe");
		fflush(stdout);
		pid_t child = fork();
		if (!child) {
			endless(path, p[1]);
			if (i % 2)
				_exit(0);
			for (;;)
				pause();
		}
		close(p[1]);
		if (read(p[0], &byte, 1) != 1)
			fail("the child");
		close(p[0]);
		if (i % 2 == 0)
			kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		for (int wait = 0; counter("bonds") || counter("pins") || counter("faults") || counter("files"); wait++) {
			if (wait == 10000) {
				printf("left after %d: bonds %ld pins %ld faults %ld files %ld\n", i, counter("bonds"), counter("pins"),
				       counter("faults"), counter("files"));
				exit(1);
			}
			usleep(1000);
		}
	}
	printf("died %d\n", rounds);
	walk(path, 8);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 4 && !strcmp(argv[2], "walk"))
		walk(argv[1], atoi(argv[3]));
	else if (argc == 3 && !strcmp(argv[2], "astray"))
		astray(argv[1]);
	else if (argc == 4 && !strcmp(argv[2], "die"))
		die(argv[1], atoi(argv[3]));
	else
		return 2;
	return 0;
}
