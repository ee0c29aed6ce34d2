/* client/ctl_ring.c: nginx's consistent hash, against figures that were computed elsewhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/ctl_ring.h"

#define LEN(a) (sizeof(a) / sizeof((a)[0]))

static void test_hash(void **state)
{
	(void)state;
	assert_int_equal(ring_hash("123456789", 9), 0xcbf43926);	/* CRC-32's own check value */
	assert_int_equal(ring_hash("", 0), 0);
	assert_int_equal(ring_hash("127.0.0.1", 9), 0xd7b7e7a8);
	assert_int_equal(ring_hash("203.0.113.77", 12), 0xd38528fe);
	assert_int_equal(ring_hash("2001:db8::1", 11), 0x00b4af0e);
}

static bool has_point(const struct ring *r, uint32_t hash)
{
	for (size_t i = 0; i < r->n; i++)
		if (r->point[i].hash == hash)
			return true;
	return false;
}

/* Points 0, 1, 2, 159, 160 and 319 of servers of weight 2 (zlib's crc32, by hand). */
static void test_points(void **state)
{
	static const struct { const char *name; uint32_t hash[6]; } cases[] = {
		{ "10.0.0.1:6000",
		    { 0x0833cad0, 0x48ef8ddd, 0x940105c6, 0x93e16033, 0x8c1956ec, 0xf86565c7 } },
		{ "[2001:db8::1]:6000",
		    { 0x9c3d1673, 0x6e4d5112, 0xe48eb0f7, 0xb508c185, 0xa5056106, 0x65f47681 } },
		{ "chat.example.org",
		    { 0x4cb15794, 0x95d48b10, 0x94f993ba, 0x1c9d1cd2, 0x053ed48a, 0x0a395e71 } },
		{ "UNIX:/run/parley.sock",
		    { 0x083f2c07, 0xf2ba0934, 0x353ead7c, 0xa2819fd9, 0xbf6c4e17, 0x1e7dcf99 } },
	};

	(void)state;
	for (size_t i = 0; i < LEN(cases); i++) {
		struct ring_server s = { .name = cases[i].name, .weight = 2 };
		struct ring r;

		assert_int_equal(ring_build(&r, &s, 1), 0);
		assert_int_equal(r.n, 320);
		for (size_t k = 0; k < 6; k++)
			assert_true(has_point(&r, cases[i].hash[k]));
		for (size_t k = 1; k < r.n; k++)
			assert_true(r.point[k - 1].hash < r.point[k].hash);
		ring_fini(&r);
	}
}

static const struct ring_server three[] = {
	{ .name = "10.0.0.1:6000", .weight = 1 },
	{ .name = "10.0.0.2:6000", .weight = 2 },
	{ .name = "10.0.0.3:6000", .weight = 1 },
};

static uint32_t owner(const struct ring *r, const char *key)
{
	return ring_find(r, ring_hash(key, strlen(key)));
}

static void test_who_has_whom(void **state)
{
	static const uint32_t all[] = { 0, 1, 1, 1, 1, 0, 1, 2 }, without[] = { 0, 2, 2, 2, 2, 0, 0, 2 };
	struct ring_server s[3];
	struct ring r, deleted, down;
	char key[32];

	(void)state;
	memcpy(s, three, sizeof s);
	assert_int_equal(ring_build(&r, s, 3), 0);
	s[1].down = true;
	assert_int_equal(ring_build(&down, s, 3), 0);
	s[1].down = false;
	s[1].weight = 0;
	assert_int_equal(ring_build(&deleted, s, 3), 0);
	for (size_t i = 0; i < LEN(all); i++) {
		snprintf(key, sizeof key, "192.0.2.%zu", i + 1);
		assert_int_equal(owner(&r, key), all[i]);
		assert_int_equal(owner(&deleted, key), without[i]);
		assert_int_equal(owner(&down, key), without[i]);
	}
	/* at a point, behind the last one, and at both ends */
	assert_int_equal(ring_find(&r, r.point[7].hash), r.point[7].server);
	assert_int_equal(ring_find(&r, r.point[7].hash + 1), r.point[8].server);
	assert_int_equal(ring_find(&r, r.point[r.n - 1].hash), r.point[r.n - 1].server);
	assert_int_equal(ring_find(&r, r.point[r.n - 1].hash + 1), r.point[0].server);
	assert_int_equal(ring_find(&r, 0), r.point[0].server);
	assert_int_equal(ring_find(&r, UINT32_MAX), r.point[0].server);
	ring_fini(&r);
	ring_fini(&down);
	ring_fini(&deleted);
}

static void test_shares_and_moves(void **state)
{
	static const uint64_t share[] = { 1024031458, 2115804795, 1155131043 };
	struct ring_server s[3];
	struct ring before, after;
	uint64_t moved[9], sum = 0;

	(void)state;
	memcpy(s, three, sizeof s);
	assert_int_equal(ring_build(&before, s, 3), 0);
	s[1].weight = 0;
	assert_int_equal(ring_build(&after, s, 3), 0);
	ring_compare(&before, &before, 3, moved);
	for (size_t i = 0; i < 9; i++)
		assert_int_equal(moved[i], i % 4 == 0 ? share[i / 4] : 0);
	ring_compare(&before, &after, 3, moved);
	for (size_t i = 0; i < 9; i++)
		sum += moved[i];
	assert_int_equal(sum, RING_KEYS);
	assert_int_equal(moved[0], share[0]);		/* nobody leaves those that stay */
	assert_int_equal(moved[8], share[2]);
	assert_int_equal(moved[3], 1096713441);
	assert_int_equal(moved[5], 1019091354);
	/* the other way round it is the same, mirrored */
	ring_compare(&after, &before, 3, moved);
	assert_int_equal(moved[1], 1096713441);
	assert_int_equal(moved[7], 1019091354);
	ring_fini(&before);
	ring_fini(&after);
}

static void test_nobody(void **state)
{
	struct ring_server s = { .name = "10.0.0.1:6000", .weight = 1, .down = true };
	struct ring r, empty;
	uint64_t moved[1] = { 7 };

	(void)state;
	assert_int_equal(ring_build(&r, &s, 1), 0);
	assert_int_equal(r.n, 0);
	assert_int_equal(ring_find(&r, 12345), RING_NOBODY);
	assert_int_equal(ring_build(&empty, NULL, 0), 0);
	ring_compare(&r, &empty, 1, moved);
	assert_int_equal(moved[0], 0);
	ring_fini(&r);
	ring_fini(&empty);
}

static void test_bounds(void **state)
{
	struct ring_server s[17];
	struct ring r;

	(void)state;
	for (size_t i = 0; i < LEN(s); i++)
		s[i] = (struct ring_server){ .name = "h:1", .weight = RING_WEIGHT_MAX };
	assert_int_equal(ring_build(&r, s, LEN(s)), -1);	/* 17,000 */
	ring_fini(&r);
	s[0].weight = RING_WEIGHT_MAX + 1;
	assert_int_equal(ring_build(&r, s, 1), -1);
	ring_fini(&r);
	s[0].weight = UINT32_MAX;
	assert_int_equal(ring_build(&r, s, 2), -1);
	ring_fini(&r);
}

#define COLLIDING_A    "10.0.0.49:6000"
#define COLLIDING_B    "10.0.1.188:6000"
#define COLLIDING_HASH 0x2514d8ff

/* Both have a point at the same hash; nginx keeps the first server's. */
static void test_points_that_meet(void **state)
{
	struct ring_server s[] = { { .name = COLLIDING_A, .weight = 1 }, { .name = COLLIDING_B, .weight = 1 } };
	struct ring r;

	(void)state;
	assert_int_equal(ring_build(&r, s, 2), 0);
	assert_int_equal(r.n, 319);
	assert_int_equal(ring_find(&r, COLLIDING_HASH), 0);
	ring_fini(&r);
	s[0].name = COLLIDING_B;
	s[1].name = COLLIDING_A;
	assert_int_equal(ring_build(&r, s, 2), 0);
	assert_int_equal(ring_find(&r, COLLIDING_HASH), 0);
	ring_fini(&r);
	/* down, it still hides the other's point */
	s[0].down = true;
	assert_int_equal(ring_build(&r, s, 2), 0);
	assert_int_equal(r.n, 159);
	assert_false(has_point(&r, COLLIDING_HASH));
	ring_fini(&r);
}

static void test_keys(void **state)
{
	static const struct { const char *in, *out; } good[] = {
		{ "127.0.0.1", "127.0.0.1" },
		{ "::1", "::1" },
		{ "2001:DB8:0:0:0:0:0:1", "2001:db8::1" },
		{ "2001:db8::1:0:0:1", "2001:db8::1:0:0:1" },
		{ "::ffff:192.0.2.1", "::ffff:192.0.2.1" },
		{ "unix:", "unix:" },
	};
	static const char *const bad[] = { "", "1.2.3", "1.2.3.4:5", "01.2.3.4", "[::1]", "localhost",
	    "1.2.3.4 ", "256.1.1.1", "::1%lo", "unix:/x" };
	char key[RING_KEY];

	(void)state;
	for (size_t i = 0; i < LEN(good); i++) {
		assert_int_equal(ring_key(good[i].in, key), 0);
		assert_string_equal(key, good[i].out);
	}
	for (size_t i = 0; i < LEN(bad); i++)
		if (ring_key(bad[i], key) != -1)
			fail_msg("%s", bad[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hash),
		cmocka_unit_test(test_points),
		cmocka_unit_test(test_who_has_whom),
		cmocka_unit_test(test_shares_and_moves),
		cmocka_unit_test(test_nobody),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_points_that_meet),
		cmocka_unit_test(test_keys),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
