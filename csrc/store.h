/* What the files of the core share about a store; see pyerofs.h for what it is. */
#ifndef PE_STORE_H
#define PE_STORE_H

#include <pthread.h>
#include <stdbool.h>

#include "claim.h"
#include "clock.h"
#include "keep.h"
#include "map.h"
#include "plan.h"
#include "pyerofs.h"
#include "trust.h"
#include "hist.h" /* needs pyerofs.h */

enum {
	STORE_FLIGHTS = 64,
	STORE_WRITABLE = 1 << 20, /* bytes written in a row that end a time without a cache */
	STORE_OUTAGE_MS = 1000, /* what a read may wait during an outage: time for one attempt */
};

/* A read that waits for bytes. A connection's own are on the heap; a thread that waits has its own on its stack. */
struct waiter {
	struct waiter *prev, *next;
	uint64_t offset;
	uint32_t length;
	uint32_t zeros; /* that its client wants behind these bytes */
	unsigned stream; /* of the plan */
	int status; /* 1: parked, 0: every byte is present or its own, else -errno */
	bool claimed; /* every absent granule of it is in flight */
	bool foreign; /* some of them, when it was last looked at, in flights of other processes */
	bool mistrust; /* its bytes were found spoiled: this time they are handed to it as they land */
	uint64_t cookie;
	uint64_t since; /* when it was parked; CLOCK_MONOTONIC, ns, as is */
	uint64_t limit; /* what its deadline is unless there is an outage; 0: none */
	uint64_t deadline; /* 0: none */
	uint64_t arrived; /* when its request was read. 0: no request */
	struct keep *keep; /* NULL: every byte comes from the data file */
	struct pe_conn *conn; /* NULL: a thread waits */
};

/*
 * A run in flight. pos and end move under the lock; between them only the run's taker writes to the data file. A
 * granule is written when it is whole: until then its first bytes are in tail, the taker's own.
 */
struct flight {
	uint64_t id; /* 0: the slot is free */
	uint64_t pos, end;
	uint64_t claimed, claimed_end; /* granules, against other processes */
	uint64_t began, started; /* pos at the start, and when; for the rate */
	uint64_t latency; /* ns from the start to the first bytes; 0: none yet */
	int kind;
	unsigned stream; /* of the plan */
};

/*
 * Lock order: trust.lock (and under it the watch's, which is taken alone), store.lock, a connection's ready_lock. No I/O
 * is done under any, but that the first is held over an fstat, and the second while claims are taken. A connection's
 * send_lock is never taken with another one held.
 */
struct pe_store {
	int data_fd, map_fd;
	uint64_t size;
	uint64_t timeout; /* ns */
	uint64_t align; /* granules; of runs, see pe_store_set_align */
	const char *data; /* the data file, mapped for reading: only the kernel may follow it, see reply.c */
	struct pe_map map;
	struct map_shared *shared; /* the map's, or alone */
	struct map_shared alone;
	struct trust trust;
	bool complete; /* atomic: every granule is present, so no read needs the lock */
	uint64_t hits, served, landed, uncached; /* atomic */
	struct pe_latency reads, parked_reads; /* atomic */

	pthread_mutex_t lock; /* covers all that follows */
	pthread_cond_t work; /* a taker may find something */
	pthread_cond_t whole; /* a thread's own waiter was answered */
	pthread_cond_t timer; /* there is a deadline to watch */
	pthread_cond_t fill; /* bytes have been forgotten: see fill.c */
	struct waiter parked; /* head of the list, the oldest first */
	uint32_t parked_count;
	uint32_t foreign; /* parked reads that wait for other processes */
	uint32_t word; /* shared->word as last seen, and when it moved */
	uint64_t moved;
	uint32_t released; /* shared->released when claims were last tried again, and when that was */
	uint64_t retried;
	struct flight flight[STORE_FLIGHTS];
	char tail[STORE_FLIGHTS][PE_GRANULE];
	uint32_t flights, flights_ahead, idle;
	int write_error; /* 0, or the errno for which nothing can be cached now */
	uint64_t written; /* bytes since the last such error */
	struct plan plan;
	uint64_t next_id;
	uint64_t busy; /* when a run that somebody wanted last ended, ns: see fill.c */
	uint64_t probed; /* when it last started one, ns */
	uint64_t misses, failed, runs, healed, others;
	bool outage; /* a read has failed for want of time, and nothing has landed since */
	bool stopping;
};

static inline uint64_t granule_of(uint64_t offset)
{
	return offset / PE_GRANULE;
}

static inline uint64_t granule_end(uint64_t end)
{
	return (end + PE_GRANULE - 1) / PE_GRANULE;
}

static inline bool store_in_range(const struct pe_store *s, uint64_t offset, uint64_t length)
{
	return length && offset < s->size && length <= s->size - offset;
}

static inline bool store_has(const struct pe_store *s, uint64_t offset, uint64_t length)
{
	return map_has(&s->map, granule_of(offset), granule_end(offset + length));
}

/* Is it time to ask for what follows this flight? Earlier it would only share the line with what is wanted first. */
static inline bool store_near_end(const struct pe_store *s, const struct flight *f)
{
	return f->end - f->pos <= s->plan.lead;
}

/* Is the stream's reader kept busy already? Then its other reads wait for one of the flights to end. */
static inline bool store_is_busy(const struct pe_store *s, unsigned stream)
{
	unsigned count = 0;

	for (int i = 0; i < STORE_FLIGHTS; i++) {
		const struct flight *f = &s->flight[i];

		count += f->id && f->stream == stream && f->end - f->pos >= PLAN_LONG;
	}
	return count >= PLAN_LONG_FLIGHTS;
}

/* The streams that need nothing ahead yet, a bit each. The lock is held. */
static inline unsigned store_busy_streams(const struct pe_store *s)
{
	unsigned busy = 0;

	for (int i = 0; s->flights && i < STORE_FLIGHTS; i++) {
		const struct flight *f = &s->flight[i];

		if (f->id && (!store_near_end(s, f) || store_is_busy(s, f->stream)))
			busy |= 1U << f->stream;
	}
	return busy;
}

/* run.c: the first granule of [first, end) that w (NULL: anybody) needs and that is not in flight; end: there is none. */
uint64_t store_next_unclaimed(const struct pe_store *s, const struct waiter *w, uint64_t first, uint64_t end);

/* What came of an attempt to start a run. */
enum { STARTED, NO_SLOT, ELSEWHERE };

/*
 * run.c: puts a run over granules from first on, up to *end at the most, in flight. ELSEWHERE: another process has
 * first in flight, up to *end. claim: whether to ask the others at all.
 */
int store_start(struct pe_store *s, uint64_t first, uint64_t *end, unsigned stream, int kind, bool claim,
		struct pe_run *run);
/* land.c: does w need bytes that f has not landed yet? */
bool store_waits_for(const struct pe_store *s, const struct waiter *w, const struct flight *f);
/* fill.c: has f, which nobody asked for, to give way to somebody who waits for other bytes? */
bool fill_gives_way(const struct pe_store *s, const struct flight *f);

/* The first granule of [first, end) that is not in the map, nor kept by w itself, which may be NULL. */
uint64_t waiter_next_needed(const struct pe_store *s, const struct waiter *w, uint64_t first, uint64_t end);

/* Has it all of its bytes? */
static inline bool waiter_is_whole(const struct pe_store *s, const struct waiter *w)
{
	uint64_t end = granule_end(w->offset + w->length);

	return waiter_next_needed(s, w, granule_of(w->offset), end) == end;
}

/* Completes what it keeps itself with what is in the data file. As trust_read. */
int waiter_fill(struct pe_store *s, struct waiter *w, uint32_t epoch);

/*
 * 1: the bytes are there. 0: w is parked; when its time comes it is unlinked and given to conn_ready, or, when it has
 * no connection, its status is set and whole is signalled. -ESHUTDOWN: neither.
 */
int store_want(struct pe_store *s, struct waiter *w);
/* Parks a connection's read again, whose bytes were spoiled when it was about to be answered. As store_want. */
int store_want_again(struct pe_store *s, struct waiter *w);
/* Unlinks w and tells its owner. The lock is held. */
void store_answer(struct pe_store *s, struct waiter *w, int status);
/* Marks these granules absent, since their bytes are not what had landed. */
void store_spoil(struct pe_store *s, uint64_t first, uint64_t end);
/* The lock is held, also for the next two. By when it is to be answered. */
uint64_t store_deadline(const struct pe_store *s, const struct waiter *w);
/* A read has failed for want of time. */
void store_begin_outage(struct pe_store *s);
/* Something has landed: whoever still waits has all of its time again. */
void store_end_outage(struct pe_store *s);
/* The lock is held. */
void store_update_complete(struct pe_store *s);
void store_set_foreign(struct pe_store *s, struct waiter *w, bool foreign);
/* Drops every parked read of a connection that is going away, and lets none be parked again. */
void store_forget(struct pe_store *s, struct pe_conn *conn);
/* Drops a thread's own waiter if it is still parked. */
void store_unpark(struct pe_store *s, struct waiter *w);

/* blob.c: as pe_store_read, for bytes that are counted elsewhere. */
int64_t store_copy(struct pe_store *s, void *buffer, uint64_t length, uint64_t offset, uint32_t timeout);

/* others.c, the lock being held: may this read be fetched although another process says that it is doing so? */
bool others_are_slow(const struct pe_store *s, const struct waiter *w);
/* Sleeps until other processes may have brought something, a deadline passes or a moment is over. */
void others_wait(struct pe_store *s, uint64_t deadline);

/* conn.c: takes over w, whose status is final. Called with the store's lock held. */
void conn_ready(struct pe_conn *conn, struct waiter *w);
/* Is the connection on its way out? For the store's lock. */
bool *conn_gone(struct pe_conn *conn);

#endif
