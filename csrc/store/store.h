/* What the files of the core share about a store; see pyerofs.h for what it is. */
#ifndef PE_STORE_H
#define PE_STORE_H

#include <pthread.h>
#include <stdbool.h>

#include "base/inbox.h"
#include "base/latency.h"
#include "bitmap.h"
#include "bounce.h"
#include "checked.h"
#include "claim.h"
#include "pyerofs.h"
#include "readahead.h"
#include "trace.h"

enum {
	STORE_FLIGHTS = 64,
	STORE_WRITABLE = 1 << 20, /* bytes written in a row that end a time without a cache */
	STORE_STRAYS = 4, /* reads in a row that want something else: what is prefetched is of no use now */
	STORE_OUTAGE_MS = 1000, /* what a read may wait during an outage: time for one attempt */
};

/* Of a waiter; else it is 0 (every byte is present, or its own) or -errno, and it has been put into its inbox. */
enum { WAITER_PARKED = 1 };

/*
 * A read that waits for bytes, and what to do with it. What goes to an inbox for many is on the heap; a thread that waits
 * for one alone has it on its stack.
 */
struct waiter {
	struct waiter *prev, *next;
	struct inbox_item item;
	struct inbox *inbox; /* where it goes in the end */
	uint64_t offset;
	uint32_t length;
	uint32_t zeros; /* that its client wants behind these bytes */
	unsigned stream; /* of the read-ahead */
	int status; /* see above */
	bool expires; /* it waits no longer than the store's timeout */
	bool claimed; /* every absent granule of it is in flight */
	bool at_peer; /* some of them, when it was last looked at, in flights of other processes */
	bool reread; /* its bytes were found spoiled: this time they are handed to it as they land */
	uint64_t cookie;
	uint64_t since; /* when it was parked; CLOCK_MONOTONIC, ns, as is */
	uint64_t limit; /* what its deadline is unless there is an outage; 0: none */
	uint64_t deadline; /* 0: none */
	uint64_t arrived; /* when its request was read. 0: no request */
	struct bounce *bounce; /* NULL: every byte comes from the data file */
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
	unsigned stream; /* of the read-ahead */
};

/*
 * Lock order: checked.lock (and under it that of writers.c, which is taken alone) and trace.lock are never held with another one;
 * store.lock, then an inbox's. No I/O is done under any, but that the first is held over an fstat, and the second while
 * claims are taken.
 */
struct pe_store {
	int data_fd, map_fd;
	uint64_t size;
	uint64_t timeout; /* ns */
	uint64_t align; /* granules; of runs, see pe_store_set_align */
	const char *data; /* the data file, mapped for reading: only the kernel may follow it */
	struct bitmap bitmap;
	struct bitmap_shared *shared; /* the map's, or alone */
	struct bitmap_shared alone;
	struct checked checked;
	bool complete; /* atomic: every granule is present, so no read needs the lock */
	uint64_t hits, served, landed, uncached; /* atomic */
	struct pe_latency reads, parked_reads; /* atomic */
	struct trace trace; /* of connections' reads */

	pthread_mutex_t lock; /* covers all that follows */
	pthread_cond_t work; /* a taker may find something */
	pthread_cond_t timer; /* there is a deadline to watch */
	pthread_cond_t fill; /* bytes have been forgotten: see fill.c */
	struct waiter parked; /* head of the list, the oldest first */
	uint32_t parked_count;
	uint32_t at_peer; /* parked reads that wait for other processes */
	uint32_t generation; /* shared->generation as last seen, and when it moved */
	uint64_t moved;
	uint32_t released; /* shared->released when claims were last tried again, and when that was */
	uint64_t retried;
	struct flight flight[STORE_FLIGHTS];
	char tail[STORE_FLIGHTS][PE_GRANULE];
	uint32_t flights, flights_ahead, idle;
	int write_error; /* 0, or the errno for which nothing can be cached now */
	uint64_t written; /* bytes since the last such error */
	struct readahead readahead;
	uint64_t next_id;
	uint64_t busy; /* when a run that a read wanted last ended, ns: see fill.c */
	uint64_t probed; /* when it last started one, ns */
	uint32_t strays; /* reads in a row that waited for what is not being prefetched */
	uint32_t stray_rounds; /* how often in a row prefetching has given way to them */
	uint64_t strayed; /* when the last one of them came, ns */
	uint64_t misses, failed, runs, healed, from_peers;
	bool outage; /* a read has failed for want of time, and nothing has landed since */
	bool stopping;
};

static inline bool store_in_range(const struct pe_store *s, uint64_t offset, uint64_t length)
{
	return length && offset < s->size && length <= s->size - offset;
}

static inline bool store_has(const struct pe_store *s, uint64_t offset, uint64_t length)
{
	return bitmap_has(&s->bitmap, granule_of(offset), granule_end(offset + length));
}

/* Is it time to ask for what follows this flight? Earlier it would only share the line with what is wanted first. */
static inline bool store_near_end(const struct pe_store *s, const struct flight *f)
{
	return f->end - f->pos <= s->readahead.lead;
}

/* Is the stream's reader kept busy already? Then its other reads wait for one of the flights to end. */
static inline bool store_is_busy(const struct pe_store *s, unsigned stream)
{
	unsigned count = 0;

	for (int i = 0; i < STORE_FLIGHTS; i++) {
		const struct flight *f = &s->flight[i];

		count += f->id && f->stream == stream && f->end - f->pos >= READAHEAD_LONG;
	}
	return count >= READAHEAD_LONG_FLIGHTS;
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

/* Marks these granules absent, since their bytes are not what had landed. */
void store_spoil(struct pe_store *s, uint64_t first, uint64_t end);
/* The lock is held. */
void store_update_complete(struct pe_store *s);
/* Looks at the data file: see checked_look. */
uint32_t store_look(struct pe_store *s);
/* As checked_read, and marks what is spoiled. */
int store_read_checked(struct pe_store *s, uint32_t epoch, uint64_t first, uint64_t end, char *buffer);

#endif
