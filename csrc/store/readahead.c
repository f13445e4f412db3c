#include "readahead.h"

#include <string.h>

static uint64_t max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Below this many ns a round trip is hardly worth the bytes that would save one. */
static const uint64_t latency_worth = 2000000;

void readahead_init(struct readahead *ra)
{
	memset(ra, 0, sizeof(*ra));
	ra->first = READAHEAD_WINDOW_FIRST;
	ra->ceiling = READAHEAD_WINDOW_MAX;
	ra->lead = READAHEAD_WINDOW_MAX; /* nothing is known yet: rather too early */
}

/* Readers that work with many requests at once deliver them out of order, by up to about what they have in flight. */
static bool belongs(const struct readahead_stream *s, uint64_t offset)
{
	uint64_t slack = s->window;

	return s->tick && offset + slack >= s->pos && offset <= s->pos + slack;
}

/* A file's end is not announced: the longer the reads before, the more may be fetched beyond it. */
static uint64_t longest(const struct readahead *ra, const struct readahead_stream *s)
{
	uint64_t earned = max(s->read / READAHEAD_EARNED_PART, READAHEAD_WINDOW_EARNED);

	return max(min(ra->ceiling, earned), ra->first);
}

static void grow(struct readahead *ra, struct readahead_stream *s, uint64_t offset, uint64_t end)
{
	/* Each step costs a round trip: who reads without a gap is trusted to go on. */
	uint64_t factor = offset == s->pos ? 4 : 2;

	s->used += end - offset;
	s->read += end - offset;
	if (end <= s->pos)
		return;
	s->advanced += end - s->pos;
	s->pos = end;
	if (s->advanced < s->window / 2)
		return;
	if (s->used >= s->advanced / 2) {
		s->window = min(s->window * factor, longest(ra, s));
		s->grown = true;
	} else {
		/* It looks in here and there: most of what is fetched for it is of no use. */
		s->window = max(s->window / 2, ra->first);
		s->grown = s->window > ra->first;
	}
	s->advanced = s->used = 0;
}

unsigned readahead_touch(struct readahead *ra, uint64_t offset, uint64_t length)
{
	unsigned oldest = 0;

	ra->tick++;
	for (unsigned i = 0; i < READAHEAD_STREAMS; i++) {
		struct readahead_stream *s = &ra->stream[i];

		if (belongs(s, offset)) {
			s->tick = ra->tick;
			grow(ra, s, offset, offset + length);
			return i;
		}
		if (s->tick < ra->stream[oldest].tick)
			oldest = i;
	}
	ra->stream[oldest] = (struct readahead_stream){
		.pos = offset + length,
		.ahead = offset,
		.read = length,
		.window = ra->first,
		.tick = ra->tick,
	};
	return oldest;
}

/*
 * How much a single miss asks for. A random reader waits for one round trip after the other; where bytes
 * come fast beside that, more of them save some of those trips for little.
 */
static void weigh_first(struct readahead *ra, uint64_t bytes, uint64_t latency, uint64_t elapsed)
{
	uint64_t transfer = elapsed > latency ? elapsed - latency : 0;

	if (bytes > ra->first || bytes < ra->first / 2)
		return;
	if (latency < latency_worth || transfer * 8 > latency) {
		ra->cheap = 0;
		if (transfer * 2 > latency)
			ra->first = max(ra->first / 2, READAHEAD_WINDOW_FIRST);
	} else if (++ra->cheap == READAHEAD_CHEAP) {
		ra->cheap = 0;
		ra->first = min(ra->first * 2, READAHEAD_FIRST_MAX);
	}
}

void readahead_measure(struct readahead *ra, uint64_t bytes, uint64_t latency, uint64_t elapsed)
{
	double rate;

	weigh_first(ra, bytes, latency, elapsed);
	if (bytes < READAHEAD_WINDOW_FLOOR || elapsed <= latency)
		return; /* too short to tell the rate from the latency */
	rate = (double)bytes / (double)(elapsed - latency);
	/* Eight round trips' worth keep the line busy; what a reader leaves behind when he stops is no longer than that. */
	ra->ceiling = min(max((uint64_t)(rate * 8 * (double)latency), READAHEAD_WINDOW_FLOOR), READAHEAD_WINDOW_MAX);
	/* What comes in while the next request is on its way, twice, since neither figure is exact. */
	ra->lead = min(max((uint64_t)(rate * 2 * (double)latency), READAHEAD_WINDOW_FIRST), READAHEAD_WINDOW_MAX);
}

void readahead_asked(struct readahead *ra, unsigned stream, uint64_t end)
{
	struct readahead_stream *s = &ra->stream[stream];

	s->ahead = max(s->ahead, end);
}

bool readahead_next(struct readahead *ra, uint64_t size, unsigned busy, unsigned *stream, uint64_t *offset,
		    uint64_t *length)
{
	for (unsigned i = 0; i < READAHEAD_STREAMS; i++) {
		struct readahead_stream *s = &ra->stream[i];

		/* Only a stream that has grown has shown that it goes forward. */
		if (!s->tick || !s->grown || (busy & 1U << i))
			continue;
		/* Where the source is faster than the reader, twice what a request takes to come in is early enough. */
		if (s->ahead >= size || s->ahead >= s->pos + min(s->window, 2 * ra->lead))
			continue;
		*stream = i;
		*offset = max(s->ahead, s->pos);
		*length = s->window;
		if (*offset < size)
			return true;
	}
	return false;
}
