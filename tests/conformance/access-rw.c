/* The median time of an ACCESS_RW of the iommufd mock driver, as most calls of the kernel's suite. Prints nanoseconds. */
#include <fcntl.h>
#include <linux/iommufd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define COUNT 20000

/* struct iommu_test_cmd of the kernel's drivers/iommu/iommufd/iommufd_test.h. */
struct test {
	uint32_t size, op, id, reserved;
	union {
		struct { uint32_t access_fd, flags; } create;
		struct { uint64_t iova, length, uptr; uint32_t flags; } rw;
		uint64_t space[6];
	};
	uint32_t last;
};
#define TEST_CMD _IO(';', 0xa0)
/* An access is named by its descriptor. */
enum { CREATE_ACCESS = 5, ACCESS_RW = 8 };

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

static int check(int result, const char *what)
{
	if (result >= 0)
		return result;
	perror(what);
	exit(1);
}

int main(void)
{
	static uint64_t times[COUNT];
	char bytes[256];
	int fd = check(open("/dev/iommu", O_RDWR), "open");
	char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct iommu_ioas_alloc ioas = { .size = sizeof(ioas) };
	check(ioctl(fd, IOMMU_IOAS_ALLOC, &ioas), "IOAS_ALLOC");
	struct iommu_ioas_map map = {
		.size = sizeof(map), .flags = 7, .ioas_id = ioas.out_ioas_id,
		.user_va = (uintptr_t)memory, .length = 1 << 20, .iova = 1 << 24,
	};
	check(ioctl(fd, IOMMU_IOAS_MAP, &map), "IOAS_MAP");
	struct test access = { .size = sizeof(access), .op = CREATE_ACCESS, .id = ioas.out_ioas_id };
	check(ioctl(fd, TEST_CMD, &access), "CREATE_ACCESS");
	for (int i = 0; i < COUNT; i++) {
		struct test rw = { .size = sizeof(rw), .op = ACCESS_RW, .id = access.create.access_fd };
		struct timespec before, after;
		rw.rw.iova = (1 << 24) + i % 4096;
		rw.rw.length = sizeof(bytes);
		rw.rw.uptr = (uintptr_t)bytes;
		clock_gettime(CLOCK_MONOTONIC, &before);
		int result = ioctl(fd, TEST_CMD, &rw);
		clock_gettime(CLOCK_MONOTONIC, &after);
		check(result, "ACCESS_RW");
		times[i] = (after.tv_sec - before.tv_sec) * 1000000000ull + after.tv_nsec - before.tv_nsec;
	}
	qsort(times, COUNT, sizeof(*times), by_value);
	printf("p50 %llu p99 %llu\n", (unsigned long long)times[COUNT / 2], (unsigned long long)times[COUNT / 100 * 99]);
	return 0;
}
