/* Filling: fetching what nobody has asked for, and forgetting what has turned out to be wrong. */
#define _GNU_SOURCE
#include <errno.h>

#include "store.h"

/* Is it quiet, or until when must it stay quiet? 0: it is. */
static uint64_t quiet_at(struct pe_store *s, uint64_t now, uint64_t quiet)
{
	if (s->parked_count || s->flights)
		s->busy = now;
	return s->busy && s->busy + quiet > now ? s->busy + quiet : 0;
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
		uint64_t first = later ? s->map.granules : store_next_unclaimed(s, 0, s->map.granules);
		/* A read that falls into the run waits for it: it takes no longer than other runs of this source do. */
		uint64_t most = length < s->plan.ceiling ? length : s->plan.ceiling;

		if (first < s->map.granules &&
		    store_start(s, first, first + most / PE_GRANULE, PLAN_STREAMS, kind, run)) {
			result = 0;
			break;
		}
		if (!later && map_has(&s->map, 0, s->map.granules))
			pthread_cond_wait(&s->fill, &s->lock);
		else
			cond_wait_until(&s->fill, &s->lock, later ? later : now + quiet);
	}
	pthread_mutex_unlock(&s->lock);
	return result;
}

bool fill_gives_way(const struct pe_store *s, const struct flight *f)
{
	if (f->kind != PE_IDLE || !s->parked_count)
		return false;
	for (const struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		if (store_waits_for(s, w, f))
			return false;
	return true;
}

int pe_store_forget_all(pe_store *s)
{
	if (!s->map.word)
		return -EINVAL;
	pthread_mutex_lock(&s->lock);
	__atomic_store_n(&s->complete, false, __ATOMIC_RELEASE);
	map_clear(&s->map);
	/* What a parked read had already is to be fetched again for it. */
	for (struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		w->claimed = false;
	pthread_cond_signal(&s->work);
	pthread_cond_broadcast(&s->fill);
	pthread_mutex_unlock(&s->lock);
	return 0;
}
