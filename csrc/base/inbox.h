/*
 * Where the answers to requests arrive, from any thread: a connection has one, a thread that waits
 * for a single answer another. The items are the sender's until they are put, then the taker's.
 */
#ifndef PE_INBOX_H
#define PE_INBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* What an answer begins with, or has within it. */
struct inbox_item {
	struct inbox_item *next;
};

struct inbox {
	pthread_mutex_t lock; /* covers all that follows but gone */
	pthread_cond_t arrived;
	struct inbox_item *first, **last;
	bool closed; /* nothing more comes */
	bool gone; /* the sender's, under a lock of his own: nothing more is to be asked for */
};

void inbox_init(struct inbox *inbox);
void inbox_destroy(struct inbox *inbox);
void inbox_put(struct inbox *inbox, struct inbox_item *item);
/* No taker waits any more. */
void inbox_close(struct inbox *inbox);
/* All that has arrived, in its order. Blocks while that is nothing; NULL once the inbox is closed and empty. */
struct inbox_item *inbox_take(struct inbox *inbox);
/* As inbox_take; NULL also when now_ns() has come to deadline. */
struct inbox_item *inbox_take_until(struct inbox *inbox, uint64_t deadline);

#endif
