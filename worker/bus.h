/*
 * bus.h - Redis, on the worker's loop: commands with answers, and the host's subscription.
 *
 * Scope   one connection for commands a worker; one more that is subscribed to the host's channel, on
 *         the worker that leads (cluster.h). Commands of one turn leave in one write. Everything is
 *         asynchronous: nothing here waits, name look-ups included (finder.h).
 * Errors  an answer may never come (connection lost, or none at all for redis_timeout_ms): its callback
 *         gets NULL, and nobody knows whether the command ran. Past BUS_MAX_BYTES or BUS_MAX_COMMANDS under
 *         way nothing more is taken: bus_send() says false, and the caller goes its other way.
 * Retry   a lost connection is made again after a back-off of 50 ms to 2 s with jitter. Each attempt
 *         looks names up anew, and asks the sentinels for the present master; only a master will do, and
 *         one that becomes a replica is left. Redis Cluster (MOVED) is not supported, and the log says so.
 * Layers  redis.h bytes and answers; wire.h on the loop; lookup.h, finder.h where Redis is.
 */
#ifndef PARLEY_BUS_H
#define PARLEY_BUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/base/conf.h"

#define BUS_MAX_BYTES    (16u << 20)
#define BUS_MAX_COMMANDS 65536u

enum bus_type { BUS_NIL, BUS_INT, BUS_STR, BUS_ARRAY, BUS_ERROR };

/* An answer; lives as long as the callback. */
struct bus_value {
	enum bus_type type;
	int64_t n;			/* INT */
	const char *s;			/* STR, ERROR: NUL-terminated too */
	size_t len;
	const struct bus_value *v;	/* ARRAY */
	size_t nv;
};

/* V is NULL when no answer came. */
typedef void bus_done_fn(void *arg, uint64_t tag, const struct bus_value *v);

struct bus_hooks {
	void (*up)(void);		/* commands can be sent */
	void (*down)(void);		/* they cannot; callbacks of all that was under way have run */
	void (*subscribed)(void);	/* messages to the host arrive from here on */
	void (*unsubscribed)(void);	/* some may have been missed */
};

/* Starts connecting where conf.redis says so. 0, or -1 (out of memory). */
int bus_init(const struct bus_hooks *hooks);
bool bus_configured(void);		/* this host belongs to a cluster */
bool bus_up(void);
/* End of turn: what was sent leaves. */
void bus_turn_end(void);
/* DONE may be NULL. LENS may be NULL: arguments are strings. False: not taken, DONE will not run. */
bool bus_send(unsigned argc, const char *const *argv, const size_t *lens, bus_done_fn *done,
    void *arg, uint64_t tag);

/* A Lua script; known to the server by its SHA-1 after its first use. Static storage. */
struct bus_script { const char *text; char sha[41]; };
bool bus_script(struct bus_script *s, unsigned nkeys, unsigned argc, const char *const *argv,
    const size_t *lens, bus_done_fn *done, void *arg, uint64_t tag);

/* Subscribes a connection of its own to CHANNEL and keeps it subscribed until bus_unsubscribe(). */
void bus_subscribe(const char *channel, void (*message)(const char *data, size_t len));
void bus_unsubscribe(void);
bool bus_subscribed(void);
/* For status: why the last connection failed or ended, "" while it is fine. */
const char *bus_error(void);
/* The worker ends: waits for answers to what was sent, at most WAIT_MS, then closes. */
void bus_close(uint32_t wait_ms);

/*
 * Blocking, for a short-lived child before the workers exist: one command, answered within the
 * time-out. 0, or -1 with a sentence in WHY. VALUE gets a string answer ("" for nil), N an integer.
 */
int bus_ask(const struct conf *conf, unsigned argc, const char *const *argv, char *value,
    size_t cap, int64_t *n, char *why, size_t why_cap);

#endif
