/* login.c - the steps of REG and LOGIN. See login.h; the greeting itself is greet.c. */
#include "worker/login.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sodium.h>

#include "shm/sess.h"
#include "worker/addrs.h"
#include "worker/auth.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/call.h"
#include "worker/claim.h"
#include "worker/cluster.h"
#include "worker/cmd.h"
#include "worker/greet.h"
#include "worker/group.h"
#include "worker/hosts.h"
#include "worker/peer.h"
#include "worker/rate.h"
#include "worker/session.h"
#include "worker/store.h"

#define POLL_MS 4
#define WAIT_MS 4000			/* for a session that is being settled */
#define DRAINING_MS 1500		/* for one that is just logging in or out */
#define FAR_MS 50			/* a session of another host is asked about again */
#define ENDED_MS 10			/* one that was told to end is mostly gone at once */
#define LATER_MS 100			/* a host whose channel nobody reads, or that does not answer */
#define CHECK_MS 1000			/* for another host's answer */
#define DRAIN_RETRY_MS 1000

struct login {
	bool reg, ack, by_token;
	bool asked, far_asked;		/* the other session was told to end: on this host, on another */
	uint32_t user, epoch;
	char name[PROTO_NAME_BYTES + 1];
	char password[PROTO_PASSWORD_MAX + 1];
	size_t password_len;
	char echo[PROTO_REQ_MAX * 6 + 3];
	uint64_t until_ms, far_until_ms;
	struct claim_owner owner;	/* the claim that is in the way */
	struct timer wait;
	struct conn *conn;
};

void login_abort(struct conn *c)
{
	struct login *l = c->login;

	greet_abort(c);
	if (l == NULL)
		return;
	timer_stop(&l->wait);
	sodium_memzero(l, sizeof *l);
	free(l);
	c->login = NULL;
}

const char *login_name(const struct conn *c, size_t *len_r)
{
	if (c->r->name_len != 255) {
		*len_r = c->r->name_len;
		return c->r->name;
	}
	struct chunk *ch = chunk_at(wk->slot, c->r->name_chunk);
	*len_r = ch->aux;
	return (const char *)ch->data;
}

int login_set_name(struct conn *c, const char *name, size_t len)
{
	if (c->r->name_chunk != CHUNK_NONE)
		chunk_free(wk->region, c->r->name_chunk);
	c->r->name_chunk = CHUNK_NONE;
	if (len <= sizeof c->r->name) {
		memcpy(c->r->name, name, len);
		c->r->name_len = (uint8_t)len;
		return 0;
	}
	uint32_t ref = chunk_alloc(wk->region, len, CHUNK_NAME, c->rec, c->gen);
	if (ref == CHUNK_NONE)
		return -1;
	struct chunk *ch = chunk_at(wk->slot, ref);
	memcpy(ch->data, name, len);
	ch->aux = (uint16_t)len;
	c->r->name_chunk = ref;
	c->r->name_len = 255;
	return 0;
}

uint32_t login_rate(const struct conn *c)
{
	if (wk->conf.rate_logins == 0 || addrs_local(c->r) || !addrs_ready())
		return 0;
	return rate_addr_take(segment_at(shm->head->addr_off), shm->head->naddr, c->r->addr,
	    wk->conf.rate_logins, clock_ms());
}

/* ---- the end of an attempt ---- */

static void fail(struct conn *c, enum proto_errno e, const char *text, uint32_t retry_ms)
{
	struct login *l = c->login;

	COUNT(login_failures);
	cmd_reply(c, l->reg ? MSG_REG_ACK : MSG_LOGIN_ACK, l->echo, e, text, retry_ms);
	if (c->login != NULL)
		login_abort(c);
	c->claiming = false;
	if (c->state == CONN_OPEN && c->bound && !c->greeted && c->ending == END_NONE)
		session_refused(c);
	else if (c->state == CONN_OPEN)
		conn_unblock(c);
}

static void fail_store(struct conn *c)
{
	fail(c, E_AGAIN, "the store is not available", 1000);
}

static struct conn *asker(uint64_t rec, uint64_t gen)
{
	struct conn *c = conn_get((uint32_t)rec, (uint32_t)gen);

	return c != NULL && c->login != NULL && c->state == CONN_OPEN ? c : NULL;
}

static struct store_job *job_new(struct conn *c, enum store_op op,
    void (*done)(struct store_job *, void *))
{
	struct store_job *j = store_job_new(op, done, NULL);

	j->tag = c->rec;
	j->tag2 = c->gen;
	return j;
}

/* ---- step 6: load, greet ---- */

static void loaded(struct store_job *j, void *arg)
{
	struct conn *c = asker(j->tag, j->tag2);

	(void)arg;
	if (c == NULL)
		return;
	struct login *l = c->login;
	if (j->rc != STORE_OK) {
		if (j->rc == STORE_GONE)
			fail(c, E_REFUSED, NULL, 0);
		else
			fail_store(c);
		return;
	}
	c->r->ack = l->ack;
	if (login_set_name(c, j->user.name, strlen(j->user.name)) != 0) {
		conn_close(c, CLOSE_MEMORY);
		return;
	}
	greet_start(c, j, l->echo);
}

static void load(struct conn *c)
{
	struct store_job *j = job_new(c, STORE_LOAD, loaded);

	j->id = c->login->user;
	greet_mark(c, group_hint_mark());
	cluster_looking(c);
	store_submit(wk->store, j);
}

/* ---- step 5: the only session of this user in the cluster? ---- */

static void claimed(uint32_t rec, uint32_t gen, enum claim_rc rc, const struct claim_owner *by);

static void claim(struct conn *c, const struct claim_owner *over)
{
	claim_take(c->login->user, c->rec, c->gen, over, claimed);
}

static void on_claim_again(struct timer *t)
{
	struct login *l = (struct login *)((char *)t - offsetof(struct login, wait));

	claim(l->conn, NULL);
}

static void claim_again(struct conn *c, uint32_t ms)
{
	struct login *l = c->login;

	if (clock_ms() >= l->far_until_ms) {
		fail(c, E_AGAIN, "the host of the former session does not answer, or is still closing it",
		    1000);
		return;
	}
	l->conn = c;
	timer_set(&l->wait, clock_ms() + ms, on_claim_again);
}

static void call_owner(struct conn *c, const char *method, bool end, call_done_fn *done)
{
	const struct login *l = c->login;
	char args[128];
	int len = snprintf(args, sizeof args, "{\"user\":%u", l->user);

	if (end)
		len += snprintf(args + len, sizeof args - (size_t)len,
		    ",\"number\":%llu,\"reason\":\"replaced\"", (unsigned long long)l->owner.number);
	len += snprintf(args + len, sizeof args - (size_t)len, "}");
	call_host(hosts_find(l->owner.key), method, args, (size_t)len, CHECK_MS, done, NULL,
	    (uint64_t)c->rec << 32 | c->gen);
}

static void told_to_end(void *arg, uint64_t tag, int code, const char *text, size_t len)
{
	struct conn *c = asker(tag >> 32, tag & UINT32_MAX);

	(void)arg;
	(void)text;
	(void)len;
	if (c == NULL || !c->claiming)
		return;
	if (code != CALL_OK)
		c->login->far_asked = false;
	claim_again(c, code == CALL_OK ? ENDED_MS : FAR_MS);
}

static bool state_is(const char *text, size_t len, const char *state)
{
	struct json_val root, v;

	if (json_parse(wk->json2, text, len) != JSON_OK)
		return false;
	root = json_root(wk->json2);
	return json_get(wk->json2, &root, "state", &v) && v.type == JSON_STRING && json_is(&v, state);
}

/* What the host of the claim says about its session. */
static void checked(void *arg, uint64_t tag, int code, const char *text, size_t len)
{
	struct conn *c = asker(tag >> 32, tag & UINT32_MAX);

	(void)arg;
	if (c == NULL || !c->claiming)
		return;
	if (code != CALL_OK) {
		claim_again(c, LATER_MS);
	} else if (state_is(text, len, "none")) {
		struct claim_owner over = c->login->owner;

		claim(c, &over);
	} else if (!state_is(text, len, "live")) {
		claim_again(c, FAR_MS);
	} else if (!wk->conf.replace) {
		fail(c, E_ELSEWHERE, NULL, 0);
	} else if (c->login->far_asked) {
		claim_again(c, FAR_MS);
	} else {
		c->login->far_asked = true;
		call_owner(c, "session.end", true, told_to_end);
	}
}

static void claimed(uint32_t rec, uint32_t gen, enum claim_rc rc, const struct claim_owner *by)
{
	struct conn *c = asker(rec, gen);

	if (c == NULL || !c->claiming)
		return;			/* closed meanwhile; the end released the claim */
	struct login *l = c->login;
	if (l->far_until_ms == 0)
		l->far_until_ms = clock_ms() + WAIT_MS;
	switch (rc) {
	case CLAIM_AFTER:
	case CLAIM_SILENT:
		/* What they sent where they were may be stored, and whom it is for not told. */
		c->r->flags |= REC_UNSURE;
		c->claiming = false;
		load(c);
		break;
	case CLAIM_OURS:
		/* Right after trouble a former claim may have been lost with it. */
		if (cluster_settled())
			c->r->flags &= (uint8_t)~REC_UNSURE;
		else
			c->r->flags |= REC_UNSURE;
		c->claiming = false;
		load(c);
		break;
	case CLAIM_TAKEN:
		l->owner = *by;
		if (clock_ms() >= l->far_until_ms || hosts_find(by->key) == NULL)
			claim_again(c, LATER_MS);
		else
			call_owner(c, "session.check", false, checked);
		break;
	case CLAIM_LATER:
		claim_again(c, LATER_MS);
	}
}

/* ---- step 4: bind ---- */

static void try_bind(struct conn *c);

static void on_wait(struct timer *t)
{
	struct login *l = (struct login *)((char *)t - offsetof(struct login, wait));

	try_bind(l->conn);
}

static void ask_to_end(const struct sess_ref *old)
{
	struct item_end it = { .user = old->user, .rrec = old->rec, .rgen = old->gen,
	    .reason = "replaced" };

	if (old->slot == wk->slot)
		session_on_end(&it.head);
	else
		(void)peer_send(old->slot, IT_END, &it, sizeof it, NULL, 0);
}

/* Somebody is bound to this user already: wait, refuse, or take over. */
static void taken(struct conn *c, const struct sess_ref *old)
{
	struct login *l = c->login;
	uint64_t now = clock_ms();
	bool settled_soon = old->state != REC_OPEN || !slot_alive(old->slot, old->slot_gen);
	bool in_between = !settled_soon && old->live != LIVE_YES;

	if (!settled_soon && wk->conf.replace && !l->asked) {
		l->asked = true;
		ask_to_end(old);
	}
	if (l->until_ms == 0)
		l->until_ms = now + (in_between && !wk->conf.replace ? DRAINING_MS : WAIT_MS);
	if (!settled_soon && !in_between && !wk->conf.replace) {
		fail(c, E_ELSEWHERE, NULL, 0);
	} else if (now >= l->until_ms) {
		if (in_between && !wk->conf.replace)
			fail(c, E_ELSEWHERE, NULL, 0);
		else
			fail(c, E_AGAIN, "the former session is still being closed", 500);
	} else {
		l->conn = c;
		timer_set(&l->wait, now + POLL_MS, on_wait);
	}
}

/* From the bind on messages for the user may come: they find a session that begins. */
static void begin_session(struct conn *c)
{
	c->drained = 0;
	c->behind = c->again = c->full_pass = c->draining = c->ranging = false;
	c->r->since_wall_ms = (int64_t)clock_wall_ms();
}

static void try_bind(struct conn *c)
{
	struct sess_ref old;

	begin_session(c);
	switch (sess_bind(c->login->user, c->rec, LIVE_DRAINING, &old)) {
	case SESS_OK:
		c->bound = true;
		c->claiming = cluster_on();
		if (c->claiming)
			claim(c, NULL);
		else
			load(c);
		break;
	case SESS_ETAKEN:
		taken(c, &old);
		break;
	case SESS_EBROKEN:
		log_error("the session table is broken");
		_exit(WORKER_BROKEN);
	default:
		fail(c, E_AGAIN, "the session table is full", 5000);
	}
}

/* ---- steps 2 and 3: who is it, and is it they? ---- */

static void verified(struct auth_job *a)
{
	struct conn *c = asker(a->id >> 32, a->id & UINT32_MAX);

	COUNT(hashes);
	if (c != NULL && a->rc != AUTH_OK)
		fail(c, E_AGAIN, "the server is short of memory", 1000);
	else if (c != NULL && (!a->ok || c->login->user == 0))
		fail(c, E_REFUSED, NULL, 0);
	else if (c != NULL)
		try_bind(c);
	free(a);
}

static void hash_busy(struct conn *c)
{
	fail(c, E_RATE, "too many logins at once", auth_retry_ms(wk->auth));
}

static struct auth_job *auth_job_new(struct conn *c, enum auth_op op,
    void (*done)(struct auth_job *))
{
	struct auth_job *a = calloc(1, sizeof *a);

	ensure(a != NULL);
	a->op = op;
	a->id = (uint64_t)c->rec << 32 | c->gen;
	a->done = done;
	a->len = (uint32_t)c->login->password_len;
	memcpy(a->password, c->login->password, a->len);
	sodium_memzero(c->login->password, sizeof c->login->password);
	return a;
}

static void found(struct store_job *j, void *arg)
{
	struct conn *c = asker(j->tag, j->tag2);

	(void)arg;
	if (c == NULL)
		return;
	struct login *l = c->login;
	if (j->rc != STORE_OK && j->rc != STORE_GONE) {
		fail_store(c);
		return;
	}
	bool there = j->rc == STORE_OK;
	if (l->by_token) {
		if (there && j->user.epoch == l->epoch)
			try_bind(c);
		else
			fail(c, E_REFUSED, "this token is no longer valid", 0);
		return;
	}
	l->user = there ? j->user.id : 0;
	l->epoch = j->user.epoch;
	struct auth_job *a = auth_job_new(c, AUTH_VERIFY, verified);
	if (there)
		memcpy(a->encoded, j->user.hash, strnlen(j->user.hash, sizeof a->encoded - 1));
	if (auth_submit(wk->auth, a) != AUTH_OK) {
		free(a);
		hash_busy(c);
	}
}

/* ---- step 1: the requests ---- */

static struct login *begin(struct conn *c, const struct req *rq)
{
	struct login *l = calloc(1, sizeof *l);

	ensure(l != NULL);
	memcpy(l->echo, rq->echo, sizeof l->echo);
	c->login = l;
	c->blocked = true;
	return l;
}

/* A host that is being emptied names others: before any work, and for whatever password. */
static void refuse_draining(struct conn *c, const struct req *rq)
{
	struct json_out w;

	if (c->r->dialect == DIALECT_CLASSIC) {
		cmd_refuse(c, rq->msg, rq->wire, rq->echo, E_AGAIN, "this host is being emptied", DRAIN_RETRY_MS);
		return;
	}
	COUNT(errors_out);
	COUNT(login_failures);
	cmd_open(c, &w, MSG_LOGIN_ACK, rq->echo);
	json_kv_int(&w, "errno", E_AGAIN);
	json_kv_str(&w, "errmsg", "this host is being emptied: log in on another one");
	json_kv_int(&w, "retry_ms", DRAIN_RETRY_MS);
	json_key(&w, "try");
	json_open(&w, '[');
	hosts_put_try(&w);
	json_close(&w, ']');
	cmd_send(c, &w);
}

static bool take_token(struct conn *c, struct login *l, const struct json_val *token)
{
	char text[AUTH_TOKEN_BYTES * 2];
	size_t len;
	uint32_t user;

	if (!wk->keys_ready) {
		fail_store(c);
		return false;
	}
	if (json_text(token, text, sizeof text, &len) != JSON_OK ||
	    auth_token_check(wk->keys, text, len, clock_wall_ms(), &user, &l->epoch) != AUTH_OK ||
	    (l->user != 0 && l->user != user)) {
		fail(c, E_REFUSED, "this token is not valid", 0);
		return false;
	}
	l->user = user;
	l->by_token = true;
	return true;
}

void cmd_login(struct conn *c, const struct req *rq)
{
	struct json_val id, name, password, token, ack;
	bool has_id = json_get(rq->json, &rq->root, "id", &id);
	bool has_name = json_get(rq->json, &rq->root, "name", &name);
	bool has_pw = json_get(rq->json, &rq->root, "password", &password);
	bool has_token = json_get(rq->json, &rq->root, "token", &token);
	int64_t n = 0;
	bool want_ack = false;
	uint32_t wait;

	if (!has_id && !has_name) {
		cmd_refuse(c, rq->msg, rq->wire, rq->echo, E_MALFORMED, "id or name is missing", 0);
		return;
	}
	if ((has_id && (json_int(&id, &n) != JSON_OK)) || (has_name && name.type != JSON_STRING)) {
		cmd_refuse(c, rq->msg, rq->wire, rq->echo, E_MALFORMED,
		    "id must be an integer, name a string", 0);
		return;
	}
	if ((!has_pw && !has_token) || (has_pw && password.type != JSON_STRING) ||
	    (has_token && token.type != JSON_STRING)) {
		cmd_refuse(c, rq->msg, rq->wire, rq->echo, E_MALFORMED,
		    "password or token is missing or no string", 0);
		return;
	}
	if (json_get(rq->json, &rq->root, "ack", &ack) && json_bool(&ack, &want_ack) != JSON_OK) {
		cmd_refuse(c, rq->msg, rq->wire, rq->echo, E_MALFORMED, "ack must be true or false", 0);
		return;
	}
	if (c->bound) {
		cmd_refuse(c, rq->msg, rq->wire, rq->echo, E_DENIED, "log out first", 0);
		return;
	}
	if (cluster_draining()) {
		refuse_draining(c, rq);
		return;
	}
	if (!has_token && (wait = login_rate(c)) > 0) {
		cmd_refuse(c, rq->msg, rq->wire, rq->echo, E_RATE, NULL, wait);
		return;
	}
	struct login *l = begin(c, rq);
	l->ack = want_ack && c->r->dialect == DIALECT_PLAIN;
	l->user = has_id && n > 0 && n <= PROTO_ID_MAX ? (uint32_t)n : 0;
	if (has_token && !take_token(c, l, &token))
		return;
	struct store_job *j = job_new(c, STORE_USER, found);
	j->id = l->user;
	if (has_id && l->user == 0)
		j->id = UINT32_MAX;		/* nobody's */
	if (!has_token && json_text(&password, l->password, sizeof l->password,
	    &l->password_len) != JSON_OK)
		l->password_len = 0;		/* longer than any: never right */
	if (!has_id && !has_token && json_text(&name, j->name, sizeof j->name, NULL) != JSON_OK)
		j->id = UINT32_MAX;
	store_submit(wk->store, j);
}

static void registered(struct store_job *j, void *arg)
{
	struct conn *c = asker(j->tag, j->tag2);
	struct json_out w;

	(void)arg;
	if (c == NULL)
		return;
	if (j->rc == STORE_CONFLICT) {
		fail(c, E_REFUSED, "this name is taken", 0);
		return;
	}
	if (j->rc != STORE_OK) {
		fail_store(c);
		return;
	}
	COUNT(registrations);
	cmd_open(c, &w, MSG_REG_ACK, c->login->echo);
	json_kv_int(&w, "errno", 0);
	json_kv_int(&w, "id", j->user.id);
	cmd_send(c, &w);
	login_abort(c);
	conn_unblock(c);
}

static void hashed(struct auth_job *a)
{
	struct conn *c = asker(a->id >> 32, a->id & UINT32_MAX);

	COUNT(hashes);
	if (c != NULL && a->rc != AUTH_OK) {
		fail(c, E_AGAIN, "the server is short of memory", 1000);
	} else if (c != NULL) {
		struct store_job *j = job_new(c, STORE_USER_ADD, registered);

		memcpy(j->name, c->login->name, sizeof c->login->name);
		memcpy(j->hash, a->encoded, sizeof a->encoded);
		store_submit(wk->store, j);
	}
	free(a);
}

void cmd_reg(struct conn *c, const struct req *rq)
{
	struct json_val name, password;
	char name_text[PROTO_NAME_BYTES + 1], pw[PROTO_PASSWORD_MAX + 1];
	size_t len = 0, pw_len = 0;
	const char *why = NULL;
	char short_pw[80];
	enum proto_errno e = E_MALFORMED;
	uint32_t wait;

	(void)json_get(rq->json, &rq->root, "name", &name);
	(void)json_get(rq->json, &rq->root, "password", &password);
	if (json_text(&name, name_text, sizeof name_text, &len) != JSON_OK ||
	    json_utf8_chars(name_text, len) > PROTO_NAME_CHARS) {
		e = E_SIZE;
		why = "a name has at most 50 characters";
	} else if (len == 0 || json_has_control(name_text, len)) {
		why = "a name has 1 to 50 characters and no control characters";
	} else if (json_text(&password, pw, sizeof pw, &pw_len) != JSON_OK) {
		e = E_SIZE;
		why = "a password has at most 128 bytes";
	} else if (pw_len == 0 || pw_len < wk->conf.password_min) {
		snprintf(short_pw, sizeof short_pw, "a password has at least %u bytes here",
		    wk->conf.password_min > 0 ? wk->conf.password_min : 1);
		why = short_pw;
	} else if (!wk->conf.registration) {
		e = E_DENIED;
		why = "registration is closed here";
	}
	if (why == NULL && (wait = login_rate(c)) > 0) {
		cmd_refuse(c, rq->msg, rq->wire, rq->echo, E_RATE, NULL, wait);
		return;
	}
	if (why != NULL) {
		cmd_refuse(c, rq->msg, rq->wire, rq->echo, e, why, 0);
		return;
	}
	struct login *l = begin(c, rq);
	l->reg = true;
	memcpy(l->name, name_text, len + 1);
	memcpy(l->password, pw, pw_len);
	l->password_len = pw_len;
	sodium_memzero(pw, sizeof pw);
	struct auth_job *a = auth_job_new(c, AUTH_HASH, hashed);
	if (auth_submit(wk->auth, a) != AUTH_OK) {
		free(a);
		hash_busy(c);
	}
}
