/*
 * redis.h - one connection to a Redis server: commands out, their answers in the same order.
 *
 * Scope   the only user of hiredis, and of it only the reader of answers. Its asynchronous
 *         connections are not used: they look names up while the caller waits, abort the process on
 *         an answer that they did not expect, and have neither a time-out nor a bound. Knows no
 *         loop: whoever owns a struct redis waits for r->fd and calls redis_event(); wire.c on a
 *         worker's loop, bus_ask.c with poll(2).
 * Bounds  REDIS_BYTES and REDIS_COMMANDS without an answer; answers of REDIS_ANSWER bytes and
 *         REDIS_ELEMENTS elements an array: more ends the connection.
 * Owner   the caller's memory, zeroed before its first use; redis_close() releases what hangs on it.
 * Errors  a connection that ended says why in r->why, for people; its passwords are not in it.
 */
#ifndef PARLEY_WORKER_REDIS_H
#define PARLEY_WORKER_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "worker/bus.h"

#define REDIS_BYTES    BUS_MAX_BYTES
#define REDIS_COMMANDS BUS_MAX_COMMANDS
#define REDIS_ANSWER   (64u << 20)
#define REDIS_ELEMENTS (1u << 20)

enum redis_state { REDIS_CLOSED = 0, REDIS_CONNECTING, REDIS_OPEN };

struct redis_cmd {
	bus_done_fn *done;
	void *arg;
	uint64_t tag, at_ms;
	size_t bytes;
};

struct redis {
	enum redis_state state;
	int fd;
	bool busy;			/* inside redis_event(): an end waits until it returns */
	bool doomed;
	struct redisReader *reader;
	char *out;			/* [out_sent, out_len) is not written yet */
	size_t out_len, out_sent, out_cap;
	struct redis_cmd *ring;		/* commands without an answer; [head, head + count) modulo cap */
	uint32_t head, count, cap;
	size_t waiting;			/* their bytes */
	uint64_t heard_ms;		/* when the last answer came, or the connection was begun */
	/* An answer is an error: heard of before its command's DONE. NULL: nobody asks. */
	void (*failed)(struct redis *r, const struct bus_value *v);
	/* What answers no command: a message of a subscription. NULL: nothing is expected. */
	void (*pushed)(struct redis *r, const struct bus_value *v);
	char why[160];
};

/* Begins to connect. 0, or -1 with r->why. Commands may be put at once. */
int redis_open(struct redis *r, const struct sockaddr *to, socklen_t len);
/* False: not taken. LENS may be NULL: strings. DONE may be NULL. */
bool redis_put(struct redis *r, unsigned argc, const char *const *argv, const size_t *lens,
    bus_done_fn *done, void *arg, uint64_t tag);
/* The same with COUNT further arguments that stand behind them as redis_pack() wrote them. */
bool redis_put_packed(struct redis *r, unsigned argc, const char *const *argv, unsigned count,
    const char *packed, size_t packed_len, bus_done_fn *done, void *arg, uint64_t tag);
/* Arguments as the protocol writes them; malloc'ed, NULL: out of memory. */
char *redis_pack(unsigned argc, const char *const *argv, const size_t *lens, size_t *len_r);
/* Writes what can be written. False: the connection has ended. */
bool redis_flush(struct redis *r);
/* poll(2)'s events. False: the connection has ended. */
bool redis_event(struct redis *r, short events);
bool redis_wants_write(const struct redis *r);
/* Does the oldest command wait for an answer longer than LIMIT_MS, and none has come meanwhile? */
bool redis_late(const struct redis *r, uint64_t now_ms, uint32_t limit_ms);
/* Ends it. Callbacks of all that is under way run with NULL, at the latest when redis_event() returns. */
void redis_close(struct redis *r, const char *why);

/* Is V an error that begins with this word? */
bool bus_is_error(const struct bus_value *v, const char *word);

#endif
