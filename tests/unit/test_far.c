/* Who is online elsewhere: which news are the newer, and what is kept for how long. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "worker/far.h"

enum { H1 = 11, H2 = 22, H3 = 33 };

static int clean(void **state)
{
	(void)state;
	for (uint32_t user = 0; user < 3000; user++)
		far_forget(user);
	assert_int_equal(far_count(), 0);
	return 0;
}

static void test_unwatched_are_not_remembered(void **state)
{
	(void)state;
	assert_false(far_came(1, H1, 100, false));
	assert_false(far_left(1, H1));
	assert_int_equal(far_count(), 0);
}

static void test_comes_and_goes(void **state)
{
	(void)state;
	assert_true(far_came(1, H1, 100, true));
	assert_true(far_online(1));
	assert_false(far_came(1, H1, 100, true));
	assert_true(far_left(1, H1));
	assert_false(far_online(1));
	assert_int_equal(far_count(), 0);
}

/* "offline from H1" behind "online from H2" says nothing, and so does what H1 said before. */
static void test_change_of_host(void **state)
{
	(void)state;
	assert_true(far_came(1, H1, 100, true));
	assert_false(far_came(1, H2, 200, true));
	assert_false(far_left(1, H1));
	assert_true(far_online(1));
	assert_false(far_came(1, H1, 100, true));
	assert_false(far_left(1, H1));
	assert_true(far_left(1, H2));
}

static void test_forgotten(void **state)
{
	(void)state;
	assert_true(far_came(1, H1, 100, true));
	far_forget(1);
	assert_false(far_online(1));
	assert_int_equal(far_count(), 0);
}

static void test_an_answer(void **state)
{
	uint64_t since;

	(void)state;
	assert_true(far_hold(1));
	assert_true(far_asked(1));
	since = far_now();
	assert_true(far_answer(1, H1, since, false));
	assert_true(far_online(1));
	far_release(1, true);
	assert_false(far_asked(1));
	assert_true(far_online(1));
	far_forget(1);

	assert_true(far_hold(1));
	assert_true(far_answer(1, H1, far_now(), false));
	far_release(1, false);			/* nobody watches */
	assert_int_equal(far_count(), 0);

	assert_true(far_hold(1));
	assert_false(far_answer(1, 0, far_now(), true));
	far_release(1, true);			/* offline needs no entry */
	assert_int_equal(far_count(), 0);
}

/* What was said while the question was on its way counts. */
static void test_an_answer_that_is_late(void **state)
{
	uint64_t since;

	(void)state;
	assert_true(far_hold(1));
	since = far_now();
	assert_true(far_came(1, H1, 100, false));	/* held: it is listened to */
	assert_false(far_answer(1, 0, since, true));
	assert_true(far_online(1));
	assert_false(far_answer(1, H2, since, true));
	assert_true(far_left(1, H1));			/* and not at the other one */
	assert_true(far_known(1));
	assert_false(far_answer(1, H1, since, true));
	assert_false(far_online(1));
	assert_true(far_answer(1, H3, since, true));	/* gone from there, but not from here */
	assert_true(far_online(1));
	far_forget(1);					/* they are served on this host now */
	assert_false(far_answer(1, H3, since, true));
	assert_false(far_online(1));
	far_release(1, true);
	assert_int_equal(far_count(), 0);
}

/* A friend of somebody who logs in is not found: the host where they were says so in time. */
static void test_only_a_sure_answer_ends(void **state)
{
	(void)state;
	assert_true(far_came(1, H1, 100, true));
	assert_true(far_hold(1));
	assert_false(far_answer(1, 0, far_now(), false));
	assert_true(far_online(1));
	assert_true(far_answer(1, 0, far_now(), true));
	assert_false(far_online(1));
	far_release(1, true);
}

static void test_two_questions(void **state)
{
	(void)state;
	assert_true(far_hold(1));
	assert_true(far_hold(1));
	assert_true(far_answer(1, H1, far_now(), false));
	far_release(1, true);
	assert_true(far_asked(1));
	far_release(1, true);
	assert_false(far_asked(1));
	assert_true(far_online(1));
}

static void test_many(void **state)
{
	(void)state;
	for (uint32_t user = 1; user < 3000; user++)
		assert_true(far_came(user, user % 2 ? H1 : H2, user, true));
	assert_int_equal(far_count(), 2999);
	for (uint32_t user = 1; user < 3000; user++)
		assert_true(far_online(user));
	for (uint32_t user = 1; user < 3000; user += 2)
		assert_true(far_left(user, H1));
	for (uint32_t user = 1; user < 3000; user++)
		assert_int_equal(far_online(user), user % 2 == 0);
	assert_int_equal(far_count(), 1499);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_unwatched_are_not_remembered, clean),
		cmocka_unit_test_teardown(test_comes_and_goes, clean),
		cmocka_unit_test_teardown(test_change_of_host, clean),
		cmocka_unit_test_teardown(test_forgotten, clean),
		cmocka_unit_test_teardown(test_an_answer, clean),
		cmocka_unit_test_teardown(test_an_answer_that_is_late, clean),
		cmocka_unit_test_teardown(test_only_a_sure_answer_ends, clean),
		cmocka_unit_test_teardown(test_two_questions, clean),
		cmocka_unit_test_teardown(test_many, clean),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
