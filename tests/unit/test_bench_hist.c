/* test_bench_hist.c - the load tool's histogram and the texts that carry times. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "tests/bench/bench.h"

struct options opt = { .size = 60 };	/* what the texts are made for */

/* Any value comes back within one of 64 steps an octave, never too small. */
static void a_value_is_near_the_truth(void **state)
{
	(void)state;
	for (uint64_t v = 0; v < 1ull << 44; v = v * 5 / 3 + 1) {
		struct hist h = { 0 };

		hist_add(&h, v);
		hist_add(&h, v + v / 4 + 1);	/* so that the maximum does not stand in for it */
		uint64_t got = hist_quantile(&h, 0.5);

		assert_true(got >= v);
		assert_true(got <= v + v / 64 + 1);
	}
}

static void quantiles_of_a_thousand(void **state)
{
	struct hist h = { 0 };

	(void)state;
	for (uint64_t i = 1; i <= 1000; i++)
		hist_add(&h, i * 1000);
	assert_in_range(hist_quantile(&h, 0.5), 500000, 508000);
	assert_in_range(hist_quantile(&h, 0.99), 990000, 1006000);
	assert_int_equal(hist_quantile(&h, 1), 1000000);
	assert_int_equal(h.count, 1000);
	assert_int_equal(h.sum, 500500000);
}

static void an_empty_one_and_a_merged_one(void **state)
{
	struct hist a = { 0 }, b = { 0 };

	(void)state;
	assert_int_equal(hist_quantile(&a, 0.99), 0);
	hist_add(&b, 7);
	hist_add(&a, UINT64_MAX);		/* beyond the last slot */
	hist_merge(&a, &b);
	assert_int_equal(a.count, 2);
	assert_int_equal(hist_quantile(&a, 0.5), 7);
	assert_true(a.max == UINT64_MAX);
}

static void a_text_comes_back(void **state)
{
	char buf[200] = "\"msg\":\"T123Tx", *at = buf + strlen(buf), *end = text_put(at, 0x123456789abcdefLL, 77,
	    UINT32_MAX);
	int64_t stamp = 0;
	uint32_t sender = 0, seq = 0;

	(void)state;
	assert_int_equal(end - at, 60);
	assert_true(text_find(buf, (size_t)(end - buf), &stamp, &sender, &seq));
	assert_true(stamp == 0x123456789abcdefLL);
	assert_int_equal(sender, 77);
	assert_int_equal(seq, UINT32_MAX);
	assert_false(text_find(buf, (size_t)(at - buf) + TEXT_HEAD - 1, &stamp, &sender, &seq));
}

static void members_of_a_frame(void **state)
{
	static const char f[] = "{\"msgid\":2,\"name\":\"x y\",\"retry_ms\":120,\"a\":{\"mid\":\"1\"},\"mid\":\"2\"}";
	char name[8];

	(void)state;
	assert_int_equal(frame_number(f, sizeof f - 1, "retry_ms", -1), 120);
	assert_int_equal(frame_number(f, sizeof f - 1, "errno", -1), -1);
	assert_int_equal(frame_number(f, sizeof f - 1, "name", 5), 5);
	assert_true(frame_string(f, sizeof f - 1, "name", name, sizeof name));
	assert_string_equal(name, "x y");
	assert_false(frame_string(f, sizeof f - 1, "name", name, 3));
	assert_int_equal(frame_count(f, sizeof f - 1, "\"mid\":"), 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_value_is_near_the_truth),
		cmocka_unit_test(quantiles_of_a_thousand),
		cmocka_unit_test(an_empty_one_and_a_merged_one),
		cmocka_unit_test(a_text_comes_back),
		cmocka_unit_test(members_of_a_frame),
	};

	return cmocka_run_group_tests_name("bench", tests, NULL, NULL);
}
