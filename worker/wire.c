#include "worker/wire.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

/* poll(2) and epoll(7) give the same bits the same meaning. */
static void on_wire(struct watch *watch, uint32_t events);

static void interest(struct wire *w)
{
	uint32_t want = EPOLLIN | (redis_wants_write(&w->r) ? EPOLLOUT : 0u);

	if (w->w.fd == w->r.fd && w->interest == want)
		return;
	w->w.fd = w->r.fd;
	w->interest = want;
	if (loop_watch(&w->w, want) != 0)
		wire_close(w, "it cannot be waited for");
}

static void on_wire(struct watch *watch, uint32_t events)
{
	struct wire *w = (struct wire *)watch;

	if (w->r.state == REDIS_CLOSED)
		return;			/* ended by an earlier event of this turn */
	if (redis_event(&w->r, (short)(events & 0x7fff))) {
		interest(w);
		return;
	}
	w->w.fd = -1;
	w->ended(w);
}

int wire_open(struct wire *w, const struct wire_addr *to)
{
	w->w = (struct watch){ .fd = -1, .on_event = on_wire };
	w->interest = 0;
	if (redis_open(&w->r, &to->sa, to->len) != 0)
		return -1;
	w->w.fd = w->r.fd;
	w->interest = EPOLLIN | EPOLLOUT;
	if (loop_watch(&w->w, w->interest) == 0)
		return 0;
	redis_close(&w->r, "it cannot be waited for");
	w->w.fd = -1;
	return -1;
}

void wire_flush(struct wire *w)
{
	if (w->r.state != REDIS_OPEN)
		return;
	if (redis_flush(&w->r)) {
		interest(w);
		return;
	}
	w->w.fd = -1;
	w->ended(w);
}

void wire_close(struct wire *w, const char *why)
{
	if (w->r.state == REDIS_CLOSED || w->r.doomed)
		return;
	redis_close(&w->r, why);
	if (w->r.state != REDIS_CLOSED)
		return;			/* on_wire() tells */
	w->w.fd = -1;
	w->ended(w);
}

const char *wire_addr_text(const struct wire_addr *a)
{
	static char text[128];
	char ip[INET6_ADDRSTRLEN] = "";

	if (a->sa.sa_family == AF_UNIX)
		snprintf(text, sizeof text, "%.107s", a->un.sun_path);
	else if (a->sa.sa_family == AF_INET6)
		snprintf(text, sizeof text, "[%s]:%u",
		    inet_ntop(AF_INET6, &a->in6.sin6_addr, ip, sizeof ip), ntohs(a->in6.sin6_port));
	else
		snprintf(text, sizeof text, "%s:%u",
		    inet_ntop(AF_INET, &a->in.sin_addr, ip, sizeof ip), ntohs(a->in.sin_port));
	return text;
}

bool wire_addr_same(const struct wire_addr *a, const struct wire_addr *b)
{
	if (a->sa.sa_family != b->sa.sa_family)
		return false;
	if (a->sa.sa_family == AF_UNIX)
		return strcmp(a->un.sun_path, b->un.sun_path) == 0;
	if (a->sa.sa_family == AF_INET6)
		return a->in6.sin6_port == b->in6.sin6_port &&
		    memcmp(&a->in6.sin6_addr, &b->in6.sin6_addr, sizeof a->in6.sin6_addr) == 0;
	return a->in.sin_port == b->in.sin_port && a->in.sin_addr.s_addr == b->in.sin_addr.s_addr;
}
