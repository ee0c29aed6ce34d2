/* The two lists of a session: contents over growth, removal and a region that is full. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "worker/lists.h"
#include "worker/state.h"

static struct worker self;
struct worker *wk = &self;

static struct segment seg;
static struct conn conn;

struct wide { uint64_t a, b, c; };

static int set_up(void **state)
{
	const struct segment_shape shape = { 1, 16, 1 << 20 };

	(void)state;
	assert_int_equal(segment_open(&seg, &shape, 1), 0);
	self = (struct worker){ .slot = 0, .gen = 1, .s = slot_at(0), .region = region_open(0, 1) };
	assert_non_null(self.region);
	conn = (struct conn){ .rec = rec_claim(0, 1) };
	assert_int_not_equal(conn.rec, REC_NONE);
	conn.r = rec_at(conn.rec);
	conn.gen = atomic_load(&conn.r->gen);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	region_close(self.region);
	segment_close(&seg);
	return 0;
}

static void add(enum list which, uint32_t v)
{
	if (which == LIST_FRIENDS) {
		uint32_t *p = lists_add(&conn, which, sizeof *p);
		assert_non_null(p);
		assert_int_equal(*p, 0);
		*p = v;
	} else {
		struct wide *w = lists_add(&conn, which, sizeof *w);
		assert_non_null(w);
		assert_true(w->a == 0 && w->b == 0 && w->c == 0);
		*w = (struct wide){ v, ~(uint64_t)v, v * 3ull };
	}
}

static void assert_list(enum list which, const uint32_t *want, uint32_t n)
{
	uint32_t got;
	const void *p = lists_get(&conn, which, &got);

	assert_int_equal(got, n);
	for (uint32_t i = 0; i < n; i++) {
		if (which == LIST_FRIENDS) {
			assert_int_equal(((const uint32_t *)p)[i], want[i]);
		} else {
			const struct wide *w = &((const struct wide *)p)[i];

			assert_true(w->a == want[i] && w->b == ~(uint64_t)want[i] &&
			    w->c == want[i] * 3ull);
		}
	}
}

static void test_empty_owns_nothing(void **state)
{
	uint32_t n = 9;

	(void)state;
	assert_null(lists_get(&conn, LIST_FRIENDS, &n));
	assert_int_equal(n, 0);
	lists_del(&conn, LIST_GROUPS, 4, 0);
	lists_free(&conn, LIST_GROUPS);
	assert_int_equal(region_used(self.region), 0);
}

static void test_two_lists(void **state)
{
	static uint32_t want[2][2000];
	uint32_t n[2] = { 0, 0 };

	(void)state;
	for (uint32_t i = 0; i < 3000; i++) {
		uint32_t k = i % 3 == 0, v = i * 7 + 1;
		enum list which = k ? LIST_GROUPS : LIST_FRIENDS;

		add(which, v);
		want[k][n[k]++] = v;
		if (i % 5 == 4) {		/* the last takes the place of what goes */
			uint32_t at = (i * 31) % n[k];

			lists_del(&conn, which, k ? sizeof(struct wide) : 4, at);
			want[k][at] = want[k][--n[k]];
		}
	}
	assert_list(LIST_FRIENDS, want[0], n[0]);
	assert_list(LIST_GROUPS, want[1], n[1]);
	lists_del(&conn, LIST_FRIENDS, 4, n[0]);		/* beyond the end */
	assert_list(LIST_FRIENDS, want[0], n[0]);
	lists_free(&conn, LIST_FRIENDS);
	assert_list(LIST_GROUPS, want[1], n[1]);
	assert_list(LIST_FRIENDS, NULL, 0);
	lists_free(&conn, LIST_GROUPS);
	assert_int_equal(conn.r->lists, CHUNK_NONE);
	assert_int_equal(region_used(self.region), 0);
}

static void test_reserve_keeps(void **state)
{
	uint32_t want[3] = { 5, 6, 7 }, n;
	const void *before;

	(void)state;
	for (int i = 0; i < 3; i++)
		add(LIST_FRIENDS, want[i]);
	assert_int_equal(lists_reserve(&conn, LIST_FRIENDS, 4, 5000), 0);
	assert_list(LIST_FRIENDS, want, 3);
	before = lists_get(&conn, LIST_FRIENDS, &n);
	for (int i = 3; i < 5000; i++)
		assert_ptr_equal((uint32_t *)lists_add(&conn, LIST_FRIENDS, 4) - i, before);
	lists_free(&conn, LIST_FRIENDS);
	assert_int_equal(region_used(self.region), 0);
}

static void test_full_region(void **state)
{
	uint32_t want[2] = { 1, 2 }, all[64], n = 0, ref;

	(void)state;
	add(LIST_FRIENDS, 1);
	add(LIST_FRIENDS, 2);
	while (n < 64 && (ref = chunk_alloc(self.region, 65536, CHUNK_OUT, 0, 0)) != CHUNK_NONE)
		all[n++] = ref;
	while ((ref = chunk_alloc(self.region, 64, CHUNK_OUT, 0, 0)) != CHUNK_NONE)
		;
	assert_int_equal(lists_reserve(&conn, LIST_FRIENDS, 4, 100000), -1);
	assert_null(lists_add(&conn, LIST_GROUPS, sizeof(struct wide)));
	assert_list(LIST_FRIENDS, want, 2);
	assert_list(LIST_GROUPS, NULL, 0);
	assert_true(n > 0);
	chunk_free(self.region, all[0]);
	assert_non_null(lists_add(&conn, LIST_GROUPS, sizeof(struct wide)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_empty_owns_nothing, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_two_lists, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_reserve_keeps, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_full_region, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
