#define _GNU_SOURCE
#include "fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Never freed, since a handler may be looking at it: used again. */
struct guard {
	struct guard *next;
	uintptr_t start; /* atomic; 0: unused */
	size_t length; /* atomic */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct guard *guards; /* atomic */
static struct sigaction before;

static void pass_on(int number, siginfo_t *info, void *context)
{
	if (before.sa_flags & SA_SIGINFO)
		before.sa_sigaction(number, info, context);
	else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
		before.sa_handler(number);
	else
		sigaction(number, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL); /* it happens again at once */
}

static void on_fault(int number, siginfo_t *info, void *context)
{
	int saved = errno;

	for (struct guard *g = __atomic_load_n(&guards, __ATOMIC_ACQUIRE); g; g = g->next) {
		uintptr_t start = __atomic_load_n(&g->start, __ATOMIC_ACQUIRE);
		size_t length = __atomic_load_n(&g->length, __ATOMIC_RELAXED);

		if (!start || (uintptr_t)info->si_addr - start >= length)
			continue;
		if (mmap((void *)start, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			 0) == MAP_FAILED)
			break;
		errno = saved;
		return;
	}
	pass_on(number, info, context);
	errno = saved;
}

/* Under the lock. Another handler may have been set since; it is the previous one then. */
static int install(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
	struct sigaction now;

	if (sigaction(SIGBUS, NULL, &now))
		return -errno;
	if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_fault)
		return 0;
	before = now;
	sigemptyset(&action.sa_mask);
	return sigaction(SIGBUS, &action, NULL) ? -errno : 0;
}

/* Under the lock. */
static struct guard *unused(void)
{
	struct guard *g = guards;

	while (g && g->start)
		g = g->next;
	if (g)
		return g;
	g = calloc(1, sizeof(*g));
	if (g) {
		g->next = guards;
		__atomic_store_n(&guards, g, __ATOMIC_RELEASE);
	}
	return g;
}

int fault_guard(void *start, size_t length)
{
	struct guard *g;
	int err;

	pthread_mutex_lock(&lock);
	err = install();
	g = err ? NULL : unused();
	if (g) {
		__atomic_store_n(&g->length, length, __ATOMIC_RELAXED);
		__atomic_store_n(&g->start, (uintptr_t)start, __ATOMIC_RELEASE);
	} else if (!err) {
		err = -ENOMEM;
	}
	pthread_mutex_unlock(&lock);
	return err;
}

void fault_unguard(const void *start)
{
	pthread_mutex_lock(&lock);
	for (struct guard *g = guards; g; g = g->next)
		if (g->start == (uintptr_t)start)
			__atomic_store_n(&g->start, 0, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&lock);
}
