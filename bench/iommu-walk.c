/*
 * The C twin of bench/iommu.bench.ts: a second-stage table of four levels with 64-bit entries in one pool, mapped and walked the
 * plain way. Prints nanoseconds: one walk over all pages in random order, and one 4 KiB page mapped (scattered physical pages).
 * usage: iommu-walk PAGES WALKS
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t *pool;
static uint32_t used;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static uint32_t new_table(void)
{
	return ++used;
}

static __attribute__((noinline)) int map_page(uint32_t top, uint64_t page, uint64_t pa, unsigned prot)
{
	uint64_t *table = pool + ((uint64_t)top << 9);
	for (int level = 3; level > 0; level--) {
		uint64_t *entry = table + ((page >> (9 * level)) & 511);
		if (!(*entry & 3))
			*entry = ((uint64_t)new_table() << 12) | 3;
		else if (*entry & 0x80)
			return -1;
		table = pool + ((*entry >> 12) << 9);
	}
	uint64_t *leaf = table + (page & 511);
	if (*leaf & 3)
		return -1;
	*leaf = (pa << 12) | prot;
	return 0;
}

static __attribute__((noinline)) uint64_t walk(uint32_t top, uint64_t page, unsigned *permission)
{
	const uint64_t *table = pool + ((uint64_t)top << 9);
	unsigned allowed = 3;
	if (page >> 36)
		return ~0ull;
	for (int level = 3;; level--) {
		uint64_t entry = table[(page >> (9 * level)) & 511];
		if (!(entry & 3))
			return ~0ull;
		allowed &= entry;
		if (level == 0 || (entry & 0x80)) {
			uint64_t within = page & ((1ull << (9 * level)) - 1);
			*permission = allowed;
			return ((entry >> 12) & 0xffffffffffull) + within;
		}
		table = pool + (((entry >> 12) & 0xffffffffffull) << 9);
	}
}

int main(int argc, char **argv)
{
	uint32_t pages = argc > 1 ? atoi(argv[1]) : 262144;
	uint32_t walks = argc > 2 ? atoi(argv[2]) : 1 << 20;
	uint32_t tables = pages / 512 + 16;
	uint32_t seed = 1, sum = 0;
	double start, walked, mapped;
	double *order = malloc(walks * sizeof(*order));
	pool = aligned_alloc(4096, (uint64_t)tables * 4096);
	memset(pool, 0, (uint64_t)tables * 4096);
	uint32_t top = new_table();

	start = now();
	for (uint32_t i = 0; i < pages; i++)
		map_page(top, 0x100000 + i, (i * 40503u) & 0xffffff, 3);
	mapped = (now() - start) / pages;
	for (uint32_t i = 0; i < walks; i++) {
		seed = seed * 1103515245u + 12345u;
		order[i] = 0x100000 + (double)((seed >> 8) % pages);
	}
	unsigned permission = 0;
	for (int warm = 0; warm < 2; warm++) {
		start = now();
		for (uint32_t i = 0; i < walks; i++)
			sum += (uint32_t)walk(top, (uint64_t)order[i], &permission) + permission;
		walked = (now() - start) / walks;
	}
	printf("%.3f %.3f %u\n", walked, mapped, sum);
	return 0;
}
