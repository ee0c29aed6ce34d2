/*
 * auth.h - what proves who somebody is: password hashes, resume tokens, message ids.
 *
 * Scope   passwords are hashed with argon2id on a thread of their own, at low priority; the loop
 *         submits jobs and gets them back through auth_fd(). Tokens and message ids are keyed
 *         hashes that cost a microsecond and are made on the spot.
 * Budget  at most `budget` threads of the host compute at a time: each worker's thread marks its
 *         cell in shared memory (a cell a slot) and waits while too many others are marked. A mark
 *         is a time, so that one left by a killed worker counts for some seconds only.
 * Owner   a job is the caller's memory; auth has it from AUTH_OK of auth_submit() until done().
 *         Passwords are wiped as soon as they were used.
 * Errors  0 or negative enum auth_err. Nothing logs.
 * Threads all functions but auth_mid(), auth_mid_random() and the token functions belong to the
 *         loop's thread. Call auth_init() once a process, after fork, before anything else.
 * Source  libsodium crypto_pwhash, crypto_generichash; ~25 ms a hash at 19 MiB and 2 passes,
 *         ~1 us a token.
 */
#ifndef PARLEY_AUTH_H
#define PARLEY_AUTH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AUTH_PASSWORD_MAX 128	/* bytes */
#define AUTH_ENCODED      128	/* bytes of an encoded hash, terminator included */
#define AUTH_KEY_BYTES    32
#define AUTH_TOKEN_BYTES  96	/* room for a token's text, terminator included */
#define AUTH_MID_BYTES    16

enum auth_err {
	AUTH_OK = 0,
	AUTH_EBUSY = -1,	/* more is waiting than two seconds of work: errno 7 */
	AUTH_EMEMORY = -2,	/* the hash's memory could not be had: errno 9 */
	AUTH_ETOKEN = -3,	/* not a token of ours */
	AUTH_EEXPIRED = -4	/* it was one */
};

enum auth_op { AUTH_HASH, AUTH_VERIFY };

struct auth;

struct auth_job {
	struct auth_job *next;			/* private */
	enum auth_op op;
	uint32_t len;				/* bytes of the password */
	char password[AUTH_PASSWORD_MAX];	/* wiped before done() */
	/*
	 * HASH: out. VERIFY: in; "" (no such user) and "*" (may not log in by password) never
	 * match, and take as long as if they could.
	 */
	char encoded[AUTH_ENCODED];
	int rc;					/* out: AUTH_OK, AUTH_EMEMORY, AUTH_EBUSY (ended) */
	bool ok;				/* out: VERIFY: the password is right */
	bool needs_rehash;			/* out: right, but hashed at another cost than now */
	void (*done)(struct auth_job *);	/* runs in the loop; may free the job */
	void *arg;				/* the caller's */
	uint64_t id;				/* the caller's */
};

struct auth_setup {
	uint32_t memory_kib, passes;	/* argon2id's cost */
	uint32_t budget;		/* threads of the host that compute at a time */
	_Atomic uint32_t *busy;		/* cell of slot 0, NULL: no budget */
	size_t stride;			/* bytes from one slot's cell to the next */
	uint32_t nslots, slot;		/* cells, and which one is ours: cleared by auth_new() */
};

/* The library, and what keeps random ids from repeating over a fork. 0 or -1. */
int auth_init(void);

/* Starts the hash thread. NULL: no memory, no descriptor or no thread. */
struct auth *auth_new(const struct auth_setup *setup);
/* Waits for the hash in progress; jobs not begun are done() with AUTH_EBUSY. */
void auth_free(struct auth *a);
void auth_set_cost(struct auth *a, uint32_t memory_kib, uint32_t passes);

int auth_submit(struct auth *a, struct auth_job *job) __attribute__((warn_unused_result));
/* What to tell who was refused: when there should be room again. */
uint32_t auth_retry_ms(struct auth *a);
/* Jobs that wait or are computed. */
uint32_t auth_depth(struct auth *a);
/* Readable while jobs are finished; then call auth_complete(), which runs their done(). */
int auth_fd(const struct auth *a);
void auth_complete(struct auth *a);

/*
 * Resume tokens: stateless text that stands for a password until it expires or the password
 * changes. KEYS: the present key, then the previous one (all zero bytes: none), the same on all
 * hosts. EPOCH is the password's: the caller compares it with the account's.
 */
void auth_token_make(const unsigned char keys[2][AUTH_KEY_BYTES], uint32_t user, uint32_t epoch,
    uint64_t now_wall_ms, uint32_t days, char out[AUTH_TOKEN_BYTES]);
int auth_token_check(const unsigned char keys[2][AUTH_KEY_BYTES], const char *text, size_t len,
    uint64_t now_wall_ms, uint32_t *user_r, uint32_t *epoch_r)
    __attribute__((warn_unused_result));

/* The id of what SENDER sends as CID: the same whenever and wherever it is sent again. */
void auth_mid(uint32_t sender, const char *cid, size_t len, unsigned char out[AUTH_MID_BYTES]);
/* An id that never comes again. */
void auth_mid_random(unsigned char out[AUTH_MID_BYTES]);

#endif
