/* Runs: what fetch threads take, land piece by piece, and finish. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "io.h"
#include "store.h"

static struct flight *find(struct pe_store *s, uint64_t id)
{
	for (int i = 0; id && i < STORE_FLIGHTS; i++)
		if (s->flight[i].id == id)
			return &s->flight[i];
	return NULL;
}

uint64_t store_next_unclaimed(const struct pe_store *s, uint64_t first, uint64_t end)
{
	bool moved = true;

	while (moved && first < end) {
		moved = false;
		first = map_next_absent(&s->map, first, end);
		for (int i = 0; i < STORE_FLIGHTS; i++) {
			const struct flight *f = &s->flight[i];

			if (f->id && granule_of(f->pos) <= first && first < granule_end(f->end)) {
				first = granule_end(f->end);
				moved = true;
			}
		}
	}
	return first < end ? first : end;
}

/* Where a run from first on must stop: before a flight, or before a long stretch that is present. */
static uint64_t run_end(const struct pe_store *s, uint64_t first, uint64_t end)
{
	uint64_t at = first + 1; /* whatever another store does to the map meanwhile, no run is empty */

	for (int i = 0; i < STORE_FLIGHTS; i++) {
		const struct flight *f = &s->flight[i];

		if (f->id && granule_of(f->pos) > first && granule_of(f->pos) < end)
			end = granule_of(f->pos);
	}
	for (;;) {
		uint64_t present = map_next_present(&s->map, at, end);

		if (present == end)
			return end;
		at = map_next_absent(&s->map, present, end);
		if (at == end || at - present > PLAN_BRIDGE / PE_GRANULE)
			return present;
	}
}

bool store_start(struct pe_store *s, uint64_t first, uint64_t end, unsigned stream, int kind, struct pe_run *run)
{
	struct flight *f = NULL;

	for (int i = 0; i < STORE_FLIGHTS && !f; i++)
		if (!s->flight[i].id)
			f = &s->flight[i];
	if (!f)
		return false;
	end = run_end(s, first, end < s->map.granules ? end : s->map.granules);
	*f = (struct flight){ .id = ++s->next_id, .pos = first * PE_GRANULE, .kind = kind,
			       .stream = stream, .started = now_ns() };
	f->began = f->pos;
	f->end = end * PE_GRANULE < s->size ? end * PE_GRANULE : s->size;
	s->flights++;
	s->flights_ahead += kind == PE_AHEAD;
	s->runs++;
	if (kind < PE_FILL)
		plan_asked(&s->plan, stream, f->end);
	*run = (struct pe_run){ .id = f->id, .offset = f->pos, .length = f->end - f->pos, .kind = kind,
				.idle = (int32_t)s->idle };
	return true;
}

/* Lengthens a run over the parked reads that go on where it ends: what is wanted anyway costs no second request. */
static uint64_t join(const struct pe_store *s, uint64_t first, uint64_t end)
{
	uint64_t limit = first + PLAN_WINDOW_MAX / PE_GRANULE;
	uint64_t before;

	do {
		before = end;
		for (const struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
			if (!w->claimed && granule_of(w->offset) <= end && granule_end(w->offset + w->length) > end)
				end = granule_end(w->offset + w->length);
	} while (end > before && end < limit);
	return end < limit ? end : limit;
}

static bool start_demand(struct pe_store *s, struct pe_run *run)
{
	struct waiter *next;

	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		uint64_t first, end = granule_end(w->offset + w->length);
		uint64_t window = s->plan.stream[w->stream].window;

		next = w->next;
		if (w->claimed)
			continue;
		first = store_next_unclaimed(s, granule_of(w->offset), end);
		if (first == end) {
			/* What was absent is in flight, or another store on the same files has brought it. */
			w->claimed = true;
			if (store_has(s, w->offset, w->length))
				store_answer(s, w, 0);
			continue;
		}
		if (end < first + granule_end(window))
			end = first + granule_end(window);
		end = join(s, first, end);
		if ((end - first) * PE_GRANULE >= PLAN_LONG && store_is_busy(s, w->stream))
			continue;
		return store_start(s, first, end, w->stream, PE_DEMAND, run);
	}
	return false;
}

/* Read-ahead may occupy one fetch thread of two at the most: the others are for demand. */
static bool start_ahead(struct pe_store *s, struct pe_run *run)
{
	uint64_t offset, length;
	unsigned stream;

	if (s->flights_ahead > s->idle)
		return false;
	while (plan_ahead(&s->plan, s->size, store_busy_streams(s), &stream, &offset, &length)) {
		uint64_t end = granule_end(offset + length < s->size ? offset + length : s->size);
		uint64_t first = store_next_unclaimed(s, granule_of(offset), end);

		if (first < end)
			return store_start(s, first, end, stream, PE_AHEAD, run);
		plan_asked(&s->plan, stream, end * PE_GRANULE);
	}
	return false;
}

int pe_store_take(pe_store *s, struct pe_run *run)
{
	int result = -ESHUTDOWN;

	pthread_mutex_lock(&s->lock);
	while (!s->stopping) {
		if (start_demand(s, run) || start_ahead(s, run)) {
			result = 0;
			if (s->idle)
				pthread_cond_signal(&s->work); /* there may be more than one run's worth */
			break;
		}
		s->idle++;
		pthread_cond_wait(&s->work, &s->lock);
		s->idle--;
	}
	pthread_mutex_unlock(&s->lock);
	return result;
}

/* Writes what is absent of a piece. A granule that is present is being read by others and stays as it is. */
static int write_absent(struct pe_store *s, uint64_t offset, const char *bytes, uint64_t length)
{
	uint64_t at = offset, end = offset + length;

	while (at < end) {
		uint64_t absent = map_next_absent(&s->map, granule_of(at), granule_end(end)) * PE_GRANULE;
		uint64_t present;
		int err;

		if (absent > at)
			at = absent;
		if (at >= end)
			break;
		present = map_next_present(&s->map, granule_of(at), granule_end(end)) * PE_GRANULE;
		if (present > end)
			present = end;
		err = io_pwrite(s->data_fd, bytes + (at - offset), present - at, at);
		if (err)
			return err;
		at = present;
	}
	return 0;
}

/* The granules that lie wholly before pos; the blob's last one may be short. */
static uint64_t granules_landed(const struct pe_store *s, uint64_t pos)
{
	return pos == s->size ? s->map.granules : granule_of(pos);
}

static void answer_whole(struct pe_store *s, uint64_t first, uint64_t end)
{
	struct waiter *next;

	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (granule_of(w->offset) < end && granule_end(w->offset + w->length) > first &&
		    store_has(s, w->offset, w->length))
			store_answer(s, w, 0);
	}
}

int pe_store_land(pe_store *s, uint64_t id, uint64_t offset, const void *bytes, uint64_t length)
{
	struct flight *f;
	uint64_t end;
	int err, result;

	pthread_mutex_lock(&s->lock);
	f = find(s, id);
	err = !f ? -ENOENT : s->stopping ? -ESHUTDOWN : offset != f->pos || offset + length > f->end ? -EINVAL : 0;
	pthread_mutex_unlock(&s->lock);
	if (err)
		return err;
	err = write_absent(s, offset, bytes, length);
	if (err)
		return err;
	end = offset + length;
	__atomic_fetch_add(&s->landed, length, __ATOMIC_RELAXED);
	pthread_mutex_lock(&s->lock);
	f->pos = end;
	if (!f->latency)
		f->latency = now_ns() - f->started;
	if (s->idle && store_near_end(s, f) && offset + s->plan.lead < f->end)
		pthread_cond_signal(&s->work); /* the next run of its stream is due */
	map_set(&s->map, granule_of(offset), granules_landed(s, end));
	if (granule_of(offset) < granules_landed(s, end))
		answer_whole(s, granule_of(offset), granules_landed(s, end));
	/* A run that is complete says "go on", so that the transfer ends by itself and its connection stays usable. */
	result = f->pos < f->end &&
		 (map_has(&s->map, granule_of(f->pos), granule_end(f->end)) || fill_gives_way(s, f));
	pthread_mutex_unlock(&s->lock);
	return result;
}

int pe_store_resume(pe_store *s, uint64_t id, int whole, uint64_t *offset, uint64_t *length)
{
	struct flight *f;

	pthread_mutex_lock(&s->lock);
	f = find(s, id);
	if (f) {
		/* A granule is never put together from two answers. */
		f->pos = whole ? 0 : f->pos / PE_GRANULE * PE_GRANULE;
		if (whole)
			f->end = s->size;
		if (f->began > f->pos)
			f->began = f->pos;
		*offset = f->pos;
		*length = f->end - f->pos;
	}
	pthread_mutex_unlock(&s->lock);
	return f ? 0 : -ENOENT;
}

bool store_waits_for(const struct pe_store *s, const struct waiter *w, const struct flight *f)
{
	uint64_t first = granule_of(f->pos > w->offset ? f->pos : w->offset);
	uint64_t end = granule_end(f->end < w->offset + w->length ? f->end : w->offset + w->length);

	return first < end && !map_has(&s->map, first, end);
}

int pe_store_waiters(pe_store *s, uint64_t id)
{
	const struct flight *f;
	int count = 0;

	pthread_mutex_lock(&s->lock);
	f = find(s, id);
	for (struct waiter *w = s->parked.next; f && w != &s->parked; w = w->next)
		count += store_waits_for(s, w, f);
	pthread_mutex_unlock(&s->lock);
	return f ? count : -ENOENT;
}

int pe_store_finish(pe_store *s, uint64_t id, int error)
{
	struct flight *f;
	struct waiter *next;

	pthread_mutex_lock(&s->lock);
	f = find(s, id);
	if (!f) {
		pthread_mutex_unlock(&s->lock);
		return -ENOENT;
	}
	/* What the run did not land itself may have come from another store on the same files. */
	answer_whole(s, granule_of(f->began), granule_end(f->end));
	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (!store_waits_for(s, w, f))
			continue;
		w->claimed = false;
		if (error)
			store_answer(s, w, error);
	}
	/* What is fetched beside demand tells little of the line's rate. */
	if (!error && f->pos == f->end && f->kind < PE_FILL)
		plan_measure(&s->plan, f->end - f->began, f->latency, now_ns() - f->started);
	s->flights--;
	s->flights_ahead -= f->kind == PE_AHEAD;
	if (f->kind < PE_FILL)
		s->busy = now_ns();
	f->id = 0;
	if (!s->complete && map_has(&s->map, 0, s->map.granules))
		__atomic_store_n(&s->complete, true, __ATOMIC_RELEASE);
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
	return 0;
}
