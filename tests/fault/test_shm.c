/*
 * Kills a process behind every store of shared memory that another process depends on, and looks
 * at what is left. The points are those that the fault build has (fault_name()): one that no case
 * here reaches makes the test fail.
 */
#ifndef PARLEY_FAULTS
#define PARLEY_FAULTS		/* built with the fault build only, yet checked with all the rest */
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shm/chunk.h"
#include "shm/fault.h"
#include "shm/rec.h"
#include "shm/segment.h"
#include "shm/sess.h"

static struct segment seg;

static void tell(void *arg, const char *text)
{
	(void)arg;
	print_error("%s\n", text);
}

static bool begins(const char *s, const char *with)
{
	return strncmp(s, with, strlen(with)) == 0;
}

/* --- A small table of users, and what may be done to it ------------------------------------ */

enum { FIRST = 100, USERS = 40, VICTIM = 120, STRANGER = 7, SLOT = 2 };

static uint32_t rec_of[USERS];		/* record of user FIRST + i */
static uint32_t spare, other;		/* records of nobody, to be bound */

static void make_users(void)
{
	struct segment_shape shape = { 4, 256, 4 << 20 };	/* one shard: all share its lock */
	struct sess_ref old;

	assert_int_equal(segment_open(&seg, &shape, 1), 0);
	for (uint32_t i = 0; i < USERS; i++) {
		rec_of[i] = rec_claim(SLOT, 1);
		assert_int_equal(sess_bind(FIRST + i, rec_of[i], LIVE_YES, &old), SESS_OK);
	}
	spare = rec_claim(SLOT, 1);
	other = rec_claim(SLOT, 1);
}

static int do_bind(void)
{
	struct sess_ref old;

	return sess_bind(STRANGER, spare, LIVE_YES, &old);
}

/* Into a tombstone: the user's home is one. */
static int do_bind_tomb(void)
{
	struct sess_ref old;

	return sess_bind(VICTIM - 1, spare, LIVE_YES, &old);
}

static int do_unbind(void)
{
	return sess_unbind(VICTIM, rec_of[VICTIM - FIRST]);
}

static int do_unbind_last(void)
{
	return sess_unbind(FIRST + USERS - 1, rec_of[USERS - 1]);
}

/* Makes tombstones until a bind finds too many of them and compacts. */
static void make_tombs(void)
{
	struct sess_ref old;

	for (uint32_t u = 200; u < 200 + 140; u++)
		assert_int_equal(sess_bind(u, rec_claim(SLOT, 1), LIVE_YES, &old), SESS_OK);
	/* Two whose home is taken, so that they have a way to go. */
	assert_int_equal(sess_bind(200 + 512, rec_claim(SLOT, 1), LIVE_YES, &old), SESS_OK);
	assert_int_equal(sess_bind(201 + 512, rec_claim(SLOT, 1), LIVE_YES, &old), SESS_OK);
	for (uint32_t u = 200; u < 200 + 140; u++) {
		assert_int_equal(sess_find(u, &old), SESS_OK);
		assert_int_equal(sess_unbind(u, old.rec), SESS_OK);
		rec_free(old.rec, SLOT);
	}
}

static void make_hole(void)		/* a tombstone at the home of VICTIM - 1 */
{
	assert_int_equal(sess_unbind(VICTIM - 1, rec_of[VICTIM - 1 - FIRST]), SESS_OK);
	rec_of[VICTIM - 1 - FIRST] = REC_NONE;
}

static void make_last_hole(void)	/* a tombstone in front of the last of the users */
{
	assert_int_equal(sess_unbind(FIRST + USERS - 2, rec_of[USERS - 2]), SESS_OK);
	rec_of[USERS - 2] = REC_NONE;
}

/* Two records say they serve VICTIM, and a free one serves somebody. */
static void make_conflict(void)
{
	struct sess_ref old;
	uint32_t early = rec_claim(SLOT, 1), late = rec_claim(SLOT, 1), stray = rec_claim(SLOT, 1);

	assert_int_equal(sess_bind(1, early, LIVE_YES, &old), SESS_OK);
	assert_int_equal(sess_bind(2, late, LIVE_YES, &old), SESS_OK);
	atomic_store(&rec_at(early)->user, 3);
	atomic_store(&rec_at(late)->user, 3);
	rec_free(stray, SLOT);
	atomic_store(&rec_at(stray)->user, 4);
	atomic_store(&rec_at(stray)->bound, 1);
}

/* A user whose bind or unbind may have been cut off. */
struct doubtful { uint32_t user, rec; };

struct sess_case {
	const char *points;		/* the names that it reaches begin so */
	void (*prepare)(void);
	int (*act)(void);
};

static const struct sess_case sess_cases[] = {
	{ "sess.bind.", NULL, do_bind },
	{ "sess.bind.", make_hole, do_bind_tomb },
	{ "sess.unbind.", NULL, do_unbind },
	{ "sess.unbind.", make_last_hole, do_unbind_last },
	{ "sess.compact.", make_tombs, do_bind },
};

/* Runs ACT in a process that is armed to die at POINT; did it? */
static bool dies_at(const char *point, int (*act)(void))
{
	pid_t pid = fork();
	int st;

	assert_true(pid >= 0);
	if (pid == 0) {
		fault_arm(point, FAULT_KILL);
		_exit(act() == 0 ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &st, 0), pid);
	if (WIFSIGNALED(st)) {
		assert_int_equal(WTERMSIG(st), SIGKILL);
		return true;
	}
	assert_int_equal(st, 0);
	return false;
}

/* Somebody else comes along, at another user of the shard. */
static int do_pass(void)
{
	struct sess_ref ref;

	/* FIRST is bound: refused, but not before the lock was taken and the shard mended. */
	return sess_bind(FIRST, other, LIVE_YES, &ref) == SESS_ETAKEN ? 0 : 1;
}

/* All is as it was for those whom nobody touched; for the others: all or nothing. */
static void assert_users(const struct doubtful *d, size_t nd)
{
	struct sess_ref ref;
	uint64_t live, tombs;
	uint32_t bound = 0, high = rec_high();

	assert_int_equal(sess_check(tell, NULL), 0);
	for (uint32_t i = 0; i < USERS; i++) {
		bool doubt = rec_of[i] == REC_NONE;

		for (size_t k = 0; k < nd; k++)
			doubt |= d[k].user == FIRST + i;
		if (doubt)
			continue;
		assert_int_equal(sess_find(FIRST + i, &ref), SESS_OK);
		assert_int_equal(ref.rec, rec_of[i]);
		assert_int_equal(ref.slot, SLOT);
	}
	for (size_t k = 0; k < nd; k++) {
		bool is = atomic_load(&rec_at(d[k].rec)->bound) == 1;

		assert_int_equal(sess_find(d[k].user, &ref), is ? SESS_OK : SESS_EMISSING);
		if (is)
			assert_int_equal(ref.rec, d[k].rec);
	}
	for (uint32_t i = 0; i < high; i++)
		bound += atomic_load(&rec_at(i)->bound);
	sess_count(&live, &tombs);
	assert_int_equal(live, bound);
}

/* What was cut off can be done to its end, and undone. */
static void assert_usable(void)
{
	struct sess_ref ref;

	for (uint32_t user = 1; user < 800; user++) {
		if (sess_find(user, &ref) == SESS_OK) {
			assert_int_equal(sess_unbind(user, ref.rec), SESS_OK);
			assert_int_equal(sess_find(user, &ref), SESS_EMISSING);
		}
	}
	for (uint32_t i = 0; i < USERS; i++)
		rec_of[i] = REC_NONE;
	assert_int_equal(do_bind(), SESS_OK);
	assert_int_equal(sess_find(STRANGER, &ref), SESS_OK);
	assert_int_equal(sess_check(tell, NULL), 0);
}

static const struct doubtful *doubts(size_t *n)
{
	static struct doubtful d[4];

	d[0] = (struct doubtful){ STRANGER, spare };
	d[1] = (struct doubtful){ VICTIM, rec_of[VICTIM - FIRST] };
	d[2] = (struct doubtful){ FIRST + USERS - 1, rec_of[USERS - 1] };
	d[3] = (struct doubtful){ VICTIM - 1, spare };
	*n = rec_of[VICTIM - 1 - FIRST] == REC_NONE ? 4 : 3;
	if (*n == 4)
		d[0] = d[3], *n = 3;		/* the spare record is for the other then */
	return d;
}

/* The mark of the one shard, which follows its lock. */
static uint32_t words_move(void)
{
	const char *cell = segment_at(seg.head->hash_off);

	return *(const uint32_t *)(cell + sizeof(pthread_mutex_t)) % 2;
}

/* Case C, killed at POINT, and the one who mends killed at REPAIR (NULL: not killed). */
static bool run_case(const struct sess_case *c, const char *point, const char *repair)
{
	const struct doubtful *d;
	uint32_t repairs;
	bool died;
	size_t n;

	make_users();
	if (c->prepare != NULL)
		c->prepare();
	d = doubts(&n);
	repairs = seg.head->repairs;
	died = dies_at(point, c->act);
	if (died) {
		/* Readers get along before anything is mended: those who were there are found. */
		struct sess_ref ref;

		assert_int_equal(sess_find(FIRST + 1, &ref), SESS_OK);
		if (begins(point, "sess.compact.3"))	/* words are on the move, and readers know */
			assert_int_equal(words_move(), 1);
		if (repair != NULL)
			died = dies_at(repair, do_pass);
		assert_int_equal(do_pass(), 0);
		assert_true(seg.head->repairs > repairs);
		assert_users(d, n);
		assert_usable();
	}
	segment_close(&seg);
	return died;
}

static void test_sess(void **state)
{
	const char *point;
	size_t reached;

	(void)state;
	for (unsigned i = 0; (point = fault_name(i)) != NULL; i++) {
		if (!begins(point, "sess.") || begins(point, "sess.repair."))
			continue;
		reached = 0;
		for (size_t k = 0; k < sizeof(sess_cases) / sizeof(sess_cases[0]); k++) {
			if (begins(point, sess_cases[k].points))
				reached += run_case(&sess_cases[k], point, NULL);
		}
		if (reached == 0)
			fail_msg("no case reaches %s", point);
	}
}

/* The repair is killed at each of its stores, after a death at each of the others'. */
static void test_sess_repair(void **state)
{
	const char *point, *repair;

	(void)state;
	for (unsigned j = 0; (repair = fault_name(j)) != NULL; j++) {
		size_t reached = 0;

		if (!begins(repair, "sess.repair."))
			continue;
		for (unsigned i = 0; (point = fault_name(i)) != NULL; i++) {
			for (size_t k = 0; k < sizeof(sess_cases) / sizeof(sess_cases[0]); k++) {
				if (begins(point, sess_cases[k].points))
					reached += run_case(&sess_cases[k], point, repair);
			}
		}
		/* Those of records at odds are reached in test_sess_conflict(). */
		if (reached == 0 && strcmp(repair, "sess.repair.4") != 0 &&
		    strcmp(repair, "sess.repair.5") != 0 && strcmp(repair, "sess.repair.6") != 0)
			fail_msg("no case reaches %s", repair);
	}
}

static void test_sess_conflict(void **state)
{
	const char *repair;

	(void)state;
	for (unsigned j = 0; (repair = fault_name(j)) != NULL; j++) {
		struct sess_ref ref;

		if (!begins(repair, "sess.repair."))
			continue;
		make_users();
		make_conflict();
		assert_true(dies_at("sess.bind.1", do_bind));
		if (!dies_at(repair, do_pass))
			fail_msg("%s was not reached", repair);
		assert_int_equal(do_pass(), 0);
		assert_int_equal(sess_check(tell, NULL), 0);
		/* Of the two records behind `other` the later won; the free one serves nobody. */
		assert_int_equal(sess_find(3, &ref), SESS_OK);
		assert_int_equal(ref.rec, other + 2);
		assert_int_equal(rec_at(other + 1)->bound, 0);
		assert_int_equal(sess_find(4, &ref), SESS_EMISSING);
		assert_int_equal(rec_at(other + 3)->bound, 0);
		segment_close(&seg);
	}
}

/* A word that a death left behind leads nobody to the record's next user. */
static void test_stale_word(void **state)
{
	struct segment_shape shape = { 4, 1000, 1 << 20 };	/* two shards */
	struct sess_ref ref;
	uint32_t rec;

	(void)state;
	assert_int_equal(segment_open(&seg, &shape, 1), 0);
	rec_of[VICTIM - FIRST] = rec = rec_claim(SLOT, 1);
	assert_int_equal(sess_bind(VICTIM, rec, LIVE_YES, &ref), SESS_OK);
	assert_true(dies_at("sess.unbind.1", do_unbind));
	assert_int_equal(sess_find(VICTIM, &ref), SESS_EMISSING);
	rec_free(rec, SLOT);
	assert_int_equal(rec_claim(SLOT, 1), rec);
	assert_int_equal(sess_find(VICTIM, &ref), SESS_EMISSING);
	assert_int_equal(sess_bind(VICTIM + 512, rec, LIVE_YES, &ref), SESS_OK);
	assert_int_equal(sess_find(VICTIM, &ref), SESS_EMISSING);
	assert_int_equal(seg.head->repairs, 0);
	assert_int_equal(sess_check(tell, NULL), 0);
	assert_int_equal(seg.head->repairs, 1);
	assert_int_equal(sess_find(VICTIM + 512, &ref), SESS_OK);
	segment_close(&seg);
}

/* --- Records ------------------------------------------------------------------------------- */

static int do_claim(void)
{
	return rec_claim(SLOT, 1) == REC_NONE;
}

static int do_free(void)
{
	rec_free(5, SLOT);
	return 0;
}

static int do_give(void)
{
	rec_give(5, SLOT, SLOT + 1, 9);
	return 0;
}

static int do_take(void)
{
	rec_offer(5, SLOT);
	return !rec_take(5, SLOT, SLOT + 1, 9);
}

static void test_rec(void **state)
{
	static const struct { const char *points; int (*act)(void); } cases[] = {
		{ "rec.claim.", do_claim }, { "rec.free.", do_free }, { "rec.give.", do_give },
		{ "rec.take.", do_take },
	};
	const char *point;

	(void)state;
	for (unsigned i = 0; (point = fault_name(i)) != NULL; i++) {
		struct segment_shape shape = { 4, 256, 1 << 20 };
		bool reached = false;
		uint32_t slot_gen, free = 0, given = 0;

		if (!begins(point, "rec."))
			continue;
		assert_int_equal(segment_open(&seg, &shape, 1), 0);
		for (uint32_t k = 0; k < 10; k++)
			assert_int_equal(rec_claim(SLOT, 1), k);
		for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]) && !reached; k++) {
			if (begins(point, cases[k].points))
				reached = dies_at(point, cases[k].act);
		}
		if (!reached)
			fail_msg("no case reaches %s", point);
		/* The successor sweeps: each record below the mark is whole, its own or nobody's. */
		for (uint32_t k = 0; k < rec_high(); k++) {
			uint32_t word = rec_owner(rec_at(k), &slot_gen);

			if (word != 0 && rec_word_slot(word) == SLOT)
				rec_free(k, SLOT);
			else if (word != 0 && rec_word_slot(word) == SLOT + 1 && slot_gen == 9)
				given++;
			else
				assert_int_equal(word, 0);
		}
		rec_mend();
		assert_int_equal(sess_check(tell, NULL), 0);
		/* No record got lost. */
		while (rec_claim(SLOT, 1) != REC_NONE)
			free++;
		assert_int_equal(given, begins(point, "rec.give.") || begins(point, "rec.take."));
		assert_int_equal(free, 256 - given);
		segment_close(&seg);
	}
}

/* --- Session memory ------------------------------------------------------------------------ */

enum { KEPT_CHUNKS = 60 };

static uint32_t kept[KEPT_CHUNKS];	/* references that the worker holds all the time */

/* A chunk filled with what looks like headers of chunks, wherever one could be looked for. */
static uint32_t alloc_filled(struct region *r, size_t len)
{
	struct chunk fake = { .kind = CHUNK_IN, .sess = 1 };
	uint32_t ref = chunk_alloc(r, len, CHUNK_OUT, 1, 1);
	struct chunk *c = chunk_at(SLOT, ref);

	for (size_t at = 0; at + sizeof(fake) <= chunk_room(c); at += sizeof(fake)) {
		uint64_t off = (uint64_t)ref * CHUNK_MIN + sizeof(fake) + at;

		fake.cls = off % CHUNK_SPAN == 0 ? CHUNK_RUN : 1;
		memcpy(c->data + at, &fake, sizeof(fake));
	}
	return ref;
}

/* A worker's life: all that an allocator can be asked to do. */
static int do_chunks(void)
{
	struct region *r = region_open(SLOT, 0);
	uint32_t ref[400];

	if (r == NULL)
		return 1;
	for (int round = 0; round < 2; round++) {
		for (uint32_t i = 0; i < 400; i++)
			ref[i] = alloc_filled(r, 1000);
		for (uint32_t i = 0; i < 400; i++)
			chunk_free(r, ref[i]);
		/* The same spans for other sizes, and for runs. */
		for (uint32_t i = 0; i < 100; i++)
			ref[i] = alloc_filled(r, 200);
		ref[100] = alloc_filled(r, 3 * CHUNK_SPAN);
		for (uint32_t i = 0; i <= 100; i++)
			chunk_free(r, ref[i]);
		for (uint32_t i = 0; i < 20; i++)
			ref[i] = alloc_filled(r, 60000);
		for (uint32_t i = 0; i < 20; i++)
			chunk_free(r, ref[i]);
		region_tidy(r);
		region_tidy(r);
	}
	return 0;
}

static const char *late;		/* the point that do_tail() arms */

/* A chunk in a span whose first bytes were data in the midst of a larger one. */
static int do_tail(void)
{
	struct region *r;

	fault_arm(NULL, FAULT_NONE);
	r = region_open(SLOT, 0);
	if (r == NULL)
		return 1;
	chunk_free(r, alloc_filled(r, 3 * CHUNK_SPAN));
	alloc_filled(r, 10000);		/* in the first of the three */
	fault_arm(late, FAULT_KILL);
	alloc_filled(r, 60000);
	return 0;
}

/* Spans go back to the kernel that the table still says are cut. */
static int do_trim(void)
{
	struct region *r = region_open(SLOT, 0);
	uint32_t ref[1000];

	if (r == NULL)
		return 1;
	for (uint32_t i = 0; i < 1000; i++)
		ref[i] = alloc_filled(r, 1000);
	for (uint32_t i = 0; i < 1000; i++)
		chunk_free(r, ref[i]);
	region_tidy(r);
	region_tidy(r);
	return 0;
}

struct found {
	uint32_t kept, loose;
};

static int look(void *arg, uint32_t ref, struct chunk *c)
{
	struct found *f = arg;

	for (uint32_t i = 0; i < KEPT_CHUNKS; i++) {
		if (kept[i] == ref) {
			assert_true(c->kind == CHUNK_MSG && c->sess == i && c->gen == 77);
			for (size_t k = 0; k < chunk_room(c); k += 97)
				assert_int_equal(c->data[k], (unsigned char)(i + k));
			f->kept++;
			return 0;
		}
	}
	assert_int_equal(c->kind, CHUNK_OUT);
	f->loose++;
	return 0;
}

static int free_loose(void *arg, uint32_t ref, struct chunk *c)
{
	if (c->kind == CHUNK_OUT)
		chunk_free(arg, ref);
	return 0;
}

/*
 * A span that the table calls free has no memory, or memory that reads as zero. One that is cut or
 * a run has all of its memory, or touching it could be SIGBUS.
 */
static void assert_table(long blocks_before)
{
	uint64_t off = shm->head->region_off + SLOT * shm->head->region_bytes;
	const uint32_t *table = segment_at(off + 24);		/* the layout as known here */
	static const char zero[CHUNK_SPAN];
	uint64_t claimed = 0;
	struct stat st;

	for (uint32_t i = 1; i < shm->head->region_bytes / CHUNK_SPAN; i++) {
		uint32_t w = table[i];

		claimed += (w & 0xff) == 0xfe ? w >> 8 : w >= 1 && w <= 9;
	}
	assert_int_equal(fstat(seg.fd, &st), 0);
	assert_true((uint64_t)(st.st_blocks - blocks_before) * 512 >= claimed * CHUNK_SPAN);
	for (uint32_t i = 1; i < shm->head->region_bytes / CHUNK_SPAN; i++) {
		if (table[i] == 0)
			assert_memory_equal(segment_at(off + (uint64_t)i * CHUNK_SPAN), zero, CHUNK_SPAN);
	}
}

/* Of what is left all can be had: nothing leaked, nothing overlaps what is in use. */
static void assert_all_there(struct region *r, uint64_t held)
{
	static const size_t lens[] = { 65504, 96 };
	struct found f = { 0, 0 };

	assert_int_equal(region_used(r), held);
	for (size_t k = 0; k < 2; k++) {
		uint32_t ref;

		while ((ref = chunk_alloc(r, lens[k], CHUNK_OUT, 0, 0)) != CHUNK_NONE)
			memset(chunk_at(SLOT, ref)->data, 0xff, lens[k]);
	}
	assert_int_equal(chunk_scan(SLOT, look, &f), 0);
	assert_int_equal(f.kept, KEPT_CHUNKS);
	assert_true(region_size(r) - region_used(r) < 10 * CHUNK_SPAN);	/* tails of the kept sizes */
}

/* The worker is killed at POINT in ACT; was it? */
static bool run_chunks(const char *point, int (*act)(void))
{
	struct segment_shape shape = { 4, 256, 6 << 20 };
	struct found f = { 0, 0 };
	struct stat before;
	struct region *r;
	uint64_t held;
	bool died;

	assert_int_equal(segment_open(&seg, &shape, 1), 0);
	assert_int_equal(fstat(seg.fd, &before), 0);
	r = region_open(SLOT, 1);
	for (uint32_t k = 0; k < KEPT_CHUNKS; k++) {
		struct chunk *c;

		kept[k] = chunk_alloc(r, k % 20 == 0 ? 70000 : 50 * k, CHUNK_MSG, k, 77);
		c = chunk_at(SLOT, kept[k]);
		for (size_t n = 0; n < chunk_room(c); n++)
			c->data[n] = (unsigned char)(k + n);
	}
	held = region_used(r);
	region_close(r);
	late = point;
	died = dies_at(point, act);
	/* What another process sees, then what the successor does. */
	assert_table(before.st_blocks);	/* first: looking at a page makes it be there */
	assert_int_equal(chunk_scan(SLOT, look, &f), 0);
	assert_int_equal(f.kept, KEPT_CHUNKS);
	assert_true(f.loose <= 1000);
	r = region_open(SLOT, 0);
	assert_non_null(r);
	assert_table(before.st_blocks);
	assert_int_equal(chunk_scan(SLOT, free_loose, r), 0);
	assert_all_there(r, held);
	region_close(r);
	segment_close(&seg);
	return died;
}

static void test_chunk(void **state)
{
	const char *point;

	(void)state;
	for (unsigned i = 0; (point = fault_name(i)) != NULL; i++) {
		int reached = 0;

		if (!begins(point, "chunk."))
			continue;
		reached += run_chunks(point, do_chunks);
		reached += run_chunks(point, do_tail);
		reached += run_chunks(point, do_trim);
		if (reached == 0)
			fail_msg("no case reaches %s", point);
	}
}

/* Every point belongs to one of the tests above. */
static void test_no_point_is_forgotten(void **state)
{
	const char *point;
	unsigned n = 0;

	(void)state;
	for (; (point = fault_name(n)) != NULL; n++)
		assert_true(begins(point, "sess.bind.") || begins(point, "sess.unbind.") ||
		    begins(point, "sess.compact.") || begins(point, "sess.repair.") ||
		    begins(point, "rec.") || begins(point, "chunk."));
	print_message("%u points\n", n);
	assert_true(n > 40);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_point_is_forgotten),
		cmocka_unit_test(test_sess),
		cmocka_unit_test(test_sess_repair),
		cmocka_unit_test(test_sess_conflict),
		cmocka_unit_test(test_stale_word),
		cmocka_unit_test(test_rec),
		cmocka_unit_test(test_chunk),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
