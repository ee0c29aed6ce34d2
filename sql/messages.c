#include "sql/messages.h"

#include <stdlib.h>
#include <string.h>

#include "sql/engine.h"
#include "sql/rows.h"

static const struct db_query q_waiting = DB_SAME(
	"SELECT userid, COUNT(*) FROM OfflineMessage WHERE userid IN ({?}) GROUP BY userid");
static const struct db_query q_have = DB_SAME(
	"SELECT 1 FROM OfflineMessage WHERE userid = ? AND mid = ?");
/* Not INSERT IGNORE: that would hide other errors, too. */
static const struct db_query q_add = {
	"INSERT INTO OfflineMessage (userid, senderid, mid, ts, body) VALUES {(?, ?, ?, ?, ?)}"
	" ON CONFLICT (userid, mid) DO NOTHING",
	"INSERT INTO OfflineMessage (userid, senderid, mid, ts, body) VALUES {(?, ?, ?, ?, ?)}"
	" ON DUPLICATE KEY UPDATE id = id"
};
static const struct db_query q_load = DB_SAME(
	"SELECT id, senderid, mid, ts, body FROM OfflineMessage WHERE userid = ? AND id > ?"
	" ORDER BY id LIMIT ?");
static const struct db_query q_del = DB_SAME(
	"DELETE FROM OfflineMessage WHERE {(id = ? AND userid = ?)| OR }");
static const struct db_query q_del_mid = DB_SAME(
	"DELETE FROM OfflineMessage WHERE {(userid = ? AND mid = ?)| OR }");

/* ---- storing ---- */

struct recipient { int32_t user; size_t first, n; int64_t waiting; };

struct add {
	struct db_offline *rows;
	uint32_t *order;		/* by recipient, then as given: rows worth storing */
	size_t norder;
	struct recipient *to;
	size_t nto;
	uint32_t *plain;		/* rows to be inserted without a look at the quota */
	size_t nplain;
	int quota;
};

static int order_cmp(const void *a, const void *b, void *arg)
{
	const struct db_offline *rows = arg;
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	if (rows[x].user != rows[y].user)
		return rows[x].user < rows[y].user ? -1 : 1;
	return x < y ? -1 : x > y;
}

static int recipient_cmp(const void *key, const void *elem)
{
	int32_t user = *(const int32_t *)key, other = ((const struct recipient *)elem)->user;

	return user < other ? -1 : user > other;
}

static void add_group(struct add *a)
{
	qsort_r(a->order, a->norder, sizeof *a->order, order_cmp, a->rows);
	for (size_t i = 0; i < a->norder; i++) {
		int32_t user = a->rows[a->order[i]].user;

		if (a->nto == 0 || a->to[a->nto - 1].user != user)
			a->to[a->nto++] = (struct recipient){ .user = user, .first = i };
		a->to[a->nto - 1].n++;
	}
}

static void waiting_put(struct db_stmt *st, void *ctx, size_t i)
{
	db_put_int(st, ((struct add *)ctx)->to[i].user);
}

static int waiting_row(struct db_stmt *st, void *ctx)
{
	struct add *a = ctx;
	int32_t user = (int32_t)db_int(st, 0);
	struct recipient *r = bsearch(&user, a->to, a->nto, sizeof *a->to, recipient_cmp);

	if (r != NULL)
		r->waiting = db_int(st, 1);
	return DB_OK;
}

static void plain_put(struct db_stmt *st, void *ctx, size_t i)
{
	struct add *a = ctx;
	struct db_offline *row = &a->rows[a->plain[i]];

	db_put_int(st, row->user);
	db_put_int(st, row->sender);
	db_put_blob(st, row->mid, DB_MID);
	db_put_int(st, row->ts);
	db_put_blob(st, row->body, row->len);
	row->rc = DB_OK;
}

static size_t plain_size(void *ctx, size_t i)
{
	struct add *a = ctx;

	return a->rows[a->plain[i]].len + 64;
}

static const struct db_each plain_ops = { plain_put, plain_size, NULL, 256, false };

static int have(struct db *db, const struct db_offline *row)
{
	struct db_stmt *st;
	int rc = db_use(db, &q_have, &st);

	if (rc != DB_OK)
		return rc;
	db_put_int(st, row->user);
	db_put_blob(st, row->mid, DB_MID);
	return db_step_one(st);
}

/* A recipient near its quota: row by row, because one that is stored already is no new one. */
static int add_counted(struct db *db, struct add *a, const struct recipient *r)
{
	int64_t waiting = r->waiting;

	for (size_t i = 0; i < r->n; i++) {
		struct db_offline *row = &a->rows[a->order[r->first + i]];
		int rc = have(db, row);

		row->rc = DB_OK;
		if (rc == DB_OK)
			continue;
		if (rc != DB_GONE)
			return rc;
		if (waiting >= a->quota) {
			row->rc = DB_FULL;
			continue;
		}
		a->plain[0] = a->order[r->first + i];
		rc = db_each(db, &q_add, 1, &plain_ops, a);
		if (rc != DB_OK)
			return rc;
		waiting++;
	}
	return DB_OK;
}

static int add_fn(struct db *db, void *arg)
{
	static const struct db_each waiting_ops = { waiting_put, NULL, waiting_row, 64, true };
	struct add *a = arg;
	int rc = DB_OK;

	for (size_t i = 0; i < a->nto; i++)
		a->to[i].waiting = 0;
	if (a->quota > 0)
		rc = db_each(db, &q_waiting, a->nto, &waiting_ops, a);
	a->nplain = 0;
	for (size_t i = 0; rc == DB_OK && i < a->nto; i++) {
		const struct recipient *r = &a->to[i];

		if (a->quota > 0 && r->waiting + (int64_t)r->n > a->quota)
			continue;
		for (size_t k = 0; k < r->n; k++)
			a->plain[a->nplain++] = a->order[r->first + k];
	}
	if (rc == DB_OK)
		rc = db_each(db, &q_add, a->nplain, &plain_ops, a);
	for (size_t i = 0; rc == DB_OK && i < a->nto; i++)
		if (a->quota > 0 && a->to[i].waiting + (int64_t)a->to[i].n > a->quota)
			rc = add_counted(db, a, &a->to[i]);
	return rc;
}

/* The rows [from, from + n) of the caller, but those that are too long. */
static int add_range(struct db *db, void *ctx, size_t from, size_t n)
{
	struct add all = *(struct add *)ctx, a = { .rows = all.rows, .quota = all.quota };

	a.order = all.order;
	a.plain = all.plain;
	a.to = all.to;
	for (size_t i = from; i < from + n; i++)
		if (a.rows[i].rc != DB_BAD)
			a.order[a.norder++] = (uint32_t)i;
	if (a.norder == 0)
		return DB_OK;
	add_group(&a);
	return db_run(db, DB_WRITE_KEYED, add_fn, &a);
}

static void add_refuse(void *ctx, size_t i, int rc)
{
	((struct add *)ctx)->rows[i].rc = rc;
}

int db_offline_add(struct db *db, struct db_offline *rows, size_t n, int quota)
{
	struct add a = { .rows = rows, .quota = quota };
	int rc = DB_BUSY;

	if (n == 0)
		return DB_OK;
	for (size_t i = 0; i < n; i++)
		rows[i].rc = rows[i].len <= DB_BODY_MAX ? DB_OK : DB_BAD;
	a.order = malloc(n * sizeof *a.order);
	a.plain = malloc(n * sizeof *a.plain);
	a.to = malloc(n * sizeof *a.to);
	if (a.order != NULL && a.plain != NULL && a.to != NULL)
		rc = rows_bisect(db, 0, n, add_range, add_refuse, &a);
	else
		db_fail(db, rc, "out of memory");
	for (size_t i = 0; rc != DB_OK && i < n; i++)
		rows[i].rc = rc;
	free(a.order);
	free(a.plain);
	free(a.to);
	return rc;
}

/* ---- loading ---- */

struct load { int64_t user, after; struct rows_load out; };

static int load_fn(struct db *db, void *arg)
{
	struct load *l = arg;
	struct db_stmt *st;
	int rc = db_use(db, &q_load, &st);

	if (rc != DB_OK)
		return rc;
	db_put_int(st, l->user);
	db_put_int(st, l->after);
	db_put_int(st, (int64_t)l->out.limit + 1);
	return rows_give(st, &l->out);
}

int db_offline_load(struct db *db, int32_t user, int64_t after, int limit, size_t limit_bytes,
		    void (*cb)(void *arg, const struct db_message *m), void *arg, bool *more_r)
{
	struct load l = { user, after, { limit, limit_bytes, cb, arg, false } };
	int rc = db_run(db, DB_READ, load_fn, &l);

	if (rc == DB_OK)
		*more_r = l.out.more;
	return rc;
}

/* ---- deleting ---- */

struct del { const struct db_offline_key *keys; const struct db_offline_mid *mids; size_t n; };

static void del_put(struct db_stmt *st, void *ctx, size_t i)
{
	const struct del *d = ctx;

	db_put_int(st, d->keys[i].row);
	db_put_int(st, d->keys[i].user);
}

static void del_mid_put(struct db_stmt *st, void *ctx, size_t i)
{
	const struct del *d = ctx;

	db_put_int(st, d->mids[i].user);
	db_put_blob(st, d->mids[i].mid, DB_MID);
}

static int del_fn(struct db *db, void *arg)
{
	static const struct db_each by_row = { del_put, NULL, NULL, 64, true };
	static const struct db_each by_mid = { del_mid_put, NULL, NULL, 64, true };
	struct del *d = arg;

	return d->keys != NULL ? db_each(db, &q_del, d->n, &by_row, d)
			       : db_each(db, &q_del_mid, d->n, &by_mid, d);
}

int db_offline_del(struct db *db, const struct db_offline_key *keys, size_t n)
{
	struct del d = { .keys = keys, .n = n };

	return n == 0 ? DB_OK : db_run(db, DB_WRITE_KEYED, del_fn, &d);
}

int db_offline_del_mid(struct db *db, const struct db_offline_mid *keys, size_t n)
{
	struct del d = { .mids = keys, .n = n };

	return n == 0 ? DB_OK : db_run(db, DB_WRITE_KEYED, del_fn, &d);
}
