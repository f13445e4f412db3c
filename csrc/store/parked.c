/* The reads that are parked on a store: how long they wait, and how they are answered. */
#define _GNU_SOURCE
#include "parked.h"

#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "claim.h"

/*
 * An outage is waited for once: a read that comes while it lasts gets a moment, in which one attempt may bring the bytes. The
 * kernel asks again for the parts of a read that has failed, and each of them would wait again.
 */
static uint64_t deadline_of(const struct pe_store *s, const struct waiter *w)
{
	uint64_t moment = now_ns() + STORE_OUTAGE_MS * 1000000U;

	return s->outage && moment < w->limit ? moment : w->limit;
}

static void begin_outage(struct pe_store *s)
{
	if (s->outage)
		return;
	s->outage = true;
	for (struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		w->deadline = deadline_of(s, w);
}

void store_end_outage(struct pe_store *s)
{
	if (!s->outage)
		return;
	s->outage = false;
	for (struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		w->deadline = w->limit;
}

/*
 * Limits rise along the list, since every connection's read gets the same time, and so do deadlines, but for a moment
 * in an outage; a thread's own waiter has none.
 */
uint64_t store_next_deadline(const struct pe_store *s)
{
	for (const struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		if (w->deadline)
			return w->deadline;
	return 0;
}

uint64_t waiter_next_needed(const struct pe_store *s, const struct waiter *w, uint64_t first, uint64_t end)
{
	first = bitmap_next_absent(&s->bitmap, first, end);
	while (w && w->bounce && first < end && bounce_has(w->bounce, first))
		first = bitmap_next_absent(&s->bitmap, first + 1, end);
	return first;
}

int waiter_fill(struct pe_store *s, struct waiter *w, uint32_t epoch)
{
	uint64_t at = w->bounce->first, stop;
	int result = 0;

	for (; at < w->bounce->end && result >= 0; at = stop) {
		int read;

		stop = at + 1;
		if (bounce_has(w->bounce, at))
			continue;
		while (stop < w->bounce->end && !bounce_has(w->bounce, stop))
			stop++;
		read = store_read_checked(s, epoch, at, stop, bounce_at(w->bounce, at));
		if (!read)
			bounce_mark(w->bounce, at, stop);
		result = read ? read : result;
	}
	return result;
}

static void wake_taker(struct pe_store *s, bool wanted)
{
	uint64_t offset, length;
	unsigned stream;

	/* For the read itself, or for what its stream will want next. A hit that wants neither wakes no thread. */
	if (s->idle &&
	    (wanted || readahead_next(&s->readahead, s->size, store_busy_streams(s), &stream, &offset, &length)))
		pthread_cond_signal(&s->work);
}

/* Links w behind this one. */
static void link_waiter(struct pe_store *s, struct waiter *w, struct waiter *before)
{
	w->status = WAITER_PARKED;
	w->claimed = w->at_peer = false;
	w->since = now_ns();
	w->prev = before;
	w->next = before->next;
	w->prev->next = w->next->prev = w;
	s->parked_count++;
	if (w->deadline && store_next_deadline(s) == w->deadline)
		pthread_cond_signal(&s->timer); /* until now there was none to watch, or a later one */
}

/* Does a read that has been parked wait for what is being prefetched? */
static void note_stray(struct pe_store *s, const struct waiter *w)
{
	for (int i = 0; s->flights && i < STORE_FLIGHTS; i++) {
		const struct flight *f = &s->flight[i];

		if (f->id && f->kind == PE_PREFETCH && store_waits_for(s, w, f)) {
			s->strays = s->stray_rounds = 0;
			return;
		}
	}
	if (s->strays < STORE_STRAYS)
		s->strays++;
	s->strayed = now_ns();
}

int store_park(struct pe_store *s, struct waiter *w)
{
	int result = STORE_PARKED;

	if (__atomic_load_n(&s->complete, __ATOMIC_ACQUIRE)) {
		__atomic_fetch_add(&s->hits, 1, __ATOMIC_RELAXED);
		return STORE_PRESENT;
	}
	pthread_mutex_lock(&s->lock);
	w->stream = readahead_touch(&s->readahead, w->offset, w->length);
	/* Landing sets bits and looks for whole reads under the lock, so none that is parked here can be missed. */
	if (waiter_is_whole(s, w)) {
		__atomic_fetch_add(&s->hits, 1, __ATOMIC_RELAXED);
		result = STORE_PRESENT;
	} else if (s->stopping) {
		result = -ESHUTDOWN;
	} else {
		w->limit = w->expires && s->timeout ? now_ns() + s->timeout : 0;
		w->deadline = deadline_of(s, w);
		link_waiter(s, w, s->parked.prev);
		note_stray(s, w);
		s->misses++;
	}
	wake_taker(s, result == STORE_PARKED);
	pthread_mutex_unlock(&s->lock);
	return result;
}

int store_park_again(struct pe_store *s, struct waiter *w)
{
	struct waiter *before;
	int result = STORE_PARKED;

	pthread_mutex_lock(&s->lock);
	w->reread = true;
	if (s->stopping || w->inbox->gone) {
		result = -ESHUTDOWN;
	} else if (waiter_is_whole(s, w)) {
		result = STORE_PRESENT;
	} else {
		/* It has waited before: its limit is an early one, and the list is in their order, which an outage leaves. */
		w->deadline = deadline_of(s, w);
		for (before = s->parked.prev; before != &s->parked; before = before->prev)
			if (before->limit && before->limit <= w->limit)
				break;
		link_waiter(s, w, before);
		wake_taker(s, true);
	}
	pthread_mutex_unlock(&s->lock);
	return result;
}

bool store_waits_for(const struct pe_store *s, const struct waiter *w, const struct flight *f)
{
	uint64_t first = granule_of(f->pos > w->offset ? f->pos : w->offset);
	uint64_t end = granule_end(f->end < w->offset + w->length ? f->end : w->offset + w->length);

	return first < end && waiter_next_needed(s, w, first, end) < end;
}

void store_set_at_peer(struct pe_store *s, struct waiter *w, bool at_peer)
{
	if (at_peer && !s->at_peer)
		pthread_cond_signal(&s->timer); /* there is another process to listen to */
	s->at_peer += at_peer - w->at_peer;
	w->at_peer = at_peer;
}

static void unlink_waiter(struct pe_store *s, struct waiter *w)
{
	store_set_at_peer(s, w, false);
	w->prev->next = w->next;
	w->next->prev = w->prev;
	s->parked_count--;
}

void store_answer(struct pe_store *s, struct waiter *w, int status)
{
	unlink_waiter(s, w);
	if (status < 0)
		s->failed++;
	else if (w->bounce)
		__atomic_fetch_add(&s->uncached, 1, __ATOMIC_RELAXED);
	w->status = status;
	inbox_put(w->inbox, &w->item); /* and then it is not ours */
}

void store_forget(struct pe_store *s, struct inbox *inbox)
{
	struct waiter *next;

	pthread_mutex_lock(&s->lock);
	inbox->gone = true;
	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (w->inbox == inbox) {
			unlink_waiter(s, w);
			bounce_free(w->bounce);
			free(w);
		}
	}
	pthread_mutex_unlock(&s->lock);
}

bool store_unpark(struct pe_store *s, struct waiter *w)
{
	bool parked;

	pthread_mutex_lock(&s->lock);
	parked = w->status == WAITER_PARKED;
	if (parked)
		unlink_waiter(s, w);
	pthread_mutex_unlock(&s->lock);
	return parked;
}

void store_fail_late(struct pe_store *s, uint64_t deadline)
{
	struct waiter *next;

	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (w->deadline && w->deadline <= deadline)
			store_answer(s, w, -ETIMEDOUT);
	}
	begin_outage(s);
}

void pe_store_stop(pe_store *s)
{
	pthread_mutex_lock(&s->lock);
	s->stopping = true;
	while (s->parked.next != &s->parked)
		store_answer(s, s->parked.next, -ESHUTDOWN);
	pthread_cond_broadcast(&s->work);
	pthread_cond_broadcast(&s->timer);
	pthread_cond_broadcast(&s->fill);
	pthread_mutex_unlock(&s->lock);
	claim_announce(s->shared); /* the expiring thread may sleep there */
}
