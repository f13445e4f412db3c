/* Runs: what fetch threads take. How they land is in land.c. */
#define _GNU_SOURCE
#include <errno.h>

#include "store.h"

uint64_t store_next_unclaimed(const struct pe_store *s, const struct waiter *w, uint64_t first, uint64_t end)
{
	bool moved = true;

	while (moved && first < end) {
		moved = false;
		first = waiter_next_needed(s, w, first, end);
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

/* Where the chunk of first begins, or what is neither present nor in flight right before first does. */
static uint64_t chunk_begin(const struct pe_store *s, uint64_t first)
{
	uint64_t at = first / s->align * s->align, present;

	for (int i = 0; i < STORE_FLIGHTS; i++) {
		const struct flight *f = &s->flight[i];

		if (f->id && granule_of(f->pos) < first && granule_end(f->end) > at)
			at = granule_end(f->end);
	}
	while ((present = map_next_present(&s->map, at, first)) < first)
		at = map_next_absent(&s->map, present, first);
	return at;
}

/* The same for a run that is to have first: claims that too, all of it or nothing. */
static uint64_t run_begin(const struct pe_store *s, uint64_t first, bool claim)
{
	uint64_t begin = chunk_begin(s, first), end = first;

	if (begin == first || !claim)
		return begin;
	if (!claim_take(s->map_fd, begin, &end))
		return first;
	if (end == first)
		return begin;
	claim_drop(s->map_fd, begin, end);
	return first;
}

int store_start(struct pe_store *s, uint64_t first, uint64_t *end, unsigned stream, int kind, bool claim,
		struct pe_run *run)
{
	struct flight *f = NULL;

	for (int i = 0; i < STORE_FLIGHTS && !f; i++)
		if (!s->flight[i].id)
			f = &s->flight[i];
	if (!f)
		return NO_SLOT;
	*end = (*end + s->align - 1) / s->align * s->align;
	*end = run_end(s, first, *end < s->map.granules ? *end : s->map.granules);
	if (claim && !claim_take(s->map_fd, first, end))
		return ELSEWHERE;
	first = run_begin(s, first, claim);
	*f = (struct flight){ .id = ++s->next_id, .pos = first * PE_GRANULE, .kind = kind,
			       .stream = stream, .started = now_ns() };
	f->claimed = first;
	f->claimed_end = claim ? *end : first;
	f->began = f->pos;
	f->end = *end * PE_GRANULE < s->size ? *end * PE_GRANULE : s->size;
	s->flights++;
	s->flights_ahead += kind == PE_AHEAD;
	s->runs++;
	if (kind < PE_FILL)
		plan_asked(&s->plan, stream, f->end);
	*run = (struct pe_run){ .id = f->id, .offset = f->pos, .length = f->end - f->pos, .kind = kind,
				.idle = (int32_t)s->idle };
	return STARTED;
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

/* Does a flight of this store's have anything to do with this read? Then its end will see to it. */
static bool in_flight(const struct pe_store *s, const struct waiter *w)
{
	for (int i = 0; i < STORE_FLIGHTS; i++) {
		const struct flight *f = &s->flight[i];

		if (f->id && granule_of(f->began) < granule_end(w->offset + w->length) &&
		    granule_of(w->offset) < granule_end(f->end))
			return true;
	}
	return false;
}

/* The run for what a read needs and nobody has in flight: ELSEWHERE when others have all of it, or there is none. */
static int start_for(struct pe_store *s, struct waiter *w, struct pe_run *run)
{
	uint64_t first = granule_of(w->offset), last = granule_end(w->offset + w->length);
	/* What cannot be cached is of use to nobody but those who wait for it. */
	uint64_t window = s->write_error ? 0 : granule_end(s->plan.stream[w->stream].window);
	bool foreign = false;

	while ((first = store_next_unclaimed(s, w, first, last)) < last) {
		uint64_t ahead = chunk_begin(s, first) + window; /* what that takes in is part of the window */
		uint64_t end = join(s, first, last > ahead ? last : ahead);
		int result;

		if ((end - first) * PE_GRANULE >= PLAN_LONG && store_is_busy(s, w->stream))
			return NO_SLOT;
		result = store_start(s, first, &end, w->stream, PE_DEMAND, true, run);
		if (result == ELSEWHERE && others_are_slow(s, w))
			result = store_start(s, first, &end, w->stream, PE_DEMAND, false, run);
		if (result != ELSEWHERE) {
			store_set_foreign(s, w, foreign);
			return result;
		}
		foreign = true;
		first = end;
	}
	if (waiter_is_whole(s, w)) {
		s->others++; /* another store on the same files has brought it */
		store_answer(s, w, 0);
	} else {
		w->claimed = true;
		store_set_foreign(s, w, foreign || !in_flight(s, w));
	}
	return ELSEWHERE;
}

static bool start_demand(struct pe_store *s, struct pe_run *run)
{
	struct waiter *next;

	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (!w->claimed && start_for(s, w, run) == STARTED)
			return true;
	}
	return false;
}

/* Read-ahead may occupy one fetch thread of two at the most: the others are for demand. */
static bool start_ahead(struct pe_store *s, struct pe_run *run)
{
	uint64_t offset, length;
	unsigned stream;

	if (s->flights_ahead > s->idle || s->write_error)
		return false;
	while (plan_ahead(&s->plan, s->size, store_busy_streams(s), &stream, &offset, &length)) {
		uint64_t end = granule_end(offset + length < s->size ? offset + length : s->size);
		uint64_t first = store_next_unclaimed(s, NULL, granule_of(offset), end);
		int result;

		if (first < end) {
			result = store_start(s, first, &end, stream, PE_AHEAD, true, run);
			if (result != ELSEWHERE)
				return result == STARTED;
		}
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
