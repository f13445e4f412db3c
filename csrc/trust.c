#define _GNU_SOURCE
#include "trust.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "io.h"
#include "store.h"
#include "sum.h"

enum {
	WORD_GRANULES = 32,
	BATCH = 64, /* granules read and compared at once */
};

/* So long after it was first seen a ctime says that nothing was written since: several ticks of any kernel's clock. */
static const uint64_t settle_time = 50000000;
/* Some filesystems keep whole seconds only. */
static const uint64_t settle_time_of_seconds = 2000000000;
/* So long one write(2), which moves the ctime once, may take somebody else who has the file open. */
static const uint64_t settle_time_of_shared = 10000000000;
/* Between two looks for somebody else who has the file open. */
static const uint64_t ask_interval = 50000000;
/* Where the file could not be watched it is tried again after as long. */
static const uint64_t watch_interval = 1000000000;

int trust_open(struct trust *t, int sums_fd, uint64_t sums_offset, uint64_t granules)
{
	memset(t, 0, sizeof(*t));
	t->sums_fd = sums_fd;
	t->sums_offset = sums_offset;
	t->size = UINT64_MAX;
	t->epoch = 1;
	if (sums_fd >= 0) {
		t->length = (granules + WORD_GRANULES - 1) / WORD_GRANULES * sizeof(uint64_t);
		t->word = mmap(NULL, t->length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			       -1, 0);
		if (t->word == MAP_FAILED) {
			t->word = NULL;
			return -errno;
		}
	}
	pthread_mutex_init(&t->lock, NULL);
	return 0;
}

/* Under the lock. */
static void end_watch(struct trust *t, enum watched next)
{
	if (t->watched == WATCHED)
		watch_end();
	t->watched = next;
}

void trust_close(struct trust *t)
{
	end_watch(t, WATCH_NEVER);
	if (t->word)
		munmap(t->word, t->length);
	pthread_mutex_destroy(&t->lock);
}

static uint64_t stamp_of(const struct stat *st)
{
	return (uint64_t)st->st_ctim.tv_sec * 1000000000U + (uint64_t)st->st_ctim.tv_nsec;
}

static void next_epoch(struct trust *t)
{
	__atomic_store_n(&t->settled, 0, __ATOMIC_RELEASE);
	t->epoch = t->epoch == UINT32_MAX ? 1 : t->epoch + 1;
	t->seen = now_ns();
}

/*
 * Has somebody else written? Where nobody watches that is not known, and yes. Who has opened the file may be writing:
 * the ctime tells from the beginning on, the watch at the end only, so that is the end of the watch. Under the lock.
 */
static bool others_wrote(struct trust *t)
{
	struct watch_news before = t->news;

	if (t->watched != WATCHED)
		return true;
	t->news = watch_news();
	if (t->news.opened != before.opened)
		end_watch(t, WATCH_NEVER);
	return t->news.opened != before.opened || t->news.written != before.written;
}

/* Has the ctime been the same for so long that it tells of all that was written since? Under the lock. */
static bool is_settled(struct pe_store *s)
{
	struct trust *t = &s->trust;
	uint64_t now = now_ns(), age = now - t->seen;

	if (age < (t->stamp % 1000000000U ? settle_time : settle_time_of_seconds))
		return false;
	if (age >= settle_time_of_shared)
		return true;
	if (now - t->asked < ask_interval)
		return false;
	t->asked = now;
	return watch_is_alone(s->data_fd);
}

/*
 * The file has changed, or may be about to settle. Under the lock. It is looked at again, since looks outside the lock
 * have no order; and the watch after the file, so that what the file shows of others is not taken for our own.
 */
static uint32_t look_again(struct pe_store *s)
{
	struct trust *t = &s->trust;
	struct stat st;
	bool watched = t->watched == WATCHED, failed, others, own;

	failed = fstat(s->data_fd, &st);
	others = others_wrote(t);
	own = !others && (t->writing || t->wrote);
	t->wrote = false;
	if (failed) {
		next_epoch(t);
		return 0;
	}
	if ((uint64_t)st.st_size != t->size || (stamp_of(&st) != t->stamp && !own) || (watched && others)) {
		next_epoch(t);
		if ((uint64_t)st.st_size < s->size && (uint64_t)st.st_size < t->size)
			store_spoil(s, granule_of((uint64_t)st.st_size), s->map.granules);
	} else if (stamp_of(&st) != t->stamp) { /* nobody but this store has written: the epoch goes on */
		__atomic_store_n(&t->settled, 0, __ATOMIC_RELEASE);
		t->seen = now_ns();
	} else if (!t->settled && is_settled(s)) {
		__atomic_store_n(&t->settled, t->epoch, __ATOMIC_RELEASE);
		/* From here on the ctime tells all; the next landing, if there is one, watches anew. */
		if (__atomic_load_n(&s->complete, __ATOMIC_ACQUIRE) && !t->writing)
			end_watch(t, WATCH_NOT_YET);
	}
	/* In this order, which trust_look reads backwards: who sees the new stamp sees that nothing is settled. */
	__atomic_store_n(&t->size, (uint64_t)st.st_size, __ATOMIC_RELEASE);
	__atomic_store_n(&t->stamp, stamp_of(&st), __ATOMIC_RELEASE);
	return t->watched == WATCHED ? t->epoch : t->settled;
}

uint32_t trust_look(struct pe_store *s)
{
	struct trust *t = &s->trust;
	uint32_t settled;
	struct stat st;

	if (!t->word)
		return 0;
	/* Unsettled, the file is looked at below anyway. */
	if (__atomic_load_n(&t->settled, __ATOMIC_RELAXED) && !fstat(s->data_fd, &st) &&
	    __atomic_load_n(&t->stamp, __ATOMIC_ACQUIRE) == stamp_of(&st) &&
	    __atomic_load_n(&t->size, __ATOMIC_ACQUIRE) == (uint64_t)st.st_size) {
		settled = __atomic_load_n(&t->settled, __ATOMIC_ACQUIRE);
		if (settled)
			return settled;
	}
	pthread_mutex_lock(&t->lock);
	settled = look_again(s);
	pthread_mutex_unlock(&t->lock);
	return settled;
}

void trust_end(struct pe_store *s)
{
	if (!s->trust.word)
		return;
	pthread_mutex_lock(&s->trust.lock);
	next_epoch(&s->trust);
	pthread_mutex_unlock(&s->trust.lock);
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

bool trust_has(const struct trust *t, uint32_t epoch, uint64_t first, uint64_t end)
{
	if (!t->word)
		return true;
	for (; epoch && first < end; first = next_word(first)) {
		uint64_t word = __atomic_load_n(&t->word[first / WORD_GRANULES], __ATOMIC_RELAXED);

		if (word >> 32 != epoch || (word & bits_of(first, end)) != bits_of(first, end))
			return false;
	}
	return epoch;
}

static void add(struct trust *t, uint32_t epoch, uint64_t first, uint64_t end)
{
	for (; epoch && first < end; first = next_word(first)) {
		uint64_t *word = &t->word[first / WORD_GRANULES];
		uint64_t old = __atomic_load_n(word, __ATOMIC_RELAXED), new;

		do {
			new = (uint64_t)epoch << 32 | bits_of(first, end);
			if (old >> 32 == epoch)
				new |= old;
		} while (!__atomic_compare_exchange_n(word, &old, new, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	}
}

int64_t pe_store_epoch(pe_store *s)
{
	return trust_look(s);
}

void pe_store_trust(pe_store *s, uint32_t epoch)
{
	if (s->trust.word)
		add(&s->trust, epoch, 0, s->map.granules);
}

static uint64_t length_of(const struct pe_store *s, uint64_t first, uint64_t end)
{
	return (end * PE_GRANULE < s->size ? end * PE_GRANULE : s->size) - first * PE_GRANULE;
}

/* Reads granules and the sums that they have and should have. */
static int read_sums(struct pe_store *s, uint64_t first, uint64_t end, char *buffer, uint32_t *found, uint32_t *wanted)
{
	const struct trust *t = &s->trust;
	int err = io_pread(s->data_fd, buffer, length_of(s, first, end), first * PE_GRANULE);

	if (!err)
		err = io_pread(t->sums_fd, wanted, (end - first) * sizeof(*wanted),
			       t->sums_offset + first * sizeof(*wanted));
	if (!err)
		sum_granules(buffer, length_of(s, first, end), found);
	return err;
}

/*
 * A granule did not agree with its sum. 0: it does now, since another store was just writing it. 1: it is absent, or
 * has been marked so: spoiled.
 */
static int read_spoiled(struct pe_store *s, uint64_t granule, char *buffer)
{
	uint32_t found, wanted;

	if (!map_has(&s->map, granule, granule + 1)) {
		store_spoil(s, granule, granule); /* nothing more, but "complete" may have to be taken back */
		return 1;
	}
	if (!read_sums(s, granule, granule + 1, buffer, &found, &wanted) && found == wanted)
		return 0;
	store_spoil(s, granule, granule + 1);
	return 1;
}

int trust_read(struct pe_store *s, uint32_t epoch, uint64_t first, uint64_t end, char *buffer)
{
	uint32_t found[BATCH], wanted[BATCH];
	int result = 0;

	if (!s->trust.word)
		return io_pread(s->data_fd, buffer, length_of(s, first, end), first * PE_GRANULE);
	for (uint64_t at = first; at < end; at += BATCH) {
		uint64_t stop = at + BATCH < end ? at + BATCH : end;
		char *bytes = buffer + (at - first) * PE_GRANULE;
		int err = read_sums(s, at, stop, bytes, found, wanted);

		for (uint64_t g = at; g < stop; g++)
			if (err || found[g - at] != wanted[g - at])
				result |= read_spoiled(s, g, bytes + (g - at) * PE_GRANULE);
	}
	if (!result)
		add(&s->trust, epoch, first, end);
	return result;
}

/*
 * Before a write: watches the file, if that is not so already. Not while somebody else has it open, who may be writing:
 * of him the watch would tell at the end only. Under the lock.
 */
static void begin_watch(struct pe_store *s)
{
	struct trust *t = &s->trust;
	enum watched before = t->watched;
	uint64_t now = now_ns();

	if (before == WATCHED || (before == WATCH_NEVER && now - t->tried < watch_interval))
		return;
	t->tried = now;
	t->watched = watch_add(s->data_fd) ? WATCHED : WATCH_NEVER;
	if (t->watched == WATCHED && !watch_is_alone(s->data_fd))
		end_watch(t, WATCH_NEVER);
	if (t->watched == WATCHED && before == WATCH_NEVER)
		next_epoch(t); /* whose writes there were until now is not known */
	t->news = watch_news();
	look_again(s); /* what came before the watch must not pass for our own */
}

uint32_t trust_before_write(struct pe_store *s)
{
	struct trust *t = &s->trust;
	uint32_t epoch = 0;

	if (!t->word)
		return 0;
	pthread_mutex_lock(&t->lock);
	begin_watch(s);
	t->writing++;
	if (t->watched == WATCHED)
		epoch = t->epoch;
	pthread_mutex_unlock(&t->lock);
	return epoch;
}

static int write_sums(const struct trust *t, uint64_t first, const char *bytes, uint64_t length)
{
	uint32_t sums[BATCH];
	int err = 0;

	while (length && !err) {
		uint64_t n = length < BATCH * PE_GRANULE ? length : BATCH * PE_GRANULE;

		sum_granules(bytes, n, sums);
		err = io_pwrite(t->sums_fd, sums, granule_end(n) * sizeof(*sums), t->sums_offset + first * sizeof(*sums));
		first += BATCH;
		bytes += n;
		length -= n;
	}
	return err;
}

int trust_after_write(struct pe_store *s, uint32_t epoch, uint64_t first, const char *bytes, uint64_t length, int err)
{
	struct trust *t = &s->trust;

	if (!t->word)
		return err;
	pthread_mutex_lock(&t->lock);
	t->writing--;
	t->wrote = true;
	pthread_mutex_unlock(&t->lock);
	if (!err)
		err = write_sums(t, first, bytes, length);
	if (!err)
		add(t, epoch, first, first + granule_end(length));
	return err;
}
