#include "keep.h"

#include <stdlib.h>
#include <string.h>

#include "pyerofs.h"

enum { WORD_BITS = 64 };

struct keep *keep_new(uint64_t first, uint64_t end)
{
	struct keep *keep = calloc(1, sizeof(*keep) + (end - first + WORD_BITS - 1) / WORD_BITS * sizeof(uint64_t));

	if (!keep)
		return NULL;
	keep->bytes = malloc((end - first) * PE_GRANULE);
	if (!keep->bytes) {
		free(keep);
		return NULL;
	}
	keep->first = first;
	keep->end = end;
	return keep;
}

void keep_free(struct keep *keep)
{
	if (!keep)
		return;
	free(keep->bytes);
	free(keep);
}

bool keep_has(const struct keep *keep, uint64_t granule)
{
	uint64_t i = granule - keep->first;

	return keep->have[i / WORD_BITS] >> (i % WORD_BITS) & 1;
}

void keep_mark(struct keep *keep, uint64_t first, uint64_t end)
{
	for (uint64_t i = first - keep->first; i < end - keep->first; i++)
		keep->have[i / WORD_BITS] |= 1ULL << (i % WORD_BITS);
}

char *keep_at(const struct keep *keep, uint64_t granule)
{
	return keep->bytes + (granule - keep->first) * PE_GRANULE;
}

void keep_put(struct keep *keep, uint64_t first, uint64_t end, const char *bytes, uint64_t limit)
{
	uint64_t from = first > keep->first ? first : keep->first;
	uint64_t to = end < keep->end ? end : keep->end;
	uint64_t stop = to * PE_GRANULE < limit ? to * PE_GRANULE : limit;

	if (from >= to)
		return;
	memcpy(keep_at(keep, from), bytes + (from - first) * PE_GRANULE, stop - from * PE_GRANULE);
	keep_mark(keep, from, to);
}
