/* client/place.c: what is a server's place, and how the list of them grows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "client/place.h"

#define LEN(a) (sizeof(a) / sizeof((a)[0]))

static void test_split(void **state)
{
	static const struct { const char *in, *host, *port; } good[] = {
		{ "h", "h", "" },
		{ "h:1", "h", "1" },
		{ "chat.example.org:6000", "chat.example.org", "6000" },
		{ "10.0.0.1:65535", "10.0.0.1", "65535" },
		{ "::1", "::1", "" },
		{ "[::1]", "::1", "" },
		{ "[::1]:6000", "::1", "6000" },
		{ "fe80::1%eth0", "fe80::1%eth0", "" },
	};
	static const struct { const char *in; int rc; } bad[] = {
		{ "", -1 }, { ":", -2 }, { ":1", -1 }, { "[]", -1 }, { "[::1", -1 }, { "[::1]x", -1 },
		{ "h:", -2 }, { "h:0", -2 }, { "h:65536", -2 }, { "h:1x", -2 }, { "h:-1", -2 },
		{ "h:000001", -2 }, { "h h", -1 }, { "a\033[2J", -1 }, { "h/x", -1 }, { "h\"", -1 },
		{ "gr\xc3\xb6\xc3\x9f" "e", -1 }, { "a,b", -1 }, { "a;b", -1 },
	};
	char host[PLACE_HOST], port[PLACE_PORT], text[PLACE_HOST + 20];

	(void)state;
	for (size_t i = 0; i < LEN(good); i++) {
		assert_int_equal(place_split(good[i].in, host, port), 0);
		assert_string_equal(host, good[i].host);
		assert_string_equal(port, good[i].port);
	}
	for (size_t i = 0; i < LEN(bad); i++)
		if (place_split(bad[i].in, host, port) != bad[i].rc)
			fail_msg("%s", bad[i].in);
	memset(text, 'x', PLACE_HOST);
	strcpy(text + PLACE_HOST, ":1");
	assert_int_equal(place_split(text, host, port), -1);
	assert_int_equal(place_split(text + 1, host, port), 0);
}

static void test_learn(void **state)
{
	struct places *ps = places_new();
	char text[32];

	(void)state;
	places_add_host(ps, "one", "6000");
	places_add_unix(ps, "/run/chat");
	places_add_host(ps, "::1", "6001");
	assert_string_equal(places_at(ps, 1)->name, "/run/chat");
	assert_string_equal(places_at(ps, 2)->name, "[::1]:6001");
	assert_int_equal(places_learn(ps, "ONE:6000"), 0);
	assert_int_equal(places_learn(ps, "[::1]:6001"), 2);
	assert_int_equal(places_learn(ps, "one"), -1);		/* no port */
	assert_int_equal(places_learn(ps, "no such:1"), -1);
	assert_int_equal(places_count(ps), 3);
	/* bounded, and what was typed stays */
	for (int i = 0; i < 1000; i++) {
		snprintf(text, sizeof text, "host%d:6000", i);
		assert_string_equal(places_at(ps, (size_t)places_learn(ps, text))->name, text);
	}
	assert_int_equal(places_count(ps), 3 + PLACE_LEARNED);
	assert_string_equal(places_at(ps, 0)->name, "one:6000");
	assert_string_equal(places_at(ps, 2)->name, "[::1]:6001");
	assert_string_equal(places_at(ps, 2 + PLACE_LEARNED)->name, "host999:6000");
	assert_int_equal(places_learn(ps, "host990:6000"), 3 + PLACE_LEARNED - 10);
	places_free(ps);
}

static void test_numbers_need_no_lookup(void **state)
{
	struct places *ps = places_new();
	const char *why;

	(void)state;
	places_add_host(ps, "127.0.0.1", "6000");
	places_add_host(ps, "::1", "6000");
	places_add_unix(ps, "/run/chat");
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(place_ask(places_at(ps, i), &why), PLACE_KNOWN);
		assert_int_equal(places_at(ps, i)->naddr, 1);
	}
	places_free(ps);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_split),
		cmocka_unit_test(test_learn),
		cmocka_unit_test(test_numbers_need_no_lookup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
