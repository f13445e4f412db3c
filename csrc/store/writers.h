/*
 * Tells what other processes do to a file from what this one does, which a ctime does not: the kernel's word for each
 * change, with the process that made it (fanotify(7), since Linux 5.19 as it is used here). One group for the process,
 * and only while a file is watched, since a user may have only 128; so what is told is that something was done to one of
 * the files.
 *
 * A write is told of when its system call is done, and one through a mapping never is. But who is about to do either has
 * to open the file first, unless he has had it open since before it was watched: whether there is somebody who has, a
 * lease tells.
 */
#ifndef PE_WRITERS_H
#define PE_WRITERS_H

#include <stdbool.h>
#include <stdint.h>

/* Watches the file of fd until writers_unwatch(). false: that cannot be had here. Any thread. */
bool writers_watch(int fd);
/* Once for each writers_watch() that said true. With the last of them the group is closed. Any thread. */
void writers_unwatch(void);
/* Somebody else has opened, or may have written to, a watched file since, where a number is another than before. */
struct writers_news {
	uint64_t opened, written;
};
/* Any thread. */
struct writers_news writers_news(void);
/*
 * Has nobody else the file of fd open in this moment, for reading or writing, or mapped? fd is open for both, and the
 * only one of this process. false: that may be, or cannot be known here. Any thread.
 */
bool writers_are_only_us(int fd);

#endif
