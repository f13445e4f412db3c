/* Runs that no read has asked for. */
#ifndef PE_FILL_H
#define PE_FILL_H

#include "store.h"

/* Does f, which no read asked for, have to give way to a read that waits for other bytes? The store's lock is held. */
bool fill_gives_way(const struct pe_store *s, const struct flight *f);

#endif
