/* Reads that wait for what other processes have in flight. */
#ifndef PE_PEERS_H
#define PE_PEERS_H

#include "store.h"

/* May this read be fetched although another process says that it is doing so? The store's lock is held. */
bool peers_are_slow(const struct pe_store *s, const struct waiter *w);

#endif
