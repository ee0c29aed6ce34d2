/*
 * loop.h - epoll: watches for the worker's own descriptors, ids for clients.
 *
 * Scope   level-triggered. A watch is for the few descriptors that live as long as their module
 *         (listeners, inboxes, eventfds); its address is the event's data. A client is named by
 *         (record, generation), never by a pointer, so that a stale event finds nobody.
 * Turn    wait, dispatch, timers, then the hook: everything that a turn gathered (output,
 *         packets, store jobs) leaves in one go at its end.
 */
#ifndef PARLEY_LOOP_H
#define PARLEY_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

struct watch {
	int fd;
	void (*on_event)(struct watch *w, uint32_t events);
};

struct loop_hooks {
	void (*client)(uint32_t rec, uint32_t gen, uint32_t events);
	void (*turn_begin)(void);	/* after the wait: heartbeat */
	void (*turn_end)(void);		/* flush */
};

int loop_init(const struct loop_hooks *hooks);		/* 0 or -errno */
int loop_watch(struct watch *w, uint32_t events);	/* 0 or -errno */
void loop_unwatch(struct watch *w);
int loop_client_add(int fd, uint32_t rec, uint32_t gen, uint32_t events);
int loop_client_mod(int fd, uint32_t rec, uint32_t gen, uint32_t events);
void loop_client_del(int fd);
void loop_run(void);					/* until loop_stop() */
/* One turn without the hooks, waiting at most WAIT_MS: before there are clients. */
void loop_turn(int wait_ms);
void loop_stop(void);
/* Something is left to do: the next wait returns at once. */
void loop_again(void);

#endif
