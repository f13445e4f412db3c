/* How long a read may wait while nothing comes. */
#define _GNU_SOURCE
#include "store.h"

/*
 * An outage is waited for once: whoever comes while it lasts gets a moment, in which one attempt may bring the bytes. The
 * kernel asks again for the parts of a read that has failed, and each of them would wait anew.
 */
uint64_t store_deadline(const struct pe_store *s, const struct waiter *w)
{
	uint64_t moment = now_ns() + STORE_OUTAGE_MS * 1000000U;

	return s->outage && moment < w->limit ? moment : w->limit;
}

void store_begin_outage(struct pe_store *s)
{
	if (s->outage)
		return;
	s->outage = true;
	for (struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		w->deadline = store_deadline(s, w);
}

void store_end_outage(struct pe_store *s)
{
	if (!s->outage)
		return;
	s->outage = false;
	for (struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		w->deadline = w->limit;
}
