/*
 * Claims without Redis: what is sent when, what answers, late ones and missing ones lead to. The
 * scripts themselves are tested against a real Redis (tests/integration/test_claim.py).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shm/sess.h"
#include "worker/base/clock.h"
#include "worker/bus.h"
#include "worker/call.h"
#include "worker/claim.h"
#include "worker/cluster.h"
#include "worker/conn.h"
#include "worker/hosts.h"
#include "worker/session.h"
#include "worker/state.h"

#define USERS 700u

static struct worker self;
struct worker *wk = &self;
static struct segment seg;
static struct conn conns[USERS + 1];	/* by user */

/* ---- what is around it ---- */

static uint64_t now_ms = 1000000;

void clock_tick(void) { }
uint64_t clock_ms(void) { return now_ms; }
uint64_t clock_wall_ms(void) { return now_ms; }
uint64_t clock_now_ms(void) { return now_ms; }
uint64_t clock_now_wall_ms(void) { return now_ms; }
void clock_text(uint64_t wall_ms, char out[20]) { snprintf(out, 20, "%llu", (unsigned long long)wall_ms); }

static struct host hosts[3];		/* ourselves, and two others */
static bool on, up;

struct host *hosts_self(void) { return &hosts[0]; }
uint64_t hosts_key(const char *id, size_t len) { return (uint64_t)id[0] * 1000 + len; }
struct host *hosts_find(uint64_t key)
{
	for (unsigned i = 0; i < 3; i++)
		if (hosts[i].key == key)
			return &hosts[i];
	return NULL;
}
bool hosts_alive(uint64_t key, uint64_t epoch)
{
	const struct host *h = hosts_find(key);

	return h != NULL && h->alive && h->epoch == epoch;
}
const char *hosts_name(const char *kind, const char *rest)
{
	(void)rest;
	return kind;
}

void cluster_look_again(void) { }
bool cluster_on(void) { return on; }
bool bus_up(void) { return up; }

struct sent { char kind[16]; unsigned argc; char *argv[1100]; bus_done_fn *done; void *arg; uint64_t tag; };
static struct sent sent[64];
static unsigned nsent, full;

static bool record(const char *kind, unsigned argc, const char *const *argv, bus_done_fn *done,
    void *arg, uint64_t tag)
{
	struct sent *s = &sent[nsent];

	if (!up || full > 0) {
		full -= full > 0;
		return false;
	}
	assert_in_range(nsent, 0, 63);
	assert_in_range(argc, 1, 1099);
	nsent++;
	strcpy(s->kind, kind);
	s->argc = argc;
	for (unsigned i = 0; i < argc; i++)
		s->argv[i] = strdup(argv[i]);
	s->done = done;
	s->arg = arg;
	s->tag = tag;
	return true;
}

bool bus_send(unsigned argc, const char *const *argv, const size_t *lens, bus_done_fn *done,
    void *arg, uint64_t tag)
{
	(void)lens;
	return record(argv[0], argc - 1, argv + 1, done, arg, tag);
}

bool bus_script(struct bus_script *s, unsigned nkeys, unsigned argc, const char *const *argv,
    const size_t *lens, bus_done_fn *done, void *arg, uint64_t tag)
{
	(void)lens;
	return record(nkeys == 0 ? "restore" : strstr(s->text, "NUMSUB") != NULL ? "take" :
	    strstr(s->text, "'DEL'") != NULL ? "release" : "where", argc, argv, done, arg, tag);
}

static char called[8][160];
static unsigned ncalled;
static int call_code;

void call_host(struct host *h, const char *method, const char *args, size_t len, uint32_t wait_ms,
    call_done_fn *done, void *arg, uint64_t tag)
{
	(void)wait_ms;
	assert_in_range(ncalled, 0, 7);
	snprintf(called[ncalled++], sizeof called[0], "%s %s %.*s", h->id, method, (int)len, args);
	done(arg, tag, call_code, "", 0);
}

struct conn *conn_get(uint32_t rec, uint32_t gen)
{
	for (uint32_t u = 1; u <= USERS; u++)
		if (conns[u].r != NULL && conns[u].rec == rec && conns[u].gen == gen)
			return &conns[u];
	return NULL;
}

static uint32_t ended;

void session_end_notice(struct conn *c, const char *reason, enum close_why why)
{
	assert_string_equal(reason, "replaced");
	assert_int_equal(why, CLOSE_ENDED);
	ended = atomic_load(&c->r->user);
}

/* ---- helpers ---- */

static struct bus_value text(const char *s)
{
	return (struct bus_value){ .type = BUS_STR, .s = s, .len = strlen(s) };
}

static struct bus_value number(int64_t n)
{
	return (struct bus_value){ .type = BUS_INT, .n = n };
}

static void forget(struct sent *s)
{
	for (unsigned i = 0; i < s->argc; i++)
		free(s->argv[i]);
}

/* Answers the first command under way. */
static void answer(const struct bus_value *v)
{
	struct sent s = sent[0];

	assert_int_not_equal(nsent, 0);
	memmove(sent, sent + 1, --nsent * sizeof *sent);
	s.done(s.arg, s.tag, v);
	forget(&s);
}

static void answer_take(int64_t code, const char *value)
{
	struct bus_value v[2] = { number(code), text(value) };

	answer(&(struct bus_value){ .type = BUS_ARRAY, .v = v, .nv = 2 });
}

static void answer_nothing(void)
{
	answer(&(struct bus_value){ .type = BUS_ARRAY });
}

static void assert_sent(unsigned i, const char *kind, const char *first, const char *last)
{
	assert_in_range(i, 0, nsent - 1);
	assert_string_equal(sent[i].kind, kind);
	assert_string_equal(sent[i].argv[0], first);
	assert_string_equal(sent[i].argv[sent[i].argc - 1], last);
}

static int told;			/* how often */
static enum claim_rc told_rc;
static struct claim_owner told_by;

static void claimed(uint32_t rec, uint32_t gen, enum claim_rc rc, const struct claim_owner *by)
{
	(void)rec;
	(void)gen;
	told++;
	told_rc = rc;
	if (by != NULL)
		told_by = *by;
}

static struct conn *session(uint32_t user)
{
	struct conn *c = &conns[user];
	struct sess_ref old;

	*c = (struct conn){ .rec = rec_claim(0, 1), .bound = true, .greeted = true };
	assert_int_not_equal(c->rec, REC_NONE);
	c->r = rec_at(c->rec);
	c->gen = atomic_load(&c->r->gen);
	c->r->since_wall_ms = 1000 + user;
	rec_set_state(c->rec, 0, REC_OPEN);
	assert_int_equal(sess_bind(user, c->rec, LIVE_YES, &old), SESS_OK);
	return c;
}

static void end(uint32_t user)
{
	struct conn *c = &conns[user];

	if (c->r == NULL)
		return;
	(void)sess_unbind(user, c->rec);
	rec_free(c->rec, 0);
	c->r = NULL;
}

static void take(struct conn *c, const struct claim_owner *over)
{
	claim_take(atomic_load(&c->r->user), c->rec, c->gen, over, claimed);
}

static void later(uint32_t ms)
{
	for (now_ms += 32; ms > 16; ms -= 16, now_ms += 16)
		timer_run(now_ms);
	timer_run(now_ms);
}

static int set_up(void **state)
{
	const struct segment_shape shape = { 1, 2048, 1 << 20 };

	(void)state;
	assert_int_equal(segment_open(&seg, &shape, 1), 0);
	self = (struct worker){ .slot = 0, .gen = 1, .s = slot_at(0) };
	hosts[0] = (struct host){ .key = hosts_key("us", 2), .epoch = 77, .id = "us", .self = true, .alive = true };
	hosts[1] = (struct host){ .key = hosts_key("a", 1), .epoch = 5, .id = "a", .alive = true };
	hosts[2] = (struct host){ .key = hosts_key("b", 1), .epoch = 6, .id = "b" };
	on = up = true;
	told = ncalled = nsent = full = ended = 0;
	call_code = CALL_OK;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	on = up = true;
	while (nsent > 0)
		answer_nothing();
	for (uint32_t u = 1; u <= USERS; u++)
		end(u);
	up = false;			/* timers of the module find nothing to do */
	later(10000);
	segment_close(&seg);
	return 0;
}

/* ---- take ---- */

static void test_without_a_cluster(void **state)
{
	struct conn *c = session(1);

	(void)state;
	on = up = false;
	take(c, NULL);
	assert_int_equal(told, 1);
	assert_int_equal(told_rc, CLAIM_SILENT);
	claim_release(1, 1);
	claim_restore();
	assert_int_equal(nsent, 0);
}

static void test_ours(void **state)
{
	struct conn *c = session(3);

	(void)state;
	take(c, NULL);
	assert_int_equal(told, 0);
	assert_sent(0, "take", "user:3", "silent:");
	assert_string_equal(sent[0].argv[1], "us");
	assert_string_equal(sent[0].argv[2], "77");
	assert_string_equal(sent[0].argv[3], "1003");
	assert_string_equal(sent[0].argv[5], "");
	answer_take(0, "");
	assert_int_equal(told, 1);
	assert_int_equal(told_rc, CLAIM_OURS);
	assert_int_equal(nsent + ncalled, 0);
}

static void test_taken_later_and_over(void **state)
{
	struct conn *c = session(3);

	(void)state;
	take(c, NULL);
	answer_take(1, "a 5 1700000000000 9");
	assert_int_equal(told_rc, CLAIM_TAKEN);
	assert_true(told_by.key == hosts[1].key && told_by.epoch == 5 &&
	    told_by.login_ms == 1700000000000u && told_by.number == 9);
	take(c, &told_by);
	assert_string_equal(sent[0].argv[5], "a 5 1700000000000 9");
	answer_take(2, "a 5 1700000000000 9");
	assert_int_equal(told_rc, CLAIM_LATER);
	assert_int_equal(told, 2);
}

static void test_what_is_no_answer_is_silence(void **state)
{
	static const char *const bad[] = { "", "a", "a 5 6", "a 5 6 7 8", " 5 6 7", "a 5 6 x",
		"a 99999999999999999999 6 7", "a 5 6 7 " };
	struct bus_value one = number(1);
	struct conn *c = session(3);
	int n = 0;

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		take(c, NULL);
		answer_take(1, bad[i]);
		assert_int_equal(told, ++n);
		assert_int_equal(told_rc, CLAIM_SILENT);
	}
	take(c, NULL);
	answer(NULL);
	take(c, NULL);
	answer(&one);
	take(c, NULL);
	answer(&(struct bus_value){ .type = BUS_ERROR, .s = "ERR", .len = 3 });
	full = 1;
	take(c, NULL);
	assert_int_equal(told, n + 4);
	assert_int_equal(told_rc, CLAIM_SILENT);
}

/* A host that may live hears that its session is over: exactly that one. */
static void test_former_owner_is_told(void **state)
{
	struct conn *c = session(3);

	(void)state;
	take(c, NULL);
	answer_take(0, "a 5 100 9");
	assert_int_equal(told_rc, CLAIM_OURS);
	assert_int_equal(ncalled, 1);
	assert_string_equal(called[0], "a session.end {\"user\":3,\"number\":9,\"reason\":\"replaced\"}");
	take(c, NULL);
	answer_take(0, "a 4 100 9");		/* of a life that is over: nobody is there to hear it */
	assert_int_equal(ncalled, 1);
	call_code = CALL_LATE;
	take(c, NULL);
	answer_take(0, "a 5 100 9");
	assert_int_equal(ncalled, 5);		/* tried again, but not for good */
}

static void test_closed_meanwhile(void **state)
{
	struct conn *c = session(3);
	char login[24];

	(void)state;
	snprintf(login, sizeof login, "%llu", (unsigned long long)atomic_load(&c->r->login));
	take(c, NULL);
	end(3);
	answer_take(0, "");
	assert_sent(0, "release", "user:3", login);
}

static void test_patience(void **state)
{
	struct conn *c = session(3);

	(void)state;
	take(c, NULL);
	later(CLAIM_MS - 100);
	assert_int_equal(told, 0);
	later(CLAIM_MS);
	assert_int_equal(told, 1);
	assert_int_equal(told_rc, CLAIM_SILENT);
	answer_take(1, "a 5 100 9");		/* it was let in: now who is the younger? */
	assert_int_equal(told, 1);
	assert_int_equal(nsent, 1);
	assert_string_equal(sent[0].kind, "restore");
	assert_int_equal(sent[0].argc, 5);
}

/* A worker that has just begun waits for its connection; one that lost it does not. */
static void test_first_connection(void **state)
{
	struct conn *c = session(3);

	(void)state;
	up = false;
	take(c, NULL);
	assert_int_equal(told, 1);		/* this process was connected before */
	assert_int_equal(told_rc, CLAIM_SILENT);
}

/* Runs first: nothing was connected yet. */
static void test_very_first_connection(void **state)
{
	struct conn *c = session(3), *d = session(4);

	(void)state;
	atomic_store(&self.s->spawned_ms, clock_ms());
	up = false;
	take(c, NULL);
	take(d, NULL);
	assert_int_equal(told, 0);
	d->claiming = c->claiming = true;
	up = true;
	claim_restore();
	assert_int_equal(nsent, 2);		/* and not restored as well */
	assert_string_equal(sent[0].kind, "take");
	answer_take(0, "");
	answer_take(0, "");
	assert_int_equal(told, 2);
}

/* ---- release, restore ---- */

static void test_release_waits_for_redis(void **state)
{
	(void)state;
	up = false;
	claim_release(3, 30);
	assert_int_equal(nsent, 0);
	up = true;
	claim_release(4, 40);
	assert_sent(0, "release", "user:4", "40");
	answer(NULL);				/* nobody knows whether it was done */
	claim_restore();
	assert_int_equal(nsent, 2);
	assert_sent(0, "release", "user:3", "30");
	assert_sent(1, "release", "user:4", "40");
	answer(&(struct bus_value){ .type = BUS_INT });
	answer(&(struct bus_value){ .type = BUS_INT });
	claim_restore();
	assert_int_equal(nsent, 0);
}

static void test_restore_in_batches(void **state)
{
	unsigned all = 0;

	(void)state;
	for (uint32_t u = 1; u <= 600; u++)
		session(u);
	conns[7].claiming = true;
	conns[8].state = CONN_MOVING;
	conns[9].bound = false;
	conns[10].ending = END_CLOSE;
	claim_restore();
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(nsent, 1);	/* one at a time */
		assert_string_equal(sent[0].kind, "restore");
		all += sent[0].argc - 4;
		for (unsigned k = 4; k < sent[0].argc; k++)
			assert_int_equal(strchr(sent[0].argv[k], 'w') != NULL, atoi(sent[0].argv[k]) == 10);
		answer_nothing();
	}
	assert_int_equal(all, 597);
	assert_int_equal(nsent, 0);
	later(5000);				/* and once more, when all hosts are there again */
	assert_int_equal(nsent, 1);
	answer_nothing();
	assert_int_equal(nsent, 1);
}

static void test_restore_conflicts(void **state)
{
	struct bus_value v[6];

	(void)state;
	for (uint32_t u = 1; u <= 3; u++)
		session(u);
	claim_restore();
	assert_int_equal(sent[0].argc, 7);
	v[0] = number(atoi(sent[0].argv[4]) == 1 ? 0 : 2);
	v[1] = number(1);
	v[2] = text("a 5 100 9");		/* theirs was older */
	v[3] = number(1);
	v[4] = number(0);
	v[5] = text("a 5 9999 8");
	answer(&(struct bus_value){ .type = BUS_ARRAY, .v = v, .nv = 6 });
	assert_int_equal(ncalled, 1);
	assert_non_null(strstr(called[0], "\"number\":9"));
	assert_int_equal(ended, 2);
}

static void test_restore_answers_that_are_odd(void **state)
{
	struct bus_value v[3] = { number(55), number(0), text("a 5 1 1") };

	(void)state;
	session(1);
	claim_restore();
	answer(&(struct bus_value){ .type = BUS_ARRAY, .v = v, .nv = 3 });
	assert_int_equal(ended, 0);
	claim_restore();
	v[0] = number(-1);
	answer(&(struct bus_value){ .type = BUS_ARRAY, .v = v, .nv = 3 });
	claim_restore();
	v[0] = number(0);
	answer(&(struct bus_value){ .type = BUS_ARRAY, .v = v, .nv = 2 });
	assert_int_equal(ended, 0);
}

/* Its claim was written again behind its release. */
static void test_restore_of_what_ended_meanwhile(void **state)
{
	(void)state;
	session(1);
	claim_restore();
	end(1);
	answer_nothing();
	assert_int_equal(nsent, 1);
	assert_sent(0, "release", "user:1", sent[0].argv[3]);
}

static void test_restore_begins_again_without_an_answer(void **state)
{
	(void)state;
	session(1);
	claim_restore();
	answer(NULL);
	assert_int_equal(nsent, 0);
	later(2000);
	assert_int_equal(nsent, 1);
	answer_nothing();
	full = 1;				/* no more commands were taken */
	claim_restore();
	assert_int_equal(nsent, 0);
	later(100);
	assert_int_equal(nsent, 1);
}

/* ---- asking ---- */

static int heard;
static enum where heard_where;
static struct host *heard_host;

static void where(uint64_t tag, uint64_t tag2, enum where w, struct host *h)
{
	assert_int_equal(tag, 11);
	assert_int_equal(tag2, 22);
	heard++;
	heard_where = w;
	heard_host = h;
}

static void ask(uint32_t user, const char *value, enum where w, struct host *h)
{
	struct bus_value v = value != NULL ? text(value) : (struct bus_value){ .type = BUS_NIL };

	heard = 0;
	claim_where(user, where, 11, 22);
	assert_sent(nsent - 1, "GETRANGE", nsent > 0 ? sent[nsent - 1].argv[0] : "", "199");
	answer(&v);
	assert_int_equal(heard, 1);
	assert_int_equal(heard_where, w);
	assert_ptr_equal(heard_host, h);
}

static void test_where(void **state)
{
	struct bus_value nil = { .type = BUS_NIL }, v = text("b 6 100 1");
	char ours[64];

	(void)state;
	ask(3, NULL, WHERE_NOBODY, NULL);
	ask(3, "nonsense", WHERE_NOBODY, NULL);
	ask(3, "a 5 100 1", WHERE_HOST, &hosts[1]);
	ask(3, "us 76 100 1", WHERE_NOBODY, NULL);	/* a former life of ours */
	session(3);
	snprintf(ours, sizeof ours, "us 77 100 1");
	ask(3, ours, WHERE_HOST, &hosts[0]);
	end(3);
	ask(3, ours, WHERE_NOBODY, NULL);
	assert_sent(0, "release", "user:3", "1");
	answer(&nil);

	heard = 0;
	claim_where(3, where, 11, 22);
	answer(&v);					/* our copy of the registry may be behind */
	assert_int_equal(heard, 0);
	assert_string_equal(sent[0].kind, "where");
	answer(&nil);
	assert_int_equal(heard_where, WHERE_NOBODY);
	claim_where(3, where, 11, 22);
	answer(&v);
	answer(&v);
	assert_int_equal(heard_where, WHERE_UNKNOWN);
	claim_where(3, where, 11, 22);
	answer(NULL);
	assert_int_equal(heard_where, WHERE_UNKNOWN);
	up = false;
	claim_where(3, where, 11, 22);
	assert_int_equal(heard, 4);
	on = false;
	claim_where(3, where, 11, 22);
	assert_int_equal(heard_where, WHERE_NOBODY);
}

static int many_told;
static bool many_known;

static void many(void *arg, bool known)
{
	assert_ptr_equal(arg, &many_told);
	many_told++;
	many_known = known;
}

static void test_online(void **state)
{
	uint32_t ids[6] = { 4, 5, 5, 6, 7, 5 };
	struct host *at[6];
	struct bus_value v[5] = { text("a 5 1 1"), text("b 6 1 1"), text("us 77 1 1"), { .type = BUS_NIL },
		text("a 5 1 1") };

	(void)state;
	many_told = 0;
	claim_online(ids, at, 0, many, &many_told);
	assert_int_equal(many_told, 1);
	claim_online(ids, at, 6, many, &many_told);
	assert_int_equal(sent[0].argc, 5);		/* the second 5 beside the first is not asked for */
	answer(&(struct bus_value){ .type = BUS_ARRAY, .v = v, .nv = 5 });
	assert_int_equal(many_told, 2);
	assert_true(many_known);
	assert_ptr_equal(at[0], &hosts[1]);
	assert_null(at[1]);				/* a host that is gone */
	assert_null(at[2]);
	assert_null(at[3]);				/* ours is not elsewhere */
	assert_null(at[4]);
	assert_ptr_equal(at[5], &hosts[1]);
}

static void test_online_in_chunks(void **state)
{
	static uint32_t ids[1200];
	static struct host *at[1200];
	static struct bus_value v[512];

	(void)state;
	many_told = 0;
	for (uint32_t i = 0; i < 1200; i++)
		ids[i] = i + 1;
	for (uint32_t i = 0; i < 512; i++)
		v[i] = i == 511 ? text("a 5 1 1") : (struct bus_value){ .type = BUS_NIL };
	claim_online(ids, at, 1200, many, &many_told);
	assert_int_equal(nsent, 3);
	assert_int_equal(sent[0].argc, 512);
	assert_int_equal(sent[2].argc, 1200 - 1024);
	assert_string_equal(sent[1].argv[0], "user:513");
	answer(&(struct bus_value){ .type = BUS_ARRAY, .v = v, .nv = 512 });
	answer(&(struct bus_value){ .type = BUS_ARRAY, .v = v, .nv = 512 });
	assert_int_equal(many_told, 0);
	answer(&(struct bus_value){ .type = BUS_ARRAY, .v = v, .nv = 10 });
	assert_int_equal(many_told, 1);
	assert_true(many_known);
	assert_ptr_equal(at[511], &hosts[1]);
	assert_ptr_equal(at[1023], &hosts[1]);
	assert_null(at[512]);

	claim_online(ids, at, 1200, many, &many_told);
	answer(NULL);
	answer(NULL);
	answer(NULL);
	assert_int_equal(many_told, 2);
	assert_false(many_known);
	full = 1;
	claim_online(ids, at, 1200, many, &many_told);
	assert_int_equal(many_told, 3);
	assert_false(many_known);
	up = false;
	claim_online(ids, at, 1200, many, &many_told);
	assert_int_equal(many_told, 4);
	assert_false(many_known);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_very_first_connection),
		CASE(test_without_a_cluster),
		CASE(test_ours),
		CASE(test_taken_later_and_over),
		CASE(test_what_is_no_answer_is_silence),
		CASE(test_former_owner_is_told),
		CASE(test_closed_meanwhile),
		CASE(test_patience),
		CASE(test_first_connection),
		CASE(test_release_waits_for_redis),
		CASE(test_restore_in_batches),
		CASE(test_restore_conflicts),
		CASE(test_restore_answers_that_are_odd),
		CASE(test_restore_of_what_ended_meanwhile),
		CASE(test_restore_begins_again_without_an_answer),
		CASE(test_where),
		CASE(test_online),
		CASE(test_online_in_chunks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
