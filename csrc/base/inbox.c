#define _GNU_SOURCE
#include "inbox.h"

#include "clock.h"

void inbox_init(struct inbox *inbox)
{
	pthread_mutex_init(&inbox->lock, NULL);
	cond_init(&inbox->arrived);
	inbox->first = NULL;
	inbox->last = &inbox->first;
	inbox->closed = inbox->gone = false;
}

void inbox_destroy(struct inbox *inbox)
{
	pthread_mutex_destroy(&inbox->lock);
	pthread_cond_destroy(&inbox->arrived);
}

void inbox_put(struct inbox *inbox, struct inbox_item *item)
{
	pthread_mutex_lock(&inbox->lock);
	item->next = NULL;
	*inbox->last = item;
	inbox->last = &item->next;
	pthread_cond_signal(&inbox->arrived);
	pthread_mutex_unlock(&inbox->lock);
}

void inbox_close(struct inbox *inbox)
{
	pthread_mutex_lock(&inbox->lock);
	inbox->closed = true;
	pthread_cond_broadcast(&inbox->arrived);
	pthread_mutex_unlock(&inbox->lock);
}

/* Under the lock. */
static struct inbox_item *empty(struct inbox *inbox)
{
	struct inbox_item *items = inbox->first;

	inbox->first = NULL;
	inbox->last = &inbox->first;
	return items;
}

struct inbox_item *inbox_take(struct inbox *inbox)
{
	struct inbox_item *items;

	pthread_mutex_lock(&inbox->lock);
	while (!inbox->first && !inbox->closed)
		pthread_cond_wait(&inbox->arrived, &inbox->lock);
	items = empty(inbox);
	pthread_mutex_unlock(&inbox->lock);
	return items;
}

struct inbox_item *inbox_take_until(struct inbox *inbox, uint64_t deadline)
{
	struct inbox_item *items;

	pthread_mutex_lock(&inbox->lock);
	while (!inbox->first && !inbox->closed && now_ns() < deadline)
		cond_wait_until(&inbox->arrived, &inbox->lock, deadline);
	items = empty(inbox);
	pthread_mutex_unlock(&inbox->lock);
	return items;
}
