/*
 * The granule map: one bit a granule, in shared memory. Bits are set, and cleared only when their bytes are found to be
 * spoiled or wrong; no lock is needed to read them. If the map's file is cut short, all of them are clear from
 * then on, and this process has a map of its own (fault.h).
 */
#ifndef PE_BITMAP_H
#define PE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyerofs.h"

/* How the stores of different processes wake one another; in the half page before the map's bits. See claim.h. */
struct bitmap_shared {
	uint32_t asleep; /* another thread may be waiting on generation */
	uint32_t generation; /* a futex: moves on when a waiter is asleep and there is news */
	uint32_t released; /* moves on when a claim is given up */
};

enum { BITMAP_SHARED_BYTES = 2048 };

struct bitmap {
	uint64_t *word; /* NULL: every granule is present */
	uint64_t granules;
	size_t length; /* bytes of bits */
	void *base; /* what is mapped, and how much of it */
	size_t mapped;
	struct bitmap_shared *shared; /* NULL: the file has no room for it, and the store stands alone */
};

int bitmap_open(struct bitmap *bitmap, int fd, uint64_t offset, uint64_t granules);
void bitmap_close(struct bitmap *bitmap);
size_t bitmap_bytes(const struct bitmap *bitmap);
/* The first granule of [first, end) that is absent (present); end when there is none. */
uint64_t bitmap_next_absent(const struct bitmap *bitmap, uint64_t first, uint64_t end);
uint64_t bitmap_next_present(const struct bitmap *bitmap, uint64_t first, uint64_t end);
/* Publishes [first, end): a thread that then sees a bit sees the bytes that were written before this call. */
void bitmap_set(struct bitmap *bitmap, uint64_t first, uint64_t end);
void bitmap_clear(struct bitmap *bitmap, uint64_t first, uint64_t end);
uint64_t bitmap_count(const struct bitmap *bitmap);
void bitmap_copy(const struct bitmap *bitmap, void *buffer, size_t length);

/* The granule of a byte, and the one behind the last of a range that ends here. */
static inline uint64_t granule_of(uint64_t offset)
{
	return offset / PE_GRANULE;
}

static inline uint64_t granule_end(uint64_t end)
{
	return (end + PE_GRANULE - 1) / PE_GRANULE;
}

static inline bool bitmap_has(const struct bitmap *bitmap, uint64_t first, uint64_t end)
{
	return bitmap_next_absent(bitmap, first, end) == end;
}

#endif
