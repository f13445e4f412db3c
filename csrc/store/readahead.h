/*
 * What to fetch, and how much of it at once: policy only, no I/O, no locks (the store's lock is held).
 *
 * A stream is a reader that goes forward. It is recognised by its place, not by its connection, since several
 * connections may share one reader's work and deliver it out of order. Its window is the length of the runs that are
 * fetched for it: small at first, longer for as long as the stream goes on.
 */
#ifndef PE_READAHEAD_H
#define PE_READAHEAD_H

#include <stdbool.h>
#include <stdint.h>

enum {
	READAHEAD_STREAMS = 16,
	READAHEAD_WINDOW_FIRST = 128 << 10, /* a range request costs as much as this many bytes on most networks */
	READAHEAD_FIRST_MAX = 512 << 10, /* and as this many on networks that are fast and far */
	READAHEAD_CHEAP = 4, /* so many runs in a row have to say so */
	READAHEAD_WINDOW_FLOOR = 1 << 20, /* slow networks too may grow up to this */
	READAHEAD_WINDOW_MAX = 16 << 20,
	/* Beyond the first a window is no longer than the second's part of what the reader has read. */
	READAHEAD_WINDOW_EARNED = 8 << 20,
	READAHEAD_EARNED_PART = 4,
	READAHEAD_LONG = 1 << 20, /* from this length on a run costs more in bytes than in latency */
	READAHEAD_LONG_FLIGHTS = 2, /* so many of them keep a line busy; more only disturb one another */
	READAHEAD_BRIDGE = 64 << 10, /* a present stretch up to this long is fetched again rather than split a run */
};

struct readahead_stream {
	uint64_t pos; /* the end of the furthest read */
	uint64_t ahead; /* what lies before this is present or asked for */
	uint64_t window;
	uint64_t advanced; /* bytes since the window last changed */
	uint64_t used; /* bytes that were read since then */
	uint64_t read; /* bytes that were read since it began */
	bool grown; /* it has shown that it goes forward */
	uint64_t tick; /* of the last touch; 0: unused */
};

struct readahead {
	struct readahead_stream stream[READAHEAD_STREAMS];
	uint64_t tick;
	uint64_t first; /* the window of a new stream */
	unsigned cheap; /* runs in a row of that length whose bytes took next to no time beside their latency */
	uint64_t ceiling; /* no window grows beyond it: eight round trips of the source */
	uint64_t lead; /* so long before a run's end the next one should be asked for */
};

void readahead_init(struct readahead *ra);
/* A read of [offset, offset + length) came in. Returns the index of its stream. */
unsigned readahead_touch(struct readahead *ra, uint64_t offset, uint64_t length);
/* A run brought so many bytes in so many nanoseconds, the first of them after latency. */
void readahead_measure(struct readahead *ra, uint64_t bytes, uint64_t latency, uint64_t elapsed);
/* A run for this stream ends at end. */
void readahead_asked(struct readahead *ra, unsigned stream, uint64_t end);
/*
 * Is there a stream, but for those whose bits are set in busy, whose data should be fetched before it is asked for? The
 * range is not clipped to anything.
 */
bool readahead_next(struct readahead *ra, uint64_t size, unsigned busy, unsigned *stream, uint64_t *offset,
		    uint64_t *length);

#endif
