/* Session records: who gets which, what is left of an earlier life, what a death leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shm/rec.h"
#include "shm/segment.h"
#include "shm/sess.h"

static struct segment seg;

static void open_segment(uint32_t sessions)
{
	struct segment_shape shape = { 8, sessions, 1 << 20 };

	assert_int_equal(segment_open(&seg, &shape, 1), 0);
}

static int teardown(void **state)
{
	(void)state;
	segment_close(&seg);
	return 0;
}

static void tell(void *arg, const char *text)
{
	(void)arg;
	print_error("%s\n", text);
}

static void assert_sound(void)
{
	assert_int_equal(sess_check(tell, NULL), 0);
}

static void test_lowest_first(void **state)
{
	(void)state;
	open_segment(5000);
	assert_int_equal(rec_high(), 0);
	for (uint32_t i = 0; i < 3000; i++)
		assert_int_equal(rec_claim(i % 8, 1), i);
	assert_int_equal(rec_high(), 3000);
	rec_free(2999, 2999 % 8);
	rec_free(1500, 1500 % 8);
	rec_free(70, 70 % 8);
	rec_free(64, 64 % 8);
	assert_int_equal(rec_claim(3, 1), 64);
	assert_int_equal(rec_claim(3, 1), 70);
	assert_int_equal(rec_claim(3, 1), 1500);
	assert_int_equal(rec_claim(3, 1), 2999);
	assert_int_equal(rec_claim(3, 1), 3000);
	assert_int_equal(rec_high(), 3001);
	assert_sound();
}

static void test_all_taken(void **state)
{
	static const uint32_t sizes[] = { 1, 63, 64, 65, 1365, 1366, 3000 };

	(void)state;
	for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
		uint32_t n = sizes[k];

		open_segment(n);
		for (uint32_t i = 0; i < n; i++)
			assert_int_equal(rec_claim(1, 1), i);
		assert_int_equal(rec_claim(1, 1), REC_NONE);
		assert_int_equal(rec_claim(1, 1), REC_NONE);
		rec_free(n - 1, 1);
		assert_int_equal(rec_claim(2, 1), n - 1);
		assert_int_equal(rec_claim(2, 1), REC_NONE);
		assert_sound();
		segment_close(&seg);
	}
	open_segment(1);
}

/* A record begins empty, whatever its last life left, and has a generation of its own. */
static void test_new_life(void **state)
{
	struct rec *r;
	uint32_t slot_gen;

	(void)state;
	open_segment(100);
	assert_int_equal(rec_claim(2, 9), 0);
	r = rec_at(0);
	assert_int_equal(r->gen, 1);
	assert_int_equal(rec_owner(r, &slot_gen), rec_word(2, REC_ALLOC));
	assert_int_equal(slot_gen, 9);
	memset((char *)r + offsetof(struct rec, fd), 0xaa, sizeof(*r) - offsetof(struct rec, fd));
	rec_set_state(0, 2, REC_OPEN);
	assert_int_equal(rec_owner(r, &slot_gen), rec_word(2, REC_OPEN));
	assert_int_equal(slot_gen, 9);
	rec_free(0, 2);
	assert_int_equal(rec_owner(r, &slot_gen), 0);
	atomic_store(&r->gen, UINT32_MAX);		/* 0 would mean: never used */
	assert_int_equal(rec_claim(3, 10), 0);
	assert_int_equal(r->gen, 1);
	assert_int_equal(r->fd, -1);
	assert_int_equal(r->user | r->bound | r->live | r->dialect | r->name_len | r->sent_msgs, 0);
	assert_int_equal(r->rpos | r->rend | r->wend | r->wsent | r->login, 0);
	assert_true(r->in_chunk == REC_NONE && r->out_head == REC_NONE && r->out_tail == REC_NONE &&
	    r->held_head == REC_NONE && r->held_tail == REC_NONE && r->lists == REC_NONE &&
	    r->name_chunk == REC_NONE);
	for (size_t i = 0; i < sizeof(r->name); i++)
		assert_int_equal(r->name[i], 0);
	assert_sound();
}

static void test_given_away(void **state)
{
	uint32_t slot_gen;

	(void)state;
	open_segment(100);
	assert_int_equal(rec_claim(2, 9), 0);
	rec_set_state(0, 2, REC_OPEN);
	rec_give(0, 2, 5, 11);
	assert_int_equal(rec_owner(rec_at(0), &slot_gen), rec_word(5, REC_OPEN));
	assert_int_equal(slot_gen, 11);
	assert_int_equal(rec_at(0)->gen, 1);		/* the same connection */
	rec_free(0, 5);
	assert_sound();
}

/* An offer ends once: taken by the other, or called off. */
static void test_offered(void **state)
{
	uint32_t slot_gen;

	(void)state;
	open_segment(100);
	assert_int_equal(rec_claim(2, 9), 0);
	rec_set_state(0, 2, REC_OPEN);
	assert_false(rec_take(0, 2, 5, 11));		/* not offered */
	assert_false(rec_unoffer(0, 2));
	rec_offer(0, 2);
	assert_int_equal(rec_owner(rec_at(0), &slot_gen), rec_word(2, REC_MOVING));
	assert_sound();
	assert_false(rec_take(0, 3, 5, 11));		/* not by that one */
	assert_true(rec_unoffer(0, 2));
	assert_int_equal(rec_owner(rec_at(0), &slot_gen), rec_word(2, REC_OPEN));
	assert_int_equal(slot_gen, 9);
	assert_false(rec_take(0, 2, 5, 11));		/* too late */
	rec_offer(0, 2);
	assert_true(rec_take(0, 2, 5, 11));
	assert_int_equal(rec_owner(rec_at(0), &slot_gen), rec_word(5, REC_OPEN));
	assert_int_equal(slot_gen, 11);
	assert_false(rec_unoffer(0, 2));		/* too late */
	rec_free(0, 5);
	assert_sound();
}

static _Atomic int stop;

static void *give_to_and_fro(void *arg)
{
	(void)arg;
	while (!atomic_load(&stop)) {
		rec_give(0, 1, 2, 200);
		rec_give(0, 2, 1, 100);
	}
	return NULL;
}

/* Nobody ever sees the slot of one worker with the generation of the other. */
static void test_owner_is_one_word(void **state)
{
	pthread_t t;
	int seen[2] = { 0, 0 };

	(void)state;
	open_segment(100);
	assert_int_equal(rec_claim(1, 100), 0);
	atomic_store(&stop, 0);
	assert_int_equal(pthread_create(&t, NULL, give_to_and_fro, NULL), 0);
	for (long i = 0; (seen[0] < 1000 || seen[1] < 1000) && i < 500000000; i++) {
		uint32_t slot_gen, word = rec_owner(rec_at(0), &slot_gen);

		assert_int_equal(rec_word_slot(word) * 100, slot_gen);
		seen[slot_gen == 200]++;
	}
	atomic_store(&stop, 1);
	pthread_join(t, NULL);
	assert_true(seen[0] > 0 && seen[1] > 0);
}

/* What a death between two stores leaves: found, told, mended; never handed out twice. */
static void test_mend(void **state)
{
	_Atomic uint64_t *hints;

	(void)state;
	open_segment(1000);
	hints = segment_at(seg.head->hint_off);
	for (uint32_t i = 0; i < 200; i++)
		assert_int_equal(rec_claim(1, 1), i);
	rec_free(10, 1);
	atomic_fetch_or(&hints[0], 1u << 10);			/* free, hint taken */
	atomic_fetch_and(&hints[1], ~(UINT64_C(1) << 6));	/* taken, hint free: 70 */
	assert_int_equal(sess_check(NULL, NULL), 2);
	rec_mend();
	assert_sound();
	assert_int_equal(rec_claim(1, 1), 10);
	assert_int_equal(rec_claim(1, 1), 200);
	atomic_fetch_and(&hints[1], ~(UINT64_C(1) << 6));
	atomic_store(&seg.head->rec_low, 0);
	assert_int_equal(rec_claim(1, 1), 201);			/* not 70, which is taken */
	assert_sound();
	/* A mark of the lowest free one that was raised too far: mended, and no bar meanwhile. */
	rec_free(5, 1);
	atomic_store(&seg.head->rec_low, 150);
	assert_int_equal(sess_check(NULL, NULL), 1);
	rec_mend();
	assert_sound();
	assert_int_equal(rec_claim(1, 1), 5);
}

/* Every free record can be had although rec_low says there is none below. */
static void test_low_is_a_hint(void **state)
{
	(void)state;
	open_segment(300);
	for (uint32_t i = 0; i < 300; i++)
		assert_int_equal(rec_claim(1, 1), i);
	rec_free(5, 1);
	atomic_store(&seg.head->rec_low, 300);
	assert_int_equal(rec_claim(1, 1), 5);
	assert_int_equal(rec_claim(1, 1), REC_NONE);
}

/* Records that the check must not let pass. */
static void test_check_sees(void **state)
{
	struct rec *r;

	(void)state;
	open_segment(300);
	for (uint32_t i = 0; i < 10; i++)
		assert_int_equal(rec_claim(1, 1), i);
	r = rec_at(3);
	atomic_store(&r->word, rec_word(400, REC_OPEN));
	assert_int_equal(sess_check(NULL, NULL), 1);
	atomic_store(&r->word, rec_word(1, REC_FREE));
	assert_int_equal(sess_check(NULL, NULL), 1);
	atomic_store(&r->word, rec_word(1, REC_OPEN));
	assert_sound();
	atomic_store(&r->slot_gen, 0);
	assert_int_equal(sess_check(NULL, NULL), 1);
	atomic_store(&r->slot_gen, 1);
	atomic_store(&r->gen, 0);
	assert_int_equal(sess_check(NULL, NULL), 1);
	atomic_store(&r->gen, 1);
	atomic_store(&seg.head->rec_high, 9);
	assert_int_equal(sess_check(NULL, NULL), 1);
	atomic_store(&seg.head->rec_high, 10);
	assert_sound();
}

/* The kernel's no reaches the caller, and nothing is touched that is not there. */
static void test_no_memory(void **state)
{
	uint32_t reserved;
	int fd;

	(void)state;
	open_segment(5000);
	assert_int_equal(rec_claim(1, 1), 0);
	fd = seg.fd;
	seg.fd = -1;			/* fallocate() fails from here on */
	reserved = seg.head->rec_reserved;
	assert_true(reserved < 5000);
	for (uint32_t i = 1; i < reserved; i++)
		assert_int_equal(rec_claim(1, 1), i);
	assert_int_equal(rec_claim(1, 1), REC_NONE);
	seg.fd = fd;
	assert_int_equal(rec_claim(1, 1), reserved);
	assert_sound();
}

#define PROCS 4
#define EACH  50000

/* Claims and frees at random; writes the owner into what it holds and finds it unchanged. */
static void churn(uint32_t slot)
{
	uint32_t held[200], n = 0;
	unsigned seed = slot + 1;

	for (int i = 0; i < EACH; i++) {
		if (n < 200 && rand_r(&seed) % 2 == 0) {
			uint32_t k = rec_claim(slot, 1);

			if (k == REC_NONE)
				_exit(1);
			if (rec_at(k)->sent_msgs != 0)
				_exit(2);
			rec_at(k)->sent_msgs = slot + 1;
			held[n++] = k;
		} else if (n > 0) {
			uint32_t at = (uint32_t)rand_r(&seed) % n, k = held[at];

			if (rec_at(k)->sent_msgs != slot + 1)
				_exit(3);
			rec_free(k, slot);
			held[at] = held[--n];
		}
	}
	while (n > 0)
		rec_free(held[--n], slot);
	_exit(0);
}

static void test_many_processes(void **state)
{
	pid_t pid[PROCS];
	int st;

	(void)state;
	open_segment(2000);
	for (uint32_t i = 0; i < PROCS; i++) {
		pid[i] = fork();
		assert_true(pid[i] >= 0);
		if (pid[i] == 0)
			churn(i);
	}
	for (uint32_t i = 0; i < PROCS; i++) {
		assert_int_equal(waitpid(pid[i], &st, 0), pid[i]);
		assert_int_equal(st, 0);
	}
	assert_true(rec_high() <= PROCS * 200 + 64);	/* lowest first, in a crowd, too */
	assert_sound();
	for (uint32_t i = 0; i < 2000; i++)		/* none got lost */
		assert_int_equal(rec_claim(0, 1), i);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_lowest_first, teardown),
		cmocka_unit_test_teardown(test_all_taken, teardown),
		cmocka_unit_test_teardown(test_new_life, teardown),
		cmocka_unit_test_teardown(test_given_away, teardown),
		cmocka_unit_test_teardown(test_offered, teardown),
		cmocka_unit_test_teardown(test_owner_is_one_word, teardown),
		cmocka_unit_test_teardown(test_mend, teardown),
		cmocka_unit_test_teardown(test_low_is_a_hint, teardown),
		cmocka_unit_test_teardown(test_check_sees, teardown),
		cmocka_unit_test_teardown(test_no_memory, teardown),
		cmocka_unit_test_teardown(test_many_processes, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
