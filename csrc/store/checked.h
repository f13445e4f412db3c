/*
 * What keeps spoiled bytes from going out. Each granule has a sum (CRC32C) in a file beside the data, written before
 * the granule's bit is set. A granule is compared with its sum before this store sends it for the first time; then it
 * is trusted, until the data file's ctime or size is another one than at the last look: every write and every cut
 * moves the ctime, whatever process makes it. What is not trusted is sent from a copy that was compared, never from the file.
 *
 * A single write(2) moves the ctime when it begins, and may go on for long. So nothing becomes trusted by its ctime
 * while another process has the file open, until a time has passed in which no single write would still be under way.
 *
 * Clocks are coarse: while a ctime is so young that a later write could have the same one, nothing becomes trusted. And
 * what lands moves the ctime too. So for as long as bytes land the kernel says who writes (writers.h): while it is only
 * this store, trust stays, what has landed has it at once, and no ctime is too young. Where the kernel does not say, or
 * while another process has the file open, all is compared; once a second it is checked whether that has ended.
 *
 * What this cannot see: a disk that forgets bytes that had been read and compared; a write between a look and the one
 * call by which the kernel then copies bytes without waiting; and, by a process that has had the file open all
 * the time, a write that takes longer than settle_time_of_shared, or one through a mapping.
 */
#ifndef PE_CHECKED_H
#define PE_CHECKED_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bitmap.h"
#include "writers.h"

/* Whether writers are watched: from the first landing on, until all is present. */
enum watched { WATCH_NOT_YET, WATCHED, WATCH_NEVER };

struct checked {
	uint64_t *words; /* 32 granules each: the epoch in which they were compared, and a bit each. NULL: no sums */
	size_t length;
	int data_fd, sums_fd;
	uint64_t sums_offset;
	uint64_t blob_size;
	const struct bitmap *bitmap; /* the store's: what is present */

	uint64_t stamp, size; /* atomic: the data file's ctime in ns and its size, as last seen */
	uint32_t settled; /* atomic: the epoch, if something may become trusted in it, else 0 */
	pthread_mutex_t lock; /* over fstat and what follows */
	uint32_t epoch;
	uint64_t seen; /* CLOCK_MONOTONIC, ns: when the stamp was first seen */
	enum watched watched;
	uint64_t tried; /* ns: when it was last tried to watch the file */
	uint64_t asked; /* ns: when it was last asked whether another process has it open */
	struct writers_news news; /* as last seen */
	unsigned writing; /* writes of this store under way */
	bool wrote; /* and whether there were some since the last look */
};

/* Granules [first, end). */
struct granules {
	uint64_t first, end;
};

/* What reading came to; else -errno: the file cannot be read, and there are no sums to know that as spoiled by. */
enum { CHECKED_RIGHT = 0, CHECKED_SPOILED = 1 };

/* sums_fd -1: nothing is ever compared, and a read error is the reader's. */
int checked_open(struct checked *c, int data_fd, uint64_t blob_size, int sums_fd, uint64_t sums_offset,
		 const struct bitmap *bitmap);
void checked_close(struct checked *c);
/*
 * Looks at the data file: the epoch that the functions below want, 0 when nothing is trusted now. Once before a batch of
 * replies is enough. lost: what a file that was cut short has no more; the caller marks it absent.
 */
uint32_t checked_look(struct checked *c, struct granules *lost);
/* May these granules be sent straight from the data file? */
bool checked_has(const struct checked *c, uint32_t epoch, uint64_t first, uint64_t end);
/* All of the blob was compared elsewhere, in this epoch. */
void checked_mark_all(struct checked *c, uint32_t epoch);
/* Ends all trust: a system call has run into an error that the look before had not shown. */
void checked_end(struct checked *c);
/*
 * Copies whole granules from the data file and compares them. CHECKED_SPOILED: the first of those that are wrong or
 * absent are spoiled, what lies before them was right, and what lies behind was not looked at. The caller marks them.
 */
int checked_read(struct checked *c, uint32_t epoch, uint64_t first, uint64_t end, char *buffer,
		 struct granules *spoiled);
/* Around a write of granules to the data file: the first returns the epoch that the second wants. lost: as above. */
uint32_t checked_before_write(struct checked *c, struct granules *lost);
/* err: what the write came to. Writes the sums of what was written, which is trusted at once where that may be. */
int checked_after_write(struct checked *c, uint32_t epoch, uint64_t first, const char *bytes, uint64_t length, int err);

#endif
