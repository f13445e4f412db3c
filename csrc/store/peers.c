#define _GNU_SOURCE
#include "peers.h"

#include <errno.h>

#include "base/clock.h"
#include "claim.h"
#include "parked.h"

/* A dying process wakes no other: so often claims are tried again while something waits for them. */
static const uint64_t peers_turn = 100000000;
/* How long others may bring nothing, where reads have no deadline. */
static const uint64_t peers_patience = 10000000000;
/* The same during an outage. */
static const uint64_t outage_patience = STORE_OUTAGE_MS * 1000000ULL / 4;

/*
 * A process may be stopped, or its network gone, and still hold its claims. A read that sees nothing come is fetched
 * all the same, while there is time; and so is one that has spent half of its time.
 */
bool peers_are_slow(const struct pe_store *s, const struct waiter *w)
{
	uint64_t patience = s->timeout ? s->timeout / 8 : peers_patience;
	uint64_t now = now_ns();

	if (s->outage && patience > outage_patience)
		patience = outage_patience; /* there is time for one attempt only, and it is to be made */
	if (s->timeout && now - w->since > s->timeout / 2)
		return true;
	return now - w->since > patience && now - s->moved > patience;
}

/* Answers the reads that have become whole, and lets the others be fetched if a claim on them may have ended. */
static void look(struct pe_store *s, uint32_t generation)
{
	uint32_t released = __atomic_load_n(&s->shared->released, __ATOMIC_SEQ_CST);
	uint64_t now = now_ns();
	bool retry = released != s->released || now - s->retried >= peers_turn;
	struct waiter *next;

	if (generation != s->generation)
		s->moved = now;
	/* A run that failed is announced too, by its release. */
	if (generation != s->generation && released == s->released)
		store_end_outage(s);
	s->generation = generation;
	if (retry) {
		s->released = released;
		s->retried = now;
	}
	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (!w->at_peer)
			continue;
		if (waiter_is_whole(s, w)) {
			store_end_outage(s);
			s->from_peers++;
			store_answer(s, w, 0);
			store_update_complete(s);
		} else if (retry) {
			w->claimed = false;
			pthread_cond_signal(&s->work);
		}
	}
}

/* Sleeps until other processes may have brought something, a deadline passes or a moment is over. */
static void wait_for_news(struct pe_store *s, uint64_t deadline)
{
	uint32_t generation = claim_listen(s->shared);
	uint64_t now, timeout = peers_turn;

	look(s, generation);
	if (!s->at_peer || s->stopping)
		return;
	now = now_ns();
	if (deadline && deadline - now < timeout)
		timeout = deadline > now ? deadline - now : 0;
	pthread_mutex_unlock(&s->lock);
	claim_wait(s->shared, generation, timeout);
	pthread_mutex_lock(&s->lock);
}

int pe_store_expire(pe_store *s)
{
	pthread_mutex_lock(&s->lock);
	while (!s->stopping) {
		uint64_t deadline = store_next_deadline(s);

		if (!deadline || deadline > now_ns()) {
			if (s->at_peer)
				wait_for_news(s, deadline);
			else if (deadline)
				cond_wait_until(&s->timer, &s->lock, deadline);
			else
				pthread_cond_wait(&s->timer, &s->lock);
			continue;
		}
		store_fail_late(s, deadline);
	}
	pthread_mutex_unlock(&s->lock);
	return 0;
}
