/* Runs are put in flight. The store's lock is held. */
#ifndef PE_TAKE_H
#define PE_TAKE_H

#include "store.h"

/* The first granule of [first, end) that w (NULL: any read) needs and that is not in flight; end: there is none. */
uint64_t take_next_unclaimed(const struct pe_store *s, const struct waiter *w, uint64_t first, uint64_t end);

/* What came of an attempt to start a run. */
enum take_result { TAKE_STARTED, TAKE_NO_SLOT, TAKE_ELSEWHERE };

/*
 * Puts a run over granules from first on, up to *end at the most, in flight. TAKE_ELSEWHERE: another process has first
 * in flight, up to *end. claim: whether to ask the others at all.
 */
enum take_result take_start(struct pe_store *s, uint64_t first, uint64_t *end, unsigned stream, int kind, bool claim,
			    struct pe_run *run);

#endif
