/*
 * House-keeping of groups: see db_post_purge() in posts.h.
 */
#include "sql/posts.h"

#include "sql/engine.h"

/* Ended stays: those that have received all, or whose time is over. */
static const struct db_query q_stays = {
	"DELETE FROM GroupUser WHERE (groupid, userid, term) IN (SELECT groupid, userid, term"
	" FROM GroupUser WHERE left_at IS NOT NULL AND (left_at < ? OR cursor >= left_head) LIMIT ?)",
	"DELETE FROM GroupUser WHERE left_at IS NOT NULL AND (left_at < ? OR `cursor` >= left_head)"
	" LIMIT ?"
};
/* The next group that has posts or is dissolved, with what all who have a stay in it have received. */
static const struct db_query q_group = DB_SAME(
	"SELECT g.id, g.dissolved_at,"
	" (SELECT MIN(m.`cursor`) FROM GroupUser m WHERE m.groupid = g.id)"
	" FROM AllGroup g WHERE g.id > ? AND (g.dissolved_at IS NOT NULL"
	" OR EXISTS (SELECT 1 FROM GroupMessage p WHERE p.groupid = g.id)) ORDER BY g.id LIMIT 1");
static const struct db_query q_lock = DB_LOCKING("SELECT head FROM AllGroup WHERE id = ?");
static const struct db_query q_posts = {
	"DELETE FROM GroupMessage WHERE groupid = ?1 AND number IN (SELECT number FROM GroupMessage"
	" WHERE groupid = ?1 AND number <= ?2 AND ts < ?3 ORDER BY number LIMIT ?4)",
	"DELETE FROM GroupMessage WHERE groupid = ? AND number <= ? AND ts < ? ORDER BY number LIMIT ?"
};
static const struct db_query q_any = DB_SAME(
	"SELECT 1 FROM GroupMessage WHERE groupid = ? LIMIT 1");
static const struct db_query q_forget = DB_SAME("DELETE FROM AllGroup WHERE id = ?");

struct purge { struct db_purge *p; int32_t at; int left; bool more; };

/* Runs Q with one id and tells whether it has a row. */
static int has_row(struct db *db, const struct db_query *q, int64_t id, struct db_stmt **st_r)
{
	int rc = db_use(db, q, st_r);

	if (rc != DB_OK)
		return rc;
	db_put_int(*st_r, id);
	return db_step_one(*st_r);
}

/* A dissolved group without posts and without anybody waiting is forgotten. */
static int forget(struct db *db, int64_t group)
{
	struct db_stmt *st;
	int rc = has_row(db, &q_any, group, &st);

	if (rc == DB_OK)
		return DB_OK;
	return rc == DB_GONE ? db_exec_ids(db, &q_forget, 1, &group, NULL) : rc;
}

static int purge_group(struct db *db, struct purge *pg)
{
	struct db_stmt *st;
	int64_t group, received, changes = 0, args[4];
	bool dissolved, nobody;
	int rc = has_row(db, &q_group, pg->at, &st);

	if (rc != DB_OK)
		return rc;
	group = db_int(st, 0);
	dissolved = !db_null(st, 1);
	nobody = db_null(st, 2);
	received = nobody ? INT64_MAX : db_int(st, 2);
	pg->at = (int32_t)group;
	/*
	 * Cursors only grow, and whoever joins begins at the head: what all had received when we
	 * looked stays received. A live group is locked all the same, so that a resend that has
	 * just found its number does not lose it under its feet.
	 */
	rc = has_row(db, &q_lock, group, &st);
	if (rc != DB_OK)
		return rc == DB_GONE ? DB_OK : rc;
	args[0] = group;
	args[1] = received;
	args[2] = pg->p->stored_before;
	args[3] = pg->left;
	rc = db_exec_ids(db, &q_posts, 4, args, &changes);
	if (rc != DB_OK)
		return rc;
	pg->left -= (int)changes;
	if (pg->left <= 0)
		pg->at = (int32_t)group - 1;	/* perhaps not done with this one */
	else if (dissolved && nobody)
		rc = forget(db, group);
	return rc;
}

enum { GROUPS_A_CALL = 64 };

static int purge_fn(struct db *db, void *arg)
{
	struct purge *pg = arg;
	int64_t args[] = { pg->p->left_before, pg->p->limit }, changes = 0;
	int rc = db_exec_ids(db, &q_stays, 2, args, &changes);

	pg->at = pg->p->from;
	pg->left = pg->p->limit;
	pg->more = true;
	for (int i = 0; rc == DB_OK && pg->left > 0 && i < GROUPS_A_CALL; i++)
		rc = purge_group(db, pg);
	if (rc == DB_GONE) {			/* that was the last group */
		pg->more = changes >= pg->p->limit;
		pg->at = 0;
		rc = DB_OK;
	}
	return rc;
}

int db_post_purge(struct db *db, struct db_purge *p, bool *more_r)
{
	struct purge pg = { .p = p };
	int rc = db_run(db, DB_WRITE_KEYED, purge_fn, &pg);

	if (rc == DB_OK) {
		p->from = pg.at;
		*more_r = pg.more;
	}
	return rc;
}
