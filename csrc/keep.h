/*
 * Bytes that a read holds itself: those that the data file could not take, or had lost. They are handed to it as they
 * land, a whole granule at a time; what is present in the file is read from there when the read is answered.
 */
#ifndef PE_KEEP_H
#define PE_KEEP_H

#include <stdbool.h>
#include <stdint.h>

struct keep {
	uint64_t first, end; /* granules */
	char *bytes; /* from first on */
	uint64_t have[]; /* a bit each */
};

/* NULL: no memory. */
struct keep *keep_new(uint64_t first, uint64_t end);
void keep_free(struct keep *keep);
bool keep_has(const struct keep *keep, uint64_t granule);
void keep_mark(struct keep *keep, uint64_t first, uint64_t end);
/* Where a granule's bytes are, or belong. */
char *keep_at(const struct keep *keep, uint64_t granule);
/* Takes those of the granules [first, end) that belong to it, bytes being the first one's; limit: the blob's size. */
void keep_put(struct keep *keep, uint64_t first, uint64_t end, const char *bytes, uint64_t limit);

#endif
