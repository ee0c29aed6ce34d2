/*
 * finder.h - which address Redis has at the moment.
 *
 * Scope   a unix path or an address is known at once; a name is looked up (lookup.h); sentinels are asked
 *         one after the other who the master is, beginning with the one that answered last.
 * Answer  exactly one call of DONE a find, perhaps at once: with addresses to try in their order, or with
 *         none and a sentence why. A find that lasts longer than its time-out for a step goes to
 *         the next sentinel, or ends.
 * Bound   one find at a time; another one, or finder_stop(), drops the former.
 */
#ifndef PARLEY_WORKER_FINDER_H
#define PARLEY_WORKER_FINDER_H

#include "worker/base/redis_url.h"
#include "worker/lookup.h"

typedef void finder_fn(const struct wire_addr *addr, unsigned n, const char *why);

struct conf;

/* conf.redis with the password from its file. 0, or -1: it is none. */
int finder_read(const struct conf *cf, struct redis_url *u);
/* URL stays the caller's and is read by every find. */
void finder_init(const struct redis_url *url);
void finder_start(uint32_t step_ms, finder_fn *done);
void finder_stop(void);
/* Looks at the clock and at look-ups; every few milliseconds while one is under way. */
void finder_poll(void);
bool finder_busy(void);

#endif
