/* Filling and prefetching: fetch what no read has asked for, and forget what has turned out to be wrong. */
#define _GNU_SOURCE
#include "fill.h"

#include <errno.h>

#include "base/clock.h"
#include "parked.h"
#include "take.h"

/* Between two runs while nothing can be cached, ns. */
static const uint64_t fill_probe = 10000000000;
/* So often is looked whether another one's flight, or a free slot, has come to an end, ns. */
static const uint64_t range_turn = 50000000;
/* So often is the pause doubled in which no read wants anything else, before what is prefetched is of use. */
enum { RANGE_ROUNDS = 5 };

/* Is it quiet, or until when must it stay quiet? 0: it is. */
static uint64_t quiet_at(struct pe_store *s, uint64_t now, uint64_t quiet)
{
	if (s->parked_count || s->flights)
		s->busy = now;
	return s->busy && s->busy + quiet > now ? s->busy + quiet : 0;
}

/* The run for the first stretch of [first, last) that no process has in flight: TAKE_ELSEWHERE when there is none. */
static enum take_result start(struct pe_store *s, int kind, uint64_t first, uint64_t last, uint64_t length,
			      struct pe_run *run)
{
	while ((first = take_next_unclaimed(s, NULL, first, last)) < last) {
		uint64_t end = first + length / PE_GRANULE < last ? first + length / PE_GRANULE : last;
		enum take_result result = take_start(s, first, &end, READAHEAD_STREAMS, kind, true, run);

		if (result != TAKE_ELSEWHERE)
			return result;
		first = end;
	}
	return TAKE_ELSEWHERE;
}

int pe_store_take_fill(pe_store *s, int32_t kind, uint64_t length, uint32_t ms, struct pe_run *run)
{
	uint64_t quiet = (uint64_t)(ms ? ms : 1) * 1000000U;
	int result = -ESHUTDOWN;

	if ((kind != PE_FILL && kind != PE_IDLE) || length < PE_GRANULE)
		return -EINVAL;
	pthread_mutex_lock(&s->lock);
	while (!s->stopping) {
		uint64_t now = now_ns(), later = kind == PE_IDLE ? quiet_at(s, now, quiet) : 0;
		/* A read that falls into the run waits for it: it takes no longer than other runs of this source do. */
		uint64_t most = length < s->readahead.ceiling ? length : s->readahead.ceiling;

		if (s->write_error) {
			/* Nothing is kept: now and then a short run finds out whether that has changed. */
			most = most < READAHEAD_WINDOW_FIRST ? most : READAHEAD_WINDOW_FIRST;
			if (s->probed + fill_probe > now && later < s->probed + fill_probe)
				later = s->probed + fill_probe;
		}
		if (!later && start(s, kind, 0, s->bitmap.granules, most, run) == TAKE_STARTED) {
			s->probed = now;
			result = 0;
			break;
		}
		if (!later && bitmap_has(&s->bitmap, 0, s->bitmap.granules))
			pthread_cond_wait(&s->fill, &s->lock);
		else
			cond_wait_until(&s->fill, &s->lock, later ? later : now + quiet);
	}
	pthread_mutex_unlock(&s->lock);
	return result;
}

int pe_store_take_within(pe_store *s, uint64_t offset, uint64_t end, struct pe_run *run)
{
	uint64_t first = offset / PE_GRANULE, last = granule_end(end);
	int result = -EAGAIN;

	if (offset % PE_GRANULE || offset >= end || end > s->size || (end % PE_GRANULE && end != s->size))
		return -EINVAL;
	pthread_mutex_lock(&s->lock);
	if (s->stopping)
		result = -ESHUTDOWN;
	while (result == -EAGAIN && !s->write_error && (first = take_next_unclaimed(s, NULL, first, last)) < last) {
		uint64_t until = last;
		enum take_result found = take_start(s, first, &until, READAHEAD_STREAMS, PE_FILL, true, run);

		if (found == TAKE_NO_SLOT)
			break;
		if (found == TAKE_STARTED) {
			s->runs--; /* no request is made for it */
			result = 0;
		}
		first = until;
	}
	pthread_mutex_unlock(&s->lock);
	return result;
}

int pe_store_take_range(pe_store *s, uint64_t offset, uint64_t length, uint64_t most, uint32_t ms, struct pe_run *run)
{
	int result = -ESHUTDOWN;

	if (!store_in_range(s, offset, length) || most < PE_GRANULE)
		return -EINVAL;
	pthread_mutex_lock(&s->lock);
	while (!s->stopping) {
		uint64_t now = now_ns(), later = s->strayed + ((uint64_t)ms * 1000000U << s->stray_rounds);
		enum take_result started = TAKE_NO_SLOT;

		if (s->strays < STORE_STRAYS || later <= now) {
			if (s->strays >= STORE_STRAYS) {
				s->strays = 0;
				s->stray_rounds += s->stray_rounds < RANGE_ROUNDS;
			}
			later = now + range_turn;
			started = TAKE_ELSEWHERE;
			if (!s->write_error) /* what cannot be kept is not worth fetching */
				started = start(s, PE_PREFETCH, granule_of(offset), granule_end(offset + length), most,
						run);
		}
		if (started != TAKE_NO_SLOT) {
			result = started == TAKE_STARTED ? PE_TAKEN : PE_NOTHING_LEFT;
			break;
		}
		cond_wait_until(&s->fill, &s->lock, later);
	}
	pthread_mutex_unlock(&s->lock);
	return result;
}

bool fill_gives_way(const struct pe_store *s, const struct flight *f)
{
	if (!s->parked_count || (f->kind != PE_IDLE && (f->kind != PE_PREFETCH || s->strays < STORE_STRAYS)))
		return false;
	for (const struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		if (store_waits_for(s, w, f))
			return false;
	return true;
}

int pe_store_forget_all(pe_store *s)
{
	if (!s->bitmap.word)
		return -EINVAL;
	pthread_mutex_lock(&s->lock);
	bitmap_clear(&s->bitmap, 0, s->bitmap.granules);
	store_update_complete(s);
	/* What a parked read had already is to be fetched again for it. */
	for (struct waiter *w = s->parked.next; w != &s->parked; w = w->next) {
		w->claimed = false;
		bounce_free(w->bounce);
		w->bounce = NULL;
	}
	pthread_cond_signal(&s->work);
	pthread_cond_broadcast(&s->fill);
	pthread_mutex_unlock(&s->lock);
	return 0;
}
