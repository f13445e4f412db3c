/*
 * How long things took: counts in log-linear buckets, added to by any thread without a lock. Up to 8 us a bucket is 1 us
 * wide; from there on each doubling has 8 of them, so that a bucket is 1/8 of its time at the most. pe_latency_bound()
 * tells where each ends.
 */
#ifndef PE_LATENCY_H
#define PE_LATENCY_H

#include <stdbool.h>
#include <stdint.h>

#include "pyerofs.h"

enum { LATENCY_LINEAR = 8 };

static inline unsigned latency_index(uint64_t us)
{
	unsigned doublings, index;

	if (us < LATENCY_LINEAR)
		return (unsigned)us;
	doublings = 63U - (unsigned)__builtin_clzll(us) - 3; /* 2^3 is LATENCY_LINEAR */
	index = LATENCY_LINEAR * (doublings + 1) + (unsigned)(us >> doublings) % LATENCY_LINEAR;
	return index < PE_LATENCY_BUCKETS ? index : PE_LATENCY_BUCKETS - 1;
}

/* Adds count times the same duration. What one thread adds, another may see in parts: these are statistics. */
static inline void latency_add(struct pe_latency *h, uint64_t ns, uint32_t count)
{
	uint64_t us = ns / 1000;
	uint64_t max = __atomic_load_n(&h->max, __ATOMIC_RELAXED);

	__atomic_fetch_add(&h->bucket[latency_index(us)], count, __ATOMIC_RELAXED);
	__atomic_fetch_add(&h->sum, us * count, __ATOMIC_RELAXED);
	while (us > max && !__atomic_compare_exchange_n(&h->max, &max, us, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

void latency_copy(const struct pe_latency *from, struct pe_latency *to);

#endif
