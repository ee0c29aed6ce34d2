/*
 * sess.h - the session hash: user -> record of the session that serves them.
 *
 * Scope   open addressing in shards; a slot of the hash is one 64-bit word (user << 32 | record
 *         index + 1), so that a reader sees an entry whole or not at all. Truth is in the record
 *         (user, bound): the hash can always be derived from the records, and is, after a death.
 * Locks   one robust mutex a shard (lock.h), one a call; readers take none. Never call with a
 *         lock held. The order inside a critical section: record fields, record.bound, hash word.
 *         A death after any store leaves something that the repair maps to "bound" or "not bound".
 * Shards  512 neighbouring user ids share a page of a shard: memory follows the users online.
 *         At most max_sessions are bound, half of the slots; a shard that is full all the same
 *         answers SESS_EFULL, and so does one that the kernel has no memory for. Removal leaves a
 *         tombstone unless the next slot is empty; a shard with many tombstones is compacted in
 *         place (readers that miss meanwhile look again under the lock).
 * Errors  0 or negative enum sess_err. SESS_EBROKEN: exit with the code for "segment broken".
 */
#ifndef PARLEY_SHM_SESS_H
#define PARLEY_SHM_SESS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum sess_err { SESS_OK = 0, SESS_EFULL = -1, SESS_ETAKEN = -2, SESS_EMISSING = -3, SESS_EBROKEN = -4 };

/* A snapshot of whom a user is bound to. */
struct sess_ref {
	uint32_t user, rec, gen;	/* record index and its generation */
	uint32_t slot, slot_gen;	/* the worker that owns it */
	uint32_t live;			/* enum rec_live */
	uint32_t state;			/* enum rec_state */
	uint64_t login;
};

/*
 * For the layout: words and shards of a hash for MAX_SESSIONS, and the bytes that they take.
 * Non-zero when that is too many.
 */
int sess_plan(uint32_t max_sessions, uint32_t *words_r, uint32_t *shards_r);
uint64_t sess_bytes(uint32_t words, uint32_t shards);
/* Called by segment_open: locks initialised, memory zero. 0 or -errno. */
int sess_init(void);
/*
 * Binds USER to the own record REC: sets its user, login (a fresh number), live and bound.
 * SESS_ETAKEN: *old_r holds the present owner and nothing changed.
 */
int sess_bind(uint32_t user, uint32_t rec, uint32_t live, struct sess_ref *old_r);
/* Unbinds REC, if USER is still bound to exactly this record; else SESS_EMISSING, nothing changed. */
int sess_unbind(uint32_t user, uint32_t rec);
/* Who serves USER? Lock-free; SESS_EMISSING for nobody. Owner liveness is the caller's question. */
int sess_find(uint32_t user, struct sess_ref *ref_r);
bool sess_online(uint32_t user);	/* bound, and its worker alive or about to be swept: state online */
/* Users in all shards, and words that are tombstones. Takes no lock, so any process may ask. */
void sess_count(uint64_t *live_r, uint64_t *tombs_r);

/*
 * Checks every invariant (each bound record found by its user and nobody else; each word names a
 * bound record of that user; counts; hints) without stopping anybody: takes one shard's lock at a
 * time. Tells each violation, without a lock held; TELL may be NULL. Returns their number. What a
 * death left in the hints counts as wrong until rec_mend() ran. Not for the master's loop.
 */
typedef void sess_tell_fn(void *arg, const char *text);
int sess_check(sess_tell_fn *tell, void *arg);

#endif
