/*
 * Which granules were read first, and in what order: what a start needs is told by one that has been watched. A read of
 * what was read before costs a look at a few bits. Memory is bounded, and taken as it is needed: a bit for each granule
 * of the first TRACE_SPAN bytes, and TRACE_MAX entries. What comes after that is not noted.
 */
#ifndef PE_TRACE_H
#define PE_TRACE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "pyerofs.h"

enum { TRACE_MAX = 32768 };
static const uint64_t TRACE_SPAN = 1ULL << 35;

struct trace {
	uint64_t *word; /* a bit a granule; NULL: nothing is noted */
	struct pe_touch *touch;
	uint64_t granules; /* that have a bit */
	uint64_t began; /* ns */
	uint32_t count; /* of touch, atomic */
	pthread_mutex_t lock; /* taken alone */
};

/* Without memory nothing is noted. */
void trace_open(struct trace *trace, uint64_t granules);
void trace_close(struct trace *trace);
/* The granules [first, end) are being read. Any thread. */
void trace_note(struct trace *trace, uint64_t first, uint64_t end);
/* Copies at most so many entries, the first ones; returns how many there are. */
uint32_t trace_copy(struct trace *trace, struct pe_touch *touch, uint32_t most);

#endif
