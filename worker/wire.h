/*
 * wire.h - a connection to Redis on the worker's loop.
 *
 * Scope   waits for the descriptor of a struct redis, and tells its owner once when it has ended.
 *         Never opened and closed for the same event: a wire that ended is opened again by a timer.
 * Owner   static memory of the module that uses it.
 */
#ifndef PARLEY_WORKER_WIRE_H
#define PARLEY_WORKER_WIRE_H

#include <netinet/in.h>
#include <sys/un.h>

#include "worker/loop.h"
#include "worker/redis.h"

/* Where a server listens. */
struct wire_addr {
	socklen_t len;
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_un un;
	};
};

struct wire {
	struct watch w;			/* first: the loop gives it back */
	struct redis r;
	uint32_t interest;
	void (*ended)(struct wire *w);	/* r.why says why */
};

/* 0, or -1 with w->r.why; ENDED does not run then. */
int wire_open(struct wire *w, const struct wire_addr *to);
/* Commands were put, or may be written: end of turn. */
void wire_flush(struct wire *w);
/* ENDED runs at once, or when the answer in progress has been dealt with. */
void wire_close(struct wire *w, const char *why);
/* "127.0.0.1:6379" or a path. Static memory. */
const char *wire_addr_text(const struct wire_addr *a);
bool wire_addr_same(const struct wire_addr *a, const struct wire_addr *b);

#endif
