/* Full-length I/O: all of the bytes or an error, EINTR and short counts dealt with. 0 or -errno. */
#ifndef PE_IO_H
#define PE_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* The vector is used up on the way. flags are added to MSG_NOSIGNAL. */
int io_sendv(int fd, struct iovec *iov, int count, int flags);
/*
 * Sends at most so many bytes of the vector, which is what is left then, and waits for nothing: -EAGAIN when the socket
 * takes no more now.
 */
enum { IO_DONE = 0, IO_MORE = 1 };
int io_sendv_now(int fd, struct iovec **iov, int *count, size_t most);
/* Until the socket takes more, or is over. */
int io_wait_writable(int fd);
int io_send(int fd, const void *buffer, size_t length, int flags);
int io_pwrite(int fd, const void *buffer, size_t length, uint64_t offset);
/* -EIO when the file ends before the range does. */
int io_pread(int fd, void *buffer, size_t length, uint64_t offset);
int io_sendfile(int out, int in, uint64_t offset, uint64_t length);

#endif
