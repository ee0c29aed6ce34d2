/*
 * rec.c - handing session records out, lowest first, to any process, without a lock.
 *
 * The record's owner word decides whose it is. The bitmap of hints (a bit a record, 1: taken) and
 * rec_low only say where looking is worth while:
 *
 *   claim   set the bit, swap the word; a bit that was wrong costs a failed swap
 *   free    swap the word, clear the bit
 *
 * so a death between the two leaves a free record whose bit is set: out of use until rec_mend(),
 * never in use twice. rec_high is raised before the swap, so that no record in use is above it.
 */
#include "shm/rec.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "shm/fault.h"
#include "shm/segment.h"

#define STEP_BYTES (256u * 1024)	/* records are reserved from the kernel by so much */
#define STEP (STEP_BYTES / sizeof(struct rec))

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rec.owner: word is its low half");
_Static_assert(offsetof(struct rec, word) == 0 && offsetof(struct rec, slot_gen) == 4, "rec.owner");
_Static_assert(offsetof(struct rec, fd) <= 64, "what others read of a record is one cache line");

static uint64_t owner(uint32_t word, uint32_t slot_gen)
{
	return (uint64_t)slot_gen << 32 | word;
}

static _Atomic uint64_t *hint_at(uint32_t i)
{
	return (_Atomic uint64_t *)segment_at(shm->head->hint_off) + i / 64;
}

static uint64_t hint_bit(uint32_t i)
{
	return UINT64_C(1) << (i & 63);
}

static void raise_to(_Atomic uint32_t *at, uint32_t n)
{
	uint32_t now = atomic_load(at);

	while (now < n && !atomic_compare_exchange_weak(at, &now, n))
		;
}

static void lower_to(_Atomic uint32_t *at, uint32_t n)
{
	uint32_t now = atomic_load(at);

	while (now > n && !atomic_compare_exchange_weak(at, &now, n))
		;
}

/* The lowest record in [FROM, TO) whose hint says free; TO when none does. */
static uint32_t hint_find(uint32_t from, uint32_t to)
{
	while (from < to) {
		uint64_t empty = ~atomic_load(hint_at(from)) & ~(hint_bit(from) - 1);

		if (empty != 0) {
			from = (from & ~63u) + (uint32_t)__builtin_ctzll(empty);
			return from < to ? from : to;
		}
		from = (from & ~63u) + 64;
	}
	return to;
}

/*
 * The lowest free record from rec_low on, which moves up to it. A record freed meanwhile below the
 * new mark saw the old one and left it: so what was passed is looked at once more.
 */
static uint32_t low_find(uint32_t to)
{
	uint32_t low = atomic_load(&shm->head->rec_low);
	uint32_t i = hint_find(low, to);

	if (i > low && atomic_compare_exchange_strong(&shm->head->rec_low, &low, i)) {
		uint32_t again = hint_find(low, i);

		if (again < i) {
			lower_to(&shm->head->rec_low, again);
			return again;
		}
	}
	return i;
}

/* Makes the next step of records touchable. Two that do so at once do the same. */
static int grow(uint32_t reserved)
{
	struct segment_head *h = shm->head;
	uint32_t to = h->max_sessions - reserved > STEP ? reserved + STEP : h->max_sessions;

	if (segment_reserve(h->rec_off + (uint64_t)reserved * sizeof(struct rec),
	    (uint64_t)(to - reserved) * sizeof(struct rec)) != 0 ||
	    segment_reserve(h->hint_off + reserved / 64 * 8, ((uint64_t)to - reserved) / 8 + 16) != 0)
		return -1;
	raise_to(&h->rec_reserved, to);
	return 0;
}

/* A new life of a record that was just claimed. */
static void clear(struct rec *r)
{
	if (atomic_fetch_add(&r->gen, 1) == UINT32_MAX)
		atomic_store(&r->gen, 1);
	FAULT("rec.claim.3");
	/* Released, so that a reader who meets one of these meets the new generation after it. */
	atomic_store_explicit(&r->bound, 0, memory_order_release);
	atomic_store_explicit(&r->user, 0, memory_order_release);
	atomic_store_explicit(&r->live, LIVE_NO, memory_order_release);
	atomic_store_explicit(&r->login, 0, memory_order_release);
	FAULT("rec.claim.4");
	memset((char *)r + offsetof(struct rec, fd), 0, sizeof(*r) - offsetof(struct rec, fd));
	r->fd = -1;
	r->name_chunk = REC_NONE;
	r->in_chunk = r->out_head = r->out_tail = REC_NONE;
	r->held_head = r->held_tail = r->lists = REC_NONE;
	FAULT("rec.claim.5");
}

/* Claims record I, whose memory is there; false when it is somebody's already. */
static bool claim(uint32_t i, uint32_t slot, uint32_t slot_gen)
{
	struct rec *r = rec_at(i);
	uint64_t want = 0;

	if (atomic_fetch_or(hint_at(i), hint_bit(i)) & hint_bit(i))
		return false;
	FAULT("rec.claim.1");
	raise_to(&shm->head->rec_high, i + 1);
	if (!atomic_compare_exchange_strong(&r->owner, &want,
	    owner(rec_word(slot, REC_ALLOC), slot_gen)))
		return false;		/* the hint was wrong, and is right now */
	FAULT("rec.claim.2");
	clear(r);
	return true;
}

uint32_t rec_claim(uint32_t slot, uint32_t slot_gen)
{
	struct segment_head *h = shm->head;

	assert(slot < h->max_workers && slot_gen != 0);
	for (;;) {
		uint32_t reserved = atomic_load(&h->rec_reserved);
		uint32_t i = low_find(reserved);

		if (i >= reserved)
			i = hint_find(0, reserved);	/* rec_low itself is only a hint */
		if (i < reserved) {
			if (claim(i, slot, slot_gen))
				return i;
		} else if (reserved == h->max_sessions || grow(reserved) != 0) {
			return REC_NONE;
		}
	}
}

/* Replaces the owner of record I, which SLOT's worker must own. */
static void replace(uint32_t i, uint32_t slot, uint64_t now)
{
	struct rec *r = rec_at(i);
	uint64_t was = atomic_load(&r->owner);
	bool done;

	assert(rec_word_slot((uint32_t)was) == (int)slot);
	assert(rec_word_state((uint32_t)was) != REC_FREE);
	done = atomic_compare_exchange_strong(&r->owner, &was, now);
	assert(done);
	(void)done;
}

void rec_free(uint32_t i, uint32_t slot)
{
	assert(atomic_load(&rec_at(i)->bound) == 0);
	replace(i, slot, 0);
	FAULT("rec.free.1");
	atomic_fetch_and(hint_at(i), ~hint_bit(i));
	FAULT("rec.free.2");
	lower_to(&shm->head->rec_low, i);
}

void rec_set_state(uint32_t i, uint32_t slot, enum rec_state s)
{
	uint32_t slot_gen;

	assert(s != REC_FREE);
	rec_owner(rec_at(i), &slot_gen);
	replace(i, slot, owner(rec_word(slot, s), slot_gen));
}

void rec_give(uint32_t i, uint32_t from, uint32_t to, uint32_t to_gen)
{
	uint32_t slot_gen;
	uint32_t word = rec_owner(rec_at(i), &slot_gen);

	assert(to < shm->head->max_workers && to_gen != 0);
	replace(i, from, owner(rec_word(to, rec_word_state(word)), to_gen));
	FAULT("rec.give.1");
}

void rec_offer(uint32_t i, uint32_t slot)
{
	rec_set_state(i, slot, REC_MOVING);
}

/* Ends an offer of FROM, in favour of NOW. */
static bool settle(uint32_t i, uint32_t from, uint64_t now)
{
	struct rec *r = rec_at(i);
	uint64_t was = atomic_load(&r->owner);

	return (uint32_t)was == rec_word(from, REC_MOVING) &&
	    atomic_compare_exchange_strong(&r->owner, &was, now);
}

bool rec_take(uint32_t i, uint32_t from, uint32_t to, uint32_t to_gen)
{
	bool taken = settle(i, from, owner(rec_word(to, REC_OPEN), to_gen));

	FAULT("rec.take.1");
	return taken;
}

bool rec_unoffer(uint32_t i, uint32_t slot)
{
	uint32_t slot_gen;

	rec_owner(rec_at(i), &slot_gen);
	return settle(i, slot, owner(rec_word(slot, REC_OPEN), slot_gen));
}

void rec_mend(void)
{
	/* Not only below rec_high: a claim that was cut off sets its hint before it raises that. */
	uint32_t reserved = atomic_load(&shm->head->rec_reserved);

	for (uint32_t i = 0; i < reserved; i++) {
		struct rec *r = rec_at(i);
		bool taken = (atomic_load(hint_at(i)) & hint_bit(i)) != 0;

		if (taken == (atomic_load(&r->owner) != 0))
			continue;
		if (!taken) {
			atomic_fetch_or(hint_at(i), hint_bit(i));
			if (atomic_load(&r->owner) != 0)
				continue;	/* else it was freed meanwhile: as good as free */
		}
		atomic_fetch_and(hint_at(i), ~hint_bit(i));
	}
	lower_to(&shm->head->rec_low, hint_find(0, reserved));
}

const char *rec_check(uint32_t i)
{
	struct rec *r = rec_at(i);
	uint64_t word = atomic_load(&r->owner);
	bool taken = (atomic_load(hint_at(i)) & hint_bit(i)) != 0;

	if (word == 0 && atomic_load(&r->bound) != 0)
		return "free and bound";
	if (word != 0 && (rec_word_slot((uint32_t)word) < 0 || word >> 32 == 0 ||
	    (uint32_t)rec_word_slot((uint32_t)word) >= shm->head->max_workers ||
	    rec_word_state((uint32_t)word) == REC_FREE ||
	    rec_word_state((uint32_t)word) > REC_MOVING))
		return "has an owner that cannot be";
	if (word != 0 && i >= rec_high())
		return "in use above the mark of used ones";
	if (word != 0 && atomic_load(&r->gen) == 0)
		return "in use without a generation";
	if ((word != 0) != taken)
		return taken ? "free, and its hint says taken" : "taken, and its hint says free";
	if (word == 0 && i < atomic_load(&shm->head->rec_low))
		return "free below the mark of free ones";
	return NULL;
}
