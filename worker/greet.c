/*
 * greet.c - gathers and writes LOGIN_MSG_ACK.
 *
 * The three lists are written into buffers of their own first, each with its share of the frame,
 * in the order in which the dialect favours them; then the frame is put together.
 */
#include "worker/greet.h"

#include <stdlib.h>
#include <string.h>

#include "worker/auth.h"
#include "worker/base/clock.h"
#include "worker/base/log.h"
#include "worker/cluster.h"
#include "worker/cmd.h"
#include "worker/group.h"
#include "worker/login.h"
#include "worker/presence.h"
#include "worker/session.h"
#include "worker/store.h"

#define PART        (96u << 10)
#define MSGS        128u		/* messages in a greeting */
#define RANGE_ROWS  32u
#define RANGES      16u			/* groups whose missed messages are read before the greeting */
#define MSG_VALUES  160u		/* values that messages may be sure of, where there are many */
#define GROUP_VALUES 120u

struct greet {
	uint64_t mark;
	char echo[PROTO_REQ_MAX * 6 + 3];
	struct store_person *people;
	struct store_group *groups;
	uint32_t npeople, ngroups, user, epoch, next, ranges;
	uint64_t last_row;		/* highest offline row read */
	bool more;
	uint32_t refs[MSGS], nrefs;	/* entries, sorted by time before they are written */
};

struct budget { uint32_t values; size_t bytes; };

static char parts[3][PART];

void greet_abort(struct conn *c)
{
	struct greet *g = c->greet;

	if (g == NULL)
		return;
	for (uint32_t i = 0; i < g->nrefs; i++)
		msg_free(g->refs[i]);
	for (uint32_t i = 0; i < g->npeople; i++)
		free(g->people[i].name);
	free(g->people);
	free(g->groups);
	free(g);
	c->greet = NULL;
}

void greet_mark(struct conn *c, uint64_t mark)
{
	greet_abort(c);
	c->greet = calloc(1, sizeof *c->greet);
	ensure(c->greet != NULL);
	c->greet->mark = mark;
}

/* ---- elements ---- */

static const char *state_text(bool online)
{
	return online ? "online" : "offline";
}

/* In the classic dialect an element is a string that holds the object's text. */
static void element(struct json_out *w, const struct conn *c, const struct json_out *obj)
{
	if (c->r->dialect == DIALECT_CLASSIC)
		json_put_text(w, obj->buf, obj->len);
	else
		json_put_raw(w, obj->buf, obj->len);
	if (obj->over)
		w->over = true;
}

void greet_friend(struct json_out *w, const struct conn *c, const struct store_person *p,
    bool *online_r)
{
	char buf[2048];
	struct json_out o;

	*online_r = presence_state(p->id);
	json_out_init(&o, buf, sizeof buf);
	json_open(&o, '{');
	json_kv_int(&o, "id", p->id);
	json_kv_str(&o, "name", p->name);
	json_kv_str(&o, "state", state_text(*online_r));
	json_close(&o, '}');
	element(w, c, &o);
}

static void group_user(struct json_out *w, const struct conn *c, const struct store_person *p)
{
	char buf[2048];
	struct json_out o;

	json_out_init(&o, buf, sizeof buf);
	json_open(&o, '{');
	json_kv_int(&o, "id", p->id);
	json_kv_str(&o, "name", p->name);
	json_kv_str(&o, "state", state_text(presence_state(p->id)));
	json_kv_str(&o, "role", p->creator ? "creator" : "normal");
	json_close(&o, '}');
	element(w, c, &o);
}

uint32_t greet_group(struct json_out *w, const struct conn *c, const struct store_group *g,
    const struct store_person *people, uint32_t npeople, uint32_t max_users)
{
	static char buf[PART];
	struct json_out o;
	uint32_t n = 0;
	bool plain = c->r->dialect == DIALECT_PLAIN;

	json_out_init(&o, buf, sizeof buf);
	json_open(&o, '{');
	json_kv_int(&o, "id", g->id);
	json_kv_str(&o, "groupname", g->name);
	json_kv_str(&o, "groupdesc", g->desc);
	if (plain)
		json_kv_int(&o, "members", g->members);
	json_key(&o, "users");
	json_open(&o, '[');
	for (uint32_t i = 0; i < npeople && n < max_users; i++)
		if (people[i].group == g->id) {
			group_user(&o, c, &people[i]);
			n++;
		}
	json_close(&o, ']');
	json_close(&o, '}');
	element(w, c, &o);
	return n;
}

/* ---- the lists, each within what is left ---- */

static bool classic(const struct conn *c)
{
	return c->r->dialect == DIALECT_CLASSIC;
}

/* Values of a stored message's object: members are counted by the commas between them. */
static uint32_t values_of(const char *text, size_t len)
{
	uint32_t n = 2;
	bool in_string = false;

	for (size_t i = 0; i < len; i++) {
		if (in_string) {
			if (text[i] == '\\')
				i++;
			else if (text[i] == '"')
				in_string = false;
		} else if (text[i] == '"') {
			in_string = true;
		} else if (text[i] == ',' || text[i] == '{' || text[i] == '[') {
			n++;
		}
	}
	return n;
}

/* Did the element just written fit? If not, it is taken back. */
static bool fits(struct json_out *w, const struct json_out *before, struct budget *b,
    uint32_t values)
{
	size_t grown = w->len - before->len;

	if (w->over || grown > b->bytes || values > b->values) {
		*w = *before;
		return false;
	}
	b->bytes -= grown;
	b->values -= values;
	return true;
}

static void put_friends(struct json_out *w, struct conn *c, struct greet *g, struct budget *b,
    const struct budget *keep)
{
	bool online, room = true;

	for (uint32_t i = 0; i < g->npeople; i++) {
		struct json_out before = *w;

		if (g->people[i].group != 0)
			continue;
		online = false;
		if (room && b->values > keep->values && b->bytes > keep->bytes) {
			greet_friend(w, c, &g->people[i], &online);
			room = fits(w, &before, b, classic(c) ? 1 : 4);
		}
		(void)presence_add(c, g->people[i].id, online);
	}
}

static void put_groups(struct json_out *w, struct conn *c, struct greet *g, struct budget *b,
    const struct budget *keep)
{
	uint32_t mine = 0, users;

	for (uint32_t i = 0; i < g->ngroups; i++)
		mine += g->groups[i].mine;
	for (uint32_t i = 0; i < g->ngroups; i++) {
		struct json_out before = *w;
		uint32_t share;

		if (!g->groups[i].mine)
			continue;
		if (b->values < keep->values + 6 || b->bytes <= keep->bytes)
			return;
		share = classic(c) ? PROTO_USERS_MAX :
		    ((b->values - keep->values) / mine - (((b->values - keep->values) / mine > 6) ? 6 : 0)) / 5;
		mine--;
		if (share > PROTO_USERS_MAX)
			share = PROTO_USERS_MAX;
		for (;; share /= 2) {		/* long names may not fit: fewer of them */
			users = greet_group(w, c, &g->groups[i], g->people, g->npeople, share);
			if (fits(w, &before, b, classic(c) ? 1 : 6 + 5 * users))
				break;
			if (users == 0)
				return;
		}
	}
}

/* Messages in order until one does not fit; the rest is read again from the store. */
static uint32_t put_messages(struct json_out *w, struct conn *c, struct greet *g,
    struct budget *b)
{
	uint32_t i;

	for (i = 0; i < g->nrefs; i++) {
		struct msg *m = msg_at(g->refs[i]);
		struct json_out before = *w, o;
		uint32_t n = c->r->ack ? c->r->sent_n + i + 1 : 0;
		size_t len;

		if (msg_frame_max(m) + 64 > SCRATCH / 2)
			break;
		len = msg_render(wk->scratch, m, (enum proto_dialect)c->r->dialect, n, '\x01');
		json_out_init(&o, wk->scratch, SCRATCH);
		o.len = len;
		element(w, c, &o);
		if (!fits(w, &before, b, classic(c) ? 1 : values_of(wk->scratch, len)))
			break;
	}
	return i;
}

/* ---- the frame ---- */

/* Entries that are part of the greeting become held; those that are not are forgotten. */
static void settle_messages(struct conn *c, struct greet *g, uint32_t used)
{
	for (uint32_t i = 0; i < g->nrefs; i++) {
		uint32_t ref = g->refs[i];
		struct msg *m = msg_at(ref);

		if (i >= used) {
			if (m->kind == MK_ROW)
				c->behind = true;
			msg_free(ref);
			continue;
		}
		if (m->kind == MK_ROW) {
			c->drained = m->row > c->drained ? m->row : c->drained;
		} else {
			struct member *k = group_of(c, m->rcpt);
			if (k != NULL && k->sent < m->row)
				k->sent = m->row;
		}
		session_hold(c, ref, c->r->ack ? ++c->r->sent_n : 0);
	}
	g->nrefs = 0;
}

static void enter_groups(struct conn *c, const struct greet *g)
{
	(void)group_reserve(c, g->ngroups);
	/* A group left and joined again comes twice: the present membership is the one to follow. */
	for (uint32_t i = 0; i < g->ngroups; i++)
		if (g->groups[i].mine)
			(void)group_enter(c, g->groups[i].id, g->groups[i].cursor,
			    g->groups[i].head, 0);
	for (uint32_t i = 0; i < g->ngroups; i++)
		if (!g->groups[i].mine && group_of(c, g->groups[i].id) == NULL)
			(void)group_enter(c, g->groups[i].id, g->groups[i].cursor,
			    g->groups[i].head, GM_LEFT);
}

static void budgets(const struct conn *c, const struct greet *g, struct budget *all,
    struct budget *keep_groups, struct budget *keep_msgs)
{
	uint32_t max = wk->conf.max_frame < 65536 ? wk->conf.max_frame : 65536;
	uint32_t ngroups = 0, msg_values = 0;
	size_t msg_bytes = 0;

	*all = classic(c) ? (struct budget){ 4096, PROTO_CLASSIC_READ - 100 } :
	    (struct budget){ PROTO_VALUES_MAX - 12, max + PROTO_FRAME_EXTRA - 1024 };
	all->bytes -= strlen(g->echo) + 400 * !classic(c);
	for (uint32_t i = 0; i < g->ngroups; i++)
		ngroups += g->groups[i].mine;
	for (uint32_t i = 0; i < g->nrefs; i++) {
		msg_values += 12;
		msg_bytes += msg_at(g->refs[i])->body_len + 40;
	}
	keep_msgs->values = msg_values < MSG_VALUES ? msg_values : MSG_VALUES;
	keep_msgs->bytes = msg_bytes < all->bytes / 3 ? msg_bytes : all->bytes / 3;
	keep_groups->values = ngroups * 11 < GROUP_VALUES ? ngroups * 11 : GROUP_VALUES;
	keep_groups->bytes = (size_t)ngroups * 400 < all->bytes / 3 ? (size_t)ngroups * 400 :
	    all->bytes / 3;
}

static void put_part(struct json_out *w, const char *name, const struct json_out *part)
{
	json_key(w, name);
	json_open(w, '[');
	json_put_raw(w, part->buf, part->len);
	json_close(w, ']');
}

static void finish(struct conn *c)
{
	struct greet *g = c->greet;
	struct budget all, keep_g, keep_m, none = { 0, 0 }, both;
	struct json_out friends, groups, msgs, w;
	char token[AUTH_TOKEN_BYTES];
	uint32_t used;
	size_t len;
	const char *name = login_name(c, &len);

	json_out_init(&friends, parts[0], PART);
	json_out_init(&groups, parts[1], PART);
	json_out_init(&msgs, parts[2], PART);
	enter_groups(c, g);
	budgets(c, g, &all, &keep_g, &keep_m);
	all.bytes -= len;
	if (classic(c)) {
		used = put_messages(&msgs, c, g, &all);
		put_groups(&groups, c, g, &all, &none);
		put_friends(&friends, c, g, &all, &none);
	} else {
		both = (struct budget){ keep_g.values + keep_m.values, keep_g.bytes + keep_m.bytes };
		put_friends(&friends, c, g, &all, &both);
		put_groups(&groups, c, g, &all, &keep_m);
		used = put_messages(&msgs, c, g, &all);
	}
	if (g->more)
		c->behind = true;
	uint32_t tail_before = c->r->held_tail;
	settle_messages(c, g, used);
	cmd_open(c, &w, MSG_LOGIN_ACK, g->echo);
	json_kv_int(&w, "errno", 0);
	json_kv_str(&w, "errmsg", "");
	json_kv_int(&w, "id", g->user);
	json_kv_text(&w, "name", name, len);
	put_part(&w, "friends", &friends);
	put_part(&w, "groups", &groups);
	put_part(&w, "offlinemsg", &msgs);
	if (!classic(c) && wk->keys_ready) {
		auth_token_make(wk->keys, g->user, g->epoch, clock_wall_ms(), wk->conf.token_days,
		    token);
		json_kv_str(&w, "token", token);
	}
	cmd_send(c, &w);
	if (c->fd >= 0 && used > 0)
		session_held_until(c, tail_before != CHUNK_NONE ?
		    chunk_at(wk->slot, tail_before)->next : c->r->held_head);
	COUNT_N(messages_out, used);
	if (used > 0 && c->r->ack)
		session_confirm_arm(c);
}

static void done(struct conn *c)
{
	uint64_t mark = c->greet->mark;
	uint32_t user = c->greet->user;

	finish(c);
	if (c->fd < 0)
		return;
	login_abort(c);			/* and the greeting with it */
	COUNT(logins);
	atomic_fetch_add_explicit(&wk->s->sessions, 1, memory_order_relaxed);
	session_greeted(c);
	group_hints_since(c, mark);
	if (classic(c) && !c->behind && !timer_is_set(&c->drain))
		group_catch_up(c);
	else if (!classic(c))
		group_catch_up(c);
	presence_online(user);
	conn_rearm(c);
	conn_unblock(c);
}

/* ---- who is online elsewhere ---- */

#define CLASSIC_USERS 14u		/* more of them, or of groups, are not in a classic frame */

/*
 * The members that may be shown. A group gets at most its share of the values of a frame among the
 * groups from it on, in a classic greeting all that the bytes hold. People stand by group, in the
 * order of the groups.
 */
static uint32_t shown_members(const struct store_group *groups, uint32_t ngroups,
    const struct store_person *people, uint32_t npeople, bool in_classic, uint32_t *ids)
{
	uint32_t n = 0, k = 0, group = 0, left = 0, mine = 0;

	for (uint32_t i = 0; i < ngroups; i++)
		mine += groups[i].mine;
	for (uint32_t i = 0; i < npeople; i++) {
		if (people[i].group == 0)
			continue;
		if (people[i].group != group) {
			group = people[i].group;
			left = mine > k ? PROTO_VALUES_MAX / 5 / (mine - k) : 0;
			if (in_classic)
				left = k < CLASSIC_USERS ? CLASSIC_USERS : 0;
			k++;
		}
		if (left > 0) {
			ids[n++] = people[i].id;
			left--;
		}
	}
	return n;
}

/* Friends and members to ask for; malloc'ed, NULL where there is nobody or no memory. */
static uint32_t *gather(const struct store_group *groups, uint32_t ngroups,
    const struct store_person *people, uint32_t npeople, bool in_classic, uint32_t *n_r)
{
	uint32_t *ids = npeople > 0 ? malloc(npeople * sizeof *ids) : NULL, n = 0;

	*n_r = 0;
	if (ids == NULL)
		return NULL;
	for (uint32_t i = 0; i < npeople; i++)
		if (people[i].group == 0)
			ids[n++] = people[i].id;
	*n_r = n + shown_members(groups, ngroups, people, npeople, in_classic, ids + n);
	return ids;
}

struct learning { struct store_job *job; void (*then)(struct store_job *); };

static void learnt(uint64_t tag)
{
	struct learning *g = (struct learning *)(uintptr_t)tag;

	g->then(g->job);
	store_job_free(g->job);
	free(g);
}

void greet_learn(struct store_job *job, void (*then)(struct store_job *))
{
	struct learning *g;
	uint32_t *ids, n;

	if (job->rc != STORE_OK || !cluster_up() || (g = malloc(sizeof *g)) == NULL) {
		then(job);
		return;
	}
	*g = (struct learning){ store_job_take(job), then };
	if (job->op == STORE_FRIEND_ADD) {
		presence_learn(&job->user.id, 1, learnt, (uintptr_t)g);
		return;
	}
	ids = gather(g->job->groups, g->job->ngroups, g->job->people, g->job->npeople, false, &n);
	presence_learn(ids, n, learnt, (uintptr_t)g);
	free(ids);
}

static void states_known(uint64_t tag)
{
	struct conn *c = conn_get((uint32_t)(tag >> 32), (uint32_t)tag);

	if (c != NULL && c->greet != NULL && c->state == CONN_OPEN)
		done(c);
}

static void learn(struct conn *c)
{
	struct greet *g = c->greet;
	uint32_t *ids = NULL, n = 0;

	if (cluster_on())
		ids = gather(g->groups, g->ngroups, g->people, g->npeople, classic(c), &n);
	presence_learn(ids, n, states_known, (uint64_t)c->rec << 32 | c->gen);
	free(ids);
}

/* ---- gathering ---- */

static int by_time(const void *a, const void *b)
{
	const struct msg *x = msg_at(*(const uint32_t *)a), *y = msg_at(*(const uint32_t *)b);

	if (x->since_ms != y->since_ms)
		return x->since_ms < y->since_ms ? -1 : 1;
	return x->order < y->order ? -1 : x->order > y->order;
}

/*
 * Sorted by time among sources, but never against the order of one source (the store's rows, one
 * group): there the clocks of several workers do not count. since_ms is the sort key until then.
 */
static bool add_entry(struct conn *c, struct greet *g, enum msg_kind kind,
    const struct store_msg *s, uint32_t rcpt, uint64_t *key)
{
	uint32_t ref = msg_from_text(kind, c->rec, c->gen, s->body, s->len, s->sender, s->mid,
	    s->ts, s->row);

	if (ref == CHUNK_NONE)
		return false;		/* short of memory: the rest is read again later */
	if (ref == MSG_NOT_OURS) {
		log_error("user %u: stored message %llu cannot be delivered", g->user,
		    (unsigned long long)s->row);
		return true;
	}
	*key = s->ts > *key ? s->ts : *key;
	msg_at(ref)->rcpt = rcpt;
	msg_at(ref)->since_ms = *key;
	g->refs[g->nrefs++] = ref;
	return true;
}

static void next_range(struct conn *c);

static void ranged(struct store_job *j, void *arg)
{
	struct conn *c = conn_get((uint32_t)j->tag, (uint32_t)j->tag2);
	struct greet *g = c != NULL ? c->greet : NULL;
	uint64_t key = 0;

	(void)arg;
	if (g == NULL || c->state != CONN_OPEN)
		return;
	for (uint32_t i = 0; i < j->nmsgs && g->nrefs < MSGS; i++) {
		if (j->msgs[i].sender == g->user)
			continue;
		if (!add_entry(c, g, MK_GREF, &j->msgs[i], j->group, &key))
			break;
	}
	next_range(c);
}

static void next_range(struct conn *c)
{
	struct greet *g = c->greet;

	while (g->next < g->ngroups && g->ranges < RANGES && g->nrefs < MSGS) {
		struct store_group *k = &g->groups[g->next++];

		if (k->head <= k->cursor)
			continue;
		struct store_job *j = store_job_new(STORE_RANGE, ranged, NULL);
		j->tag = c->rec;
		j->tag2 = c->gen;
		j->group = k->id;
		j->after = k->cursor;
		j->upto = k->head;
		j->limit = MSGS - g->nrefs < RANGE_ROWS ? MSGS - g->nrefs : RANGE_ROWS;
		j->bytes = 32768;
		g->ranges++;
		store_submit(wk->store, j);
		return;
	}
	qsort(g->refs, g->nrefs, sizeof *g->refs, by_time);
	learn(c);
}

void greet_start(struct conn *c, struct store_job *job, const char *echo)
{
	struct greet *g = c->greet;
	uint64_t key = 0;

	memcpy(g->echo, echo, strlen(echo) + 1);
	g->user = job->user.id;
	g->epoch = job->user.epoch;
	g->people = job->people;
	g->npeople = job->npeople;
	g->groups = job->groups;
	g->ngroups = job->ngroups;
	g->more = job->more;
	job->people = NULL;
	job->groups = NULL;
	job->npeople = job->ngroups = 0;
	for (uint32_t i = 0; i < job->nmsgs && g->nrefs < MSGS; i++)
		if (!add_entry(c, g, MK_ROW, &job->msgs[i], g->user, &key))
			break;
	if (job->nmsgs > g->nrefs)
		g->more = true;
	next_range(c);
}
