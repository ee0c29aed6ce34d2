/* client/text.c: what strangers wrote must not act on a terminal, and must stay readable. */
#include <locale.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "client/text.h"

#define LEN(a) (sizeof(a) / sizeof((a)[0]))

static void check_clean(enum text_style style, const char *in, size_t len, const char *want)
{
	struct text t = { 0 };

	text_clean(&t, style, in, len);
	assert_string_equal(t.s, want);
	assert_int_equal(t.len, strlen(want));
	text_fini(&t);
}

static void test_clean(void **state)
{
	static const struct { const char *in, *shown, *json; } cases[] = {
		{ "", "", "" },
		{ "plain", "plain", "plain" },
		{ "größe 日本 😀", "größe 日本 😀", "größe 日本 😀" },
		{ "a\033[2Jb", "a\\x1b[2Jb", "a\\u001b[2Jb" },
		{ "a\nb\tc\rd", "a\\nb\\tc\\rd", "a\\u000ab\\u0009c\\u000dd" },
		{ "\x7f", "\\x7f", "\\u007f" },
		{ "\xc2\x9b" "31m", "\\u009b31m", "\\u009b31m" },
		{ "x\xe2\x80\xaey", "x\\u202ey", "x\\u202ey" },
		{ "\xe2\x81\xa6", "\\u2066", "\\u2066" },
		{ "\xef\xbb\xbf", "\\ufeff", "\\ufeff" },
		{ "\xf3\xa0\x81\x81", "\\U0e0041", "\\udb40\\udc41" },
		{ "\xe2\x80\x8d", "\xe2\x80\x8d", "\xe2\x80\x8d" },	/* a joiner, in emoji */
		{ "\xff", "\\xff", "\\ufffd" },
		{ "\xc0\x80", "\\xc0\\x80", "\\ufffd\\ufffd" },		/* overlong NUL */
		{ "\xed\xa0\x80", "\\xed\\xa0\\x80", "\\ufffd\\ufffd\\ufffd" },	/* a surrogate */
		{ "\xe2\x80", "\\xe2\\x80", "\\ufffd\\ufffd" },		/* cut short */
		{ "\\", "\\", "\\" },
	};

	(void)state;
	for (size_t i = 0; i < LEN(cases); i++) {
		check_clean(TEXT_SHOWN, cases[i].in, strlen(cases[i].in), cases[i].shown);
		check_clean(TEXT_JSON, cases[i].in, strlen(cases[i].in), cases[i].json);
	}
	check_clean(TEXT_SHOWN, "a\0b", 3, "a\\x00b");
}

/* Whatever the bytes, nothing that acts comes out. */
static void test_clean_is_safe(void **state)
{
	struct text t = { 0 };
	char in[4096];
	uint32_t x = 12345;

	(void)state;
	for (int round = 0; round < 200; round++) {
		for (size_t i = 0; i < sizeof in; i++) {
			x = x * 1103515245 + 12345;
			in[i] = (char)(x >> 16);
		}
		text_clear(&t);
		text_clean(&t, round % 2 ? TEXT_SHOWN : TEXT_JSON, in, sizeof in);
		for (size_t at = 0; at < t.len;) {
			int32_t cp;

			at += text_next(t.s + at, t.len - at, &cp);
			assert_true(cp >= 0x20 && cp != 0x7f && !(cp >= 0x80 && cp < 0xa0));
			assert_true(cp != 0x202e && cp != 0xfeff);
		}
	}
	text_fini(&t);
}

static void test_names(void **state)
{
	static const struct { const char *name, *want; } cases[] = {
		{ "bob", "bob" }, { "Zoë", "Zoë" }, { "b-o_b.1", "b-o_b.1" },
		{ "Bob Smith", "\"Bob Smith\"" }, { "a:b", "\"a:b\"" }, { "12", "\"12\"" },
		{ "#cats", "\"#cats\"" }, { "@x", "\"@x\"" }, { "/quit", "\"/quit\"" },
		{ "a\"b\\c", "\"a\\\"b\\\\c\"" }, { "12a", "12a" }, { "e\033[m", "e\\x1b[m" },
		{ "", "\"\"" },
	};

	(void)state;
	for (size_t i = 0; i < LEN(cases); i++) {
		struct text t = { 0 };

		text_name(&t, cases[i].name);
		assert_string_equal(t.s, cases[i].want);
		text_fini(&t);
	}
}

static void test_same_name(void **state)
{
	(void)state;
	assert_true(text_same_name("Bob", "bOB"));
	assert_false(text_same_name("Bob", "Bobb"));
	assert_false(text_same_name("Bobb", "Bob"));
	assert_false(text_same_name("Ärger", "ärger"));	/* only ASCII is folded */
	assert_false(text_same_name("[", "{"));
	assert_true(text_same_name("", ""));
}

static void test_ids(void **state)
{
	static const struct { const char *s; int64_t id; } cases[] = {
		{ "1", 1 }, { "007", 7 }, { "2147483647", 2147483647 }, { "2147483648", 0 },
		{ "99999999999999999999999", 0 }, { "0", 0 }, { "", 0 }, { "-1", 0 }, { "1a", 0 },
		{ " 1", 0 }, { "+1", 0 },
	};

	(void)state;
	for (size_t i = 0; i < LEN(cases); i++)
		assert_int_equal(text_id(cases[i].s), cases[i].id);
}

static void test_width(void **state)
{
	(void)state;
	assert_int_equal(text_width("abc", 3), 3);
	assert_int_equal(text_width("größe", strlen("größe")), 5);
	assert_int_equal(text_width("日本", strlen("日本")), 4);
	assert_int_equal(text_width("e\xcc\x81", 3), 1);	/* a combining accent */
}

static void test_growing(void **state)
{
	struct text t = { 0 };

	(void)state;
	for (int i = 0; i < 1000; i++)
		text_printf(&t, "%d,", i);
	assert_int_equal(t.len, 10 * 2 + 90 * 3 + 900 * 4);
	assert_int_equal(strlen(t.s), t.len);
	text_drop(&t, 4);
	assert_memory_equal(t.s, "2,3,", 4);
	text_drop(&t, t.len);
	assert_int_equal(t.len, 0);
	assert_string_equal(t.s, "");
	text_fini(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_clean), cmocka_unit_test(test_clean_is_safe),
		cmocka_unit_test(test_names), cmocka_unit_test(test_same_name),
		cmocka_unit_test(test_ids), cmocka_unit_test(test_width),
		cmocka_unit_test(test_growing),
	};

	setlocale(LC_CTYPE, "C.UTF-8");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
