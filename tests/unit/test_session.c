/*
 * A session from live to unbound: the held list, confirmations, the drain, the end.
 *
 * Connection, routing and store are played here: bytes go into a buffer, jobs into a list that the
 * tests answer by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>

#include "shm/sess.h"
#include "worker/base/clock.h"
#include "worker/claim.h"
#include "worker/cmd.h"
#include "worker/conn.h"
#include "worker/group.h"
#include "worker/login.h"
#include "worker/notice.h"
#include "worker/peer.h"
#include "worker/presence.h"
#include "worker/redo.h"
#include "worker/route.h"
#include "worker/session.h"
#include "worker/state.h"
#include "worker/store.h"

#define USER 12

static struct worker self;
struct worker *wk = &self;

static struct segment seg;
static struct conn conn;
static uint64_t now = 1000000;

void clock_tick(void) { }
uint64_t clock_ms(void) { return now; }
uint64_t clock_wall_ms(void) { return now; }
uint64_t clock_now_ms(void) { return now; }
uint64_t clock_now_wall_ms(void) { return now; }
void clock_text(uint64_t wall_ms, char text[20]) { (void)wall_ms; *text = '\0'; }

/* ---- the connection ---- */

static char outbuf[1 << 20];
static unsigned gone, replies, unblocked;

struct conn *conn_get(uint32_t rec, uint32_t gen)
{
	return rec == conn.rec && gen == conn.gen && gone == 0 ? &conn : NULL;
}

char *conn_room(struct conn *c, size_t max)
{
	assert_true(c->r->wend + max <= sizeof outbuf);
	return outbuf + c->r->wend;
}

void conn_put(struct conn *c, size_t used) { c->r->wend += used; }
uint64_t conn_unsent(const struct conn *c) { return c->r->wend - c->r->wsent; }
char conn_term(const struct conn *c) { (void)c; return '\n'; }
unsigned conn_pressure(void) { return 0; }
void conn_rearm(struct conn *c) { (void)c; }
void conn_unblock(struct conn *c) { c->blocked = false; unblocked++; }
void conn_gone(struct conn *c) { (void)c; gone++; }
void conn_finish(struct conn *c, enum close_why why) { (void)why; c->state = CONN_DRAIN_OUT; }

void cmd_open(struct conn *c, struct json_out *w, enum proto_msg m, const char *echo)
{
	(void)c; (void)m; (void)echo;
	json_out_init(w, wk->scratch, SCRATCH);
}
void cmd_send(struct conn *c, struct json_out *w) { (void)c; (void)w; }
void cmd_reply(struct conn *c, enum proto_msg m, const char *echo, enum proto_errno e,
    const char *text, uint32_t retry_ms)
{
	(void)c; (void)echo; (void)text; (void)retry_ms;
	assert_int_equal(m, MSG_LOGOUT_ACK);
	assert_int_equal(e, E_OK);
	replies++;
}
void cmd_forget_refused(struct conn *c) { (void)c; }
void login_abort(struct conn *c) { (void)c; }

/* ---- groups, friends, routes ---- */

void group_catch_up(struct conn *c) { (void)c; }
void group_free_list(struct conn *c) { (void)c; }
void group_unindex(struct conn *c) { (void)c; }
struct member *group_list(const struct conn *c, uint32_t *n_r) { (void)c; *n_r = 0; return NULL; }
struct member *group_of(const struct conn *c, uint32_t g) { (void)c; (void)g; return NULL; }
void presence_free_list(struct conn *c) { (void)c; }
void presence_left(uint32_t user) { assert_int_equal(user, USER); }
void presence_turn_end(void) { }
void presence_unindex(struct conn *c) { (void)c; }
void route_forget_sure(struct conn *c) { (void)c; }
void route_poll(void) { }

void claim_release(uint32_t user, uint64_t number) { (void)user; (void)number; }

void notice_send(uint32_t user, notice_fn *done, uint64_t tag, uint64_t tag2)
{
	(void)user; (void)done; (void)tag; (void)tag2;
}

bool peer_send(uint32_t slot, enum item_type type, void *item, size_t len, const void *tail, size_t tail_len)
{
	(void)slot; (void)type; (void)item; (void)len; (void)tail; (void)tail_len;
	return true;
}

static struct { uint64_t ts; int verdict; } told[1000];
static unsigned ntold;

void route_tell(struct msg *m, enum verdict v)
{
	if (m->flags & MF_TOLD)
		return;
	m->flags |= MF_TOLD;
	told[ntold].ts = m->ts;
	told[ntold++].verdict = v;
}

/* ---- the store ---- */

static struct store_job *jobs[2000];
static unsigned njobs, nredo;

struct store_job *store_job_new(enum store_op op, void (*done)(struct store_job *, void *), void *arg)
{
	struct store_job *j = calloc(1, sizeof *j);

	assert_non_null(j);
	j->op = op;
	j->done = done;
	j->arg = arg;
	return j;
}

void store_submit(struct store *st, struct store_job *job)
{
	(void)st;
	jobs[njobs++] = job;
}

void redo_job(struct store_job *job) { (void)job; nredo++; }
bool redo_useful(int rc) { return rc == STORE_DOWN || rc == STORE_BUSY || rc == STORE_UNSURE; }

void route_store(uint32_t ref, void (*done)(struct store_job *, void *))
{
	struct store_job *j = store_job_new(STORE_OFFLINE_ADD, done, NULL);

	msg_set_state(msg_at(ref), M_STORING);
	j->tag = ref;
	j->tag2 = msg_seq(msg_at(ref));
	j->ts = msg_at(ref)->ts;
	store_submit(NULL, j);
}

static void job_free(struct store_job *j)
{
	for (uint32_t i = 0; i < j->nmsgs; i++)
		free(j->msgs[i].body);
	free(j->msgs);
	free(j->ids);
	free(j->cursors);
	free(j);
}

/* Answers the first job that waits; it must be an OP. */
static void answer(enum store_op op, int rc)
{
	struct store_job *j = jobs[0];

	assert_true(njobs > 0);
	assert_int_equal(j->op, op);
	memmove(jobs, jobs + 1, --njobs * sizeof *jobs);
	j->rc = rc;
	j->done(j, j->arg);
	job_free(j);
}

static void row(struct store_job *j, uint64_t id)
{
	char text[200];
	int n = snprintf(text, sizeof text,
	    "{\"msgid\":5,\"id\":7,\"name\":\"ann\",\"to\":12,\"msg\":\"row %u\",\"time\":\"t\"}", (unsigned)id);

	j->msgs = realloc(j->msgs, (j->nmsgs + 1) * sizeof *j->msgs);
	assert_non_null(j->msgs);
	j->msgs[j->nmsgs++] = (struct store_msg){ .row = id, .sender = 7, .mid = { 0xaa, (unsigned char)id },
	    .ts = id, .body = strdup(text), .len = (uint32_t)n };
}

/* ---- set-up ---- */

static void bind(bool ack)
{
	struct sess_ref old;

	memset(&conn, 0, sizeof conn);
	conn.rec = rec_claim(0, 1);
	assert_int_not_equal(conn.rec, REC_NONE);
	conn.r = rec_at(conn.rec);
	conn.gen = atomic_load(&conn.r->gen);
	conn.state = CONN_OPEN;
	conn.gone = conn.unwritten = CHUNK_NONE;
	conn.fd = open("/dev/null", O_RDWR);
	rec_set_state(conn.rec, 0, REC_OPEN);
	assert_int_equal(sess_bind(USER, conn.rec, LIVE_DRAINING, &old), SESS_OK);
	conn.bound = true;
	conn.r->ack = ack;
	session_greeted(&conn);
	assert_int_equal(atomic_load(&conn.r->live), LIVE_YES);
	gone = replies = unblocked = ntold = njobs = nredo = 0;
}

static int set_up(void **state)
{
	const struct segment_shape shape = { 1, 16, 4 << 20 };

	(void)state;
	assert_int_equal(segment_open(&seg, &shape, 1), 0);
	self = (struct worker){ .slot = 0, .gen = 1, .s = slot_at(0), .region = region_open(0, 1),
	    .json = json_new(0), .json2 = json_new(JSON_UNTRUSTED), .scratch = malloc(SCRATCH) };
	self.conf.confirm_ms = 5000;
	atomic_store(&self.s->sessions, 1);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	if (conn.fd >= 0)
		close(conn.fd);
	while (njobs > 0)
		job_free(jobs[--njobs]);
	session_drop_cache(&conn);
	timer_stop(&conn.drain);
	timer_stop(&conn.confirm);
	json_free(self.json);
	json_free(self.json2);
	free(self.scratch);
	region_close(self.region);
	segment_close(&seg);
	return 0;
}

static uint32_t message(unsigned k)
{
	char body[200];
	int n = snprintf(body, sizeof body, "\"id\":7,\"name\":\"ann\",\"to\":12,\"msg\":\"m%u\"", k);
	uint32_t ref = msg_new(MK_DIRECT, conn.rec, conn.gen, (size_t)n);

	assert_int_not_equal(ref, CHUNK_NONE);
	struct msg *m = msg_at(ref);
	memcpy(m->body, body, (size_t)n);
	m->core_len = (uint32_t)n;
	m->to_off = 20;
	m->ts = k;
	m->rcpt = USER;
	m->flags = MF_CID;
	memcpy(m->mid, &k, sizeof k);
	m->mid[15] = 1;
	return ref;
}

static void deliver(unsigned from, unsigned to)
{
	while (from <= to)
		session_deliver(&conn, message(from++));
}

static void sent_all(void)
{
	conn.r->wsent = conn.r->wend;
	session_written(&conn);
}

/* Time passes: a silent receiver's bytes are asked after. */
static void pass(unsigned ms)
{
	for (unsigned i = 0; i < ms; i += 100)
		timer_run(now += 100);
}

static unsigned frames(const char *what)
{
	unsigned n = 0;

	for (const char *p = outbuf; (p = memmem(p, (size_t)(outbuf + conn.r->wend - p), what,
	    strlen(what))) != NULL; p++)
		n++;
	return n;
}

static void assert_told(unsigned from, unsigned to, int verdict)
{
	assert_int_equal(ntold, to - from + 1);
	for (unsigned i = 0; i < ntold; i++)
		assert_true(told[i].ts == from + i && told[i].verdict == verdict);
}

static void closed(void)
{
	close(conn.fd);
	conn.fd = -1;
	conn.state = CONN_CLOSED;
	rec_set_state(conn.rec, 0, REC_CLOSING);
	session_closed(&conn);
}

/* The user is free, and nothing of the session is left. */
static void assert_over(void)
{
	struct sess_ref to;

	assert_int_equal(gone, 1);
	assert_int_equal(sess_find(USER, &to), SESS_EMISSING);
	assert_int_equal(region_used(self.region), 0);
	assert_int_equal(njobs, 0);
}

/* ---- delivery ---- */

static void test_silent_written_is_delivered(void **state)
{
	(void)state;
	bind(false);
	deliver(1, 3);
	assert_int_equal(frames("\"msg\":\"m"), 3);
	assert_int_equal(frames("\"n\":"), 0);
	assert_int_equal(ntold, 0);
	conn.r->wsent = conn.r->wend - 1;	/* a byte of the third is missing */
	session_written(&conn);
	assert_told(1, 2, V_DELIVERED);
	sent_all();
	assert_told(1, 3, V_DELIVERED);
	pass(5000);
	assert_int_equal(conn.held, 0);
	assert_int_equal(region_used(self.region), 0);
	assert_int_equal(session_received(&conn, 1), -1);	/* it promised nothing */
	closed();
	assert_over();
}

static void test_ack_confirmed_is_delivered(void **state)
{
	(void)state;
	bind(true);
	deliver(1, 4);
	assert_int_equal(frames("\"n\":4}"), 1);
	sent_all();
	assert_int_equal(ntold, 0);		/* written is not enough */
	assert_int_equal(session_received(&conn, 5), -1);
	assert_int_equal(session_received(&conn, -1), -1);
	assert_int_equal(session_received(&conn, 0), 0);
	assert_int_equal(ntold, 0);
	assert_int_equal(session_received(&conn, 3), 0);
	assert_told(1, 3, V_DELIVERED);
	assert_int_equal(session_received(&conn, 2), 0);	/* again, late: nothing */
	assert_int_equal(ntold, 3);
	assert_int_equal(session_received(&conn, 4), 0);
	assert_told(1, 4, V_DELIVERED);
	assert_int_equal(njobs, 0);
	closed();
	assert_over();
}

/* Over the window: what it was handed goes to the store first, then the new one, in order. */
static void test_window(void **state)
{
	(void)state;
	bind(true);
	deliver(1, PROTO_WINDOW_MSGS);
	assert_false(session_can_live(&conn));
	deliver(PROTO_WINDOW_MSGS + 1, PROTO_WINDOW_MSGS + 2);
	assert_int_equal(conn.r->sent_n, PROTO_WINDOW_MSGS);
	assert_int_equal(njobs, PROTO_WINDOW_MSGS + 2);
	for (unsigned i = 0; i < njobs; i++)
		assert_int_equal(jobs[i]->ts, i + 1);
}

static void test_confirmation_is_late(void **state)
{
	(void)state;
	bind(true);
	deliver(1, 2);
	pass(7000);
	assert_int_equal(njobs, 2);		/* rows beside, should it never come */
	answer(STORE_OFFLINE_ADD, STORE_OK);
	assert_told(1, 1, V_STORED);
	assert_int_equal(session_received(&conn, 2), 0);	/* 1 is stored, 2 is being stored */
	answer(STORE_OFFLINE_ADD, STORE_OK);
	answer(STORE_OFFLINE_DEL_MID, STORE_OK);
	answer(STORE_OFFLINE_DEL_MID, STORE_OK);
	assert_int_equal(njobs, 0);
	assert_int_equal(region_used(self.region), 0);
	closed();
	assert_over();
}

/* ---- behind the store ---- */

static void test_drain(void **state)
{
	(void)state;
	bind(true);
	session_notice(&conn);
	deliver(1, 1);				/* not before what the store holds */
	assert_int_equal(conn.r->wend, 0);
	row(jobs[0], 50);
	row(jobs[0], 51);
	answer(STORE_OFFLINE, STORE_OK);
	assert_int_equal(frames("row 5"), 2);
	answer(STORE_OFFLINE_ADD, STORE_OK);
	assert_told(1, 1, V_STORED);
	/* From the start again until nothing is new: it knows what it has. */
	for (int pass_no = 0; pass_no < 2; pass_no++) {
		assert_int_equal(jobs[0]->after, 0);
		assert_false(session_can_live(&conn));
		for (uint64_t id = 50; id <= 52; id++)
			row(jobs[0], id);
		answer(STORE_OFFLINE, STORE_OK);
	}
	assert_int_equal(frames("row 5"), 3);
	assert_int_equal(njobs, 0);
	assert_true(session_can_live(&conn));
	assert_int_equal(session_received(&conn, 3), 0);
	assert_int_equal(jobs[0]->nids, 3);
	deliver(2, 2);
	assert_int_equal(frames("\"m2\""), 1);
	answer(STORE_OFFLINE_DEL, STORE_OK);
	assert_int_equal(session_received(&conn, 4), 0);
	closed();
	assert_over();
}

/* Confirmed while a read that began before is in flight: its row comes back and is known. */
static void test_row_comes_back(void **state)
{
	(void)state;
	bind(true);
	session_notice(&conn);
	row(jobs[0], 60);
	answer(STORE_OFFLINE, STORE_OK);
	assert_int_equal(session_received(&conn, 1), 0);
	assert_int_equal(njobs, 2);		/* the last pass, and the deletion */
	struct store_job *read = jobs[0];
	jobs[0] = jobs[1];
	jobs[1] = read;
	answer(STORE_OFFLINE_DEL, STORE_OK);
	row(read, 60);
	answer(STORE_OFFLINE, STORE_OK);
	assert_int_equal(frames("row 60"), 1);
	while (njobs > 0)
		answer(STORE_OFFLINE, STORE_OK);
	assert_int_equal(region_used(self.region), 0);
	closed();
	assert_over();
}

static void test_store_refuses(void **state)
{
	static const struct { int rc, verdict; } v[] = { { STORE_FULL, V_FULL },
		{ STORE_GONE, V_UNKNOWN }, { STORE_DOWN, V_DOWN }, { STORE_BUSY, V_DOWN } };

	(void)state;
	bind(true);
	session_notice(&conn);
	for (unsigned i = 0; i < 4; i++)
		deliver(i + 1, i + 1);
	answer(STORE_OFFLINE, STORE_OK);
	for (unsigned i = 0; i < 4; i++) {
		answer(STORE_OFFLINE_ADD, v[i].rc);
		assert_true(told[i].ts == i + 1 && told[i].verdict == v[i].verdict);
	}
	assert_int_equal(nredo, 0);
	while (njobs > 0)
		answer(STORE_OFFLINE, STORE_OK);
	closed();
	assert_over();
}

/* ---- the end ---- */

static void test_close_stores_in_order(void **state)
{
	struct sess_ref to;

	(void)state;
	bind(true);
	deliver(1, 5);
	sent_all();
	assert_int_equal(session_received(&conn, 2), 0);
	closed();
	assert_int_equal(njobs, 3);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(jobs[i]->ts, 3 + i);
	answer(STORE_OFFLINE_ADD, STORE_OK);
	answer(STORE_OFFLINE_ADD, STORE_OK);
	assert_int_equal(sess_find(USER, &to), SESS_OK);	/* nobody else may log in yet */
	assert_int_equal(to.live, LIVE_ENDING);
	answer(STORE_OFFLINE_ADD, STORE_OK);
	assert_int_equal(ntold, 5);
	assert_over();
}

/* What was accepted is not refused at the end: it is asked again until it is done. */
static void test_close_while_the_store_is_down(void **state)
{
	struct sess_ref to;

	(void)state;
	bind(true);
	deliver(1, 1);
	closed();
	answer(STORE_OFFLINE_ADD, STORE_DOWN);
	assert_int_equal(nredo, 1);
	assert_int_equal(ntold, 0);
	assert_int_equal(gone, 0);
	assert_int_equal(sess_find(USER, &to), SESS_OK);
}

static void test_logout(void **state)
{
	struct sess_ref to;

	(void)state;
	bind(false);
	deliver(1, 2);
	session_logout(&conn, "\"r\"");
	assert_int_equal(replies, 0);		/* after what was written before it */
	sent_all();
	assert_told(1, 2, V_DELIVERED);
	assert_int_equal(replies, 1);
	assert_int_equal(unblocked, 1);
	assert_int_equal(sess_find(USER, &to), SESS_EMISSING);
	assert_false(session_logged_in(&conn));
	assert_int_equal(gone, 0);		/* the connection stays */
	assert_int_equal(region_used(self.region), 0);
}

static void test_logout_unconfirmed(void **state)
{
	(void)state;
	bind(true);
	deliver(1, 2);
	sent_all();
	session_logout(&conn, NULL);
	answer(STORE_OFFLINE_ADD, STORE_OK);
	assert_int_equal(replies, 0);
	answer(STORE_OFFLINE_ADD, STORE_OK);
	assert_int_equal(replies, 1);
	assert_told(1, 2, V_STORED);
	assert_int_equal(region_used(self.region), 0);
}

static void test_lanes_hold_the_end(void **state)
{
	(void)state;
	bind(true);
	conn.nlanes = 1;			/* something it sent is not resolved */
	closed();
	assert_int_equal(gone, 0);
	conn.nlanes = 0;
	session_settle(&conn);
	assert_over();
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(test_silent_written_is_delivered), T(test_ack_confirmed_is_delivered),
		T(test_window), T(test_confirmation_is_late), T(test_drain), T(test_row_comes_back),
		T(test_store_refuses), T(test_close_stores_in_order),
		T(test_close_while_the_store_is_down), T(test_logout), T(test_logout_unconfirmed),
		T(test_lanes_hold_the_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
