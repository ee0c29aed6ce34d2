/* talk.c - the session: login, what the server says by itself, what is due. See also ask.c. */
#include "client/talk_in.h"

#include <poll.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/book.h"
#include "client/deliver.h"
#include "client/home.h"
#include "client/place.h"
#include "client/show.h"
#include "client/text.h"
#include "worker/base/clock.h"
#include "worker/base/json.h"

#define ELSEWHERE_MS 90000		/* how long our own dead session may keep us out */
#define RELOGIN_MS   1000
#define RELOGIN_TOKEN_MS 250		/* a token costs the server nothing */
#define PAUSE_MS     500		/* after a SESSION_END that asks for jitter */
#define MOVE_MS      3000		/* a move that takes no longer is told in one line */
#define TRY_MAX      4			/* servers taken from one answer */
#define HOPS_MAX     4			/* moves to another server without a pause */

/* ---- members of a frame -------------------------------------------------------------------- */

int64_t talk_get_int(struct talk *t, const struct json_val *obj, const char *name)
{
	struct json_val v;
	int64_t n;

	return json_get(t->json, obj, name, &v) && json_int(&v, &n) == JSON_OK ? n : 0;
}

/* OUT is "" where the member is missing, no string, or too long. */
void talk_get_text(struct talk *t, const struct json_val *obj, const char *name, char *out,
    size_t cap)
{
	struct json_val v;

	if (!json_get(t->json, obj, name, &v) || v.type != JSON_STRING ||
	    json_text(&v, out, cap, NULL) != JSON_OK)
		out[0] = '\0';
}

bool talk_get_state(struct talk *t, const struct json_val *obj)
{
	struct json_val v;

	return json_get(t->json, obj, "state", &v) && json_is(&v, "online");
}

void talk_get_reply(struct talk *t, const struct json_val *root, struct reply *r)
{
	int64_t err = talk_get_int(t, root, "errno"), retry = talk_get_int(t, root, "retry_ms");
	struct json_val v;
	size_t len;

	r->err = err >= 0 && err < 1000 ? (int)err : 999;
	r->retry_ms = retry > 0 ? (uint64_t)retry : 0;
	r->req = talk_get_int(t, root, "req");
	r->errmsg[0] = '\0';
	if (json_get(t->json, root, "errmsg", &v) && v.type == JSON_STRING &&
	    json_text(&v, t->scratch, NET_FRAME_MAX + 1, &len) == JSON_OK)
		snprintf(r->errmsg, sizeof r->errmsg, "%s", t->scratch);
}

/* ---- life ---------------------------------------------------------------------------------- */

static void on_up(void *arg);
static void on_frame(void *arg, const char *text, size_t len);
static void on_down(void *arg, const char *why);

static int deliver_send(void *arg, const char *frame, size_t len)
{
	struct talk *t = arg;

	/* room is left for requests: a long outbox must not keep the person's commands out */
	return net_unsent(t->net) > NET_OUT_MAX / 2 ? -1 : net_send(t->net, frame, len);
}

static void changed(void *arg)
{
	struct talk *t = arg;

	t->ops.changed(t->arg);
}

struct talk *talk_new(struct show *show, const char *root, const struct talk_ops *ops, void *arg)
{
	static const struct net_ops net_ops = { on_up, on_frame, on_down };
	static const struct deliver_ops deliver_ops = { deliver_send, changed };
	struct talk *t = text_alloc(sizeof *t);

	t->show = show;
	t->ops = *ops;
	t->arg = arg;
	t->root = root != NULL ? text_copy(root) : NULL;
	t->net = net_new(&net_ops, t);
	t->book = book_new();
	t->deliver = deliver_new(show, &deliver_ops, t);
	t->json = json_new(JSON_LARGE);
	t->scratch = text_alloc(NET_FRAME_MAX + 1);
	if (t->json == NULL) {
		fputs("parley: out of memory\n", stderr);
		exit(1);
	}
	return t;
}

void talk_wipe(char **s)
{
	if (*s != NULL) {
		sodium_memzero(*s, strlen(*s));
		free(*s);
	}
	*s = NULL;
}

void talk_free(struct talk *t)
{
	if (t == NULL)
		return;
	while (t->nasks > 0)
		ask_drop(t, 0);
	net_free(t->net);
	book_free(t->book);
	deliver_free(t->deliver);
	home_free(t->home);
	json_free(t->json);
	sodium_memzero(t->token, sizeof t->token);
	talk_wipe(&t->who);
	talk_wipe(&t->password);
	talk_wipe(&t->reg_name);
	talk_wipe(&t->reg_password);
	free(t->place);
	free(t->root);
	free(t->scratch);
	free(t);
}

struct net *talk_net(struct talk *t) { return t->net; }
struct book *talk_book(struct talk *t) { return t->book; }
enum talk_state talk_state(const struct talk *t) { return t->state; }
const char *talk_name(const struct talk *t) { return t->name; }
int64_t talk_id(const struct talk *t) { return t->id; }
size_t talk_asking(const struct talk *t) { return t->nasks; }
size_t talk_unsafe(const struct talk *t) { return deliver_open(t->deliver, false); }
size_t talk_unsafe_fresh(const struct talk *t) { return deliver_open(t->deliver, true); }
unsigned talk_failures(const struct talk *t) { return t->failures + deliver_failures(t->deliver); }
bool talk_ended(const struct talk *t) { return t->ended; }
const char *talk_last(const struct talk *t) { return deliver_last(t->deliver); }
int64_t talk_last_writer(const struct talk *t) { return t->last_writer; }
const struct talk_answer *talk_login_answer(const struct talk *t) { return &t->login; }
const struct talk_answer *talk_register_answer(const struct talk *t) { return &t->reg; }

static void set_state(struct talk *t, enum talk_state state)
{
	if (t->state == state)
		return;
	t->state = state;
	if (state != TALK_IN)
		deliver_down(t->deliver);
	t->ops.changed(t->arg);
}

/* ---- login and registration ---------------------------------------------------------------- */

void talk_answer_with(struct talk_answer *a, int err, const char *errmsg, uint64_t retry_ms)
{
	a->pending = false;
	a->err = err;
	a->retry_ms = retry_ms;
	snprintf(a->errmsg, sizeof a->errmsg, "%s", errmsg);
}

int talk_send(struct talk *t, struct json_out *w)
{
	json_close(w, '}');
	return w->over ? -1 : net_send(t->net, w->buf, w->len);
}

void talk_begin(struct json_out *w, char *buf, size_t cap, enum proto_msg msg)
{
	json_out_init(w, buf, cap);
	json_open(w, '{');
	json_kv_int(w, "msgid", proto_to_wire(DIALECT_PLAIN, msg));
}

static void send_login(struct talk *t)
{
	bool with_token = t->state == TALK_LOST && t->token[0] != '\0' && !t->relogin_with_password;
	struct json_out w;
	char buf[8192];

	talk_begin(&w, buf, sizeof buf, MSG_LOGIN);
	if (t->state == TALK_LOST)
		json_kv_int(&w, "id", t->id);
	else if (text_id(t->who) > 0)
		json_kv_int(&w, "id", text_id(t->who));
	else
		json_kv_str(&w, "name", t->who[0] == '@' ? t->who + 1 : t->who);
	if (with_token)
		json_kv_str(&w, "token", t->token);
	else
		json_kv_str(&w, "password", t->password);
	json_kv_bool(&w, "ack", true);
	json_kv_int(&w, "req", t->login_req = ++t->req);
	t->relogin_ms = 0;
	t->login_due_ms = clock_ms() + TALK_ANSWER_MS;
	if (talk_send(t, &w) != 0)
		t->relogin_ms = clock_ms() + RELOGIN_MS;
	sodium_memzero(buf, sizeof buf);
}

static void send_register(struct talk *t)
{
	struct json_out w;
	char buf[8192];

	talk_begin(&w, buf, sizeof buf, MSG_REG);
	json_kv_str(&w, "name", t->reg_name);
	json_kv_str(&w, "password", t->reg_password);
	json_kv_int(&w, "req", ++t->req);
	if (talk_send(t, &w) != 0) {
		talk_answer_with(&t->reg, -1, "the request is too long", 0);
	} else {
		t->ask[t->nasks++] = (struct ask){ .req = t->req, .msg = MSG_REG,
		    .due_ms = clock_ms() + TALK_ANSWER_MS };
	}
	sodium_memzero(buf, sizeof buf);
	talk_wipe(&t->reg_password);
}

static bool is_secret_ok(const char *password, struct talk_answer *a)
{
	size_t len = strlen(password);

	*a = (struct talk_answer){ .pending = true };
	if (len >= 1 && len <= PROTO_PASSWORD_MAX && json_utf8_valid(password, len))
		return true;
	talk_answer_with(a, E_MALFORMED, "a password is 1 to 128 bytes of UTF-8", 0);
	return false;
}

static void start_login(struct talk *t)
{
	t->token[0] = '\0';
	t->relogin_with_password = false;
	t->ended = false;
	t->hops = 0;
	if (!is_secret_ok(t->password, &t->login))
		return;
	set_state(t, TALK_LOGIN);
	if (net_state(t->net) == NET_UP)
		send_login(t);
	else
		net_start(t->net, false);
}

void talk_login(struct talk *t, const char *who, const char *password)
{
	char *new_who = text_copy(who), *new_password = text_copy(password);

	talk_wipe(&t->who);
	talk_wipe(&t->password);
	t->who = new_who;
	t->password = new_password;
	start_login(t);
}

bool talk_login_again(struct talk *t)
{
	if (t->who == NULL || t->password == NULL)
		return false;
	start_login(t);
	return true;
}

void talk_register(struct talk *t, const char *name, const char *password)
{
	if (!is_secret_ok(password, &t->reg))
		return;
	if (t->nasks == ASKS_MAX) {
		talk_answer_with(&t->reg, -1, "too many requests are open", 0);
		return;
	}
	talk_wipe(&t->reg_name);
	talk_wipe(&t->reg_password);
	t->reg_name = text_copy(name);
	t->reg_password = text_copy(password);
	if (net_state(t->net) == NET_UP)
		send_register(t);
	else
		net_start(t->net, false);
}

void talk_go_out(struct talk *t, bool stop)
{
	t->login_req = 0;
	t->relogin_ms = t->say_ms = 0;
	t->token[0] = '\0';
	if (stop)
		net_stop(t->net);
	set_state(t, TALK_OUT);
}

/* "try": where else. False: nowhere, or we are being sent round. */
static bool follow(struct talk *t, const struct json_val *root)
{
	char name[TRY_MAX][PLACE_HOST + PLACE_PORT + 3];
	const char *names[TRY_MAX];
	struct json_val list, v;
	size_t count = 0;

	if (!json_get(t->json, root, "try", &list) || list.type != JSON_ARRAY)
		return false;
	for (struct json_it it = json_it(t->json, &list);
	    count < TRY_MAX && json_next(t->json, &it, NULL, &v);)
		if (v.type == JSON_STRING && json_text(&v, name[count], sizeof name[0], NULL) == JSON_OK) {
			names[count] = name[count];
			count++;
		}
	return t->hops < HOPS_MAX && net_try(t->net, names, count) && ++t->hops > 0;
}

/* True: it is tried again, at MS or where the server said. */
static bool relogin_later(struct talk *t, const struct json_val *root, const struct reply *r)
{
	uint64_t now = clock_ms(), wait = r->retry_ms > 0 ? r->retry_ms : RELOGIN_MS;
	bool with_token = t->token[0] != '\0' && !t->relogin_with_password;

	switch (r->err) {
	case E_REFUSED:
		if (!with_token)
			return false;
		t->relogin_with_password = true;	/* the token may just be old */
		send_login(t);
		return true;
	case E_ELSEWHERE:
		/* most likely our own dead session, which its server, or the death of that, still holds */
		if (now >= t->lost_ms + ELSEWHERE_MS)
			return false;
		t->relogin_ms = now + (with_token && r->retry_ms == 0 ? RELOGIN_TOKEN_MS : wait);
		return true;
	case E_AGAIN:
		if (follow(t, root))
			return true;
		t->hops = 0;
		if (t->agains++ > 0 && places_count(net_places(t->net)) > 1) {
			net_other(t->net, "temporarily unavailable", wait < 10000 ? (uint32_t)wait : 10000);
			return true;
		}
		/* fall through */
	case E_RATE:
		t->relogin_ms = now + (wait < 60000 ? wait : 60000);
		return true;
	}
	return false;
}

static void on_login_refused(struct talk *t, const struct json_val *root, const struct reply *r)
{
	if (t->state != TALK_LOST) {
		if (r->err == E_AGAIN && t->login.pending && follow(t, root))
			return;
		talk_go_out(t, false);
		talk_answer_with(&t->login, r->err, r->errmsg, r->retry_ms);
	} else if (!relogin_later(t, root, r)) {
		show_error(t->show, r->err, r->errmsg, 0, "cannot log in again");
		t->failures++;
		t->ended = true;
		ask_fail_all(t, "not logged in any more");
		talk_go_out(t, true);
	}
}

/* ---- chat arriving ------------------------------------------------------------------------- */

/* Reads on only as fast as the person's side takes it and confirmations go out. */
static void hold(struct talk *t)
{
	net_hold(t->net, show_queued(t->show) - show_written(t->show) > SHOW_HIGH ||
	    deliver_unconfirmed(t->deliver) >= DELIVER_BATCH);
}

static void on_chat_value(struct talk *t, const struct json_val *msg, bool group, bool waiting)
{
	char from[PROTO_NAME_BYTES + 1], to[PROTO_NAME_BYTES + 1], when[128], mid[256];
	struct show_msg m = { .group = group, .waiting = waiting, .from_name = from, .to_name = to,
	    .time = when, .mid = mid };
	int64_t n = talk_get_int(t, msg, "n"), ts = talk_get_int(t, msg, "ts");
	struct json_val text;
	bool is_new;

	talk_get_text(t, msg, "mid", mid, sizeof mid);
	talk_get_text(t, msg, "name", from, sizeof from);
	talk_get_text(t, msg, "time", when, sizeof when);
	m.from = talk_get_int(t, msg, "id");
	m.to = talk_get_int(t, msg, group ? "groupid" : "to");
	m.ts_ms = ts > 0 ? (uint64_t)ts : 0;
	if (!json_get(t->json, msg, "msg", &text) ||
	    json_text(&text, t->scratch, NET_FRAME_MAX + 1, &m.text_len) != JSON_OK) {
		deliver_took(t->deliver, n, false);
		return;			/* nothing to show; it must not come for ever */
	}
	m.text = t->scratch;
	is_new = deliver_is_new(t->deliver, mid, strlen(mid));
	if (m.from > 0 && from[0] != '\0')
		book_see(t->book, m.from, from);
	if (from[0] == '\0')
		snprintf(from, sizeof from, "%lld", (long long)m.from);
	snprintf(to, sizeof to, "%s", group ? book_name(t->book, m.to, true) :
	    m.to == t->id ? t->name : book_name(t->book, m.to, false));
	if (is_new) {
		if (!group && m.from != t->id)
			t->last_writer = m.from;
		show_message(t->show, &m);
	}
	deliver_took(t->deliver, n, is_new && mid[0] != '\0');
	hold(t);
}

/* ---- logged in ----------------------------------------------------------------------------- */

static void open_account(struct talk *t)
{
	char why[HOME_WHY];

	if (strcmp(t->opened, t->name) == 0)
		return;
	snprintf(t->opened, sizeof t->opened, "%s", t->name);
	home_free(t->home);
	t->home = home_open(t->root, net_name(t->net), t->name, why);
	if (t->home == NULL)
		show_note(t->show, "%s: open messages are kept in memory only", why);
	deliver_account(t->deliver, t->home);
	t->last_writer = 0;
	t->ops.account(t->arg, t->home);
}

static size_t take_waiting(struct talk *t, const struct json_val *root, bool again)
{
	struct json_val list, v;
	size_t count = 0;

	if (!json_get(t->json, root, "offlinemsg", &list))
		return 0;
	count = json_count(t->json, &list);
	if (count > 0 && !again && show_mode(t->show) == SHOW_TERM)
		show_note(t->show, "%zu message%s waited for you", count, count == 1 ? "" : "s");
	for (struct json_it it = json_it(t->json, &list); json_next(t->json, &it, NULL, &v);)
		on_chat_value(t, &v, talk_get_int(t, &v, "msgid") == MSG_GROUP_CHAT, true);
	return count;
}

static void show_login(struct talk *t, const struct json_val *root, bool again)
{
	struct json_val list;
	struct json_out *w = show_event(t->show, "login", sizeof t->name * 6 + 1024);
	bool moved = t->place != NULL && strcmp(t->place, net_place(t->net)) != 0;
	bool told = t->say_ms == 0;
	struct text name = { 0 };

	t->say_ms = 0;
	free(t->place);
	t->place = text_copy(net_place(t->net));
	if (w != NULL) {
		json_kv_int(w, "id", t->id);
		json_kv_str(w, "name", t->name);
		json_kv_bool(w, "again", again);
		json_kv_str(w, "server", t->place);
		json_kv_int(w, "waiting", json_get(t->json, root, "offlinemsg", &list) ?
		    (int64_t)json_count(t->json, &list) : 0);
		show_event_end(t->show);
		return;
	}
	text_name(&name, t->name);
	if (again)
		show_note(t->show, "%s%s%sconnected again as %s%s%s", told ? "" : "session ended (",
		    told ? "" : t->lost_why, told ? "" : "): ", name.s, moved ? " at " : "",
		    moved ? t->place : "");
	else
		show_line(t->show, "logged in as %s (id %lld)", name.s, (long long)t->id);
	text_fini(&name);
}

static void on_login_ack(struct talk *t, const struct json_val *root)
{
	struct reply r;
	bool again = t->state == TALK_LOST;

	talk_get_reply(t, root, &r);
	if (t->login_req == 0 || (r.req != 0 && r.req != t->login_req))
		return;
	t->login_req = 0;
	if (r.err != E_OK) {
		on_login_refused(t, root, &r);
		return;
	}
	t->id = talk_get_int(t, root, "id");
	talk_get_text(t, root, "name", t->name, sizeof t->name);
	talk_get_text(t, root, "token", t->token, sizeof t->token);
	if (t->name[0] == '\0')
		snprintf(t->name, sizeof t->name, "%lld", (long long)t->id);
	if (again)
		book_clear_friends(t->book), book_clear_groups(t->book);
	else
		book_clear(t->book);
	open_account(t);
	net_settled(t->net);
	t->relogin_with_password = false;
	t->hops = t->agains = 0;
	ask_take_friends(t, root, NULL);
	ask_take_groups(t, root, NULL);
	show_login(t, root, again);
	take_waiting(t, root, again);
	deliver_up(t->deliver, net_serial(t->net));
	set_state(t, TALK_IN);
	talk_answer_with(&t->login, 0, "", 0);
	t->login.id = t->id;
}

/* ---- what the server says by itself -------------------------------------------------------- */

static void on_ping(struct talk *t, const struct json_val *root)
{
	struct json_out w;
	struct json_val req;
	char buf[1024];

	talk_begin(&w, buf, sizeof buf, MSG_PONG);
	if (json_get(t->json, root, "req", &req) && req.len <= 512)
		json_kv_raw(&w, "req", req.raw, req.len);
	talk_send(t, &w);
}

static void on_presence(struct talk *t, const struct json_val *root)
{
	int64_t id = talk_get_int(t, root, "id");
	struct book_friend *f = book_friend(t->book, id);
	bool online = talk_get_state(t, root);
	struct json_out *w;
	struct text name = { 0 };

	if (f == NULL || f->online == online)
		return;
	f->online = online;
	text_name(&name, f->name);
	w = show_event(t->show, "presence", PROTO_NAME_BYTES * 6 + 128);
	if (w != NULL) {
		json_kv_int(w, "id", id);
		json_kv_str(w, "name", f->name);
		json_kv_str(w, "state", online ? "online" : "offline");
		show_event_end(t->show);
	} else if (show_mode(t->show) == SHOW_TERM) {
		show_note(t->show, "%s is %s", name.s, online ? "online" : "offline");
	}
	text_fini(&name);
	t->ops.changed(t->arg);
}

static void show_connection(struct talk *t, const char *state, const char *why)
{
	struct json_out *w = show_event(t->show, "connection",
	    (strlen(state) + strlen(why)) * 6 + 1024);

	if (w == NULL)
		return;
	json_kv_str(w, "state", state);
	json_kv_str(w, "reason", why);
	if (strcmp(state, "lost") == 0)
		json_kv_str(w, "server", net_place(t->net));
	show_event_end(t->show);
}

static void say_lost(struct talk *t)
{
	t->say_ms = 0;
	if (show_mode(t->show) != SHOW_JSON)
		show_note(t->show, "connection lost (%s): reconnecting to %s", t->lost_why,
		    net_place(t->net));
}

/* PLANNED: the server said so before; when it does not take long, one line tells all of it. */
static void lose(struct talk *t, const char *why, bool planned)
{
	if (t->state == TALK_IN) {
		t->lost_ms = clock_ms();
		set_state(t, TALK_LOST);
		snprintf(t->lost_why, sizeof t->lost_why, "%s", why);
		show_connection(t, "lost", why);
		if (planned)
			t->say_ms = t->lost_ms + MOVE_MS;
		else
			say_lost(t);
	}
	t->login_req = 0;
	t->relogin_ms = 0;
	ask_fail_all(t, "the connection was lost before the answer came");
}

/* After lose(), with the connection gone and net on its way to another: is that wanted? */
static void settle_down(struct talk *t, const char *why)
{
	if (t->state == TALK_LOST)
		return;
	/* a login under way goes to the other servers; twice is harmless */
	if (t->state == TALK_LOGIN && t->login.pending && t->hops < HOPS_MAX &&
	    places_count(net_places(t->net)) > 1) {
		t->hops++;
		net_start(t->net, false);
		return;
	}
	/* nobody is logged in: coming back can wait until somebody wants to be */
	net_stop(t->net);
	if (t->login.pending) {
		talk_go_out(t, true);
		talk_answer_with(&t->login, -1, why, 0);
	}
}

static void on_session_end(struct talk *t, const struct json_val *root)
{
	char reason[64];
	struct text said = { 0 };

	talk_get_text(t, root, "reason", reason, sizeof reason);
	text_clean(&said, TEXT_SHOWN, reason, strlen(reason));
	if (strcmp(reason, "kicked") == 0 || strcmp(reason, "replaced") == 0) {
		show_error(t->show, 0, NULL, 0, strcmp(reason, "kicked") == 0 ?
		    "the server ended this session (kicked); /login to come back" :
		    "this account logged in somewhere else (replaced); /login to take it back");
		show_connection(t, "ended", reason);
		t->failures++;
		t->ended = true;
		if (t->login.pending)
			talk_answer_with(&t->login, -1, reason, 0);
		ask_fail_all(t, "the session was ended");
		talk_go_out(t, true);
	} else {
		net_other(t->net, "session ended", PAUSE_MS);
		lose(t, said.len > 0 ? said.s : "session ended", true);
		settle_down(t, said.len > 0 ? said.s : "session ended");
	}
	text_fini(&said);
}

static void on_error(struct talk *t, const struct json_val *root)
{
	struct reply r;
	struct ask *a;
	int64_t of = talk_get_int(t, root, "of");

	talk_get_reply(t, root, &r);
	if (r.req != 0 && t->login_req == r.req) {
		t->login_req = 0;
		on_login_refused(t, root, &r);
		return;
	}
	a = r.req != 0 ? ask_find(t, MSG_ERROR, r.req) : NULL;
	if (a != NULL) {
		ask_fail(t, (size_t)(a - t->ask), r.err, r.errmsg, r.retry_ms);
		return;
	}
	/* no frame at all for the server: only a message can have been too long for it */
	if ((r.err == E_SIZE || r.err == E_MALFORMED) && of == 0 &&
	    deliver_too_large(t->deliver, r.errmsg))
		return;
	if (t->login.pending) {
		talk_go_out(t, true);
		talk_answer_with(&t->login, r.err, r.errmsg, r.retry_ms);
		return;
	}
	show_error(t->show, r.err, r.errmsg, r.retry_ms, "the server reports a problem");
}

static void on_chat_ack(struct talk *t, const struct json_val *root)
{
	char cid[PROTO_CID_MAX + 1], mid[256], state[32];
	struct reply r;

	talk_get_reply(t, root, &r);
	talk_get_text(t, root, "cid", cid, sizeof cid);
	talk_get_text(t, root, "mid", mid, sizeof mid);
	talk_get_text(t, root, "state", state, sizeof state);
	deliver_ack(t->deliver, cid, r.err, r.errmsg, r.retry_ms, mid, state);
	t->ops.changed(t->arg);
}

/* ---- the connection's handlers ------------------------------------------------------------- */

static void on_up(void *arg)
{
	struct talk *t = arg;

	if (t->reg.pending && t->reg_password != NULL)
		send_register(t);
	if (t->state == TALK_LOGIN || t->state == TALK_LOST)
		send_login(t);
	t->ops.changed(t->arg);
}

static void on_down(void *arg, const char *why)
{
	struct talk *t = arg;

	lose(t, why, false);
	settle_down(t, why);
}

static void on_frame(void *arg, const char *text, size_t len)
{
	struct talk *t = arg;
	struct json_val root;
	enum proto_msg msg;

	if (json_parse(t->json, text, len) != JSON_OK)
		return;
	root = json_root(t->json);
	msg = proto_from_wire(DIALECT_PLAIN, talk_get_int(t, &root, "msgid"));
	switch (msg) {
	case MSG_LOGIN_ACK: on_login_ack(t, &root); break;
	case MSG_CHAT:
	case MSG_GROUP_CHAT:
		if (t->state == TALK_IN)
			on_chat_value(t, &root, msg == MSG_GROUP_CHAT, false);
		break;
	case MSG_CHAT_ACK: on_chat_ack(t, &root); break;
	case MSG_PING: on_ping(t, &root); break;
	case MSG_PRESENCE: on_presence(t, &root); break;
	case MSG_SESSION_END: on_session_end(t, &root); break;
	case MSG_ERROR: on_error(t, &root); break;
	default: ask_on_reply(t, msg, &root); break;
	}
}

/* ---- status and the turn ------------------------------------------------------------------- */

void talk_show_status(struct talk *t)
{
	static const char *const states[] = { "not logged in", "logging in", "logged in",
	    "reconnecting" };
	struct json_out *w = show_event(t->show, "status", PROTO_NAME_BYTES * 6 + 1024);
	struct text name = { 0 };

	if (w != NULL) {
		json_kv_str(w, "state", states[t->state]);
		json_kv_str(w, "server", net_place(t->net));
		if (t->id > 0)
			ask_event_party(w, "account", t->id, t->name);
		json_kv_int(w, "unconfirmed", (int64_t)talk_unsafe(t));
		show_event_end(t->show);
		return;
	}
	text_name(&name, t->name);
	if (t->state == TALK_IN || t->state == TALK_LOST)
		show_line(t->show, "%s at %s as %s (id %lld)", states[t->state], net_place(t->net),
		    name.s, (long long)t->id);
	else
		show_line(t->show, "%s; server %s", states[t->state], net_place(t->net));
	if (talk_unsafe(t) == 0)
		show_line(t->show, "all messages are confirmed");
	deliver_list(t->deliver);
	text_fini(&name);
}

static void lower(int *timeout_ms, uint64_t due_ms)
{
	uint64_t now = clock_ms(), left = due_ms > now ? due_ms - now : 0;

	if (*timeout_ms < 0 || left < (uint64_t)*timeout_ms)
		*timeout_ms = (int)left;
}

static void do_due(struct talk *t)
{
	uint64_t now = clock_ms();

	for (size_t i = 0; i < t->nasks;)
		if (now >= t->ask[i].due_ms)
			ask_fail(t, i, 0, "the server did not answer", 0);
		else
			i++;
	if (t->relogin_ms != 0 && now >= t->relogin_ms && net_state(t->net) == NET_UP)
		send_login(t);
	if (t->login_req != 0 && now >= t->login_due_ms) {
		t->login_req = 0;
		net_other(t->net, "no answer to the login", PAUSE_MS);
		settle_down(t, "the server did not answer");
	}
	if (t->say_ms != 0 && now >= t->say_ms && t->state == TALK_LOST)
		say_lost(t);
	if (net_state(t->net) != NET_OFF)
		return;
	if (t->login.pending) {
		talk_go_out(t, false);
		talk_answer_with(&t->login, -1, net_why(t->net), 0);
	}
	if (t->reg.pending)
		talk_answer_with(&t->reg, -1, net_why(t->net), 0);
}

int talk_poll_before(struct talk *t, struct pollfd *fds, int *timeout_ms)
{
	do_due(t);
	deliver_turn(t->deliver, timeout_ms);
	hold(t);
	for (size_t i = 0; i < t->nasks; i++)
		lower(timeout_ms, t->ask[i].due_ms);
	if (t->relogin_ms != 0 && net_state(t->net) == NET_UP)
		lower(timeout_ms, t->relogin_ms);
	if (t->login_req != 0)
		lower(timeout_ms, t->login_due_ms);
	if (t->say_ms != 0 && t->state == TALK_LOST)
		lower(timeout_ms, t->say_ms);
	return net_poll_before(t->net, fds, timeout_ms);
}

void talk_poll_after(struct talk *t, const struct pollfd *fds, int count)
{
	net_poll_after(t->net, fds, count);
	do_due(t);
	t->ops.changed(t->arg);
}
