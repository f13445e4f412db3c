/*
 * A connection in the transmission phase. One thread reads requests and answers those whose bytes are present; a
 * second one sends the replies to those that had to wait, so that no fetch thread ever waits for a slow client.
 */
#define _GNU_SOURCE
#include "conn.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/io.h"
#include "store/parked.h"

static bool is_set(const bool *value)
{
	return __atomic_load_n(value, __ATOMIC_ACQUIRE);
}

int pe_conn_open(pe_store *store, int fd, uint16_t flags, pe_conn **conn)
{
	struct pe_conn *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->store = store;
	c->fd = fd;
	c->flags = flags;
	c->size = store->size;
	inbox_init(&c->ready);
	pthread_mutex_init(&c->send_lock, NULL);
	pthread_mutex_init(&c->settled_lock, NULL);
	cond_init(&c->settled_cond);
	*conn = c;
	return 0;
}

void pe_conn_free(pe_conn *c)
{
	if (!c)
		return;
	pthread_mutex_destroy(&c->send_lock);
	pthread_mutex_destroy(&c->settled_lock);
	inbox_destroy(&c->ready);
	pthread_cond_destroy(&c->settled_cond);
	free(c);
}

void pe_conn_stop(pe_conn *c)
{
	__atomic_store_n(&c->stopped, true, __ATOMIC_RELEASE);
	shutdown(c->fd, SHUT_RDWR);
	pthread_mutex_lock(&c->settled_lock);
	pthread_cond_broadcast(&c->settled_cond);
	pthread_mutex_unlock(&c->settled_lock);
}

void pe_conn_drain(pe_conn *c)
{
	__atomic_store_n(&c->draining, true, __ATOMIC_RELEASE);
	shutdown(c->fd, SHUT_RD); /* the serving thread still sees what has arrived, then the end */
}

void pe_conn_pause(pe_conn *c)
{
	__atomic_store_n(&c->pausing, true, __ATOMIC_RELEASE);
}

static void settle(struct pe_conn *c, uint32_t count, uint64_t bytes)
{
	pthread_mutex_lock(&c->settled_lock);
	c->outstanding -= count;
	c->outstanding_bytes -= bytes;
	pthread_cond_signal(&c->settled_cond);
	pthread_mutex_unlock(&c->settled_lock);
}

/* Waits, at most PAUSE_PATIENCE, until every request is answered. */
static int pause_settled(struct pe_conn *c)
{
	uint64_t deadline = now_ns() + PAUSE_PATIENCE;
	int result;

	pthread_mutex_lock(&c->settled_lock);
	while (c->outstanding && !is_set(&c->stopped) && now_ns() < deadline)
		cond_wait_until(&c->settled_cond, &c->settled_lock, deadline);
	result = c->outstanding || is_set(&c->stopped) ? PE_HARD_DISCONNECT : PE_PAUSED;
	pthread_mutex_unlock(&c->settled_lock);
	return result;
}

/* Waits until no more than limit requests are outstanding, for so many bytes, or the connection is stopped. */
static void wait_settled(struct pe_conn *c, uint32_t limit, uint64_t bytes)
{
	pthread_mutex_lock(&c->settled_lock);
	while ((c->outstanding > limit || c->outstanding_bytes > bytes) && !is_set(&c->stopped))
		pthread_cond_wait(&c->settled_cond, &c->settled_lock);
	pthread_mutex_unlock(&c->settled_lock);
}

static void free_waiter(struct waiter *w)
{
	bounce_free(w->bounce);
	free(w);
}

/* What became of a read that was parked; else -errno. */
enum { ANSWERED = 0, PARKED_AGAIN = 1 };

static int answer(struct pe_conn *c, struct reply_batch *batch, struct waiter *w)
{
	int result, parked;

	if (w->status < 0)
		return reply_status(c, batch, w->cookie, w->status, w->arrived);
	/* Spoiled bytes that have become right again before it was parked are looked at once more. */
	while ((result = reply_read(c, batch, w)) == REPLY_SPOILED) {
		parked = store_park_again(c->store, w);
		if (parked == STORE_PARKED)
			return PARKED_AGAIN;
		if (parked != STORE_PRESENT)
			return reply_status(c, batch, w->cookie, parked, w->arrived);
	}
	return result;
}

int pe_conn_send(pe_conn *c)
{
	struct reply_batch batch;
	int err = 0;

	reply_init(&batch, true);
	for (;;) {
		struct inbox_item *items = inbox_take(&c->ready), *next;
		uint32_t count = 0;
		uint64_t bytes = 0;

		if (!items)
			break;
		for (struct inbox_item *item = items; item; item = next) {
			struct waiter *w = waiter_of(item);
			uint32_t length = w->length; /* once parked again, it is not ours */

			next = item->next;
			if (!err)
				err = answer(c, &batch, w);
			if (err == PARKED_AGAIN) {
				err = 0;
				continue;
			}
			free_waiter(w);
			count++;
			bytes += length;
		}
		if (!err)
			err = reply_flush(c, &batch);
		if (err)
			pe_conn_stop(c);
		settle(c, count, bytes);
	}
	reply_free(&batch);
	return err;
}

/* Makes place for a read that may be parked: if it will be, what is outstanding may have to be answered first. */
static int admit(struct pe_conn *c, struct reply_batch *batch, uint64_t offset, uint32_t length)
{
	bool hit = store_has(c->store, offset, length);
	int err = 0;

	pthread_mutex_lock(&c->settled_lock);
	if (!hit && c->outstanding_bytes + length > CONN_BYTES) {
		pthread_mutex_unlock(&c->settled_lock);
		err = reply_flush(c, batch);
		if (!err)
			wait_settled(c, UINT32_MAX, CONN_BYTES - length);
		pthread_mutex_lock(&c->settled_lock);
	}
	c->outstanding++;
	c->outstanding_bytes += length;
	pthread_mutex_unlock(&c->settled_lock);
	return err;
}

/* A read that is not known to be a hit. As reply_read: REPLY_SPOILED if its bytes had become present. */
static int enqueue_miss(struct pe_conn *c, struct reply_batch *batch, const struct waiter *wanted)
{
	struct waiter *w = malloc(sizeof(*w));
	int result;

	if (!w)
		return reply_status(c, batch, wanted->cookie, -ENOMEM, 0);
	*w = *wanted;
	result = admit(c, batch, w->offset, w->length);
	if (!result) {
		result = store_park(c->store, w);
		if (result == STORE_PARKED)
			return REPLY_ADDED;
	}
	if (result == STORE_PRESENT)
		result = reply_read(c, batch, w);
	else if (result == -ESHUTDOWN)
		result = reply_status(c, batch, w->cookie, result, w->arrived);
	settle(c, 1, w->length);
	free_waiter(w);
	return result;
}

/* A read: answered at once, or parked. */
static int handle_read(struct pe_conn *c, struct reply_batch *batch, uint64_t cookie, uint64_t offset, uint32_t length)
{
	struct waiter w = {
		.offset = offset, .cookie = cookie, .inbox = &c->ready, .expires = true, .arrived = batch->arrived
	};
	uint64_t size = c->store->size, left;
	int result = REPLY_SPOILED;

	if (is_set(&c->draining))
		return reply_status(c, batch, cookie, -ESHUTDOWN, 0);
	if (!length || length > PE_REQUEST_MAX || offset >= c->size || length > c->size - offset)
		return reply_status(c, batch, cookie, -EINVAL, 0);
	left = offset < size ? size - offset : 0;
	w.length = length < left ? length : (uint32_t)left;
	w.zeros = length - w.length;
	if (!w.length)
		return reply_zeros(c, batch, &w);
	trace_note(&c->store->trace, granule_of(offset), granule_end(offset + w.length));
	if (is_set(&c->store->complete)) {
		__atomic_fetch_add(&c->store->hits, 1, __ATOMIC_RELAXED);
		result = reply_read(c, batch, &w);
		bounce_free(w.bounce);
		w.bounce = NULL;
		w.reread = true; /* if it comes to that */
	}
	while (result == REPLY_SPOILED) {
		result = enqueue_miss(c, batch, &w);
		w.reread = true;
	}
	return result;
}

/* What a request leads to; else -errno, which ends the connection. */
enum { GO_ON = 0, SOFT_DISCONNECT = 1 };

static int dispatch(struct pe_conn *c, struct reply_batch *batch, const struct nbd_request *r)
{
	uint32_t length = be32toh(r->length);

	if (be32toh(r->magic) != NBD_REQUEST_MAGIC)
		return -EPROTO; /* out of step: nothing that follows can be trusted */
	switch (be16toh(r->type)) {
	case NBD_CMD_READ:
		/* No command flag was offered for reads. */
		if (r->flags)
			return reply_status(c, batch, r->cookie, -EINVAL, 0);
		return handle_read(c, batch, r->cookie, be64toh(r->offset), length);
	case NBD_CMD_WRITE:
		if (length > PE_REQUEST_MAX)
			return -EPROTO; /* not worth reading to the end */
		c->discard = length;
		return reply_status(c, batch, r->cookie, -EPERM, 0);
	case NBD_CMD_DISC:
		return SOFT_DISCONNECT;
	case NBD_CMD_TRIM:
	case NBD_CMD_WRITE_ZEROES:
		return reply_status(c, batch, r->cookie, -EPERM, 0);
	default:
		return reply_status(c, batch, r->cookie, -EINVAL, 0);
	}
}

/* Takes whole requests from the buffer and moves what is left to its start. As dispatch. */
static int dispatch_all(struct pe_conn *c, struct reply_batch *batch, char *buffer, size_t *have)
{
	size_t at = 0;
	int err = 0;

	while (!err && at < *have) {
		struct nbd_request r;

		if (c->discard) {
			size_t n = c->discard < *have - at ? (size_t)c->discard : *have - at;

			c->discard -= n;
			at += n;
			continue;
		}
		if (*have - at < sizeof(r))
			break;
		memcpy(&r, buffer + at, sizeof(r));
		at += sizeof(r);
		err = dispatch(c, batch, &r);
	}
	*have -= at;
	memmove(buffer, buffer + at, *have);
	return err;
}

static int read_requests(struct pe_conn *c, struct reply_batch *batch, char *buffer)
{
	size_t have = 0;

	for (;;) {
		ssize_t n;
		int err, sent;

		if (is_set(&c->pausing) && !have && !c->discard)
			return PE_PAUSED; /* between two requests: the next owner of the socket can go on */
		n = recv(c->fd, buffer + have, CONN_BUFFER - have, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return is_set(&c->draining) ? PE_DRAINED : PE_HARD_DISCONNECT;
		have += (size_t)n;
		batch->arrived = now_ns(); /* of all that came at once: one look at the clock */
		err = dispatch_all(c, batch, buffer, &have);
		sent = reply_flush(c, batch);
		if (err == SOFT_DISCONNECT)
			return PE_SOFT_DISCONNECT;
		if (err || sent)
			return err ? err : sent;
		wait_settled(c, CONN_DEPTH, UINT64_MAX);
	}
}

int pe_conn_serve(pe_conn *c)
{
	struct {
		struct reply_batch batch;
		char requests[CONN_BUFFER];
	} *room = malloc(sizeof(*room));
	int result = -ENOMEM;

	if (room) {
		reply_init(&room->batch, false);
		result = read_requests(c, &room->batch, room->requests);
		reply_free(&room->batch);
		free(room);
	}
	if (result == PE_DRAINED)
		wait_settled(c, 0, UINT64_MAX);
	if (result == PE_PAUSED)
		result = pause_settled(c);
	store_forget(c->store, &c->ready);
	/* From here on no new reply can become ready; the sender goes when it has dealt with the last one. */
	inbox_close(&c->ready);
	if (result != PE_PAUSED)
		shutdown(c->fd, SHUT_RDWR);
	return result;
}
