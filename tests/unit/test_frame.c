/*
 * The frame scanner: every verdict, at the right byte, however the input is cut.
 *
 * The inputs are the fuzz corpus: the names of its files say what they are (good-, bad-, part-,
 * long- for more than MAX bytes, repeat- and range- for what only json_parse() refuses).
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/base/frame.h"

#define CORPUS "tests/fuzz/corpus/frame"
#define FILE_MAX 65536
#define MAX 6000			/* of a frame; the corpus has longer ones */

struct seen {
	char text[4096];	/* "start-end " of each frame, then what it came to */
	size_t len;
};

static void note(struct seen *s, const char *fmt, size_t a, size_t b)
{
	s->len += (size_t)snprintf(s->text + s->len, sizeof s->text - s->len,
	    "%zu%s%zu ", a, fmt, b);
}

/* Feeds INPUT cut at A and B; each piece comes in memory of its own size, with the bytes of
 * whole frames dropped, as a session does it. */
static void feed(struct seen *s, const char *input, size_t len, size_t a, size_t b)
{
	size_t cuts[3] = { a, b, len }, dropped = 0, start, end, keep;
	enum frame_rc rc = FRAME_MORE;
	struct frame f;

	s->len = 0;
	frame_init(&f);
	for (int i = 0; i < 3 && rc != FRAME_BAD; i++) {
		size_t n = cuts[i] - dropped;
		char *buf = malloc(n + 1);

		memcpy(buf + 1, input + dropped, n);
		while ((rc = frame_next(&f, buf + 1, n, MAX, &start, &end)) == FRAME_ONE)
			note(s, "-", dropped + start, dropped + end);
		free(buf);
		if (rc == FRAME_BAD)
			break;
		keep = frame_idle(&f) ? f.pos : f.start;
		frame_shift(&f, keep);
		dropped += keep;
	}
	if (rc == FRAME_BAD)
		note(s, "!", dropped + f.pos, f.bad);
	else
		note(s, frame_idle(&f) ? "=" : "+", dropped + f.pos, 0);
}

static char *slurp(const char *name, size_t *len_r)
{
	char path[512], *data = malloc(FILE_MAX);
	FILE *f;

	snprintf(path, sizeof path, CORPUS "/%s", name);
	f = fopen(path, "rb");
	assert_non_null(f);
	*len_r = fread(data, 1, FILE_MAX, f);
	assert_true(feof(f));
	fclose(f);
	return data;
}

static void check_file(const char *name)
{
	struct seen whole, cut;
	size_t len, step;
	char *data = slurp(name, &len);

	feed(&whole, data, len, len, len);
	if (strncmp(name, "bad-", 4) == 0 || strncmp(name, "long-", 5) == 0)
		assert_non_null(strchr(whole.text, '!'));
	else
		assert_non_null(strchr(whole.text, strncmp(name, "part-", 5) == 0 ? '+' : '='));
	if (strncmp(name, "repeat-", 7) == 0 || strncmp(name, "range-", 6) == 0)
		assert_non_null(strchr(whole.text, '-'));
	for (size_t a = 0; a <= len; a++) {
		feed(&cut, data, len, a, len);
		assert_string_equal(cut.text, whole.text);
	}
	/* three pieces: all pairs of cuts where that is cheap, some where not */
	step = len <= 120 ? 1 : len / 40;
	for (size_t a = 0; a <= len; a += step) {
		for (size_t b = a; b <= len; b += step) {
			feed(&cut, data, len, a, b);
			assert_string_equal(cut.text, whole.text);
		}
	}
	free(data);
}

static void corpus_at_every_cut(void **state)
{
	DIR *d = opendir(CORPUS);
	struct dirent *e;
	unsigned files = 0;

	(void)state;
	assert_non_null(d);
	while ((e = readdir(d)) != NULL) {
		if (e->d_name[0] == '.')
			continue;
		check_file(e->d_name);
		files++;
	}
	closedir(d);
	assert_true(files >= 150);
}

static void every_byte_alone(void **state)
{
	static const char input[] =
	    " {\"a\":[1,-2.5e+3,true,null,{}],\"\\ud83d\\ude00\":\"\xf0\x9f\x98\x80\"}\n{}";
	struct frame f;
	size_t start, end, frames = 0;

	(void)state;
	memset(&f, 0, sizeof f);		/* as frame_init() makes it */
	for (size_t n = 0; n < sizeof input; n++) {
		if (frame_next(&f, input, n, MAX, &start, &end) != FRAME_ONE)
			continue;
		assert_int_equal(input[start], '{');
		assert_int_equal(end, n);
		frames++;
	}
	assert_int_equal(frames, 2);
	assert_true(frame_idle(&f));
}

/* Where the first byte stands that no continuation could mend. */
static const struct { const char *text; size_t at; const char *why; } wrong[] = {
	{ "x", 0, "start" }, { "  [", 2, "start" }, { "{}\n,", 3, "start" },
	{ "{1", 1, "name" }, { "{,", 1, "name" }, { "{\"a\":1,}", 7, "name" },
	{ "{\"a\"}", 4, "colon" }, { "{\"a\":}", 5, "value" }, { "{\"a\":[1,]", 8, "value" },
	{ "{\"a\":1 2", 7, "comma" }, { "{\"a\":[1}", 7, "bracket" },
	{ "{\"a\":{}]", 7, "bracket" },
	{ "{\"a\":tru}", 8, "true" }, { "{\"a\":nulll", 9, "true" },
	{ "{\"a\":01", 6, "number" }, { "{\"a\":-}", 6, "number" }, { "{\"a\":1.}", 7, "number" },
	{ "{\"a\":1e+}", 8, "number" }, { "{\"a\":1x", 6, "number" }, { "{\"a\":+", 5, "value" },
	{ "{\"a\":\"\n", 6, "control" }, { "{\"a\":\"\\x", 7, "escape" },
	{ "{\"a\":\"\\u00g", 10, "escape" }, { "{\"a\":\"\\u0000", 11, "U+0000" },
	{ "{\"a\":\"\\udc", 9, "surrogate" }, { "{\"a\":\"\\ud800x", 12, "surrogate" },
	{ "{\"a\":\"\\ud800\\n", 13, "surrogate" }, { "{\"a\":\"\\ud800\\u0", 14, "surrogate" },
	{ "{\"a\":\"\\ud800\\ud8", 15, "surrogate" },
	{ "{\"a\":\"\x80", 6, "UTF-8" }, { "{\"a\":\"\xe0\x9f", 7, "UTF-8" },
	{ "{\"a\":\"\xc3\"", 7, "UTF-8" }, { "{\"a\":\"\xf4\x90", 7, "UTF-8" },
	{ "{\"a\":\"\xf0\x9f\x98\"", 9, "UTF-8" }
};

static void refused_at_the_first_wrong_byte(void **state)
{
	size_t start, end;

	(void)state;
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		struct frame f;
		size_t len = strlen(wrong[i].text), at = wrong[i].at;

		frame_init(&f);
		while (frame_next(&f, wrong[i].text, at, MAX, &start, &end) == FRAME_ONE)
			;
		assert_int_equal(f.bad, 0);	/* so far it could have become a frame */
		assert_int_equal(frame_next(&f, wrong[i].text, at + 1, MAX, &start, &end),
		    FRAME_BAD);
		assert_int_equal(f.pos, at);
		assert_non_null(strstr(frame_why(&f), wrong[i].why));
		assert_false(frame_idle(&f));
		/* and it stays so */
		assert_int_equal(frame_next(&f, "{}", 2, MAX, &start, &end), FRAME_BAD);
		assert_true(len >= at + 1);
	}
}

/* The eight-at-a-time skipping must see each special byte in each of its lanes. */
static void special_bytes_in_every_lane(void **state)
{
	char text[64];
	size_t start, end;

	(void)state;
	for (unsigned c = 0; c < 256; c++) {
		for (size_t at = 6; at < 30; at++) {
			struct frame f;
			enum frame_rc rc;

			memset(text, 'x', sizeof text);
			memcpy(text, "{\"a\":\"", 6);
			text[at] = (char)c;
			frame_init(&f);
			rc = frame_next(&f, text, 40, MAX, &start, &end);
			if (c == '"' || c == '\\' || c < 0x20 || c >= 0x80) {
				assert_int_equal(rc, FRAME_BAD);
				assert_int_equal(f.pos, c < 0x20 || c < 0xc2 * (c >= 0x80) || c > 0xf4 ?
				    at : at + 1);
			} else {
				assert_int_equal(rc, FRAME_MORE);
				assert_int_equal(f.pos, 40);
			}
		}
	}
}

static void length_is_bounded(void **state)
{
	static const char text[] = "   {\"a\":1}";	/* 7 bytes from its brace */
	struct frame f;
	size_t start, end, len = sizeof text - 1;

	(void)state;
	frame_init(&f);
	assert_int_equal(frame_next(&f, text, len, 7, &start, &end), FRAME_ONE);
	assert_int_equal(start, 3);
	assert_int_equal(end, 10);
	frame_init(&f);
	assert_int_equal(frame_next(&f, text, len, 6, &start, &end), FRAME_BAD);
	assert_int_equal(f.pos, 9);
	assert_non_null(strstr(frame_why(&f), "too long"));
	/* known as soon as the room is used up, not only with the byte behind it */
	frame_init(&f);
	assert_int_equal(frame_next(&f, text, 8, 6, &start, &end), FRAME_MORE);
	assert_int_equal(frame_next(&f, text, 9, 6, &start, &end), FRAME_BAD);
	/* space in front does not count, nor do frames before */
	frame_init(&f);
	assert_int_equal(frame_next(&f, "{}{}{}{}", 8, 2, &start, &end), FRAME_ONE);
	assert_int_equal(frame_next(&f, "{}{}{}{}", 8, 2, &start, &end), FRAME_ONE);
	assert_int_equal(start, 2);
	assert_int_equal(end, 4);
}

static size_t repeat(char *out, size_t at, const char *what, unsigned times)
{
	while (times-- > 0) {
		memcpy(out + at, what, strlen(what));
		at += strlen(what);
	}
	return at;
}

static void depth_and_values_are_bounded(void **state)
{
	static char text[40000];
	struct frame f;
	size_t start, end, n;

	(void)state;
	n = repeat(text, repeat(text, 0, "{\"a\":", 15), "[", 1);
	frame_init(&f);
	assert_int_equal(frame_next(&f, text, n, MAX, &start, &end), FRAME_MORE);
	text[n++] = '[';
	assert_int_equal(frame_next(&f, text, n, MAX, &start, &end), FRAME_BAD);
	assert_int_equal(f.pos, n - 1);

	n = repeat(text, repeat(text, 0, "{\"a\":[0", 1), ",0", 509);	/* 512 values */
	frame_init(&f);
	assert_int_equal(frame_next(&f, text, n, MAX, &start, &end), FRAME_MORE);
	n = repeat(text, n, ",0", 1);
	assert_int_equal(frame_next(&f, text, n, MAX, &start, &end), FRAME_BAD);
	assert_int_equal(f.pos, n - 1);

	n = repeat(text, repeat(text, 0, "{\"a\":[0", 1), ",0", 16381);	/* 16,384 */
	frame_init(&f);
	assert_int_equal(frame_next_values(&f, text, n, sizeof text, FRAME_LARGE_VALUES, &start, &end),
	    FRAME_MORE);
	n = repeat(text, n, ",0", 1);
	assert_int_equal(frame_next_values(&f, text, n, sizeof text, FRAME_LARGE_VALUES, &start, &end),
	    FRAME_BAD);
}

/* A session that moves to another process takes its scanner along as bytes. */
static void half_a_frame_survives_a_copy(void **state)
{
	static const char text[] = "{\"a\":1}  {\"b\":\"\xc3\xa9\"}";
	struct frame f, copy;
	size_t start, end;

	(void)state;
	frame_init(&f);
	assert_int_equal(frame_next(&f, text, 16, MAX, &start, &end), FRAME_ONE);
	assert_int_equal(frame_next(&f, text, 16, MAX, &start, &end), FRAME_MORE);
	assert_false(frame_idle(&f));
	memcpy(&copy, &f, sizeof f);
	frame_shift(&copy, 9);
	assert_int_equal(frame_next(&copy, text + 9, sizeof text - 10, MAX, &start, &end),
	    FRAME_ONE);
	assert_int_equal(start, 0);
	assert_int_equal(end, sizeof text - 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(corpus_at_every_cut),
		cmocka_unit_test(every_byte_alone),
		cmocka_unit_test(refused_at_the_first_wrong_byte),
		cmocka_unit_test(special_bytes_in_every_lane),
		cmocka_unit_test(length_is_bounded),
		cmocka_unit_test(depth_and_values_are_bounded),
		cmocka_unit_test(half_a_frame_survives_a_copy)
	};

	return cmocka_run_group_tests_name("frame", tests, NULL, NULL);
}
