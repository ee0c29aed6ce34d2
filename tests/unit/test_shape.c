/*
 * test_shape.c - a frame that fits a shape says what the parser would have said of it, and what the
 * parser would not accept fits none.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/base/frame.h"
#include "worker/base/json.h"
#include "worker/base/shape.h"

#define MAX 400

static struct shapes *shapes;
static struct json *j;

static int set_up(void **state)
{
	(void)state;
	shapes = shapes_new();
	j = json_new(0);
	return shapes != NULL && j != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	shapes_free(shapes);
	json_free(j);
	return 0;
}

static uint8_t tag_of(size_t i)
{
	return i % 3 == 2 ? 0 : (uint8_t)(i + 1);
}

/* Learns TEXT, whose first member is fixed; each third is nobody's, the others' tags count from 1. */
static void learn(const char *text)
{
	struct json_pair pairs[40];
	uint8_t tags[40];
	struct frame_seen seen;
	struct frame f;
	size_t start, end, n;

	frame_init(&f);
	assert_int_equal(frame_find(&f, text, strlen(text), MAX, &start, &end, &seen), FRAME_ONE);
	assert_true(seen.simple);
	assert_int_equal(json_parse_seen(j, text, end, &seen), JSON_OK);
	n = json_members(j, pairs, 40);
	for (size_t i = 0; i < n; i++)
		tags[i] = tag_of(i);
	shape_learn(shapes, text, end, pairs, tags, n, 0, 7);
}

/* An exact copy, so that the sanitizer sees a read beyond the end. */
static bool fits(const char *text)
{
	static char *copy;
	static struct shape_found found;
	struct json_pair pairs[40], others[SHAPE_MEMBERS];
	struct json_val known[40] = { 0 };
	unsigned rest = 0;
	struct frame f;
	size_t len = strlen(text), n;
	bool is;

	free(copy);
	copy = malloc(len + 1);
	assert_non_null(copy);
	memcpy(copy + 1, text, len);
	frame_init(&f);
	is = shape_next(shapes, &f, copy + 1, len, MAX, &found, known, others);
	if (!is) {
		assert_int_equal(f.pos, 0);
		return false;
	}
	assert_int_equal(json_parse(j, found.text, found.len), JSON_OK);
	n = json_members(j, pairs, 40);
	assert_int_equal(f.values, n + 1);
	assert_int_equal(found.cookie, 7);
	assert_ptr_equal(found.text + found.len, copy + 1 + f.pos);
	for (size_t i = 0; i < n; i++) {
		const struct json_val *v = &known[tag_of(i)];

		if (tag_of(i) == 0) {
			assert_int_equal(others[rest].key.len, pairs[i].key.len);
			assert_memory_equal(others[rest].key.raw, pairs[i].key.raw, pairs[i].key.len);
			v = &others[rest++].val;
		} else if (pairs[i].val.type == JSON_NULL) {
			assert_int_equal(v->type, JSON_NONE);
			continue;
		}
		assert_int_equal(v->type, pairs[i].val.type);
		assert_int_equal(v->len, pairs[i].val.len);
		assert_memory_equal(v->raw, pairs[i].val.raw, v->len);
	}
	assert_int_equal(found.nothers, rest);
	return true;
}

static void test_fits(void **state)
{
	static const char *const yes[] = {
		"{\"msgid\":5,\"to\":1,\"msg\":\"a\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":-123456789012345,\"msg\":\"\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":0,\"msg\":\"\\\"\\\\ \\u00e9\\ud83d\\ude00 \xc3\xa9 \xf0\x9f\x98\x80\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":12,\"msg\":\"0123456789abcdef0123456789abcdef\",\"ok\":true,\"no\":null}",
		" \r\n\t{\"msgid\":5,\"to\":12,\"msg\":\"}\",\"ok\":true,\"no\":null}\n{\"next\"",
	};
	static const char *const no[] = {
		"", "\n", "{", "{}",
		"{\"msgid\":5,\"to\":1,\"msg\":\"a\",\"ok\":true,\"no\":null",
		"{\"msgid\":5,\"to\":1,\"msg\":\"a", "{\"msgid\":5,\"to\":", "{\"msgid\":5,\"to\":1",
		"{\"msgid\":6,\"to\":1,\"msg\":\"a\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":1,\"msg\":\"a\",\"ok\":false,\"no\":null}",
		"{\"msgid\":5,\"to\":1,\"msg\":\"a\",\"ok\":true,\"no\":null }",
		"{\"msgid\":5, \"to\":1,\"msg\":\"a\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":01,\"msg\":\"a\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":-,\"msg\":\"a\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":,\"msg\":\"a\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":1.5,\"msg\":\"a\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":1e5,\"msg\":\"a\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":1234567890123456,\"msg\":\"a\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":\"1\",\"msg\":\"a\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":1,\"msg\":7,\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":1,\"msg\":\"\n\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":1,\"msg\":\"\xc3\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":1,\"msg\":\"\\ud800\",\"ok\":true,\"no\":null}",
		"{\"msgid\":5,\"to\":1,\"msg\":\"\\x\",\"ok\":true,\"no\":null}",
	};
	char text[2 * MAX];

	(void)state;
	assert_false(fits(yes[0]));
	learn("{\"msgid\":5,\"to\":77,\"msg\":\"hello\",\"ok\":true,\"no\":null}");
	for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
		if (!fits(yes[i]))
			fail_msg("does not fit: %s", yes[i]);
	for (size_t i = 0; i < sizeof no / sizeof *no; i++)
		if (fits(no[i]))
			fail_msg("fits: %s", no[i]);
	for (int pad = MAX - 60; pad < MAX; pad++) {	/* just so long, and longer */
		int n = snprintf(text, sizeof text,
		    "{\"msgid\":5,\"to\":1,\"msg\":\"%0*d\",\"ok\":true,\"no\":null}", pad, 0);
		assert_int_equal(fits(text), n <= MAX);
	}
}

/* Only between frames, and only in a stream that is good. */
static void test_scanner(void **state)
{
	static const char text[] = "{\"a\":1}{\"a\":2} \n{\"a\":[3]}{\"a\":4}x{\"a\":5}";
	struct shape_found found;
	struct json_pair others[SHAPE_MEMBERS];
	struct json_val known[8];
	struct frame f;
	size_t start, end;

	(void)state;
	learn("{\"z\":0,\"a\":1}");
	learn("{\"msgid\":\"fixed\"}");
	learn("{\"a\":1}");		/* its only member is fixed */
	frame_init(&f);
	assert_true(shape_next(shapes, &f, text, sizeof text - 1, MAX, &found, known, others));
	assert_int_equal(f.pos, 7);
	assert_false(shape_next(shapes, &f, text, sizeof text - 1, MAX, &found, known, others));
	assert_int_equal(frame_next(&f, text, sizeof text - 1, MAX, &start, &end), FRAME_ONE);
	assert_int_equal(frame_next(&f, text, sizeof text - 1, MAX, &start, &end), FRAME_ONE);
	assert_int_equal(start, 16);
	assert_int_equal(frame_next(&f, text, 30, MAX, &start, &end), FRAME_MORE);
	assert_false(shape_next(shapes, &f, text, 30, MAX, &found, known, others));
	assert_int_equal(frame_next(&f, text, sizeof text - 1, MAX, &start, &end), FRAME_ONE);
	assert_false(shape_next(shapes, &f, text, sizeof text - 1, MAX, &found, known, others));
	assert_int_equal(frame_next(&f, text, sizeof text - 1, MAX, &start, &end), FRAME_BAD);
	assert_false(shape_next(shapes, &f, text, sizeof text - 1, MAX, &found, known, others));
}

/* What does not fit the limits is not remembered, and the least used goes for a new one. */
static void test_limits(void **state)
{
	char text[MAX];

	(void)state;
	learn("{\"m\":1,\"x\":1.5}");
	assert_false(fits("{\"m\":1,\"x\":1.5}"));
	learn("{\"m\":1,\"x\":1234567890123456}");
	assert_false(fits("{\"m\":1,\"x\":1234567890123456}"));
	learn("{\"m\":1,\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"j\":1,\"k\":1,\"l\":1}");
	assert_false(fits("{\"m\":1,\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"j\":1,\"k\":1,\"l\":1}"));
	for (int pad = 150; pad < 220; pad++) {		/* a name that is too long to keep */
		int n = snprintf(text, sizeof text, "{\"m\":1,\"%0*d\":1,\"s\":\"\",\"z\":2}", pad, 0);
		learn(text);
		assert_int_equal(fits(text), n - 3 <= 192);	/* but for the holes */
	}
	learn("{\"m\":0,\"x\":1}");
	assert_true(fits("{\"m\":0,\"x\":2}"));
	for (int i = 1; i < 100; i++) {
		snprintf(text, sizeof text, "{\"m\":%d,\"x\":1}", i);
		learn(text);
		assert_true(fits(text));
		assert_true(fits("{\"m\":0,\"x\":3}"));
	}
	assert_false(fits("{\"m\":1,\"x\":1}"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_fits, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_scanner, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_limits, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
