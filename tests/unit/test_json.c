/*
 * The JSON door: what it accepts, how values are read, and the writer.
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
#include "worker/base/json.h"

#define CORPUS "tests/fuzz/corpus/frame"

static struct json *j;		/* JSON_UNTRUSTED */

static int setup(void **state)
{
	(void)state;
	j = json_new(JSON_UNTRUSTED);
	return j != NULL ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	json_free(j);
	return 0;
}

static int parse(const char *text)
{
	return json_parse(j, text, strlen(text));
}

static struct json_val get(const char *text, const char *name)
{
	struct json_val root, v;

	assert_int_equal(parse(text), JSON_OK);
	root = json_root(j);
	json_get(j, &root, name, &v);
	return v;
}

/* Exact copies, so that the sanitizer sees a read beyond the end. */
static int parse_file(const char *name)
{
	char path[512], buf[8192], *copy;
	FILE *f;
	size_t len;
	int rc;

	snprintf(path, sizeof path, CORPUS "/%s", name);
	f = fopen(path, "rb");
	assert_non_null(f);
	len = fread(buf, 1, sizeof buf, f);
	fclose(f);
	copy = malloc(len + 1);
	memcpy(copy + 1, buf, len);
	rc = json_parse(j, copy + 1, len);
	free(copy);
	return rc;
}

static void corpus_verdicts(void **state)
{
	DIR *d = opendir(CORPUS);
	struct dirent *e;
	unsigned repeats = 0, ranges = 0, others = 0;

	(void)state;
	assert_non_null(d);
	while ((e = readdir(d)) != NULL) {
		if (strncmp(e->d_name, "repeat-", 7) == 0) {
			assert_int_equal(parse_file(e->d_name), JSON_EREPEAT);
			repeats++;
		} else if (strncmp(e->d_name, "range-", 6) == 0) {
			assert_int_equal(parse_file(e->d_name), JSON_ERANGE);
			ranges++;
		} else if (strncmp(e->d_name, "bad-", 4) == 0 ||
		    strncmp(e->d_name, "part-", 5) == 0) {
			assert_int_equal(parse_file(e->d_name), JSON_ESYNTAX);
			others++;
		} else if (strncmp(e->d_name, "good-range", 10) == 0 ||
		    strncmp(e->d_name, "good-name", 9) == 0 ||
		    strncmp(e->d_name, "good-same", 9) == 0) {
			assert_int_equal(parse_file(e->d_name), JSON_OK);
			others++;
		}
	}
	closedir(d);
	assert_true(repeats >= 10 && ranges >= 7 && others >= 100);
}

static void one_object_and_nothing_else(void **state)
{
	(void)state;
	assert_int_equal(parse(" \t{}\r\n "), JSON_OK);
	assert_int_equal(parse("{}{}"), JSON_ESYNTAX);
	assert_int_equal(parse("{} x"), JSON_ESYNTAX);
	assert_int_equal(parse(""), JSON_ESYNTAX);
	assert_int_equal(parse("[]"), JSON_ESYNTAX);
	assert_int_equal(parse("{\"a\":1"), JSON_ESYNTAX);
	assert_non_null(strstr(json_why(j), "too early"));
	/* after a failure nothing of the text is left */
	assert_int_equal(json_root(j).type, JSON_NONE);
	assert_int_equal(parse("{\"a\":1}"), JSON_OK);
	assert_int_equal(json_root(j).type, JSON_OBJECT);
}

static void members_in_order(void **state)
{
	static const char *const names[] = { "\"n\"", "\"o\"", "\"a\"", "\"s\"", "\"z\"" };
	static const enum json_type types[] =
	    { JSON_NUMBER, JSON_OBJECT, JSON_ARRAY, JSON_STRING, JSON_NULL };
	struct json_val root, key, val;
	struct json_it it;
	unsigned i = 0;

	(void)state;
	assert_int_equal(parse("{\"n\":-1.5,\"o\":{\"x\":{\"y\":[1,[2]]},\"w\":0},"
	    "\"a\":[[],[{}],3],\"s\":\"\",\"z\":null}"), JSON_OK);
	root = json_root(j);
	assert_int_equal(json_count(j, &root), 5);
	for (it = json_it(j, &root); json_next(j, &it, &key, &val); i++) {
		assert_int_equal(key.len, strlen(names[i]));
		assert_memory_equal(key.raw, names[i], key.len);
		assert_int_equal(val.type, types[i]);
	}
	assert_int_equal(i, 5);
	assert_true(json_get(j, &root, "a", &val));
	assert_int_equal(json_count(j, &val), 3);
	assert_memory_equal(val.raw, "[[],[{}],3]", val.len);
	i = 0;
	for (it = json_it(j, &val); json_next(j, &it, &key, &val); i++)
		assert_int_equal(key.type, JSON_NONE);
	assert_int_equal(i, 3);
	assert_memory_equal(val.raw, "3", val.len);
	/* what is no container has no members */
	it = json_it(j, &val);
	assert_false(json_next(j, &it, NULL, &val));
	assert_false(json_get(j, &key, "x", &val));
}

static void names_mean_what_they_say(void **state)
{
	struct json_val v;

	(void)state;
	v = get("{\"\\u006dsgid\":7,\"id\":8}", "msgid");
	assert_int_equal(v.type, JSON_NUMBER);
	v = get("{\"msgid2\":7,\"msgi\":8}", "msgid");
	assert_int_equal(v.type, JSON_NONE);
	v = get("{\"a\":null}", "a");
	assert_int_equal(v.type, JSON_NONE);
	v = get("{\"x\":{\"a\":1},\"y\":[{\"a\":2}],\"a\":3}", "a");
	assert_memory_equal(v.raw, "3", 1);
	v = get("{\"a\":\"on\\u006cine\"}", "a");
	assert_true(json_is(&v, "online"));
	assert_false(json_is(&v, "onlin"));
	assert_false(json_is(&v, "onlines"));
	v = get("{\"a\":\"online\"}", "a");
	assert_true(json_is(&v, "online"));
	assert_false(json_is(&v, "offline"));
	assert_false(json_is(&v, ""));
	v = get("{\"a\":1}", "a");
	assert_false(json_is(&v, "1"));
}

static void integers(void **state)
{
	static const struct { const char *text; int rc; int64_t n; } rows[] = {
		{ "0", 0, 0 }, { "-0", 0, 0 }, { "42", 0, 42 }, { "-42", 0, -42 },
		{ "9223372036854775807", 0, INT64_MAX }, { "-9223372036854775808", 0, INT64_MIN },
		{ "9223372036854775808", JSON_ERANGE, 0 },
		{ "-9223372036854775809", JSON_ERANGE, 0 },
		{ "99999999999999999999999", JSON_ERANGE, 0 },
		{ "1.0", JSON_ETYPE, 0 }, { "1e3", JSON_ETYPE, 0 }, { "\"1\"", JSON_ETYPE, 0 },
		{ "true", JSON_ETYPE, 0 }, { "[1]", JSON_ETYPE, 0 }
	};

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		char text[80];
		struct json_val v;
		int64_t n = 12345;

		snprintf(text, sizeof text, "{\"a\":%s}", rows[i].text);
		v = get(text, "a");
		assert_int_equal(json_int(&v, &n), rows[i].rc);
		assert_true(n == (rows[i].rc == 0 ? rows[i].n : 12345));
	}
}

static void booleans(void **state)
{
	struct json_val v;
	bool b = false;

	(void)state;
	v = get("{\"a\":true}", "a");
	assert_int_equal(json_bool(&v, &b), JSON_OK);
	assert_true(b);
	v = get("{\"a\":false}", "a");
	assert_int_equal(json_bool(&v, &b), JSON_OK);
	assert_false(b);
	v = get("{\"a\":0}", "a");
	assert_int_equal(json_bool(&v, &b), JSON_ETYPE);
}

static void strings(void **state)
{
	static const struct { const char *raw, *text; } rows[] = {
		{ "\"\"", "" }, { "\"plain\"", "plain" },
		{ "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t" },
		{ "\"a\\u0041\\u00e9\\u20AC.\"", "aA\xc3\xa9\xe2\x82\xac." },
		{ "\"\\ud83d\\ude01\\uDBFF\\uDFFF\"", "\xf0\x9f\x98\x81\xf4\x8f\xbf\xbf" },
		{ "\"\xc3\xa9\\n\xf0\x9f\x98\x80\"", "\xc3\xa9\n\xf0\x9f\x98\x80" }
	};

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		size_t want = strlen(rows[i].text), len = 99;
		char text[120], *out = malloc(want + 1);
		struct json_val v;

		snprintf(text, sizeof text, "{\"a\":%s}", rows[i].raw);
		v = get(text, "a");
		assert_int_equal(json_text(&v, out, want + 1, &len), JSON_OK);
		assert_int_equal(len, want);
		assert_string_equal(out, rows[i].text);
		for (size_t cap = 0; cap <= want; cap++)
			assert_int_equal(json_text(&v, out, cap, &len), JSON_ESPACE);
		assert_int_equal(len, want);	/* untouched by errors */
		free(out);
	}
	struct json_val v = get("{\"a\":5}", "a");

	assert_int_equal(json_text(&v, (char[4]){ 0 }, 4, NULL), JSON_ETYPE);
}

/* 16 names are compared with each other, more go through a table: both must see everything. */
static void repeated_names_of_any_number(void **state)
{
	static char text[16384];

	(void)state;
	for (unsigned n = 2; n <= 511; n += n < 40 ? 1 : 67) {
		for (unsigned twin = 0; twin < n; twin += n < 40 ? 1 : 50) {
			size_t len = 0;

			for (unsigned i = 0; i < n; i++)
				len += (size_t)sprintf(text + len, "%s\"name%u\":%u",
				    i == 0 ? "{" : ",", i + 1 == n ? twin : i, i);
			strcpy(text + len, "}");
			assert_int_equal(parse(text), twin + 1 == n ? JSON_OK : JSON_EREPEAT);
		}
	}
}

static void numbers_at_the_edge_of_a_double(void **state)
{
	/* half way between the largest double and the next that there would be */
	static const char half[] =
	    "179769313486231580793728971405303415079934132710037826936173778980444968292764750946"
	    "649017977587207096330286416692887910946555547851940402630657488671505820681908902000"
	    "708383676273854845817711531764475730270069855571366959622842914819860834936475292719"
	    "074168444365510704342711559699508093042880177904174497792";
	static char text[2000];

	(void)state;
	snprintf(text, sizeof text, "{\"a\":%s}", half);
	assert_int_equal(parse(text), JSON_ERANGE);
	snprintf(text, sizeof text, "{\"a\":%.308s9.9}", half);	/* a little less */
	text[5 + 307]--;
	assert_int_equal(parse(text), JSON_OK);
	snprintf(text, sizeof text, "{\"a\":0.00%se+3}", half);
	assert_int_equal(parse(text), JSON_OK);
	snprintf(text, sizeof text, "{\"a\":0.00%se+311}", half);
	assert_int_equal(parse(text), JSON_ERANGE);
	snprintf(text, sizeof text, "{\"a\":1.%se308}", "7976931348623157");
	assert_int_equal(parse(text), JSON_OK);
	snprintf(text, sizeof text, "{\"a\":0.000%se312}", "17976931348623157");
	assert_int_equal(parse(text), JSON_OK);
	snprintf(text, sizeof text, "{\"a\":-%se292}", "17976931348623159");
	assert_int_equal(parse(text), JSON_ERANGE);
	snprintf(text, sizeof text, "{\"a\":%0309d}", 0);
	text[5] = '1';
	assert_int_equal(parse(text), JSON_OK);
	text[5] = '2';
	assert_int_equal(parse(text), JSON_ERANGE);
	snprintf(text, sizeof text, "{\"a\":1%0310d}", 0);
	assert_int_equal(parse(text), JSON_ERANGE);
	snprintf(text, sizeof text, "{\"a\":1%0310de-5}", 0);
	assert_int_equal(parse(text), JSON_OK);
	assert_int_equal(parse("{\"a\":9.9e307}"), JSON_OK);
	assert_int_equal(parse("{\"a\":1e308}"), JSON_OK);
	assert_int_equal(parse("{\"a\":1e309}"), JSON_ERANGE);
	assert_int_equal(parse("{\"a\":12.5E307}"), JSON_OK);
	assert_int_equal(parse("{\"a\":20.5E307}"), JSON_ERANGE);
	assert_int_equal(parse("{\"a\":0.0e999}"), JSON_OK);
	assert_int_equal(parse("{\"a\":1e-999}"), JSON_OK);
}

static void large_frames_for_clients(void **state)
{
	struct json *large = json_new(JSON_UNTRUSTED | JSON_LARGE);
	char *text = malloc(40000);
	size_t len = (size_t)sprintf(text, "{\"a\":[0");
	struct json_val root, v;

	(void)state;
	assert_non_null(large);
	for (int i = 0; i < 16381; i++)
		len += (size_t)sprintf(text + len, ",0");
	strcpy(text + len, "]}");
	assert_int_equal(parse(text), JSON_ESYNTAX);
	assert_int_equal(json_parse(large, text, len + 2), JSON_OK);
	root = json_root(large);
	assert_true(json_get(large, &root, "a", &v));
	assert_int_equal(json_count(large, &v), 16382);
	free(text);
	json_free(large);
}

static void utf8_helpers(void **state)
{
	static const struct { const char *s; size_t len; bool valid; } rows[] = {
		{ "", 0, true }, { "abc", 3, true }, { "a\0b", 3, false },
		{ "\xc3\xa9", 2, true }, { "\xc3", 1, false }, { "\xc3(", 2, false },
		{ "\xc0\x80", 2, false }, { "\xe0\x9f\xbf", 3, false },
		{ "\xe0\xa0\x80", 3, true }, { "\xed\x9f\xbf", 3, true },
		{ "\xed\xa0\x80", 3, false }, { "\xf0\x8f\xbf\xbf", 4, false },
		{ "\xf0\x90\x80\x80", 4, true }, { "\xf4\x8f\xbf\xbf", 4, true },
		{ "\xf4\x90\x80\x80", 4, false }, { "\xf0\x9f\x98", 3, false },
		{ "\x80", 1, false }, { "\xff", 1, false }
	};

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
		assert_int_equal(json_utf8_valid(rows[i].s, rows[i].len), rows[i].valid);
	assert_int_equal(json_utf8_chars("a\xc3\xa9\xf0\x9f\x98\x80z", 8), 4);
	assert_false(json_has_control("a b\xc3\xa9\xc2\xa0", 7));
	assert_true(json_has_control("a\nb", 3));
	assert_true(json_has_control("\x7f", 1));
	assert_true(json_has_control("\xc2\x85", 2));
}

static void write_sample(struct json_out *w)
{
	json_open(w, '{');
	json_kv_int(w, "n", INT64_MIN);
	json_kv_int(w, "m", 0);
	json_kv_bool(w, "b", true);
	json_kv_str(w, "s", "a\"\\\n\x01\x1f\x7f\xc3\xa9");
	json_kv_raw(w, "r", "[1]", 3);
	json_key(w, "o");
	json_open(w, '[');
	json_put_int(w, INT64_MAX);
	json_open(w, '{');
	json_close(w, '}');
	json_put_text(w, "x", 1);
	json_put_bool(w, false);
	json_put_raw(w, "null", 4);
	json_close(w, ']');
	json_kv_text(w, "t", "", 0);
	json_close(w, '}');
}

static void writer(void **state)
{
	static const char want[] = "{\"n\":-9223372036854775808,\"m\":0,\"b\":true,"
	    "\"s\":\"a\\\"\\\\\\n\\u0001\\u001f\x7f\xc3\xa9\",\"r\":[1],"
	    "\"o\":[9223372036854775807,{},\"x\",false,null],\"t\":\"\"}";
	struct json_out w;
	size_t len = sizeof want - 1;

	(void)state;
	for (size_t cap = 0; cap <= len; cap++) {
		char *buf = malloc(cap + 1);

		json_out_init(&w, buf, cap);
		write_sample(&w);
		assert_int_equal(w.over, cap < len);
		assert_true(w.len <= cap);
		if (!w.over) {
			assert_int_equal(w.len, len);
			assert_memory_equal(buf, want, len);
			assert_int_equal(json_parse(j, buf, w.len), JSON_OK);
		}
		free(buf);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(corpus_verdicts),
		cmocka_unit_test(one_object_and_nothing_else),
		cmocka_unit_test(members_in_order),
		cmocka_unit_test(names_mean_what_they_say),
		cmocka_unit_test(integers),
		cmocka_unit_test(booleans),
		cmocka_unit_test(strings),
		cmocka_unit_test(repeated_names_of_any_number),
		cmocka_unit_test(numbers_at_the_edge_of_a_double),
		cmocka_unit_test(large_frames_for_clients),
		cmocka_unit_test(utf8_helpers),
		cmocka_unit_test(writer)
	};

	return cmocka_run_group_tests_name("json", tests, setup, teardown);
}
