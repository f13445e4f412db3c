/* Time: CLOCK_MONOTONIC in nanoseconds. */
#ifndef PE_CLOCK_H
#define PE_CLOCK_H

#include <pthread.h>
#include <stdint.h>

uint64_t now_ns(void);
/* Condition variables that wait by now_ns()'s clock. */
void cond_init(pthread_cond_t *cond);
void cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline);

#endif
