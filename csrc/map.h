/*
 * The granule map: one bit a granule, in shared memory. Bits are only ever set, but that a blob whose bytes are found
 * to be wrong loses all of them; no lock is needed to read them.
 */
#ifndef PE_MAP_H
#define PE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pe_map {
	uint64_t *word; /* NULL: every granule is present */
	uint64_t granules;
	void *base; /* what is mapped, and how much of it */
	size_t length;
};

int map_open(struct pe_map *map, int fd, uint64_t offset, uint64_t granules);
void map_close(struct pe_map *map);
size_t map_bytes(const struct pe_map *map);
/* The first granule of [first, end) that is absent (present); end when there is none. */
uint64_t map_next_absent(const struct pe_map *map, uint64_t first, uint64_t end);
uint64_t map_next_present(const struct pe_map *map, uint64_t first, uint64_t end);
/* Publishes [first, end): whoever then sees a bit sees the bytes that were written before this call. */
void map_set(struct pe_map *map, uint64_t first, uint64_t end);
/* Every granule is absent, but where there is no map. */
void map_clear(struct pe_map *map);
uint64_t map_count(const struct pe_map *map);
void map_copy(const struct pe_map *map, void *buffer, size_t length);

static inline bool map_has(const struct pe_map *map, uint64_t first, uint64_t end)
{
	return map_next_absent(map, first, end) == end;
}

#endif
