/*
 * The fixed newstyle handshake (the NBD specification's "Newstyle negotiation"): every export is read-only and known by
 * one name; structured replies, TLS and metadata contexts are answered as not supported, which clients take well.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/clock.h"
#include "base/io.h"
#include "conn.h"

enum {
	OPTION_MAX = 64 << 10, /* longer ones are not worth reading */
	PREFERRED_BLOCK = 4096,
};

/* What an option leads to; else -errno, which ends the connection. */
enum { NEXT_OPTION = 0, TRANSMISSION = 1, CLIENT_DONE = 2 };

struct offer {
	const char *name, *description;
	uint64_t deadline; /* of the whole handshake */
};

static int set_timeout(int fd, int option, uint64_t ns)
{
	struct timeval t = { .tv_sec = (time_t)(ns / 1000000000U), .tv_usec = (suseconds_t)(ns % 1000000000U / 1000) };

	return setsockopt(fd, SOL_SOCKET, option, &t, sizeof(t)) ? -errno : 0;
}

/* Gives the next call what is left of the time; 0 would mean "for ever". */
static int limit(const struct pe_conn *c, const struct offer *offer, int option)
{
	uint64_t now = now_ns();

	return now + 1000 < offer->deadline ? set_timeout(c->fd, option, offer->deadline - now) : -EAGAIN;
}

/*
 * All of it, or -EAGAIN when the time is up, whatever has come until then. -ECONNRESET when the peer ends before; with
 * nothing read at all it is -ENODATA.
 */
static int receive(const struct pe_conn *c, const struct offer *offer, void *buffer, size_t length)
{
	size_t done = 0;

	while (done < length) {
		int err = limit(c, offer, SO_RCVTIMEO);
		ssize_t n = err ? -1 : recv(c->fd, (char *)buffer + done, length - done, 0);

		if (n > 0)
			done += (size_t)n;
		else if (n == 0)
			return done ? -ECONNRESET : -ENODATA;
		else if (err || errno != EINTR)
			return err ? err : -errno;
	}
	return 0;
}

static int discard(const struct pe_conn *c, const struct offer *offer, uint32_t length)
{
	char waste[4096];
	int err = 0;

	for (uint32_t n; length && !err; length -= n) {
		n = length < sizeof(waste) ? length : (uint32_t)sizeof(waste);
		err = receive(c, offer, waste, n);
	}
	return err == -ENODATA ? -ECONNRESET : err;
}

static int option_reply(struct pe_conn *c, uint32_t option, uint32_t type, const void *data, uint32_t length)
{
	struct nbd_option_reply header = {
		.magic = htobe64(NBD_REP_MAGIC),
		.option = htobe32(option),
		.type = htobe32(type),
		.length = htobe32(length),
	};
	struct iovec iov[2] = {
		{ .iov_base = &header, .iov_len = sizeof(header) },
		{ .iov_base = (void *)(uintptr_t)data, .iov_len = length },
	};

	return io_sendv(c->fd, iov, length ? 2 : 1, 0);
}

static bool known(const struct offer *offer, const char *name, uint32_t length)
{
	return length == 0 || (strlen(offer->name) == length && memcmp(offer->name, name, length) == 0);
}

static uint32_t read32(const char *data)
{
	uint32_t value;

	memcpy(&value, data, sizeof(value));
	return be32toh(value);
}

static uint16_t read16(const char *data)
{
	uint16_t value;

	memcpy(&value, data, sizeof(value));
	return be16toh(value);
}

static int info_text(struct pe_conn *c, uint32_t option, uint16_t type, const char *text)
{
	char data[2 + 4096]; /* the specification's limit of a string */
	size_t length = strlen(text);
	uint16_t type_be = htobe16(type);

	if (length > sizeof(data) - 2)
		length = sizeof(data) - 2;
	memcpy(data, &type_be, 2);
	memcpy(data + 2, text, length);
	return option_reply(c, option, NBD_REP_INFO, data, (uint32_t)(2 + length));
}

static int info_export(struct pe_conn *c, uint32_t option)
{
	struct {
		uint16_t type;
		uint64_t size;
		uint16_t flags;
	} __attribute__((packed)) data = { htobe16(NBD_INFO_EXPORT), htobe64(c->size), htobe16(c->flags) };

	return option_reply(c, option, NBD_REP_INFO, &data, sizeof(data));
}

static int info_block_size(struct pe_conn *c, uint32_t option)
{
	struct {
		uint16_t type;
		uint32_t minimum, preferred, maximum;
	} __attribute__((packed))
	data = { htobe16(NBD_INFO_BLOCK_SIZE), htobe32(1), htobe32(PREFERRED_BLOCK), htobe32(PE_REQUEST_MAX) };

	return option_reply(c, option, NBD_REP_INFO, &data, sizeof(data));
}

/* NBD_OPT_INFO and NBD_OPT_GO: u32 length of the name, name, u16 number of requests, u16 each. */
static int go(struct pe_conn *c, const struct offer *offer, uint32_t option, const char *data, uint32_t length)
{
	uint32_t name_length = length >= 6 ? read32(data) : 0;
	const char *requests = data + 4 + name_length;
	int err;

	if (length < 6 || name_length > length - 6 || length != 6 + name_length + 2U * read16(requests))
		return option_reply(c, option, NBD_REP_ERR_INVALID, NULL, 0);
	if (!known(offer, data + 4, name_length))
		return option_reply(c, option, NBD_REP_ERR_UNKNOWN, NULL, 0);
	err = info_export(c, option);
	if (!err)
		err = info_block_size(c, option);
	for (unsigned i = 0; !err && i < read16(requests); i++) {
		uint16_t type = read16(requests + 2 + 2 * i);

		if (type == NBD_INFO_NAME)
			err = info_text(c, option, type, offer->name);
		else if (type == NBD_INFO_DESCRIPTION)
			err = info_text(c, option, type, offer->description);
	}
	if (!err)
		err = option_reply(c, option, NBD_REP_ACK, NULL, 0);
	return err ? err : option == NBD_OPT_GO ? TRANSMISSION : NEXT_OPTION;
}

static int list(struct pe_conn *c, const struct offer *offer, uint32_t option, uint32_t length)
{
	char data[4 + 4096];
	uint32_t name_length = (uint32_t)strlen(offer->name);
	uint32_t name_length_be = htobe32(name_length);
	int err;

	if (length || name_length > sizeof(data) - 4)
		return option_reply(c, option, NBD_REP_ERR_INVALID, NULL, 0);
	memcpy(data, &name_length_be, 4);
	memcpy(data + 4, offer->name, name_length);
	err = option_reply(c, option, NBD_REP_SERVER, data, 4 + name_length);
	return err ? err : option_reply(c, option, NBD_REP_ACK, NULL, 0);
}

/* The oldest way into transmission: no reply but the export itself, and no way to say that it does not exist. */
static int export_name(struct pe_conn *c, const struct offer *offer, const char *name, uint32_t length, bool zeroes)
{
	struct {
		uint64_t size;
		uint16_t flags;
		char zeroes[124];
	} __attribute__((packed)) data = { .size = htobe64(c->size), .flags = htobe16(c->flags) };
	int err;

	if (!known(offer, name, length))
		return -ENOENT;
	err = io_send(c->fd, &data, zeroes ? sizeof(data) : sizeof(data) - sizeof(data.zeroes), 0);
	return err ? err : TRANSMISSION;
}

/* One option. */
static int negotiate(struct pe_conn *c, const struct offer *offer, bool zeroes)
{
	char data[OPTION_MAX];
	struct nbd_option header;
	uint32_t option, length;
	int err = receive(c, offer, &header, sizeof(header));

	if (!err)
		err = limit(c, offer, SO_SNDTIMEO); /* for what is answered to it */

	if (err == -ENODATA)
		return CLIENT_DONE; /* hung up between two options: rude, but in order */
	if (err)
		return err;
	if (be64toh(header.magic) != NBD_IHAVEOPT)
		return -EPROTO;
	option = be32toh(header.option);
	length = be32toh(header.length);
	if (length > PE_REQUEST_MAX)
		return -EPROTO;
	if (length > sizeof(data)) {
		err = discard(c, offer, length);
		if (err || option == NBD_OPT_EXPORT_NAME)
			return err ? err : -ENOENT;
		return option_reply(c, option, NBD_REP_ERR_TOO_BIG, NULL, 0);
	}
	err = length ? receive(c, offer, data, length) : 0;
	if (err)
		return err == -ENODATA ? -ECONNRESET : err;
	switch (option) {
	case NBD_OPT_EXPORT_NAME:
		return export_name(c, offer, data, length, zeroes);
	case NBD_OPT_ABORT:
		(void)option_reply(c, option, NBD_REP_ACK, NULL, 0); /* the client may be gone already */
		return CLIENT_DONE;
	case NBD_OPT_LIST:
		return list(c, offer, option, length);
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		return go(c, offer, option, data, length);
	default:
		return option_reply(c, option, NBD_REP_ERR_UNSUP, NULL, 0);
	}
}

int pe_conn_handshake(pe_conn *c, const char *name, const char *description, uint32_t timeout)
{
	struct offer offer = { name, description, now_ns() + (uint64_t)timeout * 1000000U };
	struct {
		uint64_t magic, option_magic;
		uint16_t flags;
	} __attribute__((packed))
	hello = { htobe64(NBD_MAGIC), htobe64(NBD_IHAVEOPT), htobe16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES) };
	uint32_t flags;
	int result;

	c->size = (c->size + CONN_SECTOR - 1) / CONN_SECTOR * CONN_SECTOR;
	result = limit(c, &offer, SO_SNDTIMEO);
	if (!result)
		result = io_send(c->fd, &hello, sizeof(hello), 0);
	if (!result)
		result = receive(c, &offer, &flags, sizeof(flags));
	if (result)
		return result == -ENODATA ? PE_CLIENT_DONE : result;
	flags = be32toh(flags);
	if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
		return -EPROTO;
	while (result == NEXT_OPTION)
		result = negotiate(c, &offer, !(flags & NBD_FLAG_NO_ZEROES));
	set_timeout(c->fd, SO_RCVTIMEO, 0);
	set_timeout(c->fd, SO_SNDTIMEO, 0);
	return result < 0 ? result : result == TRANSMISSION ? PE_TRANSMISSION : PE_CLIENT_DONE;
}
