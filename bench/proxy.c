/*
 * A TCP proxy on loopback that behaves like a distant network: http/proxy.py says how it is used.
 *
 *     proxy TARGET-PORT DELAY-US RATE-BITS STATS LOG
 *
 * DELAY-US is a round trip's: half of it is added each way, to every byte, however many are on their way. A new
 * connection costs one round trip more, as TCP's handshake does. RATE-BITS (bits a second, 0: no bound) is one line from
 * the target that all connections share in turns of 16 KiB. TCP's slow start is not imitated. Prints the port it
 * listens on. STATS is a file of four 64-bit counters, kept up to date; LOG gets a line for each request.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	PIECE = 256 << 10, /* read at once where there is no rate */
	TURN = 16 << 10, /* on a line with a rate */
	QUEUE_MAX = 32 << 20, /* bytes on their way in one direction of one connection */
	BURST_NS = 5000000, /* how much of an unused line may be made up for: the timer's inaccuracy */
};

struct piece {
	struct piece *next;
	uint64_t due;
	size_t length, sent;
	char bytes[];
};

struct way {
	int from, to;
	bool down; /* from the target to the client */
	bool readable, writable, eof, done, fresh;
	uint64_t eof_due;
	size_t queued;
	struct piece *first, **last;
};

struct pair {
	struct pair *next;
	unsigned number;
	bool broken;
	struct way up, down;
};

struct stats {
	uint64_t connections, requests, up, down;
};

static struct pair *pairs;
static struct stats *stats;
static FILE *request_log;
static uint64_t half_delay, rate, line_free;
static int poller;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static void note_request(const struct pair *pair, const char *bytes, size_t length)
{
	char head[4096], *line_end, *range;
	size_t n = length < sizeof(head) - 1 ? length : sizeof(head) - 1;

	if (n < 5 || (memcmp(bytes, "GET ", 4) && memcmp(bytes, "HEAD ", 5)))
		return;
	memcpy(head, bytes, n);
	head[n] = 0;
	stats->requests++;
	range = strcasestr(head, "\r\nrange: bytes=");
	if (range) {
		range += strlen("\r\nrange: bytes=");
		range[strcspn(range, "\r\n")] = 0;
	}
	line_end = strstr(head, " HTTP/");
	if (line_end)
		*line_end = 0;
	fprintf(request_log, "%.6f %u %s %s\n", (double)now_ns() / 1e9, pair->number, head, range ? range : "-");
	fflush(request_log);
}

/* Returns whether something was moved. */
static bool take(struct pair *pair, struct way *way, uint64_t now)
{
	size_t size = rate && way->down ? TURN : PIECE;
	struct piece *piece;
	ssize_t n;

	if (!way->readable || way->eof || way->queued >= QUEUE_MAX)
		return false;
	if (rate && way->down && line_free > now)
		return false;
	piece = malloc(sizeof(*piece) + size);
	if (!piece)
		die("malloc");
	n = recv(way->from, piece->bytes, size, MSG_DONTWAIT);
	if (n <= 0) {
		free(piece);
		if (n < 0 && errno == EAGAIN) {
			way->readable = false;
			return false;
		}
		way->eof = true;
		way->eof_due = now + half_delay;
		pair->broken |= n < 0;
		return true;
	}
	if ((size_t)n < size / 2) { /* what is queued for long shall not hold more than it needs */
		struct piece *smaller = realloc(piece, sizeof(*piece) + (size_t)n);

		piece = smaller ? smaller : piece;
	}
	piece->next = NULL;
	piece->length = (size_t)n;
	piece->sent = 0;
	piece->due = now + half_delay;
	if (rate && way->down) {
		if (line_free + BURST_NS < now)
			line_free = now - BURST_NS;
		line_free += (uint64_t)n * 8000000000U / rate;
		if (line_free > now)
			piece->due = line_free + half_delay;
	}
	if (!way->down) {
		if (way->fresh)
			piece->due += 2 * half_delay;
		way->fresh = false;
		note_request(pair, piece->bytes, piece->length);
	}
	*(way->down ? &stats->down : &stats->up) += (uint64_t)n;
	*way->last = piece;
	way->last = &piece->next;
	way->queued += piece->length;
	return true;
}

static bool give(struct pair *pair, struct way *way, uint64_t now)
{
	struct piece *piece = way->first;
	ssize_t n;

	if (!piece) {
		if (way->eof && !way->done && way->eof_due <= now) {
			shutdown(way->to, SHUT_WR);
			way->done = true;
			return true;
		}
		return false;
	}
	if (!way->writable || piece->due > now)
		return false;
	n = send(way->to, piece->bytes + piece->sent, piece->length - piece->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0 && errno == EAGAIN) {
		way->writable = false;
		return false;
	}
	if (n < 0) {
		pair->broken = true;
		return false;
	}
	piece->sent += (size_t)n;
	way->queued -= (size_t)n;
	if (piece->sent == piece->length) {
		way->first = piece->next;
		if (!way->first)
			way->last = &way->first;
		free(piece);
	}
	return true;
}

static void watch(int fd, void *data)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = data };

	if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

static void init_way(struct way *way, int from, int to, bool down)
{
	*way = (struct way){ .from = from, .to = to, .down = down, .readable = true, .writable = true, .fresh = true };
	way->last = &way->first;
}

static void welcome(int listener, const struct sockaddr_in *target)
{
	int client = accept(listener, NULL, NULL), server = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	struct pair *pair = calloc(1, sizeof(*pair));

	if (client < 0 || server < 0 || !pair || connect(server, (const struct sockaddr *)target, sizeof(*target)))
		die("connect");
	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	pair->number = (unsigned)++stats->connections;
	init_way(&pair->up, client, server, false);
	init_way(&pair->down, server, client, true);
	pair->next = pairs;
	pairs = pair;
	/* An event says too little when it names a pair only, so an event wakes all four ends: a vain try is cheap. */
	watch(client, pair);
	watch(server, pair);
}

static void discard(struct pair *pair)
{
	for (struct way *way = &pair->up;; way = &pair->down) {
		while (way->first) {
			struct piece *next = way->first->next;

			free(way->first);
			way->first = next;
		}
		if (way == &pair->down)
			break;
	}
	close(pair->up.from);
	close(pair->up.to);
	free(pair);
}

static void reap(void)
{
	struct pair **link = &pairs;

	while (*link) {
		struct pair *pair = *link;

		if (pair->broken || (pair->up.done && pair->down.done)) {
			*link = pair->next;
			discard(pair);
		} else {
			link = &pair->next;
		}
	}
}

/* Each connection in turn, the first one changing, so that none is preferred on the line. */
static void rotate(void)
{
	struct pair *first = pairs, **end = &pairs;

	if (!first || !first->next)
		return;
	while (*end)
		end = &(*end)->next;
	pairs = first->next;
	first->next = NULL;
	*end = first;
}

static void move_all(void)
{
	bool moved = true;

	while (moved) {
		moved = false;
		for (struct pair *pair = pairs; pair; pair = pair->next) {
			uint64_t now = now_ns();

			moved |= give(pair, &pair->up, now);
			moved |= give(pair, &pair->down, now);
			moved |= take(pair, &pair->up, now);
			moved |= take(pair, &pair->down, now);
		}
		rotate();
	}
	reap();
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* When something is to be done without an event; UINT64_MAX: never. */
static uint64_t next_due(void)
{
	uint64_t due = UINT64_MAX;

	for (struct pair *pair = pairs; pair; pair = pair->next) {
		for (struct way *way = &pair->up;; way = &pair->down) {
			if (way->first && way->writable)
				due = earlier(due, way->first->due);
			else if (!way->first && way->eof && !way->done)
				due = earlier(due, way->eof_due);
			if (rate && way->down && way->readable && !way->eof && way->queued < QUEUE_MAX)
				due = earlier(due, line_free);
			if (way == &pair->down)
				break;
		}
	}
	return due;
}

static void wait_for_events(int listener, const struct sockaddr_in *target)
{
	struct epoll_event events[64];
	uint64_t due = next_due(), now = now_ns(), left = due > now ? due - now : 0;
	struct timespec timeout = { .tv_sec = (time_t)(left / 1000000000U), .tv_nsec = (long)(left % 1000000000U) };
	int count = epoll_pwait2(poller, events, 64, due == UINT64_MAX ? NULL : &timeout, NULL);

	for (int i = 0; i < count; i++) {
		struct pair *pair = events[i].data.ptr;

		if (!pair) {
			welcome(listener, target);
			continue;
		}
		pair->up.readable = pair->up.writable = pair->down.readable = pair->down.writable = true;
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) }, target = address;
	struct epoll_event event = { .events = EPOLLIN };
	socklen_t length = sizeof(address);
	int listener, file;

	if (argc != 6)
		return 2;
	prctl(PR_SET_PDEATHSIG, 15);
	prctl(PR_SET_TIMERSLACK, 1);
	if (nice(-15) == -1 && errno == EPERM)
		errno = 0; /* a network does not wait for a CPU; without root it has to */
	target.sin_port = htons((uint16_t)atoi(argv[1]));
	half_delay = strtoull(argv[2], NULL, 10) * 1000 / 2;
	rate = strtoull(argv[3], NULL, 10);
	file = open(argv[4], O_RDWR | O_CREAT, 0600);
	if (file < 0 || ftruncate(file, sizeof(*stats)))
		die(argv[4]);
	stats = mmap(NULL, sizeof(*stats), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	request_log = fopen(argv[5], "w");
	poller = epoll_create1(0);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (stats == MAP_FAILED || !request_log || poller < 0 || listener < 0)
		die("setup");
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 512))
		die("listen");
	if (getsockname(listener, (struct sockaddr *)&address, &length) ||
	    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event))
		die("listener");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	for (;;) {
		wait_for_events(listener, &target);
		move_all();
	}
}
