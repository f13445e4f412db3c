/* Runs: what fetch threads take. How they land is in land.c. */
#define _GNU_SOURCE
#include "take.h"

#include <errno.h>

#include "base/clock.h"
#include "claim.h"
#include "parked.h"
#include "peers.h"

uint64_t take_next_unclaimed(const struct pe_store *s, const struct waiter *w, uint64_t first, uint64_t end)
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
		uint64_t present = bitmap_next_present(&s->bitmap, at, end);

		if (present == end)
			return end;
		at = bitmap_next_absent(&s->bitmap, present, end);
		if (at == end || at - present > READAHEAD_BRIDGE / PE_GRANULE)
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
	while ((present = bitmap_next_present(&s->bitmap, at, first)) < first)
		at = bitmap_next_absent(&s->bitmap, present, first);
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

enum take_result take_start(struct pe_store *s, uint64_t first, uint64_t *end, unsigned stream, int kind, bool claim,
			    struct pe_run *run)
{
	struct flight *f = NULL;

	for (int i = 0; i < STORE_FLIGHTS && !f; i++)
		if (!s->flight[i].id)
			f = &s->flight[i];
	if (!f)
		return TAKE_NO_SLOT;
	*end = (*end + s->align - 1) / s->align * s->align;
	*end = run_end(s, first, *end < s->bitmap.granules ? *end : s->bitmap.granules);
	if (claim && !claim_take(s->map_fd, first, end))
		return TAKE_ELSEWHERE;
	first = run_begin(s, first, claim);
	*f = (struct flight){
		.id = ++s->next_id, .pos = first * PE_GRANULE, .kind = kind, .stream = stream, .started = now_ns()
	};
	f->claimed = first;
	f->claimed_end = claim ? *end : first;
	f->began = f->pos;
	f->end = *end * PE_GRANULE < s->size ? *end * PE_GRANULE : s->size;
	s->flights++;
	s->flights_ahead += kind == PE_AHEAD;
	s->runs++;
	if (kind < PE_FILL)
		readahead_asked(&s->readahead, stream, f->end);
	*run = (struct pe_run){
		.id = f->id, .offset = f->pos, .length = f->end - f->pos, .kind = kind, .idle = (int32_t)s->idle
	};
	return TAKE_STARTED;
}

/* Lengthens a run over the parked reads that go on where it ends: what is wanted anyway costs no second request. */
static uint64_t join(const struct pe_store *s, uint64_t first, uint64_t end)
{
	uint64_t limit = first + READAHEAD_WINDOW_MAX / PE_GRANULE;
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

/* The run for what a read needs and no process has in flight: TAKE_ELSEWHERE when others have all of it, or there is none. */
static enum take_result start_for(struct pe_store *s, struct waiter *w, struct pe_run *run)
{
	uint64_t first = granule_of(w->offset), last = granule_end(w->offset + w->length);
	/* What cannot be cached is of use only to those who wait for it. */
	uint64_t window = s->write_error ? 0 : granule_end(s->readahead.stream[w->stream].window);
	bool at_peer = false;

	while ((first = take_next_unclaimed(s, w, first, last)) < last) {
		uint64_t ahead = chunk_begin(s, first) + window; /* what that takes in is part of the window */
		uint64_t end = join(s, first, last > ahead ? last : ahead);
		enum take_result result;

		if ((end - first) * PE_GRANULE >= READAHEAD_LONG && store_is_busy(s, w->stream))
			return TAKE_NO_SLOT;
		result = take_start(s, first, &end, w->stream, PE_DEMAND, true, run);
		if (result == TAKE_ELSEWHERE && peers_are_slow(s, w))
			result = take_start(s, first, &end, w->stream, PE_DEMAND, false, run);
		if (result != TAKE_ELSEWHERE) {
			store_set_at_peer(s, w, at_peer);
			return result;
		}
		at_peer = true;
		first = end;
	}
	if (waiter_is_whole(s, w)) {
		s->from_peers++; /* another store on the same files has brought it */
		store_answer(s, w, 0);
	} else {
		w->claimed = true;
		store_set_at_peer(s, w, at_peer || !in_flight(s, w));
	}
	return TAKE_ELSEWHERE;
}

static bool start_demand(struct pe_store *s, struct pe_run *run)
{
	struct waiter *next;

	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (!w->claimed && start_for(s, w, run) == TAKE_STARTED)
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
	while (readahead_next(&s->readahead, s->size, store_busy_streams(s), &stream, &offset, &length)) {
		uint64_t end = granule_end(offset + length < s->size ? offset + length : s->size);
		uint64_t first = take_next_unclaimed(s, NULL, granule_of(offset), end);
		enum take_result result;

		if (first < end) {
			result = take_start(s, first, &end, stream, PE_AHEAD, true, run);
			if (result != TAKE_ELSEWHERE)
				return result == TAKE_STARTED;
		}
		readahead_asked(&s->readahead, stream, end * PE_GRANULE);
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
