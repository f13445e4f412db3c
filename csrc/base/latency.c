/* Latencies as they are read; they are added to in latency.h. */
#include "latency.h"

uint64_t pe_latency_bound(uint32_t bucket)
{
	if (bucket < LATENCY_LINEAR)
		return bucket + 1;
	return (LATENCY_LINEAR + bucket % LATENCY_LINEAR + 1ULL) << (bucket / LATENCY_LINEAR - 1);
}

void latency_copy(const struct pe_latency *from, struct pe_latency *to)
{
	for (int i = 0; i < PE_LATENCY_BUCKETS; i++)
		to->bucket[i] = __atomic_load_n(&from->bucket[i], __ATOMIC_RELAXED);
	to->sum = __atomic_load_n(&from->sum, __ATOMIC_RELAXED);
	to->max = __atomic_load_n(&from->max, __ATOMIC_RELAXED);
}
