/* bench_client.c - the load generator's connections: one read and one write a turn, as servers do. */
#include "tests/bench/bench.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_SIZE (256u << 10)
#define PER_SOURCE 4000			/* connections a source address, far from the end of its ports */

static int ep = -1;
static frame_fn *on_frame;
static lost_fn *on_lost;
static struct client **dirty;
static uint32_t ndirty, dirty_cap;

int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void client_setup(frame_fn *frame, lost_fn *lost)
{
	ep = epoll_create1(EPOLL_CLOEXEC);
	on_frame = frame;
	on_lost = lost;
}

int client_open(struct client *c, uint32_t k)
{
	struct sockaddr_in from = { .sin_family = AF_INET };
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	if ((ntohl(opt.to.sin_addr.s_addr) >> 24) == 127) {
		from.sin_addr.s_addr = htonl(0x7f010001u + ((k / PER_SOURCE) << 8));
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
		if (bind(fd, (struct sockaddr *)&from, sizeof from) != 0)
			goto fail;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (connect(fd, (struct sockaddr *)&opt.to, sizeof opt.to) != 0)
		goto fail;
	c->fd = fd;
	c->in_len = c->out_len = 0;
	c->dirty = c->want_out = c->ready = false;
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) == 0)
		return 0;
fail:
	perror("parley-bench: connect");
	close(fd);
	c->fd = -1;
	return -1;
}

void client_close(struct client *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	c->in_len = c->out_len = 0;
	c->ready = false;
}

static char *room_for(char *p, uint32_t *cap, size_t len)
{
	if (len <= *cap)
		return p;
	*cap = (uint32_t)(len * 2 + 512);
	p = realloc(p, *cap);
	if (p == NULL)
		abort();
	return p;
}

void client_send(struct client *c, const char *data, size_t len)
{
	if (c->fd < 0)
		return;
	c->out = room_for(c->out, &c->out_cap, c->out_len + len);
	memcpy(c->out + c->out_len, data, len);
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

static void client_lost(struct client *c)
{
	client_close(c);
	on_lost(c);
}

static void client_write(struct client *c)
{
	ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);
	bool wanted = c->want_out;

	if (n < 0 && errno != EAGAIN) {
		client_lost(c);
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

static void client_read(struct client *c)
{
	static char buf[READ_SIZE];
	char *at = buf, *end, *nl;
	ssize_t n = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);

	if (n <= 0) {
		if (n == 0 || errno != EAGAIN)
			client_lost(c);
		return;
	}
	mine->bytes_in += (uint64_t)n;
	end = buf + n;
	if (c->in_len > 0) {			/* finish the frame that the last read cut */
		nl = memchr(buf, '\n', (size_t)n);
		at = nl != NULL ? nl + 1 : end;
		c->in = room_for(c->in, &c->in_cap, c->in_len + (size_t)(at - buf));
		memcpy(c->in + c->in_len, buf, (size_t)(at - buf));
		c->in_len += (uint32_t)(at - buf);
		if (nl == NULL)
			return;
		uint32_t len = c->in_len - 1;

		c->in_len = 0;
		on_frame(c, c->in, len);
	}
	while (c->fd >= 0 && at < end && (nl = memchr(at, '\n', (size_t)(end - at))) != NULL) {
		on_frame(c, at, (size_t)(nl - at));
		at = nl + 1;
	}
	if (c->fd >= 0 && at < end) {
		c->in = room_for(c->in, &c->in_cap, (size_t)(end - at));
		memcpy(c->in, at, (size_t)(end - at));
		c->in_len = (uint32_t)(end - at);
	}
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

/* The first byte of NAME's value, or NULL. */
static const char *value_of(const char *frame, size_t len, const char *name)
{
	char key[40];
	int n = snprintf(key, sizeof key, "\"%s\":", name);
	const char *p = memmem(frame, len, key, (size_t)n);

	return p == NULL || p + n >= frame + len ? NULL : p + n;
}

int64_t frame_number(const char *frame, size_t len, const char *name, int64_t fallback)
{
	const char *p = value_of(frame, len, name), *end = frame + len;
	int64_t v = 0;

	if (p == NULL || *p < '0' || *p > '9')
		return fallback;
	for (; p < end && *p >= '0' && *p <= '9'; p++)
		v = v * 10 + (*p - '0');
	return v;
}

bool frame_string(const char *frame, size_t len, const char *name, char *out, size_t cap)
{
	const char *p = value_of(frame, len, name), *q;

	if (p == NULL || *p != '"')
		return false;
	q = memchr(p + 1, '"', (size_t)(frame + len - p - 1));
	if (q == NULL || (size_t)(q - p) > cap)
		return false;
	memcpy(out, p + 1, (size_t)(q - p - 1));
	out[q - p - 1] = '\0';
	return true;
}

uint32_t frame_count(const char *frame, size_t len, const char *what)
{
	size_t n = strlen(what);
	uint32_t count = 0;

	for (const char *p = frame; (p = memmem(p, (size_t)(frame + len - p), what, n)) != NULL; p += n)
		count++;
	return count;
}
