/* A thread's own reads. */
#ifndef PE_READ_H
#define PE_READ_H

#include "store.h"

/* As pe_store_read, for bytes that are counted elsewhere. */
int64_t read_copy(struct pe_store *s, void *buffer, uint64_t length, uint64_t offset, uint32_t timeout);

#endif
