#define _GNU_SOURCE
#include "bitmap.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/fault.h"

enum { WORD_BITS = 64 };

static uint64_t load(const struct bitmap *bitmap, uint64_t index)
{
	return __atomic_load_n(&bitmap->word[index], __ATOMIC_ACQUIRE);
}

int bitmap_open(struct bitmap *bitmap, int fd, uint64_t offset, uint64_t granules)
{
	struct stat st;
	int err;

	memset(bitmap, 0, sizeof(*bitmap));
	bitmap->granules = granules;
	if (fd < 0)
		return 0;
	bitmap->length = (granules + WORD_BITS - 1) / WORD_BITS * sizeof(uint64_t);
	if (offset % PE_GRANULE)
		return -EINVAL;
	if (fstat(fd, &st))
		return -errno;
	if ((uint64_t)st.st_size < bitmap->length || (uint64_t)st.st_size - bitmap->length < offset)
		return -EINVAL; /* to look beyond its end would be a SIGBUS */
	bitmap->mapped = offset + bitmap->length;
	bitmap->base = mmap(NULL, bitmap->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (bitmap->base == MAP_FAILED) {
		bitmap->base = NULL;
		return -errno;
	}
	err = fault_guard(bitmap->base, bitmap->mapped);
	if (err) {
		munmap(bitmap->base, bitmap->mapped);
		bitmap->base = NULL;
		return err;
	}
	bitmap->word = (void *)((char *)bitmap->base + offset);
	if (offset)
		bitmap->shared = (void *)((char *)bitmap->base + offset - BITMAP_SHARED_BYTES);
	return 0;
}

void bitmap_close(struct bitmap *bitmap)
{
	if (bitmap->base) {
		fault_unguard(bitmap->base);
		munmap(bitmap->base, bitmap->mapped);
	}
	bitmap->base = NULL;
	bitmap->word = NULL;
}

size_t bitmap_bytes(const struct bitmap *bitmap)
{
	return bitmap->length;
}

/* The first granule of [first, end) whose bit differs from those of skip (all ones or all zeros). */
static uint64_t next_other(const struct bitmap *bitmap, uint64_t first, uint64_t end, uint64_t skip)
{
	while (first < end) {
		uint64_t bits = (load(bitmap, first / WORD_BITS) ^ skip) >> (first % WORD_BITS);

		if (bits) {
			first += (uint64_t)__builtin_ctzll(bits);
			return first < end ? first : end;
		}
		first = (first / WORD_BITS + 1) * WORD_BITS;
	}
	return end;
}

uint64_t bitmap_next_absent(const struct bitmap *bitmap, uint64_t first, uint64_t end)
{
	return bitmap->word ? next_other(bitmap, first, end, ~0ULL) : end;
}

uint64_t bitmap_next_present(const struct bitmap *bitmap, uint64_t first, uint64_t end)
{
	return bitmap->word ? next_other(bitmap, first, end, 0) : (first < end ? first : end);
}

/* Those of the bits from first on that lie in its word and before end, and how many they are. */
static uint64_t bits_in_word(uint64_t first, uint64_t end, uint64_t *count)
{
	uint64_t low = first % WORD_BITS;

	*count = WORD_BITS - low < end - first ? WORD_BITS - low : end - first;
	return *count == WORD_BITS ? ~0ULL : ((1ULL << *count) - 1) << low;
}

void bitmap_set(struct bitmap *bitmap, uint64_t first, uint64_t end)
{
	for (uint64_t n; bitmap->word && first < end; first += n)
		__atomic_fetch_or(&bitmap->word[first / WORD_BITS], bits_in_word(first, end, &n), __ATOMIC_RELEASE);
}

void bitmap_clear(struct bitmap *bitmap, uint64_t first, uint64_t end)
{
	for (uint64_t n; bitmap->word && first < end; first += n)
		__atomic_fetch_and(&bitmap->word[first / WORD_BITS], ~bits_in_word(first, end, &n), __ATOMIC_RELEASE);
}

uint64_t bitmap_count(const struct bitmap *bitmap)
{
	uint64_t count = 0;

	if (!bitmap->word)
		return bitmap->granules;
	for (uint64_t i = 0; i < bitmap->length / sizeof(uint64_t); i++)
		count += (uint64_t)__builtin_popcountll(load(bitmap, i));
	return count;
}

void bitmap_copy(const struct bitmap *bitmap, void *buffer, size_t length)
{
	for (size_t i = 0; i < length / sizeof(uint64_t); i++) {
		uint64_t word = load(bitmap, i);

		memcpy((char *)buffer + i * sizeof(word), &word, sizeof(word));
	}
}
