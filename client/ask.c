/* ask.c - requests of the person and their answers: friends, groups, lists. Half of talk.h. */
#include "client/talk_in.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/book.h"
#include "client/deliver.h"
#include "client/outbox.h"
#include "client/show.h"
#include "client/text.h"
#include "worker/base/clock.h"
#include "worker/base/json.h"

#define PAGES_MAX   200
#define MEMBERS_MAX 20000

/* ---- lists --------------------------------------------------------------------------------- */

static void take_friend(struct talk *t, const struct json_val *v)
{
	char name[PROTO_NAME_BYTES + 1];
	int64_t id = talk_get_int(t, v, "id");

	talk_get_text(t, v, "name", name, sizeof name);
	if (id > 0 && name[0] != '\0')
		book_set_friend(t->book, id, name, talk_get_state(t, v));
}

size_t ask_take_friends(struct talk *t, const struct json_val *root, int64_t *last_r)
{
	struct json_val list, v;
	size_t count = 0;

	if (!json_get(t->json, root, "friends", &list))
		return 0;
	for (struct json_it it = json_it(t->json, &list); json_next(t->json, &it, NULL, &v);) {
		take_friend(t, &v);
		if (last_r != NULL)
			*last_r = talk_get_int(t, &v, "id");
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
		int64_t id = talk_get_int(t, &v, "id");

		talk_get_text(t, &v, "name", name, sizeof name);
		if (id <= 0 || name[0] == '\0')
			continue;
		book_see(t->book, id, name);
		if (a == NULL || a->nmembers >= MEMBERS_MAX)
			continue;
		if ((a->nmembers & (a->nmembers + 1)) == 0)	/* full at 0, 1, 3, 7 ... */
			a->member = text_resize(a->member,
			    (a->nmembers * 2 + 1) * sizeof a->member[0]);
		a->member[a->nmembers++] = (struct member){ .id = id, .name = text_copy(name),
		    .online = talk_get_state(t, &v),
		    .creator = json_get(t->json, &v, "role", &role) && json_is(&role, "creator") };
		(*count_r)++;
		*last_r = id;
	}
}

static int64_t take_group(struct talk *t, const struct json_val *v)
{
	char name[PROTO_NAME_BYTES + 1], desc[PROTO_DESC_BYTES + 1];
	int64_t id = talk_get_int(t, v, "id");

	talk_get_text(t, v, "groupname", name, sizeof name);
	talk_get_text(t, v, "groupdesc", desc, sizeof desc);
	if (id > 0 && name[0] != '\0')
		book_set_group(t->book, id, name, desc, talk_get_int(t, v, "members"));
	return id;
}

size_t ask_take_groups(struct talk *t, const struct json_val *root, int64_t *last_r)
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

/* ---- requests ------------------------------------------------------------------------------ */

void ask_drop(struct talk *t, size_t i)
{
	struct ask *a = &t->ask[i];

	for (size_t k = 0; k < a->nmembers; k++)
		free(a->member[k].name);
	free(a->member);
	free(a->desc);
	memmove(a, a + 1, (t->nasks - i - 1) * sizeof *a);
	t->nasks--;
}

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

	talk_begin(&w, buf, sizeof buf, a->msg);
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
	return talk_send(t, &w);
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

void ask_fail(struct talk *t, size_t i, int err, const char *errmsg, uint64_t retry_ms)
{
	struct ask *a = &t->ask[i];
	struct text what = { 0 };

	if (a->quiet) {
		talk_go_out(t, true);
	} else if (a->msg == MSG_REG) {
		/* the shell tells it */
		talk_answer_with(&t->reg, err != 0 ? err : -1, errmsg, retry_ms);
	} else {
		say_what_failed(t, a, &what);
		if (err == 0)
			text_printf(&what, ": %s", errmsg);
		show_error(t->show, err, errmsg, retry_ms, "%s", what.s);
		t->failures++;
	}
	text_fini(&what);
	ask_drop(t, i);
}

void ask_fail_all(struct talk *t, const char *why)
{
	while (t->nasks > 0)
		ask_fail(t, 0, 0, why, 0);
}

/* ---- answers ------------------------------------------------------------------------------- */

void ask_event_party(struct json_out *w, const char *key, int64_t id, const char *name)
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

		ask_event_party(w, who->group ? "group" : "friend", who->id,
		    name == buf ? "" : name);
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
		a->about.id = talk_get_int(t, &v, "id");
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

	a->about.id = talk_get_int(t, root, "groupid");
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
	talk_go_out(t, false);
	talk_wipe(&t->password);
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

		ask_event_party(w, "group", a->about.id, name == buf ? "" : name);
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
	count = ask_take_friends(t, root, &last);
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
		count = ask_take_groups(t, root, &last);
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

	talk_answer_with(&t->reg, 0, "", 0);
	t->reg.id = talk_get_int(t, root, "id");
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

struct ask *ask_find(struct talk *t, enum proto_msg reply_msg, int64_t req)
{
	for (size_t i = 0; i < t->nasks; i++)
		if (req != 0 ? t->ask[i].req == req : proto_reply_of(t->ask[i].msg) == reply_msg)
			return &t->ask[i];
	return NULL;
}

void ask_on_reply(struct talk *t, enum proto_msg msg, const struct json_val *root)
{
	struct reply r;
	struct ask *a;
	bool more = false;

	talk_get_reply(t, root, &r);
	a = ask_find(t, msg, r.req);
	if (a == NULL || proto_reply_of(a->msg) != msg)
		return;
	if (r.err != E_OK) {
		ask_fail(t, (size_t)(a - t->ask), r.err, r.errmsg, r.retry_ms);
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
		ask_drop(t, (size_t)(a - t->ask));
	t->ops.changed(t->arg);
}
