/*
 * reactor.c - the master's event loop.
 */
#include "master/reactor.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#define BATCH 64

int reactor_init(struct reactor *r)
{
	r->epfd = epoll_create1(EPOLL_CLOEXEC);
	return r->epfd >= 0 ? 0 : -errno;
}

void reactor_fini(struct reactor *r)
{
	if (r->epfd >= 0)
		close(r->epfd);
	r->epfd = -1;
}

static int control(struct reactor *r, int op, struct watch *w, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = w };

	return epoll_ctl(r->epfd, op, w->fd, &ev) == 0 ? 0 : -errno;
}

int reactor_add(struct reactor *r, struct watch *w, uint32_t events)
{
	return control(r, EPOLL_CTL_ADD, w, events);
}

int reactor_mod(struct reactor *r, struct watch *w, uint32_t events)
{
	return control(r, EPOLL_CTL_MOD, w, events);
}

void reactor_del(struct reactor *r, struct watch *w)
{
	(void)control(r, EPOLL_CTL_DEL, w, 0);
	w->fd = -1;
}

int reactor_turn(struct reactor *r, int timeout_ms)
{
	struct epoll_event ev[BATCH];
	int n = epoll_wait(r->epfd, ev, BATCH, timeout_ms);

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	for (int i = 0; i < n; i++) {
		struct watch *w = ev[i].data.ptr;

		if (w->fd >= 0)		/* not taken out by an earlier event of this batch */
			w->on_event(w, ev[i].events);
	}
	return 0;
}
