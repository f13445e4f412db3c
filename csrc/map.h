/*
 * The granule map: one bit a granule, in shared memory. Bits are set, and cleared only when their bytes are found to be
 * spoiled or wrong; no lock is needed to read them. Where somebody cuts the map's file short all of them are clear from
 * then on, and this process has a map of its own (fault.h).
 */
#ifndef PE_MAP_H
#define PE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How the stores of different processes wake one another; in the half page before the map's bits. See claim.h. */
struct map_shared {
	uint32_t asleep; /* somebody may be waiting on word */
	uint32_t word; /* a futex: moves on when somebody is asleep and there is news */
	uint32_t released; /* moves on when a claim is given up */
};

enum { MAP_SHARED_BYTES = 2048 };

struct pe_map {
	uint64_t *word; /* NULL: every granule is present */
	uint64_t granules;
	size_t length; /* bytes of bits */
	void *base; /* what is mapped, and how much of it */
	size_t mapped;
	struct map_shared *shared; /* NULL: the file has no room for it, and the store stands alone */
};

int map_open(struct pe_map *map, int fd, uint64_t offset, uint64_t granules);
void map_close(struct pe_map *map);
size_t map_bytes(const struct pe_map *map);
/* The first granule of [first, end) that is absent (present); end when there is none. */
uint64_t map_next_absent(const struct pe_map *map, uint64_t first, uint64_t end);
uint64_t map_next_present(const struct pe_map *map, uint64_t first, uint64_t end);
/* Publishes [first, end): whoever then sees a bit sees the bytes that were written before this call. */
void map_set(struct pe_map *map, uint64_t first, uint64_t end);
void map_clear(struct pe_map *map, uint64_t first, uint64_t end);
uint64_t map_count(const struct pe_map *map);
void map_copy(const struct pe_map *map, void *buffer, size_t length);

static inline bool map_has(const struct pe_map *map, uint64_t first, uint64_t end)
{
	return map_next_absent(map, first, end) == end;
}

#endif
