/* cmd_friend.c - ADD_FRIEND, DEL_FRIEND, FRIEND_LIST. */
#include "worker/cmd.h"

#include <string.h>

#include "worker/greet.h"
#include "worker/presence.h"
#include "worker/store.h"

#define LIST_LIMIT 120u			/* friends in one reply: 4 values each */

/* `friendid` or `groupid`: an id into *ID_R, or a name into NAME. False: nobody can be meant. */
bool cmd_ref(const struct req *rq, const char *member, uint32_t *id_r, char *name)
{
	struct json_val v;
	int64_t n;

	*id_r = 0;
	*name = '\0';
	if (!json_get(rq->json, &rq->root, member, &v))
		return false;
	if (v.type == JSON_STRING)
		return json_text(&v, name, STORE_NAME, NULL) == JSON_OK && *name != '\0';
	if (json_int(&v, &n) != JSON_OK || n < 1 || n > PROTO_ID_MAX)
		return false;
	*id_r = (uint32_t)n;
	return true;
}

static void show_added(struct store_job *j)
{
	char echo[PROTO_REQ_MAX * 6 + 3];
	struct conn *c = cmd_job_conn(j, echo);
	struct store_person p = { .id = j->user.id, .name = j->user.name };
	struct json_out w;
	bool online;

	if (c == NULL)
		return;
	if (j->rc != STORE_OK) {
		enum proto_errno e = cmd_store_errno(j->rc);

		cmd_reply(c, MSG_ADD_FRIEND_ACK, echo, e, e == E_UNKNOWN ? "no such user" :
		    e == E_ALREADY ? "already on your friend list" :
		    e == E_SIZE ? "your friend list is full" : NULL, 0);
		return;
	}
	if (!presence_watches(c, p.id))
		(void)presence_add(c, p.id, presence_state(p.id));
	if (c->r->dialect == DIALECT_CLASSIC)
		return;
	cmd_open(c, &w, MSG_ADD_FRIEND_ACK, echo);
	json_kv_int(&w, "errno", 0);
	json_kv_str(&w, "errmsg", "");
	json_key(&w, "friend");
	greet_friend(&w, c, &p, &online);
	cmd_send(c, &w);
}

static void added(struct store_job *j, void *arg)
{
	(void)arg;
	greet_learn(j, show_added);
}

void cmd_add_friend(struct conn *c, const struct req *rq)
{
	uint32_t id;
	char name[STORE_NAME];

	if (!cmd_ref(rq, "friendid", &id, name)) {
		cmd_reply(c, MSG_ADD_FRIEND_ACK, rq->echo, E_UNKNOWN, "no such user", 0);
		return;
	}
	struct store_job *j = cmd_job(c, STORE_FRIEND_ADD, rq, added);
	j->other = id;
	memcpy(j->name, name, sizeof name);
	j->limit = wk->conf.friends_max;
	store_submit(wk->store, j);
}

static void deleted(struct store_job *j, void *arg)
{
	char echo[PROTO_REQ_MAX * 6 + 3];
	struct conn *c = cmd_job_conn(j, echo);

	(void)arg;
	if (c == NULL)
		return;
	if (j->rc == STORE_OK)
		presence_del(c, j->user.id);
	cmd_reply(c, MSG_DEL_FRIEND_ACK, echo, cmd_store_errno(j->rc), j->rc == STORE_GONE ?
	    "no such user on your friend list" : NULL, 0);
}

void cmd_del_friend(struct conn *c, const struct req *rq)
{
	uint32_t id;
	char name[STORE_NAME];

	if (!cmd_ref(rq, "friendid", &id, name)) {
		cmd_reply(c, MSG_DEL_FRIEND_ACK, rq->echo, E_UNKNOWN, "no such user", 0);
		return;
	}
	struct store_job *j = cmd_job(c, STORE_FRIEND_DEL, rq, deleted);
	j->other = id;
	memcpy(j->name, name, sizeof name);
	store_submit(wk->store, j);
}

static void show_list(struct store_job *j)
{
	char echo[PROTO_REQ_MAX * 6 + 3];
	struct conn *c = cmd_job_conn(j, echo);
	struct json_out w;
	size_t max;
	bool online;

	if (c == NULL)
		return;
	if (j->rc != STORE_OK && j->rc != STORE_GONE) {
		cmd_reply(c, MSG_FRIEND_LIST_ACK, echo, E_AGAIN, NULL, 0);
		return;
	}
	max = wk->conf.max_frame + PROTO_FRAME_EXTRA - 2048;
	cmd_open(c, &w, MSG_FRIEND_LIST_ACK, echo);
	json_kv_int(&w, "errno", 0);
	json_kv_str(&w, "errmsg", "");
	json_key(&w, "friends");
	json_open(&w, '[');
	for (uint32_t i = 0; i < j->npeople && w.len < max; i++)
		greet_friend(&w, c, &j->people[i], &online);
	json_close(&w, ']');
	cmd_send(c, &w);
}

static void listed(struct store_job *j, void *arg)
{
	(void)arg;
	greet_learn(j, show_list);
}

void cmd_friend_list(struct conn *c, const struct req *rq)
{
	struct store_job *j = cmd_job(c, STORE_FRIENDS, rq, listed);
	struct json_val v;
	int64_t after = 0;

	if (json_get(rq->json, &rq->root, "after", &v))
		(void)json_int(&v, &after);
	j->after = after > 0 ? (uint64_t)after : 0;
	j->limit = LIST_LIMIT;
	store_submit(wk->store, j);
}
