#define _GNU_SOURCE
#include "claim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Locks need no bytes: the first one lies beyond anything that a map can be long. */
static const int64_t claim_base = 1LL << 62;

static int lock_range(int fd, int command, struct flock *lock, short type, uint64_t first, uint64_t end)
{
	*lock = (struct flock){ .l_type = type, .l_whence = SEEK_SET };
	lock->l_start = claim_base + (int64_t)first;
	lock->l_len = (int64_t)(end - first);
	return fcntl(fd, command, lock) ? -errno : 0;
}

bool claim_take(int fd, uint64_t first, uint64_t *end)
{
	struct flock lock;

	if (fd < 0)
		return true;
	for (;;) {
		int err = lock_range(fd, F_OFD_SETLK, &lock, F_WRLCK, first, *end);
		uint64_t start;

		if (err != -EAGAIN && err != -EACCES)
			return true; /* ours; or this filesystem has no locks, and we go without */
		if (lock_range(fd, F_OFD_GETLK, &lock, F_WRLCK, first, *end) || lock.l_type == F_UNLCK)
			continue; /* given up meanwhile */
		start = (uint64_t)(lock.l_start - claim_base);
		if (lock.l_start < claim_base || start <= first) {
			uint64_t stop = (uint64_t)(lock.l_start + lock.l_len - claim_base);

			if (lock.l_len > 0 && stop < *end)
				*end = stop;
			return false;
		}
		*end = start;
	}
}

void claim_drop(int fd, uint64_t first, uint64_t end)
{
	struct flock lock;

	if (fd >= 0 && first < end)
		lock_range(fd, F_OFD_SETLK, &lock, F_UNLCK, first, end);
}

uint32_t claim_listen(struct bitmap_shared *shared)
{
	uint32_t generation = __atomic_load_n(&shared->generation, __ATOMIC_SEQ_CST);

	__atomic_store_n(&shared->asleep, 1, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return generation;
}

void claim_wait(struct bitmap_shared *shared, uint32_t generation, uint64_t timeout)
{
	struct timespec t = { .tv_sec = (time_t)(timeout / 1000000000U), .tv_nsec = (long)(timeout % 1000000000U) };

	syscall(SYS_futex, &shared->generation, FUTEX_WAIT, generation, &t, NULL, 0);
}

void claim_announce(struct bitmap_shared *shared)
{
	/* With the fence of claim_listen: either the listener sees the bits, or we see that it listens. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&shared->asleep, __ATOMIC_RELAXED))
		return;
	__atomic_store_n(&shared->asleep, 0, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&shared->generation, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &shared->generation, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void claim_announce_release(struct bitmap_shared *shared)
{
	__atomic_fetch_add(&shared->released, 1, __ATOMIC_SEQ_CST);
	claim_announce(shared);
}
