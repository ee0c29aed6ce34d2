/* loop.c - one epoll instance, made after the fork: an inherited one would keep dead entries. */
#include "worker/loop.h"

#include <errno.h>
#include <unistd.h>

#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/timer.h"

#define BATCH 256
#define CLIENT (UINT64_C(1) << 63)	/* no user-space pointer has this bit */
#define IDLE_MS 300			/* the heart beats at least this often */

static int ep = -1;
static bool stopping, again;
static struct loop_hooks hooks;

int loop_init(const struct loop_hooks *h)
{
	hooks = *h;
	ep = epoll_create1(EPOLL_CLOEXEC);
	return ep < 0 ? -errno : 0;
}

static int control(int op, int fd, uint64_t data, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };

	return epoll_ctl(ep, op, fd, &ev) < 0 ? -errno : 0;
}

int loop_watch(struct watch *w, uint32_t events)
{
	int rc = control(EPOLL_CTL_ADD, w->fd, (uintptr_t)w, events);

	return rc == -EEXIST ? control(EPOLL_CTL_MOD, w->fd, (uintptr_t)w, events) : rc;
}

void loop_unwatch(struct watch *w)
{
	if (w->fd >= 0)
		(void)control(EPOLL_CTL_DEL, w->fd, 0, 0);
}

static uint64_t client_data(uint32_t rec, uint32_t gen)
{
	return CLIENT | (uint64_t)(gen & 0x7fffffff) << 32 | rec;
}

int loop_client_add(int fd, uint32_t rec, uint32_t gen, uint32_t events)
{
	return control(EPOLL_CTL_ADD, fd, client_data(rec, gen), events);
}

int loop_client_mod(int fd, uint32_t rec, uint32_t gen, uint32_t events)
{
	return control(EPOLL_CTL_MOD, fd, client_data(rec, gen), events);
}

void loop_client_del(int fd)
{
	(void)control(EPOLL_CTL_DEL, fd, 0, 0);
}

void loop_stop(void)
{
	stopping = true;
}

void loop_again(void)
{
	again = true;
}

static void dispatch(const struct epoll_event *ev)
{
	if (ev->data.u64 & CLIENT) {
		hooks.client((uint32_t)ev->data.u64, (uint32_t)(ev->data.u64 >> 32 & 0x7fffffff),
		    ev->events);
	} else {
		struct watch *w = (struct watch *)(uintptr_t)ev->data.u64;

		w->on_event(w, ev->events);
	}
}

void loop_turn(int wait_ms)
{
	struct epoll_event ev[BATCH];
	int n = epoll_wait(ep, ev, BATCH, timer_wait(clock_ms(), wait_ms));

	clock_tick();
	for (int i = 0; i < n; i++)
		dispatch(&ev[i]);
	timer_run(clock_ms());
}

void loop_run(void)
{
	struct epoll_event ev[BATCH];

	clock_tick();
	while (!stopping) {
		int wait = again ? 0 : timer_wait(clock_ms(), IDLE_MS);
		int n = epoll_wait(ep, ev, BATCH, wait);

		again = false;
		clock_tick();
		hooks.turn_begin();
		ensure(n >= 0 || errno == EINTR);
		for (int i = 0; i < n; i++)
			dispatch(&ev[i]);
		timer_run(clock_ms());
		hooks.turn_end();
	}
}
