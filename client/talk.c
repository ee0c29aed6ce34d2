#include "client/talk.h"

#include <poll.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/book.h"
#include "client/deliver.h"
#include "client/home.h"
#include "client/outbox.h"
#include "client/show.h"
#include "client/text.h"
#include "worker/base/clock.h"
#include "worker/base/json.h"

#define ASKS_MAX      64
#define PAGES_MAX     200
#define MEMBERS_MAX   20000
#define TOKEN_MAX     1024
#define ELSEWHERE_MS  90000		/* how long our own dead session may keep us out */
#define RELOGIN_MS    1000
#define PAUSE_MS      500		/* after a SESSION_END that asks for jitter */

struct member { int64_t id; char *name; bool online, creator; };

/* A request without its answer. */
struct ask {
	int64_t req;
	enum proto_msg msg;
	struct talk_target about;
	char *desc;
	uint64_t due_ms;
	bool quiet;			/* nobody waits for the answer: nothing is shown of it */
	unsigned pages;
	int64_t after;			/* the last id seen, for the next page */
	bool cleared;			/* the first page has come */
	struct member *member;		/* of /who #group, gathered over the pages */
	size_t nmembers;
};

struct talk {
	struct talk_ops ops;
	void *arg;
	struct show *show;
	struct net *net;
	struct book *book;
	struct deliver *deliver;
	struct home *home;
	char *root;
	struct json *json;
	char *scratch;			/* NET_FRAME_MAX + 1: one string of a frame */

	enum talk_state state;
	char *who, *password;		/* as the person gave them */
	bool relogin_with_password;	/* the token was refused */
	char token[TOKEN_MAX + 1];
	char name[PROTO_NAME_BYTES + 1], opened[PROTO_NAME_BYTES + 1];
	int64_t id;
	int64_t login_req;		/* 0: no login on the wire */
	uint64_t login_due_ms, relogin_ms, lost_ms;
	struct talk_answer login, reg;
	char *reg_name, *reg_password;	/* to be sent when the connection is up */
	bool ended;
	int64_t last_writer;

	struct ask ask[ASKS_MAX];
	size_t nasks;
	int64_t req;
	unsigned failures;
};

/* ---- members of a frame -------------------------------------------------------------------- */

static int64_t get_int(struct talk *t, const struct json_val *obj, const char *name)
{
	struct json_val v;
	int64_t n;

	return json_get(t->json, obj, name, &v) && json_int(&v, &n) == JSON_OK ? n : 0;
}

/* OUT is "" where the member is missing, no string, or too long. */
static void get_text(struct talk *t, const struct json_val *obj, const char *name, char *out,
    size_t cap)
{
	struct json_val v;

	if (!json_get(t->json, obj, name, &v) || v.type != JSON_STRING ||
	    json_text(&v, out, cap, NULL) != JSON_OK)
		out[0] = '\0';
}

static bool get_state(struct talk *t, const struct json_val *obj)
{
	struct json_val v;

	return json_get(t->json, obj, "state", &v) && json_is(&v, "online");
}

/* What every reply carries. */
struct reply {
	int err;
	char errmsg[256];
	uint64_t retry_ms;
	int64_t req;
};

static void get_reply(struct talk *t, const struct json_val *root, struct reply *r)
{
	int64_t err = get_int(t, root, "errno"), retry = get_int(t, root, "retry_ms");
	struct json_val v;
	size_t len;

	r->err = err >= 0 && err < 1000 ? (int)err : 999;
	r->retry_ms = retry > 0 ? (uint64_t)retry : 0;
	r->req = get_int(t, root, "req");
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

static void wipe(char **s)
{
	if (*s != NULL) {
		sodium_memzero(*s, strlen(*s));
		free(*s);
	}
	*s = NULL;
}

static void drop_ask(struct talk *t, size_t i)
{
	struct ask *a = &t->ask[i];

	for (size_t k = 0; k < a->nmembers; k++)
		free(a->member[k].name);
	free(a->member);
	free(a->desc);
	memmove(a, a + 1, (t->nasks - i - 1) * sizeof *a);
	t->nasks--;
}

void talk_free(struct talk *t)
{
	if (t == NULL)
		return;
	while (t->nasks > 0)
		drop_ask(t, 0);
	net_free(t->net);
	book_free(t->book);
	deliver_free(t->deliver);
	home_free(t->home);
	json_free(t->json);
	sodium_memzero(t->token, sizeof t->token);
	wipe(&t->who);
	wipe(&t->password);
	wipe(&t->reg_name);
	wipe(&t->reg_password);
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

static void answer(struct talk_answer *a, int err, const char *errmsg, uint64_t retry_ms)
{
	a->pending = false;
	a->err = err;
	a->retry_ms = retry_ms;
	snprintf(a->errmsg, sizeof a->errmsg, "%s", errmsg);
}

static int send_frame(struct talk *t, struct json_out *w)
{
	json_close(w, '}');
	return w->over ? -1 : net_send(t->net, w->buf, w->len);
}

static void begin_frame(struct json_out *w, char *buf, size_t cap, enum proto_msg msg)
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

	begin_frame(&w, buf, sizeof buf, MSG_LOGIN);
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
	if (send_frame(t, &w) != 0)
		t->relogin_ms = clock_ms() + RELOGIN_MS;
	sodium_memzero(buf, sizeof buf);
}

static void send_register(struct talk *t)
{
	struct json_out w;
	char buf[8192];

	begin_frame(&w, buf, sizeof buf, MSG_REG);
	json_kv_str(&w, "name", t->reg_name);
	json_kv_str(&w, "password", t->reg_password);
	json_kv_int(&w, "req", ++t->req);
	if (send_frame(t, &w) != 0) {
		answer(&t->reg, -1, "the request is too long", 0);
	} else {
		t->ask[t->nasks++] = (struct ask){ .req = t->req, .msg = MSG_REG,
		    .due_ms = clock_ms() + TALK_ANSWER_MS };
	}
	sodium_memzero(buf, sizeof buf);
	wipe(&t->reg_password);
}

static bool is_secret_ok(const char *password, struct talk_answer *a)
{
	size_t len = strlen(password);

	*a = (struct talk_answer){ .pending = true };
	if (len >= 1 && len <= PROTO_PASSWORD_MAX && json_utf8_valid(password, len))
		return true;
	answer(a, E_MALFORMED, "a password is 1 to 128 bytes of UTF-8", 0);
	return false;
}

static void start_login(struct talk *t)
{
	t->token[0] = '\0';
	t->relogin_with_password = false;
	t->ended = false;
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

	wipe(&t->who);
	wipe(&t->password);
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
		answer(&t->reg, -1, "too many requests are open", 0);
		return;
	}
	wipe(&t->reg_name);
	wipe(&t->reg_password);
	t->reg_name = text_copy(name);
	t->reg_password = text_copy(password);
	if (net_state(t->net) == NET_UP)
		send_register(t);
	else
		net_start(t->net, false);
}

/* Back to nobody: the person has to say what next. */
static void go_out(struct talk *t, bool stop)
{
	t->login_req = 0;
	t->relogin_ms = 0;
	t->token[0] = '\0';
	if (stop)
		net_stop(t->net);
	set_state(t, TALK_OUT);
}

static void fail_asks(struct talk *t, const char *why);

static void relogin_refused(struct talk *t, const struct reply *r)
{
	uint64_t now = clock_ms(), wait = r->retry_ms > 0 ? r->retry_ms : RELOGIN_MS;

	switch (r->err) {
	case E_REFUSED:
		if (!t->relogin_with_password && t->token[0] != '\0') {
			t->relogin_with_password = true;	/* the token may just be old */
			send_login(t);
			return;
		}
		break;
	case E_ELSEWHERE:
		if (now < t->lost_ms + ELSEWHERE_MS) {
			t->relogin_ms = now + wait;	/* most likely our own dead session */
			return;
		}
		break;
	case E_RATE:
	case E_AGAIN:
		t->relogin_ms = now + (wait < 60000 ? wait : 60000);
		return;
	}
	show_error(t->show, r->err, r->errmsg, 0, "cannot log in again");
	t->failures++;
	t->ended = true;
	fail_asks(t, "not logged in any more");
	go_out(t, true);
}

static void on_login_refused(struct talk *t, const struct reply *r)
{
	if (t->state == TALK_LOST) {
		relogin_refused(t, r);
		return;
	}
	go_out(t, false);
	answer(&t->login, r->err, r->errmsg, r->retry_ms);
}

/* ---- chat arriving ------------------------------------------------------------------------- */

static void on_chat_value(struct talk *t, const struct json_val *msg, bool group, bool waiting)
{
	char from[PROTO_NAME_BYTES + 1], to[PROTO_NAME_BYTES + 1], when[128], mid[256];
	struct show_msg m = { .group = group, .waiting = waiting, .from_name = from, .to_name = to,
	    .time = when, .mid = mid };
	int64_t n = get_int(t, msg, "n"), ts = get_int(t, msg, "ts");
	struct json_val text;
	bool is_new;

	get_text(t, msg, "mid", mid, sizeof mid);
	get_text(t, msg, "name", from, sizeof from);
	get_text(t, msg, "time", when, sizeof when);
	m.from = get_int(t, msg, "id");
	m.to = get_int(t, msg, group ? "groupid" : "to");
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
}

/* ---- lists --------------------------------------------------------------------------------- */

static void take_friend(struct talk *t, const struct json_val *v)
{
	char name[PROTO_NAME_BYTES + 1];
	int64_t id = get_int(t, v, "id");

	get_text(t, v, "name", name, sizeof name);
	if (id > 0 && name[0] != '\0')
		book_set_friend(t->book, id, name, get_state(t, v));
}

static size_t take_friends(struct talk *t, const struct json_val *root, int64_t *last_r)
{
	struct json_val list, v;
	size_t count = 0;

	if (!json_get(t->json, root, "friends", &list))
		return 0;
	for (struct json_it it = json_it(t->json, &list); json_next(t->json, &it, NULL, &v);) {
		take_friend(t, &v);
		if (last_r != NULL)
			*last_r = get_int(t, &v, "id");
		count++;
	}
	return count;
}

static void take_members(struct talk *t, const struct json_val *group, struct ask *a,
    size_t *count_r, int64_t *last_r)
{
	struct json_val list, v, role;
	char name[PROTO_NAME_BYTES + 1];

	if (!json_get(t->json, group, "users", &list))
		return;
	for (struct json_it it = json_it(t->json, &list); json_next(t->json, &it, NULL, &v);) {
		int64_t id = get_int(t, &v, "id");

		get_text(t, &v, "name", name, sizeof name);
		if (id <= 0 || name[0] == '\0')
			continue;
		book_see(t->book, id, name);
		if (a == NULL || a->nmembers >= MEMBERS_MAX)
			continue;
		if ((a->nmembers & (a->nmembers + 1)) == 0)	/* full at 0, 1, 3, 7 ... */
			a->member = text_resize(a->member,
			    (a->nmembers * 2 + 1) * sizeof a->member[0]);
		a->member[a->nmembers++] = (struct member){ .id = id, .name = text_copy(name),
		    .online = get_state(t, &v),
		    .creator = json_get(t->json, &v, "role", &role) && json_is(&role, "creator") };
		(*count_r)++;
		*last_r = id;
	}
}

static int64_t take_group(struct talk *t, const struct json_val *v)
{
	char name[PROTO_NAME_BYTES + 1], desc[PROTO_DESC_BYTES + 1];
	int64_t id = get_int(t, v, "id");

	get_text(t, v, "groupname", name, sizeof name);
	get_text(t, v, "groupdesc", desc, sizeof desc);
	if (id > 0 && name[0] != '\0')
		book_set_group(t->book, id, name, desc, get_int(t, v, "members"));
	return id;
}

static size_t take_groups(struct talk *t, const struct json_val *root, int64_t *last_r)
{
	struct json_val list, v;
	size_t count = 0;

	if (!json_get(t->json, root, "groups", &list))
		return 0;
	for (struct json_it it = json_it(t->json, &list); json_next(t->json, &it, NULL, &v);) {
		int64_t id = take_group(t, &v);

		take_members(t, &v, NULL, NULL, NULL);
		if (last_r != NULL)
			*last_r = id;
		count++;
	}
	return count;
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
		on_chat_value(t, &v, get_int(t, &v, "msgid") == MSG_GROUP_CHAT, true);
	return count;
}

static void show_login(struct talk *t, const struct json_val *root, bool again)
{
	struct json_val list;
	struct json_out *w = show_event(t->show, "login", sizeof t->name * 6 + 256);
	struct text name = { 0 };

	if (w != NULL) {
		json_kv_int(w, "id", t->id);
		json_kv_str(w, "name", t->name);
		json_kv_bool(w, "again", again);
		json_kv_int(w, "waiting", json_get(t->json, root, "offlinemsg", &list) ?
		    (int64_t)json_count(t->json, &list) : 0);
		show_event_end(t->show);
		return;
	}
	text_name(&name, t->name);
	if (again)
		show_note(t->show, "connected again as %s", name.s);
	else
		show_line(t->show, "logged in as %s (id %lld)", name.s, (long long)t->id);
	text_fini(&name);
}

static void on_login_ack(struct talk *t, const struct json_val *root)
{
	struct reply r;
	bool again = t->state == TALK_LOST;

	get_reply(t, root, &r);
	if (t->login_req == 0 || (r.req != 0 && r.req != t->login_req))
		return;
	t->login_req = 0;
	if (r.err != E_OK) {
		on_login_refused(t, &r);
		return;
	}
	t->id = get_int(t, root, "id");
	get_text(t, root, "name", t->name, sizeof t->name);
	get_text(t, root, "token", t->token, sizeof t->token);
	if (t->name[0] == '\0')
		snprintf(t->name, sizeof t->name, "%lld", (long long)t->id);
	if (again)
		book_clear_friends(t->book), book_clear_groups(t->book);
	else
		book_clear(t->book);
	open_account(t);
	net_settled(t->net);
	t->relogin_with_password = false;
	take_friends(t, root, NULL);
	take_groups(t, root, NULL);
	show_login(t, root, again);
	take_waiting(t, root, again);
	deliver_up(t->deliver, net_serial(t->net));
	set_state(t, TALK_IN);
	answer(&t->login, 0, "", 0);
	t->login.id = t->id;
}

/* ---- requests ------------------------------------------------------------------------------ */

int talk_resolve(struct talk *t, const char *word, bool group, struct talk_target *target_r)
{
	size_t chars;

	memset(target_r, 0, sizeof *target_r);
	target_r->group = group;
	if (group && word[0] == '#' && book_find_group(t->book, word) == 0)
		word++;
	target_r->id = text_id(word);
	if (target_r->id > 0)
		return 0;
	if (word[0] == '@' && word[1] != '\0')
		word++;
	chars = json_utf8_chars(word, strlen(word));
	if (chars < 1 || chars > PROTO_NAME_CHARS || strlen(word) > PROTO_NAME_BYTES)
		return -1;
	target_r->id = group ? book_find_group(t->book, word) :
	    text_same_name(word, t->name) ? t->id : book_find_person(t->book, word);
	snprintf(target_r->name, sizeof target_r->name, "%s", word);
	return 0;
}

/* The best name that there is for it, the id in digits where there is none. */
static const char *name_of(struct talk *t, const struct talk_target *who, char buf[24])
{
	const char *name = who->id > 0 ? book_name(t->book, who->id, who->group) : "";

	if (name[0] == '\0' && !who->group && who->id == t->id && t->id > 0)
		name = t->name;
	if (name[0] == '\0')
		name = who->name;
	if (name[0] == '\0') {
		snprintf(buf, 24, "%lld", (long long)who->id);
		name = buf;
	}
	return name;
}

void talk_label(struct talk *t, const struct talk_target *who, struct text *out)
{
	char buf[24];
	const char *name = name_of(t, who, buf);

	if (who->group)
		text_puts(out, "#");
	if (name == buf)
		text_puts(out, name);
	else
		text_name(out, name);
}

static int refuse_here(struct talk *t, const char *why)
{
	show_error(t->show, 0, NULL, 0, "%s", why);
	t->failures++;
	return -1;
}

int talk_chat(struct talk *t, const struct talk_target *to, const char *text)
{
	char buf[24];
	struct outbox_msg m = {
		.group = to->group, .id = to->id, .name = (char *)(to->id > 0 ? "" : to->name),
		.label = (char *)name_of(t, to, buf), .text = (char *)text,
	};

	if (t->state != TALK_IN && t->state != TALK_LOST)
		return refuse_here(t, "not logged in: /login NAME");
	if (text[0] == '\0')
		return refuse_here(t, "an empty message is not sent");
	if (strlen(text) > TALK_TEXT_MAX)
		return refuse_here(t, "the message is too long: 60 KiB at most");
	switch (deliver_chat(t->deliver, &m)) {
	case DELIVER_ESIZE:
		return refuse_here(t, "the message is too long: 64 KiB with its escapes at most");
	case DELIVER_EFULL:
		return refuse_here(t, "too many messages are not confirmed yet: try again later");
	}
	return 0;
}

static void put_target(struct json_out *w, const char *name, const struct talk_target *who)
{
	if (who->id > 0)
		json_kv_int(w, name, who->id);
	else
		json_kv_str(w, name, who->name);
}

static int send_ask(struct talk *t, struct ask *a)
{
	struct json_out w;
	char buf[8192];

	begin_frame(&w, buf, sizeof buf, a->msg);
	switch (a->msg) {
	case MSG_ADD_FRIEND:
	case MSG_DEL_FRIEND:
		put_target(&w, "friendid", &a->about);
		break;
	case MSG_CREATE_GROUP:
		json_kv_str(&w, "groupname", a->about.name);
		json_kv_str(&w, "groupdesc", a->desc);
		break;
	case MSG_JOIN_GROUP:
	case MSG_DEL_GROUP:
		put_target(&w, "groupid", &a->about);
		break;
	case MSG_GROUP_LIST:
		if (a->about.group)
			put_target(&w, "groupid", &a->about);
		break;
	default:
		break;
	}
	if (a->after > 0)
		json_kv_int(&w, "after", a->after);
	json_kv_int(&w, "req", a->req = ++t->req);
	a->due_ms = clock_ms() + TALK_ANSWER_MS;
	return send_frame(t, &w);
}

int talk_ask(struct talk *t, enum proto_msg msg, const struct talk_target *about,
    const char *desc)
{
	struct ask *a = &t->ask[t->nasks];

	if (t->state == TALK_LOST)
		return refuse_here(t, "not connected at the moment: try again");
	if (t->state != TALK_IN && msg != MSG_PING)
		return refuse_here(t, "not logged in: /login NAME");
	if (t->nasks == ASKS_MAX)
		return refuse_here(t, "too many requests are open: wait for their answers");
	*a = (struct ask){ .msg = msg, .desc = text_copy(desc != NULL ? desc : "") };
	if (about != NULL)
		a->about = *about;
	if (send_ask(t, a) != 0) {
		free(a->desc);
		return refuse_here(t, "the request cannot be sent now");
	}
	t->nasks++;
	return 0;
}

/* "cannot add bob as a friend", without the reason. */
static void say_what_failed(struct talk *t, const struct ask *a, struct text *out)
{
	static const struct { enum proto_msg msg; const char *before, *after; } words[] = {
		{ MSG_REG, "cannot register", "" },
		{ MSG_ADD_FRIEND, "cannot add ", " to your friends" },
		{ MSG_DEL_FRIEND, "cannot remove ", " from your friends" },
		{ MSG_CREATE_GROUP, "cannot create ", "" },
		{ MSG_JOIN_GROUP, "cannot join ", "" },
		{ MSG_DEL_GROUP, "cannot leave ", "" },
		{ MSG_FRIEND_LIST, "cannot list your friends", "" },
		{ MSG_GROUP_LIST, "cannot list ", "" },
		{ MSG_LOGOUT, "cannot log out", "" },
		{ MSG_PING, "no answer to the ping", "" },
	};

	for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
		size_t len = strlen(words[i].before);

		if (words[i].msg != a->msg)
			continue;
		text_puts(out, words[i].before);
		if (words[i].before[len - 1] == ' ' &&
		    (a->about.id > 0 || a->about.name[0] != '\0'))
			talk_label(t, &a->about, out);
		else if (words[i].before[len - 1] == ' ')
			text_puts(out, "groups");
		text_puts(out, words[i].after);
	}
}

static void fail_ask(struct talk *t, size_t i, int err, const char *errmsg, uint64_t retry_ms)
{
	struct ask *a = &t->ask[i];
	struct text what = { 0 };

	if (a->quiet) {
		go_out(t, true);
	} else if (a->msg == MSG_REG) {
		answer(&t->reg, err != 0 ? err : -1, errmsg, retry_ms);	/* the shell tells it */
	} else {
		say_what_failed(t, a, &what);
		if (err == 0)
			text_printf(&what, ": %s", errmsg);
		show_error(t->show, err, errmsg, retry_ms, "%s", what.s);
		t->failures++;
	}
	text_fini(&what);
	drop_ask(t, i);
}

static void fail_asks(struct talk *t, const char *why)
{
	while (t->nasks > 0)
		fail_ask(t, 0, 0, why, 0);
}

/* ---- answers ------------------------------------------------------------------------------- */

static void event_party(struct json_out *w, const char *key, int64_t id, const char *name)
{
	json_key(w, key);
	json_open(w, '{');
	if (id > 0)
		json_kv_int(w, "id", id);
	if (name[0] != '\0')
		json_kv_str(w, "name", name);
	json_close(w, '}');
}

/* One finished thing: an event with its party, or a line "SAID label AFTER". */
static void show_change(struct talk *t, const char *event, const char *before,
    const struct talk_target *who, const char *after)
{
	struct json_out *w = show_event(t->show, event, PROTO_NAME_BYTES * 6 + 128);
	struct text label = { 0 };
	char buf[24];

	if (w != NULL) {
		const char *name = name_of(t, who, buf);

		event_party(w, who->group ? "group" : "friend", who->id, name == buf ? "" : name);
		show_event_end(t->show);
		return;
	}
	talk_label(t, who, &label);
	show_line(t->show, "%s%s%s", before, label.s, after);
	text_fini(&label);
}

static void done_add_friend(struct talk *t, struct ask *a, const struct json_val *root)
{
	struct json_val v;
	struct book_friend *f;

	if (json_get(t->json, root, "friend", &v)) {
		take_friend(t, &v);
		a->about.id = get_int(t, &v, "id");
	}
	f = book_friend(t->book, a->about.id);
	show_change(t, "friend_added", "", &a->about, f == NULL ? " is your friend now" :
	    f->online ? " is your friend now (online)" : " is your friend now (offline)");
}

static void done_del_friend(struct talk *t, struct ask *a, const struct json_val *root)
{
	(void)root;
	show_change(t, "friend_removed", "", &a->about, " is not on your list of friends any more");
	book_drop_friend(t->book, a->about.id);
}

static void done_create_group(struct talk *t, struct ask *a, const struct json_val *root)
{
	char after[32];

	a->about.id = get_int(t, root, "groupid");
	book_set_group(t->book, a->about.id, a->about.name, a->desc, 1);
	snprintf(after, sizeof after, " (id %lld)", (long long)a->about.id);
	show_change(t, "group_created", "created ", &a->about, after);
}

static void done_join_group(struct talk *t, struct ask *a, const struct json_val *root)
{
	struct json_val v;

	if (json_get(t->json, root, "group", &v)) {
		a->about.id = take_group(t, &v);
		take_members(t, &v, NULL, NULL, NULL);
	}
	show_change(t, "group_joined", "joined ", &a->about, "");
}

static void done_del_group(struct talk *t, struct ask *a, const struct json_val *root)
{
	(void)root;
	show_change(t, "group_left", "left ", &a->about, "");
	book_drop_group(t->book, a->about.id);
}

static void done_logout(struct talk *t, struct ask *a, const struct json_val *root)
{
	struct json_out *w = a->quiet ? NULL : show_event(t->show, "logout", 64);

	(void)root;
	if (w != NULL)
		show_event_end(t->show);
	else if (!a->quiet)
		show_line(t->show, "logged out");
	go_out(t, false);
	wipe(&t->password);
}

void talk_leave(struct talk *t)
{
	if (t->state == TALK_IN && talk_ask(t, MSG_LOGOUT, NULL, NULL) == 0)
		t->ask[t->nasks - 1].quiet = true;
}

static void done_ping(struct talk *t, struct ask *a, const struct json_val *root)
{
	uint64_t sent = a->due_ms - TALK_ANSWER_MS, ms = clock_ms() - sent;
	struct json_out *w = show_event(t->show, "pong", 64);

	(void)root;
	if (w != NULL) {
		json_kv_int(w, "ms", (int64_t)ms);
		show_event_end(t->show);
	} else {
		show_line(t->show, "the server answers (%llu ms)", (unsigned long long)ms);
	}
}

static void show_friends(struct talk *t, bool online_only)
{
	size_t count = 0, shown = 0;
	struct book_friend *f;
	struct json_out *w;

	while (book_friend_at(t->book, count) != NULL)
		count++;
	w = show_event(t->show, "friends", count * (PROTO_NAME_BYTES * 6 + 64) + 64);
	if (w != NULL) {
		json_key(w, "friends");
		json_open(w, '[');
		for (size_t i = 0; (f = book_friend_at(t->book, i)) != NULL; i++) {
			if (online_only && !f->online)
				continue;
			json_open(w, '{');
			json_kv_int(w, "id", f->id);
			json_kv_str(w, "name", f->name);
			json_kv_str(w, "state", f->online ? "online" : "offline");
			json_close(w, '}');
		}
		json_close(w, ']');
		show_event_end(t->show);
		return;
	}
	for (size_t i = 0; (f = book_friend_at(t->book, i)) != NULL; i++) {
		struct text name = { 0 };

		if (online_only && !f->online)
			continue;
		shown++;
		text_name(&name, f->name);
		show_tinted(t->show, f->online ? SHOW_GREEN : SHOW_PLAIN, "%7lld  %-7s  %s",
		    (long long)f->id, f->online ? "online" : "offline", name.s);
		text_fini(&name);
	}
	if (shown == 0)
		show_line(t->show, "%s", count == 0 ? "no friends yet: /friend NAME" :
		    "no friend is online");
}

static void show_groups(struct talk *t)
{
	size_t count = 0;
	struct book_group *g;
	struct json_out *w;

	while (book_group_at(t->book, count) != NULL)
		count++;
	w = show_event(t->show, "groups",
	    count * ((PROTO_NAME_BYTES + PROTO_DESC_BYTES) * 6 + 128) + 64);
	if (w != NULL) {
		json_key(w, "groups");
		json_open(w, '[');
		for (size_t i = 0; (g = book_group_at(t->book, i)) != NULL; i++) {
			json_open(w, '{');
			json_kv_int(w, "id", g->id);
			json_kv_str(w, "name", g->name);
			json_kv_str(w, "desc", g->desc);
			json_kv_int(w, "members", g->members);
			json_close(w, '}');
		}
		json_close(w, ']');
		show_event_end(t->show);
		return;
	}
	if (count == 0)
		show_line(t->show, "no groups yet: /create NAME or /join NAME");
	for (size_t i = 0; (g = book_group_at(t->book, i)) != NULL; i++) {
		struct text line = { 0 };

		text_name(&line, g->name);
		text_printf(&line, "  (%lld member%s)", (long long)g->members,
		    g->members == 1 ? "" : "s");
		text_puts(&line, g->desc[0] != '\0' ? "  " : "");
		text_clean(&line, TEXT_SHOWN, g->desc, strlen(g->desc));
		show_line(t->show, "%7lld  #%s", (long long)g->id, line.s);
		text_fini(&line);
	}
}

static void show_members(struct talk *t, const struct ask *a)
{
	struct json_out *w = show_event(t->show, "members",
	    (a->nmembers + 1) * (PROTO_NAME_BYTES * 6 + 128));
	char buf[24];

	if (w != NULL) {
		const char *name = name_of(t, &a->about, buf);

		event_party(w, "group", a->about.id, name == buf ? "" : name);
		json_key(w, "users");
		json_open(w, '[');
	}
	for (size_t i = 0; i < a->nmembers; i++) {
		const struct member *m = &a->member[i];
		struct text line = { 0 };

		if (w != NULL) {
			json_open(w, '{');
			json_kv_int(w, "id", m->id);
			json_kv_str(w, "name", m->name);
			json_kv_str(w, "state", m->online ? "online" : "offline");
			json_kv_str(w, "role", m->creator ? "creator" : "normal");
			json_close(w, '}');
			continue;
		}
		text_name(&line, m->name);
		show_tinted(t->show, m->online ? SHOW_GREEN : SHOW_PLAIN, "%7lld  %-7s  %s%s",
		    (long long)m->id, m->online ? "online" : "offline", line.s,
		    m->creator ? "  (creator)" : "");
		text_fini(&line);
	}
	if (w != NULL) {
		json_close(w, ']');
		show_event_end(t->show);
	}
}

/* Asks for the page behind `after`; false where the list is complete. */
static bool next_page(struct talk *t, struct ask *a, size_t count, int64_t last)
{
	if (count == 0 || last <= a->after || ++a->pages >= PAGES_MAX)
		return false;
	a->after = last;
	return send_ask(t, a) == 0;
}

static bool page_friends(struct talk *t, struct ask *a, const struct json_val *root)
{
	int64_t last = 0;
	size_t count;

	if (!a->cleared)
		book_clear_friends(t->book);
	a->cleared = true;
	count = take_friends(t, root, &last);
	if (next_page(t, a, count, last))
		return true;
	show_friends(t, strcmp(a->desc, "online") == 0);
	return false;
}

static bool page_groups(struct talk *t, struct ask *a, const struct json_val *root)
{
	struct json_val list, v;
	int64_t last = 0;
	size_t count = 0;

	if (!a->about.group) {
		if (!a->cleared)
			book_clear_groups(t->book);
		a->cleared = true;
		count = take_groups(t, root, &last);
		if (next_page(t, a, count, last))
			return true;
		show_groups(t);
		return false;
	}
	if (json_get(t->json, root, "groups", &list))
		for (struct json_it it = json_it(t->json, &list);
		    json_next(t->json, &it, NULL, &v);) {
			a->about.id = take_group(t, &v);
			take_members(t, &v, a, &count, &last);
		}
	if (next_page(t, a, count, last))
		return true;
	show_members(t, a);
	return false;
}

static void on_registered(struct talk *t, const struct json_val *root)
{
	struct json_out *w = show_event(t->show, "registered", PROTO_NAME_BYTES * 6 + 64);
	struct text name = { 0 };

	answer(&t->reg, 0, "", 0);
	t->reg.id = get_int(t, root, "id");
	if (w != NULL) {
		json_kv_int(w, "id", t->reg.id);
		json_kv_str(w, "name", t->reg_name);
		show_event_end(t->show);
		return;
	}
	text_name(&name, t->reg_name);
	show_line(t->show, "registered %s (id %lld)", name.s, (long long)t->reg.id);
	text_fini(&name);
}

/* A reply finds its request by `req`, or else by its kind: the oldest of it. */
static struct ask *find_ask(struct talk *t, enum proto_msg reply_msg, int64_t req)
{
	for (size_t i = 0; i < t->nasks; i++)
		if (req != 0 ? t->ask[i].req == req : proto_reply_of(t->ask[i].msg) == reply_msg)
			return &t->ask[i];
	return NULL;
}

static void on_reply(struct talk *t, enum proto_msg msg, const struct json_val *root)
{
	struct reply r;
	struct ask *a;
	bool more = false;

	get_reply(t, root, &r);
	a = find_ask(t, msg, r.req);
	if (a == NULL || proto_reply_of(a->msg) != msg)
		return;
	if (r.err != E_OK) {
		fail_ask(t, (size_t)(a - t->ask), r.err, r.errmsg, r.retry_ms);
		return;
	}
	switch (a->msg) {
	case MSG_REG: on_registered(t, root); break;
	case MSG_ADD_FRIEND: done_add_friend(t, a, root); break;
	case MSG_DEL_FRIEND: done_del_friend(t, a, root); break;
	case MSG_CREATE_GROUP: done_create_group(t, a, root); break;
	case MSG_JOIN_GROUP: done_join_group(t, a, root); break;
	case MSG_DEL_GROUP: done_del_group(t, a, root); break;
	case MSG_FRIEND_LIST: more = page_friends(t, a, root); break;
	case MSG_GROUP_LIST: more = page_groups(t, a, root); break;
	case MSG_LOGOUT: done_logout(t, a, root); break;
	case MSG_PING: done_ping(t, a, root); break;
	default: break;
	}
	if (!more)
		drop_ask(t, (size_t)(a - t->ask));
	t->ops.changed(t->arg);
}

/* ---- what the server says by itself -------------------------------------------------------- */

static void on_ping(struct talk *t, const struct json_val *root)
{
	struct json_out w;
	struct json_val req;
	char buf[1024];

	begin_frame(&w, buf, sizeof buf, MSG_PONG);
	if (json_get(t->json, root, "req", &req) && req.len <= 512)
		json_kv_raw(&w, "req", req.raw, req.len);
	send_frame(t, &w);
}

static void on_presence(struct talk *t, const struct json_val *root)
{
	int64_t id = get_int(t, root, "id");
	struct book_friend *f = book_friend(t->book, id);
	bool online = get_state(t, root);
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
	    (strlen(state) + strlen(why)) * 6 + 64);

	if (w == NULL)
		return;
	json_kv_str(w, "state", state);
	json_kv_str(w, "reason", why);
	show_event_end(t->show);
}

static void lose(struct talk *t, const char *why)
{
	if (t->state == TALK_IN) {
		t->lost_ms = clock_ms();
		set_state(t, TALK_LOST);
		show_connection(t, "lost", why);
		if (show_mode(t->show) != SHOW_JSON)
			show_note(t->show, "connection lost (%s): reconnecting", why);
	}
	t->login_req = 0;
	t->relogin_ms = 0;
	fail_asks(t, "the connection was lost before the answer came");
}

static void on_session_end(struct talk *t, const struct json_val *root)
{
	char reason[64];
	struct text said = { 0 };

	get_text(t, root, "reason", reason, sizeof reason);
	text_clean(&said, TEXT_SHOWN, reason, strlen(reason));
	if (strcmp(reason, "kicked") == 0 || strcmp(reason, "replaced") == 0) {
		show_error(t->show, 0, NULL, 0, strcmp(reason, "kicked") == 0 ?
		    "the server ended this session (kicked); /login to come back" :
		    "this account logged in somewhere else (replaced); /login to take it back");
		show_connection(t, "ended", reason);
		t->failures++;
		t->ended = true;
		if (t->login.pending)
			answer(&t->login, -1, reason, 0);
		fail_asks(t, "the session was ended");
		go_out(t, true);
	} else if (t->state == TALK_IN || t->state == TALK_LOST) {
		lose(t, said.len > 0 ? said.s : "session ended");
		net_again(t->net, "session ended", PAUSE_MS);
	} else {
		on_down(t, said.len > 0 ? said.s : "session ended");
	}
	text_fini(&said);
}

static void on_error(struct talk *t, const struct json_val *root)
{
	struct reply r;
	struct ask *a;
	int64_t of = get_int(t, root, "of");

	get_reply(t, root, &r);
	if (r.req != 0 && t->login_req == r.req) {
		t->login_req = 0;
		on_login_refused(t, &r);
		return;
	}
	a = r.req != 0 ? find_ask(t, MSG_ERROR, r.req) : NULL;
	if (a != NULL) {
		fail_ask(t, (size_t)(a - t->ask), r.err, r.errmsg, r.retry_ms);
		return;
	}
	/* no frame at all for the server: only a message can have been too long for it */
	if (r.err == E_SIZE && of == 0 && deliver_too_large(t->deliver, r.errmsg))
		return;
	if (t->login.pending) {
		go_out(t, true);
		answer(&t->login, r.err, r.errmsg, r.retry_ms);
		return;
	}
	show_error(t->show, r.err, r.errmsg, r.retry_ms, "the server reports a problem");
}

static void on_chat_ack(struct talk *t, const struct json_val *root)
{
	char cid[PROTO_CID_MAX + 1], mid[256], state[32];
	struct reply r;

	get_reply(t, root, &r);
	get_text(t, root, "cid", cid, sizeof cid);
	get_text(t, root, "mid", mid, sizeof mid);
	get_text(t, root, "state", state, sizeof state);
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

	lose(t, why);
	if (t->state == TALK_LOST)
		return;
	/* nobody is logged in: coming back can wait until somebody wants to be */
	net_stop(t->net);
	if (t->login.pending) {
		go_out(t, true);
		answer(&t->login, -1, why, 0);
	}
}

static void on_frame(void *arg, const char *text, size_t len)
{
	struct talk *t = arg;
	struct json_val root;
	enum proto_msg msg;

	if (json_parse(t->json, text, len) != JSON_OK)
		return;
	root = json_root(t->json);
	msg = proto_from_wire(DIALECT_PLAIN, get_int(t, &root, "msgid"));
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
	default: on_reply(t, msg, &root); break;
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
		json_kv_str(w, "server", net_name(t->net));
		if (t->id > 0)
			event_party(w, "account", t->id, t->name);
		json_kv_int(w, "unconfirmed", (int64_t)talk_unsafe(t));
		show_event_end(t->show);
		return;
	}
	text_name(&name, t->name);
	if (t->state == TALK_IN || t->state == TALK_LOST)
		show_line(t->show, "%s at %s as %s (id %lld)", states[t->state], net_name(t->net),
		    name.s, (long long)t->id);
	else
		show_line(t->show, "%s; server %s", states[t->state], net_name(t->net));
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
			fail_ask(t, i, 0, "the server did not answer", 0);
		else
			i++;
	if (t->relogin_ms != 0 && now >= t->relogin_ms && net_state(t->net) == NET_UP)
		send_login(t);
	if (t->login_req != 0 && now >= t->login_due_ms) {
		if (t->state == TALK_LOST)
			net_again(t->net, "no answer to the login", PAUSE_MS);
		else
			on_down(t, "the server did not answer");
		t->login_req = 0;
	}
	if (net_state(t->net) != NET_OFF)
		return;
	if (t->login.pending) {
		go_out(t, false);
		answer(&t->login, -1, net_why(t->net), 0);
	}
	if (t->reg.pending)
		answer(&t->reg, -1, net_why(t->net), 0);
}

int talk_poll_before(struct talk *t, struct pollfd *fds, int *timeout_ms)
{
	do_due(t);
	deliver_turn(t->deliver, timeout_ms);
	net_hold(t->net, show_queued(t->show) - show_written(t->show) > SHOW_HIGH);
	for (size_t i = 0; i < t->nasks; i++)
		lower(timeout_ms, t->ask[i].due_ms);
	if (t->relogin_ms != 0 && net_state(t->net) == NET_UP)
		lower(timeout_ms, t->relogin_ms);
	if (t->login_req != 0)
		lower(timeout_ms, t->login_due_ms);
	return net_poll_before(t->net, fds, timeout_ms);
}

void talk_poll_after(struct talk *t, const struct pollfd *fds, int count)
{
	net_poll_after(t->net, fds, count);
	do_due(t);
	t->ops.changed(t->arg);
}
