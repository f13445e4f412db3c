/* The reads that are parked on a store: how long they wait, and how they are answered. */
#ifndef PE_PARKED_H
#define PE_PARKED_H

#include <stddef.h>

#include "store.h"

/* The first granule of [first, end) that is not in the map, nor held by w itself, which may be NULL. */
uint64_t waiter_next_needed(const struct pe_store *s, const struct waiter *w, uint64_t first, uint64_t end);

/* Has it all of its bytes? */
static inline bool waiter_is_whole(const struct pe_store *s, const struct waiter *w)
{
	uint64_t end = granule_end(w->offset + w->length);

	return waiter_next_needed(s, w, granule_of(w->offset), end) == end;
}

/* What became of a read that was to be parked. */
enum { STORE_PARKED = 0, STORE_PRESENT = 1 };

/*
 * STORE_PRESENT: its bytes are there, so it was not parked. STORE_PARKED: it is the store's until its time comes, when it
 * is unlinked, has its status and goes to its inbox. -ESHUTDOWN: neither.
 */
int store_park(struct pe_store *s, struct waiter *w);
/* Parks a read again, whose bytes were spoiled when it was about to be answered. As store_park. */
int store_park_again(struct pe_store *s, struct waiter *w);
/* Unlinks w and puts it into its inbox. The lock is held. */
void store_answer(struct pe_store *s, struct waiter *w, int status);
/* Does w need bytes that f has not landed yet? */
bool store_waits_for(const struct pe_store *s, const struct waiter *w, const struct flight *f);
/* The first deadline of a parked read; 0: there is none. The lock is held. */
uint64_t store_next_deadline(const struct pe_store *s);
/* Fails the reads whose deadline is this or an earlier one, which begins an outage. The lock is held. */
void store_fail_late(struct pe_store *s, uint64_t deadline);
/* Something has landed: reads that still wait have all of their time again. The lock is held. */
void store_end_outage(struct pe_store *s);
/* Whether it waits for other processes too. The lock is held. */
void store_set_at_peer(struct pe_store *s, struct waiter *w, bool at_peer);
/* Drops every parked read of an inbox that is going away, and lets none be parked again. */
void store_forget(struct pe_store *s, struct inbox *inbox);
/* Drops a thread's own waiter if it is still parked. False: it is in its inbox, or about to be. */
bool store_unpark(struct pe_store *s, struct waiter *w);

/* Completes what it holds itself with what is in the data file. As store_read_checked. */
int waiter_fill(struct pe_store *s, struct waiter *w, uint32_t epoch);

static inline struct waiter *waiter_of(struct inbox_item *item)
{
	return (struct waiter *)((char *)item - offsetof(struct waiter, item));
}

#endif
