#include "sql/groups.h"

#include <stdlib.h>
#include <string.h>

#include "sql/engine.h"
#include "sql/groups_tx.h"

#define GROUP_COLUMNS "g.id, g.creator, g.members, g.head, g.groupname, g.groupdesc"
enum { GROUP_NCOLUMNS = 6 };

static const struct db_query q_by_id = DB_SAME(
	"SELECT " GROUP_COLUMNS " FROM AllGroup g WHERE g.id = ? AND g.dissolved_at IS NULL");
static const struct db_query q_lock = DB_LOCKING(
	"SELECT " GROUP_COLUMNS " FROM AllGroup g WHERE g.id = ? AND g.dissolved_at IS NULL");
static const struct db_query q_by_key = DB_SAME(
	"SELECT " GROUP_COLUMNS " FROM AllGroup g WHERE g.name_key = ?");
static const struct db_query q_membership = DB_SAME(
	"SELECT m.role = 'creator', m.`cursor` FROM GroupUser m JOIN AllGroup g ON g.id = m.groupid"
	" WHERE m.groupid = ? AND m.userid = ? AND m.term = 0 AND g.dissolved_at IS NULL");
static const struct db_query q_user_exists = DB_SAME("SELECT 1 FROM User WHERE id = ?");
static const struct db_query q_joined = DB_SAME(
	"SELECT COUNT(*) FROM GroupUser WHERE userid = ? AND term = 0");
static const struct db_query q_create = DB_SAME(
	"INSERT INTO AllGroup (groupname, name_key, groupdesc, creator, members, head, created)"
	" VALUES (?, ?, ?, ?, 1, 0, ?)");
static const struct db_query q_enter = DB_SAME(
	"INSERT INTO GroupUser (groupid, userid, term, role, `cursor`) VALUES (?, ?, 0, ?, ?)");
static const struct db_query q_count_member = DB_SAME(
	"UPDATE AllGroup SET members = members + ? WHERE id = ?");

static void group_read(struct db_stmt *st, struct group_row *g)
{
	g->id = (int32_t)db_int(st, 0);
	g->creator = (int32_t)db_int(st, 1);
	g->members = (int32_t)db_int(st, 2);
	g->head = db_int(st, 3);
	db_text(st, 4, g->name, sizeof g->name);
	db_text(st, 5, g->desc, sizeof g->desc);
}

/* Runs Q with N ids and steps to its one row; *st_r is where to read it. */
static int ask(struct db *db, const struct db_query *q, int n, const int64_t *ids,
	       struct db_stmt **st_r)
{
	int rc = db_use(db, q, st_r);

	if (rc != DB_OK)
		return rc;
	for (int i = 0; i < n; i++)
		db_put_int(*st_r, ids[i]);
	return db_step_one(*st_r);
}

static int group_lock(struct db *db, int64_t id, struct group_row *g)
{
	struct db_stmt *st;
	int rc = ask(db, &q_lock, 1, &id, &st);

	if (rc == DB_OK)
		group_read(st, g);
	return rc;
}

/* DB_OK or DB_GONE. */
static int membership(struct db *db, int64_t group, int64_t user, bool *creator_r, int64_t *cursor_r)
{
	int64_t ids[] = { group, user };
	struct db_stmt *st;
	int rc = ask(db, &q_membership, 2, ids, &st);

	if (rc == DB_OK) {
		*creator_r = db_int(st, 0) != 0;
		*cursor_r = db_int(st, 1);
	}
	return rc;
}

/* May USER enter one more group? */
static int joined_check(struct db *db, int64_t user, int max)
{
	struct db_stmt *st;
	int rc = ask(db, &q_user_exists, 1, &user, &st);

	if (rc != DB_OK)
		return rc;
	rc = ask(db, &q_joined, 1, &user, &st);
	if (rc == DB_OK && max > 0 && db_int(st, 0) >= max)
		return db_fail(db, DB_FULL, "the user is in %d groups", max);
	return rc;
}

static int enter(struct db *db, int64_t group, int64_t user, const char *role, int64_t cursor)
{
	struct db_stmt *st;
	int rc = db_use(db, &q_enter, &st);

	if (rc != DB_OK)
		return rc;
	db_put_int(st, group);
	db_put_int(st, user);
	db_put_text(st, role);
	db_put_int(st, cursor);
	return db_step_done(st);
}

/* ---- creating and joining ---- */

struct create {
	int32_t creator, id;
	const char *name, *desc;
	char key[DB_NAME];
	int max_joined;
};

static int create_fn(struct db *db, void *arg)
{
	struct create *c = arg;
	struct db_stmt *st;
	int rc = joined_check(db, c->creator, c->max_joined);

	if (rc == DB_OK)
		rc = db_use(db, &q_by_key, &st);
	if (rc != DB_OK)
		return rc;
	db_put_text(st, c->key);
	rc = db_step(st);
	if (rc != DB_OK)
		return rc == DB_ROW ? db_fail(db, DB_CONFLICT, "the name is taken") : rc;
	rc = db_use(db, &q_create, &st);
	if (rc != DB_OK)
		return rc;
	db_put_text(st, c->name);
	db_put_text(st, c->key);
	db_put_text(st, c->desc);
	db_put_int(st, c->creator);
	db_put_int(st, db_now_ms());
	rc = db_step_done(st);
	c->id = (int32_t)db_last_id(db);
	return rc == DB_OK ? enter(db, c->id, c->creator, "creator", 0) : rc;
}

int db_group_create(struct db *db, int32_t creator, const char *name, const char *desc,
		    int max_joined, int32_t *id_r)
{
	struct create c = { .creator = creator, .name = name, .desc = desc, .max_joined = max_joined };
	int rc;

	if (db_name_fold(c.key, name) != DB_OK || strlen(desc) >= DB_DESC)
		return db_fail(db, DB_BAD, "not a group name or description");
	rc = db_run(db, DB_WRITE, create_fn, &c);
	if (rc == DB_OK)
		*id_r = c.id;
	return rc;
}

struct join {
	int32_t group, user;
	int max_joined, max_members;
	struct group_mine mine;
};

/* The group's row is locked: its head does not move until we are in. */
static int join_fn(struct db *db, void *arg)
{
	struct join *j = arg;
	struct group_mine *m = &j->mine;
	int64_t count[] = { 1, j->group };
	int rc = group_lock(db, j->group, &m->group);

	if (rc != DB_OK)
		return rc;
	rc = membership(db, j->group, j->user, &m->is_creator, &m->cursor);
	if (rc == DB_OK)
		return db_fail(db, DB_CONFLICT, "is a member already");
	if (rc == DB_GONE)
		rc = joined_check(db, j->user, j->max_joined);
	if (rc != DB_OK)
		return rc;
	if (j->max_members > 0 && m->group.members >= j->max_members)
		return db_fail(db, DB_FULL, "the group has %d members", j->max_members);
	m->is_creator = false;
	m->cursor = m->group.head;
	m->group.members++;
	rc = enter(db, j->group, j->user, "normal", m->cursor);
	return rc == DB_OK ? db_exec_ids(db, &q_count_member, 2, count, NULL) : rc;
}

int db_group_join(struct db *db, int32_t group, int32_t user, int max_joined, int max_members,
		  struct group_mine *mine_r)
{
	struct join j = { .group = group, .user = user, .max_joined = max_joined,
			  .max_members = max_members };
	int rc = db_run(db, DB_WRITE, join_fn, &j);

	if ((rc == DB_OK || rc == DB_CONFLICT) && mine_r != NULL)
		*mine_r = j.mine;
	return rc;
}

/* ---- leaving and dissolving ---- */

/*
 * A stay that has received everything leaves no row. So the term of a row that is kept (the head
 * it was left at, plus one) is its own: a later stay begins at that head or above, and if it ends
 * at the same head it has nothing to receive.
 */
static const struct db_query q_leave_done = DB_SAME(
	"DELETE FROM GroupUser WHERE groupid = ? AND userid = ? AND term = 0 AND `cursor` >= ?");
static const struct db_query q_leave_keep = DB_SAME(
	"UPDATE GroupUser SET left_at = ?, left_head = ?, term = ?"
	" WHERE groupid = ? AND userid = ? AND term = 0");
static const struct db_query q_all_done = DB_SAME(
	"DELETE FROM GroupUser WHERE groupid = ? AND term = 0 AND `cursor` >= ?");
static const struct db_query q_all_keep = DB_SAME(
	"UPDATE GroupUser SET left_at = ?, left_head = ?, term = ? WHERE groupid = ? AND term = 0");
static const struct db_query q_dissolve = DB_SAME(
	"UPDATE AllGroup SET dissolved_at = ?, name_key = NULL, members = 0 WHERE id = ?");

static int dissolve(struct db *db, const struct group_row *g, int64_t now)
{
	int64_t done[] = { g->id, g->head }, keep[] = { now, g->head, g->head + 1, g->id };
	int64_t end[] = { now, g->id };
	int rc = db_exec_ids(db, &q_all_done, 2, done, NULL);

	if (rc == DB_OK)
		rc = db_exec_ids(db, &q_all_keep, 4, keep, NULL);
	return rc == DB_OK ? db_exec_ids(db, &q_dissolve, 2, end, NULL) : rc;
}

static int leave(struct db *db, const struct group_row *g, int64_t user, int64_t now)
{
	int64_t done[] = { g->id, user, g->head }, count[] = { -1, g->id }, changes = 0;
	int64_t keep[] = { now, g->head, g->head + 1, g->id, user };
	int rc = db_exec_ids(db, &q_leave_done, 3, done, &changes);

	if (rc == DB_OK && changes == 0)
		rc = db_exec_ids(db, &q_leave_keep, 5, keep, NULL);
	return rc == DB_OK ? db_exec_ids(db, &q_count_member, 2, count, NULL) : rc;
}

struct leaving { int32_t group, user; bool dissolve_only, dissolved; };

static int leave_fn(struct db *db, void *arg)
{
	struct leaving *l = arg;
	struct group_row g;
	bool creator = false;
	int64_t cursor;
	int rc = group_lock(db, l->group, &g);

	if (rc != DB_OK)
		return rc;
	rc = membership(db, l->group, l->user, &creator, &cursor);
	if (rc == DB_GONE)
		return db_fail(db, DB_DENIED, "not a member of that group");
	if (rc != DB_OK)
		return rc;
	l->dissolved = creator;
	if (creator)
		return dissolve(db, &g, db_now_ms());
	if (l->dissolve_only)
		return db_fail(db, DB_DENIED, "only its creator can dissolve a group");
	return leave(db, &g, l->user, db_now_ms());
}

int db_group_leave(struct db *db, int32_t group, int32_t user, bool *dissolved_r)
{
	struct leaving l = { .group = group, .user = user };
	int rc = db_run(db, DB_WRITE, leave_fn, &l);

	if (rc == DB_OK)
		*dissolved_r = l.dissolved;
	return rc;
}

int db_group_dissolve(struct db *db, int32_t group, int32_t user)
{
	struct leaving l = { .group = group, .user = user, .dissolve_only = true };

	return db_run(db, DB_WRITE, leave_fn, &l);
}

static const struct db_query q_user_groups = DB_SAME(
	"SELECT groupid FROM GroupUser WHERE userid = ? AND term = 0 AND groupid > ?"
	" ORDER BY groupid LIMIT 1");
static const struct db_query q_user_out = DB_SAME("DELETE FROM GroupUser WHERE userid = ?");

int group_tx_drop_user(struct db *db, int64_t user, int64_t now_ms)
{
	int64_t at[] = { user, 0 };
	struct db_stmt *st;
	int rc;

	/* One by one in the order of ids: the lock order of all. */
	while ((rc = ask(db, &q_user_groups, 2, at, &st)) == DB_OK) {
		struct group_row g;

		at[1] = db_int(st, 0);
		rc = group_lock(db, at[1], &g);
		if (rc == DB_GONE)
			continue;
		if (rc == DB_OK)
			rc = g.creator == user ? dissolve(db, &g, now_ms) : leave(db, &g, user, now_ms);
		if (rc != DB_OK)
			return rc;
	}
	return rc == DB_GONE ? db_exec_ids(db, &q_user_out, 1, &user, NULL) : rc;
}

/* ---- reading ---- */

struct find { int64_t id; const char *key; struct group_row row; };

static int find_fn(struct db *db, void *arg)
{
	struct find *f = arg;
	struct db_stmt *st;
	int rc = db_use(db, f->key != NULL ? &q_by_key : &q_by_id, &st);

	if (rc != DB_OK)
		return rc;
	if (f->key != NULL)
		db_put_text(st, f->key);
	else
		db_put_int(st, f->id);
	rc = db_step_one(st);
	if (rc == DB_OK)
		group_read(st, &f->row);
	return rc;
}

int db_group_by_id(struct db *db, int32_t id, struct group_row *row_r)
{
	struct find f = { .id = id };
	int rc = db_run(db, DB_READ, find_fn, &f);

	if (rc == DB_OK)
		*row_r = f.row;
	return rc;
}

int db_group_by_name(struct db *db, const char *name, struct group_row *row_r)
{
	char key[DB_NAME];
	struct find f = { .key = key };
	int rc;

	if (db_name_fold(key, name) != DB_OK)
		return DB_GONE;			/* no group has such a name */
	rc = db_run(db, DB_READ, find_fn, &f);
	if (rc == DB_OK)
		*row_r = f.row;
	return rc;
}

struct member { int32_t group, user; bool creator; };

static int member_fn(struct db *db, void *arg)
{
	struct member *m = arg;
	struct db_stmt *st;
	int64_t id = m->group, cursor;
	int rc = membership(db, m->group, m->user, &m->creator, &cursor);

	if (rc != DB_GONE)
		return rc;
	rc = ask(db, &q_by_id, 1, &id, &st);
	return rc == DB_OK ? DB_DENIED : rc;
}

int db_group_is_member(struct db *db, int32_t group, int32_t user, bool *creator_r)
{
	struct member m = { .group = group, .user = user };
	int rc = db_run(db, DB_READ, member_fn, &m);

	if (rc == DB_OK && creator_r != NULL)
		*creator_r = m.creator;
	return rc;
}

static const struct db_query q_view = DB_SAME(
	"SELECT " GROUP_COLUMNS ", m.`cursor`, m.role = 'creator' FROM AllGroup g"
	" LEFT JOIN GroupUser m ON m.groupid = g.id AND m.userid = ? AND m.term = 0"
	" WHERE g.id = ? AND g.dissolved_at IS NULL");

struct view { int64_t ids[2]; struct group_mine mine; bool member; };

static int view_fn(struct db *db, void *arg)
{
	struct view *v = arg;
	struct db_stmt *st;
	int rc = ask(db, &q_view, 2, v->ids, &st);

	if (rc == DB_OK) {
		group_read(st, &v->mine.group);
		v->member = !db_null(st, GROUP_NCOLUMNS);
		v->mine.cursor = db_int(st, GROUP_NCOLUMNS);
		v->mine.is_creator = db_int(st, GROUP_NCOLUMNS + 1) != 0;
	}
	return rc;
}

int db_group_view(struct db *db, int32_t group, int32_t user, struct group_mine *mine_r,
		  bool *member_r)
{
	struct view v = { .ids = { user, group } };
	int rc = db_run(db, DB_READ, view_fn, &v);

	if (rc == DB_OK) {
		*mine_r = v.mine;
		*member_r = v.member;
	}
	return rc;
}

static const struct db_query q_list = DB_SAME(
	"SELECT " GROUP_COLUMNS ", m.`cursor`, m.role = 'creator'"
	" FROM GroupUser m JOIN AllGroup g ON g.id = m.groupid"
	" WHERE m.userid = ? AND m.groupid > ? AND m.term = 0 ORDER BY m.groupid LIMIT ?");
static const struct db_query q_members = DB_SAME(
	"SELECT u.id, u.name, m.role = 'creator' FROM GroupUser m JOIN User u ON u.id = m.userid"
	" WHERE m.groupid = ? AND m.userid > ? AND m.term = 0 ORDER BY m.userid LIMIT ?");

struct list {
	int64_t ids[3];		/* of whom, after, limit */
	void (*group_cb)(void *, const struct group_mine *);
	void (*member_cb)(void *, int32_t, const char *, bool);
	void *arg;
};

static void list_row(struct list *l, struct db_stmt *st)
{
	struct group_mine m;
	char name[DB_NAME];

	if (l->group_cb != NULL) {
		group_read(st, &m.group);
		m.cursor = db_int(st, GROUP_NCOLUMNS);
		m.is_creator = db_int(st, GROUP_NCOLUMNS + 1) != 0;
		l->group_cb(l->arg, &m);
	} else {
		db_text(st, 1, name, sizeof name);
		l->member_cb(l->arg, (int32_t)db_int(st, 0), name, db_int(st, 2) != 0);
	}
}

static int list_fn(struct db *db, void *arg)
{
	struct list *l = arg;
	struct db_stmt *st;
	int rc = ask(db, l->group_cb != NULL ? &q_list : &q_members, 3, l->ids, &st);

	if (rc == DB_GONE)
		return DB_OK;			/* an empty list */
	while (rc == DB_OK || rc == DB_ROW) {
		list_row(l, st);
		rc = db_step(st);
		if (rc == DB_OK)
			return DB_OK;
	}
	return rc;
}

int db_group_list(struct db *db, int32_t user, int32_t after, int limit,
		  void (*cb)(void *arg, const struct group_mine *g), void *arg)
{
	struct list l = { .ids = { user, after, limit }, .group_cb = cb, .arg = arg };

	return db_run(db, DB_READ, list_fn, &l);
}

int db_group_members(struct db *db, int32_t group, int32_t after, int limit,
		     void (*cb)(void *arg, int32_t id, const char *name, bool is_creator), void *arg)
{
	struct list l = { .ids = { group, after, limit }, .member_cb = cb, .arg = arg };

	return db_run(db, DB_READ, list_fn, &l);
}
