#include "sql/friends.h"

#include "sql/engine.h"

static const struct db_query q_have = DB_SAME(
	"SELECT 1 FROM Friend WHERE userid = ? AND friendid = ?");
static const struct db_query q_exists = DB_SAME("SELECT 1 FROM User WHERE id = ?");
static const struct db_query q_count = DB_SAME("SELECT COUNT(*) FROM Friend WHERE userid = ?");
static const struct db_query q_add = DB_SAME("INSERT INTO Friend (userid, friendid) VALUES (?, ?)");
static const struct db_query q_del = DB_SAME("DELETE FROM Friend WHERE userid = ? AND friendid = ?");
static const struct db_query q_list = DB_SAME(
	"SELECT u.id, u.name FROM Friend f JOIN User u ON u.id = f.friendid"
	" WHERE f.userid = ? AND f.friendid > ? ORDER BY f.friendid LIMIT ?");

struct pair { int64_t ids[2]; int max; };

/* Runs Q with the first N ids; the first row's first column goes to *v_r. DB_GONE: no row. */
static int ask(struct db *db, const struct db_query *q, int n, const int64_t *ids, int64_t *v_r)
{
	struct db_stmt *st;
	int rc = db_use(db, q, &st);

	if (rc != DB_OK)
		return rc;
	for (int i = 0; i < n; i++)
		db_put_int(st, ids[i]);
	rc = db_step_one(st);
	if (rc == DB_OK)
		*v_r = db_int(st, 0);
	return rc;
}

static int add_fn(struct db *db, void *arg)
{
	struct pair *p = arg;
	int64_t v = 0;
	int rc = ask(db, &q_have, 2, p->ids, &v);

	if (rc == DB_OK)
		return db_fail(db, DB_CONFLICT, "is a friend already");
	if (rc == DB_GONE)
		rc = ask(db, &q_exists, 1, &p->ids[0], &v);
	if (rc == DB_OK)
		rc = ask(db, &q_exists, 1, &p->ids[1], &v);
	if (rc == DB_OK)
		rc = ask(db, &q_count, 1, &p->ids[0], &v);
	if (rc != DB_OK)
		return rc;
	if (p->max > 0 && v >= p->max)
		return db_fail(db, DB_FULL, "the friend list is full");
	return db_exec_ids(db, &q_add, 2, p->ids, NULL);
}

int db_friend_add(struct db *db, int32_t user, int32_t friend, int max)
{
	struct pair p = { { user, friend }, max };

	return db_run(db, DB_WRITE, add_fn, &p);
}

static int del_fn(struct db *db, void *arg)
{
	struct pair *p = arg;
	int64_t changes = 0;
	int rc = db_exec_ids(db, &q_del, 2, p->ids, &changes);

	return rc == DB_OK && changes == 0 ? DB_GONE : rc;
}

int db_friend_del(struct db *db, int32_t user, int32_t friend)
{
	struct pair p = { { user, friend }, 0 };

	return db_run(db, DB_WRITE, del_fn, &p);
}

struct list {
	int32_t user, after;
	int limit;
	void (*cb)(void *, int32_t, const char *);
	void *arg;
};

static int list_fn(struct db *db, void *arg)
{
	struct list *l = arg;
	struct db_stmt *st;
	char name[DB_NAME];
	int rc = db_use(db, &q_list, &st);

	if (rc != DB_OK)
		return rc;
	db_put_int(st, l->user);
	db_put_int(st, l->after);
	db_put_int(st, l->limit);
	while ((rc = db_step(st)) == DB_ROW) {
		db_text(st, 1, name, sizeof name);
		l->cb(l->arg, (int32_t)db_int(st, 0), name);
	}
	return rc;
}

int db_friend_list(struct db *db, int32_t user, int32_t after, int limit,
		   void (*cb)(void *arg, int32_t id, const char *name), void *arg)
{
	struct list l = { user, after, limit, cb, arg };

	return db_run(db, DB_READ, list_fn, &l);
}
