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

void plan_init(struct plan *plan)
{
	memset(plan, 0, sizeof(*plan));
	plan->ceiling = PLAN_WINDOW_MAX;
	plan->lead = PLAN_WINDOW_MAX; /* nothing is known yet: rather too early */
}

/* Readers that work with many requests at once deliver them out of order, by up to about what they have in flight. */
static bool belongs(const struct plan_stream *s, uint64_t offset)
{
	uint64_t slack = s->window;

	return s->tick && offset + slack >= s->pos && offset <= s->pos + slack;
}

static void grow(struct plan *plan, struct plan_stream *s, uint64_t offset, uint64_t end)
{
	/* Each step costs a round trip: who reads without a gap is trusted to go on. */
	uint64_t factor = offset == s->pos ? 4 : 2;

	if (end <= s->pos)
		return;
	s->advanced += end - s->pos;
	s->pos = end;
	if (s->advanced >= s->window / 2) {
		s->window = min(s->window * factor, max(plan->ceiling, PLAN_WINDOW_FIRST));
		s->advanced = 0;
	}
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
		.window = PLAN_WINDOW_FIRST,
		.tick = plan->tick,
	};
	return oldest;
}

void plan_measure(struct plan *plan, uint64_t bytes, uint64_t latency, uint64_t elapsed)
{
	double rate;

	if (bytes < PLAN_WINDOW_FLOOR || elapsed <= latency)
		return; /* too short to tell the rate from the latency */
	rate = (double)bytes / (double)(elapsed - latency);
	plan->ceiling = min(max((uint64_t)(rate * 5e8), PLAN_WINDOW_FLOOR), PLAN_WINDOW_MAX);
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
		if (!s->tick || s->window == PLAN_WINDOW_FIRST || (busy & 1U << i))
			continue;
		if (s->ahead >= size || s->ahead >= s->pos + s->window)
			continue;
		*stream = i;
		*offset = max(s->ahead, s->pos);
		*length = s->window;
		if (*offset < size)
			return true;
	}
	return false;
}
