/*
 * Replies. Data is never touched here: the kernel copies it from the mapping or from the file, so that a data file
 * that somebody cuts short is an error of the system call and not a SIGBUS.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <sys/socket.h>

#include "conn.h"
#include "io.h"

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

static void reply_clear(struct reply_batch *batch)
{
	batch->count = batch->vectors = 0;
	batch->bytes = 0;
}

void reply_init(struct reply_batch *batch, bool parked)
{
	reply_clear(batch);
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
			hist_add(&s->reads, now - arrived, same);
		if (arrived && batch->parked)
			hist_add(&s->parked_reads, now - arrived, same);
	}
}

/* Sends what is batched and, where length is not 0, that range of the data file behind it. */
static int transmit(struct pe_conn *c, struct reply_batch *batch, uint64_t offset, uint32_t length)
{
	uint64_t served = batch->bytes + length;
	int err;

	pthread_mutex_lock(&c->send_lock);
	err = io_sendv(c->fd, batch->iov, (int)batch->vectors, length ? MSG_MORE : 0);
	if (!err && length)
		err = io_sendfile(c->fd, c->store->data_fd, offset, length);
	pthread_mutex_unlock(&c->send_lock);
	if (!err)
		count_latencies(c->store, batch);
	reply_clear(batch);
	if (!err && served)
		__atomic_fetch_add(&c->store->served, served, __ATOMIC_RELAXED);
	return err;
}

int reply_flush(struct pe_conn *c, struct reply_batch *batch)
{
	return batch->count ? transmit(c, batch, 0, 0) : 0;
}

int reply_add(struct pe_conn *c, struct reply_batch *batch, uint64_t cookie, int status, uint64_t offset,
	      uint32_t length)
{
	struct nbd_simple_reply *header = &batch->header[batch->count];

	batch->read_arrived[batch->count++] = length ? batch->arrived : 0;
	*header = (struct nbd_simple_reply){
		.magic = htobe32(NBD_SIMPLE_REPLY_MAGIC),
		.error = htobe32(protocol_error(status)),
		.cookie = cookie,
	};
	batch->iov[batch->vectors++] = (struct iovec){ .iov_base = header, .iov_len = sizeof(*header) };
	if (!status && length >= REPLY_SENDFILE)
		return transmit(c, batch, offset, length);
	if (!status) {
		batch->iov[batch->vectors++] = (struct iovec){
			.iov_base = (void *)(uintptr_t)(c->store->data + offset),
			.iov_len = length,
		};
		batch->bytes += length;
	}
	return batch->count == REPLY_BATCH ? transmit(c, batch, 0, 0) : 0;
}
