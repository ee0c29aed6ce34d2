/*
 * claim.h - which host serves a user: one claim in Redis a user online.
 *
 * Scope   PREFIX:user:ID = "HOST EPOCH LOGIN_MS NUMBER" (host id without spaces; LOGIN_MS the wall clock of
 *         the login; NUMBER the login number of the host's segment). The host's own hash knows the worker,
 *         so moves and respawns cost Redis nothing.
 * Taking  one Lua script. Free, ours (whatever epoch: the former life is over), of a host without an entry, of
 *         another epoch than the entry's, or of a host whose channel has had no reader for CLAIM_GRACE_MS: it becomes
 *         ours. Otherwise it is TAKEN, and by whom.
 * Release by a script, only where the value is exactly ours.
 * Without an answer within CLAIM_MS logins are allowed. When Redis is back each worker claims its
 *         sessions again; where two hosts hold a user, the older login ends ("replaced").
 */
#ifndef PARLEY_CLAIM_H
#define PARLEY_CLAIM_H

#include <stdbool.h>
#include <stdint.h>

struct conn;
struct host;

#define CLAIM_MS 1000
#define CLAIM_GRACE_MS 500

enum claim_rc {
	CLAIM_OURS = 0,
	CLAIM_AFTER,			/* ours; it was another host's, which had not released it */
	CLAIM_TAKEN,			/* by a host that lives */
	CLAIM_LATER,			/* its channel has no reader: dead, or changing its leader; ask again soon */
	CLAIM_SILENT			/* Redis does not answer: allowed */
};

struct claim_owner { uint64_t key, epoch, login_ms, number; };

typedef void claim_fn(uint32_t rec, uint32_t gen, enum claim_rc rc, const struct claim_owner *by);

/* For the bound record (rec, gen). DONE may run at once (no cluster, no connection: CLAIM_SILENT).
 * OVER: take it although TAKEN by exactly this owner (it said that it has no such session), or NULL. */
void claim_take(uint32_t user, uint32_t rec, uint32_t gen, const struct claim_owner *over,
    claim_fn *done);
/* The user was unbound here; NUMBER is the login number that the record had. */
void claim_release(uint32_t user, uint64_t number);
/* All sessions of this worker again (Redis is back, or was emptied), in bounded steps a turn. */
void claim_restore(void);
/* Some of them may be missing yet; when all are back, every session here looks into the store. */
bool claim_restoring(void);

enum where { WHERE_NOBODY = 0, WHERE_HOST, WHERE_UNKNOWN };	/* UNKNOWN: no answer */
typedef void where_fn(uint64_t tag, uint64_t tag2, enum where w, struct host *h);
/* Who serves USER, read after this call. A claim of a life that is over counts as nobody; ours with
 * no session here, too. DONE may run at once where there is no connection (UNKNOWN). */
void claim_where(uint32_t user, where_fn *done, uint64_t tag, uint64_t tag2);

/*
 * Where those of N users are who are online on other hosts: AT[i] is the host, NULL for nowhere else.
 * Not KNOWN: no answer came, and AT says nothing. IDS and AT are the caller's until DONE has run, which it
 * may at once. Not asked twice for the same id next to each other.
 */
typedef void claim_many_fn(void *arg, bool known);
void claim_online(const uint32_t *ids, struct host **at, uint32_t n, claim_many_fn *done, void *arg);

#endif
