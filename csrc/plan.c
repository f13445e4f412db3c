#include "plan.h"

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

void plan_init(struct plan *plan)
{
	memset(plan, 0, sizeof(*plan));
	plan->first = PLAN_WINDOW_FIRST;
	plan->ceiling = PLAN_WINDOW_MAX;
	plan->lead = PLAN_WINDOW_MAX; /* nothing is known yet: rather too early */
}

/* Readers that work with many requests at once deliver them out of order, by up to about what they have in flight. */
static bool belongs(const struct plan_stream *s, uint64_t offset)
{
	uint64_t slack = s->window;

	return s->tick && offset + slack >= s->pos && offset <= s->pos + slack;
}

/* A file's end is not announced: the longer the reads before, the more may be fetched beyond it. */
static uint64_t longest(const struct plan *plan, const struct plan_stream *s)
{
	uint64_t earned = max(s->read / PLAN_EARNED_PART, PLAN_WINDOW_EARNED);

	return max(min(plan->ceiling, earned), plan->first);
}

static void grow(struct plan *plan, struct plan_stream *s, uint64_t offset, uint64_t end)
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
		s->window = min(s->window * factor, longest(plan, s));
		s->grown = true;
	} else {
		/* It looks in here and there: most of what is fetched for it is of no use. */
		s->window = max(s->window / 2, plan->first);
		s->grown = s->window > plan->first;
	}
	s->advanced = s->used = 0;
}

unsigned plan_touch(struct plan *plan, uint64_t offset, uint64_t length)
{
	unsigned oldest = 0;

	plan->tick++;
	for (unsigned i = 0; i < PLAN_STREAMS; i++) {
		struct plan_stream *s = &plan->stream[i];

		if (belongs(s, offset)) {
			s->tick = plan->tick;
			grow(plan, s, offset, offset + length);
			return i;
		}
		if (s->tick < plan->stream[oldest].tick)
			oldest = i;
	}
	plan->stream[oldest] = (struct plan_stream){
		.pos = offset + length,
		.ahead = offset,
		.read = length,
		.window = plan->first,
		.tick = plan->tick,
	};
	return oldest;
}

/*
 * How much a single miss asks for. Whoever reads here and there waits for one round trip after the other; where bytes
 * come fast beside that, more of them save some of those trips for little.
 */
static void weigh_first(struct plan *plan, uint64_t bytes, uint64_t latency, uint64_t elapsed)
{
	uint64_t transfer = elapsed > latency ? elapsed - latency : 0;

	if (bytes > plan->first || bytes < plan->first / 2)
		return;
	if (latency < latency_worth || transfer * 8 > latency) {
		plan->cheap = 0;
		if (transfer * 2 > latency)
			plan->first = max(plan->first / 2, PLAN_WINDOW_FIRST);
	} else if (++plan->cheap == PLAN_CHEAP) {
		plan->cheap = 0;
		plan->first = min(plan->first * 2, PLAN_FIRST_MAX);
	}
}

void plan_measure(struct plan *plan, uint64_t bytes, uint64_t latency, uint64_t elapsed)
{
	double rate;

	weigh_first(plan, bytes, latency, elapsed);
	if (bytes < PLAN_WINDOW_FLOOR || elapsed <= latency)
		return; /* too short to tell the rate from the latency */
	rate = (double)bytes / (double)(elapsed - latency);
	/* Eight round trips' worth keep the line busy; what a reader leaves behind when he stops is no longer than that. */
	plan->ceiling = min(max((uint64_t)(rate * 8 * (double)latency), PLAN_WINDOW_FLOOR), PLAN_WINDOW_MAX);
	/* What comes in while the next request is on its way, twice, since neither figure is exact. */
	plan->lead = min(max((uint64_t)(rate * 2 * (double)latency), PLAN_WINDOW_FIRST), PLAN_WINDOW_MAX);
}

void plan_asked(struct plan *plan, unsigned stream, uint64_t end)
{
	struct plan_stream *s = &plan->stream[stream];

	s->ahead = max(s->ahead, end);
}

bool plan_ahead(struct plan *plan, uint64_t size, unsigned busy, unsigned *stream, uint64_t *offset, uint64_t *length)
{
	for (unsigned i = 0; i < PLAN_STREAMS; i++) {
		struct plan_stream *s = &plan->stream[i];

		/* Only a stream that has grown has shown that it goes forward. */
		if (!s->tick || !s->grown || (busy & 1U << i))
			continue;
		/* Where the source is faster than the reader, twice what a request takes to come in is early enough. */
		if (s->ahead >= size || s->ahead >= s->pos + min(s->window, 2 * plan->lead))
			continue;
		*stream = i;
		*offset = max(s->ahead, s->pos);
		*length = s->window;
		if (*offset < size)
			return true;
	}
	return false;
}
