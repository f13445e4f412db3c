#define _GNU_SOURCE
#include "map.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "fault.h"
#include "pyerofs.h"

enum { WORD_BITS = 64 };

static uint64_t load(const struct pe_map *map, uint64_t index)
{
	return __atomic_load_n(&map->word[index], __ATOMIC_ACQUIRE);
}

int map_open(struct pe_map *map, int fd, uint64_t offset, uint64_t granules)
{
	struct stat st;
	int err;

	memset(map, 0, sizeof(*map));
	map->granules = granules;
	if (fd < 0)
		return 0;
	map->length = (granules + WORD_BITS - 1) / WORD_BITS * sizeof(uint64_t);
	if (offset % PE_GRANULE)
		return -EINVAL;
	if (fstat(fd, &st))
		return -errno;
	if ((uint64_t)st.st_size < map->length || (uint64_t)st.st_size - map->length < offset)
		return -EINVAL; /* to look beyond its end would be a SIGBUS */
	map->mapped = offset + map->length;
	map->base = mmap(NULL, map->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map->base == MAP_FAILED) {
		map->base = NULL;
		return -errno;
	}
	err = fault_guard(map->base, map->mapped);
	if (err) {
		munmap(map->base, map->mapped);
		map->base = NULL;
		return err;
	}
	map->word = (void *)((char *)map->base + offset);
	if (offset)
		map->shared = (void *)((char *)map->base + offset - MAP_SHARED_BYTES);
	return 0;
}

void map_close(struct pe_map *map)
{
	if (map->base) {
		fault_unguard(map->base);
		munmap(map->base, map->mapped);
	}
	map->base = NULL;
	map->word = NULL;
}

size_t map_bytes(const struct pe_map *map)
{
	return map->length;
}

/* The first granule of [first, end) whose bit differs from those of skip (all ones or all zeros). */
static uint64_t next_other(const struct pe_map *map, uint64_t first, uint64_t end, uint64_t skip)
{
	while (first < end) {
		uint64_t bits = (load(map, first / WORD_BITS) ^ skip) >> (first % WORD_BITS);

		if (bits) {
			first += (uint64_t)__builtin_ctzll(bits);
			return first < end ? first : end;
		}
		first = (first / WORD_BITS + 1) * WORD_BITS;
	}
	return end;
}

uint64_t map_next_absent(const struct pe_map *map, uint64_t first, uint64_t end)
{
	return map->word ? next_other(map, first, end, ~0ULL) : end;
}

uint64_t map_next_present(const struct pe_map *map, uint64_t first, uint64_t end)
{
	return map->word ? next_other(map, first, end, 0) : (first < end ? first : end);
}

/* Those of the bits from first on that lie in its word and before end, and how many they are. */
static uint64_t bits_in_word(uint64_t first, uint64_t end, uint64_t *count)
{
	uint64_t low = first % WORD_BITS;

	*count = WORD_BITS - low < end - first ? WORD_BITS - low : end - first;
	return *count == WORD_BITS ? ~0ULL : ((1ULL << *count) - 1) << low;
}

void map_set(struct pe_map *map, uint64_t first, uint64_t end)
{
	for (uint64_t n; map->word && first < end; first += n)
		__atomic_fetch_or(&map->word[first / WORD_BITS], bits_in_word(first, end, &n), __ATOMIC_RELEASE);
}

void map_clear(struct pe_map *map, uint64_t first, uint64_t end)
{
	for (uint64_t n; map->word && first < end; first += n)
		__atomic_fetch_and(&map->word[first / WORD_BITS], ~bits_in_word(first, end, &n), __ATOMIC_RELEASE);
}

uint64_t map_count(const struct pe_map *map)
{
	uint64_t count = 0;

	if (!map->word)
		return map->granules;
	for (uint64_t i = 0; i < map->length / sizeof(uint64_t); i++)
		count += (uint64_t)__builtin_popcountll(load(map, i));
	return count;
}

void map_copy(const struct pe_map *map, void *buffer, size_t length)
{
	for (size_t i = 0; i < length / sizeof(uint64_t); i++) {
		uint64_t word = load(map, i);

		memcpy((char *)buffer + i * sizeof(word), &word, sizeof(word));
	}
}
