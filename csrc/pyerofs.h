/*
 * The whole interface of the C core, read by the compiler and by cffi.
 *
 * Every function that returns an int or int64_t returns >= 0 or -errno. Offsets and sizes are bytes, times are
 * milliseconds. File descriptors stay the caller's: C neither closes nor duplicates one. No pointer to a caller's
 * buffer is kept after a call returns. Functions that block are marked so; all may be called from any thread at any
 * time between the object's open and its free.
 */
#ifndef PE_PYEROFS_H
#define PE_PYEROFS_H

#include <stdint.h>

typedef struct pe_store pe_store;
typedef struct pe_conn pe_conn;
typedef struct pe_gunzip pe_gunzip;

enum {
	PE_GRANULE = 4096, /* bytes of one presence bit */
	PE_REQUEST_MAX = 33554432, /* longest NBD read that is answered */
	PE_LATENCY_BUCKETS = 200, /* the last one is for all that took longer, about two minutes */
	PE_WINDOW = 32768, /* how far back deflate refers */
};

/*
 * What a run is fetched for. PE_FILL, PE_IDLE, PE_PREFETCH: no read has asked for it; PE_IDLE gives way to any read,
 * PE_PREFETCH where reads want something else again and again.
 */
enum { PE_DEMAND = 0, PE_AHEAD = 1, PE_FILL = 2, PE_IDLE = 3, PE_PREFETCH = 4 };

/* What came of pe_store_take_range. */
enum { PE_TAKEN = 0, PE_NOTHING_LEFT = 1 };

/* Why pe_conn_serve came back. */
enum { PE_SOFT_DISCONNECT = 0, PE_HARD_DISCONNECT = 1, PE_DRAINED = 2, PE_PAUSED = 3 };

/* Why pe_conn_handshake did. */
enum { PE_TRANSMISSION = 0, PE_CLIENT_DONE = 1 };

/* What pe_store_land says of the rest of a run. */
enum { PE_GO_ON = 0, PE_NOT_WANTED = 1 };

/* What pe_store_check found. */
enum { PE_RIGHT = 0, PE_SPOILED = 1 };

/* Whose latencies: those of every NBD read, or of those alone that had to wait for bytes. */
enum { PE_READS = 0, PE_PARKED_READS = 1 };

/* What inflating a span came to: it is no deflate, or ends too early. */
enum { PE_SPAN_RIGHT = 0, PE_SPAN_CORRUPT = 1, PE_SPAN_SHORT = 2 };

/* Why pe_gunzip_step stopped. */
enum { PE_GUNZIP_MORE = 0, PE_GUNZIP_POINT = 1, PE_GUNZIP_MEMBER = 2, PE_GUNZIP_CORRUPT = 3 };

/* How far pe_gunzip_step has come. */
struct pe_gunzip_step {
	uint64_t consumed, produced; /* bytes of this call's input and output */
	uint64_t in, out; /* bytes since the stream's beginning; at a point all bits before in are used, but for bits */
	uint32_t bits;
};

/* One range to fetch with one request. */
struct pe_run {
	uint64_t id;
	uint64_t offset; /* a multiple of PE_GRANULE */
	uint64_t length;
	int32_t kind; /* PE_DEMAND and so on */
	int32_t idle; /* threads still waiting in pe_store_take */
};

/* Granules that were read for the first time, so many ms after the store was opened. */
struct pe_touch {
	uint64_t first;
	uint32_t count, ms;
};

struct pe_stats {
	uint64_t present; /* bytes in the cache */
	uint64_t hits; /* reads that found every byte present */
	uint64_t misses; /* reads that had to wait */
	uint64_t served; /* bytes of successful replies, reads and sendfiles */
	uint64_t failed; /* reads answered with an error after they were parked */
	uint64_t runs; /* runs handed to fetch threads */
	uint64_t landed; /* bytes received from the source */
	uint32_t parked; /* reads waiting now */
	uint32_t flights; /* runs in flight now */
	uint64_t uncached; /* reads answered with bytes that did not come from the data file, some at least */
	uint64_t healed; /* granules of the data file that were found spoiled, and are or will be fetched anew */
	uint64_t others; /* reads answered with bytes that another process had in flight */
};

/* How long reads took, from the request's arrival in this process to its reply's arrival in the socket; us. */
struct pe_latency {
	uint64_t sum, max;
	uint64_t bucket[PE_LATENCY_BUCKETS]; /* how many; see pe_latency_bound */
};

/* Where a bucket ends: everything in it took less than so many us. */
uint64_t pe_latency_bound(uint32_t bucket);

/*
 * A store: the bytes of one blob in data_fd, which are valid where the map says so. map_fd holds one bit a granule,
 * and sums_fd the CRC32C of each granule (four bytes in native order), both from byte map_offset on, a multiple
 * of PE_GRANULE. The map is mapped shared, and so may be used by several processes at once; the half page before its
 * bits is theirs too. What one of them has in flight no other one asks for, if each has opened the map's file for
 * itself. map_fd -1 stands for "all present", sums_fd -1 for "never spoiled". timeout bounds how long a connection's
 * read may stay parked, 0: for ever.
 */
int pe_store_open(int data_fd, int map_fd, int sums_fd, uint64_t map_offset, uint64_t size, uint32_t timeout,
		  pe_store **store);
/*
 * Runs begin and end at multiples of align, itself a multiple of PE_GRANULE, as far as what that takes in is neither
 * present nor in flight: what is verified in chunks costs least when it is fetched in chunks. Before any run is taken.
 */
int pe_store_set_align(pe_store *store, uint64_t align);
/* Every parked read fails with -ESHUTDOWN, every blocked call returns with it, and so does every later one. */
void pe_store_stop(pe_store *store);
/* Only after every thread has left the store and every connection of it is freed. */
void pe_store_free(pe_store *store);
void pe_store_get_stats(pe_store *store, struct pe_stats *stats);
int pe_store_get_latency(pe_store *store, int32_t which, struct pe_latency *latency);
/* The errno for which nothing can be cached at present, 0 when all is well; and pe_stats.healed. */
int pe_store_health(pe_store *store, uint64_t *healed);
/* Copies the map (at most length bytes; returns how many it has): what the durable map is made from. */
int64_t pe_store_copy_map(pe_store *store, void *buffer, uint64_t length);
/* Is every byte of the range present? 1 or 0. */
int pe_store_has(pe_store *store, uint64_t offset, uint64_t length);

/* Blocks until there is something to fetch. The taker owns the run until pe_store_finish. */
int pe_store_take(pe_store *store, struct pe_run *run);
/*
 * As pe_store_take, but gives the first stretch that is neither present nor on its way, at most length bytes of it:
 * what no read has asked for. kind PE_FILL: at any time; PE_IDLE: only when no read has waited for anything for so
 * many ms. Where it has nothing to give it looks again after as long; while the blob is complete it sleeps. Blocks.
 */
int pe_store_take_fill(pe_store *store, int32_t kind, uint64_t length, uint32_t ms, struct pe_run *run);
/*
 * A run for the first stretch of [offset, end), multiples of a granule or the blob's end, that is neither present nor
 * on its way: for who has its bytes already, unasked. -EAGAIN where there is none, or nothing can be kept.
 */
int pe_store_take_within(pe_store *store, uint64_t offset, uint64_t end, struct pe_run *run);
/*
 * As pe_store_take, but gives the first stretch of a range that is neither present nor on its way, at most most bytes
 * of it: what reads are about to ask for. PE_NOTHING_LEFT: there is none. Where reads have wanted something else again
 * and again it waits until they have not for so many ms, each time for twice as many until a read waits for what it
 * gave. Blocks.
 */
int pe_store_take_range(pe_store *store, uint64_t offset, uint64_t length, uint64_t most, uint32_t ms,
			struct pe_run *run);
/*
 * Copies at most count entries of what connections have read for the first time, in order, and returns how many there
 * are: up to 32768, of the first 32 GiB.
 */
int64_t pe_store_copy_trace(pe_store *store, struct pe_touch *touch, uint64_t count);
/*
 * The next bytes of a run, in order. PE_NOT_WANTED: others have brought the rest, or no read wants it any more. What
 * the data file does not take is handed to the reads that wait for it, and not marked present.
 */
int pe_store_land(pe_store *store, uint64_t id, uint64_t offset, const void *bytes, uint64_t length);
/*
 * Another answer is about to continue the run: tells where it must start, at a granule, and how long it must be.
 * whole: the answer that has come starts at 0 and is the whole blob, and so becomes the run.
 */
int pe_store_resume(pe_store *store, uint64_t id, int whole, uint64_t *offset, uint64_t *length);
/* How many parked reads need bytes that the run has not landed yet. */
int pe_store_waiters(pe_store *store, uint64_t id);
/*
 * Ends a run. error: a negative errno for the reads that still wait for its bytes before until (0: for any of them); all
 * others are wanted anew. error 0: no read fails.
 */
int pe_store_finish(pe_store *store, uint64_t id, int error, uint64_t until);
/*
 * Everything is absent again: the bytes are not the blob's. What is being sent in this moment is sent; other stores on
 * the same files find out by themselves. -EINVAL for a store without a map.
 */
int pe_store_forget_all(pe_store *store);
/*
 * Fails reads whose time is up, and answers those whose bytes other processes bring. Blocks until the store is stopped.
 */
int pe_store_expire(pe_store *store);

/*
 * Waits for the range, at most timeout; -EAGAIN when that has passed. Blocks. That they were there once does not mean
 * that they can be read without waiting: there may be no cache.
 */
int pe_store_wait(pe_store *store, uint64_t offset, uint64_t length, uint32_t timeout);
/*
 * Copies the range to the buffer when it has come. Returns the bytes copied, which may be fewer: PE_REQUEST_MAX at the
 * most, or what there is when the rest did not come within timeout; -EAGAIN when that is nothing. Blocks.
 */
int64_t pe_store_read(pe_store *store, void *buffer, uint64_t length, uint64_t offset, uint32_t timeout);
/*
 * Compares what is present of the range with its sums. PE_SPOILED: some was, and is absent from now on.
 */
int pe_store_check(pe_store *store, uint64_t offset, uint64_t length);
/*
 * For a caller that reads the whole data file and knows what it must be. The epoch to ask for before that: while it
 * lasts the file has not been written to. 0: that has just happened, so ask again in a moment.
 */
int64_t pe_store_epoch(pe_store *store);
/* All that was read since was right: none of it need be compared any more, as long as that epoch lasts. */
void pe_store_mark_checked(pe_store *store, uint32_t epoch);
/*
 * Sends the range to any file descriptor, chunk by chunk as it becomes present. Returns the bytes sent, fewer than
 * count when the next ones did not come within timeout; -EAGAIN when none did. Blocks.
 */
int64_t pe_store_sendfile(pe_store *store, int out_fd, uint64_t offset, uint64_t count, uint32_t timeout);

/*
 * A connection: an NBD client on a connected stream socket. pe_conn_serve and pe_conn_send each want a thread.
 */
int pe_conn_open(pe_store *store, int fd, uint16_t flags, pe_conn **conn);
/*
 * The fixed newstyle handshake, for clients that are not the kernel; the export goes by name and by "", and its size is
 * the blob's, rounded up to 512 bytes with zeros: there are clients that end in an endless loop else. PE_TRANSMISSION:
 * it begins. PE_CLIENT_DONE: the client has ended it in good order. Blocks at most timeout; -EAGAIN when
 * that has passed.
 */
int pe_conn_handshake(pe_conn *conn, const char *name, const char *description, uint32_t timeout);
/*
 * Reads requests until the connection ends, PE_SOFT_DISCONNECT and so on; then pe_conn_send returns too. Blocks. -EIO
 * from either: it had to be ended, not by the client, since the data file failed in the middle of a reply; another
 * connection will find out, and get the bytes.
 */
int pe_conn_serve(pe_conn *conn);
/* Sends the replies to requests that were parked. Blocks until pe_conn_serve is over. */
int pe_conn_send(pe_conn *conn);
/* No further request is answered with data; the connection ends when those that it has are answered. */
void pe_conn_drain(pe_conn *conn);
/*
 * Makes pe_conn_serve return PE_PAUSED at the end of a request, everything answered and the socket as good as ever for
 * another server; PE_HARD_DISCONNECT when some read could not be answered within a second. A thread that is blocked in
 * it sees this only after a signal.
 */
void pe_conn_pause(pe_conn *conn);
/* Ends the connection now. */
void pe_conn_stop(pe_conn *conn);
/* Only after pe_conn_serve and pe_conn_send have returned. */
void pe_conn_free(pe_conn *conn);

/*
 * A span: a range of a gzip stream that can be inflated by itself, from the start of a deflate block on. bits of its
 * first byte are its own, the upper ones (0: all of them); window is the PE_WINDOW plain bytes before it, NULL where it
 * refers to none. It may go on in other members. PE_SPAN_RIGHT: plain has length bytes; whatever the span has beyond
 * them was left. -EINVAL for more than 4 GiB, or what has bits but no byte.
 */
int pe_span_inflate(const void *span, uint64_t span_length, uint32_t bits, const void *window, void *plain,
		    uint64_t length);
/*
 * Copies to reduced what the span needs of the window, and zeros for the rest; less is to be kept of it then.
 * PE_SPAN_SHORT: what there is of the span does not tell, and all of the window was copied.
 */
int pe_span_reduce(const void *span, uint64_t span_length, uint32_t bits, const void *window, void *reduced);

/*
 * A gzip stream that is inflated from its beginning on, and can be told where spans may begin: behind the header of
 * the first member, and from there on at the first block behind more than spacing plain bytes. spacing 0: nowhere.
 */
int pe_gunzip_open(uint64_t spacing, pe_gunzip **gunzip);
void pe_gunzip_free(pe_gunzip *gunzip);
/*
 * Inflates what it can. PE_GUNZIP_MORE: it wants more input, or more room. PE_GUNZIP_POINT: a span begins where it has
 * come to. PE_GUNZIP_MEMBER: a member has ended; what is given next begins another one. Blocks for nothing.
 */
int pe_gunzip_step(pe_gunzip *gunzip, const void *input, uint64_t input_length, void *output, uint64_t output_length,
		   struct pe_gunzip_step *step);
/* Copies the window of the point where it is, PE_WINDOW bytes; what is not there is zeros in front. How many are there. */
int64_t pe_gunzip_window(pe_gunzip *gunzip, void *window);

/* The CRC32C of so many bytes; portably: without the processor's instruction for it. */
int64_t pe_crc32c(const void *bytes, uint64_t length, int portably);
/* The CRC32C of each granule of them, the last of which may be shorter. */
void pe_crc32c_granules(const void *bytes, uint64_t length, uint32_t *sums);

#endif
