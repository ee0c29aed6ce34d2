/*
 * cmd_chat.c - ONE_CHAT_MSG, GROUP_CHAT_MSG, RECEIVED: messages are accepted here.
 *
 * A recipient that is not online, and not known to exist, is looked up in the store first; the
 * frame is kept meanwhile, and the connection waits, so order is kept.
 */
#include "worker/cmd.h"

#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "shm/sess.h"
#include "worker/addrs.h"
#include "worker/auth.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/conn.h"
#include "worker/group.h"
#include "worker/login.h"
#include "worker/peer.h"
#include "worker/session.h"
#include "worker/store.h"

#define KNOWN_PAGE 32768u		/* ids in a page of the set of users known to exist */
#define REFUSED_MAX 16
#define REFUSED_TEXT "an earlier message to the same place was refused"
#define ADDED_VALUES 6u			/* on the way: id, name, time, ts, mid, n */

/* ---- users known to exist: a bitmap in pages, never wrong for long (ids are not used again) ---- */

static uint64_t *known[PROTO_ID_MAX / KNOWN_PAGE + 1];

static bool is_known(uint32_t user)
{
	const uint64_t *page = known[user / KNOWN_PAGE];

	return page != NULL && (page[user % KNOWN_PAGE / 64] >> (user % 64) & 1);
}

static void set_known(uint32_t user)
{
	uint64_t **page = &known[user / KNOWN_PAGE];

	if (*page == NULL)
		*page = calloc(KNOWN_PAGE / 64, sizeof **page);
	if (*page != NULL)
		(*page)[user % KNOWN_PAGE / 64] |= UINT64_C(1) << (user % 64);
}

static void forget_user(uint32_t user)
{
	if (user <= PROTO_ID_MAX && is_known(user))
		known[user / KNOWN_PAGE][user % KNOWN_PAGE / 64] &= ~(UINT64_C(1) << (user % 64));
}

void cmd_on_forget(const struct item *it)
{
	forget_user(((const struct item_forget *)it)->user);
}

void cmd_forget_user(uint32_t user)
{
	struct item_forget it = { .user = user };

	forget_user(user);
	peer_send_all(IT_FORGET, &it, sizeof it, NULL, 0);
}

/* ---- lanes with a refused message: order over a retry ---- */

struct refused {
	unsigned n;
	bool overflow;			/* more than fit: everything waits */
	struct { bool group; uint32_t key; unsigned char mid[16]; uint64_t order; } v[REFUSED_MAX];
};

void cmd_forget_refused(struct conn *c)
{
	free(c->refused);
	c->refused = NULL;
	if (c->r != NULL && c->state == CONN_OPEN)
		c->r->flags &= (uint8_t)~REC_REFUSED;
}

size_t cmd_pack_refused(const struct conn *c, char *out, size_t cap)
{
	if (c->refused == NULL || cap < sizeof *c->refused)
		return 0;
	memcpy(out, c->refused, sizeof *c->refused);
	return sizeof *c->refused;
}

void cmd_unpack_refused(struct conn *c, const char *in, size_t len)
{
	struct refused *f;

	if (len != sizeof *f || (f = malloc(sizeof *f)) == NULL)
		return;
	memcpy(f, in, sizeof *f);
	if (f->n > REFUSED_MAX)
		f->n = REFUSED_MAX;
	for (unsigned i = 0; i < f->n; i++)
		f->v[i].order = 0;		/* another worker's count */
	c->refused = f;
}

/*
 * ORDER: the message's, 0 for one that was not taken at all. The store tells of a refusal when it
 * knows: a message that it was busy with comes back after those that waited behind it.
 */
static void refused_add(struct conn *c, bool group, uint32_t key, const unsigned char mid[16],
    uint64_t order)
{
	struct refused *f = c->refused;

	if (order == 0)
		order = atomic_load(&wk->s->order) + 1;	/* later than all that were */
	c->r->flags |= REC_REFUSED;	/* before the answer: a successor must know */

	if (f == NULL && (f = c->refused = calloc(1, sizeof *f)) == NULL)
		return;
	for (unsigned i = 0; i < f->n; i++) {
		if (f->v[i].group != group || f->v[i].key != key)
			continue;
		if (order < f->v[i].order) {	/* the first one sent is the one to wait for */
			memcpy(f->v[i].mid, mid, 16);
			f->v[i].order = order;
		}
		return;
	}
	if (f->n == REFUSED_MAX) {
		f->overflow = true;
		return;
	}
	f->v[f->n].group = group;
	f->v[f->n].key = key;
	f->v[f->n].order = order;
	memcpy(f->v[f->n++].mid, mid, 16);
}

/* Must this message wait for a refused one of its lane? If it is that one, the lane is free again. */
static bool refused_before(struct conn *c, bool group, uint32_t key, const unsigned char mid[16])
{
	struct refused *f = c->refused;

	if (f == NULL)
		return false;
	for (unsigned i = 0; i < f->n; i++) {
		if (f->v[i].group != group || f->v[i].key != key)
			continue;
		if (memcmp(f->v[i].mid, mid, 16) != 0)
			return true;
		f->v[i] = f->v[--f->n];
		if (f->n == 0)
			cmd_forget_refused(c);
		return false;
	}
	return f->overflow;
}

/* ---- answers ---- */

static void chat_ack(struct conn *c, const char *echo, const char *cid_json, uint32_t cid_len,
    const unsigned char *mid, enum proto_errno e, const char *text, const char *state,
    uint32_t retry_ms)
{
	struct json_out w;
	char hex[33], quoted[PROTO_CID_MAX * 6 + 3];

	if (c->r->dialect == DIALECT_CLASSIC || c->state != CONN_OPEN)
		return;
	quoted[0] = '"';
	memcpy(quoted + 1, cid_json, cid_len);
	quoted[cid_len + 1] = '"';
	cmd_open(c, &w, MSG_CHAT_ACK, echo);
	json_kv_int(&w, "errno", e);
	json_kv_str(&w, "errmsg", text != NULL ? text : e == E_OK ? "" : proto_errmsg(e));
	json_kv_raw(&w, "cid", quoted, cid_len + 2);
	if (mid != NULL) {
		msg_hex(mid, hex);
		json_kv_str(&w, "mid", hex);
	}
	if (state != NULL)
		json_kv_str(&w, "state", state);
	if (e == E_RATE || e == E_AGAIN)
		json_kv_int(&w, "retry_ms", retry_ms > 0 ? retry_ms : 1000);
	if (e != E_OK)
		COUNT(errors_out);
	cmd_send(c, &w);
}

void cmd_verdict(struct conn *c, enum msg_kind kind, enum verdict v, uint32_t rcpt,
    uint64_t order, const unsigned char *mid, const char *cid, uint32_t cid_len, const char *echo,
    uint32_t echo_len)
{
	enum proto_errno e = v >= 0 ? E_OK : (enum proto_errno)-(int)v;
	bool group = kind == MK_GROUP;
	char req[PROTO_REQ_MAX * 6 + 3] = "";

	if (c->state != CONN_OPEN || c->fd < 0)
		return;
	if (echo_len > 0 && echo_len < sizeof req) {
		memcpy(req, echo, echo_len);
		req[echo_len] = '\0';
	}
	if (cid == NULL || cid_len > PROTO_CID_MAX * 6) {
		if (v < 0)
			cmd_refuse(c, MSG_NONE, proto_to_wire((enum proto_dialect)c->r->dialect,
			    group ? MSG_GROUP_CHAT : MSG_CHAT), req, e, NULL, 0);
		return;
	}
	if (e == E_AGAIN && c->ending == END_NONE)
		refused_add(c, group, rcpt, mid, order);
	chat_ack(c, req, cid, cid_len, mid, e, NULL, v == V_DELIVERED ? "delivered" :
	    v == V_STORED ? "stored" : NULL, 0);
}

/* ---- `cid` ---- */

/* Its text: 1 to 64 bytes, an integer by its decimal digits. 0: none; 1: there; -1: malformed. */
static int get_cid(const struct conn *c, const struct req *rq, char out[PROTO_CID_MAX + 1],
    size_t *len_r)
{
	struct json_val v;
	int64_t n;

	*len_r = 0;
	if (c->r->dialect == DIALECT_CLASSIC || !cmd_get(rq, MSG_K_CID, &v))
		return 0;
	if (v.type == JSON_STRING)
		return json_text(&v, out, PROTO_CID_MAX + 1, len_r) == JSON_OK && *len_r > 0 ? 1 : -1;
	if (json_int(&v, &n) != JSON_OK || v.len > PROTO_CID_MAX)
		return -1;
	memcpy(out, v.raw, v.len);
	out[v.len] = '\0';
	*len_r = v.len;
	return 1;
}

void cmd_chat_refuse(struct conn *c, const struct req *rq, enum proto_errno e, const char *text,
    uint32_t retry_ms)
{
	char cid[PROTO_CID_MAX + 1], quoted[PROTO_CID_MAX * 6 + 3];
	size_t len;
	struct json_out w;

	if (get_cid(c, rq, cid, &len) != 1) {
		cmd_refuse(c, MSG_NONE, rq->wire, rq->echo, e, text, retry_ms);
		return;
	}
	json_out_init(&w, quoted, sizeof quoted);
	json_put_text(&w, cid, len);
	chat_ack(c, rq->echo, quoted + 1, (uint32_t)w.len - 2, NULL, e, text, NULL, retry_ms);
}

/* ---- acceptance ---- */

static void on_pace(struct timer *t)
{
	struct conn *c = (struct conn *)((char *)t - offsetof(struct conn, pace));

	if (c->state == CONN_OPEN)
		conn_resume(c);
}

/* An id without a clock or a system call: the worker's random half and a number never used again. */
static void fresh_mid(unsigned char mid[16])
{
	static unsigned char half[8];
	static bool made;
	static uint64_t count;

	if (!made) {
		randombytes_buf(half, sizeof half);
		made = true;
	}
	count++;
	memcpy(mid, half, 8);
	memcpy(mid + 8, &count, 8);
}

static const char *now_text(void)
{
	static char text[20];
	static uint64_t at;
	uint64_t s = clock_wall_ms() / 1000;

	if (s != at) {
		clock_text(clock_wall_ms(), text);
		at = s;
	}
	return text;
}

struct chat { bool group, has_cid; char cid[PROTO_CID_MAX + 1]; size_t cid_len; uint32_t rcpt; unsigned char mid[16]; };

static void accept_chat(struct conn *c, const struct req *rq, const struct chat *ch)
{
	struct msg_parts parts = { .sender = atomic_load(&c->r->user), .rcpt = ch->rcpt,
	    .group = ch->group, .ts = clock_wall_ms(), .time_text = now_text(),
	    .time_len = 19 };

	parts.name = login_name(c, &parts.name_len);
	(void)cmd_get(rq, MSG_K_MSG, &parts.msg);
	(void)cmd_get(rq, MSG_K_TIME, &parts.time);
	memcpy(parts.mid, ch->mid, 16);
	if (ch->has_cid) {
		parts.cid = ch->cid;
		parts.cid_len = ch->cid_len;
	}
	uint32_t ref = msg_make(ch->group ? MK_GROUP : MK_DIRECT, c->rec, c->gen, &parts, rq->others,
	    rq->nothers, rq->echo, strlen(rq->echo));
	if (ref == CHUNK_NONE) {
		cmd_chat_refuse(c, rq, E_AGAIN, "the server is short of session memory", 1000);
		if (ch->has_cid)
			refused_add(c, ch->group, ch->rcpt, ch->mid, 0);
		return;
	}
	msg_at(ref)->flags = ch->has_cid ? MF_CID : 0;
	COUNT(messages_in);
	c->r->sent_msgs++;
	if (ch->group)
		group_send(c, ref);
	else
		route_send(c, ref);
}

/* ---- looking the recipient up ---- */

struct parked { struct chat chat; struct req rq; size_t len; char text[]; };

/* The frame again, as it was parked. */
static bool unpark(struct parked *p)
{
	if (json_parse(wk->json, p->text, p->len) != JSON_OK)
		return false;
	p->rq.json = wk->json;
	p->rq.root = json_root(wk->json);
	cmd_index(&p->rq);
	return true;
}

static void looked_up(struct store_job *j, void *arg)
{
	struct parked *p = (struct parked *)(void *)j->cursors;	/* carried there, freed with the job */
	char echo[PROTO_REQ_MAX * 6 + 3];
	struct conn *c = cmd_job_conn(j, echo);

	(void)arg;
	if (c == NULL || !unpark(p))
		return;
	if (j->rc != STORE_OK) {
		enum proto_errno e = cmd_store_errno(j->rc);

		if (e == E_AGAIN && p->chat.has_cid)
			refused_add(c, p->chat.group, p->chat.rcpt, p->chat.mid, 0);
		cmd_chat_refuse(c, &p->rq, e, e == E_UNKNOWN ? p->chat.group ? "no such group" :
		    "no such user" : NULL, 0);
		return;
	}
	if (p->chat.group) {
		struct member *g;

		p->chat.rcpt = j->ngroups > 0 ? j->groups[0].id : 0;
		g = group_of(c, p->chat.rcpt);
		if (g == NULL || (g->flags & GM_LEFT)) {
			cmd_chat_refuse(c, &p->rq, E_DENIED, "you are not a member of this group", 0);
			return;
		}
	} else {
		p->chat.rcpt = j->user.id;
		set_known(j->user.id);
	}
	/* Only now is it known which lane a name stands for. */
	if (p->chat.has_cid && refused_before(c, p->chat.group, p->chat.rcpt, p->chat.mid)) {
		cmd_chat_refuse(c, &p->rq, E_AGAIN, REFUSED_TEXT, 200);
		return;
	}
	accept_chat(c, &p->rq, &p->chat);
}

static void look_up(struct conn *c, const struct req *rq, const struct chat *ch,
    const struct json_val *ref)
{
	struct store_job *j = cmd_job(c, ch->group ? STORE_GROUP : STORE_USER, rq, looked_up);
	struct parked *p = malloc(sizeof *p + rq->root.len);
	int64_t n;

	ensure(p != NULL);
	p->chat = *ch;
	p->rq = *rq;
	p->len = rq->root.len;
	memcpy(p->text, rq->root.raw, rq->root.len);
	j->cursors = (struct store_cursor *)(void *)p;
	if (ref->type == JSON_NUMBER) {
		n = ch->rcpt;
		if (ch->group)
			j->group = (uint32_t)n;
		else
			j->id = (uint32_t)n;
	} else {
		if (!ch->group)
			j->id = 0;
		if (json_text(ref, j->name, sizeof j->name, NULL) != JSON_OK)
			j->name[0] = '\x01';	/* no name has a control character: found is nobody */
	}
	store_submit(wk->store, j);
}

static uint32_t id_of(int64_t n)
{
	return n > 0 && n <= PROTO_ID_MAX ? (uint32_t)n : 0;
}

/* What stands for the recipient in lanes: its id, or a hash of the name that was given. */
static uint32_t lane_key(const struct json_val *ref)
{
	int64_t n;
	uint32_t h = 2166136261u;

	if (json_int(ref, &n) == JSON_OK)
		return id_of(n);
	for (uint32_t i = 0; i < ref->len; i++)
		h = (h ^ (unsigned char)ref->raw[i]) * 16777619u;
	return h | 0x80000000u;		/* no id is that large */
}

/* Over the rate: who waits for an answer is told when; who does not is not read for a while. */
static bool over_rate(struct conn *c, const struct req *rq, const struct chat *ch, uint32_t key)
{
	uint32_t per = wk->conf.rate_messages;
	uint32_t wait = per == 0 ? 0 : rate_take(&c->rate, per, per, 1, clock_ms());

	if (wait == 0)
		return false;
	if (ch->has_cid) {
		refused_add(c, ch->group, key, ch->mid, 0);
		cmd_chat_refuse(c, rq, E_RATE, NULL, wait);
		return true;
	}
	conn_pause(c);
	timer_set(&c->pace, clock_ms() + wait, on_pace);
	return false;			/* this one is taken, the next ones wait */
}

/* As nearly all are: nothing is wrong with it, and its recipient is a number. */
static bool is_plain(const struct req *rq, const struct json_val *ref, int64_t *to_r)
{
	return rq->known[MSG_K_MSG].type == JSON_STRING && rq->known[MSG_K_ID].type == JSON_NONE &&
	    rq->known[MSG_K_NAME].type == JSON_NONE && (rq->known[MSG_K_TIME].type == JSON_NONE ||
	    rq->known[MSG_K_TIME].type == JSON_STRING) && json_int(ref, to_r) == JSON_OK;
}

static void chat(struct conn *c, const struct req *rq, bool group)
{
	struct chat ch;
	struct json_val ref = rq->known[group ? MSG_K_GROUPID : c->r->dialect == DIALECT_CLASSIC ?
	    MSG_K_TOID : MSG_K_TO];
	char why[80];
	int64_t to;
	int has = get_cid(c, rq, ch.cid, &ch.cid_len);
	bool plain = is_plain(rq, &ref, &to);
	enum proto_errno e = plain ? E_OK : cmd_check(c, rq, why, sizeof why);

	if (e == E_OK && has < 0) {
		e = E_MALFORMED;
		strcpy(why, "cid must be a string of 1 to 64 bytes or an integer");
	}
	/* What is carried through must fit a frame of ours, and be read again from the store. */
	if (e == E_OK && c->scan.values > FRAME_MAX_VALUES - ADDED_VALUES) {
		e = E_SIZE;
		strcpy(why, "too many values in one message");
	}
	if (e != E_OK) {
		cmd_chat_refuse(c, rq, e, why, 0);
		return;
	}
	ch.group = group;
	ch.has_cid = has == 1;
	if (ch.has_cid)
		auth_mid(atomic_load(&c->r->user), ch.cid, ch.cid_len, ch.mid);
	else
		fresh_mid(ch.mid);
	ch.rcpt = plain ? id_of(to) : lane_key(&ref);
	if (ch.has_cid && refused_before(c, group, ch.rcpt, ch.mid)) {
		cmd_chat_refuse(c, rq, E_AGAIN, REFUSED_TEXT, 200);
		return;
	}
	if (over_rate(c, rq, &ch, ch.rcpt))
		return;
	if (ref.type == JSON_NUMBER && ch.rcpt == 0) {
		cmd_chat_refuse(c, rq, E_UNKNOWN, group ? "no such group" : "no such user", 0);
		return;
	}
	struct member *g = group && ref.type == JSON_NUMBER ? group_of(c, ch.rcpt) : NULL;
	bool ready = group ? g != NULL && !(g->flags & GM_LEFT) : ref.type == JSON_NUMBER &&
	    is_known(ch.rcpt);
	if (!ready && !group && ref.type == JSON_NUMBER && sess_online(ch.rcpt)) {
		set_known(ch.rcpt);
		ready = true;
	}
	if (ready)
		accept_chat(c, rq, &ch);
	else
		look_up(c, rq, &ch, &ref);
}

void cmd_chat(struct conn *c, const struct req *rq)
{
	chat(c, rq, false);
}

void cmd_group_chat(struct conn *c, const struct req *rq)
{
	chat(c, rq, true);
}

void cmd_received(struct conn *c, const struct req *rq)
{
	struct json_val v;
	int64_t n = 0;

	(void)cmd_get(rq, MSG_K_N, &v);
	(void)json_int(&v, &n);
	if (session_received(c, n) != 0)
		cmd_refuse(c, MSG_NONE, rq->wire, rq->echo, E_MALFORMED,
		    "n is above what was delivered here", 0);
}
