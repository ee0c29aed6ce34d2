/*
 * reactor.h - the master's event loop: level-triggered epoll, one callback a descriptor.
 *
 * Scope   the master only; a few dozen descriptors. There are no timers here: who has deadlines
 *         says in milliseconds how long the next wait may be.
 * Owner   a struct watch is embedded in static or long-lived memory of its user and is never
 *         freed; fd -1 marks one that is not in use, so an event fetched before it was taken
 *         out is dropped.
 * Errors  0 or -errno.
 */
#ifndef PARLEY_MASTER_REACTOR_H
#define PARLEY_MASTER_REACTOR_H

#include <stdint.h>

struct watch {
	int fd;
	void (*on_event)(struct watch *w, uint32_t events);
	void *arg;
};

struct reactor { int epfd; };

int reactor_init(struct reactor *r);
void reactor_fini(struct reactor *r);
/* W stays in place until reactor_del(). EVENTS as in epoll_ctl(2). */
int reactor_add(struct reactor *r, struct watch *w, uint32_t events);
int reactor_mod(struct reactor *r, struct watch *w, uint32_t events);
/* Takes W out and sets its fd to -1; closing the descriptor is the caller's. */
void reactor_del(struct reactor *r, struct watch *w);
/* Waits at most TIMEOUT_MS (-1: for ever) and calls back what is ready. */
int reactor_turn(struct reactor *r, int timeout_ms);

#endif
