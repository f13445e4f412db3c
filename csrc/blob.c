/* Chunked sendfile: a blob's range to any file descriptor, as it becomes present. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "io.h"
#include "store.h"

enum {
	CHUNK = 1 << 20, /* waited for as one */
	BOUNCE = 256 << 10, /* copied at once where sendfile(2) does not reach */
};

/* sendfile(2) refuses some targets, a file opened with O_APPEND among them: those get a plain copy. */
static ssize_t copy(int out_fd, int in_fd, uint64_t offset, size_t length)
{
	char *buffer = malloc(BOUNCE);
	ssize_t n;

	if (!buffer)
		return -ENOMEM;
	do {
		n = pread(in_fd, buffer, length < BOUNCE ? length : BOUNCE, (off_t)offset);
	} while (n < 0 && errno == EINTR);
	if (n > 0) {
		ssize_t wrote;

		do {
			wrote = write(out_fd, buffer, (size_t)n);
		} while (wrote < 0 && errno == EINTR);
		n = wrote;
	}
	n = n < 0 ? -errno : n;
	free(buffer);
	return n;
}

static ssize_t send_some(int out_fd, int in_fd, uint64_t offset, size_t length)
{
	off_t at = (off_t)offset;
	ssize_t n;

	do {
		n = sendfile(out_fd, in_fd, &at, length);
	} while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EINVAL)
		n = copy(out_fd, in_fd, offset, length);
	else if (n < 0)
		n = -errno;
	return n ? n : -EIO; /* the data file ends before the blob does */
}

int64_t pe_store_sendfile(pe_store *s, int out_fd, uint64_t offset, uint64_t count, uint32_t timeout)
{
	uint64_t deadline = now_ns() + (uint64_t)timeout * 1000000U;
	uint64_t done = 0;
	int err = 0;

	if (count == 0 || offset >= s->size || count > s->size - offset)
		return -EINVAL;
	while (!err && done < count) {
		uint64_t length = count - done < CHUNK ? count - done : CHUNK;
		uint64_t now = now_ns();

		err = pe_store_wait(s, offset + done, length, now < deadline ? (uint32_t)((deadline - now) / 1000000U) : 0);
		while (!err && length) {
			ssize_t n = send_some(out_fd, s->data_fd, offset + done, (size_t)length);

			if (n < 0) {
				err = (int)n;
				break;
			}
			done += (uint64_t)n;
			length -= (uint64_t)n;
		}
	}
	__atomic_fetch_add(&s->served, done, __ATOMIC_RELAXED);
	return done ? (int64_t)done : err;
}
