/*
 * sess.c - the session hash: binding, unbinding, looking up, and mending after a death.
 *
 * Layout  cells (a lock, counters and flags a shard, 128 bytes each, so that initialising the locks
 *         touches little), then the words, a shard's together, 512 words (a page) a block.
 *         User u lives in shard (u >> 9) mod shards and looks for a place from position
 *         u mod 512 of a block on, round its shard. The block is (u >> (9 + log2 shards)) mod
 *         blocks with its bits reversed, so that ids given out in order, which fill whole blocks, leave
 *         empty ones between them for searches to end in.
 * Pages   a block is reserved from the kernel before a word of it is touched, reading included;
 *         cell.blocks says which are. The words of the others are empty.
 * Words   EMPTY ends a search, TOMB does not. A shard always has an EMPTY word.
 * Truth   a record with bound == 1 and this user. A word that disagrees with its record is ignored
 *         by readers and removed by repair().
 *
 * The order of stores:
 *
 *   bind    user, login, live, bound = 1, word, count       bound is the commit point
 *   unbind  bound = 0, live, word, count                    so is it here
 *   compact change odd, words move towards their home (a copy first, then the old place becomes
 *           TOMB), TOMBs become EMPTY, count, change even
 *   repair  change odd, all words EMPTY, a word for each bound record, count, change even
 *
 * A reader that finds nothing is right unless words moved meanwhile: then cell.change is odd or was
 * raised, and it looks again under the lock (which mends what a dead holder left odd). So no reader
 * loops. Repair may itself be killed anywhere: the next one starts it over.
 */
#include "shm/sess.h"

#include <assert.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>

#include "shm/fault.h"
#include "shm/lock.h"
#include "shm/rec.h"
#include "shm/segment.h"

#define BLOCK_BITS 9u
#define BLOCK      (1u << BLOCK_BITS)		/* words in a page */
#define MAX_SHARDS 1024u
#define EMPTY      UINT64_C(0)
#define TOMB       UINT64_C(0xffffffff00000000)	/* low half 0: no record */
#define NOWHERE    UINT32_MAX

struct cell {
	pthread_mutex_t lock;
	_Atomic uint32_t change;	/* odd while words are being moved */
	_Atomic uint32_t live, tombs;	/* words of either kind */
	uint32_t spare;
	_Atomic uint64_t blocks;	/* which parts of the shard have memory: block_bit() */
} __attribute__((aligned(128)));

_Static_assert(sizeof(struct cell) == 128, "cells are laid out by sess_bytes()");

struct shard {			/* a view of one, for the length of a call */
	struct cell *cell;
	_Atomic uint64_t *words;
	uint64_t off;			/* of words in the segment */
	uint32_t nwords;		/* a power of two */
};

/* --- Layout -------------------------------------------------------------------------------- */

int sess_plan(uint32_t max_sessions, uint32_t *words_r, uint32_t *shards_r)
{
	uint32_t words = BLOCK, shards;

	if (max_sessions > UINT32_MAX / 4)
		return -1;
	while (words < 2 * max_sessions)
		words *= 2;
	/* One word of a shard stays empty, so a shard of one block could not hold the users of one. */
	shards = words / BLOCK / 2;
	*words_r = words;
	*shards_r = shards < 1 ? 1 : shards < MAX_SHARDS ? shards : MAX_SHARDS;
	return 0;
}

static uint64_t cells_bytes(uint32_t shards)
{
	return ((uint64_t)shards * sizeof(struct cell) + 4095) & ~UINT64_C(4095);
}

uint64_t sess_bytes(uint32_t words, uint32_t shards)
{
	return cells_bytes(shards) + (uint64_t)words * sizeof(uint64_t);
}

int sess_init(void)
{
	const struct segment_head *h = shm->head;
	struct cell *cells = segment_at(h->hash_off);
	int rc = segment_reserve(h->hash_off, cells_bytes(h->hash_shards));

	for (uint32_t i = 0; rc == 0 && i < h->hash_shards; i++)
		rc = -lock_init(&cells[i].lock);
	return rc;
}

static struct shard shard_at(uint32_t i)
{
	const struct segment_head *h = shm->head;
	uint32_t n = h->hash_slots >> __builtin_ctz(h->hash_shards);	/* both are powers of two */
	uint64_t off = h->hash_off + cells_bytes(h->hash_shards) + (uint64_t)i * n * sizeof(uint64_t);

	return (struct shard){
		.cell = (struct cell *)segment_at(h->hash_off) + i,
		.words = segment_at(off), .off = off, .nwords = n,
	};
}

static uint32_t shard_of(uint32_t user)
{
	return user >> BLOCK_BITS & (shm->head->hash_shards - 1);
}

/* The low BITS bits of N, the other way round. */
static uint32_t reversed(uint32_t n, unsigned bits)
{
	uint32_t to = 0;

	while (bits-- > 0) {
		to = to << 1 | (n & 1);
		n >>= 1;
	}
	return to;
}

/* Where USER's search begins in its shard. */
static uint32_t home_of(const struct shard *s, uint32_t user)
{
	uint32_t block = user >> BLOCK_BITS >> __builtin_ctz(shm->head->hash_shards);
	unsigned bits = (unsigned)__builtin_ctz(s->nwords) - BLOCK_BITS;

	return (user & (BLOCK - 1)) | reversed(block, bits) << BLOCK_BITS;
}

/* --- Words --------------------------------------------------------------------------------- */

/* Words that one flag stands for: a block, or a few where a shard has over 64 blocks. */
static uint32_t block_words(const struct shard *s)
{
	return s->nwords <= 64 * BLOCK ? BLOCK : s->nwords / 64;
}

/* The flag for the memory of position P. */
static unsigned block_bit(const struct shard *s, uint32_t p)
{
	return p >> __builtin_ctz(block_words(s));
}

static bool has_memory(const struct shard *s, uint32_t p)
{
	return atomic_load_explicit(&s->cell->blocks, memory_order_acquire) >> block_bit(s, p) & 1;
}

/* Gets the memory of the block of position P. Not under a lock. */
static int block_reserve(const struct shard *s, uint32_t p)
{
	uint64_t bytes = block_words(s) * sizeof(uint64_t);
	unsigned bit = block_bit(s, p);

	if (segment_reserve(s->off + bit * bytes, bytes) != 0)
		return -1;
	atomic_fetch_or(&s->cell->blocks, UINT64_C(1) << bit);
	return 0;
}

static uint64_t word_at(const struct shard *s, uint32_t p)
{
	return has_memory(s, p) ? atomic_load_explicit(&s->words[p], memory_order_acquire) : EMPTY;
}

static void word_set(const struct shard *s, uint32_t p, uint64_t w)
{
	atomic_store_explicit(&s->words[p], w, memory_order_release);
}

static uint64_t word_make(uint32_t user, uint32_t rec)
{
	return (uint64_t)user << 32 | (rec + 1);
}

static bool word_is_entry(uint64_t w) { return (uint32_t)w != 0; }
static uint32_t word_user(uint64_t w) { return (uint32_t)(w >> 32); }
static uint32_t word_rec(uint64_t w) { return (uint32_t)w - 1; }

static uint32_t count_of(const _Atomic uint32_t *n)
{
	return atomic_load_explicit(n, memory_order_relaxed);
}

/* Counters have one writer at a time, the holder of the lock. */
static void count_set(_Atomic uint32_t *n, uint32_t to)
{
	atomic_store_explicit(n, to, memory_order_relaxed);
}

/* Adds N, modulo 2^32, to the host's count of users. A death next to it leaves that off by one. */
static void online_add(uint32_t n)
{
	atomic_fetch_add_explicit(&shm->head->users_online, n, memory_order_relaxed);
}

/* --- Records, as a reader sees them -------------------------------------------------------- */

static uint32_t bound_of(const struct rec *r)
{
	return atomic_load_explicit(&r->bound, memory_order_acquire);
}

/* What the record that W names says, if it serves W's user: whole, or false. */
static bool snapshot(uint64_t w, struct sess_ref *ref_r)
{
	struct sess_ref ref = { .user = word_user(w), .rec = word_rec(w) };
	const struct rec *r;
	uint32_t word;

	if (ref.rec >= rec_high())
		return false;
	r = rec_at(ref.rec);
	ref.gen = atomic_load_explicit(&r->gen, memory_order_acquire);
	ref.login = atomic_load_explicit(&r->login, memory_order_acquire);
	ref.live = atomic_load_explicit(&r->live, memory_order_acquire);
	word = rec_owner(r, &ref.slot_gen);
	ref.slot = (uint32_t)rec_word_slot(word);
	ref.state = rec_word_state(word);
	/* Bound to this user before and after, in one life and one login: nothing has changed. */
	if (ref.state == REC_FREE || bound_of(r) != 1 ||
	    atomic_load_explicit(&r->user, memory_order_acquire) != ref.user ||
	    atomic_load_explicit(&r->login, memory_order_acquire) != ref.login ||
	    atomic_load_explicit(&r->gen, memory_order_acquire) != ref.gen)
		return false;
	*ref_r = ref;
	return true;
}

/* --- Searching ----------------------------------------------------------------------------- */

/*
 * The position of USER's word; NOWHERE. *FREE_R, where wanted, is the first position that could
 * hold it: a TOMB or the EMPTY one that ended the search.
 */
static uint32_t search(const struct shard *s, uint32_t user, uint32_t *free_r)
{
	uint32_t p = home_of(s, user), place = NOWHERE, found = NOWHERE;

	for (uint32_t n = 0; n < s->nwords; n++, p = (p + 1) & (s->nwords - 1)) {
		uint64_t w = word_at(s, p);

		if (word_is_entry(w)) {
			if (word_user(w) != user)
				continue;
			found = p;
			break;
		}
		if (place == NOWHERE)
			place = p;
		if (w == EMPTY)
			break;
	}
	if (free_r != NULL)
		*free_r = place;
	return found;
}

/* --- Mending ------------------------------------------------------------------------------- */

static void change_begin(const struct shard *s)
{
	atomic_store(&s->cell->change, atomic_load(&s->cell->change) | 1);
}

static void change_end(const struct shard *s)
{
	atomic_store(&s->cell->change, (atomic_load(&s->cell->change) | 1) + 1);
}

/* Moves the words of a shard towards their homes, over its tombstones, which then vanish. */
static void compact(const struct shard *s)
{
	uint32_t mask = s->nwords - 1, start = 0;

	while (start < s->nwords && word_at(s, start) != EMPTY)
		start++;
	change_begin(s);
	FAULT("sess.compact.1");
	/* From behind an EMPTY word on, so that what is in front of a word in its run moves first. */
	for (uint32_t n = 1; n <= mask; n++) {
		uint32_t i = (start + n) & mask, j;
		uint64_t w = word_at(s, i);

		if (!word_is_entry(w))
			continue;
		j = home_of(s, word_user(w));
		while (j != i && word_is_entry(word_at(s, j)))
			j = (j + 1) & mask;
		if (j == i)
			continue;
		word_set(s, j, w);
		FAULT("sess.compact.2");
		word_set(s, i, TOMB);
		FAULT("sess.compact.3");
	}
	for (uint32_t i = 0; i < s->nwords; i++) {
		if (word_at(s, i) == TOMB) {
			word_set(s, i, EMPTY);
			FAULT("sess.compact.4");
		}
	}
	count_set(&s->cell->tombs, 0);
	FAULT("sess.compact.5");
	change_end(s);
	FAULT("sess.compact.6");
}

/* Of two records that both say they serve one user, the later login stays. */
static void repair_conflict(const struct shard *s, uint32_t p, uint32_t rec)
{
	struct rec *mine = rec_at(rec), *other = rec_at(word_rec(word_at(s, p)));

	if (mine == other)
		return;
	if (atomic_load(&mine->login) > atomic_load(&other->login)) {
		word_set(s, p, word_make(atomic_load(&mine->user), rec));
		FAULT("sess.repair.4");
		mine = other;
	}
	atomic_store(&mine->bound, 0);
	FAULT("sess.repair.5");
}

/*
 * Gives the bound record REC its word. One that is free or finds no place is unbound instead:
 * neither can be, but a repair must come to an end whatever it meets.
 */
static void repair_insert(const struct shard *s, uint32_t rec, uint32_t *live)
{
	struct rec *r = rec_at(rec);
	uint32_t user = atomic_load_explicit(&r->user, memory_order_relaxed), place;
	uint32_t p = search(s, user, &place);

	if (p != NOWHERE) {
		repair_conflict(s, p, rec);
	} else if (atomic_load(&r->word) != 0 && place != NOWHERE && has_memory(s, place) &&
	    *live + 1 < s->nwords) {
		word_set(s, place, word_make(user, rec));
		FAULT("sess.repair.3");
		++*live;
	} else {
		atomic_store(&r->bound, 0);
		FAULT("sess.repair.6");
	}
}

/*
 * Derives shard number I from the records. Bound records of other shards come and go meanwhile;
 * those of this one cannot, because that takes the lock that we hold.
 */
static void repair(const struct shard *s, uint32_t i)
{
	uint32_t high = rec_high(), live = 0;
	uint32_t before = count_of(&s->cell->live);

	change_begin(s);
	FAULT("sess.repair.1");
	for (uint32_t p = 0; p < s->nwords; p++) {
		if (!has_memory(s, p))
			continue;
		word_set(s, p, EMPTY);
		FAULT("sess.repair.2");
	}
	for (uint32_t k = 0; k < high; k++) {
		const struct rec *r = (const struct rec *)segment_at(shm->head->rec_off) + k;

		__builtin_prefetch(r + 16);	/* past the end it is only ignored */
		if (bound_of(r) == 1 &&
		    shard_of(atomic_load_explicit(&r->user, memory_order_relaxed)) == i)
			repair_insert(s, k, &live);
	}
	online_add(live - before);
	count_set(&s->cell->live, live);
	FAULT("sess.repair.7");
	count_set(&s->cell->tombs, 0);
	FAULT("sess.repair.8");
	change_end(s);
	FAULT("sess.repair.9");
}

/* Takes the lock of shard I; what a dead holder left is mended first. */
static int shard_enter(const struct shard *s, uint32_t i)
{
	switch (lock_enter(&s->cell->lock)) {
	case LOCK_OK:
		return SESS_OK;
	case LOCK_INHERITED:
		repair(s, i);
		atomic_fetch_add_explicit(&shm->head->repairs, 1, memory_order_relaxed);
		FAULT("sess.repair.10");
		return lock_mended(&s->cell->lock) == LOCK_OK ? SESS_OK : SESS_EBROKEN;
	case LOCK_BROKEN:
		break;
	}
	return SESS_EBROKEN;
}

/* --- Binding ------------------------------------------------------------------------------- */

/* The stores of a bind; P is where the word goes. */
static void bind_commit(const struct shard *s, uint32_t p, uint32_t user, uint32_t rec,
    uint32_t live)
{
	struct rec *r = rec_at(rec);
	bool was_tomb = word_at(s, p) == TOMB;

	atomic_store_explicit(&r->user, user, memory_order_release);
	FAULT("sess.bind.1");
	atomic_store_explicit(&r->login, atomic_fetch_add(&shm->head->next_login, 1) + 1,
	    memory_order_release);
	FAULT("sess.bind.2");
	atomic_store_explicit(&r->live, live, memory_order_release);
	FAULT("sess.bind.3");
	atomic_store_explicit(&r->bound, 1, memory_order_release);
	FAULT("sess.bind.4");
	word_set(s, p, word_make(user, rec));
	FAULT("sess.bind.5");
	count_set(&s->cell->live, count_of(&s->cell->live) + 1);
	FAULT("sess.bind.6");
	if (was_tomb)
		count_set(&s->cell->tombs, count_of(&s->cell->tombs) - 1);
	FAULT("sess.bind.7");
	online_add(1);
	FAULT("sess.bind.8");
}

/*
 * Binds, with the lock held. A position in *NEED_R: its block must get memory first, nothing has
 * changed.
 */
static int bind_locked(const struct shard *s, uint32_t user, uint32_t rec, uint32_t live,
    struct sess_ref *old_r, uint32_t *need_r)
{
	uint32_t place, p = search(s, user, &place);
	uint32_t used = count_of(&s->cell->live) + count_of(&s->cell->tombs);

	*need_r = NOWHERE;
	if (p != NOWHERE) {
		if (snapshot(word_at(s, p), old_r))
			return SESS_ETAKEN;
		repair(s, shard_of(user));	/* the record wins, whoever let them differ */
		p = search(s, user, &place);
		if (p != NOWHERE)
			return SESS_EFULL;
	}
	if (count_of(&s->cell->tombs) > s->nwords / 4 || used + 2 > s->nwords) {
		compact(s);
		search(s, user, &place);
	}
	if (count_of(&s->cell->live) + 2 > s->nwords)
		return SESS_EFULL;
	if (!has_memory(s, place)) {
		*need_r = place;
		return SESS_EFULL;
	}
	bind_commit(s, place, user, rec, live);
	return SESS_OK;
}

int sess_bind(uint32_t user, uint32_t rec, uint32_t live, struct sess_ref *old_r)
{
	uint32_t i = shard_of(user), need;
	struct shard s = shard_at(i);
	struct sess_ref old;
	int rc;

	assert(rec < rec_high() && bound_of(rec_at(rec)) == 0);
	need = home_of(&s, user);
	if (has_memory(&s, need))
		need = NOWHERE;
	do {
		if (need != NOWHERE && block_reserve(&s, need) != 0)
			return SESS_EFULL;
		rc = shard_enter(&s, i);
		if (rc != SESS_OK)
			return rc;
		rc = bind_locked(&s, user, rec, live, &old, &need);
		lock_leave(&s.cell->lock);
	} while (need != NOWHERE);
	if (rc == SESS_ETAKEN)
		*old_r = old;
	return rc;
}

/* --- Unbinding ----------------------------------------------------------------------------- */

/* Removes the word at P: a TOMB, or EMPTY with the TOMBs in front of it where the search ends. */
static void word_remove(const struct shard *s, uint32_t p)
{
	uint32_t mask = s->nwords - 1, tombs = count_of(&s->cell->tombs);

	if (word_at(s, (p + 1) & mask) != EMPTY) {
		word_set(s, p, TOMB);
		FAULT("sess.unbind.3");
		count_set(&s->cell->tombs, tombs + 1);
		FAULT("sess.unbind.4");
		return;
	}
	word_set(s, p, EMPTY);
	FAULT("sess.unbind.5");
	for (p = (p - 1) & mask; word_at(s, p) == TOMB; p = (p - 1) & mask) {
		word_set(s, p, EMPTY);
		FAULT("sess.unbind.6");
		count_set(&s->cell->tombs, --tombs);
		FAULT("sess.unbind.7");
	}
}

static int unbind_locked(const struct shard *s, uint32_t user, uint32_t rec)
{
	struct rec *r = rec_at(rec);
	uint32_t p = search(s, user, NULL);

	if (bound_of(r) != 1 || atomic_load_explicit(&r->user, memory_order_relaxed) != user)
		return SESS_EMISSING;
	atomic_store_explicit(&r->bound, 0, memory_order_release);
	FAULT("sess.unbind.1");
	atomic_store_explicit(&r->live, LIVE_NO, memory_order_release);
	FAULT("sess.unbind.2");
	if (p == NOWHERE || word_rec(word_at(s, p)) != rec)
		return SESS_OK;		/* there was no word to remove */
	word_remove(s, p);
	count_set(&s->cell->live, count_of(&s->cell->live) - 1);
	FAULT("sess.unbind.8");
	online_add(UINT32_MAX);
	FAULT("sess.unbind.9");
	return SESS_OK;
}

int sess_unbind(uint32_t user, uint32_t rec)
{
	uint32_t i = shard_of(user);
	struct shard s = shard_at(i);
	int rc;

	if (rec >= rec_high())
		return SESS_EMISSING;
	rc = shard_enter(&s, i);
	if (rc != SESS_OK)
		return rc;
	rc = unbind_locked(&s, user, rec);
	lock_leave(&s.cell->lock);
	return rc;
}

/* --- Looking up ---------------------------------------------------------------------------- */

/* One pass without a lock. A word whose record says otherwise is passed over: it is on its way. */
static bool look(const struct shard *s, uint32_t user, struct sess_ref *ref_r)
{
	uint32_t p = home_of(s, user);

	for (uint32_t n = 0; n < s->nwords; n++, p = (p + 1) & (s->nwords - 1)) {
		uint64_t w = word_at(s, p);

		if (w == EMPTY)
			return false;
		if (word_is_entry(w) && word_user(w) == user && snapshot(w, ref_r))
			return true;
	}
	return false;
}

static int find(uint32_t user, struct sess_ref *ref_r)
{
	uint32_t i = shard_of(user);
	struct shard s = shard_at(i);
	uint32_t change = atomic_load_explicit(&s.cell->change, memory_order_acquire);
	int rc;

	if (look(&s, user, ref_r))
		return SESS_OK;
	if (change % 2 == 0 && atomic_load_explicit(&s.cell->change, memory_order_acquire) == change)
		return SESS_EMISSING;
	rc = shard_enter(&s, i);
	if (rc != SESS_OK)
		return rc;
	rc = look(&s, user, ref_r) ? SESS_OK : SESS_EMISSING;
	lock_leave(&s.cell->lock);
	return rc;
}

#define RECENT 1024u

/*
 * Where this process found users last: the record is the truth, so one that still says that it serves
 * them spares the search. Nobody's, or an old entry, costs a look at a record.
 */
static _Atomic uint64_t recent[RECENT];

int sess_find(uint32_t user, struct sess_ref *ref_r)
{
	_Atomic uint64_t *r = &recent[user % RECENT];
	uint64_t w = atomic_load_explicit(r, memory_order_relaxed);
	int rc;

	if (word_is_entry(w) && word_user(w) == user && snapshot(w, ref_r))
		return SESS_OK;
	rc = find(user, ref_r);
	if (rc == SESS_OK)
		atomic_store_explicit(r, word_make(user, ref_r->rec), memory_order_relaxed);
	return rc;
}

bool sess_online(uint32_t user)
{
	struct sess_ref ref;

	return sess_find(user, &ref) == SESS_OK;
}

void sess_count(uint64_t *live_r, uint64_t *tombs_r)
{
	uint64_t live = 0, tombs = 0;

	for (uint32_t i = 0; i < shm->head->hash_shards; i++) {
		struct shard s = shard_at(i);

		live += count_of(&s.cell->live);
		tombs += count_of(&s.cell->tombs);
	}
	*live_r = live;
	*tombs_r = tombs;
}

/* --- Checking ------------------------------------------------------------------------------ */

#define MAX_TOLD 8		/* violations of one shard that are told one by one */

struct check {
	sess_tell_fn *tell;
	void *arg;
	int wrong;
};

__attribute__((format(printf, 2, 3)))
static void violation(struct check *c, const char *fmt, ...)
{
	char text[160];
	va_list ap;

	c->wrong++;
	if (c->tell == NULL)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	c->tell(c->arg, text);
}

/* What is true of one shard, gathered under its lock and told after. */
struct shard_facts {
	uint32_t live, tombs, live_count, tombs_count, change;
	uint32_t wrong;			/* words at odds with their record or out of reach */
	uint64_t word[MAX_TOLD];
};

static bool word_is_right(const struct shard *s, uint32_t i, uint32_t p, uint64_t w)
{
	const struct rec *r;

	if (word_rec(w) >= rec_high() || shard_of(word_user(w)) != i)
		return false;
	r = rec_at(word_rec(w));
	return bound_of(r) == 1 && atomic_load(&r->user) == word_user(w) &&
	    atomic_load(&r->word) != 0 && search(s, word_user(w), NULL) == p;
}

static void shard_gather(const struct shard *s, uint32_t i, struct shard_facts *f)
{
	for (uint32_t p = 0; p < s->nwords; p++) {
		uint64_t w = word_at(s, p);

		f->tombs += w == TOMB;
		if (!word_is_entry(w))
			continue;
		f->live++;
		if (!word_is_right(s, i, p, w) && f->wrong++ < MAX_TOLD)
			f->word[f->wrong - 1] = w;
	}
	f->live_count = count_of(&s->cell->live);
	f->tombs_count = count_of(&s->cell->tombs);
	f->change = atomic_load(&s->cell->change);
}

static void check_shard(struct check *c, uint32_t i)
{
	struct shard s = shard_at(i);
	struct shard_facts f = { .live = 0 };

	if (shard_enter(&s, i) != SESS_OK) {
		violation(c, "shard %u: its lock is broken", i);
		return;
	}
	shard_gather(&s, i, &f);
	lock_leave(&s.cell->lock);
	for (uint32_t k = 0; k < f.wrong && k < MAX_TOLD; k++)
		violation(c, "shard %u: the word of user %u names record %u, which disagrees", i,
		    word_user(f.word[k]), word_rec(f.word[k]));
	if (f.wrong > MAX_TOLD)
		violation(c, "shard %u: %u more such words", i, f.wrong - MAX_TOLD);
	if (f.live != f.live_count || f.tombs != f.tombs_count)
		violation(c, "shard %u: counts %u users and %u tombstones, has %u and %u", i,
		    f.live_count, f.tombs_count, f.live, f.tombs);
	if (f.change % 2 != 0)
		violation(c, "shard %u: marked as being rebuilt", i);
}

/* Is record REC bound, and does its user's word name another or none? Asked under the lock. */
static bool lost(uint32_t rec, uint32_t user)
{
	uint32_t i = shard_of(user), p;
	struct shard s = shard_at(i);
	const struct rec *r = rec_at(rec);
	bool is_lost;

	if (shard_enter(&s, i) != SESS_OK)
		return true;
	p = search(&s, user, NULL);
	is_lost = bound_of(r) == 1 && atomic_load(&r->user) == user &&
	    (p == NOWHERE || word_rec(word_at(&s, p)) != rec);
	lock_leave(&s.cell->lock);
	return is_lost;
}

static void check_rec(struct check *c, uint32_t i)
{
	const struct rec *r = rec_at(i);
	const char *text;

	if (bound_of(r) == 1) {
		uint32_t user = atomic_load(&r->user);
		struct sess_ref ref;

		if ((find(user, &ref) != SESS_OK || ref.rec != i) && lost(i, user))
			violation(c, "record %u: bound to user %u, whose word does not say so", i, user);
	}
	/* Hints trail the records by an instruction or two: what is wrong must stay wrong. */
	text = rec_check(i);
	for (int tries = 0; text != NULL && tries < 200; tries++) {
		sched_yield();
		text = rec_check(i);
	}
	if (text != NULL)
		violation(c, "record %u: %s", i, text);
}

int sess_check(sess_tell_fn *tell, void *arg)
{
	struct check c = { .tell = tell, .arg = arg };
	uint32_t reserved = atomic_load(&shm->head->rec_reserved);

	for (uint32_t i = 0; i < shm->head->hash_shards; i++)
		check_shard(&c, i);
	for (uint32_t i = 0; i < reserved; i++)
		check_rec(&c, i);
	return c.wrong;
}
