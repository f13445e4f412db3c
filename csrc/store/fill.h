/* Runs that nobody has asked for. */
#ifndef PE_FILL_H
#define PE_FILL_H

#include "store.h"

/* Has f, which nobody asked for, to give way to somebody who waits for other bytes? The store's lock is held. */
bool fill_gives_way(const struct pe_store *s, const struct flight *f);

#endif
