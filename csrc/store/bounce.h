/*
 * Bytes that a read holds itself: those that the data file could not take, or had lost. They are handed to it as they
 * land, a whole granule at a time; what is present in the file is read from there when the read is answered.
 */
#ifndef PE_BOUNCE_H
#define PE_BOUNCE_H

#include <stdbool.h>
#include <stdint.h>

struct bounce {
	uint64_t first, end; /* granules */
	char *bytes; /* from first on */
	uint64_t have[]; /* a bit each */
};

/* NULL: no memory. */
struct bounce *bounce_new(uint64_t first, uint64_t end);
void bounce_free(struct bounce *bounce);
bool bounce_has(const struct bounce *bounce, uint64_t granule);
void bounce_mark(struct bounce *bounce, uint64_t first, uint64_t end);
/* Where a granule's bytes are, or belong. */
char *bounce_at(const struct bounce *bounce, uint64_t granule);
/* Takes those of the granules [first, end) that belong to it, bytes being the first one's; limit: the blob's size. */
void bounce_put(struct bounce *bounce, uint64_t first, uint64_t end, const char *bytes, uint64_t limit);

#endif
