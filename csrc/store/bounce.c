#include "bounce.h"

#include <stdlib.h>
#include <string.h>

#include "pyerofs.h"

enum { WORD_BITS = 64 };

struct bounce *bounce_new(uint64_t first, uint64_t end)
{
	struct bounce *bounce =
		calloc(1, sizeof(*bounce) + (end - first + WORD_BITS - 1) / WORD_BITS * sizeof(uint64_t));

	if (!bounce)
		return NULL;
	bounce->bytes = malloc((end - first) * PE_GRANULE);
	if (!bounce->bytes) {
		free(bounce);
		return NULL;
	}
	bounce->first = first;
	bounce->end = end;
	return bounce;
}

void bounce_free(struct bounce *bounce)
{
	if (!bounce)
		return;
	free(bounce->bytes);
	free(bounce);
}

bool bounce_has(const struct bounce *bounce, uint64_t granule)
{
	uint64_t i = granule - bounce->first;

	return bounce->have[i / WORD_BITS] >> (i % WORD_BITS) & 1;
}

void bounce_mark(struct bounce *bounce, uint64_t first, uint64_t end)
{
	for (uint64_t i = first - bounce->first; i < end - bounce->first; i++)
		bounce->have[i / WORD_BITS] |= 1ULL << (i % WORD_BITS);
}

char *bounce_at(const struct bounce *bounce, uint64_t granule)
{
	return bounce->bytes + (granule - bounce->first) * PE_GRANULE;
}

void bounce_put(struct bounce *bounce, uint64_t first, uint64_t end, const char *bytes, uint64_t limit)
{
	uint64_t from = first > bounce->first ? first : bounce->first;
	uint64_t to = end < bounce->end ? end : bounce->end;
	uint64_t stop = to * PE_GRANULE < limit ? to * PE_GRANULE : limit;

	if (from >= to)
		return;
	memcpy(bounce_at(bounce, from), bytes + (from - first) * PE_GRANULE, stop - from * PE_GRANULE);
	bounce_mark(bounce, from, to);
}
