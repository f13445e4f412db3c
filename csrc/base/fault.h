/*
 * Shared mappings of files that another process may cut short: to touch what was cut off is a SIGBUS. Of a mapping that is
 * guarded the whole becomes private zeros then, and the thread goes on.
 *
 * The handler is the process's; any other SIGBUS goes to the previous handler.
 */
#ifndef PE_FAULT_H
#define PE_FAULT_H

#include <stddef.h>

/* 0 or -errno. Any thread. */
int fault_guard(void *start, size_t length);
/* Before the mapping ends. */
void fault_unguard(const void *start);

#endif
