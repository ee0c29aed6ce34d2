/*
 * hosts.h - the registry: which hosts the cluster has, and whether they live.
 *
 * Scope   each worker keeps a copy of the registry, read every heartbeat; the worker that leads
 *         writes its host's entry. In Redis, with PREFIX = conf.cluster, and ":DB" behind it where the
 *         URL names a database other than 0, because channels know no databases:
 *
 *           PREFIX:hosts        set of the ids ever seen; those without an entry are removed
 *           PREFIX:host:ID      the entry, a JSON object that begins {"epoch":"N", alive for
 *                               host_timeout_ms; N in decimal digits
 *           PREFIX:born         a random text; another one: Redis has forgotten everything
 *           PREFIX:to:ID        channel: packets to a host (link.h)
 *           PREFIX:user:ID      who serves a user (claim.h)
 *
 * Identity of a host's life is (key, epoch): key is a hash of its id, epoch new at each start of its
 *         master. Both are compared for equality only. What carries another epoch is of a former
 *         life and is not honoured.
 * Owner   hosts.c; an entry stays where it is, and is another host's at the earliest an hour after it was gone.
 * Bound   HOSTS_MAX entries; more hosts than that are not seen, with a line in the log.
 */
#ifndef PARLEY_HOSTS_H
#define PARLEY_HOSTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/base/json.h"

#define HOSTS_MAX 256u
#define HOST_ID_MAX 64u

struct host {
	uint64_t key, epoch;
	char id[HOST_ID_MAX + 1];
	char address[128];		/* what nginx, or clients, connect to; "" where it names none */
	char direct[128];		/* what clients are told to connect to (`try`); "": nothing */
	char version[24];
	uint32_t weight, workers, connections, sessions;
	bool self, alive, draining;
	uint64_t seen_ms;		/* monotonic: when its entry was last read as alive */
	uint64_t since_ms;		/* wall clock: its start */
	void *link;			/* link.c's */
};

struct hosts_hooks {
	void (*came)(struct host *h);			/* alive, or alive with a new epoch */
	void (*gone)(struct host *h, uint64_t epoch);	/* that life is over */
	void (*reborn)(void);				/* Redis has forgotten everything: flushed, or another one */
};

int hosts_init(const struct hosts_hooks *hooks);
struct conf;
/* Names for hosts_name() before there is a worker. */
void hosts_set_prefix(const struct conf *cf);
/* Reads the registry, and on the leading worker writes our entry: every heartbeat, and at once when
 * something changed (bus up, drain, lead taken over). */
void hosts_beat(void);
/* Somebody unknown was heard of: the same, unless the registry is being read. */
void hosts_refresh(void);
/* Our entry is taken away: the last worker of the host stops in order. */
void hosts_leave(void);

uint64_t hosts_key(const char *id, size_t len);		/* never 0 */
struct host *hosts_self(void);
struct host *hosts_find(uint64_t key);			/* NULL: never seen */
struct host *hosts_by_id(const char *id);
struct host *hosts_at(unsigned i);			/* NULL past the end; self included */
/*
 * A packet came from this life of a host. Its entry, or NULL: that life is over. One that was never heard
 * of has just begun: it is believed, and the registry is read at once.
 */
struct host *hosts_meet(const char *id, size_t len, uint64_t epoch);
/* Has this worker read the registry? Before that, "all hosts" are none. */
bool hosts_known(void);
/* Is (key, epoch) a life that goes on, as far as is known? */
bool hosts_alive(uint64_t key, uint64_t epoch);
/* Addresses of live hosts that take logins, ours excepted, as elements of an open JSON array. */
void hosts_put_try(struct json_out *w);
/* A name in Redis: PREFIX:KIND:REST (REST may be NULL). Static memory, valid until the fourth next call. */
const char *hosts_name(const char *kind, const char *rest);

#endif
