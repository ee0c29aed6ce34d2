/* The segment: its layout, the memory that it takes, and the worker slots in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shm/chunk.h"
#include "shm/rec.h"
#include "shm/segment.h"
#include "shm/sess.h"
#include "shm/slots.h"

static struct segment seg;

static void open_segment(uint32_t workers, uint32_t sessions, uint64_t region)
{
	struct segment_shape shape = { workers, sessions, region };

	assert_int_equal(segment_open(&seg, &shape, 77), 0);
	assert_ptr_equal(shm, &seg);
}

static long kib(void)		/* pages that exist, whoever touched them */
{
	struct stat st;

	assert_int_equal(fstat(seg.fd, &st), 0);
	return (long)st.st_blocks / 2;
}

static void test_sizes_that_cannot_be(void **state)
{
	static const struct segment_shape wrong[] = {
		{ 0, 100, 1 << 20 },
		{ 4, 0, 1 << 20 },
		{ 4, UINT32_MAX, 1 << 20 },
		{ 4, 100, UINT64_MAX },
		{ 4, 100, UINT64_C(1) << 40 },		/* more than references can name */
		{ UINT32_MAX, 100, UINT64_C(256) << 30 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_int_equal(segment_bytes(&wrong[i]), 0);
		assert_true(segment_open(&seg, &wrong[i], 1) < 0);
		assert_null(shm);
	}
	/* Counted right, but more than an address space: the kernel's no is passed on. */
	struct segment_shape huge = { 2000, 100, UINT64_C(200) << 30 };
	assert_true(segment_bytes(&huge) > UINT64_C(1) << 48);
	assert_true(segment_open(&seg, &huge, 1) < 0);
	assert_null(shm);
}

static void test_parts_do_not_overlap(void **state)
{
	static const struct segment_shape shapes[] = {
		{ 1, 1, 1 }, { 3, 257, 100000 }, { 16, 1000, 1 << 20 }, { 512, 1000000, 256 << 20 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
		assert_int_equal(segment_open(&seg, &shapes[i], 77), 0);
		const struct segment_head *h = seg.head;
		const uint64_t ends[] = {
			sizeof(*h), h->slots_off,
			h->slots_off + h->max_workers * (uint64_t)h->slot_bytes, h->conf_off,
			h->conf_off + 2 * SEGMENT_CONF_MAX, h->addr_off,
			h->addr_off + h->naddr * UINT64_C(32), h->hash_off,
			h->hash_off + sess_bytes(h->hash_slots, h->hash_shards), h->hint_off,
			h->hint_off + (h->max_sessions + 7) / 8, h->rec_off,
			h->rec_off + h->max_sessions * (uint64_t)h->rec_bytes, h->region_off,
			h->region_off + h->max_workers * h->region_bytes, h->bytes,
		};
		for (size_t k = 1; k < sizeof(ends) / sizeof(ends[0]); k++)
			assert_true(ends[k - 1] <= ends[k]);
		assert_true(h->magic == SEGMENT_MAGIC && h->layout == SEGMENT_LAYOUT && h->epoch == 77);
		assert_int_equal(h->bytes, segment_bytes(&shapes[i]));
		assert_int_equal(h->hash_slots & (h->hash_slots - 1), 0);
		assert_true(h->hash_slots >= 2 * h->max_sessions);
		assert_true(h->hash_slots / h->hash_shards >= 512);
		segment_close(&seg);
		assert_null(shm);
	}
}

static void test_file_is_sealed(void **state)
{
	(void)state;
	open_segment(2, 100, 1 << 20);
	assert_int_equal(fcntl(seg.fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW),
	    F_SEAL_SHRINK | F_SEAL_GROW);
	assert_int_equal(ftruncate(seg.fd, 4096), -1);
	assert_true(fcntl(seg.fd, F_GETFD) & FD_CLOEXEC);
	segment_close(&seg);
}

/* What a daemon costs that was made for a million users and has none, then has some. */
static void test_memory_follows_use(void **state)
{
	struct sess_ref old;
	long idle, users;

	(void)state;
	open_segment(512, 1000000, UINT64_C(256) << 20);
	assert_true(seg.bytes > UINT64_C(128) << 30);
	idle = kib() - 512 * 4;			/* a page a slot is what they were asked to be */
	assert_true(idle <= 200);
	for (uint32_t i = 0; i < 50000; i++) {
		assert_int_equal(rec_claim(0, 1), i);
		assert_int_equal(sess_bind(i + 1, i, LIVE_YES, &old), SESS_OK);
	}
	users = kib() - 512 * 4 - idle;
	/* 98 pages of words, 192 bytes a record, rounded up to steps of 256 KiB, two pages of hints */
	assert_true(users <= 98 * 4 + 50000 * 192 / 1024 + 256 + 8);
	/* Asking for those who are not there costs nothing. */
	for (uint32_t u = 50001; u < 2000000; u += 37)
		assert_int_equal(sess_find(u, &old), SESS_EMISSING);
	assert_int_equal(kib() - 512 * 4 - idle, users);
	assert_int_equal(sess_check(NULL, NULL), 0);
	segment_close(&seg);
}

static void test_reserve_and_release(void **state)
{
	uint64_t off;
	long before;

	(void)state;
	open_segment(2, 100, 4 << 20);
	off = seg.head->region_off + seg.head->region_bytes;
	before = kib();
	assert_int_equal(segment_reserve(off + 5000, 1), 0);
	assert_int_equal(kib() - before, 4);
	assert_int_equal(segment_reserve(off, 1 << 20), 0);
	assert_int_equal(kib() - before, 1024);
	memset(segment_at(off), 0x5a, 1 << 20);
	/* Only whole pages go: what lies beside them stays. */
	assert_int_equal(segment_release(off + 1, 8192 + 4095), 0);
	assert_int_equal(kib() - before, 1024 - 8);
	assert_int_equal(*(char *)segment_at(off + 4095), 0x5a);
	assert_int_equal(*(char *)segment_at(off + 12288), 0x5a);
	assert_int_equal(*(char *)segment_at(off + 4096), 0);
	assert_int_equal(*(char *)segment_at(off + 12287), 0);
	assert_int_equal(segment_reserve(off, 0), 0);
	assert_int_equal(segment_release(off + 1, 4096), 0);
	segment_close(&seg);
}

static void test_children_share_it(void **state)
{
	pid_t pid;
	int st;

	(void)state;
	open_segment(2, 100, 1 << 20);
	pid = fork();
	if (pid == 0) {
		SLOT_ADD(slot_at(1), logins, 3);
		_exit(segment_reserve(seg.head->region_off, 4096) != 0);
	}
	assert_int_equal(waitpid(pid, &st, 0), pid);
	assert_int_equal(st, 0);
	assert_int_equal(slot_at(1)->n.logins, 3);
	assert_int_equal(slot_at(0)->n.logins, 0);
	segment_close(&seg);
}

static void test_slot_identity(void **state)
{
	static const struct { enum slot_state state; bool alive; } cases[] = {
		{ SLOT_EMPTY, false }, { SLOT_STARTING, true }, { SLOT_READY, true },
		{ SLOT_LEAVING, true }, { SLOT_STOPPING, true }, { SLOT_DEAD, false },
	};

	(void)state;
	open_segment(2, 100, 1 << 20);
	atomic_store(&slot_at(0)->state, SLOT_READY);
	assert_false(slot_alive(0, 0));			/* never used */
	assert_false(slot_alive(2, 1));			/* no such slot */
	atomic_store(&slot_at(1)->gen, 5);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		atomic_store(&slot_at(1)->state, cases[i].state);
		assert_int_equal(slot_alive(1, 5), cases[i].alive);
		assert_false(slot_alive(1, 4));
		assert_false(slot_alive(1, 6));
	}
	segment_close(&seg);
}

static void test_counters_by_name(void **state)
{
	unsigned n = 0;
	bool seen = false;

	(void)state;
	open_segment(1, 100, 1 << 20);
	SLOT_ADD(slot_at(0), hashes, 41);
	SLOT_ADD(slot_at(0), hashes, 1);
	for (const struct slot_counter *c; (c = slot_counter_at(n)) != NULL; n++) {
		bool is_hashes = strcmp(c->name, "hashes") == 0;

		assert_true(c->help[0] != '\0');
		assert_int_equal(c->get(slot_at(0)), is_hashes ? 42 : 0);
		seen |= is_hashes;
	}
	assert_true(seen);
	assert_int_equal(n, sizeof(slot_at(0)->n) / sizeof(uint64_t));
	segment_close(&seg);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes_that_cannot_be),
		cmocka_unit_test(test_parts_do_not_overlap),
		cmocka_unit_test(test_file_is_sealed),
		cmocka_unit_test(test_memory_follows_use),
		cmocka_unit_test(test_reserve_and_release),
		cmocka_unit_test(test_children_share_it),
		cmocka_unit_test(test_slot_identity),
		cmocka_unit_test(test_counters_by_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
