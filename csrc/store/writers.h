/*
 * Tells what other processes do to a file from what this one does, which a ctime does not: the kernel's word for each
 * change, with the process that made it (fanotify(7), since Linux 5.19 as it is used here). One group for the process,
 * and only while a file is watched, since a user may have only 128; so what is told is that something was done to one of
 * the files.
 *
 * A write is reported when its system call is done, and one through a mapping never. But a writer has to open the file
 * first, unless it has had it open since before it was watched: a lease tells whether there is such a process.
 */
#ifndef PE_WRITERS_H
#define PE_WRITERS_H

#include <stdbool.h>
#include <stdint.h>

/* Watches the file of fd until writers_unwatch(). false: that cannot be had here. Any thread. */
bool writers_watch(int fd);
/* Once for each writers_watch() that said true. With the last of them the group is closed. Any thread. */
void writers_unwatch(void);
/* A number that has changed: another process has since opened, or may have written to, a watched file. */
struct writers_news {
	uint64_t opened, written;
};
/* Any thread. */
struct writers_news writers_news(void);
/*
 * Does no other process have the file of fd open at this moment, for reading or writing, or mapped? fd is open for both, and the
 * only one of this process. false: that may be, or cannot be known here. Any thread.
 */
bool writers_are_only_us(int fd);

#endif
