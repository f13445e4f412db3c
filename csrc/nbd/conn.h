/* What the files of the core share about a connection. */
#ifndef PE_CONN_H
#define PE_CONN_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "base/inbox.h"
#include "nbd.h"
#include "store/store.h"

enum {
	CONN_SECTOR = 512, /* what clients with a handshake have the size rounded up to: some know no other */
	CONN_BUFFER = 64 << 10, /* of requests that are read at once */
	CONN_DEPTH = 4096, /* parked requests; beyond it no more are read */
	CONN_BYTES = 64 << 20, /* what they ask for: so much memory they may take where there is no cache */
	REPLY_SLICE = 256 << 10, /* sent between two looks at the data file */
	REPLY_BATCH = 64, /* replies in one system call */
	REPLY_VECTORS = 3, /* of each: its header, its data, the zeros behind them */
	REPLY_LONG = 256 << 10, /* a reply as long as this is sent alone, and compared in a buffer of its own */
};

struct pe_conn {
	struct pe_store *store;
	int fd;
	uint16_t flags;
	uint64_t size; /* as the client knows it: the blob's, or what that is rounded up to, with zeros */
	bool draining, pausing, stopped; /* atomic */
	uint64_t discard; /* bytes of a refused write still to be read; the serving thread's own */

	/* A thread that writes to fd holds it for whole replies. Never taken with another one held. */
	pthread_mutex_t send_lock;
	/* Reads that were parked and can be answered, for pe_conn_send. Closed when serving is over. */
	struct inbox ready;

	pthread_mutex_t settled_lock; /* covers all that follows; taken alone */
	pthread_cond_t settled_cond; /* for pe_conn_serve: an outstanding reply is gone */
	uint32_t outstanding; /* parked or ready, not yet sent */
	uint64_t outstanding_bytes;
};

/* How long a connection that is paused may go on to answer what it has read: after that, others must read it again. */
#define PAUSE_PATIENCE 1000000000ULL /* ns */

/* Bytes that were good when their reply was made, and were doubted when they were to be sent. */
struct reply_copy {
	struct reply_copy *next;
	char bytes[];
};

/* Replies that are sent together. Short data is taken from the mapping, or from room where it had to be compared. */
struct reply_batch {
	unsigned count, vectors;
	uint64_t bytes; /* of data */
	uint64_t arrived; /* when the requests were read that are answered now, ns */
	bool parked; /* they all had to wait */
	uint64_t read_arrived[REPLY_BATCH]; /* of each reply to a read, else 0 */
	bool looked; /* at the data file, which then was in this epoch; see checked.h */
	uint32_t epoch;
	char *room; /* REPLY_ROOM bytes, made when they are first needed; used up to room_used */
	uint32_t room_used;
	struct reply_copy *copies;
	struct nbd_simple_reply header[REPLY_BATCH];
	struct iovec iov[REPLY_VECTORS * REPLY_BATCH];
};

/*
 * What became of a reply; else -errno, which is the connection's end: with -EIO it is not the client's fault but the data
 * file's. REPLY_SPOILED: nothing was added, since bytes were found spoiled; they are absent from now on.
 */
enum { REPLY_ADDED = 0, REPLY_SPOILED = 1 };

void reply_init(struct reply_batch *batch, bool parked);
void reply_free(struct reply_batch *batch);
/*
 * Adds a reply without data: status is 0 or -errno; arrived: as a waiter's, 0 if it is not to be counted. Sends when
 * the batch is full.
 */
int reply_status(struct pe_conn *c, struct reply_batch *batch, uint64_t cookie, int status, uint64_t arrived);
/*
 * Adds the reply to a read that has all of its bytes, and sends when the batch is full or the reply is a long one.
 */
int reply_read(struct pe_conn *c, struct reply_batch *batch, struct waiter *w);
/* The reply to a read that lies wholly behind the blob. */
int reply_zeros(struct pe_conn *c, struct reply_batch *batch, const struct waiter *w);
int reply_flush(struct pe_conn *c, struct reply_batch *batch);

#endif
