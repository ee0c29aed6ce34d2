/* A connection to Redis: whatever the other end says, each command is answered once, in order, or never. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "worker/base/clock.h"
#include "worker/redis.h"

static int listener, server;		/* the other end */
static struct redis r;
static struct { uint64_t tag; enum bus_type type; int64_t n; char s[64]; bool none; } heard[100];
static unsigned nheard, npushed;
static char pushed[64];

static void hear(void *arg, uint64_t tag, const struct bus_value *v)
{
	(void)arg;
	if (nheard < 100) {
		heard[nheard].tag = tag;
		heard[nheard].none = v == NULL;
		if (v != NULL) {
			heard[nheard].type = v->type;
			heard[nheard].n = v->type == BUS_ARRAY ? (int64_t)v->nv : v->n;
			snprintf(heard[nheard].s, sizeof heard[0].s, "%s", v->s != NULL ? v->s : "");
		}
	}
	nheard++;
}

static void on_push(struct redis *c, const struct bus_value *v)
{
	(void)c;
	npushed++;
	snprintf(pushed, sizeof pushed, "%s", v->v[2].s);
}

static bool put(const char *a, const char *b, uint64_t tag)
{
	const char *argv[2] = { a, b };

	return redis_put(&r, b != NULL ? 2 : 1, argv, NULL, hear, NULL, tag);
}

/* Lets R do what it can. */
static void turn(void)
{
	struct pollfd p = { .fd = r.fd, .events = POLLIN };

	clock_tick();
	for (int i = 0; i < 2000 && r.state != REDIS_CLOSED; i++) {
		p.revents = 0;
		p.events = (short)(redis_wants_write(&r) ? POLLIN | POLLOUT : POLLIN);
		if (poll(&p, 1, 0) <= 0)
			return;
		(void)redis_event(&r, p.revents);
	}
}

static void say(const char *s, size_t len)
{
	while (len > 0) {
		ssize_t n = send(server, s, len, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno != EAGAIN)
			return;			/* it has hung up */
		if (n > 0) {
			s += n;
			len -= (size_t)n;
		}
		turn();
	}
	turn();
}

static int set_up(void **state)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	socklen_t len = sizeof a;

	(void)state;
	clock_tick();
	memset(&r, 0, sizeof r);
	r.pushed = on_push;
	nheard = npushed = 0;
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof a.sun_family), 0);	/* a name is made up */
	assert_int_equal(getsockname(listener, (struct sockaddr *)&a, &len), 0);
	assert_int_equal(listen(listener, 5), 0);
	assert_int_equal(redis_open(&r, (struct sockaddr *)&a, len), 0);
	server = accept(listener, NULL, NULL);
	assert_true(server >= 0);
	turn();
	assert_int_equal(r.state, REDIS_OPEN);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	redis_close(&r, "");
	close(server);
	close(listener);
	return 0;
}

static void commands_as_written(void **state)
{
	static const char want[] = "*2\r\n$3\r\nGET\r\n$1\r\na\r\n*3\r\n$4\r\nEVAL\r\n$1\r\n0\r\n$2\r\nx\0\r\n";
	const char *const rest[] = { "0", "x" }, *const eval[] = { "EVAL" };
	const size_t lens[] = { 1, 2 };
	char got[200];
	size_t len;
	char *packed = redis_pack(2, rest, lens, &len);

	(void)state;
	assert_true(put("GET", "a", 1));
	assert_true(redis_put_packed(&r, 1, eval, 2, packed, len, NULL, NULL, 0));
	free(packed);
	assert_true(redis_flush(&r));
	assert_int_equal(recv(server, got, sizeof got, 0), sizeof want - 1);
	assert_memory_equal(got, want, sizeof want - 1);
}

static void every_kind_byte_by_byte(void **state)
{
	static const char text[] = "+OK\r\n:-5\r\n$3\r\na\0b\r\n*2\r\n$1\r\na\r\n*1\r\n:7\r\n-ERR x\r\n$-1\r\n*-1\r\n*0\r\n";

	(void)state;
	for (uint64_t i = 0; i < 8; i++)
		assert_true(put("PING", NULL, i));
	for (size_t i = 0; i < sizeof text - 1; i++)
		say(text + i, 1);
	assert_int_equal(nheard, 8);
	for (unsigned i = 0; i < 8; i++) {
		static const enum bus_type types[] = { BUS_STR, BUS_INT, BUS_STR, BUS_ARRAY, BUS_ERROR, BUS_NIL,
		    BUS_NIL, BUS_ARRAY };

		assert_int_equal(heard[i].tag, i);
		assert_int_equal(heard[i].type, types[i]);
	}
	assert_int_equal(heard[1].n, -5);
	assert_int_equal(heard[3].n, 2);
	assert_string_equal(heard[4].s, "ERR x");
	assert_int_equal(r.state, REDIS_OPEN);
	assert_int_equal(r.waiting, 0);
}

/* What is not asked for, malformed, or too much ends the connection; what waits hears that it did. */
static void nonsense_ends_it(void **state)
{
	static const char *const rows[] = { "SSH-2.0\r\n", "*2000000\r\n", "*99999999999999\r\n", "$-5\r\n",
	    ":x\r\n", "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", "$99999999999999999999\r\n" };

	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		assert_true(put("GET", "a", 1));
		assert_true(put("GET", "b", 2));
		say(rows[i], strlen(rows[i]));
		if (r.state != REDIS_CLOSED)		/* the reader waits for more of it */
			redis_close(&r, "enough");
		assert_int_equal(nheard, 2);
		assert_true(heard[0].none && heard[1].none);
		assert_true(r.why[0] != '\0');
		tear_down(state);
		set_up(state);
	}
	say("+OK\r\n", 5);				/* nothing was asked */
	assert_int_equal(r.state, REDIS_CLOSED);
	assert_false(put("GET", "a", 1));
}

static void long_answers_are_bounded(void **state)
{
	char *megabyte = malloc(1 << 20);

	(void)state;
	memset(megabyte, 'x', 1 << 20);
	assert_true(put("GET", "a", 1));
	say("$99000000\r\n", 11);
	for (int i = 0; i < 90 && r.state == REDIS_OPEN; i++)
		say(megabyte, 1 << 20);
	free(megabyte);
	assert_int_equal(r.state, REDIS_CLOSED);
	assert_string_equal(r.why, "an answer is too long");
	assert_int_equal(nheard, 1);
}

static void pushes_are_no_answers(void **state)
{
	static const char text[] = "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
	    "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n";

	(void)state;
	assert_true(put("SUBSCRIBE", "c", 1));
	assert_true(put("PING", NULL, 2));
	say(text, sizeof text - 1);
	assert_int_equal(npushed, 1);
	assert_string_equal(pushed, "hi");
	assert_int_equal(nheard, 2);
	assert_int_equal(heard[1].n, 2);
	assert_int_equal(r.state, REDIS_OPEN);
}

static void close_it(void *arg, uint64_t tag, const struct bus_value *v)
{
	hear(arg, tag, v);
	redis_close(&r, "had enough");
	assert_false(put("GET", "c", 9));
}

static void closed_by_a_callback(void **state)
{
	const char *const get[] = { "GET" };

	(void)state;
	assert_true(redis_put(&r, 1, get, NULL, close_it, NULL, 1));
	assert_true(put("GET", "b", 2));
	say(":1\r\n:2\r\n:3\r\n", 12);
	assert_int_equal(nheard, 2);
	assert_false(heard[0].none);
	assert_true(heard[1].none);
	assert_string_equal(r.why, "had enough");
	assert_int_equal(r.state, REDIS_CLOSED);
}

static void the_other_end_hangs_up(void **state)
{
	(void)state;
	assert_true(put("GET", "a", 1));
	close(server);
	turn();
	assert_int_equal(r.state, REDIS_CLOSED);
	assert_int_equal(nheard, 1);
	assert_true(heard[0].none);
	server = -1;
}

static void bounds(void **state)
{
	static char big[1 << 20];
	const char *argv[] = { "SET", big };
	const size_t lens[] = { 3, sizeof big };
	unsigned n = 0;

	(void)state;
	while (redis_put(&r, 2, argv, lens, hear, NULL, n))
		n++;
	assert_in_range(n, 14, 16);
	redis_close(&r, "");
	assert_int_equal(nheard, n);
	tear_down(state);
	set_up(state);
	for (n = 0; put("PING", NULL, n); n++)
		;
	assert_int_equal(n, REDIS_COMMANDS);
	redis_close(&r, "");
	assert_int_equal(nheard, n);
}

static void late(void **state)
{
	uint64_t now = clock_ms();

	(void)state;
	assert_false(redis_late(&r, now + 10000, 100));	/* nothing is waited for */
	assert_true(put("GET", "a", 1));
	assert_false(redis_late(&r, now + 100, 100));
	assert_true(redis_late(&r, now + 102, 100));
	r.heard_ms = now + 50;				/* it answers others meanwhile */
	assert_false(redis_late(&r, now + 102, 100));
	redis_close(&r, "");
	assert_false(redis_late(&r, now + 10000, 100));
}

/* Valid streams with bytes changed: no crash, and each command is answered at most once. */
static void random_bytes(void **state)
{
	static const char base[] = "+OK\r\n:5\r\n$3\r\nabc\r\n*2\r\n$1\r\na\r\n*1\r\n:7\r\n-ERR x\r\n$-1\r\n"
	    "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n*3\r\n:1\r\n:2\r\n$0\r\n\r\n";
	char text[sizeof base];

	srandom(7);
	for (int round = 0; round < 2000; round++) {
		if (r.state == REDIS_CLOSED) {
			tear_down(state);
			set_up(state);
		}
		nheard = 0;
		for (uint64_t i = 0; r.count < 8; i++)
			assert_true(put("PING", NULL, i));
		memcpy(text, base, sizeof base);
		for (long k = random() % 5; k >= 0; k--)
			text[random() % (long)(sizeof base - 1)] = "\r\n*$:+-0123456789x\0\xff"[random() % 20];
		say(text, sizeof base - 1);
		redis_close(&r, "");
		assert_int_equal(nheard, 8);
	}
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(commands_as_written), T(every_kind_byte_by_byte), T(nonsense_ends_it),
		T(long_answers_are_bounded), T(pushes_are_no_answers), T(closed_by_a_callback),
		T(the_other_end_hangs_up), T(bounds), T(late), T(random_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
