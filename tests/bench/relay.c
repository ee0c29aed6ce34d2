/*
 * relay.c - the yardstick of the benchmarks: a bare epoll relay that parses nothing.
 *
 *   parley-relay PORT
 *
 * Connections are paired in the order in which they are accepted, 0 with 1, 2 with 3, ...; what
 * one sends, the other gets. It does per turn what a chat server has to do at least: one recv() for
 * each readable connection, one send() for each that has output, both level-triggered, on one
 * thread. What a server is slower than this is what its parsing, routing and safety cost.
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

struct conn {
	int fd, next_dirty;		/* -1: none; index of the next with new output */
	bool dirty, want_out, stopped;	/* stopped: its partner's output is full, not read */
	uint32_t len;
	char *out;
};

static struct conn *conns;		/* by order of acceptance */
static int nconns, room, first_dirty = -1, ep;

static void conn_watch(int i)
{
	struct epoll_event ev = {
		.events = (conns[i].stopped ? 0 : EPOLLIN) | (conns[i].want_out ? EPOLLOUT : 0),
		.data.u32 = (uint32_t)i,
	};

	epoll_ctl(ep, EPOLL_CTL_MOD, conns[i].fd, &ev);
}

static void conn_end(int i)
{
	if (conns[i].fd >= 0)
		close(conns[i].fd);
	conns[i].fd = -1;
	conns[i].len = 0;
}

static void conn_accept(int lfd)
{
	int fd = accept4(lfd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = (uint32_t)nconns };

	if (fd < 0)
		return;
	if (nconns == room) {
		room = room * 2 + 256;
		conns = realloc(conns, (size_t)room * sizeof *conns);
		if (conns == NULL)
			abort();
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	conns[nconns] = (struct conn){ .fd = fd, .next_dirty = -1, .out = malloc(OUT_SIZE) };
	if (conns[nconns].out == NULL || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) != 0)
		abort();
	nconns++;
}

static void conn_read(int i)
{
	int peer = i ^ 1;
	struct conn *to;
	uint32_t want;
	ssize_t n;

	if (peer >= nconns || conns[peer].fd < 0) {	/* the partner is not there (yet) */
		static char waste[READ_SIZE];

		if (recv(conns[i].fd, waste, sizeof waste, 0) == 0)
			conn_end(i);
		return;
	}
	to = &conns[peer];
	want = OUT_SIZE - to->len < READ_SIZE ? OUT_SIZE - to->len : READ_SIZE;
	if (want == 0) {
		conns[i].stopped = true;
		conn_watch(i);
		return;
	}
	n = recv(conns[i].fd, to->out + to->len, want, 0);
	if (n == 0 || (n < 0 && errno != EAGAIN)) {
		conn_end(i);
	} else if (n > 0) {
		to->len += (uint32_t)n;
		if (!to->dirty && !to->want_out) {
			to->dirty = true;
			to->next_dirty = first_dirty;
			first_dirty = peer;
		}
	}
}

static void conn_write(int i)
{
	struct conn *c = &conns[i];
	bool wanted = c->want_out;
	ssize_t n = send(c->fd, c->out, c->len, MSG_NOSIGNAL);

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
	if (conns[i ^ 1].stopped && c->len < OUT_SIZE / 2) {
		conns[i ^ 1].stopped = false;
		conn_watch(i ^ 1);
	}
}

static void flush_dirty(void)
{
	while (first_dirty >= 0) {
		int i = first_dirty;

		first_dirty = conns[i].next_dirty;
		conns[i].dirty = false;
		if (conns[i].fd >= 0 && conns[i].len > 0)
			conn_write(i);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = UINT32_MAX }, evs[EVENTS];
	int lfd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
	struct rlimit rl;

	a.sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0));
	if (getrlimit(RLIMIT_NOFILE, &rl) == 0) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	setsockopt(lfd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(lfd, (struct sockaddr *)&a, sizeof a) != 0 || listen(lfd, 4096) != 0) {
		perror("parley-relay");
		return 1;
	}
	ep = epoll_create1(EPOLL_CLOEXEC);
	epoll_ctl(ep, EPOLL_CTL_ADD, lfd, &ev);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(ep, evs, EVENTS, -1);

		for (int k = 0; k < n; k++) {
			int i = (int)evs[k].data.u32;

			if (evs[k].data.u32 == UINT32_MAX) {
				conn_accept(lfd);
				continue;
			}
			if (conns[i].fd >= 0 && (evs[k].events & EPOLLOUT) != 0)
				conn_write(i);
			if (conns[i].fd >= 0 && (evs[k].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
				conn_read(i);
		}
		flush_dirty();
	}
}
