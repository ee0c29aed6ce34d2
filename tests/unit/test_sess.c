/* The session hash: one user, one session, whatever happens to those who say so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shm/rec.h"
#include "shm/segment.h"
#include "shm/sess.h"

static struct segment seg;

static void open_segment(uint32_t sessions)
{
	struct segment_shape shape = { 16, sessions, 1 << 20 };

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

static void assert_count(uint64_t live)
{
	uint64_t n, tombs;

	sess_count(&n, &tombs);
	assert_int_equal(n, live);
	assert_int_equal(seg.head->users_online, live);
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Binds USER to a new record of SLOT, which must work. */
static uint32_t bind_new(uint32_t user, uint32_t slot)
{
	struct sess_ref old;
	uint32_t rec = rec_claim(slot, 1);

	assert_int_not_equal(rec, REC_NONE);
	assert_int_equal(sess_bind(user, rec, LIVE_YES, &old), SESS_OK);
	return rec;
}

static void unbind_free(uint32_t user, uint32_t rec, uint32_t slot)
{
	assert_int_equal(sess_unbind(user, rec), SESS_OK);
	rec_free(rec, slot);
}

static void test_bind_find_unbind(void **state)
{
	struct sess_ref ref, old;
	uint32_t a, b;

	(void)state;
	open_segment(100);
	assert_int_equal(sess_find(7, &ref), SESS_EMISSING);
	assert_false(sess_online(7));
	a = rec_claim(3, 8);
	rec_set_state(a, 3, REC_OPEN);
	assert_int_equal(sess_bind(7, a, LIVE_DRAINING, &old), SESS_OK);
	assert_int_equal(sess_find(7, &ref), SESS_OK);
	assert_true(ref.user == 7 && ref.rec == a && ref.gen == rec_at(a)->gen && ref.slot == 3 &&
	    ref.slot_gen == 8 && ref.live == LIVE_DRAINING && ref.state == REC_OPEN && ref.login == 1);
	assert_true(sess_online(7));
	assert_count(1);

	b = rec_claim(4, 9);
	assert_int_equal(sess_bind(7, b, LIVE_YES, &old), SESS_ETAKEN);
	assert_true(old.user == ref.user && old.rec == ref.rec && old.gen == ref.gen &&
	    old.slot == ref.slot && old.slot_gen == ref.slot_gen && old.live == ref.live &&
	    old.state == ref.state && old.login == ref.login);
	assert_int_equal(rec_at(b)->bound | rec_at(b)->user, 0);
	assert_int_equal(sess_unbind(7, b), SESS_EMISSING);	/* a late close evicts nobody else */
	assert_int_equal(sess_unbind(8, a), SESS_EMISSING);
	assert_int_equal(sess_unbind(7, 99), SESS_EMISSING);
	assert_int_equal(sess_find(7, &ref), SESS_OK);

	assert_int_equal(sess_unbind(7, a), SESS_OK);
	assert_int_equal(sess_unbind(7, a), SESS_EMISSING);
	assert_int_equal(sess_find(7, &ref), SESS_EMISSING);
	assert_int_equal(rec_at(a)->live, LIVE_NO);
	assert_int_equal(sess_bind(7, b, LIVE_YES, &old), SESS_OK);
	assert_int_equal(sess_find(7, &ref), SESS_OK);
	assert_true(ref.rec == b && ref.slot == 4 && ref.login == 2);
	/* A session that moves keeps its user and says at once who has it. */
	rec_give(b, 4, 5, 33);
	assert_int_equal(sess_find(7, &ref), SESS_OK);
	assert_true(ref.rec == b && ref.slot == 5 && ref.slot_gen == 33 && ref.login == 2);
	assert_count(1);
	assert_sound();
}

static void test_extreme_users(void **state)
{
	static const uint32_t users[] = { 0, 1, 511, 512, 0x7fffffff, 0x80000000, UINT32_MAX };
	uint32_t n = sizeof(users) / sizeof(users[0]), rec[7];
	struct sess_ref ref;

	(void)state;
	open_segment(1000);
	for (uint32_t i = 0; i < n; i++)
		rec[i] = bind_new(users[i], i);
	for (uint32_t i = 0; i < n; i++) {
		assert_int_equal(sess_find(users[i], &ref), SESS_OK);
		assert_int_equal(ref.rec, rec[i]);
	}
	assert_sound();
	for (uint32_t i = 0; i < n; i++)
		unbind_free(users[i], rec[i], i);
	assert_count(0);
	assert_sound();
}

/* Users who all want one place: the search goes round the shard, and every one is found. */
static void test_collisions(void **state)
{
	uint32_t shards, words, rec[1100];
	struct sess_ref ref, old;

	(void)state;
	open_segment(1100);		/* 4 shards of 1,024 words */
	shards = seg.head->hash_shards;
	words = seg.head->hash_slots / shards;
	assert_int_equal(words, 1024);
	for (uint32_t i = 0; i < 1023; i++)
		rec[i] = bind_new(500 + i * shards * words, 1);
	/* One place stays empty, or searches would have no end. */
	rec[1023] = rec_claim(1, 1);
	assert_int_equal(sess_bind(500 + 1023 * shards * words, rec[1023], LIVE_YES, &old), SESS_EFULL);
	assert_int_equal(rec_at(rec[1023])->bound, 0);
	assert_sound();
	for (uint32_t i = 0; i < 1023; i++) {
		assert_int_equal(sess_find(500 + i * shards * words, &ref), SESS_OK);
		assert_int_equal(ref.rec, rec[i]);
	}
	/* Those of another shard have room. */
	assert_int_equal(sess_bind(1000, rec[1023], LIVE_YES, &old), SESS_OK);
	for (uint32_t i = 0; i < 1023; i += 2)
		unbind_free(500 + i * shards * words, rec[i], 1);
	assert_sound();
	for (uint32_t i = 1; i < 1023; i += 2)
		assert_true(sess_online(500 + i * shards * words));
	for (uint32_t i = 0; i < 1023; i += 2)
		rec[i] = bind_new(500 + i * shards * words, 1);
	assert_sound();
	assert_count(1024);
}

/* Accounts are numbered one after the other, so those who are online are neighbours: all have room. */
static void test_neighbours(void **state)
{
	static const uint32_t sizes[] = { 16, 255, 256, 257, 511, 512, 513, 1024, 20000 };

	(void)state;
	for (size_t k = 0; k < sizeof(sizes) / sizeof(*sizes); k++) {
		open_segment(sizes[k]);
		for (uint32_t i = 0; i < sizes[k]; i++)
			bind_new(1 + i, 1);
		assert_count(sizes[k]);
		assert_sound();
		segment_close(&seg);
	}
	open_segment(16);		/* for the teardown */
}

/* Random binds and unbinds against an array that says who is bound; big and small tables. */
static void random_use(uint32_t sessions, uint32_t users, int steps, unsigned seed)
{
	uint32_t *rec = malloc(users * sizeof(*rec));
	uint64_t n = 0, tombs, live;
	struct sess_ref ref, old;

	open_segment(sessions);
	for (uint32_t i = 0; i < users; i++)
		rec[i] = REC_NONE;
	for (int i = 0; i < steps; i++) {
		uint32_t k = (uint32_t)rand_r(&seed) % users, user = k * 2654435761u;

		assert_int_equal(sess_find(user, &ref), rec[k] == REC_NONE ? SESS_EMISSING : SESS_OK);
		if (rec[k] != REC_NONE) {
			assert_int_equal(ref.rec, rec[k]);
			unbind_free(user, rec[k], 1);
			rec[k] = REC_NONE;
			n--;
		} else if ((rec[k] = rec_claim(1, 1)) != REC_NONE) {
			assert_int_equal(sess_bind(user, rec[k], LIVE_YES, &old), SESS_OK);
			n++;
		} else {
			assert_int_equal(n, sessions);
		}
	}
	sess_count(&live, &tombs);
	assert_int_equal(live, n);
	assert_true(tombs <= seg.head->hash_slots / 4 + seg.head->hash_shards);
	assert_sound();
	segment_close(&seg);
	free(rec);
}

static void test_random_use(void **state)
{
	(void)state;
	random_use(1, 10, 1000, 1);
	random_use(200, 300, 50000, 2);
	random_use(2000, 3000, 100000, 3);
	random_use(100000, 60000, 200000, 4);
	open_segment(1);
}

/* Tombstones do not pile up: searches stay short however long users come and go. */
static void test_tombstones_vanish(void **state)
{
	uint64_t live, tombs;
	uint32_t rec[100];

	(void)state;
	open_segment(256);		/* one shard of 512 words */
	for (uint32_t i = 0; i < 100; i++)
		rec[i] = bind_new(i * 3, 1);
	for (uint32_t i = 0; i < 20000; i++) {
		uint32_t k = i % 100;

		unbind_free((i < 100 ? k * 3 : (i - 100) * 7 % 500000 + 1000), rec[k], 1);
		rec[k] = bind_new(i * 7 % 500000 + 1000, 1);
		sess_count(&live, &tombs);
		assert_int_equal(live, 100);
		assert_true(tombs <= 512 / 4 + 1);
	}
	assert_sound();
}

/* sess_check() notices each kind of damage. */
static void test_check_sees(void **state)
{
	_Atomic uint64_t *words;
	_Atomic uint32_t *cell;
	uint32_t rec[10];

	(void)state;
	open_segment(256);
	for (uint32_t i = 0; i < 10; i++)
		rec[i] = bind_new(i, 1);
	cell = (_Atomic uint32_t *)((char *)segment_at(seg.head->hash_off) + sizeof(pthread_mutex_t));
	words = segment_at(seg.head->hash_off + 4096);
	assert_int_equal(words[5], UINT64_C(5) << 32 | (rec[5] + 1));	/* the layout as known here */
	assert_int_equal(cell[1], 10);
	assert_sound();

	uint64_t w = words[5];
	words[5] = 0;				/* lost: the count, and the record */
	assert_int_equal(sess_check(NULL, NULL), 2);
	words[5] = UINT64_C(0xffffffff00000000);
	assert_int_equal(sess_check(NULL, NULL), 2);
	words[5] = UINT64_C(5) << 32 | (rec[6] + 1);	/* another's record */
	assert_int_equal(sess_check(NULL, NULL), 2);
	words[5] = UINT64_C(5) << 32 | 200;	/* a record that never was */
	assert_int_equal(sess_check(NULL, NULL), 2);
	words[5] = w;
	words[50] = w;				/* twice */
	assert_int_equal(sess_check(NULL, NULL), 2);
	words[50] = 0;
	words[5] = 0;				/* out of reach of a search */
	words[50] = w;
	assert_int_equal(sess_check(NULL, NULL), 2);
	words[50] = 0;
	words[5] = w;
	assert_sound();
	atomic_store(&rec_at(rec[5])->bound, 0);
	assert_int_equal(sess_check(NULL, NULL), 1);
	atomic_store(&rec_at(rec[5])->bound, 1);
	atomic_store(&rec_at(rec[5])->user, 77);
	assert_int_equal(sess_check(NULL, NULL), 2);
	atomic_store(&rec_at(rec[5])->user, 5);
	cell[1]++;				/* counters */
	assert_int_equal(sess_check(NULL, NULL), 1);
	cell[1]--;
	cell[2]++;
	assert_int_equal(sess_check(NULL, NULL), 1);
	cell[2]--;
	cell[0]++;				/* the mark of moving words */
	assert_int_equal(sess_check(NULL, NULL), 1);
	cell[0]--;
	assert_sound();
}

/* Dies with the lock of USER's shard held. */
static void die_holding(uint32_t user)
{
	uint32_t i = user >> 9 & (seg.head->hash_shards - 1);
	pthread_mutex_t *m = (pthread_mutex_t *)((char *)segment_at(seg.head->hash_off) + 128 * i);
	pid_t pid = fork();
	int st;

	assert_true(pid >= 0);
	if (pid == 0) {
		pthread_mutex_lock(m);
		kill(getpid(), SIGKILL);
	}
	assert_int_equal(waitpid(pid, &st, 0), pid);
	assert_int_equal(st, SIGKILL);
}

/* Whatever the words of a shard have become: after a death they follow from the records. */
static void test_records_win(void **state)
{
	_Atomic uint64_t *words;
	uint32_t rec[100], extra;
	unsigned seed = 99;
	struct sess_ref ref;

	(void)state;
	open_segment(256);
	words = segment_at(seg.head->hash_off + 4096);
	for (uint32_t i = 0; i < 100; i++)
		rec[i] = bind_new(i * 5, 1);
	for (uint32_t round = 0; round < 20; round++) {
		for (uint32_t i = 0; i < 512; i++) {
			if (rand_r(&seed) % 2 == 0)
				words[i] = (uint64_t)rand_r(&seed) << 33 | (uint64_t)rand_r(&seed) % 500;
		}
		die_holding(0);
		assert_int_equal(sess_unbind(5, rec[7]), SESS_EMISSING);	/* any access mends it */
		assert_int_equal(seg.head->repairs, round + 1);
		assert_sound();
		assert_count(100);
		for (uint32_t i = 0; i < 100; i++) {
			assert_int_equal(sess_find(i * 5, &ref), SESS_OK);
			assert_int_equal(ref.rec, rec[i]);
		}
	}
	/* Two records for one user: the later login stays. A record that is free is nobody's. */
	extra = bind_new(1000, 2);
	atomic_store(&rec_at(extra)->user, 50);
	die_holding(0);
	assert_sound();
	assert_count(100);
	assert_int_equal(sess_find(50, &ref), SESS_OK);
	assert_int_equal(ref.rec, extra);
	assert_int_equal(rec_at(rec[10])->bound, 0);
	atomic_store(&rec_at(rec[20])->bound, 0);
	rec_free(rec[20], 1);
	atomic_store(&rec_at(rec[20])->bound, 1);
	die_holding(0);
	assert_sound();
	assert_count(99);
}

/* A reader who finds words on the move and their mover dead takes the lock and mends. */
static void test_reader_mends(void **state)
{
	_Atomic uint32_t *change;
	struct sess_ref ref;
	uint32_t rec;

	(void)state;
	open_segment(256);
	(void)bind_new(9, 1);
	rec = bind_new(11, 1);
	change = (_Atomic uint32_t *)((char *)segment_at(seg.head->hash_off) + sizeof(pthread_mutex_t));
	die_holding(9);
	/* Found without a lock, whoever may hold it. */
	assert_int_equal(sess_find(9, &ref), SESS_OK);
	assert_int_equal(sess_find(10, &ref), SESS_EMISSING);
	assert_int_equal(seg.head->repairs, 0);
	atomic_fetch_or(change, 1);
	*(_Atomic uint64_t *)segment_at(seg.head->hash_off + 4096 + 11 * 8) = 0;
	assert_int_equal(sess_find(9, &ref), SESS_OK);		/* remembered, and its record agrees */
	assert_int_equal(seg.head->repairs, 0);
	assert_int_equal(sess_find(11, &ref), SESS_OK);
	assert_int_equal(ref.rec, rec);
	assert_int_equal(seg.head->repairs, 1);
	assert_int_equal(*change % 2, 0);
	assert_sound();
}

/* Without memory for its block a user cannot be bound, can be asked for, and others go on. */
static void test_no_memory(void **state)
{
	struct sess_ref ref;
	uint32_t rec;
	int fd;

	(void)state;
	open_segment(1000);
	bind_new(1, 1);
	rec = rec_claim(1, 1);
	fd = seg.fd;
	seg.fd = -1;
	assert_int_equal(sess_bind(600, rec, LIVE_YES, &ref), SESS_EFULL);
	assert_int_equal(sess_find(600, &ref), SESS_EMISSING);
	assert_int_equal(sess_bind(2, rec, LIVE_YES, &ref), SESS_OK);
	seg.fd = fd;
	assert_sound();
}

/* A shard of more than 64 blocks: several share a flag for their memory. */
static void test_huge_table(void **state)
{
	struct sess_ref ref;

	(void)state;
	open_segment(100000000);
	assert_true(seg.head->hash_slots / seg.head->hash_shards > 64 * 512);
	for (uint32_t i = 0; i < 1300; i++)
		bind_new(i * 3300007u, i % 16);
	for (uint32_t i = 0; i < 1300; i++) {
		assert_int_equal(sess_find(i * 3300007u, &ref), SESS_OK);
		assert_int_equal(ref.rec, i);
	}
	die_holding(0);
	assert_sound();
}

/* --- Many at once -------------------------------------------------------------------------- */

#define USERS 700		/* of few words: they meet */

/* What the processes of the storm share. */
struct storm {
	_Atomic int stop;
	_Atomic uint64_t ops, found, wrong;
};

static struct storm *storm;

/* What is found must have been true: the record is, or was meanwhile, that user's. */
static void look_up(uint32_t user)
{
	struct sess_ref ref;

	if (sess_find(user, &ref) != SESS_OK)
		return;
	atomic_fetch_add(&storm->found, 1);
	if (ref.user != user || ref.rec >= rec_high() || ref.gen == 0 || ref.login == 0 ||
	    ref.live != LIVE_YES || ref.slot_gen != ref.slot + 100)
		atomic_fetch_add(&storm->wrong, 1);
}

/* Binds and unbinds own sessions at random until told to stop; leaves them all then. */
static void storm_worker(uint32_t slot, unsigned seed)
{
	uint32_t rec[30], user[30], n = 0;
	struct sess_ref old;

	while (!atomic_load(&storm->stop)) {
		uint32_t u = (uint32_t)rand_r(&seed) % USERS * 64;

		atomic_fetch_add_explicit(&storm->ops, 1, memory_order_relaxed);
		if (rand_r(&seed) % 3 == 0) {
			look_up(u);
		} else if (n < 30 && rand_r(&seed) % 2 == 0) {
			uint32_t r = rec_claim(slot, slot + 100);

			if (r == REC_NONE)
				continue;
			if (sess_bind(u, r, LIVE_YES, &old) == SESS_OK)
				rec[n] = r, user[n++] = u;
			else
				rec_free(r, slot);
		} else if (n > 0) {
			uint32_t k = (uint32_t)rand_r(&seed) % n;
			struct sess_ref ref;

			if (sess_find(user[k], &ref) != SESS_OK || ref.rec != rec[k] ||
			    sess_unbind(user[k], rec[k]) != SESS_OK)
				atomic_fetch_add(&storm->wrong, 1);
			rec_free(rec[k], slot);
			rec[k] = rec[--n], user[k] = user[n];
		}
	}
	while (n-- > 0) {
		if (sess_unbind(user[n], rec[n]) != SESS_OK)
			atomic_fetch_add(&storm->wrong, 1);
		rec_free(rec[n], slot);
	}
}

/* What the successor of a killed worker does with its sessions. */
static void sweep(uint32_t slot)
{
	for (uint32_t i = 0; i < rec_high(); i++) {
		uint32_t slot_gen, word = rec_owner(rec_at(i), &slot_gen);

		if (word == 0 || rec_word_slot(word) != (int)slot)
			continue;
		if (atomic_load(&rec_at(i)->bound) &&
		    sess_unbind(atomic_load(&rec_at(i)->user), i) != SESS_OK)
			atomic_fetch_add(&storm->wrong, 1);
		/* A bind may have been cut off before `bound`; a repair decided under the lock. */
		rec_free(i, slot);
	}
	rec_mend();
}

static int storm_setup(void **state)
{
	(void)state;
	storm = mmap(NULL, sizeof(*storm), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return storm == MAP_FAILED;
}

static int storm_teardown(void **state)
{
	munmap(storm, sizeof(*storm));
	return teardown(state);
}

static void *storm_thread(void *arg)
{
	storm_worker((uint32_t)(uintptr_t)arg, (unsigned)(uintptr_t)arg + 1);
	return NULL;
}

/* The same by threads, for tools that see one process only. */
static void test_threads(void **state)
{
	pthread_t t[4];

	(void)state;
	open_segment(256);
	for (uintptr_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, storm_thread, (void *)i), 0);
	for (int64_t end = now_ms() + 300; now_ms() < end;)
		sched_yield();
	atomic_store(&storm->stop, 1);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(storm->wrong, 0);
	assert_true(storm->ops > 1000 && storm->found > 100);
	assert_sound();
	assert_count(0);
}

static pid_t storm_start(uint32_t slot, unsigned seed)
{
	pid_t parent = getpid(), pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		sweep(slot);
		storm_worker(slot, seed);
		_exit(0);
	}
	return pid;
}

static void test_kill_storm(void **state)
{
	enum { WORKERS = 4 };
	pid_t pid[WORKERS];
	unsigned seed = (unsigned)now_ms(), kills = 0;
	uint64_t n, tombs;
	int st;

	(void)state;
	print_message("seed %u\n", seed);
	open_segment(256);		/* one shard: every death is everybody's */
	for (uint32_t i = 0; i < WORKERS; i++)
		pid[i] = storm_start(i, rand_r(&seed));
	/* Two seconds, or as long as a busy machine takes for a fair number of deaths. */
	for (int64_t start = now_ms(), end = start + 30000;
	    now_ms() < end && (now_ms() < start + 2000 || kills < 50); kills++) {
		uint32_t i = (uint32_t)rand_r(&seed) % WORKERS;
		uint64_t ops = atomic_load(&storm->ops) + (unsigned)rand_r(&seed) % 2000;

		while (atomic_load(&storm->ops) < ops && now_ms() < end)
			sched_yield();
		kill(pid[i], SIGKILL);
		assert_int_equal(waitpid(pid[i], &st, 0), pid[i]);
		assert_int_equal(st, SIGKILL);
		pid[i] = storm_start(i, rand_r(&seed));
	}
	atomic_store(&storm->stop, 1);
	for (uint32_t i = 0; i < WORKERS; i++) {
		assert_int_equal(waitpid(pid[i], &st, 0), pid[i]);
		assert_int_equal(st, 0);
	}
	rec_mend();
	print_message("%u kills, %u repairs, %llu operations\n", kills, seg.head->repairs,
	    (unsigned long long)storm->ops);
	assert_int_equal(storm->wrong, 0);
	assert_true(kills >= 50);
	assert_sound();
	sess_count(&n, &tombs);
	assert_int_equal(n, 0);
	for (uint32_t i = 0; i < 256; i++)
		assert_int_equal(rec_at(i)->word, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_bind_find_unbind, teardown),
		cmocka_unit_test_teardown(test_extreme_users, teardown),
		cmocka_unit_test_teardown(test_collisions, teardown),
		cmocka_unit_test_teardown(test_neighbours, teardown),
		cmocka_unit_test_teardown(test_random_use, teardown),
		cmocka_unit_test_teardown(test_tombstones_vanish, teardown),
		cmocka_unit_test_teardown(test_check_sees, teardown),
		cmocka_unit_test_teardown(test_records_win, teardown),
		cmocka_unit_test_teardown(test_reader_mends, teardown),
		cmocka_unit_test_teardown(test_no_memory, teardown),
		cmocka_unit_test_teardown(test_huge_table, teardown),
		cmocka_unit_test_setup_teardown(test_threads, storm_setup, storm_teardown),
		cmocka_unit_test_setup_teardown(test_kill_storm, storm_setup, storm_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
