/*
 * The C twin of the IOVA allocator's and the id table's figures: a red-black tree of ranges with the place of the last allocation
 * remembered, magazines of freed ranges before it, and the kernel's two locks (never contended here); and a bitmap under bitmaps. Run by bench/iova.bench.ts, which compares the sums
 * of all addresses with its own: both give the same ones.
 *
 *   iova-twin CASE COUNT   →   "ns SUM"
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef uint64_t u64;

static atomic_int cpu_lock, tree_lock;
static inline void lock(atomic_int *at)
{
	while (atomic_exchange_explicit(at, 1, memory_order_acquire))
		;
}
static inline void unlock(atomic_int *at)
{
	atomic_store_explicit(at, 0, memory_order_release);
}

struct range {
	struct range *parent, *left, *right;
	int red;
	u64 lo, hi;
};

static struct range anchor = { .lo = ~0ull, .hi = ~0ull };
static struct range *root = &anchor, *cached = &anchor, *cached32 = &anchor;
static u64 max32 = 1 << 20;
#define LOW_LIMIT (1ull << 20)

static struct range *step(struct range *at, int up)
{
	struct range *next = up ? at->right : at->left;
	if (next) {
		for (;;) {
			struct range *down = up ? next->left : next->right;
			if (!down)
				return next;
			next = down;
		}
	}
	while (at->parent && at == (up ? at->parent->right : at->parent->left))
		at = at->parent;
	return at->parent;
}

static void relink(struct range *old, struct range *new)
{
	if (!old->parent)
		root = new;
	else if (old->parent->left == old)
		old->parent->left = new;
	else
		old->parent->right = new;
	if (new)
		new->parent = old->parent;
}

static void rotate(struct range *at, int left)
{
	struct range *up = left ? at->right : at->left;
	struct range *inner = left ? up->left : up->right;
	relink(at, up);
	if (left) {
		at->right = inner;
		up->left = at;
	} else {
		at->left = inner;
		up->right = at;
	}
	at->parent = up;
	if (inner)
		inner->parent = at;
}

static void insert(struct range *new, struct range *hint)
{
	struct range *at = hint ? hint : root, *parent = NULL;
	int left = 0;
	while (at) {
		parent = at;
		left = new->lo < at->lo;
		at = left ? at->left : at->right;
	}
	new->left = new->right = NULL;
	new->parent = parent;
	new->red = 1;
	if (left)
		parent->left = new;
	else
		parent->right = new;
	while (new->parent && new->parent->red) {
		struct range *father = new->parent, *grand = father->parent;
		int is_left = grand->left == father;
		struct range *uncle = is_left ? grand->right : grand->left;
		if (uncle && uncle->red) {
			father->red = uncle->red = 0;
			grand->red = 1;
			new = grand;
			continue;
		}
		if (new == (is_left ? father->right : father->left)) {
			rotate(father, is_left);
			new = father;
			father = new->parent;
		}
		father->red = 0;
		grand->red = 1;
		rotate(grand, !is_left);
	}
	root->red = 0;
}

static void erase(struct range *gone)
{
	struct range *child, *parent;
	int red = gone->red;
	if (!gone->left || !gone->right) {
		child = gone->left ? gone->left : gone->right;
		parent = gone->parent;
		relink(gone, child);
	} else {
		struct range *next = gone->right;
		while (next->left)
			next = next->left;
		red = next->red;
		child = next->right;
		if (next->parent == gone) {
			parent = next;
		} else {
			parent = next->parent;
			relink(next, child);
			next->right = gone->right;
			next->right->parent = next;
		}
		relink(gone, next);
		next->left = gone->left;
		next->left->parent = next;
		next->red = gone->red;
	}
	if (red)
		return;
	while (child != root && (!child || !child->red)) {
		int is_left = parent->left == child;
		struct range *other = is_left ? parent->right : parent->left;
		if (other->red) {
			other->red = 0;
			parent->red = 1;
			rotate(parent, is_left);
			other = is_left ? parent->right : parent->left;
		}
		struct range *inner = is_left ? other->left : other->right;
		struct range *outer = is_left ? other->right : other->left;
		if ((!inner || !inner->red) && (!outer || !outer->red)) {
			other->red = 1;
			child = parent;
			parent = child->parent;
			continue;
		}
		if (!outer || !outer->red) {
			inner->red = 0;
			other->red = 1;
			rotate(other, !is_left);
			other = inner;
			outer = is_left ? other->right : other->left;
		}
		other->red = parent->red;
		parent->red = 0;
		outer->red = 0;
		rotate(parent, is_left);
		child = root;
	}
	if (child)
		child->red = 0;
}

static struct range *find(u64 page)
{
	struct range *at = root;
	while (at) {
		if (page < at->lo)
			at = at->left;
		else if (page > at->hi)
			at = at->right;
		else
			return at;
	}
	return NULL;
}

/* The lowest range that begins at or above the limit. */
static struct range *above(u64 limit)
{
	struct range *at = root, *best = &anchor;
	while (at) {
		if (at->lo >= limit) {
			best = at;
			at = at->left;
		} else {
			at = at->right;
		}
	}
	return best;
}

static u64 search(struct range *from, u64 limit, u64 low, u64 count, u64 mask)
{
	struct range *at = from, *prev;
	u64 high = limit, page;
	do {
		if (at->lo < high)
			high = at->lo;
		page = (high - count) & mask;
		prev = at;
		at = step(at, 0);
	} while (at && page <= at->hi && page >= low);
	if (high < count || page < low)
		return 0;
	struct range *new = malloc(sizeof(*new));
	new->lo = page;
	new->hi = page + count - 1;
	insert(new, prev);
	if (new->hi < LOW_LIMIT)
		cached32 = new;
	else
		cached = new;
	return page;
}

static u64 take_range(u64 count, u64 limit_page)
{
	u64 limit = limit_page + 1, mask = ~0ull;
	if (count > 1)
		mask <<= 64 - __builtin_clzll(count - 1);
	if (limit <= LOW_LIMIT && count >= max32)
		return 0;
	struct range *from = limit <= LOW_LIMIT ? cached32 : cached;
	u64 retry = from->hi;
	u64 page = search(from, limit, 1, count, mask);
	if (!page && retry < limit)
		page = search(limit > LOW_LIMIT ? &anchor : above(limit), limit, retry + 1, count, mask);
	if (!page)
		max32 = count;
	return page;
}

static u64 allocate_range(u64 count, u64 limit_page)
{
	lock(&tree_lock);
	u64 page = take_range(count, limit_page);
	unlock(&tree_lock);
	return page;
}

static void free_range(u64 page)
{
	lock(&tree_lock);
	struct range *at = find(page);
	if (at == cached32 || (at->hi < LOW_LIMIT && at->lo >= cached32->lo))
		cached32 = step(at, 1);
	if (at->lo < LOW_LIMIT)
		max32 = LOW_LIMIT;
	if (at->lo >= cached->lo)
		cached = step(at, 1);
	erase(at);
	unlock(&tree_lock);
	free(at);
}

struct magazine {
	u64 size;
	u64 pages[127];
	struct magazine *next;
};
static struct cache {
	struct magazine *loaded, *prev, *depot;
} caches[6];

static int order_of(u64 count)
{
	return count > 1 ? 64 - __builtin_clzll(count - 1) : 0;
}

static u64 allocate(u64 count, u64 limit_page)
{
	if (count <= 32) {
		int order = order_of(count);
		struct cache *c = &caches[order];
		count = 1ull << order;
		lock(&cpu_lock);
		if (!c->loaded->size) {
			if (c->prev->size) {
				struct magazine *m = c->loaded;
				c->loaded = c->prev;
				c->prev = m;
			} else if (c->depot) {
				free(c->loaded);
				c->loaded = c->depot;
				c->depot = c->loaded->next;
			}
		}
		for (u64 i = c->loaded->size; i-- > 0;) {
			u64 page = c->loaded->pages[i];
			if (page > limit_page + 1 - count)
				continue;
			c->loaded->pages[i] = c->loaded->pages[--c->loaded->size];
			unlock(&cpu_lock);
			return page;
		}
		unlock(&cpu_lock);
	}
	return allocate_range(count, limit_page);
}

static void release(u64 page, u64 count)
{
	if (count > 32) {
		free_range(page);
		return;
	}
	struct cache *c = &caches[order_of(count)];
	lock(&cpu_lock);
	if (c->loaded->size == 127) {
		struct magazine *m = c->loaded;
		if (c->prev->size < 127) {
			c->loaded = c->prev;
			c->prev = m;
		} else {
			m->next = c->depot;
			c->depot = m;
			c->loaded = calloc(1, sizeof(*m));
		}
	}
	c->loaded->pages[c->loaded->size++] = page;
	unlock(&cpu_lock);
}

/* ids: a bitmap whose words that are full are bits of the next one */
static uint32_t level0[32768], level1[1024], level2[32], level3;

static int id_allocate(void)
{
	if (level3 == ~0u)
		return -1;
	int a = __builtin_ctz(~level3), b = a * 32 + __builtin_ctz(~level2[a]);
	int c = b * 32 + __builtin_ctz(~level1[b]), id = c * 32 + __builtin_ctz(~level0[c]);
	if ((level0[c] |= 1u << (id & 31)) == ~0u && (level1[b] |= 1u << (c & 31)) == ~0u &&
	    (level2[a] |= 1u << (b & 31)) == ~0u)
		level3 |= 1u << a;
	return id;
}

static void id_free(int id)
{
	int c = id >> 5, b = c >> 5, a = b >> 5;
	level0[c] &= ~(1u << (id & 31));
	level1[b] &= ~(1u << (c & 31));
	level2[a] &= ~(1u << (b & 31));
	level3 &= ~(1u << a);
}

static uint32_t state = 1;
static uint32_t draw(uint32_t below)
{
	state = state * 1664525u + 1013904223u;
	return (uint32_t)(((u64)state * below) >> 32);
}

static u64 now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int count = argc > 2 ? atoi(argv[2]) : 1000;
	u64 high = (1ull << 36) - 1, low = LOW_LIMIT - 1, sum = 0, start;
	for (int i = 0; i < 6; i++) {
		caches[i].loaded = calloc(1, sizeof(struct magazine));
		caches[i].prev = calloc(1, sizeof(struct magazine));
	}
	if (!strcmp(what, "magazine")) {
		for (int i = 0; i < 64; i++)
			release(allocate_range(1, low), 1);
		start = now();
		for (int i = 0; i < count; i++) {
			u64 page = allocate(1, low);
			sum += page;
			release(page, 1);
		}
	} else if (!strcmp(what, "churn") || !strcmp(what, "space")) {
		/* 16384 live ranges, one of them changed at a time. */
		int live = 16384, tree = what[0] == 's';
		u64 *pages = calloc(live, 8);
		uint32_t *sizes = calloc(live, 4);
		for (int i = 0; i < live; i++) {
			sizes[i] = 1 + draw(64);
			pages[i] = tree ? allocate_range(sizes[i], high) : allocate(sizes[i], high);
		}
		start = now();
		for (int i = 0; i < count; i++) {
			int at = draw(live);
			if (tree)
				free_range(pages[at]);
			else
				release(pages[at], sizes[at]);
			sizes[at] = 1 + draw(64);
			pages[at] = tree ? allocate_range(sizes[at], high) : allocate(sizes[at], high);
			sum += pages[at] & 0xffffff;
		}
	} else if (!strcmp(what, "fill")) {
		start = now();
		for (int i = 0; i < count; i++)
			sum += allocate_range(1 + (i & 7), high) & 0xffffff;
	} else if (!strcmp(what, "ids")) {
		start = now();
		for (int i = 0; i < count; i++)
			sum += id_allocate();
		for (int i = 0; i < count; i++)
			id_free((int)((uint32_t)i * 7919u & (count - 1)));
		for (int i = 0; i < count; i++)
			sum += id_allocate();
	} else {
		return 1;
	}
	printf("%llu %llu\n", (unsigned long long)(now() - start), (unsigned long long)sum);
	return 0;
}
