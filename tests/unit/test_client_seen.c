/* client/seen.c: a message is new once, for eight days, across restarts, in bounded space. */
#include <setjmp.h>
#include <sodium.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/seen.h"

#define NOW 1700000000000ull
#define DAY (24ull * 3600 * 1000)

static char dir[64], path[96];

static int set_up(void **state)
{
	(void)state;
	snprintf(dir, sizeof dir, "/tmp/parley-seen-XXXXXX");
	if (mkdtemp(dir) == NULL)
		return -1;
	snprintf(path, sizeof path, "%s/seen", dir);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(dir);
}

static bool add(struct seen *s, unsigned i, uint64_t now)
{
	char mid[40];
	int len = snprintf(mid, sizeof mid, "%032x", i);

	return seen_add(s, mid, (size_t)len, now);
}

static void test_new_once(void **state)
{
	struct seen *s = seen_open(path, NOW);

	(void)state;
	assert_true(add(s, 1, NOW));
	assert_false(add(s, 1, NOW));
	assert_true(add(s, 2, NOW));
	seen_save(s, 0);
	seen_free(s);
	s = seen_open(path, NOW);
	assert_false(add(s, 1, NOW));
	assert_false(add(s, 2, NOW));
	assert_true(add(s, 3, NOW));
	seen_free(s);
}

/* What has not reached the person is not noted on disk, so that it comes again after a crash. */
static void test_saves_only_what_is_told(void **state)
{
	struct seen *s = seen_open(path, NOW);

	(void)state;
	for (unsigned i = 0; i < 10; i++)
		add(s, i, NOW);
	seen_save(s, 4);
	seen_save(s, 7);		/* goes back: nothing */
	seen_free(s);
	s = seen_open(path, NOW);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(add(s, i, NOW), i >= 6);
	seen_free(s);
}

static void test_forgets_after_eight_days(void **state)
{
	struct seen *s = seen_open(path, NOW);

	(void)state;
	add(s, 1, NOW);
	add(s, 2, NOW + 2 * DAY);
	seen_save(s, 0);
	assert_false(add(s, 1, NOW + 8 * DAY - 1));
	seen_free(s);
	s = seen_open(path, NOW + 8 * DAY + 1);
	assert_true(add(s, 1, NOW + 8 * DAY + 1));
	assert_false(add(s, 2, NOW + 8 * DAY + 1));
	seen_free(s);
	s = seen_open(NULL, NOW);
	add(s, 1, NOW);
	seen_save(s, 0);
	assert_true(add(s, 1, NOW + 8 * DAY + 1));
	seen_free(s);
}

static void test_torn_anywhere(void **state)
{
	(void)state;
	for (off_t cut = 0; cut <= 72; cut++) {
		struct seen *s;

		unlink(path);
		s = seen_open(path, NOW);
		for (unsigned i = 0; i < 3; i++)
			add(s, i, NOW);
		seen_save(s, 0);
		seen_free(s);
		assert_int_equal(truncate(path, cut), 0);
		s = seen_open(path, NOW);
		add(s, 9, NOW);
		seen_save(s, 0);
		seen_free(s);
		s = seen_open(path, NOW);
		for (unsigned i = 0; i < 3; i++)
			assert_int_equal(add(s, i, NOW), (off_t)(i + 1) * 24 > cut);
		assert_false(add(s, 9, NOW));
		seen_free(s);
	}
}

/* Past the limit the oldest go, and none of the others are lost with them. */
static void test_bounded(void **state)
{
	const unsigned total = SEEN_MAX * 3 + 1000;
	struct seen *s = seen_open(path, NOW);
	struct stat st;

	(void)state;
	for (unsigned i = 0; i < total; i++) {
		assert_true(add(s, i, NOW));
		if (i % 64 == 0)
			seen_save(s, 0);
		if (i % 1000 == 0 && i > 0)
			assert_false(add(s, i - i % SEEN_MAX / 2 - 1, NOW));
		assert_int_equal(i > 0 && add(s, i - 1, NOW), 0);
	}
	seen_save(s, 0);
	seen_free(s);
	assert_int_equal(stat(path, &st), 0);
	assert_true((size_t)st.st_size <= (2 * SEEN_MAX + 64) * 24);
	s = seen_open(path, NOW);
	for (unsigned i = total - SEEN_MAX; i < total; i++)
		assert_false(add(s, i, NOW));
	assert_true(add(s, total - SEEN_MAX - 1, NOW));
	seen_free(s);
}

static void test_unwritable(void **state)
{
	struct seen *s = seen_open("/proc/nowhere/seen", NOW);

	(void)state;
	assert_non_null(seen_why(s));
	assert_null(seen_why(s));
	assert_true(add(s, 1, NOW));
	seen_save(s, 0);
	assert_false(add(s, 1, NOW));
	seen_free(s);
}

#define EACH(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		EACH(test_new_once), EACH(test_saves_only_what_is_told),
		EACH(test_forgets_after_eight_days), EACH(test_torn_anywhere), EACH(test_bounded),
		cmocka_unit_test(test_unwritable),
	};

	if (sodium_init() < 0)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
