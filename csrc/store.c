/* The store: its life, and the reads that are parked on it. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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
	err = map_open(&s->map, map_fd, map_offset, granule_end(size));
	if (!err)
		err = trust_open(&s->trust, map_fd < 0 ? -1 : sums_fd, map_offset, granule_end(size));
	if (err) {
		map_close(&s->map);
		munmap(data, size);
		free(s);
		return err;
	}
	s->data_fd = data_fd;
	s->map_fd = map_fd;
	s->shared = s->map.shared ? s->map.shared : &s->alone;
	s->size = size;
	s->timeout = (uint64_t)timeout * 1000000U;
	s->align = 1;
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

int pe_store_set_align(pe_store *s, uint64_t align)
{
	if (!align || align % PE_GRANULE)
		return -EINVAL;
	s->align = align / PE_GRANULE;
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
	claim_announce(s->shared); /* the expiring thread may sleep there */
}

void pe_store_free(pe_store *s)
{
	if (!s)
		return;
	munmap((void *)(uintptr_t)s->data, s->size);
	map_close(&s->map);
	trust_close(&s->trust);
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
		.uncached = __atomic_load_n(&s->uncached, __ATOMIC_RELAXED),
		.healed = s->healed,
		.others = s->others,
	};
	pthread_mutex_unlock(&s->lock);
}

int64_t pe_store_copy_map(pe_store *s, void *buffer, uint64_t length)
{
	uint64_t bytes = map_bytes(&s->map);

	map_copy(&s->map, buffer, length < bytes ? length : bytes);
	return (int64_t)bytes;
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

/*
 * Limits rise along the list, since every connection's read gets the same time, and so do deadlines, but for a moment
 * in an outage; a thread's own waiter has none.
 */
static uint64_t next_deadline(const struct pe_store *s)
{
	for (const struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		if (w->deadline)
			return w->deadline;
	return 0;
}

uint64_t waiter_next_needed(const struct pe_store *s, const struct waiter *w, uint64_t first, uint64_t end)
{
	first = map_next_absent(&s->map, first, end);
	while (w && w->keep && first < end && keep_has(w->keep, first))
		first = map_next_absent(&s->map, first + 1, end);
	return first;
}

int waiter_fill(struct pe_store *s, struct waiter *w, uint32_t epoch)
{
	uint64_t at = w->keep->first, stop;
	int result = 0;

	for (; at < w->keep->end && result >= 0; at = stop) {
		int read;

		stop = at + 1;
		if (keep_has(w->keep, at))
			continue;
		while (stop < w->keep->end && !keep_has(w->keep, stop))
			stop++;
		read = trust_read(s, epoch, at, stop, keep_at(w->keep, at));
		if (!read)
			keep_mark(w->keep, at, stop);
		result = read ? read : result;
	}
	return result;
}

static void wake_taker(struct pe_store *s, bool wanted)
{
	uint64_t offset, length;
	unsigned stream;

	/* For the read itself, or for what its stream will want next. A hit that wants neither wakes nobody. */
	if (s->idle && (wanted || plan_ahead(&s->plan, s->size, store_busy_streams(s), &stream, &offset, &length)))
		pthread_cond_signal(&s->work);
}

/* Links w behind this one. */
static void link_waiter(struct pe_store *s, struct waiter *w, struct waiter *before)
{
	w->status = 1;
	w->claimed = w->foreign = false;
	w->since = now_ns();
	w->prev = before;
	w->next = before->next;
	w->prev->next = w->next->prev = w;
	s->parked_count++;
	if (w->deadline && next_deadline(s) == w->deadline)
		pthread_cond_signal(&s->timer); /* until now there was none to watch, or a later one */
}

int store_want(struct pe_store *s, struct waiter *w)
{
	int result = 0;

	if (__atomic_load_n(&s->complete, __ATOMIC_ACQUIRE)) {
		__atomic_fetch_add(&s->hits, 1, __ATOMIC_RELAXED);
		return 1;
	}
	pthread_mutex_lock(&s->lock);
	w->stream = plan_touch(&s->plan, w->offset, w->length);
	/* Landing sets bits and looks for whole reads under the lock, so none that is parked here can be missed. */
	if (waiter_is_whole(s, w)) {
		__atomic_fetch_add(&s->hits, 1, __ATOMIC_RELAXED);
		result = 1;
	} else if (s->stopping) {
		result = -ESHUTDOWN;
	} else {
		w->limit = w->conn && s->timeout ? now_ns() + s->timeout : 0;
		w->deadline = store_deadline(s, w);
		link_waiter(s, w, s->parked.prev);
		s->misses++;
	}
	wake_taker(s, result == 0);
	pthread_mutex_unlock(&s->lock);
	return result;
}

int store_want_again(struct pe_store *s, struct waiter *w)
{
	struct waiter *before;
	int result = 0;

	pthread_mutex_lock(&s->lock);
	w->mistrust = true;
	if (s->stopping || *conn_gone(w->conn)) {
		result = -ESHUTDOWN;
	} else if (waiter_is_whole(s, w)) {
		result = 1;
	} else {
		/* It has waited before: its limit is an early one, and the list is in their order, which an outage leaves. */
		w->deadline = store_deadline(s, w);
		for (before = s->parked.prev; before != &s->parked; before = before->prev)
			if (before->limit && before->limit <= w->limit)
				break;
		link_waiter(s, w, before);
		wake_taker(s, true);
	}
	pthread_mutex_unlock(&s->lock);
	return result;
}

void store_update_complete(struct pe_store *s)
{
	bool complete = map_has(&s->map, 0, s->map.granules);

	if (complete != s->complete)
		__atomic_store_n(&s->complete, complete, __ATOMIC_RELEASE);
}

void store_spoil(struct pe_store *s, uint64_t first, uint64_t end)
{
	pthread_mutex_lock(&s->lock);
	for (first = map_next_present(&s->map, first, end); first < end;) {
		uint64_t stop = map_next_absent(&s->map, first, end);

		map_clear(&s->map, first, stop);
		s->healed += stop - first;
		first = map_next_present(&s->map, stop, end);
	}
	store_update_complete(s); /* even where another process had cleared them */
	pthread_cond_broadcast(&s->fill);
	pthread_mutex_unlock(&s->lock);
}

void store_set_foreign(struct pe_store *s, struct waiter *w, bool foreign)
{
	if (foreign && !s->foreign)
		pthread_cond_signal(&s->timer); /* there is somebody to listen to */
	s->foreign += foreign - w->foreign;
	w->foreign = foreign;
}

static void unlink_waiter(struct pe_store *s, struct waiter *w)
{
	store_set_foreign(s, w, false);
	w->prev->next = w->next;
	w->next->prev = w->prev;
	s->parked_count--;
}

void store_answer(struct pe_store *s, struct waiter *w, int status)
{
	unlink_waiter(s, w);
	if (status < 0)
		s->failed++;
	else if (w->keep)
		__atomic_fetch_add(&s->uncached, 1, __ATOMIC_RELAXED);
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
	*conn_gone(conn) = true;
	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (w->conn == conn) {
			unlink_waiter(s, w);
			keep_free(w->keep);
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

		if (!deadline || deadline > now_ns()) {
			if (s->foreign)
				others_wait(s, deadline);
			else if (deadline)
				cond_wait_until(&s->timer, &s->lock, deadline);
			else
				pthread_cond_wait(&s->timer, &s->lock);
			continue;
		}
		for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
			next = w->next;
			if (w->deadline && w->deadline <= deadline)
				store_answer(s, w, -ETIMEDOUT);
		}
		store_begin_outage(s);
	}
	pthread_mutex_unlock(&s->lock);
	return 0;
}
