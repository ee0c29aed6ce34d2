/*
 * store.h - store jobs: the loop asks, threads with blocking connections answer.
 *
 * Scope   the only caller of sql/. Two lanes a worker: the read lane has a pool of threads, one
 *         connection each, that grows while jobs wait and shrinks when idle; the write lane has one
 *         thread, which takes everything queued (up to 500 rows or 512 KiB of bodies of a kind) and
 *         commits it as one transaction a kind, keeping the order of rows of one recipient and one group.
 * Values  a job holds copies in and out: no connection, no loop, no shared memory is seen by a
 *         thread. Who asked is two numbers (tag) that the loop understands.
 * Owner   make a job with store_job_new(), fill in its arguments, store_submit() takes it in any
 *         case. done() runs on the loop in store_complete(); the job and what it points to are
 *         freed when done() returns (steal a pointer by setting it to NULL, or all with store_job_take()).
 * Results rc: STORE_OK; GONE, CONFLICT, FULL, DENIED are answers; DOWN (not done, store out of
 *         reach), BUSY (waited longer than pool_wait_ms or the queue is full: not done), UNSURE (may
 *         or may not be done; every write here is idempotent by key, so the thread itself retried
 *         once the link was back, within the deadline, before it says so).
 * Bounds  the queue of each lane is bounded (STORE_DEPTH jobs and STORE_BYTES); past it a job comes back
 *         BUSY. A job with STORE_MUST is exempt from the row bound and the deadline: it was accepted already
 *         and its memory is bounded by the region that it came from; it comes back DOWN at once
 *         while the store is down and the loop tries again.
 * Order   messages (OFFLINE_ADD, GROUP_MSG) of one sender to one recipient or group are stored in the
 *         order submitted, and never past one that came back DOWN, BUSY or UNSURE: what was
 *         submitted before done() told of that comes back BUSY (or DOWN), too.
 * State   store_up() is false from the first DOWN until a connection works again; while down one
 *         thread tries to connect with back-off (0.2 s doubling to 5 s) and other jobs fail at
 *         once, so nothing piles up. The change of state calls on_state on the loop.
 */
#ifndef PARLEY_STORE_H
#define PARLEY_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STORE_DEPTH 20000
#define STORE_BYTES (64u << 20)
#define STORE_NAME  201			/* bytes of a name and its NUL */
#define STORE_DESC  801
#define STORE_HASH  160

enum store_rc { STORE_OK = 0, STORE_GONE = -1, STORE_CONFLICT = -2, STORE_FULL = -3,
	STORE_DENIED = -4, STORE_DOWN = -5, STORE_BUSY = -6, STORE_UNSURE = -7, STORE_BAD = -8 };

enum store_op {
	/* read lane */
	STORE_USER,		/* id or name -> user */
	STORE_LOAD,		/* id: all that a login shows: friends, groups, offline rows */
	STORE_FRIENDS,		/* id, after, limit -> people */
	STORE_GROUPS,		/* id, after (a group), limit, limit2 (members each) -> groups, people */
	STORE_MEMBERS,		/* id, group, after, limit -> the one group (DENIED: not a member), people */
	STORE_GROUP,		/* group or name -> groups[0]; role "" where id is no member */
	STORE_OFFLINE,		/* id, after, limit, bytes -> msgs, more */
	STORE_RANGE,		/* group, after, upto, limit, bytes -> msgs (row = number), more */
	STORE_ROSTER,		/* ids (nids) -> people: names of users by id, those that exist */
	/* write lane */
	STORE_USER_ADD,		/* name, hash -> user (CONFLICT: taken) */
	STORE_USER_PASSWD,	/* id, hash; epoch grows (-> user.epoch) */
	STORE_USER_DEL,		/* id */
	STORE_USER_IMPORT,	/* rows (nrows names and hashes) -> row[i].rc */
	STORE_FRIEND_ADD,	/* id, other or name, limit=quota -> user (the friend); GONE CONFLICT FULL */
	STORE_FRIEND_DEL,	/* id, other or name -> user.id; GONE */
	STORE_GROUP_ADD,	/* id, name, desc, limit=quota of memberships -> group; CONFLICT FULL */
	STORE_GROUP_JOIN,	/* id, group or name, limit=groups a user, limit2=members a group -> groups[0], people (<= 200 members); CONFLICT FULL GONE */
	STORE_GROUP_LEAVE,	/* id, group or name: member leaves, creator dissolves (-> dissolved) ; GONE DENIED */
	STORE_OFFLINE_ADD,	/* id (recipient), other (sender), mid, ts, body, limit=quota; FULL */
	STORE_OFFLINE_DEL,	/* id, rows to delete: ids (nids) as row ids */
	STORE_OFFLINE_DEL_MID,	/* id, mid */
	STORE_GROUP_MSG,	/* group, other (sender), mid, ts, body -> number, fresh; DENIED GONE */
	STORE_CURSORS,		/* id, cursors (ncursors) of group and number */
	STORE_META,		/* name (key), body (32 bytes offered) -> body: the value kept (first writer wins) */
	STORE_PURGE,		/* limit=keep days: bounded house-keeping */
	STORE_NOPS
};

struct store_user { uint32_t id, epoch; char name[STORE_NAME], hash[STORE_HASH]; };
struct store_person { uint32_t id, group; bool creator; char *name; };	/* group: whose member, 0: a friend */
struct store_group {
	uint32_t id, creator, members;	/* members counts all */
	uint64_t head, cursor;		/* last number; what this user has received */
	bool mine;			/* the user is a member now (left or dissolved: false) */
	bool is_creator;
	char name[STORE_NAME], desc[STORE_DESC];
};
struct store_msg { uint64_t row; uint32_t sender; unsigned char mid[16]; uint64_t ts; char *body; uint32_t len; };
struct store_cursor { uint32_t group; uint64_t number; };
struct store_row { char *name, *hash; uint32_t id; int rc; };

#define STORE_MUST 1			/* flags: accepted already, see Bounds */

struct store_job {
	struct store_job *next;		/* private */
	enum store_op op;
	uint32_t flags;
	uint64_t tag, tag2;		/* the loop's */
	void (*done)(struct store_job *job, void *arg);	/* NULL: nobody asks */
	void *arg;			/* handed to done; must live as long as the store (the worker) */
	uint64_t deadline_ms;		/* private */
	uint64_t knows;			/* private: refusals the loop knew of when it submitted */
	int rc;				/* out: enum store_rc */

	/* in */
	uint32_t id, other, group;
	uint64_t after, upto;
	uint32_t limit, limit2, bytes;
	char name[STORE_NAME], desc[STORE_DESC], hash[STORE_HASH];
	unsigned char mid[16];
	uint64_t ts;
	char *body;			/* copied by store_job_body() */
	uint32_t len;
	uint64_t *ids;			/* malloc'ed by the caller, freed with the job */
	uint32_t nids;
	struct store_cursor *cursors;	/* the same */
	uint32_t ncursors;
	struct store_row *rows;		/* the same, names and hashes too */
	uint32_t nrows;

	/* out */
	struct store_user user;
	struct store_person *people;
	uint32_t npeople;
	struct store_group *groups;
	uint32_t ngroups;
	struct store_msg *msgs;
	uint32_t nmsgs;
	bool more;			/* there are more rows than asked for */
	bool fresh;			/* GROUP_MSG: not a repeat */
	bool dissolved;
	uint64_t number;
};

struct store_limits {			/* STORE_LOAD: how much a login takes at once */
	uint32_t friends, groups, members, offline, offline_bytes;
};

struct store_setup {
	const char *url, *password;	/* conf.store; password where the URL has none */
	uint32_t pool_init, pool_max;	/* this worker's share, at least 1 */
	uint32_t pool_idle_seconds, pool_wait_ms, timeout_seconds, keep_days;
	bool sqlite_full;
	struct store_limits load;
	void (*on_state)(void *arg, bool up, const char *why);	/* on the loop */
	void *arg;
	/* counters in shared memory are the loop's: totals to read, monotonic */
};

struct store;

/*
 * For STORE_LOAD: out.user (id, name, epoch), people (friends first, then members by group),
 * groups (the user's own, then those left or dissolved that still hold unread messages, mine=false),
 * msgs = offline rows (row ids), more. Members listed: setup.load.members a group at most.
 */
struct store *store_new(const struct store_setup *s);	/* after fork; NULL: out of memory */
/* Lets the write lane finish what is queued, at most MS, then ends the threads. Jobs left come back BUSY first. */
void store_free(struct store *st, uint32_t ms);
/* Readable when store_complete() has something to do. */
int store_fd(const struct store *st);
/* Runs done() of everything finished, and on_state. Returns how many jobs. */
unsigned store_complete(struct store *st);
bool store_up(const struct store *st);
/* Jobs queued or running; transactions committed. */
uint64_t store_depth(const struct store *st);
uint64_t store_commits(const struct store *st);
void store_set_pool(struct store *st, uint32_t wait_ms, uint32_t keep_days);	/* reload */

/* A zeroed job; aborts the process when out of memory (a few hundred bytes; the region is the bound). */
struct store_job *store_job_new(enum store_op op, void (*done)(struct store_job *, void *), void *arg);
/* In done(): the job as the caller's own, to be freed with store_job_free(). */
struct store_job *store_job_take(struct store_job *job);
/* A job that was not submitted, or taken. */
void store_job_free(struct store_job *job);
void store_job_body(struct store_job *job, const void *body, size_t len);
void store_submit(struct store *st, struct store_job *job);
/* Wakes the threads once for all jobs submitted since: call at the end of a loop turn. */
void store_flush(struct store *st);

/* In a short-lived child of the master: connect, migrate, warnings through TELL. enum store_rc; WHY has a sentence. */
int store_migrate(const struct store_setup *s, void (*tell)(const char *text), char *why, size_t cap);

#endif
