/* A thread's own reads: into memory, or by chunked sendfile to any descriptor, as the bytes become present. */
#define _GNU_SOURCE
#include "read.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "parked.h"

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
	struct inbox inbox;
	bool answered = false;
	int result;

	inbox_init(&inbox);
	w->inbox = &inbox;
	result = store_park(s, w);
	if (result == STORE_PARKED) {
		inbox_take_until(&inbox, deadline);
		/* Also when it has come: who put it there holds the store's lock until he is done with the inbox. */
		answered = !store_unpark(s, w);
	}
	inbox_destroy(&inbox);
	if (result != STORE_PARKED)
		return result < 0 ? result : (int64_t)w->length;
	if (answered)
		return w->status < 0 ? w->status : (int64_t)w->length;
	needed = w->bounce ? waiter_next_needed(s, w, granule_of(w->offset), end) : 0;
	if (needed == end)
		return w->length; /* it became whole at the last moment */
	return needed > granule_of(w->offset) ? (int64_t)(needed * PE_GRANULE - w->offset) : -EAGAIN;
}

/* Copies bytes of granules that are present or kept. As store_read_checked. */
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

			if (w->bounce && bounce_has(w->bounce, g)) {
				memcpy(place, bounce_at(w->bounce, g), PE_GRANULE);
				continue;
			}
			while (stop < end && !(w->bounce && bounce_has(w->bounce, stop)))
				stop++;
			err = store_read_checked(s, epoch, g, stop, place);
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
	uint32_t epoch = store_look(s);
	char *room;
	int err;

	if (!w->bounce && checked_has(&s->checked, epoch, granule_of(w->offset), granule_end(w->offset + length))) {
		err = io_pread(s->data_fd, buffer, length, w->offset);
		if (!s->checked.words || (!err && store_look(s) == epoch))
			return err;
		if (err)
			checked_end(&s->checked); /* an error that the look had not shown */
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
	bounce_free(w.bounce);
	return result < 0 ? (int)result : result < (int64_t)length ? -EAGAIN : 0;
}

int64_t read_copy(struct pe_store *s, void *buffer, uint64_t length, uint64_t offset, uint32_t timeout)
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
		w.reread = true; /* what was spoiled is fetched anew, and handed over */
	} while (err == CHECKED_SPOILED);
	bounce_free(w.bounce);
	return err ? err : result;
}

int64_t pe_store_read(pe_store *s, void *buffer, uint64_t length, uint64_t offset, uint32_t timeout)
{
	int64_t result = read_copy(s, buffer, length, offset, timeout);

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
	if (!s->checked.words)
		return 0;
	room = malloc(COMPARED);
	if (!room)
		return -ENOMEM;
	for (first = bitmap_next_present(&s->bitmap, first, end); first < end && result >= 0;) {
		uint64_t most = first + COMPARED / PE_GRANULE < end ? first + COMPARED / PE_GRANULE : end;
		uint64_t stop = bitmap_next_absent(&s->bitmap, first, most);

		err = first < stop ? store_read_checked(s, 0, first, stop, room) : 0;
		result = err ? err : result;
		first = bitmap_next_present(&s->bitmap, stop, end);
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

/* From a copy. CHECKED_SPOILED: it could not be made. */
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

/* Bytes of a read, all of them there; those sent before an error are counted. CHECKED_SPOILED: more is to be fetched. */
static int send_chunk(struct pe_store *s, struct waiter *w, int out_fd, uint64_t length, uint64_t *sent)
{
	uint64_t before = *sent;
	int err = -EINVAL;

	/* To anything but a file the kernel would pass the data file's pages themselves, to be read at any later time. */
	if (!w->bounce && (!s->checked.words || is_file(out_fd)) &&
	    checked_has(&s->checked, store_look(s), granule_of(w->offset), granule_end(w->offset + length)))
		err = send_file(s, out_fd, w->offset, length, sent);
	if (err == -EIO && s->checked.words) {
		checked_end(&s->checked); /* the next look finds out */
		return CHECKED_SPOILED;
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
		struct waiter w = { .offset = offset + done, .reread = err == CHECKED_SPOILED };

		w.length = count - done < CHUNK ? (uint32_t)(count - done) : CHUNK;
		err = await(s, &w, deadline);
		if (err > 0)
			err = send_chunk(s, &w, out_fd, (uint64_t)err, &done);
		bounce_free(w.bounce);
	}
	__atomic_fetch_add(&s->served, done, __ATOMIC_RELAXED);
	return done ? (int64_t)done : err;
}
