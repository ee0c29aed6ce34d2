/*
 * state.h - what the modules of one worker process share: the worker, its connections.
 *
 * Scope   private to worker/. The truth about a session is its record and its chunks in the
 *         segment; struct conn is this process's cache beside it: epoll interest, timers, the
 *         frame scanner, what is in a library's hands. All of it can be made again from the record.
 *         A field that says something of an idle session: see seat.h.
 * Owner   conn.c makes and frees connections; everybody else borrows them for the turn. Ids that
 *         outlive a turn are (record, generation): conn_get().
 */
#ifndef PARLEY_STATE_H
#define PARLEY_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "shm/chunk.h"
#include "shm/rec.h"
#include "shm/segment.h"
#include "shm/slots.h"
#include "worker/base/conf.h"
#include "worker/base/frame.h"
#include "worker/base/json.h"
#include "worker/proto.h"
#include "worker/rate.h"
#include "worker/timer.h"
#include "worker/worker.h"

#define SESSION_OPEN_MAX 4096u		/* unresolved messages of one sender */
#define SCRATCH (2u << 20)		/* for frames that the server makes */

struct login;
struct greet;
struct refused;
struct sure;
struct shapes;

enum conn_state {
	CONN_OPEN,		/* serving */
	CONN_DRAIN_OUT,		/* writes what is left, reads nothing, then LINGER */
	CONN_LINGER,		/* write side shut; reads and discards until EOF or 2 s */
	CONN_CLOSED,		/* descriptor gone; what it held is on its way to the store */
	CONN_MOVING		/* frozen: a sibling is taking it over */
};

struct conn {
	uint32_t rec, gen, ix;		/* ix: its seat (seat.c) */
	uint32_t pool;			/* where this cache lies */
	struct rec *r;
	int fd;
	uint8_t state;			/* enum conn_state */
	bool reading, writing;		/* epoll interest as the kernel has it */
	bool blocked;			/* a request waits for the store or a hash: parse no further */
	bool paused;			/* over its message rate until the timer */
	bool eof;			/* the client sends no more */
	bool dirty;			/* in the list of those to flush */
	bool queued;			/* in the list of those to parse on */
	bool behind;			/* the store holds something newer than what was written */
	bool draining;			/* an offline read is in flight */
	bool ranging;			/* a group range read is in flight */
	bool leaving;			/* on its way to a sibling: read no more */
	bool greeted;			/* LOGIN_MSG_ACK was queued */
	bool full_pass;			/* the next drain reads from the start */
	bool bound;			/* the hash names this session (record.bound) */
	bool claiming;			/* bound, and the cluster is asked whether it may be */
	bool again;			/* something new was stored while a drain was in flight */
	bool look_due;			/* other hosts may have stored something: a look into the store is due */
	uint8_t ending;			/* enum session_end: logging out or closed, not yet settled */
	uint32_t storing;		/* messages for the session's user on their way to the store */
	uint32_t deleting;		/* delete and cursor jobs in flight */
	uint32_t looked;		/* the latest look into the store that it had (cluster.c) */
	uint32_t nlanes;		/* lanes with something unresolved */
	uint32_t open;			/* messages of this sender that are unresolved */
	bool throttled;			/* too many of them: it is not read until half are resolved */
	uint32_t held;			/* entries in the held list */
	uint32_t held_bytes;
	uint32_t gone;			/* chain of entries confirmed, but perhaps still seen by a read of the store */
	uint32_t unwritten;		/* first held entry that was not wholly written (silent session) */
	uint32_t ask_at;		/* held entries at which TCP is asked next what has arrived */
	uint64_t arrived;		/* bytes of the stream that the other end has acknowledged */
	uint32_t stored_to;		/* all that is held up to this entry has a row, or a job for one */
	uint64_t drained;		/* offline rows up to here were read in this session */
	uint64_t term_at;		/* where the byte stands that ends the first frame; 0: no frame yet */
	uint64_t last_ms;		/* last byte from the client */
	uint64_t since_ms;		/* accept, or the last logout */
	struct frame scan;
	struct rate_bucket rate;
	struct timer *timer;		/* login deadline, idle, ping, linger: what comes first */
	struct timer pace;		/* rate pause */
	struct timer drain;		/* a drain that goes on later: retry, classic gap */
	struct timer confirm;		/* ack sessions: the oldest unconfirmed message */
	struct conn *next_dirty;
	struct login *login;		/* a LOGIN or REG in progress */
	struct greet *greet;		/* its greeting being gathered */
	struct sure *sure;		/* recipients to whom an unsure session has spoken (route.c) */
	struct refused *refused;	/* lanes with a refused message (errno 7 or 9) */
	bool cursors_dirty, ping_sent;
	struct conn *next_cursor;
	char *echo;			/* `req` of the request that the connection waits for; malloc'ed */
};

struct worker {
	const struct worker_boot *boot;
	struct conf conf;		/* as of the last reload */
	uint32_t slot, gen;
	struct slot *s;			/* own slot */
	struct region *region;
	struct store *store;
	struct auth *auth;
	struct json *json;		/* parser of the loop */
	struct shapes *shapes;		/* what frequent frames look like */
	struct json *json2;		/* a second one, for texts met while the first is in use */
	char *scratch;			/* SCRATCH bytes for one frame at a time */
	char *text;			/* SCRATCH bytes for what goes to the store: may be needed while a frame is being written */
	bool leaving, stopping, orphan;
	uint32_t nconns;
	unsigned char keys[2][32];	/* token keys: current, previous */
	bool keys_ready;
};

extern struct worker *wk;

/* The connection that (rec, gen) names, if it is this worker's; NULL otherwise. */
struct conn *conn_get(uint32_t rec, uint32_t gen);

#define COUNT(name) SLOT_ADD(wk->s, name, 1)
#define COUNT_N(name, k) SLOT_ADD(wk->s, name, (k))

#endif
