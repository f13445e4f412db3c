#define _GNU_SOURCE
#include "trace.h"

#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"

enum { NEAR_MS = 50 }; /* reads that go on where the one before ended are one entry, but not for ever */

static void *reserve(uint64_t length)
{
	void *base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return base == MAP_FAILED ? NULL : base;
}

static uint64_t word_bytes(const struct trace *t)
{
	return (t->granules + 63) / 64 * 8;
}

void trace_open(struct trace *t, uint64_t granules)
{
	memset(t, 0, sizeof(*t));
	pthread_mutex_init(&t->lock, NULL);
	t->granules = granules < TRACE_SPAN / PE_GRANULE ? granules : TRACE_SPAN / PE_GRANULE;
	t->began = now_ns();
	t->word = reserve(word_bytes(t));
	t->touch = t->word ? reserve(TRACE_MAX * sizeof(*t->touch)) : NULL;
	if (t->word && !t->touch) {
		munmap(t->word, word_bytes(t));
		t->word = NULL;
	}
}

void trace_close(struct trace *t)
{
	if (t->word) {
		munmap(t->word, word_bytes(t));
		munmap(t->touch, TRACE_MAX * sizeof(*t->touch));
	}
	pthread_mutex_destroy(&t->lock);
}

/* The first granule of [first, end) whose bit is not (is) value. */
static uint64_t next_not(const struct trace *t, uint64_t first, uint64_t end, uint64_t value)
{
	while (first < end) {
		uint64_t word = __atomic_load_n(&t->word[first / 64], __ATOMIC_RELAXED);
		uint64_t other = (value ? ~word : word) >> first % 64;

		if (other) {
			first += (unsigned)__builtin_ctzll(other);
			break;
		}
		first += 64 - first % 64;
	}
	return first < end ? first : end;
}

static void set(struct trace *t, uint64_t first, uint64_t end)
{
	for (; first < end; first++)
		__atomic_store_n(&t->word[first / 64], t->word[first / 64] | 1ULL << first % 64, __ATOMIC_RELAXED);
}

/* The lock is held. */
static void add(struct trace *t, uint64_t first, uint64_t end)
{
	uint32_t ms = (uint32_t)((now_ns() - t->began) / 1000000U);
	struct pe_touch *last = t->count ? &t->touch[t->count - 1] : NULL;

	if (last && last->first + last->count == first && ms - last->ms < NEAR_MS) {
		last->count += (uint32_t)(end - first);
	} else if (t->count < TRACE_MAX) {
		t->touch[t->count] = (struct pe_touch){ .first = first, .count = (uint32_t)(end - first), .ms = ms };
		__atomic_store_n(&t->count, t->count + 1, __ATOMIC_RELAXED);
	}
}

void trace_note(struct trace *t, uint64_t first, uint64_t end)
{
	if (end > t->granules)
		end = t->granules;
	if (!t->word || __atomic_load_n(&t->count, __ATOMIC_RELAXED) == TRACE_MAX ||
	    (first = next_not(t, first, end, 1)) >= end)
		return;
	pthread_mutex_lock(&t->lock);
	while ((first = next_not(t, first, end, 1)) < end) {
		uint64_t stop = next_not(t, first, end, 0);

		set(t, first, stop);
		add(t, first, stop);
		first = stop;
	}
	pthread_mutex_unlock(&t->lock);
}

uint32_t trace_copy(struct trace *t, struct pe_touch *touch, uint32_t most)
{
	uint32_t count;

	pthread_mutex_lock(&t->lock);
	count = t->count;
	if (count && most)
		memcpy(touch, t->touch, (count < most ? count : most) * sizeof(*touch));
	pthread_mutex_unlock(&t->lock);
	return count;
}
