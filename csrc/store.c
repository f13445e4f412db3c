/* The store: its life, the reads that are parked on it, and the threads that wait for its bytes. Runs are in run.c. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "io.h"

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

void cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline)
{
	struct timespec t = { .tv_sec = (time_t)(deadline / 1000000000U), .tv_nsec = (long)(deadline % 1000000000U) };

	pthread_cond_timedwait(cond, lock, &t);
}

void cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

int pe_store_open(int data_fd, int map_fd, uint64_t map_offset, uint64_t size, uint32_t timeout, pe_store **store)
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
	err = map_open(&s->map, map_fd, map_offset, granule_end(size));
	if (err) {
		munmap(data, size);
		free(s);
		return err;
	}
	s->data_fd = data_fd;
	s->size = size;
	s->timeout = (uint64_t)timeout * 1000000U;
	s->data = data;
	s->complete = map_has(&s->map, 0, s->map.granules);
	pthread_mutex_init(&s->lock, NULL);
	cond_init(&s->work);
	cond_init(&s->whole);
	cond_init(&s->timer);
	cond_init(&s->fill);
	s->parked.prev = s->parked.next = &s->parked;
	plan_init(&s->plan);
	*store = s;
	return 0;
}

void pe_store_stop(pe_store *s)
{
	pthread_mutex_lock(&s->lock);
	s->stopping = true;
	while (s->parked.next != &s->parked)
		store_answer(s, s->parked.next, -ESHUTDOWN);
	pthread_cond_broadcast(&s->work);
	pthread_cond_broadcast(&s->whole);
	pthread_cond_broadcast(&s->timer);
	pthread_cond_broadcast(&s->fill);
	pthread_mutex_unlock(&s->lock);
}

void pe_store_free(pe_store *s)
{
	if (!s)
		return;
	munmap((void *)(uintptr_t)s->data, s->size);
	map_close(&s->map);
	pthread_cond_destroy(&s->work);
	pthread_cond_destroy(&s->whole);
	pthread_cond_destroy(&s->timer);
	pthread_cond_destroy(&s->fill);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

void pe_store_get_stats(pe_store *s, struct pe_stats *stats)
{
	uint64_t present = map_count(&s->map) * PE_GRANULE;

	/* The last granule may be a short one, and has been counted as a whole one. */
	if (map_has(&s->map, s->map.granules - 1, s->map.granules))
		present -= s->map.granules * PE_GRANULE - s->size;
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
	};
	pthread_mutex_unlock(&s->lock);
}

int64_t pe_store_copy_map(pe_store *s, void *buffer, uint64_t length)
{
	uint64_t bytes = map_bytes(&s->map);

	map_copy(&s->map, buffer, length < bytes ? length : bytes);
	return (int64_t)bytes;
}

static bool in_range(const struct pe_store *s, uint64_t offset, uint64_t length)
{
	return length && offset < s->size && length <= s->size - offset;
}

int pe_store_has(pe_store *s, uint64_t offset, uint64_t length)
{
	return in_range(s, offset, length) ? store_has(s, offset, length) : -EINVAL;
}

/* Deadlines rise along the list, since every connection's read gets the same time; a thread's own waiter has none. */
static uint64_t next_deadline(const struct pe_store *s)
{
	for (const struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		if (w->deadline)
			return w->deadline;
	return 0;
}

int store_want(struct pe_store *s, struct waiter *w)
{
	uint64_t offset, length;
	unsigned stream;
	int result = 0;

	if (__atomic_load_n(&s->complete, __ATOMIC_ACQUIRE)) {
		__atomic_fetch_add(&s->hits, 1, __ATOMIC_RELAXED);
		return 1;
	}
	pthread_mutex_lock(&s->lock);
	w->stream = plan_touch(&s->plan, w->offset, w->length);
	/* Landing sets bits and looks for whole reads under the lock, so none that is parked here can be missed. */
	if (store_has(s, w->offset, w->length)) {
		__atomic_fetch_add(&s->hits, 1, __ATOMIC_RELAXED);
		result = 1;
	} else if (s->stopping) {
		result = -ESHUTDOWN;
	} else {
		w->status = 1;
		w->claimed = false;
		w->deadline = w->conn && s->timeout ? now_ns() + s->timeout : 0;
		w->prev = s->parked.prev;
		w->next = &s->parked;
		w->prev->next = w->next->prev = w;
		s->misses++;
		s->parked_count++;
		if (w->deadline && next_deadline(s) == w->deadline)
			pthread_cond_signal(&s->timer); /* until now there was none to watch */
	}
	/* For the read itself, or for what its stream will want next. A hit that wants neither wakes nobody. */
	if (s->idle && (result == 0 || plan_ahead(&s->plan, s->size, store_busy_streams(s), &stream, &offset, &length)))
		pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
	return result;
}

static void unlink_waiter(struct pe_store *s, struct waiter *w)
{
	w->prev->next = w->next;
	w->next->prev = w->prev;
	s->parked_count--;
}

void store_answer(struct pe_store *s, struct waiter *w, int status)
{
	unlink_waiter(s, w);
	if (status < 0)
		s->failed++;
	w->status = status;
	if (w->conn)
		conn_ready(w->conn, w);
	else
		pthread_cond_broadcast(&s->whole);
}

void store_forget(struct pe_store *s, struct pe_conn *conn)
{
	struct waiter *next;

	pthread_mutex_lock(&s->lock);
	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (w->conn == conn) {
			unlink_waiter(s, w);
			free(w);
		}
	}
	pthread_mutex_unlock(&s->lock);
}

void store_unpark(struct pe_store *s, struct waiter *w)
{
	if (w->status == 1)
		unlink_waiter(s, w);
}

int pe_store_expire(pe_store *s)
{
	pthread_mutex_lock(&s->lock);
	while (!s->stopping) {
		uint64_t deadline = next_deadline(s);
		struct waiter *next;

		if (!deadline) {
			pthread_cond_wait(&s->timer, &s->lock);
			continue;
		}
		if (deadline > now_ns()) {
			cond_wait_until(&s->timer, &s->lock, deadline);
			continue;
		}
		for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
			next = w->next;
			if (w->deadline && w->deadline <= deadline)
				store_answer(s, w, -ETIMEDOUT);
		}
	}
	pthread_mutex_unlock(&s->lock);
	return 0;
}

int pe_store_wait(pe_store *s, uint64_t offset, uint64_t length, uint32_t timeout)
{
	uint64_t deadline = now_ns() + (uint64_t)timeout * 1000000U;
	struct waiter w = { .offset = offset, .length = (uint32_t)length };
	int result;

	if (!in_range(s, offset, length) || length > PE_REQUEST_MAX)
		return -EINVAL;
	result = store_want(s, &w);
	if (result)
		return result < 0 ? result : 0;
	pthread_mutex_lock(&s->lock);
	while (w.status == 1 && now_ns() < deadline)
		cond_wait_until(&s->whole, &s->lock, deadline);
	store_unpark(s, &w);
	pthread_mutex_unlock(&s->lock);
	return w.status == 1 ? -EAGAIN : w.status;
}

int64_t pe_store_read(pe_store *s, void *buffer, uint64_t length, uint64_t offset)
{
	int err;

	if (!in_range(s, offset, length))
		return -EINVAL;
	if (!store_has(s, offset, length))
		return -ENODATA;
	err = io_pread(s->data_fd, buffer, length, offset);
	if (err)
		return err;
	__atomic_fetch_add(&s->served, length, __ATOMIC_RELAXED);
	return (int64_t)length;
}
