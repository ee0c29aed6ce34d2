/* bench_client.c - the load tool's connections: one read and one write a turn, as servers do. */
#include "tests/bench/bench.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define READ_SIZE  (256u << 10)
#define PER_SOURCE 4000			/* connections of a source, far from the end of its ports */

int64_t read_ns;

static int ep = -1;
static lost_fn *on_lost;
static struct client **dirty;
static uint32_t ndirty, dirty_cap;

int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void client_setup(lost_fn *lost)
{
	ep = epoll_create1(EPOLL_CLOEXEC);
	on_lost = lost;
}

/* --- connecting --- */

/* The source address of the Kth connection: the kernel's choice, unless told, or on loopback. */
static int choose_source(int fd, const struct sockaddr_storage *to, uint32_t k)
{
	const struct sockaddr_in *dest = (const struct sockaddr_in *)to;
	struct sockaddr_in from = { .sin_family = AF_INET };
	uint32_t n = k / opt.nto / PER_SOURCE;
	int one = 1;

	if (opt.nfrom > 0)
		from.sin_addr.s_addr = htonl(opt.from + k % opt.nfrom);
	else if (to->ss_family == AF_INET && (ntohl(dest->sin_addr.s_addr) >> 24) == 127)
		from.sin_addr.s_addr = htonl(0x7f000001u + ((n % 65000) << 8));
	else
		return 0;
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
	return bind(fd, (struct sockaddr *)&from, sizeof from);
}

int client_open(struct client *c, uint32_t k)
{
	const struct sockaddr_storage *to = &opt.to[k % opt.nto];
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };
	int one = 1, fd, rc;

	fd = socket(to->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (choose_source(fd, to, k) != 0 ||
	    (connect(fd, (const struct sockaddr *)to, to->ss_family == AF_INET6 ?
	    sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in)) != 0 && errno != EINPROGRESS) ||
	    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) != 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	c->fd = fd;
	c->serial++;
	c->in_len = c->out_len = 0;
	c->want_out = c->ready = false;
	return 0;
}

const char *client_where(uint32_t k)
{
	static char text[300];
	const struct sockaddr_storage *to = &opt.to[k % opt.nto];
	char host[256] = "?", port[16] = "?";

	getnameinfo((const struct sockaddr *)to, sizeof *to, host, sizeof host, port, sizeof port,
	    NI_NUMERICHOST | NI_NUMERICSERV);
	snprintf(text, sizeof text, to->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
	return text;
}

void client_close(struct client *c, bool hard)
{
	struct linger none = { .l_onoff = 1 };

	if (c->fd >= 0 && hard) {
		shutdown(c->fd, SHUT_WR);	/* says with it what was received */
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
	}
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	c->in_len = c->out_len = 0;
	c->ready = false;
}

static void client_lost(struct client *c, const char *why)
{
	client_close(c, false);
	on_lost(c, why);
}

/* --- writing --- */

static char *room_for(char *p, uint32_t *cap, size_t len)
{
	if (len <= *cap)
		return p;
	*cap = (uint32_t)(len * 2 + 256);
	p = realloc(p, *cap);
	if (p == NULL)
		abort();
	return p;
}

char *client_room(struct client *c, size_t cap)
{
	c->out = room_for(c->out, &c->out_cap, c->out_len + cap);
	return c->out + c->out_len;
}

void client_sent(struct client *c, size_t len)
{
	if (c->fd < 0)
		return;
	c->out_len += (uint32_t)len;
	if (c->dirty || c->want_out)
		return;
	if (ndirty == dirty_cap) {
		dirty_cap = dirty_cap * 2 + 256;
		dirty = realloc(dirty, dirty_cap * sizeof *dirty);
		if (dirty == NULL)
			abort();
	}
	c->dirty = true;
	dirty[ndirty++] = c;
}

void client_send(struct client *c, const char *data, size_t len)
{
	memcpy(client_room(c, len), data, len);
	client_sent(c, len);
}

static void client_write(struct client *c)
{
	ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);
	bool wanted = c->want_out;

	if (n < 0 && errno != EAGAIN) {
		client_lost(c, strerror(errno));
		return;
	}
	if (n > 0) {
		c->out_len -= (uint32_t)n;
		memmove(c->out, c->out + n, c->out_len);
	}
	c->want_out = c->out_len > 0;
	if (c->want_out != wanted) {
		struct epoll_event ev = { .events = EPOLLIN | (c->want_out ? EPOLLOUT : 0), .data.ptr = c };

		epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
	}
}

/* --- reading --- */

/* Hands out the whole frames of [AT, END); returns where the unfinished one begins, END when the
 * connection that they came on is gone. */
static const char *take_frames(struct client *c, const char *at, const char *end)
{
	uint32_t serial = c->serial;

	while (at < end) {
		ssize_t len = opt.driver->cut(at, (size_t)(end - at));

		if (len == 0)
			break;
		if (len < 0) {
			client_lost(c, "what the server sent is not of this protocol");
			return end;
		}
		opt.driver->frame(c, at, (size_t)len);
		if (c->fd < 0 || c->serial != serial)
			return end;
		at += len;
	}
	return at;
}

static void client_read(struct client *c)
{
	static char buf[READ_SIZE];
	ssize_t n = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);
	uint32_t serial = c->serial;
	const char *at;

	if (n <= 0) {
		if (n == 0 || errno != EAGAIN)
			client_lost(c, n == 0 ? "the server closed the connection" : strerror(errno));
		return;
	}
	read_ns = now_ns();
	mine->bytes_in += (uint64_t)n;
	if (c->in_len > 0) {			/* finish the frame that the last read cut */
		c->in = room_for(c->in, &c->in_cap, c->in_len + (size_t)n);
		memcpy(c->in + c->in_len, buf, (size_t)n);
		c->in_len += (uint32_t)n;
		at = take_frames(c, c->in, c->in + c->in_len);
		if (c->fd < 0 || c->serial != serial)
			return;
		c->in_len = (uint32_t)(c->in + c->in_len - at);
		memmove(c->in, at, c->in_len);
		return;
	}
	at = take_frames(c, buf, buf + n);
	if (c->fd < 0 || c->serial != serial || at == buf + n)
		return;
	c->in_len = (uint32_t)(buf + n - at);
	c->in = room_for(c->in, &c->in_cap, c->in_len);
	memcpy(c->in, at, c->in_len);
}

void client_turn(int64_t until)
{
	struct epoll_event evs[256];
	struct timespec wait = { 0 };
	int64_t left = until - now_ns();
	int n;

	if (ndirty == 0 && left > 0) {
		wait.tv_sec = left / 1000000000;
		wait.tv_nsec = left % 1000000000;
	}
	n = epoll_pwait2(ep, evs, 256, &wait, NULL);
	for (int i = 0; i < n; i++) {
		struct client *c = evs[i].data.ptr;

		if (c->fd >= 0 && (evs[i].events & EPOLLOUT) != 0)
			client_write(c);
		if (c->fd >= 0 && (evs[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0)
			client_read(c);
	}
	for (uint32_t i = 0; i < ndirty; i++) {
		struct client *c = dirty[i];

		c->dirty = false;
		if (c->fd >= 0 && c->out_len > 0 && !c->want_out)
			client_write(c);
	}
	ndirty = 0;
}
