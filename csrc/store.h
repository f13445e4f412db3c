/* What the files of the core share about a store; see pyerofs.h for what it is. */
#ifndef PE_STORE_H
#define PE_STORE_H

#include <pthread.h>
#include <stdbool.h>

#include "map.h"
#include "plan.h"
#include "pyerofs.h"
#include "hist.h" /* needs the one above */

enum { STORE_FLIGHTS = 64 };

/* A read that waits for bytes. A connection's own are on the heap; a thread that waits has its own on its stack. */
struct waiter {
	struct waiter *prev, *next;
	uint64_t offset;
	uint32_t length;
	unsigned stream; /* of the plan */
	int status; /* 1: parked, 0: every byte is present, else -errno */
	bool claimed; /* every absent granule of it is in flight */
	uint64_t cookie;
	uint64_t deadline; /* CLOCK_MONOTONIC, ns; 0: none */
	uint64_t arrived; /* as deadline; when its request was read. 0: no request */
	struct pe_conn *conn; /* NULL: a thread waits */
};

/* A run in flight. pos and end move under the lock; between them only the run's taker writes to the data file. */
struct flight {
	uint64_t id; /* 0: the slot is free */
	uint64_t pos, end;
	uint64_t began, started; /* pos at the start, and when; for the rate */
	uint64_t latency; /* ns from the start to the first bytes; 0: none yet */
	int kind;
	unsigned stream; /* of the plan */
};

/*
 * Lock order: store.lock, then a connection's ready_lock. No I/O is done under either. A connection's send_lock is
 * never taken with another one held.
 */
struct pe_store {
	int data_fd;
	uint64_t size;
	uint64_t timeout; /* ns */
	const char *data; /* the data file, mapped for reading: only the kernel may follow it, see reply.c */
	struct pe_map map;
	bool complete; /* atomic: every granule is present, so no read needs the lock */
	uint64_t hits, served, landed; /* atomic */
	struct pe_latency reads, parked_reads; /* atomic */

	pthread_mutex_t lock; /* covers all that follows */
	pthread_cond_t work; /* a taker may find something */
	pthread_cond_t whole; /* a thread's own waiter was answered */
	pthread_cond_t timer; /* there is a deadline to watch */
	pthread_cond_t fill; /* bytes have been forgotten: see fill.c */
	struct waiter parked; /* head of the list, the oldest first */
	uint32_t parked_count;
	struct flight flight[STORE_FLIGHTS];
	uint32_t flights, flights_ahead, idle;
	struct plan plan;
	uint64_t next_id;
	uint64_t busy; /* when a run that somebody wanted last ended, ns: see fill.c */
	uint64_t misses, failed, runs;
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

uint64_t now_ns(void);
/* Condition variables that wait by now_ns()'s clock. */
void cond_init(pthread_cond_t *cond);
void cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline);

/* run.c: the first granule of [first, end) that is neither present nor in flight; end when there is none. */
uint64_t store_next_unclaimed(const struct pe_store *s, uint64_t first, uint64_t end);
/* run.c: puts a run over granules from first on, up to end at the most, in flight. false: there is no slot. */
bool store_start(struct pe_store *s, uint64_t first, uint64_t end, unsigned stream, int kind, struct pe_run *run);
/* run.c: does w need bytes that f has not landed yet? */
bool store_waits_for(const struct pe_store *s, const struct waiter *w, const struct flight *f);
/* fill.c: has f, which nobody asked for, to give way to somebody who waits for other bytes? */
bool fill_gives_way(const struct pe_store *s, const struct flight *f);

/*
 * 1: the bytes are there. 0: w is parked; when its time comes it is unlinked and given to conn_ready, or, when it has
 * no connection, its status is set and whole is signalled. -ESHUTDOWN: neither.
 */
int store_want(struct pe_store *s, struct waiter *w);
/* Unlinks w and tells its owner. The lock is held. */
void store_answer(struct pe_store *s, struct waiter *w, int status);
/* Drops every parked read of a connection that is going away. */
void store_forget(struct pe_store *s, struct pe_conn *conn);
/* Drops a thread's own waiter if it is still parked. */
void store_unpark(struct pe_store *s, struct waiter *w);

/* conn.c: takes over w, whose status is final. Called with the store's lock held. */
void conn_ready(struct pe_conn *conn, struct waiter *w);

#endif
