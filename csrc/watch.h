/*
 * Tells what other processes write to a file from what this one does, which a ctime does not: the kernel's word for each
 * change, with the process that made it (fanotify(7), since Linux 5.19 as it is used here). One group for the process, since
 * a user may have only 128; so what is told is that one of the files was changed.
 *
 * A write is told of when its system call is done; one through a mapping, or by io_submit(2), never is.
 */
#ifndef PE_WATCH_H
#define PE_WATCH_H

#include <stdbool.h>
#include <stdint.h>

/* Watches the file of fd for as long as somebody has it open. false: that cannot be had here. */
bool watch_add(int fd);
/* Another number than before: somebody else may have written to a watched file since. Any thread. */
uint64_t watch_changes(void);

#endif
