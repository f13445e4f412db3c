/* The store: its life, and what is present of the blob. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"

int pe_store_open(int data_fd, int map_fd, int sums_fd, uint64_t map_offset, uint64_t size, uint32_t timeout,
		  pe_store **store)
{
	struct pe_store *s;
	void *data;
	int err;

	if (size == 0 || size > INT64_MAX - PE_GRANULE)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	data = mmap(NULL, size, PROT_READ, MAP_SHARED, data_fd, 0);
	if (data == MAP_FAILED) {
		err = -errno;
		free(s);
		return err;
	}
	err = bitmap_open(&s->bitmap, map_fd, map_offset, granule_end(size));
	if (!err)
		err = checked_open(&s->checked, data_fd, size, map_fd < 0 ? -1 : sums_fd, map_offset, &s->bitmap);
	if (err) {
		bitmap_close(&s->bitmap);
		munmap(data, size);
		free(s);
		return err;
	}
	s->data_fd = data_fd;
	s->map_fd = map_fd;
	s->shared = s->bitmap.shared ? s->bitmap.shared : &s->alone;
	s->size = size;
	s->timeout = (uint64_t)timeout * 1000000U;
	s->align = 1;
	s->data = data;
	s->complete = bitmap_has(&s->bitmap, 0, s->bitmap.granules);
	pthread_mutex_init(&s->lock, NULL);
	cond_init(&s->work);
	cond_init(&s->timer);
	cond_init(&s->fill);
	s->parked.prev = s->parked.next = &s->parked;
	readahead_init(&s->readahead);
	trace_open(&s->trace, s->bitmap.granules);
	s->busy = now_ns(); /* a store is opened for somebody who is about to read */
	*store = s;
	return 0;
}

int pe_store_set_align(pe_store *s, uint64_t align)
{
	if (!align || align % PE_GRANULE)
		return -EINVAL;
	s->align = align / PE_GRANULE;
	return 0;
}

void pe_store_free(pe_store *s)
{
	if (!s)
		return;
	munmap((void *)(uintptr_t)s->data, s->size);
	bitmap_close(&s->bitmap);
	checked_close(&s->checked);
	trace_close(&s->trace);
	pthread_cond_destroy(&s->work);
	pthread_cond_destroy(&s->timer);
	pthread_cond_destroy(&s->fill);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

void pe_store_get_stats(pe_store *s, struct pe_stats *stats)
{
	uint64_t present = bitmap_count(&s->bitmap) * PE_GRANULE;

	/* The last granule may be a short one, and has been counted as a whole one. */
	if (bitmap_has(&s->bitmap, s->bitmap.granules - 1, s->bitmap.granules))
		present -= s->bitmap.granules * PE_GRANULE - s->size;
	pthread_mutex_lock(&s->lock);
	*stats = (struct pe_stats){
		.present = present,
		.hits = __atomic_load_n(&s->hits, __ATOMIC_RELAXED),
		.misses = s->misses,
		.served = __atomic_load_n(&s->served, __ATOMIC_RELAXED),
		.failed = s->failed,
		.runs = s->runs,
		.landed = __atomic_load_n(&s->landed, __ATOMIC_RELAXED),
		.parked = s->parked_count,
		.flights = s->flights,
		.uncached = __atomic_load_n(&s->uncached, __ATOMIC_RELAXED),
		.healed = s->healed,
		.others = s->from_peers,
	};
	pthread_mutex_unlock(&s->lock);
}

int64_t pe_store_copy_map(pe_store *s, void *buffer, uint64_t length)
{
	uint64_t bytes = bitmap_bytes(&s->bitmap);

	bitmap_copy(&s->bitmap, buffer, length < bytes ? length : bytes);
	return (int64_t)bytes;
}

int64_t pe_store_copy_trace(pe_store *s, struct pe_touch *touch, uint64_t count)
{
	return trace_copy(&s->trace, touch, count < TRACE_MAX ? (uint32_t)count : TRACE_MAX);
}

int pe_store_health(pe_store *s, uint64_t *healed)
{
	int error;

	pthread_mutex_lock(&s->lock);
	error = s->write_error;
	*healed = s->healed;
	pthread_mutex_unlock(&s->lock);
	return error;
}

int pe_store_has(pe_store *s, uint64_t offset, uint64_t length)
{
	return store_in_range(s, offset, length) ? store_has(s, offset, length) : -EINVAL;
}

uint32_t store_look(struct pe_store *s)
{
	struct granules lost;
	uint32_t epoch = checked_look(&s->checked, &lost);

	if (lost.first < lost.end)
		store_spoil(s, lost.first, lost.end);
	return epoch;
}

int store_read_checked(struct pe_store *s, uint32_t epoch, uint64_t first, uint64_t end, char *buffer)
{
	int result = CHECKED_RIGHT;

	for (uint64_t at = first; at < end;) {
		struct granules spoiled;
		int found = checked_read(&s->checked, epoch, at, end, buffer + (at - first) * PE_GRANULE, &spoiled);

		if (found != CHECKED_SPOILED)
			return found ? found : result;
		store_spoil(s, spoiled.first, spoiled.end);
		result = CHECKED_SPOILED;
		at = spoiled.end;
	}
	return result;
}

void store_update_complete(struct pe_store *s)
{
	bool complete = bitmap_has(&s->bitmap, 0, s->bitmap.granules);

	if (complete != s->complete)
		__atomic_store_n(&s->complete, complete, __ATOMIC_RELEASE);
}

void store_spoil(struct pe_store *s, uint64_t first, uint64_t end)
{
	pthread_mutex_lock(&s->lock);
	for (first = bitmap_next_present(&s->bitmap, first, end); first < end;) {
		uint64_t stop = bitmap_next_absent(&s->bitmap, first, end);

		bitmap_clear(&s->bitmap, first, stop);
		s->healed += stop - first;
		first = bitmap_next_present(&s->bitmap, stop, end);
	}
	store_update_complete(s); /* even where another process had cleared them */
	pthread_cond_broadcast(&s->fill);
	pthread_mutex_unlock(&s->lock);
}

int pe_store_get_latency(pe_store *s, int32_t which, struct pe_latency *latency)
{
	if (which != PE_READS && which != PE_PARKED_READS)
		return -EINVAL;
	latency_copy(which == PE_PARKED_READS ? &s->parked_reads : &s->reads, latency);
	return 0;
}

int64_t pe_store_epoch(pe_store *s)
{
	return store_look(s);
}

void pe_store_mark_checked(pe_store *s, uint32_t epoch)
{
	checked_mark_all(&s->checked, epoch);
}
