/* cmd_group.c - CREATE_GROUP, ADD_GROUP (join), DEL_GROUP (leave or dissolve), GROUP_LIST. */
#include "worker/cmd.h"

#include <string.h>

#include "worker/greet.h"
#include "worker/group.h"
#include "worker/store.h"

#define LIST_GROUPS_MAX 60u		/* groups in one reply */
#define LIST_VALUES (PROTO_VALUES_MAX - 12)
#define LIST_USERS ((LIST_VALUES - 6) / 5)

/* ---- create ---- */

static void created(struct store_job *j, void *arg)
{
	char echo[PROTO_REQ_MAX * 6 + 3];
	struct conn *c = cmd_job_conn(j, echo);
	struct json_out w;

	(void)arg;
	if (c == NULL)
		return;
	if (j->rc != STORE_OK) {
		enum proto_errno e = j->rc == STORE_CONFLICT ? E_REFUSED : cmd_store_errno(j->rc);

		cmd_reply(c, MSG_CREATE_GROUP_ACK, echo, e, e == E_REFUSED ?
		    "this group name is taken" : e == E_SIZE ? "you are in too many groups" : NULL, 0);
		return;
	}
	(void)group_enter(c, j->group, 0, 0, 0);
	if (c->r->dialect == DIALECT_CLASSIC)
		return;
	cmd_open(c, &w, MSG_CREATE_GROUP_ACK, echo);
	json_kv_int(&w, "errno", 0);
	json_kv_str(&w, "errmsg", "");
	json_kv_int(&w, "groupid", j->group);
	cmd_send(c, &w);
}

void cmd_create_group(struct conn *c, const struct req *rq)
{
	struct json_val name, desc;
	char name_text[STORE_NAME], desc_text[STORE_DESC] = "";
	size_t len = 0, desc_len = 0;
	const char *why = NULL;
	enum proto_errno e = E_SIZE;

	(void)json_get(rq->json, &rq->root, "groupname", &name);
	if (json_text(&name, name_text, sizeof name_text, &len) != JSON_OK ||
	    json_utf8_chars(name_text, len) > PROTO_NAME_CHARS) {
		why = "a group name has at most 50 characters";
	} else if (len == 0 || json_has_control(name_text, len)) {
		e = E_MALFORMED;
		why = "a group name has 1 to 50 characters and no control characters";
	} else if (json_get(rq->json, &rq->root, "groupdesc", &desc) &&
	    (json_text(&desc, desc_text, sizeof desc_text, &desc_len) != JSON_OK ||
	    json_utf8_chars(desc_text, desc_len) > PROTO_DESC_CHARS)) {
		why = "a group description has at most 200 characters";
	}
	if (why != NULL) {
		cmd_reply(c, MSG_CREATE_GROUP_ACK, rq->echo, e, why, 0);
		return;
	}
	struct store_job *j = cmd_job(c, STORE_GROUP_ADD, rq, created);
	memcpy(j->name, name_text, len + 1);
	memcpy(j->desc, desc_text, desc_len + 1);
	j->limit = wk->conf.groups_max;
	store_submit(wk->store, j);
}

/* ---- join ---- */

static void show_joined(struct store_job *j)
{
	char echo[PROTO_REQ_MAX * 6 + 3];
	struct conn *c = cmd_job_conn(j, echo);
	struct json_out w;

	if (c == NULL)
		return;
	if (j->rc != STORE_OK || j->ngroups == 0) {
		enum proto_errno e = j->rc == STORE_OK ? E_AGAIN : cmd_store_errno(j->rc);

		cmd_reply(c, MSG_JOIN_GROUP_ACK, echo, e, e == E_UNKNOWN ? "no such group" :
		    e == E_ALREADY ? "you are a member already" :
		    e == E_SIZE ? "the group is full, or you are in too many" : NULL, 0);
		return;
	}
	(void)group_enter(c, j->groups[0].id, j->groups[0].cursor, j->groups[0].cursor, 0);
	/* What was said between the joining and this moment was hinted at before we listened. */
	group_hints_since(c, j->upto);
	if (c->fd < 0 || c->r->dialect == DIALECT_CLASSIC)
		return;
	cmd_open(c, &w, MSG_JOIN_GROUP_ACK, echo);
	json_kv_int(&w, "errno", 0);
	json_kv_str(&w, "errmsg", "");
	json_key(&w, "group");
	greet_group(&w, c, &j->groups[0], j->people, j->npeople, LIST_USERS);
	cmd_send(c, &w);
}

static void joined(struct store_job *j, void *arg)
{
	(void)arg;
	greet_learn(j, show_joined);
}

void cmd_join_group(struct conn *c, const struct req *rq)
{
	uint32_t id;
	char name[STORE_NAME];

	if (!cmd_ref(rq, "groupid", &id, name)) {
		cmd_reply(c, MSG_JOIN_GROUP_ACK, rq->echo, E_UNKNOWN, "no such group", 0);
		return;
	}
	struct store_job *j = cmd_job(c, STORE_GROUP_JOIN, rq, joined);
	j->group = id;
	memcpy(j->name, name, sizeof name);
	j->limit = wk->conf.groups_max;
	j->limit2 = wk->conf.group_members_max;
	j->upto = group_hint_mark();
	store_submit(wk->store, j);
}

/* ---- leave, dissolve ---- */

static void left(struct store_job *j, void *arg)
{
	char echo[PROTO_REQ_MAX * 6 + 3];
	struct conn *c = cmd_job_conn(j, echo);
	struct member *g;

	(void)arg;
	if (j->rc == STORE_OK && j->dissolved)
		group_dissolved(j->group);
	if (c == NULL)
		return;
	if (j->rc == STORE_OK && (g = group_of(c, j->group)) != NULL) {
		if (g->sent >= g->want && g->acked >= g->sent)
			group_quit(c, j->group);
		else
			g->flags |= GM_LEFT;	/* what was said before is still its due */
	}
	cmd_reply(c, MSG_DEL_GROUP_ACK, echo, j->rc == STORE_DENIED ? E_DENIED :
	    cmd_store_errno(j->rc), j->rc == STORE_GONE ? "no such group" :
	    j->rc == STORE_DENIED ? "you are not a member of this group" : NULL, 0);
}

void cmd_del_group(struct conn *c, const struct req *rq)
{
	uint32_t id;
	char name[STORE_NAME];

	if (!cmd_ref(rq, "groupid", &id, name)) {
		cmd_reply(c, MSG_DEL_GROUP_ACK, rq->echo, E_UNKNOWN, "no such group", 0);
		return;
	}
	struct store_job *j = cmd_job(c, STORE_GROUP_LEAVE, rq, left);
	j->group = id;
	memcpy(j->name, name, sizeof name);
	store_submit(wk->store, j);
}

/* ---- list ---- */

static void show_list(struct store_job *j)
{
	char echo[PROTO_REQ_MAX * 6 + 3];
	struct conn *c = cmd_job_conn(j, echo);
	struct json_out w;
	size_t max = wk->conf.max_frame + PROTO_FRAME_EXTRA - 4096;
	uint32_t left_values = LIST_VALUES, mine = 0;

	if (c == NULL)
		return;
	if (j->rc != STORE_OK && !(j->rc == STORE_GONE && j->op == STORE_GROUPS)) {
		enum proto_errno e = cmd_store_errno(j->rc);

		cmd_reply(c, MSG_GROUP_LIST_ACK, echo, e, e == E_UNKNOWN ? "no such group" :
		    e == E_DENIED ? "you are not a member of this group" : NULL, 0);
		return;
	}
	for (uint32_t i = 0; i < j->ngroups; i++)
		mine += j->groups[i].mine;
	cmd_open(c, &w, MSG_GROUP_LIST_ACK, echo);
	json_kv_int(&w, "errno", 0);
	json_kv_str(&w, "errmsg", "");
	json_key(&w, "groups");
	json_open(&w, '[');
	for (uint32_t i = 0; i < j->ngroups && left_values >= 6 && w.len < max; i++) {
		struct json_out before = w;
		uint32_t share, n;

		if (!j->groups[i].mine)
			continue;
		share = left_values / mine > 6 ? (left_values / mine - 6) / 5 : 0;
		if (mine > 1)
			mine--;
		n = greet_group(&w, c, &j->groups[i], j->people, j->npeople,
		    share > PROTO_USERS_MAX ? PROTO_USERS_MAX : share);
		if (w.len > max && i > 0) {
			w = before;
			break;
		}
		left_values -= left_values > 6 + 5 * n ? 6 + 5 * n : left_values;
	}
	json_close(&w, ']');
	cmd_send(c, &w);
}

static void listed(struct store_job *j, void *arg)
{
	(void)arg;
	greet_learn(j, show_list);
}

void cmd_group_list(struct conn *c, const struct req *rq)
{
	struct json_val v;
	uint32_t id;
	char name[STORE_NAME];
	int64_t after = 0;
	bool one = json_get(rq->json, &rq->root, "groupid", &v);

	if (one && !cmd_ref(rq, "groupid", &id, name)) {
		cmd_reply(c, MSG_GROUP_LIST_ACK, rq->echo, E_UNKNOWN, "no such group", 0);
		return;
	}
	struct store_job *j = cmd_job(c, one ? STORE_MEMBERS : STORE_GROUPS, rq, listed);
	if (json_get(rq->json, &rq->root, "after", &v))
		(void)json_int(&v, &after);
	j->after = after > 0 ? (uint64_t)after : 0;
	j->limit = one ? LIST_USERS : LIST_GROUPS_MAX;
	j->limit2 = LIST_USERS;
	if (one) {
		j->group = id;
		memcpy(j->name, name, sizeof name);
	}
	store_submit(wk->store, j);
}
