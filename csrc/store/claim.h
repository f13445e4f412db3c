/*
 * What this store has in flight, so that no other process asks for it too: a write lock (of the open file description)
 * on a byte of the map's file for each granule, far behind its content. The kernel takes it back when the process
 * dies. Where the filesystem knows no locks there are no claims, and the same bytes may be fetched twice.
 *
 * News travel over a futex in the map's file: a process that waits for another's flight says so before its last look,
 * and so landing needs no system call while none waits.
 */
#ifndef PE_CLAIM_H
#define PE_CLAIM_H

#include <stdbool.h>
#include <stdint.h>

#include "bitmap.h"

/*
 * True: the granules [first, *end) are claimed, *end being lowered where another one's claim begins. False: first is
 * another's, whose claim goes on to *end.
 */
bool claim_take(int map_fd, uint64_t first, uint64_t *end);
void claim_drop(int map_fd, uint64_t first, uint64_t end);

/* The generation to wait for the end of; from now on news are announced. Look for news between this and claim_wait. */
uint32_t claim_listen(struct bitmap_shared *shared);
/* Returns at news, or after so many nanoseconds, or for no reason. */
void claim_wait(struct bitmap_shared *shared, uint32_t generation, uint64_t timeout);
/* There is news: bits were set. */
void claim_announce(struct bitmap_shared *shared);
/* A claim was given up. */
void claim_announce_release(struct bitmap_shared *shared);

#endif
