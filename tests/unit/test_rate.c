/*
 * Token buckets: of a session, and of addresses in a table that processes share.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "worker/rate.h"

#define NOW UINT64_C(1000000)

static void a_burst_then_the_rate(void **state)
{
	struct rate_bucket b = { 0 };
	uint32_t wait;

	(void)state;
	for (int i = 0; i < 20; i++)
		assert_int_equal(rate_take(&b, 10, 20, 1, NOW), 0);
	wait = rate_take(&b, 10, 20, 1, NOW);
	assert_int_equal(wait, 100);
	assert_int_equal(rate_take(&b, 10, 20, 1, NOW + 99), 1);	/* asking costs nothing */
	assert_int_equal(rate_take(&b, 10, 20, 1, NOW + 100), 0);
	assert_int_equal(rate_take(&b, 10, 20, 1, NOW + 100), 100);
	/* full again after two seconds, and not fuller after a day */
	for (int i = 0; i < 20; i++)
		assert_int_equal(rate_take(&b, 10, 20, 1, NOW + 86400000), 0);
	assert_int_equal(rate_take(&b, 10, 20, 1, NOW + 86400000), 100);
}

static void odd_rates(void **state)
{
	struct rate_bucket b = { 0 };
	unsigned taken = 0;

	(void)state;
	for (int i = 0; i < 100; i++)
		assert_int_equal(rate_take(&b, 0, 0, 1, NOW), 0);	/* no limit */
	/* 300,000 a second for a second, asked for ten times as often */
	for (uint64_t ms = 0; ms < 1000; ms++)
		for (int i = 0; i < 3000; i++)
			taken += rate_take(&b, 300000, 300, 1, NOW + ms) == 0;
	assert_in_range(taken, 299000, 301500);
	/* a cost above the burst passes when the bucket is full, and not before */
	b.full_ns = 0;
	assert_int_equal(rate_take(&b, 1, 2, 5, NOW), 0);
	assert_int_equal(rate_take(&b, 1, 2, 5, NOW), 5000);
	assert_int_equal(rate_take(&b, 1, 2, 1, NOW), 4000);
	/* the clock of a bucket is never behind: an earlier time is harmless */
	assert_in_range(rate_take(&b, 1, 2, 1, NOW - 1000), 1, 5000);
}

static void addr_of(unsigned char out[16], const char *text)
{
	if (strchr(text, ':') == NULL) {
		memset(out, 0, 10);
		out[10] = out[11] = 0xff;
		assert_int_equal(inet_pton(AF_INET, text, out + 12), 1);
	} else {
		assert_int_equal(inet_pton(AF_INET6, text, out), 1);
	}
}

static uint32_t take(struct rate_addr *t, size_t n, const char *text, uint32_t rate, uint64_t now)
{
	unsigned char addr[16];

	addr_of(addr, text);
	return rate_addr_take(t, n, addr, rate, now);
}

static void addresses_apart(void **state)
{
	static struct rate_addr t[64];

	(void)state;
	for (int i = 0; i < 30; i++)
		assert_int_equal(take(t, 64, "10.0.0.1", 30, NOW), 0);
	assert_int_equal(take(t, 64, "10.0.0.1", 30, NOW), 2000);
	assert_int_equal(take(t, 64, "10.0.0.2", 30, NOW), 0);
	assert_int_equal(take(t, 64, "10.0.0.1", 30, NOW + 1999), 1);
	assert_int_equal(take(t, 64, "10.0.0.1", 30, NOW + 2000), 0);
	assert_int_equal(take(t, 64, "10.0.0.1", 0, NOW + 2000), 0);
	assert_int_equal(take(t, 64, "10.0.0.1", 30, NOW + 2000), 2000);
	/* IPv6 by its first half */
	for (int i = 0; i < 5; i++)
		assert_int_equal(take(t, 64, i % 2 ? "2001:db8::1" : "2001:db8::ffff:2", 5, NOW), 0);
	assert_true(take(t, 64, "2001:db8::3", 5, NOW) > 0);
	assert_int_equal(take(t, 64, "2001:db8:0:1::3", 5, NOW), 0);
}

static void a_minute_refills(void **state)
{
	static struct rate_addr t[4];

	(void)state;
	for (uint64_t minute = 0; minute < 30000; minute += 997) {	/* three weeks: the time wraps */
		uint64_t now = NOW + minute * 60000;

		for (int i = 0; i < 7; i++)
			assert_int_equal(take(t, 4, "192.0.2.9", 7, now), 0);
		assert_true(take(t, 4, "192.0.2.9", 7, now) > 8000);
		assert_int_equal(take(t, 4, "192.0.2.9", 7, now + 60000), 0);
	}
}

/* More addresses than cells: some are forgotten, none is punished for another. */
static void a_full_table_is_lenient(void **state)
{
	static struct rate_addr t[16];
	unsigned char addr[16];

	(void)state;
	for (unsigned round = 0; round < 5; round++) {
		for (unsigned i = 0; i < 2000; i++) {
			addr_of(addr, "10.0.0.0");
			addr[14] = (unsigned char)(i >> 8);
			addr[15] = (unsigned char)i;
			assert_int_equal(rate_addr_take(t, 16, addr, 5, NOW), 0);
		}
	}
	/* who keeps trying is held back in spite of the others */
	for (unsigned i = 0; i < 40; i++)
		take(t, 16, "192.0.2.1", 5, NOW);
	assert_true(take(t, 16, "192.0.2.1", 5, NOW) > 0);
	/* any number of cells will do */
	for (size_t n = 1; n < 9; n++) {
		memset(t, 0, sizeof t);
		assert_int_equal(take(t, n, "192.0.2.1", 1, NOW), 0);
		assert_int_equal(take(t, n, "192.0.2.1", 1, NOW), 60000);
		for (size_t i = n; i < 16; i++)
			assert_true(t[i].word == 0);
	}
	assert_int_equal(take(t, 0, "192.0.2.1", 1, NOW), 0);
}

static void processes_count_together(void **state)
{
	struct rate_addr *t = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
	    -1, 0);
	_Atomic unsigned *taken = (_Atomic unsigned *)(t + 100);
	int status;

	(void)state;
	assert_true(t != MAP_FAILED);
	for (int p = 0; p < 4; p++) {
		if (fork() != 0)
			continue;
		for (int i = 0; i < 2000; i++)
			if (take(t, 64, "198.51.100.7", 1000, NOW) == 0)
				atomic_fetch_add(taken, 1);
		_exit(0);
	}
	for (int p = 0; p < 4; p++)
		assert_true(wait(&status) > 0 && status == 0);
	/* where two collide again and again one may pass uncounted, never the reverse */
	assert_in_range(*taken, 1000, 1010);
	munmap(t, 4096);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_burst_then_the_rate),
		cmocka_unit_test(odd_rates),
		cmocka_unit_test(addresses_apart),
		cmocka_unit_test(a_minute_refills),
		cmocka_unit_test(a_full_table_is_lenient),
		cmocka_unit_test(processes_count_together)
	};

	return cmocka_run_group_tests_name("rate", tests, NULL, NULL);
}
