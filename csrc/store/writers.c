#define _GNU_SOURCE
#include "writers.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef FAN_MARK_EVICTABLE
#define FAN_MARK_EVICTABLE 0x200
#endif

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int group = -1;
static pid_t owner; /* of the group: a forked process needs its own */
static unsigned watched; /* files, counted once for each store that has one */
static struct writers_news news;

/* Under the lock. Without FAN_REPORT_FID each event would open the file; with it the group needs no privilege. */
static bool open_group(void)
{
	if (group >= 0 && owner == getpid())
		return true;
	group = fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_NONBLOCK | FAN_CLOEXEC, 0);
	owner = getpid();
	watched = 0;
	return group >= 0;
}

/* Under the lock. */
static void close_unused(void)
{
	if (watched || group < 0)
		return;
	close(group);
	group = -1;
}

/* On a network's or a stacked filesystem others may write where this kernel, or this inode, does not see it. */
static bool can_be_watched(int fd)
{
	static const __fsword_t known[] = { EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC,
					    TMPFS_MAGIC };
	struct statfs fs;
	struct stat st;

	/* Of a file in memory without a name newer kernels tell nothing, and say nothing of that. */
	if (fstatfs(fd, &fs) || fstat(fd, &st) || !st.st_nlink)
		return false;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (fs.f_type == known[i])
			return true;
	return false;
}

bool writers_watch(int fd)
{
	bool added;

	if (!can_be_watched(fd))
		return false;
	pthread_mutex_lock(&lock);
	/* There is one mark, however many stores have the file; it goes with the inode or the group. */
	added = open_group() &&
		!fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_EVICTABLE, FAN_MODIFY | FAN_OPEN, fd, NULL);
	watched += added;
	close_unused();
	pthread_mutex_unlock(&lock);
	return added;
}

void writers_unwatch(void)
{
	pthread_mutex_lock(&lock);
	if (owner == getpid() && watched) { /* a forked process may end what its parent began */
		watched--;
		close_unused();
	}
	pthread_mutex_unlock(&lock);
}

static void anything(void)
{
	news.opened++;
	news.written++;
}

/* Under the lock. What is not certainly this process's own counts as another's. */
static void take_in(const char *events, size_t length)
{
	struct fanotify_event_metadata event; /* a copy: those with a file handle of 28 bytes are not aligned */

	for (size_t at = 0; at + sizeof(event) <= length; at += event.event_len) {
		memcpy(&event, events + at, sizeof(event));
		if (event.vers != FANOTIFY_METADATA_VERSION || event.event_len < sizeof(event)) {
			anything();
			return;
		}
		if (event.mask & FAN_Q_OVERFLOW) {
			anything();
		} else if (event.pid != owner) {
			news.opened += !!(event.mask & FAN_OPEN);
			news.written += !!(event.mask & FAN_MODIFY);
		}
	}
}

struct writers_news writers_news(void)
{
	struct writers_news found;
	char events[4096];
	ssize_t n;

	pthread_mutex_lock(&lock);
	do {
		errno = EBADF;
		n = owner == getpid() ? read(group, events, sizeof(events)) : -1;
		if (n > 0)
			take_in(events, (size_t)n);
		else if (n == 0 || errno != EAGAIN)
			anything();
	} while (n > 0);
	found = news;
	pthread_mutex_unlock(&lock);
	return found;
}

bool writers_are_only_us(int fd)
{
	/* Another opener in between waits for the second call; the signal that reports it is one that is ignored. */
	if (fcntl(fd, F_SETSIG, SIGURG) || fcntl(fd, F_SETLEASE, F_WRLCK))
		return false;
	return !fcntl(fd, F_SETLEASE, F_UNLCK);
}
