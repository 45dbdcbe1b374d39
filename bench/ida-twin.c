/*
 * Linux's own ida, driven as bench/iova.bench.ts drives the ids: filled, freed scattered, filled. The ida comes from a Linux source
 * tree (kernel-ida.ts compiles both); nothing of it is here. Prints nanoseconds and the sum of the ids.
 * usage: ida-twin COUNT
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <linux/slab.h>
#include <linux/radix-tree.h>
#include <linux/idr.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

/* What only the tree's debugging needs. */
void xa_dump_index(unsigned long index, unsigned int shift)
{
}

void xa_dump_node(const struct xa_node *node)
{
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 1 << 20;
	DEFINE_IDA(ida);
	long long sum = 0;
	double start;

	radix_tree_init();
	start = now();
	for (int i = 0; i < count; i++)
		sum += ida_alloc_range(&ida, 0, count - 1, GFP_KERNEL);
	for (int i = 0; i < count; i++)
		ida_free(&ida, (uint32_t)i * 7919u & (count - 1));
	for (int i = 0; i < count; i++)
		sum += ida_alloc_range(&ida, 0, count - 1, GFP_KERNEL);
	printf("%.0f %lld\n", now() - start, sum);
	return 0;
}
