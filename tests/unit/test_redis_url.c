/* Where Redis is: every way to write it, and what is wrong with the rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "worker/base/redis_url.h"

static void single(void **state)
{
	static const struct { const char *text, *user, *password, *host; unsigned port, db; } rows[] = {
		{ "redis://h", "", "", "h", 6379, 0 },
		{ "redis://h/", "", "", "h", 6379, 0 },
		{ "redis://h:1/12", "", "", "h", 1, 12 },
		{ "redis://:p@h", "", "p", "h", 6379, 0 },
		{ "redis://u:p@[::1]:7/3", "u", "p", "::1", 7, 3 },
		{ "redis://:a%40b%2Fc%25@h", "", "a@b/c%", "h", 6379, 0 },
		{ "redis://:a@b:c@h", "", "a@b:c", "h", 6379, 0 },
		{ "10.0.0.1:6380", "", "", "10.0.0.1", 6380, 0 },
		{ "[fe80::1]:6380", "", "", "fe80::1", 6380, 0 },
	};
	struct redis_url u;

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		assert_null(redis_url_read(&u, rows[i].text));
		assert_false(u.sentinel);
		assert_int_equal(u.naddr, 1);
		assert_string_equal(u.addr[0].host, rows[i].host);
		assert_int_equal(u.addr[0].port, rows[i].port);
		assert_string_equal(u.user, rows[i].user);
		assert_string_equal(u.password, rows[i].password);
		assert_int_equal(u.db, rows[i].db);
		assert_string_equal(u.path, "");
	}
}

static void sockets(void **state)
{
	static const struct { const char *text, *path; } rows[] = {
		{ "/run/r.sock", "/run/r.sock" }, { "./r", "./r" }, { "unix:/r", "/r" },
		{ "unix:///run/r", "/run/r" },
	};
	struct redis_url u;

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		assert_null(redis_url_read(&u, rows[i].text));
		assert_string_equal(u.path, rows[i].path);
		assert_int_equal(u.naddr, 0);
	}
}

static void sentinels(void **state)
{
	static const char *const rows[] = { "sentinel://:p@a:1,b,[::1]:3;main/2",
	    "sentinel://:p@a:1,b,[::1]:3/main/2" };
	struct redis_url u;

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		assert_null(redis_url_read(&u, rows[i]));
		assert_true(u.sentinel);
		assert_int_equal(u.naddr, 3);
		assert_string_equal(u.addr[0].host, "a");
		assert_int_equal(u.addr[0].port, 1);
		assert_string_equal(u.addr[1].host, "b");
		assert_int_equal(u.addr[1].port, 26379);
		assert_string_equal(u.addr[2].host, "::1");
		assert_int_equal(u.addr[2].port, 3);
		assert_string_equal(u.name, "main");
		assert_string_equal(u.password, "p");
		assert_int_equal(u.db, 2);
	}
	assert_null(redis_url_read(&u, "sentinel://a;m"));
	assert_string_equal(u.name, "m");
	assert_int_equal(u.db, 0);
}

static void refused(void **state)
{
	static const struct { const char *text, *why; } rows[] = {
		{ "", "a host is missing" }, { "h", "a port is missing" }, { "h:0", "the port" },
		{ "h:65536", "the port" }, { "::1:1", "brackets" }, { "redis://", "a host is missing" },
		{ "redis://[::1", "IPv6" }, { "redis://h/x", "is a number" },
		{ "redis://h/65536", "is a number" }, { "redis://h/99999999999999999999", "is a number" },
		{ "redis://p@h", "behind a colon" }, { "redis://:p%@h", "hexadecimal" },
		{ "redis://:p%00@h", "hexadecimal" }, { "rediss://h", "TLS" }, { "http://h", "redis is" },
		{ "/", NULL }, { "unix:", "a path is missing" },
		{ "sentinel://a:1", "name is missing" }, { "sentinel://a:1;", "name is missing" },
		{ "sentinel://;m", "a host is missing" }, { "sentinel://a,;m", "a host is missing" },
		{ "sentinel://a;m/x", "is a number" }, { "sentinel://a,b,c,d,e,f,g,h,i;m", "at most 8" },
	};
	struct redis_url u;
	const char *why;

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		why = redis_url_read(&u, rows[i].text);
		if (rows[i].why == NULL) {
			assert_null(why);
			continue;
		}
		assert_non_null(why);
		assert_non_null(strstr(why, rows[i].why));
	}
}

static void too_long(void **state)
{
	char text[1200];
	struct redis_url u;

	(void)state;
	memset(text, 'a', sizeof text);
	memcpy(text, "redis://:", 9);
	memcpy(text + 9 + 256, "@h", 3);
	assert_null(redis_url_read(&u, text));
	text[9 + 256] = 'a';
	memcpy(text + 9 + 257, "@h", 3);
	assert_non_null(redis_url_read(&u, text));
	memcpy(text, "redis://", 8);
	memset(text + 8, 'h', sizeof text - 8);
	text[sizeof text - 1] = '\0';
	assert_non_null(redis_url_read(&u, text));
	memcpy(text, "sentinel://a;", 13);
	assert_non_null(redis_url_read(&u, text));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(single), cmocka_unit_test(sockets), cmocka_unit_test(sentinels),
		cmocka_unit_test(refused), cmocka_unit_test(too_long),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
