#define _GNU_SOURCE
#include "checked.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/io.h"

enum {
	WORD_GRANULES = 32,
	BATCH = 64, /* granules read and compared at once */
};

/* So long after it was first seen a ctime says that nothing was written since: several ticks of any kernel's clock. */
static const uint64_t settle_time = 50000000;
/* Some filesystems keep whole seconds only. */
static const uint64_t settle_time_of_seconds = 2000000000;
/* So long may one write(2), which moves the ctime once, of another process that has the file open take. */
static const uint64_t settle_time_of_shared = 10000000000;
/* Between two looks for another process that has the file open. */
static const uint64_t ask_interval = 50000000;
/* Where the file could not be watched it is tried again after as long. */
static const uint64_t watch_interval = 1000000000;

int checked_open(struct checked *c, int data_fd, uint64_t blob_size, int sums_fd, uint64_t sums_offset,
		 const struct bitmap *bitmap)
{
	memset(c, 0, sizeof(*c));
	c->data_fd = data_fd;
	c->blob_size = blob_size;
	c->bitmap = bitmap;
	c->sums_fd = sums_fd;
	c->sums_offset = sums_offset;
	c->size = UINT64_MAX;
	c->epoch = 1;
	if (sums_fd >= 0) {
		c->length = (granule_end(blob_size) + WORD_GRANULES - 1) / WORD_GRANULES * sizeof(uint64_t);
		c->words = mmap(NULL, c->length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				-1, 0);
		if (c->words == MAP_FAILED) {
			c->words = NULL;
			return -errno;
		}
	}
	pthread_mutex_init(&c->lock, NULL);
	return 0;
}

/* Under the lock. */
static void end_watch(struct checked *c, enum watched next)
{
	if (c->watched == WATCHED)
		writers_unwatch();
	c->watched = next;
}

void checked_close(struct checked *c)
{
	end_watch(c, WATCH_NEVER);
	if (c->words)
		munmap(c->words, c->length);
	pthread_mutex_destroy(&c->lock);
}

static uint64_t stamp_of(const struct stat *st)
{
	return (uint64_t)st->st_ctim.tv_sec * 1000000000U + (uint64_t)st->st_ctim.tv_nsec;
}

static void next_epoch(struct checked *c)
{
	__atomic_store_n(&c->settled, 0, __ATOMIC_RELEASE);
	c->epoch = c->epoch == UINT32_MAX ? 1 : c->epoch + 1;
	c->seen = now_ns();
}

/*
 * Has another process written? Without a watch that is not known, so yes. An opener of the file may be writing:
 * the ctime tells from the beginning on, the watch at the end only, so that is the end of the watch. Under the lock.
 */
static bool others_wrote(struct checked *c)
{
	struct writers_news before = c->news;

	if (c->watched != WATCHED)
		return true;
	c->news = writers_news();
	if (c->news.opened != before.opened)
		end_watch(c, WATCH_NEVER);
	return c->news.opened != before.opened || c->news.written != before.written;
}

/* Has the ctime been the same for so long that it tells of all that was written since? Under the lock. */
static bool is_settled(struct checked *c)
{
	uint64_t now = now_ns(), age = now - c->seen;

	if (age < (c->stamp % 1000000000U ? settle_time : settle_time_of_seconds))
		return false;
	if (age >= settle_time_of_shared)
		return true;
	if (now - c->asked < ask_interval)
		return false;
	c->asked = now;
	return writers_are_only_us(c->data_fd);
}

/*
 * The file has changed, or may be about to settle. Under the lock. It is looked at again, since looks outside the lock
 * have no order; and the watch after the file, so that what the file shows of others is not taken for our own.
 */
static uint32_t look_again(struct checked *c, struct granules *lost)
{
	struct stat st;
	bool watched = c->watched == WATCHED, failed, others, own;

	failed = fstat(c->data_fd, &st);
	others = others_wrote(c);
	own = !others && (c->writing || c->wrote);
	c->wrote = false;
	if (failed) {
		next_epoch(c);
		return 0;
	}
	if ((uint64_t)st.st_size != c->size || (stamp_of(&st) != c->stamp && !own) || (watched && others)) {
		next_epoch(c);
		if ((uint64_t)st.st_size < c->blob_size && (uint64_t)st.st_size < c->size)
			*lost = (struct granules){ granule_of((uint64_t)st.st_size), c->bitmap->granules };
	} else if (stamp_of(&st) != c->stamp) { /* only this store has written: the epoch goes on */
		__atomic_store_n(&c->settled, 0, __ATOMIC_RELEASE);
		c->seen = now_ns();
	} else if (!c->settled && is_settled(c)) {
		__atomic_store_n(&c->settled, c->epoch, __ATOMIC_RELEASE);
		/* From here on the ctime tells all; the next landing, if there is one, watches anew. */
		if (bitmap_has(c->bitmap, 0, c->bitmap->granules) && !c->writing)
			end_watch(c, WATCH_NOT_YET);
	}
	/* In this order, which checked_look reads backwards: who sees the new stamp sees that nothing is settled. */
	__atomic_store_n(&c->size, (uint64_t)st.st_size, __ATOMIC_RELEASE);
	__atomic_store_n(&c->stamp, stamp_of(&st), __ATOMIC_RELEASE);
	return c->watched == WATCHED ? c->epoch : c->settled;
}

uint32_t checked_look(struct checked *c, struct granules *lost)
{
	uint32_t settled;
	struct stat st;

	*lost = (struct granules){ 0, 0 };
	if (!c->words)
		return 0;
	/* Unsettled, the file is looked at below anyway. */
	if (__atomic_load_n(&c->settled, __ATOMIC_RELAXED) && !fstat(c->data_fd, &st) &&
	    __atomic_load_n(&c->stamp, __ATOMIC_ACQUIRE) == stamp_of(&st) &&
	    __atomic_load_n(&c->size, __ATOMIC_ACQUIRE) == (uint64_t)st.st_size) {
		settled = __atomic_load_n(&c->settled, __ATOMIC_ACQUIRE);
		if (settled)
			return settled;
	}
	pthread_mutex_lock(&c->lock);
	settled = look_again(c, lost);
	pthread_mutex_unlock(&c->lock);
	return settled;
}

void checked_end(struct checked *c)
{
	if (!c->words)
		return;
	pthread_mutex_lock(&c->lock);
	next_epoch(c);
	pthread_mutex_unlock(&c->lock);
}

/* The bits of [first, end) in the word of first. */
static uint64_t bits_of(uint64_t first, uint64_t end)
{
	uint64_t low = first % WORD_GRANULES;
	uint64_t count = WORD_GRANULES - low < end - first ? WORD_GRANULES - low : end - first;

	return ((1ULL << count) - 1) << low;
}

static uint64_t next_word(uint64_t granule)
{
	return (granule / WORD_GRANULES + 1) * WORD_GRANULES;
}

bool checked_has(const struct checked *c, uint32_t epoch, uint64_t first, uint64_t end)
{
	if (!c->words)
		return true;
	for (; epoch && first < end; first = next_word(first)) {
		uint64_t word = __atomic_load_n(&c->words[first / WORD_GRANULES], __ATOMIC_RELAXED);

		if (word >> 32 != epoch || (word & bits_of(first, end)) != bits_of(first, end))
			return false;
	}
	return epoch;
}

static void add(struct checked *c, uint32_t epoch, uint64_t first, uint64_t end)
{
	for (; epoch && first < end; first = next_word(first)) {
		uint64_t *word = &c->words[first / WORD_GRANULES];
		uint64_t old = __atomic_load_n(word, __ATOMIC_RELAXED), new;

		do {
			new = (uint64_t)epoch << 32 | bits_of(first, end);
			if (old >> 32 == epoch)
				new |= old;
		} while (!__atomic_compare_exchange_n(word, &old, new, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	}
}

void checked_mark_all(struct checked *c, uint32_t epoch)
{
	if (c->words)
		add(c, epoch, 0, c->bitmap->granules);
}

static uint64_t length_of(const struct checked *c, uint64_t first, uint64_t end)
{
	return (end * PE_GRANULE < c->blob_size ? end * PE_GRANULE : c->blob_size) - first * PE_GRANULE;
}

/* Reads granules and the sums that they have and should have. */
static int read_sums(const struct checked *c, uint64_t first, uint64_t end, char *buffer, uint32_t *found,
		     uint32_t *wanted)
{
	int err = io_pread(c->data_fd, buffer, length_of(c, first, end), first * PE_GRANULE);

	if (!err)
		err = io_pread(c->sums_fd, wanted, (end - first) * sizeof(*wanted),
			       c->sums_offset + first * sizeof(*wanted));
	if (!err)
		crc32c_granules(buffer, length_of(c, first, end), found);
	return err;
}

/* A granule did not agree with its sum. Does it now, since another store was just writing it? Else it is spoiled. */
static bool is_right_now(const struct checked *c, uint64_t granule, char *buffer)
{
	uint32_t found, wanted;

	return bitmap_has(c->bitmap, granule, granule + 1) &&
	       !read_sums(c, granule, granule + 1, buffer, &found, &wanted) && found == wanted;
}

int checked_read(struct checked *c, uint32_t epoch, uint64_t first, uint64_t end, char *buffer,
		 struct granules *spoiled)
{
	uint32_t found[BATCH], wanted[BATCH];

	if (!c->words)
		return io_pread(c->data_fd, buffer, length_of(c, first, end), first * PE_GRANULE);
	for (uint64_t at = first; at < end; at += BATCH) {
		uint64_t stop = at + BATCH < end ? at + BATCH : end;
		char *bytes = buffer + (at - first) * PE_GRANULE;
		int err = read_sums(c, at, stop, bytes, found, wanted);

		*spoiled = (struct granules){ stop, stop };
		for (uint64_t g = at; g < stop; g++) {
			bool right = (!err && found[g - at] == wanted[g - at]) ||
				     is_right_now(c, g, bytes + (g - at) * PE_GRANULE);

			if (right && spoiled->first < stop)
				break;
			if (!right)
				*spoiled = (struct granules){ spoiled->first < stop ? spoiled->first : g, g + 1 };
		}
		if (spoiled->first < stop) {
			add(c, epoch, first, spoiled->first);
			return CHECKED_SPOILED;
		}
	}
	add(c, epoch, first, end);
	return CHECKED_RIGHT;
}

/*
 * Before a write: watches the file, if that is not so already. Not while another process has it open, which may be
 * writing: the watch would report that at the end only. Under the lock.
 */
static void begin_watch(struct checked *c, struct granules *lost)
{
	enum watched before = c->watched;
	uint64_t now = now_ns();

	if (before == WATCHED || (before == WATCH_NEVER && now - c->tried < watch_interval))
		return;
	c->tried = now;
	c->watched = writers_watch(c->data_fd) ? WATCHED : WATCH_NEVER;
	if (c->watched == WATCHED && !writers_are_only_us(c->data_fd))
		end_watch(c, WATCH_NEVER);
	if (c->watched == WATCHED && before == WATCH_NEVER)
		next_epoch(c); /* whose writes there were until now is not known */
	c->news = writers_news();
	look_again(c, lost); /* what came before the watch must not pass for our own */
}

uint32_t checked_before_write(struct checked *c, struct granules *lost)
{
	uint32_t epoch = 0;

	*lost = (struct granules){ 0, 0 };
	if (!c->words)
		return 0;
	pthread_mutex_lock(&c->lock);
	begin_watch(c, lost);
	c->writing++;
	if (c->watched == WATCHED)
		epoch = c->epoch;
	pthread_mutex_unlock(&c->lock);
	return epoch;
}

static int write_sums(const struct checked *c, uint64_t first, const char *bytes, uint64_t length)
{
	uint32_t sums[BATCH];
	int err = 0;

	while (length && !err) {
		uint64_t n = length < BATCH * PE_GRANULE ? length : BATCH * PE_GRANULE;

		crc32c_granules(bytes, n, sums);
		err = io_pwrite(c->sums_fd, sums, granule_end(n) * sizeof(*sums),
				c->sums_offset + first * sizeof(*sums));
		first += BATCH;
		bytes += n;
		length -= n;
	}
	return err;
}

int checked_after_write(struct checked *c, uint32_t epoch, uint64_t first, const char *bytes, uint64_t length, int err)
{

	if (!c->words)
		return err;
	pthread_mutex_lock(&c->lock);
	c->writing--;
	c->wrote = true;
	pthread_mutex_unlock(&c->lock);
	if (!err)
		err = write_sums(c, first, bytes, length);
	if (!err)
		add(c, epoch, first, first + granule_end(length));
	return err;
}
