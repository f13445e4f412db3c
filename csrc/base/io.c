#define _GNU_SOURCE
#include "io.h"

#include <errno.h>
#include <poll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

/* Takes so many bytes off the beginning of a vector. */
static void advance(struct iovec **iov, int *count, size_t n)
{
	while (*count > 0 && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		++*iov;
		--*count;
	}
	if (*count > 0) {
		(*iov)->iov_base = (char *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
}

static ssize_t send_some(int fd, struct iovec *iov, int count, int flags)
{
	struct msghdr message = { .msg_iov = iov, .msg_iovlen = (size_t)count };
	ssize_t n;

	do
		n = sendmsg(fd, &message, MSG_NOSIGNAL | flags);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

int io_sendv(int fd, struct iovec *iov, int count, int flags)
{
	while (count > 0) {
		ssize_t n = send_some(fd, iov, count, flags);

		if (n < 0)
			return (int)n;
		advance(&iov, &count, (size_t)n);
	}
	return 0;
}

int io_sendv_now(int fd, struct iovec **iov, int *count, size_t most)
{
	size_t left = most, cut = 0;
	int used = 0;
	ssize_t n;

	while (used < *count && left) {
		size_t length = (*iov)[used++].iov_len;

		cut = length > left ? length - left : 0;
		left -= length - cut;
	}
	(*iov)[used - 1].iov_len -= cut;
	n = send_some(fd, *iov, used, MSG_DONTWAIT);
	(*iov)[used - 1].iov_len += cut;
	if (n < 0)
		return (int)n;
	advance(iov, count, (size_t)n);
	return *count > 0 ? IO_MORE : IO_DONE;
}

int io_wait_writable(int fd)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLOUT };

	while (poll(&poll_fd, 1, -1) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

int io_send(int fd, const void *buffer, size_t length, int flags)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)buffer, .iov_len = length };

	return io_sendv(fd, &iov, 1, flags);
}

int io_pwrite(int fd, const void *buffer, size_t length, uint64_t offset)
{
	size_t done = 0;

	while (done < length) {
		ssize_t n = pwrite(fd, (const char *)buffer + done, length - done, (off_t)(offset + done));

		if (n > 0)
			done += (size_t)n;
		else if (n == 0)
			return -ENOSPC;
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

int io_pread(int fd, void *buffer, size_t length, uint64_t offset)
{
	size_t done = 0;

	while (done < length) {
		ssize_t n = pread(fd, (char *)buffer + done, length - done, (off_t)(offset + done));

		if (n > 0)
			done += (size_t)n;
		else if (n == 0)
			return -EIO;
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

int io_sendfile(int out, int in, uint64_t offset, uint64_t length)
{
	off_t at = (off_t)offset;

	while (length) {
		ssize_t n = sendfile(out, in, &at, length < 1 << 30 ? (size_t)length : 1 << 30);

		if (n > 0)
			length -= (uint64_t)n;
		else if (n == 0)
			return -EIO;
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}
