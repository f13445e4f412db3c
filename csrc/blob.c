/* A thread's own reads: into memory, or by chunked sendfile to any descriptor, as the bytes become present. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "store.h"

enum {
	CHUNK = 1 << 20, /* waited for as one */
	COMPARED = 64 * PE_GRANULE, /* compared as one */
};

static uint64_t deadline_after(uint32_t timeout)
{
	return now_ns() + (uint64_t)timeout * 1000000U;
}

/*
 * How many of a read's bytes are there, in order: all of them, or fewer where time was up and it holds some itself,
 * which would otherwise be lost. -EAGAIN: time was up. The caller frees what the read keeps.
 */
static int64_t await(struct pe_store *s, struct waiter *w, uint64_t deadline)
{
	uint64_t end = granule_end(w->offset + w->length), needed;
	int result = store_want(s, w);

	if (result)
		return result < 0 ? result : (int64_t)w->length;
	pthread_mutex_lock(&s->lock);
	while (w->status == 1 && now_ns() < deadline)
		cond_wait_until(&s->whole, &s->lock, deadline);
	store_unpark(s, w);
	pthread_mutex_unlock(&s->lock);
	if (w->status != 1)
		return w->status < 0 ? w->status : (int64_t)w->length;
	needed = w->keep ? waiter_next_needed(s, w, granule_of(w->offset), end) : 0;
	if (needed == end)
		return w->length; /* it became whole at the last moment */
	return needed > granule_of(w->offset) ? (int64_t)(needed * PE_GRANULE - w->offset) : -EAGAIN;
}

/* Copies bytes of granules that are present or kept. 1: some were spoiled. */
static int copy_compared(struct pe_store *s, const struct waiter *w, uint32_t epoch, char *buffer, uint64_t offset,
			 uint64_t length, char *room)
{
	while (length) {
		uint64_t first = granule_of(offset), skip = offset % PE_GRANULE;
		uint64_t n = length < COMPARED - skip ? length : COMPARED - skip;
		uint64_t end = granule_end(offset + n);

		for (uint64_t g = first; g < end; g++) {
			char *place = room + (g - first) * PE_GRANULE;
			uint64_t stop = g + 1;
			int err;

			if (w->keep && keep_has(w->keep, g)) {
				memcpy(place, keep_at(w->keep, g), PE_GRANULE);
				continue;
			}
			while (stop < end && !(w->keep && keep_has(w->keep, stop)))
				stop++;
			err = trust_read(s, epoch, g, stop, place);
			if (err)
				return err;
			g = stop - 1;
		}
		memcpy(buffer, room + skip, n);
		buffer += n;
		offset += n;
		length -= n;
	}
	return 0;
}

static int copy_out(struct pe_store *s, const struct waiter *w, char *buffer, uint64_t length)
{
	uint32_t epoch = trust_look(s);
	char *room;
	int err;

	if (!w->keep && trust_has(&s->trust, epoch, granule_of(w->offset), granule_end(w->offset + length))) {
		err = io_pread(s->data_fd, buffer, length, w->offset);
		if (!s->trust.word || (!err && trust_look(s) == epoch))
			return err;
		if (err)
			trust_end(s); /* an error that the look had not shown */
		epoch = 0;
	}
	room = malloc(COMPARED);
	if (!room)
		return -ENOMEM;
	err = copy_compared(s, w, epoch, buffer, w->offset, length, room);
	free(room);
	return err;
}

int pe_store_wait(pe_store *s, uint64_t offset, uint64_t length, uint32_t timeout)
{
	struct waiter w = { .offset = offset, .length = (uint32_t)length };
	int64_t result;

	if (!store_in_range(s, offset, length) || length > PE_REQUEST_MAX)
		return -EINVAL;
	result = await(s, &w, deadline_after(timeout));
	keep_free(w.keep);
	return result < 0 ? (int)result : result < (int64_t)length ? -EAGAIN : 0;
}

int64_t store_copy(struct pe_store *s, void *buffer, uint64_t length, uint64_t offset, uint32_t timeout)
{
	uint64_t deadline = deadline_after(timeout);
	struct waiter w = { .offset = offset };
	int64_t result;
	int err;

	if (!store_in_range(s, offset, length))
		return -EINVAL;
	w.length = length < PE_REQUEST_MAX ? (uint32_t)length : PE_REQUEST_MAX;
	do {
		result = await(s, &w, deadline);
		err = result > 0 ? copy_out(s, &w, buffer, (uint64_t)result) : 0;
		w.mistrust = true; /* what was spoiled is fetched anew, and handed over */
	} while (err == 1);
	keep_free(w.keep);
	return err ? err : result;
}

int64_t pe_store_read(pe_store *s, void *buffer, uint64_t length, uint64_t offset, uint32_t timeout)
{
	int64_t result = store_copy(s, buffer, length, offset, timeout);

	if (result > 0)
		__atomic_fetch_add(&s->served, (uint64_t)result, __ATOMIC_RELAXED);
	return result;
}

int pe_store_check(pe_store *s, uint64_t offset, uint64_t length)
{
	uint64_t first = granule_of(offset), end = granule_end(offset + length);
	char *room;
	int err, result = 0;

	if (!store_in_range(s, offset, length))
		return -EINVAL;
	if (!s->trust.word)
		return 0;
	room = malloc(COMPARED);
	if (!room)
		return -ENOMEM;
	for (first = map_next_present(&s->map, first, end); first < end && result >= 0;) {
		uint64_t most = first + COMPARED / PE_GRANULE < end ? first + COMPARED / PE_GRANULE : end;
		uint64_t stop = map_next_absent(&s->map, first, most);

		err = first < stop ? trust_read(s, 0, first, stop, room) : 0;
		result = err ? err : result;
		first = map_next_present(&s->map, stop, end);
	}
	free(room);
	return result;
}

/* Straight from the data file. -EINVAL: sendfile(2) refuses this target, a file opened with O_APPEND for one. */
static int send_file(const struct pe_store *s, int out_fd, uint64_t offset, uint64_t length, uint64_t *sent)
{
	while (length) {
		off_t at = (off_t)offset;
		ssize_t n = sendfile(out_fd, s->data_fd, &at, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO; /* the data file ends before the blob does */
		offset += (uint64_t)n;
		length -= (uint64_t)n;
		*sent += (uint64_t)n;
	}
	return 0;
}

static bool is_file(int fd)
{
	struct stat st;

	return !fstat(fd, &st) && S_ISREG(st.st_mode);
}

/* From a copy. 1: spoiled. */
static int send_copy(struct pe_store *s, const struct waiter *w, int out_fd, uint64_t length, uint64_t *sent)
{
	char *bytes = malloc(length);
	int err = bytes ? copy_out(s, w, bytes, length) : -ENOMEM;

	for (uint64_t at = 0; !err && at < length;) {
		ssize_t n = write(out_fd, bytes + at, length - at);

		if (n > 0) {
			at += (uint64_t)n;
			*sent += (uint64_t)n;
		} else if (n == 0 || errno != EINTR) {
			err = n ? -errno : -EIO;
		}
	}
	free(bytes);
	return err;
}

/* Bytes of a read, all of them there; those sent before an error are counted. 1: spoiled. */
static int send_chunk(struct pe_store *s, struct waiter *w, int out_fd, uint64_t length, uint64_t *sent)
{
	uint64_t before = *sent;
	int err = -EINVAL;

	/* To anything but a file the kernel would pass the data file's pages themselves, to be read when somebody likes. */
	if (!w->keep && (!s->trust.word || is_file(out_fd)) &&
	    trust_has(&s->trust, trust_look(s), granule_of(w->offset), granule_end(w->offset + length)))
		err = send_file(s, out_fd, w->offset, length, sent);
	if (err == -EIO && s->trust.word) {
		trust_end(s); /* the next look finds out */
		return 1;
	}
	if (err != -EINVAL)
		return err;
	w->offset += *sent - before;
	return send_copy(s, w, out_fd, length - (*sent - before), sent);
}

int64_t pe_store_sendfile(pe_store *s, int out_fd, uint64_t offset, uint64_t count, uint32_t timeout)
{
	uint64_t deadline = deadline_after(timeout);
	uint64_t done = 0;
	int64_t err = 0;

	if (!store_in_range(s, offset, count))
		return -EINVAL;
	while (err >= 0 && done < count) {
		struct waiter w = { .offset = offset + done, .mistrust = err == 1 };

		w.length = count - done < CHUNK ? (uint32_t)(count - done) : CHUNK;
		err = await(s, &w, deadline);
		if (err > 0)
			err = send_chunk(s, &w, out_fd, (uint64_t)err, &done);
		keep_free(w.keep);
	}
	__atomic_fetch_add(&s->served, done, __ATOMIC_RELAXED);
	return done ? (int64_t)done : err;
}
