/*
 * lookup.h - the addresses of a host's name, without waiting for them.
 *
 * Scope   getaddrinfo(3) in a thread of its own, because it may wait for seconds. A numeric address needs
 *         none. The thread sees only its own copy of the name; an answer that nobody wants any more is
 *         dropped by the thread itself.
 * Errors  LOOKUP_FAILED, with a sentence in l->why.
 */
#ifndef PARLEY_WORKER_LOOKUP_H
#define PARLEY_WORKER_LOOKUP_H

#include <stdint.h>

#include "worker/wire.h"

#define LOOKUP_MAX 8			/* addresses of one name */

enum lookup_state { LOOKUP_FAILED = -1, LOOKUP_PENDING = 0, LOOKUP_DONE = 1 };

struct lookup {
	struct lookup_job *job;		/* shared with the thread; NULL: none runs */
	struct wire_addr addr[LOOKUP_MAX];
	unsigned n;
	char why[128];
};

enum lookup_state lookup_start(struct lookup *l, const char *host, uint16_t port);
/* Has the thread answered? */
enum lookup_state lookup_poll(struct lookup *l);
void lookup_forget(struct lookup *l);
/* The same, waiting: for a process without a loop. */
enum lookup_state lookup_now(struct lookup *l, const char *host, uint16_t port);

#endif
