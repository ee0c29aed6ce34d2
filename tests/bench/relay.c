/*
 * relay.c - the yardstick of the benchmarks: a bare epoll relay that parses nothing.
 *
 *   parley-relay PORT
 *
 * A connection says in its first eleven bytes which room it is in (R, eight hex digits, "e" to get
 * its own bytes back or "-", newline) and is answered by ".\n". From then on what it sends goes to
 * the others in that room: to the partner where there are two. The relay does per turn what a chat
 * server has to do at least: one recv() for each readable connection, one send() for each that has
 * output, both level-triggered, on one thread. What a server is slower than this is what its
 * parsing, routing and safety cost. (In rooms of more than two it looks for the last newline, so
 * that the bytes of two senders do not mix.)
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define OUT_SIZE  (256u << 10)		/* bytes waiting for one connection */
#define READ_SIZE (64u << 10)		/* bytes taken in one recv() */
#define EVENTS    256
#define HELLO     11
#define ROOMS     65536			/* hash chains */

struct room {
	uint32_t number, nmembers;
	int first;
	struct room *next;
};

struct conn {				/* index: its descriptor */
	bool live, dirty, want_out, stopped, echo;	/* stopped: somebody's output is full, not read */
	uint8_t nhello;
	int prev, next;			/* in the room, -1: none */
	uint32_t len, cap, held;
	struct room *room;
	char *out, *in;			/* in: the beginning of a line, in big rooms */
	char hello[HELLO];
};

static struct conn *conns;
static struct room *rooms[ROOMS];
static int *dirty, ndirty, nstopped, room_for_conns, ep;
static char input[2 * READ_SIZE];

/* --- rooms --- */

static void room_enter(int i, uint32_t number)
{
	struct room **at = &rooms[number % ROOMS], *r;

	while (*at != NULL && (*at)->number != number)
		at = &(*at)->next;
	if (*at == NULL) {
		*at = calloc(1, sizeof **at);
		if (*at == NULL)
			abort();
		(*at)->number = number;
		(*at)->first = -1;
	}
	r = *at;
	conns[i].room = r;
	conns[i].prev = -1;
	conns[i].next = r->first;
	if (r->first >= 0)
		conns[r->first].prev = i;
	r->first = i;
	r->nmembers++;
}

static void room_leave(int i)
{
	struct conn *c = &conns[i];

	if (c->room == NULL)
		return;
	if (c->prev >= 0)
		conns[c->prev].next = c->next;
	else
		c->room->first = c->next;
	if (c->next >= 0)
		conns[c->next].prev = c->prev;
	c->room->nmembers--;
	c->room = NULL;
}

/* Does another read fit in everybody's output? */
static bool room_ready(const struct room *r)
{
	for (int k = r->first; k >= 0; k = conns[k].next)
		if (conns[k].len + READ_SIZE > OUT_SIZE)
			return false;
	return true;
}

/* --- connections --- */

static void conn_watch(int i)
{
	struct epoll_event ev = {
		.events = (conns[i].stopped ? 0 : EPOLLIN) | (conns[i].want_out ? EPOLLOUT : 0),
		.data.fd = i,
	};

	epoll_ctl(ep, EPOLL_CTL_MOD, i, &ev);
}

static void conn_stop(int i, bool stop)
{
	if (conns[i].stopped == stop)
		return;
	conns[i].stopped = stop;
	nstopped += stop ? 1 : -1;
	conn_watch(i);
}

/* Output went away: those who waited for that may be read again. */
static void room_wake(const struct room *r)
{
	for (int k = r->first; nstopped > 0 && k >= 0; k = conns[k].next)
		if (conns[k].stopped && room_ready(r))
			conn_stop(k, false);
}

static void conn_end(int i)
{
	struct conn *c = &conns[i];
	struct room *r = c->room;

	if (c->stopped)
		nstopped--;
	c->stopped = false;
	room_leave(i);
	if (r != NULL)
		room_wake(r);
	free(c->out);
	free(c->in);
	*c = (struct conn){ .dirty = c->dirty };	/* it may be on the list, and come again */
	close(i);
}

static void conn_accept(int lfd)
{
	int fd = accept4(lfd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };

	if (fd < 0)
		return;
	if (fd >= room_for_conns || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) != 0) {
		close(fd);
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	conns[fd] = (struct conn){ .live = true, .dirty = conns[fd].dirty };
}

/* Appends; false where it does not fit. */
static bool conn_put(int i, const char *data, uint32_t len)
{
	struct conn *c = &conns[i];

	if (c->len + len > OUT_SIZE)
		return false;
	if (c->len + len > c->cap) {
		c->cap = c->len + len < 4096 ? 4096 : c->len + len < 65536 ? 65536 : OUT_SIZE;
		c->out = realloc(c->out, c->cap);
		if (c->out == NULL)
			abort();
	}
	memcpy(c->out + c->len, data, len);
	c->len += len;
	if (!c->dirty) {
		c->dirty = true;
		dirty[ndirty++] = i;
	}
	return true;
}

static void conn_hello(int i)
{
	struct conn *c = &conns[i];
	ssize_t n = recv(i, c->hello + c->nhello, HELLO - c->nhello, 0);

	if (n == 0 || (n < 0 && errno != EAGAIN)) {
		conn_end(i);
		return;
	}
	if (n > 0)
		c->nhello += (uint8_t)n;
	if (c->nhello < HELLO)
		return;
	c->echo = c->hello[9] == 'e';
	room_enter(i, (uint32_t)strtoul(c->hello + 1, NULL, 16));
	conn_put(i, ".\n", 2);
}

/* Keeps what is behind the last newline for the next time; returns what is before it. */
static uint32_t hold_rest(int i, uint32_t len)
{
	struct conn *c = &conns[i];
	const char *nl = memrchr(input, '\n', len);
	uint32_t whole = nl == NULL ? 0 : (uint32_t)(nl + 1 - input);

	c->held = len - whole;
	if (c->held > READ_SIZE)
		abort();
	if (c->held > 0) {
		if (c->in == NULL)
			c->in = malloc(READ_SIZE);
		if (c->in == NULL)
			abort();
		memcpy(c->in, input + whole, c->held);
	}
	return whole;
}

static void conn_read(int i)
{
	struct conn *c = &conns[i];
	uint32_t held, len;
	ssize_t n;

	if (c->nhello < HELLO) {
		conn_hello(i);
		return;
	}
	if (!room_ready(c->room)) {
		conn_stop(i, true);
		return;
	}
	held = c->held;
	if (held > 0)
		memcpy(input, c->in, held);
	n = recv(i, input + held, READ_SIZE - held, 0);
	if (n == 0 || (n < 0 && errno != EAGAIN)) {
		conn_end(i);
		return;
	}
	if (n < 0)
		return;
	len = held + (uint32_t)n;
	if (c->room->nmembers > 2)
		len = hold_rest(i, len);
	for (int k = c->room->first; len > 0 && k >= 0; k = conns[k].next)
		if (k != i || c->echo)
			conn_put(k, input, len);
}

static void conn_write(int i)
{
	struct conn *c = &conns[i];
	bool wanted = c->want_out;
	ssize_t n = send(i, c->out, c->len, MSG_NOSIGNAL);

	if (n < 0 && errno != EAGAIN) {
		conn_end(i);
		return;
	}
	if (n > 0) {
		c->len -= (uint32_t)n;
		memmove(c->out, c->out + n, c->len);
	}
	c->want_out = c->len > 0;
	if (c->want_out != wanted)
		conn_watch(i);
	if (nstopped > 0 && n > 0 && c->room != NULL && c->len < OUT_SIZE / 2)
		room_wake(c->room);
}

static void flush_dirty(void)
{
	for (int k = 0; k < ndirty; k++) {
		int i = dirty[k];

		conns[i].dirty = false;
		if (conns[i].live && conns[i].len > 0 && !conns[i].want_out)
			conn_write(i);
	}
	ndirty = 0;
}

static int listen_at(uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int lfd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;

	a.sin_port = htons(port);
	setsockopt(lfd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(lfd, (struct sockaddr *)&a, sizeof a) != 0 || listen(lfd, 4096) != 0) {
		perror("parley-relay");
		exit(1);
	}
	return lfd;
}

int main(int argc, char **argv)
{
	int lfd = listen_at((uint16_t)(argc > 1 ? atoi(argv[1]) : 0));
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = lfd }, evs[EVENTS];
	struct rlimit rl = { 1024, 1024 };

	if (getrlimit(RLIMIT_NOFILE, &rl) == 0) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	room_for_conns = rl.rlim_cur < 1u << 20 ? (int)rl.rlim_cur : 1 << 20;
	conns = calloc((size_t)room_for_conns, sizeof *conns);
	dirty = calloc((size_t)room_for_conns, sizeof *dirty);
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (conns == NULL || dirty == NULL || epoll_ctl(ep, EPOLL_CTL_ADD, lfd, &ev) != 0)
		abort();
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(ep, evs, EVENTS, -1);

		for (int k = 0; k < n; k++) {
			int i = evs[k].data.fd;

			if (i == lfd) {
				conn_accept(lfd);
				continue;
			}
			if (conns[i].live && (evs[k].events & EPOLLOUT) != 0)
				conn_write(i);
			if (conns[i].live && (evs[k].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
				conn_read(i);
		}
		flush_dirty();
	}
}
