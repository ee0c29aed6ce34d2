#include "worker/store_run.h"

#include <stdio.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "sql/friends.h"
#include "sql/groups.h"
#include "sql/messages.h"
#include "sql/posts.h"
#include "sql/users.h"

_Static_assert(STORE_NAME == DB_NAME && STORE_DESC == DB_DESC && STORE_HASH == DB_HASH,
	       "texts are copied whole");

enum {
	DAY_MS = 24 * 3600 * 1000,
	KEEP_POSTS_MS = DAY_MS,		/* a resend within it is answered with its first number */
	PURGE_ROWS = 1000,		/* a step of house-keeping: some ten milliseconds */
	JOIN_MEMBERS = 200
};

struct runner {
	struct db *db;
	struct store_limits load;
	uint32_t keep_days;
	int32_t purge_from;		/* where house-keeping goes on */
};

/* ---- the connection ---- */

static struct db *connection_new(const struct store_setup *s, char *why, size_t cap)
{
	int ms = (int)s->timeout_seconds * 1000;
	struct db_options opt = { .password = s->password, .connect_ms = ms, .io_ms = ms,
				  .busy_ms = ms, .sync_normal = !s->sqlite_full };
	struct db *db = NULL;

	return db_open(s->url, &opt, &db, why, cap) == DB_OK ? db : NULL;
}

struct runner *runner_new(const struct store_setup *setup, char *why, size_t cap)
{
	struct runner *r = calloc(1, sizeof *r);

	if (r == NULL) {
		snprintf(why, cap, "out of memory");
		return NULL;
	}
	r->load = setup->load;
	r->keep_days = setup->keep_days;
	r->db = connection_new(setup, why, cap);
	if (r->db == NULL) {
		free(r);
		return NULL;
	}
	return r;
}

void runner_free(struct runner *r)
{
	if (r == NULL)
		return;
	db_close(r->db);
	free(r);
}

void runner_relax(struct runner *r)
{
	db_relax(r->db);
	malloc_trim(0);
}

bool runner_connected(const struct runner *r)
{
	return db_connected(r->db);
}

const char *runner_error(const struct runner *r)
{
	return db_errmsg(r->db);
}

void runner_set_keep_days(struct runner *r, uint32_t days)
{
	r->keep_days = days;
}

static int rc_from_db(int rc)
{
	switch ((enum db_rc)rc) {
	case DB_OK: return STORE_OK;
	case DB_GONE: return STORE_GONE;
	case DB_CONFLICT: return STORE_CONFLICT;
	case DB_FULL: return STORE_FULL;
	case DB_DENIED: return STORE_DENIED;
	case DB_DOWN: return STORE_DOWN;
	case DB_UNSURE: return STORE_UNSURE;
	case DB_BUSY: return STORE_BUSY;
	case DB_BAD: break;
	}
	return STORE_BAD;
}

int runner_ping(struct runner *r)
{
	return rc_from_db(db_ping(r->db));
}

/* ---- results ---- */

/* Room for one more in an array of N; arrays grow to powers of two. Aborts without memory. */
static void *room(void *p, uint32_t n, size_t size)
{
	if (n != 0 && (n & (n - 1)) != 0)
		return p;
	p = realloc(p, (n == 0 ? 1 : (size_t)n * 2) * size);
	if (p == NULL)
		abort();
	return p;
}

static void *need(void *p)
{
	if (p == NULL)
		abort();
	return p;
}

struct out { struct store_job *job; uint32_t group, from; };

static void person_add(struct out *o, int32_t id, const char *name, bool creator)
{
	struct store_job *job = o->job;

	job->people = room(job->people, job->npeople, sizeof *job->people);
	job->people[job->npeople++] = (struct store_person){ .id = (uint32_t)id, .group = o->group,
		.creator = creator, .name = need(strdup(name)) };
}

static void friend_cb(void *arg, int32_t id, const char *name)
{
	person_add(arg, id, name, false);
}

static void member_cb(void *arg, int32_t id, const char *name, bool creator)
{
	person_add(arg, id, name, creator);
}

static struct store_group *group_add(struct store_job *job, const struct group_mine *m, bool mine)
{
	const struct group_row *g = &m->group;
	struct store_group *s;

	job->groups = room(job->groups, job->ngroups, sizeof *job->groups);
	s = &job->groups[job->ngroups++];
	*s = (struct store_group){ .id = (uint32_t)g->id, .creator = (uint32_t)g->creator,
		.members = (uint32_t)g->members, .head = (uint64_t)g->head,
		.cursor = (uint64_t)m->cursor, .mine = mine, .is_creator = mine && m->is_creator };
	memcpy(s->name, g->name, sizeof s->name);
	memcpy(s->desc, g->desc, sizeof s->desc);
	return s;
}

static void group_cb(void *arg, const struct group_mine *m)
{
	group_add(((struct out *)arg)->job, m, true);
}

/* Stays that are over; the others are in the list of groups already. */
static void stay_cb(void *arg, const struct db_backlog *b)
{
	if (b->left)
		group_add(((struct out *)arg)->job, &b->mine, false)->head = (uint64_t)b->upto;
}

static void message_cb(void *arg, const struct db_message *m)
{
	struct store_job *job = ((struct out *)arg)->job;
	struct store_msg *s;

	job->msgs = room(job->msgs, job->nmsgs, sizeof *job->msgs);
	s = &job->msgs[job->nmsgs++];
	s->row = (uint64_t)m->row;
	s->sender = (uint32_t)m->sender;
	memcpy(s->mid, m->mid, sizeof s->mid);
	s->ts = (uint64_t)m->ts;
	s->len = (uint32_t)m->len;
	s->body = need(malloc(m->len + 1));
	if (m->len > 0)
		memcpy(s->body, m->body, m->len);
	s->body[m->len] = '\0';
}

static void user_set(struct store_job *job, const struct user_row *u)
{
	job->user.id = (uint32_t)u->id;
	job->user.epoch = (uint32_t)u->epoch;
	memcpy(job->user.name, u->name, sizeof job->user.name);
	memcpy(job->user.hash, u->hash, sizeof job->user.hash);
}

/* Cuts a list that was asked for with one row too many. */
static void people_cut(struct store_job *job, uint32_t limit)
{
	job->more = job->npeople > limit;
	while (job->npeople > limit)
		free(job->people[--job->npeople].name);
}

static void groups_cut(struct store_job *job, uint32_t limit)
{
	job->more = job->ngroups > limit;
	if (job->more)
		job->ngroups = limit;
}

/* A limit as sql/ takes it, one row more so that "more" is known. */
static int one_more(uint32_t limit)
{
	return limit < 1000000 ? (int)limit + 1 : 1000001;
}

/* ---- the read lane ---- */

static int user_find(struct runner *r, uint32_t id, const char *name, struct user_row *u)
{
	return id != 0 ? db_user_by_id(r->db, (int32_t)id, u) : db_user_by_name(r->db, name, u);
}

/* The group that the job names, by id or by name, into job->group. */
static int group_find(struct runner *r, struct store_job *job)
{
	struct group_row g;
	int rc;

	if (job->group != 0)
		return DB_OK;
	rc = db_group_by_name(r->db, job->name, &g);
	if (rc == DB_OK)
		job->group = (uint32_t)g.id;
	return rc;
}

static int members_get(struct runner *r, struct store_job *job, uint32_t group, uint32_t after,
		       int limit)
{
	struct out o = { .job = job, .group = group };

	return limit > 0 ? db_group_members(r->db, (int32_t)group, (int32_t)after, limit, member_cb, &o)
			 : DB_OK;
}

static int get_user(struct runner *r, struct store_job *job)
{
	struct user_row u;
	int rc = user_find(r, job->id, job->name, &u);

	if (rc == DB_OK)
		user_set(job, &u);
	return rc;
}

/* Groups FROM.. of the job get their members. */
static int groups_fill(struct runner *r, struct store_job *job, uint32_t members)
{
	int rc = DB_OK;

	for (uint32_t i = 0; rc == DB_OK && i < job->ngroups; i++)
		if (job->groups[i].mine)
			rc = members_get(r, job, job->groups[i].id, 0, (int)members);
	return rc;
}

static int get_load(struct runner *r, struct store_job *job)
{
	const struct store_limits *l = &r->load;
	struct out o = { .job = job };
	int64_t since = db_now_ms() - (int64_t)r->keep_days * DAY_MS;
	int32_t id = (int32_t)job->id;
	int rc = get_user(r, job);

	if (rc == DB_OK)
		rc = db_friend_list(r->db, id, 0, (int)l->friends, friend_cb, &o);
	if (rc == DB_OK)
		rc = db_group_list(r->db, id, 0, (int)l->groups, group_cb, &o);
	if (rc == DB_OK)
		rc = groups_fill(r, job, l->members);
	if (rc == DB_OK)	/* the live stays are among them: room for those, too */
		rc = db_backlog(r->db, id, since, one_more(2 * l->groups), stay_cb, &o);
	if (rc == DB_OK)
		rc = db_offline_load(r->db, id, 0, (int)l->offline, l->offline_bytes, message_cb, &o,
				     &job->more);
	return rc;
}

static int get_friends(struct runner *r, struct store_job *job)
{
	struct out o = { .job = job };
	int rc = db_friend_list(r->db, (int32_t)job->id, (int32_t)job->after, one_more(job->limit),
				friend_cb, &o);

	people_cut(job, job->limit);
	return rc;
}

static int get_groups(struct runner *r, struct store_job *job)
{
	struct out o = { .job = job };
	int rc = db_group_list(r->db, (int32_t)job->id, (int32_t)job->after, one_more(job->limit),
			       group_cb, &o);

	groups_cut(job, job->limit);
	return rc == DB_OK ? groups_fill(r, job, job->limit2) : rc;
}

static int get_group(struct runner *r, struct store_job *job)
{
	struct group_mine m;
	bool member = false;
	int rc = group_find(r, job);

	if (rc == DB_OK)
		rc = db_group_view(r->db, (int32_t)job->group, (int32_t)job->id, &m, &member);
	if (rc == DB_OK)
		group_add(job, &m, member);
	return rc;
}

static int get_members(struct runner *r, struct store_job *job)
{
	int rc = get_group(r, job);

	if (rc == DB_OK && !job->groups[0].mine)
		return DB_DENIED;
	if (rc == DB_OK)
		rc = members_get(r, job, job->group, (uint32_t)job->after, one_more(job->limit));
	people_cut(job, job->limit);
	return rc;
}

static int get_offline(struct runner *r, struct store_job *job)
{
	struct out o = { .job = job };

	return db_offline_load(r->db, (int32_t)job->id, (int64_t)job->after, (int)job->limit,
			       job->bytes, message_cb, &o, &job->more);
}

static int get_range(struct runner *r, struct store_job *job)
{
	struct out o = { .job = job };

	return db_post_load(r->db, (int32_t)job->group, (int64_t)job->after, (int64_t)job->upto,
			    (int)job->limit, job->bytes, message_cb, &o, &job->more);
}

static int get_roster(struct runner *r, struct store_job *job)
{
	struct out o = { .job = job };
	int32_t *ids = need(malloc(job->nids * sizeof *ids + 1));
	int rc;

	for (uint32_t i = 0; i < job->nids; i++)
		ids[i] = job->ids[i] <= INT32_MAX ? (int32_t)job->ids[i] : 0;
	rc = db_user_names(r->db, ids, job->nids, friend_cb, &o);
	free(ids);
	return rc;
}

/* ---- the write lane, one by one ---- */

static int put_user(struct runner *r, struct store_job *job, bool again)
{
	struct user_row u;
	int32_t id = 0;
	int rc = db_user_add(r->db, job->name, job->hash, &id);

	/* Salted hashes are never the same twice: a row with ours is ours. */
	if (rc == DB_CONFLICT && again && db_user_by_name(r->db, job->name, &u) == DB_OK &&
	    strcmp(u.hash, job->hash) == 0 && u.hash[0] == '$') {
		user_set(job, &u);
		return DB_OK;
	}
	if (rc == DB_OK) {
		job->user.id = (uint32_t)id;
		memcpy(job->user.name, job->name, sizeof job->user.name);
		memcpy(job->user.hash, job->hash, sizeof job->user.hash);
	}
	return rc;
}

static int put_password(struct runner *r, struct store_job *job, bool again)
{
	int32_t epoch = 0;
	int rc = db_user_set_password(r->db, (int32_t)job->id, job->hash, &epoch);

	(void)again;
	if (rc == DB_OK) {
		job->user.id = job->id;
		job->user.epoch = (uint32_t)epoch;
	}
	return rc;
}

static int put_user_del(struct runner *r, struct store_job *job, bool again)
{
	int rc = db_user_del(r->db, (int32_t)job->id);

	return rc == DB_GONE && again ? DB_OK : rc;
}

static int put_import(struct runner *r, struct store_job *job, bool again)
{
	struct user_import *rows = need(calloc(job->nrows + 1, sizeof *rows));
	int rc;

	for (uint32_t i = 0; i < job->nrows; i++)
		rows[i] = (struct user_import){ .name = job->rows[i].name, .hash = job->rows[i].hash };
	rc = db_user_import(r->db, rows, job->nrows);
	for (uint32_t i = 0; i < job->nrows; i++) {
		struct user_row u;

		if (rows[i].rc == DB_CONFLICT && again &&
		    db_user_by_name(r->db, rows[i].name, &u) == DB_OK &&
		    strcmp(u.hash, rows[i].hash) == 0) {
			rows[i].rc = DB_OK;
			rows[i].id = u.id;
		}
		job->rows[i].rc = rc_from_db(rows[i].rc);
		job->rows[i].id = (uint32_t)rows[i].id;
	}
	free(rows);
	return rc;
}

static int put_friend(struct runner *r, struct store_job *job, bool again)
{
	struct user_row u;
	int rc = user_find(r, job->other, job->name, &u);

	if (rc == DB_OK) {
		user_set(job, &u);
		rc = db_friend_add(r->db, (int32_t)job->id, u.id, (int)job->limit);
	}
	return rc == DB_CONFLICT && again ? DB_OK : rc;
}

static int put_friend_del(struct runner *r, struct store_job *job, bool again)
{
	struct user_row u = { .id = (int32_t)job->other };
	int rc = DB_OK;

	if (u.id == 0)
		rc = db_user_by_name(r->db, job->name, &u);
	if (rc == DB_OK) {
		job->user.id = (uint32_t)u.id;
		rc = db_friend_del(r->db, (int32_t)job->id, u.id);
		if (rc == DB_GONE && again)
			rc = DB_OK;
	}
	return rc;
}

static int put_group(struct runner *r, struct store_job *job, bool again)
{
	struct group_row g;
	int32_t id = 0;
	int rc = db_group_create(r->db, (int32_t)job->id, job->name, job->desc, (int)job->limit, &id);

	if (rc == DB_CONFLICT && again && db_group_by_name(r->db, job->name, &g) == DB_OK &&
	    g.creator == (int32_t)job->id) {
		id = g.id;
		rc = DB_OK;
	}
	if (rc == DB_OK)
		job->group = (uint32_t)id;
	return rc;
}

static int put_join(struct runner *r, struct store_job *job, bool again)
{
	struct group_mine m;
	int rc = group_find(r, job), rc2;

	if (rc == DB_OK)
		rc = db_group_join(r->db, (int32_t)job->group, (int32_t)job->id, (int)job->limit,
				   (int)job->limit2, &m);
	if (rc != DB_OK && rc != DB_CONFLICT)
		return rc;
	group_add(job, &m, true);
	rc2 = members_get(r, job, job->group, 0, JOIN_MEMBERS);
	if (rc == DB_CONFLICT && !again)
		return rc;
	return rc2;
}

static int put_leave(struct runner *r, struct store_job *job, bool again)
{
	int rc = group_find(r, job);

	if (rc == DB_OK)
		rc = db_group_leave(r->db, (int32_t)job->group, (int32_t)job->id, &job->dissolved);
	if (again && (rc == DB_GONE || rc == DB_DENIED)) {
		job->dissolved = rc == DB_GONE;
		rc = DB_OK;
	}
	return rc;
}

static int put_meta(struct runner *r, struct store_job *job, bool again)
{
	char value[4096];
	size_t len = 0;
	int rc = db_meta_claim(r->db, job->name, job->body, job->len, value, sizeof value, &len);

	(void)again;
	if (rc == DB_OK)
		store_job_body(job, value, len);
	return rc;
}

static int put_purge(struct runner *r, struct store_job *job, bool again)
{
	int64_t now = db_now_ms(), days = job->limit != 0 ? job->limit : r->keep_days;
	struct db_purge p = { .left_before = now - days * DAY_MS, .stored_before = now - KEEP_POSTS_MS,
			      .limit = PURGE_ROWS, .from = r->purge_from };
	int rc = db_post_purge(r->db, &p, &job->more);

	(void)again;
	if (rc == DB_OK)
		r->purge_from = p.from;
	return rc;
}

/* ---- dispatch ---- */

static const struct {
	enum store_kind kind;
	int (*read)(struct runner *, struct store_job *);
	int (*alone)(struct runner *, struct store_job *, bool);
} ops[STORE_NOPS] = {
	[STORE_USER] = { KIND_READ, get_user, NULL },
	[STORE_LOAD] = { KIND_READ, get_load, NULL },
	[STORE_FRIENDS] = { KIND_READ, get_friends, NULL },
	[STORE_GROUPS] = { KIND_READ, get_groups, NULL },
	[STORE_MEMBERS] = { KIND_READ, get_members, NULL },
	[STORE_GROUP] = { KIND_READ, get_group, NULL },
	[STORE_OFFLINE] = { KIND_READ, get_offline, NULL },
	[STORE_RANGE] = { KIND_READ, get_range, NULL },
	[STORE_ROSTER] = { KIND_READ, get_roster, NULL },
	[STORE_USER_ADD] = { KIND_ALONE, NULL, put_user },
	[STORE_USER_PASSWD] = { KIND_ALONE, NULL, put_password },
	[STORE_USER_DEL] = { KIND_FENCE, NULL, put_user_del },
	[STORE_USER_IMPORT] = { KIND_ALONE, NULL, put_import },
	[STORE_FRIEND_ADD] = { KIND_ALONE, NULL, put_friend },
	[STORE_FRIEND_DEL] = { KIND_ALONE, NULL, put_friend_del },
	[STORE_GROUP_ADD] = { KIND_ALONE, NULL, put_group },
	[STORE_GROUP_JOIN] = { KIND_FENCE, NULL, put_join },
	[STORE_GROUP_LEAVE] = { KIND_FENCE, NULL, put_leave },
	[STORE_OFFLINE_ADD] = { KIND_ADD, NULL, NULL },
	[STORE_OFFLINE_DEL] = { KIND_DEL, NULL, NULL },
	[STORE_OFFLINE_DEL_MID] = { KIND_DEL_MID, NULL, NULL },
	[STORE_GROUP_MSG] = { KIND_POST, NULL, NULL },
	[STORE_CURSORS] = { KIND_CURSORS, NULL, NULL },
	[STORE_META] = { KIND_ALONE, NULL, put_meta },
	[STORE_PURGE] = { KIND_FENCE, NULL, put_purge },
};

enum store_kind store_kind(enum store_op op)
{
	return ops[op].kind;
}

uint32_t store_rows(const struct store_job *job)
{
	switch (store_kind(job->op)) {
	case KIND_DEL: return job->nids;
	case KIND_CURSORS: return job->ncursors;
	default: return 1;
	}
}

/* What an earlier attempt left in the job. */
static void results_clear(struct store_job *job)
{
	for (uint32_t i = 0; i < job->npeople; i++)
		free(job->people[i].name);
	for (uint32_t i = 0; i < job->nmsgs; i++)
		free(job->msgs[i].body);
	free(job->people);
	free(job->groups);
	free(job->msgs);
	job->people = NULL;
	job->groups = NULL;
	job->msgs = NULL;
	job->npeople = job->ngroups = job->nmsgs = 0;
}

static bool ids_ok(const struct store_job *job)
{
	return job->id <= INT32_MAX && job->other <= INT32_MAX && job->group <= INT32_MAX;
}

int run_read(struct runner *r, struct store_job *job)
{
	results_clear(job);
	job->rc = !ids_ok(job) ? STORE_GONE : rc_from_db(ops[job->op].read(r, job));
	if (job->rc != STORE_OK)
		results_clear(job);
	return job->rc;
}

int run_alone(struct runner *r, struct store_job *job, bool again)
{
	results_clear(job);
	job->rc = !ids_ok(job) ? STORE_GONE : rc_from_db(ops[job->op].alone(r, job, again));
	return job->rc;
}

/* ---- the write lane, grouped ---- */

static int add_group(struct runner *r, struct store_job **jobs, uint32_t n)
{
	struct db_offline *rows = need(calloc(n, sizeof *rows));
	int rc;

	for (uint32_t i = 0; i < n; i++) {
		const struct store_job *j = jobs[i];

		rows[i] = (struct db_offline){ .user = (int32_t)j->id, .sender = (int32_t)j->other,
			.ts = (int64_t)j->ts, .body = j->body, .len = j->len };
		memcpy(rows[i].mid, j->mid, DB_MID);
	}
	rc = db_offline_add(r->db, rows, n, (int)jobs[0]->limit);
	for (uint32_t i = 0; i < n; i++)
		jobs[i]->rc = rc_from_db(rows[i].rc);
	free(rows);
	return rc;
}

/* One quota a statement: runs of equal ones, which is all of them but after a reload. */
static int group_add_rows(struct runner *r, struct store_job **jobs, uint32_t n)
{
	int rc = DB_OK;

	for (uint32_t from = 0, to; from < n; from = to) {
		for (to = from + 1; to < n && jobs[to]->limit == jobs[from]->limit; to++)
			;
		if (rc == DB_OK)
			rc = add_group(r, jobs + from, to - from);
		else
			for (uint32_t i = from; i < to; i++)
				jobs[i]->rc = rc_from_db(rc);
	}
	return rc;
}

static int group_post(struct runner *r, struct store_job **jobs, uint32_t n)
{
	struct db_post *rows = need(calloc(n, sizeof *rows));
	int rc;

	for (uint32_t i = 0; i < n; i++) {
		const struct store_job *j = jobs[i];

		rows[i] = (struct db_post){ .group = (int32_t)j->group, .sender = (int32_t)j->other,
			.ts = (int64_t)j->ts, .body = j->body, .len = j->len };
		memcpy(rows[i].mid, j->mid, DB_MID);
	}
	rc = db_post_add(r->db, rows, n);
	for (uint32_t i = 0; i < n; i++) {
		jobs[i]->rc = rc_from_db(rows[i].rc);
		jobs[i]->number = (uint64_t)rows[i].number;
		jobs[i]->fresh = rows[i].fresh;
	}
	free(rows);
	return rc;
}

static int group_cursors(struct runner *r, struct store_job **jobs, uint32_t n)
{
	uint32_t rows = 0, at = 0;
	struct db_cursor *c;
	int rc;

	for (uint32_t i = 0; i < n; i++)
		rows += jobs[i]->ncursors;
	c = need(calloc(rows + 1, sizeof *c));
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t k = 0; k < jobs[i]->ncursors; k++)
			c[at++] = (struct db_cursor){ (int32_t)jobs[i]->cursors[k].group,
				(int32_t)jobs[i]->id, (int64_t)jobs[i]->cursors[k].number };
	rc = db_cursor_set(r->db, c, rows);
	free(c);
	return rc;
}

static int group_del(struct runner *r, struct store_job **jobs, uint32_t n)
{
	uint32_t rows = 0, at = 0;
	struct db_offline_key *keys;
	int rc;

	for (uint32_t i = 0; i < n; i++)
		rows += jobs[i]->nids;
	keys = need(calloc(rows + 1, sizeof *keys));
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t k = 0; k < jobs[i]->nids; k++)
			keys[at++] = (struct db_offline_key){ (int32_t)jobs[i]->id,
				(int64_t)jobs[i]->ids[k] };
	rc = db_offline_del(r->db, keys, rows);
	free(keys);
	return rc;
}

static int group_del_mid(struct runner *r, struct store_job **jobs, uint32_t n)
{
	struct db_offline_mid *keys = need(calloc(n, sizeof *keys));
	int rc;

	for (uint32_t i = 0; i < n; i++) {
		keys[i].user = (int32_t)jobs[i]->id;
		memcpy(keys[i].mid, jobs[i]->mid, DB_MID);
	}
	rc = db_offline_del_mid(r->db, keys, n);
	free(keys);
	return rc;
}

int run_group(struct runner *r, enum store_kind kind, struct store_job **jobs, uint32_t n)
{
	bool each = kind == KIND_ADD || kind == KIND_POST;	/* those have an rc a row */
	int rc;

	switch (kind) {
	case KIND_ADD: rc = group_add_rows(r, jobs, n); break;
	case KIND_POST: rc = group_post(r, jobs, n); break;
	case KIND_CURSORS: rc = group_cursors(r, jobs, n); break;
	case KIND_DEL: rc = group_del(r, jobs, n); break;
	case KIND_DEL_MID: rc = group_del_mid(r, jobs, n); break;
	default: rc = DB_BAD; break;
	}
	for (uint32_t i = 0; !each && i < n; i++)
		jobs[i]->rc = rc_from_db(rc);
	return rc_from_db(rc);
}

/* ---- before there are workers ---- */

static void warning_cb(void *arg, const char *text)
{
	(*(void (**)(const char *))arg)(text);
}

int store_migrate(const struct store_setup *s, void (*tell)(const char *text), char *why, size_t cap)
{
	struct db *db;
	int rc;

	if (db_global_init() != DB_OK) {
		snprintf(why, cap, "the MySQL library does not start");
		return STORE_BAD;
	}
	db = connection_new(s, why, cap);
	if (db == NULL)
		return STORE_BAD;
	rc = db_migrate(db);
	if (rc == DB_OK)
		rc = db_warnings(db, warning_cb, &tell);
	if (rc != DB_OK)
		snprintf(why, cap, "%s", db_errmsg(db));
	db_close(db);
	return rc_from_db(rc);
}
