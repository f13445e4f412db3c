/* Latencies as they are read; they are added to in hist.h. */
#include <errno.h>

#include "store.h"

uint64_t pe_latency_bound(uint32_t bucket)
{
	if (bucket < HIST_LINEAR)
		return bucket + 1;
	return (HIST_LINEAR + bucket % HIST_LINEAR + 1ULL) << (bucket / HIST_LINEAR - 1);
}

int pe_store_get_latency(pe_store *s, int32_t which, struct pe_latency *latency)
{
	const struct pe_latency *h = which == PE_PARKED_READS ? &s->parked_reads : &s->reads;

	if (which != PE_READS && which != PE_PARKED_READS)
		return -EINVAL;
	for (int i = 0; i < PE_LATENCY_BUCKETS; i++)
		latency->bucket[i] = __atomic_load_n(&h->bucket[i], __ATOMIC_RELAXED);
	latency->sum = __atomic_load_n(&h->sum, __ATOMIC_RELAXED);
	latency->max = __atomic_load_n(&h->max, __ATOMIC_RELAXED);
	return 0;
}
