/*
 * cmd.c - the table of requests, the checks that are the same for all, replies.
 */
#include "worker/cmd.h"

#include <stdlib.h>
#include <string.h>

#include "worker/base/frame.h"
#include "worker/base/log.h"
#include "worker/base/shape.h"
#include "worker/conn.h"
#include "worker/login.h"
#include "worker/session.h"
#include "worker/store.h"

#define NEED_LOGIN 1u
#define SENDER     2u			/* `id` and `name`, where present, must be the session's own */

enum field_type { F_NONE = 0, F_INT, F_TEXT, F_REF };	/* REF: an id, or a name (plain dialect) */

struct field { const char *name; enum field_type type; bool optional; enum msg_key key; };

static const struct command {
	unsigned flags;
	void (*run)(struct conn *c, const struct req *rq);
	struct field field[3];
} commands[MSG_MAX] = {
	[MSG_LOGIN] = { 0, cmd_login, { { NULL, F_NONE, false, MSG_K_OTHER } } },
	[MSG_REG] = { 0, cmd_reg, { { "name", F_TEXT, false, MSG_K_NAME }, { "password", F_TEXT, false, MSG_K_OTHER } } },
	[MSG_CHAT] = { NEED_LOGIN | SENDER, cmd_chat, { { "to", F_REF, false, MSG_K_TO },
	    { "msg", F_TEXT, false, MSG_K_MSG }, { "time", F_TEXT, true, MSG_K_TIME } } },
	[MSG_ADD_FRIEND] = { NEED_LOGIN | SENDER, cmd_add_friend, { { "friendid", F_REF, false, MSG_K_OTHER } } },
	[MSG_CREATE_GROUP] = { NEED_LOGIN | SENDER, cmd_create_group,
	    { { "groupname", F_TEXT, false, MSG_K_OTHER }, { "groupdesc", F_TEXT, true, MSG_K_OTHER } } },
	[MSG_JOIN_GROUP] = { NEED_LOGIN | SENDER, cmd_join_group, { { "groupid", F_REF, false, MSG_K_GROUPID } } },
	[MSG_GROUP_CHAT] = { NEED_LOGIN | SENDER, cmd_group_chat, { { "groupid", F_REF, false, MSG_K_GROUPID },
	    { "msg", F_TEXT, false, MSG_K_MSG }, { "time", F_TEXT, true, MSG_K_TIME } } },
	[MSG_LOGOUT] = { NEED_LOGIN | SENDER, cmd_logout, { { NULL, F_NONE, false, MSG_K_OTHER } } },
	[MSG_RECEIVED] = { NEED_LOGIN, cmd_received, { { "n", F_INT, false, MSG_K_N } } },
	[MSG_DEL_FRIEND] = { NEED_LOGIN | SENDER, cmd_del_friend, { { "friendid", F_REF, false, MSG_K_OTHER } } },
	[MSG_DEL_GROUP] = { NEED_LOGIN | SENDER, cmd_del_group, { { "groupid", F_REF, false, MSG_K_GROUPID } } },
	[MSG_FRIEND_LIST] = { NEED_LOGIN | SENDER, cmd_friend_list, { { "after", F_INT, true, MSG_K_OTHER } } },
	[MSG_GROUP_LIST] = { NEED_LOGIN | SENDER, cmd_group_list, { { "groupid", F_REF, true, MSG_K_GROUPID },
	    { "after", F_INT, true, MSG_K_OTHER } } },
};

/* ---- replies ---- */

void cmd_open(struct conn *c, struct json_out *w, enum proto_msg m, const char *echo)
{
	json_out_init(w, wk->scratch, SCRATCH);
	json_open(w, '{');
	json_kv_int(w, "msgid", proto_to_wire((enum proto_dialect)c->r->dialect, m));
	if (echo != NULL && *echo != '\0')
		json_kv_raw(w, "req", echo, strlen(echo));
}

void cmd_send(struct conn *c, struct json_out *w)
{
	char term = conn_term(c);

	json_close(w, '}');
	json_raw(w, &term, 1);
	ensure(!w->over);
	conn_write(c, w->buf, w->len);
}

static void put_error(struct json_out *w, enum proto_errno e, const char *text, uint32_t retry_ms)
{
	json_kv_int(w, "errno", e);
	json_kv_str(w, "errmsg", text != NULL ? text : e == E_OK ? "" : proto_errmsg(e));
	if (retry_ms > 0)
		json_kv_int(w, "retry_ms", retry_ms);
}

/* To a classic client a number above 10 goes only as the reply to a request above 10. */
static bool classic_hears(enum proto_msg m)
{
	return m == MSG_LOGIN_ACK || m == MSG_REG_ACK || m == MSG_CHAT || m == MSG_GROUP_CHAT ||
	    m == MSG_DEL_FRIEND_ACK || m == MSG_DEL_GROUP_ACK || m == MSG_FRIEND_LIST_ACK ||
	    m == MSG_GROUP_LIST_ACK || m == MSG_PONG;
}

void cmd_reply(struct conn *c, enum proto_msg m, const char *echo, enum proto_errno e,
    const char *text, uint32_t retry_ms)
{
	struct json_out w;

	if (e != E_OK)
		COUNT(errors_out);
	if (c->r->dialect == DIALECT_CLASSIC && !classic_hears(m))
		return;
	cmd_open(c, &w, m, echo);
	put_error(&w, e, text, e == E_RATE || e == E_AGAIN ? (retry_ms > 0 ? retry_ms : 1000) : 0);
	cmd_send(c, &w);
}

static void reply_error(struct conn *c, int of, const char *echo, enum proto_errno e,
    const char *text, uint32_t retry_ms)
{
	struct json_out w;

	COUNT(errors_out);
	if (c->r->dialect == DIALECT_CLASSIC)
		return;
	cmd_open(c, &w, MSG_ERROR, echo);
	put_error(&w, e, text, e == E_RATE || e == E_AGAIN ? (retry_ms > 0 ? retry_ms : 1000) : 0);
	if (of != 0)
		json_kv_int(&w, "of", of);
	cmd_send(c, &w);
}

void cmd_refuse(struct conn *c, enum proto_msg of, int wire, const char *echo, enum proto_errno e,
    const char *text, uint32_t retry_ms)
{
	enum proto_msg reply = of != MSG_NONE ? proto_reply_of(of) : MSG_NONE;

	if (reply != MSG_NONE)
		cmd_reply(c, reply, echo, e, text, retry_ms);
	else
		reply_error(c, wire, echo, e, text, retry_ms);
}

enum proto_errno cmd_store_errno(int rc)
{
	switch (rc) {
	case STORE_OK:
		return E_OK;
	case STORE_GONE:
		return E_UNKNOWN;
	case STORE_CONFLICT:
		return E_ALREADY;
	case STORE_FULL:
		return E_SIZE;
	case STORE_DENIED:
		return E_DENIED;
	default:
		return E_AGAIN;
	}
}

void cmd_ping(struct conn *c)
{
	struct json_out w;

	cmd_open(c, &w, MSG_PING, NULL);
	cmd_send(c, &w);
}

void cmd_bad_frame(struct conn *c, const char *why)
{
	reply_error(c, 0, NULL, E_MALFORMED, why, 0);
	if (c->state == CONN_OPEN)
		conn_finish(c, CLOSE_PROTO);
}

/* ---- store jobs of requests ---- */

struct store_job *cmd_job(struct conn *c, int op, const struct req *rq,
    void (*done)(struct store_job *, void *))
{
	struct store_job *j = store_job_new((enum store_op)op, done, NULL);

	j->tag = c->rec;
	j->tag2 = c->gen;
	j->id = atomic_load(&c->r->user);
	c->blocked = true;
	free(c->echo);
	c->echo = rq->echo[0] != '\0' ? strdup(rq->echo) : NULL;
	return j;
}

struct conn *cmd_job_conn(struct store_job *job, char *echo_r)
{
	struct conn *c = conn_get((uint32_t)job->tag, (uint32_t)job->tag2);

	*echo_r = '\0';
	if (c == NULL || c->state != CONN_OPEN || c->ending != END_NONE)
		return NULL;
	if (c->echo != NULL)
		strcpy(echo_r, c->echo);
	free(c->echo);
	c->echo = NULL;
	conn_unblock(c);
	return c;
}

/* ---- checks ---- */

static const char *type_error(const struct field *f, char *buf, size_t cap)
{
	static const char *const want[] = { "", "an integer", "a string", "an id or a name" };

	strcpy(buf, f->name);
	strncat(buf, " must be ", cap - strlen(buf) - 1);
	strncat(buf, want[f->type], cap - strlen(buf) - 1);
	return buf;
}

static bool type_ok(const struct conn *c, const struct field *f, const struct json_val *v)
{
	int64_t n;

	switch (f->type) {
	case F_INT:
		return json_int(v, &n) == JSON_OK;
	case F_TEXT:
		return v->type == JSON_STRING;
	case F_REF:
		return json_int(v, &n) == JSON_OK ||
		    (v->type == JSON_STRING && c->r->dialect == DIALECT_PLAIN);
	case F_NONE:
		break;
	}
	return true;
}

/* The classic dialect calls the recipient `toid`. */
static const struct field *field_of(const struct conn *c, const struct field *f)
{
	static const struct field toid = { "toid", F_REF, false, MSG_K_TOID };

	return f->key == MSG_K_TO && c->r->dialect == DIALECT_CLASSIC ? &toid : f;
}

/* A member that is there and not null; NULL. */
static const struct json_val *field_get(const struct req *rq, const struct field *f, struct json_val *v)
{
	if (f->key != MSG_K_OTHER)
		return rq->known[f->key].type != JSON_NONE ? &rq->known[f->key] : NULL;
	return json_get(rq->json, &rq->root, f->name, v) ? v : NULL;
}

/* Names are the same after folding ASCII case. */
static bool same_name(const char *a, const char *b, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char x = (unsigned char)a[i], y = (unsigned char)b[i];

		x += x >= 'A' && x <= 'Z' ? 32 : 0;
		y += y >= 'A' && y <= 'Z' ? 32 : 0;
		if (x != y)
			return false;
	}
	return true;
}

/* `id` and `name` may be left out; where they stand they must be of the right type and ours. */
static enum proto_errno check_sender(struct conn *c, const struct req *rq, char *why)
{
	struct json_val id, name;
	char text[PROTO_NAME_BYTES + 1];
	size_t len, own_len;
	int64_t n = 0;
	bool has_id = cmd_get(rq, MSG_K_ID, &id);
	bool has_name = cmd_get(rq, MSG_K_NAME, &name);

	if (!has_id && !has_name)
		return E_OK;
	if ((has_id && json_int(&id, &n) != JSON_OK) || (has_name && name.type != JSON_STRING)) {
		strcpy(why, "id must be an integer, name a string");
		return E_MALFORMED;
	}
	const char *own = login_name(c, &own_len);
	if ((has_id && n != (int64_t)atomic_load(&c->r->user)) ||
	    (has_name && (json_text(&name, text, sizeof text, &len) != JSON_OK || len != own_len ||
	    !same_name(text, own, len)))) {
		strcpy(why, "the sender is not you");
		return E_DENIED;
	}
	return E_OK;
}

enum proto_errno cmd_check(struct conn *c, const struct req *rq, char *why, size_t cap)
{
	const struct command *cmd = &commands[rq->msg];
	struct json_val room;

	for (size_t i = 0; i < 3 && cmd->field[i].name != NULL; i++) {
		const struct field *f = field_of(c, &cmd->field[i]);
		const struct json_val *v = field_get(rq, f, &room);

		if (v == NULL) {
			if (f->optional)
				continue;
			strcpy(why, f->name);
			strcat(why, " is missing");
			return E_MALFORMED;
		}
		if (!type_ok(c, f, v)) {
			type_error(f, why, cap);
			return E_MALFORMED;
		}
	}
	return cmd->flags & SENDER ? check_sender(c, rq, why) : E_OK;
}

/* `req`: a string or an integer, 64 bytes at the most; kept as the text that echoes it. */
static bool echo_ok(struct req *rq)
{
	struct json_val v;
	char text[PROTO_REQ_MAX + 1];
	size_t len;
	int64_t n;

	rq->echo[0] = '\0';
	if (!cmd_get(rq, MSG_K_REQ, &v))
		return true;
	if (v.type == JSON_STRING) {
		if (json_text(&v, text, sizeof text, &len) != JSON_OK ||
		    v.len >= sizeof rq->echo)
			return false;
	} else if (json_int(&v, &n) != JSON_OK || v.len > PROTO_REQ_MAX) {
		return false;
	}
	memcpy(rq->echo, v.raw, v.len);
	rq->echo[v.len] = '\0';
	return true;
}

static void ping(struct conn *c, const struct req *rq)
{
	struct json_out w;

	cmd_open(c, &w, MSG_PONG, rq->echo);
	cmd_send(c, &w);
}

static void dispatch(struct conn *c, struct req *rq, bool echo_good)
{
	const struct command *cmd = &commands[rq->msg];
	char why[80];

	if (cmd->run == NULL && rq->msg != MSG_PING && rq->msg != MSG_PONG) {
		cmd_refuse(c, MSG_NONE, rq->wire, rq->echo, E_MALFORMED, "unknown msgid", 0);
		return;
	}
	if ((cmd->flags & NEED_LOGIN) && !session_logged_in(c)) {
		if (rq->msg == MSG_CHAT || rq->msg == MSG_GROUP_CHAT)
			cmd_chat_refuse(c, rq, E_LOGIN, NULL, 0);
		else
			cmd_refuse(c, rq->msg, rq->wire, rq->echo, E_LOGIN, NULL, 0);
		return;
	}
	if (!echo_good) {
		cmd_refuse(c, rq->msg, rq->wire, NULL, E_MALFORMED,
		    "req must be an integer or a string of at most 64 bytes", 0);
		return;
	}
	if (rq->msg == MSG_PING) {
		ping(c, rq);
		return;
	}
	if (rq->msg == MSG_PONG)
		return;
	if (rq->msg == MSG_CHAT || rq->msg == MSG_GROUP_CHAT) {
		cmd->run(c, rq);	/* checks for itself: its answers depend on `cid` */
		return;
	}
	enum proto_errno e = cmd_check(c, rq, why, sizeof why);
	if (e != E_OK)
		cmd_refuse(c, rq->msg, rq->wire, rq->echo, e, why, 0);
	else
		cmd->run(c, rq);
}

static struct json_pair others[FRAME_MAX_VALUES];

/* What a member's name means to the server decides where it goes. */
static void sort_member(struct req *rq, const struct json_pair *p, enum msg_key k)
{
	if (k == MSG_K_OTHER)
		others[rq->nothers++] = *p;
	else if (p->val.type != JSON_NULL)
		rq->known[k] = p->val;
}

static void sort_begin(struct req *rq)
{
	rq->others = others;
	rq->nothers = 0;
	for (int k = 0; k < MSG_NKEYS; k++)
		rq->known[k].type = JSON_NONE;
}

/* The members of the frame that was parsed, their meanings in TAGS. Their number. */
static size_t sort_parsed(struct req *rq, struct json_pair *pairs, uint8_t *tags)
{
	size_t all = json_members(rq->json, pairs, FRAME_MAX_VALUES);

	sort_begin(rq);
	for (size_t i = 0; i < all; i++) {
		tags[i] = msg_key_of(&pairs[i].key);
		sort_member(rq, &pairs[i], (enum msg_key)tags[i]);
	}
	return all;
}

static struct json_pair members[FRAME_MAX_VALUES];
static uint8_t tags[FRAME_MAX_VALUES];

void cmd_index(struct req *rq)
{
	(void)sort_parsed(rq, members, tags);
}

/* Those that come all the time: none of them looks at a member by another name than msg_key knows. */
static bool is_frequent(enum proto_msg m)
{
	return m == MSG_CHAT || m == MSG_GROUP_CHAT || m == MSG_RECEIVED || m == MSG_PING;
}

static void remember_shape(const struct req *rq, size_t n)
{
	int at = 0;

	while (tags[at] != MSG_K_MSGID)
		at++;
	shape_learn(wk->shapes, rq->root.raw, rq->root.len, members, tags, n, at, rq->wire);
}

static struct req rq;			/* one at a time; large enough not to be cleared each time */

void cmd_frame(struct conn *c, const char *text, size_t len, const struct frame_seen *seen)
{
	struct json_val v;
	int64_t n;

	if (json_parse_seen(wk->json, text, len, seen) != JSON_OK) {
		COUNT(bad_frames);
		cmd_bad_frame(c, json_why(wk->json));
		return;
	}
	rq.json = wk->json;
	rq.root = json_root(wk->json);
	size_t all = sort_parsed(&rq, members, tags);
	bool echo_good = echo_ok(&rq);
	if (!cmd_get(&rq, MSG_K_MSGID, &v)) {
		cmd_refuse(c, MSG_NONE, 0, rq.echo, E_MALFORMED, "msgid is missing", 0);
		return;
	}
	if (json_int(&v, &n) != JSON_OK) {
		cmd_refuse(c, MSG_NONE, 0, rq.echo, E_MALFORMED, "msgid must be an integer", 0);
		return;
	}
	rq.wire = n >= INT32_MIN && n <= INT32_MAX ? (int)n : 0;
	rq.msg = proto_from_wire((enum proto_dialect)c->r->dialect, n);
	if (rq.msg == MSG_NONE) {
		cmd_refuse(c, MSG_NONE, rq.wire, rq.echo, E_MALFORMED, "unknown msgid", 0);
		return;
	}
	if (seen->simple && is_frequent(rq.msg))
		remember_shape(&rq, all);
	dispatch(c, &rq, echo_good);
}

bool cmd_fits(struct conn *c, const char *buf, size_t len)
{
	struct shape_found f;

	sort_begin(&rq);
	if (!shape_next(wk->shapes, &c->scan, buf, len, wk->conf.max_frame, &f, rq.known, others))
		return false;
	rq.nothers = f.nothers;
	rq.wire = f.cookie;
	rq.json = wk->json;
	rq.root = (struct json_val){ f.text, (uint32_t)f.len, -1, JSON_OBJECT };
	return true;
}

void cmd_run(struct conn *c)
{
	static const struct frame_seen nothing;

	rq.msg = proto_from_wire((enum proto_dialect)c->r->dialect, rq.wire);
	if (is_frequent(rq.msg))
		dispatch(c, &rq, echo_ok(&rq));
	else			/* the shape is one of the other dialect's */
		cmd_frame(c, rq.root.raw, rq.root.len, &nothing);
}
