/* How runs land: piece by piece, each answering the reads that it makes whole; how they are resumed and finished. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/io.h"
#include "claim.h"
#include "fill.h"
#include "parked.h"
#include "store.h"

static struct flight *find(struct pe_store *s, uint64_t id)
{
	for (int i = 0; id && i < STORE_FLIGHTS; i++)
		if (s->flight[i].id == id)
			return &s->flight[i];
	return NULL;
}

/* Whole granules of a piece; those before good have reached the data file. */
struct span {
	uint64_t first, good, end;
	uint64_t wrote; /* bytes */
	const char *bytes;
};

/* Bytes of the granules [first, end); the blob's last one may be short. */
static uint64_t length_of(const struct pe_store *s, uint64_t first, uint64_t end)
{
	return (end * PE_GRANULE < s->size ? end * PE_GRANULE : s->size) - first * PE_GRANULE;
}

static int write_one(struct pe_store *s, uint64_t first, const char *bytes, uint64_t length)
{
	struct granules lost;
	uint32_t epoch = checked_before_write(&s->checked, &lost);
	int err;

	if (lost.first < lost.end)
		store_spoil(s, lost.first, lost.end);
	err = io_pwrite(s->data_fd, bytes, length, first * PE_GRANULE);
	return checked_after_write(&s->checked, epoch, first, bytes, length, err);
}

/* Writes what is absent of a span. A granule that is present is being read by others and stays as it is. */
static int write_absent(struct pe_store *s, struct span *span)
{
	while (span->good < span->end) {
		uint64_t absent = bitmap_next_absent(&s->bitmap, span->good, span->end);
		uint64_t present = bitmap_next_present(&s->bitmap, absent, span->end);
		const char *bytes = span->bytes + (absent - span->first) * PE_GRANULE;
		uint64_t length = absent < present ? length_of(s, absent, present) : 0;
		int err = length ? write_one(s, absent, bytes, length) : 0;

		if (err)
			return err;
		span->wrote += length;
		span->good = present;
	}
	return 0;
}

/*
 * Divides a piece into what completes the granule that the piece before has begun, and the whole granules after it.
 * What is left over is the beginning of the next one: see save_rest.
 */
static int divide(const struct pe_store *s, char *tail, uint64_t offset, const char *bytes, uint64_t end,
		  struct span *spans)
{
	uint64_t first = granule_of(offset), begun = offset % PE_GRANULE;
	int count = 0;

	if (begun && first < end) {
		memcpy(tail + begun, bytes, length_of(s, first, first + 1) - begun);
		spans[count++] = (struct span){ .first = first, .good = first, .end = first + 1, .bytes = tail };
		bytes += PE_GRANULE - begun; /* beyond its end where the blob ends before, and then there is no more */
		first++;
	}
	if (first < end)
		spans[count++] = (struct span){ .first = first, .good = first, .end = end, .bytes = bytes };
	return count;
}

static void save_rest(char *tail, uint64_t offset, const char *bytes, uint64_t length, uint64_t end)
{
	uint64_t from = end * PE_GRANULE > offset ? end * PE_GRANULE : offset;

	if (from < offset + length)
		memcpy(tail + from % PE_GRANULE, bytes + (from - offset), offset + length - from);
}

/* Hands a span to the reads that need it for themselves: what is not in the file to all, else to those that read again. */
static void hand_over(struct pe_store *s, const struct span *span)
{
	struct waiter *next;

	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		uint64_t first = w->reread ? span->first : span->good;
		uint64_t from = granule_of(w->offset), end = granule_end(w->offset + w->length);

		next = w->next;
		if (first >= span->end || first >= end || from >= span->end)
			continue;
		if (!w->bounce)
			w->bounce = bounce_new(from, end);
		if (w->bounce)
			bounce_put(w->bounce, first, span->end, span->bytes + (first - span->first) * PE_GRANULE,
				   s->size);
		else
			store_answer(s, w, -ENOMEM);
	}
}

/* What writing a piece came to decides whether there is a cache at present. */
static void note_write(struct pe_store *s, int err, uint64_t wrote)
{
	if (err) {
		s->write_error = -err;
		s->written = 0;
	} else if (s->write_error) {
		s->written += wrote;
		if (s->written >= STORE_WRITABLE || bitmap_has(&s->bitmap, 0, s->bitmap.granules))
			s->write_error = 0;
	}
}

/* The granules that lie wholly before pos; the blob's last one may be short. */
static uint64_t granules_landed(const struct pe_store *s, uint64_t pos)
{
	return pos == s->size ? s->bitmap.granules : granule_of(pos);
}

static bool overlaps(const struct waiter *w, uint64_t first, uint64_t end)
{
	return granule_of(w->offset) < end && granule_end(w->offset + w->length) > first;
}

static void answer_whole(struct pe_store *s, uint64_t first, uint64_t end)
{
	struct waiter *next;

	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (overlaps(w, first, end) && waiter_is_whole(s, w))
			store_answer(s, w, 0);
	}
}

static int count_waiters(const struct pe_store *s, const struct flight *f)
{
	int count = 0;

	for (const struct waiter *w = s->parked.next; w != &s->parked; w = w->next)
		count += store_waits_for(s, w, f);
	return count;
}

/* Is the rest of the run of no use? */
static bool is_over(const struct pe_store *s, const struct flight *f)
{
	/* A run that is complete says "go on", so that the transfer ends by itself and its connection stays usable. */
	if (f->pos >= f->end)
		return false;
	if (s->write_error)
		return !count_waiters(s, f);
	return bitmap_has(&s->bitmap, granule_of(f->pos), granule_end(f->end)) || fill_gives_way(s, f);
}

int pe_store_land(pe_store *s, uint64_t id, uint64_t offset, const void *bytes, uint64_t length)
{
	struct flight *f;
	struct span spans[2];
	uint64_t first = granule_of(offset), end;
	char *tail = NULL;
	uint64_t wrote = 0;
	int count, result, err = 0;

	pthread_mutex_lock(&s->lock);
	f = find(s, id);
	if (f)
		tail = s->tail[f - s->flight];
	result = !f ? -ENOENT : s->stopping ? -ESHUTDOWN : offset != f->pos || offset + length > f->end ? -EINVAL : 0;
	pthread_mutex_unlock(&s->lock);
	if (result)
		return result;
	end = granules_landed(s, offset + length);
	count = divide(s, tail, offset, bytes, end, spans);
	for (int i = 0; i < count && !err; i++) {
		err = write_absent(s, &spans[i]);
		wrote += spans[i].wrote;
	}
	__atomic_fetch_add(&s->landed, length, __ATOMIC_RELAXED);
	pthread_mutex_lock(&s->lock);
	f->pos = offset + length;
	if (!f->latency)
		f->latency = now_ns() - f->started;
	store_end_outage(s);
	if (s->idle && store_near_end(s, f) && offset + s->readahead.lead < f->end)
		pthread_cond_signal(&s->work); /* the next run of its stream is due */
	for (int i = 0; i < count; i++) {
		bitmap_set(&s->bitmap, spans[i].first, spans[i].good);
		hand_over(s, &spans[i]);
	}
	if (first < end) {
		note_write(s, err, wrote);
		answer_whole(s, first, end);
	}
	result = is_over(s, f) ? PE_NOT_WANTED : PE_GO_ON;
	pthread_mutex_unlock(&s->lock);
	if (first < end)
		claim_announce(s->shared);
	save_rest(tail, offset, bytes, length, end);
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

int pe_store_waiters(pe_store *s, uint64_t id)
{
	const struct flight *f;
	int count;

	pthread_mutex_lock(&s->lock);
	f = find(s, id);
	count = f ? count_waiters(s, f) : -ENOENT;
	pthread_mutex_unlock(&s->lock);
	return count;
}

int pe_store_finish(pe_store *s, uint64_t id, int error, uint64_t until)
{
	struct flight *f, bad;
	struct waiter *next;

	pthread_mutex_lock(&s->lock);
	f = find(s, id);
	if (!f) {
		pthread_mutex_unlock(&s->lock);
		return -ENOENT;
	}
	bad = *f;
	if (until > bad.pos && until < bad.end)
		bad.end = until;
	/* What the run did not land itself may have come from another store on the same files. */
	answer_whole(s, granule_of(f->began), granule_end(f->end));
	for (struct waiter *w = s->parked.next; w != &s->parked; w = next) {
		next = w->next;
		if (error && store_waits_for(s, w, &bad)) {
			store_answer(s, w, error);
		} else if (overlaps(w, granule_of(f->began), granule_end(f->end))) {
			/* What has landed without a cache, or was spoiled since, it may have missed. */
			w->claimed = false;
		}
	}
	/* What is fetched beside demand tells little of the line's rate. */
	if (!error && f->pos == f->end && f->kind < PE_FILL)
		readahead_measure(&s->readahead, f->end - f->began, f->latency, now_ns() - f->started);
	s->flights--;
	s->flights_ahead -= f->kind == PE_AHEAD;
	if (f->kind != PE_FILL && f->kind != PE_IDLE)
		s->busy = now_ns();
	f->id = 0;
	claim_drop(s->map_fd, f->claimed, f->claimed_end);
	store_update_complete(s);
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
	claim_announce_release(s->shared);
	return 0;
}
