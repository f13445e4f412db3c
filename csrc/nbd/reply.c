/*
 * Replies. Data is never touched here: the kernel copies it from the mapping, so that a data file
 * that is cut short is an error of the system call and not a SIGBUS.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/io.h"
#include "conn.h"
#include "store/parked.h"
#include "store/read.h"

/* The one place where errno becomes the protocol's error. */
static uint32_t protocol_error(int status)
{
	switch (-status) {
	case 0:
		return NBD_SUCCESS;
	case EPERM:
		return NBD_EPERM;
	case ENOMEM:
		return NBD_ENOMEM;
	case EINVAL:
		return NBD_EINVAL;
	case ESHUTDOWN:
		return NBD_ESHUTDOWN;
	default:
		return NBD_EIO;
	}
}

/* How long a copy is waited for at once, ms: so often it is asked whether the connection was stopped. */
enum { COPY_SLICE = 200 };

/* Room for every short read of whole granules. */
enum { REPLY_ROOM = REPLY_LONG + 2 * PE_GRANULE };

static void reply_clear(struct reply_batch *batch)
{
	batch->count = batch->vectors = batch->room_used = 0;
	batch->bytes = 0;
	batch->looked = false;
}

void reply_free(struct reply_batch *batch)
{
	free(batch->room);
}

void reply_init(struct reply_batch *batch, bool parked)
{
	reply_clear(batch);
	batch->room = NULL;
	batch->copies = NULL;
	batch->parked = parked;
}

static void count_latencies(struct pe_store *s, const struct reply_batch *batch)
{
	uint64_t now = now_ns();

	for (unsigned i = 0, same; i < batch->count; i += same) {
		uint64_t arrived = batch->read_arrived[i];

		for (same = 1; i + same < batch->count && batch->read_arrived[i + same] == arrived; same++)
			;
		if (arrived)
			latency_add(&s->reads, now - arrived, same);
		if (arrived && batch->parked)
			latency_add(&s->parked_reads, now - arrived, same);
	}
}

/* May the kernel still take these bytes from the data file? Those of our own memory it may always. */
static bool is_good(const struct pe_store *s, uint32_t epoch, const struct iovec *iov)
{
	const char *bytes = iov->iov_base;
	uint64_t offset = (uint64_t)(bytes - s->data);

	if (bytes < s->data || bytes >= s->data + s->size)
		return true;
	return checked_has(&s->checked, epoch, granule_of(offset), granule_end(offset + iov->iov_len));
}

/* Puts a copy that was compared in the place of a range of the data file. Waits, where that has to be fetched anew. */
static int take_copy(struct pe_conn *c, struct reply_batch *batch, struct iovec *iov)
{
	struct pe_store *s = c->store;
	uint64_t offset = (uint64_t)((const char *)iov->iov_base - s->data), done = 0;
	uint64_t deadline = s->timeout ? now_ns() + s->timeout : UINT64_MAX;
	struct reply_copy *copy = malloc(sizeof(*copy) + iov->iov_len);

	if (!copy)
		return -ENOMEM;
	copy->next = batch->copies;
	batch->copies = copy;
	while (done < iov->iov_len) {
		int64_t n = read_copy(s, copy->bytes + done, iov->iov_len - done, offset + done, COPY_SLICE);

		if (n == -EAGAIN && (__atomic_load_n(&c->stopped, __ATOMIC_ACQUIRE) || now_ns() > deadline))
			n = -ETIMEDOUT;
		if (n < 0 && n != -EAGAIN)
			return (int)n;
		done += n < 0 ? 0 : (uint64_t)n;
	}
	iov->iov_base = copy->bytes;
	return 0;
}

/* Looks at the data file, and takes copies of those bytes of a vector that are doubted. */
static int look_again(struct pe_conn *c, struct reply_batch *batch, struct iovec *iov, int count)
{
	uint32_t epoch = store_look(c->store);
	int err = 0;

	for (int i = 0; i < count && !err; i++)
		if (!is_good(c->store, epoch, &iov[i]))
			err = take_copy(c, batch, &iov[i]);
	return err && err != -ENOMEM ? -EIO : err;
}

/*
 * The kernel copies bytes of the data file when the client makes room for them, which may be long after they were
 * looked at. So it is only ever asked to copy what there is room for now, a slice at a time and each right after a look;
 * what is doubted then is taken from a copy.
 */
static int send_batch(struct pe_conn *c, struct reply_batch *batch)
{
	struct pe_store *s = c->store;
	struct iovec *iov = batch->iov;
	int count = (int)batch->vectors, err = 0;
	bool fresh = batch->count == 1; /* then the look for it was the last thing that was done */

	for (;;) {
		if (!fresh)
			err = look_again(c, batch, iov, count);
		fresh = false;
		if (!err)
			err = io_sendv_now(c->fd, &iov, &count, REPLY_SLICE);
		if (err == -EFAULT && s->checked.words) {
			checked_end(&s->checked); /* an error that the look had not shown */
			err = IO_MORE;
		}
		if (err == -EAGAIN)
			err = io_wait_writable(c->fd) ? -EPIPE : IO_MORE;
		if (err != IO_MORE)
			return err;
		err = 0;
	}
}

static void free_copies(struct reply_batch *batch)
{
	while (batch->copies) {
		struct reply_copy *copy = batch->copies;

		batch->copies = copy->next;
		free(copy);
	}
}

/* Sends what is batched and, where length is not 0, that range of a data file, which is not doubted, behind it. */
static int transmit(struct pe_conn *c, struct reply_batch *batch, uint64_t offset, uint32_t length)
{
	uint64_t served = batch->bytes + length;
	int err;

	pthread_mutex_lock(&c->send_lock);
	err = length ? io_sendv(c->fd, batch->iov, (int)batch->vectors, MSG_MORE) : send_batch(c, batch);
	if (!err && length)
		err = io_sendfile(c->fd, c->store->data_fd, offset, length);
	pthread_mutex_unlock(&c->send_lock);
	free_copies(batch);
	if (!err)
		count_latencies(c->store, batch);
	reply_clear(batch);
	if (err == -EFAULT || err == -EIO) {
		/* The file cannot be read. The header was a promise, so the connection is lost, but the next look finds out. */
		checked_end(&c->store->checked);
		return -EIO;
	}
	if (!err && served)
		__atomic_fetch_add(&c->store->served, served, __ATOMIC_RELAXED);
	return err;
}

int reply_flush(struct pe_conn *c, struct reply_batch *batch)
{
	if (batch->count)
		return transmit(c, batch, 0, 0);
	reply_clear(batch); /* a look at the data file is good for no later batch, also where no reply came of it */
	return 0;
}

static void add_header(struct reply_batch *batch, uint64_t cookie, int status, uint64_t arrived)
{
	struct nbd_simple_reply *header = &batch->header[batch->count];

	batch->read_arrived[batch->count++] = arrived;
	*header = (struct nbd_simple_reply){
		.magic = htobe32(NBD_SIMPLE_REPLY_MAGIC),
		.error = htobe32(protocol_error(status)),
		.cookie = cookie,
	};
	batch->iov[batch->vectors++] = (struct iovec){ .iov_base = header, .iov_len = sizeof(*header) };
}

int reply_status(struct pe_conn *c, struct reply_batch *batch, uint64_t cookie, int status, uint64_t arrived)
{
	add_header(batch, cookie, status, arrived);
	return batch->count == REPLY_BATCH ? transmit(c, batch, 0, 0) : 0;
}

static void add_zeros(struct reply_batch *batch, uint32_t length)
{
	static const char zeros[CONN_SECTOR];

	if (length)
		batch->iov[batch->vectors++] =
			(struct iovec){ .iov_base = (void *)(uintptr_t)zeros, .iov_len = length };
	batch->bytes += length;
}

int reply_zeros(struct pe_conn *c, struct reply_batch *batch, const struct waiter *w)
{
	add_header(batch, w->cookie, 0, w->arrived);
	add_zeros(batch, w->zeros);
	return batch->count == REPLY_BATCH ? transmit(c, batch, 0, 0) : 0;
}

/* Adds data that stays where it is until the batch is sent. */
static int add_data(struct pe_conn *c, struct reply_batch *batch, const struct waiter *w, const char *bytes, bool send)
{
	add_header(batch, w->cookie, 0, w->arrived);
	batch->iov[batch->vectors++] = (struct iovec){ .iov_base = (void *)(uintptr_t)bytes, .iov_len = w->length };
	batch->bytes += w->length;
	add_zeros(batch, w->zeros);
	return send || batch->count == REPLY_BATCH ? transmit(c, batch, 0, 0) : 0;
}

/* A read that holds some of its bytes itself, or is long and has to be compared: from a buffer of its own. */
static int add_bounced(struct pe_conn *c, struct reply_batch *batch, struct waiter *w)
{
	uint64_t first = granule_of(w->offset);
	int err;

	if (!w->bounce)
		w->bounce = bounce_new(first, granule_end(w->offset + w->length));
	err = w->bounce ? waiter_fill(c->store, w, batch->epoch) : -ENOMEM;
	if (err)
		return err < 0 ? reply_status(c, batch, w->cookie, err, w->arrived) : REPLY_SPOILED;
	return add_data(c, batch, w, bounce_at(w->bounce, first) + w->offset % PE_GRANULE, true);
}

/* A short read whose granules have to be compared. */
static int add_compared(struct pe_conn *c, struct reply_batch *batch, struct waiter *w)
{
	uint64_t first = granule_of(w->offset), end = granule_end(w->offset + w->length);
	uint32_t needed = (uint32_t)(end - first) * PE_GRANULE;
	char *bytes;
	int err = 0;

	if (!batch->room)
		batch->room = malloc(REPLY_ROOM);
	if (!batch->room)
		return reply_status(c, batch, w->cookie, -ENOMEM, w->arrived);
	if (REPLY_ROOM - batch->room_used < needed)
		err = reply_flush(c, batch);
	if (err)
		return err;
	bytes = batch->room + batch->room_used;
	err = store_read_checked(c->store, batch->epoch, first, end, bytes);
	if (err)
		return err < 0 ? reply_status(c, batch, w->cookie, err, w->arrived) : REPLY_SPOILED;
	batch->room_used += needed;
	return add_data(c, batch, w, bytes + w->offset % PE_GRANULE, false);
}

int reply_read(struct pe_conn *c, struct reply_batch *batch, struct waiter *w)
{
	struct pe_store *s = c->store;

	if (!batch->looked) {
		batch->epoch = store_look(s);
		batch->looked = true;
	}
	if (!w->bounce &&
	    checked_has(&s->checked, batch->epoch, granule_of(w->offset), granule_end(w->offset + w->length))) {
		if (s->checked.words || w->zeros || w->length < REPLY_LONG)
			return add_data(c, batch, w, s->data + w->offset, w->length >= REPLY_LONG);
		/* The kernel passes the file's pages on as they are: only for a file whose bytes are right whatever they are. */
		add_header(batch, w->cookie, 0, w->arrived);
		return transmit(c, batch, w->offset, w->length);
	}
	return w->bounce || w->length >= REPLY_LONG ? add_bounced(c, batch, w) : add_compared(c, batch, w);
}
